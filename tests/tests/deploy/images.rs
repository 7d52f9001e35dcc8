//! The images: what is in them, what they start as, and that `docker build` makes the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft::launch::wait_for;
use weft_tests::docker::{Container, available, docker, image, output};

/// Image, Dockerfile, user, what it holds besides licence and SBOM.
const IMAGES: &[(&str, &str, &str, &[&str])] = &[
    ("weft-sidecar", "sidecar", "15001:15001", &["weft-sidecar", "data"]),
    ("weft-control-plane", "control-plane", "15010:15010", &["weft-control-plane", "data"]),
    ("weft", "weft", "15010:15010", &["weft", "data"]),
    ("weft-init", "init", "0:0", &["weft-sidecar", "tools"]),
];

/// Docker itself puts these into every container.
const DOCKERS: &[&str] = &[".dockerenv", "dev", "etc", "proc", "sys"];

/// Far more than any has, with the unoptimised programs of the tests; far less than a Debian in it would take.
const MOST_BYTES: u64 = 100_000_000;

#[test]
fn images_hold_one_program_and_no_shell() -> Result<()> {
    if !available("what images hold")? {
        return Ok(());
    }
    for (name, _, _, holds) in IMAGES {
        let entries = entries(&image(name))?;
        let tops: BTreeSet<&str> = entries.keys().filter_map(|path| path.split('/').next()).collect();
        let wanted: BTreeSet<&str> = holds.iter().copied().chain(["LICENSE", "sbom.json"]).collect();
        assert_eq!(tops, wanted, "{name}");
        for path in entries.keys() {
            let file = path.rsplit('/').next().unwrap_or(path);
            ensure!(!["sh", "bash", "dash", "busybox", "env", "passwd"].contains(&file), "{name} has {path}");
        }
        let writable =
            entries.iter().filter(|(path, entry)| entry.mode & 0o022 != 0 && entry.kind != 'l' && *path != "data");
        assert_eq!(writable.map(|(path, _)| path).collect::<Vec<_>>(), Vec::<&String>::new(), "{name}");
        let size: u64 = docker(&["inspect", "--format", "{{.Size}}", &image(name)])?.trim().parse()?;
        ensure!(size < MOST_BYTES, "{name} has {size} bytes");
        let shell = ["run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", &image(name), "-c", "true"];
        ensure!(docker(&shell).is_err(), "{name} has a shell");
    }
    Ok(())
}

#[test]
fn images_start_as_their_user_with_nothing_but_a_network() -> Result<()> {
    if !available("how images start")? {
        return Ok(());
    }
    for (name, _, user, holds) in IMAGES {
        let config: Value = serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config}}", &image(name)])?)?;
        assert_eq!(config["User"], *user, "{name}");
        assert_eq!(config["Entrypoint"], serde_json::json!([format!("/{}", holds[0])]), "{name}");
        let labels = &config["Labels"];
        for label in ["title", "version", "revision", "created", "licenses", "description"] {
            let value = labels[format!("org.opencontainers.image.{label}")].as_str().unwrap_or_default();
            ensure!(!value.is_empty(), "{name}: label {label}");
        }
        assert_eq!(labels["org.opencontainers.image.title"], *name);
        assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
        let strict = ["run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"];
        let said =
            docker(&[&strict[..], &["--security-opt", "no-new-privileges", &image(name), "--version"]].concat())?;
        ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{name} --version: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_control_plane_runs_without_privilege_and_keeps_its_state_in_a_volume() -> Result<()> {
    if !available("a control plane in a container")? {
        return Ok(());
    }
    let name = image("weft-control-plane");
    let strict = ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
    let container = Container::run("control-plane", &[&strict[..], &[&name]].concat())?;
    wait_for("the operator's credential", Duration::from_secs(30), async || {
        let to = tempfile::tempdir().ok()?;
        let from = format!("{}:/data/operator.json", container.name);
        docker(&["cp", &from, &to.path().join("operator.json").display().to_string()]).ok()
    })
    .await?;
    let process = container.inspect("{{.State.Pid}}")?;
    // An engine on another machine shows its processes to that one only.
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) {
        let line = |start: &str| status.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert_eq!(line("Uid:").split_whitespace().nth(1), Some("15010"));
        assert_eq!(line("CapEff:").split_whitespace().nth(1), Some("0000000000000000"));
    }
    docker(&["stop", "--time", "20", &container.name])?;
    assert_eq!(container.inspect("{{.State.ExitCode}}")?, "0", "it ends in order when it is told to");
    Ok(())
}

#[test]
fn the_init_image_sets_rules_by_either_tool() -> Result<()> {
    if !available("rules set by the init image")? {
        return Ok(());
    }
    // The network namespace to set them in belongs to a container that has no right to.
    let name = image("weft-control-plane");
    let pod = Container::run("pod", &["--network", "none", &name])?;
    let network = format!("container:{}", pod.name);
    let init = image("weft-init");
    let tool = |words: &[&str]| -> Result<String> {
        let run = ["run", "--rm", "--network", &network, "--cap-drop", "ALL", "--cap-add", "NET_ADMIN"];
        let loader = ["--env", "XTABLES_LIBDIR=/tools/lib/xtables", "--entrypoint", "/tools/lib/ld-linux-x86-64.so.2"];
        docker(&[&run[..], &loader, &[&init, "--library-path", "/tools/lib"], words].concat())
    };
    tool(&[
        "/tools/bin/nft",
        "add table inet check; add chain inet check out { type nat hook output priority -101; }",
    ])?;
    tool(&["/tools/bin/nft", "add rule inet check out meta mark 0x1577 return"])?;
    let rules = tool(&["/tools/bin/nft", "list", "ruleset"])?;
    ensure!(rules.contains("table inet check") && rules.contains("0x00001577"), "{rules}");
    for family in ["iptables", "ip6tables"] {
        let at = |name: &str| format!("/tools/bin/{name}");
        let exempt =
            ["-p", "tcp", "-m", "owner", "--uid-owner", "15001", "-m", "comment", "--comment", "weft", "-j", "RETURN"];
        let redirect =
            ["-p", "tcp", "-m", "multiport", "!", "--dports", "22,25", "-j", "REDIRECT", "--to-ports", "15001"];
        let append = [at(family), "-t".into(), "nat".into(), "-A".into(), "OUTPUT".into()];
        let append: Vec<&str> = append.iter().map(String::as_str).collect();
        tool(&[&append[..], &exempt].concat())?;
        tool(&[&append[..], &redirect].concat())?;
        let rules = tool(&[&at(&format!("{family}-save")), "-t", "nat"])?;
        ensure!(rules.contains("--uid-owner 15001") && rules.contains("--to-ports 15001"), "{family}: {rules}");
    }
    Ok(())
}

#[test]
fn the_init_image_redirects_a_containers_traffic_and_takes_it_back() -> Result<()> {
    if !available("init in a container's network namespace")? {
        return Ok(());
    }
    let named = image("weft-control-plane");
    let pod = Container::run("pod", &["--network", "none", &named])?;
    let network = format!("container:{}", pod.name);
    let named = image("weft-init");
    let start = ["run", "--rm", "--network", &network, "--read-only", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN"];
    let init = |words: &[&str]| docker(&[&start[..], &[&named], words].concat());
    let tool = |words: &[&str]| {
        let loader = ["--env", "XTABLES_LIBDIR=/tools/lib/xtables", "--entrypoint", "/tools/lib/ld-linux-x86-64.so.2"];
        docker(&[&start[..], &loader, &[&named, "--library-path", "/tools/lib"], words].concat())
    };
    init(&[]).context("without words it is `init`")?;
    init(&["init"]).context("a second time it changes nothing")?;
    let rules = tool(&["/tools/bin/nft", "list", "ruleset"])?;
    ensure!(rules.contains("table inet weft") && rules.contains("15001"), "{rules}");
    init(&["init", "--remove"])?;
    let rules = tool(&["/tools/bin/nft", "list", "ruleset"])?;
    ensure!(!rules.contains("15001"), "{rules}");

    init(&["init", "--backend", "iptables"])?;
    let rules = tool(&["/tools/bin/iptables-save", "-t", "nat"])?;
    ensure!(rules.contains("--to-ports 15001"), "{rules}");
    init(&["init", "--backend", "iptables", "--remove"])?;
    let rules = tool(&["/tools/bin/iptables-save", "-t", "nat"])?;
    ensure!(!rules.contains("15001"), "{rules}");

    let powerless = ["run", "--rm", "--network", &network, "--cap-drop", "ALL", &named];
    let error = docker(&powerless).err().context("without NET_ADMIN it must say that it cannot")?.to_string();
    ensure!(!error.contains("panicked"), "{error}");
    Ok(())
}

#[test]
fn what_an_image_is_made_of_is_in_it() -> Result<()> {
    if !available("what images are made of")? {
        return Ok(());
    }
    for (name, wanted) in
        [("weft-sidecar", &["rustls", "libc6-dev"][..]), ("weft-init", &["rustls", "nftables", "iptables"])]
    {
        let container = Container::create("sbom", &["--network", "none", &image(name)])?;
        let folder = tempfile::tempdir()?;
        let to = folder.path().join("sbom.json");
        docker(&["cp", &format!("{}:/sbom.json", container.name), &to.display().to_string()])?;
        let sbom: Value = serde_json::from_str(&std::fs::read_to_string(&to)?)?;
        let components = sbom["components"].as_array().context("components")?;
        for component in components {
            for field in ["name", "version", "purl"] {
                ensure!(component[field].as_str().is_some_and(|text| !text.is_empty()), "{name}: {component}");
            }
            ensure!(component["licenses"].as_array().is_some_and(|all| !all.is_empty()), "{name}: {component}");
        }
        for &part in wanted {
            // Outside Debian the C library is another's.
            let debian = part != "libc6-dev" || Path::new("/etc/debian_version").exists();
            ensure!(!debian || components.iter().any(|component| component["name"] == part), "{name} lacks {part}");
        }
    }
    Ok(())
}

#[test]
fn docker_build_makes_the_same() -> Result<()> {
    if !available("what docker build makes of the Dockerfiles")? {
        return Ok(());
    }
    let folder = PathBuf::from(std::env::var_os("WEFT_IMAGES_DIR").context("WEFT_IMAGES_DIR: where the images lie")?);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/images");
    for (name, file, ..) in IMAGES {
        let label = |label: &str| -> Result<String> {
            let format = format!("{{{{index .Config.Labels \"org.opencontainers.image.{label}\"}}}}");
            Ok(docker(&["inspect", "--format", &format, &image(name)])?.trim().to_owned())
        };
        let tag = format!("{}:built", weft_tests::docker::unique(name));
        let file = sources.join(format!("{file}.Dockerfile")).display().to_string();
        let context = folder.join("context").join(name).display().to_string();
        let mut words = vec!["build".to_owned(), "--quiet".into(), "--tag".into(), tag.clone(), "--file".into(), file];
        for (argument, of) in [("VERSION", "version"), ("REVISION", "revision"), ("CREATED", "created")] {
            words.extend(["--build-arg".to_owned(), format!("{argument}={}", label(of)?)]);
        }
        words.push(context);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // The client of an engine without BuildKit still has the builder that came before.
        let built = match docker(&["buildx", "version"]) {
            Ok(_) => docker(&words),
            Err(_) => output("env", &[&["DOCKER_BUILDKIT=0", "docker"], &words[..]].concat(), None),
        };
        built.with_context(|| name.to_string())?;
        let compared = compare(&image(name), &tag).with_context(|| name.to_string());
        docker(&["rmi", &tag])?;
        compared?;
    }
    Ok(())
}

fn compare(one: &str, other: &str) -> Result<()> {
    let config = |image: &str| -> Result<Value> {
        let mut config: Value = serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config}}", image])?)?;
        // What a field without a value looks like depends on who wrote it, and on the engine's age.
        let fields = config.as_object_mut().context("an image has a configuration")?;
        fields.retain(|name, value| {
            let empty = value.is_null() || value == "" || value == false || value.as_array().is_some_and(Vec::is_empty);
            !empty && name != "Image"
        });
        Ok(config)
    };
    assert_eq!(config(one)?, config(other)?);
    assert_eq!(entries(one)?, entries(other)?);
    Ok(())
}

/// What there is at a path of an image.
#[derive(Debug, PartialEq)]
struct Entry {
    kind: char,
    mode: u32,
    owner: (u64, u64),
    size: u64,
    link: Option<PathBuf>,
}

/// What an image holds, without what Docker puts into every container.
fn entries(image: &str) -> Result<BTreeMap<String, Entry>> {
    let container = Container::create("list", &["--network", "none", image])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("all.tar");
    docker(&["export", "--output", &file.display().to_string(), &container.name])?;
    let mut all = BTreeMap::new();
    for entry in tar::Archive::new(std::fs::File::open(&file)?).entries()? {
        let entry = entry?;
        let header = entry.header();
        let path = entry.path()?.to_string_lossy().trim_matches('/').to_owned();
        if DOCKERS.contains(&path.split('/').next().unwrap_or_default()) {
            continue;
        }
        let kind = match header.entry_type() {
            tar::EntryType::Directory => 'd',
            tar::EntryType::Symlink => 'l',
            _ => 'f',
        };
        let found = Entry {
            kind,
            mode: header.mode()? & 0o7777,
            owner: (header.uid()?, header.gid()?),
            size: header.size()?,
            link: entry.link_name()?.map(|link| link.into_owned()),
        };
        all.insert(path, found);
    }
    Ok(all)
}
