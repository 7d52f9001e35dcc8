//! Matchers shared by routes and access rules.

use http::HeaderName;
use regex::Regex;

/// A test of one string.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// Equal, byte for byte unless `ignore_case`.
    Exact {
        /// What must stand there.
        value: Box<str>,
        /// Compare without regard to ASCII case.
        ignore_case: bool,
    },
    /// Begins with.
    Prefix {
        /// What must stand at the beginning.
        value: Box<str>,
        /// Compare without regard to ASCII case.
        ignore_case: bool,
    },
    /// Ends with.
    Suffix {
        /// What must stand at the end.
        value: Box<str>,
        /// Compare without regard to ASCII case.
        ignore_case: bool,
    },
    /// Contains.
    Contains {
        /// What must occur.
        value: Box<str>,
        /// Compare without regard to ASCII case.
        ignore_case: bool,
    },
    /// The whole string matches (RE2 syntax; size-limited when compiled).
    Regex(Regex),
}

/// A test of one header. `:method`, `:path`, `:authority` and `:scheme` name the request line's parts.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Which header.
    pub name: HeaderKey,
    /// What it must hold.
    pub test: HeaderTest,
    /// The result is turned round.
    pub invert: bool,
}

/// Which header a [`HeaderMatch`] looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:path`, normalised, without query
    Path,
    /// `:authority`, without port, lower case
    Authority,
    /// `:scheme`
    Scheme,
    /// Any other.
    Name(HeaderName),
}

/// What a header must hold.
#[derive(Debug, Clone)]
pub enum HeaderTest {
    /// It is there (`true`) or not.
    Present(bool),
    /// Its value passes. Of several values: see the caller, who knows whether any or all must.
    Value(StringMatch),
    /// An integer in `[start, end)`.
    Range {
        /// First value that matches.
        start: i64,
        /// First value that no longer does.
        end: i64,
    },
}

/// A test of one query parameter.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    /// Name, compared after percent-decoding.
    pub name: Box<str>,
    /// `None`: it must be there.
    pub value: Option<StringMatch>,
}
