//! `gateway.networking.k8s.io/v1 GRPCRoute`: where gRPC calls to a service go.

use super::{
    Metadata,
    route::{BackendRef, HeaderMatch, MatchType, ParentRef, RouteFilter, SessionPersistence, attached},
};
use crate::{rules::TextRule, shape::object};

object! {
    /// Where gRPC calls to a service go.
    pub struct GrpcRoute {
        /// Name, namespace, labels and annotations.
        metadata: Metadata = required(),
        /// Services, and rules for their calls.
        spec: GrpcRouteSpec = required()
    }
}

object! {
    /// Services, and rules for their calls.
    pub struct GrpcRouteSpec {
        /// Services whose traffic the route takes.
        parent_refs: Vec<ParentRef> = required().items(1, 32),
        /// Host names besides the services' own.
        hostnames: Vec<String> = default("the services' own names").items(0, 16).text(TextRule::HostPattern),
        /// Rules. A call that none takes is answered with UNIMPLEMENTED.
        rules: Vec<GrpcRouteRule> = required().items(1, 64)
    }
}

object! {
    /// Which calls, and what becomes of them.
    pub struct GrpcRouteRule {
        /// Name, in metrics and as `sectionName` of a policy.
        name: Option<String> = default("its index").text(TextRule::SectionName),
        /// Any of these must match.
        matches: Vec<GrpcRouteMatch> = default("every call").items(0, 64),
        /// Done in order; header modifiers only.
        filters: Vec<RouteFilter> = default("none").items(0, 16),
        /// Services that share the calls.
        backend_refs: Vec<BackendRef> = required().items(1, 16),
        /// Sessions.
        session_persistence: Option<SessionPersistence> = plain()
    }
}

object! {
    /// A test of a call: all of it must hold.
    pub struct GrpcRouteMatch {
        /// gRPC service and method.
        method: Option<GrpcMethodMatch> = default("every method"),
        /// Headers (gRPC metadata); each must match.
        headers: Vec<HeaderMatch> = default("none").items(0, 16)
    }
}

object! {
    /// A test of gRPC service and method.
    pub struct GrpcMethodMatch {
        /// How.
        kind as "type": Option<MatchType> = default("Exact"),
        /// Service, `package.Service`.
        service: Option<String> = required().text(TextRule::GrpcService),
        /// Method of the service.
        method: Option<String> = default("every method of the service").text(TextRule::GrpcMethod)
    }
}

impl GrpcRoute {
    /// Whether it takes the traffic of that port of `service`.
    pub fn attached(&self, service: &crate::ServiceKey, number: u16, name: &str) -> bool {
        attached(&self.metadata, &self.spec.parent_refs, service, number, name)
    }
}

impl GrpcRouteRule {
    /// Its name, or its index.
    pub fn label(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| index.to_string())
    }
}
