//! Health probes of the application that may come in plain text (`--probes`). Pure, but for the look at the application.

use std::net::{IpAddr, SocketAddr};

use http::{Method, Version, request::Parts};

use crate::settings::{Probe, ProbeKind, Transparent};

/// gRPC's health service.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/";

/// The probes that may come from an address to a port of the application.
pub(super) fn of(settings: &Transparent, port: u16, peer: SocketAddr) -> impl Iterator<Item = &Probe> {
    let from = peer.ip().to_canonical();
    let may = settings.probe_sources.is_empty() || settings.probe_sources.iter().any(|ip| same(*ip, from));
    settings.probes.iter().filter(move |probe| may && probe.port == port)
}

fn same(one: IpAddr, other: IpAddr) -> bool {
    one.to_canonical() == other
}

/// Whether a request to a port of the application is one of its probes.
pub fn is_probe(settings: &Transparent, port: u16, peer: SocketAddr, parts: &Parts) -> bool {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    of(settings, port, peer).any(|probe| match &probe.kind {
        ProbeKind::Http(declared) => matches!(parts.method, Method::GET | Method::HEAD) && **declared == *path,
        ProbeKind::Grpc => {
            parts.method == Method::POST && parts.version == Version::HTTP_2 && path.starts_with(GRPC_HEALTH)
        }
        ProbeKind::Tcp => false,
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn settings() -> Transparent {
        let probe = |kind, port| Probe { kind, port };
        Transparent {
            on: true,
            dns: None,
            dns_servers: Vec::new(),
            mark: None,
            probes: vec![
                probe(ProbeKind::Http("/healthz".into()), 8080),
                probe(ProbeKind::Http("/ready?full=1".into()), 8080),
                probe(ProbeKind::Tcp, 5432),
                probe(ProbeKind::Grpc, 9000),
            ],
            probe_sources: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn exactly_what_is_declared_is_a_probe() {
        let settings = settings();
        let table = [
            ("GET", "/healthz", 8080, Version::HTTP_11, true),
            ("HEAD", "/healthz", 8080, Version::HTTP_11, true),
            ("GET", "http://10.0.0.5:8080/healthz", 8080, Version::HTTP_2, true),
            ("POST", "/healthz", 8080, Version::HTTP_11, false),
            ("GET", "/healthz/", 8080, Version::HTTP_11, false),
            ("GET", "/healthz?x=1", 8080, Version::HTTP_11, false),
            ("GET", "/healthz/../admin", 8080, Version::HTTP_11, false),
            ("GET", "/ready?full=1", 8080, Version::HTTP_11, true),
            ("GET", "/ready", 8080, Version::HTTP_11, false),
            ("GET", "/healthz", 8081, Version::HTTP_11, false),
            ("GET", "/healthz", 5432, Version::HTTP_11, false),
            ("POST", "/grpc.health.v1.Health/Check", 9000, Version::HTTP_2, true),
            ("POST", "/grpc.health.v1.Health/Check", 9000, Version::HTTP_11, false),
            ("POST", "/shop.Orders/Place", 9000, Version::HTTP_2, false),
        ];
        for (method, path, port, version, expected) in table {
            let request = Request::builder().method(method).uri(path).version(version).body(()).unwrap();
            let (parts, ()) = request.into_parts();
            for (peer, may) in [("10.0.0.1:4", true), ("[::ffff:10.0.0.1]:4", true), ("10.0.0.2:4", false)] {
                let found = is_probe(&settings, port, peer.parse().unwrap(), &parts);
                assert_eq!(found, expected && may, "{method} {path} at {port} from {peer}");
            }
        }
    }
}
