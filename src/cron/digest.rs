use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{due::last_due, turns::Turns};
use crate::{
    clock::SharedClock,
    config::ScheduleConfig,
    model::{EndingWeek, Event, EventKind, Outlook, Timestamp},
    outbox::Outbox,
    task,
    vault::Duty,
};

/// Counts what a digest tells; `None` while that cannot be counted. May take a while.
pub type Count = Arc<dyn Fn() -> Option<(Vec<EndingWeek>, Outlook)> + Send + Sync>;

/// Posts a digest when one is due. Cheap to clone.
///
/// The newest digest in the outbox tells when the last one was made: one that was missed is made as soon as somebody looks, several
/// that were missed are one, and looking twice makes one. Its id follows from the moment it was due at, so that also a restored
/// backup tells nobody the same twice. Nothing is posted where nothing ends and nothing is wrong.
#[derive(Clone, Debug)]
pub struct DigestSchedule(Arc<Inner>);

struct Inner {
    pattern: String,
    timezone: String,
    count: Count,
    outbox: Outbox,
    clock: SharedClock,
    started: Timestamp,
    /// The due moment that has been seen to, so that nothing is counted for it again.
    seen_to: Mutex<Option<Timestamp>>,
    /// One looks at a time,
    turns: Turns,
    /// and one worker of those that share the vault.
    duty: Duty,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DigestSchedule").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

impl DigestSchedule {
    /// The schedule of the configuration; `None` where it has none.
    ///
    /// `duty`: what says that it is this process that posts them.
    pub fn of(config: &ScheduleConfig, outbox: &Outbox, clock: &SharedClock, count: Count, duty: Duty) -> Option<Self> {
        if config.digest.is_empty() {
            return None;
        }
        Some(Self(Arc::new(Inner {
            pattern: config.digest.clone(),
            timezone: config.timezone.clone(),
            count,
            outbox: outbox.clone(),
            started: clock.now().wall,
            clock: clock.clone(),
            seen_to: Mutex::default(),
            turns: Turns::default(),
            duty,
        })))
    }

    /// Looks whether a digest is due, and posts it, in the background. Has to be called within a Tokio runtime.
    pub fn wake(&self) {
        let Some(turn) = self.0.turns.take() else { return };
        let inner = Arc::clone(&self.0);
        task::spawn_on(self.0.turns.tasks(), async move {
            let _given_back_at_its_end = turn;
            inner.post_if_due().await;
        });
    }

    /// Posts no other, and waits until the one that is being posted is stored.
    pub async fn stop(&self) {
        self.0.turns.stop().await;
    }
}

impl Inner {
    async fn post_if_due(&self) {
        let now = self.clock.now().wall;
        let Some(due) = last_due(&self.pattern, &self.timezone, now).filter(|due| self.is_missing(*due, now)) else {
            return;
        };
        let Some(_on_duty) = self.duty.begin().await else { return };
        if !self.is_missing(due, now) {
            // Another worker has posted it, and this one has heard of it meanwhile.
            return;
        }
        let count = Arc::clone(&self.count);
        let Ok(Some((weeks, outlook))) = task::spawn_blocking(move || count()).await else { return };
        if weeks.is_empty() && is_quiet(&outlook) {
            self.note(due);
            return;
        }
        let id = self.outbox.id(EventKind::ConsentsDigest, &[&due.as_millis().to_le_bytes()]);
        let outlook = Some(Box::new(outlook));
        match self.outbox.post(vec![Event { weeks, outlook, ..Event::new(id, now, EventKind::ConsentsDigest) }]).await {
            Ok(()) => {
                self.note(due);
                tracing::info!(event.id = %id, %due, "a digest of the consents that end was posted");
            }
            Err(error) => {
                tracing::error!(%error, %due, "the digest could not be stored; it is tried again at the next sweep");
            }
        }
    }

    /// Whether no digest was made for that moment yet.
    fn is_missing(&self, due: Timestamp, now: Timestamp) -> bool {
        if *self.seen_to.lock().unwrap_or_else(PoisonError::into_inner) == Some(due) {
            return false;
        }
        match self.outbox.last(EventKind::ConsentsDigest) {
            // One from a clock that was ahead says nothing of this moment; should it have been made for it, the id is the same.
            Some(last) => last.at < due || last.at > now,
            // The first is that of the first moment that a worker has lived through, by its own word or by an older event.
            None => self.started <= due || self.outbox.after(None).first().is_some_and(|first| first.at <= due),
        }
    }

    fn note(&self, due: Timestamp) {
        *self.seen_to.lock().unwrap_or_else(PoisonError::into_inner) = Some(due);
    }
}

/// Whether there is nothing to tell but weeks.
fn is_quiet(outlook: &Outlook) -> bool {
    outlook.later == 0 && outlook.expired == 0 && outlook.in_doubt == 0 && outlook.lost == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tests::AtOnce as _;
    use crate::{
        clock::ManualClock,
        config::Config,
        metrics::Metrics,
        vault::{Identity, Vault},
    };

    const MONDAY_EIGHT: &str = "2026-11-23T07:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    /// A vault and an outbox, on a clock that is moved by hand.
    struct World {
        clock: Arc<ManualClock>,
        config: Config,
        outbox: Outbox,
        vault: Vault,
        folder: tempfile::TempDir,
    }

    impl World {
        fn new(now: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let mut config = Config::parse("").expect("good");
            config.vault.path = folder.path().join("vault");
            let identity = Identity::create(&folder.path().join("identity")).expect("made");
            Vault::create(&config.vault, &identity).expect("made");
            let vault = Vault::open(&config.vault, &identity, Metrics::new(&[])).expect("opened");
            let clock = ManualClock::at(at(now));
            let outbox = Outbox::open(&vault, clock.clone(), Metrics::new(&[])).at_once();
            Self { clock, config, outbox, vault, folder }
        }

        fn schedule(&self, lost: u64) -> DigestSchedule {
            let shared: SharedClock = self.clock.clone();
            let week = EndingWeek {
                week: "2026-12-07".to_owned(),
                provider: "visma-connect".parse().expect("a name"),
                consents: 3,
                assumed: 1,
            };
            let outlook = Outlook { lost, ..Outlook::default() };
            let count = move || Some((if lost > 0 { vec![week.clone()] } else { Vec::new() }, outlook.clone()));
            DigestSchedule::of(&self.config.schedule, &self.outbox, &shared, Arc::new(count), Duty::always())
                .expect("one by default")
        }

        /// As after a restart of the process, on what is in the vault.
        fn restarted(&mut self) {
            self.outbox = Outbox::open(&self.vault, self.clock.clone(), Metrics::new(&[])).at_once();
        }

        async fn looked(&self, schedule: &DigestSchedule) -> usize {
            for _ in 0..2 {
                schedule.wake();
                while schedule.0.turns.is_taken() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            self.outbox.after(None).len()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_is_posted_when_it_is_due_or_was_missed_and_never_two() {
        let mut world = World::new("2026-11-22T12:00:00Z");
        let schedule = world.schedule(1);
        assert_eq!(world.looked(&schedule).await, 0, "what was due before the worker's first day is not caught up");
        world.clock.set_wall(at(MONDAY_EIGHT));
        assert_eq!(world.looked(&schedule).await, 1);
        let first = world.outbox.last(EventKind::ConsentsDigest).expect("posted");
        assert_eq!((first.weeks[0].consents, first.outlook.as_ref().expect("counted").lost), (3, 1));
        world.restarted();
        let schedule = world.schedule(1);
        assert_eq!(world.looked(&schedule).await, 1, "the outbox tells");
        assert_eq!(*world.outbox.last(EventKind::ConsentsDigest).expect("kept"), *first, "with all that it said");

        // Down from Tuesday to Friday afternoon: one makes up for four.
        world.clock.set_wall(at("2026-11-27T15:00:00Z"));
        world.restarted();
        let schedule = world.schedule(1);
        assert_eq!(world.looked(&schedule).await, 2);
        world.clock.set_wall(at("2026-11-29T15:00:00Z"));
        assert_eq!(world.looked(&schedule).await, 2, "none is due at the weekend");
        // A clock set back is shown nothing twice; set right again, it goes on.
        world.clock.set_wall(at("2026-11-27T16:00:00Z"));
        assert_eq!(world.looked(&schedule).await, 2);
        world.clock.set_wall(at("2026-11-23T09:00:00Z"));
        world.restarted();
        let schedule = world.schedule(1);
        assert_eq!(world.looked(&schedule).await, 2, "the id of Monday's is there already");
        world.clock.set_wall(at("2026-11-30T07:00:00Z"));
        assert_eq!(world.looked(&schedule).await, 3);
        schedule.stop().await;
        world.clock.set_wall(at("2026-12-01T07:00:00Z"));
        assert_eq!(world.looked(&schedule).await, 3);
        drop(world.folder);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_id_follows_from_the_moment_it_was_due() {
        let (one, two) = (World::new("2026-11-22T12:00:00Z"), World::new("2026-11-22T12:00:00Z"));
        let digest = async |world: &World, looked_at: &str| {
            let schedule = world.schedule(1);
            world.clock.set_wall(at(looked_at));
            world.looked(&schedule).await;
            world.outbox.last(EventKind::ConsentsDigest).expect("posted").id
        };
        let id = digest(&one, MONDAY_EIGHT).await;
        let due = at(MONDAY_EIGHT).as_millis().to_le_bytes();
        assert_eq!(id, one.outbox.id(EventKind::ConsentsDigest, &[&due]));
        let late = digest(&two, "2026-11-23T11:11:11Z").await;
        assert_eq!(late, two.outbox.id(EventKind::ConsentsDigest, &[&due]), "however late somebody looked");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_posted_where_nothing_ends_and_nothing_is_wrong() {
        let world = World::new("2026-11-22T12:00:00Z");
        let schedule = world.schedule(0);
        world.clock.set_wall(at(MONDAY_EIGHT));
        assert_eq!(world.looked(&schedule).await, 0);
        let mut never = world.config.schedule.clone();
        never.digest = String::new();
        let shared: SharedClock = world.clock.clone();
        assert!(DigestSchedule::of(&never, &world.outbox, &shared, Arc::new(|| None), Duty::always()).is_none());
    }
}
