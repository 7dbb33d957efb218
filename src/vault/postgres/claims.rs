//! Claims: which process may work on a grant, for a while.
//!
//! A claim ends by the server's clock. Its holder counts for itself, on its own boot-time clock, *from before it asked*, and less
//! a tenth, so that the claim ends sooner for the holder than for the server. A claim says who tries; that nobody else sends a one-time
//! token is seen to by the commit of its intent, which needs the claim. So a claim itself waits for no standby: one that is lost with
//! its primary is a commit that is refused.

use std::{sync::Arc, time::Duration};

use tokio_postgres::{Row, types::Type};

use super::{
    Parameters, Postgres, Shared, cell,
    commit::{Fate, ask},
    connection::take,
    error::PostgresError,
    name, version,
};
use crate::{
    model::Timestamp,
    task::{self, Task},
    vault::name::Name,
};

/// How many grants are claimed at once, at most.
const MOST_CLAIMS: i32 = 1000;
/// How many statements about claims are under way at once: each may have to wait for a commit, on a connection of its own.
pub(super) const CLAIMING: usize = 2;
/// The longest lease. A process that dies leaves its claims behind for so long.
pub const LONGEST_LEASE: Duration = Duration::from_mins(2);

/// One claim, as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The grant's record.
    pub name: Name,
    /// Its number, higher for every later claim of the grant.
    pub number: u64,
}

/// A claim of what is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The claim.
    pub claim: Claim,
    /// Whether its dates were written; else it may be due or not.
    pub is_dated: bool,
    /// Since when it is due.
    pub at: Option<Timestamp>,
    /// When one of its organizations was last fetched, as far as the database knows.
    pub fetched: Option<Timestamp>,
}

/// On which timeline a process has seen the server, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The timeline ([`super::Cursor`]).
    pub timeline: i32,
    /// How long ago it was seen there first.
    pub time: Duration,
}

/// What came of asking for one grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is this process's.
    Won(Claim),
    /// Another process has it.
    Held,
    /// There is no such grant.
    Unknown,
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It is good for so long from now on, at most [`LONGEST_LEASE`].
    For(Duration),
    /// Another may have it.
    Ends,
}

impl Lease {
    /// For the server, in milliseconds; 0 ends it.
    pub(super) fn millis(self) -> i64 {
        match self {
            Self::For(time) => millis(time.min(LONGEST_LEASE)).max(1),
            Self::Ends => 0,
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Postgres {
    /// Claims at most `most` of the grants that are due in that lane and that nobody has claimed, the longest due first; and at most
    /// `undated` more of those whose dates nobody has written.
    ///
    /// `seen`: since when this process knows on which timeline the server is. A claim that was made before the present primary was promoted
    /// is over when that is as long ago as the claim was to last: this server's clock may be ahead of the earlier one's.
    ///
    /// A claim whose answer is lost runs out by itself. There is no time limit, and only a few claims are under way at once: whoever
    /// does not want to wait may drop the future.
    pub async fn claim_due(
        &self,
        lane: [u8; 16],
        most: u16,
        undated: u16,
        lease: Duration,
        seen: Seen,
    ) -> Result<Vec<Due>, PostgresError> {
        let timeline = seen.timeline;
        let [most, undated] = [most, undated].map(|most| i32::from(most).min(MOST_CLAIMS));
        let (lease, seen) = (Lease::For(lease).millis(), millis(seen.time));
        let shared = Arc::clone(&self.0);
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&&lane[..], Type::BYTEA),
                (&most, Type::INT4),
                (&undated, Type::INT4),
                (&lease, Type::INT8),
                (&timeline, Type::INT4),
                (&seen, Type::INT8),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            let rows = shared.claim(&shared.sql.claim_due, parameters).await?;
            let mut claimed: Vec<Due> = rows.iter().map(due).collect::<Result<_, _>>()?;
            claimed.sort_unstable_by_key(|due| (due.at, due.claim.name));
            Ok(claimed)
        }))
        .await
    }

    /// Claims one grant, due or not. `mine`: the number of a claim of this process, which is prolonged if it is still the grant's;
    /// 0: there is none. What this process holds under another number is taken anew, so that the other number is worth nothing.
    pub async fn claim_one(
        &self,
        name: Name,
        mine: u64,
        lease: Duration,
        seen: Seen,
    ) -> Result<Claimed, PostgresError> {
        let timeline = seen.timeline;
        let (mine, lease, seen) = (i64::try_from(mine).unwrap_or(0), Lease::For(lease).millis(), millis(seen.time));
        let shared = Arc::clone(&self.0);
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&&name.as_bytes()[..], Type::BYTEA),
                (&mine, Type::INT8),
                (&lease, Type::INT8),
                (&timeline, Type::INT4),
                (&seen, Type::INT8),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            let rows = shared.claim(&shared.sql.claim_one, parameters).await?;
            let Some(row) = rows.first() else { return Ok(Claimed::Unknown) };
            let number = cell::<Option<i64>>(row, 1)?.map(version).transpose()?;
            Ok(number.map_or(Claimed::Held, |number| Claimed::Won(Claim { name, number })))
        }))
        .await
    }

    /// Gives claims up; those that are another's by now stay as they are.
    pub async fn give_up(&self, given_up: &[Claim]) -> Result<(), PostgresError> {
        let names: Vec<Vec<u8>> = given_up.iter().map(|claim| claim.name.as_bytes().to_vec()).collect();
        let numbers: Vec<i64> = given_up.iter().map(|claim| i64::try_from(claim.number).unwrap_or(i64::MAX)).collect();
        let shared = Arc::clone(&self.0);
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&names, Type::BYTEA_ARRAY),
                (&numbers, Type::INT8_ARRAY),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            shared.claim(&shared.sql.give_up, parameters).await.map(drop)
        }))
        .await
    }
}

impl Shared {
    /// Runs a statement about claims, leases or lanes to its end.
    pub(super) async fn claim(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, PostgresError> {
        let _permit = self.claiming.acquire().await.map_err(|_| PostgresError::Forgotten)?;
        let connection = take(&self.pool).await?;
        match ask(&connection, sql, parameters).await {
            (Fate::Done, rows) => Ok(rows),
            (Fate::NotDone(error), _) => Err(error),
            (Fate::Unknown(why), _) => Err(PostgresError::Away(why)),
        }
    }
}

/// The outcome of a task that nobody cancels.
pub(super) async fn waited_for<T: 'static>(task: Task<Result<T, PostgresError>>) -> Result<T, PostgresError> {
    task.await.unwrap_or_else(|error| Err(PostgresError::Failed(format!("a claim died: {error}"))))
}

fn due(row: &Row) -> Result<Due, PostgresError> {
    let claim = Claim { name: name(row, 0)?, number: version(cell(row, 1)?)? };
    let moment = |column| Ok(cell::<Option<i64>>(row, column)?.map(Timestamp::from_millis));
    Ok(Due { claim, is_dated: cell(row, 2)?, at: moment(3)?, fetched: moment(4)? })
}
