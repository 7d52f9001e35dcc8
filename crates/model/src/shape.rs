//! Shapes: what the fields of a resource hold, in words and in bounds.
//!
//! A kind is declared once, by [`object!`] and [`choices!`]: the Rust type, how serde reads it, the check that reports
//! every error with its position, and the text of the reference all come from that one declaration.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{period::Period, rules::TextRule, values::PortOrName};

/// What a value holds.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Text that obeys a rule.
    Text(TextRule),
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A duration.
    Period {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// One word of a list.
    Choice(Arc<Choices>),
    /// A port number or a port name.
    PortOrName,
    /// A list.
    List {
        /// Each entry.
        of: Box<Shape>,
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
    },
    /// A map from text to a value.
    Map {
        /// Each key.
        keys: TextRule,
        /// Each value.
        of: Box<Shape>,
        /// Most entries.
        max: usize,
    },
    /// An object with named fields.
    Object(Arc<Object>),
}

/// The words that a field may hold.
#[derive(Debug)]
pub struct Choices {
    /// Each word and what it means.
    pub words: Vec<(&'static str, &'static str)>,
}

/// An object and its fields.
#[derive(Debug)]
pub struct Object {
    /// Name of the type.
    pub name: &'static str,
    /// What it is for.
    pub doc: String,
    /// In the order of the reference.
    pub fields: Vec<Field>,
}

/// One field of an object.
#[derive(Debug)]
pub struct Field {
    /// As written in YAML.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// What it holds.
    pub shape: Shape,
    /// Bounds and texts.
    pub spec: Spec,
}

/// What a field's declaration adds to its type.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// It must be there.
    pub required: bool,
    /// Accepted for Kubernetes' sake; the mesh has no use for it.
    pub informational: bool,
    /// Value when absent, in words.
    pub default: &'static str,
    /// Why that default.
    pub why: &'static str,
    /// When to change it.
    pub when: &'static str,
    range: Option<(u64, u64)>,
    period: Option<(Duration, Duration)>,
    items: Option<(usize, usize)>,
    text: Option<TextRule>,
    keys: Option<TextRule>,
}

/// A declaration that adds nothing.
pub(crate) fn plain() -> Spec {
    Spec::default()
}

/// The field must be there.
pub(crate) fn required() -> Spec {
    Spec { required: true, ..Spec::default() }
}

/// Accepted for Kubernetes' sake; the mesh has no use for it.
pub(crate) fn informational() -> Spec {
    Spec { informational: true, ..Spec::default() }
}

/// A default in words.
pub(crate) fn default(text: &'static str) -> Spec {
    Spec { default: text, ..Spec::default() }
}

impl Spec {
    /// Why that default.
    pub(crate) fn why(mut self, text: &'static str) -> Self {
        self.why = text;
        self
    }

    /// When to change it.
    pub(crate) fn when(mut self, text: &'static str) -> Self {
        self.when = text;
        self
    }

    /// Bounds of a number, both included.
    pub(crate) fn range(mut self, min: u64, max: u64) -> Self {
        self.range = Some((min, max));
        self
    }

    /// Bounds of a duration, both included.
    pub(crate) fn within(mut self, min: Duration, max: Duration) -> Self {
        self.period = Some((min, max));
        self
    }

    /// How many entries, both included.
    pub(crate) fn items(mut self, min: usize, max: usize) -> Self {
        self.items = Some((min, max));
        self
    }

    /// The rule that text obeys.
    pub(crate) fn text(mut self, rule: TextRule) -> Self {
        self.text = Some(rule);
        self
    }

    /// The rule that a map's keys obey.
    pub(crate) fn keys(mut self, rule: TextRule) -> Self {
        self.keys = Some(rule);
        self
    }

    fn refine(&self, shape: Shape) -> Shape {
        match shape {
            Shape::Text(rule) => Shape::Text(self.text.unwrap_or(rule)),
            Shape::Integer { min, max } => {
                let (min, max) = self.range.unwrap_or((min, max));
                Shape::Integer { min, max }
            }
            Shape::Period { min, max } => {
                let (min, max) = self.period.unwrap_or((min, max));
                Shape::Period { min, max }
            }
            Shape::List { of, min, max } => {
                let (min, max) = self.items.unwrap_or((min, max));
                Shape::List { of: Box::new(self.refine(*of)), min, max }
            }
            Shape::Map { keys, of, max } => Shape::Map {
                keys: self.keys.unwrap_or(keys),
                of: Box::new(self.refine(*of)),
                max: self.items.map_or(max, |items| items.1),
            },
            other @ (Shape::Bool | Shape::Choice(_) | Shape::PortOrName | Shape::Object(_)) => other,
        }
    }
}

impl Field {
    pub(crate) fn new<T: Shaped>(name: &str, rename: &[&str], doc: &[&str], spec: Spec) -> Self {
        let name = rename.first().map_or_else(|| camel(name), |name| (*name).to_owned());
        Self { name, doc: prose(doc), shape: spec.refine(T::shape()), spec }
    }
}

impl Object {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// A type whose shape is known.
pub trait Shaped {
    /// Its shape.
    fn shape() -> Shape;
}

impl Shaped for String {
    fn shape() -> Shape {
        Shape::Text(TextRule::Any)
    }
}

impl Shaped for bool {
    fn shape() -> Shape {
        Shape::Bool
    }
}

impl Shaped for u16 {
    fn shape() -> Shape {
        Shape::Integer { min: 1, max: u64::from(u16::MAX) }
    }
}

impl Shaped for u32 {
    fn shape() -> Shape {
        Shape::Integer { min: 0, max: u64::from(u32::MAX) }
    }
}

impl Shaped for Period {
    fn shape() -> Shape {
        Shape::Period { min: Duration::ZERO, max: Duration::from_secs(24 * 3600) }
    }
}

impl Shaped for PortOrName {
    fn shape() -> Shape {
        Shape::PortOrName
    }
}

impl<T: Shaped> Shaped for Option<T> {
    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Shaped> Shaped for Vec<T> {
    fn shape() -> Shape {
        Shape::List { of: Box::new(T::shape()), min: 0, max: 64 }
    }
}

impl<T: Shaped> Shaped for BTreeMap<String, T> {
    fn shape() -> Shape {
        Shape::Map { keys: TextRule::Any, of: Box::new(T::shape()), max: 64 }
    }
}

/// A type of which some value means that the field is absent, so that the canonical form leaves it out.
pub(crate) trait Absent {
    /// Whether this is that value.
    fn absent(&self) -> bool;
}

impl<T> Absent for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
}

impl<T> Absent for Vec<T> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl<K, V> Absent for BTreeMap<K, V> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl Absent for String {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

/// 0 is no port.
impl Absent for u16 {
    fn absent(&self) -> bool {
        *self == 0
    }
}

impl Absent for u32 {
    fn absent(&self) -> bool {
        false
    }
}

impl Absent for crate::kinds::Metadata {
    fn absent(&self) -> bool {
        false
    }
}

/// `backend_refs` → `backendRefs`.
fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for letter in name.chars() {
        match letter {
            '_' => upper = true,
            _ if upper => {
                out.push(letter.to_ascii_uppercase());
                upper = false;
            }
            _ => out.push(letter),
        }
    }
    out
}

/// The lines of a doc comment as one paragraph.
pub(crate) fn prose(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// Declares an object: its Rust type, its serde form and its [`Shape`].
macro_rules! object {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident {
            $(
                $(#[doc = $field_doc:literal])+
                $field:ident $(as $rename:literal)? : $ty:ty = $spec:expr
            ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $(
                $(#[doc = $field_doc])+
                $(#[serde(rename = $rename)])?
                #[serde(skip_serializing_if = "crate::shape::Absent::absent")]
                pub $field: $ty,
            )*
        }

        impl $crate::shape::Absent for $name {
            fn absent(&self) -> bool {
                *self == Self::default()
            }
        }

        impl $crate::shape::Shaped for $name {
            fn shape() -> $crate::shape::Shape {
                #[allow(unused_imports)]
                use $crate::shape::{default, informational, plain, required};
                $crate::shape::Shape::Object(std::sync::Arc::new($crate::shape::Object {
                    name: stringify!($name),
                    doc: $crate::shape::prose(&[$($doc),+]),
                    fields: vec![$(
                        $crate::shape::Field::new::<$ty>(
                            stringify!($field),
                            &[$($rename)?],
                            &[$($field_doc),+],
                            $spec,
                        )
                    ),*],
                }))
            }
        }
    };
}

/// Declares the words of a field: its Rust enum, its serde form and its [`Shape`]. The first is the type's default.
macro_rules! choices {
    (
        $(#[doc = $doc:literal])+
        pub enum $name:ident {
            $first_variant:ident = $first_word:literal : $first_doc:literal
            $(, $variant:ident = $word:literal : $word_doc:literal)* $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            #[doc = $first_doc]
            #[default]
            #[serde(rename = $first_word)]
            $first_variant,
            $(
                #[doc = $word_doc]
                #[serde(rename = $word)]
                $variant,
            )*
        }

        impl $name {
            /// The word as written in YAML.
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::$first_variant => $first_word,
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::shape::Absent for $name {
            fn absent(&self) -> bool {
                false
            }
        }

        impl $crate::shape::Shaped for $name {
            fn shape() -> $crate::shape::Shape {
                $crate::shape::Shape::Choice(std::sync::Arc::new($crate::shape::Choices {
                    words: vec![($first_word, $first_doc) $(, ($word, $word_doc))*],
                }))
            }
        }
    };
}

pub(crate) use {choices, object};
