//! What a compose file says about the network of a service. It moves to another container when that owns the network
//! namespace, and the service must not say it any more.

use serde_json::{Map, Value};

use super::file::DEFAULT_NETWORK;

/// The network's side of a service, as the compose file has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Namespace {
    /// Settings that only the owner of the namespace may have, `networks` not among them.
    pub settings: Map<String, Value>,
    /// `networks`, each with its settings or null; empty: the default network alone.
    pub networks: Map<String, Value>,
    /// `sysctls` of the service that are not about the network.
    pub sysctls: Map<String, Value>,
}

impl Namespace {
    /// Reads them from a service.
    pub fn read(service: &Map<String, Value>) -> Self {
        let settings = SETTINGS.iter().filter_map(|name| {
            let value = service.get(*name).filter(|value| !value.is_null())?;
            Some(((*name).to_owned(), value.clone()))
        });
        let mut settings: Map<String, Value> = settings.collect();
        let (network, sysctls) =
            pairs(service.get(SYSCTLS)).into_iter().partition(|(name, _)| name.starts_with("net."));
        let network: Map<String, Value> = network;
        if !network.is_empty() {
            settings.insert(SYSCTLS.to_owned(), network.into());
        }
        let networks = match service.get(NETWORKS) {
            Some(Value::Object(networks)) => networks.clone(),
            Some(Value::Array(names)) => {
                names.iter().filter_map(|name| Some((name.as_str()?.to_owned(), Value::Null))).collect()
            }
            _ => Map::new(),
        };
        Self { settings, networks, sysctls }
    }

    /// Networks of the owner, where it answers to these names too. `more`: joined besides.
    pub fn joined(&self, names: &[String], more: Option<&str>) -> Map<String, Value> {
        let mut networks = self.networks.clone();
        if networks.is_empty() {
            networks.insert(DEFAULT_NETWORK.to_owned(), Value::Null);
        }
        if let Some(more) = more {
            networks.insert(more.to_owned(), Value::Null);
        }
        for network in networks.values_mut() {
            let mut settings = network.as_object().cloned().unwrap_or_default();
            let mut aliases: Vec<Value> = settings.get(ALIASES).and_then(Value::as_array).cloned().unwrap_or_default();
            for name in names {
                let name = Value::from(name.as_str());
                if !aliases.contains(&name) {
                    aliases.push(name);
                }
            }
            settings.insert(ALIASES.to_owned(), aliases.into());
            *network = settings.into();
        }
        networks
    }

    /// What the service must not say any more.
    pub fn moved(&self) -> impl Iterator<Item = &str> {
        let networks = (!self.networks.is_empty()).then_some(NETWORKS);
        self.settings.keys().map(String::as_str).filter(|name| *name != SYSCTLS).chain(networks)
    }

    /// Its `sysctls` must be said anew.
    pub fn moves_sysctls(&self) -> bool {
        self.settings.contains_key(SYSCTLS)
    }
}

/// A map, or a list of `key=value`.
fn pairs(value: Option<&Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map.clone(),
        Some(Value::Array(list)) => {
            let pair = |text: &Value| text.as_str()?.split_once('=').map(|(key, value)| (key.to_owned(), value.into()));
            list.iter().filter_map(pair).collect()
        }
        _ => Map::new(),
    }
}

/// Docker refuses each of these for a container that joins another's network namespace.
const SETTINGS: [&str; 11] = [
    "ports",
    "expose",
    "extra_hosts",
    "hostname",
    "domainname",
    "dns",
    "dns_search",
    "dns_opt",
    "mac_address",
    "links",
    "external_links",
];
const SYSCTLS: &str = "sysctls";
const NETWORKS: &str = "networks";
const ALIASES: &str = "aliases";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(service: Value) -> Namespace {
        Namespace::read(service.as_object().unwrap())
    }

    #[test]
    fn what_is_the_networks_moves() {
        let namespace = read(json!({
            "image": "x", "hostname": "a", "ports": ["80:80"], "dns": null, "networks": { "n": null, "m": { "aliases": ["b"] } },
            "sysctls": ["net.core.somaxconn=9", "kernel.shmmax=1"],
        }));
        assert_eq!(namespace.moved().collect::<Vec<_>>(), ["ports", "hostname", "networks"]);
        assert!(namespace.moves_sysctls());
        assert_eq!(Value::from(namespace.sysctls.clone()), json!({ "kernel.shmmax": "1" }));
        let settings = json!({ "ports": ["80:80"], "hostname": "a", "sysctls": { "net.core.somaxconn": "9" } });
        assert_eq!(Value::from(namespace.settings.clone()), settings);
        let joined = namespace.joined(&["a".to_owned(), "b".to_owned()], Some("o"));
        let expected =
            json!({ "n": { "aliases": ["a", "b"] }, "m": { "aliases": ["b", "a"] }, "o": { "aliases": ["a", "b"] } });
        assert_eq!(Value::from(joined), expected);
    }

    #[test]
    fn a_service_that_says_nothing() {
        let namespace = read(json!({ "image": "x" }));
        assert_eq!((namespace.moved().count(), namespace.moves_sysctls()), (0, false));
        assert_eq!(Value::from(namespace.joined(&["a".to_owned()], None)), json!({ "default": { "aliases": ["a"] } }));
        let listed = read(json!({ "networks": ["n"] }));
        assert_eq!(Value::from(listed.networks), json!({ "n": null }));
    }
}
