//! Deadline arithmetic.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::policy::timeouts::{Bound, Deadline, format_grpc_timeout, parse_grpc_timeout};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn the_tighter_bound_ends_a_try() {
    let start = Instant::now();
    for (request, asked, per_try, at, expected) in [
        (None, None, None, 0, None),
        (Some(100), None, None, 40, Some((100, Bound::Overall))),
        (Some(100), Some(50), None, 0, Some((50, Bound::Overall))),
        (Some(100), Some(500), None, 0, Some((100, Bound::Overall))),
        (None, Some(50), Some(20), 0, Some((20, Bound::Try))),
        (None, None, Some(20), 1000, Some((1020, Bound::Try))),
        (Some(100), None, Some(20), 90, Some((100, Bound::Overall))),
        (Some(100), None, Some(20), 80, Some((100, Bound::Overall))),
        (Some(100), None, Some(20), 79, Some((99, Bound::Try))),
    ] {
        let deadline = Deadline::new(start, request.map(ms), asked.map(ms), per_try.map(ms));
        let expected = expected.map(|(until, bound)| (start + ms(until), bound));
        assert_eq!(deadline.try_until(start + ms(at)), expected, "{request:?} {asked:?} {per_try:?} {at}");
    }
    let deadline = Deadline::new(start, Some(ms(100)), None, None);
    assert_eq!(deadline.left(start + ms(30)), Some(ms(70)));
    assert_eq!(deadline.left(start + ms(130)), Some(Duration::ZERO));
    assert!(deadline.passed(start + ms(100)) && !deadline.passed(start + ms(99)));
    assert!(!Deadline::default().passed(start));
    assert_eq!(Deadline::new(start, Some(Duration::MAX), None, None).overall(), None);
}

#[test]
fn grpc_timeouts() {
    for (text, time) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("4m", Some(ms(4))),
        ("5u", Some(Duration::from_micros(5))),
        ("6n", Some(Duration::from_nanos(6))),
        ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
        ("0S", Some(Duration::ZERO)),
        ("", None),
        ("S", None),
        ("1", None),
        ("123456789S", None),
        ("-1S", None),
        ("1.5S", None),
        ("1 S", None),
        ("1s", None),
    ] {
        assert_eq!(parse_grpc_timeout(text.as_bytes()), time, "{text:?}");
    }
    for (time, text) in [
        (Duration::ZERO, "0n"),
        (Duration::from_nanos(99_999_999), "99999999n"),
        (ms(100), "100000u"),
        (Duration::from_secs(15), "15000000u"),
        (Duration::from_secs(100), "100000m"),
        (Duration::from_secs(100_000), "100000S"),
        (Duration::MAX, "99999999H"),
    ] {
        assert_eq!(format_grpc_timeout(time), text);
    }
}

#[test]
fn what_is_passed_on_is_what_the_try_has_left() {
    let start = Instant::now();
    let deadline = Deadline::new(start, None, parse_grpc_timeout(b"1S"), Some(ms(400)));
    assert_eq!(deadline.grpc_timeout(start).expect("bounded"), "400000u");
    assert_eq!(deadline.grpc_timeout(start + ms(900)).expect("bounded"), "100000u");
    assert_eq!(deadline.grpc_timeout(start + ms(1900)).expect("bounded"), "0n");
    assert_eq!(Deadline::default().grpc_timeout(start), None);
}

proptest! {
    #[test]
    fn a_timeout_passed_on_is_never_longer_and_hardly_shorter(nanos in 0u64..u64::MAX) {
        let time = Duration::from_nanos(nanos);
        let read = parse_grpc_timeout(format_grpc_timeout(time).as_bytes()).expect("ours");
        prop_assert!(read <= time);
        prop_assert!(time - read <= time / 100_000);
    }

    #[test]
    fn no_try_outlives_the_request(
        request in prop::option::of(0u64..1000), asked in prop::option::of(0u64..1000),
        per_try in prop::option::of(0u64..1000), at in 0u64..2000,
    ) {
        let start = Instant::now();
        let deadline = Deadline::new(start, request.map(ms), asked.map(ms), per_try.map(ms));
        let now = start + ms(at);
        if let Some((until, _)) = deadline.try_until(now) {
            for whole in [request, asked].into_iter().flatten() {
                prop_assert!(until <= start + ms(whole));
            }
            prop_assert!(per_try.is_none_or(|per_try| until <= now + ms(per_try)));
        } else {
            prop_assert!(request.is_none() && asked.is_none() && per_try.is_none());
        }
    }
}
