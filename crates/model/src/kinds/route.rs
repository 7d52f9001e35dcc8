//! What HTTPRoute and GRPCRoute share: parents, backends, header edits.

use super::Metadata;
use crate::{
    rules::TextRule,
    shape::{choices, object},
};

object! {
    /// The service whose traffic a route takes.
    pub struct ParentRef {
        /// API group; empty for a Service.
        group: Option<String> = default("\"\""),
        /// `Service`. The Gateway API's own default is `Gateway`, so it must be written.
        kind: Option<String> = required(),
        /// Namespace of the service: the route's own.
        namespace: Option<String> = default("the route's").text(TextRule::DnsLabel),
        /// Name of the service.
        name: String = required().text(TextRule::DnsLabel),
        /// Only this port of it.
        port: Option<u16> = default("all ports"),
        /// Only the port of this name.
        section_name: Option<String> = default("all ports").text(TextRule::PortName)
    }
}

object! {
    /// A service that gets a share of the requests.
    pub struct BackendRef {
        /// API group; empty for a Service.
        group: Option<String> = default("\"\""),
        /// `Service`.
        kind: Option<String> = default("Service"),
        /// Namespace of the service. No ReferenceGrant is needed: the callee's AccessPolicy decides who may call.
        namespace: Option<String> = default("the route's").text(TextRule::DnsLabel),
        /// Name of the service.
        name: String = required().text(TextRule::DnsLabel),
        /// Port of the service.
        port: u16 = required(),
        /// Share, in proportion to the sum of the rule's weights. 0: none.
        weight: Option<u32> = default("1").range(0, 1_000_000),
        /// Edits for this share alone; header modifiers only.
        filters: Vec<RouteFilter> = default("none").items(0, 16)
    }
}

object! {
    /// One thing done to a request or an answer. `type` names the field that must be set with it.
    pub struct RouteFilter {
        /// Which.
        kind as "type": FilterType = required(),
        /// Edits of the request's headers.
        request_header_modifier: Option<HeaderModifier> = plain(),
        /// Edits of the answer's headers.
        response_header_modifier: Option<HeaderModifier> = plain(),
        /// The request is answered with a redirect.
        request_redirect: Option<RequestRedirect> = plain(),
        /// Path or host are rewritten on the way.
        url_rewrite as "urlRewrite": Option<UrlRewrite> = plain(),
        /// A copy of the request goes elsewhere.
        request_mirror: Option<RequestMirror> = plain(),
        /// Cross-origin rules.
        cors: Option<Cors> = plain(),
        /// A filter of another API.
        extension_ref: Option<ExtensionRef> = plain()
    }
}

choices! {
    /// Which filter.
    pub enum FilterType {
        RequestHeaderModifier = "RequestHeaderModifier": "Edits of the request's headers.",
        ResponseHeaderModifier = "ResponseHeaderModifier": "Edits of the answer's headers.",
        RequestRedirect = "RequestRedirect": "A redirect.",
        UrlRewrite = "URLRewrite": "Another path or host.",
        RequestMirror = "RequestMirror": "A copy elsewhere.",
        Cors = "CORS": "Cross-origin rules.",
        ExtensionRef = "ExtensionRef": "A filter of another API.",
    }
}

object! {
    /// Edits of headers: first remove, then set, then add.
    pub struct HeaderModifier {
        /// Replaced, or added when absent.
        set: Vec<Header> = default("none").items(0, 32),
        /// Appended.
        add: Vec<Header> = default("none").items(0, 32),
        /// Removed.
        remove: Vec<String> = default("none").items(0, 32).text(TextRule::HeaderName)
    }
}

object! {
    /// A header.
    pub struct Header {
        /// Name, in any case.
        name: String = required().text(TextRule::HeaderName),
        /// Value.
        value: String = required().text(TextRule::HeaderValue)
    }
}

object! {
    /// A redirect.
    pub struct RequestRedirect {
        /// Scheme of the new address.
        scheme: Option<Scheme> = default("as asked"),
        /// Host of the new address.
        hostname: Option<String> = default("as asked").text(TextRule::Host),
        /// Path of the new address.
        path: Option<PathModifier> = default("as asked"),
        /// Port of the new address.
        port: Option<u16> = default("as asked"),
        /// Status: 301, 302, 303, 307 or 308.
        status_code: Option<u16> = default("302").range(301, 308)
    }
}

choices! {
    /// Scheme of an address.
    pub enum Scheme {
        Http = "http": "Plain text.",
        Https = "https": "TLS.",
    }
}

object! {
    /// Another path or host, unseen by the caller.
    pub struct UrlRewrite {
        /// Replaces the authority.
        hostname: Option<String> = default("as asked").text(TextRule::Host),
        /// Replaces the path.
        path: Option<PathModifier> = default("as asked")
    }
}

object! {
    /// How a path is replaced. `type` names the field that must be set with it.
    pub struct PathModifier {
        /// Which.
        kind as "type": PathModifierType = required(),
        /// The whole path.
        replace_full_path: Option<String> = plain().text(TextRule::Path),
        /// What the rule's PathPrefix matched.
        replace_prefix_match: Option<String> = plain().text(TextRule::Path)
    }
}

choices! {
    /// How a path is replaced.
    pub enum PathModifierType {
        ReplaceFullPath = "ReplaceFullPath": "The whole path.",
        ReplacePrefixMatch = "ReplacePrefixMatch": "What the rule's PathPrefix matched.",
    }
}

object! {
    /// Where a copy of the request goes.
    pub struct RequestMirror {
        /// The service that gets it.
        backend_ref: Option<MirrorBackend> = required(),
        /// Share of the requests, in percent.
        percent: Option<u32> = default("100").range(0, 100)
    }
}

object! {
    /// A service that gets copies.
    pub struct MirrorBackend {
        /// API group; empty for a Service.
        group: Option<String> = default("\"\""),
        /// `Service`.
        kind: Option<String> = default("Service"),
        /// Namespace of the service.
        namespace: Option<String> = default("the route's").text(TextRule::DnsLabel),
        /// Name of the service.
        name: String = required().text(TextRule::DnsLabel),
        /// Port of the service.
        port: u16 = required()
    }
}

object! {
    /// Cross-origin rules.
    pub struct Cors {
        /// Origins that may call.
        allow_origins: Vec<String> = default("none"),
        /// Methods that they may use.
        allow_methods: Vec<String> = default("none"),
        /// Headers that they may send.
        allow_headers: Vec<String> = default("none"),
        /// Headers that they may read.
        expose_headers: Vec<String> = default("none"),
        /// Whether they may send credentials.
        allow_credentials: Option<bool> = default("false"),
        /// Seconds for which a browser keeps the answer.
        max_age: Option<u32> = default("5")
    }
}

object! {
    /// A filter of another API.
    pub struct ExtensionRef {
        /// API group.
        group: String = required(),
        /// Kind.
        kind: String = required(),
        /// Name.
        name: String = required()
    }
}

object! {
    /// How a session keeps its endpoint.
    pub struct SessionPersistence {
        /// Name of the cookie or header.
        session_name: Option<String> = plain(),
        /// `Cookie` or `Header`.
        kind as "type": Option<String> = default("Cookie"),
        /// Longest life of a session.
        absolute_timeout: Option<crate::Period> = plain(),
        /// Longest pause of a session.
        idle_timeout: Option<crate::Period> = plain()
    }
}

object! {
    /// A test of one header.
    pub struct HeaderMatch {
        /// How.
        kind as "type": Option<MatchType> = default("Exact"),
        /// Name, in any case.
        name: String = required().text(TextRule::HeaderName),
        /// What it must hold; with `RegularExpression`, an expression that must match the whole value.
        value: String = required()
    }
}

choices! {
    /// How a text is tested.
    pub enum MatchType {
        Exact = "Exact": "Equal.",
        RegularExpression = "RegularExpression": "An expression (RE2 syntax) that must match the whole text.",
    }
}

/// A filter, with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterAction<'a> {
    /// Edits of the request's headers.
    RequestHeaders(&'a HeaderModifier),
    /// Edits of the answer's headers.
    ResponseHeaders(&'a HeaderModifier),
    /// The request is answered with a redirect.
    Redirect(&'a RequestRedirect),
    /// Path or host are rewritten on the way.
    Rewrite(&'a UrlRewrite),
}

impl RouteFilter {
    /// What it does. `None`: not supported yet, or `type` and field disagree, which parsing refuses.
    pub fn action(&self) -> Option<FilterAction<'_>> {
        match self.kind {
            FilterType::RequestHeaderModifier => {
                self.request_header_modifier.as_ref().map(FilterAction::RequestHeaders)
            }
            FilterType::ResponseHeaderModifier => {
                self.response_header_modifier.as_ref().map(FilterAction::ResponseHeaders)
            }
            FilterType::RequestRedirect => self.request_redirect.as_ref().map(FilterAction::Redirect),
            FilterType::UrlRewrite => self.url_rewrite.as_ref().map(FilterAction::Rewrite),
            FilterType::RequestMirror | FilterType::Cors | FilterType::ExtensionRef => None,
        }
    }
}

/// A path's replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathReplacement<'a> {
    /// The whole path.
    Full(&'a str),
    /// What the rule's PathPrefix matched.
    Prefix(&'a str),
}

impl PathModifier {
    /// What replaces what. `None`: `type` and field disagree, which parsing refuses.
    pub fn replacement(&self) -> Option<PathReplacement<'_>> {
        match self.kind {
            PathModifierType::ReplaceFullPath => self.replace_full_path.as_deref().map(PathReplacement::Full),
            PathModifierType::ReplacePrefixMatch => self.replace_prefix_match.as_deref().map(PathReplacement::Prefix),
        }
    }
}

impl HeaderMatch {
    /// How it tests.
    pub fn match_type(&self) -> MatchType {
        self.kind.unwrap_or_default()
    }
}

impl BackendRef {
    /// Its share.
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }

    /// The service that it names, for a route in `namespace`.
    pub fn service(&self, namespace: &str) -> crate::ServiceKey {
        crate::ServiceKey::new(self.namespace.as_deref().unwrap_or(namespace), &self.name)
    }
}

impl ParentRef {
    /// The service that it names, for a route in `namespace`.
    pub fn service(&self, namespace: &str) -> crate::ServiceKey {
        crate::ServiceKey::new(self.namespace.as_deref().unwrap_or(namespace), &self.name)
    }

    /// Whether it takes the traffic of that port of its service.
    pub fn covers(&self, number: u16, name: &str) -> bool {
        self.port.is_none_or(|port| port == number)
            && self.section_name.as_deref().is_none_or(|section| !section.is_empty() && section == name)
    }
}

/// Whether one of `parents` takes the traffic of that port of `service`.
pub(crate) fn attached(
    metadata: &Metadata,
    parents: &[ParentRef],
    service: &crate::ServiceKey,
    number: u16,
    name: &str,
) -> bool {
    parents.iter().any(|parent| parent.service(&metadata.namespace) == *service && parent.covers(number, name))
}
