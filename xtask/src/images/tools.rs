//! What the init image needs beside the sidecar: nft and iptables as Debian has them, with the libraries, the loader and
//! the extensions that they use, in a folder that works wherever it lies (`LOADER --library-path DIR/lib DIR/bin/nft`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{context, sbom::Component};
use crate::system;

/// Debian's packages that have them.
const PACKAGES: &[&str] = &["nftables", "iptables"];
const PROGRAMS: &[&str] = &["/usr/sbin/nft", "/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"];

/// One program under many names: the name says what it does.
const LINKS: &[(&str, &str)] = &[
    ("iptables", "xtables-nft-multi"),
    ("iptables-save", "xtables-nft-multi"),
    ("iptables-restore", "xtables-nft-multi"),
    ("ip6tables", "xtables-nft-multi"),
    ("ip6tables-save", "xtables-nft-multi"),
    ("ip6tables-restore", "xtables-nft-multi"),
    ("iptables-nft", "xtables-nft-multi"),
    ("iptables-nft-save", "xtables-nft-multi"),
    ("iptables-nft-restore", "xtables-nft-multi"),
    ("ip6tables-nft", "xtables-nft-multi"),
    ("ip6tables-nft-save", "xtables-nft-multi"),
    ("ip6tables-nft-restore", "xtables-nft-multi"),
    ("iptables-legacy", "xtables-legacy-multi"),
    ("iptables-legacy-save", "xtables-legacy-multi"),
    ("iptables-legacy-restore", "xtables-legacy-multi"),
    ("ip6tables-legacy", "xtables-legacy-multi"),
    ("ip6tables-legacy-save", "xtables-legacy-multi"),
    ("ip6tables-legacy-restore", "xtables-legacy-multi"),
];

/// What redirect rules are written with, and what comes along when rules are read back.
const EXTENSIONS: &[&str] = &[
    "NAT",
    "REDIRECT",
    "DNAT",
    "MARK",
    "CONNMARK",
    "addrtype",
    "comment",
    "connmark",
    "conntrack",
    "mark",
    "multiport",
    "owner",
    "standard",
    "tcp",
    "udp",
];

/// Fills `to` (which does not exist yet) and says which packages it is made of.
///
/// # Errors
/// When the packages are not there and cannot be installed, or a file is not as expected.
pub fn gather(to: &Path) -> Result<Vec<Component>> {
    system::packages(PACKAGES)?;
    let extensions = extensions()?;
    let mut from: BTreeSet<PathBuf> = BTreeSet::new();
    for program in PROGRAMS {
        let name = program.rsplit('/').next().unwrap_or(program);
        context::place(Path::new(program), &to.join("bin").join(name), 0o555)?;
        from.insert(program.into());
    }
    for (name, program) in LINKS {
        symlink(program, to.join("bin").join(name))?;
    }
    for path in &extensions {
        let name = path.file_name().context("an extension has a name")?;
        context::place(path, &to.join("lib/xtables").join(name), 0o444)?;
        from.insert(fs::canonicalize(path)?);
    }
    let needing = PROGRAMS.iter().map(PathBuf::from).chain(extensions);
    for (name, path) in libraries(needing)? {
        // The loader is started as a program.
        let mode = if name.starts_with("ld-linux") { 0o555 } else { 0o444 };
        context::place(&path, &to.join("lib").join(name), mode)?;
        from.insert(fs::canonicalize(&path)?);
    }
    let components = components(&from)?;
    for component in &components {
        let licence = Path::new("/usr/share/doc").join(&component.name).join("copyright");
        context::place(&licence, &to.join("share/doc").join(&component.name).join("copyright"), 0o444)?;
    }
    Ok(components)
}

fn extensions() -> Result<Vec<PathBuf>> {
    let output = Command::new("dpkg-query").args(["--listfiles", "iptables"]).output().context("dpkg-query")?;
    let files = String::from_utf8_lossy(&output.stdout).into_owned();
    let find = |name: &&str| {
        let ending = format!("/xtables/libxt_{name}.so");
        files.lines().find(|line| line.ends_with(&ending)).map(PathBuf::from).with_context(|| {
            format!("iptables has no extension {name}: this Debian is too old or too new for the init image")
        })
    };
    EXTENSIONS.iter().map(find).collect()
}

/// Name and path of everything that the dynamic loader would load.
fn libraries(programs: impl Iterator<Item = PathBuf>) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for program in programs {
        let output = Command::new("ldd").arg(&program).output().context("ldd")?;
        ensure!(output.status.success(), "ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let line = line.trim();
            ensure!(!line.contains("not found"), "{}: {line}", program.display());
            // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`.
            let path = line.split(" => ").last().unwrap_or(line).split(" (").next().unwrap_or(line);
            if let Some(name) = path.starts_with('/').then(|| path.rsplit('/').next()).flatten() {
                found.insert(name.to_owned(), PathBuf::from(path));
            }
        }
    }
    Ok(found)
}

fn components(files: &BTreeSet<PathBuf>) -> Result<Vec<Component>> {
    let packages: BTreeSet<String> = files.iter().map(|file| owner(file)).collect::<Result<_>>()?;
    packages.iter().map(|package| Component::debian(package)).collect()
}

/// The package of a file. Debian still lists some by their name from before /lib became a link to /usr/lib.
fn owner(file: &Path) -> Result<String> {
    let name = file.display().to_string();
    for name in [name.clone(), name.trim_start_matches("/usr").to_owned()] {
        let output = Command::new("dpkg-query").args(["--search", &name]).output().context("dpkg-query")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // `libc6:amd64: /lib/…`
        if let Some(package) =
            text.lines().find_map(|line| line.split([':', ',']).next()).filter(|_| output.status.success())
        {
            return Ok(package.to_owned());
        }
    }
    bail!("{name} belongs to no Debian package")
}
