//! Durations as people write them: `250ms`, `1m30s`, `1.5h`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A duration, read from and written as text such as `1m30s`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period(pub Duration);

impl Period {
    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// The duration, or `None` when it is zero, which switches a timeout off.
    pub fn unless_zero(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }

    /// Reads `250ms`, `1m30s`, `1.5h`. Units: `ns us ms s m h d`.
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut total: u128 = 0;
        let mut rest = text;
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err("an empty duration".into());
        }
        while !rest.is_empty() {
            let number_len = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
            let (number, tail) = rest.split_at(number_len);
            let unit_len = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(unit_len);
            if number.is_empty() || (unit.is_empty() && !tail.is_empty()) {
                return Err(format!("`{text}` is not a duration"));
            }
            let unit: u128 = match unit {
                "ns" => 1,
                "us" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                "d" => 86_400_000_000_000,
                "" => return Err(format!("`{text}` has no unit")),
                other => return Err(format!("`{other}` is not a unit of time")),
            };
            total = nanoseconds(number, unit)
                .and_then(|part| total.checked_add(part))
                .ok_or_else(|| format!("`{text}` is not a duration"))?;
            rest = tail;
        }
        u64::try_from(total)
            .map(|nanoseconds| Self(Duration::from_nanos(nanoseconds)))
            .map_err(|_| format!("`{text}` is too long a time"))
    }
}

/// `1.5` × unit, exactly; at most nine decimals.
fn nanoseconds(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > 18 || fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let mut total = whole.checked_mul(unit)?;
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().ok()?;
        total = total.checked_add(digits * unit / 10u128.pow(u32::try_from(fraction.len()).ok()?))?;
    }
    Some(total)
}

impl From<Duration> for Period {
    fn from(value: Duration) -> Self {
        Self(value)
    }
}

impl fmt::Display for Period {
    /// The shortest form without fractions: `1m30s`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_nanos();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
            ("ns", 1),
        ] {
            let count = rest / size;
            if count > 0 {
                write!(f, "{count}{unit}")?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_duration() {
        let cases: &[(&str, Result<u64, &str>)] = &[
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("250ms", Ok(250_000_000)),
            ("1m30s", Ok(90_000_000_000)),
            ("1.5h", Ok(5_400_000_000_000)),
            ("0.5us", Ok(500)),
            ("1h1h", Ok(7_200_000_000_000)),
            ("1d", Ok(86_400_000_000_000)),
            ("", Err("an empty duration")),
            ("5", Err("`5` has no unit")),
            ("5 s", Err("`5 s` is not a duration")),
            ("-5s", Err("`-5s` is not a duration")),
            ("1.s", Err("`1.s` is not a duration")),
            (".5s", Err("`.5s` is not a duration")),
            ("1.2.3s", Err("`1.2.3s` is not a duration")),
            ("5y", Err("`y` is not a unit of time")),
            ("99999999999h", Err("`99999999999h` is too long a time")),
            ("9999999999999999999s", Err("`9999999999999999999s` is not a duration")),
        ];
        for (text, expected) in cases {
            let parsed = Period::parse(text);
            let expected = expected.map(|nanoseconds| Period(Duration::from_nanos(nanoseconds))).map_err(str::to_owned);
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn how_a_duration_is_written() {
        for text in ["0s", "1ns", "250ms", "1m30s", "1h1s", "24h", "1s1us"] {
            let period = Period::parse(text).expect(text);
            assert_eq!(period.to_string(), text);
        }
    }
}
