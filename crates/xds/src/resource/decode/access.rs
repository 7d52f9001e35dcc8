//! RBAC filters. A condition that is not known is refused: half a rule must never match more than the whole.

use weft_proto::envoy::{
    config::rbac::v3::{self as proto, permission, principal, rbac::Action},
    extensions::filters::{http::rbac::v3 as http_filter, network::rbac::v3 as network_filter},
    r#type::matcher::v3::path_matcher,
};

use super::{
    super::{AccessRule, Permission, Principal, Rbac, RbacAction},
    matcher,
    value::{At, Result, err, port, unsupported},
};

/// What a filter can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Peer, port and the request.
    Http,
    /// Peer and port.
    Connection,
}

/// The rules of an HTTP filter: those obeyed, then those only counted.
pub(super) fn http(filter: &http_filter::Rbac) -> Result<Vec<Rbac>> {
    unsupported(filter.matcher.is_some(), "matcher")?;
    unsupported(filter.shadow_matcher.is_some(), "shadow_matcher")?;
    both(filter.rules.as_ref(), filter.shadow_rules.as_ref(), Sight::Http)
}

/// The rules of a network filter.
pub(super) fn network(filter: &network_filter::Rbac) -> Result<Vec<Rbac>> {
    unsupported(filter.matcher.is_some(), "matcher")?;
    unsupported(filter.shadow_matcher.is_some(), "shadow_matcher")?;
    both(filter.rules.as_ref(), filter.shadow_rules.as_ref(), Sight::Connection)
}

fn both(rules: Option<&proto::Rbac>, shadow: Option<&proto::Rbac>, sight: Sight) -> Result<Vec<Rbac>> {
    let mut out = Vec::new();
    if let Some(rules) = rules {
        out.push(rbac(rules, false, sight).at("rules")?);
    }
    if let Some(rules) = shadow {
        out.push(rbac(rules, true, sight).at("shadow_rules")?);
    }
    if out.is_empty() { err("rules", "is missing") } else { Ok(out) }
}

fn rbac(rules: &proto::Rbac, shadow: bool, sight: Sight) -> Result<Rbac> {
    unsupported(rules.audit_logging_options.is_some(), "audit_logging_options")?;
    let action = match Action::try_from(rules.action) {
        Ok(Action::Allow) => RbacAction::Allow,
        Ok(Action::Deny) => RbacAction::Deny,
        Ok(Action::Log) => return err("action", "LOG is not supported; use shadow_rules"),
        Err(unknown) => return err("action", format!("{} is not known", unknown.0)),
    };
    let policies = rules.policies.iter().map(|(name, it)| policy(name, it, sight).at(&format!("policies[{name:?}]")));
    Ok(Rbac { action, policies: policies.collect::<Result<_>>()?, shadow })
}

fn policy(name: &str, policy: &proto::Policy, sight: Sight) -> Result<AccessRule> {
    unsupported(policy.condition.is_some(), "condition")?;
    unsupported(policy.checked_condition.is_some(), "checked_condition")?;
    unsupported(policy.cel_config.is_some(), "cel_config")?;
    if policy.principals.is_empty() {
        return err("principals", "is empty");
    }
    if policy.permissions.is_empty() {
        return err("permissions", "is empty");
    }
    let (policy_name, rule) = split(name);
    Ok(AccessRule {
        policy: policy_name.into(),
        rule: rule.into(),
        principals: principals(&policy.principals, sight).at("principals")?,
        permissions: permissions(&policy.permissions, sight).at("permissions")?,
    })
}

/// `namespace/policy/rule` → (`namespace/policy`, `rule`); other names have no rule.
fn split(name: &str) -> (&str, &str) {
    match name.match_indices('/').nth(1) {
        Some((slash, _)) => (&name[..slash], &name[slash + 1..]),
        None => (name, ""),
    }
}

fn principals(list: &[proto::Principal], sight: Sight) -> Result<Vec<Principal>> {
    list.iter().enumerate().map(|(index, it)| principal(it, sight).at_index("", index)).collect()
}

fn principal(it: &proto::Principal, sight: Sight) -> Result<Principal> {
    use principal::Identifier;
    Ok(match &it.identifier {
        Some(Identifier::Any(true)) => Principal::Any,
        Some(Identifier::Any(false)) => return err("any", "must be true"),
        Some(Identifier::AndIds(set)) => Principal::And(some(&set.ids, "and_ids", |ids| principals(ids, sight))?),
        Some(Identifier::OrIds(set)) => Principal::Or(some(&set.ids, "or_ids", |ids| principals(ids, sight))?),
        Some(Identifier::NotId(id)) => Principal::Not(Box::new(principal(id, sight).at("not_id")?)),
        Some(Identifier::Authenticated(peer)) => {
            let name = peer.principal_name.as_ref().map(matcher::string).transpose();
            Principal::Authenticated(name.at("authenticated.principal_name")?)
        }
        Some(Identifier::Header(header)) => {
            requires_http(sight, "header")?;
            Principal::Header(matcher::header(header).at("header")?)
        }
        Some(other) => return err(identifier_name(other), "is not supported"),
        None => return err("", "is a kind of principal that is not known"),
    })
}

fn identifier_name(identifier: &principal::Identifier) -> &'static str {
    use principal::Identifier;
    #[expect(deprecated, reason = "named only to be refused")]
    match identifier {
        Identifier::SourceIp(_) => "source_ip",
        Identifier::DirectRemoteIp(_) => "direct_remote_ip",
        Identifier::RemoteIp(_) => "remote_ip",
        Identifier::UrlPath(_) => "url_path",
        Identifier::Metadata(_) => "metadata",
        Identifier::FilterState(_) => "filter_state",
        Identifier::SourcedMetadata(_) => "sourced_metadata",
        Identifier::Custom(_) => "custom",
        Identifier::AndIds(_)
        | Identifier::OrIds(_)
        | Identifier::Any(_)
        | Identifier::Authenticated(_)
        | Identifier::Header(_)
        | Identifier::NotId(_) => "",
    }
}

fn permissions(list: &[proto::Permission], sight: Sight) -> Result<Vec<Permission>> {
    list.iter().enumerate().map(|(index, it)| permission(it, sight).at_index("", index)).collect()
}

fn permission(it: &proto::Permission, sight: Sight) -> Result<Permission> {
    use permission::Rule;
    Ok(match &it.rule {
        Some(Rule::Any(true)) => Permission::Any,
        Some(Rule::Any(false)) => return err("any", "must be true"),
        Some(Rule::AndRules(set)) => Permission::And(some(&set.rules, "and_rules", |it| permissions(it, sight))?),
        Some(Rule::OrRules(set)) => Permission::Or(some(&set.rules, "or_rules", |it| permissions(it, sight))?),
        Some(Rule::NotRule(rule)) => Permission::Not(Box::new(permission(rule, sight).at("not_rule")?)),
        Some(Rule::Header(header)) => {
            requires_http(sight, "header")?;
            Permission::Header(matcher::header(header).at("header")?)
        }
        Some(Rule::UrlPath(path)) => {
            requires_http(sight, "url_path")?;
            let Some(path_matcher::Rule::Path(path)) = &path.rule else { return err("url_path.path", "is missing") };
            Permission::Path(matcher::string(path).at("url_path.path")?)
        }
        Some(Rule::DestinationPort(value)) => Permission::Port(port(*value, "destination_port")?),
        Some(other) => return err(rule_name(other), "is not supported"),
        None => return err("", "is a kind of permission that is not known"),
    })
}

fn rule_name(rule: &permission::Rule) -> &'static str {
    use permission::Rule;
    #[expect(deprecated, reason = "named only to be refused")]
    match rule {
        Rule::DestinationIp(_) => "destination_ip",
        Rule::DestinationPortRange(_) => "destination_port_range",
        Rule::Metadata(_) => "metadata",
        Rule::RequestedServerName(_) => "requested_server_name",
        Rule::Matcher(_) => "matcher",
        Rule::UriTemplate(_) => "uri_template",
        Rule::SourcedMetadata(_) => "sourced_metadata",
        Rule::AndRules(_)
        | Rule::OrRules(_)
        | Rule::Any(_)
        | Rule::Header(_)
        | Rule::UrlPath(_)
        | Rule::DestinationPort(_)
        | Rule::NotRule(_) => "",
    }
}

/// A set of conditions; an empty one would match all or nothing, depending on who reads it.
fn some<P, T>(set: &[P], field: &str, decode: impl FnOnce(&[P]) -> Result<Vec<T>>) -> Result<Vec<T>> {
    if set.is_empty() { err(field, "is empty") } else { decode(set).at(field) }
}

fn requires_http(sight: Sight, field: &str) -> Result<()> {
    match sight {
        Sight::Http => Ok(()),
        Sight::Connection => err(field, "needs HTTP; a network filter sees no requests"),
    }
}
