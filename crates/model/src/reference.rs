//! The reference of all kinds, written from their declarations. `docs/reference.md` holds it; a test compares.

use std::{collections::BTreeSet, fmt::Write, sync::Arc};

use crate::{
    key::Kind,
    kinds::SERVER_SET,
    not_yet::{self, NOT_YET},
    parse,
    period::Period,
    rules::{REGEX_MAX_LEN, REGEX_MAX_SIZE},
    shape::{Choices, Field, Object, Shape},
    source::{MAX_ALIASES, MAX_BYTES, MAX_DEPTH, MAX_NODES},
};

/// An example of the kind; together the examples are a valid set.
pub fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => include_str!("../reference/service.yaml"),
        Kind::EndpointSlice => include_str!("../reference/endpoint-slice.yaml"),
        Kind::HttpRoute => include_str!("../reference/http-route.yaml"),
        Kind::GrpcRoute => include_str!("../reference/grpc-route.yaml"),
        Kind::TrafficPolicy => include_str!("../reference/traffic-policy.yaml"),
        Kind::AccessPolicy => include_str!("../reference/access-policy.yaml"),
        Kind::Mesh => include_str!("../reference/mesh.yaml"),
    }
}

/// The whole reference, in Markdown.
pub fn render() -> String {
    let mut out = introduction();
    let mut described = BTreeSet::new();
    for kind in Kind::ALL {
        self::kind(&mut out, kind, &mut described);
    }
    resolution(&mut out);
    not_supported(&mut out);
    out
}

fn introduction() -> String {
    let kinds: Vec<String> = Kind::ALL
        .into_iter()
        .map(|kind| {
            format!("| [{kind}](#{}) | `{}` | {} |", kind.as_str().to_lowercase(), kind.api_version(), first(kind))
        })
        .collect();
    format!(
        "# Reference of the resources\n\n\
         <!-- Written by weft-model from its types. Change them and run: WEFT_UPDATE=1 cargo test -p weft-model -->\n\n\
         Resources are YAML or JSON, one document or several, as Kubernetes has them; a `v1` `List` counts as its items. \
         A file holds at most {} MiB, {MAX_NODES} values, {MAX_ALIASES} aliases and {MAX_DEPTH} levels. Every error is \
         reported with file, line, column and field. An unknown field is an error, and so is a field that Weft knows but \
         does not obey yet: see [what is not supported yet](#not-supported-yet). Fields marked *Kubernetes* are accepted \
         so that a resource can be used there as well; the mesh has no use for them. What an API server adds is left out \
         on purpose: `status`, and of the metadata {}.\n\n\
         Durations are written `250ms`, `1m30s`, `1.5h` (units `ns us ms s m h d`). Regular expressions have RE2's syntax, \
         must match the whole text, and are limited to {REGEX_MAX_LEN} characters and {} KiB when compiled. Text holds at \
         most 1024 characters where nothing else is said.\n\n\
         | kind | apiVersion | what it is |\n|---|---|---|\n{}\n",
        MAX_BYTES / (1024 * 1024),
        SERVER_SET.map(|field| format!("`{field}`")).join(", "),
        REGEX_MAX_SIZE / 1024,
        kinds.join("\n"),
    )
}

fn first(kind: Kind) -> String {
    let doc = &parse::object(kind).doc;
    doc.split_once(". ").map_or(doc.as_str(), |(first, _)| first).trim_end_matches('.').to_owned()
}

fn kind(out: &mut String, kind: Kind, described: &mut BTreeSet<&'static str>) {
    let object = parse::object(kind);
    write!(out, "\n## {kind}\n\n`apiVersion: {}`, `kind: {kind}`. {}\n\n", kind.api_version(), object.doc)
        .expect("writing to a String");
    write!(out, "```yaml\n{}```\n\n", example(kind)).expect("writing to a String");
    table(out, object);
    let mut queue = nested(object);
    while !queue.is_empty() {
        let object = queue.remove(0);
        if !described.insert(object.name) {
            continue;
        }
        write!(out, "\n### {}\n\n{}\n", object.name, object.doc).expect("writing to a String");
        if !object.fields.is_empty() {
            out.push('\n');
            table(out, &object);
        }
        queue.splice(0..0, nested(&object));
    }
}

fn nested(object: &Object) -> Vec<Arc<Object>> {
    object.fields.iter().filter_map(|field| inner(&field.shape)).collect()
}

fn inner(shape: &Shape) -> Option<Arc<Object>> {
    match shape {
        Shape::Object(object) => Some(object.clone()),
        Shape::List { of, .. } | Shape::Map { of, .. } => inner(of),
        Shape::Text(_)
        | Shape::Bool
        | Shape::Integer { .. }
        | Shape::Period { .. }
        | Shape::Choice(_)
        | Shape::PortOrName => None,
    }
}

fn table(out: &mut String, object: &Object) {
    out.push_str("| field | type and bounds | default | |\n|---|---|---|---|\n");
    for field in &object.fields {
        let default = if field.spec.required { "**required**" } else { field.spec.default };
        let default = if default.is_empty() { "absent" } else { default };
        writeln!(out, "| `{}` | {} | {default} | {} |", field.name, describe(&field.shape), notes(object, field))
            .expect("writing to a String");
    }
}

fn notes(object: &Object, field: &Field) -> String {
    let mut notes = vec![field.doc.clone()];
    if let Some(choices) = choices(&field.shape) {
        let words: Vec<String> =
            choices.words.iter().map(|(word, doc)| format!("`{word}` ({})", doc.trim_end_matches('.'))).collect();
        notes.push(format!("Words: {}.", words.join(", ")));
    }
    if !field.spec.why.is_empty() {
        notes.push(format!("*Why:* {}.", field.spec.why));
    }
    if !field.spec.when.is_empty() {
        notes.push(format!("*Change it when* {}.", field.spec.when));
    }
    if field.spec.informational {
        notes.push("*Kubernetes.*".to_owned());
    }
    if not_yet::field(object.name, &field.name).is_some() {
        notes.push("**Not supported yet.**".to_owned());
    }
    let values: Vec<String> = NOT_YET
        .iter()
        .filter(|entry| entry.object == object.name && entry.field == field.name && !entry.value.is_empty())
        .map(|entry| format!("`{}`", entry.value).replace(&format!("`{}`", not_yet::ANOTHER_NAMESPACE), "another"))
        .collect();
    if !values.is_empty() {
        notes.push(format!("**Not supported yet:** {}.", values.join(", ")));
    }
    notes.join(" ")
}

fn choices(shape: &Shape) -> Option<&Choices> {
    match shape {
        Shape::Choice(choices) => Some(choices),
        Shape::List { of, .. } => choices(of),
        Shape::Text(_)
        | Shape::Bool
        | Shape::Integer { .. }
        | Shape::Period { .. }
        | Shape::PortOrName
        | Shape::Map { .. }
        | Shape::Object(_) => None,
    }
}

fn describe(shape: &Shape) -> String {
    match shape {
        Shape::Text(rule) => rule.describe().to_owned(),
        Shape::Bool => "`true` or `false`".to_owned(),
        Shape::Integer { min, max } => format!("number, {min} to {max}"),
        Shape::Period { min, max } => format!("duration, {} to {}", Period(*min), Period(*max)),
        Shape::Choice(_) => "word".to_owned(),
        Shape::PortOrName => "port number or name".to_owned(),
        Shape::List { of, min: 0, max } => format!("list of at most {max}: {}", describe(of)),
        Shape::List { of, min, max } => format!("list of {min} to {max}: {}", describe(of)),
        Shape::Map { keys, of, max } => format!("map of at most {max}: {} → {}", keys.describe(), describe(of)),
        Shape::Object(object) => format!("[{}](#{})", object.name, object.name.to_lowercase()),
    }
}

fn resolution(out: &mut String) {
    out.push_str(
        "\n## Which value holds\n\n\
         For every field of a TrafficPolicy by itself, the most specific resource that sets it decides:\n\n\
         1. `timeouts` and `retry` of the HTTPRoute's rule\n\
         2. a TrafficPolicy whose target is the rule (`sectionName`)\n\
         3. a TrafficPolicy whose target is the route\n\
         4. a TrafficPolicy whose target is the port (`port` or `sectionName`)\n\
         5. a TrafficPolicy whose target is the Service\n\
         6. `defaults` of the Mesh\n\
         7. the default written in this reference\n\n\
         Two policies that set the same field of the same target are an error that names both.\n\n\
         ## Which rule takes a request\n\n\
         Of all rules of all HTTPRoutes of a Service's port that match: the one with an exact path, then with a regular \
         expression, then with the longest path prefix; then the one that names a method, then the one with more headers, \
         then with more query parameters. Of GRPCRoutes: the one with the longest service name, then the longest method \
         name, then more headers. What is still equal goes by namespace and name of the route, then by the place in it. \
         Two routes that ask for exactly the same requests are an error that names both. The order in which resources are \
         applied never matters. Without a route, the requests go to the Service itself; with one, a request that no rule \
         takes is answered 404 (gRPC: UNIMPLEMENTED).\n",
    );
}

fn not_supported(out: &mut String) {
    out.push_str(
        "\n## Not supported yet\n\nThese are read and then refused with \"not supported yet\", so that nothing is silently \
         ignored.\n\n| field | value | meanwhile |\n|---|---|---|\n",
    );
    for entry in NOT_YET {
        let value = match entry.value {
            "" => "any".to_owned(),
            not_yet::ANOTHER_NAMESPACE => not_yet::ANOTHER_NAMESPACE.to_owned(),
            value => format!("`{value}`"),
        };
        writeln!(out, "| `{}.{}` | {value} | {} |", entry.object, entry.field, entry.instead)
            .expect("writing to a String");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{effective::EffectiveTraffic, kinds, shape::Shaped};

    /// Every object that a kind reaches, by name.
    fn objects() -> Vec<Arc<Object>> {
        let mut all: Vec<Arc<Object>> = Vec::new();
        let mut queue: Vec<Arc<Object>> = Kind::ALL
            .into_iter()
            .filter_map(|kind| match parse::shape(kind) {
                Shape::Object(object) => Some(object.clone()),
                _ => None,
            })
            .collect();
        while let Some(object) = queue.pop() {
            if all.iter().any(|known| known.name == object.name) {
                continue;
            }
            queue.extend(nested(&object));
            all.push(object);
        }
        all
    }

    #[test]
    fn the_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference.md");
        let written = render();
        if std::env::var_os("WEFT_UPDATE").is_some() {
            std::fs::write(path, &written).expect("docs/reference.md can be written");
        }
        let page = std::fs::read_to_string(path).expect("docs/reference.md is there");
        assert!(page == written, "docs/reference.md is stale: run WEFT_UPDATE=1 cargo test -p weft-model");
    }

    #[test]
    fn every_field_is_described() {
        for object in objects() {
            assert!(!object.doc.is_empty(), "{}", object.name);
            for field in &object.fields {
                assert!(!field.doc.is_empty(), "{}.{}", object.name, field.name);
                assert!(!field.spec.required || field.spec.default.is_empty(), "{}.{}", object.name, field.name);
            }
        }
    }

    #[test]
    fn what_is_not_supported_exists() {
        let objects = objects();
        for entry in NOT_YET {
            let object = objects.iter().find(|object| object.name == entry.object);
            let field = object.and_then(|object| object.field(entry.field));
            let field = field.unwrap_or_else(|| panic!("{}.{}", entry.object, entry.field));
            if let (false, Some(choices)) = (entry.value.is_empty(), choices(&field.shape)) {
                assert!(choices.words.iter().any(|(word, _)| *word == entry.value), "{entry:?}");
            }
        }
    }

    #[test]
    fn the_defaults_that_are_written_are_those_that_hold() {
        let Shape::Object(spec) = kinds::TrafficPolicySpec::shape() else { panic!("an object") };
        for leaf in EffectiveTraffic::built_in().leaves() {
            // It is on as soon as the breaker is asked for at all.
            if leaf.field == "circuitBreaker.enabled" {
                continue;
            }
            let mut object = spec.clone();
            let mut written = String::new();
            for step in leaf.field.split('.') {
                let field = object.field(step).unwrap_or_else(|| panic!("{}", leaf.field));
                written = field.spec.default.to_owned();
                if let Some(next) = inner(&field.shape) {
                    object = next;
                }
            }
            assert!(written.starts_with(&leaf.value), "{}: {written:?} is written, {:?} holds", leaf.field, leaf.value);
        }
    }

    /// serde accepts exactly the fields that the shape names: a value of every field goes in and comes out again.
    #[test]
    fn shapes_and_serde_agree() {
        for kind in Kind::ALL {
            let full = full(parse::shape(kind));
            let resource =
                crate::Resource::from_value(kind, full.clone()).unwrap_or_else(|error| panic!("{kind}: {error}"));
            let mut back = serde_json::to_value(&resource).expect("a resource can be written");
            let body = back.as_object_mut().expect("a resource is a map");
            body.remove("apiVersion");
            body.remove("kind");
            assert_eq!(back, full, "{kind}");
        }
    }

    /// A value with every field of a shape set to something that is not its default.
    fn full(shape: &Shape) -> serde_json::Value {
        match shape {
            Shape::Text(_) => "text".into(),
            Shape::Bool => true.into(),
            Shape::Integer { min, max } => (min + 1).min(*max).into(),
            Shape::Period { .. } => "7s".into(),
            Shape::Choice(choices) => choices.words.last().expect("choices have words").0.into(),
            Shape::PortOrName => "name".into(),
            Shape::List { of, .. } => vec![full(of)].into(),
            Shape::Map { of, .. } => serde_json::Map::from_iter([("key".to_owned(), full(of))]).into(),
            Shape::Object(object) => {
                let fields = object.fields.iter().map(|field| (field.name.clone(), full(&field.shape)));
                serde_json::Map::from_iter(fields).into()
            }
        }
    }
}
