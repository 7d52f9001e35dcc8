//! A shape as an OpenAPI v3 schema, structural in the sense of Kubernetes.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{pattern, rules};
use crate::{
    key::Kind,
    not_yet,
    period::Period,
    shape::{Choices, Field, Object, Shape},
};

const DAY: u64 = 24 * 3600;
/// Longest text of a duration.
const PERIOD_LEN: u32 = 32;

/// The schema of a field.
pub(super) fn field(kind: Kind, object: &Object, field: &Field) -> Value {
    if let Some(instead) = not_yet::field(object.name, &field.name) {
        let mut schema = opaque(&field.shape);
        schema["description"] = format!("Not supported yet: {instead}. {}", field.doc).into();
        return schema;
    }
    let mut schema = shape(kind, object, field, &field.shape);
    if field.spec.required && matches!(field.shape, Shape::Text(_)) {
        schema["minLength"] = 1.into();
    }
    if let Some(value) = default(kind, object, field) {
        schema["default"] = value;
    }
    let mut described = Map::from_iter([("description".to_owned(), describe(field).into())]);
    if let Value::Object(rest) = schema {
        described.extend(rest.into_iter().filter(|(key, _)| key != "description"));
    }
    described.into()
}

fn shape(kind: Kind, object: &Object, field: &Field, shape: &Shape) -> Value {
    match shape {
        Shape::Text(rule) => {
            let (expression, most) = pattern::of(*rule);
            let mut schema = json!({ "type": "string", "maxLength": most });
            if let Some(expression) = expression {
                schema["pattern"] = expression.into();
            }
            let rules = rules::of_text(*rule);
            if !rules.is_empty() {
                schema["x-kubernetes-validations"] = rules.into();
            }
            schema
        }
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Integer { min, max } => {
            let format = if *max <= i32::MAX as u64 { "int32" } else { "int64" };
            json!({ "type": "integer", "format": format, "minimum": min, "maximum": max })
        }
        Shape::Period { min, max } => period(*min, *max),
        Shape::Choice(choices) => json!({ "type": "string", "enum": words(object, field, choices) }),
        Shape::PortOrName => json!({ "x-kubernetes-int-or-string": true }),
        Shape::List { of, min, max } => {
            let mut schema = json!({ "type": "array", "maxItems": max });
            if *min > 0 {
                schema["minItems"] = (*min).into();
            }
            schema["items"] = self::shape(kind, object, field, of);
            schema
        }
        Shape::Map { of, max, .. } => {
            let of = self::shape(kind, object, field, of);
            json!({ "type": "object", "maxProperties": max, "additionalProperties": of })
        }
        Shape::Object(inner) => self::object(kind, inner),
    }
}

fn object(kind: Kind, object: &Object) -> Value {
    let mut schema = json!({ "description": object.doc, "type": "object" });
    let required: Vec<Value> =
        object.fields.iter().filter(|field| field.spec.required).map(|field| field.name.as_str().into()).collect();
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    let fields: Map<String, Value> =
        object.fields.iter().map(|entry| (entry.name.clone(), field(kind, object, entry))).collect();
    if !fields.is_empty() {
        schema["properties"] = fields.into();
    }
    let mut all = rules::of(kind, object.name);
    all.extend(object.fields.iter().filter_map(|field| {
        let instead = not_yet::field(object.name, &field.name)?;
        Some(rules::rule(format!("!has(self.{})", field.name), format!("not supported yet; {instead}"), &field.name))
    }));
    if !all.is_empty() {
        schema["x-kubernetes-validations"] = all.into();
    }
    schema
}

/// The schema of a field that is refused anyhow: its type, so that a rule can speak of it.
fn opaque(shape: &Shape) -> Value {
    match shape {
        Shape::Text(_) | Shape::Period { .. } | Shape::Choice(_) => json!({ "type": "string", "maxLength": 1024 }),
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Integer { .. } => json!({ "type": "integer", "format": "int64" }),
        Shape::PortOrName => json!({ "x-kubernetes-int-or-string": true }),
        Shape::List { of, max, .. } => json!({ "type": "array", "maxItems": max, "items": opaque(of) }),
        Shape::Map { .. } | Shape::Object(_) => {
            json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
        }
    }
}

/// The words that are obeyed.
fn words(object: &Object, field: &Field, choices: &Choices) -> Vec<&'static str> {
    let obeyed = |word: &&str| not_yet::value(object.name, &field.name, word).is_none();
    choices.words.iter().map(|(word, _)| *word).filter(obeyed).collect()
}

/// Durations as Weft and Go's `time.ParseDuration` both read them, and whole days by themselves.
fn period(min: Duration, max: Duration) -> Value {
    let days = days(max.as_secs() / DAY);
    let part = r"([0-9]{1,18}(\.[0-9]{1,9})?(ns|us|ms|s|m|h))+";
    let expression = format!("^(0|{part}{days})$");
    // Go knows no days; those that the pattern lets through are within bounds.
    let escape = if days.is_empty() { "" } else { "self.endsWith('d') || " };
    let (min, max) = (Period(min), Period(max));
    let rule = format!("{escape}duration(self) >= duration('{min}') && duration(self) <= duration('{max}')");
    let message = format!("out of bounds: from {min} to {max}");
    json!({
        "type": "string",
        "maxLength": PERIOD_LEN,
        "pattern": expression,
        "x-kubernetes-validations": [{ "rule": rule, "message": message }],
    })
}

/// `|1d`, or as many days as there may be; at most 99.
fn days(most: u64) -> String {
    match (most / 10, most % 10) {
        (0, 0) => String::new(),
        (0, 1) => "|1d".to_owned(),
        (0, ones) => format!("|[1-{ones}]d"),
        (tens, ones) if tens < 10 => {
            let below = if tens > 1 { format!("|[1-{}][0-9]d", tens - 1) } else { String::new() };
            format!("|[1-9]d{below}|{tens}[0-{ones}]d")
        }
        _ => "|[1-9][0-9]?d".to_owned(),
    }
}

/// The default that an API server may fill in: only what inherits from nobody, and only a word, or a nest for one.
fn default(kind: Kind, object: &Object, field: &Field) -> Option<Value> {
    if object.name == "TrafficPolicySpec" {
        return None;
    }
    match &field.shape {
        Shape::Choice(choices) => {
            let word = choices.words.iter().map(|(word, _)| *word).find(|word| *word == field.spec.default)?;
            Some(word.into())
        }
        // So that a default within is filled in.
        Shape::Object(inner) if kind == Kind::Mesh && ["MeshSpec", "Mtls"].contains(&inner.name) => Some(json!({})),
        _ => None,
    }
}

/// What a field is for, its default, why that, and when to change it.
fn describe(field: &Field) -> String {
    let mut out = field.doc.clone();
    let mut add = |lead: &str, text: &str| {
        if !text.is_empty() {
            out.push_str(lead);
            out.push_str(text);
            out.push('.');
        }
    };
    add(" Default: ", field.spec.default);
    add(" Why: ", field.spec.why);
    add(" Change it when: ", field.spec.when);
    if let Shape::Choice(choices) = innermost(&field.shape) {
        let words: Vec<_> = choices.words.iter().map(|(word, doc)| format!("`{word}`: {doc}")).collect();
        out.push(' ');
        out.push_str(&words.join(" "));
    }
    out
}

fn innermost(shape: &Shape) -> &Shape {
    match shape {
        Shape::List { of, .. } => innermost(of),
        other => other,
    }
}
