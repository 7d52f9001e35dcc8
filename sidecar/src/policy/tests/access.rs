//! Access rules: a table, and the promise that extra header values and other spellings never let a request in.

use http::{HeaderName, Method};
use proptest::prelude::*;
use weft_xds::resource::{
    AccessRule, HeaderKey, HeaderMatch, HeaderTest, Permission, Principal, Rbac, RbacAction, StringMatch,
};

use crate::{
    policy::access::{Call, Decision, Denial, Named, evaluate},
    route::{
        Head, Target,
        tests::{fields, head},
    },
};

const FRONTEND: &str = "spiffe://weft.local/ns/default/sa/frontend";
const EVIL: &str = "spiffe://weft.local/ns/evil/sa/frontend";

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.into(), ignore_case: false }
}

fn prefix(value: &str) -> StringMatch {
    StringMatch::Prefix { value: value.into(), ignore_case: false }
}

fn identity(value: &str) -> Principal {
    Principal::Authenticated(Some(exact(value)))
}

fn namespace(value: &str) -> Principal {
    Principal::Authenticated(Some(prefix(&format!("spiffe://weft.local/ns/{value}/"))))
}

fn header(name: &'static str, value: &str, invert: bool) -> HeaderMatch {
    let name = HeaderKey::Name(HeaderName::from_static(name));
    HeaderMatch { name, test: HeaderTest::Value(exact(value)), invert }
}

fn method(value: &str) -> Permission {
    let test = HeaderTest::Value(exact(value));
    Permission::Header(HeaderMatch { name: HeaderKey::Method, test, invert: false })
}

fn rule(policy: &str, principals: Vec<Principal>, permissions: Vec<Permission>) -> AccessRule {
    AccessRule { policy: policy.into(), rule: "0".into(), principals, permissions }
}

fn filter(action: RbacAction, policies: Vec<AccessRule>) -> Rbac {
    Rbac { action, policies, shadow: false }
}

fn call<'a>(identity: Option<&'a str>, head: &'a Head<'a>) -> Call<'a> {
    Call { identity, port: 80, head: Some(head) }
}

fn named(policy: &str) -> Named<'_> {
    Named { policy, rule: "0" }
}

fn allowed(filters: &[Rbac], call: &Call<'_>) -> bool {
    matches!(evaluate(filters, call).decision, Decision::Allowed(_))
}

#[test]
fn deny_goes_before_allow_and_each_answer_names_its_rule() {
    let filters = [
        filter(
            RbacAction::Deny,
            vec![rule("default/no-admin", vec![Principal::Any], vec![Permission::Path(prefix("/admin"))])],
        ),
        filter(
            RbacAction::Allow,
            vec![
                rule("default/frontend", vec![identity(FRONTEND)], vec![method("GET")]),
                rule("default/batch", vec![namespace("batch")], vec![Permission::Any]),
            ],
        ),
    ];
    let headers = fields(&[]);
    let get = head("/orders", None, &headers);
    let post = Head { method: &Method::POST, ..get };
    let admin = head("/admin/x", None, &headers);
    let batch = "spiffe://weft.local/ns/batch/sa/any";
    for (who, head, decision) in [
        (Some(FRONTEND), &get, Decision::Allowed(Some(named("default/frontend")))),
        (Some(batch), &post, Decision::Allowed(Some(named("default/batch")))),
        (Some(FRONTEND), &post, Decision::Denied(Denial::NoneMatched(Some("default/frontend")))),
        (Some(EVIL), &get, Decision::Denied(Denial::NoneMatched(Some("default/frontend")))),
        (None, &get, Decision::Denied(Denial::NoneMatched(Some("default/frontend")))),
        (Some(FRONTEND), &admin, Decision::Denied(Denial::Matched(named("default/no-admin")))),
        (None, &admin, Decision::Denied(Denial::Matched(named("default/no-admin")))),
    ] {
        assert_eq!(evaluate(&filters, &call(who, head)).decision, decision, "{who:?} {head:?}");
    }
}

#[test]
fn nothing_to_obey_allows_and_an_empty_allow_list_refuses() {
    let headers = fields(&[]);
    let head = head("/", None, &headers);
    assert_eq!(evaluate(&[], &call(None, &head)).decision, Decision::Allowed(None));
    let none = [filter(RbacAction::Allow, Vec::new())];
    let denial = Denial::NoneMatched(None);
    assert_eq!(evaluate(&none, &call(Some(FRONTEND), &head)).decision, Decision::Denied(denial));
    assert_eq!((denial.policy(), denial.rule()), ("", "none"));
    assert!(allowed(&[filter(RbacAction::Deny, Vec::new())], &call(None, &head)));
    // A rule without principals or permissions takes nobody and nothing.
    let nobody = [filter(RbacAction::Allow, vec![rule("p", Vec::new(), vec![Permission::Any])])];
    let nothing = [filter(RbacAction::Allow, vec![rule("p", vec![Principal::Any], Vec::new())])];
    assert!(!allowed(&nobody, &call(Some(FRONTEND), &head)) && !allowed(&nothing, &call(Some(FRONTEND), &head)));
}

#[test]
fn a_caller_without_identity() {
    let headers = fields(&[]);
    let head = head("/", None, &headers);
    let plain = call(None, &head);
    let one = |action, principal| [filter(action, vec![rule("p", vec![principal], vec![Permission::Any])])];
    let not = |principal| Principal::Not(Box::new(principal));
    for (action, principal, passes) in [
        (RbacAction::Allow, Principal::Any, true),
        (RbacAction::Allow, Principal::Authenticated(None), false),
        (RbacAction::Allow, identity(FRONTEND), false),
        (RbacAction::Allow, not(Principal::Authenticated(None)), true),
        // It may be anyone, so it may be the one that is left out.
        (RbacAction::Allow, not(namespace("evil")), false),
        (RbacAction::Deny, Principal::Authenticated(None), true),
        (RbacAction::Deny, namespace("evil"), false),
        (RbacAction::Deny, not(Principal::Authenticated(None)), false),
        (RbacAction::Deny, not(identity(FRONTEND)), false),
    ] {
        assert_eq!(allowed(&one(action, principal.clone()), &plain), passes, "{action:?} {principal:?}");
    }
    assert!(allowed(&one(RbacAction::Deny, not(identity(FRONTEND))), &call(Some(FRONTEND), &head)));
}

#[test]
fn raw_connections_know_identity_and_port_and_fail_closed_on_the_rest() {
    let raw = Call { identity: Some(FRONTEND), port: 9000, head: None };
    let one = |action, permission| [filter(action, vec![rule("p", vec![identity(FRONTEND)], vec![permission])])];
    let not = |permission| Permission::Not(Box::new(permission));
    for (action, permission, passes) in [
        (RbacAction::Allow, Permission::Port(9000), true),
        (RbacAction::Allow, Permission::Port(80), false),
        (RbacAction::Allow, Permission::Path(prefix("/")), false),
        (RbacAction::Allow, not(Permission::Path(prefix("/"))), false),
        (RbacAction::Allow, method("GET"), false),
        (RbacAction::Deny, Permission::Port(9000), false),
        (RbacAction::Deny, Permission::Path(prefix("/admin")), false),
        (RbacAction::Deny, not(Permission::Path(prefix("/ok"))), false),
        (RbacAction::Deny, Permission::And(vec![Permission::Port(80), method("GET")]), true),
        (RbacAction::Deny, Permission::Or(vec![Permission::Port(80), method("GET")]), false),
    ] {
        assert_eq!(allowed(&one(action, permission.clone()), &raw), passes, "{action:?} {permission:?}");
    }
}

#[test]
fn shadow_filters_are_reported_and_not_obeyed() {
    let mut audit = filter(RbacAction::Deny, vec![rule("default/audit", vec![Principal::Any], vec![Permission::Any])]);
    audit.shadow = true;
    let headers = fields(&[]);
    let head = head("/", None, &headers);
    let filters = [audit];
    let verdict = evaluate(&filters, &call(None, &head));
    assert_eq!(verdict.decision, Decision::Allowed(None));
    assert_eq!(verdict.shadow, Some(Denial::Matched(named("default/audit"))));
}

#[test]
fn and_or_not() {
    let headers = fields(&[]);
    let head = head("/a", None, &headers);
    let one = |principal, permission| {
        let filters = [filter(RbacAction::Allow, vec![rule("p", vec![principal], vec![permission])])];
        allowed(&filters, &call(Some(FRONTEND), &head))
    };
    let path = |value| Permission::Path(exact(value));
    assert!(one(Principal::And(vec![namespace("default"), identity(FRONTEND)]), Permission::Any));
    assert!(!one(Principal::And(vec![namespace("default"), identity(EVIL)]), Permission::Any));
    assert!(one(Principal::Or(vec![identity(EVIL), identity(FRONTEND)]), path("/a")));
    assert!(!one(Principal::Any, Permission::And(vec![path("/a"), Permission::Port(81)])));
    assert!(one(Principal::Any, Permission::Or(vec![path("/b"), Permission::Port(80)])));
    assert!(one(Principal::Any, Permission::Not(Box::new(path("/b")))));
    assert!(!one(Principal::Any, Permission::Or(Vec::new())));
}

/// Access rules over one header, any nesting.
fn permission() -> impl Strategy<Value = Permission> {
    let leaf =
        ("[a-c]", any::<bool>()).prop_map(|(value, invert)| Permission::Header(header("x-role", &value, invert)));
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|not| Permission::Not(Box::new(not))),
            prop::collection::vec(inner.clone(), 1..3).prop_map(Permission::And),
            prop::collection::vec(inner, 1..3).prop_map(Permission::Or),
        ]
    })
}

proptest! {
    /// Whatever the rule: a request with several values passes only if it would with each of them alone.
    #[test]
    fn more_values_never_let_in(permission in permission(), deny: bool, values in prop::collection::vec("[a-d]", 1..4)) {
        let action = if deny { RbacAction::Deny } else { RbacAction::Allow };
        let filters = [filter(action, vec![rule("p", vec![Principal::Any], vec![permission])])];
        let with = |values: &[String]| {
            let mut headers = fields(&[]);
            for value in values {
                headers.append("x-role", value.parse().expect("a value"));
            }
            allowed(&filters, &call(None, &head("/", None, &headers)))
        };
        if with(&values) {
            for value in &values {
                prop_assert!(with(std::slice::from_ref(value)), "{values:?} passes, {value} does not");
            }
        }
    }

    /// Rules see the path that routes see and that is sent on.
    #[test]
    fn no_spelling_goes_round_a_rule(detour in 0usize..6, upper: bool, tail in "[a-z]{0,4}") {
        let dmin = if upper { "%64min" } else { "d%6Din" };
        let raw = [
            format!("/a{dmin}/{tail}"),
            format!("//a{dmin}//{tail}"),
            format!("/./a{dmin}/./{tail}"),
            format!("/x/../a{dmin}/{tail}"),
            format!("/x/%2e%2e/a{dmin}/{tail}"),
            format!("/%61{dmin}/y/..//{tail}"),
        ];
        let target = Target::parse(&raw[detour]).expect("a path");
        let headers = fields(&[]);
        let filters = [filter(
            RbacAction::Deny,
            vec![rule("p", vec![Principal::Any], vec![Permission::Path(prefix("/admin/"))])],
        )];
        prop_assert!(!allowed(&filters, &call(None, &head(&target.path, None, &headers))), "{}", target.path);
    }
}
