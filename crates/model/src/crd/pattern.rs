//! Rules of text as regular expressions that RE2 and ECMAScript read alike: no look-around, no classes by name.

use crate::rules::TextRule;

/// A DNS label.
const LABEL: &str = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
/// What a segment of a path may hold besides `.`: no `/`, no control character, none of `?#\` and space.
const PATH: &str = r"[^\x00-\x20\x7f/?#\\.]";
/// The same with `.`.
const PATH_DOT: &str = r"[^\x00-\x20\x7f/?#\\]";
/// As in Kubernetes' own conditions.
pub(super) const CONDITION_TYPE: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";

/// The expression, if the rule says more than a length, and the most characters.
pub(super) fn of(rule: TextRule) -> (Option<String>, usize) {
    let name = format!(r"{LABEL}(\.{LABEL})*");
    let whole = |inner: &str| Some(format!("^({inner})$"));
    match rule {
        TextRule::Any => (None, 1024),
        TextRule::Long => (None, 256 * 1024),
        TextRule::DnsLabel => (whole(LABEL), 63),
        TextRule::DnsName | TextRule::Host | TextRule::SectionName => (whole(&name), 253),
        TextRule::PortName => (whole(LABEL), 15),
        TextRule::HostPattern => (whole(&format!(r"(\*\.)?{name}")), 255),
        TextRule::Address => (whole("[0-9a-fA-F.:]+"), 45),
        TextRule::LabelKey => (whole(&format!("({name}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?")), 317),
        TextRule::LabelValue => (whole("([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?"), 63),
        TextRule::HeaderName => (whole("[A-Za-z0-9!#$%&'*+.^_`|~-]+"), 256),
        TextRule::HeaderValue => (whole(r"[^\x00-\x08\x0a-\x1f\x7f]*"), 4096),
        TextRule::Method => (whole("[A-Z_-]+"), 32),
        TextRule::Path => (whole(&path(PATH, PATH_DOT, "")), 1024),
        TextRule::PathPattern => (whole(&path(&starless(PATH), &starless(PATH_DOT), r"\*?")), 1025),
        TextRule::Identity => {
            let segment = segment();
            let spiffe = format!("spiffe://[a-z0-9._-]+/ns/{segment}/sa/{segment}");
            (whole(&format!(r"\*|{LABEL}/(\*|{LABEL})|{spiffe}")), 2048)
        }
        TextRule::TrustDomain => (whole("[a-z0-9._-]+"), 255),
        TextRule::GrpcService => (whole("[A-Za-z0-9_.]+"), 1024),
        TextRule::GrpcMethod => (whole("[A-Za-z0-9_]+"), 1024),
    }
}

/// A normalised path: segments that are neither empty nor `.` nor `..`. `after`: what may follow the last `/`.
fn path(plain: &str, any: &str, after: &str) -> String {
    let segment = format!(r"({plain}{any}*|\.{plain}{any}*|\.\.{any}+)");
    format!("(/{segment})*/{after}|(/{segment})+")
}

/// A class of characters without `*`.
fn starless(class: &str) -> String {
    class.replace("[^", "[^*")
}

/// A namespace or account of a SPIFFE ID: neither `.` nor `..`.
fn segment() -> &'static str {
    r"([A-Za-z0-9_-][A-Za-z0-9._-]*|\.[A-Za-z0-9_-][A-Za-z0-9._-]*|\.\.[A-Za-z0-9._-]+)"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules;

    /// The expression says what the rule says. Lengths aside, which the schema has beside it.
    #[test]
    fn expressions_and_rules_agree() {
        let texts = [
            "",
            "a",
            "A",
            "-",
            "a-",
            "a-b",
            "a.b",
            "a..b",
            ".a",
            "a.",
            "*",
            "*.a",
            "*.*",
            "a/b",
            "a/*",
            "*/a",
            "/",
            "/*",
            "/a",
            "/a/",
            "/a/*",
            "/a*",
            "/a/*/b",
            "//",
            "/a//b",
            "/.",
            "/..",
            "/./a",
            "/../a",
            "/.a",
            "/..a",
            "/...",
            "/a/..",
            "/a/.b/",
            "/a?b",
            "/a#b",
            "/a b",
            "/a\\b",
            "/ä",
            "/a\u{7f}",
            "/a\n",
            "GET",
            "get",
            "M-SEARCH",
            "X-Id",
            "x id",
            "x:y",
            "connection",
            "pkg.Service",
            "Method",
            "a_b",
            "1.2.3.4",
            "::1",
            "weft.local",
            "Weft.local",
            "spiffe://a/ns/b/sa/c",
            "spiffe://a/ns/b/sa/..",
            "spiffe://a/ns/b/sa/.c",
            "spiffe://a/b",
            "spiffe://A/ns/b/sa/c",
            "spiffe://a/ns/B/sa/C",
            "a/b/c",
            "/b",
            "a/",
            "key/with/slashes",
            "example.com/key",
            "tab\there",
            "line\nbreak",
            "\u{1}",
            "-a",
            "_",
            "a=b",
        ];
        let all = [
            TextRule::Any,
            TextRule::DnsLabel,
            TextRule::DnsName,
            TextRule::PortName,
            TextRule::Host,
            TextRule::HostPattern,
            TextRule::LabelKey,
            TextRule::LabelValue,
            TextRule::HeaderValue,
            TextRule::Method,
            TextRule::Path,
            TextRule::PathPattern,
            TextRule::Identity,
            TextRule::TrustDomain,
            TextRule::SectionName,
            TextRule::GrpcService,
            TextRule::GrpcMethod,
        ];
        for rule in all {
            let Some(expression) = of(rule).0 else { continue };
            let expression = rules::regex(&expression).unwrap_or_else(|error| panic!("{rule:?}: {error}"));
            for text in texts {
                assert_eq!(expression.is_match(text), rule.check(text).is_ok(), "{rule:?}: {text:?} by {expression}");
            }
        }
    }

    #[test]
    fn lengths_and_rules_agree() {
        for (rule, text) in [
            (TextRule::DnsLabel, "a".to_owned()),
            (TextRule::PortName, "a".to_owned()),
            (TextRule::Method, "A".to_owned()),
            (TextRule::HeaderValue, "a".to_owned()),
            (TextRule::TrustDomain, "a".to_owned()),
            (TextRule::Any, "a".to_owned()),
        ] {
            let most = of(rule).1;
            assert!(rule.check(&text.repeat(most)).is_ok(), "{rule:?} {most}");
            assert!(rule.check(&text.repeat(most + 1)).is_err(), "{rule:?} {most}");
        }
    }
}
