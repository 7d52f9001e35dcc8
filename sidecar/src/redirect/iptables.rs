//! Rules as text for `iptables-restore` and `ip6tables-restore`, and what `iptables-save` says of them. No I/O.
//!
//! Rules are in chains of their own, to which a jump leads from the first place of OUTPUT and PREROUTING. A text is one
//! transaction; of the host's own chains it touches nothing but these jumps.

use std::fmt::Write;

use super::rules::{Action, Match, Plan, Rule};

/// Chains of the table `nat` from which a jump leads, and where to.
const JUMPS: [(&str, &str); 2] = [("OUTPUT", "WEFT_OUTPUT"), ("PREROUTING", "WEFT_INPUT")];

/// The text that puts rules of one family in force, in place of those that are there. `saved`: from `iptables-save`.
#[must_use]
pub fn script(plan: &Plan, v6: bool, saved: &str) -> String {
    let mut text = "*nat\n".to_owned();
    for (_, chain) in JUMPS {
        // Naming a chain makes it, or empties it.
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (from, chain) in JUMPS {
        let jumps = jumps(saved, from, chain);
        // Where it is to be.
        if jumps == [0] {
            continue;
        }
        for _ in jumps {
            let _ = writeln!(text, "-D {from} -j {chain}");
        }
        let _ = writeln!(text, "-I {from} 1 -j {chain}");
    }
    for (chain, rules) in chains(plan, v6) {
        for rule in &rules {
            let _ = writeln!(text, "{}", line(chain, rule, v6));
        }
    }
    text + "COMMIT\n"
}

/// The text that removes the rules that are there. `None`: there are none.
#[must_use]
pub fn remove(saved: &str) -> Option<String> {
    let mut text = "*nat\n".to_owned();
    let there: Vec<_> = JUMPS.iter().filter(|(_, chain)| saved.lines().any(|line| declares(line, chain))).collect();
    if there.is_empty() {
        return None;
    }
    for (from, chain) in &there {
        for _ in jumps(saved, from, chain) {
            let _ = writeln!(text, "-D {from} -j {chain}");
        }
    }
    for (_, chain) in &there {
        let _ = writeln!(text, "-F {chain}\n-X {chain}");
    }
    Some(text + "COMMIT\n")
}

/// What of a plan is not in the output of `iptables-save`: the first rule that is missing or out of order. A rule is told
/// by its verdict: versions of iptables write conditions differently.
#[must_use]
pub fn missing(plan: &Plan, v6: bool, saved: &str) -> Option<String> {
    for (from, chain) in JUMPS {
        if jumps(saved, from, chain) != [0] {
            return Some(format!("-I {from} 1 -j {chain}"));
        }
    }
    for (chain, rules) in chains(plan, v6) {
        let mut found =
            saved.lines().filter_map(|line| line.strip_prefix("-A ")?.strip_prefix(chain)?.strip_prefix(' '));
        for rule in &rules {
            if !found.next().is_some_and(|found| found.ends_with(&verdict(rule))) {
                return Some(line(chain, rule, v6));
            }
        }
        if let Some(stranger) = found.next() {
            return Some(format!("the end of chain {chain} (there is `{stranger}`)"));
        }
    }
    None
}

fn declares(line: &str, chain: &str) -> bool {
    line.strip_prefix(':').is_some_and(|rest| rest.split(' ').next() == Some(chain))
}

/// At which places of a chain, from 0, there is a jump to another.
fn jumps(saved: &str, from: &str, to: &str) -> Vec<usize> {
    let rules = saved.lines().filter_map(|line| line.strip_prefix("-A ")?.strip_prefix(from)?.strip_prefix(' '));
    rules.enumerate().filter(|(_, rule)| *rule == format!("-j {to}")).map(|(place, _)| place).collect()
}

fn chains(plan: &Plan, v6: bool) -> [(&'static str, Vec<Rule>); 2] {
    let concerned = |rules: Vec<Rule>| rules.into_iter().filter(|rule| rule.concerns(v6)).collect();
    [("WEFT_OUTPUT", concerned(plan.output())), ("WEFT_INPUT", concerned(plan.prerouting()))]
}

/// One rule in the form that `iptables-save` has.
fn line(chain: &str, rule: &Rule, v6: bool) -> String {
    let mut parts = [String::new(), String::new(), String::new(), String::new()];
    for found in &rule.matches {
        let (place, text) = match found {
            Match::To(network) => (0, to(&network.to_string(), v6)),
            Match::ByLoopback => (1, " -i lo".to_owned()),
            Match::Tcp => (2, " -p tcp".to_owned()),
            Match::TcpTo(ports) if ports.first == ports.last => (2, format!(" -p tcp -m tcp --dport {}", ports.first)),
            Match::TcpTo(ports) => (2, format!(" -p tcp -m tcp --dport {}:{}", ports.first, ports.last)),
            Match::UdpTo(port) => (2, format!(" -p udp -m udp --dport {port}")),
            Match::TcpUnderWay => (2, " -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN".to_owned()),
            Match::Mark(mark) => (3, format!(" -m mark --mark {mark:#x}")),
            Match::Uid(uid) => (3, format!(" -m owner --uid-owner {uid}")),
            Match::ForOthers => (3, " -m addrtype ! --dst-type LOCAL".to_owned()),
        };
        parts[place] += &text;
    }
    format!("-A {chain}{} {}", parts.concat(), verdict(rule))
}

fn verdict(rule: &Rule) -> String {
    match rule.action {
        Action::Pass => "-j RETURN".to_owned(),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
    }
}

/// A destination in the form that `iptables-save` has: with a length.
fn to(network: &str, v6: bool) -> String {
    match (network.contains('/'), v6) {
        (true, _) => format!(" -d {network}"),
        (false, true) => format!(" -d {network}/128"),
        (false, false) => format!(" -d {network}/32"),
    }
}
