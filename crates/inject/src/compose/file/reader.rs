//! One service of a compose document, in each of the forms that compose takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Map, Value};

use super::Service;
use crate::compose::{
    InjectError,
    namespace::Namespace,
    ports::{self, Found},
    words,
};

/// One service of the document.
pub struct Reader<'a> {
    /// Its name.
    pub name: &'a str,
    /// What the document has under it.
    pub service: &'a Map<String, Value>,
}

impl Reader<'_> {
    /// Reads it.
    pub fn read(&self) -> Result<Service, InjectError> {
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
            variables: environment.into_iter().filter(|(name, _)| name.starts_with(VARIABLES)).collect(),
            privileged: self.service.get("privileged") == Some(&Value::Bool(true)),
            cap_add: self.capabilities("cap_add"),
            cap_drop: self.capabilities("cap_drop"),
            namespace: Namespace::read(self.service),
            profiles: self.list("profiles"),
            restart: self.text("restart"),
            replicas: self.replicas(),
            waits_for_the_end_of: self.waits(),
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

    fn list(&self, field: &str) -> Vec<String> {
        self.service.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(scalar).collect()
    }

    fn capabilities(&self, field: &str) -> BTreeSet<String> {
        let plain = |name: String| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
        self.list(field).into_iter().map(plain).collect()
    }

    /// `scale`, or the newer way to say it.
    fn replicas(&self) -> u64 {
        let deployed = self.service.get("deploy").and_then(|deploy| deploy.get("replicas"));
        let count = |value: &Value| scalar(value)?.parse().ok();
        self.service.get("scale").or(deployed).and_then(count).unwrap_or(1)
    }

    fn waits(&self) -> BTreeSet<String> {
        let ends = |on: Option<&Value>| {
            on.and_then(|on| on.get("condition")).and_then(Value::as_str) == Some("service_completed_successfully")
        };
        let all = entries(self.service.get("depends_on")).into_iter().filter(|(_, on)| ends(*on));
        all.map(|(name, _)| name).collect()
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
pub fn entries(value: Option<&Value>) -> Vec<(String, Option<&Value>)> {
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

/// Where names of variables begin that are the sidecar's settings.
const VARIABLES: &str = "WEFT_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("1h1m1s"), Some(3661.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("0s"), Some(0.0));
        assert_eq!((seconds("10"), seconds("s"), seconds("")), (None, None, None));
    }
}
