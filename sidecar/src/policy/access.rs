//! Access rules, obeyed at the callee.
//!
//! Fails closed: where a request does not say enough (a header rule on a raw connection, a caller without an identity),
//! a rule that refuses matches and a rule that allows does not. Of repeated header fields any value makes a refusing
//! rule match, all are needed for an allowing one; inside `Not` the two change places.

use weft_xds::resource::{AccessRule, HeaderMatch, Permission, Principal, Rbac, RbacAction};

use crate::route::{Head, headers, text};

/// What the rules see.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// SPIFFE ID that the caller proved. `None`: plain text.
    pub identity: Option<&'a str>,
    /// Port of the service.
    pub port: u16,
    /// The request, normalised. `None`: a raw connection.
    pub head: Option<&'a Head<'a>>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'r> {
    /// Whether it may go on, and by what.
    pub decision: Decision<'r>,
    /// What a policy that is only counted would have refused it for.
    pub shadow: Option<Denial<'r>>,
}

/// Whether a call may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'r> {
    /// It may. The rule that allowed it, if there are any that allow.
    Allowed(Option<Named<'r>>),
    /// It may not.
    Denied(Denial<'r>),
}

/// A policy's rule, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Named<'r> {
    /// `namespace/policy`.
    pub policy: &'r str,
    /// Name or index.
    pub rule: &'r str,
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denial<'r> {
    /// This rule refuses it.
    Matched(Named<'r>),
    /// There are policies that allow, and none of their rules matches. The first of the policies, to look at; `None`:
    /// nothing is allowed at all.
    NoneMatched(Option<&'r str>),
}

impl<'r> Denial<'r> {
    /// `namespace/policy`, as in answer, log and metric; empty when no policy exists.
    pub fn policy(&self) -> &'r str {
        match self {
            Self::Matched(named) => named.policy,
            Self::NoneMatched(policy) => policy.unwrap_or_default(),
        }
    }

    /// The rule, or `none` when none matched.
    pub fn rule(&self) -> &'r str {
        match self {
            Self::Matched(named) => named.rule,
            Self::NoneMatched(_) => "none",
        }
    }
}

/// Goes through the filters in order; the first that refuses decides.
pub fn evaluate<'r>(filters: &'r [Rbac], call: &Call<'_>) -> Verdict<'r> {
    let mut shadow = None;
    let mut allowed = None;
    for filter in filters {
        match (apply(filter, call), filter.shadow) {
            (Decision::Denied(denial), true) => {
                shadow.get_or_insert(denial);
            }
            (Decision::Denied(denial), false) => return Verdict { decision: Decision::Denied(denial), shadow },
            (Decision::Allowed(by), false) => allowed = allowed.or(by),
            (Decision::Allowed(_), true) => {}
        }
    }
    Verdict { decision: Decision::Allowed(allowed), shadow }
}

fn apply<'r>(filter: &'r Rbac, call: &Call<'_>) -> Decision<'r> {
    let doubt = filter.action == RbacAction::Deny;
    let matched = filter.policies.iter().find(|rule| rule_matches(rule, call, doubt));
    let named = matched.map(|rule| Named { policy: &rule.policy, rule: &rule.rule });
    match (filter.action, named) {
        (RbacAction::Deny, Some(named)) => Decision::Denied(Denial::Matched(named)),
        (RbacAction::Deny, None) => Decision::Allowed(None),
        (RbacAction::Allow, Some(named)) => Decision::Allowed(Some(named)),
        (RbacAction::Allow, None) => {
            Decision::Denied(Denial::NoneMatched(filter.policies.first().map(|rule| &*rule.policy)))
        }
    }
}

/// `doubt`: what counts where the request does not say enough.
fn rule_matches(rule: &AccessRule, call: &Call<'_>, doubt: bool) -> bool {
    rule.principals.iter().any(|principal| principal_matches(principal, call, doubt))
        && rule.permissions.iter().any(|permission| permission_matches(permission, call, doubt))
}

fn principal_matches(principal: &Principal, call: &Call<'_>, doubt: bool) -> bool {
    match principal {
        Principal::Any => true,
        Principal::And(all) => all.iter().all(|principal| principal_matches(principal, call, doubt)),
        Principal::Or(any) => any.iter().any(|principal| principal_matches(principal, call, doubt)),
        Principal::Not(not) => !principal_matches(not, call, !doubt),
        Principal::Authenticated(None) => call.identity.is_some(),
        // Who proves nothing may be anyone: plain text must be no way round a rule that refuses some.
        Principal::Authenticated(Some(test)) => call.identity.map_or(doubt, |identity| text::passes(test, identity)),
        Principal::Header(rule) => header_matches(rule, call, doubt),
    }
}

fn permission_matches(permission: &Permission, call: &Call<'_>, doubt: bool) -> bool {
    match permission {
        Permission::Any => true,
        Permission::And(all) => all.iter().all(|permission| permission_matches(permission, call, doubt)),
        Permission::Or(any) => any.iter().any(|permission| permission_matches(permission, call, doubt)),
        Permission::Not(not) => !permission_matches(not, call, !doubt),
        Permission::Header(rule) => header_matches(rule, call, doubt),
        Permission::Path(test) => call.head.map_or(doubt, |head| text::passes(test, head.path)),
        Permission::Port(port) => call.port == *port,
    }
}

fn header_matches(rule: &HeaderMatch, call: &Call<'_>, doubt: bool) -> bool {
    match call.head {
        None => doubt,
        Some(head) if doubt => headers::any_passes(rule, head),
        Some(head) => headers::all_pass(rule, head),
    }
}
