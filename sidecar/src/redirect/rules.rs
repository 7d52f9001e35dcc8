//! What is redirected, as a list of rules that both backends write in their own words. No I/O.
//!
//! Outbound, in this order; the first that fits decides (connections that are under way pass before all):
//!
//! 1. [`PROBE`] and [`PROBE_V6`] → outbound port: how the sidecar finds out that rules are there (`capture`);
//! 2. packets with the sidecar's mark, or of its user: pass;
//! 3. DNS to the resolvers of the host → DNS port;
//! 4. loopback, excluded ports and ranges: pass;
//! 5. TCP → outbound port.
//!
//! Inbound: loopback, what is for others, the sidecar's own ports and excluded ones pass; TCP → inbound port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use super::range::{Network, Ports};

/// Where nobody listens: a connection succeeds only when the rules take it to the sidecar.
pub const PROBE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 86, 69, 70), 1);
/// The same of IPv6, whose loopback has one address. Port 1 was that of tcpmux.
pub const PROBE_V6: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 0);
/// Where resolvers listen.
const DNS: u16 = 53;

/// What is to be redirected. Ranges are merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where outbound TCP goes.
    pub outbound: u16,
    /// Where inbound TCP goes.
    pub inbound: u16,
    /// Where DNS goes. `None`: it is left alone.
    pub dns: Option<Dns>,
    /// The sidecar's own ports, which inbound connections reach directly.
    pub own_ports: Vec<Ports>,
    /// Mark of packets that pass.
    pub mark: Option<u32>,
    /// Users whose packets pass.
    pub uids: Vec<u32>,
    /// Only these users' packets are redirected; empty: everybody's.
    pub only_uids: Vec<u32>,
    /// IPv6 is redirected, too.
    pub ipv6: bool,
    /// Destination ports that pass.
    pub exclude_outbound_ports: Vec<Ports>,
    /// Destinations that pass.
    pub exclude_outbound_ranges: Vec<Network>,
    /// Only these destination ports are redirected; empty: all.
    pub include_outbound_ports: Vec<Ports>,
    /// Only these destinations are redirected; empty: all.
    pub include_outbound_ranges: Vec<Network>,
    /// Ports of this host that pass.
    pub exclude_inbound_ports: Vec<Ports>,
    /// Only these ports of this host are redirected; empty: all.
    pub include_inbound_ports: Vec<Ports>,
}

/// Which DNS is redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Where it goes.
    pub port: u16,
    /// To which resolvers it was meant. `None`: whichever.
    pub servers: Option<Vec<IpAddr>>,
}

/// All that is needed to take a packet there or let it pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must fit.
    pub matches: Vec<Match>,
    /// What then happens.
    pub action: Action,
}

/// What a packet is looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It has this mark.
    Mark(u32),
    /// It is of this user.
    Uid(u32),
    /// It goes there.
    To(Network),
    /// TCP.
    Tcp,
    /// TCP to these ports.
    TcpTo(Ports),
    /// UDP to this port.
    UdpTo(u16),
    /// TCP, but not the first packet of a connection.
    TcpUnderWay,
    /// It came in by the loopback device.
    ByLoopback,
    /// It is for another host.
    ForOthers,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is left alone.
    Pass,
    /// It goes to this port of this host.
    Redirect(u16),
}

impl Rule {
    fn new(matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Self { matches: matches.into(), action }
    }

    /// Whether it can fit packets of a family.
    #[must_use]
    pub fn concerns(&self, v6: bool) -> bool {
        self.matches.iter().all(|found| !matches!(found, Match::To(network) if network.is_v6() != v6))
    }
}

impl Plan {
    /// Rules for what leaves this host.
    #[must_use]
    pub fn output(&self) -> Vec<Rule> {
        let mut rules = vec![under_way()];
        let probes: [Option<SocketAddr>; 2] = [Some(PROBE.into()), self.ipv6.then_some(PROBE_V6.into())];
        for probe in probes.into_iter().flatten() {
            let matches = [Match::To(Network::one(probe.ip())), Match::TcpTo(Ports::one(probe.port()))];
            rules.push(Rule::new(matches, Action::Redirect(self.outbound)));
        }
        rules.extend(self.mark.map(|mark| Rule::new([Match::Mark(mark)], Action::Pass)));
        rules.extend(self.uids.iter().map(|uid| Rule::new([Match::Uid(*uid)], Action::Pass)));
        let users: Vec<_> = self.only_uids.iter().map(|uid| Match::Uid(*uid)).collect();
        if let Some(dns) = &self.dns {
            let servers = dns.servers.iter().flatten().map(|server| Match::To(Network::one(*server))).collect();
            let ways = vec![Match::UdpTo(DNS), Match::TcpTo(Ports::one(DNS))];
            rules.extend(each(&[users.clone(), servers, ways], Action::Redirect(dns.port)));
        }
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let network = if loopback.is_ipv4() { "127.0.0.0/8".parse() } else { Ok(Network::one(loopback)) };
            rules.extend(network.map(|network| Rule::new([Match::To(network)], Action::Pass)));
        }
        rules.extend(pass(&self.exclude_outbound_ports));
        rules.extend(self.exclude_outbound_ranges.iter().map(|range| Rule::new([Match::To(*range)], Action::Pass)));
        let ranges = self.include_outbound_ranges.iter().map(|range| Match::To(*range)).collect();
        let tcp = tcp(&self.include_outbound_ports);
        rules.extend(each(&[users, ranges, tcp], Action::Redirect(self.outbound)));
        rules
    }

    /// Rules for what comes to this host.
    #[must_use]
    pub fn prerouting(&self) -> Vec<Rule> {
        let mut rules = vec![
            under_way(),
            Rule::new([Match::ByLoopback], Action::Pass),
            Rule::new([Match::ForOthers], Action::Pass),
        ];
        rules.extend(pass(&self.own_ports));
        rules.extend(pass(&self.exclude_inbound_ports));
        rules.extend(each(&[tcp(&self.include_inbound_ports)], Action::Redirect(self.inbound)));
        rules
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "redirected: outbound TCP to {}, inbound TCP to {}", self.outbound, self.inbound)?;
        match &self.dns {
            None => Ok(()),
            Some(Dns { port, servers: None }) => write!(out, ", DNS to {port}"),
            Some(Dns { port, servers: Some(servers) }) => {
                let servers: Vec<_> = servers.iter().map(IpAddr::to_string).collect();
                write!(out, ", DNS for {} to {port}", servers.join(" and "))
            }
        }
    }
}

/// The kernel may begin to track connections only when there are rules. To it, those of before then look new.
fn under_way() -> Rule {
    Rule::new([Match::TcpUnderWay], Action::Pass)
}

fn pass(ports: &[Ports]) -> impl Iterator<Item = Rule> {
    ports.iter().map(|ports| Rule::new([Match::TcpTo(*ports)], Action::Pass))
}

fn tcp(ports: &[Ports]) -> Vec<Match> {
    if ports.is_empty() { vec![Match::Tcp] } else { ports.iter().map(|ports| Match::TcpTo(*ports)).collect() }
}

/// One rule for each combination of one match from every list; an empty list matches everything.
fn each(lists: &[Vec<Match>], action: Action) -> Vec<Rule> {
    let mut combinations = vec![Vec::new()];
    for list in lists.iter().filter(|list| !list.is_empty()) {
        combinations = combinations
            .iter()
            .flat_map(|begun: &Vec<Match>| list.iter().map(|found| [begun.as_slice(), &[*found]].concat()))
            .collect();
    }
    combinations.into_iter().map(|matches| Rule::new(matches, action)).collect()
}
