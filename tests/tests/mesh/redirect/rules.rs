//! What is left of a host's rules, and what is said when rules cannot be set.

use super::*;

/// Rules of somebody else's, in nft and in iptables.
fn foreign(host: &Host) -> Result<()> {
    let rule = "chain output {\ntype nat hook output priority -100\ntcp dport 99 redirect to :98\n}";
    let table = &format!("table ip other {{\n{rule}\n}}\n");
    host.exec_with(&["nft", "-f", "-"], table)?;
    for program in ["iptables", "ip6tables"] {
        for rule in [
            "-t nat -A OUTPUT -p tcp --dport 97 -j REDIRECT --to-ports 96",
            "-t nat -A PREROUTING -p tcp --dport 97 -j REDIRECT --to-ports 96",
            "-t filter -A INPUT -p tcp --dport 95 -j DROP",
        ] {
            let words: Vec<_> = [program].into_iter().chain(rule.split(' ')).collect();
            host.exec(&words)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_removal_leaves_the_rules_of_others() -> Result<()> {
    let Some(net) = Net::new("rules set twice, and removed")? else { return Ok(()) };
    let host = net.host("host")?;
    foreign(&host)?;
    let before = ruleset(&host)?;
    for backend in BACKENDS {
        init(&host, &["--backend", backend])?;
        let once = ruleset(&host)?;
        ensure!(once != before, "{backend}: {once}");
        init(&host, &["--backend", backend])?;
        assert_eq!(ruleset(&host)?, once, "{backend}: a second run");
        // Half lost, and put before by somebody else: repaired.
        match backend {
            "nft" => host.exec(&["nft", "flush", "chain", "inet", "weft", "output"])?,
            _ => host.exec(&["iptables", "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "93", "-j", "RETURN"])?,
        };
        ensure!(ruleset(&host)? != once);
        init(&host, &["--backend", backend])?;
        if backend == "iptables" {
            let saved = host.exec(&["iptables-save", "-t", "nat"])?;
            let first = saved.lines().find(|line| line.starts_with("-A OUTPUT"));
            assert_eq!(first, Some("-A OUTPUT -j WEFT_OUTPUT"), "the jump is the first again: {saved}");
            host.exec(&["iptables", "-t", "nat", "-D", "OUTPUT", "-p", "tcp", "--dport", "93", "-j", "RETURN"])?;
        }
        assert_eq!(ruleset(&host)?, once, "{backend}: repaired");
        for _ in 0..2 {
            init(&host, &["--remove", "--backend", backend])?;
            assert_eq!(ruleset(&host)?, before, "{backend}: removed");
        }
    }
    Ok(())
}

#[tokio::test]
async fn both_backends_are_removed_at_once() -> Result<()> {
    let Some(net) = Net::new("rules of both backends")? else { return Ok(()) };
    let host = net.host("host")?;
    init(&host, &["--remove"])?;
    foreign(&host)?;
    let before = ruleset(&host)?;
    for backend in BACKENDS {
        init(&host, &["--backend", backend])?;
    }
    init(&host, &["--remove"])?;
    assert_eq!(ruleset(&host)?, before);
    Ok(())
}

#[tokio::test]
async fn a_dry_run_prints_what_is_applied() -> Result<()> {
    let Some(net) = Net::new("rules as printed")? else { return Ok(()) };
    let (printed, applied) = (net.host("printed")?, net.host("applied")?);
    for backend in BACKENDS {
        let flags = ["--backend", backend, "--exclude-outbound-ranges=10.0.0.0/8,fd00::/8", "--uid=1,2"];
        let dry = [&flags[..], &["--dry-run"]].concat();
        let before = ruleset(&printed)?;
        let text = init(&printed, &dry)?;
        assert_eq!(ruleset(&printed)?, before, "{backend}: a dry run changes nothing");
        // "# PROGRAM ARGS", then what it is handed.
        for part in text.split("# ").filter(|part| !part.is_empty()) {
            let (command, script) = part.split_once('\n').context("a command and its input")?;
            printed.exec_with(&command.split(' ').collect::<Vec<_>>(), script)?;
        }
        init(&applied, &flags)?;
        assert_eq!(ruleset(&printed)?, ruleset(&applied)?, "{backend}");
    }
    Ok(())
}

#[tokio::test]
async fn without_the_capability_it_says_how_to_give_it() -> Result<()> {
    let Some(net) = Net::new("rules without a capability")? else { return Ok(()) };
    let host = net.host("host")?;
    let program = program()?;
    let program = program.to_str().context("a path in UTF-8")?;
    for flags in [&[][..], &["--remove"], &["--backend=iptables"]] {
        let words = [&["setpriv", "--bounding-set=-net_admin", program, "sidecar", "init"], flags].concat();
        let error = format!("{:#}", host.exec(&words).unwrap_err());
        for part in ["CAP_NET_ADMIN", "cap_add: [NET_ADMIN]", "exit status: 1"] {
            ensure!(error.contains(part), "{flags:?}: {error} lacks {part}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn tools_come_from_a_folder() -> Result<()> {
    let Some(net) = Net::new("rules set by programs of a folder")? else { return Ok(()) };
    let host = net.host("host")?;
    let folder = tempfile::tempdir()?;
    let tools = folder.path().to_str().context("a path in UTF-8")?;
    for (flags, parts) in [
        (&["--backend=nft"][..], &["nft is not there", tools, "nftables", "--backend iptables"][..]),
        (&["--backend=iptables"], &["iptables-restore is not there", "--backend nft"]),
        (&["--backend=auto"], &["neither nft nor iptables"]),
        (&["--remove"], &["nft is not there"]),
    ] {
        let error = format!("{:#}", init(&host, &[&["--tools", tools], flags].concat()).unwrap_err());
        for part in parts {
            ensure!(error.contains(part), "{flags:?}: {error} lacks {part}");
        }
    }
    fill(folder.path(), "nft")?;
    let said = init(&host, &["--tools", tools])?;
    ensure!(said.ends_with("by nft\n"), "{said}");
    init(&host, &["--tools", tools, "--remove"])?;
    Ok(())
}

/// Puts a program, its libraries and their loader into a folder of tools.
fn fill(folder: &Path, name: &str) -> Result<()> {
    let said = std::process::Command::new("sh")
        .args(["-c", "ldd $(command -v \"$0\") && command -v \"$0\"", name])
        .output()?;
    let said = String::from_utf8(said.stdout)?;
    let files: Vec<_> = said.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let (program, libraries) = files.split_last().with_context(|| format!("{name}: {said}"))?;
    for place in ["bin", "lib"] {
        std::fs::create_dir(folder.join(place))?;
    }
    std::fs::copy(program, folder.join("bin").join(name))?;
    for library in libraries {
        std::fs::copy(library, folder.join("lib").join(Path::new(library).file_name().context("a file")?))?;
    }
    Ok(())
}
