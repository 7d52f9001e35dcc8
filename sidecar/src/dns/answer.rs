//! From one query to its answer: decide, remember, forward. No sockets of clients in here.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use super::{
    cache::{Cache, Kept, Key},
    decide::{Decision, Known, Scope, decide},
    forward::{Answered, Forward, Over},
    known::Names,
    metrics::{Ended, Metrics},
    wire::{self, Answer, MOST_UDP, Query, Unfit, code},
};
use crate::shared::Shared;

/// For how long a client may keep a name of the mesh, in seconds: virtual addresses stay, endpoints of headless services
/// come and go.
pub const MESH_TTL: u32 = 30;
/// How long an answer from memory lives whose time was up (RFC 8767).
const STALE_TTL: u32 = 30;

/// Answers queries. Of one thread.
#[derive(Debug)]
pub struct Answers {
    shared: Arc<Shared>,
    names: Names,
    forward: Forward,
    cache: RefCell<Cache>,
    search: RefCell<Rc<[String]>>,
    ipv6: Cell<bool>,
    metrics: Metrics,
}

/// What could be said at once.
#[derive(Debug)]
pub enum Now {
    /// The answer.
    Answer(Vec<u8>),
    /// Nothing is to be answered.
    Nothing,
    /// Others have to be asked.
    Later(Later),
}

/// A query that takes time.
#[derive(Debug)]
pub struct Later {
    message: Vec<u8>,
    query: Query,
    over: Over,
    began: Instant,
    /// Hosts that the control plane has to be asked for first.
    unknown: Vec<String>,
}

impl Answers {
    /// Asks no resolver yet.
    pub fn new(shared: Arc<Shared>, metrics: Metrics) -> Self {
        Self {
            names: Names::new(shared.clone()),
            forward: Forward::default(),
            cache: RefCell::default(),
            search: RefCell::new(Rc::new([])),
            ipv6: Cell::new(false),
            metrics,
            shared,
        }
    }

    /// What is known of services.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The resolvers to forward to.
    pub fn set_servers(&self, servers: &[std::net::SocketAddr]) {
        self.forward.set(servers);
    }

    /// The search domains of this host.
    pub fn set_search(&self, search: Vec<String>) {
        self.search.replace(search.into());
    }

    /// Whether virtual IPv6 addresses lead somewhere.
    pub fn set_ipv6(&self, on: bool) {
        self.ipv6.set(on);
    }

    fn gauge(&self) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.cached.set(number(self.cache.borrow().len()));
        self.metrics.addresses.set(number(self.shared.vips.len()));
    }

    /// Answers what can be answered at once.
    pub fn now(&self, message: &[u8], over: Over, began: Instant) -> Now {
        let query = match wire::query(message) {
            Ok(query) => query,
            Err(unfit) => {
                self.metrics.ended(Ended::Refused, began.elapsed());
                let told = match unfit {
                    Unfit::Answer(code) => wire::unreadable(message, code),
                    Unfit::Drop => None,
                };
                return told.map_or(Now::Nothing, Now::Answer);
            }
        };
        let unknown = match self.decide(&query, |host| self.names.known(host)) {
            Decision::Mesh(answer) => return Now::Answer(self.of_the_mesh(&query, &answer, over, began)),
            Decision::Refuse => return Now::Answer(self.failed(&query, code::REFUSED, Ended::Refused, began)),
            Decision::Forward => Vec::new(),
            Decision::Ask(unknown) => unknown,
        };
        if unknown.is_empty()
            && let Some(kept) = self.kept(&query).filter(|kept| kept.fresh)
        {
            return Now::Answer(self.remembered(&query, &kept, over, began));
        }
        Now::Later(Later { message: message.to_vec(), query, over, began, unknown })
    }

    /// Answers what takes time. The control plane and the resolvers are asked at the same time: a name of the outside
    /// waits for neither longer than for the slower.
    pub async fn later(&self, later: Later) -> Vec<u8> {
        let Later { message, query, over, began, unknown } = later;
        if unknown.is_empty() {
            let answered = self.forward.ask(&message, &query, over).await;
            return self.of_others(&query, answered, over, began);
        }
        let mut asked = std::pin::pin!(self.forwarded(&message, &query, over));
        let mut known = std::pin::pin!(self.names.ask(&unknown));
        let mut answered = None;
        loop {
            tokio::select! {
                () = &mut known => break,
                first = &mut asked, if answered.is_none() => answered = Some(first),
            }
        }
        if let Decision::Mesh(answer) = self.decide(&query, |host| self.names.settled(host)) {
            return self.of_the_mesh(&query, &answer, over, began);
        }
        let answered = match answered {
            Some(answered) => answered,
            None => asked.await,
        };
        match answered {
            Source::Memory(kept) => self.remembered(&query, &kept, over, began),
            Source::Resolver(answered) => self.of_others(&query, answered, over, began),
        }
    }

    /// The answer to one query too many.
    pub fn overloaded(&self, later: &Later) -> Vec<u8> {
        self.failed(&later.query, code::SERVER_FAILURE, Ended::Overload, later.began)
    }

    async fn forwarded(&self, message: &[u8], query: &Query, over: Over) -> Source {
        match self.kept(query).filter(|kept| kept.fresh) {
            Some(kept) => Source::Memory(kept),
            None => Source::Resolver(self.forward.ask(message, query, over).await),
        }
    }

    fn decide(&self, query: &Query, known: impl Fn(&str) -> Known) -> Decision {
        let search = self.search.borrow().clone();
        let scope = Scope {
            namespace: &self.shared.settings.namespace,
            search: &search,
            vips: &self.shared.vips,
            ipv6: self.ipv6.get(),
        };
        decide(&query.question, scope, known)
    }

    fn of_the_mesh(&self, query: &Query, answer: &Answer, over: Over, began: Instant) -> Vec<u8> {
        let ended = if matches!(answer, Answer::Failed(_)) { Ended::Failed } else { Ended::Mesh };
        self.ended(query, ended, began);
        wire::answer(query, answer, MESH_TTL, limit(query, over))
    }

    /// What a resolver said, to be remembered; or, when none did, what was once said.
    fn of_others(&self, query: &Query, answered: Option<Answered>, over: Over, began: Instant) -> Vec<u8> {
        let failed = answered.as_ref().is_none_or(|it| it.shape.rcode == code::SERVER_FAILURE);
        if failed && let Some(kept) = self.kept(query) {
            return self.remembered(query, &kept, over, began);
        }
        let Some(Answered { bytes, shape }) = answered else {
            return self.failed(query, code::SERVER_FAILURE, Ended::Failed, began);
        };
        if let (Some(lifetime), Some(key)) = (shape.lifetime, Key::of(query)) {
            self.cache.borrow_mut().put(key, &bytes, &shape.ttls, lifetime, Instant::now());
        }
        self.ended(query, if failed { Ended::Failed } else { Ended::Forwarded }, began);
        bytes
    }

    fn kept(&self, query: &Query) -> Option<Kept> {
        self.cache.borrow_mut().get(&Key::of(query)?, Instant::now())
    }

    fn remembered(&self, query: &Query, kept: &Kept, over: Over, began: Instant) -> Vec<u8> {
        self.ended(query, if kept.fresh { Ended::Cached } else { Ended::Stale }, began);
        // It may have come by TCP.
        if kept.bytes.len() > limit(query, over) {
            return wire::truncated(query);
        }
        let mut bytes = kept.bytes.to_vec();
        let age = u32::try_from(kept.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        match kept.fresh {
            true => wire::readdress(&mut bytes, query, &kept.ttls, age, u32::MAX),
            false => wire::readdress(&mut bytes, query, &kept.ttls, 0, STALE_TTL),
        }
        bytes
    }

    fn failed(&self, query: &Query, code: u8, ended: Ended, began: Instant) -> Vec<u8> {
        self.ended(query, ended, began);
        wire::answer(query, &Answer::Failed(code), 0, MOST_UDP)
    }

    fn ended(&self, query: &Query, ended: Ended, began: Instant) {
        let took = began.elapsed();
        self.metrics.ended(ended, took);
        self.gauge();
        tracing::debug!(
            name = query.question.text().unwrap_or_default(),
            kind = query.question.kind,
            result = ended.label(),
            micros = took.as_micros(),
            "dns"
        );
    }
}

#[derive(Debug)]
enum Source {
    Memory(Kept),
    Resolver(Option<Answered>),
}

/// The most bytes that the client takes.
fn limit(query: &Query, over: Over) -> usize {
    match over {
        Over::Udp => query.udp_limit(),
        Over::Tcp => usize::from(u16::MAX),
    }
}
