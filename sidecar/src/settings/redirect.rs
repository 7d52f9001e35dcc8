//! Settings of `init`, and of the wrapper that sets rules itself: what is redirected and what is not.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, builder::BoolishValueParser};

use super::{
    Flags, SettingsError,
    parse::{address, choice},
    transparent::{DNS, mark},
};
use crate::redirect::{
    Backend, Dns, Plan, Rulesetter,
    range::{Network, Ports},
};

/// User of the sidecar in its images.
const UID: u32 = 15001;
/// More are a mistake: a rule for each is looked at for each new connection.
const ENTRIES_AT_MOST: usize = 128;
const RESOLV_CONF: &str = "/etc/resolv.conf";
const BACKEND: &[(&str, Backend)] = &[("auto", Backend::Auto), ("nft", Backend::Nft), ("iptables", Backend::Iptables)];

/// What is redirected: the same for `init` and `run --redirect`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Rules")]
pub struct RedirectFlags {
    /// What sets the rules: nft, iptables, or auto (nft where it works)
    #[arg(long, env = "WEFT_BACKEND", default_value = "auto", value_name = "PROGRAM")]
    backend: String,
    /// Folder with these programs and their libraries (bin/, lib/); default: those in PATH
    #[arg(long, env = "WEFT_TOOLS", value_name = "DIR")]
    pub(super) tools: Option<PathBuf>,
    /// Users whose connections are not redirected; default: 15001 for `init`, nobody for `run`
    #[arg(long = "uid", env = "WEFT_UIDS", value_name = "UID", value_delimiter = ',')]
    uids: Vec<u32>,
    /// Redirect outbound connections of these users alone; default: everybody's
    #[arg(long = "only-uid", env = "WEFT_ONLY_UIDS", value_name = "UID", value_delimiter = ',')]
    only_uids: Vec<u32>,
    /// Destination ports that are not redirected: 22,8000-8100
    #[arg(long, env = "WEFT_EXCLUDE_OUTBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<String>,
    /// Destinations that are not redirected: 10.0.0.0/8,fd00::/8
    #[arg(long, env = "WEFT_EXCLUDE_OUTBOUND_RANGES", value_name = "RANGES", value_delimiter = ',')]
    exclude_outbound_ranges: Vec<String>,
    /// Ports of this host that are not redirected
    #[arg(long, env = "WEFT_EXCLUDE_INBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    exclude_inbound_ports: Vec<String>,
    /// Redirect these destination ports alone; default: all
    #[arg(long, env = "WEFT_INCLUDE_OUTBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    include_outbound_ports: Vec<String>,
    /// Redirect these destinations alone; default: all
    #[arg(long, env = "WEFT_INCLUDE_OUTBOUND_RANGES", value_name = "RANGES", value_delimiter = ',')]
    include_outbound_ranges: Vec<String>,
    /// Redirect these ports of this host alone; default: all
    #[arg(long, env = "WEFT_INCLUDE_INBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    include_inbound_ports: Vec<String>,
    /// DNS to these resolvers is redirected: IP,… or `all`; default: those of /etc/resolv.conf
    #[arg(long, env = "WEFT_CAPTURE_DNS", value_name = "IP", value_delimiter = ',')]
    capture_dns: Vec<String>,
    /// Leave DNS alone, as `--dns off` does
    #[arg(long, env = "WEFT_NO_DNS", value_parser = BoolishValueParser::new())]
    no_dns: bool,
    /// Leave IPv6 alone
    #[arg(long, env = "WEFT_NO_IPV6", value_parser = BoolishValueParser::new())]
    no_ipv6: bool,
}

/// Flags of `init`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct InitFlags {
    #[command(flatten)]
    pub(super) redirect: RedirectFlags,
    /// Print what would be handed to which program, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Remove the rules; those of others stay
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) remove: bool,
}

/// Flags of `pause`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PauseFlags {
    /// Set the rules of `init` first; then give up every capability
    ///
    /// Needs CAP_NET_ADMIN. The rules are there again whenever this is started again, as after a restart of the machine.
    #[arg(long, env = "WEFT_REDIRECT", value_parser = BoolishValueParser::new())]
    redirect: bool,
    #[command(flatten)]
    rules: RedirectFlags,
}

/// Which rules, and who sets them.
#[derive(Debug)]
pub struct Redirect {
    /// The rules.
    pub plan: Plan,
    /// Who sets them.
    pub setter: Rulesetter,
}

/// What `init` is to do.
#[derive(Debug)]
pub enum Init {
    /// Set rules.
    Apply(Redirect),
    /// Print them.
    Print(Redirect),
    /// Remove them.
    Remove(Rulesetter),
}

impl Init {
    /// Checks the flags.
    ///
    /// # Errors
    /// The first one that cannot be obeyed.
    pub fn new(flags: &Flags, init: InitFlags) -> Result<Self, SettingsError> {
        if init.remove {
            return Ok(Self::Remove(init.redirect.setter()?));
        }
        let dry_run = init.dry_run;
        let redirect = Redirect::new(flags, init.redirect, &[UID])?;
        Ok(if dry_run { Self::Print(redirect) } else { Self::Apply(redirect) })
    }
}

impl PauseFlags {
    /// The rules to set.
    ///
    /// # Errors
    /// The first flag that cannot be obeyed.
    pub fn redirect(self, flags: &Flags) -> Result<Option<Redirect>, SettingsError> {
        self.redirect.then(|| Redirect::new(flags, self.rules, &[UID])).transpose()
    }
}

impl RedirectFlags {
    fn setter(&self) -> Result<Rulesetter, SettingsError> {
        Ok(Rulesetter::new(choice("--backend", &self.backend, BACKEND)?, self.tools.clone()))
    }
}

impl Redirect {
    /// Checks the flags. `uids`: users that pass unless `--uid` says otherwise.
    ///
    /// # Errors
    /// The first one that cannot be obeyed.
    pub fn new(flags: &Flags, rules: RedirectFlags, uids: &[u32]) -> Result<Self, SettingsError> {
        let setter = rules.setter()?;
        let outbound = address("--outbound", &flags.outbound, "127.0.0.1:15001")?;
        let inbound = address("--inbound", &flags.inbound, "0.0.0.0:15006")?;
        let admin = address("--admin", &flags.admin, "127.0.0.1:15000")?;
        let dns = match flags.transparent.dns.as_deref().map(str::trim) {
            _ if rules.no_dns => None,
            Some("off") => None,
            Some(text) => Some(address("--dns", text, "127.0.0.1:15053")?),
            None => Some(DNS),
        };
        let own =
            [("--outbound", outbound), ("--inbound", inbound), ("--admin", admin), ("--metrics", flags.metrics()?)];
        for (flag, address) in own.into_iter().chain(dns.map(|dns| ("--dns", dns))) {
            if address.port() == 0 {
                let remedy = "name the port on which the sidecar will listen";
                return Err(SettingsError::new(flag, address.to_string(), "rules need to know the port", remedy));
            }
        }
        let own_ports = own.iter().map(|(_, address)| *address).chain(dns).map(|address| Ports::one(address.port()));
        let plan = Plan {
            outbound: outbound.port(),
            inbound: inbound.port(),
            own_ports: Ports::merged(own_ports.collect()),
            dns: dns.map(|dns| capture(dns, &rules.capture_dns, !rules.no_ipv6)).transpose()?,
            mark: mark(&flags.transparent.mark)?,
            uids: distinct("--uid", if rules.uids.is_empty() { uids.to_vec() } else { rules.uids })?,
            only_uids: distinct("--only-uid", rules.only_uids)?,
            ipv6: !rules.no_ipv6,
            exclude_outbound_ports: ports("--exclude-outbound-ports", &rules.exclude_outbound_ports)?,
            exclude_outbound_ranges: networks("--exclude-outbound-ranges", &rules.exclude_outbound_ranges)?,
            include_outbound_ports: ports("--include-outbound-ports", &rules.include_outbound_ports)?,
            include_outbound_ranges: networks("--include-outbound-ranges", &rules.include_outbound_ranges)?,
            exclude_inbound_ports: ports("--exclude-inbound-ports", &rules.exclude_inbound_ports)?,
            include_inbound_ports: ports("--include-inbound-ports", &rules.include_inbound_ports)?,
        };
        if plan.mark.is_none() && plan.uids.is_empty() {
            let problem = "the sidecar's own connections would come back to it";
            return Err(SettingsError::new("--mark", "off", problem, "name its mark (--mark) or its user (--uid)"));
        }
        Ok(Self { plan, setter })
    }
}

/// DNS to the resolvers that applications ask, and to no other: a resolver on this host that asks others in turn, as
/// Docker's and systemd's do, must not be led back to the sidecar.
fn capture(dns: SocketAddr, given: &[String], ipv6: bool) -> Result<Dns, SettingsError> {
    const FLAG: &str = "--capture-dns";
    bounded(FLAG, given.len())?;
    let mut servers = Vec::new();
    for text in given.iter().map(|text| text.trim()) {
        if text == "all" {
            return Ok(Dns { port: dns.port(), servers: None });
        }
        servers
            .push(text.parse().map_err(|error| SettingsError::new(FLAG, text, error, "write IP addresses, or `all`"))?);
    }
    if given.is_empty() {
        servers = nameservers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    }
    servers.retain(|server: &IpAddr| ipv6 || server.is_ipv4());
    servers.sort_unstable();
    servers.dedup();
    Ok(Dns { port: dns.port(), servers: Some(servers) })
}

/// The resolvers of a `resolv.conf`. Without any, the C library asks this host.
fn nameservers(text: &str) -> Vec<IpAddr> {
    // The C library takes three; musl and others more.
    const AT_MOST: usize = 8;
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local one has its device behind a `%`.
        address.split('%').next()?.parse().ok()
    });
    let servers: Vec<_> = servers.take(AT_MOST).collect();
    if servers.is_empty() { vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] } else { servers }
}

fn bounded(flag: &'static str, count: usize) -> Result<(), SettingsError> {
    if count > ENTRIES_AT_MOST {
        let remedy = format!("use at most {ENTRIES_AT_MOST}, or wider ranges");
        return Err(SettingsError::new(flag, count.to_string(), "too many entries", remedy));
    }
    Ok(())
}

fn distinct(flag: &'static str, mut uids: Vec<u32>) -> Result<Vec<u32>, SettingsError> {
    bounded(flag, uids.len())?;
    uids.sort_unstable();
    uids.dedup();
    Ok(uids)
}

fn ports(flag: &'static str, texts: &[String]) -> Result<Vec<Ports>, SettingsError> {
    list(flag, texts, "write ports and ranges of ports, as in 22,8000-8100").map(Ports::merged)
}

fn networks(flag: &'static str, texts: &[String]) -> Result<Vec<Network>, SettingsError> {
    const FORM: &str = "write addresses and ranges of addresses, as in 10.0.0.0/8,fd00::/8";
    let networks: Vec<Network> = list(flag, texts, FORM)?;
    match networks.iter().find(|network| network.is_everything()) {
        Some(all) => Err(SettingsError::new(flag, all.to_string(), "is every address", "name a smaller range")),
        None => Ok(Network::merged(networks)),
    }
}

fn list<T: FromStr<Err: std::fmt::Display>>(
    flag: &'static str,
    texts: &[String],
    form: &str,
) -> Result<Vec<T>, SettingsError> {
    bounded(flag, texts.len())?;
    // An empty variable is one empty entry.
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    texts.map(|text| text.parse().map_err(|error| SettingsError::new(flag, text, error, form))).collect()
}
