//! Leases: which process does what one of them does for all.
//!
//! A lease ends by the server's clock. Its holder counts for itself, on its own boot-time clock, *from before it asked*, and
//! less a tenth, so that it ends sooner for the holder than for the server. A lease says who works; what is done twice, by a
//! process that was stopped in the middle, must be harmless, or be committed with the lease's number.

use std::{sync::Arc, time::Duration};

use tokio_postgres::types::Type;

use super::{
    Parameters, Postgres, cell,
    claims::{Lease, waited_for},
    error::PostgresError,
    version,
};
use crate::task;

impl Postgres {
    /// Takes the lease of that name, for so long from before this was asked, at most [`LONGEST_LEASE`](super::LONGEST_LEASE): its
    /// number, higher for every later one; `None` while another has it. A process that has it already is given it anew.
    ///
    /// As for claims there is no time limit; whoever does not want to wait may drop the future.
    pub async fn lease(&self, what: &str, length: Duration) -> Result<Option<u64>, PostgresError> {
        let (shared, what, length) = (Arc::clone(&self.0), what.to_owned(), Lease::For(length).millis());
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&what, Type::TEXT),
                (&length, Type::INT8),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            let rows = shared.claim(&shared.sql.lease, parameters).await?;
            let number: Option<i64> = rows.first().map_or(Ok(None), |row| cell(row, 0))?;
            number.map(version).transpose()
        }))
        .await
    }

    /// Prolongs a lease, or gives it up; `false` where it is another's by now.
    pub async fn prolong(&self, what: &str, number: u64, then: Lease) -> Result<bool, PostgresError> {
        let (shared, what, length) = (Arc::clone(&self.0), what.to_owned(), then.millis());
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&what, Type::TEXT),
                (&number, Type::INT8),
                (&length, Type::INT8),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            let rows = shared.claim(&shared.sql.prolong, parameters).await?;
            rows.first().map_or(Ok(false), |row| cell(row, 0))
        }))
        .await
    }
}
