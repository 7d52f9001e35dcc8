//! Small values: durations, percentages, names, addresses, headers, extensions.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use prost::Name;
use prost_types::Any;
use weft_identity::SpiffeId;
use weft_proto::envoy::{
    config::core::v3::{
        Address, ConfigSource, HeaderValueOption, Metadata, address, config_source, data_source,
        header_value_option::HeaderAppendAction, socket_address,
    },
    r#type::v3::Percent,
};

use super::{
    super::{HeaderEdits, METADATA_KEY},
    DecodeError, unpack,
};

pub(super) type Result<T> = std::result::Result<T, DecodeError>;

/// An error at a field.
pub(super) fn err<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T> {
    Err(DecodeError::new(field, message))
}

/// Refuses a field that is set and cannot be honoured.
pub(super) fn unsupported(set: bool, field: &str) -> Result<()> {
    if set { err(field, "is not supported") } else { Ok(()) }
}

/// Puts the parent's name before the field of an error.
pub(super) trait At<T> {
    fn at(self, parent: &str) -> Result<T>;
    fn at_index(self, parent: &str, index: usize) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, parent: &str) -> Result<T> {
        self.map_err(|e| e.at(parent))
    }

    fn at_index(self, parent: &str, index: usize) -> Result<T> {
        self.map_err(|e| e.at(&format!("{parent}[{index}]")))
    }
}

/// Longest duration that is taken: ten years. What is switched off where a default would step in counts as this long.
pub(super) const LONGEST: Duration = Duration::from_secs(315_576_000);

/// A duration: not negative, at most [`LONGEST`].
pub(super) fn duration(value: &prost_types::Duration, field: &str) -> Result<Duration> {
    if value.seconds < 0 || value.nanos < 0 {
        return err(field, "is negative");
    }
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(value.seconds), u32::try_from(value.nanos)) else {
        return err(field, "is not a duration");
    };
    if nanos > 999_999_999 {
        return err(field, "has more than 999999999 nanoseconds");
    }
    let value = Duration::new(seconds, nanos);
    if value > LONGEST { err(field, "is longer than ten years") } else { Ok(value) }
}

/// A duration above zero.
pub(super) fn positive(value: &prost_types::Duration, field: &str) -> Result<Duration> {
    let value = duration(value, field)?;
    if value.is_zero() { err(field, "is zero") } else { Ok(value) }
}

/// A duration where zero and absent switch off.
pub(super) fn timeout(value: Option<&prost_types::Duration>, field: &str) -> Result<Option<Duration>> {
    let value = value.map(|value| duration(value, field)).transpose()?;
    Ok(value.filter(|value| !value.is_zero()))
}

/// A percentage, 0 to 100; fractions are rounded up, so that a small share is not none.
pub(super) fn percent(value: &Percent, field: &str) -> Result<u8> {
    if !(0.0..=100.0).contains(&value.value) {
        return err(field, format!("{} is not in 0 to 100", value.value));
    }
    // In range, checked above.
    Ok(value.value.ceil() as u8)
}

/// A percentage as an integer.
pub(super) fn whole_percent(value: u32, field: &str) -> Result<u8> {
    match u8::try_from(value) {
        Ok(value @ 0..=100) => Ok(value),
        Ok(_) | Err(_) => err(field, format!("{value} is not in 0 to 100")),
    }
}

/// A port; 0 is refused.
pub(super) fn port(value: u32, field: &str) -> Result<u16> {
    match u16::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        Ok(_) | Err(_) => err(field, format!("{value} is not a port")),
    }
}

/// A name of a resource: 1 to 1024 bytes, no control characters.
pub(super) fn name(value: &str, field: &str) -> Result<Box<str>> {
    if value.is_empty() {
        return err(field, "is empty");
    }
    if value.len() > 1024 {
        return err(field, "is longer than 1024 bytes");
    }
    if value.chars().any(char::is_control) {
        return err(field, "has control characters");
    }
    Ok(value.into())
}

/// A server name for TLS, or empty.
pub(super) fn server_name(value: &str, field: &str) -> Result<Box<str>> {
    let good =
        value.len() <= 253 && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if good { Ok(value.to_ascii_lowercase().into()) } else { err(field, format!("{value:?} is not a server name")) }
}

/// An IP address and port over TCP.
pub(super) fn socket_address(value: Option<&Address>) -> Result<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = value.and_then(|it| it.address.as_ref()) else {
        return err("", "is not a socket address");
    };
    if socket.protocol() != socket_address::Protocol::Tcp {
        return err("protocol", "is not TCP");
    }
    let Ok(ip) = socket.address.parse::<IpAddr>() else {
        return err("address", format!("{:?} is not an IP address", socket.address));
    };
    let Some(socket_address::PortSpecifier::PortValue(value)) = socket.port_specifier else {
        return err("port_value", "is missing");
    };
    Ok(SocketAddr::new(ip, port(value, "port_value")?))
}

/// Resources come over this same stream.
pub(super) fn over_ads(source: Option<&ConfigSource>) -> Result<()> {
    match source.and_then(|it| it.config_source_specifier.as_ref()) {
        Some(config_source::ConfigSourceSpecifier::Ads(_) | config_source::ConfigSourceSpecifier::Self_(_)) => Ok(()),
        Some(_) => err("", "is neither ads nor self"),
        None => err("", "is missing"),
    }
}

/// Bytes that came inline.
pub(super) fn inline(source: Option<&data_source::Specifier>) -> Result<&[u8]> {
    match source {
        Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(data_source::Specifier::InlineString(text)) => Ok(text.as_bytes()),
        Some(data_source::Specifier::Filename(_) | data_source::Specifier::EnvironmentVariable(_)) => {
            err("", "is not inline")
        }
        None => err("", "is missing"),
    }
}

/// A SPIFFE ID.
pub(super) fn identity(value: &str, field: &str) -> Result<SpiffeId> {
    SpiffeId::parse(value).or_else(|e| err(field, format!("{value:?} is not a SPIFFE ID: {e}")))
}

/// Weft's extension of a message, if it has one.
pub(super) fn extension<M: Name + Default>(metadata: Option<&Metadata>) -> Result<Option<M>> {
    let Some(any) = metadata.and_then(|it| it.typed_filter_metadata.get(METADATA_KEY)) else { return Ok(None) };
    unpack(any).map(Some).at(&format!("metadata.typed_filter_metadata[{METADATA_KEY}]"))
}

/// The last segment of a type URL.
pub(super) fn message_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// A header that is matched or edited.
pub(super) fn header_name(value: &str, field: &str) -> Result<HeaderName> {
    HeaderName::try_from(value).or_else(|_| err(field, format!("{value:?} is not a header name")))
}

/// Edits of headers. `direction`: `request` or `response`, for the field names.
pub(super) fn header_edits(add: &[HeaderValueOption], remove: &[String], direction: &str) -> Result<HeaderEdits> {
    let mut edits = HeaderEdits::default();
    for (index, name) in remove.iter().enumerate() {
        let name = editable(name).at_index(&format!("{direction}_headers_to_remove"), index)?;
        edits.remove.push(name);
    }
    for (index, option) in add.iter().enumerate() {
        add_edit(option, &mut edits).at_index(&format!("{direction}_headers_to_add"), index)?;
    }
    Ok(edits)
}

fn add_edit(option: &HeaderValueOption, edits: &mut HeaderEdits) -> Result<()> {
    let Some(header) = &option.header else { return err("header", "is missing") };
    let name = editable(&header.key).at("header.key")?;
    let value = if header.raw_value.is_empty() {
        HeaderValue::try_from(literal(&header.value).at("header.value")?)
    } else {
        HeaderValue::from_bytes(&header.raw_value)
    };
    let Ok(value) = value else { return err("header.value", "is not a header value") };
    #[expect(deprecated, reason = "other control planes still write it")]
    let append = option.append;
    let action = match append {
        Some(true) => HeaderAppendAction::AppendIfExistsOrAdd,
        Some(false) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        None => match HeaderAppendAction::try_from(option.append_action) {
            Ok(action) => action,
            Err(unknown) => return err("append_action", format!("{} is not known", unknown.0)),
        },
    };
    match action {
        HeaderAppendAction::AppendIfExistsOrAdd => edits.add.push((name, value)),
        HeaderAppendAction::OverwriteIfExistsOrAdd => edits.set.push((name, value)),
        HeaderAppendAction::AddIfAbsent | HeaderAppendAction::OverwriteIfExists => {
            return err("append_action", format!("{} is not supported", action.as_str_name()));
        }
    }
    Ok(())
}

/// A header that may be edited: those that frame the message or name its target may not.
fn editable(value: &str) -> Result<HeaderName> {
    const FRAMING: [&str; 9] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let name = header_name(value, "")?;
    if FRAMING.contains(&name.as_str()) { err("", format!("{value:?} may not be edited")) } else { Ok(name) }
}

/// A value without Envoy's `%COMMAND%`s; `%%` is a percent sign.
fn literal(value: &str) -> Result<String> {
    let plain = value.replace("%%", "");
    if plain.contains('%') {
        return err("", format!("{value:?} has a formatter command; they are not supported"));
    }
    Ok(value.replace("%%", "%"))
}
