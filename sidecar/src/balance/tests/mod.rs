//! Tests of the cores, and of all of them together in [`Upstream`](super::Upstream).

mod breaker;
mod budget;
mod ejection;
mod pickers;
mod upstream;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_xds::resource::{
    Balancer, CircuitBreaker, Cluster, Endpoint, EndpointBreaker, Endpoints, Health, Limits, Protocol, RetryBudget,
};

use super::Upstream;

pub(super) fn cluster(balancer: Balancer) -> Cluster {
    Cluster {
        name: "default/orders:80".into(),
        service: "default/orders".into(),
        port: 80,
        protocol: Protocol::Http,
        endpoints: "default/orders:80".into(),
        balancer,
        connect_timeout: Duration::from_secs(1),
        limits: Limits::default(),
        circuit_breaker: None,
        endpoint_breaker: Some(EndpointBreaker::default()),
        retry_budget: RetryBudget::default(),
        pool_idle: Duration::from_secs(60),
        tls: None,
        policy: "".into(),
        panic_percent: 50,
    }
}

pub(super) fn with_breaker(balancer: Balancer) -> Cluster {
    Cluster { circuit_breaker: Some(CircuitBreaker::default()), ..cluster(balancer) }
}

pub(super) fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (number / 250) as u8, (number % 250) as u8 + 1], 15006))
}

pub(super) fn endpoint(number: usize, weight: u32) -> Endpoint {
    Endpoint {
        address: address(number),
        weight,
        health: Health::Healthy,
        priority: 0,
        zone: "".into(),
        identity: None,
        workload: format!("default/orders/{number}").into(),
        hostname: "".into(),
    }
}

pub(super) fn endpoints(weights: &[u32]) -> Endpoints {
    let endpoints = weights.iter().enumerate().map(|(number, &weight)| endpoint(number, weight)).collect();
    Endpoints { cluster: "default/orders:80".into(), endpoints }
}

pub(super) fn upstream(cluster: Cluster, endpoints: &Endpoints, now: Instant) -> Arc<Upstream> {
    Upstream::build(Arc::new(cluster), endpoints, None, now)
}

/// Which endpoint of [`endpoints`] has this address.
pub(super) fn number(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("tests use IPv4") };
    let [_, _, high, low] = address.ip().octets();
    usize::from(high) * 250 + usize::from(low) - 1
}
