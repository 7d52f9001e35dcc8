//! The store: the event log, join tokens and registered workloads in one crash-safe file.
//!
//! What was acknowledged is on disk. One thread writes; readers share an immutable copy of the log. Never parses
//! documents: what they mean is the model's business.

mod file;
mod log;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use redb::WriteTransaction;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use self::writer::{Command, Writer};
pub use self::{
    file::{SCHEMA, decode, encode},
    log::{Entry, Event, Log, Meta, Resources, Stored},
};

/// Handle to the store. Clones share it; the file is closed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Arc<ArcSwap<Log>>,
    head: watch::Receiver<u64>,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Store {
    /// Opens the file at `path`, making it (0600) if it is not there. Blocks.
    /// # Errors
    /// Another process has it open, a newer version wrote it, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_keeping(path, KEEP)
    }

    /// As [`Store::open`], keeping `keep` changes before they are folded into the snapshot.
    /// # Errors
    /// As [`Store::open`].
    pub fn open_keeping(path: &Path, keep: usize) -> Result<Self, StoreError> {
        let (database, log) = file::open(path)?;
        let (head, head_seen) = watch::channel(log.head());
        let log = Arc::new(ArcSwap::from_pointee(log));
        let (commands, queue) = mpsc::channel(QUEUE);
        let writer = Writer { path: path.to_owned(), database: Some(database), log: log.clone(), head, keep };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(queue))
            .map_err(|source| StoreError::io(path, source))?;
        let shared = Shared { log, head: head_seen, commands: Some(commands), thread: Some(thread) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The log as it is now.
    pub fn log(&self) -> Arc<Log> {
        self.shared.log.load_full()
    }

    /// Revision of the newest change, and its growth.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.head.clone()
    }

    /// Appends a change and returns its revision once it is on disk.
    /// `expected`: refuse unless the log stands there; `None`: no expectation.
    /// # Errors
    /// [`StoreError::Conflict`], or the disk refused.
    pub async fn append(&self, expected: Option<u64>, events: Vec<Event>, meta: Meta) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Append { expected, events, meta, reply }).await?;
        answer.await.map_err(|_| StoreError::Aborted)?
    }

    /// Runs `work` in a write transaction; its value comes back once the transaction is on disk.
    /// `work` may share the transaction with others: it must not write and then fail.
    /// # Errors
    /// The disk refused; nothing of the transaction remains.
    pub async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (work, answer) = transaction(work);
        self.send(Command::Transact { work }).await?;
        answer.await.map_err(|_| StoreError::Aborted)?
    }

    /// As [`Store::transact`], for a thread that may block.
    /// # Errors
    /// As [`Store::transact`].
    pub fn transact_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (work, answer) = transaction(work);
        self.commands().blocking_send(Command::Transact { work }).map_err(|_| StoreError::Stopped)?;
        answer.blocking_recv().map_err(|_| StoreError::Aborted)?
    }

    fn commands(&self) -> &mpsc::Sender<Command> {
        self.shared.commands.as_ref().expect("taken only in drop")
    }

    async fn send(&self, command: Command) -> Result<(), StoreError> {
        self.commands().send(command).await.map_err(|_| StoreError::Stopped)
    }
}

/// `work` and, apart, the way back for its value.
fn transaction<T: Send + 'static>(
    work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError> + Send + 'static,
) -> (writer::Work, oneshot::Receiver<Result<T, StoreError>>) {
    let (reply, answer) = oneshot::channel();
    let work = Box::new(move |transaction: &WriteTransaction| {
        let value = work(transaction)?;
        let finish: writer::Finish = Box::new(move |committed| {
            if reply.send(committed.map(|()| value)).is_err() {
                tracing::debug!("a store transaction was finished after its caller had gone");
            }
        });
        Ok(finish)
    });
    (work, answer)
}

/// Waits for the writer, so that the file can be opened again at once.
impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}

/// Why the store could not answer.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Optimistic concurrency.
    #[error("the configuration is at revision {head}, not at {expected}: someone else changed it in the meantime")]
    Conflict {
        /// What the caller expected.
        expected: u64,
        /// Where the log stands.
        head: u64,
    },
    /// Folded into the snapshot.
    #[error("revision {asked} is no longer kept: the history begins at revision {begins}")]
    Compacted {
        /// Asked for.
        asked: u64,
        /// Oldest that is there.
        begins: u64,
    },
    /// In the future.
    #[error("revision {asked} does not exist yet: the newest is {head}")]
    NotYet {
        /// Asked for.
        asked: u64,
        /// Newest.
        head: u64,
    },
    /// Written by another version.
    #[error(
        "{} has schema {found}, and this version of Weft reads schema {supported}: run the version that wrote it, or \
         restore a copy of the file that was made before the upgrade", path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u64,
        /// Of this version.
        supported: u64,
    },
    /// Another process.
    #[error("{} is in use: another control plane runs with this data directory", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A revision is missing.
    #[error("the log has revision {found} where {expected} was expected: the file is damaged; restore a backup")]
    Gap {
        /// In the file.
        found: u64,
        /// Would be next.
        expected: u64,
    },
    /// A row does not parse.
    #[error("a row of table {table} is damaged: {source}")]
    Row {
        /// Where.
        table: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The database.
    #[error("the store could not be read or written: {0}")]
    Storage(#[from] redb::Error),
    /// Another change of the same transaction failed.
    #[error("the store could not be written: the log of the control plane says why")]
    Aborted,
    /// Shutting down.
    #[error("the store is closed")]
    Stopped,
}

impl StoreError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Storage(error.into())
            }
        }
    )*};
}
from_redb!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

/// Changes kept before they are folded into the snapshot: enough to look back, bounded in memory.
const KEEP: usize = 1000;
/// Commands waiting for the writer; more callers wait in [`Store::append`] itself.
const QUEUE: usize = 256;
