//! Findings: what is wrong with the input, and where.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::key::ResourceKey;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The set cannot be applied.
    #[default]
    Error,
    /// It can, but does perhaps not do what was meant.
    Warning,
}

/// Something wrong with the input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File as the user named it; empty when the resource comes from the store.
    pub file: String,
    /// Line, from 1; 0 when unknown.
    pub line: u32,
    /// Column in characters, from 1; 0 when unknown.
    pub column: u32,
    /// Field, as `spec.rules[0].backendRefs[1].port`; empty for the document as a whole.
    pub field: String,
    /// The resource, as far as it could be read.
    pub resource: Option<ResourceKey>,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl Finding {
    /// Whether it keeps the set from being applied.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `orders.yaml:7:5: spec.rules[0].nam: unknown field (did you mean `name`?)`
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if let (true, Some(resource)) = (self.file.is_empty(), &self.resource) {
            write!(f, "{resource}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Finding {}
