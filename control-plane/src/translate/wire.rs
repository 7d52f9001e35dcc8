//! Small builders that every kind of resource uses: `Any`, config sources, durations, addresses, Weft's metadata.
//!
//! Owns no decision: what is put together here is decided by the callers.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use base64::Engine as _;
use prost::Name;
use weft_proto::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, Metadata, SocketAddress, address,
    config_source::ConfigSourceSpecifier, data_source, socket_address,
};
use weft_xds::resource::{METADATA_KEY, Protocol, pack};

/// "From the aggregated stream, version 3."
pub fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

/// A duration of ours on the wire; longer than the wire can say becomes the longest it can.
pub fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(999_999_999),
    }
}

/// A TCP address.
pub fn address(value: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: value.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(value.port().into())),
            ..SocketAddress::default()
        })),
    }
}

/// Metadata that carries one Weft extension.
pub fn extension<M: Name>(message: &M) -> Metadata {
    Metadata {
        filter_metadata: BTreeMap::new(),
        typed_filter_metadata: BTreeMap::from([(METADATA_KEY.to_owned(), pack(message))]),
    }
}

/// Bytes inside the resource.
pub fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { watched_directory: None, specifier: Some(data_source::Specifier::InlineBytes(bytes)) }
}

/// Certificates as PEM, in the order given.
pub fn pem(certificates: &[Vec<u8>]) -> Vec<u8> {
    let mut out = String::new();
    for der in certificates {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        for line in text.as_bytes().chunks(64) {
            out.extend(line.iter().map(|byte| char::from(*byte)));
            out.push('\n');
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out.into_bytes()
}

/// A protocol as Weft's extensions name it.
pub fn protocol(value: Protocol) -> i32 {
    use weft_proto::weft::v1::Protocol as Wire;
    let wire = match value {
        Protocol::Detect => Wire::Unspecified,
        Protocol::Http => Wire::Http,
        Protocol::Http2 => Wire::Http2,
        Protocol::Grpc => Wire::Grpc,
        Protocol::Tcp => Wire::Tcp,
    };
    wire as i32
}
