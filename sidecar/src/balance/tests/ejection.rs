//! The endpoint breaker by itself.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use weft_xds::resource::EndpointBreaker;

use crate::balance::{
    Failure,
    breaker::{Cause, Event, Phase},
    ejection::{Ejection, Gate, Room, jitter, open_time},
};

const FAILED: Event = Event::Failed(Failure::Reset);
/// Jitter of exactly the open time.
const EVEN: u64 = 1 << 63;

fn room(max: u32) -> Room {
    let room = Room::default();
    room.set_max(max);
    room
}

fn opened(now: Instant, room: &Room) -> Ejection {
    let mut ejection = Ejection::new(Some(EndpointBreaker::default()));
    for _ in 0..5 {
        ejection.on(ejection.permit(), FAILED, now, EVEN, room);
    }
    ejection
}

#[test]
fn open_time_doubles_with_each_failed_probe_up_to_a_minute() {
    let (room, mut now) = (room(1), Instant::now());
    let mut ejection = opened(now, &room);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        let Gate::Open(until) = ejection.gate() else { panic!("it is open") };
        assert_eq!(until - now, Duration::from_secs(seconds));
        assert!(ejection.probe(until - Duration::from_nanos(1)).is_none());
        now = until;
        let (probe, change) = ejection.probe(now).expect("its time is over");
        assert_eq!((change.from, change.to), (Phase::Open, Phase::HalfOpen));
        assert!(ejection.probe(now).is_none(), "one at a time");
        let change = ejection.on(probe, FAILED, now, EVEN, &room).expect("it reopens");
        assert_eq!(change.cause, Cause::ProbeFailed(Failure::Reset));
        assert_eq!(room.open(), 1);
    }
}

#[test]
fn a_success_closes_and_time_spent_closed_is_remembered() {
    let (room, mut now) = (room(1), Instant::now());
    let mut ejection = opened(now, &room);
    for _ in 0..3 {
        now += Duration::from_secs(100);
        let (probe, _) = ejection.probe(now).expect("due");
        ejection.on(probe, FAILED, now, EVEN, &room);
    }
    now += Duration::from_secs(100);
    let (probe, _) = ejection.probe(now).expect("due");
    let change = ejection.on(probe, Event::Succeeded, now, EVEN, &room).expect("it closes");
    assert_eq!((change.to, change.cause, room.open()), (Phase::Closed, Cause::ProbeSucceeded, 0));
    // Four openings, one success: the next would be the fourth again, 8 s.
    let reopen = |ejection: &mut Ejection, now: Instant| {
        for _ in 0..5 {
            ejection.on(ejection.permit(), FAILED, now, EVEN, &room);
        }
        let Gate::Open(until) = ejection.gate() else { panic!("it is open") };
        until - now
    };
    assert_eq!(reopen(&mut ejection, now), Duration::from_secs(8));
    now += Duration::from_secs(100);
    let (probe, _) = ejection.probe(now).expect("due");
    ejection.on(probe, Event::Succeeded, now, EVEN, &room);
    // A long quiet time forgets all of it.
    now += Duration::from_secs(600);
    assert_eq!(reopen(&mut ejection, now), Duration::from_secs(1));
}

#[test]
fn a_cancelled_probe_makes_way_for_the_next() {
    let (room, now) = (room(1), Instant::now());
    let mut ejection = opened(now, &room);
    let later = now + Duration::from_secs(2);
    let (probe, _) = ejection.probe(later).expect("due");
    ejection.cancel(probe);
    assert_eq!(ejection.phase(), Phase::Open);
    let (next, _) = ejection.probe(later).expect("at once");
    assert_eq!(ejection.on(probe, FAILED, later, EVEN, &room), None, "the cancelled one is over");
    assert!(ejection.on(next, Event::Succeeded, later, EVEN, &room).is_some());
}

#[test]
fn without_room_it_stays_closed_and_opens_when_there_is() {
    let (full, now) = (room(0), Instant::now());
    let mut ejection = opened(now, &full);
    assert_eq!(ejection.phase(), Phase::Closed);
    full.set_max(1);
    assert!(ejection.on(ejection.permit(), FAILED, now, EVEN, &full).is_some());
}

#[test]
fn how_many_may_be_open() {
    for (all, healthy, percent, allowed) in [
        (1, 1, 50, 0),
        (2, 2, 50, 1),
        (3, 3, 50, 1),
        (4, 4, 50, 2),
        (10, 10, 10, 1),
        (3, 3, 10, 0),
        (4, 4, 100, 3),
        (4, 2, 100, 1),
        (4, 1, 50, 0),
        (0, 0, 50, 0),
    ] {
        assert_eq!(Room::allowed(all, healthy, percent), allowed, "{all} {healthy} {percent}");
    }
}

proptest! {
    #[test]
    fn jitter_is_half_either_way(millis in 1u64..100_000, random: u64) {
        let time = Duration::from_millis(millis);
        let jittered = jitter(time, random);
        prop_assert!(jittered >= time / 2 && jittered <= time + time / 2);
    }

    #[test]
    fn open_time_never_passes_the_maximum(step: u32) {
        let config = EndpointBreaker::default();
        prop_assert!((config.base_open_time..=config.max_open_time).contains(&open_time(&config, step)));
    }
}
