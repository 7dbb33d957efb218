//! sled's log, read beside it: its main file, in segments of one size, each with a header and then message after message.
//!
//! A message is a checksum, its kind, the length of its contents, its segment's number and its page's; then its contents.

use std::{fs, fs::File, io, os::unix::fs::FileExt, path::Path};

/// The size of a segment, in bytes: sled's own default, which an existing database keeps for ever.
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;
/// The same, as log sequence numbers count it.
pub(super) const SEGMENT_LENGTH: i64 = 512 * 1024;
/// A segment's header: a checksum of the rest, its log sequence number, and what was stable when it was written.
const SEGMENT_HEADER_BYTES: usize = 20;
/// No message begins where less than this is left of a segment.
const MESSAGE_HEADER_BYTES: usize = 32;
/// The numbers in a segment's header are stored with all bits but the highest turned around, and checksums with all.
const NUMBER_MASK: i64 = i64::MAX;

/// The start of the names of sled's tables of pages; the log sequence number at which one ends follows.
pub(super) const TABLE: &str = "snap.";
/// How the name of a table ends that sled has not finished.
const UNFINISHED_TABLE: &str = ".generating";

/// What a message is, by the byte that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Nothing that was to be kept.
    Cancelled,
    /// Fills a segment up.
    Cap,
    /// Says where the batch that it begins ends.
    Batch,
    /// A page is free.
    Free,
    /// A page as a whole, with all that came before.
    Page,
    /// A change to a page.
    Link,
    /// Its contents are in a file of their own. No record is so large, and none is written.
    Elsewhere,
}

impl Kind {
    /// `None`: nothing was written there, or by nobody who is known here.
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Cancelled,
            2 => Self::Cap,
            3 => Self::Batch,
            4 => Self::Free,
            // A counter, what sled knows of its trees, and a part of a tree.
            5 | 6 | 8 => Self::Page,
            10 => Self::Link,
            7 | 9 | 11 => Self::Elsewhere,
            _ => return None,
        })
    }
}

/// A message whose checksum is right.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: Kind,
    /// The number of the page that it is about.
    pub(super) page: u64,
    /// Where in its segment it begins.
    pub(super) at: usize,
    /// All of it.
    pub(super) length: usize,
    pub(super) contents: &'a [u8],
}

/// The log sequence number in the header of the segment at `place`; `None` if there is no whole header.
pub(super) fn header(main: &File, place: u64) -> io::Result<Option<i64>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    match main.read_exact_at(&mut bytes, place * SEGMENT_BYTES as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    Ok(header_in(&bytes))
}

fn header_in(bytes: &[u8]) -> Option<i64> {
    let (checksum, checked) = bytes.get(..SEGMENT_HEADER_BYTES)?.split_first_chunk()?;
    let (lsn, _) = checked.split_first_chunk()?;
    let whole = crc32fast::hash(checked) == !u32::from_le_bytes(*checksum);
    whole.then(|| i64::from_le_bytes(*lsn) ^ NUMBER_MASK)
}

/// Where the newest table of pages ends; 0 where there is none, so that sled reads the whole log.
pub(super) fn table_end(folder: &Path) -> io::Result<i64> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if let Some(end) = name.strip_prefix(TABLE)
            && !end.ends_with(UNFINISHED_TABLE)
        {
            newest = newest.max(Some(end.to_owned()));
        }
    }
    let read = |end: String| i64::from_str_radix(&end, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    newest.map_or(Ok(0), read)
}

/// Removes the tables that sled had not finished writing when its process died. On opening it would take one for its newest, and
/// refuse the database; the finished one before is there still, since sled removes that last.
pub(super) fn remove_unfinished_tables(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TABLE) && name.ends_with(UNFINISHED_TABLE) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A segment's bytes; fewer at the end of the file.
pub(super) struct Segment {
    bytes: Vec<u8>,
    number: u64,
}

impl Segment {
    /// What is in the place of the segment with this log sequence number.
    pub(super) fn read(main: &File, place: u64, lsn: i64) -> io::Result<Self> {
        let mut bytes = vec![0; SEGMENT_BYTES];
        let (at, mut filled) = (place * SEGMENT_BYTES as u64, 0);
        while filled < bytes.len() {
            match main.read_at(&mut bytes[filled..], at + filled as u64)? {
                0 => break,
                more => filled += more,
            }
        }
        bytes.truncate(filled);
        Ok(Self { bytes, number: u64::try_from(lsn).unwrap_or_default() / SEGMENT_BYTES as u64 })
    }

    /// The log sequence number in its header, if that is whole.
    pub(super) fn header(&self) -> Option<i64> {
        header_in(&self.bytes)
    }

    /// Up to where there is one whole message after the other: the size of a segment where that is up to the end. An error
    /// where one leads elsewhere.
    pub(super) fn end(&self) -> io::Result<i64> {
        self.each(&mut |_| Ok(()))
    }

    /// Hands over one whole message after the other; gives what [`end`](Self::end) does.
    pub(super) fn each(&self, take: &mut dyn FnMut(&Message<'_>) -> io::Result<()>) -> io::Result<i64> {
        let mut at = SEGMENT_HEADER_BYTES;
        while at + MESSAGE_HEADER_BYTES <= SEGMENT_BYTES {
            let Some(message) = self.message(at) else { return Ok(i64::try_from(at).expect("less than a segment")) };
            match message.kind {
                Kind::Elsewhere => return Err(io::ErrorKind::InvalidData.into()),
                Kind::Cap => break,
                _ => take(&message)?,
            }
            at += message.length;
        }
        Ok(SEGMENT_LENGTH)
    }

    fn message(&self, at: usize) -> Option<Message<'_>> {
        let message = self.bytes.get(at..)?;
        let (checksum, rest) = message.split_first_chunk()?;
        let (&kind, mut rest) = rest.split_first()?;
        let (length, number, page) = (read_number(&mut rest)?, read_number(&mut rest)?, read_number(&mut rest)?);
        let contents = rest.get(..usize::try_from(length).ok()?)?;
        let head = &message[4..message.len() - rest.len()];
        let mut hash = crc32fast::Hasher::new();
        hash.update(contents);
        hash.update(head);
        let whole = number == self.number && hash.finalize() == !u32::from_le_bytes(*checksum);
        let kind = Kind::of(kind).filter(|_| whole)?;
        Some(Message { kind, page, at, length: 4 + head.len() + contents.len(), contents })
    }
}

/// Takes a number off, of one byte to nine.
pub(super) fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    let (value, length) = match first {
        0..=240 => (u64::from(first), 0),
        241..=248 => (240 + 256 * (u64::from(first) - 241) + u64::from(*rest.first()?), 1),
        249 => (2288 + 256 * u64::from(*rest.first()?) + u64::from(*rest.get(1)?), 2),
        250..=255 => {
            let length = usize::from(first) - 247;
            let mut value = [0; 8];
            value[..length].copy_from_slice(rest.get(..length)?);
            (u64::from_le_bytes(value), length)
        }
    };
    *bytes = rest.get(length..)?;
    Some(value)
}

/// Adds a number, of one byte to nine.
pub(super) fn write_number(output: &mut Vec<u8>, number: u64) {
    let bytes = number.to_le_bytes();
    let byte = |number: u64| number.to_le_bytes()[0];
    match number {
        0..=240 => output.push(byte(number)),
        241..=2287 => output.extend([byte((number - 240) / 256 + 241), byte((number - 240) % 256)]),
        2288..=67_823 => output.extend([249, byte((number - 2288) / 256), byte((number - 2288) % 256)]),
        _ => {
            let length = 8 - usize::try_from(number.leading_zeros() / 8).expect("at most eight");
            output.push(247 + u8::try_from(length).expect("at most eight"));
            output.extend(&bytes[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_reads_back_whatever_its_length() {
        let edges = [0, 1, 240, 241, 2287, 2288, 67_823, 67_824, 1 << 24, (1 << 32) - 1, 1 << 32, 1 << 56, u64::MAX];
        for number in edges {
            let mut bytes = Vec::new();
            write_number(&mut bytes, number);
            let mut rest = &bytes[..];
            assert_eq!((read_number(&mut rest), rest), (Some(number), &[][..]));
        }
    }
}
