//! The schema, and how it comes to the version that this program knows: once, however many workers start at the same time.

use std::time::Duration;

use super::{Shared, cell, connection::take, error::PostgresError};

/// What brings the schema from one version to the next, in order; the first makes version 1. None is ever changed once it was
/// released: a migration only adds, so that older workers go on beside newer ones.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
];
/// How often it is tried when others do the same at the same time.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Brings the schema of that quoted name up to date.
pub(super) async fn migrate(shared: &Shared, schema: &str) -> Result<(), PostgresError> {
    let mut tried = 0;
    loop {
        tried += 1;
        match migrate_once(shared, schema).await {
            // Two made the schema at once, or the connection ended, perhaps after the commit: what is there is looked at again.
            Err(PostgresError::Conflict | PostgresError::Busy(_) | PostgresError::Away(_)) if tried < TRIES => {
                tokio::time::sleep(PAUSE).await;
            }
            migrated => return migrated,
        }
    }
}

async fn migrate_once(shared: &Shared, schema: &str) -> Result<(), PostgresError> {
    let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    // Asked first, so that a worker that finds all done needs no right to make anything.
    let there = found(shared, schema).await?;
    if there.is_some_and(|version| version >= known) {
        return Ok(());
    }
    if there.is_none() {
        let make = format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; \
             CREATE TABLE IF NOT EXISTS {schema}.migrations (one boolean PRIMARY KEY CHECK (one), version int NOT NULL); \
             INSERT INTO {schema}.migrations VALUES (true, 0) ON CONFLICT DO NOTHING"
        );
        batch(shared, &make).await?;
    }
    for (number, migration) in (1..).zip(MIGRATIONS) {
        batch(shared, &step(schema, number, migration)).await?;
    }
    // A transaction that the server rolled back at its end would not have said so.
    let found = version(shared, schema).await?;
    if found < known {
        return Err(PostgresError::Failed(format!("its schema is of version {found} still, and {known} was made")));
    }
    Ok(())
}

/// The version of the schema; `None` where there is none.
pub(super) async fn found(shared: &Shared, schema: &str) -> Result<Option<i32>, PostgresError> {
    let rows = shared.query(&format!("SELECT to_regclass('{schema}.migrations') IS NOT NULL"), &[]).await?;
    let is_there: bool = rows.first().map_or(Ok(false), |row| cell(row, 0))?;
    if is_there { version(shared, schema).await.map(Some) } else { Ok(None) }
}

/// One migration as a transaction: whoever comes second waits for the row, and finds that nothing is left to do. DDL cannot be left out
/// by a condition but in a function, so it stands in the text of one.
fn step(schema: &str, number: i32, migration: &str) -> String {
    let ddl = migration.replace("{schema}", schema);
    format!(
        "DO $migration$ BEGIN \
            PERFORM set_config('synchronous_commit', 'on', true); \
            UPDATE {schema}.migrations SET version = {number} WHERE version = {number} - 1; \
            IF FOUND THEN EXECUTE $ddl${ddl}$ddl$; END IF; \
         END $migration$"
    )
}

async fn version(shared: &Shared, schema: &str) -> Result<i32, PostgresError> {
    let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    let rows = shared.query(&format!("SELECT version FROM {schema}.migrations"), &[]).await?;
    let found = rows.first().map_or(Ok(0), |row| cell(row, 0))?;
    if found > known { Err(PostgresError::Newer { found, known }) } else { Ok(found) }
}

/// Runs statements as one transaction, without a time limit: they end in a commit.
async fn batch(shared: &Shared, sql: &str) -> Result<(), PostgresError> {
    let connection = take(&shared.pool).await?;
    Box::pin(connection.client.batch_execute(sql)).await.map_err(|error| match PostgresError::of(&error) {
        // `IF NOT EXISTS` of two at once ends in a unique violation of the catalogue (a conflict already), or in one of these.
        PostgresError::Failed(said) if said.contains("42P06") || said.contains("42P07") || said.contains("XX000") => {
            PostgresError::Busy(said)
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_fits_between_the_quotes_that_it_is_put_into() {
        for migration in MIGRATIONS {
            assert!(!migration.contains("$ddl$") && !migration.contains("$migration$"));
            assert!(migration.contains("{schema}."));
        }
    }
}
