//! A new data key for a vault that several workers share: every record is sealed anew under it while all of them are at work, and then
//! the older keys go.
//!
//! 1. The keyring with the new key takes the place of the old one: a commit. From then on nothing is committed that was sealed under the
//!    keys of before; whoever tries is refused, reads the keys again, and seals anew.
//! 2. Whoever has the lease looks at all records in order of their names, and puts those that are under an older key in their places, sealed
//!    anew: with the version that they have, so that it is no news to anybody, and needs no claim. What somebody writes meanwhile is
//!    left alone. What is known of records that were deleted, and of providers, is sealed anew as well.
//! 3. When a pass has come through, and every transaction has ended that may have begun before 1, the database itself is asked to let the
//!    older keys go if nothing is sealed under them, in one transaction with the look at all records, under the lease's number. If there is
//!    something, another pass begins.
//!
//! Wherever it ends, by a kill or a failover, a keyring with several data keys says that there is something to do, and whoever gets the lease
//! begins with 2; what is done already is passed quickly. A record that does not open keeps the older keys alive and stops nothing else.
//! A worker that has read a record before its key went reads it once more.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use super::{
    super::keys::{Barrier, Older, Retirement, ToldRekeying},
    Inner, Store,
    lanes::name_of,
};
use crate::vault::{Duty, OnDuty, Rekeying, Singular, VaultError, cipher, name::Name};

/// How often it is looked whether another worker has put other keys in force.
const LOOKED: Duration = Duration::from_secs(10);
/// And how far the one is that seals anew; after so long an error is tried again, too.
const FOLLOWED: Duration = Duration::from_secs(1);
/// When what could not be sealed anew is tried again.
const TRIED_AGAIN: Duration = Duration::from_mins(1);
/// How often it is looked whether older transactions have ended.
const WAITED: Duration = Duration::from_millis(50);
/// How often others are told how far it is.
const TOLD: Duration = Duration::from_millis(500);
/// How many records are put in their places at once. Whoever wants to write one of them waits for so many.
const AT_ONCE: usize = 100;

impl Store {
    /// Makes a new data key, durably, and begins to seal every record anew under it; gives its number. While that goes on, it is refused
    /// with [`VaultError::Rekeying`]; but not where it cannot go on.
    pub async fn rotate_data_key(&self) -> Result<u32, VaultError> {
        let inner = &self.0;
        let told = inner.postgres.rekeying().await.map_err(|error| inner.failed(error))?;
        let is_stuck = told.as_ref().is_some_and(|told| told.problem.is_some());
        let percent = told.as_ref().map_or(0, |told| told.done * 100 / told.total.max(1));
        inner
            .change_keys(|keyring| {
                if keyring.data_keys.len() > 1 && !is_stuck {
                    return Err(VaultError::Rekeying { data_key: keyring.current, percent });
                }
                keyring.add_data_key().map(|()| true)
            })
            .await?;
        let number = inner.cipher.current();
        let total = inner.stats.lock().unwrap_or_else(PoisonError::into_inner).records;
        inner.note_rekeying(Some(Rekeying { done: 0, total, problem: None }));
        inner.rekey_wanted.notify_one();
        tracing::info!(vault.data_key = number, "a new data key is in use; records are sealed anew under it");
        Ok(number)
    }

    /// How far the sealing under a new data key is, whichever worker does it; `None` where there is one data key only.
    pub fn rekeying(&self) -> Option<Rekeying> {
        self.0.rekeying.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Inner {
    /// Tells readers how far it is.
    fn note_rekeying(&self, now: Option<Rekeying>) {
        self.metrics.set_rekey_progress(now.as_ref().map_or(1.0, Rekeying::progress));
        *self.rekeying.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn data_keys(&self) -> usize {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).keyring.data_keys.len()
    }
}

/// Goes through all records once, in order of their names.
#[derive(Default)]
struct Pass {
    cursor: Option<Name>,
    /// Rows that were looked at, and how many there were when it began.
    seen: u64,
    total: u64,
    /// Records that do not open, and what is wrong with the first of them.
    unreadable: u64,
    why: Option<String>,
    /// Taken when it began: transactions below may bring a record under an older key.
    barrier: Option<Barrier>,
    /// All names were gone through.
    is_through: bool,
    /// On the boot-time clock.
    told_at: Duration,
}

/// What is to be done next.
enum Next {
    /// More of it, after this.
    After(Duration),
    /// All is under one key, or another worker is at it.
    Over,
}

/// Seals anew what is under older keys, as long as somebody has the vault open and this worker has the lease for it.
pub(super) async fn seal_anew(inner: Weak<Inner>) {
    let duty = match inner.upgrade() {
        Some(inner) => Duty::leased(inner.postgres.clone(), Singular::Rekey, inner.clock.clone()),
        None => return,
    };
    loop {
        let Some(here) = inner.upgrade() else { return };
        let mut pause = here.look_for_keys().await;
        let (wanted, ending) = (Arc::clone(&here.rekey_wanted), here.ending.clone());
        if here.data_keys() > 1
            && !ending.is_cancelled()
            && let Some(on_duty) = duty.begin().await
        {
            drop(here);
            pause = work(&inner, &on_duty).await;
        } else {
            drop(here);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wanted.notified() => {}
            () = ending.cancelled() => return,
        }
    }
}

/// Does it until it is done, or cannot be done now: when it is to be looked at again. The vault is held no longer than for a step.
async fn work(inner: &Weak<Inner>, on_duty: &OnDuty) -> Duration {
    let mut pass = Pass::default();
    loop {
        let Some(here) = inner.upgrade() else { return LOOKED };
        if !on_duty.is_good() || here.ending.is_cancelled() {
            return FOLLOWED;
        }
        let stepped = here.step(&mut pass, on_duty).await;
        match stepped {
            Ok(Next::After(pause)) => {
                drop(here);
                tokio::time::sleep(pause).await;
            }
            Ok(Next::Over) => return LOOKED,
            Err(error) => return here.stopped(&pass, &error).await,
        }
    }
}

impl Inner {
    /// Reads the keys again where another worker has changed them, and how far it is; gives when to look again.
    async fn look_for_keys(&self) -> Duration {
        if let Err(error) = self.read_keys_again().await {
            tracing::debug!(%error, "it cannot be seen whether the vault's keys have changed");
            return FOLLOWED;
        }
        if self.data_keys() == 1 {
            self.note_rekeying(None);
            return LOOKED;
        }
        if let Ok(Some(ToldRekeying { done, total, problem })) = self.postgres.rekeying().await {
            self.note_rekeying(Some(Rekeying { done, total, problem }));
        } else if self.rekeying.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.note_rekeying(Some(Rekeying { done: 0, total: 1, problem: None }));
        }
        FOLLOWED
    }

    async fn step(&self, pass: &mut Pass, on_duty: &OnDuty) -> Result<Next, VaultError> {
        if pass.barrier.is_none() {
            pass.barrier = Some(self.postgres.barrier().await?);
            pass.total = self.postgres.rows().await?;
            self.seal_lanes_anew(pass).await?;
        }
        if !pass.is_through {
            return self.seal_some_anew(pass).await;
        }
        if pass.unreadable > 0 {
            return Err(VaultError::Unreadable { count: pass.unreadable, first: pass.why.take().unwrap_or_default() });
        }
        match pass.barrier {
            Some(barrier) => match self.postgres.has_passed(barrier).await? {
                Some(true) => self.retire_older(pass, on_duty).await,
                Some(false) => Ok(Next::After(WAITED)),
                // Of an earlier primary; what that one never confirmed may be gone.
                None => {
                    *pass = Pass::default();
                    Ok(Next::After(Duration::ZERO))
                }
            },
            None => Ok(Next::After(Duration::ZERO)),
        }
    }

    /// Looks at the next records.
    async fn seal_some_anew(&self, pass: &mut Pass) -> Result<Next, VaultError> {
        let began = self.clock.boot();
        let (keyring, current) = self.keys_in_force();
        let looked = self.postgres.outdated(pass.cursor.as_ref(), current).await?;
        pass.is_through = looked.seen == 0;
        pass.seen += looked.seen;
        pass.cursor = looked.last.or(pass.cursor);
        let mut records = Vec::new();
        for record in looked.older {
            match self.anew(record) {
                Ok(record) => records.push(record),
                Err(error) => pass.cannot(&error),
            }
        }
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(AT_ONCE));
            self.postgres.reseal(keyring, records).await?;
            records = rest;
        }
        self.tell(pass).await?;
        // As long as it took: the database has more to do.
        Ok(Next::After(self.clock.boot().saturating_sub(began)))
    }

    fn anew(&self, record: Older) -> Result<Older, VaultError> {
        let anew =
            |sealed: Option<Vec<u8>>| sealed.map(|sealed| self.cipher.seal_anew(&record.name, sealed)).transpose();
        Ok(Older { sealed: anew(record.sealed)?, tombstone: anew(record.tombstone)?, ..record })
    }

    async fn seal_lanes_anew(&self, pass: &mut Pass) -> Result<(), VaultError> {
        let (keyring, current) = self.keys_in_force();
        for state in self.postgres.lane_states().await? {
            if cipher::key_number(&state.sealed) == Some(current) {
                continue;
            }
            match name_of(state.lane).and_then(|name| self.cipher.seal_anew(&name, state.sealed)) {
                Ok(sealed) => self.postgres.reseal_lane(keyring, state.lane, state.version, sealed).await?,
                Err(error) => pass.cannot(&error),
            }
        }
        Ok(())
    }

    /// The version of the keys, and the number of the data key that seals.
    fn keys_in_force(&self) -> (u64, u32) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        (keys.version, keys.keyring.current)
    }

    /// Lets the older keys go, if nothing is sealed under them any more.
    async fn retire_older(&self, pass: &mut Pass, on_duty: &OnDuty) -> Result<Next, VaultError> {
        let Some(fence) = on_duty.number() else { return Ok(Next::Over) };
        let (mut keyring, version) = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            (keys.keyring.clone(), keys.version)
        };
        keyring.forget_older();
        let (current, recipients) = (keyring.current, keyring.recipients_text());
        let retirement = Retirement { fence, version, current, keyring: keyring.encrypt()?, recipients };
        if self.postgres.retire(retirement).await? > 0 {
            *pass = Pass::default();
            return Ok(Next::After(Duration::ZERO));
        }
        self.read_keys_again().await?;
        if self.data_keys() == 1 {
            self.note_rekeying(None);
        }
        tracing::info!(
            vault.data_key = current,
            "every record is sealed under the new data key; the older ones are destroyed"
        );
        Ok(Next::Over)
    }

    /// Says how far it is, here and now and then to the others.
    async fn tell(&self, pass: &mut Pass) -> Result<(), VaultError> {
        let total = pass.total.max(1);
        let done = pass.seen.min(total).saturating_sub(pass.unreadable);
        self.note_rekeying(Some(Rekeying { done, total, problem: None }));
        let now = self.clock.boot();
        if pass.told_at.is_zero() || now.saturating_sub(pass.told_at) >= TOLD {
            pass.told_at = now;
            self.postgres.tell_rekeying(&ToldRekeying { done, total, problem: None }).await?;
        }
        Ok(())
    }

    /// It cannot go on now: nothing is lost, since both keys are kept. Gives when it is to be tried again.
    async fn stopped(&self, pass: &Pass, error: &VaultError) -> Duration {
        // The keys were changed, another worker is at it, or the database is away.
        if error.passes() {
            tracing::debug!(%error, "records are sealed anew a moment later");
            return FOLLOWED;
        }
        self.metrics.vault_failed();
        tracing::error!(%error, "records are not sealed anew any further; the older data keys are kept until all are");
        let total = pass.total.max(1);
        let done = pass.seen.min(total).saturating_sub(pass.unreadable);
        let told = ToldRekeying { done, total, problem: Some(error.to_string()) };
        let _ = self.postgres.tell_rekeying(&told).await;
        self.note_rekeying(Some(Rekeying { done, total, problem: told.problem }));
        TRIED_AGAIN
    }
}

impl Pass {
    /// A record stays as it is.
    fn cannot(&mut self, error: &VaultError) {
        self.unreadable += 1;
        self.why.get_or_insert_with(|| match error {
            VaultError::Damaged { what, detail } => format!("{what}: {detail}"),
            other => other.to_string(),
        });
    }
}
