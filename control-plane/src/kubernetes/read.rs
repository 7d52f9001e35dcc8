//! Objects of the API server → what the mesh makes of them. Pure.
//!
//! Weft's own kinds are read as strictly as a file. Kinds of others (Services, EndpointSlices, routes) have fields, ports
//! and parents that are none of ours: these are left out, and what remains obeys the same rules as in a file.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use weft_model::{Finding, Kind, Resource};

use crate::index::{ObjectKey, PodEntry};

/// What a watch is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A kind of the model.
    Kind(Kind),
    /// `v1/Pod`.
    Pod,
}

impl Subject {
    /// In the order in which they are asked for.
    pub const ALL: [Self; 8] = [
        Self::Kind(Kind::Mesh),
        Self::Kind(Kind::AccessPolicy),
        Self::Kind(Kind::TrafficPolicy),
        Self::Kind(Kind::HttpRoute),
        Self::Kind(Kind::GrpcRoute),
        Self::Kind(Kind::Service),
        Self::Pod,
        Self::Kind(Kind::EndpointSlice),
    ];

    /// As in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.as_str(),
            Self::Pod => "Pod",
        }
    }

    /// As in URLs.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Kind(Kind::Service) => "services",
            Self::Kind(Kind::EndpointSlice) => "endpointslices",
            Self::Kind(Kind::HttpRoute) => "httproutes",
            Self::Kind(Kind::GrpcRoute) => "grpcroutes",
            Self::Kind(Kind::TrafficPolicy) => "trafficpolicies",
            Self::Kind(Kind::AccessPolicy) => "accesspolicies",
            Self::Kind(Kind::Mesh) => "meshes",
            Self::Pod => "pods",
        }
    }

    /// As in `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.api_version(),
            Self::Pod => "v1",
        }
    }

    /// Whether its objects have a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Kind(Kind::Mesh))
    }

    /// Whether it is a CustomResourceDefinition: a cluster may not have it.
    pub fn optional(self) -> bool {
        !matches!(self, Self::Kind(Kind::Service | Kind::EndpointSlice) | Self::Pod)
    }

    /// Whether it is one of Weft's own kinds, which come with it.
    pub fn ours(self) -> bool {
        matches!(self, Self::Kind(Kind::Mesh | Kind::AccessPolicy | Kind::TrafficPolicy))
    }
}

/// An object, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Version of its spec.
    pub generation: i64,
    /// Version of the object.
    pub resource_version: String,
    /// What became of it.
    pub reading: Reading,
    /// `spec.parentRefs` of a route that are Services, as written.
    pub parents: Vec<Value>,
    /// `status.parents` of a route, `status.conditions` of Weft's own kinds, as they are now.
    pub status: Vec<Value>,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// A resource of the mesh.
    Resource(Resource),
    /// A pod.
    Pod(PodEntry),
    /// None of the mesh's business.
    Ignored,
    /// It is, but cannot be obeyed.
    Invalid(Vec<Finding>),
}

/// Reads an object.
pub fn read(subject: Subject, object: &Value) -> Object {
    let metadata = &object["metadata"];
    let text = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
    let key = ObjectKey::new(text("namespace"), text("name"));
    let route = matches!(subject, Subject::Kind(Kind::HttpRoute | Kind::GrpcRoute));
    let parents = if route { parents(object) } else { Vec::new() };
    let status = object["status"][if route { "parents" } else { "conditions" }].as_array();
    let status = match subject {
        Subject::Kind(Kind::Service | Kind::EndpointSlice) | Subject::Pod => None,
        Subject::Kind(_) => status.cloned(),
    };
    let reading = match subject {
        Subject::Pod => Reading::Pod(pod(object)),
        Subject::Kind(kind) => match body(kind, object, &parents) {
            Some(body) => resource(kind, &key, metadata, body),
            None => Reading::Ignored,
        },
    };
    Object {
        key,
        generation: metadata["generation"].as_i64().unwrap_or(0),
        resource_version: text("resourceVersion"),
        reading,
        parents,
        status: status.unwrap_or_default(),
    }
}

/// What is read of an object besides its metadata; `None`: it is none of the mesh's business.
fn body(kind: Kind, object: &Value, parents: &[Value]) -> Option<Map<String, Value>> {
    let one = |name: &str, value: Value| Some(Map::from_iter([(name.to_owned(), value)]));
    match kind {
        Kind::Service => one("spec", service(&object["spec"])?),
        Kind::EndpointSlice => slice(object),
        Kind::HttpRoute | Kind::GrpcRoute => {
            if parents.is_empty() {
                return None;
            }
            let namespace = &object["metadata"]["namespace"];
            let mut spec = object["spec"].as_object()?.clone();
            let own = |parent: &Value| {
                let mut parent = parent.clone();
                if let Some(fields) = parent.as_object_mut()
                    && fields.get("namespace") == Some(namespace)
                {
                    fields.remove("namespace");
                }
                parent
            };
            spec.insert("parentRefs".to_owned(), parents.iter().map(own).collect());
            one("spec", spec.into())
        }
        Kind::TrafficPolicy | Kind::AccessPolicy | Kind::Mesh => {
            let mut body = object.as_object()?.clone();
            for known in ["apiVersion", "kind", "metadata", "status"] {
                body.remove(known);
            }
            Some(body)
        }
    }
}

/// Through the same check as a file.
fn resource(kind: Kind, key: &ObjectKey, metadata: &Value, body: Map<String, Value>) -> Reading {
    let mut document = Map::new();
    document.insert("apiVersion".to_owned(), kind.api_version().into());
    document.insert("kind".to_owned(), kind.as_str().into());
    document.insert("metadata".to_owned(), own_metadata(kind, metadata));
    document.extend(body);
    let bytes = serde_json::to_vec(&document).expect("JSON values are JSON");
    let mut parsed = weft_model::parse("", &bytes, &key.namespace);
    match parsed.documents.pop() {
        Some(document) if parsed.errors.is_empty() => Reading::Resource(document.resource),
        _ => Reading::Invalid(parsed.errors),
    }
}

/// Of the annotations only Weft's own: others' are long, and change for reasons of their own.
fn own_metadata(kind: Kind, metadata: &Value) -> Value {
    let map = |name: &str, keep: &dyn Fn(&str) -> bool| -> Map<String, Value> {
        let entries = metadata[name].as_object().into_iter().flatten();
        entries.filter(|(key, _)| keep(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let mut own = Map::new();
    own.insert("name".to_owned(), metadata["name"].clone());
    if kind.namespaced() {
        own.insert("namespace".to_owned(), metadata["namespace"].clone());
    }
    let slice = kind == Kind::EndpointSlice;
    let labels = map("labels", &|key| !slice || key == weft_model::SERVICE_NAME);
    let annotations = map("annotations", &|key| key.starts_with("weft.mesh/"));
    for (name, entries) in [("labels", labels), ("annotations", annotations)] {
        if !entries.is_empty() {
            own.insert(name.to_owned(), entries.into());
        }
    }
    own.into()
}

/// The TCP ports of a service that has addresses.
fn service(spec: &Value) -> Option<Value> {
    if spec["type"] == "ExternalName" {
        return None;
    }
    let ports: Vec<Value> = list(&spec["ports"]).iter().filter(|port| is_tcp(port)).map(service_port).collect();
    if ports.is_empty() {
        return None;
    }
    let mut own = Map::new();
    own.insert("ports".to_owned(), ports.into());
    for name in ["selector", "clusterIP", "clusterIPs", "ipFamilies"] {
        if let Some(value) = spec.get(name).filter(|value| !value.is_null()) {
            own.insert(name.to_owned(), value.clone());
        }
    }
    Some(own.into())
}

fn service_port(port: &Value) -> Value {
    let mut own = Map::new();
    for name in ["name", "port", "targetPort"] {
        if let Some(value) = port.get(name).filter(|value| !value.is_null()) {
            own.insert(name.to_owned(), value.clone());
        }
    }
    let app = match port["appProtocol"].as_str() {
        Some(
            known @ ("http" | "http2" | "kubernetes.io/h2c" | "grpc" | "kubernetes.io/ws" | "tcp" | "mysql"
            | "postgresql" | "redis" | "mongo"),
        ) => Some(known),
        // The application's own TLS is carried as it is.
        Some("https" | "kubernetes.io/wss" | "tls") => Some("tcp"),
        // Anybody may make up a word; the first bytes tell.
        Some(_) | None => None,
    };
    if let Some(app) = app {
        own.insert("appProtocol".to_owned(), app.into());
    }
    own.into()
}

/// The TCP ports and the addresses of a slice.
fn slice(object: &Value) -> Option<Map<String, Value>> {
    let address_type = object["addressType"].as_str().filter(|kind| matches!(*kind, "IPv4" | "IPv6"))?;
    let ports: Vec<Value> = list(&object["ports"])
        .iter()
        .filter(|port| is_tcp(port) && port["port"].is_u64())
        .map(|port| match port["name"].as_str() {
            Some(name) if !name.is_empty() => json!({ "name": name, "port": port["port"] }),
            _ => json!({ "port": port["port"] }),
        })
        .collect();
    if ports.is_empty() {
        return None;
    }
    let endpoints: Vec<Value> = list(&object["endpoints"]).iter().filter_map(slice_endpoint).collect();
    Some(Map::from_iter([
        ("addressType".to_owned(), address_type.into()),
        ("ports".to_owned(), ports.into()),
        ("endpoints".to_owned(), endpoints.into()),
    ]))
}

fn slice_endpoint(endpoint: &Value) -> Option<Value> {
    let addresses = endpoint["addresses"].as_array().filter(|addresses| !addresses.is_empty())?;
    let mut own = json!({ "addresses": addresses });
    let conditions: Map<String, Value> = ["ready", "terminating"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), endpoint["conditions"][name].as_bool()?.into())))
        .collect();
    if !conditions.is_empty() {
        own["conditions"] = conditions.into();
    }
    if let Some(zone) = endpoint["zone"].as_str() {
        own["zone"] = zone.into();
    }
    Some(own)
}

/// A parent that is a Service: of the core group, whose name is empty.
fn parents(object: &Value) -> Vec<Value> {
    let service = |parent: &&Value| parent["kind"] == "Service" && parent["group"].as_str().is_none_or(str::is_empty);
    list(&object["spec"]["parentRefs"]).iter().filter(service).cloned().collect()
}

fn pod(object: &Value) -> PodEntry {
    let (spec, status) = (&object["spec"], &object["status"]);
    // What has ended keeps its address on paper, and another pod may have it already.
    let over = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    let own = !over && spec["hostNetwork"].as_bool() != Some(true);
    let ips = list(&status["podIPs"]).iter().map(|ip| &ip["ip"]);
    let mut ips: Vec<IpAddr> = ips.filter(|_| own).filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    ips.truncate(MAX_POD_IPS);
    let containers = list(&spec["initContainers"]).iter().chain(list(&spec["containers"]));
    let sidecar = containers.into_iter().find(|container| container["name"] == SIDECAR_CONTAINER);
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    PodEntry {
        ips,
        account: spec["serviceAccountName"].as_str().unwrap_or("default").to_owned(),
        labels: labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
        inbound: sidecar.map(inbound_port),
    }
}

fn inbound_port(container: &Value) -> u16 {
    let named = list(&container["ports"]).iter().find(|port| port["name"] == INBOUND_PORT_NAME);
    let number = named.and_then(|port| u16::try_from(port["containerPort"].as_u64()?).ok());
    number.filter(|port| *port > 0).unwrap_or(INBOUND_PORT)
}

fn is_tcp(port: &Value) -> bool {
    port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Name of the container that makes a pod part of the mesh.
pub const SIDECAR_CONTAINER: &str = "weft-sidecar";
/// Name of that container's port for other sidecars.
pub const INBOUND_PORT_NAME: &str = "weft-inbound";
/// Where it listens unless it says otherwise.
const INBOUND_PORT: u16 = 15006;
/// One of each family.
const MAX_POD_IPS: usize = 4;

#[cfg(test)]
mod tests;
