//! The one thread that writes: it seals, gives out sequence numbers, and lets all commits that wait share one sync.

use std::{
    ops::ControlFlow,
    sync::{Arc, Weak, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    runtime::{self, Runtime},
    sync::{
        OwnedSemaphorePermit,
        mpsc::{self, error::TryRecvError},
        oneshot,
    },
    time::timeout,
};

use super::{
    Change, Stray, Vault, VaultError,
    backup::Tee,
    codec::{Encoder, Record},
    compact::Compaction,
    engine::{self, Mark},
    folder::{self, Folder},
    journal::{Batch, Entry, Journal},
    name::{Kind, Part},
    open::as_damage,
    panics::caught,
    rekey::Rekey,
    shared::{Judgement, Opened, Shared},
    sled::outline,
};

/// How often, and at what distance, closing looks whether the last reader is done.
const CLOSE_TRIES: u32 = 200;
const CLOSE_PAUSE: Duration = Duration::from_millis(10);
/// How long nothing must have come before the engine is given what it lacks. Under load it is given more at once, so that
/// what comes and goes in between costs it nothing.
const REST: Duration = Duration::from_millis(100);
/// The engine is given what it lacks when that is as large as this share of the largest group: an eighth of a group, or a 64th
/// of the journal. Reads of the engine wait for as long as it takes that, and should it fail, the journal has room left.
const BACKLOG_SHARE: usize = 8;

/// What the writer is asked for.
pub(super) enum Request {
    /// To commit.
    Commit(Commit),
    /// To do something else with what only the writer may touch, between two commits.
    Run(Box<dyn FnOnce(&mut Writer) + Send>),
    /// To end.
    Close(std::sync::mpsc::SyncSender<Result<(), VaultError>>),
}

/// Where requests come from. It is bounded by the places that commits wait for.
pub(super) type Requests = mpsc::UnboundedReceiver<Request>;

/// A batch of changes, and who waits for it.
pub(super) struct Commit {
    pub(super) changes: Vec<Change>,
    pub(super) done: oneshot::Sender<Result<u64, VaultError>>,
    /// Given back when the commit is done.
    pub(super) _place: OwnedSemaphorePermit,
}

/// The writer's state, all of it its own.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) folder: Folder,
    pub(super) journal: Journal,
    encoder: Encoder,
    random: SystemRandom,
    /// What the vault holds after the last commit.
    pub(super) mark: Mark,
    /// The last commit that the engine was given.
    given: u64,
    pub(super) rekey: Rekey,
    pub(super) compaction: Compaction,
    /// Whether a commit was synced since the last note.
    unnoted: bool,
    /// Where commits go as well, while a backup is made.
    pub(super) tee: Weak<Tee>,
}

/// Commits that are sealed and not yet synced.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    waiting: Vec<Commit>,
}

impl Writer {
    /// Starts the writer on a thread of its own, and gives the vault that it writes for.
    pub(super) fn start(shared: Shared, folder: Folder, journal: Journal, mark: Mark) -> Result<Vault, VaultError> {
        let (mut writer, sender, mut requests) = Self::new(shared, folder, journal, mark);
        let (shared, path) = (Arc::clone(&writer.shared), writer.folder.path().to_owned());
        writer.tell_progress();
        let waiting = runtime::Builder::new_current_thread().enable_time().build();
        let waiting = waiting.map_err(|error| VaultError::io(&path, &error))?;
        let run = move || {
            if let Err(panic) = caught(|| writer.run(&mut requests, &waiting)) {
                writer.shared.poison(&VaultError::Engine { detail: panic });
            }
        };
        let thread = thread::Builder::new().name("vault writer".to_owned()).spawn(run);
        let thread = thread.map_err(|error| VaultError::io(&path, &error))?;
        Ok(Vault::new(shared, sender, Some(thread)))
    }

    /// A writer, and both ends of the queue in front of it.
    pub(super) fn new(
        shared: Shared,
        folder: Folder,
        journal: Journal,
        mark: Mark,
    ) -> (Self, mpsc::UnboundedSender<Request>, Requests) {
        let (sender, requests) = mpsc::unbounded_channel();
        let shared = Arc::new(shared);
        let writer = Self {
            rekey: Rekey::of(&shared),
            compaction: Compaction::default(),
            shared,
            folder,
            journal,
            encoder: Encoder::new(),
            random: SystemRandom::new(),
            mark,
            given: mark.applied,
            unnoted: false,
            tee: Weak::new(),
        };
        (writer, sender, requests)
    }

    /// Serves requests in order until the vault is closed or nobody is left to ask. `waiting` ends waits.
    fn run(&mut self, requests: &mut Requests, waiting: &Runtime) {
        if self.is_unjudged() {
            self.judge();
        }
        let judgement = self.shared.judgement.borrow().clone();
        match judgement {
            Judgement::Whole => {}
            Judgement::Pending => return self.refuse_all(requests, None),
            Judgement::Damaged(error) => return self.refuse_all(requests, Some(&error)),
        }
        self.compact_if_grown();
        loop {
            let request = match requests.try_recv() {
                Ok(request) => Some(request),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    self.idle();
                    if self.idle_work() || self.compact_some() {
                        continue;
                    }
                    self.wait(requests, waiting)
                }
            };
            let Some(request) = request else { return };
            if self.serve(request, requests).is_break() {
                return;
            }
        }
    }

    fn is_unjudged(&self) -> bool {
        matches!(*self.shared.judgement.borrow(), Judgement::Pending)
    }

    /// After a crash: counts every record before the first is written, while others read. Where they are not what the mark
    /// says, nothing is ever written, and the next opening tries a copy, so that it is refused as the vault is. The vault may
    /// be closed meanwhile; then this is left to the next opening.
    fn judge(&mut self) {
        let shared = &self.shared;
        let Some(opened) = shared.opened.load_full() else { return };
        let verified = engine::verify_in_parts(&*opened.engine, &self.mark, &Part::by_cores(), &shared.ending);
        let judgement = match verified.map_err(as_damage) {
            Ok(()) => Judgement::Whole,
            Err(VaultError::Closed) => return,
            Err(error) => {
                outline::forget(&self.folder.db());
                shared.poison(&error);
                Judgement::Damaged(error)
            }
        };
        shared.judgement.send_replace(judgement);
    }

    /// Writes nothing until the vault is closed: it was found damaged, or is closed before it is known whether it is. Then the
    /// next opening finds what this one has found.
    fn refuse_all(&mut self, requests: &mut Requests, damage: Option<&VaultError>) {
        let error = damage.unwrap_or(&VaultError::Closed);
        while let Some(request) = requests.blocking_recv() {
            match request {
                Request::Commit(commit) => answer(commit, Err(error.clone())),
                Request::Run(_) => {}
                Request::Close(done) => {
                    self.shared.opened.swap(None).and_then(last_reader_done);
                    let _ = done.send(damage.map_or(Ok(()), |error| Err(error.clone())));
                    return;
                }
            }
        }
    }

    /// Waits for the next request; where none comes for a while, the engine is given what it lacks.
    fn wait(&mut self, requests: &mut Requests, waiting: &Runtime) -> Option<Request> {
        if self.is_behind() {
            if let Ok(request) = waiting.block_on(async { timeout(REST, requests.recv()).await }) {
                return request;
            }
            // Whoever commits next is told of a failure.
            let _ = self.bring_up();
        }
        requests.blocking_recv()
    }

    /// Serves a request, and with a commit those that wait behind it; breaks when the vault was closed.
    pub(super) fn serve(&mut self, request: Request, requests: &mut Requests) -> ControlFlow<()> {
        let mut next = Some(request);
        while let Some(request) = next.take() {
            match request {
                Request::Commit(first) => next = self.commit(first, requests),
                Request::Run(run) => run(self),
                Request::Close(done) => {
                    let _ = done.send(self.close());
                    return ControlFlow::Break(());
                }
            }
            self.work_between_requests();
            self.compact_between_requests();
        }
        ControlFlow::Continue(())
    }

    /// Commits `first` and all that wait behind it, as far as one group holds; gives the request that stopped it.
    fn commit(&mut self, first: Commit, requests: &mut Requests) -> Option<Request> {
        let mut group = Group::default();
        let mut next = Some(Request::Commit(first));
        let mut stood_back = false;
        while let Some(Request::Commit(commit)) = next {
            self.take(commit, &mut group);
            if self.journal.group_is_full() {
                next = None;
                break;
            }
            next = requests.try_recv().ok();
            if next.is_none() && !stood_back {
                // Where cores are scarce, whoever makes commits was put aside when the first of them woke this thread: let
                // them go on for once, and their commits share the sync. Where a core is free, this takes no time.
                stood_back = true;
                thread::yield_now();
                next = requests.try_recv().ok();
            }
        }
        if !group.batches.is_empty() {
            self.write(group);
        }
        self.keep_room();
        next
    }

    /// Commits entries that are sealed already, on the writer's own account.
    pub(super) fn commit_entries(&mut self, entries: Vec<Entry>) -> Result<(), VaultError> {
        let batch = Batch { sequence: self.mark.applied + 1, entries };
        self.journal.add(&batch)?;
        self.write(Group { batches: vec![batch], waiting: Vec::new() });
        self.keep_room();
        self.shared.poisoned().map_or(Ok(()), Err)
    }

    /// Sees to it that another group fits into the journal. Whoever commits next is told of a failure.
    fn keep_room(&mut self) {
        if self.journal.wants_checkpoint() && self.shared.poison.get().is_none() {
            let _ = self.checkpoint();
            self.compact_if_grown();
        }
    }

    /// Seals a commit and adds it to the group, or refuses it.
    fn take(&mut self, mut commit: Commit, group: &mut Group) {
        let sequence = self.mark.applied + 1 + group.batches.len() as u64;
        let batch = match self.refusal() {
            Some(error) => Err(error),
            None => self.seal(std::mem::take(&mut commit.changes), sequence),
        };
        match batch.and_then(|batch| self.journal.add(&batch).map(|()| batch)) {
            Ok(batch) => {
                group.batches.push(batch);
                group.waiting.push(commit);
            }
            Err(error) => answer(commit, Err(error)),
        }
    }

    /// Why a commit is refused. A database that failed is no reason by itself: the answers of exchanges that are under way
    /// still come, the disk being full takes nothing from the journal, and what is kept there is replayed when the vault
    /// is next opened. A failure of the journal is one, and so is a journal that has no more room.
    fn refusal(&self) -> Option<VaultError> {
        let is_kept = self.journal.is_sound() && !self.journal.wants_checkpoint();
        self.shared.poisoned().filter(|_| !is_kept)
    }

    /// Makes a group durable, and then visible.
    fn write(&mut self, Group { batches, waiting }: Group) {
        let last = self.mark.applied + batches.len() as u64;
        let started = Instant::now();
        if let Err(error) = self.journal.sync(last) {
            self.shared.poison(&error);
            for commit in waiting {
                answer(commit, Err(error.clone()));
            }
            return;
        }
        self.shared.metrics.vault_written(started.elapsed());
        self.unnoted = true;
        self.rekey.note_written(batches.iter().map(|batch| batch.entries.len()).sum());
        self.compaction.follow(&batches);
        let first = self.mark.applied + 1;
        let taken = self.take_in(batches);
        // Whatever the engine says to it: the journal goes on with the next number.
        self.mark.applied = last;
        if let Err(error) = taken
            && self.shared.poison.get().is_none()
        {
            self.shared.poison(&error);
        }
        for (commit, sequence) in waiting.into_iter().zip(first..) {
            answer(commit, Ok(sequence));
        }
        if self.shared.backlog.bytes() >= self.journal.group_limit() / BACKLOG_SHARE {
            // Whoever commits next is told of a failure.
            let _ = self.bring_up();
        }
    }

    /// Lets every read see commits that are durable.
    fn take_in(&mut self, batches: Vec<Batch>) -> Result<(), VaultError> {
        let opened = self.shared.opened.load_full().ok_or(VaultError::Closed)?;
        if let Some(tee) = self.tee.upgrade() {
            tee.committed(&batches, &*opened.engine);
        }
        self.shared.backlog.add(batches, &*opened.engine, &mut self.mark)?;
        self.shared.count(&self.mark);
        self.folder.check_room(0)
    }

    /// Whether the engine lacks commits that it is still to be given.
    pub(super) fn is_behind(&self) -> bool {
        self.given < self.mark.applied && self.shared.poison.get().is_none()
    }

    /// Gives the engine every commit that it lacks. Whoever looks at the engine as a whole asks for this first.
    pub(super) fn bring_up(&mut self) -> Result<(), VaultError> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        if self.is_behind() {
            let opened = self.shared.opened.load_full().ok_or(VaultError::Closed)?;
            let given = self.shared.backlog.give(&*opened.engine, &self.mark);
            given.inspect_err(|error| self.shared.poison(error))?;
            self.given = self.mark.applied;
        }
        Ok(())
    }

    /// Brings the engine to the disk, and lets the journal start over.
    pub(super) fn checkpoint(&mut self) -> Result<(), VaultError> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        let opened = self.shared.opened.load_full().ok_or(VaultError::Closed)?;
        let done =
            self.folder.check_room(0).and_then(|()| self.bring_up()).and_then(|()| opened.engine.sync()).and_then(
                |()| {
                    self.grow_journal(opened.engine.bytes());
                    self.journal.start_over(self.mark.applied, None)
                },
            );
        self.unnoted = false;
        self.shared.journal_bytes.store(self.journal.bytes(), Ordering::Relaxed);
        done.inspect_err(|error| self.shared.poison(error))
    }

    /// Lets the journal grow with a database of `bytes`. Where there is no room for it, it stays as it is.
    fn grow_journal(&mut self, bytes: u64) {
        if let Err(error) = self.journal.grow_beside(bytes) {
            tracing::debug!(%error, "the vault's journal stays as small as it is");
        }
    }

    /// Ends the vault. The journal is marked as closed cleanly only if nothing failed and no reader is left; either way
    /// everything that was committed is there when it is next opened.
    pub(super) fn close(&mut self) -> Result<(), VaultError> {
        self.compaction.abandon();
        let checkpoint = self.checkpoint();
        let Some(opened) = self.shared.opened.swap(None).and_then(last_reader_done) else { return checkpoint };
        let Opened { engine, lock } = opened;
        drop(engine);
        let closed = checkpoint.and_then(|()| {
            let db = self.folder.db();
            let files = folder::sync_tree(&db).and_then(|()| folder::fingerprint(&db));
            let files = files.map_err(|error| VaultError::io(&db, &error))?;
            self.journal.start_over(self.mark.applied, Some(files))
        });
        drop(lock);
        closed
    }

    /// Nothing waits: proves the last commits durable to whoever reads the journal.
    pub(super) fn idle(&mut self) {
        if std::mem::take(&mut self.unnoted)
            && self.shared.poison.get().is_none()
            && let Err(error) = self.journal.note()
        {
            self.shared.poison(&error);
        }
    }

    fn seal(&mut self, changes: Vec<Change>, sequence: u64) -> Result<Batch, VaultError> {
        let entries = changes.into_iter().filter_map(|change| {
            Some(match change {
                // Nobody else writes here.
                Change::Expect(_) => return None,
                Change::PutGrant(grant) => self.put(grant.id.as_bytes(), &*grant, sequence),
                Change::PutOrganization(organization) => {
                    self.put(organization.id.as_str().as_bytes(), &*organization, sequence)
                }
                Change::PutIntent(intent) => self.put(intent.grant.as_bytes(), &intent, sequence),
                Change::PutStray(stray) => self.put_stray(&stray, sequence),
                Change::PutRow(row) => self.put(row.event.id.as_bytes(), &row, sequence),
                Change::DeleteGrant(id) => Ok(self.delete(Kind::Grant, id.as_bytes())),
                Change::DeleteOrganization(id) => Ok(self.delete(Kind::Organization, id.as_str().as_bytes())),
                Change::DeleteIntent(id) => Ok(self.delete(Kind::Intent, id.as_bytes())),
                Change::DeleteRow(id) => Ok(self.delete(Kind::Event, id.as_bytes())),
                Change::PutAwaiting(awaiting) => self.put(awaiting.grant.as_bytes(), &*awaiting, sequence),
                Change::DeleteAwaiting(id) => Ok(self.delete(Kind::Awaiting, id.as_bytes())),
                Change::PutRevokedLinks(revoked) => {
                    self.put(revoked.organization.as_str().as_bytes(), &revoked, sequence)
                }
                Change::DeleteRevokedLinks(id) => Ok(self.delete(Kind::RevokedLinks, id.as_str().as_bytes())),
            })
        });
        Ok(Batch { sequence, entries: entries.collect::<Result<_, _>>()? })
    }

    fn put_stray(&mut self, stray: &Stray, sequence: u64) -> Result<Entry, VaultError> {
        let mut id = [0; 16];
        let filled = self.random.fill(&mut id);
        filled.map_err(|_| VaultError::Engine { detail: "the system has no randomness".to_owned() })?;
        self.put(&id, stray, sequence)
    }

    fn put<R: Record>(&mut self, id: &[u8], record: &R, sequence: u64) -> Result<Entry, VaultError> {
        let name = self.shared.namer.name(R::KIND, id);
        let sealed = self.encoder.encode(record, |plaintext| self.shared.cipher.seal(&name, sequence, plaintext))?;
        Ok(Entry { name, sealed: Some(sealed) })
    }

    fn delete(&self, kind: Kind, id: &[u8]) -> Entry {
        Entry { name: self.shared.namer.name(kind, id), sealed: None }
    }
}

/// Tells whoever waits, if anybody still does.
fn answer(commit: Commit, result: Result<u64, VaultError>) {
    let _ = commit.done.send(result);
}

/// Waits for reads under way, which hold the engine; `None` if they take too long.
fn last_reader_done(mut opened: Arc<Opened>) -> Option<Opened> {
    for _ in 0..CLOSE_TRIES {
        match Arc::try_unwrap(opened) {
            Ok(opened) => return Some(opened),
            Err(shared) => opened = shared,
        }
        thread::sleep(CLOSE_PAUSE);
    }
    None
}
