//! `weft.mesh/v1alpha1 AccessPolicy`: who may call a service.

use super::{HeaderMatch, Metadata, TargetRef};
use crate::{
    rules::TextRule,
    shape::{choices, object},
    values::{IdentityPattern, PathPattern},
};

object! {
    /// Who may call a service, decided by the callee's sidecar from the identity that the caller proved. A request that a
    /// DENY rule matches is refused. Once a service has an ALLOW policy, a request that no ALLOW rule matches is refused
    /// too; without any, the Mesh's `defaultAccess` decides.
    pub struct AccessPolicy {
        /// Name, namespace, labels and annotations.
        metadata: Metadata = required(),
        /// Target and rules.
        spec: AccessPolicySpec = required()
    }
}

object! {
    /// Target and rules.
    pub struct AccessPolicySpec {
        /// Services of the policy's namespace.
        target_refs: Vec<TargetRef> = required().items(1, 32),
        /// What a rule that matches does.
        action: Option<AccessAction> = default("ALLOW"),
        /// Rules; any may match. An ALLOW policy without rules allows nothing.
        rules: Vec<AccessRule> = default("none").items(0, 64)
    }
}

choices! {
    /// What a rule that matches does.
    pub enum AccessAction {
        Allow = "ALLOW": "The request may pass.",
        Deny = "DENY": "The request is refused.",
        Audit = "AUDIT": "The request passes; what would have been refused is counted and logged.",
    }
}

object! {
    /// One rule: it matches when one of `from` and one of `to` do.
    pub struct AccessRule {
        /// Name, as shown in answer, log and metric.
        name: Option<String> = default("its index").text(TextRule::SectionName),
        /// Who calls.
        from: Vec<AccessSource> = default("anyone").items(0, 64),
        /// What is called.
        to: Vec<AccessOperation> = default("anything").items(0, 64),
        /// Claims that the caller's token must carry.
        when: Vec<AccessCondition> = default("none").items(0, 16)
    }
}

object! {
    /// Who calls: all that is set must hold.
    pub struct AccessSource {
        /// Any of these identities.
        identities: Vec<String> = default("any").items(0, 64).text(TextRule::Identity),
        /// Any of these namespaces.
        namespaces: Vec<String> = default("any").items(0, 64).text(TextRule::DnsLabel),
        /// None of these identities.
        not_identities: Vec<String> = default("none").items(0, 64).text(TextRule::Identity),
        /// None of these namespaces.
        not_namespaces: Vec<String> = default("none").items(0, 64).text(TextRule::DnsLabel)
    }
}

object! {
    /// What is called: all that is set must hold. Of bytes that are not HTTP nobody knows method or path: such a rule then
    /// holds in a DENY policy, and does not in an ALLOW policy.
    pub struct AccessOperation {
        /// Any of these methods.
        methods: Vec<String> = default("any").items(0, 32).text(TextRule::Method),
        /// Any of these paths, normalised and without query; `/a/*` is every path that begins with `/a/`.
        paths: Vec<String> = default("any").items(0, 64).text(TextRule::PathPattern),
        /// Any of these ports of the service.
        ports: Vec<u16> = default("any").items(0, 64),
        /// Each of these headers.
        headers: Vec<HeaderMatch> = default("none").items(0, 16)
    }
}

object! {
    /// A claim that the caller's token must carry.
    pub struct AccessCondition {
        /// Claim, such as `request.auth.claims[sub]`.
        key: String = required(),
        /// Any of these values.
        values: Vec<String> = default("none").items(0, 32),
        /// None of these values.
        not_values: Vec<String> = default("none").items(0, 32)
    }
}

impl AccessPolicySpec {
    /// What a rule that matches does.
    pub fn action(&self) -> AccessAction {
        self.action.unwrap_or_default()
    }
}

impl AccessRule {
    /// Its name, or its index.
    pub fn label(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| index.to_string())
    }
}

impl AccessSource {
    /// The identities. A stored resource was checked when it was applied.
    pub fn identities(&self) -> impl Iterator<Item = IdentityPattern> {
        self.identities.iter().filter_map(|text| IdentityPattern::parse(text).ok())
    }
}

impl AccessOperation {
    /// The paths. A stored resource was checked when it was applied.
    pub fn paths(&self) -> impl Iterator<Item = PathPattern> {
        self.paths.iter().filter_map(|text| PathPattern::parse(text).ok())
    }
}
