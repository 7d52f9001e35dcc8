//! What an image says about itself.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::words;

/// The parts of an image's configuration that matter here. Texts are as a compose file has them (`$` doubled).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub command: Vec<String>,
    /// USER; empty: root.
    pub user: String,
    /// EXPOSE, as in `80/tcp`.
    pub exposed: Vec<String>,
    /// It has a HEALTHCHECK.
    pub healthcheck: bool,
    /// STOPSIGNAL.
    pub stop_signal: Option<String>,
}

impl Image {
    /// Reads one image of `docker image inspect`.
    ///
    /// # Errors
    /// Not what the engine prints.
    pub fn read(json: &str) -> Result<Self, serde_json::Error> {
        let mut all: Vec<Inspected> = serde_json::from_str(json)?;
        let config = all.pop().and_then(|image| image.config).unwrap_or_default();
        let escaped = |words: Option<Vec<String>>| -> Vec<String> {
            words.unwrap_or_default().iter().map(|word| words::escape(word)).collect()
        };
        Ok(Self {
            entrypoint: escaped(config.entrypoint),
            command: escaped(config.cmd),
            user: config.user.unwrap_or_default(),
            exposed: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            healthcheck: config.healthcheck.is_some_and(|check| check.test.iter().flatten().any(|word| word != "NONE")),
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
        })
    }
}

#[derive(Deserialize)]
struct Inspected {
    #[serde(rename = "Config")]
    config: Option<Config>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    healthcheck: Option<Healthcheck>,
    stop_signal: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Healthcheck {
    test: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_inspect_prints() {
        let json = r#"[{"Id":"sha256:1","Config":{"User":"101","ExposedPorts":{"80/tcp":{},"53/udp":{}},"Env":["A=b"],
            "Cmd":["nginx","-g","daemon off; $x"],"Entrypoint":["/docker-entrypoint.sh"],"StopSignal":"SIGQUIT",
            "Healthcheck":{"Test":["CMD","true"]}}}]"#;
        let image = Image::read(json).unwrap();
        assert_eq!(image.entrypoint, ["/docker-entrypoint.sh"]);
        assert_eq!(image.command, ["nginx", "-g", "daemon off; $$x"]);
        assert_eq!((image.user.as_str(), image.healthcheck), ("101", true));
        assert_eq!(image.exposed, ["53/udp", "80/tcp"]);
        assert_eq!(image.stop_signal.as_deref(), Some("SIGQUIT"));
        let bare = r#"[{"Config":{"Cmd":null,"Entrypoint":null,"User":"","Healthcheck":{"Test":["NONE"]}}}]"#;
        assert_eq!(Image::read(bare).unwrap(), Image::default());
        assert!(Image::read("no such image").is_err());
    }
}
