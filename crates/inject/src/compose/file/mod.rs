//! A compose file, as far as sidecars care.
//!
//! Takes what `docker compose config` prints, in which everything is resolved, as well as a file as it was written.

mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Map, Value};

use self::reader::{Reader, entries};
use super::{InjectError, namespace::Namespace, ports::Found};

/// A compose project.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// `name`, where it is known.
    pub name: Option<String>,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// Networks that the file names.
    pub networks: BTreeMap<String, Network>,
}

/// A network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Network {
    /// Without a way to the outside, and so without published ports.
    pub internal: bool,
}

/// A service. Texts are as a compose file has them: `$$` is a dollar sign.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: Option<String>,
    /// It has `build`.
    pub builds: bool,
    /// In place of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's.
    pub command: Option<Vec<String>>,
    /// In place of the image's.
    pub user: Option<String>,
    /// `ports` and `expose`.
    pub ports: Vec<Found>,
    /// NO_PROXY of its environment, where it is set.
    pub no_proxy: Option<String>,
    /// Settings of a sidecar in its environment: `WEFT_…`.
    pub variables: BTreeMap<String, String>,
    /// It may do everything.
    pub privileged: bool,
    /// Capabilities besides the engine's usual ones, without `CAP_`.
    pub cap_add: BTreeSet<String>,
    /// Capabilities that it must not have.
    pub cap_drop: BTreeSet<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Networks, each with the aliases of the service there; empty: the default network alone.
    pub networks: BTreeMap<String, Vec<String>>,
    /// `network_mode`.
    pub network_mode: Option<String>,
    /// `links`: service and the name by which it is called.
    pub links: Vec<(String, String)>,
    /// Names of `extra_hosts`.
    pub extra_hosts: BTreeSet<String>,
    /// `container_name`.
    pub container_name: Option<String>,
    /// Its root file system cannot be written.
    pub read_only: bool,
    /// It says something on health checks.
    pub healthcheck: bool,
    /// How long it may take to stop.
    pub stop_grace_period: Option<Duration>,
    /// The signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// What it says about its network, to be moved to another container.
    pub namespace: Namespace,
    /// Without one of these, it is not started.
    pub profiles: Vec<String>,
    /// When it is started again.
    pub restart: Option<String>,
    /// How many containers the file asks for.
    pub replicas: u64,
    /// Services whose successful end it waits for: jobs.
    pub waits_for_the_end_of: BTreeSet<String>,
}

impl Project {
    /// Reads a compose file, or what `docker compose config --format json` printed.
    ///
    /// # Errors
    /// Not a compose file, or one that only compose itself can resolve (`resolved`: it has done so).
    pub fn read(text: &str, resolved: bool) -> Result<Self, InjectError> {
        let unreadable = |problem: &dyn ToString| {
            InjectError::new(
                "the compose file",
                problem.to_string(),
                "`docker compose config` says what compose makes of it",
            )
        };
        let mut yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| unreadable(&error))?;
        yaml.apply_merge().map_err(|error| unreadable(&error))?;
        let document = serde_json::to_value(yaml).map_err(|error| unreadable(&error))?;
        let Some(services) = document.get("services").and_then(Value::as_object) else {
            return Err(unreadable(&"it has no services"));
        };
        if !resolved && document.get("include").is_some() {
            return Err(needs_compose("include"));
        }
        let read = services.iter().map(|(name, service)| {
            if !resolved && service.get("extends").is_some() {
                return Err(needs_compose(&format!("services.{name}.extends")));
            }
            Reader { name, service: service.as_object().unwrap_or(&Map::new()) }.read()
        });
        let networks = entries(document.get("networks")).into_iter().map(|(name, network)| {
            let internal =
                network.and_then(|network| network.get("internal")).is_some_and(|on| on == &Value::Bool(true));
            (name, Network { internal })
        });
        Ok(Self {
            name: document.get("name").and_then(Value::as_str).map(str::to_owned),
            services: read.collect::<Result<_, _>>()?,
            networks: networks.collect(),
        })
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }
}

impl Service {
    /// Networks that it is in; `default` where the file names none.
    #[must_use]
    pub fn joined(&self) -> BTreeSet<String> {
        if self.network_mode.is_some() {
            return BTreeSet::new();
        }
        match self.networks.is_empty() {
            true => BTreeSet::from([DEFAULT_NETWORK.to_owned()]),
            false => self.networks.keys().cloned().collect(),
        }
    }

    /// Every name under which others on its networks find it, its own first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let aliases = self.networks.values().flatten().chain(&self.container_name).cloned();
        let mut names = vec![self.name.clone()];
        for name in aliases {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

fn needs_compose(place: &str) -> InjectError {
    InjectError::new(
        place,
        "only compose itself can resolve this",
        "install the docker compose plugin, and run this again",
    )
}

/// The network of services that name none.
pub const DEFAULT_NETWORK: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = "services: { a: { image: x, command: sh -c 'exit 3', ports: ['8080:80'], expose: [9000], \
                     labels: ['weft.mesh/inject=false'], networks: [n], links: ['b:c'], extra_hosts: ['h:1.2.3.4'], \
                     environment: [no_proxy=x, WEFT_LOG=debug], stop_grace_period: 1m30s, cap_drop: [all], scale: 2 }, \
                     b: { depends_on: { a: { condition: service_completed_successfully } } } }";
        let long = r#"{"services": {"a": {"image": "x", "command": ["sh", "-c", "exit 3"],
            "ports": [{"target": 80, "published": "8080", "protocol": "tcp"}], "expose": ["9000"],
            "labels": {"weft.mesh/inject": "false"}, "networks": {"n": null}, "links": ["b:c"], "entrypoint": null,
            "extra_hosts": ["h=1.2.3.4"], "environment": {"no_proxy": "x", "WEFT_LOG": "debug"}, "stop_grace_period": "1m30s", "cap_drop": ["ALL"],
            "deploy": {"replicas": 2}}, "b": {"depends_on": {"a": {"condition": "service_completed_successfully"}}}}}"#;
        let (short, long) = (Project::read(short, false).unwrap(), Project::read(long, true).unwrap());
        let plain = |mut project: Project| {
            for service in &mut project.services {
                // As it is written, since it is only passed on.
                service.namespace = Namespace::default();
            }
            project
        };
        let (short, long) = (plain(short), plain(long));
        assert_eq!(short, long);
        let a = short.service("a").unwrap();
        assert_eq!(a.stop_grace_period, Some(Duration::from_secs(90)));
        assert_eq!((a.replicas, a.variables["WEFT_LOG"].as_str()), (2, "debug"));
        assert!(a.cap_drop.contains("ALL") && short.service("b").unwrap().waits_for_the_end_of.contains("a"));
        assert_eq!(a.links, [("b".to_owned(), "c".to_owned())]);
        assert_eq!(
            a.ports.iter().map(|port| (port.target, port.published)).collect::<Vec<_>>(),
            [(80, true), (9000, false)]
        );
        assert_eq!(short.service("b").unwrap().joined(), BTreeSet::from(["default".to_owned()]));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let error = |text: &str| Project::read(text, false).unwrap_err().to_string();
        assert!(error("a: [").contains("docker compose config"));
        assert!(error("x: 1").contains("no services"));
        assert!(error("include: [x]\nservices: {a: {}}").starts_with("include: "));
        assert!(error("services: {a: {extends: {service: b}}}").starts_with("services.a.extends: "));
        assert!(error("services: {a: {stop_grace_period: soon}}").contains("services.a.stop_grace_period: `soon`"));
        assert!(error("services: {a: {command: \"a 'b\"}}").contains("services.a.command"));
    }
}
