//! Checks a document against the shape of its kind: every unknown field, wrong type and value out of bounds is reported
//! with its position, and what passes comes out as a value that serde reads without error.

use serde_json::{Map, Value};

use crate::{
    finding::{Finding, Severity},
    key::ResourceKey,
    not_yet,
    period::Period,
    shape::{Choices, Field, Object, Shape},
    source::{Entry, Node, NodeValue, Position},
};

/// Most findings of one document.
const MAX_FINDINGS: usize = 100;

/// Collects the findings of one document.
pub(crate) struct Report<'a> {
    pub(crate) file: &'a str,
    pub(crate) root: &'a Node,
    /// Path of the document's root, as `items[3]` of a List; usually empty.
    pub(crate) prefix: String,
    pub(crate) resource: Option<ResourceKey>,
    pub(crate) findings: Vec<Finding>,
}

impl Report<'_> {
    /// An error about a field, at the place where it stands.
    pub(crate) fn error(&mut self, field: &str, message: impl Into<String>, hint: impl Into<String>) {
        let position = self.root.locate(field);
        self.error_at(position, field, message, hint);
    }

    pub(crate) fn error_at(
        &mut self,
        position: Position,
        field: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.findings.len() >= MAX_FINDINGS {
            return;
        }
        let dot = if self.prefix.is_empty() || field.is_empty() { "" } else { "." };
        self.findings.push(Finding {
            severity: Severity::Error,
            file: self.file.to_owned(),
            line: position.line,
            column: position.column,
            field: format!("{}{dot}{field}", self.prefix),
            resource: self.resource.clone(),
            message: message.into(),
            hint: hint.into(),
        });
    }

    /// Checks `node`, which stands at `path`, against `shape`.
    pub(crate) fn value(&mut self, path: &str, node: &Node, shape: &Shape) -> Option<Value> {
        match shape {
            Shape::Text(rule) => {
                let text = self.scalar(path, node, "text")?;
                match rule.check(text) {
                    Ok(()) => Some(text.into()),
                    Err(message) => self.refuse(path, node, message, ""),
                }
            }
            Shape::Bool => match self.scalar(path, node, "`true` or `false`")? {
                "true" => Some(true.into()),
                "false" => Some(false.into()),
                other => self.refuse(path, node, format!("`{other}` is neither `true` nor `false`"), ""),
            },
            Shape::Integer { min, max } => self.integer(path, node, *min, *max),
            Shape::Period { min, max } => {
                let text = self.scalar(path, node, "a duration")?;
                match Period::parse(text) {
                    Ok(period) if period.get() < *min || period.get() > *max => {
                        let bounds = format!("from {} to {}", Period(*min), Period(*max));
                        self.refuse(path, node, format!("`{text}` is out of bounds"), bounds)
                    }
                    Ok(period) => Some(period.to_string().into()),
                    Err(message) => {
                        let whole = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                        let example = if whole { format!("write `{text}s` for seconds") } else { String::new() };
                        let hint = if example.is_empty() { "such as `250ms` or `1m30s`".into() } else { example };
                        self.refuse(path, node, message, hint)
                    }
                }
            }
            Shape::Choice(choices) => self.choice(path, node, choices),
            Shape::PortOrName => self.port_or_name(path, node),
            Shape::List { of, min, max } => self.list(path, node, of, *min, *max),
            Shape::Map { keys, of, max } => {
                let entries = self.entries(path, node)?;
                if entries.len() > *max {
                    return self.refuse(path, node, format!("{} entries, more than {max}", entries.len()), "");
                }
                let mut out = Map::new();
                for entry in entries {
                    let path = format!("{path}[\"{}\"]", entry.key);
                    if let Err(message) = keys.check(&entry.key) {
                        self.error_at(entry.position, &path, message, "");
                    }
                    if let Some(value) = self.value(&path, &entry.value, of) {
                        out.insert(entry.key.to_string(), value);
                    }
                }
                Some(out.into())
            }
            Shape::Object(object) => self.object(path, node, object),
        }
    }

    /// Checks an object: every field it may have, none that it may not.
    pub(crate) fn object(&mut self, path: &str, node: &Node, object: &Object) -> Option<Value> {
        let entries = self.entries(path, node)?;
        let mut out = Map::new();
        for entry in entries {
            let at = join(path, &entry.key);
            match object.field(&entry.key) {
                None => self.unknown(&at, entry, entries, object),
                Some(field) => {
                    if let Some(value) = self.field(&at, entry, object, field) {
                        out.insert(field.name.clone(), value);
                    }
                }
            }
        }
        for field in object.fields.iter().filter(|field| field.spec.required) {
            let present = node.get(&field.name).is_some_and(|value| value.value != NodeValue::Null);
            if !present {
                let message = format!("`{}` is missing", field.name);
                self.error_at(self.root.locate(path), &join(path, &field.name), message, hint_of(field));
            }
        }
        Some(out.into())
    }

    fn field(&mut self, at: &str, entry: &Entry, object: &Object, field: &Field) -> Option<Value> {
        if entry.value.value == NodeValue::Null {
            return None;
        }
        if let Some(reason) = not_yet::field(object.name, &field.name) {
            let message = format!("not supported yet: `{}`; {reason}", field.name);
            self.error_at(entry.position, at, message, "remove it");
            return None;
        }
        let value = self.value(at, &entry.value, &field.shape)?;
        if field.spec.required && value.as_str() == Some("") {
            self.error_at(entry.value.position, at, "must not be empty", "");
        }
        for word in words(&value) {
            if let Some(reason) = not_yet::value(object.name, &field.name, &word) {
                let message = format!("not supported yet: `{}: {word}`; {reason}", field.name);
                self.error_at(entry.value.position, at, message, "");
            }
        }
        Some(value)
    }

    fn unknown(&mut self, at: &str, entry: &Entry, siblings: &[Entry], object: &Object) {
        let set = |name: &&str| siblings.iter().any(|sibling| &*sibling.key == *name);
        let names = object.fields.iter().map(|field| field.name.as_str()).filter(|name| !set(name));
        let hint = match nearest(&entry.key, names) {
            Some(name) => format!("did you mean `{name}`?"),
            None if object.fields.is_empty() => "it has no settings".to_owned(),
            None => {
                let names: Vec<_> = object.fields.iter().map(|field| format!("`{}`", field.name)).collect();
                format!("the fields are {}", names.join(", "))
            }
        };
        self.error_at(entry.position, at, format!("unknown field `{}`", entry.key), hint);
    }

    fn integer(&mut self, path: &str, node: &Node, min: u64, max: u64) -> Option<Value> {
        let text = self.scalar(path, node, "a whole number")?;
        match text.parse::<i128>() {
            Ok(number) if i128::from(min) <= number && number <= i128::from(max) => {
                u64::try_from(number).ok().map(Value::from)
            }
            Ok(_) => self.refuse(path, node, format!("{text} is out of bounds"), format!("from {min} to {max}")),
            Err(_) => {
                self.refuse(path, node, format!("`{text}` is not a whole number"), format!("from {min} to {max}"))
            }
        }
    }

    fn choice(&mut self, path: &str, node: &Node, choices: &Choices) -> Option<Value> {
        let text = self.scalar(path, node, "one word")?;
        if choices.words.iter().any(|(word, _)| *word == text) {
            return Some(text.into());
        }
        let words = choices.words.iter().map(|(word, _)| *word);
        let all: Vec<_> = words.clone().map(|word| format!("`{word}`")).collect();
        let hint = match nearest(text, words) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("one of {}", all.join(", ")),
        };
        self.refuse(path, node, format!("`{text}` is not allowed here"), hint)
    }

    fn port_or_name(&mut self, path: &str, node: &Node) -> Option<Value> {
        let quoted = matches!(node.value, NodeValue::Scalar { quoted: true, .. });
        let text = self.scalar(path, node, "a port number or name")?;
        if !quoted && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return self.integer(path, node, 1, u64::from(u16::MAX));
        }
        match crate::rules::TextRule::PortName.check(text) {
            Ok(()) => Some(text.into()),
            Err(message) => self.refuse(path, node, message, ""),
        }
    }

    fn list(&mut self, path: &str, node: &Node, of: &Shape, min: usize, max: usize) -> Option<Value> {
        let NodeValue::List(items) = &node.value else {
            return self.refuse(path, node, format!("a list is needed, not {}", node.describe()), "");
        };
        if items.len() > max {
            return self.refuse(path, node, format!("{} entries, more than {max}", items.len()), "");
        }
        if items.len() < min {
            return self.refuse(path, node, format!("at least {min} needed"), "");
        }
        let mut out = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            out.extend(self.value(&format!("{path}[{index}]"), item, of));
        }
        Some(out.into())
    }

    fn entries<'n>(&mut self, path: &str, node: &'n Node) -> Option<&'n [Entry]> {
        match &node.value {
            NodeValue::Map(entries) => Some(entries),
            NodeValue::Null | NodeValue::Scalar { .. } | NodeValue::List(_) => {
                self.refuse(path, node, format!("a map is needed, not {}", node.describe()), "").map(|_: Value| &[][..])
            }
        }
    }

    fn scalar<'n>(&mut self, path: &str, node: &'n Node, wanted: &str) -> Option<&'n str> {
        if let Some(text) = node.text() {
            return Some(text);
        }
        self.refuse(path, node, format!("{wanted} is needed, not {}", node.describe()), "").map(|_: Value| "")
    }

    /// An error at the value itself.
    fn refuse<T>(&mut self, path: &str, node: &Node, message: String, hint: impl Into<String>) -> Option<T> {
        self.error_at(node.position, path, message, hint);
        None
    }
}

/// `spec` + `rules` → `spec.rules`.
pub(crate) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(word) => vec![word.clone()],
        Value::Bool(word) => vec![word.to_string()],
        Value::Array(items) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        Value::Null | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}

fn hint_of(field: &Field) -> String {
    field.doc.split_inclusive(". ").next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

/// The word that was probably meant: a few letters differ, or it is a part of one.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let known: Vec<&str> = known.collect();
    let lower = word.to_ascii_lowercase();
    // One letter of two is another word, not a misspelt one.
    let limit = if lower.len() <= 2 { 0 } else { 1 + lower.chars().count() / 4 };
    let near = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance);
    let part = |candidate: &&str| {
        let candidate = candidate.to_ascii_lowercase();
        lower.len() >= 4
            && (candidate.contains(&lower) || candidate.starts_with(&lower[..lower.floor_char_boundary(5)]))
    };
    near.map(|(_, candidate)| *candidate)
        .or_else(|| known.iter().copied().filter(part).min_by_key(|candidate| candidate.len()))
}
