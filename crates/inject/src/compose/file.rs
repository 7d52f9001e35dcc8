//! A compose file, as far as sidecars care.
//!
//! Takes what `docker compose config` prints, in which everything is resolved, as well as a file as it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    InjectError,
    ports::{self, Found},
    words,
};

/// A compose project.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// One service of the document.
struct Reader<'a> {
    name: &'a str,
    service: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn read(&self) -> Result<Service, InjectError> {
        let environment: BTreeMap<String, String> = pairs(self.service.get("environment"), '=');
        let no_proxy = ["NO_PROXY", "no_proxy"].iter().find_map(|name| environment.get(*name)).cloned();
        Ok(Service {
            name: self.name.to_owned(),
            image: self.text("image"),
            builds: self.service.contains_key("build"),
            entrypoint: self.command("entrypoint")?,
            command: self.command("command")?,
            user: self.text("user"),
            ports: self.ports()?,
            no_proxy,
            labels: pairs(self.service.get("labels"), '='),
            networks: self.networks(),
            network_mode: self.text("network_mode"),
            links: self.links(),
            extra_hosts: self.extra_hosts(),
            container_name: self.text("container_name"),
            read_only: self.service.get("read_only") == Some(&Value::Bool(true)),
            healthcheck: self.service.get("healthcheck").is_some_and(|check| !check.is_null()),
            stop_grace_period: self.grace()?,
            stop_signal: self.text("stop_signal"),
        })
    }

    fn place(&self, field: &str) -> String {
        format!("services.{}.{field}", self.name)
    }

    fn text(&self, field: &str) -> Option<String> {
        self.service.get(field).and_then(scalar)
    }

    fn command(&self, field: &str) -> Result<Option<Vec<String>>, InjectError> {
        match self.service.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(words)) => Ok(Some(words.iter().filter_map(scalar).collect())),
            Some(text) => {
                let text = scalar(text).unwrap_or_default();
                let words = words::split(&text).ok_or_else(|| {
                    InjectError::new(self.place(field), "a quote is not closed", "write it as a list of words")
                })?;
                Ok(Some(words))
            }
        }
    }

    fn ports(&self) -> Result<Vec<Found>, InjectError> {
        let list = |field| self.service.get(field).and_then(Value::as_array).into_iter().flatten();
        let mut found = Vec::new();
        for port in list("ports") {
            found.extend(ports::published(&self.place("ports"), port)?);
        }
        for port in list("expose") {
            found.extend(ports::exposed(&self.place("expose"), &scalar(port).unwrap_or_default())?);
        }
        Ok(found)
    }

    fn networks(&self) -> BTreeMap<String, Vec<String>> {
        let aliases = |network: Option<&Value>| {
            let aliases = network.and_then(|network| network.get("aliases")).and_then(Value::as_array);
            aliases.into_iter().flatten().filter_map(scalar).collect()
        };
        let networks = entries(self.service.get("networks"));
        networks.into_iter().map(|(name, network)| (name, aliases(network))).collect()
    }

    fn links(&self) -> Vec<(String, String)> {
        let links = self.service.get("links").and_then(Value::as_array).into_iter().flatten().filter_map(scalar);
        let named = links.map(|link| match link.split_once(':') {
            Some((service, alias)) => (service.to_owned(), alias.to_owned()),
            None => (link.clone(), link),
        });
        named.collect()
    }

    fn extra_hosts(&self) -> BTreeSet<String> {
        match self.service.get("extra_hosts") {
            Some(Value::Object(hosts)) => hosts.keys().cloned().collect(),
            Some(Value::Array(hosts)) => {
                let name = |host: &Value| scalar(host)?.split([':', '=']).next().map(str::to_owned);
                hosts.iter().filter_map(name).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    fn grace(&self) -> Result<Option<Duration>, InjectError> {
        let Some(text) = self.text("stop_grace_period") else { return Ok(None) };
        match duration(&text) {
            Some(grace) => Ok(Some(grace)),
            None => Err(InjectError::new(
                self.place("stop_grace_period"),
                format!("`{text}` is not a time"),
                "write numbers and units, as in 1m30s",
            )),
        }
    }
}

fn needs_compose(place: &str) -> InjectError {
    InjectError::new(
        place,
        "only compose itself can resolve this",
        "install the docker compose plugin, and run this again",
    )
}

/// Compose's durations: `1h5m30s20ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut number) = (Duration::ZERO, String::new());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char.is_ascii_digit() || char == '.' {
            number.push(char);
            continue;
        }
        let seconds = match (char, chars.peek()) {
            ('m', Some('s')) => {
                chars.next();
                0.001
            }
            ('u', Some('s')) => {
                chars.next();
                0.000_001
            }
            ('h', _) => 3600.0,
            ('m', _) => 60.0,
            ('s', _) => 1.0,
            _ => return None,
        };
        let value: f64 = std::mem::take(&mut number).parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
    }
    (number.is_empty() && !text.is_empty()).then_some(total)
}

/// A list of names, or a map whose values may be null.
fn entries(value: Option<&Value>) -> Vec<(String, Option<&Value>)> {
    match value {
        Some(Value::Array(names)) => names.iter().filter_map(|name| Some((scalar(name)?, None))).collect(),
        Some(Value::Object(map)) => map.iter().map(|(name, value)| (name.clone(), Some(value))).collect(),
        _ => Vec::new(),
    }
}

/// A map, or a list of `key=value`.
fn pairs(value: Option<&Value>, between: char) -> BTreeMap<String, String> {
    match value {
        Some(Value::Object(map)) => {
            map.iter().map(|(key, value)| (key.clone(), scalar(value).unwrap_or_default())).collect()
        }
        Some(Value::Array(list)) => {
            let pair = |text: String| match text.split_once(between) {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (text, String::new()),
            };
            list.iter().filter_map(scalar).map(pair).collect()
        }
        _ => BTreeMap::new(),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) => Some(on.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
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
                     environment: [no_proxy=x], stop_grace_period: 1m30s }, b: {} }";
        let long = r#"{"services": {"a": {"image": "x", "command": ["sh", "-c", "exit 3"],
            "ports": [{"target": 80, "published": "8080", "protocol": "tcp"}], "expose": ["9000"],
            "labels": {"weft.mesh/inject": "false"}, "networks": {"n": null}, "links": ["b:c"], "entrypoint": null,
            "extra_hosts": ["h=1.2.3.4"], "environment": {"no_proxy": "x"}, "stop_grace_period": "1m30s"}, "b": {}}}"#;
        let (short, long) = (Project::read(short, false).unwrap(), Project::read(long, true).unwrap());
        assert_eq!(short, long);
        let a = short.service("a").unwrap();
        assert_eq!(a.stop_grace_period, Some(Duration::from_secs(90)));
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

    #[test]
    fn times() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("1h1m1s"), Some(3661.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("0s"), Some(0.0));
        assert_eq!((seconds("10"), seconds("s"), seconds("")), (None, None, None));
    }
}
