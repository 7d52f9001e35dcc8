//! `weft-sidecar init`: rules in network namespaces.

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_tests::netns::Net;

#[tokio::test]
async fn hosts_of_a_test_reach_each_other() -> Result<()> {
    let Some(net) = Net::new("hosts in network namespaces")? else { return Ok(()) };
    let (caller, callee) = (net.host("caller")?, net.host("callee")?);
    for address in callee.addresses() {
        let listener = callee.within(async move || Ok(TcpListener::bind((address, 80)).await?.into_std()?)).await?;
        let answers = callee.within(async move || {
            let (mut tcp, peer) = TcpListener::from_std(listener)?.accept().await?;
            tcp.write_all(b"here").await?;
            Ok(peer.ip())
        });
        let calls = caller.within(async move || {
            let mut text = String::new();
            TcpStream::connect((address, 80)).await?.read_to_string(&mut text).await?;
            Ok(text)
        });
        let (peer, text) = tokio::try_join!(answers, calls)?;
        assert_eq!(text, "here");
        ensure!(caller.addresses().contains(&peer), "{peer}");
    }
    caller.resolv_conf("nameserver 10.77.0.254\n")?;
    assert_eq!(caller.exec(&["cat", "/etc/resolv.conf"])?, "nameserver 10.77.0.254\n");
    let names = [caller.name().to_owned(), callee.name().to_owned()];
    drop((caller, callee, net));
    ensure!(names.iter().all(|name| !std::path::Path::new("/run/netns").join(name).exists()), "gone");
    Ok(())
}
