//! `weft check`: what the control plane says of the mesh, and a call to each service that proves it.

mod call;
mod mesh;
mod report;

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context, Result, bail};
use clap::Args;
use time::OffsetDateTime;
use weft_proto::weft::v1::{CreateTokenRequest, ListRequest, StatusRequest, StatusResponse, WorkloadStatus};

use self::{
    call::{Callee, Plain, Unproved},
    mesh::Settings,
    report::{Finding, Level, Report},
};
use super::certificate::{self, Issued};
use crate::{
    credential::{Client, Connection},
    failure::Failure,
    output::{self, Format},
};

/// Prove the mesh: sidecars, configuration, and calls that show both identities.
///
/// Lists every sidecar (state, configuration, certificate), and what the configuration leaves
/// open. Then calls one workload of each service as another sidecar would, with an identity
/// that the control plane gives it for a minute: both identities, TLS version, key exchange and
/// cipher are printed. It also says something in plain text to the same sidecar, which must
/// refuse it, and to the application's own port, which should not be reachable.
///
/// Without --to no service gets a request: the handshake alone proves both sides. With --to,
/// `GET PATH` is sent to each workload of that service that speaks HTTP.
///
/// It must run where sidecars can be reached: on Linux the host of a Docker engine can,
/// elsewhere run it in a container of the same network, from the image weft.
///
/// Examples:
///   weft check
///   weft check --from web --to orders:80 --path /healthz
///   weft check --strict -o json
///
/// Exit code 0: nothing failed (with --strict: nor was there a warning), 1: something failed or
/// could not be proved.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Send a request to this service only: NAME, NAME.NAMESPACE, with :PORT where one of several is meant.
    #[arg(long, value_name = "NAME[:PORT]")]
    to: Option<String>,
    /// Call with an identity as this service has it [default: one of its own, weft-check].
    #[arg(long, visible_alias = "service", value_name = "NAME")]
    from: Option<String>,
    /// Path of the request.
    #[arg(long, default_value = "/", value_name = "PATH", requires = "to")]
    path: String,
    /// While services move in: a Mesh that permits plain text is a warning, no failure.
    #[arg(long)]
    permissive: bool,
    /// A warning is a failure.
    #[arg(long)]
    strict: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Who calls when nobody is named.
const OWN: &str = "weft-check";
/// Life of the token that gives the identity.
const TOKEN_SECONDS: u32 = 60;
/// Most services that are called, and most workloads of one.
const MOST_CALLS: usize = 64;

/// Checks.
///
/// # Errors
/// As the exit codes of `weft --help` say; when something failed, after everything was printed.
pub async fn run(connection: &Connection, options: Options) -> Result<(), Failure> {
    let mut client = connection.open()?;
    let status = client.status(StatusRequest {}).await?.into_inner();
    let resources = client.list(ListRequest::default()).await?.into_inner().resources;
    let settings = Settings::of(&resources);
    let mut report = Report {
        control_plane: status.control_plane_version.clone(),
        revision: status.revision,
        trust_domain: status.trust_domain.clone(),
        findings: mesh::sidecars(&status, OffsetDateTime::now_utc()),
        ..Report::default()
    };
    report.findings.extend(settings.findings(options.permissive));
    let callees = callees(&status, options.to.as_deref())?;
    if callees.is_empty() {
        let next = "a workload serves a port when its sidecar has `--port` and is READY";
        report.findings.push(Finding::fail("nothing to call: no ready workload serves a port", next));
    } else {
        let address = connection.credential()?.grpc;
        let issued = identity(&mut client, &address, &status, options.from.as_deref()).await?;
        for callee in &callees {
            let path = options.to.as_ref().map(|_| options.path.as_str());
            prove(&mut report, &issued, callee, path, &settings).await;
        }
    }
    match options.output {
        Format::Table => output::print(&report.text())?,
        format => output::print_value(format, &report)?,
    }
    match (report.count(Level::Fail), report.count(Level::Warn)) {
        (0, 0) => Ok(()),
        (0, _) if !options.strict => Ok(()),
        (0, warnings) => Err(anyhow::anyhow!("{warnings} warnings, and --strict makes them failures").into()),
        (failed, _) => Err(anyhow::anyhow!("{failed} of the checks failed").into()),
    }
}

/// An identity of a service that registered, or of one that has no workload.
async fn identity(
    client: &mut Client,
    address: &str,
    status: &StatusResponse,
    from: Option<&str>,
) -> Result<Issued, Failure> {
    let (namespace, account) = match from {
        None => ("default".to_owned(), OWN.to_owned()),
        Some(name) => {
            let wanted = Name::parse("--from", name)?;
            // One that only calls is a sidecar, and no workload that could be called.
            let id = format!("{}/{}/", wanted.namespace, wanted.service);
            let sidecars = status.sidecars.iter().map(|sidecar| (&sidecar.id, &sidecar.identity));
            let workloads = status.workloads.iter().map(|workload| (&workload.id, &workload.identity));
            let (_, identity) = (workloads.chain(sidecars).find(|(other, _)| other.starts_with(&id)))
                .with_context(|| format!("--from {name}: {}", known(status)))?;
            // `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`
            let account = identity.rsplit('/').next().unwrap_or(&wanted.service).to_owned();
            (wanted.namespace, account)
        }
    };
    let request = CreateTokenRequest { namespace, service_account: account, uses: 1, ttl_seconds: TOKEN_SECONDS };
    let token = client.create_token(request).await?.into_inner().token;
    certificate::issue(address, &token).await
}

/// A service as users write it.
struct Name {
    namespace: String,
    service: String,
    port: Option<u16>,
}

impl Name {
    fn parse(flag: &str, text: &str) -> Result<Self> {
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => {
                (name, Some(port.parse().with_context(|| format!("{flag} {text}: `{port}` is no port"))?))
            }
        };
        let (service, namespace) = name.split_once('.').unwrap_or((name, "default"));
        if service.is_empty() || namespace.is_empty() {
            bail!("{flag} {text}: write NAME or NAME.NAMESPACE");
        }
        Ok(Self { namespace: namespace.to_owned(), service: service.to_owned(), port })
    }

    fn is_of(&self, workload: &WorkloadStatus) -> bool {
        workload.namespace == self.namespace && workload.service == self.service
    }
}

fn known(status: &StatusResponse) -> String {
    let ids = status.workloads.iter().map(|workload| &workload.id).chain(status.sidecars.iter().map(|s| &s.id));
    let name = |id: &String| {
        let mut parts = id.split('/');
        Some(format!("{1}.{0}", parts.next()?, parts.next()?))
    };
    let names: BTreeSet<String> = ids.filter_map(name).collect();
    if names.is_empty() {
        return "no workload is registered".to_owned();
    }
    format!("no sidecar of that name is there, but {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// One workload of each service, or all of the one that is named.
fn callees(status: &StatusResponse, to: Option<&str>) -> Result<Vec<Callee>> {
    let wanted = to.map(|to| Name::parse("--to", to)).transpose()?;
    if let Some(name) = wanted.as_ref().filter(|name| !status.workloads.iter().any(|workload| name.is_of(workload))) {
        bail!("--to {}.{}: {}", name.service, name.namespace, known(status));
    }
    let mut callees = Vec::new();
    let mut seen = BTreeSet::new();
    for workload in status.workloads.iter().filter(|workload| workload.state == "READY") {
        if wanted.as_ref().is_some_and(|name| !name.is_of(workload)) {
            continue;
        }
        if wanted.is_none() && !seen.insert((&workload.namespace, &workload.service)) {
            continue;
        }
        for port in &workload.ports {
            let number = u16::try_from(port.port).context("a port of the control plane's answer")?;
            if callees.len() < MOST_CALLS
                && wanted.as_ref().and_then(|name| name.port).is_none_or(|wanted| wanted == number)
            {
                callees.push(callee(workload, port, number)?);
            }
        }
    }
    if let (true, Some(Name { port: Some(port), .. })) = (callees.is_empty(), &wanted) {
        bail!("--to {}: no ready workload of it serves port {port}", to.unwrap_or_default());
    }
    Ok(callees)
}

fn callee(workload: &WorkloadStatus, port: &weft_proto::weft::v1::PortStatus, number: u16) -> Result<Callee> {
    let address: SocketAddr = workload.address.parse().with_context(|| format!("address of {}", workload.id))?;
    Ok(Callee {
        workload: workload.id.clone(),
        namespace: workload.namespace.clone(),
        service: workload.service.clone(),
        address,
        identity: workload.identity.parse().with_context(|| format!("identity of {}", workload.id))?,
        port: number,
        protocol: port.protocol.clone(),
        app: SocketAddr::new(address.ip(), u16::try_from(port.app_port).unwrap_or(number)),
    })
}

async fn prove(report: &mut Report, issued: &Issued, callee: &Callee, path: Option<&str>, settings: &Settings) {
    let named = format!("port {} of {}", callee.port, callee.workload);
    match call::mutual(issued, callee, path).await {
        Ok(call) => {
            report.findings.push(answered(&named, &call));
            report.calls.push(call);
        }
        Err(Unproved::Unreachable(error)) => {
            let what = format!("{named}: {} cannot be reached from here: {error}", callee.address);
            return report.findings.push(Finding::fail(what, UNREACHABLE));
        }
        Err(Unproved::Refused(error)) => {
            let what = format!("{named}: no mutual TLS with {} as {}: {error}", callee.address, callee.identity);
            let next = "the handshake failed: its sidecar's log names the reason. Does something else listen there?";
            report.findings.push(Finding::fail(what, next));
        }
    }
    // Where plain text is let in, it would reach the application: the Mesh has said so already.
    if !settings.permissive {
        report.findings.push(refused(&named, callee, call::plain(callee.address, &callee.service).await));
    }
    report.findings.extend(around(&named, callee).await);
}

/// How the call with an identity went.
fn answered(named: &str, call: &report::Call) -> Finding {
    let what = format!("{named}: both identities proved over {} with {}", call.tls, call.group);
    match &call.answer {
        Some(answer) if answer.contains("access_denied") => Finding::warn(
            format!("{what}; the request was refused: {answer}"),
            "a policy decides so for this identity: is it meant to? (`--from SERVICE` calls as another)",
        ),
        Some(answer) => Finding::pass(format!("{what}; answered {answer}")),
        None => Finding::pass(what),
    }
}

/// How plain text to the sidecar went.
fn refused(named: &str, callee: &Callee, plain: Plain) -> Finding {
    let address = callee.address;
    match plain {
        Plain::Refused(how) => Finding::pass(format!("{named}: plain text to {address} is refused ({how})")),
        Plain::Unreachable => Finding::fail(format!("{named}: {address} could not be reached again"), UNREACHABLE),
        Plain::Accepted(how) => Finding::fail(
            format!("{named}: {address} takes plain text ({how})"),
            "what listens there is not a sidecar in strict mode: whoever reaches it needs no identity",
        ),
    }
}

/// Whether the application can be reached without its sidecar.
async fn around(named: &str, callee: &Callee) -> Option<Finding> {
    // On this machine everything reaches it; that says nothing about others.
    if callee.app.ip().is_loopback() || callee.app == callee.address {
        return None;
    }
    Some(match call::plain(callee.app, &callee.service).await {
        Plain::Unreachable => {
            Finding::pass(format!("{named}: its application's {} takes no connection from here", callee.app))
        }
        Plain::Refused(how) => Finding::pass(format!("{named}: plain text to {} is refused ({how})", callee.app)),
        Plain::Accepted(how) => Finding::warn(
            format!("{named}: its application answers plain text at {} ({how})", callee.app),
            "whoever reaches that port goes round the mesh: let the application listen on 127.0.0.1, or use transparent \
             mode, which leads that port through the sidecar",
        ),
    })
}

const UNREACHABLE: &str = "run `weft check` where the sidecars are, as a container of their network from the image weft:\n\
                           docker run --rm --network NETWORK --volume FOLDER/operator.json:/operator.json:ro \\\n\
                           \x20   weft:VERSION check --credential /operator.json --control-plane HOST:15010\n\
                           in a cluster of Kubernetes: kubectl apply -k deploy/kubernetes/check (docs/kubernetes.md)";

#[cfg(test)]
mod tests {
    use weft_proto::weft::v1::PortStatus;

    use super::*;

    fn workload(id: &str, state: &str, ports: &[u32]) -> WorkloadStatus {
        let mut parts = id.split('/').map(str::to_owned);
        WorkloadStatus {
            id: id.to_owned(),
            namespace: parts.next().unwrap_or_default(),
            service: parts.next().unwrap_or_default(),
            address: "10.0.0.1:15006".into(),
            state: state.to_owned(),
            identity: "spiffe://weft.local/ns/default/sa/web".into(),
            ports: ports.iter().map(|&port| PortStatus { port, app_port: 8080, ..PortStatus::default() }).collect(),
            ..WorkloadStatus::default()
        }
    }

    #[test]
    fn one_workload_of_each_service_is_called_or_all_of_one() {
        let status = StatusResponse {
            workloads: vec![
                workload("default/web/a", "UNHEALTHY", &[80]),
                workload("default/web/b", "READY", &[80, 81]),
                workload("default/web/c", "READY", &[80]),
                workload("shop/orders/a", "READY", &[80]),
                workload("default/job/a", "READY", &[]),
            ],
            ..StatusResponse::default()
        };
        let called = |to: Option<&str>| -> Vec<String> {
            let callees = callees(&status, to).unwrap();
            callees.iter().map(|callee| format!("{}:{}", callee.workload, callee.port)).collect()
        };
        assert_eq!(called(None), ["default/web/b:80", "default/web/b:81", "shop/orders/a:80"]);
        assert_eq!(called(Some("web:80")), ["default/web/b:80", "default/web/c:80"]);
        assert_eq!(called(Some("orders.shop")), ["shop/orders/a:80"]);
        let refused = |to: &str| callees(&status, Some(to)).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(refused("gone").contains("job.default, orders.shop, web.default"), "{}", refused("gone"));
        assert!(refused("web:82").contains("port 82"));
        assert!(refused("web:x").contains("`x` is no port"));
    }
}
