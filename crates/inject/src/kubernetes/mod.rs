//! Kubernetes manifests with sidecars in their pods.
//!
//! [`inject`] takes YAML documents and gives YAML documents: every pod template of a Deployment, StatefulSet, DaemonSet,
//! ReplicaSet, Job, CronJob or Pod, also inside of a List, gets the sidecar as a native sidecar container (Kubernetes 1.29
//! or later); what is no workload is handed on byte for byte. It first takes away what an earlier injection added, so that
//! a second time changes nothing and a newer version replaces an older one. [`remove`] does only that.

pub mod annotations;
mod containers;
mod document;
mod probes;
mod refuse;
mod service;
mod workload;
mod yaml;

use std::fmt;

use serde_json::Value;
use weft_model::yaml::Node;

pub use self::containers::{AUDIENCE, ROOT_CONFIG_MAP, ROOT_KEY};
use self::{
    document::Piece,
    service::Service,
    workload::{Workload, field},
};

/// How the application's traffic comes to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Rules redirect it; an init container sets them and needs NET_ADMIN.
    Transparent,
    /// Proxy variables; no privilege.
    Explicit,
}

impl Mode {
    /// The word of annotation and flag.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::Explicit => "explicit",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// What holds for every workload, unless an annotation says otherwise.
#[derive(Debug, Clone)]
pub struct Options {
    /// Version of the images.
    pub version: String,
    /// Before the names of the images, as in `registry.example/weft/`.
    pub image_prefix: String,
    /// `host:port` of the control plane.
    pub control_plane: String,
    /// Of the mesh; empty: the sidecar's default.
    pub trust_domain: String,
    /// Of documents that name none.
    pub namespace: String,
    /// Of workloads without annotation.
    pub mode: Mode,
}

impl Options {
    fn image(&self, name: &str) -> String {
        format!("{}{name}:{}", self.image_prefix, self.version)
    }
}

/// Something that cannot be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// As the user named it.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// `Deployment shop/orders`; empty when the text is no YAML.
    pub resource: String,
    /// Field of the document; may be empty.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: ", self.file, self.line)?;
        for part in [&self.resource, &self.field].into_iter().filter(|part| !part.is_empty()) {
            write!(out, "{part}: ")?;
        }
        out.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(out, "; {}", self.hint) }
    }
}

/// What was done with a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// `Deployment shop/orders`.
    pub resource: String,
    /// What was done.
    pub what: What,
    /// What a person should know.
    pub note: Option<String>,
}

/// See [`Done`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It has a sidecar now.
    Injected {
        /// How traffic comes to it.
        mode: Mode,
        /// Of the pods.
        service: String,
        /// As `WEFT_PORTS` takes them.
        ports: Vec<String>,
        /// What annotations set: `(annotation, flag of the sidecar, value)`.
        settings: Vec<(String, &'static str, String)>,
    },
    /// Its sidecar is gone.
    Removed,
    /// `weft.mesh/inject: "false"`, or nothing to remove.
    LeftAlone,
}

/// Documents, and what was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// YAML.
    pub text: String,
    /// In the order of the input.
    pub done: Vec<Done>,
}

/// Puts a sidecar into every workload of the files.
///
/// # Errors
/// Everything that cannot be done; then nothing is.
pub fn inject(files: &[(&str, &[u8])], options: &Options) -> Result<Output, Vec<Problem>> {
    run(files, Some(options), &options.namespace)
}

/// Takes the sidecars out of every workload of the files.
///
/// # Errors
/// The files are no YAML.
pub fn remove(files: &[(&str, &[u8])]) -> Result<Output, Vec<Problem>> {
    run(files, None, "default")
}

fn run(files: &[(&str, &[u8])], options: Option<&Options>, namespace: &str) -> Result<Output, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut read: Vec<(&str, Vec<Piece>)> = Vec::new();
    for (file, bytes) in files {
        match document::read(file, bytes) {
            Ok(pieces) => read.push((file, pieces)),
            Err(mut found) => problems.append(&mut found),
        }
    }
    let mut services = Vec::new();
    for piece in read.iter().flat_map(|(_, pieces)| pieces) {
        let document = piece.read.iter().map(|read| &read.value);
        document.for_each(|document| each(document, "", &mut |item, _| services.extend(Service::of(item, namespace))));
    }
    let mut output = Output::default();
    for (file, pieces) in &read {
        if !output.text.is_empty() && !pieces.is_empty() {
            output.text.push_str(if output.text.ends_with('\n') { "---\n" } else { "\n---\n" });
        }
        for piece in pieces {
            let changed = piece.read.as_ref().and_then(|read| {
                let mut value = read.value.clone();
                let mut work = Work { file, node: &read.node, options, namespace, services: &services };
                work.document(&mut value, "", &mut output.done, &mut problems);
                (value != read.value).then_some(value)
            });
            piece.write(changed.as_ref(), &mut output.text);
        }
    }
    if problems.is_empty() { Ok(output) } else { Err(problems) }
}

/// Calls `with` for a document, or for each item of a List, with its path.
fn each(document: &Value, path: &str, with: &mut impl FnMut(&Value, &str)) {
    match document["items"].as_array().filter(|_| document["kind"] == "List") {
        Some(items) => {
            items.iter().enumerate().for_each(|(index, item)| each(item, &format!("{path}items[{index}]."), with));
        }
        None => with(document, path),
    }
}

/// One document at work.
struct Work<'a> {
    file: &'a str,
    node: &'a Node,
    /// `None`: remove.
    options: Option<&'a Options>,
    namespace: &'a str,
    services: &'a [Service],
}

impl Work<'_> {
    fn document(&mut self, value: &mut Value, path: &str, done: &mut Vec<Done>, problems: &mut Vec<Problem>) {
        if value["kind"] == "List" {
            for (index, item) in value["items"].as_array_mut().into_iter().flatten().enumerate() {
                self.document(item, &format!("{path}items[{index}]."), done, problems);
            }
            return;
        }
        let before = value.clone();
        let Some(workload) = workload::of(&before, self.namespace) else { return };
        let resource = format!("{} {}/{}", workload.kind, workload.namespace, workload.name);
        let Some(template) = workload::template(value, workload.path) else { return };
        let removed = containers::remove(template);
        let result = match self.options {
            None => Ok(Done {
                resource: resource.clone(),
                what: if removed { What::Removed } else { What::LeftAlone },
                note: None,
            }),
            Some(options) => self.add(options, template, &workload, &resource),
        };
        match result {
            Ok(result) => done.push(result),
            Err(found) => problems.extend(found.into_iter().map(|(at, message, hint)| {
                let at = format!("{path}{at}");
                let line = self.node.locate(&at).line;
                Problem { file: self.file.to_owned(), line, resource: resource.clone(), field: at, message, hint }
            })),
        }
    }

    /// Problems are `(field of the document, message, hint)`.
    fn add(
        &self,
        options: &Options,
        template: &mut Value,
        workload: &Workload<'_>,
        resource: &str,
    ) -> Result<Done, Vec<(String, String, String)>> {
        let at = |name: &str| field(workload.path, name);
        let mut found: Vec<_> = annotations::check(template)
            .into_iter()
            .map(|(key, message, hint)| (at(&format!("metadata.annotations[\"{key}\"]")), message, hint))
            .collect();
        if annotations::get(template, "inject") == Some("false") && found.is_empty() {
            return Ok(Done { resource: resource.to_owned(), what: What::LeftAlone, note: None });
        }
        let mode = match annotations::get(template, "mode") {
            Some("explicit") => Mode::Explicit,
            Some("transparent") => Mode::Transparent,
            _ => options.mode,
        };
        if mode == Mode::Explicit {
            let rules = annotations::RULES.iter().filter(|name| annotations::get(template, name).is_some());
            found.extend(rules.map(|name| {
                let key = at(&format!("metadata.annotations[\"{}{name}\"]", annotations::PREFIX));
                let message = "explicit mode redirects nothing, so it would have no effect".to_owned();
                (key, message, "remove it, or use `weft.mesh/mode: transparent`".to_owned())
            }));
        }
        let refused = refuse::check(template, mode == Mode::Explicit);
        found.extend(refused.into_iter().map(|(name, message, hint)| (at(&name), message, hint)));
        let here = Workload {
            template,
            kind: workload.kind.clone(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            path: workload.path,
        };
        let member = service::of(&here, self.services).map_err(|message| {
            (at("metadata.labels"), message, "name one by the annotation `weft.mesh/service`".to_owned())
        });
        let member = match member {
            Ok(member) if found.is_empty() => member,
            Ok(_) => return Err(found),
            Err(problem) => {
                found.push(problem);
                return Err(found);
            }
        };
        if let Err((name, message)) = containers::add(template, options, mode, &member) {
            return Err(vec![(at(&name), message, "name the probes by `weft.mesh/probes`".to_owned())]);
        }
        let settings = annotations::settings(template);
        let what = What::Injected { mode, service: member.name, ports: member.ports, settings };
        Ok(Done { resource: resource.to_owned(), what, note: member.note })
    }
}
