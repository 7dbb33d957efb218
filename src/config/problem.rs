//! What is wrong with a configuration, collected so that one look mends it all.

use std::{cell::RefCell, collections::BTreeMap, fmt};

use super::tree::{Node, Step, dotted};

/// How many problems are told at once.
pub(super) const MAX_PROBLEMS: usize = 20;
/// How much of a wrong value is shown, in characters.
const MAX_SHOWN: usize = 60;
/// Parts of key names whose values are never shown: an operator may have written the secret itself there.
const SECRET_KEYS: [&str; 6] = ["secret", "identity", "password", "passphrase", "api_key", "credential"];
/// How an age identity begins, wherever it was written by mistake.
const AGE_IDENTITY: &str = "AGE-SECRET-KEY-";

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written: `FILE:LINE`, `FILE`, or the name of an environment variable.
    pub place: String,
    /// The key's full dotted path; empty where the file is not TOML at all.
    pub key: String,
    /// What is wrong and what is allowed. Holds no secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.place, self.message)
        } else {
            write!(f, "{}: {}: {}", self.place, self.key, self.message)
        }
    }
}

/// Why a value cannot be what its key is for.
#[derive(Debug)]
pub(super) enum Unfit {
    /// It should have been this, in words; what was given is shown beside it.
    Expected(String),
    /// A sentence of its own; what was given is not shown.
    Because(String),
}

/// Where each key was written.
#[derive(Debug, Default)]
pub(super) struct Origins {
    /// The file's name as it is shown.
    pub(super) file: String,
    /// Dotted path to line, counted from 1.
    pub(super) lines: BTreeMap<String, usize>,
    /// Dotted path to environment variable.
    pub(super) variables: BTreeMap<String, String>,
}

impl Origins {
    /// The file and line, or the environment variable, that a key came from; for a key that is not there, what
    /// would hold it.
    fn place(&self, path: &[Step]) -> String {
        for depth in (1..=path.len()).rev() {
            let key = dotted(&path[..depth]);
            if let Some(variable) = self.variables.get(&key) {
                return variable.clone();
            }
            if let Some(line) = self.lines.get(&key) {
                return format!("{}:{line}", self.file);
            }
            let within = format!("{key}.");
            let held = self.variables.range(within.clone()..).next().filter(|(key, _)| key.starts_with(&within));
            if let Some((_, variable)) = held {
                return variable.clone();
            }
        }
        self.file.clone()
    }
}

/// Collects problems while the configuration is read.
#[derive(Debug)]
pub(super) struct Problems<'a> {
    tree: &'a Node,
    origins: &'a Origins,
    found: RefCell<Vec<(Vec<Step>, Problem)>>,
}

impl<'a> Problems<'a> {
    /// `tree` is the merged configuration as it was written, so that wrong values can be shown.
    pub(super) fn new(tree: &'a Node, origins: &'a Origins) -> Self {
        Self { tree, origins, found: RefCell::default() }
    }

    /// The value at `path` does not fit.
    pub(super) fn unfit(&self, path: &[Step], unfit: Unfit) {
        self.add(
            path,
            match unfit {
                Unfit::Because(message) => message,
                Unfit::Expected(expected) => match self.given(path) {
                    Some(given) => format!("given {given}; expected {expected}"),
                    None => format!("expected {expected}"),
                },
            },
        );
    }

    /// `key` is missing from the table at `table`.
    pub(super) fn missing(&self, table: &[Step], key: &'static str, advice: &str) {
        let key = Step::Key(key.to_owned());
        let path: Vec<Step> = table.iter().cloned().chain([key]).collect();
        self.add_for(table, &path, format!("missing; {advice}"));
    }

    /// Anything else that is wrong with what is at `path`.
    pub(super) fn add(&self, path: &[Step], message: String) {
        self.add_for(path, path, message);
    }

    /// Says nothing where something inside `about` is wrong already: a mistyped key should not also be missing.
    fn add_for(&self, about: &[Step], path: &[Step], message: String) {
        let mut found = self.found.borrow_mut();
        if found.iter().any(|(known, _)| known.starts_with(about)) {
            return;
        }
        let problem = Problem { place: self.origins.place(path), key: dotted(path), message };
        found.push((path.to_vec(), problem));
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.found.borrow().len()
    }

    /// All of them: the file's by line, then the environment's.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let line = |problem: &Problem| {
            let in_file = problem.place.strip_prefix(&self.origins.file).map(|rest| rest.trim_start_matches(':'));
            in_file.map_or((1, 0), |line| (0, line.parse::<usize>().unwrap_or(usize::MAX)))
        };
        let mut problems: Vec<Problem> = self.found.into_inner().into_iter().map(|(_, problem)| problem).collect();
        problems.sort_by_cached_key(|problem| (line(problem), problem.key.clone()));
        problems
    }

    /// The value at `path` as it may be shown; `None` where it could be a secret.
    fn given(&self, path: &[Step]) -> Option<String> {
        let key = path.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        });
        if key.is_none_or(names_a_secret) {
            return None;
        }
        match self.tree.at(path)? {
            Node::Text(text) if text.to_uppercase().contains(AGE_IDENTITY) => None,
            Node::Text(text) => Some(shown(text)),
            Node::Whole(number) => Some(number.to_string()),
            Node::Real(number) => Some(number.to_string()),
            Node::Flag(flag) => Some(flag.to_string()),
            Node::List(_) => Some("a list".to_owned()),
            Node::Table(_) => Some("a table".to_owned()),
        }
    }
}

/// Whether a key's name says that its value could be a secret.
pub(super) fn names_a_secret(key: &str) -> bool {
    let key = key.to_lowercase().replace('-', "_");
    SECRET_KEYS.iter().any(|part| key.contains(part))
        || matches!(&*key, "access_token" | "refresh_token" | "token" | "token_file")
}

/// Text in quotes, with control characters escaped, cut where it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}
