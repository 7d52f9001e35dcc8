//! Which of the fields that this sidecar asks for a head has. Pure.
//!
//! Most of them are mostly absent: one look at each name that is there costs less than a search for each that is not.

use http::{HeaderMap, HeaderName};

/// Fields, or groups of them, that were seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks(u32);

impl Marks {
    /// `connection`.
    pub const CONNECTION: Self = Self(1);
    /// `upgrade`.
    pub const UPGRADE: Self = Self(1 << 1);
    /// `te`.
    pub const TE: Self = Self(1 << 2);
    /// What belongs to one hop, `te` apart.
    pub const HOP_BY_HOP: Self = Self(1 << 3);
    /// What only sidecars may say.
    pub const OURS: Self = Self(1 << 4);
    /// `weft-reason`.
    pub const REASON: Self = Self(1 << 5);
    /// `weft-hops`.
    pub const HOPS: Self = Self(1 << 6);
    /// `traceparent`.
    pub const TRACE: Self = Self(1 << 7);
    /// `content-type`.
    pub const CONTENT_TYPE: Self = Self(1 << 8);
    /// `content-length`.
    pub const CONTENT_LENGTH: Self = Self(1 << 9);
    /// `transfer-encoding`.
    pub const TRANSFER_ENCODING: Self = Self(1 << 10);
    /// `expect`.
    pub const EXPECT: Self = Self(1 << 11);
    /// `grpc-status`.
    pub const GRPC_STATUS: Self = Self(1 << 12);
    /// `retry-after`.
    pub const RETRY_AFTER: Self = Self(1 << 13);
    /// `grpc-timeout`.
    pub const GRPC_TIMEOUT: Self = Self(1 << 14);

    /// Of a head.
    pub fn of(fields: &HeaderMap) -> Self {
        fields.keys().fold(Self::default(), |seen, name| Self(seen.0 | Self::one(name).0))
    }

    /// Whether there is such a field.
    pub const fn has(self, field: Self) -> bool {
        self.0 & field.0 != 0
    }

    fn one(name: &HeaderName) -> Self {
        match name.as_str() {
            "connection" => Self::CONNECTION.and(Self::HOP_BY_HOP),
            "upgrade" => Self::UPGRADE.and(Self::HOP_BY_HOP),
            "te" => Self::TE,
            "transfer-encoding" => Self::TRANSFER_ENCODING.and(Self::HOP_BY_HOP),
            "keep-alive" | "proxy-connection" | "http2-settings" | "proxy-authorization" | "proxy-authenticate" => {
                Self::HOP_BY_HOP
            }
            "weft-reason" => Self::REASON.and(Self::OURS),
            "x-forwarded-client-cert" => Self::OURS,
            "weft-hops" => Self::HOPS,
            "traceparent" => Self::TRACE,
            "content-type" => Self::CONTENT_TYPE,
            "content-length" => Self::CONTENT_LENGTH,
            "expect" => Self::EXPECT,
            "grpc-status" => Self::GRPC_STATUS,
            "grpc-timeout" => Self::GRPC_TIMEOUT,
            "retry-after" => Self::RETRY_AFTER,
            name if name.starts_with("x-weft-") => Self::OURS,
            _ => Self::default(),
        }
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers;

    /// What is named here and what is searched for there must be the same fields.
    #[test]
    fn names_are_those_that_are_asked_for() {
        for (name, mark) in [
            (http::header::CONNECTION, Marks::CONNECTION),
            (http::header::UPGRADE, Marks::UPGRADE),
            (http::header::TE, Marks::TE),
            (http::header::TRANSFER_ENCODING, Marks::TRANSFER_ENCODING),
            (http::header::CONTENT_TYPE, Marks::CONTENT_TYPE),
            (http::header::CONTENT_LENGTH, Marks::CONTENT_LENGTH),
            (http::header::EXPECT, Marks::EXPECT),
            (http::header::RETRY_AFTER, Marks::RETRY_AFTER),
            (http::header::PROXY_AUTHORIZATION, Marks::HOP_BY_HOP),
            (http::header::PROXY_AUTHENTICATE, Marks::HOP_BY_HOP),
            (headers::GRPC_TIMEOUT, Marks::GRPC_TIMEOUT),
            (headers::GRPC_STATUS, Marks::GRPC_STATUS),
            (headers::TRACEPARENT, Marks::TRACE),
            (headers::HOPS, Marks::HOPS),
            (headers::REASON, Marks::REASON),
            (headers::CLIENT_CERT, Marks::OURS),
            (headers::ATTEMPT, Marks::OURS),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(http::header::ACCEPT, http::HeaderValue::from_static("*/*"));
            assert!(!Marks::of(&fields).has(mark), "{name}");
            fields.insert(&name, http::HeaderValue::from_static("1"));
            assert!(Marks::of(&fields).has(mark), "{name}");
        }
    }
}
