//! Virtual hosts, routes, shares, names of services.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use regex::Regex;
use weft_xds::resource::{
    Forward, HeaderEdits, HeaderKey, HeaderMatch, HeaderTest, PathMatch, QueryMatch, Route, RouteAction, RouteMatch,
    StringMatch, VirtualHost, WeightedCluster,
};

use super::{fields, head};
use crate::route::{
    Authority, Head, RouteIndex, find_route, find_virtual_host,
    headers::{all_pass, any_passes, edit, route_passes},
    host::MeshHost,
    matches::path_passes,
    pick_cluster, text,
};

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.into(), ignore_case: false }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a valid pattern")
}

fn route(name: &str, path: PathMatch, headers: Vec<HeaderMatch>, query: Vec<QueryMatch>, grpc: bool) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches: RouteMatch { path, headers, query, grpc },
        action: RouteAction::Respond { status: http::StatusCode::OK, body: "".into() },
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        source: "".into(),
        revision: 1,
    })
}

fn host(domains: &[&str], routes: Vec<Arc<Route>>) -> Arc<VirtualHost> {
    let domains: Vec<Box<str>> = domains.iter().map(|&domain| domain.into()).collect();
    Arc::new(VirtualHost { name: domains.join(",").into(), domains, routes, endpoint: None })
}

#[test]
fn the_closest_domain_wins() {
    let hosts = [
        host(&["*"], Vec::new()),
        host(&["*.example", "orders.default"], Vec::new()),
        host(&["*.shop.example"], Vec::new()),
        host(&["a.shop.example"], Vec::new()),
    ];
    for (authority, which) in [
        ("orders.default", 1),
        ("a.shop.example", 3),
        ("b.shop.example", 2),
        ("shop.example", 1),
        (".example", 0),
        ("example", 0),
        ("other", 0),
    ] {
        let found = find_virtual_host(&hosts, authority).expect("`*` takes all");
        assert_eq!(found.name, hosts[which].name, "{authority}");
    }
    assert!(find_virtual_host(&hosts[2..], "orders").is_none());
}

#[test]
fn path_tests() {
    let separated = |prefix: &str| PathMatch::SeparatedPrefix(prefix.into());
    for (test, path, passes) in [
        (PathMatch::Prefix("/".into()), "/anything", true),
        (PathMatch::Prefix("/ord".into()), "/orders", true),
        (PathMatch::Prefix("/orders/".into()), "/orders", false),
        (separated("/orders"), "/orders", true),
        (separated("/orders"), "/orders/7", true),
        (separated("/orders"), "/orders2", false),
        (separated("/orders/"), "/orders", true),
        (separated("/orders/"), "/orders/7", true),
        (separated("/"), "/", true),
        (separated("/"), "/x", true),
        (PathMatch::Exact("/orders".into()), "/orders", true),
        (PathMatch::Exact("/orders".into()), "/orders/", false),
        (PathMatch::Exact("/orders".into()), "/Orders", false),
        (PathMatch::Regex(regex("/v[0-9]+/x")), "/v12/x", true),
        (PathMatch::Regex(regex("/v[0-9]+/x")), "/v12/x/y", false),
        (PathMatch::Regex(regex("v[0-9]")), "/v1", false),
    ] {
        assert_eq!(path_passes(&test, path), passes, "{test:?} {path}");
    }
}

#[test]
fn string_tests() {
    let (i, s) = (true, false);
    let prefix = |value: &str, ignore_case| StringMatch::Prefix { value: value.into(), ignore_case };
    let suffix = |value: &str, ignore_case| StringMatch::Suffix { value: value.into(), ignore_case };
    let contains = |value: &str, ignore_case| StringMatch::Contains { value: value.into(), ignore_case };
    for (test, value, passes) in [
        (exact("a"), "a", true),
        (exact("a"), "A", false),
        (StringMatch::Exact { value: "a".into(), ignore_case: true }, "A", true),
        (prefix("ab", s), "abc", true),
        (prefix("ab", s), "a", false),
        (prefix("AB", i), "abc", true),
        (prefix("a", s), "é", false),
        (suffix("bc", s), "abc", true),
        (suffix("bc", s), "c", false),
        (suffix("BC", i), "abc", true),
        (contains("b", s), "abc", true),
        (contains("B", s), "abc", false),
        (contains("B", i), "abc", true),
        (contains("", i), "", true),
        (StringMatch::Regex(regex("a+")), "aaa", true),
        (StringMatch::Regex(regex("a+")), "aaab", false),
    ] {
        assert_eq!(text::passes(&test, value), passes, "{test:?} {value}");
    }
}

fn rule(name: HeaderKey, test: HeaderTest, invert: bool) -> HeaderMatch {
    HeaderMatch { name, test, invert }
}

fn role(test: HeaderTest, invert: bool) -> HeaderMatch {
    rule(HeaderKey::Name(HeaderName::from_static("x-role")), test, invert)
}

#[test]
fn of_several_values_a_second_one_can_only_get_a_request_refused() {
    let admin = || HeaderTest::Value(exact("admin"));
    // Fields; then for the rule and its inversion: route, refusing rule, allowing rule.
    type Row = (&'static [(&'static str, &'static str)], [bool; 3], [bool; 3]);
    let rows: [Row; 6] = [
        (&[], [false, false, false], [true, true, true]),
        (&[("x-role", "admin")], [true, true, true], [false, false, false]),
        (&[("x-role", "guest")], [false, false, false], [true, true, true]),
        (&[("x-role", "guest"), ("x-role", "admin")], [true, true, false], [false, true, false]),
        (&[("x-role", "guest, admin")], [false, true, false], [true, true, false]),
        (&[("x-role", "admin,admin")], [false, true, false], [true, true, false]),
    ];
    for (values, plain, inverted) in rows {
        let headers = fields(values);
        let head = head("/", None, &headers);
        let three = |invert| {
            let rule = role(admin(), invert);
            [route_passes(&rule, &head), any_passes(&rule, &head), all_pass(&rule, &head)]
        };
        assert_eq!(three(false), plain, "{values:?}");
        assert_eq!(three(true), inverted, "{values:?} inverted");
    }
}

#[test]
fn header_tests() {
    let mut headers = fields(&[("x-role", "7")]);
    let pseudo = |key, value: &str| rule(key, HeaderTest::Value(exact(value)), false);
    {
        let head = head("/a", None, &headers);
        let head = Head { method: &Method::POST, ..head };
        for (rule, passes) in [
            (role(HeaderTest::Present(true), false), true),
            (role(HeaderTest::Present(false), false), false),
            (role(HeaderTest::Present(true), true), false),
            (rule(HeaderKey::Name(HeaderName::from_static("x-no")), HeaderTest::Present(false), false), true),
            (role(HeaderTest::Range { start: 7, end: 8 }, false), true),
            (role(HeaderTest::Range { start: 0, end: 7 }, false), false),
            (pseudo(HeaderKey::Method, "POST"), true),
            (pseudo(HeaderKey::Method, "post"), false),
            (pseudo(HeaderKey::Path, "/a"), true),
            (pseudo(HeaderKey::Authority, "orders.default"), true),
            (pseudo(HeaderKey::Scheme, "http"), true),
            (rule(HeaderKey::Method, HeaderTest::Present(true), false), true),
        ] {
            assert_eq!(route_passes(&rule, &head), passes, "{rule:?}");
            assert_eq!(any_passes(&rule, &head), passes, "{rule:?}");
            assert_eq!(all_pass(&rule, &head), passes, "{rule:?}");
        }
    }
    // Bytes that are no text never equal a text, and never crash.
    headers.insert("x-role", HeaderValue::from_bytes(b"adm\xffin").expect("a value"));
    assert!(!route_passes(&role(HeaderTest::Value(exact("admin")), false), &head("/", None, &headers)));
}

#[test]
fn the_first_route_that_takes_the_request() {
    let prefix = |prefix: &str| PathMatch::SeparatedPrefix(prefix.into());
    let query = |name: &str, value: Option<&str>| QueryMatch { name: name.into(), value: value.map(exact) };
    let routes = vec![
        route("grpc", prefix("/"), Vec::new(), Vec::new(), true),
        route("query", prefix("/"), Vec::new(), vec![query("debug", Some("a b")), query("x", None)], false),
        route(
            "post",
            prefix("/orders"),
            vec![rule(HeaderKey::Method, HeaderTest::Value(exact("POST")), false)],
            vec![],
            false,
        ),
        route("orders", prefix("/orders"), Vec::new(), Vec::new(), false),
    ];
    let host = host(&["*"], routes);
    let (none, grpc) = (fields(&[]), fields(&[("content-type", "application/grpc+proto")]));
    let web = fields(&[("content-type", "application/grpc-web")]);
    let found = |head: &Head<'_>| find_route(&host, head).map(|route| route.name.to_string());
    assert_eq!(found(&head("/orders/1", None, &grpc)).as_deref(), Some("grpc"));
    assert_eq!(found(&head("/orders/1", None, &web)).as_deref(), Some("orders"));
    assert_eq!(found(&head("/orders/1", None, &none)).as_deref(), Some("orders"));
    let post = Head { method: &Method::POST, ..head("/orders/1", None, &none) };
    assert_eq!(found(&post).as_deref(), Some("post"));
    assert_eq!(found(&head("/other", None, &none)), None);
    for (query, taken) in [
        ("debug=a+b&x", true),
        ("x=1&%64ebug=a%20b", true),
        ("debug=a+b", false),
        ("debug=c&debug=a+b&x", false),
        ("&&x&debug=a b", true),
    ] {
        let expected = taken.then_some("query");
        assert_eq!(found(&head("/other", Some(query), &none)).as_deref(), expected, "{query}");
    }
}

fn forward(weights: &[u32]) -> Forward {
    let share = |(index, &weight): (usize, &u32)| WeightedCluster::new(index.to_string(), weight);
    Forward::to(weights.iter().enumerate().map(share).collect())
}

#[test]
fn shares_are_exact_over_all_chances() {
    let forward = forward(&[90, 0, 10]);
    let mut counts = [0; 3];
    for step in 0..10_000u64 {
        let random = (2 * step + 1) * (u64::MAX / 20_000);
        let name = &pick_cluster(&forward, random).expect("one").name;
        counts[name.parse::<usize>().expect("a number")] += 1;
    }
    assert_eq!(counts, [9000, 0, 1000]);
    assert_eq!(pick_cluster(&forward, u64::MAX).map(|cluster| &*cluster.name), Some("2"));
    assert_eq!(pick_cluster(&forward, 0).map(|cluster| &*cluster.name), Some("0"));
}

proptest! {
    #[test]
    fn a_cluster_without_weight_gets_nothing(weights in prop::collection::vec(0u32..5, 2..6), random: u64) {
        let forward = forward(&weights);
        let picked = pick_cluster(&forward, random);
        prop_assert_eq!(picked.is_some(), weights.iter().any(|&weight| weight > 0));
        prop_assert!(picked.is_none_or(|cluster| cluster.weight > 0));
    }
}

#[test]
fn names_of_services() {
    for (authority, key) in [
        ("orders", Some("orders.shop")),
        ("Orders:8080", Some("orders.shop:8080")),
        ("orders.default", Some("orders.default")),
        ("orders.default.:80", Some("orders.default:80")),
        ("orders.default.svc", Some("orders.default")),
        ("orders.default.svc.cluster.local:9000", Some("orders.default:9000")),
        ("orders.default.mesh", Some("orders.default")),
        ("orders.default.mesh.cluster.local", None),
        ("orders.default.svc.cluster", None),
        ("orders.default.svc.cluster.local.x", None),
        ("www.example.com", None),
        ("10.0.0.1:80", None),
        ("[::1]:80", None),
    ] {
        let authority = Authority::parse(authority).expect("a host");
        assert_eq!(MeshHost::parse(&authority, "shop").map(|host| host.key()).as_deref(), key, "{authority}");
    }
}

#[test]
fn edits_remove_set_add() {
    let (a, b, c) = (HeaderName::from_static("a"), HeaderName::from_static("b"), HeaderName::from_static("c"));
    let value = HeaderValue::from_static;
    let edits = HeaderEdits {
        remove: vec![a.clone(), c.clone()],
        set: vec![(b.clone(), value("set"))],
        add: vec![(b.clone(), value("added")), (c.clone(), value("new"))],
    };
    let mut headers = fields(&[("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "1")]);
    edit(&edits, &mut headers);
    assert_eq!(headers, fields(&[("b", "set"), ("b", "added"), ("c", "new")]));
}

fn any_path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("ab"), Just("")], 0..4)
        .prop_map(|segments| format!("/{}", segments.join("/")))
}

fn any_test() -> impl Strategy<Value = PathMatch> {
    any_path().prop_flat_map(|path| {
        let cut = (0..=path.len()).prop_map({
            let path = path.clone();
            move |length| PathMatch::Prefix(path[..length].into())
        });
        prop_oneof![
            4 => Just(PathMatch::Exact(path.clone().into())),
            2 => cut,
            4 => Just(PathMatch::SeparatedPrefix(path.clone().into())),
            1 => Just(PathMatch::Regex(regex(&format!("{path}.?")))),
        ]
    })
}

proptest! {
    /// Whatever the routes, the index finds the one that going through them finds.
    #[test]
    fn the_index_finds_the_same_route(
        tests in proptest::collection::vec((any_test(), any::<bool>()), 0..60),
        paths in proptest::collection::vec(any_path(), 1..20),
    ) {
        let needs_header = |needs: bool| if needs { vec![role(HeaderTest::Present(true), false)] } else { Vec::new() };
        let routes = tests.into_iter().enumerate().map(|(place, (path, needs))| {
            route(&place.to_string(), path, needs_header(needs), Vec::new(), false)
        });
        let host = host(&["*"], routes.collect());
        let index = RouteIndex::new(&host);
        for path in &paths {
            for fields in [fields(&[]), fields(&[("x-role", "1")])] {
                let head = head(path, None, &fields);
                let name = |found: Option<&Arc<Route>>| found.map(|route| route.name.clone());
                prop_assert_eq!(name(index.find(&host, &head)), name(find_route(&host, &head)), "{}", path);
            }
        }
    }
}
