//! `weft.mesh/v1alpha1 Mesh`: what holds for the whole mesh.

use super::{Metadata, TrafficPolicySpec};
use crate::{
    Period,
    defaults::SECOND,
    rules::TextRule,
    shape::{choices, object},
};

/// The only name that a Mesh may have.
pub const MESH_NAME: &str = "default";

object! {
    /// What holds for the whole mesh. There is one, named `default`.
    pub struct Mesh {
        /// Name (`default`), labels and annotations; no namespace.
        metadata: Metadata = required(),
        /// Settings.
        spec: MeshSpec = default("see its fields")
    }
}

object! {
    /// Settings of the mesh.
    pub struct MeshSpec {
        /// Trust domain of every identity. It is fixed when the control plane first starts; written here, it must be the
        /// same.
        trust_domain: Option<String> = default("the control plane's, `weft.local` unless told").text(TextRule::TrustDomain),
        /// Encryption between workloads.
        mtls: Option<Mtls> = default("strict"),
        /// Whether a service that no AccessPolicy allows anything may be called.
        default_access: Option<DefaultAccess> = default("allow")
            .why("a mesh that carries traffic within the first minute")
            .when("every service has its AccessPolicy: `deny` then closes what was forgotten"),
        /// Calls to hosts that are not in the mesh.
        egress: Option<Egress> = default("any"),
        /// Certificates of the workloads.
        certificates: Option<Certificates> = default("see its fields"),
        /// Values for whatever a TrafficPolicy leaves open; without `targetRefs`.
        defaults: Option<TrafficPolicySpec> = default("the built-in defaults"),
        /// What is logged, counted and traced.
        telemetry: Option<Telemetry> = plain()
    }
}

object! {
    /// Encryption between workloads.
    pub struct Mtls {
        /// What a workload accepts.
        mode: Option<MtlsMode> = default("strict")
            .when("services are moved into the mesh one by one: `permissive` until all callers are in")
    }
}

choices! {
    /// What a workload accepts.
    pub enum MtlsMode {
        Strict = "strict": "Only connections whose caller proves its identity.",
        Permissive = "permissive": "Plain text as well.",
    }
}

choices! {
    /// Whether a service that no AccessPolicy allows anything may be called.
    pub enum DefaultAccess {
        Allow = "allow": "By every identity of the trust domain.",
        Deny = "deny": "By nobody.",
    }
}

object! {
    /// Calls to hosts that are not in the mesh.
    pub struct Egress {
        /// Whether they are let out.
        mode: Option<EgressMode> = default("any")
            .why("an application that gets a sidecar goes on reaching its database and the APIs that it uses")
            .when("nothing may be called but what is registered: a Service with an EndpointSlice then lets one host out. A \
                   sidecar is no firewall: an application that gets round it is stopped by the network alone")
    }
}

choices! {
    /// Whether calls to hosts that are not in the mesh are let out.
    pub enum EgressMode {
        Any = "any": "They go where the application sends them, counted as `external`.",
        Registered = "registered": "Only services of the mesh may be called; all else is refused with `external_refused`.",
    }
}

object! {
    /// Certificates of the workloads.
    pub struct Certificates {
        /// Life of a certificate. It is renewed at half of it.
        ttl: Option<Period> = default("that of the control plane's flag, 24h unless told")
            .within(SECOND.saturating_mul(10), SECOND.saturating_mul(90 * 24 * 3600))
            .why("a night without a control plane is survived")
    }
}

object! {
    /// What is logged, counted and traced.
    pub struct Telemetry {
        /// Which requests are logged.
        access_log: Option<AccessLog> = default("failures"),
        /// Share of the requests that are traced, in percent.
        trace_percent: Option<u32> = default("0").range(0, 100),
        /// Where traces are sent.
        trace_endpoint: Option<String> = default("nowhere")
    }
}

choices! {
    /// Which requests are logged.
    pub enum AccessLog {
        Failures = "failures": "Those that failed.",
        All = "all": "All.",
        Off = "off": "None.",
    }
}

impl Mesh {
    /// A mesh with nothing set.
    pub fn unset() -> Self {
        let metadata = Metadata { name: MESH_NAME.to_owned(), ..Metadata::default() };
        Self { metadata, spec: MeshSpec::default() }
    }

    /// What a workload accepts.
    pub fn mtls(&self) -> MtlsMode {
        self.spec.mtls.as_ref().and_then(|mtls| mtls.mode).unwrap_or_default()
    }

    /// Whether a service that no AccessPolicy allows anything may be called.
    pub fn default_access(&self) -> DefaultAccess {
        self.spec.default_access.unwrap_or_default()
    }

    /// Whether calls to hosts that are not in the mesh are let out.
    pub fn egress(&self) -> EgressMode {
        self.spec.egress.as_ref().and_then(|egress| egress.mode).unwrap_or_default()
    }

    /// Life of a certificate, when the mesh sets one.
    pub fn certificate_ttl(&self) -> Option<std::time::Duration> {
        self.spec.certificates.as_ref().and_then(|certificates| certificates.ttl).map(Period::get)
    }
}
