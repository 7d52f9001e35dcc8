//! The last known configuration on disk, so that a start needs no control plane.
//!
//! Kept are the resources as they came, with their versions: the decoder reads them again at start, and the control plane
//! is told the versions, so that it sends only what differs. The file is private (0600), written whole or not at all, and
//! ignored when it is damaged, of another format or of another workload.

use std::{
    io,
    path::{Path, PathBuf},
};

use prost::Message;
use prost_types::Any;
use thiserror::Error;
use weft_xds::resource::ResourceType;
use xxhash_rust::xxh3::xxh3_64;

/// First bytes: name and version of the format.
const MAGIC: &[u8; 8] = b"weftcch1";
const CHECKSUM: usize = 8;
/// A file beyond this size is not ours.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedResource {
    /// Its type.
    pub ty: ResourceType,
    /// Its xDS name.
    pub name: Box<str>,
    /// Its version.
    pub version: Box<str>,
    /// Itself.
    pub any: Any,
}

/// Why a cache is not used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is damaged.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// It is of another format.
    #[error("of another version of Weft")]
    Version,
    /// It belongs to another workload.
    #[error("of another workload ({0})")]
    Owner(String),
}

/// A cache file.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
    owner: Box<str>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "1")]
    owner: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(message, optional, tag = "3")]
    any: Option<Any>,
}

impl Cache {
    /// The cache in a data directory. `owner`: trust domain, namespace and service; another's is not used.
    #[must_use]
    pub fn new(data_dir: &Path, owner: &str) -> Self {
        Self { path: data_dir.join("cache.bin"), owner: owner.into() }
    }

    /// What was known; empty when there is no file.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub fn load(&self) -> Result<Vec<CachedResource>, CacheError> {
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
            Ok(file) if file.len() > MAX_BYTES => return Err(CacheError::Damaged("too long")),
            Ok(_) => {}
        }
        self.decode(&std::fs::read(&self.path)?)
    }

    /// Replaces what is on disk.
    ///
    /// # Errors
    /// Of the file system; what was there stays.
    pub fn store<'a>(&self, resources: impl Iterator<Item = &'a CachedResource>) -> io::Result<()> {
        weft_telemetry::files::write_private(&self.path, &self.encode(resources))
    }

    fn encode<'a>(&self, resources: impl Iterator<Item = &'a CachedResource>) -> Vec<u8> {
        let resources = resources.map(|resource| Entry {
            name: resource.name.to_string(),
            version: resource.version.to_string(),
            any: Some(resource.any.clone()),
        });
        let file = File { owner: self.owner.to_string(), resources: resources.collect() };
        let mut bytes = Vec::with_capacity(MAGIC.len() + CHECKSUM + file.encoded_len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; CHECKSUM]);
        file.encode(&mut bytes).expect("a vector grows");
        let sum = xxh3_64(&bytes[MAGIC.len() + CHECKSUM..]);
        bytes[MAGIC.len()..MAGIC.len() + CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<CachedResource>, CacheError> {
        let Some((head, body)) = bytes.split_at_checked(MAGIC.len() + CHECKSUM) else {
            return Err(CacheError::Damaged("too short"));
        };
        let (magic, sum) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(if magic.starts_with(b"weftcch") {
                CacheError::Version
            } else {
                CacheError::Damaged("not a cache")
            });
        }
        if sum != xxh3_64(body).to_le_bytes() {
            return Err(CacheError::Damaged("the checksum does not fit"));
        }
        let file = File::decode(body).map_err(|_malformed| CacheError::Damaged("the content cannot be read"))?;
        if file.owner != *self.owner {
            return Err(CacheError::Owner(file.owner));
        }
        Ok(file.resources.into_iter().filter_map(Entry::resource).collect())
    }
}

impl Entry {
    /// `None`: of a type that this version does not know; the control plane sends it anew if it still matters.
    fn resource(self) -> Option<CachedResource> {
        let any = self.any?;
        let ty = ResourceType::from_url(&any.type_url)?;
        Some(CachedResource { ty, name: self.name.into(), version: self.version.into(), any })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn resource(name: &str) -> CachedResource {
        let ty = ResourceType::Cluster;
        let any = Any { type_url: ty.url().to_owned(), value: name.as_bytes().to_vec() };
        CachedResource { ty, name: name.into(), version: "0123".into(), any }
    }

    #[test]
    fn round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path(), "weft.local/default/orders");
        assert_eq!(cache.load().unwrap(), []);
        let resources = [resource("a"), resource("b")];
        cache.store(resources.iter()).unwrap();
        assert_eq!(cache.load().unwrap(), resources);
        let mode = std::fs::metadata(directory.path().join("cache.bin")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let cache = Cache::new(Path::new(""), "owner");
        let bytes = cache.encode([resource("a")].iter());
        assert_eq!(cache.decode(&bytes).unwrap(), [resource("a")]);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(cache.decode(&damaged).is_err(), "byte {index}");
        }
        for length in 0..bytes.len() {
            assert!(cache.decode(&bytes[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn of_another_workload_or_version() {
        let bytes = Cache::new(Path::new(""), "one").encode(std::iter::empty());
        let other = Cache::new(Path::new(""), "other");
        assert!(matches!(other.decode(&bytes), Err(CacheError::Owner(owner)) if owner == "one"));
        let mut newer = bytes.clone();
        newer[MAGIC.len() - 1] = b'9';
        assert!(matches!(other.decode(&newer), Err(CacheError::Version)));
    }
}
