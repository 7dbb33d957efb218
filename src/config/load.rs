//! Finds the configuration, lays the environment over the file, and reports everything that is wrong at once.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use config::{Environment, FileFormat};
use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};

use super::{
    Config,
    problem::{MAX_PROBLEMS, Origins, Problem, Problems, Unfit, names_a_secret, shown},
    raw::Raw,
    sections,
    suggest::nearest,
    tree::{Misfit, Node, Step, dotted, steps},
};

/// The environment variable that names the configuration file.
pub const FILE_VARIABLE: &str = "CONSENTRY_CONFIG";
/// Where the file is looked for when nobody names one.
const USUAL_PLACES: [&str; 2] = ["config/consentry.toml", "/etc/consentry/consentry.toml"];
/// How the environment variables that set keys begin.
const PREFIX: &str = "CONSENTRY";
/// What stands between the parts of such a variable's name.
const SEPARATOR: &str = "__";
/// The largest configuration file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A configuration file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where.
    pub file: PathBuf,
}

/// Why there is no configuration to work with. Never holds a secret; some kinds have more than one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody named a file, and none is in the usual places.
    #[error(
        "no configuration found: looked for {}; make one with `consentry init`, or name one with --config",
        looked.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    NotFound {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The file that was named is not there.
    #[error("{}: there is no such file (named by {named_by}); `consentry init` makes one", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// Who named it: `--config` or `$CONSENTRY_CONFIG`.
        named_by: &'static str,
    },
    /// The file is there and cannot be read as text.
    #[error("{}: cannot be read: {}", file.display(), why_unreadable(source))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no plausible configuration.
    #[error("{}: is larger than {MAX_FILE_BYTES} bytes, so it cannot be a configuration", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// Keys or values are wrong: one line for each.
    #[error("{}", lines(problems))]
    Invalid {
        /// At least one and at most 20, the file's first.
        problems: Vec<Problem>,
    },
}

/// Why a file cannot be read, and what to do where there is an obvious thing.
fn why_unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "this user may not; it and the folders above it must be open to the user that runs this".to_owned()
        }
        io::ErrorKind::IsADirectory => "it is a folder; name the file in it".to_owned(),
        io::ErrorKind::InvalidData => "it is not UTF-8 text; save it as UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

/// Finds the configuration file: `explicit`, else `$CONSENTRY_CONFIG`, else `config/consentry.toml` below the working
/// directory, else `/etc/consentry/consentry.toml`.
pub fn locate(explicit: Option<&Path>) -> Result<Located, ConfigError> {
    locate_among(explicit, std::env::var_os(FILE_VARIABLE), &USUAL_PLACES.map(Path::new))
}

fn locate_among(explicit: Option<&Path>, variable: Option<OsString>, usual: &[&Path]) -> Result<Located, ConfigError> {
    // Where it cannot be told whether a file is there, reading it will say why.
    let there = |file: &Path| file.try_exists().unwrap_or(true);
    let variable = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    let named =
        explicit.map(|file| (file.to_owned(), "--config")).or_else(|| variable.map(|file| (file, "$CONSENTRY_CONFIG")));
    match named {
        Some((file, _)) if there(&file) => Ok(Located { file }),
        Some((file, named_by)) => Err(ConfigError::Missing { file, named_by }),
        None => match usual.iter().find(|file| there(file)) {
            Some(file) => Ok(Located { file: file.to_path_buf() }),
            None => Err(ConfigError::NotFound { looked: usual.iter().map(|file| file.to_path_buf()).collect() }),
        },
    }
}

/// Reads the file and the process's environment.
pub(super) fn load(located: &Located) -> Result<Config, ConfigError> {
    let file = &located.file;
    let unreadable = |source| ConfigError::Unreadable { file: file.clone(), source };
    let mut text = String::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    File::open(file).map_err(unreadable)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { file: file.clone() });
    }
    let config = read(&file.display().to_string(), &text, std::env::vars_os())?;
    Ok(Config { file: Some(file.clone()), ..config })
}

/// Reads `text`, which is shown as `file`, and lays `environment` over it.
pub(super) fn read(
    file: &str,
    text: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    let mut origins = Origins { file: file.to_owned(), lines: lines_of(file, text)?, ..Origins::default() };
    let (variables, mut strange) = variables(environment, &mut origins.variables);
    let tree = merge(file, text, variables)?;

    let problems = Problems::new(&tree, &origins);
    let config = shape(&tree, &problems).map(|raw| sections::read(raw, &problems));
    let mut found = problems.into_sorted();
    found.append(&mut strange);
    found.truncate(MAX_PROBLEMS);
    match config {
        Some(config) if found.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid { problems: found }),
    }
}

/// Every key's line. The values themselves are read by `config`.
fn lines_of(file: &str, text: &str) -> Result<BTreeMap<String, usize>, ConfigError> {
    let starts: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let line = |offset: usize| starts.partition_point(|start| *start <= offset) + 1;
    // The parser's own message holds a piece of the file, and that piece could be a secret: only its first line,
    // which is about the grammar, is passed on.
    let table = DeTable::parse(text).map_err(|error| {
        let place = error.span().map_or_else(|| file.to_owned(), |span| format!("{file}:{}", line(span.start)));
        let message = format!("not TOML: {}", error.message().lines().next().unwrap_or("syntax error"));
        ConfigError::Invalid { problems: vec![Problem { place, key: String::new(), message }] }
    })?;
    let mut lines = BTreeMap::new();
    note_table(table.get_ref(), &mut Vec::new(), &line, &mut lines);
    Ok(lines)
}

fn note_table(
    table: &DeTable<'_>,
    path: &mut Vec<Step>,
    line: &dyn Fn(usize) -> usize,
    lines: &mut BTreeMap<String, usize>,
) {
    for (key, value) in table {
        path.push(Step::Key(key.get_ref().to_string()));
        lines.insert(dotted(path), line(key.span().start));
        note_value(value.get_ref(), path, line, lines);
        path.pop();
    }
}

fn note_value(
    value: &DeValue<'_>,
    path: &mut Vec<Step>,
    line: &dyn Fn(usize) -> usize,
    lines: &mut BTreeMap<String, usize>,
) {
    match value {
        DeValue::Table(table) => note_table(table, path, line, lines),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Step::Index(index));
                lines.insert(dotted(path), line(item.span().start));
                note_value(item.get_ref(), path, line, lines);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The variables that set keys, under the names that `config` expects; others are left alone. `known` is told which
/// variable sets which key.
fn variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    known: &mut BTreeMap<String, String>,
) -> (config::Map<String, String>, Vec<Problem>) {
    let mut kept = config::Map::new();
    let mut strange = Vec::new();
    let mut environment: Vec<_> = environment.into_iter().collect();
    environment.sort();
    for (variable, value) in environment {
        let Ok(variable) = variable.into_string() else { continue };
        let name = variable.to_lowercase();
        let Some(rest) = name.strip_prefix(&format!("{PREFIX}{SEPARATOR}").to_lowercase()) else { continue };
        let mut complain = |message: &str| {
            strange.push(Problem { place: variable.clone(), key: String::new(), message: message.to_owned() });
        };
        let mut parts: Vec<String> = rest.split(SEPARATOR).map(str::to_owned).collect();
        let fits = |part: &String| {
            part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) && !part.is_empty()
        };
        if parts.len() < 2 || !parts.iter().all(fits) {
            complain("names no key; write CONSENTRY__SECTION__KEY, with two underscores between the parts");
            continue;
        }
        if let [section, provider, ..] = parts.as_mut_slice()
            && section == "providers"
        {
            // Shells take no `-` in a variable's name, and a provider's name has no `_`.
            *provider = provider.replace('_', "-");
        }
        let key = parts.join(".");
        let Ok(value) = value.into_string() else {
            complain("holds bytes that are not UTF-8");
            continue;
        };
        if let Some(other) = known.insert(key, variable.clone()) {
            complain(&format!("sets the same key as {other}; keep one of them"));
            continue;
        }
        kept.insert(format!("{PREFIX}{SEPARATOR}{}", parts.join(SEPARATOR)), value);
    }
    (kept, strange)
}

/// The file with the environment over it.
fn merge(file: &str, text: &str, variables: config::Map<String, String>) -> Result<Node, ConfigError> {
    // `try_parsing` would turn a client id "007" into 7: the leaves in `raw` take text where they want a number.
    let environment = Environment::with_prefix(PREFIX).separator(SEPARATOR).source(Some(variables));
    let merged = config::Config::builder()
        .add_source(config::File::from_str(text, FileFormat::Toml))
        .add_source(environment)
        .build()
        .map_err(|error| {
            let message = match error {
                config::ConfigError::FileParse { cause, .. } => format!("a value cannot be read: {cause}"),
                _ => "cannot be merged with the environment".to_owned(),
            };
            let problem = Problem { place: file.to_owned(), key: String::new(), message };
            ConfigError::Invalid { problems: vec![problem] }
        })?;
    Ok(Node::from(merged.cache))
}

/// Reads the tree, taking away what has the wrong shape until the rest is right, so that all of it is told. `None`
/// when there is too much of it.
fn shape(tree: &Node, problems: &Problems<'_>) -> Option<Raw> {
    let mut rest = tree.clone();
    while problems.count() < MAX_PROBLEMS {
        let mut track = serde_path_to_error::Track::new();
        let error = match Raw::deserialize(serde_path_to_error::Deserializer::new(rest.clone(), &mut track)) {
            Ok(raw) => return Some(raw),
            Err(error) => error,
        };
        let path = steps(&track.path());
        match error {
            Misfit::UnknownKey { known } => problems.add(&path, unknown_key(&path, known)),
            Misfit::UnknownWord { known } => problems.unfit(&path, unknown_word(tree.at(&path), known)),
            Misfit::Expected(expected) => problems.unfit(&path, Unfit::Expected(expected)),
        }
        if !rest.remove(&path) {
            return None;
        }
    }
    None
}

fn unknown_key(path: &[Step], known: &[&str]) -> String {
    let Some((Step::Key(key), table)) = path.split_last() else { return "unknown key".to_owned() };
    let meant = nearest(key, known);
    if matches!(&**key, "api_key" | "refresh_token" | "access_token") {
        return "a secret must not be in the configuration; `consentry org add` enrols it".to_owned();
    }
    if names_a_secret(key) {
        let secret_file = known.iter().find(|word| word.ends_with("secret_file") || word.ends_with("identity_file"));
        return match (meant, secret_file) {
            (Some(meant), _) if key.ends_with("file") => {
                format!("unknown key; did you mean {}?", sibling(table, meant))
            }
            (_, Some(file)) => {
                format!("a secret must not be in the configuration; put it into a file and name that with {file}")
            }
            _ => "unknown key, and a secret must not be in the configuration".to_owned(),
        };
    }
    match meant {
        Some(meant) => format!("unknown key; did you mean {}?", sibling(table, meant)),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

fn sibling(table: &[Step], key: &str) -> String {
    let path: Vec<Step> = table.iter().cloned().chain([Step::Key(key.to_owned())]).collect();
    dotted(&path)
}

fn unknown_word(given: Option<&Node>, known: &[&str]) -> Unfit {
    let allowed = known.join(", ");
    match given {
        Some(Node::Text(text)) => match nearest(text, known) {
            Some(meant) => Unfit::Because(format!("given {}; did you mean {meant:?}? Allowed: {allowed}", shown(text))),
            None => Unfit::Expected(format!("one of {allowed}")),
        },
        _ => Unfit::Expected(format!("one of {allowed}")),
    }
}

fn lines(problems: &[Problem]) -> String {
    let mut text = String::new();
    for (index, problem) in problems.iter().enumerate() {
        let line_end = if index + 1 < problems.len() { "\n" } else { "" };
        let _ = write!(text, "{problem}{line_end}");
    }
    if problems.len() >= MAX_PROBLEMS {
        text.push_str("\nthere may be more: mend these first");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_looked_for_in_the_order_that_is_promised() {
        let folder = tempfile::tempdir().expect("a folder");
        let [named, variable, usual] = ["named", "variable", "usual"].map(|name| {
            let file = folder.path().join(name);
            std::fs::write(&file, "").expect("written");
            file
        });
        let nowhere = folder.path().join("nowhere");
        let at = |explicit: Option<&Path>, variable: Option<&Path>, usual: &[&Path]| {
            locate_among(explicit, variable.map(|file| file.as_os_str().to_owned()), usual)
        };
        let found = |located: Result<Located, ConfigError>| located.expect("found").file;
        assert_eq!(found(at(Some(&named), Some(&variable), &[&usual])), named);
        assert_eq!(found(at(None, Some(&variable), &[&usual])), variable);
        assert_eq!(found(at(None, Some(Path::new("")), &[&nowhere, &usual])), usual);

        let error = at(None, Some(&nowhere), &[&usual]).expect_err("missing").to_string();
        assert!(
            error.ends_with("nowhere: there is no such file (named by $CONSENTRY_CONFIG); `consentry init` makes one")
        );
        let error = locate_among(None, None, &[Path::new("/nowhere/a"), Path::new("/nowhere/b")]).expect_err("none");
        assert_eq!(
            error.to_string(),
            "no configuration found: looked for /nowhere/a and /nowhere/b; make one with `consentry init`, or name one with --config"
        );
    }

    #[test]
    fn a_file_that_is_no_configuration_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("consentry.toml");
        let located = Located { file: file.clone() };
        let outcome = |content: &[u8]| {
            std::fs::write(&file, content).expect("written");
            load(&located)
        };
        assert_eq!(outcome(b"").expect("good").file, Some(file.clone()));
        assert!(matches!(outcome(&[0xff, 0xfe]), Err(ConfigError::Unreadable { .. })));
        assert!(matches!(outcome(&vec![b'#'; 1024 * 1024 + 1]), Err(ConfigError::TooLarge { .. })));
        assert!(matches!(load(&Located { file: folder.path().into() }), Err(ConfigError::Unreadable { .. })));
    }
}
