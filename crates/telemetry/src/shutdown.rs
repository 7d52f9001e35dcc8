//! Signals become a cancellation token.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two levels of stopping.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled by the first SIGTERM or SIGINT: finish what runs, then end.
    pub graceful: CancellationToken,
    /// Cancelled by the second: end at once.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for one level more: the first call ends gracefully, the next at once.
    pub fn escalate(&self) {
        if self.graceful.is_cancelled() {
            self.now.cancel();
        } else {
            self.graceful.cancel();
        }
    }

    /// Listens for SIGTERM and SIGINT for as long as the process lives.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(&self) -> io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            while !shutdown.now.is_cancelled() {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "asked to stop");
                shutdown.escalate();
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_at_once() {
        let shutdown = Shutdown::new();
        shutdown.escalate();
        assert!(shutdown.graceful.is_cancelled() && !shutdown.now.is_cancelled());
        shutdown.escalate();
        assert!(shutdown.now.is_cancelled());
    }
}
