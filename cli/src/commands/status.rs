//! `weft status`.

use clap::Args;
use weft_proto::weft::v1::{Nack, SidecarStatus, StatusRequest, StatusResponse, WatchStatus};

use crate::{
    credential::Client,
    failure::Failure,
    output::{self, Format, Table},
};

/// Show every sidecar: identity, what it acknowledged or refused and why, certificate expiry.
#[derive(Args)]
pub struct Options {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let status = client.status(StatusRequest {}).await?.into_inner();
    match options.output {
        Format::Table => output::print(&text(&status)),
        format => output::print_value(format, &json(&status)),
    }
}

fn text(status: &StatusResponse) -> String {
    let mut text = format!(
        "control plane {}  revision {}  trust domain {}\nissuer until {}  root until {}\n\n",
        status.control_plane_version, status.revision, status.trust_domain, status.issuer_expiry, status.root_expiry
    );
    let mut sidecars = Table::new(&["SIDECAR", "IDENTITY", "AGENT", "CONFIG", "RESOURCES", "CERTIFICATE UNTIL"]);
    for sidecar in &status.sidecars {
        sidecars.row([
            sidecar.id.clone(),
            sidecar.identity.clone(),
            sidecar.agent.clone(),
            config_state(sidecar, status.revision),
            resources(sidecar),
            sidecar.certificate_expiry.clone(),
        ]);
    }
    text.push_str(&if status.sidecars.is_empty() { "no sidecar is connected\n".to_owned() } else { sidecars.render() });
    for sidecar in &status.sidecars {
        for nack in &sidecar.nacks {
            text.push_str(&format!(
                "refused by {} at {}: {}: {}\n",
                sidecar.id,
                nack.time,
                nack.resources.join(", "),
                nack.message
            ));
        }
    }
    let mut workloads = Table::new(&["WORKLOAD", "ADDRESS", "STATE", "WEIGHT", "LABELS"]);
    for workload in &status.workloads {
        let labels: Vec<String> = workload.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        workloads.row([
            workload.id.clone(),
            workload.address.clone(),
            workload.state.clone(),
            workload.weight.to_string(),
            labels.join(","),
        ]);
    }
    text.push('\n');
    text.push_str(&if status.workloads.is_empty() {
        "no workload is registered\n".to_owned()
    } else {
        workloads.render()
    });
    text.push_str(&watches(&status.watches));
    text
}

/// How the control plane watches the API server, in Kubernetes.
fn watches(watches: &[WatchStatus]) -> String {
    if watches.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["KUBERNETES", "NAMESPACE", "STATE", "OBJECTS", "INVALID", "LISTED"]);
    for watch in watches {
        let namespace = if watch.namespace.is_empty() { "(all)" } else { &watch.namespace };
        table.row([
            watch.kind.clone(),
            namespace.to_owned(),
            watch.state.clone(),
            watch.objects.to_string(),
            watch.invalid.to_string(),
            watch.listed.clone(),
        ]);
    }
    let mut text = format!("\n{}", table.render());
    for watch in watches.iter().filter(|watch| !watch.message.is_empty()) {
        text.push_str(&format!("{}: {}\n", watch.kind, watch.message));
    }
    text
}

/// In step with the log, behind it, or refusing something.
fn config_state(sidecar: &SidecarStatus, revision: u64) -> String {
    let refused: u32 = sidecar.types.iter().map(|kind| kind.nacked).sum();
    match (refused, sidecar.acked_revision) {
        (0, acked) if acked >= revision => format!("{acked} ACK"),
        (0, acked) => format!("{acked} behind {}", revision - acked),
        (count, acked) => format!("{acked} NACK {count}"),
    }
}

fn resources(sidecar: &SidecarStatus) -> String {
    let acked: u32 = sidecar.types.iter().map(|kind| kind.acked).sum();
    let subscribed: u32 = sidecar.types.iter().map(|kind| kind.subscribed).sum();
    format!("{acked}/{}", subscribed.max(acked))
}

/// JSON of a NACK.
pub fn nack_json(nack: &Nack) -> serde_json::Value {
    serde_json::json!({
        "sidecar": nack.sidecar,
        "type": nack.type_url,
        "resources": nack.resources,
        "message": nack.message,
        "time": nack.time,
    })
}

fn json(status: &StatusResponse) -> serde_json::Value {
    serde_json::json!({
        "controlPlane": status.control_plane_version,
        "revision": status.revision,
        "trustDomain": status.trust_domain,
        "issuerExpiry": status.issuer_expiry,
        "rootExpiry": status.root_expiry,
        "sidecars": status.sidecars.iter().map(|sidecar| serde_json::json!({
            "id": sidecar.id,
            "identity": sidecar.identity,
            "agent": sidecar.agent,
            "connectedSince": sidecar.connected_since,
            "ackedRevision": sidecar.acked_revision,
            "certificateExpiry": sidecar.certificate_expiry,
            "types": sidecar.types.iter().map(|kind| serde_json::json!({
                "type": kind.type_url,
                "subscribed": kind.subscribed,
                "acked": kind.acked,
                "nacked": kind.nacked,
                "version": kind.version,
            })).collect::<Vec<_>>(),
            "nacks": sidecar.nacks.iter().map(nack_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "workloads": status.workloads.iter().map(|workload| serde_json::json!({
            "id": workload.id,
            "namespace": workload.namespace,
            "service": workload.service,
            "address": workload.address,
            "state": workload.state,
            "identity": workload.identity,
            "labels": workload.labels,
            "weight": workload.weight,
            "ports": workload.ports.iter().map(|port| serde_json::json!({
                "name": port.name,
                "port": port.port,
                "protocol": port.protocol,
                "appPort": port.app_port,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "watches": status.watches.iter().map(|watch| serde_json::json!({
            "kind": watch.kind,
            "namespace": watch.namespace,
            "state": watch.state,
            "objects": watch.objects,
            "invalid": watch.invalid,
            "listed": watch.listed,
            "message": watch.message,
        })).collect::<Vec<_>>(),
    })
}
