//! How an access-log line looks. Query, cookies and authorization never stand in it.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use time::format_description::well_known::Rfc3339;
use weft_telemetry::log::Format;

use super::Entry;
use crate::reason::Reason;

/// A finished request.
pub(super) struct Line<'e> {
    pub entry: &'e Entry,
    pub took: Duration,
}

impl Line<'_> {
    pub fn format(&self, format: Format) -> String {
        let mut line = match format {
            Format::Json => self.json(),
            Format::Text => self.text(),
        };
        line.push('\n');
        line
    }

    fn json(&self) -> String {
        let entry = self.entry;
        let mut out = Json(String::with_capacity(640));
        out.text("time", &self.time());
        out.text("trace", self.trace().as_deref().unwrap_or(""));
        out.text("direction", entry.conn.direction().label());
        out.text("source", &entry.conn.source);
        out.text("source_identity", entry.conn.identity.as_ref().map_or("", |id| id.as_str()));
        out.text("source_address", &entry.conn.peer.to_string());
        out.text("destination", &entry.flow().key.destination);
        out.text("endpoint", &self.endpoint());
        out.text("method", entry.method.as_str());
        out.text("authority", self.authority());
        out.text("path", entry.uri.path());
        out.text("protocol", entry.speaks.get().label());
        out.number("status", u64::from(entry.code.get()));
        if let Some(status) = entry.grpc.get() {
            out.number("grpc_status", u64::from(status));
        }
        if let Some(reason) = entry.reason.get() {
            out.text("reason", reason.code());
            out.text("side", reason.side().as_str());
            out.text("flags", reason.flag());
            out.text("detail", entry.detail.borrow().as_deref().unwrap_or(""));
        }
        out.raw("attempts", &self.tries());
        out.number("bytes_in", entry.received.get());
        out.number("bytes_out", entry.sent.get());
        out.raw("ms", &self.times());
        if let Some(route) = &*entry.route.borrow() {
            out.text("route", &route.name);
            out.number("route_revision", route.revision);
        }
        if let Some(cluster) = entry.cluster.borrow().as_ref().filter(|cluster| !cluster.policy.is_empty()) {
            out.text("policy", &cluster.policy);
        }
        out.text("tls", if entry.mutual.get() { "mutual" } else { "none" });
        if !entry.conn.group.is_empty() {
            out.text("tls_group", entry.conn.group);
        }
        out.0.push('}');
        out.0
    }

    fn text(&self) -> String {
        let entry = self.entry;
        let reason = entry.reason.get();
        let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        format!(
            "{} {} {} -> {} {} \"{} {}{}\" {} {} {} {}B {}B {}ms {}",
            self.time(),
            entry.conn.direction().label(),
            entry.conn.source,
            entry.flow().key.destination,
            dash(self.endpoint()),
            entry.method,
            self.authority().escape_default(),
            entry.uri.path().escape_default(),
            entry.code.get(),
            reason.map_or("-", Reason::code),
            reason.map_or("-", |reason| reason.side().as_str()),
            entry.received.get(),
            entry.sent.get(),
            millis(self.took),
            dash(entry.detail.borrow().as_deref().unwrap_or("").escape_default().to_string()),
        )
    }

    fn time(&self) -> String {
        let began = SystemTime::now() - self.took;
        let formatted = time::OffsetDateTime::from(began).format(&Rfc3339);
        formatted.unwrap_or_else(|_out_of_range| String::from("-"))
    }

    /// The trace id: the second part of the context.
    fn trace(&self) -> Option<String> {
        let context = self.entry.trace.borrow();
        context.as_ref()?.to_str().ok()?.split('-').nth(1).map(str::to_owned)
    }

    fn endpoint(&self) -> String {
        self.entry.tried.get().map(|last| last.endpoint.to_string()).unwrap_or_default()
    }

    fn authority(&self) -> &str {
        let host = self.entry.host.as_ref().and_then(|host| host.to_str().ok());
        self.entry.uri.authority().map(|authority| authority.as_str()).or(host).unwrap_or("")
    }

    fn tries(&self) -> String {
        let mut out = String::from("[");
        for tried in self.entry.before.borrow().iter().chain(&self.entry.tried.get()) {
            if out.len() > 1 {
                out.push(',');
            }
            let mut one = Json(String::new());
            one.text("endpoint", &tried.endpoint.to_string());
            one.text("kind", tried.kind.label());
            one.text("result", tried.result);
            one.raw("ms", &millis(tried.took));
            out.push_str(&one.0);
            out.push('}');
        }
        out.push(']');
        out
    }

    fn times(&self) -> String {
        let entry = self.entry;
        let first = entry.first_byte.get().unwrap_or(self.took);
        let mut out = Json(String::new());
        out.raw("total", &millis(self.took));
        out.raw("first_byte", &millis(first));
        out.raw("sidecar", &millis(first.saturating_sub(entry.waited.get())));
        out.raw("queue", &millis(entry.queued.get()));
        out.raw("connect", &millis(entry.connecting.get()));
        out.0.push('}');
        out.0
    }
}

fn millis(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1000.0)
}

/// A JSON object being written.
struct Json(String);

impl Json {
    fn name(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push('"');
        for char in value.chars() {
            match char {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                control if control.is_control() => {
                    write!(self.0, "\\u{:04x}", u32::from(control)).expect("a String takes everything");
                }
                other => self.0.push(other),
            }
        }
        self.0.push('"');
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        write!(self.0, "{value}").expect("a String takes everything");
    }

    fn raw(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push_str(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_logged_is_json() {
        let mut out = Json(String::new());
        out.text("a", "quote \" back \\ line \n bell \u{7} del \u{7f} ü");
        out.number("b", 7);
        out.raw("c", "[1]");
        out.0.push('}');
        let value: serde_json::Value = serde_json::from_str(&out.0).unwrap();
        assert_eq!(value["a"], "quote \" back \\ line \n bell \u{7} del \u{7f} ü");
        assert_eq!((value["b"].as_u64(), value["c"][0].as_u64()), (Some(7), Some(1)));
    }
}
