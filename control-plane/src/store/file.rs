//! The file: one redb database. Every write is on disk before it is acknowledged.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
    backends::FileBackend,
};

use weft_model::ResourceKey;

use super::{
    StoreError,
    log::{Compacted, Entry, Log, Resources, Stored},
};

/// Format of the file that this version writes, and the newest that it reads.
pub const SCHEMA: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Revision → [`Entry`] as JSON.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// [`ResourceKey`] as JSON → [`Stored`] as JSON, as of the meta value `base_revision`.
const BASE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("base");

/// Opens the store, making it if it is not there.
pub fn open(path: &Path) -> Result<(Database, Log), StoreError> {
    if !path.exists() {
        create(path)?;
    }
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| StoreError::io(path, source))?;
    let database = database(path, file)?;
    let log = read(path, &database)?;
    Ok((database, log))
}

/// A store is complete before it has its name: a crash in between leaves nothing that looks like one.
fn create(path: &Path) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Ok(()) => tracing::info!(file = %new.display(), "removed a store whose creation was interrupted"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io(&new, error)),
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|source| StoreError::io(&new, source))?;
    let database = database(&new, file)?;
    let transaction = begin(&database)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("schema", SCHEMA)?;
        meta.insert("base_revision", 0)?;
        transaction.open_table(LOG)?;
        transaction.open_table(BASE)?;
    }
    transaction.commit()?;
    drop(database);
    fs::rename(&new, path).map_err(|source| StoreError::io(path, source))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(|source| StoreError::io(directory, source))
}

fn database(path: &Path, file: File) -> Result<Database, StoreError> {
    let opened = FileBackend::new(file).and_then(|file| {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder.create_with_backend(file)
    });
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked { path: path.to_owned() },
        error => StoreError::Storage(error.into()),
    })
}

fn read(path: &Path, database: &Database) -> Result<Log, StoreError> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let found = meta.get("schema")?.map_or(0, |value| value.value());
    if found != SCHEMA {
        return Err(StoreError::Schema { path: path.to_owned(), found, supported: SCHEMA });
    }
    let base_revision = meta.get("base_revision")?.map_or(0, |value| value.value());
    let mut base = Resources::new();
    for row in transaction.open_table(BASE)?.iter()? {
        let (key, value) = row?;
        let key: ResourceKey = decode("base", key.value())?;
        let value: Stored = decode("base", value.value())?;
        base.insert(key, value.into());
    }
    let mut entries = Vec::new();
    for row in transaction.open_table(LOG)?.iter()? {
        let (revision, value) = row?;
        let entry: Entry = decode("log", value.value())?;
        let expected = base_revision + entries.len() as u64 + 1;
        if entry.revision != expected || revision.value() != expected {
            return Err(StoreError::Gap { found: revision.value(), expected });
        }
        entries.push(entry);
    }
    Ok(Log::from_parts(base_revision, base, entries))
}

/// Begins a transaction whose commit is on disk when it returns.
pub fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
    Ok(transaction)
}

/// Writes one change.
pub fn append(transaction: &WriteTransaction, entry: &Entry) -> Result<(), StoreError> {
    transaction.open_table(LOG)?.insert(entry.revision, encode(entry).as_slice())?;
    Ok(())
}

/// Writes what a compaction did.
pub fn compact(transaction: &WriteTransaction, done: &Compacted) -> Result<(), StoreError> {
    let mut base = transaction.open_table(BASE)?;
    for (key, value) in &done.changed {
        let key = encode(key);
        match value {
            Some(value) => base.insert(key.as_slice(), encode(value.as_ref()).as_slice())?,
            None => base.remove(key.as_slice())?,
        };
    }
    let mut log = transaction.open_table(LOG)?;
    for revision in &done.revisions {
        log.remove(revision)?;
    }
    transaction.open_table(META)?.insert("base_revision", done.base_revision)?;
    Ok(())
}

/// A row as JSON.
pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("rows are plain data: strings, numbers, lists")
}

/// A row from JSON.
pub fn decode<T: serde::de::DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Row { table, source })
}

/// The working set is in memory anyway; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 4 << 20;
