//! `wait`: returns when the sidecar of this machine is ready, for those who start an application beside it.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// One question.
const ANSWER: Duration = Duration::from_secs(1);
/// Most bytes of an answer: a line that says what is missing.
const LONGEST: u64 = 4096;

/// It is not ready.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no sidecar is ready at {address} after {after:?}: {last}; is it started, with this --metrics address?")]
pub struct NotReady {
    address: SocketAddr,
    after: Duration,
    last: String,
}

/// Asks `/ready` at the metrics port until the answer is 200. An address of all interfaces stands for loopback.
/// # Errors
/// [`NotReady`], with the last answer, after `patience`.
pub fn until_ready(metrics: SocketAddr, patience: Duration) -> Result<(), NotReady> {
    let address = SocketAddr::new(reached_at(metrics.ip()), metrics.port());
    let began = Instant::now();
    loop {
        let last = match ask(address) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => return Ok(()),
            Ok(answer) => answer.split_once("\r\n\r\n").map_or("no HTTP", |(_, said)| said.trim()).to_owned(),
            Err(error) => error.to_string(),
        };
        if began.elapsed() >= patience {
            return Err(NotReady { address, after: patience, last });
        }
        thread::sleep(PAUSE);
    }
}

fn reached_at(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    // In one write, and so in one segment.
    let question = format!("GET /ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Gives these answers, one to each question, and then nobody is there.
    fn answers(all: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answer in all {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 512];
                let len = stream.read(&mut asked).unwrap();
                assert!(asked[..len].starts_with(b"GET /ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    const NOT_YET: &str =
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 30\r\n\r\nnot ready: no certificate yet\n";
    const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";

    #[test]
    fn it_waits_until_the_answer_is_yes() {
        let address = answers(&[NOT_YET, NOT_YET, READY]);
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        assert_eq!(until_ready(everywhere, Duration::from_secs(30)), Ok(()));
    }

    #[test]
    fn it_says_what_is_missing() {
        let error = until_ready(answers(&[NOT_YET]), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("not ready: no certificate yet"), "{error}");
        let error = until_ready(answers(&[]), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("--metrics"), "{error}");
    }
}
