//! The retry budget against a model that remembers everything, and its promise over any window.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use weft_xds::resource::RetryBudget;

use crate::balance::Budget;

#[test]
fn ten_a_second_without_traffic_and_not_saved_up() {
    let start = Instant::now();
    let budget = Budget::new(RetryBudget::default(), start);
    for second in [0, 1, 7, 300] {
        let now = start + Duration::from_secs(second);
        assert_eq!(budget.available(now), 10);
        assert_eq!((0..50).filter(|_| budget.withdraw(now)).count(), 10, "second {second}");
        assert_eq!(budget.available(now), 0);
    }
}

#[test]
fn a_fifth_of_the_last_ten_seconds() {
    let start = Instant::now();
    let budget = Budget::new(RetryBudget { percent: 20, min_per_second: 0 }, start);
    (0..100).for_each(|_| budget.deposit(start));
    assert_eq!(budget.available(start + Duration::from_millis(9_999)), 20);
    assert_eq!(budget.available(start + Duration::from_secs(10)), 0, "forgotten");
}

#[test]
fn a_hundred_percent_of_errors_cost_a_fifth_and_ten_a_second() {
    let start = Instant::now();
    let budget = Budget::new(RetryBudget::default(), start);
    let (rate, seconds, mut retries) = (1000, 60, 0);
    for request in 0..rate * seconds {
        let now = start + Duration::from_secs_f64(f64::from(request) / f64::from(rate));
        budget.deposit(now);
        retries += i32::from(budget.withdraw(now)) + i32::from(budget.withdraw(now));
    }
    let promised = rate * seconds / 5 + 10 * seconds;
    assert!(retries <= promised, "{retries} of {promised}");
    assert!(f64::from(retries) >= f64::from(promised) * 0.95, "{retries} of {promised}");
}

#[test]
fn a_clock_that_seems_to_run_back_harms_nothing() {
    let start = Instant::now();
    let budget = Budget::new(RetryBudget::default(), start);
    let later = start + Duration::from_secs(5);
    assert!(budget.withdraw(later));
    budget.deposit(start);
    assert_eq!(budget.available(later), 9);
    assert_eq!(budget.available(start), 9);
}

#[test]
fn exact_from_many_threads() {
    let start = Instant::now();
    let budget = Budget::new(RetryBudget { percent: 20, min_per_second: 10 }, start);
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| budget.deposit(start)));
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = (0..1000).filter(|_| budget.withdraw(start)).count() as u64;
                taken.fetch_add(own, Relaxed);
            });
        }
    });
    assert_eq!(taken.load(Relaxed), 810);
}

proptest! {
    #[test]
    fn never_more_than_promised_over_any_window(
        steps in prop::collection::vec((0u64..1500, 0u32..40, 0u32..40), 1..120),
        percent in 0u8..=100, min in 0u32..20,
    ) {
        let start = Instant::now();
        let budget = Budget::new(RetryBudget { percent, min_per_second: min }, start);
        let mut now = Duration::ZERO;
        // Requests and retries of each whole second.
        let (mut requests, mut retries) = (vec![0u64; 200], vec![0u64; 200]);
        for (wait, sent, failed) in steps {
            now += Duration::from_millis(wait);
            let second = now.as_secs() as usize;
            for _ in 0..sent {
                budget.deposit(start + now);
                requests[second] += 1;
            }
            for _ in 0..failed {
                let available = budget.available(start + now);
                let granted = budget.withdraw(start + now);
                prop_assert_eq!(granted, available > 0);
                retries[second] += u64::from(granted);
            }
        }
        let last = now.as_secs() as usize;
        for from in 0..=last {
            for to in from..=last {
                let taken: u64 = retries[from..=to].iter().sum();
                // What a window may spend was earned in it or in the ten seconds before.
                let earned: u64 = requests[from.saturating_sub(9)..=to].iter().sum();
                let allowed = earned * u64::from(percent) / 100 + u64::from(min) * (to - from + 1) as u64;
                prop_assert!(taken <= allowed, "{taken} > {allowed} in {from}..={to}");
            }
        }
    }
}
