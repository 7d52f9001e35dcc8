//! Matchers of strings, headers and query parameters.

use regex::{Regex, RegexBuilder};
use weft_proto::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier,
    },
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};

use super::{
    super::{HeaderKey, HeaderMatch, HeaderTest, QueryMatch, StringMatch},
    value::{At, Result, err, header_name, unsupported},
};

/// Longest pattern, in bytes.
const LONGEST_PATTERN: usize = 4096;
/// Largest compiled pattern, in bytes.
const LARGEST_PROGRAM: usize = 1 << 20;

/// A regular expression that must match the whole text.
pub(super) fn regex(matcher: &RegexMatcher) -> Result<Regex> {
    whole(&matcher.regex).at("regex")
}

fn whole(pattern: &str) -> Result<Regex> {
    if pattern.is_empty() {
        return err("", "is empty");
    }
    if pattern.len() > LONGEST_PATTERN {
        return err("", format!("is longer than {LONGEST_PATTERN} bytes"));
    }
    // Alone first: `a)|(b` is no pattern, although it would be one inside the group.
    let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(LARGEST_PROGRAM).nest_limit(100).build();
    match compile(pattern).and_then(|_| compile(&format!(r"\A(?:{pattern})\z"))) {
        Ok(regex) => Ok(regex),
        Err(e) => {
            // The last line says what is wrong; those before draw the pattern.
            let text = e.to_string();
            let reason = text.lines().next_back().unwrap_or_default();
            err("", format!("{pattern:?} is not a regular expression: {}", reason.trim_start_matches("error: ")))
        }
    }
}

/// A test of a string.
pub(super) fn string(matcher: &StringMatcher) -> Result<StringMatch> {
    let ignore_case = matcher.ignore_case;
    let filled = |value: &String, field: &str| -> Result<Box<str>> {
        if value.is_empty() { err(field, "is empty") } else { Ok(value.as_str().into()) }
    };
    Ok(match &matcher.match_pattern {
        Some(MatchPattern::Exact(value)) => StringMatch::Exact { value: value.as_str().into(), ignore_case },
        Some(MatchPattern::Prefix(value)) => StringMatch::Prefix { value: filled(value, "prefix")?, ignore_case },
        Some(MatchPattern::Suffix(value)) => StringMatch::Suffix { value: filled(value, "suffix")?, ignore_case },
        Some(MatchPattern::Contains(value)) => StringMatch::Contains { value: filled(value, "contains")?, ignore_case },
        Some(MatchPattern::SafeRegex(value)) => {
            unsupported(ignore_case, "ignore_case")?;
            StringMatch::Regex(regex(value).at("safe_regex")?)
        }
        Some(MatchPattern::Custom(_)) => return err("custom", "is not supported"),
        None => return err("match_pattern", "is missing or not known"),
    })
}

/// A test of a header.
pub(super) fn header(matcher: &HeaderMatcher) -> Result<HeaderMatch> {
    let name = match matcher.name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":path" => HeaderKey::Path,
        ":authority" | "host" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        name => HeaderKey::Name(header_name(name, "name")?),
    };
    unsupported(matcher.treat_missing_header_as_empty, "treat_missing_header_as_empty")?;
    let exact = |value: &String| StringMatch::Exact { value: value.as_str().into(), ignore_case: false };
    let filled = |value: &String, field: &str| -> Result<Box<str>> {
        if value.is_empty() { err(field, "is empty") } else { Ok(value.as_str().into()) }
    };
    #[expect(deprecated, reason = "other control planes still write them")]
    let test = match &matcher.header_match_specifier {
        None => HeaderTest::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderTest::Present(*present),
        Some(HeaderMatchSpecifier::StringMatch(value)) => HeaderTest::Value(string(value).at("string_match")?),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => {
            if range.start >= range.end {
                return err("range_match", "is empty");
            }
            HeaderTest::Range { start: range.start, end: range.end }
        }
        Some(HeaderMatchSpecifier::ExactMatch(value)) => HeaderTest::Value(exact(value)),
        Some(HeaderMatchSpecifier::PrefixMatch(value)) => {
            let value = filled(value, "prefix_match")?;
            HeaderTest::Value(StringMatch::Prefix { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::SuffixMatch(value)) => {
            let value = filled(value, "suffix_match")?;
            HeaderTest::Value(StringMatch::Suffix { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::ContainsMatch(value)) => {
            let value = filled(value, "contains_match")?;
            HeaderTest::Value(StringMatch::Contains { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(value)) => {
            HeaderTest::Value(StringMatch::Regex(regex(value).at("safe_regex_match")?))
        }
    };
    Ok(HeaderMatch { name, test, invert: matcher.invert_match })
}

/// A test of a query parameter.
pub(super) fn query(matcher: &QueryParameterMatcher) -> Result<QueryMatch> {
    if matcher.name.is_empty() {
        return err("name", "is empty");
    }
    let value = match &matcher.query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return err("present_match", "false is not supported");
        }
        Some(QueryParameterMatchSpecifier::StringMatch(value)) => Some(string(value).at("string_match")?),
    };
    Ok(QueryMatch { name: matcher.name.as_str().into(), value })
}
