//! The annotations of a pod template: every setting of the sidecar that a workload may have for itself, and a few of the
//! injection.

use serde_json::Value;

/// Begins every annotation of ours.
pub const PREFIX: &str = "weft.mesh/";
/// `false`: this workload stays out of the mesh.
pub const INJECT: &str = "weft.mesh/inject";
/// `transparent` or `explicit`.
pub const MODE: &str = "weft.mesh/mode";
/// Written by the injection: `VERSION, MODE, SERVICE`.
pub const INJECTED: &str = "weft.mesh/injected";

/// A setting of the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The annotation, without prefix.
    pub name: &'static str,
    /// Its flag, without dashes.
    pub flag: &'static str,
    /// Its variable.
    pub variable: &'static str,
}

const fn setting(flag: &'static str, variable: &'static str) -> Setting {
    Setting { name: flag, flag, variable }
}

/// Several values in one annotation, or a word that says enough on a pod.
const fn named(name: &'static str, flag: &'static str, variable: &'static str) -> Setting {
    Setting { name, flag, variable }
}

/// What a workload may set for its sidecar.
pub const SETTINGS: &[Setting] = &[
    setting("control-plane", "WEFT_CONTROL_PLANE"),
    setting("trust-domain", "WEFT_TRUST_DOMAIN"),
    setting("service", "WEFT_SERVICE"),
    named("ports", "port", "WEFT_PORTS"),
    setting("labels", "WEFT_LABELS"),
    named("version", "app-version", "WEFT_APP_VERSION"),
    setting("weight", "WEFT_WEIGHT"),
    setting("region", "WEFT_REGION"),
    setting("zone", "WEFT_ZONE"),
    setting("app-address", "WEFT_APP_ADDRESS"),
    named("upstreams", "upstream", "WEFT_UPSTREAMS"),
    setting("workers", "WEFT_WORKERS"),
    setting("drain", "WEFT_DRAIN"),
    setting("on-demand-wait", "WEFT_ON_DEMAND_WAIT"),
    setting("on-demand-idle", "WEFT_ON_DEMAND_IDLE"),
    setting("health-check", "WEFT_HEALTH_CHECK"),
    setting("access-log", "WEFT_ACCESS_LOG"),
    setting("access-log-format", "WEFT_ACCESS_LOG_FORMAT"),
    setting("log", "WEFT_LOG"),
    setting("log-format", "WEFT_LOG_FORMAT"),
    setting("dns", "WEFT_DNS"),
    setting("dns-servers", "WEFT_DNS_SERVERS"),
    setting("probes", "WEFT_PROBES"),
    setting("probe-source", "WEFT_PROBE_SOURCE"),
];

/// Flags of the sidecar that no workload sets, and who does.
pub const FIXED: &[(&str, &str)] = &[
    ("join-token-file", "the projected service-account token"),
    ("ca-file", "the ConfigMap `weft-root`, projected beside the token"),
    ("namespace", "the pod's own, by the downward API"),
    ("data-dir", "a volume in memory"),
    ("outbound", "the rules and the proxy variables name its port"),
    ("inbound", "other sidecars and the rules name its port"),
    ("admin", "loopback"),
    ("metrics", "the pod's probes name its port"),
    ("address", "the pod's own, by the downward API"),
    ("transparent", "follows from `weft.mesh/mode`"),
    ("mark", "in a pod the sidecar's user tells its packets"),
];

/// Flags of `weft-sidecar init`, and annotations of transparent mode.
pub const RULES: &[&str] = &[
    "exclude-inbound-ports",
    "exclude-outbound-ports",
    "exclude-outbound-ranges",
    "include-inbound-ports",
    "include-outbound-ports",
    "include-outbound-ranges",
];

/// Flags of `weft-sidecar init` that no workload sets, and why.
pub const FIXED_RULES: &[(&str, &str)] = &[
    ("backend", "the image has what it needs"),
    ("tools", "the image has what it needs"),
    ("uid", "the sidecar's user in its image"),
    ("only-uid", "everybody's connections are redirected"),
    ("capture-dns", "the resolvers of /etc/resolv.conf"),
    ("no-dns", "set `weft.mesh/dns: \"off\"`"),
    ("no-ipv6", "both are redirected where there are both"),
    ("dry-run", "the rules are wanted"),
    ("remove", "the rules are wanted"),
];

/// Annotations that the injection itself obeys, and what they are for.
pub const OWN: &[(&str, &str)] = &[
    ("inject", "`false`: this workload stays out of the mesh. Default: `true`."),
    (
        "mode",
        "`transparent`: rules redirect what flows; `explicit`: proxy variables, no privilege. Default: as `--mode`.",
    ),
    ("cpu-request", "CPU that the sidecar asks for. Default: `10m`."),
    ("cpu-limit", "Most CPU of the sidecar. Default: none."),
    ("memory-request", "Memory that the sidecar asks for. Default: `32Mi`."),
    ("memory-limit", "Most memory of the sidecar. Default: `256Mi`."),
    ("injected", "Written by the injection; do not set it."),
];

/// The value of an annotation, given its name without prefix.
pub(super) fn get<'a>(template: &'a Value, name: &str) -> Option<&'a str> {
    template["metadata"]["annotations"].get(format!("{PREFIX}{name}")).and_then(Value::as_str)
}

/// `(annotation, flag, value)` of what is set.
pub(super) fn settings(template: &Value) -> Vec<(String, &'static str, String)> {
    let set = |setting: &Setting| {
        let value = get(template, setting.name)?;
        Some((format!("{PREFIX}{}", setting.name), setting.flag, value.to_owned()))
    };
    SETTINGS.iter().filter_map(set).collect()
}

/// Every name without prefix.
fn known() -> impl Iterator<Item = &'static str> {
    OWN.iter().map(|(name, _)| *name).chain(RULES.iter().copied()).chain(SETTINGS.iter().map(|setting| setting.name))
}

/// `(name, problem, hint)` of each annotation that cannot be obeyed.
pub(super) fn check(template: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (key, value) in template["metadata"]["annotations"].as_object().into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        if !known().any(|known| known == name) {
            found.push((key.clone(), format!("unknown annotation `{key}`"), hint(name)));
        } else if !value.is_string() {
            found.push((key.clone(), format!("{value} is not text"), "put it in quotes".to_owned()));
        }
    }
    let choice = |name: &str, words: [&str; 2]| {
        let text = get(template, name)?;
        let problem = format!("`{text}` is not allowed here");
        let hint = format!("`{}` or `{}`", words[0], words[1]);
        (!words.contains(&text)).then(|| (format!("{PREFIX}{name}"), problem, hint))
    };
    found.extend(choice("inject", ["true", "false"]));
    found.extend(choice("mode", ["transparent", "explicit"]));
    found
}

fn hint(name: &str) -> String {
    if let Some((_, who)) = FIXED.iter().find(|(flag, _)| *flag == name) {
        return format!("no workload sets it: {who}");
    }
    let near = known()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate);
    let part = || known().find(|candidate| candidate.starts_with(name) || name.starts_with(candidate));
    match near.or_else(part) {
        Some(meant) => format!("did you mean `{PREFIX}{meant}`?"),
        None => format!("known: {}", known().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hints(annotations: Value) -> Vec<String> {
        let template = json!({ "metadata": { "annotations": annotations } });
        check(&template).into_iter().map(|(key, problem, hint)| format!("{key}: {problem}; {hint}")).collect()
    }

    #[test]
    fn what_cannot_be_obeyed_is_told() {
        assert!(
            hints(json!({ "weft.mesh/access-log": "all", "example.com/x": "y", "weft.mesh/inject": "false" }))
                .is_empty()
        );
        for (key, value, expected) in [
            ("weft.mesh/acces-log", json!("all"), "did you mean `weft.mesh/access-log`?"),
            ("weft.mesh/port", json!("80"), "did you mean `weft.mesh/ports`?"),
            ("weft.mesh/upstream", json!("80"), "did you mean `weft.mesh/upstreams`?"),
            ("weft.mesh/memory", json!("80"), "did you mean `weft.mesh/memory-request`?"),
            ("weft.mesh/inbound", json!("80"), "no workload sets it"),
            ("weft.mesh/frobnicate", json!("80"), "known: inject, mode"),
            ("weft.mesh/weight", json!(5), "put it in quotes"),
            ("weft.mesh/mode", json!("tproxy"), "`transparent` or `explicit`"),
            ("weft.mesh/inject", json!("no"), "`true` or `false`"),
        ] {
            let found = hints(json!({ key: value }));
            assert!(found.len() == 1 && found[0].contains(expected), "{key}: {found:?}");
        }
    }
}
