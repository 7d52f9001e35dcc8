//! A small world of resources that changes step by step, always closed: what a route names exists.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_proto::envoy::config::{
    cluster::v3::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
    },
    core::v3::{Address, AggregatedConfigSource, ConfigSource, SocketAddress, address, config_source, socket_address},
    endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
    route::v3::{
        Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action::ClusterSpecifier,
        route_match::PathSpecifier,
    },
};
use weft_xds::{
    resource::{Encoded, ResourceType},
    server::View,
};

pub type Key = (ResourceType, String);

/// Resources, and which of them a client has to refuse.
#[derive(Debug, Default, Clone)]
pub struct World {
    pub resources: BTreeMap<Key, Arc<Encoded>>,
    pub bad: BTreeSet<Key>,
    /// Which cluster each virtual host leads to.
    targets: BTreeMap<usize, usize>,
    revision: u32,
    /// Versions that were ever bad.
    pub poison: BTreeSet<u64>,
}

impl View for World {
    fn get(&self, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        self.resources.get(&(ty, name.to_owned())).cloned()
    }

    fn all(&self, ty: ResourceType) -> Vec<Arc<Encoded>> {
        self.resources.iter().filter(|((it, _), _)| *it == ty).map(|(_, it)| it.clone()).collect()
    }
}

pub fn host(index: usize) -> String {
    format!("outbound/h{index}.default:80")
}

pub fn cluster(index: usize) -> String {
    format!("default/c{index}:80")
}

pub fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: 2,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

impl World {
    fn put(&mut self, ty: ResourceType, name: String, bad: bool, it: Arc<Encoded>) -> Key {
        let key = (ty, name);
        if bad {
            self.poison.insert(it.hash);
            self.bad.insert(key.clone());
        } else {
            self.bad.remove(&key);
        }
        self.resources.insert(key.clone(), it);
        key
    }

    fn put_cluster(&mut self, index: usize, bad: bool) -> Key {
        self.revision += 1;
        let proto = Cluster {
            name: cluster(index),
            connect_timeout: Some(prost_types::Duration { seconds: i64::from(self.revision), nanos: 0 }),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(if bad { 2 } else { DiscoveryType::Eds as i32 })),
            eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
            ..Cluster::default()
        };
        self.put(ResourceType::Cluster, cluster(index), bad, Encoded::new(&cluster(index), &proto))
    }

    fn put_endpoints(&mut self, index: usize, bad: bool) -> Key {
        self.revision += 1;
        let address = SocketAddress {
            address: if bad {
                "nowhere".into()
            } else {
                format!("10.0.{}.{}", self.revision / 250, self.revision % 250)
            },
            port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
            ..SocketAddress::default()
        };
        let endpoint = LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
                address: Some(Address { address: Some(address::Address::SocketAddress(address)) }),
                ..Endpoint::default()
            })),
            ..LbEndpoint::default()
        };
        let proto = ClusterLoadAssignment {
            cluster_name: cluster(index),
            endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() }],
            ..ClusterLoadAssignment::default()
        };
        self.put(ResourceType::Endpoints, cluster(index), bad, Encoded::new(&cluster(index), &proto))
    }

    fn put_host(&mut self, index: usize, target: usize, bad: bool) -> Vec<Key> {
        self.revision += 1;
        let action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster(target))),
            timeout: Some(prost_types::Duration { seconds: i64::from(self.revision), nanos: 0 }),
            ..RouteAction::default()
        };
        let path = if bad { "no slash" } else { "/" };
        let proto = VirtualHost {
            name: host(index),
            domains: vec![format!("h{index}.default")],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix(path.into())),
                    ..RouteMatch::default()
                }),
                action: Some(route::Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        };
        let key = self.put(ResourceType::VirtualHost, host(index), bad, Encoded::new(&host(index), &proto));
        let configuration =
            RouteConfiguration { name: host(index), virtual_hosts: vec![proto], ..RouteConfiguration::default() };
        let routes = (ResourceType::Route, host(index));
        self.resources.insert(routes.clone(), Encoded::new(&host(index), &configuration));
        vec![key, routes]
    }

    /// Leads a host to a cluster, which comes about if need be; clusters that no host leads to any more are removed.
    pub fn retarget(&mut self, index: usize, target: usize, bad: bool) -> Vec<Key> {
        let mut dirty = Vec::new();
        if self.get(ResourceType::Cluster, &cluster(target)).is_none() {
            dirty.push(self.put_cluster(target, false));
            dirty.push(self.put_endpoints(target, false));
        }
        self.targets.insert(index, target);
        dirty.extend(self.put_host(index, target, bad));
        dirty.extend(self.collect());
        dirty
    }

    /// Removes a host.
    pub fn remove_host(&mut self, index: usize) -> Vec<Key> {
        let mut dirty = Vec::new();
        if self.targets.remove(&index).is_some() {
            dirty.push(self.remove((ResourceType::VirtualHost, host(index))));
            dirty.push(self.remove((ResourceType::Route, host(index))));
        }
        dirty.extend(self.collect());
        dirty
    }

    pub fn touch_cluster(&mut self, index: usize, bad: bool) -> Vec<Key> {
        let there = self.get(ResourceType::Cluster, &cluster(index)).is_some();
        if there { vec![self.put_cluster(index, bad)] } else { Vec::new() }
    }

    pub fn touch_endpoints(&mut self, index: usize, bad: bool) -> Vec<Key> {
        let there = self.get(ResourceType::Cluster, &cluster(index)).is_some();
        if there { vec![self.put_endpoints(index, bad)] } else { Vec::new() }
    }

    /// Takes a cluster's endpoints away, but not the cluster.
    pub fn drop_endpoints(&mut self, index: usize) -> Vec<Key> {
        let key = (ResourceType::Endpoints, cluster(index));
        if self.resources.contains_key(&key) { vec![self.remove(key)] } else { Vec::new() }
    }

    /// Makes every resource good.
    pub fn repair(&mut self) -> Vec<Key> {
        let mut dirty = Vec::new();
        for (ty, name) in std::mem::take(&mut self.bad) {
            let index: usize = name.chars().filter(char::is_ascii_digit).collect::<String>()[..1].parse().unwrap();
            match ty {
                ResourceType::Cluster => dirty.push(self.put_cluster(index, false)),
                ResourceType::Endpoints => dirty.push(self.put_endpoints(index, false)),
                _ => dirty.extend(self.put_host(index, self.targets[&index], false)),
            }
        }
        dirty
    }

    fn collect(&mut self) -> Vec<Key> {
        let used: BTreeSet<String> = self.targets.values().map(|it| cluster(*it)).collect();
        let kinds = [ResourceType::Cluster, ResourceType::Endpoints];
        let unused = |(ty, name): &&Key| kinds.contains(ty) && !used.contains(name);
        let keys: Vec<Key> = self.resources.keys().filter(unused).cloned().collect();
        keys.into_iter().map(|key| self.remove(key)).collect()
    }

    fn remove(&mut self, key: Key) -> Key {
        self.resources.remove(&key);
        self.bad.remove(&key);
        key
    }
}
