//! The access log's writer: a thread behind a bounded channel. A worker never waits for it; what does not fit is dropped
//! and counted.

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use weft_telemetry::log::Format;

use crate::{metrics::Metrics, settings};

/// Where access-log lines go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    which: settings::AccessLog,
    format: Format,
    lines: SyncSender<String>,
    metrics: Metrics,
}

/// Lines that may wait for the writer.
const WAITING: usize = 4096;

impl AccessLog {
    /// A log to standard output.
    pub fn start(which: settings::AccessLog, format: Format, metrics: Metrics) -> Self {
        Self::to(which, format, metrics, io::stdout())
    }

    /// A log to anything.
    pub fn to(which: settings::AccessLog, format: Format, metrics: Metrics, out: impl Write + Send + 'static) -> Self {
        let (lines, waiting) = sync_channel(WAITING);
        if which != settings::AccessLog::Off {
            let spawned = std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&waiting, out));
            if let Err(error) = spawned {
                tracing::error!(%error, "the access log's thread did not start; lines will be dropped and counted");
            }
        }
        Self { which, format, lines, metrics }
    }

    /// Whether a request gets a line. `slow` is asked only if it matters.
    pub fn wants(&self, failed: bool, slow: impl FnOnce() -> bool) -> bool {
        match self.which {
            settings::AccessLog::Off => false,
            settings::AccessLog::All => true,
            settings::AccessLog::Failures => {
                let slow = slow();
                failed || slow
            }
        }
    }

    /// How a line looks.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes a line, which ends with a line feed.
    pub fn write(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.metrics.log_line_dropped();
        }
    }
}

/// Ends when the last sender is gone, or nobody reads what is written.
fn write_all(waiting: &Receiver<String>, mut out: impl Write) {
    while let Ok(line) = waiting.recv() {
        let more = std::iter::from_fn(|| waiting.try_recv().ok()).take(WAITING);
        let written = std::iter::once(line).chain(more).try_for_each(|line| out.write_all(line.as_bytes()));
        if let Err(error) = written.and_then(|()| out.flush()) {
            tracing::error!(%error, "the access log cannot be written; lines are dropped and counted");
            return;
        }
    }
}
