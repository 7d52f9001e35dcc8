//! Tests of header fields that may come several times, and edits of them.
//!
//! Who asks says which of several values counts: a route takes any; a rule that refuses takes any, and single members
//! of a comma-separated list too; a rule that allows must like them all. So a second value can only ever get a request
//! refused, never let in.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue};
use weft_xds::resource::{HeaderEdits, HeaderKey, HeaderMatch, HeaderTest};

use super::{Head, text};

/// Whether a route's header test passes: any value, then the inversion.
pub fn route_passes(rule: &HeaderMatch, head: &Head<'_>) -> bool {
    some(rule, head, false) != rule.invert
}

/// Whether an access rule's header test passes when doubt speaks for a match (a rule that refuses).
pub fn any_passes(rule: &HeaderMatch, head: &Head<'_>) -> bool {
    if rule.invert { !every(rule, head) } else { some(rule, head, true) }
}

/// Whether an access rule's header test passes when doubt speaks against a match (a rule that allows).
pub fn all_pass(rule: &HeaderMatch, head: &Head<'_>) -> bool {
    if rule.invert { !some(rule, head, true) } else { every(rule, head) }
}

/// Some value passes the test, inversion apart. `members`: members of a list count as values too.
fn some(rule: &HeaderMatch, head: &Head<'_>, members: bool) -> bool {
    if let HeaderTest::Present(wanted) = rule.test {
        return present(&rule.name, head) == wanted;
    }
    let mut found = values(&rule.name, head);
    found.any(|value| {
        value_passes(&rule.test, &value)
            || members && value.contains(',') && value.split(',').any(|member| value_passes(&rule.test, member.trim()))
    })
}

/// There is a value and every one passes the test, inversion apart.
fn every(rule: &HeaderMatch, head: &Head<'_>) -> bool {
    if let HeaderTest::Present(wanted) = rule.test {
        return present(&rule.name, head) == wanted;
    }
    present(&rule.name, head) && values(&rule.name, head).all(|value| value_passes(&rule.test, &value))
}

fn present(name: &HeaderKey, head: &Head<'_>) -> bool {
    match name {
        HeaderKey::Name(name) => head.headers.contains_key(name),
        HeaderKey::Method | HeaderKey::Path | HeaderKey::Authority | HeaderKey::Scheme => true,
    }
}

fn values<'a>(name: &HeaderKey, head: &Head<'a>) -> impl Iterator<Item = Cow<'a, str>> {
    let (pseudo, fields) = match name {
        HeaderKey::Method => (Some(head.method.as_str()), None),
        HeaderKey::Path => (Some(head.path), None),
        HeaderKey::Authority => (Some(head.authority), None),
        HeaderKey::Scheme => (Some(head.scheme), None),
        HeaderKey::Name(name) => (None, Some(head.headers.get_all(name))),
    };
    let fields = fields.into_iter().flatten().map(|value| String::from_utf8_lossy(value.as_bytes()));
    pseudo.into_iter().map(Cow::Borrowed).chain(fields)
}

fn value_passes(test: &HeaderTest, value: &str) -> bool {
    match test {
        HeaderTest::Value(test) => text::passes(test, value),
        HeaderTest::Range { start, end } => value.parse::<i64>().is_ok_and(|number| (*start..*end).contains(&number)),
        // Answered by the callers: it is not about values.
        HeaderTest::Present(wanted) => *wanted,
    }
}

/// Removes, sets, adds, in this order. Whether there was anything to do.
pub fn edit(edits: &HeaderEdits, headers: &mut HeaderMap) -> bool {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (name, value) in &edits.set {
        headers.insert(name, HeaderValue::clone(value));
    }
    for (name, value) in &edits.add {
        headers.append(name, HeaderValue::clone(value));
    }
    !(edits.remove.is_empty() && edits.set.is_empty() && edits.add.is_empty())
}
