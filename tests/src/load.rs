//! Steady load, and what became of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::caller::Http1;

/// Several kept-alive connections that ask one after the other, each without a pause but its `pace`.
pub struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: Mutex<Vec<String>>,
}

/// What became of a load.
#[derive(Debug)]
pub struct Tally {
    /// Requests answered with success.
    pub answered: u64,
    /// All others: what was answered, or why nothing was.
    pub failed: Vec<String>,
}

impl Load {
    /// Calls `host` through the sidecar at `proxy` with GET, over so many connections.
    pub fn start(proxy: SocketAddr, host: &str, connections: usize, pace: Duration) -> Self {
        let shared = Arc::<Shared>::default();
        let mut callers = JoinSet::new();
        for _ in 0..connections {
            callers.spawn(call(shared.clone(), proxy, host.to_owned(), pace));
        }
        Self { shared, callers }
    }

    /// Requests answered with success so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> usize {
        self.shared.failed.lock().len()
    }

    /// Waits until `count` more have been answered.
    ///
    /// # Errors
    /// When that takes longer than a minute.
    pub async fn answer(&self, count: u64) -> Result<()> {
        let enough = self.answered() + count;
        weft::launch::wait_for("the load's answers", Duration::from_secs(60), async || {
            (self.answered() >= enough).then_some(())
        })
        .await
    }

    /// Lets the last requests end.
    pub async fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.callers.join_next().await.is_some() {}
        Tally { answered: self.answered(), failed: std::mem::take(&mut *self.shared.failed.lock()) }
    }
}

impl Tally {
    /// # Panics
    /// When a request failed.
    pub fn assert_whole(&self) {
        let some = &self.failed[..self.failed.len().min(5)];
        assert!(self.failed.is_empty(), "{} of {} requests failed: {some:#?}", self.failed.len(), self.answered);
    }
}

async fn call(shared: Arc<Shared>, proxy: SocketAddr, host: String, pace: Duration) {
    let began = std::time::Instant::now();
    let mut connection = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let asked = began.elapsed();
        let answer = async {
            if connection.is_none() {
                connection = Some(Http1::connect(proxy).await?);
            }
            let connection = connection.as_mut().expect("connected above");
            let request = Request::get("/").header(header::HOST, &host).body(Full::<Bytes>::default())?;
            connection.send(request).await
        };
        match answer.await {
            Ok(answer) if answer.status.is_success() => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
                // The sidecar may say that it wants this connection closed.
                if answer.headers.get(header::CONNECTION).is_some_and(|value| value == "close") {
                    connection = None;
                }
            }
            Ok(answer) => {
                shared.failed.lock().push(format!("{asked:?}: {} {:?}", answer.status, answer.text()));
            }
            Err(error) => {
                shared.failed.lock().push(format!("{asked:?}: {error:#}"));
                connection = None;
            }
        }
        tokio::time::sleep(pace).await;
    }
}
