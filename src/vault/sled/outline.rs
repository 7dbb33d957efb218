//! What sled goes by when it recovers, and whether all of it is still as it was at the last sync.
//!
//! sled's main file is a log in segments of one size, each with a log sequence number in its header. On opening, sled reads
//! its newest `snap.*` file (which has a checksum, and is refused where that is wrong), every segment's header, and every
//! message of the segments that are younger than the snapshot: its **tail**. Its table of pages follows from these alone.
//! Damage there is made worse in silence: a segment whose header is wrong is taken for a free one, a wrong message ends its
//! segment or the whole log, and what is then taken for free is zeroed. Everything else is read later, piece by piece, and
//! is refused where its checksum is wrong.
//!
//! So each [`keep`] lists the segments and where the log ends, and [`is_as_kept`] says before sled is let near its
//! files whether they have all that: every segment of the list has its header; of the tail, every message up to where the
//! log ended has its checksum. A segment that is gone from the list's place must have been written over by a later part of
//! the log, or the file must end, where a segment ends, before it: sled gives back what is free there. Of what was written after the list nothing is asked: the journal has those commits, and they are written once
//! more. The answer is no where anything is unclear, too, and that costs time and nothing else: a copy is tried then.
//!
//! The list is the file `outline` beside sled's own. It is neither synced nor missed, and all numbers are little endian:
//!
//! ```text
//! offset  bytes  what
//!      0      8  "cnstryOL"
//!      8      8  the last commit in the engine
//!     16      8  the log sequence number at which the log ended
//!     24      8  how many segments follow
//!     32    8 n  the log sequence number in each one's header; -1 where it has none
//! 32+8n      4  checksum of all before it, CRC-32C
//! ```

use std::{
    fs::{self, File},
    io,
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    panic::resume_unwind,
    path::Path,
    thread,
};

/// The size of a segment, in bytes: sled's own default, which an existing database keeps for ever.
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;
/// The same, as log sequence numbers count it.
const SEGMENT_LENGTH: i64 = 512 * 1024;
/// How many threads look at most.
const MOST_THREADS: usize = 8;
/// A segment's header: a checksum of the rest, its log sequence number, and what was stable when it was written.
const SEGMENT_HEADER_BYTES: usize = 20;
/// No message begins where less than this is left of a segment.
const MESSAGE_HEADER_BYTES: usize = 32;
/// The numbers in a segment's header are stored with all bits but the highest turned around, and checksums with all.
const NUMBER_MASK: i64 = i64::MAX;
/// The kind of message that is none: nothing was written there.
const NOTHING: u8 = 0;
/// The kind of message that fills a segment up.
const CAP: u8 = 2;
/// Kinds of messages whose contents are in a file of their own. No record is so large, and none is written.
const ELSEWHERE: [u8; 3] = [7, 9, 11];

const NAME: &str = "outline";
const MAGIC: &[u8; 8] = b"cnstryOL";
const HEAD_BYTES: usize = 32;
/// The largest list that is read, in bytes: of a database of 32 GiB for each MiB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// In the list, for a segment without a header.
const NONE: i64 = -1;

/// The list.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outline {
    /// The last commit in the engine.
    applied: u64,
    /// Where the log ended.
    end: i64,
    /// By place in the file.
    segments: Vec<Option<i64>>,
}

/// Whether everything that sled would go by on opening the database in `folder` is there as at a sync that was made with
/// one of these commits. Changes nothing.
pub(in crate::vault) fn is_as_kept(folder: &Path, commits: RangeInclusive<u64>) -> bool {
    let look = || -> io::Result<bool> {
        let Some(outline) = Outline::read(folder)? else { return Ok(false) };
        let main = File::open(folder.join("db"))?;
        Ok(commits.contains(&outline.applied) && outline.is_in(&main, snapshot_end(folder)?)?)
    };
    look().unwrap_or(false)
}

/// Lists what is in `main`, sled's file in `folder`, in which every commit up to `applied` is on the disk. Without it, only
/// the next opening is slower.
pub(super) fn keep(folder: &Path, main: &File, applied: u64) -> io::Result<()> {
    let path = folder.join(NAME);
    let new = path.with_extension("new");
    fs::write(&new, Outline::of(main, applied)?.encode())?;
    fs::rename(&new, &path)
}

/// Makes the next opening try a copy, as far as the disk lets it.
pub(in crate::vault) fn forget(folder: &Path) {
    let _ = fs::remove_file(folder.join(NAME));
}

impl Outline {
    fn of(main: &File, applied: u64) -> io::Result<Self> {
        let segments = main.metadata()?.len().div_ceil(SEGMENT_BYTES as u64);
        let segments = (0..segments).map(|place| header(main, place)).collect::<io::Result<Vec<_>>>()?;
        let newest = (0u64..).zip(&segments).filter_map(|(place, lsn)| Some(((*lsn)?, place))).max();
        let end = match newest {
            Some((lsn, place)) => lsn + Segment::read(main, place, lsn)?.end()?,
            None => 0,
        };
        Ok(Self { applied, end, segments })
    }

    /// Whether `main` still has all of it that matters to a sled whose snapshot ends at `snapshot`. Several threads look.
    fn is_in(&self, main: &File, snapshot: i64) -> io::Result<bool> {
        let kept: Vec<_> = (0u64..).zip(&self.segments).filter_map(|(place, lsn)| Some((place, (*lsn)?))).collect();
        let cores = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let look = |part: &[(u64, i64)]| -> io::Result<bool> {
            for (place, lsn) in part {
                if !self.has_segment(main, snapshot, *place, *lsn)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        thread::scope(|scope| {
            let parts = kept.chunks(kept.len().div_ceil(cores).max(1));
            let looking: Vec<_> = parts.map(|part| scope.spawn(move || look(part))).collect();
            let mut all = true;
            for part in looking {
                all &= part.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            }
            Ok(all)
        })
    }

    /// Whether the segment at `place` is what it was, or was written over since.
    fn has_segment(&self, main: &File, snapshot: i64, place: u64, lsn: i64) -> io::Result<bool> {
        match header(main, place)? {
            Some(now) if now == lsn => {
                let is_read = lsn + SEGMENT_LENGTH > snapshot;
                Ok(!is_read || Segment::read(main, place, lsn)?.end()? >= (self.end - lsn).min(SEGMENT_LENGTH))
            }
            Some(now) => Ok(now >= self.end),
            // sled gives free segments at the end of its file back, and never the one that the log ended in.
            None => {
                let length = main.metadata()?.len();
                let is_past_the_end = place * SEGMENT_BYTES as u64 >= length;
                Ok(is_past_the_end && length.is_multiple_of(SEGMENT_BYTES as u64) && lsn + SEGMENT_LENGTH < self.end)
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 8 * self.segments.len() + 4);
        bytes.extend(MAGIC);
        bytes.extend(self.applied.to_le_bytes());
        bytes.extend(self.end.to_le_bytes());
        bytes.extend((self.segments.len() as u64).to_le_bytes());
        bytes.extend(self.segments.iter().flat_map(|lsn| lsn.unwrap_or(NONE).to_le_bytes()));
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn read(folder: &Path) -> io::Result<Option<Self>> {
        let path = folder.join(NAME);
        if fs::metadata(&path)?.len() > MAX_BYTES {
            return Ok(None);
        }
        Ok(Self::decode(&fs::read(path)?))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (checked, checksum) = bytes.split_last_chunk()?;
        let (head, segments) = checked.split_at_checked(HEAD_BYTES)?;
        let number = |at: usize| head[at..at + 8].try_into().expect("eight bytes");
        let whole = head.starts_with(MAGIC)
            && crc32c::crc32c(checked) == u32::from_le_bytes(*checksum)
            && u64::from_le_bytes(number(24)) == (segments.len() / 8) as u64;
        let numbers = segments.chunks_exact(8).map(|lsn| i64::from_le_bytes(lsn.try_into().expect("eight bytes")));
        whole.then(|| Self {
            applied: u64::from_le_bytes(number(8)),
            end: i64::from_le_bytes(number(16)),
            segments: numbers.map(|lsn| Some(lsn).filter(|lsn| *lsn != NONE)).collect(),
        })
    }
}

/// The log sequence number in the header of the segment at `place`; `None` if there is no whole header.
fn header(main: &File, place: u64) -> io::Result<Option<i64>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    match main.read_exact_at(&mut bytes, place * SEGMENT_BYTES as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (checksum, checked) = bytes.split_first_chunk().expect("it is longer");
    let (lsn, _) = checked.split_first_chunk().expect("it is longer");
    let whole = crc32fast::hash(checked) == !u32::from_le_bytes(*checksum);
    Ok(whole.then(|| i64::from_le_bytes(*lsn) ^ NUMBER_MASK))
}

/// Where the newest snapshot ends; 0 where there is none, so that sled reads the whole log.
fn snapshot_end(folder: &Path) -> io::Result<i64> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if let Some(end) = name.strip_prefix("snap.") {
            newest = newest.max(Some(end.to_owned()));
        }
    }
    // One that was not finished has another name, and is refused by sled.
    let read = |end: String| i64::from_str_radix(&end, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    newest.map_or(Ok(0), read)
}

/// A segment's bytes; fewer at the end of the file.
struct Segment {
    bytes: Vec<u8>,
    number: u64,
}

impl Segment {
    fn read(main: &File, place: u64, lsn: i64) -> io::Result<Self> {
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

    /// Up to where there is one whole message after the other: the size of a segment where that is up to the end. An error
    /// where one leads elsewhere.
    fn end(&self) -> io::Result<i64> {
        let mut at = SEGMENT_HEADER_BYTES;
        while at + MESSAGE_HEADER_BYTES <= SEGMENT_BYTES {
            match self.message(at) {
                Some((kind, _)) if ELSEWHERE.contains(&kind) => return Err(io::ErrorKind::InvalidData.into()),
                Some((CAP, _)) => return Ok(SEGMENT_LENGTH),
                Some((_, length)) => at += length,
                None => return Ok(i64::try_from(at).expect("less than a segment")),
            }
        }
        Ok(SEGMENT_LENGTH)
    }

    /// The kind and the length of the message at `at`: its checksum, kind, length, segment and page, then its contents.
    fn message(&self, at: usize) -> Option<(u8, usize)> {
        let message = self.bytes.get(at..)?;
        let (checksum, rest) = message.split_first_chunk()?;
        let (&kind, mut rest) = rest.split_first()?;
        let (length, number, _page) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
        let contents = rest.get(..usize::try_from(length).ok()?)?;
        let head = &message[4..message.len() - rest.len()];
        let mut hash = crc32fast::Hasher::new();
        hash.update(contents);
        hash.update(head);
        let whole = kind != NOTHING && number == self.number && hash.finalize() == !u32::from_le_bytes(*checksum);
        whole.then(|| (kind, 4 + head.len() + contents.len()))
    }
}

/// Takes a number off, of one byte to nine.
fn number(bytes: &mut &[u8]) -> Option<u64> {
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
