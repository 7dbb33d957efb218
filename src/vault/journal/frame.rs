//! The journal's frames; the parent's doc comment states their bytes.

use crate::vault::name::{NAME_BYTES, Name};

pub(super) const FRAME_HEADER_BYTES: usize = 40;
const CHECKED_BYTES: usize = 36;
const REMOVED: u32 = u32::MAX;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Magic {
    /// A commit.
    Commit,
    /// A note of what is durable.
    Note,
}

impl Magic {
    const fn bytes(self) -> &'static [u8; 8] {
        match self {
            Self::Commit => b"cnstryJF",
            Self::Note => b"cnstryJN",
        }
    }
}

/// A frame's place in the journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) magic: Magic,
    pub(super) generation: u64,
    pub(super) sequence: u64,
    pub(super) durable_through: u64,
}

/// One commit: all of it or nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::vault) struct Batch {
    /// Its number; each is one above the last.
    pub(in crate::vault) sequence: u64,
    /// What it changes, in order.
    pub(in crate::vault) entries: Vec<Entry>,
}

/// One change to the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::vault) struct Entry {
    /// The record's name.
    pub(in crate::vault) name: Name,
    /// The sealed record; `None` removes it.
    pub(in crate::vault) sealed: Option<Vec<u8>>,
}

impl Batch {
    /// The length of its payload.
    pub(in crate::vault) fn payload_bytes(&self) -> usize {
        let entry = |entry: &Entry| NAME_BYTES + 4 + entry.sealed.as_ref().map_or(0, Vec::len);
        4 + self.entries.iter().map(entry).sum::<usize>()
    }

    /// Appends its payload.
    pub(in crate::vault) fn encode(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&length(self.entries.len()));
        for Entry { name, sealed } in &self.entries {
            output.extend_from_slice(name.as_bytes());
            match sealed {
                None => output.extend_from_slice(&REMOVED.to_le_bytes()),
                Some(sealed) => {
                    output.extend_from_slice(&length(sealed.len()));
                    output.extend_from_slice(sealed);
                }
            }
        }
    }

    /// Reads the payload of commit `sequence`; `None` if it is not one.
    pub(in crate::vault) fn decode(sequence: u64, mut payload: &[u8]) -> Option<Self> {
        let count = u32::from_le_bytes(*payload.split_off(..4)?.first_chunk()?);
        let mut entries = Vec::new();
        for _ in 0..count {
            let name = Name::parse(payload.split_off(..NAME_BYTES)?)?;
            let length = u32::from_le_bytes(*payload.split_off(..4)?.first_chunk()?);
            let sealed = match length {
                REMOVED => None,
                length => Some(payload.split_off(..usize::try_from(length).ok()?)?.to_vec()),
            };
            entries.push(Entry { name, sealed });
        }
        payload.is_empty().then_some(Self { sequence, entries })
    }
}

/// A frame or note as it was read: its checksum is right.
pub(super) struct Frame<'a> {
    magic: Magic,
    pub(super) generation: u64,
    pub(super) sequence: u64,
    pub(super) durable_through: u64,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame that starts at `at`, if a whole one does.
    pub(super) fn read(frames: &'a [u8], at: usize) -> Option<Self> {
        let frame = frames.get(at..)?;
        let header = frame.get(..FRAME_HEADER_BYTES)?;
        let magic = [Magic::Commit, Magic::Note].into_iter().find(|magic| header[..8] == *magic.bytes())?;
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let payload = frame[FRAME_HEADER_BYTES..].get(..usize::try_from(word(32)).ok()?)?;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKED_BYTES]), payload);
        (checksum == word(36)).then(|| Self {
            magic,
            generation: number(8),
            sequence: number(16),
            durable_through: number(24),
            payload,
        })
    }

    pub(super) fn is_commit(&self) -> bool {
        self.magic == Magic::Commit
    }

    /// From its start to the next frame's.
    pub(super) const fn length(&self) -> usize {
        (FRAME_HEADER_BYTES + self.payload.len()).next_multiple_of(8)
    }
}

/// Appends a commit's frame.
pub(super) fn write(output: &mut Vec<u8>, standing: Standing, batch: &Batch) {
    let start = begin(output, standing, batch.payload_bytes());
    batch.encode(output);
    finish(output, start);
}

/// Appends a note.
pub(super) fn write_note(output: &mut Vec<u8>, standing: Standing) {
    let start = begin(output, standing, 0);
    finish(output, start);
}

fn begin(output: &mut Vec<u8>, standing: Standing, payload_bytes: usize) -> usize {
    let start = output.len();
    output.extend_from_slice(standing.magic.bytes());
    output.extend_from_slice(&standing.generation.to_le_bytes());
    output.extend_from_slice(&standing.sequence.to_le_bytes());
    output.extend_from_slice(&standing.durable_through.to_le_bytes());
    output.extend_from_slice(&length(payload_bytes));
    output.extend_from_slice(&[0; 4]);
    start
}

fn finish(output: &mut Vec<u8>, start: usize) {
    let (header, payload) = output[start..].split_at_mut(FRAME_HEADER_BYTES);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKED_BYTES]), payload);
    header[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
    output.resize(start + (output.len() - start).next_multiple_of(8), 0);
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("a frame is shorter than the journal").to_le_bytes()
}
