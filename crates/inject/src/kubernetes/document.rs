//! A stream of YAML documents: cut into pieces, read with positions, written in canonical form. What is not touched is
//! handed on byte for byte.

use serde_json::{Map, Number, Value};
use weft_model::yaml::{Node, NodeValue, Position, read as read_yaml};

use super::{Problem, yaml};

/// One document of a stream.
#[derive(Debug)]
pub(super) struct Piece {
    /// The line that begins it, with its line break; empty for the first of a stream that has none.
    marker: String,
    /// The text below the marker.
    text: String,
    /// What it says; `None` when it says nothing.
    pub(super) read: Option<Read>,
}

/// A document that was read.
#[derive(Debug)]
pub(super) struct Read {
    /// With positions.
    pub(super) node: Node,
    /// Without.
    pub(super) value: Value,
}

/// Cuts a stream into its documents and reads each.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Vec<Piece>, Vec<Problem>> {
    let problem = |position: Position, message: String, hint: &str| Problem {
        file: file.to_owned(),
        line: position.line,
        message,
        hint: hint.to_owned(),
        ..Problem::default()
    };
    let whole = read_yaml(bytes);
    if !whole.errors.is_empty() {
        return Err(whole.errors.into_iter().map(|error| problem(error.position, error.message, error.hint)).collect());
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let mut problems = Vec::new();
    for (line, marker, text) in cut(text) {
        // Lines count from the beginning of the file.
        let padded = "\n".repeat(line) + &text;
        let mut documents = read_yaml(padded.as_bytes());
        if let Some(error) = documents.errors.pop() {
            problems.push(problem(error.position, error.message, error.hint));
        }
        let read = match (documents.documents.pop(), documents.documents.is_empty()) {
            (Some(node), true) => Some(Read { value: value(&node), node }),
            (None, _) => None,
            (Some(node), false) => {
                problems.push(problem(node.position, "a document without `---` before it".to_owned(), "add the line"));
                None
            }
        };
        pieces.push(Piece { marker, text, read });
    }
    if problems.is_empty() { Ok(pieces) } else { Err(problems) }
}

/// `(lines before, marker, text)` of each document. A line that begins with `---` ends a document wherever it stands: in
/// block scalars, too, YAML allows none.
fn cut(text: &str) -> Vec<(usize, String, String)> {
    let mut pieces = vec![(0, String::new(), String::new())];
    for (number, line) in text.split_inclusive('\n').enumerate() {
        match line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            Some(rest) if rest.trim().is_empty() || rest.trim_start().starts_with('#') => {
                pieces.push((number + 1, line.to_owned(), String::new()));
            }
            Some(rest) => pieces.push((number, "---\n".to_owned(), format!("   {rest}"))),
            None => {
                if let Some((_, _, text)) = pieces.last_mut() {
                    text.push_str(line);
                }
            }
        }
    }
    if pieces.len() > 1 && pieces[0].2.is_empty() {
        pieces.remove(0);
    }
    pieces
}

impl Piece {
    /// Its text: as it was, or that of `changed`.
    pub(super) fn write(&self, changed: Option<&Value>, out: &mut String) {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&self.marker);
        match changed {
            None => out.push_str(&self.text),
            Some(value) => out.push_str(&yaml::write(value)),
        }
    }
}

/// What Kubernetes' own tools make of a node: plain scalars mean what they mean in YAML 1.1, so that `yes` is true and
/// `0644` is octal.
pub(super) fn value(node: &Node) -> Value {
    match &node.value {
        NodeValue::Null => Value::Null,
        NodeValue::Scalar { text, quoted: true } => Value::String(text.to_string()),
        NodeValue::Scalar { text, quoted: false } => plain(text),
        NodeValue::List(items) => items.iter().map(value).collect(),
        NodeValue::Map(entries) => Value::Object(
            entries.iter().map(|entry| (entry.key.to_string(), value(&entry.value))).collect::<Map<_, _>>(),
        ),
    }
}

/// A scalar without quotes.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return true.into(),
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return false.into(),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let whole = match (digits.strip_prefix("0x"), digits.strip_prefix("0o").or_else(|| digits.strip_prefix('0'))) {
        (Some(hexadecimal), _) => i64::from_str_radix(hexadecimal, 16).ok(),
        (None, Some(octal)) if !octal.is_empty() && !octal.contains('.') => i64::from_str_radix(octal, 8).ok(),
        _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    if let Some(whole) = whole {
        return (sign * whole).into();
    }
    let number = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>().ok().filter(|_| number).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_mean_what_kubernetes_takes_them_for() {
        for (text, expected) in [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0", json!(0)),
            ("-7", json!(-7)),
            ("0x1f", json!(31)),
            ("yes", json!(true)),
            ("off", json!(false)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("08", json!(8.0)),
            ("1.2.3", json!("1.2.3")),
            ("0.5", json!(0.5)),
            ("inf", json!("inf")),
            ("nan", json!("nan")),
            ("e", json!("e")),
            ("100m", json!("100m")),
            ("1Gi", json!("1Gi")),
            ("-", json!("-")),
            ("y", json!(true)),
            ("1_000", json!("1_000")),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_touched_is_handed_on() {
        for text in [
            "# a comment\na: 1\n---\n# another\nb:   2 # spaced\n---\n",
            "---\na: 1\n--- # marked\nb: |\n  x\n\n---\n\n---\nc: 1",
            "a: 1\n...\n---\nb: 1\n",
            "",
        ] {
            let pieces = read("f.yaml", text.as_bytes()).expect("YAML");
            let mut out = String::new();
            for piece in &pieces {
                piece.write(None, &mut out);
            }
            assert_eq!(out, text);
        }
    }

    #[test]
    fn lines_count_from_the_beginning() {
        let pieces = read("f.yaml", b"a: 1\n---\nb:\n  c: 1\n--- {d: 1}\n").expect("YAML");
        let lines: Vec<_> =
            pieces.iter().filter_map(|piece| piece.read.as_ref()).map(|read| read.node.position.line).collect();
        assert_eq!(lines, [1, 3, 5]);
        let problems = read("f.yaml", b"a: 1\n---\nb: [\n").expect_err("not YAML");
        assert_eq!(problems[0].file, "f.yaml");
        assert!(problems[0].line >= 3);
    }
}
