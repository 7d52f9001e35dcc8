//! Structured logs on standard error, whose filter can be changed while the process runs.

use std::{fmt, str::FromStr};

use thiserror::Error;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::ParseError, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is not a log format; use `text` or `json`")),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why logging did not start, or its filter was not changed.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("log filter `{filter}`: {source}; write a level (`info`) or targets (`info,h2=warn`)")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Another subscriber is in place.
    #[error("logging has already been set up in this process")]
    AlreadySet,
    /// The subscriber is gone.
    #[error("logging is no longer active")]
    Gone,
}

/// Changes the filter of a running process.
#[derive(Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl fmt::Debug for LogHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LogHandle({})", self.filter())
    }
}

impl LogHandle {
    /// A handle that belongs to no subscriber: changes are refused with [`LogError::Gone`].
    #[must_use]
    pub fn detached() -> Self {
        let (_, handle) = reload::Layer::<EnvFilter, Registry>::new(EnvFilter::new("off"));
        Self(handle)
    }

    /// Puts `filter` in place of the current one.
    ///
    /// # Errors
    /// [`LogError::Filter`] when it cannot be read; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.0.reload(parse(filter)?).map_err(|_gone| LogError::Gone)
    }

    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_else(|_gone| "off".to_owned())
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// When the filter cannot be read, or logging is set up already.
pub fn init(filter: &str, format: Format) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_set| LogError::AlreadySet)?;
    Ok(LogHandle(handle))
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("text".parse(), Ok(Format::Text));
        assert!("xml".parse::<Format>().unwrap_err().contains("`text` or `json`"));
    }

    #[test]
    fn a_bad_filter_leaves_the_old_one() {
        let handle = init("info,h2=warn", Format::Json).unwrap();
        assert!(handle.set("info,=[").is_err());
        assert!(handle.filter().contains("h2=warn"), "{}", handle.filter());
        handle.set("debug").unwrap();
        assert_eq!(handle.filter(), "debug");
        assert!(matches!(init("info", Format::Text), Err(LogError::AlreadySet)));
    }

    #[test]
    fn a_detached_handle_refuses() {
        assert!(matches!(LogHandle::detached().set("info"), Err(LogError::Gone)));
    }
}
