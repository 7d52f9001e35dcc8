//! The three-state breaker against a naive model, and its table.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use weft_xds::resource::CircuitBreaker;

use crate::balance::{
    Failure,
    breaker::{Breaker, Cause, Event, Permit, Phase},
};

const FAILED: Event = Event::Failed(Failure::Status);

fn ask(breaker: &mut Breaker, now: Instant) -> Permit {
    breaker.ask(now).expect("it lets through").0
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(CircuitBreaker::default());
    for _ in 0..5 {
        let permit = ask(&mut breaker, now);
        breaker.on(permit, FAILED, now);
    }
    assert_eq!(breaker.phase(), Phase::Open);
    breaker
}

#[test]
fn the_fifth_failure_in_a_row_opens() {
    let now = Instant::now();
    let mut breaker = Breaker::new(CircuitBreaker::default());
    for round in 0..4 {
        let permit = ask(&mut breaker, now);
        assert_eq!(breaker.on(permit, FAILED, now), None, "failure {round}");
    }
    let permit = ask(&mut breaker, now);
    breaker.on(permit, Event::Succeeded, now);
    for _ in 0..4 {
        let permit = ask(&mut breaker, now);
        breaker.on(permit, FAILED, now);
    }
    let permit = ask(&mut breaker, now);
    let change = breaker.on(permit, FAILED, now).expect("five in a row");
    assert_eq!((change.from, change.to), (Phase::Closed, Phase::Open));
    assert_eq!(change.cause, Cause::Failures(Failure::Status));
    assert_eq!(change.until, Some(now + Duration::from_secs(30)));
}

#[test]
fn open_for_thirty_seconds_then_three_successes_close() {
    let now = Instant::now();
    let mut breaker = opened(now);
    assert!(breaker.ask(now + Duration::from_millis(29_999)).is_err());
    let later = now + Duration::from_secs(30);
    let (first, change) = breaker.ask(later).expect("a probe");
    assert_eq!(change.expect("it turns").to, Phase::HalfOpen);
    assert_eq!(breaker.on(first, Event::Succeeded, later), None);
    let second = ask(&mut breaker, later);
    assert_eq!(breaker.on(second, Event::Succeeded, later), None);
    let third = ask(&mut breaker, later);
    let change = breaker.on(third, Event::Succeeded, later).expect("the third closes");
    assert_eq!((change.from, change.to, change.cause), (Phase::HalfOpen, Phase::Closed, Cause::ProbeSucceeded));
}

#[test]
fn one_failure_in_half_open_reopens_and_a_cancelled_probe_frees_its_slot() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + Duration::from_secs(30);
    let probes: Vec<_> = (0..3).map(|_| ask(&mut breaker, later)).collect();
    assert!(breaker.ask(later).is_err(), "three probes are out");
    breaker.cancel(probes[0]);
    let again = ask(&mut breaker, later);
    assert!(breaker.ask(later).is_err());
    let change = breaker.on(again, FAILED, later).expect("one failure reopens");
    assert_eq!((change.to, change.cause), (Phase::Open, Cause::ProbeFailed(Failure::Status)));
    // The other probes come late: they belong to a phase that is over.
    assert_eq!(breaker.on(probes[1], Event::Succeeded, later), None);
    assert_eq!(breaker.on(probes[2], FAILED, later), None);
    assert_eq!(breaker.phase(), Phase::Open);
}

#[test]
fn results_from_before_the_opening_are_ignored() {
    let now = Instant::now();
    let mut breaker = Breaker::new(CircuitBreaker::default());
    let permits: Vec<_> = (0..20).map(|_| ask(&mut breaker, now)).collect();
    let changes = permits[..10].iter().filter_map(|&permit| breaker.on(permit, FAILED, now)).count();
    assert_eq!(changes, 1);
    let later = now + Duration::from_secs(30);
    let probe = ask(&mut breaker, later);
    permits[10..].iter().for_each(|&permit| assert_eq!(breaker.on(permit, FAILED, later), None));
    assert_eq!(breaker.phase(), Phase::HalfOpen);
    breaker.on(probe, Event::Succeeded, later);
    assert_eq!(breaker.phase(), Phase::HalfOpen);
}

/// What the breaker should do, said the long way: it keeps everything and counts anew each time.
struct Model {
    config: CircuitBreaker,
    phase: Phase,
    epoch: u64,
    /// Results of this epoch.
    results: Vec<bool>,
    opened: Instant,
    /// Permits out: epoch of each.
    out: Vec<Option<u64>>,
}

impl Model {
    fn ask(&mut self, now: Instant) -> bool {
        if self.phase == Phase::Open && now >= self.opened + self.config.recovery_time {
            self.enter(Phase::HalfOpen, now);
        }
        let out = self.out.iter().filter(|&&epoch| epoch == Some(self.epoch)).count();
        let passes = match self.phase {
            Phase::Closed => true,
            Phase::Open => false,
            Phase::HalfOpen => out < self.config.half_open_requests as usize,
        };
        if passes {
            self.out.push(Some(self.epoch));
        }
        passes
    }

    fn finish(&mut self, index: usize, event: Event, now: Instant) {
        let epoch = self.out[index].take().expect("each permit ends once");
        if epoch != self.epoch {
            return;
        }
        match event {
            Event::Succeeded => self.results.push(true),
            Event::Failed(_) => self.results.push(false),
            Event::Cancelled => return,
        }
        let failures = self.results.iter().rev().take_while(|&&ok| !ok).count();
        let successes = self.results.iter().filter(|&&ok| ok).count();
        match self.phase {
            Phase::Closed if failures >= self.config.consecutive_failures as usize => self.enter(Phase::Open, now),
            Phase::HalfOpen if failures > 0 => self.enter(Phase::Open, now),
            Phase::HalfOpen if successes >= self.config.successes_to_close as usize => self.enter(Phase::Closed, now),
            Phase::Closed | Phase::HalfOpen | Phase::Open => {}
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.epoch += 1;
        self.results.clear();
        self.opened = now;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask,
    Finish(prop::sample::Index, Event),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let event = prop_oneof![2 => Just(Event::Succeeded), 5 => Just(FAILED), 1 => Just(Event::Cancelled)];
    prop_oneof![
        5 => Just(Step::Ask),
        5 => (any::<prop::sample::Index>(), event).prop_map(|(index, event)| Step::Finish(index, event)),
        1 => (0u64..2000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn does_what_the_model_does(
        steps in prop::collection::vec(step(), 1..300),
        failures in 1u32..6, successes in 1u32..4, probes in 1u32..4,
    ) {
        let config = CircuitBreaker {
            consecutive_failures: failures,
            recovery_time: Duration::from_millis(1000),
            successes_to_close: successes,
            half_open_requests: probes,
        };
        let mut now = Instant::now();
        let mut breaker = Breaker::new(config);
        let mut model =
            Model { config, phase: Phase::Closed, epoch: 0, results: Vec::new(), opened: now, out: Vec::new() };
        let mut permits = Vec::new();
        for step in steps {
            match step {
                Step::Ask => {
                    let asked = breaker.ask(now);
                    prop_assert_eq!(asked.is_ok(), model.ask(now));
                    permits.extend(asked.ok().map(|(permit, _)| Some(permit)));
                }
                Step::Finish(index, event) => {
                    let open: Vec<usize> = (0..permits.len()).filter(|&at| permits[at].is_some()).collect();
                    if !open.is_empty() {
                        let at = *index.get(&open);
                        let before = breaker.phase();
                        let change = breaker.on(permits[at].take().expect("chosen so"), event, now);
                        model.finish(at, event, now);
                        prop_assert_eq!(change.map_or(before, |change| change.to), breaker.phase());
                    }
                }
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
            prop_assert_eq!(breaker.phase(), model.phase);
        }
    }
}
