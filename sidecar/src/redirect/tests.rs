//! What the rules say, and how listings are read.

use clap::Parser;

use super::{Plan, iptables, nft};
use crate::settings::{Cli, Command, Init};

fn plan(flags: &[&str]) -> Result<Plan, String> {
    let given = flags.iter().any(|flag| flag.starts_with("--capture-dns"));
    let dns = (!given).then_some("--capture-dns=127.0.0.11");
    let args = ["weft-sidecar", "init", "--dry-run"].into_iter().chain(dns).chain(flags.iter().copied());
    let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
    let Some(Command::Init(init)) = cli.command else { panic!("not init") };
    match Init::new(&cli.flags, init).map_err(|error| error.to_string())? {
        Init::Print(redirect) => Ok(redirect.plan),
        other => panic!("{other:?}"),
    }
}

const NFT: &str = "\
table inet weft
delete table inet weft
table inet weft {
	chain output {
		type nat hook output priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return
		ip daddr 127.86.69.70 tcp dport 1 redirect to :15001
		ip6 daddr ::1 tcp dport 1 redirect to :15001
		meta mark 0x00001577 return
		meta skuid 15001 return
		ip daddr 127.0.0.11 udp dport 53 redirect to :15053
		ip daddr 127.0.0.11 tcp dport 53 redirect to :15053
		ip daddr 127.0.0.0/8 return
		ip6 daddr ::1 return
		meta l4proto tcp redirect to :15001
	}
	chain prerouting {
		type nat hook prerouting priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return
		iifname \"lo\" return
		fib daddr type != local return
		tcp dport 15000-15001 return
		tcp dport 15006 return
		tcp dport 15020 return
		tcp dport 15053 return
		meta l4proto tcp redirect to :15006
	}
}
";

#[test]
fn rules_without_flags() {
    assert_eq!(nft::script(&plan(&[]).unwrap()), NFT);
}

#[test]
fn every_flag_has_its_rule() {
    let table: &[(&[&str], &[&str], &[&str])] = &[
        (&["--mark=7"], &["meta mark 0x00000007 return"], &["0x00001577"]),
        (&["--mark=off"], &["meta skuid 15001 return"], &["meta mark"]),
        (
            &["--uid=1", "--uid=3,2"],
            &["skuid 1 return\n\t\tmeta skuid 2 return\n\t\tmeta skuid 3 return"],
            &["skuid 15001"],
        ),
        (
            &["--outbound=1111", "--inbound=2222", "--dns=3333"],
            &["redirect to :1111", "redirect to :2222", "redirect to :3333", "tcp dport 1111 return"],
            &["15001\n", "15006", "15053"],
        ),
        (&["--no-dns"], &[], &["dport 53", "15053"]),
        (&["--dns=off"], &[], &["dport 53", "15053"]),
        (
            &["--no-ipv6"],
            &["priority -101; policy accept;\n\t\tmeta nfproto ipv6 return"],
            &["ip6 daddr ::1 tcp dport 1 "],
        ),
        (&["--exclude-outbound-ports=22,90,80-89"], &["tcp dport 22 return\n\t\ttcp dport 80-90 return"], &[]),
        (
            &["--exclude-outbound-ranges=10.1.1.1/8,fd00::/8,10.2.0.0/16"],
            &["ip daddr 10.0.0.0/8 return\n\t\tip6 daddr fd00::/8 return"],
            &["10.2"],
        ),
        (&["--exclude-inbound-ports=8086"], &["tcp dport 8086 return\n\t\tmeta l4proto tcp redirect to :15006"], &[]),
        (&["--include-inbound-ports=80"], &["tcp dport 80 redirect to :15006"], &["l4proto tcp redirect to :15006"]),
        (
            &["--include-outbound-ports=80,443", "--include-outbound-ranges=10.0.0.0/8"],
            &["ip daddr 10.0.0.0/8 tcp dport 80 redirect to :15001\n\t\tip daddr 10.0.0.0/8 tcp dport 443 redirect"],
            &["l4proto tcp redirect to :15001"],
        ),
        (
            &["--only-uid=1000"],
            &["skuid 1000 ip daddr 127.0.0.11 udp dport 53", "skuid 1000 meta l4proto tcp redirect to :15001"],
            &["\t\tmeta l4proto tcp redirect to :15001"],
        ),
        (&["--capture-dns=all"], &["\t\tudp dport 53 redirect to :15053"], &["127.0.0.11"]),
        (&["--capture-dns=fd00::1", "--no-ipv6"], &[], &["fd00::1"]),
    ];
    for (flags, with, without) in table {
        let script = nft::script(&plan(flags).unwrap());
        for part in *with {
            assert!(script.contains(part), "{flags:?}: {part} is not in {script}");
        }
        for part in *without {
            assert!(!script.contains(part), "{flags:?}: {part} is in {script}");
        }
    }
}

#[test]
fn flags_that_cannot_be_obeyed() {
    let table: &[(&[&str], &[&str])] = &[
        (&["--backend=pf"], &["--backend", "`pf`", "nft"]),
        (&["--exclude-outbound-ports=80-70"], &["--exclude-outbound-ports", "`80-70`", "8000-8100"]),
        (&["--exclude-inbound-ports=http"], &["--exclude-inbound-ports", "`http`"]),
        (&["--exclude-outbound-ranges=10.0.0.0/33"], &["--exclude-outbound-ranges", "`10.0.0.0/33`", "fd00::/8"]),
        (&["--exclude-outbound-ranges=::/0"], &["--exclude-outbound-ranges", "every address"]),
        (&["--capture-dns=ns.example"], &["--capture-dns", "`ns.example`", "`all`"]),
        (&["--outbound=127.0.0.1:0"], &["--outbound", "need to know the port"]),
    ];
    for (flags, parts) in table {
        let error = plan(flags).unwrap_err();
        for part in *parts {
            assert!(error.contains(part), "{flags:?}: {error} lacks {part}");
        }
    }
    let many = format!("--exclude-outbound-ports={}", (1..=129).map(|p| p.to_string()).collect::<Vec<_>>().join(","));
    assert!(plan(&[&many]).unwrap_err().contains("at most 128"));
}

#[test]
fn a_listing_of_nft_is_compared() {
    let plan = plan(&[]).unwrap();
    let listing = NFT.split_once("delete table inet weft\n").unwrap().1;
    assert_eq!(nft::missing(&plan, listing), None);
    assert_eq!(nft::missing(&plan, ""), Some("chain output".to_owned()));
    let lost = listing.replace("\t\tmeta l4proto tcp redirect to :15001\n", "");
    assert_eq!(nft::missing(&plan, &lost), Some("meta l4proto tcp redirect to :15001".to_owned()));
    let unhooked = listing.replace("type nat hook prerouting priority -101; policy accept;", "");
    assert_eq!(nft::missing(&plan, &unhooked), Some("type nat hook prerouting".to_owned()));
    let more = listing.replace("\t}\n}", "\t\ttcp dport 1 return\n\t}\n}");
    assert_eq!(nft::missing(&plan, &more), Some("the end of chain prerouting".to_owned()));
}

#[test]
fn iptables_says_the_same() {
    let plan = plan(&["--capture-dns=127.0.0.11,fd00::1", "--exclude-outbound-ranges=10.0.0.0/8,fd00::/8"]).unwrap();
    let v4 = iptables::script(&plan, false, "");
    for part in [
        "*nat\n:WEFT_OUTPUT - [0:0]\n:WEFT_INPUT - [0:0]\n-I OUTPUT 1 -j WEFT_OUTPUT\n-I PREROUTING 1 -j WEFT_INPUT\n",
        "-A WEFT_OUTPUT -d 127.86.69.70/32 -p tcp -m tcp --dport 1 -j REDIRECT --to-ports 15001\n",
        "-A WEFT_OUTPUT -m mark --mark 0x1577 -j RETURN\n-A WEFT_OUTPUT -m owner --uid-owner 15001 -j RETURN\n",
        "-A WEFT_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\n",
        "-A WEFT_OUTPUT -d 10.0.0.0/8 -j RETURN\n-A WEFT_OUTPUT -p tcp -j REDIRECT --to-ports 15001\n",
        "-A WEFT_INPUT -p tcp -m tcp --dport 15000:15001 -j RETURN\n",
        "-A WEFT_INPUT -p tcp -j REDIRECT --to-ports 15006\nCOMMIT\n",
    ] {
        assert!(v4.contains(part), "{part} is not in {v4}");
    }
    assert!(!v4.contains("fd00") && !v4.contains("::1"), "{v4}");
    let v6 = iptables::script(&plan, true, "");
    for part in [
        "-A WEFT_OUTPUT -d ::1/128 -p tcp -m tcp --dport 1 -j REDIRECT --to-ports 15001\n-A WEFT_OUTPUT -m mark",
        "-d ::1/128 -j RETURN",
        "-d fd00::/8 -j RETURN",
        "-d fd00::1/128 -p tcp -m tcp --dport 53",
    ] {
        assert!(v6.contains(part), "{part} is not in {v6}");
    }
    assert!(!v6.contains("-d 1"), "{v6}");
}

#[test]
fn jumps_come_first_and_once() {
    let plan = plan(&[]).unwrap();
    let script = iptables::script(&plan, false, "");
    let rules: String = script.lines().filter(|line| line.starts_with("-A ")).map(|line| format!("{line}\n")).collect();
    let chains = ":WEFT_OUTPUT - [0:0]\n:WEFT_INPUT - [0:0]\n";
    let good = format!("{chains}-A PREROUTING -j WEFT_INPUT\n-A OUTPUT -j WEFT_OUTPUT\n-A OUTPUT -j OTHER\n{rules}");
    assert_eq!(iptables::missing(&plan, false, &good), None);
    assert!(!iptables::script(&plan, false, &good).contains("-I "), "they are where they are to be");

    let twice = good.replace("-j OTHER\n", "-j OTHER\n-A OUTPUT -j WEFT_OUTPUT\n");
    assert_eq!(iptables::missing(&plan, false, &twice).unwrap(), "-I OUTPUT 1 -j WEFT_OUTPUT");
    let repair = iptables::script(&plan, false, &twice);
    assert_eq!(repair.matches("-D OUTPUT -j WEFT_OUTPUT").count(), 2);
    assert_eq!(repair.matches("-I OUTPUT 1 -j WEFT_OUTPUT").count(), 1);
    assert!(!repair.contains("OTHER") && !repair.contains("PREROUTING"), "{repair}");

    let lost = good.replace("-A WEFT_INPUT -i lo -j RETURN\n", "");
    assert!(iptables::missing(&plan, false, &lost).is_some());

    assert_eq!(iptables::remove("-A OUTPUT -j OTHER\n:OTHER - [0:0]\n"), None);
    let removal = iptables::remove(&twice).unwrap();
    assert_eq!(removal.matches("-D OUTPUT -j WEFT_OUTPUT").count(), 2);
    assert!(removal.ends_with("-F WEFT_OUTPUT\n-X WEFT_OUTPUT\n-F WEFT_INPUT\n-X WEFT_INPUT\nCOMMIT\n"), "{removal}");
}
