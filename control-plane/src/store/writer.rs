//! The one thread that writes. Commands that wait together share a transaction, so that a storm of registrations costs
//! a few syncs instead of hundreds.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use redb::{Database, WriteTransaction};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    StoreError, file,
    log::{Entry, Event, Log, Meta},
};

/// What the writer is asked to do.
pub enum Command {
    Append { expected: Option<u64>, events: Vec<Event>, meta: Meta, reply: oneshot::Sender<Result<u64, StoreError>> },
    Transact { work: Work },
}

/// Runs in the transaction.
pub type Work = Box<dyn FnOnce(&WriteTransaction) -> Result<Finish, StoreError> + Send>;
/// Hears whether the transaction was committed.
pub type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// State of the thread.
pub struct Writer {
    pub path: PathBuf,
    /// Absent after a failed write: a database that could not write, on a full disk say, refuses every further write.
    pub database: Option<Database>,
    pub log: Arc<ArcSwap<Log>>,
    pub head: watch::Sender<u64>,
    pub keep: usize,
}

impl Writer {
    /// Serves until every handle is gone.
    pub fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                match queue.try_recv() {
                    Ok(command) => batch.push(command),
                    Err(_) => break, // Empty or closed: the outer loop tells which.
                }
            }
            if let Err(error) = self.commit(batch) {
                tracing::error!(%error, "the store could not be written; it is opened anew for the next change");
                self.database = None;
            } else if let Err(error) = self.compact() {
                tracing::error!(%error, "the store could not be compacted");
                self.database = None;
            }
        }
    }

    /// All of the batch in one transaction. On an error nothing is written, and every caller hears of it: those that
    /// had a `Finish` through it, the others by their dropped reply.
    fn commit(&mut self, batch: Vec<Command>) -> Result<(), StoreError> {
        let transaction = file::begin(self.opened()?)?;
        let mut log = (**self.log.load()).clone();
        let mut finishes: Vec<Finish> = Vec::with_capacity(batch.len());
        for command in batch {
            finishes.push(match command {
                Command::Append { expected, events, meta, reply } => {
                    match append(&transaction, &mut log, expected, events, meta) {
                        Err(conflict @ StoreError::Conflict { .. }) => answer(reply, Err(conflict)),
                        other => answer(reply, Ok(other?)),
                    }
                }
                Command::Transact { work } => work(&transaction)?,
            });
        }
        transaction.commit()?;
        let head = log.head();
        self.log.store(Arc::new(log));
        self.head.send_if_modified(|seen| std::mem::replace(seen, head) != head);
        for finish in finishes {
            finish(Ok(()));
        }
        Ok(())
    }

    /// The database, opened anew after a failure. What the file then says is the truth: a commit that reported an error
    /// may have reached it all the same.
    fn opened(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let (database, log) = file::open(&self.path)?;
            let head = log.head();
            self.log.store(Arc::new(log));
            self.head.send_if_modified(|seen| std::mem::replace(seen, head) != head);
            self.database = Some(database);
        }
        Ok(self.database.as_ref().expect("opened just now, or open already"))
    }

    fn compact(&mut self) -> Result<(), StoreError> {
        let mut log = (**self.log.load()).clone();
        if log.entries().len() < self.keep + SLACK {
            return Ok(());
        }
        let done = log.compact(self.keep);
        let transaction = file::begin(self.opened()?)?;
        file::compact(&transaction, &done)?;
        transaction.commit()?;
        tracing::info!(begins = log.begins(), "old changes were folded into the snapshot");
        self.log.store(Arc::new(log));
        Ok(())
    }
}

fn append(
    transaction: &WriteTransaction,
    log: &mut Log,
    expected: Option<u64>,
    events: Vec<Event>,
    meta: Meta,
) -> Result<u64, StoreError> {
    let head = log.head();
    if let Some(expected) = expected.filter(|&expected| expected != head) {
        return Err(StoreError::Conflict { expected, head });
    }
    let entry = Entry { revision: head + 1, meta, events };
    file::append(transaction, &entry)?;
    log.push(entry);
    Ok(head + 1)
}

fn answer(reply: oneshot::Sender<Result<u64, StoreError>>, result: Result<u64, StoreError>) -> Finish {
    Box::new(move |committed| {
        if reply.send(committed.and(result)).is_err() {
            tracing::debug!("a change was written after its caller had gone");
        }
    })
}

/// Commands in one transaction.
const BATCH: usize = 128;
/// Changes beyond those kept before it is worth folding them.
const SLACK: usize = 100;
