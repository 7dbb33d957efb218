//! Moving a vault to another engine or place: every record as it is sealed, under the same keys, so that names, fingerprints,
//! links and entity tags stay good. Nothing is lost on the way, so no new epoch begins; and from then on the vault that was left
//! is dead, since the tokens in it will be spent by the other.
//!
//! So the two must never be used together, whenever the process dies. Both carry the move's id:
//!
//! | step | the vault that is left | the one that is made | what a death leaves |
//! | --- | --- | --- | --- |
//! | 0 | | a database says that a vault is coming | the old one is used; no worker makes an empty one there |
//! | 1 | is marked: being moved | nothing | neither is used; the same command goes on |
//! | 2 | | holds records, and is marked as not whole | the same, from where it got to |
//! | 3 | | holds all of them, held against counts and sum | the same |
//! | 4 | is marked: moved | | the same |
//! | 5 | | is whole, and says of which move | the new one is used, the old one refuses |
//!
//! A move is given up ([`Vault::stay`]) in the opposite order: what was made is taken away first, and then the mark. Once the
//! other is whole only [`Vault::accept`] makes the old vault usable, with a new epoch, as after any older copy.
//!
//! Nobody may hold the vault that is left: a folder is locked, and in a database that has been marked no claim is given and no
//! record written any more.

mod database;
mod ends;
mod folder;
mod restored;

use std::collections::HashSet;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use self::ends::{Here, Site, There};
#[cfg(test)]
pub(super) use self::folder::Here as HereInFolder;
pub(super) use self::folder::beside;
use super::{
    Identity, Vault, VaultError, cipher,
    engine::{self, Mark},
    name::{Kind, Name},
};
use crate::config::VaultConfig;

/// How many records are read and written in one go: of the largest, less than one commit to a database takes.
const RECORDS_AT_ONCE: usize = 200;

/// The command that moves.
const COMMAND: &str = "consentry vault move";

/// The id of one move: random.
type MoveId = [u8; 16];

/// One end of a move.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where the vault is, or is to be.
    pub config: &'a VaultConfig,
    /// What opens it there.
    pub identity: &'a Identity,
}

/// How far a move is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The vault that is left is marked.
    Marked,
    /// So many of all records are durable in the other.
    Copied {
        /// Those.
        records: u64,
        /// All of them.
        of: u64,
    },
    /// The other holds what it should.
    Compared,
    /// The vault that is left says that it was moved.
    Left,
}

/// What was moved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Where to, in words.
    pub to: String,
    /// Records in the vault.
    pub records: u64,
    /// Grants among them.
    pub grants: u64,
    /// Organizations among them.
    pub organizations: u64,
    /// Exchanges that a worker had begun and not ended when it died: the next worker finds them in doubt.
    pub intents: u64,
}

/// What a vault says that is being moved, or was.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Leaving {
    /// The move's id, in hexadecimal digits.
    pub(super) id: String,
    /// Where to, in words for people.
    pub(super) to: String,
    /// Whether the other is, or may be, in use.
    pub(super) gone: bool,
}

impl Vault {
    /// Moves a vault that no worker uses to where nothing is yet, or goes on with that move; `told` hears how far it is, and ends it
    /// there by an error. What is left keeps everything, and refuses to be opened. Blocks in parts, where an end is a folder.
    pub async fn move_to(
        from: End<'_>,
        to: End<'_>,
        told: &mut dyn FnMut(Progress) -> Result<(), VaultError>,
    ) -> Result<Moved, VaultError> {
        let mut here = Here::open(from).await?;
        let mut site = Site::open(to).await?;
        let place = site.place();
        let id = match here.leaving() {
            // Only there: of two that are whole of one move, each would spend the other's tokens.
            Some(leaving) if leaving.to == place => {
                let id = read_id(leaving)?;
                if site.is_whole(id)? {
                    here.count().await?;
                    return Ok(moved(here.mark(), place));
                }
                // What is made once the mark says so was made before; if it is gone, nobody knows what became of it.
                if leaving.gone && !site.is_begun(id)? {
                    return Err(left(&here, leaving));
                }
                id
            }
            Some(leaving) => return Err(left(&here, leaving)),
            None => {
                // Before anything is marked: a place that is taken must not leave a vault that refuses.
                site.is_free().await?;
                let id = new_id()?;
                site.announce(id, &here.place()).await?;
                here.leave(&Leaving { id: hexadecimal(id), to: place.clone(), gone: false }).await?;
                id
            }
        };
        told(Progress::Marked)?;
        here.count().await?;
        let mut there = There::begin(site, to, id, &here).await?;

        let of = here.mark().all();
        let mut after = there.after();
        loop {
            let records = here.next(after.as_ref(), RECORDS_AT_ONCE).await?;
            let Some((last, _)) = records.last() else { break };
            after = Some(*last);
            there.put(&records).await?;
            told(Progress::Copied { records: there.mark().all(), of })?;
        }
        there.compare(here.mark(), here.keyring()).await?;
        told(Progress::Compared)?;
        here.leave(&Leaving { id: hexadecimal(id), to: place.clone(), gone: true }).await?;
        told(Progress::Left)?;
        there.complete(to, here.keyring()).await?;
        Ok(moved(here.mark(), place))
    }

    /// Gives up a move that is not complete: what was made is taken away, and the vault can be used again where it is.
    pub async fn stay(from: End<'_>, to: End<'_>) -> Result<(), VaultError> {
        let mut here = Here::open(from).await?;
        let site = Site::open(to).await?;
        let Some(leaving) = here.leaving().cloned() else {
            // It was announced, and nothing more.
            let id = site.coming(&here.place()).ok_or(VaultError::NotMoving)?;
            return site.take_away(id).await;
        };
        let id = read_id(&leaving)?;
        // Once it says that it was moved, only what is there still can show that the other is not in use.
        if leaving.to != site.place() || site.is_whole(id)? || leaving.gone && !site.is_begun(id)? {
            return Err(left(&here, &leaving));
        }
        site.take_away(id).await?;
        here.remain().await
    }
}

/// Why a vault with this mark is not moved.
fn left(here: &Here, leaving: &Leaving) -> VaultError {
    VaultError::Moved { place: here.place(), to: leaving.to.clone(), gone: leaving.gone }
}

fn moved(mark: &Mark, to: String) -> Moved {
    Moved {
        to,
        records: mark.records(),
        grants: mark.count(Kind::Grant),
        organizations: mark.count(Kind::Organization),
        intents: mark.count(Kind::Intent),
    }
}

/// Takes account of records that are written over whatever `before` says was there.
fn account(
    mark: &mut Mark,
    records: &[(Name, Vec<u8>)],
    before: impl Fn(&Name) -> Result<Option<u128>, VaultError>,
) -> Result<(), VaultError> {
    debug_assert_eq!(records.iter().map(|(name, _)| name).collect::<HashSet<_>>().len(), records.len(), "each once");
    for (name, sealed) in records {
        mark.replace(name.kind(), before(name)?, Some(engine::tag(sealed)));
        mark.applied = mark.applied.max(cipher::sequence(sealed).unwrap_or(0));
    }
    Ok(())
}

/// Holds what was found against what is to be there; which commit was the last does not count.
fn compare(found: &Mark, of: &Mark) -> Result<(), VaultError> {
    if (found.counts, found.sum) == (of.counts, of.sum) {
        return Ok(());
    }
    let detail = format!("{} of {} records were found to be there as they should", found.all(), of.all());
    Err(VaultError::Damaged { what: "what was moved", detail })
}

fn hexadecimal(id: MoveId) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

fn read_id(leaving: &Leaving) -> Result<MoveId, VaultError> {
    let read = u128::from_str_radix(&leaving.id, 16).map(u128::to_be_bytes);
    read.map_err(|_| VaultError::Damaged { what: "the mark of its move", detail: "its id makes no sense".to_owned() })
}

fn new_id() -> Result<MoveId, VaultError> {
    let mut id = MoveId::default();
    let filled = SystemRandom::new().fill(&mut id);
    filled.map_err(|_| VaultError::Engine { detail: "the system has no randomness".to_owned() })?;
    Ok(id)
}
