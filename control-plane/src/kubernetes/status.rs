//! What is written back: the conditions of an object. Pure.
//!
//! Routes get what the Gateway API asks for (`status.parents`, one entry for each parent of ours; those of other
//! controllers stay as they are), Weft's own kinds `status.conditions`.
//!
//! `Accepted` is the word of this control plane: the object can be obeyed. `Programmed` is that of its clients: what was
//! made of the object is refused by nobody who is connected.

use serde_json::{Value, json};
use weft_model::{Finding, Kind, ResourceKey};

use super::{blame::Part, programmed::Refusals, state::Known};
use crate::index::ServiceKey;

/// How this control plane signs the statuses of routes.
pub const CONTROLLER: &str = "weft.mesh/control-plane";

/// The `status` to write, if it differs from what is there. `in_force`: some version of it is obeyed. `findings`: what is
/// wrong with it among the others. `refusals`: what clients say. `now`: RFC 3339.
pub fn desired(
    key: &ResourceKey,
    known: &Known,
    in_force: bool,
    findings: &[&Finding],
    refusals: &Refusals,
    now: &str,
) -> Option<Value> {
    match key.kind {
        Kind::HttpRoute | Kind::GrpcRoute => route(key, known, in_force, findings, refusals, now),
        Kind::TrafficPolicy | Kind::AccessPolicy | Kind::Mesh => {
            let refused = refusals.of(&Part { object: key.clone(), parent: None });
            own(known, in_force, findings, refused, now)
        }
        Kind::Service | Kind::EndpointSlice => None,
    }
}

/// The parts of an object whose status says that they are refused, with what it says; of its newest version only.
pub fn found<'a>(key: &'a ResourceKey, known: &'a Known) -> impl Iterator<Item = (Part, &'a str)> {
    let route = matches!(key.kind, Kind::HttpRoute | Kind::GrpcRoute);
    let parents = known.status.iter().filter(move |entry| route && entry["controllerName"] == CONTROLLER);
    let parents = parents.flat_map(move |entry| {
        let conditions = entry["conditions"].as_array().into_iter().flatten();
        conditions.map(move |condition| (Some(parent(key, &entry["parentRef"])), condition))
    });
    let own = known.status.iter().filter(move |_| !route).map(|condition| (None, condition));
    let refused = |condition: &Value| {
        condition["type"] == "Programmed"
            && condition["reason"] == REFUSED
            && condition["observedGeneration"] == known.generation
    };
    own.chain(parents).filter(move |(_, condition)| refused(condition)).filter_map(move |(parent, condition)| {
        Some((Part { object: key.clone(), parent }, condition["message"].as_str()?))
    })
}

/// The Service that a `parentRef` means.
fn parent(route: &ResourceKey, reference: &Value) -> ServiceKey {
    let namespace = reference["namespace"].as_str().unwrap_or(&route.namespace);
    ServiceKey::new(namespace, reference["name"].as_str().unwrap_or_default())
}

/// Whether it is in force wherever it should be. `accepted`: what it would say, were it not.
fn programmed(known: &Known, in_force: bool, accepted: &Condition, refused: Option<&str>) -> Condition {
    match (known.invalid.is_empty(), in_force) {
        (false, true) => Condition::no("Invalid", "an earlier version of it stays in force".to_owned()),
        (false, false) => Condition::no("Invalid", "nothing of it is in force".to_owned()),
        (true, false) => Condition::no("Pending", "not part of the mesh's configuration yet".to_owned()),
        (true, true) if accepted.status != "True" => {
            Condition::no(accepted.reason, "only what of it can be obeyed is in force: see Accepted".to_owned())
        }
        (true, true) => match refused {
            None => Condition::yes("Programmed", "part of the mesh's configuration; no connected client refuses it"),
            Some(text) => Condition::no(REFUSED, bounded(text.to_owned())),
        },
    }
}

fn own(known: &Known, in_force: bool, findings: &[&Finding], refused: Option<&str>, now: &str) -> Option<Value> {
    let accepted = match (known.invalid.is_empty(), findings) {
        (false, _) => Condition::no("Invalid", told(known.invalid.iter())),
        (true, []) => Condition::yes("Accepted", "obeyed"),
        (true, some) => Condition::no(reason(some), told(some.iter().copied())),
    };
    let programmed = programmed(known, in_force, &accepted, refused);
    let wanted = [("Accepted", accepted), ("Programmed", programmed)];
    let conditions = write(&wanted, &known.status, known.generation, now)?;
    Some(json!({ "conditions": conditions }))
}

fn route(
    key: &ResourceKey,
    known: &Known,
    in_force: bool,
    findings: &[&Finding],
    refusals: &Refusals,
    now: &str,
) -> Option<Value> {
    let references = |finding: &&&Finding| finding.field.contains("backendRefs");
    let missing: Vec<&Finding> = findings.iter().filter(references).copied().collect();
    let others: Vec<&Finding> = findings.iter().filter(|finding| !references(finding)).copied().collect();
    let stays = if in_force { "; an earlier version of it stays in force" } else { "" };
    let accepted = match (known.invalid.is_empty(), others.as_slice()) {
        (false, _) => Condition::no("UnsupportedValue", told(known.invalid.iter()) + stays),
        (true, []) => Condition::yes("Accepted", "obeyed"),
        (true, some) => Condition::no(reason(some), told(some.iter().copied())),
    };
    let resolved = match (known.invalid.is_empty(), missing.as_slice()) {
        (false, _) => Condition { status: "Unknown", reason: "Pending", message: "not looked at".to_owned() },
        (true, []) => Condition::yes("ResolvedRefs", "every Service is there"),
        (true, some) => Condition::no("BackendNotFound", told(some.iter().copied())),
    };
    let mut changed = false;
    let ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let mut parents: Vec<Value> = known.status.iter().filter(|entry| !ours(entry)).cloned().collect();
    let before: Vec<&Value> = known.status.iter().filter(ours).collect();
    for reference in &known.parents {
        let part = Part { object: key.clone(), parent: Some(parent(key, reference)) };
        let programmed = programmed(known, in_force, &accepted, refusals.of(&part));
        let wanted = [("Accepted", accepted.clone()), ("ResolvedRefs", resolved.clone()), ("Programmed", programmed)];
        let entry = before.iter().find(|entry| entry["parentRef"] == *reference);
        let there = entry.and_then(|entry| entry["conditions"].as_array()).map_or(&[][..], Vec::as_slice);
        let conditions = match write(&wanted, there, known.generation, now) {
            Some(conditions) => {
                changed = true;
                conditions
            }
            None => there.into(),
        };
        parents.push(json!({ "parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions }));
    }
    // A parent that the route no longer names.
    changed |= before.len() != known.parents.len();
    changed.then(|| json!({ "parents": parents }))
}

#[derive(Debug, Clone)]
struct Condition {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn yes(reason: &'static str, message: &str) -> Self {
        Self { status: "True", reason, message: message.to_owned() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason, message }
    }
}

/// The conditions with ours among them; `None`: they say so already.
fn write(wanted: &[(&str, Condition)], there: &[Value], generation: i64, now: &str) -> Option<Vec<Value>> {
    let mut changed = false;
    let mut conditions = there.to_vec();
    for (kind, Condition { status, reason, message }) in wanted {
        let slot = conditions.iter().position(|condition| condition["type"] == *kind);
        let before = slot.map(|slot| conditions[slot].clone()).unwrap_or_default();
        let same = before["status"] == *status
            && before["reason"] == *reason
            && before["message"] == message.as_str()
            && before["observedGeneration"] == generation;
        if same {
            continue;
        }
        changed = true;
        // It tells when the answer turned, not when it was last written.
        let since = match before["lastTransitionTime"].as_str().filter(|_| before["status"] == *status) {
            Some(since) => since,
            None => now,
        };
        let condition = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        });
        match slot {
            Some(slot) => conditions[slot] = condition,
            None => conditions.push(condition),
        }
    }
    changed.then_some(conditions)
}

fn reason(findings: &[&Finding]) -> &'static str {
    let of = |finding: &Finding| {
        if finding.field.contains("targetRefs") {
            "TargetNotFound"
        } else if finding.field.contains("parentRefs") {
            "NoMatchingParent"
        } else if finding.message.contains("takes the same requests") || finding.message.contains("for the same target")
        {
            "Conflicted"
        } else {
            "Invalid"
        }
    };
    findings.first().map_or("Invalid", |finding| of(finding))
}

fn told<'a>(findings: impl Iterator<Item = &'a Finding>) -> String {
    let lines: Vec<String> = findings
        .map(|finding| {
            let Finding { field, message, hint, .. } = finding;
            let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
            let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
            format!("{field}{message}{hint}")
        })
        .collect();
    bounded(lines.join("; "))
}

fn bounded(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    text
}

/// Kubernetes takes 32 KiB; nobody reads that.
const MAX_MESSAGE: usize = 1024;
/// Why `Programmed` is `False` when clients refuse what was made of the object.
const REFUSED: &str = "Refused";

#[cfg(test)]
mod tests {
    use super::*;

    fn known(parents: Vec<Value>, status: Vec<Value>, invalid: Vec<Finding>) -> Known {
        Known { generation: 2, resource_version: "5".to_owned(), parents, status, invalid }
    }

    fn none() -> Refusals {
        Refusals::default()
    }

    fn refusals(object: &ResourceKey, parent: Option<ServiceKey>, text: &str) -> Refusals {
        let mut refusals = Refusals::default();
        let refused = [(Part { object: object.clone(), parent }, text.to_owned())];
        refusals.on(refused.into(), |_| Some(2), std::time::Instant::now());
        refusals
    }

    fn finding(field: &str, message: &str) -> Finding {
        Finding { field: field.to_owned(), message: message.to_owned(), ..Finding::default() }
    }

    fn policy() -> ResourceKey {
        ResourceKey::new(Kind::TrafficPolicy, "shop", "orders")
    }

    fn condition<'a>(conditions: &'a Value, kind: &str) -> &'a Value {
        conditions.as_array().unwrap().iter().find(|condition| condition["type"] == kind).unwrap()
    }

    #[test]
    fn it_is_written_once_and_keeps_the_time_of_the_turn() {
        let first = desired(&policy(), &known(vec![], vec![], vec![]), true, &[], &none(), "T1").unwrap();
        let accepted = condition(&first["conditions"], "Accepted");
        assert_eq!((&accepted["status"], &accepted["observedGeneration"]), (&json!("True"), &json!(2)));
        let there = first["conditions"].as_array().unwrap().clone();
        assert_eq!(desired(&policy(), &known(vec![], there.clone(), vec![]), true, &[], &none(), "T2"), None);
        let broken = known(vec![], there.clone(), vec![finding("spec.retry.attempts", "12 is out of bounds")]);
        let second = desired(&policy(), &broken, true, &[], &none(), "T2").unwrap();
        let accepted = condition(&second["conditions"], "Accepted");
        assert_eq!(accepted["reason"], "Invalid");
        assert_eq!(accepted["message"], "spec.retry.attempts: 12 is out of bounds");
        assert_eq!(accepted["lastTransitionTime"], "T2");
        let programmed = condition(&second["conditions"], "Programmed");
        assert_eq!(programmed["message"], "an earlier version of it stays in force");
        // A new generation that is as good as the one before turned nothing.
        let newer = Known { generation: 3, ..known(vec![], there, vec![]) };
        let third = desired(&policy(), &newer, true, &[], &none(), "T3").unwrap();
        let accepted = condition(&third["conditions"], "Accepted");
        assert_eq!((&accepted["lastTransitionTime"], &accepted["observedGeneration"]), (&json!("T1"), &json!(3)));
    }

    #[test]
    fn a_policy_without_target_is_told_so() {
        let missing = finding("spec.targetRefs[0].name", "there is no Service shop/orders");
        let status = desired(&policy(), &known(vec![], vec![], vec![]), true, &[&missing], &none(), "T").unwrap();
        assert_eq!(condition(&status["conditions"], "Accepted")["reason"], "TargetNotFound");
    }

    #[test]
    fn a_route_keeps_what_others_wrote_and_drops_what_is_no_longer_its_own() {
        let key = ResourceKey::new(Kind::HttpRoute, "shop", "orders");
        let parent = json!({ "kind": "Service", "group": "", "name": "orders" });
        let other = json!({ "controllerName": "example.com/other", "parentRef": { "name": "edge" } });
        let stale = json!({ "controllerName": CONTROLLER, "parentRef": { "kind": "Service", "name": "old" } });
        let before = known(vec![parent.clone()], vec![other.clone(), stale], vec![]);
        let missing = finding("spec.rules[0].backendRefs[1].name", "there is no Service shop/orders-v2");
        let status = desired(&key, &before, true, &[&missing], &none(), "T").unwrap();
        let parents = status["parents"].as_array().unwrap();
        assert_eq!((parents.len(), &parents[0], &parents[1]["parentRef"]), (2, &other, &parent));
        assert_eq!(condition(&parents[1]["conditions"], "Accepted")["status"], "True");
        assert_eq!(condition(&parents[1]["conditions"], "ResolvedRefs")["reason"], "BackendNotFound");
        let settled = known(vec![parent], parents.clone(), vec![]);
        assert_eq!(desired(&key, &settled, true, &[&missing], &none(), "T2"), None);
        let left = known(vec![], parents.clone(), vec![]);
        assert_eq!(desired(&key, &left, false, &[], &none(), "T3").unwrap(), json!({ "parents": [other] }));
        assert_eq!(desired(&key, &known(vec![], vec![other], vec![]), false, &[], &none(), "T"), None, "none of ours");
    }

    #[test]
    fn programmed_is_the_word_of_the_clients() {
        let refused = refusals(&policy(), None, "shop/web/1 refuses the cluster shop/orders:80: lb_policy: is unknown");
        let first = desired(&policy(), &known(vec![], vec![], vec![]), true, &[], &refused, "T1").unwrap();
        assert_eq!(condition(&first["conditions"], "Accepted")["status"], "True");
        let programmed = condition(&first["conditions"], "Programmed");
        assert_eq!((&programmed["status"], &programmed["reason"]), (&json!("False"), &json!("Refused")));
        assert!(programmed["message"].as_str().unwrap().starts_with("shop/web/1 refuses"), "{programmed}");
        let there = known(vec![], first["conditions"].as_array().unwrap().clone(), vec![]);
        assert_eq!(desired(&policy(), &there, true, &[], &refused, "T2"), None, "it is said once");
        let key = policy();
        let found: Vec<_> = found(&key, &there).collect();
        assert_eq!(found[0].0, Part { object: policy(), parent: None });
        assert_eq!((found.len(), found[0].1), (1, programmed["message"].as_str().unwrap()));
        // Its end.
        let last = desired(&policy(), &there, true, &[], &none(), "T3").unwrap();
        let programmed = condition(&last["conditions"], "Programmed");
        assert_eq!((&programmed["status"], &programmed["lastTransitionTime"]), (&json!("True"), &json!("T3")));
        assert_eq!(condition(&last["conditions"], "Accepted")["lastTransitionTime"], "T1");
    }

    #[test]
    fn a_message_has_a_bound_and_says_the_same_when_it_is_read_back() {
        let refused = refusals(&policy(), None, &"ä".repeat(5000));
        let status = desired(&policy(), &known(vec![], vec![], vec![]), true, &[], &refused, "T").unwrap();
        let message = condition(&status["conditions"], "Programmed")["message"].as_str().unwrap().to_owned();
        assert!(message.len() < 1030 && message.ends_with('…'), "{}", message.len());
        assert_eq!(bounded(message.clone()), message);
    }

    #[test]
    fn a_refusal_is_told_of_the_parent_whose_calls_it_concerns() {
        let key = ResourceKey::new(Kind::HttpRoute, "shop", "orders");
        let one = json!({ "kind": "Service", "name": "orders" });
        let two = json!({ "kind": "Service", "name": "orders", "namespace": "other" });
        let refused = refusals(&key, Some(ServiceKey::new("shop", "orders")), "no");
        let status = desired(&key, &known(vec![one, two], vec![], vec![]), true, &[], &refused, "T").unwrap();
        let parents = status["parents"].as_array().unwrap();
        let programmed = |at: usize| condition(&parents[at]["conditions"], "Programmed")["status"].clone();
        assert_eq!((programmed(0), programmed(1)), (json!("False"), json!("True")));
        let there = known(vec![], parents.clone(), vec![]);
        let found: Vec<Part> = found(&key, &there).map(|(part, _)| part).collect();
        assert_eq!(found, [Part { object: key, parent: Some(ServiceKey::new("shop", "orders")) }]);
    }

    #[test]
    fn what_is_not_accepted_is_not_programmed() {
        let missing = finding("spec.targetRefs[0].name", "there is no Service shop/orders");
        let status = desired(&policy(), &known(vec![], vec![], vec![]), true, &[&missing], &none(), "T").unwrap();
        let programmed = condition(&status["conditions"], "Programmed");
        assert_eq!((&programmed["status"], &programmed["reason"]), (&json!("False"), &json!("TargetNotFound")));
    }
}
