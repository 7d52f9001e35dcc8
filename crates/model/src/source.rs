//! The text of a resource as a tree in which every value knows where it stands. Owns documents, positions and budgets;
//! knows nothing of kinds.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

/// Largest input, in bytes.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most values of one input, those that aliases repeat included.
pub const MAX_NODES: usize = 500_000;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// Most aliases of one input.
pub const MAX_ALIASES: usize = 1000;

/// Where something stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// From 1; 0 when unknown.
    pub line: u32,
    /// In characters, from 1; 0 when unknown.
    pub column: u32,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub position: Position,
    /// What it is.
    pub value: NodeValue,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeValue {
    /// Nothing: absent, `~` or `null`.
    Null,
    /// Text, or a number or truth value that is not interpreted yet.
    Scalar {
        /// As written, quotes and escapes resolved.
        text: Box<str>,
        /// It was quoted, so it is text and nothing else.
        quoted: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the text.
    Map(Vec<Entry>),
}

/// An entry of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: Box<str>,
    /// Where the key stands.
    pub position: Position,
    /// Value.
    pub value: Node,
}

/// The input cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub position: Position,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: &'static str,
}

/// The documents of an input, as far as they could be read, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Documents {
    /// Every document that could be read; empty ones are left out.
    pub documents: Vec<Node>,
    /// What is wrong.
    pub errors: Vec<SyntaxError>,
}

impl Node {
    fn new(position: Position, value: NodeValue) -> Self {
        Self { position, value }
    }

    /// The value of a key of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key of a map.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            NodeValue::Map(entries) => entries.iter().find(|entry| &*entry.key == key),
            NodeValue::Null | NodeValue::Scalar { .. } | NodeValue::List(_) => None,
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            NodeValue::Scalar { text, .. } => Some(text),
            NodeValue::Null | NodeValue::List(_) | NodeValue::Map(_) => None,
        }
    }

    /// What it is, in words.
    pub fn describe(&self) -> &'static str {
        match &self.value {
            NodeValue::Null => "nothing",
            NodeValue::Scalar { .. } => "a single value",
            NodeValue::List(_) => "a list",
            NodeValue::Map(_) => "a map",
        }
    }

    /// Where the value of a field path stands, as `spec.rules[0].name`; of a path that leads nowhere, the last part that
    /// exists. A field stands where its key does.
    pub fn locate(&self, path: &str) -> Position {
        let mut node = self;
        let mut position = self.position;
        for step in steps(path) {
            match (step, &node.value) {
                (Step::Field(name), NodeValue::Map(_)) => match node.entry(name) {
                    Some(entry) => (node, position) = (&entry.value, entry.position),
                    None => return position,
                },
                (Step::Index(index), NodeValue::List(items)) => match items.get(index) {
                    Some(item) => (node, position) = (item, item.position),
                    None => return position,
                },
                _ => return position,
            }
        }
        position
    }
}

enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

/// `spec.rules[0].name`, `metadata.labels["a.b/c"]`.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, tail) = quoted.split_once("\"]").unwrap_or((quoted, ""));
            rest = tail;
            return Some(Step::Field(key));
        }
        if let Some(index) = rest.strip_prefix('[') {
            let (index, tail) = index.split_once(']').unwrap_or((index, ""));
            rest = tail;
            return Some(Step::Index(index.parse().unwrap_or(usize::MAX)));
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail;
        Some(Step::Field(field))
    })
}

/// Reads YAML or JSON, one document or several.
pub fn read(bytes: &[u8]) -> Documents {
    let error = |position, message: String, hint| Documents {
        documents: Vec::new(),
        errors: vec![SyntaxError { position, message, hint }],
    };
    if bytes.len() > MAX_BYTES {
        return error(Position { line: 1, column: 1 }, format!("larger than {MAX_BYTES} bytes"), "apply it in parts");
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(bad) => return error(position_of(bytes, bad.valid_up_to()), "not UTF-8".into(), "save it as UTF-8"),
    };
    Reader::default().read(&surrogates(text))
}

/// JSON writes characters beyond 16 bits as two escapes, `\ud83d\ude00`, which YAML has not: in a text that begins as
/// JSON does, each pair becomes the character itself.
fn surrogates(text: &str) -> Cow<'_, str> {
    let json = text.trim_start().starts_with(['{', '[']);
    if !json || !text.contains("\\u") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match pair(rest) {
            Some(character) => {
                out.push(character);
                rest = &rest[12..];
            }
            None => {
                // The escape and what it escapes, so that `\\\\u` is not taken for one.
                let end = rest.char_indices().nth(2).map_or(rest.len(), |(end, _)| end);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character of a pair of escapes that begins here.
fn pair(text: &str) -> Option<char> {
    let unit = |at: usize| -> Option<u16> {
        let hex = text.get(at..at + 6)?.strip_prefix("\\u")?;
        hex.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(hex, 16).ok())?
    };
    let (high, low) = (unit(0)?, unit(6)?);
    char::decode_utf16([high, low]).next()?.ok().filter(|character| u32::from(*character) > 0xffff)
}

fn position_of(bytes: &[u8], offset: usize) -> Position {
    let before = &bytes[..offset];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    Position { line: clamp(line), column: clamp(column) }
}

fn clamp(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The parser's columns count from 0.
fn place(marker: &Marker) -> Position {
    Position { line: clamp(marker.line()), column: clamp(marker.col() + 1) }
}

/// A list or map that is being read.
struct Open {
    position: Position,
    anchor: usize,
    body: Body,
}

enum Body {
    List(Vec<Node>),
    Map(OpenMap),
}

/// A map that is being read.
#[derive(Default)]
struct OpenMap {
    /// The key that waits for its value.
    waiting: Option<Key>,
    entries: Vec<Entry>,
    seen: HashSet<Box<str>>,
    /// Values of the key `<<`.
    merges: Vec<Node>,
}

struct Key {
    text: Box<str>,
    position: Position,
    /// It is an unquoted `<<`.
    merge: bool,
    /// It stood in the map before: an error already, its value is dropped.
    duplicate: bool,
}

#[derive(Default)]
struct Reader {
    open: Vec<Open>,
    /// Anchored values, with the number of nodes in each.
    anchors: HashMap<usize, (Arc<Node>, usize)>,
    nodes: usize,
    aliases: usize,
    document: Option<Node>,
    out: Documents,
}

impl Reader {
    fn read(mut self, text: &str) -> Documents {
        for event in Parser::new_from_str(text) {
            let result = match event {
                Ok((event, span)) => self.on(event, span),
                Err(error) => Err(SyntaxError {
                    position: place(error.marker()),
                    message: format!("not YAML: {}", error.info()),
                    hint: "",
                }),
            };
            if let Err(error) = result {
                self.out.errors.push(error);
                break;
            }
        }
        self.out
    }

    fn on(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let position = place(&span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => Ok(()),
            Event::DocumentEnd => {
                self.anchors.clear();
                let document = self.document.take();
                self.out.documents.extend(document.filter(|node| node.value != NodeValue::Null));
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(position, 1)?;
                let quoted = style != ScalarStyle::Plain
                    || tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let null = !quoted && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { NodeValue::Null } else { NodeValue::Scalar { text: text.into(), quoted } };
                self.complete(Node::new(position, value), anchor)
            }
            Event::SequenceStart(anchor, _) => self.begin(position, anchor, Body::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(position, anchor, Body::Map(OpenMap::default())),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = match open.body {
                    Body::List(items) => NodeValue::List(items),
                    Body::Map(map) => NodeValue::Map(self.merge(map)?),
                };
                self.complete(Node::new(open.position, value), open.anchor)
            }
            Event::Alias(anchor) => {
                self.aliases += 1;
                if self.aliases > MAX_ALIASES {
                    return Err(budget(position, format!("more than {MAX_ALIASES} aliases")));
                }
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    let message = "an alias inside of what it names".to_owned();
                    return Err(SyntaxError { position, message, hint: "" });
                };
                self.count(position, size)?;
                if self.open.len() + depth(&node) > MAX_DEPTH {
                    return Err(budget(position, format!("nested deeper than {MAX_DEPTH}")));
                }
                self.complete(Node::clone(&node), 0)
            }
        }
    }

    fn count(&mut self, position: Position, more: usize) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            return Err(budget(position, format!("more than {MAX_NODES} values")));
        }
        Ok(())
    }

    fn begin(&mut self, position: Position, anchor: usize, body: Body) -> Result<(), SyntaxError> {
        self.count(position, 1)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(budget(position, format!("nested deeper than {MAX_DEPTH}")));
        }
        self.open.push(Open { position, anchor, body });
        Ok(())
    }

    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        if anchor > 0 {
            let size = size(&node);
            self.count(node.position, size)?;
            self.anchors.insert(anchor, (Arc::new(node.clone()), size));
        }
        match self.open.last_mut().map(|open| &mut open.body) {
            None => self.document = Some(node),
            Some(Body::List(items)) => items.push(node),
            Some(Body::Map(map)) => match map.waiting.take() {
                None => {
                    let key = key(node, &map.seen)?;
                    if key.duplicate {
                        self.out.errors.push(SyntaxError {
                            position: key.position,
                            message: format!("`{}` stands twice in the same map", key.text),
                            hint: "remove one of them",
                        });
                    }
                    map.waiting = Some(key);
                }
                Some(key) if key.merge => map.merges.push(node),
                Some(key) if key.duplicate => {}
                Some(key) => {
                    map.seen.insert(key.text.clone());
                    map.entries.push(Entry { key: key.text, position: key.position, value: node });
                }
            },
        }
        Ok(())
    }

    /// Adds what `<<` names and the map itself does not.
    fn merge(&mut self, map: OpenMap) -> Result<Vec<Entry>, SyntaxError> {
        let OpenMap { mut entries, mut seen, merges, .. } = map;
        let mut sources = Vec::new();
        for node in merges {
            match node.value {
                NodeValue::List(items) => sources.extend(items),
                NodeValue::Map(_) | NodeValue::Scalar { .. } | NodeValue::Null => sources.push(node),
            }
        }
        for source in sources {
            let NodeValue::Map(more) = source.value else {
                let message = "`<<` takes a map or a list of maps".to_owned();
                return Err(SyntaxError { position: source.position, message, hint: "" });
            };
            for entry in more {
                if seen.insert(entry.key.clone()) {
                    entries.push(entry);
                }
            }
        }
        Ok(entries)
    }
}

fn key(node: Node, seen: &HashSet<Box<str>>) -> Result<Key, SyntaxError> {
    let (text, quoted) = match node.value {
        NodeValue::Scalar { text, quoted } => (text, quoted),
        NodeValue::Null => ("null".into(), false),
        NodeValue::List(_) | NodeValue::Map(_) => {
            let message = "a key must be a single value".to_owned();
            return Err(SyntaxError { position: node.position, message, hint: "" });
        }
    };
    let merge = !quoted && &*text == "<<";
    let duplicate = !merge && seen.contains(&text);
    Ok(Key { text, position: node.position, merge, duplicate })
}

fn budget(position: Position, message: String) -> SyntaxError {
    SyntaxError { position, message, hint: "apply it in parts" }
}

/// Number of values in it, itself included.
fn size(node: &Node) -> usize {
    1 + match &node.value {
        NodeValue::Null | NodeValue::Scalar { .. } => 0,
        NodeValue::List(items) => items.iter().map(size).sum(),
        NodeValue::Map(entries) => entries.iter().map(|entry| size(&entry.value)).sum(),
    }
}

fn depth(node: &Node) -> usize {
    match &node.value {
        NodeValue::Null | NodeValue::Scalar { .. } => 0,
        NodeValue::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        NodeValue::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.value)).max().unwrap_or(0),
    }
}
