//! What the database knows of a move of the vault: which, and whether its records may be used. `vault/moving` says in which order
//! these are done, and why.

use tokio_postgres::types::Type;

use super::{
    Parameters, Postgres, cell,
    commit::{Fate, ask},
    connection::take,
    error::PostgresError,
};
use crate::vault::name::Name;

/// The last move, or the one under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::vault) struct Moving {
    /// Its id.
    pub(in crate::vault) id: [u8; 16],
    /// Whether the vault leaves this database; else it comes here.
    pub(in crate::vault) leaving: bool,
    /// Where to, or from where, in words.
    pub(in crate::vault) place: String,
    /// Whether it left for good, or is whole.
    pub(in crate::vault) ended: bool,
}

impl Postgres {
    /// The last move, or the one under way; `None` if there never was one.
    pub(in crate::vault) async fn moving(&self) -> Result<Option<Moving>, PostgresError> {
        let rows = self.0.query(&self.0.sql.moving, &[]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let id: Vec<u8> = cell(row, 0)?;
        let id = id.try_into().map_err(|_| PostgresError::Failed("a move has an id that is none".to_owned()))?;
        Ok(Some(Moving { id, leaving: cell(row, 1)?, place: cell(row, 2)?, ended: cell(row, 3)? }))
    }

    /// Which database this is, whatever leads there: its name, and the number of its cluster.
    pub(in crate::vault) async fn whereabouts(&self) -> Result<String, PostgresError> {
        let sql = "SELECT current_database()::text, (SELECT system_identifier FROM pg_control_system())::text";
        let rows = self.0.query(sql, &[]).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it does not say which it is".to_owned()))?;
        let (database, cluster): (String, String) = (cell(row, 0)?, cell(row, 1)?);
        Ok(format!("database {database} of the PostgreSQL cluster {cluster}"))
    }

    /// Whether anything of a vault is there.
    pub(in crate::vault) async fn is_vacant(&self) -> Result<bool, PostgresError> {
        let rows = self.0.query(&self.0.sql.vacant, &[]).await?;
        rows.first().map_or(Ok(true), |row| cell(row, 0))
    }

    /// The last of all records in order of their names; `None` where there is none.
    pub(in crate::vault) async fn last_name(&self) -> Result<Option<Name>, PostgresError> {
        let rows = self.0.query(&self.0.sql.last_name, &[]).await?;
        rows.first().map(|row| super::name(row, 0)).transpose()
    }

    /// Marks the vault as leaving, or as gone where `ended`. [`PostgresError::Fenced`] while anybody has a claim.
    pub(in crate::vault) async fn leave(&self, moving: &Moving, why: &str) -> Result<(), PostgresError> {
        let Moving { id, place, ended, .. } = moving;
        self.change(
            &self.0.sql.leave,
            &[
                (&&id[..], Type::BYTEA),
                (place, Type::TEXT),
                (ended, Type::BOOL),
                (&why, Type::TEXT),
                (&self.0.allow_asynchronous, Type::BOOL),
            ],
        )
        .await
    }

    /// Takes the mark of that move off.
    pub(in crate::vault) async fn remain(&self, id: &[u8; 16]) -> Result<(), PostgresError> {
        self.change_of(&self.0.sql.remain, id).await
    }

    /// Says that a vault is coming, so that nobody makes one meanwhile. [`PostgresError::Conflict`] where one is.
    pub(in crate::vault) async fn announce(&self, moving: &Moving) -> Result<(), PostgresError> {
        self.change(
            &self.0.sql.announce,
            &[(&&moving.id[..], Type::BYTEA), (&moving.place, Type::TEXT), (&self.0.allow_asynchronous, Type::BOOL)],
        )
        .await
    }

    /// Makes the beginning of a vault with these keys that cannot be used yet, or finds what this very move has begun.
    pub(in crate::vault) async fn arrive(
        &self,
        moving: &Moving,
        why: &str,
        keyring: &[u8],
        recipients: &str,
    ) -> Result<(), PostgresError> {
        self.change(
            &self.0.sql.arrive,
            &[
                (&&moving.id[..], Type::BYTEA),
                (&moving.place, Type::TEXT),
                (&why, Type::TEXT),
                (&keyring, Type::BYTEA),
                (&recipients, Type::TEXT),
                (&self.0.allow_asynchronous, Type::BOOL),
            ],
        )
        .await
    }

    /// What that move has brought is whole, and is used from now on.
    pub(in crate::vault) async fn arrived(&self, id: &[u8; 16]) -> Result<(), PostgresError> {
        self.change_of(&self.0.sql.arrived, id).await
    }

    /// Removes what that move has brought, unless it is whole.
    pub(in crate::vault) async fn vacate(&self, id: &[u8; 16]) -> Result<(), PostgresError> {
        self.change_of(&self.0.sql.vacate, id).await
    }

    /// Puts the vault's own record in the place of an earlier one, and takes off the mark of a move to elsewhere.
    pub(super) async fn accept(&self, name: &Name, version: u64, sealed: &[u8]) -> Result<(), PostgresError> {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        self.change(
            &self.0.sql.accept,
            &[
                (&&name.as_bytes()[..], Type::BYTEA),
                (&version, Type::INT8),
                (&sealed, Type::BYTEA),
                (&self.0.allow_asynchronous, Type::BOOL),
            ],
        )
        .await
    }

    async fn change_of(&self, sql: &str, id: &[u8; 16]) -> Result<(), PostgresError> {
        self.change(sql, &[(&&id[..], Type::BYTEA), (&self.0.allow_asynchronous, Type::BOOL)]).await
    }

    /// Runs a statement that commits and may be run again.
    async fn change(&self, sql: &str, parameters: Parameters<'_>) -> Result<(), PostgresError> {
        let connection = take(&self.0.pool).await?;
        match ask(&connection, sql, parameters).await.0 {
            Fate::Done => Ok(()),
            Fate::NotDone(error) => Err(error),
            // The command is run again, and finds what is there.
            Fate::Unknown(why) => Err(PostgresError::Away(why)),
        }
    }
}
