//! What the store does by itself: claims are given up that nobody holds any more, records are counted, and what was deleted long ago is
//! forgotten.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::types::Type;

use super::{
    super::{Claim, Parameters, Postgres, PostgresError, cell},
    Inner, Store,
    rekey::seal_anew,
};
use crate::{
    task,
    vault::{
        VaultError, VaultStats,
        name::{Kind, Part},
    },
};

/// How many claims are given up in one statement.
const RELEASED_AT_ONCE: usize = 500;
/// How often records are counted.
const COUNT_EVERY: Duration = Duration::from_mins(1);
/// How long it is remembered that a record was deleted. A process that was away for longer than a week has to start anew.
const GONE_KEPT_DAYS: i32 = 30;
/// How many of those are forgotten at once, at most.
const FORGOTTEN_AT_ONCE: i32 = 1000;

/// What is sent to the task that gives claims up.
pub(super) enum Release {
    /// A claim that nobody here holds any more.
    Claim(Claim),
    /// To be told when all before it is done.
    Flush(oneshot::Sender<()>),
}

impl Store {
    /// Gives up what nobody holds any more, and waits for that: to be called last. What is held still runs out by itself.
    pub async fn close(&self) {
        self.0.ending.cancel();
        let (done, flushed) = oneshot::channel();
        if self.0.release.send(Release::Flush(done)).is_ok() {
            // Bounded, since the database may be away.
            let _ = tokio::time::timeout(self.0.postgres.0.statement_timeout, flushed).await;
        }
    }
}

impl Postgres {
    /// How many records there are, how many of them are strays, and how many bytes all of it takes.
    pub(super) async fn count(&self) -> Result<(u64, u64, u64), PostgresError> {
        let (from, to) = Part::ALL.bounds(Kind::Stray);
        let rows = self.0.query(&self.0.sql.count, &[(&from, Type::BYTEA), (&to, Type::BYTEA)]).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it did not count".to_owned()))?;
        let number =
            |column| -> Result<u64, PostgresError> { Ok(u64::try_from(cell::<i64>(row, column)?).unwrap_or(0)) };
        // But for what the vault keeps about itself.
        Ok((number(0)?.saturating_sub(1), number(1)?, number(2)?))
    }
}

impl Inner {
    /// Starts what is done in the background; it ends with the store.
    pub(super) fn work_in_background(self: &Arc<Self>, released: mpsc::UnboundedReceiver<Release>) {
        task::spawn(give_up(Arc::downgrade(self), released));
        task::spawn(keep_up(Arc::downgrade(self)));
        task::spawn(seal_anew(Arc::downgrade(self)));
        self.postgres.give_and_hear_hints(&self.ending);
    }

    /// Counts the records, and the bytes that they take.
    pub(super) async fn count(&self) -> Result<(), VaultError> {
        let (records, strays, bytes) = self.postgres.count().await?;
        let stats = VaultStats { records, strays, bytes, data_key: 0 };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
        Ok(())
    }

    async fn forget_deleted(&self) -> Result<(), VaultError> {
        let parameters: Parameters<'_> = &[(&GONE_KEPT_DAYS, Type::INT4), (&FORGOTTEN_AT_ONCE, Type::INT4)];
        self.postgres.0.query(&self.postgres.0.sql.forget, parameters).await?;
        Ok(())
    }
}

/// Gives claims up, all that wait at once.
async fn give_up(inner: Weak<Inner>, mut released: mpsc::UnboundedReceiver<Release>) {
    while let Some(first) = released.recv().await {
        let (mut claims, mut flushed) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(release) = next {
            match release {
                Release::Claim(claim) => claims.push(claim),
                Release::Flush(done) => flushed.push(done),
            }
            next = if claims.len() < RELEASED_AT_ONCE { released.try_recv().ok() } else { None };
        }
        let Some(inner) = inner.upgrade() else { return };
        if !claims.is_empty()
            && let Err(error) = inner.postgres.give_up(&claims).await
        {
            tracing::debug!(%error, claims = claims.len(), "claims could not be given up; they run out");
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// Counts and forgets, as long as somebody has the vault open.
async fn keep_up(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let done = match inner.count().await {
            Ok(()) => match inner.forget_deleted().await {
                Ok(()) => inner.look_for_backups().await,
                failed => failed,
            },
            failed => failed,
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the vault's records could not be counted");
        }
    }
}
