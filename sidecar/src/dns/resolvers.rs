//! The resolvers and search domains of this host: `resolv.conf`, read at start and when it changes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What the C library reads.
const FILE: &str = "/etc/resolv.conf";
/// What systemd-resolved asks. Its own address (127.0.0.53) leads to a process whose questions would be redirected to
/// this server again.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Addresses of systemd-resolved.
const RESOLVED: [[u8; 4]; 2] = [[127, 0, 0, 53], [127, 0, 0, 54]];
/// More are not asked, as by the C library.
const MOST_SERVERS: usize = 3;
/// More are not looked at.
const MOST_DOMAINS: usize = 32;
/// A file beyond this size is not one.
const MOST_BYTES: u64 = 64 * 1024;

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// In order.
    pub servers: Vec<SocketAddr>,
    /// In lower case, without dots at their ends.
    pub search: Vec<String>,
}

/// Reads a file's text. What cannot be read of it is left out, as the C library does.
pub fn parse(text: &str) -> Resolvers {
    let mut all = Resolvers::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") if all.servers.len() < MOST_SERVERS => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                all.servers.extend(address.map(|ip| SocketAddr::new(ip, 53)));
            }
            // The last one holds.
            Some("search" | "domain") => {
                let domains = words.map(|domain| domain.trim_matches('.').to_ascii_lowercase());
                all.search = domains.filter(|domain| !domain.is_empty()).take(MOST_DOMAINS).collect();
            }
            _ => {}
        }
    }
    all
}

/// Follows the files.
#[derive(Debug)]
pub struct Watched {
    file: PathBuf,
    behind: PathBuf,
    seen: [Option<Stamp>; 2],
}

type Stamp = (SystemTime, u64);

impl Default for Watched {
    fn default() -> Self {
        Self::at(FILE.into(), BEHIND_RESOLVED.into())
    }
}

impl Watched {
    fn at(file: PathBuf, behind: PathBuf) -> Self {
        Self { file, behind, seen: [None; 2] }
    }

    /// What the files say, if they were changed since the last look. `None`: nothing new, or nothing to be used.
    pub fn changed(&mut self) -> Option<Resolvers> {
        let now = [stamp(&self.file), stamp(&self.behind)];
        if now[0].is_none() || now == self.seen {
            return None;
        }
        self.seen = now;
        match self.read() {
            Ok(resolvers) => Some(resolvers),
            Err(error) => {
                tracing::warn!(path = %self.file.display(), %error, "the resolvers stay as they were");
                None
            }
        }
    }

    fn read(&self) -> std::io::Result<Resolvers> {
        let mut resolvers = parse(&text(&self.file)?);
        let of_resolved = |server: &SocketAddr| RESOLVED.iter().any(|own| server.ip() == IpAddr::from(*own));
        if !resolvers.servers.is_empty()
            && resolvers.servers.iter().all(of_resolved)
            && let Ok(behind) = text(&self.behind)
        {
            let behind = parse(&behind);
            if !behind.servers.is_empty() {
                resolvers.servers = behind.servers;
            }
        }
        Ok(resolvers)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len()))
}

fn text(path: &Path) -> std::io::Result<String> {
    if fs::metadata(path)?.len() > MOST_BYTES {
        return Err(std::io::Error::other("longer than 64 KiB"));
    }
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_as_the_c_library_reads_it() {
        let text = "# made by hand\nnameserver 10.0.0.2\nnameserver fd00::2 ; second\nnameserver nonsense\n\
                    domain old.example\nsearch Shop.svc.cluster.local. svc.cluster.local\noptions ndots:5\n\
                    nameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        let read = parse(text);
        let servers = ["10.0.0.2:53", "[fd00::2]:53", "10.0.0.3:53"].map(|text| text.parse().unwrap());
        assert_eq!(read.servers, servers);
        assert_eq!(read.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(parse("\0\u{fffd}\nnameserver"), Resolvers::default());
    }

    #[test]
    fn a_change_is_seen_once_and_resolved_is_stepped_over() {
        let directory = tempfile::tempdir().unwrap();
        let [file, behind] = ["resolv.conf", "behind"].map(|name| directory.path().join(name));
        let mut watched = Watched::at(file.clone(), behind.clone());
        assert_eq!(watched.changed(), None, "no file");
        fs::write(&file, "nameserver 127.0.0.53\nsearch example.com\n").unwrap();
        assert_eq!(watched.changed().unwrap().servers, ["127.0.0.53:53".parse().unwrap()]);
        assert_eq!(watched.changed(), None);
        fs::write(&behind, "nameserver 192.0.2.1\n").unwrap();
        let now = watched.changed().unwrap();
        assert_eq!((now.servers, now.search), (vec!["192.0.2.1:53".parse().unwrap()], vec!["example.com".to_owned()]));
        fs::remove_file(&file).unwrap();
        assert_eq!(watched.changed(), None, "what was known stays");
    }
}
