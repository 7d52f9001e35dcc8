//! Canonical YAML: block style, two spaces, and quotes wherever a reader of YAML 1.1 or 1.2 could take a text for
//! something else (`yes`, `0644`, `1.10`).

use std::fmt::Write;

use serde_json::Value;

use super::document::plain;

/// A document.
pub(super) fn write(value: &Value) -> String {
    let mut out = String::new();
    node(value, 0, &mut out);
    if out.starts_with('\n') {
        out.remove(0);
    }
    out
}

/// What follows `key:` or `-`, line break included.
fn node(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            for (key, value) in fields {
                field(key, value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            for item in items {
                self::item(item, indent, out);
            }
        }
        Value::String(text) if block(text) => {
            let body = text.strip_suffix('\n').unwrap_or(text);
            let chomp = if body.len() == text.len() {
                "-"
            } else if body.ends_with('\n') {
                "+"
            } else {
                ""
            };
            out.push_str(" |");
            out.push_str(chomp);
            for line in body.split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    pad(indent.max(1), out);
                    out.push_str(line);
                }
            }
            out.push('\n');
        }
        scalar => {
            out.push(' ');
            out.push_str(&self::scalar(scalar));
            out.push('\n');
        }
    }
}

fn field(key: &str, value: &Value, indent: usize, out: &mut String) {
    pad(indent, out);
    out.push_str(&text(key));
    out.push(':');
    // A list stands as far out as the key that it belongs to.
    node(value, if value.is_array() { indent } else { indent + 1 }, out);
}

fn item(value: &Value, indent: usize, out: &mut String) {
    pad(indent, out);
    out.push('-');
    let mut inner = String::new();
    node(value, indent + 1, &mut inner);
    // The first field stands beside the dash.
    match inner.strip_prefix('\n') {
        Some(rest) => {
            out.push(' ');
            out.push_str(rest.trim_start_matches(' '));
        }
        None => out.push_str(&inner),
    }
}

fn pad(indent: usize, out: &mut String) {
    (0..indent).for_each(|_| out.push_str("  "));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => self::text(text),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Whether a text is written as a block of its lines.
fn block(text: &str) -> bool {
    let printable = |c: char| c == '\n' || c == '\t' || (!c.is_control() && !special(c));
    text.contains('\n') && !text.starts_with(['\n', ' ', '\t']) && text.chars().all(printable)
}

/// Line breaks of YAML 1.1, and what editors hide.
fn special(c: char) -> bool {
    matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// A text on one line.
fn text(text: &str) -> String {
    let first = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '$' | '(');
    let inner = |c: char| c.is_ascii_alphanumeric() || " /._$()-+=:@;,~^<>".contains(c);
    // Numbers, times and dates of every reader begin like this and hold nothing else.
    let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && text.chars().all(|c| c.is_ascii_hexdigit() || "_.:+-xoT Z".contains(c));
    let bare = text.starts_with(first)
        && text.chars().all(inner)
        && !number
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && !matches!(text, "null" | "Null" | "NULL" | "y" | "Y" | "n" | "N")
        && plain(text) == text;
    if bare { text.to_owned() } else { quoted(text) }
}

/// JSON's quotes, which are YAML's, too.
fn quoted(text: &str) -> String {
    let json = serde_json::to_string(text).unwrap_or_default();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if special(c) || ('\u{7f}'..'\u{a0}').contains(&c) {
            write!(out, "\\u{:04x}", u32::from(c)).expect("writing to a String");
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_model::yaml;

    use super::{super::document, *};

    #[test]
    fn what_is_written_reads_back_the_same() {
        let texts = [
            "",
            "a",
            "yes",
            "No",
            "on",
            "y",
            "null",
            "~",
            "true",
            "0644",
            "1.10",
            "1_000",
            "0x1f",
            "12:30:45",
            "2001-01-01",
            "1e3",
            ".5",
            "10m",
            "1Gi",
            "a: b",
            "a:b",
            "a:",
            "a #b",
            "#a",
            "- a",
            "-",
            "[a]",
            "{a}",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a`",
            "'a'",
            "\"a\"",
            "a\\b",
            " a",
            "a ",
            "a\nb",
            "a\nb\n",
            "a\n\nb\n\n",
            "\na",
            " a\nb",
            "a\n b\n",
            "a\tb",
            "\u{85}",
            "a\u{2028}b",
            "\u{feff}",
            "\u{1}",
            "\u{7f}",
            "ä ö",
            "😀",
            "a\r\nb",
            "?",
            "? a",
            "a ? b",
            "|",
            ">",
            "<<",
            "--- a",
            "...",
            "http://x:1/?a=b&c=d",
            "$(VAR)",
            "a, b",
            "a\n---\nb",
        ];
        for text in texts {
            for value in [json!({ "a": text, "b": 1 }), json!([text, [text]]), json!({ text: { text: [text] } })] {
                let written = write(&value);
                let read = yaml::read(written.as_bytes());
                assert!(read.errors.is_empty(), "{text:?}: {:?}\n{written}", read.errors);
                assert_eq!(read.documents.len(), 1, "{written}");
                assert_eq!(document::value(&read.documents[0]), value, "{written}");
                let other: Value = serde_yaml::from_str(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
                assert_eq!(other, value, "{written}");
            }
        }
    }

    #[test]
    fn how_it_looks() {
        let value = json!({
            "list": [{ "a": 1, "b": [{ "c": "x\ny\n" }, "yes"] }, [], {}, [1, [2]]],
            "text": "0644", "empty": null, "map": { "k/e.y": "10m" },
        });
        let expected = "list:\n- a: 1\n  b:\n  - c: |\n      x\n      y\n  - \"yes\"\n- []\n- {}\n- - 1\n  - - 2\ntext: \
                        \"0644\"\nempty: null\nmap:\n  k/e.y: 10m\n";
        assert_eq!(write(&value), expected);
    }
}
