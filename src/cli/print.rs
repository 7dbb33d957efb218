//! Everything that is printed. Styled only where a person looks at it: on a terminal, and not under `NO_COLOR`.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

use super::Failure;
use crate::model::Timestamp;

/// The least width of a column that may be broken: what most words need.
const LEAST_COLUMN: u16 = 12;

/// Standard output, or in tests what stands in for it.
pub(super) struct Out {
    writer: Box<dyn Write + Send>,
    terminal: bool,
    style: Style,
}

/// Whether text is coloured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    on: bool,
}

/// What a colour means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Warning,
    Bad,
    Quiet,
    Strong,
}

impl Out {
    pub(super) fn stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        Self { writer: Box::new(io::stdout()), terminal, style: Style::of(terminal) }
    }

    #[cfg(test)]
    pub(super) fn of(writer: impl Write + Send + 'static) -> Self {
        Self { writer: Box::new(writer), terminal: false, style: Style { on: false } }
    }

    /// Whether a person looks at it.
    pub(super) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Columns and lines that the terminal shows; `None` where no terminal is, or it does not tell.
    pub(super) fn size(&self) -> Option<(usize, usize)> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|_| self.terminal)?;
        (size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
    }

    pub(super) const fn style(&self) -> Style {
        self.style
    }

    pub(super) fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        writeln!(self.writer, "{line}")?;
        Ok(())
    }

    /// Text as it is, and all of it on its way before this returns.
    pub(super) fn raw(&mut self, text: &[u8]) -> Result<(), Failure> {
        self.writer.write_all(text)?;
        self.writer.flush()?;
        Ok(())
    }

    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// An empty table with a header, made to fit the terminal.
    pub(super) fn table<'a>(&self, header: impl IntoIterator<Item = &'a str>) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if self.terminal && self.style.on {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.into_iter().map(|title| self.style.cell(Tone::Quiet, title)));
        table
    }

    pub(super) fn show(&mut self, table: &Table) -> Result<(), Failure> {
        self.line(table.trim_fmt())
    }
}

/// Keeps every column but those in `broken` from being broken to fit a narrow terminal: an id or a number in two
/// pieces is read wrongly.
pub(super) fn keep_whole(table: &mut Table, broken: &[usize]) {
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_constraint(if broken.contains(&place) {
            ColumnConstraint::LowerBoundary(Width::Fixed(LEAST_COLUMN))
        } else {
            ColumnConstraint::ContentWidth
        });
    }
}

impl Style {
    fn of(terminal: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { on: terminal && !unwanted }
    }

    /// Plain text.
    #[cfg(test)]
    pub(super) const fn off() -> Self {
        Self { on: false }
    }

    /// `text` in the colour of `tone`.
    pub(super) fn paint(self, tone: Tone, text: impl Display) -> String {
        if !self.on {
            return text.to_string();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A table's cell in the colour of `tone`.
    pub(super) fn cell(self, tone: Tone, text: impl Display) -> comfy_table::Cell {
        let cell = comfy_table::Cell::new(text.to_string());
        if !self.on {
            return cell;
        }
        match tone {
            Tone::Good => cell.fg(comfy_table::Color::Green),
            Tone::Warning => cell.fg(comfy_table::Color::Yellow),
            Tone::Bad => cell.fg(comfy_table::Color::Red),
            Tone::Quiet => cell.add_attribute(comfy_table::Attribute::Dim),
            Tone::Strong => cell.add_attribute(comfy_table::Attribute::Bold),
        }
    }
}

/// The colour of a state of the contract.
pub(super) fn tone_of_state(state: &str) -> Tone {
    match state {
        "active" => Tone::Good,
        "lost" => Tone::Bad,
        _ => Tone::Warning,
    }
}

/// Says on standard error what went wrong, in one line or two.
pub(super) fn failure(failure: &Failure) {
    if let Some((what, hint)) = failure.lines() {
        complaint(what, hint);
    }
}

/// One line of what is wrong, and one of what to do.
pub(super) fn complaint(what: &str, hint: Option<&str>) {
    let style = Style::of(io::stderr().is_terminal());
    tell(&format!("{} {what}", style.paint(Tone::Bad, "error:")));
    if let Some(hint) = hint {
        tell(&format!("{} {hint}", style.paint(Tone::Strong, "hint:")));
    }
}

/// How many columns the terminal behind standard error has; `None` where none is, or it does not tell.
pub(super) fn width_of_stderr() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

/// A line on standard error. Where nobody reads that either, there is nobody to tell.
pub(super) fn tell(line: &str) {
    let _unread = writeln!(io::stderr(), "{line}");
}

/// A time as people read it: `2026-01-31 12:00:00Z`, or `-`.
pub(super) fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.to_string().replacen('T', " ", 1))
}

/// A distance in time in its one or two largest units: `41d`, `3h 20m`, `58s`.
pub(super) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days @ 1..=6, hours, _) => format!("{days}d {hours}h"),
        (days, ..) => format!("{days}d"),
    }
}

/// `then` as seen from `now`: `in 3h 20m`, `58s ago`, or `-`.
pub(super) fn relative(then: Option<Timestamp>, now: Timestamp) -> String {
    match then {
        None => "-".to_owned(),
        Some(then) if then >= now => format!("in {}", span(then.since(now).as_secs())),
        Some(then) => format!("{} ago", span(now.since(then).as_secs())),
    }
}

/// Bytes in their largest unit.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Text that others may have chosen, without what a terminal would take for a command.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A TOML basic string. Every escape that JSON uses is one of TOML's too, but JSON leaves DEL as it is.
pub(super) fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

/// A field of a CSV line (RFC 4180).
pub(super) fn csv(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// As [`csv`], for text that others may have chosen: what a spreadsheet would run as a formula is marked as text with
/// a `'` in front.
pub(super) fn csv_text(field: &str) -> String {
    if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { csv(&format!("'{field}")) } else { csv(field) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_what_matters() {
        for (seconds, shown) in
            [(0, "0s"), (58, "58s"), (61, "1m 1s"), (12_000, "3h 20m"), (90_000, "1d 1h"), (41 * 86_400 + 5, "41d")]
        {
            assert_eq!(span(seconds), shown);
        }
    }

    #[test]
    fn csv_fields_are_quoted_where_they_must_be() {
        assert_eq!(csv("plain"), "plain");
        assert_eq!(csv("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(csv("-id"), "-id");
        assert_eq!(csv_text("=cmd(1,2)"), "\"'=cmd(1,2)\"");
    }

    #[test]
    fn text_of_others_cannot_command_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jæ\n"), "a\u{fffd}[2Jæ\u{fffd}");
    }

    #[test]
    fn any_text_can_be_written_as_toml() {
        let text = "a \"b\" \\ \u{7f} \n \u{1} æ";
        let toml = format!("key = {}", toml_text(text));
        let table = toml::de::DeTable::parse(&toml).expect("TOML");
        assert_eq!(table.get_ref()["key"].get_ref().as_str(), Some(text));
    }

    #[test]
    fn nothing_is_coloured_for_a_pipe() {
        let style = Style::of(false);
        assert_eq!(style.paint(Tone::Bad, "x"), "x");
    }
}
