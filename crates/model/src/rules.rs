//! Rules of text: what a name, a host, a header or a path may look like.

use regex::{Regex, RegexBuilder};
use weft_identity::TrustDomain;

/// Which rule a text obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextRule {
    /// Anything up to 1024 bytes.
    Any,
    /// Anything up to 256 KiB.
    Long,
    /// A DNS label.
    DnsLabel,
    /// A DNS name.
    DnsName,
    /// A port's name: a DNS label of at most 15 characters.
    PortName,
    /// A host name, exact.
    Host,
    /// A host name, or `*.` and a host name.
    HostPattern,
    /// An IPv4 or IPv6 address.
    Address,
    /// A label's or annotation's key.
    LabelKey,
    /// A label's value.
    LabelValue,
    /// The name of a header.
    HeaderName,
    /// The value of a header.
    HeaderValue,
    /// An HTTP method.
    Method,
    /// An absolute path.
    Path,
    /// A path, or a path and `/*`.
    PathPattern,
    /// Who calls.
    Identity,
    /// A SPIFFE trust domain.
    TrustDomain,
    /// Name of a rule or section.
    SectionName,
    /// A gRPC service, `package.Service`.
    GrpcService,
    /// A gRPC method.
    GrpcMethod,
}

impl TextRule {
    /// Whether `text` obeys.
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Any => bounded(text, 1024),
            Self::Long => bounded(text, 256 * 1024),
            Self::DnsLabel => dns_label(text),
            Self::DnsName => dns_name(text),
            Self::PortName => dns_label(text).and_then(|()| bounded(text, 15)),
            Self::Host => dns_name(text),
            Self::HostPattern => dns_name(text.strip_prefix("*.").unwrap_or(text)),
            Self::Address => {
                text.parse::<std::net::IpAddr>().map(|_| ()).map_err(|_| format!("`{text}` is not an IP address"))
            }
            Self::LabelKey => label_key(text),
            Self::LabelValue => label_value(text),
            Self::HeaderName => header_name(text),
            Self::HeaderValue => header_value(text),
            Self::Method => method(text),
            Self::Path => http_path(text),
            Self::PathPattern => crate::values::PathPattern::parse(text).map(|_| ()),
            Self::Identity => crate::values::IdentityPattern::parse(text).map(|_| ()),
            Self::TrustDomain => TrustDomain::parse(text).map(|_| ()).map_err(|error| error.to_string()),
            Self::SectionName => dns_name(text),
            Self::GrpcService => grpc_name(text, true),
            Self::GrpcMethod => grpc_name(text, false),
        }
    }

    /// The rule in words, for the reference.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Any => "text",
            Self::Long => "text up to 256 KiB",
            Self::DnsLabel => "DNS label",
            Self::DnsName => "DNS name",
            Self::PortName => "DNS label, at most 15 characters",
            Self::Host => "host name",
            Self::HostPattern => "host name, `*.` allowed in front",
            Self::Address => "IP address",
            Self::LabelKey => "label key",
            Self::LabelValue => "label value",
            Self::HeaderName => "header name",
            Self::HeaderValue => "header value",
            Self::Method => "HTTP method",
            Self::Path => "absolute path",
            Self::PathPattern => "absolute path, `/*` allowed at the end",
            Self::Identity => "`NAMESPACE/ACCOUNT`, `NAMESPACE/*`, `*` or a SPIFFE ID",
            Self::TrustDomain => "SPIFFE trust domain",
            Self::SectionName => "DNS name",
            Self::GrpcService => "gRPC service, `package.Service`",
            Self::GrpcMethod => "gRPC method",
        }
    }
}

fn bounded(text: &str, max: usize) -> Result<(), String> {
    if text.len() > max { Err(format!("longer than {max} characters")) } else { Ok(()) }
}

/// Lower-case letters, digits and `-`, at most 63, begins and ends with a letter or digit.
pub(crate) fn dns_label(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| *byte != b'-');
    if bytes.is_empty() {
        return Err("must not be empty".into());
    }
    if bytes.len() > 63 {
        return Err("longer than 63 characters".into());
    }
    if bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(());
    }
    Err(format!("`{text}` is not a DNS label: lower-case letters, digits and `-`, no `-` at either end"))
}

/// DNS labels joined by dots, at most 253 characters.
pub(crate) fn dns_name(text: &str) -> Result<(), String> {
    bounded(text, 253)?;
    text.split('.').try_for_each(dns_label)
}

fn label_key(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        dns_name(prefix)?;
    }
    if name.is_empty() {
        return Err("a label's key must not be empty".into());
    }
    label_value(name)
}

fn label_value(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    if bytes.len() <= 63 && bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(());
    }
    Err(format!("`{text}`: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends"))
}

/// Headers that belong to the connection; a route may neither test nor edit them.
pub(crate) const HOP_BY_HOP: [&str; 8] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"];

fn header_name(text: &str) -> Result<(), String> {
    bounded(text, 256)?;
    if text.starts_with(':') {
        return Err(format!("`{text}` is a pseudo-header; match method and path by their own fields"));
    }
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) if HOP_BY_HOP.contains(&name.as_str()) => {
            Err(format!("`{text}` belongs to the connection, not to the request"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{text}` is not a header name")),
    }
}

fn header_value(text: &str) -> Result<(), String> {
    bounded(text, 4096)?;
    http::HeaderValue::from_str(text).map(|_| ()).map_err(|_| "not a header value: control characters".to_owned())
}

fn method(text: &str) -> Result<(), String> {
    let valid = |byte: u8| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_';
    if text.is_empty() || text.len() > 32 || !text.bytes().all(valid) {
        return Err(format!("`{text}` is not a method; methods are upper-case, such as `GET`"));
    }
    Ok(())
}

/// An absolute path as it stands after normalisation, without query.
pub(crate) fn http_path(text: &str) -> Result<(), String> {
    bounded(text, 1024)?;
    if !text.starts_with('/') {
        return Err(format!("`{text}` must begin with `/`"));
    }
    if let Some(bad) = text.bytes().find(|byte| *byte <= b' ' || *byte == 0x7f || matches!(byte, b'?' | b'#' | b'\\')) {
        return Err(format!("`{}` cannot stand in a path", char::from(bad).escape_default()));
    }
    if text.contains("//") || text.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(format!("`{text}` is not normalised: `//`, `/./` and `/../` never reach a route"));
    }
    Ok(())
}

fn grpc_name(text: &str, dots: bool) -> Result<(), String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (dots && byte == b'.');
    if text.is_empty() || text.len() > 1024 || !text.bytes().all(valid) {
        let what = if dots { "service" } else { "method" };
        return Err(format!("`{text}` is not the name of a gRPC {what}"));
    }
    Ok(())
}

/// Longest regular expression, in bytes.
pub const REGEX_MAX_LEN: usize = 1024;
/// Memory that a compiled regular expression may take, in bytes.
pub const REGEX_MAX_SIZE: usize = 256 * 1024;

/// Compiles an expression that must match the whole text.
/// # Errors
/// A sentence that says what is wrong.
pub fn regex(text: &str) -> Result<Regex, String> {
    bounded(text, REGEX_MAX_LEN)?;
    if text.is_empty() {
        return Err("an empty regular expression".into());
    }
    let build = |text: &str| {
        RegexBuilder::new(text).size_limit(REGEX_MAX_SIZE).dfa_size_limit(REGEX_MAX_SIZE).nest_limit(32).build()
    };
    // By itself first, so that `a)(b` cannot close the group around it.
    build(text).and_then(|_| build(&format!("^(?:{text})$"))).map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("the expression needs more than {limit} bytes when compiled")
        }
        other => {
            let text = other.to_string();
            text.lines().last().unwrap_or("not a regular expression").trim_start_matches("error: ").to_owned()
        }
    })
}
