//! What parses but is not obeyed yet: refused, never silently ignored. This is the only list of it; the reference shows
//! it.

/// A field, or a value of a field, that is not obeyed yet.
#[derive(Debug, Clone, Copy)]
pub struct NotYet {
    /// Type that holds the field.
    pub object: &'static str,
    /// Field.
    pub field: &'static str,
    /// Only this value of it. Empty: the field as a whole.
    pub value: &'static str,
    /// What to do meanwhile.
    pub instead: &'static str,
}

const fn whole(object: &'static str, field: &'static str, instead: &'static str) -> NotYet {
    NotYet { object, field, value: "", instead }
}

const fn only(object: &'static str, field: &'static str, value: &'static str, instead: &'static str) -> NotYet {
    NotYet { object, field, value, instead }
}

const FILTERS: &str = "header modifiers, redirects and rewrites are";
const PLAIN_TLS: &str =
    "an application's own TLS can be carried as `tcp`; between sidecars all traffic is encrypted anyway";
const PORTS: &str = "the mesh carries TCP";
const JWT: &str = "rules may look at identity, namespace, method, path and port";

/// Stands for every namespace but the resource's own.
pub(crate) const ANOTHER_NAMESPACE: &str = "another namespace than its own";

/// Everything that is not obeyed yet.
pub const NOT_YET: &[NotYet] = &[
    whole("ServiceSpec", "externalName", "list the addresses in an EndpointSlice"),
    only("ServiceSpec", "type", "ExternalName", "list the addresses in an EndpointSlice"),
    only("ServiceSpec", "internalTrafficPolicy", "Local", "every endpoint of the service gets traffic"),
    only("ServiceSpec", "sessionAffinity", "ClientIP", "use `loadBalancer: { sourceIp: {} }` of a TrafficPolicy"),
    only("ServiceSpec", "publishNotReadyAddresses", "true", "only ready endpoints get traffic"),
    only("ServicePort", "protocol", "UDP", PORTS),
    only("ServicePort", "protocol", "SCTP", PORTS),
    only("ServicePort", "appProtocol", "https", PLAIN_TLS),
    only("ServicePort", "appProtocol", "kubernetes.io/wss", PLAIN_TLS),
    only("ServicePort", "appProtocol", "tls", PLAIN_TLS),
    only("EndpointSlice", "addressType", "FQDN", "list IP addresses"),
    only("EndpointPort", "protocol", "UDP", PORTS),
    only("EndpointPort", "protocol", "SCTP", PORTS),
    only("ParentRef", "namespace", ANOTHER_NAMESPACE, "put the route into the Service's namespace"),
    whole("HttpRouteSpec", "hostnames", "the route takes the requests to its Services, under all their names"),
    whole("HttpRouteRule", "sessionPersistence", "use `loadBalancer: { consistentHash: … }` of a TrafficPolicy"),
    whole("GrpcRouteSpec", "hostnames", "the route takes the calls to its Services, under all their names"),
    whole("GrpcRouteRule", "sessionPersistence", "use `loadBalancer: { consistentHash: … }` of a TrafficPolicy"),
    only("GrpcMethodMatch", "type", "RegularExpression", "name services and methods exactly, one match for each"),
    whole("RouteFilter", "requestMirror", FILTERS),
    only("RouteFilter", "type", "RequestMirror", FILTERS),
    whole("RouteFilter", "cors", FILTERS),
    only("RouteFilter", "type", "CORS", FILTERS),
    whole("RouteFilter", "extensionRef", FILTERS),
    only("RouteFilter", "type", "ExtensionRef", FILTERS),
    whole("LoadBalancer", "peakEwma", "`leastRequest` comes closest"),
    whole("TrafficPolicySpec", "hedging", "use `retry` with `timeouts.perTry`"),
    whole("TrafficPolicySpec", "rateLimit", "`connectionPool.maxRequests` bounds what is in flight"),
    whole("TrafficPolicySpec", "healthCheck", "`outlierDetection` watches the traffic itself"),
    whole("TrafficPolicySpec", "locality", "every zone gets its share"),
    whole("TrafficPolicySpec", "slowStart", "`leastRequest` spares a slow newcomer"),
    whole("TrafficPolicySpec", "faultInjection", "let the application fail"),
    only("AccessPolicySpec", "action", "AUDIT", "`ALLOW` and `DENY` are"),
    whole("AccessRule", "when", JWT),
    whole("AccessSource", "notIdentities", "write a DENY policy"),
    whole("AccessSource", "notNamespaces", "write a DENY policy"),
    whole("AccessOperation", "headers", JWT),
    whole("MeshSpec", "telemetry", "use the sidecar's flags `--access-log` and `--log`"),
];

/// Why the field as a whole is refused.
pub(crate) fn field(object: &str, field: &str) -> Option<&'static str> {
    value(object, field, "")
}

/// Why that value of the field is refused.
pub(crate) fn value(object: &str, field: &str, value: &str) -> Option<&'static str> {
    NOT_YET
        .iter()
        .find(|entry| entry.object == object && entry.field == field && entry.value == value)
        .map(|entry| entry.instead)
}
