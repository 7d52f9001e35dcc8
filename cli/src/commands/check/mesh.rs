//! What the control plane says of the mesh: sidecars, and what the configuration leaves open. No I/O.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_proto::weft::v1::{Resource, SidecarStatus, StatusResponse, WorkloadStatus};

use super::report::Finding;

/// A certificate that is not renewed by then has missed its half-life by hours, with the default of a day.
const SOON: time::Duration = time::Duration::hours(2);

/// What of the configuration matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// There is a Mesh.
    pub written: bool,
    /// Plain text is let in.
    pub permissive: bool,
    /// Any identity may call what no policy names.
    pub open: bool,
    /// `HTTPRoute namespace/name` of those with a rule that has no time limit.
    pub endless: Vec<String>,
}

impl Settings {
    /// Reads them from the resources as they were applied.
    pub fn of(resources: &[Resource]) -> Self {
        let mut settings = Self { open: true, ..Self::default() };
        let mut limited = false;
        for resource in resources {
            let Ok(yaml) = serde_yaml::from_str::<serde_json::Value>(&resource.yaml) else {
                // The control plane has taken it; what this command cannot read it does not judge.
                continue;
            };
            let key = resource.key.clone().unwrap_or_default();
            let limit = |at: &str| yaml.pointer(at).is_some();
            match key.kind.as_str() {
                "Mesh" => {
                    settings.written = true;
                    settings.permissive = yaml.pointer("/spec/mtls/mode").is_some_and(|mode| mode == "permissive");
                    settings.open = yaml.pointer("/spec/defaultAccess").is_none_or(|access| access != "deny");
                    limited |= limit("/spec/defaults/timeouts/request");
                }
                "HTTPRoute" => {
                    let rules = yaml.pointer("/spec/rules").and_then(|rules| rules.as_array());
                    let endless = |rule: &serde_json::Value| rule.pointer("/timeouts/request").is_none();
                    if rules.is_none_or(|rules| rules.iter().any(endless)) {
                        settings.endless.push(format!("HTTPRoute {}/{}", key.namespace, key.name));
                    }
                }
                _ => {}
            }
        }
        // What a TrafficPolicy limits depends on its targets: only a limit for all is one for each route.
        if limited {
            settings.endless.clear();
        }
        settings
    }

    /// What they leave open. `moving_in`: plain text is told, and no failure.
    pub fn findings(&self, moving_in: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.permissive {
            let next = "once every caller has a sidecar: Mesh spec.mtls.mode: strict (its metric \
                        weft_tls_handshakes_total{result=\"plaintext\"} counts those that have none)";
            let what = "the Mesh is permissive: a workload takes plain text from whoever reaches it";
            findings.push(if moving_in { Finding::warn(what, next) } else { Finding::fail(what, next) });
        } else {
            findings.push(Finding::pass("the Mesh is strict: only callers that prove an identity"));
        }
        if self.open {
            findings.push(Finding::warn(
                "whatever has an identity of the mesh may call each service that no AccessPolicy names",
                if self.written { DENY_TOO } else { DENY },
            ));
        }
        if !self.endless.is_empty() {
            findings.push(Finding::warn(
                format!("no request timeout: {}", self.endless.join(", ")),
                "a caller waits as long as the callee likes: give the rule `timeouts: { request: 15s }`",
            ));
        }
        findings
    }
}

/// Where there is no Mesh yet.
const DENY: &str = "to allow only what policies name, write those first (docs/reference.md, AccessPolicy), then:\n\
                    weft apply --wait -f - <<'END'\n\
                    {apiVersion: weft.mesh/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {defaultAccess: deny}}\n\
                    END";

/// The Mesh is one resource: what it says besides must be kept.
const DENY_TOO: &str = "to allow only what policies name, write those first (docs/reference.md, AccessPolicy), then:\n\
                        weft get mesh -A -o yaml > mesh.yaml   # and in it, under spec:  defaultAccess: deny\n\
                        weft apply -f mesh.yaml --wait";

/// One finding for each workload, and for each sidecar without one.
pub fn sidecars(status: &StatusResponse, now: OffsetDateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    for workload in &status.workloads {
        let sidecar = status.sidecars.iter().find(|sidecar| sidecar.id == workload.id);
        findings.push(workload_finding(workload, sidecar, status.revision, now));
    }
    let alone = |sidecar: &&SidecarStatus| !status.workloads.iter().any(|workload| workload.id == sidecar.id);
    for sidecar in status.sidecars.iter().filter(alone) {
        findings.push(sidecar_finding(&sidecar.id, "connected", sidecar, status.revision, now));
    }
    if findings.is_empty() {
        findings.push(Finding::fail("no sidecar is connected", "start one: README.md shows how"));
    }
    findings
}

fn workload_finding(
    workload: &WorkloadStatus,
    sidecar: Option<&SidecarStatus>,
    revision: u64,
    now: OffsetDateTime,
) -> Finding {
    let id = &workload.id;
    match (workload.state.as_str(), sidecar) {
        ("READY", Some(sidecar)) => sidecar_finding(id, "READY", sidecar, revision, now),
        ("READY", None) => Finding::fail(
            format!("{id}: READY, but its sidecar has no configuration stream"),
            "its log says why (`cannot be reached`, `refused`): it goes on with what it had",
        ),
        ("DRAINING", _) => Finding::warn(format!("{id}: DRAINING"), "it is about to end and gets no new traffic"),
        ("UNHEALTHY", _) => Finding::fail(
            format!("{id}: UNHEALTHY"),
            "its application takes no connection on the port that `--port` names (is it running, and on 127.0.0.1?), or its \
             sidecar lacks what `/ready` at its metrics port says, as the rules of transparent mode",
        ),
        (state, _) => Finding::fail(
            format!("{id}: {state}"),
            "its sidecar has stopped speaking to the control plane: has it ended, or lost its network?",
        ),
    }
}

fn sidecar_finding(id: &str, state: &str, sidecar: &SidecarStatus, revision: u64, now: OffsetDateTime) -> Finding {
    if let Some(nack) = sidecar.nacks.first().filter(|_| sidecar.types.iter().any(|kind| kind.nacked > 0)) {
        let what = format!("{id}: {state}, refuses {}: {}", nack.resources.join(", "), nack.message);
        return Finding::fail(what, "what it had before stays in force; `weft history --diff` shows what has changed");
    }
    let until = OffsetDateTime::parse(&sidecar.certificate_expiry, &Rfc3339).ok();
    let expiry = &sidecar.certificate_expiry;
    let what = format!(
        "{id}: {state}, {}, configuration {}, certificate until {expiry}",
        sidecar.agent, sidecar.acked_revision
    );
    if until.is_some_and(|until| until <= now) {
        return Finding::fail(what, "it has expired: the sidecar's log says why it was not renewed");
    }
    if sidecar.acked_revision < revision {
        return Finding::warn(what, format!("the log stands at {revision}: try again in a second"));
    }
    // Those that live for less than a day are renewed at their half-life as well, and are no reason to worry.
    let lives = until.zip(OffsetDateTime::parse(&sidecar.connected_since, &Rfc3339).ok());
    if lives.is_some_and(|(until, since)| until - now < SOON && until - since > SOON * 2) {
        return Finding::warn(what, "it should have been renewed: the sidecar's log says why it was not");
    }
    Finding::pass(what)
}

#[cfg(test)]
mod tests {
    use weft_proto::weft::v1::{Nack, ResourceKey, TypeStatus};

    use super::{super::report::Level, *};

    fn resource(kind: &str, yaml: &str) -> Resource {
        let key = ResourceKey { kind: kind.into(), namespace: "default".into(), name: "x".into() };
        Resource { key: Some(key), yaml: yaml.into(), ..Resource::default() }
    }

    #[test]
    fn what_the_configuration_leaves_open_is_told() {
        let settings = Settings::of(&[]);
        assert_eq!(settings, Settings { open: true, ..Settings::default() });
        let levels = |settings: &Settings, moving_in| -> Vec<Level> {
            settings.findings(moving_in).iter().map(|finding| finding.level).collect()
        };
        assert_eq!(levels(&settings, false), [Level::Pass, Level::Warn]);

        let mesh = "spec: { mtls: { mode: permissive }, defaultAccess: deny }";
        let route = "spec: { rules: [{ timeouts: { request: 1s } }, { backendRefs: [] }] }";
        let settings = Settings::of(&[resource("Mesh", mesh), resource("HTTPRoute", route)]);
        assert!(settings.permissive && !settings.open);
        assert_eq!(settings.endless, ["HTTPRoute default/x"]);
        assert_eq!(levels(&settings, false), [Level::Fail, Level::Warn]);
        assert_eq!(levels(&settings, true), [Level::Warn, Level::Warn]);

        let mesh = "spec: { defaults: { timeouts: { request: 5s } } }";
        let settings = Settings::of(&[resource("HTTPRoute", route), resource("Mesh", mesh)]);
        assert!(settings.endless.is_empty(), "the Mesh limits all");
    }

    #[test]
    fn a_sidecar_that_is_behind_refuses_or_has_expired_is_told() {
        let now = OffsetDateTime::parse("2030-01-01T12:00:00Z", &Rfc3339).unwrap();
        let sidecar = |until: &str, acked, nacked| SidecarStatus {
            id: "default/web/a".into(),
            acked_revision: acked,
            connected_since: "2030-01-01T00:00:00Z".into(),
            certificate_expiry: until.into(),
            types: vec![TypeStatus { nacked, ..TypeStatus::default() }],
            nacks: vec![Nack { resources: vec!["r".into()], message: "no".into(), ..Nack::default() }],
            ..SidecarStatus::default()
        };
        let judge = |state: &str, sidecar: Option<SidecarStatus>| {
            let workload =
                WorkloadStatus { id: "default/web/a".into(), state: state.into(), ..WorkloadStatus::default() };
            let status = StatusResponse {
                revision: 3,
                sidecars: sidecar.into_iter().collect(),
                workloads: vec![workload],
                ..StatusResponse::default()
            };
            let findings = sidecars(&status, now);
            assert_eq!(findings.len(), 1, "{findings:?}");
            findings[0].level
        };
        assert_eq!(judge("READY", Some(sidecar("2030-01-02T00:00:00Z", 3, 0))), Level::Pass);
        assert_eq!(judge("READY", Some(sidecar("2030-01-02T00:00:00Z", 2, 0))), Level::Warn);
        assert_eq!(judge("READY", Some(sidecar("2030-01-02T00:00:00Z", 3, 1))), Level::Fail);
        assert_eq!(judge("READY", Some(sidecar("2030-01-01T11:59:59Z", 3, 0))), Level::Fail);
        assert_eq!(judge("READY", Some(sidecar("2030-01-01T13:00:00Z", 3, 0))), Level::Warn);
        assert_eq!(judge("READY", None), Level::Fail);
        assert_eq!(judge("UNHEALTHY", Some(sidecar("2030-01-02T00:00:00Z", 3, 0))), Level::Fail);
        assert_eq!(judge("DRAINING", None), Level::Warn);
        assert_eq!(sidecars(&StatusResponse::default(), now)[0].level, Level::Fail);
    }
}
