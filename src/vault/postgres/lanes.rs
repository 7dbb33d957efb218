//! What replicas share of a provider: the turns of its budgets, and how it is.

use std::{sync::Arc, time::Duration};

use tokio_postgres::types::Type;

use super::{Parameters, Postgres, cell, claims::waited_for, error::PostgresError, version};
use crate::task;

/// No turn is reserved that is later than this from now. What is reserved and not used is lost, and so is not more than this of each
/// replica's.
pub const RESERVED_AHEAD: Duration = Duration::from_millis(250);

/// A provider's name as the database knows it: a keyed hash.
pub type LaneId = [u8; 16];

/// One of a provider's budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetId {
    /// Whose it is.
    pub lane: LaneId,
    /// The part of it that callers force, and not all of it.
    pub forced: bool,
}

impl BudgetId {
    fn bytes(self) -> Vec<u8> {
        [&[u8::from(self.forced)], &self.lane[..]].concat()
    }
}

/// How fast a budget gives turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// One after each of these.
    pub interval: Duration,
    /// After a quiet time, so much of it may be made up for at once.
    pub burst: Duration,
}

/// What was reserved of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Some turns: the first as below, the others an interval apart.
    Turns {
        /// How many, at least one.
        turns: u32,
        /// How long from the answer on the first is to be waited for; zero if it may go.
        first: Duration,
        /// How long ago the first could have gone, before the answer.
        ago: Duration,
    },
    /// None; to be asked again after this.
    NoneFor(Duration),
}

/// How a provider is, as it is stored: sealed bytes and their version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneState {
    /// Which provider.
    pub lane: LaneId,
    /// Goes up with every write.
    pub version: u64,
    /// What was written.
    pub sealed: Vec<u8>,
}

impl Postgres {
    /// Reserves at most `most` turns of a budget, none later than [`RESERVED_AHEAD`]. It waits for no standby. A budget that was never
    /// asked begins as after a quiet time; and so does each after a crash of the server or another's promotion.
    pub async fn reserve(&self, budget: BudgetId, most: u32, pace: Pace) -> Result<Reserved, PostgresError> {
        let most = i32::try_from(most).unwrap_or(i32::MAX).max(1);
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let (budget, interval) = (budget.bytes(), micros(pace.interval).max(1));
        let (burst, ahead) = (micros(pace.burst), micros(RESERVED_AHEAD));
        let parameters: Parameters<'_> = &[
            (&budget, Type::BYTEA),
            (&most, Type::INT4),
            (&interval, Type::INT8),
            (&burst, Type::INT8),
            (&ahead, Type::INT8),
        ];
        let rows = self.0.query(&self.0.sql.reserve, parameters).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it reserved nothing".to_owned()))?;
        let (turns, first): (i32, i64) = (cell(row, 0)?, cell(row, 1)?);
        let from_now = Duration::from_micros(u64::try_from(first).unwrap_or(0));
        Ok(match u32::try_from(turns).unwrap_or(0) {
            0 => Reserved::NoneFor(from_now),
            turns => {
                let ago = Duration::from_micros(u64::try_from(first.saturating_neg()).unwrap_or(0));
                Reserved::Turns { turns, first: from_now, ago }
            }
        })
    }

    /// How every provider is, as far as that was ever written.
    pub async fn lane_states(&self) -> Result<Vec<LaneState>, PostgresError> {
        let rows = self.0.query(&self.0.sql.lanes, &[]).await?;
        let lane = |bytes: &[u8]| {
            bytes.try_into().map_err(|_| PostgresError::Failed("it holds a lane of a name that is none".to_owned()))
        };
        rows.iter()
            .map(|row| {
                Ok(LaneState { lane: lane(cell(row, 0)?)?, version: version(cell(row, 1)?)?, sealed: cell(row, 2)? })
            })
            .collect()
    }

    /// Writes how a provider is, sealed under the keys of the version `keyring`, over the version that was read (0: none was there): its
    /// new version, or `None` where another has written first. Where the answer is lost, the next reading tells.
    pub async fn put_lane_state(
        &self,
        lane: LaneId,
        expected: u64,
        sealed: Vec<u8>,
        keyring: u64,
    ) -> Result<Option<u64>, PostgresError> {
        let shared = Arc::clone(&self.0);
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let (expected, keyring) = (signed(expected), signed(keyring));
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&&lane[..], Type::BYTEA),
                (&expected, Type::INT8),
                (&sealed, Type::BYTEA),
                (&keyring, Type::INT8),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            let rows = shared.claim(&shared.sql.put_lane, parameters).await?;
            let version_now: Option<i64> = rows.first().map_or(Ok(None), |row| cell(row, 0))?;
            version_now.map(version).transpose()
        }))
        .await
    }
}
