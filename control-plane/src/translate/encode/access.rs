//! Access rules: Envoy's RBAC, as HTTP and as network filter.

use weft_proto::envoy::{
    config::{
        listener::v3::{Filter, filter},
        rbac::v3::{self as wire, Policy, permission, principal, rbac},
    },
    extensions::filters::{
        http::rbac::v3::Rbac as HttpRbac,
        network::{
            http_connection_manager::v3::{HttpFilter, http_filter},
            rbac::v3::Rbac as NetworkRbac,
        },
    },
    r#type::matcher::v3::{PathMatcher, path_matcher},
};
use weft_xds::resource::{Permission, Principal, Rbac, RbacAction, pack};

use super::matcher;

/// As a filter of the HTTP connection manager.
pub fn http_filter(rbac: &Rbac) -> HttpFilter {
    let rules = Some(rules(rbac));
    let config = if rbac.shadow {
        HttpRbac { shadow_rules: rules, shadow_rules_stat_prefix: STAT_PREFIX.to_owned(), ..HttpRbac::default() }
    } else {
        HttpRbac { rules, rules_stat_prefix: STAT_PREFIX.to_owned(), ..HttpRbac::default() }
    };
    HttpFilter {
        name: "envoy.filters.http.rbac".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&config))),
        ..HttpFilter::default()
    }
}

/// As a network filter, before the TCP proxy.
pub fn network_filter(rbac: &Rbac) -> Filter {
    let rules = Some(rules(rbac));
    let stat_prefix = STAT_PREFIX.to_owned();
    let config = if rbac.shadow {
        NetworkRbac { shadow_rules: rules, stat_prefix, ..NetworkRbac::default() }
    } else {
        NetworkRbac { rules, stat_prefix, ..NetworkRbac::default() }
    };
    Filter {
        name: "envoy.filters.network.rbac".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&config))),
    }
}

fn rules(access: &Rbac) -> wire::Rbac {
    let action = match access.action {
        RbacAction::Allow => rbac::Action::Allow,
        RbacAction::Deny => rbac::Action::Deny,
    };
    let policies = access.policies.iter().map(|rule| {
        let policy = Policy {
            permissions: rule.permissions.iter().map(permission).collect(),
            principals: rule.principals.iter().map(principal).collect(),
            ..Policy::default()
        };
        (format!("{}/{}", rule.policy, rule.rule), policy)
    });
    wire::Rbac { action: action as i32, policies: policies.collect(), audit_logging_options: None }
}

fn permission(value: &Permission) -> wire::Permission {
    use permission::{Rule, Set};
    let rule = match value {
        Permission::Any => Rule::Any(true),
        Permission::And(all) => Rule::AndRules(Set { rules: all.iter().map(permission).collect() }),
        Permission::Or(any) => Rule::OrRules(Set { rules: any.iter().map(permission).collect() }),
        Permission::Not(inner) => Rule::NotRule(Box::new(permission(inner))),
        Permission::Header(test) => Rule::Header(matcher::header(test)),
        Permission::Path(test) => {
            Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(matcher::string(test))) })
        }
        Permission::Port(port) => Rule::DestinationPort((*port).into()),
    };
    wire::Permission { rule: Some(rule) }
}

fn principal(value: &Principal) -> wire::Principal {
    use principal::{Authenticated, Identifier, Set};
    let identifier = match value {
        Principal::Any => Identifier::Any(true),
        Principal::And(all) => Identifier::AndIds(Set { ids: all.iter().map(principal).collect() }),
        Principal::Or(any) => Identifier::OrIds(Set { ids: any.iter().map(principal).collect() }),
        Principal::Not(inner) => Identifier::NotId(Box::new(principal(inner))),
        Principal::Authenticated(name) => {
            Identifier::Authenticated(Authenticated { principal_name: name.as_ref().map(matcher::string) })
        }
        Principal::Header(test) => Identifier::Header(matcher::header(test)),
    };
    wire::Principal { identifier: Some(identifier) }
}

const STAT_PREFIX: &str = "weft_access_";
