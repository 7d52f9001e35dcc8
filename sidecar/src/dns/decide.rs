//! What to do about a query. Pure: the question and what is known in, a decision out.

use std::net::IpAddr;

use super::{
    names::{self, Candidate},
    wire::{Answer, INTERNET, Question, code, kind},
};
use crate::vip::{self, Vips};

/// The most addresses in one answer: they fit one message by TCP.
const MOST_ADDRESSES: usize = 1024;

/// What is known of a canonical host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// A service with a virtual address.
    Virtual,
    /// A headless one, with its endpoints.
    Headless(Vec<Named>),
    /// There is no such service.
    Absent,
    /// The control plane has to be asked.
    Unknown,
}

/// An endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Where it is.
    pub ip: IpAddr,
    /// By what name it is called; empty when it has none.
    pub hostname: Box<str>,
    /// It is to get traffic.
    pub ready: bool,
}

/// Where names are looked up.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Of this workload.
    pub namespace: &'a str,
    /// Search domains of this host.
    pub search: &'a [String],
    /// Virtual addresses.
    pub vips: &'a Vips,
    /// Virtual IPv6 addresses lead somewhere.
    pub ipv6: bool,
}

/// See [`decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A name of the mesh.
    Mesh(Answer),
    /// Nothing of the mesh's.
    Forward,
    /// It depends on these hosts, which are not known yet.
    Ask(Vec<String>),
    /// Not for this server.
    Refuse,
}

/// Decides. `known`: what is known of a canonical host.
pub fn decide(question: &Question, scope: Scope<'_>, known: impl Fn(&str) -> Known) -> Decision {
    if matches!(question.kind, kind::AXFR | kind::IXFR) {
        return Decision::Refuse;
    }
    if question.class != INTERNET {
        return Decision::Forward;
    }
    let Some(name) = question.text() else { return Decision::Forward };
    if let Some(address) = names::reverse(&name).filter(|address| vip::is_virtual(*address)) {
        return Decision::Mesh(match (scope.vips.host(address), question.kind) {
            (None, _) => Answer::NoName,
            (Some(host), kind::PTR | kind::ANY) => Answer::Pointer(format!("{host}.mesh")),
            (Some(_), _) => Answer::Addresses(Vec::new()),
        });
    }
    let mut unknown = Vec::new();
    for candidate in names::candidates(&name, scope.namespace, scope.search) {
        match found(&candidate, question, scope, known(&candidate.host)) {
            // A better candidate that is not known yet comes first.
            Some(answer) if unknown.is_empty() => return Decision::Mesh(answer),
            Some(_) => break,
            None => {}
        }
        if known(&candidate.host) == Known::Unknown && !unknown.contains(&candidate.host) {
            unknown.push(candidate.host);
        }
    }
    if unknown.is_empty() { Decision::Forward } else { Decision::Ask(unknown) }
}

/// `None`: the candidate is not what the name means, as far as is known.
fn found(candidate: &Candidate, question: &Question, scope: Scope<'_>, known: Known) -> Option<Answer> {
    match (known, &candidate.endpoint) {
        (Known::Virtual, None) => Some(match scope.vips.of(&candidate.host) {
            Some(vip) => {
                let v6 = scope.ipv6.then_some(vip.v6.into());
                Answer::Addresses(of_family(question.kind, [IpAddr::V4(vip.v4)].into_iter().chain(v6)))
            }
            None => Answer::Failed(code::SERVER_FAILURE),
        }),
        (Known::Headless(endpoints), None) => {
            Some(Answer::Addresses(of_family(question.kind, ready(endpoints.iter()))))
        }
        (Known::Headless(endpoints), Some(own)) => {
            let mut named = endpoints.iter().filter(|endpoint| *endpoint.hostname == **own).peekable();
            named.peek()?;
            Some(Answer::Addresses(of_family(question.kind, ready(named))))
        }
        (Known::Virtual, Some(_)) | (Known::Absent | Known::Unknown, _) => None,
    }
}

/// Those that are to get traffic; all when none is, as everywhere in the mesh.
fn ready<'a>(endpoints: impl Iterator<Item = &'a Named> + Clone) -> impl Iterator<Item = IpAddr> {
    let any = endpoints.clone().any(|endpoint| endpoint.ready);
    endpoints.filter(move |endpoint| endpoint.ready || !any).map(|endpoint| endpoint.ip)
}

fn of_family(asked: u16, addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let fits = |address: &IpAddr| match asked {
        kind::A => address.is_ipv4(),
        kind::AAAA => address.is_ipv6(),
        kind::ANY => true,
        _ => false,
    };
    let mut fitting: Vec<IpAddr> = addresses.filter(fits).collect();
    fitting.sort_unstable();
    fitting.dedup();
    // Clients take the first: not all of them the same one.
    fastrand::shuffle(&mut fitting);
    fitting.truncate(MOST_ADDRESSES);
    fitting
}

#[cfg(test)]
mod tests;
