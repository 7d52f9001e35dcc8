//! Whether the application takes connections.

use std::{net::SocketAddr, time::Duration};

use tokio::{sync::watch, time::timeout};

use crate::{
    mark,
    settings::{HealthCheck, Settings},
};

/// Between two checks.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two checks until the first success: a starting application is seen soon.
const STARTING: Duration = Duration::from_millis(50);
/// For a connection; the application is on this machine.
const CONNECT: Duration = Duration::from_secs(1);
/// Checks in a row that must time out. A refusal counts at once: nobody listens.
const SLOW_CHECKS: u32 = 3;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It took the connection.
    Accepted,
    /// Nobody listens.
    Refused,
    /// No answer in time.
    Slow,
}

/// Health of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Gets traffic.
    pub healthy: bool,
    /// Why not; empty when healthy.
    pub reason: &'static str,
}

/// Checks → health. No clock.
#[derive(Debug, Default)]
pub struct Judge {
    healthy: bool,
    slow: u32,
}

impl Judge {
    /// Takes one check in.
    pub fn on(&mut self, check: Check) -> Health {
        match check {
            Check::Accepted => (self.healthy, self.slow) = (true, 0),
            Check::Refused => (self.healthy, self.slow) = (false, 0),
            Check::Slow => {
                self.slow += 1;
                self.healthy &= self.slow < SLOW_CHECKS;
            }
        }
        let reason = match (self.healthy, check) {
            (true, _) => "",
            (false, Check::Slow) => "the application does not take connections in time",
            (false, Check::Accepted | Check::Refused) => "the application does not listen",
        };
        Health { healthy: self.healthy, reason }
    }
}

/// Where to look, if at all.
#[must_use]
pub fn target(settings: &Settings) -> Option<SocketAddr> {
    match settings.health_check {
        HealthCheck::Off => None,
        HealthCheck::Tcp => settings.ports.first().map(|port| SocketAddr::new(settings.app_address, port.app_port)),
    }
}

/// Checks for ever; `health` has the latest.
pub async fn run(target: SocketAddr, health: watch::Sender<Health>) {
    let (mut judge, mut period) = (Judge::default(), STARTING);
    loop {
        let check = match timeout(CONNECT, mark::connect(target)).await {
            Ok(Ok(_accepted)) => Check::Accepted,
            Ok(Err(_refused)) => Check::Refused,
            Err(_late) => Check::Slow,
        };
        let now = judge.on(check);
        if now.healthy {
            period = PERIOD;
        }
        health.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                tracing::info!(healthy = now.healthy, reason = now.reason, %target, "application");
                *before = now;
            }
            changed
        });
        tokio::time::sleep(period).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_count_at_once_and_slow_ones_after_three() {
        use Check::{Accepted, Refused, Slow};
        let table: &[(&[Check], bool)] = &[
            (&[Slow], false),
            (&[Refused], false),
            (&[Accepted], true),
            (&[Accepted, Refused], false),
            (&[Accepted, Slow, Slow], true),
            (&[Accepted, Slow, Slow, Slow], false),
            (&[Accepted, Slow, Slow, Accepted, Slow], true),
            (&[Accepted, Slow, Slow, Slow, Accepted], true),
            (&[Refused, Slow], false),
        ];
        for (checks, healthy) in table {
            let mut judge = Judge::default();
            let last = checks.iter().map(|check| judge.on(*check)).last().unwrap();
            assert_eq!(last.healthy, *healthy, "{checks:?}");
            assert_eq!(last.reason.is_empty(), *healthy, "{checks:?}");
        }
    }

    #[tokio::test]
    async fn a_listener_is_healthy_until_it_closes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let (sender, mut health) = watch::channel(Health { healthy: false, reason: "" });
        let checks = tokio::spawn(run(target, sender));
        health.wait_for(|health| health.healthy).await.unwrap();
        drop(listener);
        health.wait_for(|health| !health.healthy).await.unwrap();
        checks.abort();
    }
}
