//! Virtual addresses: what a mesh name resolves to, so that a connection says by its destination which service it means.
//!
//! An address is a number below 2^28 made from the host's name: `240.0.0.0` plus that number, and the same four bytes at
//! the end of `fd77:6566:7400::/64`. Names that collide try on, and what was given to whom is kept on disk, so that an
//! address that an application has remembered means the same service after a restart. Nothing is ever sent to such an
//! address: the redirect takes the connection before it leaves the machine.
//!
//! Never asks whether a host exists; that is for the caller.

mod file;
mod table;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::table::Table;
pub use self::table::{LIMIT, RECENT};

/// First of the IPv4 range; 240.0.0.0/4 is reserved, routed nowhere and used by nobody.
const V4_BASE: u32 = 0xf000_0000;
/// The IPv6 range: unique local, `weft` after the prefix.
const V6_PREFIX: [u16; 4] = [0xfd77, 0x6566, 0x7400, 0];
/// New addresses are on disk after this time, many with one write.
const SAVE_AFTER: Duration = Duration::from_millis(500);

/// The two addresses of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vip {
    /// In 240.0.0.0/4.
    pub v4: Ipv4Addr,
    /// In fd77:6566:7400::/64; its last four bytes are those of `v4`.
    pub v6: Ipv6Addr,
}

impl Vip {
    fn new(slot: u32) -> Self {
        let v4 = V4_BASE | slot;
        let [a, b, c, d] = V6_PREFIX;
        let v6 = Ipv6Addr::from([a, b, c, d, 0, 0, (v4 >> 16) as u16, v4 as u16]);
        Self { v4: v4.into(), v6 }
    }
}

/// Whether an address is of the ranges that are virtual, given to a host or not.
#[must_use]
pub fn is_virtual(address: IpAddr) -> bool {
    slot(address).is_some()
}

/// The number behind an address; IPv4 as IPv6 (`::ffff:240.1.2.3`) is the same.
fn slot(address: IpAddr) -> Option<u32> {
    let v4 = match address.to_canonical() {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, 0, 0, high, low] = v6.segments() else { return None };
            if [a, b, c, d] != V6_PREFIX {
                return None;
            }
            u32::from(high) << 16 | u32::from(low)
        }
    };
    (v4 & V4_BASE == V4_BASE && v4 != u32::MAX).then_some(v4 & !V4_BASE)
}

/// Every address that was given. Shared by all threads.
#[derive(Debug, Default)]
pub struct Vips {
    table: RwLock<Table>,
    /// Something is to be written.
    unsaved: Notify,
}

impl Vips {
    /// The addresses of a canonical host (`orders.shop`), now given if it has none. `None`: [`LIMIT`] hosts were used
    /// within [`RECENT`], and an address that someone may still hold is not given to another.
    pub fn of(&self, host: &str) -> Option<Vip> {
        self.of_at(host, unix_seconds())
    }

    fn of_at(&self, host: &str, now: u64) -> Option<Vip> {
        if let Some(slot) = self.table.read().of(host, now) {
            return Some(Vip::new(slot));
        }
        let slot = self.table.write().give(host, now)?;
        self.unsaved.notify_one();
        Some(Vip::new(slot))
    }

    /// The addresses of a host that has some; none are given.
    pub fn known(&self, host: &str) -> Option<Vip> {
        self.table.read().of(host, unix_seconds()).map(Vip::new)
    }

    /// The host to which an address was given; using it keeps it.
    pub fn host(&self, address: IpAddr) -> Option<Arc<str>> {
        let slot = slot(address)?;
        self.table.read().host(slot, unix_seconds())
    }

    /// How many hosts have addresses.
    pub fn len(&self) -> usize {
        self.table.read().len()
    }

    /// Whether none was given.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes what was given before the restart. A file that cannot be used costs no more than the addresses of names that
    /// had collided: all others are made from the name.
    pub fn restore(&self, data_dir: &Path) {
        match file::load(&data_dir.join(file::NAME)) {
            Ok(table) => *self.table.write() = table,
            Err(error) => tracing::warn!(%error, "the kept virtual addresses are not used"),
        }
    }

    /// Keeps the file up to date until `stop`, and writes it a last time.
    pub async fn keep(&self, data_dir: &Path, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.unsaved.notified() => {}
                () = stop.cancelled() => return self.save_or_warn(data_dir),
            }
            tokio::select! {
                () = tokio::time::sleep(SAVE_AFTER) => {}
                () = stop.cancelled() => {}
            }
            self.save_or_warn(data_dir);
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Of the file system; what was there stays.
    pub fn save(&self, data_dir: &Path) -> io::Result<()> {
        // Made under the lock, written without.
        let content = file::encode(&self.table.read());
        weft_telemetry::files::write_private(&data_dir.join(file::NAME), &content)
    }

    fn save_or_warn(&self, data_dir: &Path) {
        if self.is_empty() {
            return;
        }
        if let Err(error) = self.save(data_dir) {
            tracing::warn!(%error, "virtual addresses could not be kept on disk");
        }
    }
}

fn unix_seconds() -> u64 {
    // A clock before 1970 makes everything look unused, no more.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
