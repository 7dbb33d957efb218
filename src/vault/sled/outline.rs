//! What sled goes by when it recovers, and whether all of it is still as it was at the last sync.
//!
//! sled's main file is a log in segments of one size, each with a log sequence number in its header. On opening, sled reads
//! its newest `snap.*` file, its table of pages (which has a checksum, and is refused where that is wrong), every segment's header, and every
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
    panic::resume_unwind,
    path::Path,
    thread,
};

use super::log::{SEGMENT_BYTES, SEGMENT_LENGTH, Segment, header, table_end};

/// How many threads look at most.
const MOST_THREADS: usize = 8;

const NAME: &str = "outline";
const MAGIC: &[u8; 8] = b"cnstryOL";
const HEAD_BYTES: usize = 32;
/// The largest list that is read, in bytes: of a database of 32 GiB for each MiB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// In the list, for a segment without a header.
const NONE: i64 = -1;

/// The list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outline {
    /// The last commit in the engine.
    applied: u64,
    /// Where the log ended.
    pub(super) end: i64,
    /// The log sequence numbers of the segments, by their place in the file.
    segments: Vec<Option<i64>>,
}

/// Whether everything that sled would go by on opening the database in `folder` is there as at a sync that was made with
/// one of these commits. Changes nothing.
pub(in crate::vault) fn is_as_kept(folder: &Path, commits: RangeInclusive<u64>) -> bool {
    let look = || -> io::Result<bool> {
        let Some(outline) = Outline::read(folder)? else { return Ok(false) };
        let main = File::open(folder.join("db"))?;
        Ok(commits.contains(&outline.applied) && outline.is_in(&main, table_end(folder)?)?)
    };
    look().unwrap_or(false)
}

/// Lists what is in `main`, sled's file in `folder`, in which every commit up to `applied` is on the disk. Without it, only
/// the next opening is slower.
pub(super) fn keep(folder: &Path, main: &File, applied: u64) -> io::Result<Outline> {
    let path = folder.join(NAME);
    let new = path.with_extension("new");
    let outline = Outline::of(main, applied)?;
    fs::write(&new, outline.encode())?;
    fs::rename(&new, &path)?;
    Ok(outline)
}

/// Makes the next opening try a copy, as far as the disk lets it.
pub(in crate::vault) fn forget(folder: &Path) {
    let _ = fs::remove_file(folder.join(NAME));
}

impl Outline {
    pub(super) fn of(main: &File, applied: u64) -> io::Result<Self> {
        let segments = main.metadata()?.len().div_ceil(SEGMENT_BYTES as u64);
        let segments = (0..segments).map(|place| header(main, place)).collect::<io::Result<Vec<_>>>()?;
        let newest = (0u64..).zip(&segments).filter_map(|(place, lsn)| Some(((*lsn)?, place))).max();
        let end = match newest {
            Some((lsn, place)) => lsn + Segment::read(main, place, lsn)?.end()?,
            None => 0,
        };
        Ok(Self { applied, end, segments })
    }

    /// The segments that a sled whose table of pages ends at `table` reads, in order of the log: their log sequence numbers and
    /// places.
    pub(super) fn tail(&self, table: i64) -> Vec<(i64, u64)> {
        let numbered = (0u64..).zip(&self.segments).filter_map(|(place, lsn)| Some(((*lsn)?, place)));
        let mut tail: Vec<_> = numbered.filter(|(lsn, _)| lsn + SEGMENT_LENGTH > table).collect();
        tail.sort_unstable();
        tail
    }

    /// Whether `main` still has all of it that matters to a sled whose table of pages ends at `snapshot`. Several threads look.
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
