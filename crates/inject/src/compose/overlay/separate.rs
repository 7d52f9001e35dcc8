//! A service that stays as it is, with two containers beside it: one that owns the network namespace, and the sidecar.
//!
//! ```text
//! orders-weft-net   names, networks, published ports; sets the rules, if any, then only waits
//!   ├─ orders-weft  the sidecar
//!   └─ orders       the team's own container
//! ```

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use serde_yaml::value::{Tag, TaggedValue};

use super::{
    CONTROL_PLANE, INIT, SIDECAR, comma,
    environment::{self, EXCLUDED, hosts, redirect},
    image, secret,
};
use crate::compose::{
    namespace::Namespace,
    plan::{Form, Meshed, OWN_NETWORK, Options, Plan, Separate, owner as owner_of},
};

/// Owns the network namespace.
pub fn owner(meshed: &Meshed, separate: &Separate, plan: &Plan, options: &Options) -> Value {
    let mut owner = json!({
        "image": image(options, if meshed.redirect.is_some() { INIT } else { SIDECAR }),
        "command": ["pause"],
        "restart": separate.restart,
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "networks": separate.namespace.joined(&separate.names, plan.own_network.then_some(OWN_NETWORK)),
    });
    for (name, value) in &separate.namespace.settings {
        owner[name.as_str()] = value.clone();
    }
    if let Some(links) = owner.get("links").and_then(Value::as_array) {
        owner["links"] = links.iter().map(|link| linked(link, plan)).collect();
    }
    let hosts = hosts(meshed);
    if !hosts.is_empty() {
        owner["extra_hosts"] = with_hosts(owner.get("extra_hosts"), hosts);
    }
    if let Some(published) = &meshed.redirect {
        owner["cap_add"] = json!(["NET_ADMIN"]);
        let own = separate.variables.get(EXCLUDED).map(String::as_str);
        let mut variables = of_the_team(separate);
        variables.extend(redirect(published, own));
        owner["environment"] = variables.into();
    }
    with_profiles(owner, separate)
}

/// The sidecar.
pub fn sidecar(meshed: &Meshed, separate: &Separate, options: &Options) -> Value {
    let mut variables = of_the_team(separate);
    variables.extend(environment::sidecar(meshed, DATA_AT, options));
    if meshed.redirect.is_some() {
        variables.insert("WEFT_TRANSPARENT".to_owned(), json!("true"));
    }
    let mut sidecar = json!({
        "image": image(options, SIDECAR),
        "network_mode": format!("service:{}", meshed.owner()),
        "restart": separate.restart,
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "environment": variables,
        "secrets": [secret(meshed)],
        "volumes": [{ "type": "volume", "source": volume(meshed), "target": DATA_AT }],
        "depends_on": { CONTROL_PLANE: { "condition": "service_healthy" } },
        "healthcheck": {
            "test": ["CMD", "/weft-sidecar", "wait", "--timeout", "1s"],
            "interval": "1s",
            "timeout": "3s",
            "retries": 60,
        },
    });
    if let Some(grace) = separate.grace {
        sidecar["stop_grace_period"] = json!(format!("{}ms", grace.as_millis()));
    }
    with_profiles(sidecar, separate)
}

/// What compose merges over the service itself.
pub fn application(meshed: &Meshed) -> Value {
    let mut application = json!({
        "network_mode": format!("service:{}", meshed.owner()),
        "depends_on": { meshed.sidecar(): { "condition": "service_healthy" } },
    });
    if meshed.redirect.is_none() {
        let no_proxy = comma(meshed.no_proxy.iter().map(String::as_str).chain(LOCAL).map(str::to_owned));
        let proxy = format!("http://{OUTBOUND}");
        application["environment"] = json!({
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            "WEFT_OUTBOUND": OUTBOUND,
        });
    }
    application
}

/// Takes away from the service what its namespace's owner has.
pub fn take_away(service: &mut serde_yaml::Value, namespace: &Namespace) {
    let tagged = |tag: &str, value| serde_yaml::Value::Tagged(Box::new(TaggedValue { tag: Tag::new(tag), value }));
    for name in namespace.moved() {
        service[name] = tagged("reset", serde_yaml::Value::Null);
    }
    if namespace.moves_sysctls() {
        service["sysctls"] = match namespace.sysctls.is_empty() {
            true => tagged("reset", serde_yaml::Value::Null),
            false => tagged("override", serde_yaml::to_value(&namespace.sysctls).unwrap_or_default()),
        };
    }
}

/// Where the state of its sidecar is kept.
pub fn volume(meshed: &Meshed) -> String {
    format!("weft-data-{}", meshed.service)
}

/// A link to a service whose network another container has leads to that container.
fn linked(link: &Value, plan: &Plan) -> Value {
    let text = link.as_str().unwrap_or_default();
    let (service, alias) = text.split_once(':').unwrap_or((text, text));
    let moved: BTreeSet<&str> = plan
        .meshed
        .iter()
        .filter(|meshed| matches!(meshed.form, Form::Separate(_)))
        .map(|meshed| meshed.service.as_str())
        .collect();
    if moved.contains(service) { json!(format!("{}:{alias}", owner_of(service))) } else { link.clone() }
}

/// In the form in which the service has them.
fn with_hosts(there: Option<&Value>, hosts: Map<String, Value>) -> Value {
    match there {
        Some(Value::Array(list)) => {
            let more =
                hosts.iter().map(|(name, address)| json!(format!("{name}={}", address.as_str().unwrap_or_default())));
            list.iter().cloned().chain(more).collect()
        }
        Some(Value::Object(map)) => map.clone().into_iter().chain(hosts).collect::<Map<_, _>>().into(),
        _ => hosts.into(),
    }
}

fn of_the_team(separate: &Separate) -> Map<String, Value> {
    separate.variables.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
}

fn with_profiles(mut service: Value, separate: &Separate) -> Value {
    if !separate.profiles.is_empty() {
        service["profiles"] = json!(separate.profiles);
    }
    service
}

/// As the image has it, with a volume there.
const DATA_AT: &str = "/data";
const OUTBOUND: &str = "127.0.0.1:15001";
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
