//! What was found out, for people and for scripts.

use serde::Serialize;

/// How one finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Seen to be as it should.
    Pass,
    /// Works, and somebody should know.
    Warn,
    /// Not as it should be, or not proved.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it stands.
    pub level: Level,
    /// What is so.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next: String,
}

impl Finding {
    /// As it should be.
    pub fn pass(what: impl Into<String>) -> Self {
        Self { level: Level::Pass, what: what.into(), next: String::new() }
    }

    /// Somebody should know, and what they can do.
    pub fn warn(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Warn, what: what.into(), next: next.into() }
    }

    /// Not as it should be, and what to do.
    pub fn fail(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Fail, what: what.into(), next: next.into() }
    }
}

/// One call with a proved identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// `namespace/service/instance`.
    pub workload: String,
    /// Port of the service.
    pub port: u16,
    /// Where its sidecar listens.
    pub address: String,
    /// Identity that this command proved.
    pub caller: String,
    /// Identity that the callee proved.
    pub callee: String,
    /// As in `TLS 1.3`.
    pub tls: String,
    /// Key exchange, as in `X25519MLKEM768`.
    pub group: String,
    /// Cipher suite.
    pub cipher: String,
    /// What came back, when a request was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its version.
    pub control_plane: String,
    /// Where the log stands.
    pub revision: u64,
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Calls that reached a sidecar.
    pub calls: Vec<Call>,
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many stand so.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "control plane {}  revision {}  trust domain {}\n",
            self.control_plane, self.revision, self.trust_domain
        );
        for call in &self.calls {
            text.push_str(&format!("\ncall to port {} of {} at {}\n", call.port, call.workload, call.address));
            let tls = format!("{}, {}, {}", call.tls, call.group, call.cipher);
            for (name, value) in [("caller", &call.caller), ("callee", &call.callee), ("TLS", &tls)] {
                text.push_str(&format!("  {name:<7} {value}\n"));
            }
            text.extend(call.answer.iter().map(|answer| format!("  {:<7} {answer}\n", "answer")));
        }
        text.push('\n');
        for finding in &self.findings {
            let level = match finding.level {
                Level::Pass => "pass",
                Level::Warn => "WARN",
                Level::Fail => "FAIL",
            };
            text.push_str(&format!("{level}  {}\n", finding.what));
            text.extend(finding.next.lines().map(|line| format!("      {line}\n")));
        }
        let (pass, warn, fail) = (self.count(Level::Pass), self.count(Level::Warn), self.count(Level::Fail));
        text.push_str(&format!("\npassed {pass}, warnings {warn}, failed {fail}\n"));
        text
    }
}
