//! Reading lines of bounded length from a file or from standard input, on a thread of its own.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufRead, Read},
    sync::Arc,
};

use tokio::sync::mpsc::Sender;

use super::{line, progress::Progress};

/// The longest line, in bytes.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// What the reader hands to a sender.
#[derive(Debug)]
pub(super) struct Numbered {
    /// Counts from 1, as editors do.
    pub(super) number: u64,
    pub(super) line: line::Line,
}

/// Reads every line and hands it to the sender that its organization belongs to, so that two lines of one organization
/// are sent in their order. Lines that cannot be sent are told to `progress`. Ends early when nobody receives any more.
pub(super) fn lines(
    mut input: impl BufRead,
    verify: bool,
    senders: &[Sender<Numbered>],
    progress: &Arc<Progress>,
) -> io::Result<()> {
    let mut text = Vec::with_capacity(4096);
    let mut number = 0;
    loop {
        text.clear();
        let read = (&mut input).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(());
        }
        number += 1;
        progress.read(read as u64);
        if read > MAX_LINE && !text.ends_with(b"\n") {
            progress.failed(number, &format!("it is longer than {MAX_LINE} bytes"));
            progress.read(skip_line(&mut input)?);
            continue;
        }
        let trimmed = text.trim_ascii();
        // Some editors begin a file with a byte-order mark.
        let trimmed = if number == 1 { trimmed.strip_prefix(b"\xef\xbb\xbf").unwrap_or(trimmed) } else { trimmed };
        if trimmed.is_empty() {
            continue;
        }
        match line::parse(trimmed, verify) {
            Ok(line) => {
                let sender = &senders[place(line.organization.as_str(), senders.len())];
                if sender.blocking_send(Numbered { number, line }).is_err() {
                    return Ok(());
                }
            }
            Err(why) => progress.failed(number, &why),
        }
    }
}

fn place(organization: &str, places: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    organization.hash(&mut hasher);
    usize::try_from(hasher.finish() % places as u64).unwrap_or(0)
}

/// Reads on to the end of the line without keeping it.
fn skip_line(input: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |end| end + 1);
        input.consume(used);
        skipped += used as u64;
        if end.is_some() {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn line(organization: &str) -> String {
        format!(r#"{{"organization":"{organization}","provider":"p","refresh_token":"r"}}"#)
    }

    fn read(text: &[u8]) -> (Vec<(u64, String)>, u64) {
        let (sender, mut receiver) = mpsc::channel(16);
        let progress = Arc::new(Progress::silent());
        lines(text, false, &[sender], &progress).expect("read");
        let mut seen = Vec::new();
        while let Ok(numbered) = receiver.try_recv() {
            seen.push((numbered.number, numbered.line.organization.to_string()));
        }
        (seen, progress.counts().failed)
    }

    #[test]
    fn a_bad_line_stops_nothing_and_empty_lines_are_no_lines() {
        let [one, two, three] = ["1", "2", "3"].map(line);
        let text = format!("\u{feff}{one}\n\n{{bad\n{two}\r\n  \n{three}");
        let (seen, failed) = read(text.as_bytes());
        assert_eq!(seen, [(1, "1".to_owned()), (4, "2".to_owned()), (6, "3".to_owned())]);
        assert_eq!(failed, 1);
    }

    #[test]
    fn a_line_without_end_is_skipped_and_takes_no_memory() {
        let mut text = vec![b'x'; 3 * MAX_LINE];
        text.extend_from_slice(format!("\n{}\n", line("2")).as_bytes());
        let (seen, failed) = read(&text);
        assert_eq!((seen, failed), (vec![(2, "2".to_owned())], 1));
    }

    #[test]
    fn lines_of_one_organization_keep_their_order() {
        assert_eq!(place("123", 32), place("123", 32));
        assert!((0..1000).map(|id| place(&id.to_string(), 32)).max() < Some(32));
    }
}
