//! Labels of the team's services that say how they join the mesh.

use super::{InjectError, Port, Service, ports};

/// Where they begin.
pub const PREFIX: &str = "weft.mesh/";

/// What a service's labels ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `inject: "false"`.
    pub left_alone: bool,
    /// `service`: its name in the mesh.
    pub mesh: Option<String>,
    /// `version`: of the application.
    pub version: Option<String>,
    /// `ports`: in place of those that the file and the image have.
    pub ports: Option<Vec<Port>>,
    /// `app-address`: where the application listens, when that is not loopback or everywhere.
    pub app_address: Option<String>,
}

impl Labels {
    /// Reads them.
    ///
    /// # Errors
    /// An unknown label, or an unusable value.
    pub fn of(service: &Service) -> Result<Self, InjectError> {
        let mut labels = Self::default();
        for (key, value) in &service.labels {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let place = format!("services.{}.labels.{key}", service.name);
            match name {
                "inject" => {
                    labels.left_alone = match value.as_str() {
                        "false" => true,
                        "true" => false,
                        other => {
                            return Err(InjectError::new(
                                place,
                                format!("`{other}` is neither"),
                                "write \"true\" or \"false\"",
                            ));
                        }
                    }
                }
                "service" if is_name(value) => labels.mesh = Some(value.clone()),
                "service" => {
                    let remedy = "use at most 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit";
                    return Err(InjectError::new(place, format!("`{value}` is not a name"), remedy));
                }
                "version" => labels.version = Some(value.clone()),
                "ports" => labels.ports = Some(ports::labelled(&place, value)?),
                "app-address" => labels.app_address = Some(value.clone()),
                _ => {
                    let remedy = "there are inject, service, version, ports and app-address";
                    return Err(InjectError::new(place, "there is no such label", remedy));
                }
            }
        }
        Ok(labels)
    }
}

/// A DNS label, as names of services in the mesh are.
pub fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}
