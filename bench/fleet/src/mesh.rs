//! The mesh that is simulated: its services, who runs in which, and who calls what. Pure.

use std::fmt::Write;

/// Services of one namespace.
const NAMESPACE: usize = 100;
/// Port of every service.
pub const PORT: u16 = 80;

/// Size of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Sidecars.
    pub sidecars: usize,
    /// Services, the watched three not counted.
    pub services: usize,
    /// Services that a sidecar calls, that which all call included.
    pub calls: usize,
}

/// A service whose endpoints are changed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watched {
    /// Every sidecar calls it.
    All,
    /// The first sidecar calls it.
    One,
    /// Nobody calls it.
    Nobody,
}

impl Watched {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::All, Self::One, Self::Nobody];

    /// Its name; its namespace is [`Watched::NAMESPACE`].
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::One => "one",
            Self::Nobody => "nobody",
        }
    }

    /// Of the three.
    pub const NAMESPACE: &'static str = "watched";

    /// Its service.
    pub fn service(self) -> Service {
        Service { namespace: Self::NAMESPACE.to_owned(), name: self.name().to_owned() }
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Service {
    /// The service of a number.
    pub fn numbered(number: usize) -> Self {
        Self { namespace: format!("ns{:03}", number / NAMESPACE), name: format!("s{number:05}") }
    }

    /// `namespace/name`
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Name of its virtual host.
    pub fn virtual_host(&self) -> String {
        format!("outbound/{}.{}:{PORT}", self.name, self.namespace)
    }
}

/// The service in which a sidecar runs.
pub fn home(size: &Size, sidecar: usize) -> Service {
    Service::numbered(sidecar % size.services.max(1))
}

/// The services that a sidecar calls. Spread evenly, and the same in each run.
pub fn calls(size: &Size, sidecar: usize) -> Vec<Service> {
    let mut calls = vec![Watched::All.service()];
    if sidecar == 0 {
        calls.push(Watched::One.service());
    }
    let mut random = fastrand::Rng::with_seed(sidecar as u64 + 1);
    while calls.len() < size.calls.min(size.services) {
        let service = Service::numbered(random.usize(..size.services));
        if !calls.contains(&service) {
            calls.push(service);
        }
    }
    calls
}

/// The first configuration, in files that each hold the services of some namespaces: declared, and each with two
/// endpoints outside the mesh, so that a mesh of more services than sidecars has endpoints all the same.
pub fn config(size: &Size) -> Vec<String> {
    let numbered: Vec<_> = (0..size.services).map(Service::numbered).collect();
    let mut files: Vec<String> = numbered
        .chunks(NAMESPACE)
        .map(|services| services.iter().enumerate().map(|(n, service)| declare(service, Some(n))).collect())
        .collect();
    files.push(Watched::ALL.iter().map(|watched| declare(&watched.service(), None)).collect());
    files
}

fn declare(service: &Service, fixed: Option<usize>) -> String {
    let Service { namespace, name } = service;
    let mut yaml = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  ports: [{{name: \
         http, port: {PORT}, appProtocol: http}}]\n"
    );
    if let Some(number) = fixed {
        let (high, low) = (number / 100, number % 100);
        writeln!(
            yaml,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {namespace}, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
             endpoints: [{{addresses: [10.1.{high}.{low}]}}, {{addresses: [10.2.{high}.{low}]}}]"
        )
        .expect("writing to a string");
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { sidecars: 30, services: 50, calls: 10 };

    #[test]
    fn everybody_calls_the_first_and_one_the_second() {
        for sidecar in 0..SIZE.sidecars {
            let calls = calls(&SIZE, sidecar);
            assert_eq!(calls.len(), SIZE.calls);
            assert!(calls.contains(&Watched::All.service()));
            assert_eq!(calls.contains(&Watched::One.service()), sidecar == 0);
            assert!(!calls.contains(&Watched::Nobody.service()));
            assert!((0..calls.len()).all(|n| !calls[..n].contains(&calls[n])), "each once");
        }
    }

    #[test]
    fn a_small_mesh_is_called_as_far_as_it_goes() {
        let small = Size { services: 3, ..SIZE };
        assert_eq!(calls(&small, 7).len(), 3);
    }
}
