//! Tables of settings.

use std::ffi::OsString;

use clap::Parser as _;
use rustix::thread::CapabilitySet;

use super::*;

const BASE: &[&str] = &["weft-sidecar", "--control-plane", "mesh.example:15010", "--service", "orders"];

fn settings(flags: &[&str]) -> Result<Settings, String> {
    let args = BASE.iter().chain(flags).copied();
    let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
    Settings::new(cli.flags, None, 8).map_err(|error| error.to_string())
}

#[test]
fn defaults() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.data_dir, PathBuf::from("weft-data/orders"));
    assert_eq!(settings.outbound, "127.0.0.1:15001".parse().unwrap());
    assert_eq!(settings.inbound, "0.0.0.0:15006".parse().unwrap());
    assert_eq!(settings.workers, 2);
    assert_eq!(settings.drain, Duration::from_secs(30));
    assert_eq!(settings.on_demand_idle, Duration::from_secs(600));
    assert_eq!(settings.health_check, HealthCheck::Tcp);
    assert_eq!(settings.service_key(), "default/orders");
    assert!(settings.ports.is_empty());
}

#[test]
fn ports() {
    let port = |name: &str, port, app_port, protocol| Port { name: name.into(), port, app_port, protocol };
    let table = [
        ("80", port("", 80, 80, Protocol::Detect)),
        ("80:8080", port("", 80, 8080, Protocol::Detect)),
        ("80/http", port("", 80, 80, Protocol::Http)),
        ("web=80:8080/http2", port("web", 80, 8080, Protocol::Http2)),
        ("9000/grpc", port("", 9000, 9000, Protocol::Grpc)),
        ("5432/tcp", port("", 5432, 5432, Protocol::Tcp)),
        ("1/detect", port("", 1, 1, Protocol::Detect)),
    ];
    for (spec, expected) in table {
        assert_eq!(settings(&["--port", spec]).unwrap().ports, [expected], "{spec}");
    }
    let both = settings(&["--port", "80/http,81/tcp", "--port", "82"]).unwrap().ports;
    assert_eq!(both.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81, 82]);
}

#[test]
fn upstreams() {
    let table = [
        ("127.0.0.1:9000=inventory:9000", "127.0.0.1:9000", "inventory.default:9000"),
        ("0=inventory.shop:9000", "127.0.0.1:0", "inventory.shop:9000"),
        ("[::1]:1=Inventory.shop.svc.cluster.local.:2", "[::1]:1", "inventory.shop:2"),
        ("1=a.b.mesh:2", "127.0.0.1:1", "a.b:2"),
    ];
    for (spec, listen, authority) in table {
        let upstreams = settings(&["--upstream", spec]).unwrap().upstreams;
        assert_eq!(upstreams[0].listen, listen.parse().unwrap(), "{spec}");
        assert_eq!(&*upstreams[0].authority, authority, "{spec}");
        assert_eq!(&*upstreams[0].spec, spec);
    }
}

#[test]
fn errors_name_flag_value_and_remedy() {
    let table: &[(&[&str], &[&str])] = &[
        (&["--port", "x"], &["--port", "`x`", "80:8080/http"]),
        (&["--port", "0"], &["--port", "not a port"]),
        (&["--port", "80/smtp"], &["smtp", "detect"]),
        (&["--port", "80", "--port", "80:81"], &["--port", "twice"]),
        (&["--port", "a=80", "--port", "a=81"], &["--port", "`a`"]),
        (&["--upstream", "9000"], &["--upstream", "5432=database:5432"]),
        (&["--upstream", "1=a"], &["names no port"]),
        (&["--upstream", "1=a.b.example.com:1"], &["a.b.example.com", "service"]),
        (&["--admin", "0.0.0.0:15000"], &["--admin", "loopback"]),
        (&["--outbound", "here"], &["--outbound", "`here`", "IP:PORT"]),
        (&["--weight", "0"], &["--weight", "1 to 1000"]),
        (&["--workers", "0"], &["--workers", "1 to 256"]),
        (&["--drain", "soon"], &["--drain", "`soon`", "30s"]),
        (&["--labels", "a"], &["--labels", "key=value"]),
        (&["--address", "0.0.0.0"], &["--address", "nobody"]),
        (&["--address", "host"], &["--address", "10.0.0.7"]),
        (&["--access-log", "some"], &["--access-log", "failures"]),
        (&["--namespace", "No"], &["--namespace", "`No`"]),
        (&["--trust-domain", "A b"], &["--trust-domain", "weft.local"]),
        (&["--dns", "here"], &["--dns", "`here`", "127.0.0.1:15053"]),
        (&["--dns", "0.0.0.0:53"], &["--dns", "`0.0.0.0:53`", "loopback"]),
        (&["--dns-servers", "1.1.1.1,ns.example"], &["--dns-servers", "`ns.example`", "10.0.0.53"]),
        (&["--dns-servers", "0.0.0.0"], &["--dns-servers", "not a resolver"]),
        (&["--mark", "blue"], &["--mark", "`blue`", "0x1577"]),
        (&["--mark", "0"], &["--mark", "no mark at all"]),
        (&["--probes", "/healthz"], &["--probes", "no `@`", "/healthz@8080"]),
        (&["--probes", "udp@80"], &["--probes", "`udp@80`", "grpc"]),
        (&["--probes", "tcp@0"], &["--probes", "not a port"]),
        (&["--probe-source", "node"], &["--probe-source", "`node`", "10.0.0.1"]),
        (&["--control-plane", "https://x:1"], &["--control-plane", "without a scheme"]),
        (&["--control-plane", "x"], &["--control-plane", "no port"]),
    ];
    for (flags, parts) in table {
        // clap takes the later of two values only when told; the table's own control plane comes alone.
        let error = match flags[0] {
            "--control-plane" => {
                let args = ["weft-sidecar", "--service", "orders"].iter().chain(*flags).copied();
                Settings::new(Cli::try_parse_from(args).unwrap().flags, None, 8).unwrap_err().to_string()
            }
            _ => settings(flags).unwrap_err(),
        };
        for part in *parts {
            assert!(error.contains(part), "{flags:?}: {error} lacks {part}");
        }
    }
}

#[test]
fn transparent() {
    let off = settings(&[]).unwrap().transparent;
    assert_eq!((off.on, off.dns, off.mark), (false, None, Some(MARK)));
    let on = settings(&["--transparent"]).unwrap().transparent;
    assert_eq!((on.on, on.dns), (true, Some("127.0.0.1:15053".parse().unwrap())));
    assert_eq!(settings(&["--transparent", "--dns", "off"]).unwrap().transparent.dns, None);
    let all = [
        "--dns=[::1]:5353",
        "--dns-servers=10.0.0.53,[fd00::1]:54,fd00::2",
        "--mark=7",
        "--probes=/health?a=1@8080,tcp@9000,grpc@9001",
        "--probe-source=10.0.0.1,fd00::9",
    ];
    let all = settings(&all).unwrap().transparent;
    assert_eq!((all.on, all.dns, all.mark), (false, Some("[::1]:5353".parse().unwrap()), Some(7)));
    let servers = ["10.0.0.53:53", "[fd00::1]:54", "[fd00::2]:53"].map(|text| text.parse().unwrap());
    assert_eq!(all.dns_servers, servers);
    let probe = |kind, port| Probe { kind, port };
    let http = ProbeKind::Http("/health?a=1".into());
    assert_eq!(all.probes, [probe(http, 8080), probe(ProbeKind::Tcp, 9000), probe(ProbeKind::Grpc, 9001)]);
    assert_eq!(all.probe_sources, ["10.0.0.1", "fd00::9"].map(|text| text.parse::<IpAddr>().unwrap()));
    assert_eq!(settings(&["--mark", "0xff"]).unwrap().transparent.mark, Some(255));
    assert_eq!(settings(&["--mark", "off"]).unwrap().transparent.mark, None);
    assert!(settings(&["--probes", &vec!["tcp@1"; 33].join(",")]).unwrap_err().contains("at most 32"));
}

#[test]
fn the_applications_user() {
    let accounts =
        Accounts { passwd: "root:x:0:0::/root:\napp:x:1000:50::/home/app:\n".to_owned(), group: String::new() };
    let launch_at = |flags: &[&str], home: Option<&str>| {
        let args = BASE.iter().copied().chain(["run"]).chain(flags.iter().copied()).chain(["--", "true"]);
        let mut cli = Cli::try_parse_from(args).unwrap();
        let Some(Command::Run(flags)) = cli.command else { panic!("not run") };
        let launch = Launch::new(&mut cli.flags, flags, Own { uid: 0, home, accounts: &accounts })
            .map_err(|error| error.to_string())?;
        Ok::<_, String>((launch, Settings::new(cli.flags, None, 1).unwrap().transparent))
    };
    let launch = |flags: &[&str]| launch_at(flags, Some("/root"));
    for (text, uid, gid) in [("app", 1000, 50), ("1000:7", 1000, 7), ("0", 0, 0)] {
        let user = launch(&["--app-user", text]).unwrap().0.user.unwrap();
        assert_eq!((user.uid, user.gid), (uid, gid), "{text}");
    }
    let home = |user: &str, home: Option<&str>| {
        launch_at(&["--app-user", user], home).unwrap().0.home.map(|home| home.display().to_string())
    };
    assert_eq!(home("app", Some("/root")).as_deref(), Some("/home/app"), "an engine's for root");
    assert_eq!(home("app", None).as_deref(), Some("/home/app"));
    assert_eq!(home("9", Some("/root")).as_deref(), Some("/"));
    assert_eq!(home("app", Some("/data")), None, "somebody has set it");
    assert_eq!(home("root", Some("/root")), None);
    let without = |flags: &[&str]| launch(flags).map(|launch| launch.0.without);
    assert_eq!(without(&[]).unwrap(), CapabilitySet::empty());
    assert_eq!(without(&["--redirect"]).unwrap(), CapabilitySet::NET_ADMIN);
    assert_eq!(without(&["--app-drop=kill,CAP_SETUID"]).unwrap(), CapabilitySet::KILL | CapabilitySet::SETUID);
    let error = without(&["--app-drop=EVERYTHING"]).unwrap_err();
    assert!(error.contains("--app-drop") && error.contains("EVERYTHING"), "{error}");
    let uids = |flags: &[&str]| launch(flags).unwrap().0.redirect.unwrap().plan.uids;
    assert_eq!(uids(&["--redirect"]), [0_u32; 0], "told by its mark");
    assert_eq!(uids(&["--redirect", "--app-user=1000"]), [0], "and by its user, since the application has another");
    assert_eq!(uids(&["--redirect", "--app-user=0"]), [0_u32; 0]);
    assert!(launch(&["--redirect"]).unwrap().1.on && !launch(&[]).unwrap().1.on);
    let error = launch(&["--redirect", "--mark=off"]).unwrap_err();
    assert!(error.contains("come back"), "{error}");
    for text in ["nobody", "1:"] {
        let error = launch(&[&format!("--app-user={text}")]).unwrap_err();
        assert!(error.contains("--app-user") && error.contains(text) && error.contains("1000:1000"), "{error}");
    }
}

#[test]
fn what_is_needed_is_said() {
    let parse = |args: &[&str]| Settings::new(Cli::try_parse_from(args).unwrap().flags, None, 1).unwrap_err();
    assert!(parse(&["weft-sidecar"]).to_string().starts_with("--service"));
    assert!(parse(&["weft-sidecar", "--service", "a"]).to_string().starts_with("--control-plane"));
}

#[test]
fn flags_stand_before_or_after_the_subcommand() {
    let args = BASE.iter().chain(&["run", "--port", "80", "--", "sh", "-c", "exit 3", "--port"]).copied();
    let cli = Cli::try_parse_from(args).unwrap();
    let command = ["sh", "-c", "exit 3", "--port"].map(OsString::from).to_vec();
    let Some(Command::Run(flags)) = cli.command else { panic!("{:?}", cli.command) };
    let mut global = cli.flags;
    let launch = Launch::new(&mut global, flags, Own { uid: 0, home: None, accounts: &Accounts::default() }).unwrap();
    assert_eq!(launch.stop_signal, nix::sys::signal::Signal::SIGTERM);
    assert_eq!((launch.command, launch.user, launch.redirect.is_none()), (command, None, true));
    assert_eq!(Settings::new(global, None, 1).unwrap().ports.len(), 1);
}

#[test]
fn a_token_is_never_shown() {
    let cli = Cli::try_parse_from(BASE).unwrap();
    let settings = Settings::new(cli.flags, Some(" weft1.id.secret.hash\n".to_owned()), 1).unwrap();
    assert!(!format!("{settings:?}").contains("secret"));
    assert_eq!(settings.join_token.unwrap().read().unwrap(), "weft1.id.secret.hash");
    let both = Cli::try_parse_from(BASE.iter().chain(&["--join-token-file", "f"]).copied()).unwrap();
    let error = Settings::new(both.flags, Some("t".to_owned()), 1).unwrap_err();
    assert!(error.to_string().contains("two join tokens"), "{error}");
}

#[test]
fn help_teaches() {
    let help = <Cli as clap::CommandFactory>::command().render_long_help().to_string();
    for part in ["WEFT_CONTROL_PLANE", "WEFT_JOIN_TOKEN", "run -- python3 app.py", "[default: 127.0.0.1:15001]"] {
        assert!(help.contains(part), "{part}");
    }
    <Cli as clap::CommandFactory>::command().debug_assert();
}
