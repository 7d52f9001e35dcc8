//! Probes whose results are given, in a time that is too.

use tokio::net::TcpListener;

use super::{
    Found::{Elsewhere, Here, Silence},
    *,
};
use crate::{
    demand::Demand,
    settings::{Cli, Settings},
};

const MOMENT: Duration = Duration::from_millis(1);

fn shared(flags: &[&str]) -> Arc<Shared> {
    let args = ["weft-sidecar", "--service", "orders", "--control-plane", "127.0.0.1:1"];
    let cli = <Cli as clap::Parser>::try_parse_from(args.iter().chain(flags)).unwrap();
    let settings = Settings::new(cli.flags, None, 1).unwrap();
    let (demand, _wanted) = Demand::new(settings.on_demand_wait);
    Shared::new(settings, demand)
}

#[test]
fn one_refusal_is_a_no_and_three_silences_are() {
    use State::{Captured, NotCaptured, Unknown};
    let table: &[(&[Found], State, State)] = &[
        (&[], Unknown, Unknown),
        (&[Here], Captured, Captured),
        // That IPv6 is left alone may be as it was meant; that it is so no longer is not.
        (&[Elsewhere], NotCaptured, Unknown),
        (&[Silence, Silence, Silence, Silence], NotCaptured, Unknown),
        (&[Here, Elsewhere], NotCaptured, NotCaptured),
        (&[Here, Elsewhere, Here], Captured, Captured),
        (&[Silence, Silence], Unknown, Unknown),
        (&[Here, Silence, Silence], Captured, Captured),
        (&[Here, Silence, Silence, Silence], NotCaptured, NotCaptured),
        (&[Here, Silence, Silence, Here, Silence], Captured, Captured),
        (&[Here, Silence, Silence, Elsewhere, Here, Silence], Captured, Captured),
        (&[Elsewhere, Silence], NotCaptured, Unknown),
    ];
    for (found, v4, v6) in table {
        for (family, expected) in [(Family::V4, *v4), (Family::V6, *v6)] {
            let mut judge = Judge::new(family);
            let mut state = State::Unknown;
            for found in *found {
                let (now, changed) = judge.on(*found, false);
                assert_eq!(changed, now != state, "{found:?}: told once");
                state = now;
            }
            assert_eq!(state, expected, "{family:?} {found:?}");
        }
    }
}

#[test]
fn probes_are_told_by_their_destination() {
    for (address, family) in [
        ("127.86.69.70:1", Some(Family::V4)),
        ("[::1]:1", Some(Family::V6)),
        ("127.86.69.70:2", None),
        ("127.0.0.1:1", None),
        ("[::ffff:127.86.69.70]:1", None),
    ] {
        assert_eq!(Family::probed(address.parse().unwrap()), family, "{address}");
    }
}

/// A host whose rules change.
struct World {
    shared: Arc<Shared>,
    registry: Registry,
    found: Arc<Mutex<[Found; 2]>>,
    probes: Arc<Mutex<Vec<Instant>>>,
}

impl World {
    /// Starts to watch it.
    fn new(found: [Found; 2]) -> Self {
        let (shared, registry) = (shared(&["--transparent"]), Registry::new());
        let prober = Prober::new(shared.clone(), 15001, &registry).unwrap();
        let world = Self { shared, registry, found: Arc::new(Mutex::new(found)), probes: Arc::default() };
        let (found, probes) = (world.found.clone(), world.probes.clone());
        // Ends with its test.
        tokio::spawn(async move {
            let probe = |family: Family| {
                if family == Family::V4 {
                    probes.lock().push(Instant::now());
                }
                std::future::ready(found.lock()[family as usize])
            };
            prober.watch(probe).await;
        });
        world
    }

    /// Changes it, and waits for the next probe: how long that took.
    async fn becomes(&self, found: [Found; 2]) -> Duration {
        *self.found.lock() = found;
        let (began, before) = (Instant::now(), self.probes.lock().len());
        while self.probes.lock().len() == before {
            tokio::time::sleep(MOMENT).await;
        }
        began.elapsed()
    }

    /// The metric: IPv4, IPv6.
    fn metric(&self) -> Vec<(String, f64)> {
        let families = self.registry.gather();
        let series = families.iter().flat_map(|family| family.get_metric());
        series.map(|one| (one.get_label()[0].value().to_owned(), one.get_gauge().get_value())).collect()
    }
}

fn metric(v4: f64, v6: Option<f64>) -> Vec<(String, f64)> {
    [("ipv4".to_owned(), v4)].into_iter().chain(v6.map(|v6| ("ipv6".to_owned(), v6))).collect()
}

#[tokio::test(start_paused = true)]
async fn rules_come_get_lost_and_come_back() {
    let world = World::new([Elsewhere, Elsewhere]);
    let capture = &world.shared.capture;
    assert_eq!(world.metric(), metric(0.0, None), "not known is not protected");
    tokio::time::sleep(STARTING - MOMENT).await;
    assert_eq!(capture.known.lock().states, [State::Unknown; 2], "they may be on their way");
    assert!(capture.missing().is_some(), "not ready meanwhile");
    tokio::time::sleep(SOON + MOMENT).await;
    assert_eq!(capture.known.lock().states, [State::NotCaptured, State::Unknown]);
    assert!(capture.missing().is_some_and(|missing| missing.contains("weft-sidecar init")));

    let took = world.becomes([Here, Here]).await;
    assert!(took <= MISSING + MOMENT, "{took:?}");
    assert_eq!((capture.missing(), capture.degraded()), (None, None));
    assert_eq!(world.metric(), metric(1.0, Some(1.0)));

    // Lost when nothing is wrong otherwise: seen within a period, and the sidecar stays ready.
    let took = world.becomes([Elsewhere, Elsewhere]).await;
    assert!(took <= PERIOD + MOMENT, "{took:?}");
    assert!(capture.degraded().is_some_and(|degraded| degraded.contains("weft-sidecar init")));
    assert_eq!((capture.missing(), world.metric()), (None, metric(0.0, Some(0.0))));

    world.becomes([Here, Elsewhere]).await;
    assert!(capture.degraded().is_some_and(|degraded| degraded.contains("IPv6")));
    assert_eq!(world.metric(), metric(1.0, Some(0.0)));

    world.becomes([Here, Here]).await;
    assert_eq!((capture.degraded(), world.metric()), (None, metric(1.0, Some(1.0))));
}

#[tokio::test(start_paused = true)]
async fn it_asks_every_ten_seconds_where_all_is_well_and_every_second_where_not() {
    for (found, pause) in
        [([Here, Here], PERIOD), ([Here, Elsewhere], PERIOD), ([Elsewhere, Here], MISSING), ([Silence; 2], MISSING)]
    {
        let began = Instant::now();
        let world = World::new(found);
        tokio::time::sleep(STARTING + 10 * PERIOD).await;
        let times: Vec<_> = world.probes.lock().iter().map(|at| at.duration_since(began)).collect();
        assert_eq!(times[0].as_secs(), 0, "{found:?}: at once");
        let steps = || times.windows(2).map(|two| (two[0], (two[1] - two[0]).as_millis() / 10 * 10));
        let expected = |at: Duration| if pause == PERIOD || at >= STARTING { pause } else { SOON };
        assert!(steps().all(|(at, step)| step == expected(at).as_millis()), "{found:?}: {times:?}");
        assert!(times.last().is_some_and(|last| STARTING + 10 * PERIOD - *last <= pause), "{found:?}: {times:?}");
    }
}

/// A container that sets rules has started at the same time.
#[tokio::test(start_paused = true)]
async fn rules_that_come_a_moment_later_alarm_nobody() {
    let world = World::new([Elsewhere, Elsewhere]);
    tokio::time::sleep(STARTING / 2).await;
    *world.found.lock() = [Here, Here];
    tokio::time::sleep(SOON + MOMENT).await;
    assert_eq!(world.shared.capture.known.lock().states, [State::Captured; 2]);
    assert_eq!(world.shared.capture.missing(), None);
    // From then on a loss is a loss, however young the process is.
    *world.found.lock() = [Elsewhere, Elsewhere];
    tokio::time::sleep(PERIOD).await;
    assert_eq!(world.shared.capture.known.lock().states, [State::NotCaptured; 2]);
}

#[tokio::test]
async fn a_probe_is_here_only_when_the_listener_says_so() {
    let capture = Arc::new(Capture::new(true));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ask = || probe(capture.arrivals[0].subscribe(), address);
    let accept = async |say: bool, wait: bool| {
        let (tcp, _) = listener.accept().await.unwrap();
        if say {
            capture.arrived(Family::V4);
        }
        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
        wait.then_some(tcp)
    };
    for (say, wait, expected) in [
        (true, false, Here),
        (true, true, Here),
        // Somebody else has the address, and listens.
        (false, false, Elsewhere),
        (false, true, Silence),
    ] {
        // What arrived before is none of this probe's.
        let (found, _held) = tokio::join!(ask(), accept(say, wait));
        assert_eq!(found, expected, "{say} {wait}");
    }
    drop(listener);
    assert_eq!(ask().await, Elsewhere);
}

#[test]
fn explicit_mode_has_none_of_it() {
    let shared = shared(&[]);
    assert_eq!((shared.capture.missing(), shared.capture.degraded(), shared.capture.shown()), (None, None, None));
}

#[tokio::test]
async fn it_ends_with_the_outbound_side() {
    let shared = shared(&["--transparent"]);
    let prober = Prober::new(shared.clone(), 15001, &Registry::new()).unwrap();
    shared.drain.outbound.drain();
    prober.run().await;
    assert_eq!(shared.capture.known.lock().states, [State::Unknown; 2], "a listener that closes is no missing rule");
}
