//! Plans: what a request would change, and what it may not.

use std::sync::Arc;

use tonic::{Code, Status};
use weft_model::{Kind, KnownServices, ResourceKey, ResourceSet, ServiceKey};
use weft_proto::weft::v1;

use super::{
    ApiError,
    current::Current,
    differing,
    plan::{Edit, Plan, Present, plan, read},
};
use crate::store::{Entry, Event, Log, Meta, Resources, Stored};

const ORDERS: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: orders }\nspec: { ports: [{ port: 8080 }] }\n";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: orders }\nspec:\n  \
                     parentRefs: [{ group: '', kind: Service, name: orders }]\n  rules: [{ backendRefs: [{ name: \
                     stock, port: 9000 }] }]\n";

#[derive(Default)]
struct Fixture {
    stored: Resources,
    set: ResourceSet,
    known: KnownServices,
}

impl Fixture {
    fn with(yaml: &str) -> Self {
        let mut fixture = Self::default();
        let plan = fixture.apply(yaml).unwrap();
        for event in plan.events {
            let Event::Set { key, api_version, yaml } = event else { unreachable!("only sets") };
            let stored = Stored { api_version, yaml, revision: 1 };
            fixture.set.insert(crate::index::read(&key, &stored).unwrap());
            fixture.stored.insert(key, Arc::new(stored));
        }
        fixture
    }

    fn plan(&self, edits: Vec<Edit>, lenient: bool) -> Result<Plan, ApiError> {
        let (stored, set, known) = (&self.stored, &self.set, &self.known);
        plan(&Present { stored, set, known, trust_domain: "weft.local" }, edits, lenient)
    }

    fn apply(&self, yaml: &str) -> Result<Plan, ApiError> {
        self.plan(sources(yaml)?, false)
    }
}

fn sources(yaml: &str) -> Result<Vec<Edit>, ApiError> {
    read(&[v1::Source { file: "test.yaml".into(), content: yaml.into() }], "default")
}

fn key(kind: Kind, name: &str) -> ResourceKey {
    ResourceKey::new(kind, "default", name)
}

#[test]
fn what_is_there_already_is_no_change() {
    let fixture = Fixture::with(ORDERS);
    let plan = fixture.apply(ORDERS).unwrap();
    assert!(plan.events.is_empty());
    assert_eq!(plan.changes[0].kind(), v1::ChangeKind::Unchanged);
}

#[test]
fn a_change_shows_its_difference() {
    let fixture = Fixture::with(ORDERS);
    let plan = fixture.apply(&ORDERS.replace("8080", "8081")).unwrap();
    assert_eq!(plan.events.len(), 1);
    assert_eq!(plan.changes[0].kind(), v1::ChangeKind::Updated);
    let diff = &plan.changes[0].diff;
    assert!(diff.contains("-  - port: 8080\n+  - port: 8081\n"), "{diff}");
    assert!(diff.starts_with("--- Service default/orders@1\n+++ Service default/orders\n"), "{diff}");
}

#[test]
fn every_error_is_told_with_its_place() {
    let error = sources(&format!("{}---\n{}", ORDERS.replace("ports:", "prots:"), ROUTE.replace("rules", "ruels")));
    let error = error.unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    let fields: Vec<_> = error.errors.iter().map(|finding| finding.field.as_str()).collect();
    assert!(fields.contains(&"spec.prots") && fields.contains(&"spec.ruels"), "{fields:?}");
    assert!(error.errors.iter().all(|finding| finding.file == "test.yaml" && finding.line > 0));
    let status = Status::from(error.clone());
    let decoded: weft_proto::google::rpc::Status = prost::Message::decode(status.details()).unwrap();
    let errors: v1::Errors = prost::Message::decode(decoded.details[0].value.as_slice()).unwrap();
    assert_eq!(errors.errors, error.errors, "the same in the status' details");
}

#[test]
fn a_resource_that_is_there_twice_is_refused() {
    let error = sources(&format!("{ORDERS}---\n{ORDERS}")).unwrap_err();
    assert_eq!(error.errors.len(), 1);
    assert!(error.message.contains("test.yaml:1"), "{}", error.message);
    assert_eq!(error.errors[0].line, 6);
}

#[test]
fn the_trust_domain_is_not_a_meshs_to_change() {
    let mesh = |domain: &str| {
        format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\nspec:\n  trustDomain: {domain}\n"
        )
    };
    let fixture = Fixture::default();
    assert!(fixture.apply(&mesh("weft.local")).is_ok());
    let error = fixture.apply(&mesh("other.example")).unwrap_err();
    assert_eq!((error.errors[0].field.as_str(), error.errors[0].line), ("spec.trustDomain", 5));
}

#[test]
fn many_findings_are_cut_to_what_fits() {
    let finding = |line| v1::Finding { line, message: "x".repeat(100), ..v1::Finding::default() };
    let error = ApiError::refused((1..=500).map(finding).collect());
    assert!(error.message.ends_with("and 499 more"), "{}", error.message);
    let status = Status::from(error);
    let decoded: weft_proto::google::rpc::Status = prost::Message::decode(status.details()).unwrap();
    let errors: v1::Errors = prost::Message::decode(decoded.details[0].value.as_slice()).unwrap();
    assert!((20..500).contains(&errors.errors.len()), "{}", errors.errors.len());
    assert_eq!(errors.errors[0].line, 1);
}

#[test]
fn an_empty_input_is_refused() {
    assert_eq!(sources("").unwrap_err().code, Code::InvalidArgument);
    assert_eq!(sources("---\n# nothing\n").unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn a_service_known_by_its_workloads_may_be_referred_to() {
    let mut fixture = Fixture::with(ORDERS);
    let dangling = fixture.apply(ROUTE);
    let told = match &dangling {
        Ok(plan) => plan.warnings.clone(),
        Err(error) => error.errors.clone(),
    };
    assert!(!told.is_empty(), "a dangling reference is told");
    fixture.known.insert(ServiceKey::new("default", "stock"), [9000].into());
    let plan = fixture.apply(ROUTE).unwrap();
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn a_change_is_not_blamed_for_what_was_broken_before() {
    let mut fixture = Fixture::with(ORDERS);
    fixture.known.insert(ServiceKey::new("default", "stock"), [9000].into());
    let plan = fixture.apply(ROUTE).unwrap();
    let Event::Set { key, api_version, yaml } = plan.events[0].clone() else { unreachable!() };
    let stored = Stored { api_version, yaml, revision: 2 };
    fixture.set.insert(crate::index::read(&key, &stored).unwrap());
    fixture.stored.insert(key, Arc::new(stored));
    // The workloads went, and with them the service that the route leads to.
    fixture.known.clear();
    let plan = fixture.apply(&ORDERS.replace("8080", "8081").replace("name: orders", "name: other")).unwrap();
    assert_eq!(plan.events.len(), 1);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn going_back_is_not_stopped() {
    let fixture = Fixture::with(ORDERS);
    let restored = sources(ROUTE).unwrap().into_iter().map(|edit| match edit {
        Edit::Apply(document) => Edit::Restore(document.resource),
        other => other,
    });
    let plan = fixture.plan(restored.collect(), true).unwrap();
    assert_eq!(plan.events.len(), 1);
    assert!(!plan.warnings.is_empty(), "but what is wrong is told");
}

#[test]
fn a_deletion_is_a_change() {
    let fixture = Fixture::with(ORDERS);
    let plan = fixture.plan(vec![Edit::Delete(key(Kind::Service, "orders"))], false).unwrap();
    assert_eq!(plan.changes[0].kind(), v1::ChangeKind::Deleted);
    assert!(plan.changes[0].diff.contains("-kind: Service"), "{}", plan.changes[0].diff);
}

#[test]
fn the_parsed_set_follows_the_log() {
    let set = |name: &str| {
        let yaml = ORDERS.replace("name: orders", &format!("name: {name}"));
        let Edit::Apply(document) = sources(&yaml).unwrap().remove(0) else { unreachable!() };
        crate::index::write(&document.resource)
    };
    let meta = Meta { author: "a".into(), message: String::new(), time_ms: 0 };
    let entry = |revision, events| Entry { revision, meta: meta.clone(), events };
    let one = entry(1, vec![set("a"), set("b")]);
    let two = entry(2, vec![Event::Delete { key: key(Kind::Service, "a") }, set("c")]);
    let current = Current::default();
    let names = |log: &Log| {
        let set = current.of(log).unwrap();
        set.iter().map(|(key, _)| key.name.clone()).collect::<Vec<_>>()
    };
    assert!(names(&Log::default()).is_empty());
    assert_eq!(names(&Log::from_parts(0, Resources::new(), vec![one.clone()])), ["a", "b"]);
    let both = Log::from_parts(0, Resources::new(), vec![one, two]);
    assert_eq!(names(&both), ["b", "c"]);
    let (before, after) = (both.at(1).unwrap(), both.at(2).unwrap());
    let differing: Vec<_> = differing(&before, &after).map(|key| key.name.as_str()).collect();
    assert_eq!(differing, ["a", "c"]);
}
