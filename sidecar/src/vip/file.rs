//! The table on disk: text that a person can read, with a checksum over all of it.
//!
//! ```text
//! weft-vips-1 9f86d081884c7d65
//! 240.17.4.9 orders.shop 1790000000
//! ```

use std::{fmt::Write, io, net::Ipv4Addr, path::Path};

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Vip, slot,
    table::{LIMIT, Table},
};

/// In the data directory.
pub const NAME: &str = "vips";
const FORMAT: &str = "weft-vips-1";
/// No line is longer: an address, a name of DNS, a time.
const LONGEST_LINE: usize = 15 + 1 + 253 + 1 + 20 + 1;

/// Why a file is not used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{NAME}: {0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("{NAME} is damaged: {0}")]
    Damaged(&'static str),
}

/// What a file holds; an empty table when there is none.
pub fn load(path: &Path) -> Result<Table, FileError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
        Err(error) => return Err(error.into()),
        Ok(file) if file.len() > (LIMIT * LONGEST_LINE + 64) as u64 => return Err(FileError::Damaged("too long")),
        Ok(_) => {}
    }
    decode(&std::fs::read(path)?)
}

/// A table as bytes.
pub fn encode(table: &Table) -> Vec<u8> {
    let mut lines = String::new();
    for (slot, host, used) in table.entries() {
        writeln!(lines, "{} {host} {used}", Vip::new(slot).v4).expect("a string grows");
    }
    format!("{FORMAT} {:016x}\n{lines}", xxh3_64(lines.as_bytes())).into_bytes()
}

/// Bytes as a table: all of it or nothing.
pub fn decode(bytes: &[u8]) -> Result<Table, FileError> {
    let text = std::str::from_utf8(bytes).map_err(|_not_text| FileError::Damaged("not text"))?;
    let (head, lines) = text.split_once('\n').ok_or(FileError::Damaged("no first line"))?;
    let sum = head.strip_prefix(FORMAT).ok_or(FileError::Damaged("of another format"))?;
    if sum != format!(" {:016x}", xxh3_64(lines.as_bytes())) {
        return Err(FileError::Damaged("the checksum does not fit"));
    }
    let mut table = Table::default();
    for line in lines.lines() {
        let (slot, host, used) = entry(line).ok_or(FileError::Damaged("a line cannot be read"))?;
        if !table.restore(slot, host, used) {
            return Err(FileError::Damaged("two lines of one host or address, or too many"));
        }
    }
    Ok(table)
}

fn entry(line: &str) -> Option<(u32, &str, u64)> {
    let mut words = line.split(' ');
    let address: Ipv4Addr = words.next()?.parse().ok()?;
    let host = words.next().filter(|host| !host.is_empty() && host.len() <= 253)?;
    let used = words.next()?.parse().ok()?;
    words.next().is_none().then_some((slot(address.into())?, host, used))
}
