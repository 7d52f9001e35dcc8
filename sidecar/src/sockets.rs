//! Binding: each worker has sockets of its own at the same addresses (SO_REUSEPORT), so that the kernel spreads
//! connections over the workers.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
};

use nix::errno::Errno;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::{dns::Listening, settings::Settings, shared::Sockets};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Everything that is bound.
#[derive(Debug)]
pub struct Bound {
    /// One for each worker.
    pub workers: Vec<Sockets>,
    /// Admin pages.
    pub admin: TcpListener,
    /// Metrics.
    pub metrics: TcpListener,
    /// DNS, when there is any.
    pub dns: Option<Listening>,
    /// Where everything is.
    pub addresses: Addresses,
}

/// The addresses as bound: port 0 has become a real one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// From the application.
    pub outbound: SocketAddr,
    /// From other sidecars.
    pub inbound: SocketAddr,
    /// Admin pages.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Names.
    pub dns: Option<SocketAddr>,
    /// As given in the settings, the canonical authority, the address.
    pub upstreams: Vec<(Box<str>, Box<str>, SocketAddr)>,
}

/// An address that cannot be bound.
#[derive(Debug, Error)]
#[error("{flag} {address}: {source}; another sidecar or program may hold it: choose another port, or 0 for any")]
pub struct BindError {
    flag: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Binds everything.
///
/// # Errors
/// The first address that cannot be bound.
pub fn bind(settings: &Settings) -> Result<Bound, BindError> {
    let workers = settings.workers;
    let (outbound, outbounds) = bind_each("--outbound", settings.outbound, workers)?;
    let (inbound, inbounds) = bind_each("--inbound", settings.inbound, workers)?;
    let (admin, mut admins) = bind_each("--admin", settings.admin, 1)?;
    let (metrics, mut metric) = bind_each("--metrics", settings.metrics, 1)?;
    let dns = settings.transparent.dns.map(|address| {
        let failed = |source| BindError { flag: "--dns", address, source };
        Listening::bind(address, settings.transparent.on).map_err(failed)
    });
    let dns = dns.transpose()?;
    let mut sockets: Vec<_> = outbounds
        .into_iter()
        .zip(inbounds)
        .map(|(outbound, inbound)| Sockets { inbound: vec![inbound], outbound: vec![outbound], upstreams: Vec::new() })
        .collect();
    if settings.transparent.on {
        for (worker, socket) in sockets.iter_mut().zip(bind_other("--outbound", outbound, workers)?) {
            worker.outbound.push(socket);
        }
        for (worker, socket) in sockets.iter_mut().zip(bind_other("--inbound", inbound, workers)?) {
            worker.inbound.push(socket);
        }
    }
    let mut upstreams = Vec::new();
    for upstream in &settings.upstreams {
        let (address, listeners) = bind_each("--upstream", upstream.listen, workers)?;
        for (worker, listener) in sockets.iter_mut().zip(listeners) {
            worker.upstreams.push((listener, upstream.authority.clone()));
        }
        upstreams.push((upstream.spec.clone(), upstream.authority.clone(), address));
    }
    Ok(Bound {
        workers: sockets,
        admin: admins.remove(0),
        metrics: metric.remove(0),
        addresses: Addresses {
            outbound,
            inbound,
            admin,
            metrics,
            dns: dns.as_ref().map(|listening| listening.address),
            upstreams,
        },
        dns,
    })
}

impl Addresses {
    /// Every address on which this process listens.
    #[must_use]
    pub fn all(&self) -> Vec<SocketAddr> {
        let upstreams = self.upstreams.iter().map(|(_, _, address)| *address);
        [self.outbound, self.inbound, self.admin, self.metrics].into_iter().chain(self.dns).chain(upstreams).collect()
    }

    /// Writes `addresses.json` into the data directory, for those who asked for any free port.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        let upstreams: BTreeMap<_, _> =
            self.upstreams.iter().map(|(spec, _, address)| (spec.to_string(), address.to_string())).collect();
        let content = json!({
            "outbound": self.outbound.to_string(),
            "inbound": self.inbound.to_string(),
            "admin": self.admin.to_string(),
            "metrics": self.metrics.to_string(),
            "dns": self.dns.map(|address| address.to_string()),
            "upstreams": upstreams,
        });
        weft_telemetry::files::write_public(&data_dir.join("addresses.json"), format!("{content:#}\n").as_bytes())
    }
}

/// Binds the IPv6 address that goes with an IPv4 one: a redirect leads to loopback, or to any address of this machine, of
/// the connection's own family. Nothing, where there is no such address or this machine has no IPv6.
fn bind_other(flag: &'static str, bound: SocketAddr, count: usize) -> Result<Vec<TcpListener>, BindError> {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST,
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(Vec::new()),
    };
    match bind_as(flag, SocketAddr::new(ip.into(), bound.port()), count, true) {
        Ok((_, listeners)) => Ok(listeners),
        Err(error)
            if matches!(
                error.source.raw_os_error().map(Errno::from_raw),
                Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)
            ) =>
        {
            // Not the whole error: its advice on ports that others hold would be wrong here.
            tracing::info!(address = %error.address, "no IPv6 here: {}", error.source);
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Binds one address `count` times.
fn bind_each(flag: &'static str, asked: SocketAddr, count: usize) -> Result<(SocketAddr, Vec<TcpListener>), BindError> {
    bind_as(flag, asked, count, false)
}

/// The same; `only_v6`: `[::]` does not stand for IPv4 as well.
fn bind_as(
    flag: &'static str,
    asked: SocketAddr,
    count: usize,
    only_v6: bool,
) -> Result<(SocketAddr, Vec<TcpListener>), BindError> {
    let failed = |source| BindError { flag, address: asked, source };
    // First alone: sharing the port with a stranger would succeed, and split the traffic between the two.
    let alone = listen(asked, false, only_v6).map_err(failed)?;
    let address = alone.local_addr().map_err(failed)?;
    if count == 1 {
        return Ok((address, vec![alone]));
    }
    drop(alone);
    let listeners = (0..count).map(|_| listen(address, true, only_v6)).collect::<io::Result<_>>().map_err(failed)?;
    Ok((address, listeners))
}

fn listen(address: SocketAddr, shared: bool, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the process before.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() && only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_but_strangers_do_not() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (address, listeners) = bind_each("--outbound", any, 2).unwrap();
        assert_eq!(listeners.len(), 2);
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
        let error = bind_each("--outbound", address, 2).unwrap_err().to_string();
        assert!(error.contains("--outbound") && error.contains("choose another port"), "{error}");
        drop(listeners);
        assert!(bind_each("--outbound", address, 2).is_ok(), "free again at once");
    }

    #[test]
    fn each_family_has_sockets_of_its_own() {
        for (v4, v6) in [("127.0.0.1:0", "::1"), ("0.0.0.0:0", "::")] {
            let (bound, _v4) = bind_each("--outbound", v4.parse().unwrap(), 2).unwrap();
            let others = bind_other("--outbound", bound, 2).unwrap();
            // Or there is no IPv6 here.
            assert!(matches!(others.len(), 0 | 2));
            let expected = SocketAddr::new(v6.parse().unwrap(), bound.port());
            assert!(others.iter().all(|listener| listener.local_addr().unwrap() == expected), "{v4}");
        }
        assert!(bind_other("--inbound", "192.0.2.1:1".parse().unwrap(), 1).unwrap().is_empty());
    }

    #[test]
    fn addresses_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let addresses = Addresses {
            outbound: at("127.0.0.1:1"),
            inbound: at("127.0.0.1:2"),
            admin: at("127.0.0.1:3"),
            metrics: at("127.0.0.1:4"),
            dns: Some(at("127.0.0.1:6")),
            upstreams: vec![("0=db:5432".into(), "db.default:5432".into(), at("127.0.0.1:5"))],
        };
        addresses.write(directory.path()).unwrap();
        let text = std::fs::read_to_string(directory.path().join("addresses.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["outbound"], "127.0.0.1:1");
        assert_eq!(value["upstreams"]["0=db:5432"], "127.0.0.1:5");
        assert_eq!(value["dns"], "127.0.0.1:6");
        assert_eq!(addresses.all().len(), 6);
    }
}
