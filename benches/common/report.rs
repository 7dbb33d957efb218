//! Medians, tables and files.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::{Map, Value, json};

/// One measured value over the rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// Adds a round.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The same in another unit.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|value| value * factor).collect())
    }

    /// The value in the middle; of an even number, the mean of both.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// How far the rounds lie apart: the largest less the smallest, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        let largest = self.0.iter().copied().fold(f64::MIN, f64::max);
        let smallest = self.0.iter().copied().fold(f64::MAX, f64::min);
        (largest - smallest) / self.median()
    }

    /// `12.3 ±4 %`: the median, and half the spread.
    pub(crate) fn shown(&self, decimals: usize) -> String {
        format!("{} ±{:.0} %", thousands(self.median(), decimals), self.spread() * 50.0)
    }

    /// Everything, for the file.
    pub(crate) fn json(&self) -> Value {
        json!({ "median": self.median(), "spread": self.spread(), "rounds": self.0 })
    }
}

/// A number with commas between the thousands.
pub(crate) fn thousands(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.find('.').map_or((text.as_str(), ""), |dot| text.split_at(dot));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

/// What a benchmark found: tables on standard output, and `target/bench/NAME.json`.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    values: Map<String, Value>,
}

impl Report {
    /// A report of the benchmark `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        let report = Self { name, values: Map::new() };
        say(&format!("# {name}"));
        report
    }

    /// A sentence about how it was measured.
    pub(crate) fn note(&mut self, text: &str) {
        say(text);
        let notes = self.values.entry("notes").or_insert_with(|| json!([]));
        if let Some(notes) = notes.as_array_mut() {
            notes.push(json!(text));
        }
    }

    /// Keeps a value for the file.
    pub(crate) fn keep(&mut self, key: &str, value: Value) {
        self.values.insert(key.to_owned(), value);
    }

    /// Writes the file.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.values.insert("benchmark".to_owned(), json!(self.name));
        self.values.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.values.insert("cores".to_owned(), json!(cores));
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("."));
        let folder = target.join("bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{}.json", self.name));
        fs::write(&file, serde_json::to_vec_pretty(&Value::Object(self.values))?)?;
        say(&format!("written to target/bench/{}.json", self.name));
        Ok(())
    }
}

/// A table: names of columns, and rows of as many cells.
pub(crate) fn table(columns: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.chain([columns[at].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}", padded.collect::<String>())
    };
    say(&format!("\n{}", line(&mut columns.iter().copied())));
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    say(&line(&mut rule.iter().map(String::as_str)));
    for row in rows {
        say(&line(&mut row.iter().map(String::as_str)));
    }
    say("");
}

/// Prints a line.
#[expect(clippy::print_stdout, reason = "a benchmark prints what it found")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
