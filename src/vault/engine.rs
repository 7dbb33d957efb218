//! What the vault asks of an engine, and how a batch is brought into one.

use std::{
    collections::HashMap,
    panic::resume_unwind,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::{
    error::VaultError,
    journal::{Batch, Entry},
    name::{Kind, Name, Part},
};

/// How many writes are given to the engine in one go, commits kept whole: reads wait that long.
const MAX_WRITES: usize = 64;

/// Takes one record of a scan; an error ends the scan.
pub(super) type Each<'a> = &'a mut dyn FnMut(&Name, Vec<u8>) -> Result<(), VaultError>;

/// A store of sealed records by name. It need not be durable but in [`sync`](Self::sync); it must keep a batch whole,
/// and lose batches only from the last backwards.
pub(super) trait Engine: Send + Sync {
    /// The record of that name.
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, VaultError>;

    /// The [`tag`] of the record of that name.
    fn tag(&self, name: &Name) -> Result<Option<u128>, VaultError>;

    /// Hands over every record of that kind, in order of names, until `each` fails.
    fn scan(&self, kind: Kind, each: Each<'_>) -> Result<(), VaultError>;

    /// At most `most` records of that kind: the first in order of names.
    fn first(&self, kind: Kind, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        let mut records = self.next(None, usize::MAX)?;
        records.retain(|(name, _)| name.kind() == kind);
        records.truncate(most);
        Ok(records)
    }

    /// As [`scan`](Self::scan), for a part of the names: several threads can share the work.
    fn scan_part(&self, kind: Kind, part: Part, each: Each<'_>) -> Result<(), VaultError> {
        self.scan(kind, &mut |name, sealed| if part.contains(name) { each(name, sealed) } else { Ok(()) })
    }

    /// The next records in order of names, of all kinds: those after `after`, or from the first on, at most `most`.
    fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError>;

    /// Writes records (`None`: removes them) and the mark, all or nothing.
    fn write(&self, writes: &HashMap<Name, Option<&[u8]>>, mark: &Mark) -> Result<(), VaultError>;

    /// The mark of the last batch; `None` if there never was one.
    fn mark(&self) -> Result<Option<Mark>, VaultError>;

    /// Brings everything written so far to the disk.
    fn sync(&self) -> Result<(), VaultError>;

    /// Bytes on disk.
    fn bytes(&self) -> u64;

    /// Lets its own files and those in the folder `successor`, which are durable and which nobody has open, change places
    /// durably, and goes on with them; reads wait meanwhile. After an error it has its own files still, or fails from then on.
    fn replace(&self, _successor: &Path) -> Result<(), VaultError> {
        Err(VaultError::Engine { detail: "it has no files that could be exchanged".to_owned() })
    }
}

/// The last sixteen bytes of a sealed record, as a number. For a record that opens this is the cipher's tag, which no
/// other record, older or elsewhere, has in common with it.
pub(super) fn tag(sealed: &[u8]) -> u128 {
    u128::from_le_bytes(sealed.last_chunk().copied().unwrap_or_default())
}

/// What an engine holds, written with every batch. A damaged database can come back with a record missing or, unseen by
/// the cipher, in an older version: counts and sum tell.
///
/// At rest, little endian: version (one byte, 2), the last sequence number applied (8 bytes), how many records there are
/// of each kind in the order of [`Kind::ALL`] (8 bytes each), the sum of all records' tags modulo 2^128 (16 bytes). Version 1
/// knew the first five kinds and is read as well: there was nothing of the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mark {
    /// The last commit in it.
    pub(super) applied: u64,
    /// Records by [`Kind::index`].
    pub(super) counts: [u64; Kind::COUNT],
    /// The wrapping sum of the tags of all records.
    pub(super) sum: u128,
}

impl Mark {
    const VERSION: u8 = 2;
    const BYTES: usize = Self::bytes(Kind::COUNT);
    /// How many kinds version 1 knew.
    const KINDS_1: usize = 5;

    const fn bytes(kinds: usize) -> usize {
        1 + 8 * (1 + kinds) + 16
    }

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = Self::VERSION;
        let (numbers, sum) = bytes[1..].split_at_mut(Self::BYTES - 1 - 16);
        for (place, number) in numbers.chunks_exact_mut(8).zip([self.applied].iter().chain(&self.counts)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        sum.copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let kinds = match version {
            1 => Self::KINDS_1,
            Self::VERSION => Kind::COUNT,
            _ => return None,
        };
        if bytes.len() != Self::bytes(kinds) {
            return None;
        }
        let (numbers, sum) = rest.split_last_chunk()?;
        let mut numbers =
            numbers.chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().expect("eight bytes")));
        let mut mark = Self { applied: numbers.next()?, sum: u128::from_le_bytes(*sum), ..Self::default() };
        for count in mark.counts.iter_mut().take(kinds) {
            *count = numbers.next()?;
        }
        Some(mark)
    }

    /// Records of one kind.
    pub(super) const fn count(&self, kind: Kind) -> u64 {
        self.counts[kind.index()]
    }

    /// Records of all kinds.
    pub(super) fn all(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Records of all kinds but the vault's own.
    pub(super) fn records(&self) -> u64 {
        self.all() - self.count(Kind::Meta)
    }

    /// Counts in what was counted elsewhere.
    fn add(&mut self, part: &Self) {
        for (count, more) in self.counts.iter_mut().zip(part.counts) {
            *count += more;
        }
        self.sum = self.sum.wrapping_add(part.sum);
    }

    /// Takes account of a record that changes from one tag to another; `None` stands for no record.
    pub(super) const fn replace(&mut self, kind: Kind, before: Option<u128>, after: Option<u128>) {
        let count = &mut self.counts[kind.index()];
        if let Some(tag) = before {
            *count = count.saturating_sub(1);
            self.sum = self.sum.wrapping_sub(tag);
        }
        if let Some(tag) = after {
            *count += 1;
            self.sum = self.sum.wrapping_add(tag);
        }
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
                Some(write) => write.map(tag),
                None => engine.tag(name)?,
            };
            mark.replace(name.kind(), before, sealed.as_deref().map(tag));
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

/// After a crash: writes once more what the engine should hold already of `batches`, those up to its mark, in case it
/// kept the mark and lost a write before it.
pub(super) fn rewrite(engine: &dyn Engine, mark: &Mark, batches: &[Batch]) -> Result<(), VaultError> {
    let held = batches.iter().filter(|batch| batch.sequence <= mark.applied);
    let newest: HashMap<_, _> =
        held.flat_map(|batch| &batch.entries).map(|entry| (entry.name, entry.sealed.as_deref())).collect();
    let mut writes = HashMap::new();
    for (index, (name, sealed)) in newest.iter().enumerate() {
        writes.insert(*name, *sealed);
        if writes.len() >= MAX_WRITES || index + 1 == newest.len() {
            engine.write(&writes, mark)?;
            writes.clear();
        }
    }
    Ok(())
}

/// Walks through every record, hands it to `check`, and compares all of them with what the mark says.
pub(super) fn verify(engine: &dyn Engine, mark: &Mark, check: Each<'_>) -> Result<(), VaultError> {
    let mut found = Mark { applied: mark.applied, ..Mark::default() };
    count(engine, Part::ALL, &mut found, check)?;
    compare(&found, mark)
}

/// As [`verify`], with several threads and without a look at the records, until `stop` is set: [`VaultError::Closed`].
pub(super) fn verify_in_parts(
    engine: &dyn Engine,
    mark: &Mark,
    parts: &[Part],
    stop: &AtomicBool,
) -> Result<(), VaultError> {
    let count_part = |part| {
        let mut found = Mark::default();
        let mut go_on = |_: &Name, _| if stop.load(Ordering::Relaxed) { Err(VaultError::Closed) } else { Ok(()) };
        count(engine, part, &mut found, &mut go_on).map(|()| found)
    };
    let found = thread::scope(|scope| {
        let counting: Vec<_> = parts.iter().map(|part| scope.spawn(|| count_part(*part))).collect();
        let counted = counting.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let mut all = Mark { applied: mark.applied, ..Mark::default() };
        counted.collect::<Vec<_>>().into_iter().try_for_each(|part| part.map(|part| all.add(&part))).map(|()| all)
    })?;
    compare(&found, mark)
}

/// Counts the records of one part of the names in.
fn count(engine: &dyn Engine, part: Part, found: &mut Mark, check: Each<'_>) -> Result<(), VaultError> {
    for kind in Kind::ALL {
        engine.scan_part(kind, part, &mut |name, sealed| {
            found.replace(kind, None, Some(tag(&sealed)));
            check(name, sealed)
        })?;
    }
    Ok(())
}

/// Holds what was found against what should be there.
fn compare(found: &Mark, mark: &Mark) -> Result<(), VaultError> {
    let damaged = |detail: String| Err(VaultError::Damaged { what: "its database", detail });
    for kind in Kind::ALL {
        let (found, said) = (found.count(kind), mark.count(kind));
        if found != said {
            return damaged(format!("{found} of {said} records can be found ({})", kind.word()));
        }
    }
    if found.sum != mark.sum {
        return damaged("some of its records are older than they should be".to_owned());
    }
    Ok(())
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
        let mark = Mark { applied: 9, counts: [1, 2, 3, 4, 5, 6, 7, 8], sum: u128::MAX - 7 };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(mark.records(), 31);
        assert_eq!(Mark::decode(&mark.encode()[1..]), None);
        assert_eq!(Mark::decode(&[9; Mark::BYTES]), None);
        assert_eq!(Mark::decode(&[2; Mark::bytes(Mark::KINDS_1)]), None);
        assert_eq!(Mark::decode(&[]), None);
    }

    #[test]
    fn a_mark_of_before_there_were_events_is_read() {
        let mut old = vec![1];
        for number in [9_u64, 1, 2, 3, 4, 5] {
            old.extend(number.to_le_bytes());
        }
        old.extend(77_u128.to_le_bytes());
        assert_eq!(Mark::decode(&old), Some(Mark { applied: 9, counts: [1, 2, 3, 4, 5, 0, 0, 0], sum: 77 }));
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
        verify(&engine, &mark, &mut |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_missing_and_an_older_record_are_noticed_and_mended_from_the_journal() {
        let engine = Memory::default();
        let sealed = |byte| Some([byte; 40]);
        let batches = [
            Batch { sequence: 1, entries: vec![entry(1, sealed(1).as_ref().map(|bytes| &bytes[..]))] },
            Batch { sequence: 2, entries: vec![entry(1, sealed(2).as_ref().map(|bytes| &bytes[..]))] },
        ];
        let mark = apply(&engine, Mark::default(), &batches).unwrap();
        let name = batches[0].entries[0].name;
        for wrong in [None, batches[0].entries[0].sealed.as_deref()] {
            engine.write(&[(name, wrong)].into(), &mark).unwrap();
            assert!(verify(&engine, &mark, &mut |_, _| Ok(())).unwrap_err().is_damaged());
            assert!(
                verify_in_parts(&engine, &mark, &Part::split(3), &AtomicBool::new(false)).unwrap_err().is_damaged()
            );
            rewrite(&engine, &mark, &batches).unwrap();
            verify(&engine, &mark, &mut |_, _| Ok(())).unwrap();
            verify_in_parts(&engine, &mark, &Part::split(3), &AtomicBool::new(false)).unwrap();
        }
        let stopped = verify_in_parts(&engine, &mark, &Part::split(3), &AtomicBool::new(true));
        assert!(matches!(stopped, Err(VaultError::Closed)), "{stopped:?}");
    }
}
