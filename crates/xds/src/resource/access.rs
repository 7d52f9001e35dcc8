//! Access rules (Envoy's RBAC filter).

use super::{HeaderMatch, StringMatch};

/// One RBAC filter. Several may stand in a row; each may refuse.
#[derive(Debug, Clone)]
pub struct Rbac {
    /// What a match means.
    pub action: RbacAction,
    /// In order of name; the first that matches is the one that is named.
    pub policies: Vec<AccessRule>,
    /// Only counted and logged, not obeyed.
    pub shadow: bool,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RbacAction {
    /// A request that no policy matches is refused.
    Allow,
    /// A request that a policy matches is refused.
    Deny,
}

/// One rule: it matches when any principal and any permission does.
#[derive(Debug, Clone)]
pub struct AccessRule {
    /// `namespace/policy`, as shown in answer, log and metric.
    pub policy: Box<str>,
    /// Which rule of the policy: its name or its index.
    pub rule: Box<str>,
    /// Who calls.
    pub principals: Vec<Principal>,
    /// What is called.
    pub permissions: Vec<Permission>,
}

/// Who calls.
#[derive(Debug, Clone)]
pub enum Principal {
    /// Anyone, authenticated or not.
    Any,
    /// All of these.
    And(Vec<Principal>),
    /// Any of these.
    Or(Vec<Principal>),
    /// Not this.
    Not(Box<Principal>),
    /// The peer proved a SPIFFE ID, and it passes (`None`: any).
    Authenticated(Option<StringMatch>),
    /// A request header.
    Header(HeaderMatch),
}

/// What is called.
#[derive(Debug, Clone)]
pub enum Permission {
    /// Anything.
    Any,
    /// All of these.
    And(Vec<Permission>),
    /// Any of these.
    Or(Vec<Permission>),
    /// Not this.
    Not(Box<Permission>),
    /// A request header, `:method` included.
    Header(HeaderMatch),
    /// The normalised path without query.
    Path(StringMatch),
    /// The service's port.
    Port(u16),
}
