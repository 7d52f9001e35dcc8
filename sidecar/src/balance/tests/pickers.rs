//! The balancers.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use weft_xds::resource::{Balancer, HashOn};

use super::address;
use crate::balance::{
    hash::{hash_bytes, hash_source, request_hash},
    least::{Lottery, least},
    ring::{MAX_NODES, Ring},
    round_robin::{RoundRobin, Smooth},
};

fn smooth(count: usize) -> Smooth {
    Smooth::new(std::iter::repeat_n(0, count))
}

fn counts(count: usize, picks: impl IntoIterator<Item = usize>) -> Vec<u32> {
    let mut counts = vec![0; count];
    picks.into_iter().for_each(|pick| counts[pick] += 1);
    counts
}

#[test]
fn five_three_two_in_every_ten_interleaved() {
    let smooth = smooth(3);
    let picks: Vec<usize> = (0..1000).map(|_| smooth.pick(&[5, 3, 2], |_| true).expect("one")).collect();
    for ten in picks.windows(10) {
        assert_eq!(counts(3, ten.iter().copied()), [5, 3, 2]);
    }
    let longest = picks.chunk_by(|a, b| a == b).map(<[_]>::len).max();
    assert_eq!(longest, Some(2), "never in a block: {:?}", &picks[..10]);
}

#[test]
fn smooth_is_exact_from_many_threads() {
    let smooth = smooth(3);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own: Vec<usize> = (0..2500).map(|_| smooth.pick(&[5, 3, 2], |_| true).expect("one")).collect();
                all.lock().expect("no panics").extend(own);
            });
        }
    });
    assert_eq!(counts(3, all.into_inner().expect("no panics")), [5000, 3000, 2000]);
}

#[test]
fn round_robin_is_even_from_many_threads() {
    let turns = RoundRobin::starting_at(7);
    let hits: Vec<AtomicU32> = (0..5).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let pick = turns.pick(5, true, |_| true).expect("one");
                    hits[pick].fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert!(hits.iter().all(|hits| hits.load(Relaxed) == 800));
}

#[test]
fn the_neighbour_of_a_failed_endpoint_gets_no_double_share() {
    let turns = RoundRobin::default();
    let picks = (0..300).map(|_| turns.pick(4, false, |index| index != 1).expect("one"));
    assert_eq!(counts(4, picks), [100, 0, 100, 100]);
    assert_eq!(turns.pick(4, false, |_| false), None);
    assert_eq!(turns.pick(0, true, |_| true), None);
}

#[test]
fn removing_one_of_ten_moves_a_tenth() {
    let all: Vec<(SocketAddr, u32)> = (0..10).map(|number| (address(number), 1)).collect();
    let before = Ring::new(&all, 150);
    for gone in 0..10 {
        let rest: Vec<_> = all.iter().copied().filter(|&(one, _)| one != address(gone)).collect();
        let after = Ring::new(&rest, 150);
        let mut moved = 0;
        for key in 0..10_000u32 {
            let hash = hash_bytes(&key.to_le_bytes());
            let old = all[before.pick(hash, |_| true).expect("one")].0;
            let new = rest[after.pick(hash, |_| true).expect("one")].0;
            let next = all[before.pick(hash, |index| index != gone).expect("one")].0;
            assert_eq!(new, next, "leaving and being unusable lead to the same endpoint");
            assert!(old == new || old == address(gone), "only its own keys move");
            moved += u32::from(old != new);
        }
        assert!((700..=1300).contains(&moved), "{moved} of 10000 moved");
    }
}

#[test]
fn the_ring_respects_weights_and_its_bound() {
    let ring = Ring::new(&[(address(0), 1), (address(1), 3)], 150);
    let picks = (0..20_000u32).map(|key| ring.pick(hash_bytes(&key.to_le_bytes()), |_| true).expect("one"));
    let counts = counts(2, picks);
    let share = f64::from(counts[1]) / 20_000.0;
    assert!((0.70..=0.80).contains(&share), "{share}");

    let many: Vec<_> = (0..50).map(|number| (address(number), 1000)).collect();
    assert!(Ring::new(&many, 150).len() as u64 <= MAX_NODES);
    assert_eq!(Ring::new(&[], 150).pick(1, |_| true), None);
    assert_eq!(ring.pick(1, |_| false), None);
}

#[test]
fn hashes_as_others_do() {
    // Test vectors of xxHash64 with seed 0.
    assert_eq!(hash_bytes(b""), 0xef46_db37_51d8_e999);
    assert_eq!(hash_bytes(b"a"), 0xd24e_c4f1_a98c_6e5b);
    let source: IpAddr = "10.1.2.3".parse().expect("an address");
    assert_eq!(hash_source(source), hash_bytes(b"10.1.2.3"));
    assert_eq!(hash_source("::ffff:10.1.2.3".parse().expect("an address")), hash_source(source));
}

#[test]
fn what_is_hashed() {
    let source: IpAddr = "10.1.2.3".parse().expect("an address");
    let (user, other) = (HeaderName::from_static("x-user"), HeaderName::from_static("x-other"));
    let mut headers = HeaderMap::new();
    headers.insert(&user, HeaderValue::from_static("ann"));
    let ring = |header: Option<&HeaderName>| Balancer::ConsistentHash { header: header.cloned(), virtual_nodes: 150 };
    let hash = |balancer: &Balancer, on: &[HashOn]| request_hash(balancer, on, &headers, source);
    assert_eq!(hash(&Balancer::LeastRequest, &[HashOn::SourceIp]), None);
    assert_eq!(hash(&Balancer::SourceIp, &[]), Some(hash_source(source)));
    assert_eq!(hash(&ring(Some(&user)), &[]), Some(hash_bytes(b"ann")));
    assert_eq!(hash(&ring(Some(&other)), &[]), None, "no value: at random");
    assert_eq!(hash(&ring(None), &[]), Some(hash_source(source)));
    assert_eq!(hash(&ring(None), &[HashOn::Header(other.clone()), HashOn::Header(user)]), Some(hash_bytes(b"ann")));
    assert_eq!(hash(&ring(None), &[HashOn::Header(other)]), None);
}

#[test]
fn two_choices_follow_weights_when_idle_and_load_when_not() {
    let weights = [1, 2, 5];
    let (lottery, mut rng) = (Lottery::new(&weights), Rng::with_seed(1));
    let picks = (0..16_000).map(|_| lottery.better_of_two(&weights, |_| 0, |_| true, &mut rng).expect("one"));
    let counts = counts(3, picks);
    for (count, expected) in counts.iter().zip([2000.0, 4000.0, 10_000.0]) {
        assert!((f64::from(*count) / expected - 1.0).abs() < 0.1, "{counts:?}");
    }
    // Of two endpoints both are always looked at.
    let pair = Lottery::new(&[1, 1]);
    for _ in 0..100 {
        assert_eq!(pair.better_of_two(&[1, 1], |index| [7, 3][index], |_| true, &mut rng), Some(1));
        assert_eq!(pair.better_of_two(&[1, 1], |_| 0, |index| index == 0, &mut rng), Some(0));
        assert_eq!(pair.better_of_two(&[1, 1], |_| 0, |_| false, &mut rng), None);
    }
    assert_eq!(Lottery::new(&[]).better_of_two(&[], |_| 0, |_| true, &mut rng), None);
}

#[test]
fn least_breaks_ties_by_weight() {
    let mut rng = Rng::with_seed(3);
    let picks = (0..8000).map(|_| least(&[1, 3], |_| 0, |_| true, &mut rng).expect("one"));
    let counts = counts(2, picks);
    assert!((1800..=2200).contains(&counts[0]), "{counts:?}");
}

proptest! {
    #[test]
    fn smooth_gives_each_its_weight_in_every_round(
        weights in prop::collection::vec(1u32..30, 1..8), able in prop::collection::vec(any::<bool>(), 8),
    ) {
        let smooth = smooth(weights.len());
        let usable = |index: usize| able[index];
        let sum: u32 = weights.iter().enumerate().filter(|&(index, _)| usable(index)).map(|(_, weight)| weight).sum();
        if sum == 0 {
            prop_assert_eq!(smooth.pick(&weights, usable), None);
            return Ok(());
        }
        for _ in 0..3 {
            let picks = counts(weights.len(), (0..sum).map(|_| smooth.pick(&weights, usable).expect("one")));
            for (index, &count) in picks.iter().enumerate() {
                prop_assert_eq!(count, if usable(index) { weights[index] } else { 0 });
            }
        }
    }

    #[test]
    fn least_is_the_least(
        hosts in prop::collection::vec((1u32..10, 0u32..50, any::<bool>()), 1..12), seed: u64,
    ) {
        let weights: Vec<u32> = hosts.iter().map(|host| host.0).collect();
        let pick = least(&weights, |index| hosts[index].1, |index| hosts[index].2, &mut Rng::with_seed(seed));
        let load = |host: &(u32, u32, bool)| f64::from(host.1) / f64::from(host.0);
        let best = hosts.iter().filter(|host| host.2).map(load).reduce(f64::min);
        prop_assert_eq!(pick.map(|index| load(&hosts[index])), best);
        if let Some(pick) = pick {
            prop_assert!(hosts[pick].2);
        }
    }

    #[test]
    fn drawing_only_finds_what_can_be_used(
        hosts in prop::collection::vec((1u32..10, 0u32..50, any::<bool>()), 1..12), seed: u64,
    ) {
        let weights: Vec<u32> = hosts.iter().map(|host| host.0).collect();
        let lottery = Lottery::new(&weights);
        let usable = |index: usize| hosts[index].2;
        let pick = lottery.better_of_two(&weights, |index| hosts[index].1, usable, &mut Rng::with_seed(seed));
        prop_assert_eq!(pick.is_some(), hosts.iter().any(|host| host.2));
        prop_assert!(pick.is_none_or(usable));
    }

    #[test]
    fn the_ring_gives_one_key_one_endpoint(
        count in 1usize..20, hash: u64, down in prop::collection::hash_set(0usize..20, 0..20),
    ) {
        let all: Vec<_> = (0..count).map(|number| (address(number), 1)).collect();
        let ring = Ring::new(&all, 20);
        let usable = |index: usize| !down.contains(&index);
        let pick = ring.pick(hash, usable);
        prop_assert_eq!(pick, Ring::new(&all, 20).pick(hash, usable));
        prop_assert_eq!(pick.is_some(), (0..count).any(usable));
        let home = ring.pick(hash, |_| true);
        prop_assert!(home.is_some_and(|home| !usable(home)) || pick == home);
    }
}

#[test]
fn every_endpoint_is_on_the_ring() {
    let all: Vec<_> = (0..100).map(|number| (address(number), 1)).collect();
    let ring = Ring::new(&all, 150);
    let mut hits: HashMap<usize, u32> = HashMap::new();
    for key in 0..100_000u32 {
        *hits.entry(ring.pick(hash_bytes(&key.to_le_bytes()), |_| true).expect("one")).or_default() += 1;
    }
    assert_eq!(hits.len(), 100);
    assert!(hits.values().all(|&hits| (500..=1700).contains(&hits)), "{hits:?}");
}
