//! The order of things: rounds, in each round scene by scene, in each scene every contestant in turn, alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use tempfile::TempDir;

use crate::{
    backend::Backend,
    cases::{self, Case, Effort, Turn, When},
    contestants::{self, Kind, Scene},
    sample::Sample,
};

/// What is to be measured.
pub struct Plan {
    /// Who.
    pub kinds: Vec<Kind>,
    /// What.
    pub cases: Vec<Case>,
    /// How often.
    pub rounds: u32,
    /// How long.
    pub effort: Effort,
    /// No further round is begun that would not end in this time.
    pub within: Option<Duration>,
}

/// What a run came to.
#[derive(Default)]
pub struct Results {
    /// Every figure.
    pub samples: Vec<Sample>,
    /// Who was left out of what, and why.
    pub left_out: BTreeMap<String, String>,
    /// Rounds that were done.
    pub rounds: u32,
}

/// A run.
pub struct Lab {
    plan: Plan,
    backend: Backend,
    folder: TempDir,
    turns: u32,
    /// Those that did not come up: they are not tried again.
    down: BTreeSet<(Kind, String)>,
    common_rate: Option<f64>,
    results: Results,
}

impl Lab {
    /// Starts the application.
    ///
    /// # Errors
    /// When there is no place for files or ports.
    pub fn new(plan: Plan) -> Result<Self> {
        let backend = crate::backend::start()?;
        let folder = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
        let (down, results) = (BTreeSet::new(), Results::default());
        Ok(Self { plan, backend, folder, turns: 0, down, common_rate: None, results })
    }

    /// Measures. What fails is left out and named, so this always has results.
    pub async fn run(mut self) -> Results {
        let began = Instant::now();
        if self.plan.cases.iter().any(Case::needs_common_rate) {
            self.calibrate().await;
        }
        for round in 1..=self.plan.rounds {
            let round_began = Instant::now();
            for scene in self.scenes(round) {
                for kind in self.order(round) {
                    self.turn(kind, scene, round).await;
                }
            }
            self.results.rounds = round;
            eprintln!("bench: round {round} of {} done after {}", self.plan.rounds, cases::seconds(began));
            let next = began.elapsed() + round_began.elapsed();
            if self.plan.within.is_some_and(|within| next > within) && round < self.plan.rounds {
                eprintln!("bench: no time for a further round");
                break;
            }
        }
        self.results
    }

    /// Scenes that have something to do in this round, in the order of their first case.
    fn scenes(&self, round: u32) -> Vec<Scene> {
        let mut scenes = Vec::new();
        for case in self.plan.cases.iter().filter(|case| case.due(round)) {
            if !scenes.contains(&case.scene) {
                scenes.push(case.scene);
            }
        }
        scenes
    }

    /// Another one begins in each round, so that nobody always follows the same neighbour's heat.
    fn order(&self, round: u32) -> Vec<Kind> {
        let mut kinds = self.plan.kinds.clone();
        let by = (round as usize - 1) % kinds.len().max(1);
        kinds.rotate_left(by);
        kinds
    }

    /// The rate that the fixed ones are parts of: HAProxy's, for all contestants and rounds of this run.
    async fn calibrate(&mut self) {
        let others = self.plan.kinds.clone();
        for kind in std::iter::once(Kind::Haproxy).chain(others) {
            let measured = async {
                let scene = Scene { shape: contestants::Shape::Pair, workers: 1 };
                let Some(mut pair) = contestants::start(kind, scene, &self.place(), &self.backend).await? else {
                    return Ok(None);
                };
                let rate = cases::highest(&pair, self.plan.effort).await;
                let rate = pair.explain(rate);
                pair.stop().await;
                rate.map(Some)
            };
            let measured: Result<Option<f64>> = measured.await;
            self.turns += 1;
            match measured {
                Ok(Some(rate)) => {
                    eprintln!("bench: fixed rates are parts of {rate:.0} requests/s, which {} reached", kind.name());
                    self.common_rate = Some(rate);
                    return;
                }
                Ok(None) => {}
                Err(error) => eprintln!("bench: {} tells no rate: {error:#}", kind.name()),
            }
        }
    }

    /// One contestant in one scene.
    async fn turn(&mut self, kind: Kind, scene: Scene, round: u32) {
        let due: Vec<Case> =
            self.plan.cases.iter().filter(|case| case.scene == scene && case.due(round)).copied().collect();
        let stage = due.iter().map(|case| case.name).collect::<Vec<_>>().join(", ");
        if self.down.contains(&(kind, format!("{scene:?}"))) {
            return;
        }
        let began = Instant::now();
        let started = contestants::start(kind, scene, &self.place(), &self.backend).await;
        self.turns += 1;
        let mut pair = match started {
            Ok(Some(pair)) => pair,
            Ok(None) => return,
            Err(error) => {
                self.leave_out(kind, &stage, round, &error);
                self.down.insert((kind, format!("{scene:?}")));
                return;
            }
        };
        let (effort, common_rate) = (self.plan.effort, self.common_rate);
        let mut turn = Turn { kind, pair: &pair, effort, round, common_rate, own_rate: None, samples: Vec::new() };
        for case in &due {
            let before = turn.samples.len();
            let done = turn.carry_out(case).await;
            match pair.explain(done) {
                Ok(true) => say(round, &turn.samples[before..]),
                // It cannot, and the table has no figure for it.
                Ok(false) => {}
                Err(error) => {
                    // Half of a case is not a figure.
                    turn.samples.truncate(before);
                    self.leave_out(kind, case.name, round, &error);
                }
            }
        }
        let samples = turn.samples;
        self.results.samples.extend(samples);
        pair.stop().await;
        eprintln!("bench: round {round}: {} took {}", kind.name(), cases::seconds(began));
    }

    fn leave_out(&mut self, kind: Kind, case: &str, round: u32, error: &anyhow::Error) {
        let name = kind.name();
        eprintln!("bench: round {round}: {name} is left out of {case}: {error:#}");
        self.results.left_out.insert(format!("{name} in {case}"), format!("{error:#}"));
    }

    /// A folder that nobody has had before.
    fn place(&self) -> PathBuf {
        self.folder.path().join(format!("turn-{}", self.turns))
    }
}

/// Progress: a line for each case.
fn say(round: u32, samples: &[Sample]) {
    let Some(first) = samples.first() else { return };
    let figures: Vec<String> = samples.iter().map(|sample| format!("{} {:.1}", sample.metric, sample.value)).collect();
    eprintln!("bench: round {round}: {:<8} {:<14} {}", first.contestant, first.case, figures.join(", "));
}

impl Case {
    /// Whether it is done in this round.
    fn due(&self, round: u32) -> bool {
        round == 1 || self.when != When::Once
    }
}
