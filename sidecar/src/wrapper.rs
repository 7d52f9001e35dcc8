//! `run -- COMMAND…`: the application as a child process.
//!
//! The child gets the sidecar's environment, without the join token, and with:
//!
//! | variable | value |
//! |---|---|
//! | `HTTP_PROXY`, `http_proxy` | `http://` and the outbound port: HTTP libraries call the mesh without further ado |
//! | `NO_PROXY`, `no_proxy` | what was there, and this machine's own names |
//! | `WEFT_OUTBOUND` | address of the outbound port |
//! | `HOME` | its user's, when it has one of its own and HOME was the sidecar's |
//! | `WEFT_UPSTREAM_NAME_NAMESPACE_PORT` | address of the local port for each `--upstream` |
//!
//! In transparent mode there are no proxy variables.
//!
//! As process 1 of a container it takes in orphans, too, so that none stays a zombie.

mod privileges;

use std::{
    ffi::{OsStr, OsString},
    io,
    net::SocketAddr,
    process::Command,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

pub use self::privileges::Privileges;
use crate::settings::JOIN_TOKEN;

/// As shells do: the command was not found, or could not be run.
pub const NOT_FOUND: u8 = 127;
/// As shells do.
pub const NOT_RUNNABLE: u8 = 126;

/// A running application. Dropping it leaves the process alone.
#[derive(Debug, Clone)]
pub struct Application {
    pid: Pid,
    status: watch::Receiver<Option<u8>>,
}

impl Application {
    /// Starts a command. `privileges`: as whom, and what it may do. `environment`: from [`environment`]. `orphans`: this is
    /// process 1, others' children are taken in.
    ///
    /// # Errors
    /// When it cannot be started; [`status_of`] has the exit status for that.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        command: &[OsString],
        privileges: &Privileges,
        environment: &[(String, OsString)],
        orphans: bool,
    ) -> io::Result<Self> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        // Installed before there is a child, or its end might be missed.
        let mut ends = signal(SignalKind::child())?;
        let mut child = Command::new(program);
        child.args(arguments).env_remove(JOIN_TOKEN).envs(environment.iter().map(|(name, value)| (name, value)));
        let child = privileges.spawn(&mut child)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id is positive and 31 bits long"));
        let (sender, status) = watch::channel(None);
        // Ends with the application; nothing else owns its status.
        tokio::spawn(async move {
            let status = loop {
                if let Some(status) = reap(pid, orphans) {
                    break status;
                }
                ends.recv().await;
            };
            sender.send_replace(Some(status));
            while orphans && ends.recv().await.is_some() {
                reap(pid, orphans);
            }
        });
        Ok(Self { pid, status })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Passes a signal on. Nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.status.borrow().is_some() {
            return;
        }
        if let Err(error) = kill(self.pid, signal) {
            tracing::warn!(%error, %signal, "the signal could not be passed on to the application");
        }
    }

    /// Waits for its end: its exit status, or 128 + n when signal n ended it.
    pub async fn ended(&self) -> u8 {
        let mut status = self.status.clone();
        let ended = status.wait_for(Option::is_some).await;
        ended.ok().and_then(|status| *status).unwrap_or(NOT_RUNNABLE)
    }
}

/// Takes in what has ended; the application's status, if it was among it.
fn reap(application: Pid, orphans: bool) -> Option<u8> {
    let whom = if orphans { None } else { Some(application) };
    loop {
        match waitpid(whom, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == application => {
                return Some(u8::try_from(code & 0xff).unwrap_or(1));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == application => {
                return Some(128 + u8::try_from(signal as i32).unwrap_or(0));
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// The exit status for a command that could not be started.
#[must_use]
pub fn status_of(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE }
}

/// What the application's environment has beyond the sidecar's. `upstreams`: canonical authority and address of the local
/// port. `no_proxy`: as it was.
#[must_use]
pub fn environment(
    outbound: SocketAddr,
    upstreams: &[(Box<str>, SocketAddr)],
    no_proxy: Option<&OsStr>,
) -> Vec<(String, OsString)> {
    let outbound = reachable(outbound);
    let proxy = OsString::from(format!("http://{outbound}"));
    let mut without = no_proxy.map(OsStr::to_os_string).unwrap_or_default();
    if !without.is_empty() {
        without.push(",");
    }
    without.push("localhost,127.0.0.1,::1");
    let mut environment = vec![
        ("HTTP_PROXY".to_owned(), proxy.clone()),
        ("http_proxy".to_owned(), proxy),
        ("NO_PROXY".to_owned(), without.clone()),
        ("no_proxy".to_owned(), without),
        ("WEFT_OUTBOUND".to_owned(), outbound.to_string().into()),
    ];
    environment.extend(upstreams.iter().map(|(authority, address)| {
        let name: String =
            authority.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        (format!("WEFT_UPSTREAM_{name}"), reachable(*address).to_string().into())
    }));
    environment
}

/// An address that is bound to all is called by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => std::net::Ipv4Addr::LOCALHOST.into(),
        _ => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Application {
        let command = ["sh", "-c", script].map(OsString::from);
        Application::start(&command, &Privileges::default(), &[("GREETING".to_owned(), "hello".into())], false).unwrap()
    }

    #[tokio::test]
    async fn exit_statuses() {
        for (script, status) in [
            ("exit 0", 0),
            ("exit 3", 3),
            ("exit 255", 255),
            ("kill -9 $$", 137),
            ("kill -TERM $$", 143),
            ("test \"$GREETING\" = hello", 0),
        ] {
            assert_eq!(sh(script).ended().await, status, "{script}");
        }
    }

    #[tokio::test]
    async fn signals_are_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready");
        let application = sh(&format!("trap 'exit 42' USR1; touch {}; while :; do sleep 0.01; done", ready.display()));
        while !ready.exists() {
            tokio::task::yield_now().await;
        }
        application.signal(Signal::SIGUSR1);
        assert_eq!(application.ended().await, 42);
        application.signal(Signal::SIGUSR1);
    }

    #[tokio::test]
    async fn a_command_that_is_not_there() {
        let error =
            Application::start(&["/nonexistent/program".into()], &Privileges::default(), &[], false).unwrap_err();
        assert_eq!(status_of(&error), NOT_FOUND);
        let error = Application::start(&["/etc/passwd".into()], &Privileges::default(), &[], false).unwrap_err();
        assert_eq!(status_of(&error), NOT_RUNNABLE);
    }

    #[test]
    fn the_environment_leads_to_the_mesh() {
        let upstreams = [("inventory.default:9000".into(), "127.0.0.1:41000".parse().unwrap())];
        let environment = environment("0.0.0.0:15001".parse().unwrap(), &upstreams, Some(OsStr::new("example.com")));
        let value = |name: &str| environment.iter().find(|(key, _)| key == name).unwrap().1.to_str().unwrap();
        assert_eq!(value("HTTP_PROXY"), "http://127.0.0.1:15001");
        assert_eq!(value("no_proxy"), "example.com,localhost,127.0.0.1,::1");
        assert_eq!(value("WEFT_OUTBOUND"), "127.0.0.1:15001");
        assert_eq!(value("WEFT_UPSTREAM_INVENTORY_DEFAULT_9000"), "127.0.0.1:41000");
    }
}
