//! `weft inject kubernetes`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, ValueEnum};
use weft_inject::kubernetes::{self, Mode, Output, What};
use weft_sidecar::settings::{Cli, Settings};

use crate::{commands::sources, failure::Failure, output};

/// Put a sidecar into the pods of Kubernetes manifests.
///
/// Reads YAML or JSON, one document or several, and writes YAML: Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs,
/// CronJobs and Pods, also inside of a List, get a native sidecar container, which needs Kubernetes 1.29 or later. All else
/// is handed on as it is. A second time changes nothing, and a newer version replaces what an older one added. What was
/// done is told on standard error; what cannot be done safely is refused, and then nothing is written.
///
/// Put the Services into the same input: the sidecar learns name and ports from the one whose selector takes the pod.
/// Annotations weft.mesh/… of a pod template set whatever a workload wants for itself; see docs/kubernetes.md.
///
/// Examples:
///   weft inject kubernetes app.yaml | kubectl apply -f -
///   kubectl kustomize overlays/production | weft inject kubernetes - | kubectl apply -f -
///   weft inject kubernetes --mode explicit app/    # no privilege: proxy variables instead of rules
///   weft inject kubernetes --remove app.yaml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// File, folder or - for standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Take the sidecars out again.
    #[arg(long)]
    remove: bool,
    /// Where the YAML goes; -: standard output.
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    output: PathBuf,
    /// How traffic comes to the sidecar, where no annotation says so.
    #[arg(long, value_enum, default_value_t = Way::Transparent)]
    mode: Way,
    /// Namespace of workloads that name none, as it will be when they are applied.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Address of the control plane's gRPC port.
    #[arg(long, value_name = "HOST:PORT", default_value = "weft-control-plane.weft-system.svc:15010")]
    mesh: String,
    /// Trust domain of the mesh, where it is not weft.local.
    #[arg(long, value_name = "NAME", default_value = "")]
    trust_domain: String,
    /// Before the names of Weft's images, as in registry.example/weft/.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    image_prefix: String,
    /// Version of Weft's images.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    image_version: String,
}

/// How traffic comes to the sidecar.
#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// Rules redirect it; an init container sets them and needs NET_ADMIN.
    Transparent,
    /// Proxy variables; no privilege.
    Explicit,
}

/// Runs `weft inject kubernetes`.
///
/// # Errors
/// [`Failure::Refused`] when something cannot be done safely.
pub fn run(options: &Options) -> Result<(), Failure> {
    let sources = sources::read(&options.files)?;
    let files: Vec<(&str, &[u8])> = sources.iter().map(|source| (source.file.as_str(), &*source.content)).collect();
    let result = if options.remove { kubernetes::remove(&files) } else { kubernetes::inject(&files, &wanted(options)) };
    let result = result.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>());
    let done = result.and_then(|done| {
        let wrong: Vec<String> = done.done.iter().flat_map(|done| settings(&done.resource, &done.what)).collect();
        if wrong.is_empty() { Ok(done) } else { Err(wrong) }
    });
    match done {
        Ok(done) => write(options, &done),
        Err(problems) => {
            for problem in &problems {
                eprintln!("error: {}", printable(problem));
            }
            let errors = if problems.len() == 1 { "error" } else { "errors" };
            Err(Failure::Refused(format!("refused: {} {errors}; nothing was written", problems.len())))
        }
    }
}

fn wanted(options: &Options) -> kubernetes::Options {
    kubernetes::Options {
        version: options.image_version.clone(),
        image_prefix: options.image_prefix.clone(),
        control_plane: options.mesh.clone(),
        trust_domain: options.trust_domain.clone(),
        namespace: options.namespace.clone(),
        mode: match options.mode {
            Way::Transparent => Mode::Transparent,
            Way::Explicit => Mode::Explicit,
        },
    }
}

/// What the sidecar itself would say of the settings of its annotations.
fn settings(resource: &str, what: &What) -> Vec<String> {
    let What::Injected { ports, settings, service, .. } = what else { return Vec::new() };
    let check = |service: &str, more: &[String]| -> Result<(), String> {
        let always = ["weft-sidecar", "--control-plane=mesh:1"].map(str::to_owned);
        let arguments = always.into_iter().chain([format!("--service={service}")]).chain(more.iter().cloned());
        let cli = Cli::try_parse_from(arguments).map_err(|error| {
            error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })?;
        Settings::new(cli.flags, None, 1).map(|_| ()).map_err(|error| error.to_string())
    };
    let mut wrong = Vec::new();
    for (annotation, flag, value) in settings {
        let result = match (*flag, value.as_str()) {
            ("probe-source", "node") => Ok(()),
            ("service", name) => check(name, &[]),
            _ => check("checked", &[format!("--{flag}={value}")]),
        };
        wrong.extend(result.err().map(|error| format!("{resource}: metadata.annotations[\"{annotation}\"]: {error}")));
    }
    // Of a Service, where no annotation has been blamed already.
    if wrong.is_empty() {
        let ports: Vec<String> = ports.iter().map(|port| format!("--port={port}")).collect();
        wrong.extend(check(service, &ports).err().map(|error| format!("{resource}: {error}")));
    }
    wrong
}

fn write(options: &Options, done: &Output) -> Result<(), Failure> {
    if options.output.as_os_str() == "-" {
        output::print(&done.text)?;
    } else {
        let path = options.output.display();
        std::fs::write(&options.output, &done.text).with_context(|| format!("{path} cannot be written"))?;
    }
    for done in &done.done {
        let said = match &done.what {
            What::Injected { mode, service, ports, .. } => {
                let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
                format!("{mode}; service {service}, ports {ports}")
            }
            What::Removed => "removed".to_owned(),
            What::LeftAlone => "left alone".to_owned(),
        };
        eprintln!("{}: {}", printable(&done.resource), printable(&said));
        if let Some(note) = &done.note {
            eprintln!("  note: {}", printable(note));
        }
    }
    if done.done.is_empty() {
        eprintln!("note: no workload was found; the documents are handed on as they are");
    }
    Ok(())
}

/// Without what could move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;
    use weft_inject::kubernetes::annotations::{FIXED, FIXED_RULES, RULES, SETTINGS};

    use super::*;

    fn flags(command: &clap::Command) -> BTreeSet<String> {
        let own = command.get_arguments().filter(|argument| argument.get_env().is_some());
        own.filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
    }

    #[test]
    fn every_setting_of_the_sidecar_has_its_annotation() {
        let command = Cli::command();
        let known: BTreeSet<String> = SETTINGS
            .iter()
            .map(|setting| setting.flag)
            .chain(FIXED.iter().map(|(flag, _)| *flag))
            .map(str::to_owned)
            .collect();
        let forgotten: Vec<_> = flags(&command).into_iter().filter(|flag| !known.contains(flag)).collect();
        assert!(forgotten.is_empty(), "{forgotten:?}: name them in SETTINGS or FIXED of weft-inject");
        for setting in SETTINGS {
            let argument = command.get_arguments().find(|argument| argument.get_long() == Some(setting.flag));
            let variable = argument.and_then(|argument| argument.get_env()).expect("a variable");
            assert_eq!(variable, setting.variable, "{}", setting.flag);
        }
    }

    #[test]
    fn every_setting_of_the_rules_has_its_annotation() {
        let mut command = Cli::command();
        command.build();
        let Some(init) = command.find_subcommand("init") else { return };
        let global = flags(&Cli::command());
        let own = init.get_arguments().filter(|argument| !argument.is_global_set());
        let own: BTreeSet<String> = own.filter_map(|argument| argument.get_long().map(str::to_owned)).collect();
        let known: BTreeSet<String> =
            RULES.iter().copied().chain(FIXED_RULES.iter().map(|(flag, _)| *flag)).map(str::to_owned).collect();
        let rest = own.difference(&global).filter(|flag| !["help", "version"].contains(&flag.as_str()));
        let forgotten: Vec<_> = rest.filter(|flag| !known.contains(*flag)).collect();
        assert!(forgotten.is_empty(), "{forgotten:?}: name them in RULES or FIXED_RULES of weft-inject");
        for rule in RULES {
            assert!(own.contains(*rule), "--{rule} is no flag of init");
        }
    }

    #[test]
    fn what_the_sidecar_would_refuse_is_refused_here() {
        let injected = |settings: &[(&str, &'static str, &str)], ports: &[&str]| {
            let settings = settings.iter().map(|(name, flag, value)| ((*name).to_owned(), *flag, (*value).to_owned()));
            let ports = ports.iter().map(|port| (*port).to_owned()).collect();
            let settings = settings.collect();
            settings_of(What::Injected { mode: Mode::Transparent, service: "orders".to_owned(), ports, settings })
        };
        assert!(injected(&[("weft.mesh/probe-source", "probe-source", "node")], &["http=80:8080/http"]).is_empty());
        let wrong = injected(&[("weft.mesh/weight", "weight", "0"), ("weft.mesh/drain", "drain", "soon")], &[]);
        assert!(wrong[0].starts_with("Pod p: metadata.annotations[\"weft.mesh/weight\"]: --weight `0`"), "{wrong:?}");
        assert!(wrong[1].contains("--drain `soon`"), "{wrong:?}");
        assert!(injected(&[], &["80", "80"])[0].starts_with("Pod p: "));
    }

    fn settings_of(what: What) -> Vec<String> {
        settings("Pod p", &what)
    }
}
