//! Which connections are redirected.

use super::*;

/// A host with servers at the sidecar's ports.
async fn redirected(servers: &mut Servers, host: &Host) -> Result<()> {
    for (address, name) in [
        ("127.0.0.1:15001", "outbound"),
        ("[::1]:15001", "outbound"),
        ("[::]:15006", "inbound"),
        ("[::]:15020", "metrics"),
        ("127.0.0.1:15053", "dns"),
        ("[::1]:15053", "dns"),
    ] {
        servers.tcp(host, address.parse()?, name).await?;
    }
    servers.udp(host, "127.0.0.1:15053".parse()?, "dns").await?;
    servers.udp(host, "[::1]:15053".parse()?, "dns").await
}

#[tokio::test]
async fn outbound() -> Result<()> {
    let Some(net) = Net::new("redirected outbound connections")? else { return Ok(()) };
    let (caller, callee, other) = (net.host("caller")?, net.host("callee")?, net.host("other")?);
    let mut servers = Servers::default();
    redirected(&mut servers, &caller).await?;
    servers.tcp(&caller, "127.88.0.1:80".parse()?, "own").await?;
    for host in [&callee, &other] {
        for port in [80, 8000, 8005] {
            servers.tcp(host, format!("[::]:{port}").parse()?, "peer").await?;
        }
    }
    let ranges = format!("{},{}/128", other.v4, other.v6);
    for backend in BACKENDS {
        let flags =
            ["--backend", backend, "--exclude-outbound-ports=8001-8009,22", "--exclude-outbound-ranges", &ranges];
        let said = init(&caller, &flags)?;
        ensure!(
            said.starts_with("redirected: outbound TCP to 15001, inbound TCP to 15006") && said.contains(backend),
            "{said}"
        );
        for (index, address) in callee.addresses().into_iter().enumerate() {
            assert_eq!(tcp(&caller, at(address, 80), None).await?, "outbound", "{backend} {address}");
            assert_eq!(tcp(&caller, at(address, 8000), None).await?, "outbound", "{backend} {address}");
            assert_eq!(tcp(&caller, at(address, 8005), None).await?, "peer", "{backend}: an excluded port");
            assert_eq!(tcp(&caller, at(address, 80), Some(MARK)).await?, "peer", "{backend}: the sidecar's mark");
            assert_eq!(tcp(&caller, at(address, 80), Some(1)).await?, "outbound", "{backend}: another mark");
            assert_eq!(as_user(&caller, "15001", at(address, 80)).await?, "peer", "{backend}: the sidecar's user");
            assert_eq!(as_user(&caller, "1000", at(address, 80)).await?, "outbound", "{backend}: another user");
            let other = other.addresses()[index];
            assert_eq!(tcp(&caller, at(other, 80), None).await?, "peer", "{backend}: an excluded range");
        }
        assert_eq!(tcp(&caller, at(caller.v4, 80), None).await?, "outbound", "{backend}: its own address");
        assert_eq!(tcp(&caller, "127.88.0.1:80".parse()?, None).await?, "own", "{backend}: loopback");
        // A virtual address, which no host has.
        assert_eq!(tcp(&caller, "240.1.2.3:80".parse()?, None).await?, "outbound", "{backend}");
        assert_eq!(tcp(&caller, "[fd77:6566:7400::5]:80".parse()?, None).await?, "outbound", "{backend}");
        init(&caller, &["--remove", "--backend", backend])?;
        for address in callee.addresses() {
            assert_eq!(tcp(&caller, at(address, 80), None).await?, "peer", "{backend}: removed");
        }
    }
    Ok(())
}

#[tokio::test]
async fn only_what_is_named() -> Result<()> {
    let Some(net) = Net::new("redirection of what is named alone")? else { return Ok(()) };
    let (caller, callee) = (net.host("caller")?, net.host("callee")?);
    let mut servers = Servers::default();
    for host in [&caller, &callee] {
        redirected(&mut servers, host).await?;
        for port in [80, 90] {
            servers.tcp(host, format!("[::]:{port}").parse()?, "peer").await?;
        }
    }
    for backend in BACKENDS {
        init(&caller, &["--backend", backend, "--only-uid=1000", "--include-outbound-ports=80", "--no-ipv6"])?;
        init(&callee, &["--backend", backend, "--include-inbound-ports=80", "--no-ipv6"])?;
        assert_eq!(as_user(&caller, "1000", at(callee.v4, 80)).await?, "outbound", "{backend}");
        assert_eq!(as_user(&caller, "1000", at(callee.v4, 90)).await?, "peer", "{backend}: a port that is not named");
        assert_eq!(as_user(&caller, "1001", at(callee.v4, 80)).await?, "inbound", "{backend}: the callee's alone");
        assert_eq!(tcp(&caller, at(callee.v4, 90), None).await?, "peer", "{backend}");
        assert_eq!(as_user(&caller, "1000", at(callee.v6, 80)).await?, "peer", "{backend}: IPv6 is left alone");
        for host in [&caller, &callee] {
            init(host, &["--remove"])?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn inbound() -> Result<()> {
    let Some(net) = Net::new("redirected inbound connections")? else { return Ok(()) };
    let (caller, callee) = (net.host("caller")?, net.host("callee")?);
    let mut servers = Servers::default();
    redirected(&mut servers, &callee).await?;
    for port in [80, 8086] {
        servers.tcp(&callee, format!("[::]:{port}").parse()?, "app").await?;
    }
    for backend in BACKENDS {
        init(&callee, &["--backend", backend, "--exclude-inbound-ports", "8086"])?;
        for address in callee.addresses() {
            assert_eq!(tcp(&caller, at(address, 80), None).await?, "inbound", "{backend} {address}");
            assert_eq!(tcp(&caller, at(address, 15006), None).await?, "inbound", "{backend} {address}");
            assert_eq!(tcp(&caller, at(address, 15020), None).await?, "metrics", "{backend} {address}");
            assert_eq!(tcp(&caller, at(address, 8086), None).await?, "app", "{backend}: an excluded port");
            assert_eq!(tcp(&callee, at(address, 80), Some(MARK)).await?, "app", "{backend}: from the sidecar");
        }
        assert_eq!(tcp(&callee, "127.0.0.1:80".parse()?, None).await?, "app", "{backend}: loopback");
        assert_eq!(tcp(&callee, "[::1]:80".parse()?, None).await?, "app", "{backend}: loopback");
        init(&callee, &["--remove"])?;
        assert_eq!(tcp(&caller, at(callee.v4, 80), None).await?, "app", "{backend}: removed");
    }
    Ok(())
}

/// As in a container of Docker: the resolver is at 127.0.0.11, behind rules of Docker's, and asks others from here.
#[tokio::test]
async fn dns_as_in_a_container() -> Result<()> {
    let Some(net) = Net::new("redirected DNS")? else { return Ok(()) };
    let (host, outside) = (net.host("container")?, net.host("outside")?);
    let mut servers = Servers::default();
    redirected(&mut servers, &host).await?;
    let docker = "127.0.0.11:44444".parse()?;
    servers.udp(&host, docker, "docker").await?;
    servers.tcp(&host, docker, "docker").await?;
    servers.udp(&outside, at(outside.v4, 53), "outside").await?;
    let resolver = "127.0.0.11:53".parse()?;
    host.resolv_conf("search shop\nnameserver 127.0.0.11\noptions ndots:0\n")?;
    for protocol in ["udp", "tcp"] {
        let rule = ["OUTPUT", "-d", "127.0.0.11", "-p", protocol, "--dport", "53"];
        let target = ["-j", "DNAT", "--to-destination", "127.0.0.11:44444"];
        host.exec(&[&["iptables", "-t", "nat", "-A"], &rule[..], &target[..]].concat())?;
    }
    for backend in BACKENDS {
        assert_eq!(udp(&host, resolver, None).await?, "docker", "{backend}: before");
        let said = init(&host, &["--backend", backend])?;
        ensure!(said.contains("DNS for 127.0.0.11 to 15053"), "{said}");
        assert_eq!(udp(&host, resolver, None).await?, "dns", "{backend}");
        assert_eq!(tcp(&host, resolver, None).await?, "dns", "{backend}");
        assert_eq!(udp(&host, resolver, Some(MARK)).await?, "docker", "{backend}: the sidecar asks the resolver");
        assert_eq!(tcp(&host, resolver, Some(MARK)).await?, "docker", "{backend}: the sidecar asks the resolver");
        // Docker's resolver asks the next one from within the container: it must not be led back.
        assert_eq!(udp(&host, at(outside.v4, 53), None).await?, "outside", "{backend}");
        init(&host, &["--backend", backend, "--capture-dns=all"])?;
        assert_eq!(udp(&host, at(outside.v4, 53), None).await?, "dns", "{backend}");
        assert_eq!(udp(&host, at(outside.v6, 53), None).await?, "dns", "{backend}");
        init(&host, &["--backend", backend, "--no-dns"])?;
        assert_eq!(udp(&host, resolver, None).await?, "docker", "{backend}: no DNS");
        init(&host, &["--remove"])?;
        assert_eq!(tcp(&host, resolver, None).await?, "docker", "{backend}: removed");
    }
    Ok(())
}

/// A connection that is established when rules come or go lives on.
#[tokio::test]
async fn established_connections_stay() -> Result<()> {
    let Some(net) = Net::new("connections that live while rules change")? else { return Ok(()) };
    let (caller, callee) = (net.host("caller")?, net.host("callee")?);
    let address = at(callee.v4, 80);
    let listener = callee.within(async move || Ok(TcpListener::bind(address).await?.into_std()?)).await?;
    let listener = TcpListener::from_std(listener)?;
    let client = caller.within(async move || Ok(TcpStream::connect(address).await?.into_std()?)).await?;
    let mut client = TcpStream::from_std(client)?;
    let (mut server, _) = listener.accept().await?;
    let mut byte = [0];
    for flags in [&[][..], &["--remove"], &["--backend=iptables"], &["--remove"]] {
        for host in [&caller, &callee] {
            init(host, flags)?;
        }
        client.write_all(b"x").await?;
        tokio::time::timeout(PATIENCE, server.read_exact(&mut byte)).await??;
        server.write_all(b"y").await?;
        tokio::time::timeout(PATIENCE, client.read_exact(&mut byte)).await??;
    }
    Ok(())
}
