//! Rules as a script for `nft -f`, and what `nft list` says of them. No I/O.

use std::fmt::Write;

use super::rules::{Action, Match, Plan, Rule};

/// Weft's own table; nothing else of the host is touched.
pub const TABLE: &str = "inet weft";
/// Before the NAT rules of Docker, kube-proxy and iptables, which are at -100: the first to translate wins.
const PRIORITY: i32 = -101;

/// Where IPv6 is to be left alone.
const ONLY_V4: &str = "meta nfproto ipv6 return";

/// The script that puts rules in force in one transaction, in place of those that are there.
#[must_use]
pub fn script(plan: &Plan) -> String {
    let mut text = remove();
    text += "table inet weft {\n";
    for (name, hook, rules) in chains(plan) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\tchain {name} {{\n\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;");
        if !plan.ipv6 {
            let _ = writeln!(text, "\t\t{ONLY_V4}");
        }
        for rule in &rules {
            let _ = writeln!(text, "\t\t{}", line(rule));
        }
        text += "\t}\n";
    }
    text += "}\n";
    text
}

/// The script that removes the rules, whether they are there or not.
#[must_use]
pub fn remove() -> String {
    // Deleting what is not there would fail, so it is added first.
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

fn chains(plan: &Plan) -> [(&'static str, &'static str, Vec<Rule>); 2] {
    [("output", "output", plan.output()), ("prerouting", "prerouting", plan.prerouting())]
}

fn line(rule: &Rule) -> String {
    let mut words: Vec<_> = rule.matches.iter().map(found).collect();
    words.push(verdict(rule));
    words.join(" ")
}

fn verdict(rule: &Rule) -> String {
    match rule.action {
        Action::Pass => "return".to_owned(),
        Action::Redirect(port) => format!("redirect to :{port}"),
    }
}

fn found(found: &Match) -> String {
    match found {
        Match::Mark(mark) => format!("meta mark {mark:#010x}"),
        Match::Uid(uid) => format!("meta skuid {uid}"),
        Match::To(network) if network.is_v6() => format!("ip6 daddr {network}"),
        Match::To(network) => format!("ip daddr {network}"),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        Match::TcpTo(ports) if ports.first == ports.last => format!("tcp dport {}", ports.first),
        Match::TcpTo(ports) => format!("tcp dport {}-{}", ports.first, ports.last),
        Match::UdpTo(port) => format!("udp dport {port}"),
        Match::TcpUnderWay => "tcp flags & (fin | syn | rst | ack) != syn".to_owned(),
        Match::ByLoopback => "iifname \"lo\"".to_owned(),
        Match::ForOthers => "fib daddr type != local".to_owned(),
    }
}

/// What of a plan is not in the output of `nft list table`: the first rule that is missing or out of order. A rule is
/// told by its verdict: versions of nft write conditions differently.
#[must_use]
pub fn missing(plan: &Plan, listing: &str) -> Option<String> {
    let mut lines = listing.lines().map(str::trim);
    for (name, hook, rules) in chains(plan) {
        if !lines.any(|line| line == format!("chain {name} {{")) {
            return Some(format!("chain {name}"));
        }
        if !lines.next().is_some_and(|line| line.starts_with(&format!("type nat hook {hook} "))) {
            return Some(format!("type nat hook {hook}"));
        }
        let guard = (!plan.ipv6).then(|| ("return".to_owned(), ONLY_V4.to_owned()));
        for (verdict, wanted) in guard.into_iter().chain(rules.iter().map(|rule| (verdict(rule), line(rule)))) {
            if lines.next().is_none_or(|line| !line.ends_with(&verdict)) {
                return Some(wanted);
            }
        }
        if lines.next() != Some("}") {
            return Some(format!("the end of chain {name}"));
        }
    }
    None
}
