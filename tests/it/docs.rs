//! The documentation against the worker: `docs/metrics.md` against a scrape, `ARCHITECTURE.md` against the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::harness::{eventually, worker::Setup};

const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const METRICS: &str = include_str!("../../docs/metrics.md");

/// The metric that names organizations has no series until one needs attention.
const NEEDS_ATTENTION: &str = "consentry_consent_expiration_timestamp_seconds{";

/// Labels whose values come from the configuration or from outside, so that no document can list them.
const FREE: [&str; 4] = ["organization", "provider", "version", "within"];

/// Type and labels by name.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

#[test]
fn every_metric_is_described_with_its_type_its_labels_and_their_values() {
    // Nobody listens there, so that the first exchange fails and the organization needs attention.
    let lines = "kind = \"oauth2\"\nclient_id = \"example\"\ntoken_url = \"http://127.0.0.1:1/token\"\n";
    let worker = Setup::default().provider("unreachable", "client-secret", lines).start();
    let body = json!({
        "provider": "unreachable",
        "refresh_token": "refresh-token",
        "expires_at": "2026-01-01T00:00:00Z",
        "verify": false,
    });
    let enrolled = worker.enrol("org-a", &body);
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    let text = eventually("the organization is among the metrics", || {
        Some(worker.metrics()).filter(|text| text.contains(NEEDS_ATTENTION))
    });

    assert_eq!(described(), exposed(&text));
    for (label, value) in text.lines().flat_map(labels).filter(|(label, _)| !FREE.contains(label) && *label != "le") {
        assert!(METRICS.contains(&format!("`{value}`")), "{label} = {value:?} is not described");
    }
}

/// What the document's tables say: a row is name, type, labels and meaning.
fn described() -> Families {
    let rows = METRICS.lines().filter(|line| line.starts_with("| `consentry_"));
    let families: Vec<_> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let labels = cells[3].split(", ").filter(|label| *label != "none").map(unquoted).collect();
            (unquoted(cells[1]), (cells[2].to_owned(), labels))
        })
        .collect();
    let count = families.len();
    let families: Families = families.into_iter().collect();
    assert_eq!(families.len(), count, "a metric is described twice");
    families
}

fn unquoted(cell: &str) -> String {
    cell.strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'))
        .unwrap_or_else(|| panic!("{cell:?} is not in backticks"))
        .to_owned()
}

/// What a scrape shows, in Prometheus's text format 0.0.4.
fn exposed(text: &str) -> Families {
    let mut families: Families = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeSet::new())))
        .collect();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap_or(line);
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let family = of_histogram.filter(|name| families.contains_key(*name)).unwrap_or(name);
        let (_, known) = families.get_mut(family).unwrap_or_else(|| panic!("{name} has no type"));
        known.extend(labels(line).into_iter().map(|(label, _)| label.to_owned()).filter(|label| label != "le"));
    }
    families
}

/// A sample's labels. No value of ours holds a quote or a comma.
fn labels(line: &str) -> Vec<(&str, &str)> {
    let Some((_, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) else { return Vec::new() };
    let (labels, _) = rest.split_once("\"} ").expect("labels end");
    labels.split("\",").map(|label| label.split_once("=\"").expect("a label is written name=\"value\"")).collect()
}

#[test]
fn every_name_in_the_architecture_is_defined_where_its_link_leads() {
    let (mut linked, mut wrong) = (BTreeSet::new(), Vec::new());
    for (name, path) in ARCHITECTURE.lines().filter_map(|line| line.strip_prefix("[`")?.split_once("`]: ")) {
        linked.insert(name);
        let source = fs::read_to_string(root().join(path)).unwrap_or_default();
        let (parent, item) = name.rsplit_once("::").unwrap_or(("", name));
        let defined =
            ["fn", "struct", "enum", "trait", "const"].iter().any(|kind| has(&source, &format!("{kind} {item}")));
        let fits = parent.chars().next().is_none_or(char::is_lowercase)
            || ["impl", "struct", "trait"].iter().any(|kind| has(&source, &format!("{kind} {parent}")));
        if !(defined && fits) {
            wrong.push(format!("{path} does not define {name}"));
        }
    }
    let used = ARCHITECTURE.split("[`").skip(1).filter_map(|rest| rest.split_once("`]")).map(|(name, _)| name);
    wrong.extend(used.filter(|name| !linked.contains(name)).map(|name| format!("{name} has no link")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_uses_the_rooms_that_the_architecture_says_and_no_other() {
    let rows = ARCHITECTURE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let said: BTreeMap<String, BTreeSet<String>> = rows
        .map(|(room, rest)| {
            let uses = rest.split(" | ").next().unwrap_or_default();
            (room.to_owned(), uses.split(", ").filter(|room| *room != "none").map(unquoted).collect())
        })
        .collect();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(&root().join("src")) {
        let path = file.strip_prefix(root().join("src")).expect("below it").to_owned();
        let room = path.components().next().expect("a file").as_os_str().to_string_lossy().replace(".rs", "");
        let mut text = fs::read_to_string(&file).expect("a source");
        if room == "main" {
            // The binary is a crate of its own.
            text = text.replace("consentry::", "crate::");
        }
        // `tests` and `simulation` are rooms of the tests alone, and look into all of them.
        if !["lib", "simulation", "tests"].contains(&room.as_str()) {
            found.entry(room.clone()).or_default().extend(uses(&text).into_iter().filter(|used| *used != room));
        }
    }
    assert_eq!(said, found);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether `words` are in `text` and end there.
fn has(text: &str, words: &str) -> bool {
    text.match_indices(words)
        .any(|(at, _)| !text[at + words.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Every source below `folder` that is not for tests alone.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let kept = entries.filter(|path| !path.ends_with("tests") && !path.ends_with("tests.rs"));
    kept.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The rooms that a source names in `use crate::…` or in a path, its tests and comments left out.
fn uses(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let mut rooms = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if !rest.starts_with('{') {
            rooms.insert(word(rest));
            continue;
        }
        let mut depth = 0;
        for (at, c) in rest.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 {
                break;
            }
            if depth == 1 && (c == '{' || c == ',') {
                rooms.insert(word(rest[at + 1..].trim_start()));
            }
        }
    }
    rooms.remove("");
    rooms
}
