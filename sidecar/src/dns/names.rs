//! Which services a name may mean. Pure.
//!
//! Clients write `orders`, `orders.shop` or one of the long forms, and their resolvers add search domains to what they
//! wrote: with `search shop.svc.cluster.local svc.cluster.local` and `ndots:5`, `orders.shop` is first asked for as
//! `orders.shop.shop.svc.cluster.local`. Domains of that kind belong to services alone, so they are taken off, and the
//! first question is answered. A search domain of another kind (`example.com`) may have real names in it, and is left
//! alone: its own resolver says that there is no such name, and the client goes on to the next form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ends of names that belong to services.
const ENDS: [&str; 3] = [".svc.cluster.local", ".svc", ".mesh"];

/// One service that a name may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// `orders.shop`
    pub host: String,
    /// One endpoint of it, by its own name.
    pub endpoint: Option<String>,
}

/// The services that a name may mean, the likeliest first. `name`: in lower case, without a dot at its end.
/// `namespace`: where a bare name is. `search`: the search domains of this host.
pub fn candidates(name: &str, namespace: &str, search: &[String]) -> Vec<Candidate> {
    let mut all = Vec::new();
    let end = ENDS.iter().find_map(|end| name.strip_suffix(end));
    match end {
        Some(rest) => long(rest, &mut all),
        None => short(name, namespace, &mut all),
    }
    for domain in search {
        let Some(rest) = name.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.')) else { continue };
        let Some(of) = services_only(domain) else { continue };
        match ENDS.iter().find_map(|end| rest.strip_suffix(end)) {
            Some(rest) => long(rest, &mut all),
            None => match labels(rest).as_deref() {
                Some([service]) if !of.is_empty() => add(&mut all, service, of, None),
                Some([service, namespace]) => add(&mut all, service, namespace, None),
                Some([endpoint, service, namespace]) => add(&mut all, service, namespace, Some(endpoint)),
                _ => {}
            },
        }
    }
    all
}

/// `SERVICE.NAMESPACE` or `ENDPOINT.SERVICE.NAMESPACE`, before an end that belongs to services.
fn long(rest: &str, all: &mut Vec<Candidate>) {
    match labels(rest).as_deref() {
        Some([service, namespace]) => add(all, service, namespace, None),
        Some([endpoint, service, namespace]) => add(all, service, namespace, Some(endpoint)),
        _ => {}
    }
}

fn short(name: &str, own: &str, all: &mut Vec<Candidate>) {
    match labels(name).as_deref() {
        Some(["localhost"] | [.., "localhost"]) => {}
        Some([service]) => add(all, service, own, None),
        Some([service, namespace]) => {
            add(all, service, namespace, None);
            add(all, namespace, own, Some(service));
        }
        Some([endpoint, service, namespace]) => add(all, service, namespace, Some(endpoint)),
        _ => {}
    }
}

/// Whether a search domain has nothing but services in it: its namespace, or nothing when it has many.
fn services_only(domain: &str) -> Option<&str> {
    if matches!(domain, "cluster.local" | "svc.cluster.local" | "svc" | "mesh") {
        return Some("");
    }
    let namespace = ENDS.iter().find_map(|end| domain.strip_suffix(end))?;
    (!namespace.contains('.')).then_some(namespace)
}

fn add(all: &mut Vec<Candidate>, service: &str, namespace: &str, endpoint: Option<&str>) {
    let one = Candidate { host: format!("{service}.{namespace}"), endpoint: endpoint.map(Into::into) };
    if !all.contains(&one) {
        all.push(one);
    }
}

/// Up to three labels, if all are such as services have.
fn labels(text: &str) -> Option<Vec<&str>> {
    let good = |label: &&str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let all: Vec<&str> = text.splitn(4, '.').collect();
    (all.len() <= 3 && all.iter().all(good)).then_some(all)
}

/// The address of `4.3.1.240.in-addr.arpa` and its like.
pub fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0_u8; 4];
        let mut parts = rest.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0;
    for part in rest.split('.') {
        let [digit] = part.as_bytes() else { return None };
        bits |= u128::from(char::from(*digit).to_digit(16)?).checked_shl(4 * count)?;
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, search: &[&str]) -> Vec<String> {
        let search: Vec<String> = search.iter().map(ToString::to_string).collect();
        let all = candidates(name, "shop", &search).into_iter();
        all.map(|it| it.endpoint.map_or(it.host.clone(), |endpoint| format!("{endpoint}/{}", it.host))).collect()
    }

    #[test]
    fn forms_of_a_service() {
        for name in ["orders.data.svc", "orders.data.svc.cluster.local", "orders.data.mesh"] {
            assert_eq!(ask(name, &[]), ["orders.data"], "{name}");
            assert_eq!(ask(&format!("db-0.{name}"), &[]), ["db-0/orders.data"], "{name}");
        }
        assert_eq!(ask("orders", &[]), ["orders.shop"]);
        assert_eq!(ask("orders.data", &[]), ["orders.data", "orders/data.shop"]);
        assert_eq!(ask("db-0.orders.data", &[]), ["db-0/orders.data"]);
    }

    #[test]
    fn names_that_no_service_has() {
        for name in ["", ".", "a.b.c.d", "localhost", "x.localhost", "_sql._tcp.db", "a..b", "x.y.z.svc.mesh"] {
            assert!(ask(name, &[]).is_empty(), "{name}: {:?}", ask(name, &[]));
        }
        assert!(ask(&"x".repeat(64), &[]).is_empty());
    }

    #[test]
    fn the_first_question_of_a_pods_resolver_is_enough() {
        let pod = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"];
        for (written, found) in [
            ("orders", "orders.shop"),
            ("orders.data", "orders.data"),
            ("orders.data.svc", "orders.data"),
            ("orders.data.mesh", "orders.data"),
        ] {
            let asked = format!("{written}.{}", pod[0]);
            assert!(ask(&asked, &pod).contains(&found.to_owned()), "{asked}: {:?}", ask(&asked, &pod));
            assert!(!ask(&asked, &["other.svc.cluster.local"]).contains(&found.to_owned()) || written == "orders");
        }
        assert_eq!(ask("db-0.db.shop.svc.cluster.local", &pod)[0], "db-0/db.shop");
        // What is outside stays so: at most it is looked for under a namespace that does not exist.
        assert_eq!(ask("www.google.com.shop.svc.cluster.local", &pod), ["www/google.com"]);
        assert!(ask("orders.example.com", &pod).iter().all(|host| host.contains("example.com")));
    }

    #[test]
    fn search_domains_of_the_outside_are_left_alone() {
        assert!(!ask("orders.corp", &["corp"]).contains(&"orders.shop".to_owned()));
        assert!(ask("orders.eu.corp.example", &["eu.corp.example"]).is_empty());
    }

    #[test]
    fn reverse_names() {
        assert_eq!(reverse("4.3.1.240.in-addr.arpa"), Some("240.1.3.4".parse().unwrap()));
        let v6: Ipv6Addr = "fd77:6566:7400::f001:304".parse().unwrap();
        let digits: Vec<String> =
            u128::from(v6).to_be_bytes().iter().flat_map(|b| [b >> 4, b & 15]).map(|d| format!("{d:x}")).collect();
        let name: Vec<String> = digits.into_iter().rev().collect();
        assert_eq!(reverse(&format!("{}.ip6.arpa", name.join("."))), Some(v6.into()));
        for name in
            ["3.1.240.in-addr.arpa", "0.4.3.1.240.in-addr.arpa", "x.3.1.240.in-addr.arpa", "1.ip6.arpa", "in-addr.arpa"]
        {
            assert_eq!(reverse(name), None, "{name}");
        }
        assert_eq!(reverse(&format!("{}ip6.arpa", "0.".repeat(40))), None);
    }
}
