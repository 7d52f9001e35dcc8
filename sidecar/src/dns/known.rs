//! What is known of a service's name: from the configuration in force, else by asking the control plane.
//!
//! A name is asked for as the virtual host `dns:orders.shop`, which the control plane answers whatever the service's ports
//! are. The list `namespaces` keeps names of the outside (`google.com`) from being asked for at all. What turns out not
//! to exist has a budget of its own, so that an application that looks up many names leaves room for its services.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_xds::resource::{Health, VirtualHost};

use super::decide::{Known, Named};
use crate::{
    shared::Shared,
    snapshot::{Snapshot, VhostState, clusters_of},
};

/// Key of the list of namespaces.
const NAMESPACES: &str = "namespaces";
/// Before a host in a key.
const PREFIX: &str = "dns:";
/// Names that may be asked for, or be known not to exist, at one time. Beyond it a name is taken for one of the outside.
const BUDGET: usize = 512;
/// How long the control plane's word that a name does not exist takes room.
const ABSENT_KEPT: Duration = Duration::from_secs(65);
/// The longest that a question waits for the control plane: the resolvers are asked meanwhile.
const WAIT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Names {
    shared: Arc<Shared>,
    /// Names that were asked for and not found yet, and since when.
    asked: RefCell<HashMap<String, Instant>>,
}

impl Names {
    /// Nothing asked yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, asked: RefCell::default() }
    }

    /// What is known of a host, now.
    pub fn known(&self, host: &str) -> Known {
        let snapshot = self.shared.snapshot.load();
        match snapshot.virtual_hosts.get(&*format!("{PREFIX}{host}")) {
            Some(VhostState::Found(found)) => {
                found.used.touch();
                headless(&snapshot, &found.routes).map_or(Known::Virtual, Known::Headless)
            }
            Some(VhostState::NotFound) => Known::Absent,
            None if !in_the_mesh(&snapshot, host) => Known::Absent,
            // Nobody can say more, and the address that was given still leads to the service.
            None if !self.shared.demand.connected() => match self.shared.vips.known(host) {
                Some(_) => Known::Virtual,
                None => Known::Absent,
            },
            None => Known::Unknown,
        }
    }

    /// Asks for hosts; returns when all are known or the wait is over. What could not be asked counts as absent.
    pub async fn ask(&self, hosts: &[String]) {
        futures_util::future::join_all(hosts.iter().map(|host| self.ask_one(host))).await;
    }

    async fn ask_one(&self, host: &str) {
        if !self.within_budget(host, Instant::now()) {
            tracing::debug!(host, "too many names that do not exist: not asked for");
            return;
        }
        let key = format!("{PREFIX}{host}");
        let asked = tokio::time::timeout(WAIT, self.shared.demand.ensure(&self.shared, &key)).await;
        if let Ok(Ok(_found)) = asked {
            self.asked.borrow_mut().remove(host);
        }
    }

    /// What a host counts as when asking has not settled it.
    pub fn settled(&self, host: &str) -> Known {
        match self.known(host) {
            Known::Unknown if self.shared.vips.known(host).is_some() => Known::Virtual,
            Known::Unknown => Known::Absent,
            known => known,
        }
    }

    /// Fetches the namespaces and keeps them; whether they are known now.
    pub async fn keep_namespaces(&self) -> bool {
        if self.shared.demand.connected() || self.shared.snapshot.load().virtual_hosts.contains_key(NAMESPACES) {
            // Using them keeps them; a mesh without services has none, which is no error.
            drop(self.shared.demand.ensure(&self.shared, NAMESPACES).await);
        }
        self.shared.snapshot.load().virtual_hosts.contains_key(NAMESPACES)
    }

    fn within_budget(&self, host: &str, now: Instant) -> bool {
        let mut asked = self.asked.borrow_mut();
        if asked.len() >= BUDGET {
            asked.retain(|_, since| now.saturating_duration_since(*since) < ABSENT_KEPT);
        }
        if asked.len() >= BUDGET && !asked.contains_key(host) {
            return false;
        }
        asked.insert(host.to_owned(), now);
        true
    }
}

/// Whether a host's namespace has services; yes when that is not known.
fn in_the_mesh(snapshot: &Snapshot, host: &str) -> bool {
    let Some(VhostState::Found(list)) = snapshot.virtual_hosts.get(NAMESPACES) else { return true };
    let namespace = host.rsplit('.').next().unwrap_or_default();
    list.routes.domains.iter().any(|known| **known == *namespace)
}

/// The endpoints, when the service is headless.
fn headless(snapshot: &Snapshot, host: &VirtualHost) -> Option<Vec<Named>> {
    if host.routes.is_empty() {
        return None;
    }
    let clusters = clusters_of(host).filter_map(|name| snapshot.cluster(name));
    let mut all: Vec<Named> = Vec::new();
    for state in clusters.flat_map(|upstream| upstream.endpoints()) {
        let endpoint = &state.endpoint;
        let ip: IpAddr = endpoint.address.ip().to_canonical();
        let (hostname, ready) = (endpoint.hostname.clone(), endpoint.health == Health::Healthy);
        // One of many ports says it first.
        if !all.iter().any(|known| known.ip == ip && known.hostname == hostname) {
            all.push(Named { ip, hostname, ready });
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        demand::Demand,
        settings::{Cli, Settings},
        snapshot::Host,
    };

    fn shared() -> Arc<Shared> {
        let args = ["weft-sidecar", "--service", "web", "--control-plane", "127.0.0.1:1"];
        let flags = <Cli as clap::Parser>::try_parse_from(args).unwrap().flags;
        let (demand, wanted) = Demand::new(Duration::from_secs(2));
        // Nobody answers, but the channel stays.
        std::mem::forget(wanted);
        Shared::new(Settings::new(flags, None, 1).unwrap(), demand)
    }

    fn found(domains: &[&str]) -> VhostState {
        let domains = domains.iter().map(|domain| Box::from(*domain)).collect();
        let routes = Arc::new(VirtualHost { name: "x".into(), domains, routes: Vec::new(), endpoint: None });
        VhostState::Found(Arc::new(Host::new(routes, Instant::now())))
    }

    fn publish(shared: &Shared, hosts: Vec<(&str, VhostState)>) {
        let virtual_hosts = hosts.into_iter().map(|(key, state)| (key.into(), state)).collect();
        shared.snapshot.store(Arc::new(Snapshot { revision: 1, virtual_hosts, ..Snapshot::default() }));
    }

    #[test]
    fn what_the_snapshot_says() {
        let shared = shared();
        let names = Names::new(shared.clone());
        shared.demand.set_connected(true);
        assert_eq!(names.known("google.com"), Known::Unknown, "the namespaces are not known yet");
        publish(
            &shared,
            vec![
                (NAMESPACES, found(&["shop"])),
                ("dns:orders.shop", found(&[])),
                ("dns:gone.shop", VhostState::NotFound),
            ],
        );
        assert_eq!(names.known("orders.shop"), Known::Virtual);
        assert_eq!(names.known("gone.shop"), Known::Absent);
        assert_eq!(names.known("new.shop"), Known::Unknown);
        assert_eq!(names.known("google.com"), Known::Absent, "no such namespace");
    }

    #[test]
    fn without_the_control_plane_names_that_were_known_still_answer() {
        let shared = shared();
        let names = Names::new(shared.clone());
        shared.vips.of("orders.shop").unwrap();
        assert_eq!(names.known("orders.shop"), Known::Virtual);
        assert_eq!(names.known("carts.shop"), Known::Absent, "forwarded at once");
        shared.demand.set_connected(true);
        assert_eq!(names.known("orders.shop"), Known::Unknown);
        assert_eq!(names.settled("orders.shop"), Known::Virtual, "nobody answered");
        assert_eq!(names.settled("carts.shop"), Known::Absent);
    }

    #[test]
    fn names_that_do_not_exist_are_bounded() {
        let names = Names::new(shared());
        let now = Instant::now();
        for index in 0..BUDGET {
            assert!(names.within_budget(&format!("n{index}.shop"), now));
        }
        assert!(!names.within_budget("one.more", now));
        assert!(names.within_budget("n0.shop", now), "known already");
        assert!(names.within_budget("one.more", now + ABSENT_KEPT));
        assert!(names.asked.borrow().len() <= BUDGET);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_bounded() {
        let shared = shared();
        shared.demand.set_connected(true);
        let names = Names::new(shared);
        let began = tokio::time::Instant::now();
        names.ask(&["orders.shop".to_owned()]).await;
        assert_eq!(began.elapsed(), WAIT);
    }
}
