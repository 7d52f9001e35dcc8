//! Puts rules in force, looks whether they are, removes them: the edge of this module, which runs programs.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{
    iptables, nft,
    rules::Plan,
    tools::{Failure, Tool},
};

/// Bit of CAP_NET_ADMIN in the masks of `/proc/self/status`.
const NET_ADMIN: u32 = 12;
/// How long iptables waits for others that are setting rules, in seconds.
const WAIT: &str = "5";

/// Which program sets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `nft`, or iptables where that is not there or the kernel does not take its rules.
    Auto,
    /// `nft`.
    Nft,
    /// `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

/// Why rules were not set or removed.
#[derive(Debug, Error)]
pub enum RedirectError {
    /// A capability.
    #[error(
        "setting rules needs the capability CAP_NET_ADMIN in this network namespace, and this process does not have it: \
         run it as root on a host, with `cap_add: [NET_ADMIN]` in compose, or with `capabilities: {{add: [NET_ADMIN]}}` \
         and `runAsUser: 0` in an init container of the pod{}", told(.said)
    )]
    Privilege {
        /// What the program said, if one was asked.
        said: String,
    },
    /// A program.
    #[error("{program} is not there (looked in {place}): {remedy}")]
    NoTool {
        /// Its name.
        program: &'static str,
        /// Where it was looked for.
        place: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A program said no.
    #[error("`{}`: {}; {remedy}", .failure.command, .failure.said)]
    Refused {
        /// Which, and what it said.
        failure: Failure,
        /// What to do.
        remedy: &'static str,
    },
    /// Neither program sets rules.
    #[error("neither nft nor iptables sets rules. nft: {nft}. iptables: {iptables}")]
    Neither {
        /// Why not.
        nft: Box<RedirectError>,
        /// Why not.
        iptables: Box<RedirectError>,
    },
    /// They were set and are not there.
    #[error(
        "{program} took the rules, but a listing lacks `{missing}`: does something else on this host remove rules?"
    )]
    NotThere {
        /// Who took them.
        program: &'static str,
        /// The first one that is missing.
        missing: String,
    },
}

fn told(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

/// Sets and removes rules with the programs of a host or of a folder.
#[derive(Debug)]
pub struct Rulesetter {
    backend: Backend,
    tools: Option<PathBuf>,
}

/// A program of iptables for one family.
struct Family {
    v6: bool,
    restore: Tool,
    save: Tool,
    name: &'static str,
    saved: String,
}

/// Names of programs: which flavour, IPv6, saves, restores.
const FLAVOURS: [(&str, bool, &str, &str); 6] = [
    ("nft", false, "iptables-nft-save", "iptables-nft-restore"),
    ("nft", true, "ip6tables-nft-save", "ip6tables-nft-restore"),
    ("legacy", false, "iptables-legacy-save", "iptables-legacy-restore"),
    ("legacy", true, "ip6tables-legacy-save", "ip6tables-legacy-restore"),
    ("", false, "iptables-save", "iptables-restore"),
    ("", true, "ip6tables-save", "ip6tables-restore"),
];

impl Rulesetter {
    /// `tools`: folder with the programs; else they are looked for in PATH.
    #[must_use]
    pub fn new(backend: Backend, tools: Option<PathBuf>) -> Self {
        Self { backend, tools }
    }

    /// What [`Self::apply`] would hand to which program.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn dry_run(&self, plan: &Plan) -> Result<String, RedirectError> {
        let nft = || Ok(format!("# nft -f -\n{}", nft::script(plan)));
        match self.backend {
            Backend::Nft => nft(),
            Backend::Auto if self.tool("nft").is_some() => nft(),
            Backend::Auto | Backend::Iptables => {
                let texts = self.families(plan.ipv6)?.into_iter().map(|family| {
                    let script = iptables::script(plan, family.v6, &family.saved);
                    format!("# {} --noflush\n{script}", family.name)
                });
                Ok(texts.collect())
            }
        }
    }

    /// Puts rules in force in place of those that are there, and sees that they are. Returns who took them.
    ///
    /// # Errors
    /// When they are not in force.
    pub fn apply(&self, plan: &Plan) -> Result<&'static str, RedirectError> {
        privileged()?;
        match self.backend {
            Backend::Nft => self.apply_nft(plan),
            Backend::Iptables => self.apply_iptables(plan),
            Backend::Auto => match self.apply_nft(plan) {
                Err(nft @ (RedirectError::NoTool { .. } | RedirectError::Refused { .. })) => self
                    .apply_iptables(plan)
                    .map_err(|iptables| RedirectError::Neither { nft: nft.into(), iptables: iptables.into() }),
                done => done,
            },
        }
    }

    /// Removes the rules of every backend that is looked at. Nothing happens when there are none.
    ///
    /// # Errors
    /// When they are still in force.
    pub fn remove(&self) -> Result<(), RedirectError> {
        privileged()?;
        let mut found = false;
        if self.backend != Backend::Iptables {
            match self.tool("nft") {
                Some(nft) => {
                    found = true;
                    nft.run(&["-f", "-"], &nft::remove()).map_err(refused)?;
                }
                None if self.backend == Backend::Nft => return Err(self.no_nft()),
                None => {}
            }
        }
        if self.backend != Backend::Nft {
            // Each flavour has rules of its own.
            for (flavour, v6, save, restore) in FLAVOURS {
                let (Some(save), Some(tool)) = (self.tool(save), self.tool(restore)) else { continue };
                if !in_use(flavour, v6) {
                    found = true;
                    continue;
                }
                let Ok(saved) = save.run(&["-t", "nat"], "") else { continue };
                found = true;
                if let Some(text) = iptables::remove(&saved) {
                    tool.run(&["--noflush", "-w", WAIT], &text).map_err(refused)?;
                }
            }
        }
        if found { Ok(()) } else { Err(self.no_nft()) }
    }

    fn apply_nft(&self, plan: &Plan) -> Result<&'static str, RedirectError> {
        let nft = self.tool("nft").ok_or_else(|| self.no_nft())?;
        nft.run(&["-f", "-"], &nft::script(plan)).map_err(refused)?;
        let listing = nft.run(&["list", "table", "inet", "weft"], "").map_err(refused)?;
        match nft::missing(plan, &listing) {
            Some(missing) => Err(RedirectError::NotThere { program: "nft", missing }),
            None => Ok("nft"),
        }
    }

    fn apply_iptables(&self, plan: &Plan) -> Result<&'static str, RedirectError> {
        let mut taken = "iptables";
        for family in self.families(plan.ipv6)? {
            let script = iptables::script(plan, family.v6, &family.saved);
            family.restore.run(&["--noflush", "-w", WAIT], &script).map_err(refused)?;
            let saved = family.save.run(&["-t", "nat"], "").map_err(refused)?;
            if let Some(missing) = iptables::missing(plan, family.v6, &saved) {
                return Err(RedirectError::NotThere { program: family.name, missing });
            }
            if !family.v6 {
                taken = family.name;
            }
        }
        if !plan.ipv6 {
            // An earlier run may have been asked for it.
            self.forget_v6()?;
        }
        Ok(taken)
    }

    fn forget_v6(&self) -> Result<(), RedirectError> {
        if let Ok(family) = self.family(true)
            && let Some(text) = iptables::remove(&family.saved)
        {
            family.restore.run(&["--noflush", "-w", WAIT], &text).map_err(refused)?;
        }
        Ok(())
    }

    fn families(&self, ipv6: bool) -> Result<Vec<Family>, RedirectError> {
        let mut families = vec![self.family(false)?];
        // A host without IPv6 has nothing to redirect there.
        if ipv6 && Path::new("/proc/net/if_inet6").exists() {
            families.push(self.family(true)?);
        }
        Ok(families)
    }

    /// The flavour in which this host's rules are, else the first one that works.
    fn family(&self, v6: bool) -> Result<Family, RedirectError> {
        let mut first = None;
        let mut failure = None;
        let legacy_is_used = in_use("legacy", v6);
        for (flavour, _, save, name) in FLAVOURS.into_iter().filter(|(_, six, ..)| *six == v6) {
            if (flavour == "nft" && legacy_is_used) || (flavour == "legacy" && !legacy_is_used && first.is_some()) {
                continue;
            }
            let (Some(save), Some(restore)) = (self.tool(save), self.tool(name)) else { continue };
            match save.run(&["-t", "nat"], "") {
                Ok(saved) if first.is_none() => first = Some(Family { v6, restore, save, name, saved }),
                Ok(_another) => {}
                Err(failed) => failure = Some(failed),
            }
        }
        first.ok_or_else(|| match failure {
            Some(failure) if v6 => RedirectError::Refused {
                failure,
                remedy: "where the kernel has no NAT for IPv6, leave IPv6 alone with --no-ipv6",
            },
            Some(failure) => refused(failure),
            None => RedirectError::NoTool {
                program: if v6 { "ip6tables-restore" } else { "iptables-restore" },
                place: self.place(),
                remedy: "install the package iptables, name a folder that has it with --tools, or use --backend nft",
            },
        })
    }

    fn tool(&self, name: &'static str) -> Option<Tool> {
        Tool::find(name, self.tools.as_deref())
    }

    fn no_nft(&self) -> RedirectError {
        let remedy = "install the package nftables, name a folder that has it with --tools, or use --backend iptables";
        RedirectError::NoTool { program: "nft", place: self.place(), remedy }
    }

    fn place(&self) -> String {
        self.tools.as_ref().map_or_else(|| "PATH".to_owned(), |folder| folder.join("bin").display().to_string())
    }
}

/// Whether the kernel has tables of a flavour in this namespace. Asking the legacy programs themselves would make some.
fn in_use(flavour: &str, v6: bool) -> bool {
    let names = if v6 { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" };
    flavour != "legacy"
        || std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name.trim() == "nat"))
}

fn refused(failure: Failure) -> RedirectError {
    if failure.said.contains("Operation not permitted") || failure.said.contains("you must be root") {
        return RedirectError::Privilege { said: format!("{}: {}", failure.command, failure.said) };
    }
    RedirectError::Refused { failure, remedy: "see \"Troubleshooting\" in docs/transparent.md" }
}

/// Before anything is tried: what programs say of a missing capability differs, and misleads.
fn privileged() -> Result<(), RedirectError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
    match mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()) {
        Some(mask) if mask & (1 << NET_ADMIN) == 0 => Err(RedirectError::Privilege { said: String::new() }),
        // Without /proc the programs themselves have to tell.
        _ => Ok(()),
    }
}
