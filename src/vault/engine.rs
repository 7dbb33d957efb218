//! What the vault asks of an engine, and how a batch is brought into one.

use std::collections::HashMap;

use super::{
    error::VaultError,
    journal::{Batch, Entry},
    name::{Kind, Name},
};

/// How many writes are given to the engine in one go, commits kept whole: reads wait that long.
const MAX_WRITES: usize = 64;

/// A store of sealed records by name. It need not be durable but in [`sync`](Self::sync); it must keep a batch whole,
/// and lose batches only from the last backwards.
pub(super) trait Engine: Send + Sync {
    /// The record of that name.
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, VaultError>;

    /// Whether there is a record of that name.
    fn contains(&self, name: &Name) -> Result<bool, VaultError>;

    /// Hands over every record of that kind, in order of names, until `each` fails.
    fn scan(
        &self,
        kind: Kind,
        each: &mut dyn FnMut(&Name, Vec<u8>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError>;

    /// Writes records (`None`: removes them) and the mark, all or nothing.
    fn write(&self, writes: &HashMap<Name, Option<&[u8]>>, mark: &Mark) -> Result<(), VaultError>;

    /// The mark of the last batch; `None` if there never was one.
    fn mark(&self) -> Result<Option<Mark>, VaultError>;

    /// Brings everything written so far to the disk.
    fn sync(&self) -> Result<(), VaultError>;

    /// Bytes on disk.
    fn bytes(&self) -> u64;
}

/// What an engine holds, written with every batch.
///
/// At rest: version (one byte, 1), then little-endian numbers of eight bytes: the last sequence number applied, and how
/// many records there are of each kind, in the order of [`Kind::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mark {
    /// The last commit in it.
    pub(super) applied: u64,
    /// Records by [`Kind::index`].
    pub(super) counts: [u64; Kind::COUNT],
}

impl Mark {
    const VERSION: u8 = 1;
    const BYTES: usize = 1 + 8 * (1 + Kind::COUNT);

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = Self::VERSION;
        for (place, number) in bytes[1..].chunks_exact_mut(8).zip([self.applied].iter().chain(&self.counts)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES || bytes[0] != Self::VERSION {
            return None;
        }
        let mut numbers =
            bytes[1..].chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().expect("eight bytes")));
        let applied = numbers.next()?;
        let mut mark = Self { applied, ..Self::default() };
        for count in &mut mark.counts {
            *count = numbers.next()?;
        }
        Some(mark)
    }

    /// Records of one kind.
    pub(super) const fn count(&self, kind: Kind) -> u64 {
        self.counts[kind.index()]
    }

    /// Records of all kinds but the vault's own.
    pub(super) fn records(&self) -> u64 {
        self.counts.iter().sum::<u64>() - self.count(Kind::Meta)
    }
}

/// Brings committed batches, in order of their sequence numbers, into the engine, and gives the mark after the last.
/// The engine has every batch of `batches` or an earlier part of them when this fails.
pub(super) fn apply(engine: &dyn Engine, mut mark: Mark, batches: &[Batch]) -> Result<Mark, VaultError> {
    let mut writes: HashMap<Name, Option<&[u8]>> = HashMap::new();
    for (index, batch) in batches.iter().enumerate() {
        debug_assert_eq!(batch.sequence, mark.applied + 1, "batches come in order and without a gap");
        for Entry { name, sealed } in &batch.entries {
            let before = match writes.get(name) {
                Some(write) => write.is_some(),
                None => engine.contains(name)?,
            };
            let count = &mut mark.counts[name.kind().index()];
            match (before, sealed.is_some()) {
                (false, true) => *count += 1,
                (true, false) => *count = count.saturating_sub(1),
                _ => {}
            }
            writes.insert(*name, sealed.as_deref());
        }
        mark.applied = batch.sequence;
        if writes.len() >= MAX_WRITES || index + 1 == batches.len() {
            engine.write(&writes, &mark)?;
            writes.clear();
        }
    }
    Ok(mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::{memory::Memory, name::Namer};

    fn entry(id: u8, sealed: Option<&[u8]>) -> Entry {
        Entry { name: Namer::new(&[0; 32]).name(Kind::Grant, &[id]), sealed: sealed.map(<[u8]>::to_vec) }
    }

    #[test]
    fn a_mark_reads_back_and_nothing_else_does() {
        let mark = Mark { applied: 9, counts: [1, 2, 3, 4, 5] };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(mark.records(), 10);
        assert_eq!(Mark::decode(&mark.encode()[1..]), None);
        assert_eq!(Mark::decode(&[9; Mark::BYTES]), None);
    }

    #[test]
    fn records_are_counted_once_however_often_they_are_written() {
        let engine = Memory::default();
        let batches = [
            Batch { sequence: 1, entries: vec![entry(1, Some(b"a")), entry(2, Some(b"b")), entry(1, Some(b"c"))] },
            Batch { sequence: 2, entries: vec![entry(2, None), entry(3, None), entry(2, Some(b"d"))] },
        ];
        let mark = apply(&engine, Mark::default(), &batches).unwrap();
        assert_eq!((mark.applied, mark.count(Kind::Grant)), (2, 2));
        let mark =
            apply(&engine, mark, &[Batch { sequence: 3, entries: vec![entry(1, None), entry(1, None)] }]).unwrap();
        assert_eq!((mark.applied, mark.count(Kind::Grant)), (3, 1));
        assert_eq!(engine.mark().unwrap(), Some(mark));
    }
}
