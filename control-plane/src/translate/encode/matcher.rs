//! Matchers of strings, headers and query parameters.

use weft_proto::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier,
    },
    r#type::{
        matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
        v3::Int64Range,
    },
};
use weft_xds::resource::{HeaderKey, HeaderMatch, HeaderTest, QueryMatch, StringMatch};

/// Equal, byte for byte.
pub fn exact(value: &str) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::Exact(value.to_owned())) }
}

/// A test of one string.
pub fn string(test: &StringMatch) -> StringMatcher {
    let (pattern, ignore_case) = match test {
        StringMatch::Exact { value, ignore_case } => (MatchPattern::Exact(value.to_string()), *ignore_case),
        StringMatch::Prefix { value, ignore_case } => (MatchPattern::Prefix(value.to_string()), *ignore_case),
        StringMatch::Suffix { value, ignore_case } => (MatchPattern::Suffix(value.to_string()), *ignore_case),
        StringMatch::Contains { value, ignore_case } => (MatchPattern::Contains(value.to_string()), *ignore_case),
        StringMatch::Regex(pattern) => (MatchPattern::SafeRegex(regex(pattern.as_str())), false),
    };
    StringMatcher { ignore_case, match_pattern: Some(pattern) }
}

/// A pattern that the whole string has to match.
pub fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), engine_type: None }
}

/// A test of one header.
pub fn header(test: &HeaderMatch) -> HeaderMatcher {
    let specifier = match &test.test {
        HeaderTest::Present(present) => HeaderMatchSpecifier::PresentMatch(*present),
        HeaderTest::Value(value) => HeaderMatchSpecifier::StringMatch(string(value)),
        HeaderTest::Range { start, end } => HeaderMatchSpecifier::RangeMatch(Int64Range { start: *start, end: *end }),
    };
    HeaderMatcher {
        name: key(&test.name).to_owned(),
        invert_match: test.invert,
        treat_missing_header_as_empty: false,
        header_match_specifier: Some(specifier),
    }
}

/// A test of one query parameter.
pub fn query(test: &QueryMatch) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: test.name.to_string(),
        query_parameter_match_specifier: Some(match &test.value {
            Some(value) => QueryParameterMatchSpecifier::StringMatch(string(value)),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        }),
    }
}

fn key(key: &HeaderKey) -> &str {
    match key {
        HeaderKey::Method => ":method",
        HeaderKey::Path => ":path",
        HeaderKey::Authority => ":authority",
        HeaderKey::Scheme => ":scheme",
        HeaderKey::Name(name) => name.as_str(),
    }
}
