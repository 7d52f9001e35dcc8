//! The `Date` of answers, written anew once a second.

use std::{
    cell::RefCell,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;

use crate::clock;

#[derive(Debug)]
struct Written {
    /// IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`.
    text: HeaderValue,
    /// The second after which it is another.
    until: Option<Instant>,
}

thread_local! {
    static WRITTEN: RefCell<Written> = const { RefCell::new(Written { text: HeaderValue::from_static(""), until: None }) };
}

/// Calls `put` with the date of now.
pub fn with_now(put: impl FnOnce(&HeaderValue)) {
    WRITTEN.with_borrow_mut(|written| {
        let now = clock::now();
        if written.until.is_none_or(|until| now >= until) {
            written.write(SystemTime::now(), now);
        }
        put(&written.text);
    });
}

impl Written {
    fn write(&mut self, date: SystemTime, now: Instant) {
        let past = date.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let text = httpdate::fmt_http_date(date);
        self.text = HeaderValue::try_from(text).expect("letters, digits, commas and colons are valid");
        self.until = now.checked_add(Duration::from_secs(1) - Duration::from_nanos(past.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_and_lasts_to_the_end_of_its_second() {
        let mut written = Written { text: HeaderValue::from_static(""), until: None };
        let now = Instant::now();
        let date = UNIX_EPOCH + Duration::from_millis(784_111_777_250);
        written.write(date, now);
        assert_eq!(written.text, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(written.until, Some(now + Duration::from_millis(750)));
    }

    #[test]
    fn it_is_the_date_of_now() {
        let before = SystemTime::now() - Duration::from_secs(1);
        let mut read = None;
        with_now(|now| read = httpdate::parse_http_date(now.to_str().unwrap()).ok());
        let read = read.unwrap();
        assert!(read > before && read <= SystemTime::now());
    }
}
