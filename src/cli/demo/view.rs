//! What a person sees: a picture that is drawn over on a terminal, a line an event elsewhere.

use std::fmt::Write as _;

use comfy_table::{Cell, Table};

use super::{
    scene::{Event, Player, Scene},
    stage::{Stage, TOKEN_LIFETIME},
};
use crate::cli::{
    Failure,
    print::{self, Out, Tone},
};

/// Events below the table, where the terminal has room for them.
const EVENTS: usize = 8;
/// The width that the whole table takes.
const WIDTH: usize = 80;
/// How many of its columns are shown on a narrower terminal.
const NARROW: usize = 3;
/// How high a terminal is taken to be that does not tell.
const USUAL_HEIGHT: usize = 24;
/// Length of the bar of an access token's life.
const BAR: usize = 8;
/// How wide a terminal is taken to be that does not tell.
const USUAL_WIDTH: u16 = 80;

/// Remembers what is on the screen.
pub(super) struct View {
    /// Lines of the last picture.
    drawn: usize,
    /// The next event to be told in a line.
    next_event: u64,
}

impl View {
    pub(super) fn new(stage: &Stage, out: &mut Out) -> Result<Self, Failure> {
        let style = out.style();
        out.line(format_args!(
            "{}: a sandbox issuer, a vault in a temporary folder, and the worker.",
            style.paint(Tone::Strong, "consentry demo"),
        ))?;
        out.line(format_args!("Access tokens live {} s here. Ctrl-C ends it.\n", TOKEN_LIFETIME.as_secs()))?;
        out.line("Fetch a token yourself:")?;
        out.line(format_args!("  curl --unix-socket {} \\", stage.client().socket().display()))?;
        out.line("    http://localhost/v1/organizations/bageriet/token")?;
        out.line(format_args!("Issuer:   {}", stage.issuer_url()))?;
        if let Some(http) = stage.http() {
            out.line(format_args!("Metrics:  http://{http}/metrics"))?;
        }
        out.line("")?;
        Ok(Self { drawn: 0, next_event: 0 })
    }

    pub(super) fn draw(&mut self, scene: &Scene, out: &mut Out) -> Result<(), Failure> {
        if out.is_terminal() { self.redraw(scene, out) } else { self.tell(scene, out) }
    }

    fn tell(&mut self, scene: &Scene, out: &mut Out) -> Result<(), Failure> {
        let (events, next) = scene.events_from(self.next_event);
        for event in events {
            out.line(line(event))?;
        }
        self.next_event = next;
        Ok(())
    }

    fn redraw(&mut self, scene: &Scene, out: &mut Out) -> Result<(), Failure> {
        let table = table(scene, out);
        let width = usize::from(table.width().unwrap_or(USUAL_WIDTH));
        let style = out.style();
        let mut picture = format!("{}\n\n", table.trim_fmt());
        // What has scrolled off the top cannot be drawn over: the picture and the cursor's line must fit.
        let room = out.size().map_or(USUAL_HEIGHT, |(_, lines)| lines).saturating_sub(picture.lines().count() + 1);
        for event in scene.last_events(EVENTS.min(room)) {
            // A line that wraps would spoil the count of lines to go back.
            let line: String = line(event).chars().take(width.saturating_sub(1)).collect();
            let _written = writeln!(picture, "{}", style.paint(Tone::Quiet, line));
        }
        let back = back(self.drawn);
        self.drawn = picture.lines().count();
        out.raw(format!("{back}{picture}").as_bytes())
    }

    /// What came of it, and what the issuer says.
    pub(super) fn end(&mut self, scene: &Scene, stage: &Stage, out: &mut Out) -> Result<(), Failure> {
        self.draw(scene, out)?;
        out.line("")?;
        if !out.is_terminal() {
            let table = table(scene, out);
            out.show(&table)?;
        }
        let (exchanges, replays) = (stage.issuer().exchanges(), stage.issuer().replays());
        let tone = if replays == 0 { Tone::Good } else { Tone::Bad };
        let replays = out.style().paint(tone, format_args!("{replays} replays of a spent refresh token"));
        out.line(format_args!("The issuer's own record: {exchanges} exchanges, {replays}."))
    }
}

/// Back to the first of so many lines, and everything from there on away. The terminal may have written `^C` into the
/// cursor's line, so that goes first.
fn back(lines: usize) -> String {
    if lines == 0 { String::new() } else { format!("\r\u{1b}[{lines}A\u{1b}[J") }
}

fn line(event: &Event) -> String {
    format!("{:>6.1}s  {:<12}  {}", event.at.as_secs_f64(), event.organization, event.what)
}

fn table(scene: &Scene, out: &Out) -> Table {
    let header = ["organization", "state", "access token", "refreshes", "fetches", "kind", "consent ends"];
    let narrow = out.size().is_some_and(|(columns, _)| columns < WIDTH);
    let columns = if narrow { NARROW } else { header.len() };
    let mut table = out.table(header.into_iter().take(columns));
    for player in &scene.players {
        table.add_row(row(player, scene, out).into_iter().take(columns));
    }
    table
}

fn row(player: &Player, scene: &Scene, out: &Out) -> Vec<Cell> {
    let style = out.style();
    let seen = &player.seen;
    let left = seen.access_token_expires_at.map_or(0, |end| end.since(scene.now()).as_secs());
    let ends = match scene.days_left(seen) {
        None => style.cell(Tone::Quiet, "never"),
        Some(left) => {
            let tone = if seen.consent.as_ref().is_some_and(|consent| !consent.warned.is_empty()) {
                Tone::Warning
            } else {
                Tone::Quiet
            };
            style.cell(tone, format_args!("in {}", print::span(left.as_secs())))
        }
    };
    vec![
        style.cell(Tone::Strong, &seen.organization),
        style.cell(print::tone_of_state(&seen.state), &seen.state),
        Cell::new(format!("{} {left:>2}s", bar(left, TOKEN_LIFETIME.as_secs()))),
        Cell::new(player.refreshes),
        Cell::new(player.fetches),
        Cell::new(player.kind),
        ends,
    ]
}

/// How much of `whole` is left.
fn bar(left: u64, whole: u64) -> String {
    let filled = usize::try_from(left.min(whole) * BAR as u64 / whole.max(1)).unwrap_or(0);
    format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_drawn_over_from_the_first_column_of_its_first_line() {
        assert_eq!((back(0), back(12)), (String::new(), "\r\u{1b}[12A\u{1b}[J".to_owned()));
    }

    #[test]
    fn the_bar_empties_and_never_overflows() {
        assert_eq!((bar(0, 8), bar(4, 8), bar(99, 8)), ("░░░░░░░░".into(), "████░░░░".into(), "████████".into()));
        assert_eq!(bar(1, 0).chars().count(), BAR);
    }
}
