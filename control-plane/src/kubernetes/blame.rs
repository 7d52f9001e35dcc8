//! Which objects a refusal is about: from what clients have refused to the objects that it was made of. Pure.
//!
//! A client refuses a resource, and a resource may be made of several objects. What is known of the error narrows them
//! down: Weft's sidecars name the field (`routes[1].match…`), and rules carry the names of their objects. What remains
//! ambiguous is told of each, with the names of the others. What is made of Services alone, of endpoints or of
//! certificates has no object with a status: `weft status` has it.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{CallRoute, EffectiveTraffic, Kind, ParentRef, ResourceKey, ServicePort, TargetKind};
use weft_xds::resource::{ResourceType, Route, RouteAction};

use crate::{
    index::{ObjectKey, ServiceKey, World},
    translate::{Client, Flavour, cluster, listener, names, routes},
    xds::Standing,
};

/// A condition that a refusal may turn: of an object, and of a route for one of its parents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The object.
    pub object: ResourceKey,
    /// Of a route: the Service whose calls it takes.
    pub parent: Option<ServiceKey>,
}

/// What of it is refused, for people.
pub type Refused = BTreeMap<Part, String>;

/// What is refused of each object.
pub fn refused(world: &World, standing: &[Standing]) -> Refused {
    // Clients of a service are told the same, and most say the same of it.
    let mut complaints: BTreeMap<Complaint, Vec<&Client>> = BTreeMap::new();
    for one in standing {
        let error = own_words(&one.name, &one.nack.message);
        let own = matters(&one.client, one.ty).then(|| one.client.service.clone());
        let key = Complaint { ty: one.ty, name: &one.name, error, own, flavour: one.client.flavour };
        complaints.entry(key).or_default().push(&one.client);
    }
    let mut told: BTreeMap<Part, Vec<(usize, String)>> = BTreeMap::new();
    for (complaint, clients) in complaints.iter().take(COMPLAINTS) {
        let parts = made_of(world, clients[0], complaint);
        for part in &parts {
            let text = complaint.tell(clients, part, &parts);
            told.entry(part.clone()).or_default().push((clients.len(), text));
        }
    }
    let text = |mut lines: Vec<(usize, String)>| {
        // What most refuse comes first; the end may be cut off.
        lines.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("; ")
    };
    told.into_iter().map(|(part, lines)| (part, text(lines))).collect()
}

/// The same refusal, by however many.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Complaint<'a> {
    ty: ResourceType,
    name: &'a str,
    error: &'a str,
    /// Whose clients, where a resource of that name differs from service to service.
    own: Option<ServiceKey>,
    flavour: Flavour,
}

impl Complaint<'_> {
    fn tell(&self, clients: &[&Client], part: &Part, parts: &BTreeSet<Part>) -> String {
        let mut names: Vec<&str> = clients.iter().map(|client| &*client.id).collect();
        names.sort_unstable();
        let mut who = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        if names.len() > NAMED {
            who = format!("{who} and {} more", names.len() - NAMED);
        }
        let verb = if names.len() == 1 { "refuses" } else { "refuse" };
        let others: BTreeSet<&ResourceKey> =
            parts.iter().map(|part| &part.object).filter(|object| **object != part.object).collect();
        let others: Vec<String> = others.into_iter().map(ToString::to_string).collect();
        let shared = match others.is_empty() {
            true => String::new(),
            false => format!(" (made of this and of {})", others.join(", ")),
        };
        let what = match self.ty {
            ResourceType::Cluster => "the cluster",
            ResourceType::Endpoints => "the endpoints",
            ResourceType::Secret => "the certificates",
            ResourceType::Listener => "the listener",
            ResourceType::Route => "the routes",
            ResourceType::VirtualHost => "the virtual host",
        };
        // One line, whatever a client sends.
        let error: String = self.error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR).collect();
        format!("{who} {verb} {what} {}{shared}: {error}", self.name)
    }
}

/// Whether a resource of this type and one name is another for the clients of another service.
fn matters(client: &Client, ty: ResourceType) -> bool {
    match client.flavour {
        // A sidecar's inbound side is its service's own; to gRPC a short name means another service in another namespace.
        Flavour::Sidecar | Flavour::Grpc => ty == ResourceType::Listener,
        Flavour::Envoy => false,
    }
}

/// What a message says of one resource: Weft's sidecar writes a line `NAME: error` for each, others write as they like.
fn own_words<'a>(name: &str, message: &'a str) -> &'a str {
    let line = message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let words = line.unwrap_or(message);
    &words[..words.floor_char_boundary(READ)]
}

/// The objects that a resource was made of, as far as the error leaves them open. More than [`CANDIDATES`] would tell
/// nobody anything.
fn made_of(world: &World, client: &Client, complaint: &Complaint<'_>) -> BTreeSet<Part> {
    let Complaint { ty, name, error, .. } = *complaint;
    let parts = match ty {
        ResourceType::Cluster => match names::of_cluster(name) {
            Some((service, port)) => of_cluster(world, &service, port),
            None => BTreeSet::new(),
        },
        ResourceType::VirtualHost => of_virtual_host(world, name, error),
        ResourceType::Listener => of_listener(world, client, name, error),
        ResourceType::Route if client.flavour == Flavour::Envoy => of_routes(world, error),
        ResourceType::Route => BTreeSet::new(),
        ResourceType::Endpoints | ResourceType::Secret => BTreeSet::new(),
    };
    if parts.len() > CANDIDATES { BTreeSet::new() } else { parts }
}

fn of_cluster(world: &World, service: &ServiceKey, port: u16) -> BTreeSet<Part> {
    let Some(port) = port_of(world, service, port) else { return BTreeSet::new() };
    let of_routes = |field: &str| {
        (field.starts_with("retry.") && !field.starts_with("retry.budget."))
            || (field.starts_with("timeouts.") && field != "timeouts.connect")
    };
    deciders(&cluster::traffic(world, service, port, None), |field| !of_routes(field)).collect()
}

fn of_virtual_host(world: &World, name: &str, error: &str) -> BTreeSet<Part> {
    if let Some(address) = names::address(name) {
        let Some(place) = world.at(address) else { return BTreeSet::new() };
        let own = place.endpoint.is_some();
        return if own {
            of_cluster(world, &place.service, place.port)
        } else {
            of_port(world, &place.service, place.port, error)
        };
    }
    // What DNS asks for is made of Services alone, and its names are none of these.
    let Some(host) = names::Host::of_virtual_host(name) else { return BTreeSet::new() };
    match routes::resolve(world, &host) {
        Some(port) => of_port(world, &host.service, port, error),
        None => BTreeSet::new(),
    }
}

/// The routes of a port, or that of them which the error names.
fn of_port(world: &World, service: &ServiceKey, number: u16, error: &str) -> BTreeSet<Part> {
    let Some(port) = port_of(world, service, number) else { return BTreeSet::new() };
    let Some(host) = routes::virtual_host(world, service, number, "", Vec::new()) else { return BTreeSet::new() };
    if let Some((route, field)) = indexed(error).and_then(|(index, field)| Some((host.routes.get(index)?, field))) {
        let own = ["match", "redirect", "direct_response", "request_headers", "response_headers"];
        let decided = !own.iter().any(|name| field.starts_with(name));
        return of_route(world, service, port, route, decided);
    }
    let named: Vec<_> = host.routes.iter().filter(|route| mentions(error, &route.name)).collect();
    let routes = if named.is_empty() { host.routes.iter().collect() } else { named };
    routes.into_iter().flat_map(|route| of_route(world, service, port, route, true)).collect()
}

/// `decided`: also the policies that decided how its calls are made.
fn of_route(world: &World, service: &ServiceKey, port: &ServicePort, route: &Route, decided: bool) -> BTreeSet<Part> {
    let source = Source::read(&route.source);
    let mut parts = BTreeSet::new();
    if let Some(source) = &source {
        let object = ResourceKey::new(source.kind, source.namespace, source.name);
        parts.insert(Part { object, parent: Some(service.clone()) });
    }
    if decided {
        let of_routes = |field: &str| field.starts_with("retry.") || field.starts_with("timeouts.");
        let traffic = cluster::traffic(world, service, port, source.as_ref().map(Source::call));
        parts.extend(deciders(&traffic, of_routes));
        // A route carries what the balancers of its backends hash.
        let RouteAction::Forward(forward) = &route.action else { return parts };
        for (backend, number) in forward.clusters.iter().filter_map(|cluster| names::of_cluster(&cluster.name)) {
            let Some(port) = port_of(world, &backend, number).filter(|_| !forward.hash.is_empty()) else { continue };
            let traffic = cluster::traffic(world, &backend, port, None);
            parts.extend(deciders(&traffic, |field| field == "loadBalancer"));
        }
    }
    parts
}

fn of_listener(world: &World, client: &Client, name: &str, error: &str) -> BTreeSet<Part> {
    match client.flavour {
        Flavour::Sidecar if name == names::INBOUND => of_inbound(world, &client.service, error),
        // It says what becomes of calls to hosts outside the mesh, and nothing else.
        Flavour::Sidecar => mesh(world).into_iter().collect(),
        Flavour::Grpc => match names::Host::parse(name, &client.service.namespace) {
            Some(host) => match routes::resolve(world, &host) {
                Some(port) => of_port(world, &host.service, port, error),
                None => BTreeSet::new(),
            },
            None => BTreeSet::new(),
        },
        // It opens the port of a Service, or none in particular.
        Flavour::Envoy => BTreeSet::new(),
    }
}

fn of_inbound(world: &World, service: &ServiceKey, error: &str) -> BTreeSet<Part> {
    let Some(inbound) = listener::inbound(world, service) else { return BTreeSet::new() };
    let rules = inbound.ports.iter().flat_map(|port| &port.access).flat_map(|access| &access.policies);
    let policies: BTreeSet<&str> = rules.map(|rule| &*rule.policy).collect();
    // The name of a rule begins with that of its policy.
    let named: BTreeSet<&str> =
        policies.iter().copied().filter(|policy| mentions(error, &format!("{policy}/"))).collect();
    let policies = if named.is_empty() { policies } else { named };
    let key = |policy: &str| {
        let (namespace, name) = policy.split_once('/')?;
        Some(Part { object: ResourceKey::new(Kind::AccessPolicy, namespace, name), parent: None })
    };
    let parts: BTreeSet<Part> = policies.into_iter().filter_map(key).collect();
    if parts.is_empty() { mesh(world).into_iter().collect() } else { parts }
}

/// All routes of an Envoy are one resource: an error that names none of them could be any's, and is told of none.
fn of_routes(world: &World, error: &str) -> BTreeSet<Part> {
    let mut parts = BTreeSet::new();
    let mut add =
        |kind: Kind, key: &ObjectKey, parents: &[ParentRef], mut rules: Box<dyn Iterator<Item = String> + '_>| {
            if rules.any(|rule| mentions(error, &format!("{key}/{rule}"))) {
                let object = ResourceKey::new(kind, key.namespace.as_str(), key.name.as_str());
                let parents = parents.iter().map(|parent| Some(parent.service(&key.namespace)));
                parts.extend(parents.map(|parent| Part { object: object.clone(), parent }));
            }
        };
    for (key, route) in &world.http_routes {
        let spec = &route.resource.spec;
        let rules = spec.rules.iter().enumerate().map(|(index, rule)| rule.label(index));
        add(Kind::HttpRoute, key, &spec.parent_refs, Box::new(rules));
    }
    for (key, route) in &world.grpc_routes {
        let spec = &route.resource.spec;
        let rules = spec.rules.iter().enumerate().map(|(index, rule)| rule.label(index));
        add(Kind::GrpcRoute, key, &spec.parent_refs, Box::new(rules));
    }
    parts
}

fn port_of<'a>(world: &'a World, service: &ServiceKey, port: u16) -> Option<&'a ServicePort> {
    world.services.get(service)?.service.port(port)
}

/// The Mesh, if there is one: its defaults have no status.
fn mesh(world: &World) -> Option<Part> {
    let named = world.mesh.revision > 0;
    named.then(|| Part {
        object: ResourceKey::new(Kind::Mesh, "", world.mesh.resource.metadata.name.as_str()),
        parent: None,
    })
}

/// The policies (or the Mesh) that decided one of these fields.
fn deciders(traffic: &EffectiveTraffic, fields: impl Fn(&str) -> bool) -> impl Iterator<Item = Part> {
    let mut all = BTreeSet::new();
    for by in traffic.leaves().into_iter().filter(|leaf| fields(leaf.field)).filter_map(|leaf| leaf.by) {
        let named = by.rsplit_once('@').map_or(by, |(named, _revision)| named);
        let object = match named.split_once(' ') {
            Some(("Mesh", name)) => ResourceKey::new(Kind::Mesh, "", name),
            // A route's own rule.
            Some(_) => continue,
            None => match named.split_once('/') {
                Some((namespace, name)) => ResourceKey::new(Kind::TrafficPolicy, namespace, name),
                None => continue,
            },
        };
        all.insert(Part { object, parent: None });
    }
    all.into_iter()
}

/// Where a route came from, as it says itself: `HTTPRoute namespace/name rule label`.
struct Source<'a> {
    kind: Kind,
    namespace: &'a str,
    name: &'a str,
    rule: &'a str,
}

impl<'a> Source<'a> {
    /// `None`: no route decided, the Service's own port did.
    fn read(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_once(' ')?;
        let kind = [Kind::HttpRoute, Kind::GrpcRoute].into_iter().find(|it| it.as_str() == kind)?;
        let (object, rule) = rest.split_once(" rule ")?;
        let (namespace, name) = object.split_once('/')?;
        Some(Self { kind, namespace, name, rule })
    }

    fn call(&self) -> CallRoute<'a> {
        let kind = if self.kind == Kind::GrpcRoute { TargetKind::GrpcRoute } else { TargetKind::HttpRoute };
        CallRoute { kind, namespace: self.namespace, name: self.name, rule: Some(self.rule) }
    }
}

/// `routes[2].match.path…` → 2, `match.path…`.
fn indexed(error: &str) -> Option<(usize, &str)> {
    let (index, rest) = error.split_once("routes[")?.1.split_once(']')?;
    Some((index.parse().ok()?, rest.strip_prefix('.').unwrap_or(rest)))
}

/// Whether a text names something, as a word: `shop/orders/0` is not in `shop/orders/01`.
fn mentions(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    let whole = name.ends_with('/');
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(part) && (whole || !after.is_some_and(|c| part(c) && c != '.'))
    })
}

/// Different refusals that are looked into at a time; with more, the first by type and name.
const COMPLAINTS: usize = 1024;
/// Bytes of a client's own words that are read.
const READ: usize = 2048;
/// Clients that a message names.
const NAMED: usize = 3;
/// Characters of a client's own words.
const ERROR: usize = 256;
/// Objects that one refusal is told of.
const CANDIDATES: usize = 8;

#[cfg(test)]
mod tests;
