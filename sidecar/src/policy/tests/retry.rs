//! What is tried again, and what never is.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use proptest::prelude::*;
use weft_xds::resource::{RetryBudget, RetryOn, RetryPolicy};

use crate::{
    balance::Budget,
    policy::{
        backoff::{backoff, parse_retry_after},
        retry::{Attempt, Circumstances, GiveUp, RetryPlan, Verdict, is_idempotent},
        timeouts::Deadline,
    },
};

const WHOLE: Circumstances = Circumstances { replayable: true, response_begun: false };
const ALL: [Attempt; 12] = [
    Attempt::ConnectFailed,
    Attempt::RefusedStream,
    Attempt::GoawayUnprocessed,
    Attempt::NotExecuted,
    Attempt::ReusedConnectionClosed,
    Attempt::Reset,
    Attempt::PerTryTimeout,
    status(502),
    status(503),
    status(500),
    status(429),
    Attempt::GrpcStatus(14),
];

const fn status(code: u16) -> Attempt {
    let Ok(code) = StatusCode::from_u16(code) else { panic!("not a status") };
    Attempt::Status { code, retry_after: None }
}

fn budget(now: Instant) -> Budget {
    Budget::new(RetryBudget { percent: 20, min_per_second: 1000 }, now)
}

fn once(policy: Option<&RetryPolicy>, method: &Method, attempt: Attempt) -> Result<(), GiveUp> {
    let now = Instant::now();
    match RetryPlan::new(policy, method).after(attempt, WHOLE, &Deadline::default(), &budget(now), now, 0) {
        Verdict::Retry { .. } => Ok(()),
        Verdict::GiveUp(why) => Err(why),
    }
}

#[test]
fn by_default_only_what_cannot_do_harm() {
    use GiveUp::{NotIdempotent, NotRetriable};
    // In the order of ALL.
    let get = [
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Err(NotRetriable),
        Err(NotRetriable),
        Err(NotRetriable),
    ];
    let post = [
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Err(NotIdempotent),
        Err(NotIdempotent),
        Err(NotIdempotent),
        Err(NotIdempotent),
        Err(NotIdempotent),
        Err(NotRetriable),
        Err(NotRetriable),
        Err(NotRetriable),
    ];
    for (at, &attempt) in ALL.iter().enumerate() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE] {
            assert_eq!(once(None, &method, attempt), get[at], "{method} {attempt:?}");
        }
        let extension = Method::from_bytes(b"PURGE").expect("a method");
        for method in [Method::POST, Method::PATCH, Method::CONNECT, extension] {
            assert_eq!(once(None, &method, attempt), post[at], "{method} {attempt:?}");
        }
    }
}

#[test]
fn a_route_may_say_that_repeating_does_no_harm_or_name_the_very_status() {
    let idempotent = RetryPolicy { idempotent: true, ..RetryPolicy::default() };
    for attempt in [status(503), Attempt::Reset, Attempt::ReusedConnectionClosed, Attempt::PerTryTimeout] {
        assert_eq!(once(Some(&idempotent), &Method::POST, attempt), Ok(()), "{attempt:?}");
    }
    let on = RetryOn { statuses: vec![StatusCode::TOO_MANY_REQUESTS], grpc: vec![14], ..RetryOn::default() };
    let named = RetryPolicy { on, ..RetryPolicy::default() };
    assert_eq!(once(Some(&named), &Method::POST, status(429)), Ok(()));
    assert_eq!(once(Some(&named), &Method::POST, Attempt::GrpcStatus(14)), Ok(()));
    assert_eq!(once(Some(&named), &Method::POST, Attempt::GrpcStatus(13)), Err(GiveUp::NotRetriable));
    assert_eq!(once(Some(&named), &Method::GET, status(503)), Err(GiveUp::NotRetriable));
    assert_eq!(once(Some(&named), &Method::GET, Attempt::ConnectFailed), Err(GiveUp::NotRetriable));
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let server_error = RetryPolicy { on, ..RetryPolicy::default() };
    assert_eq!(once(Some(&server_error), &Method::GET, status(500)), Ok(()));
    assert_eq!(once(Some(&server_error), &Method::POST, status(500)), Err(GiveUp::NotIdempotent));
}

#[test]
fn circumstances_that_end_it() {
    let now = Instant::now();
    let soon = Deadline::new(now, Some(Duration::from_millis(10)), None, None);
    let begun = Circumstances { response_begun: true, ..WHOLE };
    let gone = Circumstances { replayable: false, ..WHOLE };
    let empty = Budget::new(RetryBudget { percent: 0, min_per_second: 0 }, now);
    let after = |circumstances, deadline: &Deadline, budget: &Budget, attempt, random| {
        RetryPlan::new(None, &Method::GET).after(attempt, circumstances, deadline, budget, now, random)
    };
    let (none, full) = (Deadline::default(), budget(now));
    assert_eq!(after(begun, &none, &full, Attempt::Reset, 0), Verdict::GiveUp(GiveUp::ResponseBegun));
    assert_eq!(after(gone, &none, &full, Attempt::Reset, 0), Verdict::GiveUp(GiveUp::Body));
    assert_eq!(after(WHOLE, &soon, &full, Attempt::Reset, u64::MAX), Verdict::GiveUp(GiveUp::Deadline));
    assert_eq!(after(WHOLE, &none, &empty, Attempt::Reset, 0), Verdict::GiveUp(GiveUp::Budget));
    let at_once = Verdict::Retry { backoff: Duration::ZERO, replay: false };
    assert_eq!(after(WHOLE, &none, &empty, Attempt::ConnectFailed, u64::MAX), at_once, "costs its server nothing");
    assert_eq!(full.available(now), 1000, "who gives up for another reason takes nothing out");
}

#[test]
fn two_retries_and_a_replay_that_is_none() {
    let now = Instant::now();
    let (budget, deadline) = (budget(now), Deadline::default());
    let mut plan = RetryPlan::new(None, &Method::GET);
    let mut after = |attempt| plan.after(attempt, WHOLE, &deadline, &budget, now, u64::MAX);
    assert_eq!(after(Attempt::ReusedConnectionClosed), Verdict::Retry { backoff: Duration::ZERO, replay: true });
    // A second time it is a reset like any other.
    let just_below = |millis| Duration::from_millis(millis) - Duration::from_nanos(1);
    assert_eq!(after(Attempt::ReusedConnectionClosed), Verdict::Retry { backoff: just_below(25), replay: false });
    assert_eq!(after(status(503)), Verdict::Retry { backoff: just_below(50), replay: false });
    assert_eq!(after(status(503)), Verdict::GiveUp(GiveUp::Limit));
    assert_eq!(plan.retries(), 2);
    // Even a route without retries replays what met a closed connection.
    let never = RetryPolicy { retries: 0, on: RetryOn::default(), ..RetryPolicy::default() };
    assert_eq!(once(Some(&never), &Method::GET, Attempt::ReusedConnectionClosed), Ok(()));
    assert_eq!(once(Some(&never), &Method::POST, Attempt::ReusedConnectionClosed), Err(GiveUp::NotIdempotent));
}

#[test]
fn retry_after_is_honoured_up_to_five_seconds() {
    let now = Instant::now();
    let after = |seconds| {
        let attempt =
            Attempt::Status { code: StatusCode::SERVICE_UNAVAILABLE, retry_after: Some(Duration::from_secs(seconds)) };
        RetryPlan::new(None, &Method::GET).after(attempt, WHOLE, &Deadline::default(), &budget(now), now, 0)
    };
    assert_eq!(after(5), Verdict::Retry { backoff: Duration::from_secs(5), replay: false });
    assert_eq!(after(6), Verdict::GiveUp(GiveUp::NotRetriable));
    assert_eq!(parse_retry_after(b" 3 "), Some(Duration::from_secs(3)));
    assert_eq!(parse_retry_after(b"Wed, 21 Oct 2015 07:28:00 GMT"), None);
    assert_eq!(parse_retry_after(b"-1"), None);
}

proptest! {
    #[test]
    fn backoff_stays_under_its_bound(base in 0u64..1000, max in 0u64..5000, retry: u32, random: u64) {
        let (base, max) = (Duration::from_millis(base), Duration::from_millis(max));
        let wait = backoff(base, max, retry, random);
        prop_assert!(wait <= max);
        prop_assert!(retry > 20 || wait <= base * (1 << retry));
    }

    /// Over any life of a request: never more tries than allowed, never past the end, never again once an answer began,
    /// and what may have been executed only where that does no harm.
    #[test]
    fn a_plan_keeps_its_promises(
        attempts in prop::collection::vec(0usize..ALL.len(), 1..10), retries in 0u32..5, post: bool,
        timeout in 1u64..500, per_try in 1u64..100, random: u64,
    ) {
        let start = Instant::now();
        let policy = RetryPolicy { retries, ..RetryPolicy::default() };
        let method = if post { Method::POST } else { Method::GET };
        let deadline = Deadline::new(
            start, Some(Duration::from_millis(timeout)), None, Some(Duration::from_millis(per_try)),
        );
        let budget = budget(start);
        let mut plan = RetryPlan::new(Some(&policy), &method);
        let (mut now, mut sent) = (start, 1);
        for attempt in attempts.into_iter().map(|at| ALL[at]) {
            let (until, _) = deadline.try_until(now).expect("bounded");
            prop_assert!(until <= start + Duration::from_millis(timeout));
            now = until.min(now + Duration::from_millis(7));
            match plan.after(attempt, WHOLE, &deadline, &budget, now, random) {
                Verdict::GiveUp(_) => break,
                Verdict::Retry { backoff, .. } => {
                    let harmless = [Attempt::ConnectFailed, Attempt::RefusedStream, Attempt::GoawayUnprocessed,
                        Attempt::NotExecuted];
                    prop_assert!(!post || harmless.contains(&attempt));
                    now += backoff;
                    prop_assert!(!deadline.passed(now));
                    sent += 1;
                }
            }
        }
        prop_assert!(sent <= 1 + retries + 1, "one replay at most besides");
    }
}

#[test]
fn methods() {
    assert!(is_idempotent(&Method::PUT) && !is_idempotent(&Method::POST) && !is_idempotent(&Method::PATCH));
}
