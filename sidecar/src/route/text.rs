//! Tests of one string.

use regex::Regex;
use weft_xds::resource::StringMatch;

/// Whether `value` passes.
pub fn passes(test: &StringMatch, value: &str) -> bool {
    match test {
        StringMatch::Exact { value: want, ignore_case } => equal(want, value, *ignore_case),
        StringMatch::Prefix { value: want, ignore_case } => {
            value.as_bytes().get(..want.len()).is_some_and(|start| equal_bytes(want.as_bytes(), start, *ignore_case))
        }
        StringMatch::Suffix { value: want, ignore_case } => {
            let start = value.len().checked_sub(want.len());
            start.is_some_and(|start| equal_bytes(want.as_bytes(), &value.as_bytes()[start..], *ignore_case))
        }
        StringMatch::Contains { value: want, ignore_case: false } => value.contains(&**want),
        StringMatch::Contains { value: want, ignore_case: true } => {
            want.is_empty()
                || value.as_bytes().windows(want.len()).any(|part| part.eq_ignore_ascii_case(want.as_bytes()))
        }
        StringMatch::Regex(regex) => whole(regex, value),
    }
}

/// The whole of `value` matches.
pub fn whole(regex: &Regex, value: &str) -> bool {
    regex.find(value).is_some_and(|found| found.range() == (0..value.len()))
}

fn equal(want: &str, value: &str, ignore_case: bool) -> bool {
    equal_bytes(want.as_bytes(), value.as_bytes(), ignore_case)
}

fn equal_bytes(want: &[u8], value: &[u8], ignore_case: bool) -> bool {
    if ignore_case { want.eq_ignore_ascii_case(value) } else { want == value }
}
