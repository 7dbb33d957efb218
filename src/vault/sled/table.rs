//! Writes sled's table of pages while sled runs.
//!
//! sled goes by a table of where on the disk the parts of each page are, and writes it only when it is opened; on opening it
//! reads the newest and then every segment of its log that is younger. So an opening would take the longer the more was
//! written since the one before, whatever the end was like: seconds, with a million organizations. Therefore [`advance`] does
//! from time to time what sled would on opening: it takes the newest table and the messages since, and writes the table as it is
//! where the log ended at a sync. sled looks for tables on opening alone, and what it finds then is byte for byte what it would
//! have written itself, had it been opened at that sync.
//!
//! sled goes on writing meanwhile. What it does to segments that are read here does no harm:
//!
//! - Of a segment that was written over, every page has a newer version behind it in the log: either before the sync, then it is
//!   read here, or after it, then sled reads it after this table, as it would have after the older one.
//! - A segment that is not whole, since it is being written over or is damaged, ends this without a table. So does a page of
//!   which nothing is found. The next sync tries again, and the next opening reads more.
//!
//! What was read is on the disk before the table is, and the table has its name only once it is; the one before is removed after
//! that. Whenever the process dies, one of both is there, and the log since.
//!
//! A table, numbers as in [`super::log`] but for `lsn`, eight bytes, little endian:
//!
//! ```text
//! lsn + 1      where the log ended
//! number       the offset of the segment in which it ended, + 1; 0 where it ended between two
//! of each page: one byte, and so many parts (0: the page is free, one part)
//!   of each part: lsn; one byte, 0; number: where it is in the file; number: its length, not for a free page
//! 8 bytes      how many bytes precede
//! 4 bytes      their checksum
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    log::{Kind, Message, SEGMENT_BYTES, SEGMENT_LENGTH, Segment, TABLE, read_number, write_number},
    outline::Outline,
};
use crate::vault::{VaultError, folder};

/// How a table is called that is not finished. sled takes for a table whatever begins as one.
const UNFINISHED: &str = "pages.new";
/// What follows a table's contents: their length and their checksum.
const END_BYTES: usize = 12;
/// More parts than this no page can have.
const MOST_PARTS: usize = 255;
/// Where no more than this is left of a segment, sled goes on in another one.
const LEAST_LEFT: i64 = 32;
/// So much more of the disk than the older table has has to be free, in bytes.
const ROOM: u64 = 1024 * 1024;

/// Where a part of a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    lsn: i64,
    offset: u64,
    length: u64,
}

/// A page of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Page {
    Free(Part),
    /// From the oldest part, which holds all of the page, to the newest.
    Parts(Vec<Part>),
}

/// What the log says about a page since the older table.
#[derive(Default)]
struct Change {
    /// What it was replaced by last.
    page: Option<Page>,
    /// What was added to the page of the older table, where it was not replaced.
    added: Vec<Part>,
}

/// Writes the table of the database in `folder` as it was at the sync at which `outline` was taken of `main`.
pub(super) fn advance(folder: &Path, main: &File, outline: &Outline) -> Result<(), VaultError> {
    let failed = |error: io::Error| VaultError::io(folder, &error);
    let (path, older) = newest(folder).map_err(failed)?;
    folder::Folder::at(folder).check_room(older.len() as u64 + ROOM)?;
    let (end, older) = read_head(&older).map_err(failed)?;
    let (segment, changes) = changes(main, outline, end).map_err(failed)?;
    let table = merged(outline.end, segment, older, changes).map_err(failed)?;
    main.sync_data().map_err(failed)?;
    let named = folder.join(format!("{TABLE}{:016X}", outline.end));
    let unfinished = folder.join(UNFINISHED);
    write(&unfinished, &named, &table)
        .inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
        .and_then(|()| path.filter(|path| *path != named).map_or(Ok(()), fs::remove_file))
        .map_err(failed)
}

/// The newest table in `folder`, and where it is; an empty one where there is none.
fn newest(folder: &Path) -> io::Result<(Option<PathBuf>, Vec<u8>)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(TABLE.as_bytes()) {
            names.push(name);
        }
    }
    let Some(path) = names.iter().max().map(|name| folder.join(name)) else { return Ok((None, Vec::new())) };
    let mut table = fs::read(&path)?;
    let contents = table.len().checked_sub(END_BYTES).ok_or_else(wrong)?;
    let checksum = crc32fast::hash(&table[..contents]).to_le_bytes();
    if table[contents + 8..] != checksum {
        return Err(wrong());
    }
    table.truncate(contents);
    Ok((Some(path), table))
}

/// Where the log ended at an older table, and its pages.
fn read_head(table: &[u8]) -> io::Result<(i64, &[u8])> {
    if table.is_empty() {
        return Ok((0, table));
    }
    let (lsn, mut rest) = table.split_first_chunk().ok_or_else(wrong)?;
    read_number(&mut rest).ok_or_else(wrong)?;
    Ok((i64::from_le_bytes(*lsn) - 1, rest))
}

/// What the log says from `from` on, and where in the file the segment is that it ends in.
fn changes(main: &File, outline: &Outline, from: i64) -> io::Result<(u64, BTreeMap<u64, Change>)> {
    let mut changes = BTreeMap::new();
    let mut last = None;
    for (lsn, place) in outline.tail(from) {
        let segment = Segment::read(main, place, lsn)?;
        if segment.header().is_some_and(|now| now >= outline.end) {
            continue;
        }
        let offset = place * SEGMENT_BYTES as u64;
        let whole = segment.each(&mut |message| {
            let at = lsn + i64::try_from(message.at).map_err(|_| wrong())?;
            if (from..outline.end).contains(&at) {
                let part = Part { lsn: at, offset: offset + message.at as u64, length: message.length as u64 };
                note(&mut changes, message, part, outline.end)?;
            }
            Ok(())
        })?;
        if segment.header() != Some(lsn) || whole < (outline.end - lsn).min(SEGMENT_LENGTH) {
            return Err(wrong());
        }
        last = Some((lsn, offset));
    }
    // Where too little is left of it, sled goes on in another one: the next time it will not be so.
    let (lsn, offset) = last.ok_or_else(wrong)?;
    let is_within = (0..SEGMENT_LENGTH - LEAST_LEFT).contains(&(outline.end - lsn));
    if is_within { Ok((offset, changes)) } else { Err(wrong()) }
}

/// Takes in what one message says.
fn note(changes: &mut BTreeMap<u64, Change>, message: &Message<'_>, part: Part, end: i64) -> io::Result<()> {
    let replaced = |page| Change { page: Some(page), added: Vec::new() };
    match message.kind {
        Kind::Page => drop(changes.insert(message.page, replaced(Page::Parts(vec![part])))),
        Kind::Free => drop(changes.insert(message.page, replaced(Page::Free(part)))),
        Kind::Link => {
            let change = changes.entry(message.page).or_default();
            match &mut change.page {
                None => change.added.push(part),
                Some(Page::Parts(parts)) => parts.push(part),
                Some(Page::Free(_)) => {}
            }
        }
        // A batch is whole in the log before the engine is synced.
        Kind::Batch => {
            let last = message.contents.try_into().map(i64::from_le_bytes).map_err(|_| wrong())?;
            if last >= end {
                return Err(wrong());
            }
        }
        Kind::Cancelled | Kind::Cap | Kind::Elsewhere => {}
    }
    Ok(())
}

/// The table that follows: the pages of the older one with the changes in them, and those that are new.
fn merged(end: i64, segment: u64, mut older: &[u8], changes: BTreeMap<u64, Change>) -> io::Result<Vec<u8>> {
    let mut table = Vec::with_capacity(older.len() + changes.len() * 32);
    table.extend((end + 1).to_le_bytes());
    write_number(&mut table, segment + 1);
    let mut changes = changes.into_iter().peekable();
    let mut number = 0;
    while !older.is_empty() {
        let before = older;
        let page = read_page(&mut older)?;
        match changes.next_if(|(changed, _)| *changed == number) {
            Some((_, change)) => write_page(&mut table, &change.onto(Some(page)).ok_or_else(wrong)?)?,
            None => table.extend(&before[..before.len() - older.len()]),
        }
        number += 1;
    }
    for (changed, change) in changes {
        // What was added to a page that nobody knows is of none.
        let Some(page) = change.onto(None) else { continue };
        if changed != number {
            return Err(wrong());
        }
        write_page(&mut table, &page)?;
        number += 1;
    }
    Ok(table)
}

impl Change {
    /// What becomes of a page of the older table.
    fn onto(self, older: Option<Page>) -> Option<Page> {
        match (self.page, older) {
            (Some(page), _) => Some(page),
            (None, Some(Page::Parts(mut parts))) => {
                for part in self.added {
                    if parts.last().is_none_or(|last| last.lsn < part.lsn) {
                        parts.push(part);
                    }
                }
                Some(Page::Parts(parts))
            }
            (None, older) => older,
        }
    }
}

fn read_page(bytes: &mut &[u8]) -> io::Result<Page> {
    match take::<1>(bytes)?[0] {
        0 => Ok(Page::Free(read_part(bytes, false)?)),
        parts => Ok(Page::Parts((0..parts).map(|_| read_part(bytes, true)).collect::<Result<_, _>>()?)),
    }
}

fn read_part(bytes: &mut &[u8], is_sized: bool) -> io::Result<Part> {
    let lsn = i64::from_le_bytes(take(bytes)?);
    if take(bytes)? != [0] {
        return Err(wrong());
    }
    let mut number = || read_number(bytes).ok_or_else(wrong);
    Ok(Part { lsn, offset: number()?, length: if is_sized { number()? } else { 0 } })
}

fn write_page(table: &mut Vec<u8>, page: &Page) -> io::Result<()> {
    let (count, parts) = match page {
        Page::Free(part) => (0, std::slice::from_ref(part)),
        Page::Parts(parts) if parts.len() <= MOST_PARTS => (parts.len(), &parts[..]),
        Page::Parts(_) => return Err(wrong()),
    };
    table.push(u8::try_from(count).map_err(|_| wrong())?);
    for part in parts {
        table.extend(part.lsn.to_le_bytes());
        table.push(0);
        write_number(table, part.offset);
        if count > 0 {
            write_number(table, part.length);
        }
    }
    Ok(())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> io::Result<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk().ok_or_else(wrong)?;
    *bytes = rest;
    Ok(*taken)
}

/// Writes the table durably, and gives it its name then.
fn write(unfinished: &Path, named: &Path, table: &[u8]) -> io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(table)?;
    file.write_all(&(table.len() as u64).to_le_bytes())?;
    file.write_all(&crc32fast::hash(table).to_le_bytes())?;
    file.sync_all()?;
    fs::rename(unfinished, named)?;
    folder::sync_folder(folder::parent(named))
}

fn wrong() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Large enough that a few dozen fill a segment.
    const VALUE_BYTES: usize = 9000;

    /// Writes some of 200 values, and removes some, into the database in `folder`, by numbers that `seed` gives; it is on the
    /// disk then.
    fn write_some(folder: &Path, seed: u64, writes: usize) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = ::sled::Config::new().path(folder).segment_size(SEGMENT_BYTES).flush_every_ms(None);
        let db = super::super::open_when_free(&config.mode(::sled::Mode::LowSpace)).unwrap();
        for _ in 0..writes {
            let key = [rng.u8(..200)];
            if rng.u8(..5) == 0 {
                db.remove(key).unwrap();
            } else {
                db.insert(key, vec![rng.u8(..); rng.usize(..VALUE_BYTES)]).unwrap();
            }
        }
        db.flush().unwrap();
        // It writes what it knows only when it is opened: this leaves what a kill would.
        drop(db);
    }

    fn tables(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let tables = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TABLE));
        tables.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
    }

    fn advance_to_the_end(folder: &Path) -> Result<(), VaultError> {
        let main = File::open(folder.join("db")).unwrap();
        advance(folder, &main, &Outline::of(&main, 0).unwrap())
    }

    #[test]
    fn the_table_is_byte_for_byte_what_sled_writes_when_it_is_opened_there() {
        let temporary = tempfile::tempdir().unwrap();
        let mut written = 0;
        for (round, writes) in [300, 1, 900, 60, 2000, 400].into_iter().enumerate() {
            let (ours, sleds) = (temporary.path().join("ours"), temporary.path().join(format!("sleds-{round}")));
            write_some(&ours, round as u64, writes);
            folder::copy_tree(&ours, &sleds).unwrap();
            write_some(&sleds, 0, 0);
            if advance_to_the_end(&ours).is_ok() {
                assert_eq!(tables(&ours), tables(&sleds), "round {round}");
                written += 1;
            }
        }
        assert!(written >= 4, "the log seldom ends between two segments");
    }

    #[test]
    fn a_log_that_is_damaged_behind_the_older_table_gives_none() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("db");
        write_some(&folder, 1, 100);
        write_some(&folder, 2, 600);
        let before = tables(&folder);
        let main = fs::OpenOptions::new().read(true).write(true).open(folder.join("db")).unwrap();
        let outline = Outline::of(&main, 0).unwrap();
        let (_, place) = outline.tail(super::super::log::table_end(&folder).unwrap())[1];
        let at = place * SEGMENT_BYTES as u64 + 5000;
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&main, &mut byte, at).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&main, &[!byte[0]], at).unwrap();
        advance(&folder, &main, &outline).unwrap_err();
        assert_eq!(tables(&folder), before);
        std::os::unix::fs::FileExt::write_all_at(&main, &byte, at).unwrap();
        advance(&folder, &main, &outline).unwrap();
        assert_ne!(tables(&folder), before);
    }

    #[test]
    fn an_older_table_that_is_damaged_is_not_built_on() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("db");
        write_some(&folder, 1, 300);
        write_some(&folder, 2, 300);
        let [(name, mut table)] = <[_; 1]>::try_from(tables(&folder)).unwrap();
        table[20] ^= 1;
        fs::write(folder.join(&name), &table).unwrap();
        advance_to_the_end(&folder).unwrap_err();
        assert_eq!(tables(&folder), [(name, table)]);
    }
}
