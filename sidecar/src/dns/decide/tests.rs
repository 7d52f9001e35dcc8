use super::*;
use crate::dns::wire;

const SEARCH: [&str; 3] = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];

fn question(name: &str, kind: u16) -> Question {
    Question { name: wire::encoded(name).into(), kind, class: INTERNET }
}

fn endpoint(ip: &str, hostname: &str, ready: bool) -> Named {
    Named { ip: ip.parse().unwrap(), hostname: hostname.into(), ready }
}

/// The mesh of these tests: `orders.shop`, headless `db.data`, and `new.shop` that nobody has asked for yet.
fn known(host: &str) -> Known {
    match host {
        "orders.shop" | "orders.data" => Known::Virtual,
        "db.data" => Known::Headless(vec![
            endpoint("10.0.0.1", "db-0", true),
            endpoint("10.0.0.2", "db-1", true),
            endpoint("10.0.0.3", "db-2", false),
            endpoint("fd00::1", "db-0", true),
        ]),
        "empty.data" => Known::Headless(Vec::new()),
        "down.data" => Known::Headless(vec![endpoint("10.0.0.9", "down-0", false)]),
        "new.shop" => Known::Unknown,
        _ => Known::Absent,
    }
}

fn ask_with(vips: &Vips, ipv6: bool, name: &str, kind: u16) -> Decision {
    let search = SEARCH.map(str::to_owned);
    let scope = Scope { namespace: "shop", search: &search, vips, ipv6 };
    decide(&question(name, kind), scope, known)
}

fn ask(name: &str, kind: u16) -> Decision {
    ask_with(&Vips::default(), true, name, kind)
}

fn addresses(name: &str, kind: u16) -> Vec<String> {
    match ask(name, kind) {
        Decision::Mesh(Answer::Addresses(mut all)) => {
            all.sort_unstable();
            all.iter().map(ToString::to_string).collect()
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn every_form_of_a_service_has_its_virtual_addresses() {
    let vips = Vips::default();
    let vip = vips.of("orders.shop").unwrap();
    for name in [
        "orders",
        "Orders.SHOP",
        "orders.shop.svc",
        "orders.shop.svc.cluster.local",
        "orders.shop.mesh",
        "orders.shop.shop.svc.cluster.local",
    ] {
        let of = |kind| ask_with(&vips, true, name, kind);
        assert_eq!(of(kind::A), Decision::Mesh(Answer::Addresses(vec![vip.v4.into()])), "{name}");
        assert_eq!(of(kind::AAAA), Decision::Mesh(Answer::Addresses(vec![vip.v6.into()])), "{name}");
        assert_eq!(of(16), Decision::Mesh(Answer::Addresses(vec![])), "{name}: it exists, without TXT");
    }
    let without = ask_with(&vips, false, "orders", kind::AAAA);
    assert_eq!(without, Decision::Mesh(Answer::Addresses(vec![])), "exists, without IPv6");
    assert_ne!(vips.of("orders.data"), Some(vip));
}

#[test]
fn headless_services_have_their_endpoints() {
    assert_eq!(addresses("db.data", kind::A), ["10.0.0.1", "10.0.0.2"], "those that are ready");
    assert_eq!(addresses("db.data.svc", kind::AAAA), ["fd00::1"]);
    assert_eq!(addresses("down.data", kind::A), ["10.0.0.9"], "all when none is");
    assert!(addresses("empty.data", kind::A).is_empty());
    for name in [
        "db-1.db.data",
        "db-1.db.data.svc.cluster.local",
        "db-1.db.data.mesh",
        "db-1.db.data.svc.shop.svc.cluster.local",
    ] {
        assert_eq!(addresses(name, kind::A), ["10.0.0.2"], "{name}");
    }
    assert_eq!(addresses("db-0.db.data", kind::ANY), ["10.0.0.1", "fd00::1"]);
    assert_eq!(ask("db-9.db.data.svc", kind::A), Decision::Forward, "another may know it");
    assert_eq!(ask("x.orders.shop.svc", kind::A), Decision::Forward, "endpoints of it have no names");
}

#[test]
fn what_is_not_of_the_mesh_is_forwarded() {
    for name in [
        "google.com",
        "www.google.com",
        "nosuch",
        "a.b.c.d.e",
        "_sip._tcp.example.com",
        "localhost",
        "1.0.0.10.in-addr.arpa",
    ] {
        assert_eq!(ask(name, kind::A), Decision::Forward, "{name}");
    }
    let chaos = Question { class: 3, ..question("orders", kind::A) };
    let vips = Vips::default();
    let scope = Scope { namespace: "shop", search: &[], vips: &vips, ipv6: true };
    assert_eq!(decide(&chaos, scope, known), Decision::Forward);
    assert_eq!(ask("orders", kind::AXFR), Decision::Refuse);
}

#[test]
fn what_is_not_known_is_asked_for() {
    assert_eq!(ask("new", kind::A), Decision::Ask(vec!["new.shop".into()]));
    // `x.new` may be an endpoint of the service `new`; there is no namespace `new`.
    assert_eq!(ask("x.new", kind::A), Decision::Ask(vec!["new.shop".into()]));
}

#[test]
fn a_virtual_address_has_its_name_and_never_leaves() {
    let vips = Vips::default();
    let [a, b, c, d] = vips.of("orders.shop").unwrap().v4.octets();
    let name = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    assert_eq!(ask_with(&vips, true, &name, kind::PTR), Decision::Mesh(Answer::Pointer("orders.shop.mesh".into())));
    assert_eq!(ask_with(&vips, true, &name, kind::A), Decision::Mesh(Answer::Addresses(vec![])));
    assert_eq!(ask("9.9.9.241.in-addr.arpa", kind::PTR), Decision::Mesh(Answer::NoName));
}

#[test]
fn a_full_table_fails_rather_than_to_lie() {
    let vips = Vips::default();
    for index in 0..vip::LIMIT {
        vips.of(&format!("s{index}.x")).unwrap();
    }
    assert_eq!(ask_with(&vips, true, "orders", kind::A), Decision::Mesh(Answer::Failed(code::SERVER_FAILURE)));
}
