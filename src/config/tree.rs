//! The merged configuration as a plain tree that serde can read, with errors that keep their parts.
//!
//! `config` has a deserializer of its own; it turns `client_id = 5` into `"5"`, stops at the first mistake, and its
//! errors are sentences. This one converts nothing by itself (the leaves in `raw` do, where that is wanted) and
//! says which of the two things went wrong: a key nobody knows, or a value that does not fit.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    vec,
};

use config::{Value, ValueKind};
use serde::{
    Deserializer,
    de::{
        Error as _, Expected, IntoDeserializer, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_path_to_error::Segment;

/// A value of the configuration, wherever it came from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Text(String),
    Whole(i64),
    Real(f64),
    Flag(bool),
    List(Vec<Self>),
    Table(BTreeMap<String, Self>),
}

/// One step from a table or list to what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// What serde can find wrong with the shape of the configuration.
#[derive(Debug)]
pub(super) enum Misfit {
    /// A key that is none of `known`.
    UnknownKey { known: &'static [&'static str] },
    /// A word that is none of `known`.
    UnknownWord { known: &'static [&'static str] },
    /// Something else than what was expected, in words.
    Expected(String),
}

impl Node {
    /// What `path` leads to.
    pub(super) fn at(&self, path: &[Step]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| match (node, step) {
            (Self::Table(table), Step::Key(key)) => table.get(key),
            (Self::List(list), Step::Index(index)) => list.get(*index),
            _ => None,
        })
    }

    /// Takes away the key that `path` leads to. Items of a list stay, so that the others keep their places; the
    /// list goes as a whole. Says whether there was something to take.
    pub(super) fn remove(&mut self, path: &[Step]) -> bool {
        let Some(end) = path.iter().rposition(|step| matches!(step, Step::Key(_))) else { return false };
        let Step::Key(key) = &path[end] else { return false };
        let parent = path[..end].iter().try_fold(self, |node, step| match (node, step) {
            (Self::Table(table), Step::Key(key)) => table.get_mut(key),
            (Self::List(list), Step::Index(index)) => list.get_mut(*index),
            _ => None,
        });
        match parent {
            Some(Self::Table(table)) => table.remove(key).is_some(),
            _ => false,
        }
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Text(text) => Unexpected::Str(text),
            Self::Whole(number) => Unexpected::Signed(*number),
            Self::Real(number) => Unexpected::Float(*number),
            Self::Flag(flag) => Unexpected::Bool(*flag),
            Self::List(_) => Unexpected::Seq,
            Self::Table(_) => Unexpected::Map,
        }
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        let wide = |number: String| number.parse().map_or(Self::Text(number), Self::Whole);
        match value.kind {
            ValueKind::Nil => Self::Text(String::new()),
            ValueKind::Boolean(flag) => Self::Flag(flag),
            ValueKind::I64(number) => Self::Whole(number),
            ValueKind::I128(number) => wide(number.to_string()),
            ValueKind::U64(number) => wide(number.to_string()),
            ValueKind::U128(number) => wide(number.to_string()),
            ValueKind::Float(number) => Self::Real(number),
            ValueKind::String(text) => Self::Text(text),
            ValueKind::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            ValueKind::Table(entries) => {
                Self::Table(entries.into_iter().map(|(key, value)| (key, Self::from(value))).collect())
            }
        }
    }
}

/// The steps of serde's path; what it cannot name ends the path there.
pub(super) fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// A path as a person writes it: `access[0].role`.
pub(super) fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            // Writing to a string cannot fail.
            Step::Index(index) => drop(write!(text, "[{index}]")),
        }
    }
    text
}

impl IntoDeserializer<'_, Misfit> for Node {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self {
            Self::Text(text) => visitor.visit_string(text),
            Self::Whole(number) => visitor.visit_i64(number),
            Self::Real(number) => visitor.visit_f64(number),
            Self::Flag(flag) => visitor.visit_bool(flag),
            Self::List(items) => {
                visitor.visit_seq(SeqDeserializer::<vec::IntoIter<Self>, Misfit>::new(items.into_iter()))
            }
            Self::Table(entries) => visitor.visit_map(MapDeserializer::new(entries.into_iter())),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    /// A derived struct would also take a list, item by item; a section of the configuration is a table.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self {
            Self::Table(_) => self.deserialize_any(visitor),
            other => Err(Misfit::invalid_type(other.unexpected(), &visitor)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self {
            Self::List(_) => self.deserialize_any(visitor),
            _ => Err(Misfit::Expected("a list".to_owned())),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self {
            Self::Text(text) => visitor.visit_enum(text.into_deserializer()),
            _ => Err(Misfit::UnknownWord { known: variants }),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct map identifier ignored_any
    }
}

impl serde::de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Expected(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match expected.to_string().as_str() {
            "a string" => Self::Expected("text in quotes".to_owned()),
            other => Self::Expected(other.to_owned()),
        }
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Expected(expected.to_string())
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownKey { known }
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownWord { known }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { .. } => f.write_str("unknown key"),
            Self::UnknownWord { known } => write!(f, "expected one of {}", known.join(", ")),
            Self::Expected(what) => write!(f, "expected {what}"),
        }
    }
}

impl std::error::Error for Misfit {}
