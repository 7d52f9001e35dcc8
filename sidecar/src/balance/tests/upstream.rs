//! All of it together.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use weft_xds::resource::{Balancer, Cluster, EndpointBreaker, Endpoints, Health, Limits};

use super::{address, cluster, endpoint, endpoints, number, upstream, with_breaker};
use crate::balance::{Failure, LimitKind, Outcome, Phase, PickError, Picked, Refused, StateCounts, Upstream};

const FAILED: Outcome = Outcome::Failed(Failure::Connect);

fn pick(upstream: &Upstream, now: Instant) -> Picked {
    upstream.pick(None, &[], now).expect("one")
}

/// Fails the endpoint until its breaker opens.
fn eject(upstream: &Upstream, which: usize, now: Instant) {
    let others: Vec<SocketAddr> = upstream.endpoints().iter().map(|state| state.address()).collect();
    let others: Vec<SocketAddr> = others.into_iter().filter(|&other| other != address(which)).collect();
    for failure in 1..=5 {
        let mut picked = upstream.pick(None, &others, now).expect("one");
        assert_eq!(picked.endpoint.address(), address(which));
        assert_eq!(picked.finish(FAILED, now).is_some(), failure == 5);
    }
}

#[test]
fn an_endpoint_that_fails_is_left_alone_probed_once_and_taken_back() {
    let now = Instant::now();
    let upstream = upstream(cluster(Balancer::RoundRobin), &endpoints(&[1, 1, 1]), now);
    eject(&upstream, 1, now);
    assert_eq!(upstream.states(), StateCounts { ready: 2, open: 1, ..StateCounts::default() });
    for _ in 0..30 {
        assert_ne!(pick(&upstream, now).endpoint.address(), address(1));
    }
    // At most 1.5 s with jitter.
    let later = now + Duration::from_millis(1500);
    let picks: Vec<Picked> = (0..30).map(|_| pick(&upstream, later)).collect();
    let mut probes: Vec<Picked> = picks.into_iter().filter(|pick| pick.endpoint.address() == address(1)).collect();
    assert_eq!(probes.len(), 1, "one probe at a time");
    assert_eq!(upstream.states().half_open, 1);
    let mut probe = probes.remove(0);
    assert_eq!(probe.change.map(|change| change.to), Some(Phase::HalfOpen));
    let change = probe.finish(Outcome::Success, later).expect("it closes");
    assert_eq!((change.from, change.to), (Phase::HalfOpen, Phase::Closed));
    assert_eq!(upstream.states().ready, 3);
}

#[test]
fn a_probe_dropped_unfinished_lets_the_next_one_pass() {
    let now = Instant::now();
    let upstream = upstream(cluster(Balancer::RoundRobin), &endpoints(&[1, 1]), now);
    eject(&upstream, 0, now);
    let later = now + Duration::from_secs(2);
    for _ in 0..3 {
        let probe = upstream.pick(None, &[address(1)], later).expect("the probe");
        assert_eq!(probe.endpoint.address(), address(0));
        let meanwhile = upstream.pick(None, &[], later).expect("the other");
        assert_eq!(meanwhile.endpoint.address(), address(1));
    }
    assert_eq!(upstream.states().open, 1);
}

#[test]
fn one_endpoint_always_stays_and_half_at_most_are_out() {
    let now = Instant::now();
    for (count, out) in [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)] {
        let upstream = upstream(cluster(Balancer::RoundRobin), &endpoints(&vec![1; count]), now);
        for _ in 0..count * 20 {
            pick(&upstream, now).finish(FAILED, now);
        }
        assert_eq!(upstream.states().open, out, "of {count}");
    }
}

#[test]
fn retries_go_elsewhere_while_there_is_an_elsewhere() {
    let now = Instant::now();
    let source = Some(42);
    for balancer in balancers() {
        let upstream = upstream(cluster(balancer.clone()), &endpoints(&[1, 2, 3]), now);
        let mut tried = Vec::new();
        for _ in 0..3 {
            let picked = upstream.pick(source, &tried, now).expect("one");
            assert!(!tried.contains(&picked.endpoint.address()), "{balancer:?}");
            tried.push(picked.endpoint.address());
        }
        assert!(upstream.pick(source, &tried, now).is_ok(), "all tried: better again than not at all");
    }
}

#[test]
fn draining_endpoints_get_nothing_and_unhealthy_ones_only_in_panic() {
    let now = Instant::now();
    let mut some = endpoints(&[1; 5]);
    some.endpoints[0].health = Health::Draining;
    some.endpoints[1].health = Health::Unhealthy;
    for balancer in balancers() {
        let upstream = upstream(cluster(balancer), &some, now);
        for hash in 0..200 {
            let picked = upstream.pick(Some(hash << 56), &[], now).expect("one");
            assert!(number(picked.endpoint.address()) >= 2 && !picked.panic);
        }
        assert_eq!(upstream.states(), StateCounts { ready: 3, draining: 1, unhealthy: 1, ..StateCounts::default() });
    }
    for index in 2..4 {
        some.endpoints[index].health = Health::Unhealthy;
    }
    let upstream = upstream(cluster(Balancer::RoundRobin), &some, now);
    let seen: HashSet<usize> = (0..40).map(|_| number(pick(&upstream, now).endpoint.address())).collect();
    assert_eq!(seen, HashSet::from([1, 2, 3, 4]), "one of four is usable: all four are used");
    assert!(pick(&upstream, now).panic);
    assert_eq!(upstream.panics(), 41);
}

#[test]
fn without_panic_rule_nothing_usable_is_an_error() {
    let now = Instant::now();
    let mut two = endpoints(&[1, 1]);
    two.endpoints.iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
    let strict = Cluster { panic_percent: 0, ..cluster(Balancer::LeastRequest) };
    let strict = upstream(strict, &two, now);
    assert_eq!(strict.pick(None, &[], now).map(|_| ()), Err(PickError::NoneReady));
    two.endpoints.iter_mut().for_each(|endpoint| endpoint.health = Health::Draining);
    let draining = upstream(cluster(Balancer::LeastRequest), &two, now);
    assert_eq!(draining.pick(None, &[], now).map(|_| ()), Err(PickError::NoneReady));
    let empty = upstream(cluster(Balancer::LeastRequest), &Endpoints::default(), now);
    assert_eq!(empty.pick(None, &[], now).map(|_| ()), Err(PickError::NoEndpoints));
}

#[test]
fn the_second_priority_is_used_as_far_as_the_first_cannot_bear_the_load() {
    let now = Instant::now();
    let mut all = endpoints(&[1; 8]);
    all.endpoints[4..].iter_mut().for_each(|endpoint| endpoint.priority = 1);
    let share = |all: &Endpoints| {
        let upstream = upstream(cluster(Balancer::RoundRobin), all, now);
        let first = (0..4000u64).filter(|&random| {
            let picked = upstream.pick_with(None, &[], now, random.wrapping_mul(0x9e37_79b9_7f4a_7c15)).expect("one");
            number(picked.endpoint.address()) < 4
        });
        first.count() as f64 / 4000.0
    };
    assert!(share(&all) > 0.999);
    all.endpoints[0].health = Health::Unhealthy;
    assert!(share(&all) > 0.999, "three of four bear it with the spare");
    all.endpoints[1].health = Health::Unhealthy;
    assert!((share(&all) - 0.7).abs() < 0.05);
    all.endpoints[2].health = Health::Unhealthy;
    all.endpoints[3].health = Health::Unhealthy;
    assert!(share(&all) < 0.001);
    // A retry leaves the level when it has been everywhere there.
    let upstream = upstream(cluster(Balancer::RoundRobin), &all, now);
    let tried: Vec<_> = (4..8).map(address).collect();
    assert!(upstream.pick(None, &tried, now).is_ok());
}

#[test]
fn weights_hold_through_the_whole_and_a_new_snapshot_does_not_start_over() {
    let now = Instant::now();
    let mut current = upstream(cluster(Balancer::WeightedRoundRobin), &endpoints(&[5, 3, 2]), now);
    let mut counts = [0; 3];
    for _ in 0..100 {
        for _ in 0..3 {
            counts[number(pick(&current, now).endpoint.address())] += 1;
        }
        current = Upstream::build(Arc::clone(current.cluster()), &endpoints(&[5, 3, 2]), Some(&current), now);
    }
    assert_eq!(counts, [150, 90, 60]);
}

#[test]
fn least_connections_are_exact_from_many_threads() {
    let now = Instant::now();
    let upstream = upstream(cluster(Balancer::LeastConnections), &endpoints(&[1, 1, 2]), now);
    let held: Vec<Picked> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..100).map(|_| pick(&upstream, now)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panics")).collect()
    });
    let in_flight: Vec<u32> = upstream.endpoints().iter().map(|state| state.in_flight()).collect();
    assert_eq!(in_flight, [100, 100, 200]);
    drop(held);
    assert!(upstream.endpoints().iter().all(|state| state.in_flight() == 0));
}

#[test]
fn limits_and_breaker_admit_together() {
    let now = Instant::now();
    let limits = Limits { connections: 1, pending: 1, requests: 2 };
    let upstream = upstream(Cluster { limits, ..with_breaker(Balancer::LeastRequest) }, &endpoints(&[1]), now);
    let held = (upstream.admit(now).expect("one"), upstream.admit(now).expect("two"));
    assert_eq!(upstream.admit(now).map(|_| ()), Err(Refused::Overflow(LimitKind::Requests)));
    assert_eq!((upstream.limits().requests.used(), upstream.limits().requests.rejected()), (2, 1));
    drop(held);
    for failure in 1..=5 {
        let mut admitted = upstream.admit(now).expect("closed");
        assert_eq!(admitted.finish(FAILED, now).is_some(), failure == 5);
        assert_eq!(admitted.finish(FAILED, now), None, "only once");
    }
    assert_eq!(upstream.breaker(), Some(Phase::Open));
    let until = Some(now + Duration::from_secs(30));
    assert_eq!(upstream.admit(now).map(|_| ()), Err(Refused::BreakerOpen { until }));
    assert_eq!(upstream.limits().requests.used(), 0, "a refusal holds nothing");
    let later = now + Duration::from_secs(30);
    // Cancelled probes free their slots: any number may come and go.
    for _ in 0..10 {
        drop(upstream.admit(later).expect("a probe"));
    }
    for _ in 0..3 {
        upstream.admit(later).expect("a probe").finish(Outcome::Success, later);
    }
    assert_eq!(upstream.breaker(), Some(Phase::Closed));
}

#[test]
fn the_breaker_counts_in_a_row_through_the_lock_free_way() {
    let now = Instant::now();
    let upstream = upstream(with_breaker(Balancer::LeastRequest), &endpoints(&[1]), now);
    for _ in 0..10 {
        for _ in 0..4 {
            upstream.admit(now).expect("closed").finish(FAILED, now);
        }
        upstream.admit(now).expect("closed").finish(Outcome::Success, now);
    }
    assert_eq!(upstream.breaker(), Some(Phase::Closed));
    assert!(upstream.admit(now).expect("closed").finish(Outcome::Ignored, now).is_none());
}

#[test]
fn a_limit_holds_from_many_threads() {
    let now = Instant::now();
    let limits = Limits { connections: 7, ..Limits::default() };
    let upstream = upstream(Cluster { limits, ..cluster(Balancer::LeastRequest) }, &endpoints(&[1]), now);
    let limit = &upstream.limits().connections;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let permit = limit.acquire();
                    assert!(limit.used() <= 7);
                    drop(permit);
                }
            });
        }
    });
    assert_eq!(limit.used(), 0);
}

#[test]
fn live_state_outlives_the_snapshot() {
    let now = Instant::now();
    let first = upstream(with_breaker(Balancer::RoundRobin), &endpoints(&[1, 1, 1]), now);
    eject(&first, 1, now);
    let held = pick(&first, now);
    for _ in 0..5 {
        first.admit(now).expect("closed").finish(FAILED, now);
    }
    // Endpoint 1 changes its weight, one comes, one leaves.
    let mut next = endpoints(&[1, 7, 1, 1]);
    let gone = next.endpoints.remove(2).address;
    let second = Upstream::build(Arc::clone(first.cluster()), &next, Some(&first), now);
    assert_eq!(second.breaker(), Some(Phase::Open));
    assert_eq!(second.states(), StateCounts { ready: 2, open: 1, ..StateCounts::default() });
    assert!(Arc::ptr_eq(&first.endpoints()[0], &second.endpoints()[0]), "unchanged: the same value");
    assert_eq!(second.endpoints()[1].endpoint.weight, 7);
    assert_eq!(second.endpoints()[1].phase(), Phase::Open);
    let in_flight = |upstream: &Upstream| upstream.endpoints().iter().map(|state| state.in_flight()).sum::<u32>();
    let stayed = held.endpoint.address() != gone;
    assert_eq!(in_flight(&second), u32::from(stayed));
    drop(held);
    assert_eq!(in_flight(&second), 0);
    assert!(first.endpoints()[2].departed() && !second.endpoints()[0].departed());
}

#[test]
fn who_leaves_while_open_gives_its_place_back() {
    let now = Instant::now();
    let first = upstream(cluster(Balancer::RoundRobin), &endpoints(&[1, 1, 1]), now);
    eject(&first, 2, now);
    let two = endpoints(&[1, 1]);
    let second = Upstream::build(Arc::clone(first.cluster()), &two, Some(&first), now);
    eject(&second, 0, now);
    assert_eq!(second.states().open, 1);
    // The same address with another workload is another endpoint.
    let mut again = endpoints(&[1, 1]);
    again.endpoints[0].workload = "default/orders/new".into();
    let third = Upstream::build(Arc::clone(first.cluster()), &again, Some(&second), now);
    assert_eq!(third.states().ready, 2);
}

#[test]
fn a_smaller_cluster_or_share_closes_what_no_longer_fits() {
    let now = Instant::now();
    let four = upstream(cluster(Balancer::RoundRobin), &endpoints(&[1; 4]), now);
    eject(&four, 0, now);
    eject(&four, 1, now);
    let two = Upstream::build(Arc::clone(four.cluster()), &endpoints(&[1, 1]), Some(&four), now);
    assert_eq!((two.states().ready, two.states().open), (1, 1));
    assert_eq!(two.reconciled().len(), 1);
    let off = Cluster { endpoint_breaker: None, ..cluster(Balancer::RoundRobin) };
    let off = Upstream::build(Arc::new(off), &endpoints(&[1, 1]), Some(&two), now);
    assert_eq!((off.states().ready, off.reconciled().len()), (2, 1));
    for _ in 0..100 {
        pick(&off, now).finish(FAILED, now);
    }
    assert_eq!(off.states().ready, 2, "switched off");
}

#[test]
fn repeated_endpoints_count_once() {
    let now = Instant::now();
    let mut twice = endpoints(&[1, 1]);
    twice.endpoints.push(endpoint(0, 9));
    let upstream = upstream(cluster(Balancer::RoundRobin), &twice, now);
    assert_eq!(upstream.endpoints().len(), 2);
    assert_eq!(upstream.endpoints()[0].endpoint.weight, 1);
}

fn balancers() -> Vec<Balancer> {
    vec![
        Balancer::RoundRobin,
        Balancer::WeightedRoundRobin,
        Balancer::LeastRequest,
        Balancer::LeastConnections,
        Balancer::SourceIp,
        Balancer::ConsistentHash { header: None, virtual_nodes: 150 },
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Pick(u64),
    Finish(prop::sample::Index, Outcome),
    Drop(prop::sample::Index),
    Wait(u64),
    /// A new snapshot: for each endpoint whether it is there, and its health.
    Rebuild(Vec<(bool, u8)>),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![1 => Just(Outcome::Success), 6 => Just(FAILED), 1 => Just(Outcome::Ignored)];
    prop_oneof![
        20 => any::<u64>().prop_map(Step::Pick),
        18 => (any::<prop::sample::Index>(), outcome).prop_map(|(index, outcome)| Step::Finish(index, outcome)),
        2 => any::<prop::sample::Index>().prop_map(Step::Drop),
        4 => (0u64..1500).prop_map(Step::Wait),
        1 => prop::collection::vec((prop::bool::weighted(0.8), 0u8..10), 6).prop_map(Step::Rebuild),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Whatever happens: the share of open endpoints holds, guards and gauges agree, nothing is picked that may not be.
    #[test]
    fn invariants_hold(
        steps in prop::collection::vec(step(), 1..400), kind in 0usize..6, percent in 0u8..=100, panic in 0u8..=100,
    ) {
        let breaker = EndpointBreaker { max_ejection_percent: percent, ..EndpointBreaker::default() };
        let config = Arc::new(Cluster {
            endpoint_breaker: Some(breaker),
            panic_percent: panic,
            ..cluster(balancers()[kind].clone())
        });
        let mut now = Instant::now();
        let mut current = Upstream::build(Arc::clone(&config), &endpoints(&[1, 2, 3, 1, 2, 3]), None, now);
        let mut held: Vec<Picked> = Vec::new();
        for step in steps {
            match step {
                Step::Pick(random) => match current.pick_with(Some(random), &[], now, random) {
                    Ok(picked) => {
                        let health = picked.endpoint.endpoint.health;
                        prop_assert!(health != Health::Draining);
                        prop_assert!(picked.panic || health == Health::Healthy);
                        prop_assert!(picked.panic || picked.endpoint.phase() != Phase::Open);
                        held.push(picked);
                    }
                    Err(PickError::NoEndpoints) => prop_assert!(current.endpoints().is_empty()),
                    Err(PickError::NoneReady) => prop_assert!(current.states().ready == 0),
                },
                Step::Finish(index, outcome) if !held.is_empty() => {
                    let at = index.index(held.len());
                    held.swap_remove(at).finish(outcome, now);
                }
                Step::Drop(index) if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
                Step::Finish(..) | Step::Drop(_) => {}
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Rebuild(there) => {
                    let mut all = endpoints(&[1, 2, 3, 1, 2, 3]);
                    for (endpoint, &(_, health)) in all.endpoints.iter_mut().zip(&there) {
                        endpoint.health = match health { 0 => Health::Draining, 1 => Health::Unhealthy, _ => Health::Healthy };
                    }
                    let mut keep = there.iter().map(|&(keep, _)| keep);
                    all.endpoints.retain(|_| keep.next().unwrap_or(false));
                    current = Upstream::build(Arc::clone(&config), &all, Some(&current), now);
                }
            }
            let by_health = |health| current.endpoints().iter().filter(|state| state.endpoint.health == health).count();
            let in_traffic = by_health(Health::Healthy) + by_health(Health::Unhealthy);
            let out = current.endpoints().iter().filter(|state| state.phase() != Phase::Closed);
            let allowed = (in_traffic * usize::from(percent) / 100).min(by_health(Health::Healthy).saturating_sub(1));
            prop_assert!(out.clone().count() <= allowed, "{} > {allowed}", out.count());
            for state in current.endpoints() {
                let guards = held.iter().filter(|picked| Arc::ptr_eq(&picked.endpoint.live, &state.live)).count();
                prop_assert_eq!(guards, state.in_flight() as usize);
            }
        }
    }
}

#[test]
fn many_threads_leave_nothing_behind() {
    let now = Instant::now();
    let upstream = upstream(with_breaker(Balancer::LeastRequest), &endpoints(&[1, 2, 3, 4]), now);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let upstream = &upstream;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                for round in 0..5000u64 {
                    let now = now + Duration::from_millis(round);
                    let Ok(mut admitted) = upstream.admit(now) else { continue };
                    let Ok(mut picked) = upstream.pick(None, &[], now) else { continue };
                    let outcome = [Outcome::Success, FAILED, Outcome::Ignored][rng.usize(..3)];
                    if rng.bool() {
                        picked.finish(outcome, now);
                        admitted.finish(outcome, now);
                    }
                }
            });
        }
    });
    assert_eq!(upstream.limits().requests.used(), 0);
    assert!(upstream.endpoints().iter().all(|state| state.in_flight() == 0));
    // All open times are over by then: whatever state was left, traffic gets through again and closes everything.
    let later = now + Duration::from_secs(600);
    for _ in 0..200 {
        let mut admitted = upstream.admit(later).expect("closed or a probe");
        let mut picked = upstream.pick(None, &[], later).expect("one");
        picked.finish(Outcome::Success, later);
        admitted.finish(Outcome::Success, later);
    }
    assert_eq!(upstream.states().ready, 4);
    assert_eq!(upstream.breaker(), Some(Phase::Closed));
}

#[test]
fn a_caller_that_has_chosen_gets_that_endpoint_or_none() {
    let now = Instant::now();
    let mut all = endpoints(&[1, 1, 1]);
    all.endpoints[1].health = Health::Unhealthy;
    let upstream = upstream(cluster(Balancer::RoundRobin), &all, now);
    for number in 0..3 {
        let picked = upstream.pick_only(address(number), now).unwrap();
        assert_eq!(
            (picked.endpoint.address(), picked.endpoint.in_flight()),
            (address(number), 1),
            "whatever its health"
        );
    }
    assert!(matches!(upstream.pick_only(address(9), now), Err(PickError::NoEndpoints)));
    // Its breaker holds all the same.
    for _ in 0..5 {
        upstream.pick_only(address(0), now).unwrap().finish(Outcome::Failed(Failure::Connect), now);
    }
    assert!(matches!(upstream.pick_only(address(0), now), Err(PickError::NoneReady)));
    assert_eq!(upstream.endpoints()[0].in_flight(), 0);
    assert!(upstream.pick_only(address(2), now).is_ok());
}
