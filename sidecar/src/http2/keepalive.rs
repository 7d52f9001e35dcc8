//! Asks a silent peer whether it lives.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::Sleep;

use super::watched::Seen;

/// How often the connection is looked at, and how long the peer may take to answer.
const LOOK: Duration = Duration::from_secs(10);
/// A peer that was silent at so many looks is asked: after 30 s.
const SILENT: u32 = 3;

/// PING after half a minute of silence; a peer that stays silent is dead.
#[derive(Debug)]
pub(super) struct KeepAlive {
    ping: Option<PingPong>,
    seen: Rc<Seen>,
    look: Pin<Box<Sleep>>,
    silent: u32,
    asked: bool,
}

impl KeepAlive {
    pub(super) fn new(ping: Option<PingPong>, seen: Rc<Seen>) -> Self {
        Self { ping, seen, look: Box::pin(tokio::time::sleep(LOOK)), silent: 0, asked: false }
    }

    /// Ready when the peer is dead. `asks`: somebody wants to know.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, asks: bool) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            self.look.as_mut().reset(tokio::time::Instant::now() + LOOK);
            if self.seen.heard.take() {
                (self.silent, self.asked) = (0, false);
                continue;
            }
            if self.asked {
                return Poll::Ready(());
            }
            self.silent = self.silent.saturating_add(1);
            if self.silent < SILENT || !asks {
                continue;
            }
            if let Some(ping) = &mut self.ping {
                // The answer to the last one is still to be taken; that there is none yet was seen above.
                let _ = ping.poll_pong(&mut Context::from_waker(std::task::Waker::noop()));
                // One that is still on its way asks the same.
                let _ = ping.send_ping(Ping::opaque());
                self.asked = true;
            }
        }
    }
}
