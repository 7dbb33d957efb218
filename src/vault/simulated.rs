//! A disk in memory with a vault on it, for simulations: it forgets what was not synced when the power goes, tears what
//! was being written, fails on request, and goes back in time.
//!
//! Everything above the disk is the real thing: journal, frames, group commit, seals, codec, recovery. The writer runs
//! as a task instead of a thread, so that one seed decides every interleaving.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    ops::Bound,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    Vault, VaultError,
    cipher::{Cipher, Key},
    codec::{Encoder, Meta},
    engine::{self, Each, Engine, Mark},
    folder::Folder,
    journal::{Batch, Entry, Journal, Storage},
    keyring::Keyring,
    name::{Kind, Name, Namer},
    open, restore,
    shared::{Opened, Shared},
    writer::Writer,
};
use crate::{metrics::Metrics, task};

/// Small, so that checkpoints come often.
const JOURNAL_BYTES: u64 = 128 * 1024;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// How long a write may take on its way to the disk.
const SLOWEST_WRITE_MS: u64 = 4;

/// What is asked before anything leaves the process or reaches the disk: a dead process does neither.
pub(crate) trait Fate: Send + Sync + std::fmt::Debug {
    /// Takes one step, which may be the last. The error: the process is dead.
    fn step(&self) -> io::Result<()>;
}

/// A disk, which outlives the processes that use it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    contents: Arc<Mutex<Contents>>,
    fate: Arc<dyn Fate>,
    seed: u64,
}

/// What goes wrong with a disk that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// The journal's next sync fails; whether its bytes reached the disk nobody knows.
    JournalSync,
    /// The engine takes nothing from now on.
    EngineFull,
    /// The engine's next sync fails.
    EngineSync,
}

#[derive(Debug, Default)]
struct Contents {
    /// The journal as processes see it, and what is written and not synced.
    journal: Vec<u8>,
    durable_journal: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// The engine as processes see it, and its batches since the last sync.
    table: Table,
    durable_table: Table,
    unsynced_batches: Vec<(Writes, Mark)>,
    /// What the engine held a sync earlier.
    older_table: Option<Table>,
    /// How often a vault was opened on it.
    opened: u64,
    fault: Option<DiskFault>,
}

/// Records by name; `None` is removed.
type Writes = Vec<(Name, Option<Vec<u8>>)>;

#[derive(Clone, Debug, Default)]
struct Table {
    records: BTreeMap<Name, Arc<Vec<u8>>>,
    mark: Option<Mark>,
}

impl Table {
    fn write<'a>(&mut self, writes: impl Iterator<Item = (&'a Name, Option<&'a [u8]>)>, mark: &Mark) {
        for (name, sealed) in writes {
            match sealed {
                Some(sealed) => self.records.insert(*name, Arc::new(sealed.to_vec())),
                None => self.records.remove(name),
            };
        }
        self.mark = Some(*mark);
    }
}

thread_local! {
    /// Where the ids of grants come from on this thread.
    static IDS: RefCell<fastrand::Rng> = const { RefCell::new(fastrand::Rng::with_seed(0)) };
}

fn seeded_id() -> [u8; 16] {
    IDS.with_borrow_mut(|ids| ids.u128(..)).to_be_bytes()
}

impl Disk {
    /// A disk with a new vault on it; its keys follow from the seed.
    pub(crate) fn new(seed: u64, fate: Arc<dyn Fate>) -> Self {
        IDS.set(fastrand::Rng::with_seed(seed));
        let disk = Self { contents: Arc::default(), fate, seed };
        let keyring = disk.keyring();
        let name = Namer::new(&keyring.name_key).name(Kind::Meta, open::META_ID);
        let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
        let sealed =
            Encoder::new().encode(&Meta::NEW, |plaintext| cipher.seal(&name, 1, plaintext)).expect("a small record");
        let first = Batch { sequence: 1, entries: vec![Entry { name, sealed: Some(sealed) }] };
        engine::apply(&disk, Mark::default(), &[first]).expect("a disk in order");
        disk.sync().expect("a disk in order");
        Journal::format(&disk, keyring.vault, 1, JOURNAL_BYTES).expect("a disk in order");
        disk
    }

    fn keyring(&self) -> Keyring {
        let mut chance = fastrand::Rng::with_seed(self.seed ^ 0x6b65_7972_696e_6721);
        let mut key = || {
            let mut key = Key::default();
            chance.fill(key.as_mut_slice());
            key
        };
        let (name_key, fingerprint_key, data_key) = (key(), key(), key());
        let data_keys = BTreeMap::from([(1, data_key)]);
        Keyring { vault: [7; 16], name_key, fingerprint_key, current: 1, data_keys, recipients: vec![] }
    }

    /// Opens the vault as after a crash. To be called on the simulation's own runtime.
    pub(crate) fn open(&self) -> Result<Vault, VaultError> {
        let keyring = self.keyring();
        let path = Path::new("/simulated");
        let mut journal = Journal::over(Box::new(self.clone()), &path.join("journal"), keyring.vault)?;
        let batches = journal.batches()?;
        let (epoch, mark) = open::recover(self, &mut journal, &keyring, batches, false)?;
        let opened = Opened { engine: Box::new(self.clone()), lock: None };
        let mut shared = Shared::new(opened, keyring, epoch, &mark, journal.bytes(), Metrics::new(&[]));
        shared.random_id = seeded_id;
        let (mut writer, sender, mut requests) = Writer::new(shared, Folder::at(path), journal, mark);
        let vault = Vault::new(Arc::clone(&writer.shared), sender, None);
        let mut chance = fastrand::Rng::with_seed(self.seed ^ self.opened());
        task::spawn(async move {
            while let Some(request) = requests.recv().await {
                tokio::time::sleep(Duration::from_millis(chance.u64(0..=SLOWEST_WRITE_MS))).await;
                if writer.serve(request, &mut requests).is_break() {
                    return;
                }
                if requests.is_empty() {
                    writer.idle();
                    // Now and then nothing comes for so long that the engine is given what it lacks.
                    if chance.bool() {
                        let _ = writer.bring_up();
                    }
                }
            }
        });
        Ok(vault)
    }

    /// The power goes: of what was not synced, any part may be there, torn at any sector; of the engine's batches a part
    /// from the first on.
    pub(crate) fn cut_power(&self, chance: &mut fastrand::Rng) {
        let contents = &mut *self.contents();
        contents.journal.clone_from(&contents.durable_journal);
        for (at, bytes) in std::mem::take(&mut contents.unsynced) {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if chance.bool() {
                    let at = at + number * SECTOR;
                    contents.journal[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        contents.durable_journal.clone_from(&contents.journal);
        contents.table = contents.durable_table.clone();
        let batches = std::mem::take(&mut contents.unsynced_batches);
        let kept = chance.usize(0..=batches.len());
        for (writes, mark) in batches.into_iter().take(kept) {
            contents.table.write(writes.iter().map(|(name, sealed)| (name, sealed.as_deref())), &mark);
        }
        contents.durable_table = contents.table.clone();
        contents.fault = None;
    }

    /// The engine silently returns an older state than it was synced with; false if it never had one.
    pub(crate) fn roll_back(&self) -> bool {
        let contents = &mut *self.contents();
        let Some(older) = contents.older_table.take() else { return false };
        contents.table = older.clone();
        contents.durable_table = older;
        contents.unsynced_batches.clear();
        true
    }

    /// A copy of all that is on the disk, as a volume snapshot is.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let contents = self.contents();
        let (journal, table) = (contents.durable_journal.clone(), contents.durable_table.clone());
        Snapshot(Contents {
            durable_journal: journal.clone(),
            journal,
            durable_table: table.clone(),
            table,
            ..Contents::default()
        })
    }

    /// Puts a copy back.
    pub(crate) fn put_back(&self, Snapshot(contents): Snapshot) {
        let mut there = self.contents();
        *there = Contents { opened: there.opened, ..contents };
    }

    /// `consentry restore --in-place`: accepts what is there, in a new epoch.
    pub(crate) fn accept(&self) -> Result<(), VaultError> {
        let keyring = self.keyring();
        let mut journal = Journal::over(Box::new(self.clone()), Path::new("/simulated/journal"), keyring.vault)?;
        let batches = journal.batches()?;
        let ends = open::Ends::of(&journal, &batches);
        let (_, mark) = restore::accept_engine(self, &keyring, &ends, &batches)?;
        self.sync()?;
        journal.start_over(mark.applied, None)
    }

    /// Something goes wrong with the disk from now on.
    pub(crate) fn fail(&self, fault: DiskFault) {
        self.contents().fault = Some(fault);
    }

    /// The disk is in order again.
    pub(crate) fn mend(&self) {
        self.contents().fault = None;
    }

    /// Counts another opening. The numbers of commits jump by chance when a vault is accepted, so nothing may hang on them.
    fn opened(&self) -> u64 {
        let mut contents = self.contents();
        contents.opened += 1;
        contents.opened
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> Result<(), VaultError> {
        self.fate.step().map_err(|error| VaultError::Engine { detail: error.to_string() })
    }
}

/// All that was on a disk once.
pub(crate) struct Snapshot(Contents);

impl Storage for Disk {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let contents = self.contents();
        let there = contents.journal.get(at..at + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(there);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.fate.step()?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let contents = &mut *self.contents();
        contents.journal[at..at + bytes.len()].copy_from_slice(bytes);
        contents.unsynced.push((at, bytes.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fate.step()?;
        {
            let contents = &mut *self.contents();
            if contents.fault == Some(DiskFault::JournalSync) {
                return Err(io::Error::other("the disk failed, as the simulation asked for"));
            }
            for (at, bytes) in std::mem::take(&mut contents.unsynced) {
                contents.durable_journal[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        // It may die with the sync done and nobody told.
        self.fate.step()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.contents().journal.len() as u64)
    }
}

impl Disk {
    /// Makes room for the journal's bytes.
    pub(super) fn lay_out(&self, length: u64) {
        let contents = &mut *self.contents();
        let length = usize::try_from(length).expect("small");
        contents.journal = vec![0; length];
        contents.durable_journal = vec![0; length];
    }
}

impl Engine for Disk {
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, VaultError> {
        Ok(self.contents().table.records.get(name).map(|sealed| sealed.to_vec()))
    }

    fn tag(&self, name: &Name) -> Result<Option<u128>, VaultError> {
        Ok(self.contents().table.records.get(name).map(|sealed| engine::tag(sealed)))
    }

    fn scan(&self, kind: Kind, each: Each<'_>) -> Result<(), VaultError> {
        let records = self.contents().table.records.clone();
        let fits = records.into_iter().filter(|(name, _)| name.kind() == kind);
        fits.into_iter().try_for_each(|(name, sealed)| each(&name, sealed.to_vec()))
    }

    fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let contents = self.contents();
        let records = contents.table.records.range((from, Bound::Unbounded)).take(most);
        Ok(records.map(|(name, sealed)| (*name, sealed.to_vec())).collect())
    }

    fn write(&self, writes: &HashMap<Name, Option<&[u8]>>, mark: &Mark) -> Result<(), VaultError> {
        self.step()?;
        let contents = &mut *self.contents();
        if contents.fault == Some(DiskFault::EngineFull) {
            return Err(VaultError::Engine { detail: "no space left, as the simulation asked for".to_owned() });
        }
        contents.table.write(writes.iter().map(|(name, sealed)| (name, *sealed)), mark);
        let batch = writes.iter().map(|(name, sealed)| (*name, sealed.map(<[u8]>::to_vec))).collect();
        contents.unsynced_batches.push((batch, *mark));
        Ok(())
    }

    fn mark(&self) -> Result<Option<Mark>, VaultError> {
        Ok(self.contents().table.mark)
    }

    fn sync(&self) -> Result<(), VaultError> {
        self.step()?;
        let contents = &mut *self.contents();
        if contents.fault == Some(DiskFault::EngineSync) {
            return Err(VaultError::Engine { detail: "a sync failed, as the simulation asked for".to_owned() });
        }
        let older = std::mem::replace(&mut contents.durable_table, contents.table.clone());
        contents.older_table = Some(older).filter(|older| older.mark.is_some());
        contents.unsynced_batches.clear();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        0
    }
}
