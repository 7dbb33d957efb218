//! Claims: which process may work on a grant, for a while.
//!
//! A claim ends by the server's clock. Its holder counts for itself, on its own boot-time clock, *from before it asked*, and less
//! a tenth, so that the claim ends sooner for the holder than for the server. A claim says who tries; that nobody else sends a one-time
//! token is seen to by the commit of its intent, which needs the claim and the record's version.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_postgres::{Row, types::Type};

use super::{
    Parameters, Postgres, Shared, cell,
    commit::{Fate, ask},
    connection::take,
    error::PostgresError,
    name, version,
};
use crate::vault::name::Name;

/// How many grants are claimed at once, at most.
const MOST_CLAIMS: i32 = 1000;
/// How many statements about claims are under way at once: each may have to wait for standbys, on a connection of its own.
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
            Self::For(time) => i64::try_from(time.min(LONGEST_LEASE).as_millis()).unwrap_or(i64::MAX).max(1),
            Self::Ends => 0,
        }
    }
}

impl Postgres {
    /// Claims at most `most` of the grants that are due in that lane and that nobody has claimed; the longest due first.
    ///
    /// `earlier`: also those whose claim was made before the present primary was promoted, where its time is over by this server's
    /// clock. That clock may be ahead of the earlier one's: only to be asked for by a process that has seen the present timeline
    /// ([`super::News::timeline`]) for as long as a lease may be.
    ///
    /// A claim whose answer is lost runs out by itself. There is no time limit, as for commits, and only a few claims are under way at
    /// once: whoever does not want to wait may drop the future.
    pub async fn claim(
        &self,
        lane: [u8; 16],
        most: u16,
        lease: Duration,
        earlier: bool,
    ) -> Result<Vec<Claim>, PostgresError> {
        let (most, lease) = (i32::from(most).min(MOST_CLAIMS), Lease::For(lease).millis());
        let shared = Arc::clone(&self.0);
        waited_for(tokio::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&&lane[..], Type::BYTEA),
                (&most, Type::INT4),
                (&lease, Type::INT8),
                (&earlier, Type::BOOL),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            claims(&shared.claim(&shared.sql.claim, parameters).await?)
        }))
        .await
    }

    /// Claims one grant, due or not; `None` while another has it.
    pub async fn claim_one(&self, name: Name, lease: Duration, earlier: bool) -> Result<Option<Claim>, PostgresError> {
        let lease = Lease::For(lease).millis();
        let shared = Arc::clone(&self.0);
        let claimed = waited_for(tokio::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&&name.as_bytes()[..], Type::BYTEA),
                (&lease, Type::INT8),
                (&earlier, Type::BOOL),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            claims(&shared.claim(&shared.sql.claim_one, parameters).await?)
        }));
        Ok(claimed.await?.pop())
    }

    /// Gives claims up; those that are another's by now stay as they are.
    pub async fn give_up(&self, given_up: &[Claim]) -> Result<(), PostgresError> {
        let names: Vec<Vec<u8>> = given_up.iter().map(|claim| claim.name.as_bytes().to_vec()).collect();
        let numbers: Vec<i64> = given_up.iter().map(|claim| i64::try_from(claim.number).unwrap_or(i64::MAX)).collect();
        let shared = Arc::clone(&self.0);
        waited_for(tokio::spawn(async move {
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
    /// Runs a statement about claims, which commits: to its end, since a wait that is cut short leaves the server waiting.
    async fn claim(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, PostgresError> {
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
async fn waited_for<T>(task: JoinHandle<Result<T, PostgresError>>) -> Result<T, PostgresError> {
    task.await.unwrap_or_else(|error| Err(PostgresError::Failed(format!("a claim died: {error}"))))
}

fn claims(rows: &[Row]) -> Result<Vec<Claim>, PostgresError> {
    rows.iter().map(|row| Ok(Claim { name: name(row, 0)?, number: version(cell(row, 1)?)? })).collect()
}
