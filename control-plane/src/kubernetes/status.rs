//! What is written back: the conditions of an object. Pure.
//!
//! Routes get what the Gateway API asks for (`status.parents`, one entry for each parent of ours; those of other
//! controllers stay as they are), Weft's own kinds `status.conditions`.

use serde_json::{Value, json};
use weft_model::{Finding, Kind, ResourceKey};

use super::state::Known;

/// How this control plane signs the statuses of routes.
pub const CONTROLLER: &str = "weft.mesh/control-plane";

/// The `status` to write, if it differs from what is there. `in_force`: some version of it is obeyed. `findings`: what is
/// wrong with it among the others. `now`: RFC 3339.
pub fn desired(key: &ResourceKey, known: &Known, in_force: bool, findings: &[&Finding], now: &str) -> Option<Value> {
    match key.kind {
        Kind::HttpRoute | Kind::GrpcRoute => route(known, in_force, findings, now),
        Kind::TrafficPolicy | Kind::AccessPolicy | Kind::Mesh => own(known, in_force, findings, now),
        Kind::Service | Kind::EndpointSlice => None,
    }
}

fn own(known: &Known, in_force: bool, findings: &[&Finding], now: &str) -> Option<Value> {
    let accepted = match (known.invalid.is_empty(), findings) {
        (false, _) => Condition::no("Invalid", told(known.invalid.iter())),
        (true, []) => Condition::yes("Accepted", "obeyed"),
        (true, some) => Condition::no(reason(some), told(some.iter().copied())),
    };
    let programmed = match (known.invalid.is_empty(), in_force) {
        (true, true) => Condition::yes("Programmed", "part of the mesh's configuration"),
        (true, false) => Condition::no("Pending", "not part of the mesh's configuration yet".to_owned()),
        (false, true) => Condition::no("Invalid", "an earlier version of it stays in force".to_owned()),
        (false, false) => Condition::no("Invalid", "nothing of it is in force".to_owned()),
    };
    let wanted = [("Accepted", accepted), ("Programmed", programmed)];
    let conditions = write(&wanted, &known.status, known.generation, now)?;
    Some(json!({ "conditions": conditions }))
}

fn route(known: &Known, in_force: bool, findings: &[&Finding], now: &str) -> Option<Value> {
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
    let wanted = [("Accepted", accepted), ("ResolvedRefs", resolved)];
    let mut changed = false;
    let ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let mut parents: Vec<Value> = known.status.iter().filter(|entry| !ours(entry)).cloned().collect();
    let before: Vec<&Value> = known.status.iter().filter(ours).collect();
    for parent in &known.parents {
        let entry = before.iter().find(|entry| entry["parentRef"] == *parent);
        let there = entry.and_then(|entry| entry["conditions"].as_array()).map_or(&[][..], Vec::as_slice);
        let conditions = match write(&wanted, there, known.generation, now) {
            Some(conditions) => {
                changed = true;
                conditions
            }
            None => there.into(),
        };
        parents.push(json!({ "parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions }));
    }
    // A parent that the route no longer names.
    changed |= before.len() != known.parents.len();
    changed.then(|| json!({ "parents": parents }))
}

#[derive(Debug)]
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
    let mut text = lines.join("; ");
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    text
}

/// Kubernetes takes 32 KiB; nobody reads that.
const MAX_MESSAGE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn known(parents: Vec<Value>, status: Vec<Value>, invalid: Vec<Finding>) -> Known {
        Known { generation: 2, resource_version: "5".to_owned(), parents, status, invalid }
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
        let first = desired(&policy(), &known(vec![], vec![], vec![]), true, &[], "T1").unwrap();
        let accepted = condition(&first["conditions"], "Accepted");
        assert_eq!((&accepted["status"], &accepted["observedGeneration"]), (&json!("True"), &json!(2)));
        let there = first["conditions"].as_array().unwrap().clone();
        assert_eq!(desired(&policy(), &known(vec![], there.clone(), vec![]), true, &[], "T2"), None);
        let broken = known(vec![], there.clone(), vec![finding("spec.retry.attempts", "12 is out of bounds")]);
        let second = desired(&policy(), &broken, true, &[], "T2").unwrap();
        let accepted = condition(&second["conditions"], "Accepted");
        assert_eq!(accepted["reason"], "Invalid");
        assert_eq!(accepted["message"], "spec.retry.attempts: 12 is out of bounds");
        assert_eq!(accepted["lastTransitionTime"], "T2");
        let programmed = condition(&second["conditions"], "Programmed");
        assert_eq!(programmed["message"], "an earlier version of it stays in force");
        // A new generation that is as good as the one before turned nothing.
        let newer = Known { generation: 3, ..known(vec![], there, vec![]) };
        let third = desired(&policy(), &newer, true, &[], "T3").unwrap();
        let accepted = condition(&third["conditions"], "Accepted");
        assert_eq!((&accepted["lastTransitionTime"], &accepted["observedGeneration"]), (&json!("T1"), &json!(3)));
    }

    #[test]
    fn a_policy_without_target_is_told_so() {
        let missing = finding("spec.targetRefs[0].name", "there is no Service shop/orders");
        let status = desired(&policy(), &known(vec![], vec![], vec![]), true, &[&missing], "T").unwrap();
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
        let status = desired(&key, &before, true, &[&missing], "T").unwrap();
        let parents = status["parents"].as_array().unwrap();
        assert_eq!((parents.len(), &parents[0], &parents[1]["parentRef"]), (2, &other, &parent));
        assert_eq!(condition(&parents[1]["conditions"], "Accepted")["status"], "True");
        assert_eq!(condition(&parents[1]["conditions"], "ResolvedRefs")["reason"], "BackendNotFound");
        let settled = known(vec![parent], parents.clone(), vec![]);
        assert_eq!(desired(&key, &settled, true, &[&missing], "T2"), None);
        let left = known(vec![], parents.clone(), vec![]);
        assert_eq!(desired(&key, &left, false, &[], "T3").unwrap(), json!({ "parents": [other] }));
        assert_eq!(desired(&key, &known(vec![], vec![other], vec![]), false, &[], "T"), None, "none of ours");
    }
}
