//! What an API server does with a custom resource, as far as its definition says: defaults, schema, rules.

use std::{collections::HashMap, sync::Arc};

use cel::{Context, Program, extractors::This};
use serde_json::Value;
use weft_model::{Kind, crd};

/// Definitions, ready to admit documents.
pub struct Server(HashMap<&'static str, (Value, jsonschema::Validator)>);

impl Server {
    /// With the definitions of all kinds of Weft.
    pub fn new() -> Self {
        let schemas = crd::KINDS.into_iter().map(|kind: Kind| {
            let definition = crd::definition(kind).expect("a kind of Weft");
            let schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
            let mut strict = schema.clone();
            // The API server's own affair.
            strict["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = true.into();
            forbid_unknown(&mut strict);
            let validator = jsonschema::draft4::options().build(&strict).expect("a JSON Schema");
            (kind.as_str(), (schema, validator))
        });
        Self(schemas.collect())
    }

    /// The document with its defaults, and everything that is wrong with it.
    pub fn admit(&self, mut document: Value) -> (Value, Vec<String>) {
        let kind = document["kind"].as_str().expect("a kind").to_owned();
        let (schema, validator) = &self.0[kind.as_str()];
        drop_nulls(&mut document);
        fill_in(schema, &mut document);
        let mut found: Vec<String> =
            validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
        // Rules see only what the schema has let through.
        if found.is_empty() {
            rules("", schema, &document, &mut found);
        }
        (document, found)
    }
}

/// A field that is set to nothing is not set.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// As with `--validate=strict`, which is what kubectl asks for.
fn forbid_unknown(schema: &mut Value) {
    let Some(node) = schema.as_object_mut() else { return };
    let open = node.contains_key("additionalProperties") || node.contains_key("x-kubernetes-preserve-unknown-fields");
    if node.get("type").is_some_and(|kind| kind == "object") && !open {
        node.insert("additionalProperties".to_owned(), false.into());
    }
    for key in ["items", "additionalProperties"] {
        node.get_mut(key).map(forbid_unknown);
    }
    if let Some(Value::Object(fields)) = node.get_mut("properties") {
        fields.values_mut().for_each(forbid_unknown);
    }
}

fn fill_in(schema: &Value, value: &mut Value) {
    if let (Some(fields), Some(object)) = (schema["properties"].as_object(), value.as_object_mut()) {
        for (name, field) in fields {
            if let Some(default) = field.get("default")
                && !object.contains_key(name)
            {
                object.insert(name.clone(), default.clone());
            }
            if let Some(value) = object.get_mut(name) {
                fill_in(field, value);
            }
        }
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array_mut()) {
        list.iter_mut().for_each(|value| fill_in(items, value));
    }
}

/// Evaluates the rules of a schema and of everything below it.
fn rules(path: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().expect("a rule");
        let message = rule["message"].as_str().expect("a message");
        let field = rule["fieldPath"].as_str().unwrap_or_default();
        match evaluate(text, value) {
            Ok(true) => {}
            Ok(false) => found.push(format!("{path}{field}: {message}")),
            Err(error) => panic!("{path}: {text}: {error}"),
        }
    }
    if let (Some(fields), Some(object)) = (schema["properties"].as_object(), value.as_object()) {
        for (name, value) in object {
            if let Some(field) = fields.get(name) {
                rules(&format!("{path}.{name}"), field, value, found);
            }
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        rules(&format!("{path}[{index}]"), &schema["items"], value, found);
    }
}

fn evaluate(rule: &str, value: &Value) -> Result<bool, String> {
    let program = Program::compile(rule).map_err(|error| error.to_string())?;
    let mut context = Context::default();
    context.add_variable("self", value.clone()).map_err(|error| error.to_string())?;
    // Of Kubernetes' libraries for CEL.
    let lower = |This(text): This<Arc<String>>| text.to_ascii_lowercase();
    context.add_function("lowerAscii", lower).map_err(|error| error.to_string())?;
    match program.execute(&context).map_err(|error| error.to_string())? {
        cel::Value::Bool(holds) => Ok(holds),
        other => Err(format!("{other:?} instead of true or false")),
    }
}
