//! What one worker counts of one flow.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    cell::{Count, OVERHEAD, SECONDS, Spread},
    gather::{Cells, Totals},
    labels::{AttemptKind, Direction, FlowKey, RequestKey, Speaks},
};

/// A worker's handles of one flow.
#[derive(Debug)]
pub struct Flow {
    /// Whose.
    pub key: FlowKey,
    cells: Arc<FlowCells>,
    requests: RefCell<Vec<Counted>>,
    attempts: RefCell<Vec<(AttemptKind, &'static str, Arc<Count>)>>,
    /// When it was last used.
    pub used: Cell<Instant>,
}

/// A kind of request: how many, and how long.
type Counted = (RequestKey, Arc<Count>, Arc<Spread>);

/// The cells, as worker and scrape share them. The worker writes; the locks are for labels that are new.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct FlowCells {
    overhead: Spread,
    received: Count,
    sent: Count,
    requests: Mutex<Vec<(RequestKey, Arc<Count>)>>,
    durations: Mutex<Vec<(Speaks, u16, Arc<Spread>)>>,
    attempts: Mutex<Vec<(AttemptKind, &'static str, Arc<Count>)>>,
    suppressed: Mutex<Vec<(&'static str, Count)>>,
}

impl Default for FlowCells {
    fn default() -> Self {
        Self {
            overhead: Spread::new(OVERHEAD),
            received: Count::default(),
            sent: Count::default(),
            requests: Mutex::default(),
            durations: Mutex::default(),
            attempts: Mutex::default(),
            suppressed: Mutex::default(),
        }
    }
}

impl Cells for FlowCells {
    type Totals = Totals;

    fn add_to(&self, totals: &mut Totals) {
        let pair = &mut totals.pair;
        self.overhead.add_to(&mut pair.overhead);
        pair.received += self.received.get();
        pair.sent += self.sent.get();
        for (kind, result, count) in &*self.attempts.lock() {
            *pair.attempts.entry((kind.label(), result)).or_default() += count.get();
        }
        for (why, count) in &*self.suppressed.lock() {
            *pair.suppressed.entry(why).or_default() += count.get();
        }
        for (key, count) in &*self.requests.lock() {
            *totals.requests.entry(*key).or_default() += count.get();
        }
        for (speaks, class, spread) in &*self.durations.lock() {
            spread.add_to(totals.durations.entry((*speaks, *class)).or_default());
        }
    }
}

impl Flow {
    pub(super) fn new(key: FlowKey, cells: Arc<FlowCells>) -> Self {
        let used = Cell::new(Instant::now());
        Self { key, cells, requests: RefCell::default(), attempts: RefCell::default(), used }
    }

    /// Whether these are its names; never for the flow that all share when there are too many.
    pub fn is(&self, direction: Direction, source: &str, destination: &str, route: &str) -> bool {
        let key = &self.key;
        *key.destination == *destination && *key.route == *route && *key.source == *source && key.direction == direction
    }

    /// One request was answered, `took` from head to last byte.
    pub fn request(&self, key: RequestKey, took: Duration) {
        let mut known = self.requests.borrow_mut();
        let at = match known.iter().position(|(known, ..)| *known == key) {
            Some(at) => at,
            None => {
                let (count, spread) = self.cells.request(key);
                known.push((key, count, spread));
                known.len() - 1
            }
        };
        let (_, count, spread) = &known[at];
        count.add(1);
        spread.observe(took);
    }

    /// Time to the answer's head inside this sidecar.
    pub fn overhead(&self, took: Duration) {
        self.cells.overhead.observe(took);
    }

    /// One try ended. `result`: `ok`, or the code of a reason.
    pub fn attempt(&self, kind: AttemptKind, result: &'static str) {
        let mut known = self.attempts.borrow_mut();
        // By address: the same word at two addresses makes two cells of one series, and the scrape adds them up.
        let same = |known: &str| std::ptr::eq(known.as_ptr(), result.as_ptr()) && known.len() == result.len();
        if let Some((.., count)) = known.iter().find(|(of, known, _)| *of == kind && same(known)) {
            return count.add(1);
        }
        let count = Arc::<Count>::default();
        count.add(1);
        self.cells.attempts.lock().push((kind, result, Arc::clone(&count)));
        known.push((kind, result, count));
    }

    /// A retry was wanted and not made.
    pub fn suppressed(&self, why: &'static str) {
        let mut known = self.cells.suppressed.lock();
        let at = known.iter().position(|(known, _)| *known == why).unwrap_or_else(|| {
            known.push((why, Count::default()));
            known.len() - 1
        });
        known[at].1.add(1);
    }

    /// The caller sent so many bytes.
    pub fn received(&self, bytes: u64) {
        self.cells.received.add(bytes);
    }

    /// The caller got so many bytes.
    pub fn sent(&self, bytes: u64) {
        self.cells.sent.add(bytes);
    }
}

impl FlowCells {
    /// Cells for a kind of request that is new to this worker.
    fn request(&self, key: RequestKey) -> (Arc<Count>, Arc<Spread>) {
        let count = Arc::<Count>::default();
        self.requests.lock().push((key, Arc::clone(&count)));
        let class = key.class();
        let mut durations = self.durations.lock();
        let known = durations.iter().find(|(speaks, known, _)| *speaks == key.protocol && *known == class);
        if let Some((.., spread)) = known {
            return (count, Arc::clone(spread));
        }
        let spread = Arc::new(Spread::new(SECONDS));
        durations.push((key.protocol, class, Arc::clone(&spread)));
        (count, spread)
    }
}
