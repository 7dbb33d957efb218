//! What a copy of all records has to catch up with: what was written while they were read.
//!
//! Records are read in pages, each as it is at that moment. Whatever was written since before the first page is then read once more, from
//! the index that the news are read from; and again what was written meanwhile, until one statement gives all of it: then what was read is
//! as everything was when that statement began. No transaction lasts longer than a statement, so that vacuum is not held up.

use tokio_postgres::types::Type;

use super::{Cursor, Parameters, Postgres, cell, error::PostgresError, name, version};
use crate::vault::name::Name;

/// How many records are read at once.
const PAGE: i64 = 1000;

/// Where a reading goes on: after that record.
#[derive(Clone, Debug)]
pub(super) struct Since {
    pub(super) cursor: Cursor,
    pub(super) name: Vec<u8>,
}

/// Some of what was written.
#[derive(Debug)]
pub(super) struct Changes {
    /// Up to where everything was seen that had been written before.
    pub(super) settled: Cursor,
    /// How many records there were when this was read; only where it was read from no record on, since all have to be counted.
    pub(super) records: u64,
    /// Each as it was then; `None`: it was deleted.
    pub(super) written: Vec<(Name, Option<Vec<u8>>)>,
    /// Where it goes on, if this is not all.
    pub(super) next: Option<Since>,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Records, with what the vault keeps about itself.
    pub(super) records: u64,
    /// The highest version of any.
    pub(super) highest: u64,
}

/// The statements, with the schema's name in them.
pub(super) struct Sql {
    changes: String,
    extent: String,
}

impl Sql {
    pub(super) fn of(schema: &str) -> Self {
        Self {
            changes: format!(
                "WITH line AS MATERIALIZED (SELECT {schema}.timeline_1() AS timeline), \
                 here AS MATERIALIZED (SELECT line.timeline, least(pg_snapshot_xmin(pg_current_snapshot())::text::bigint, \
                    coalesce((SELECT r.changed::text::bigint + 1 FROM {schema}.records AS r WHERE r.timeline = line.timeline \
                        ORDER BY r.timeline DESC, r.changed DESC LIMIT 1), 0)) AS settled FROM line) \
                 SELECT NULL::bytea, NULL::bytea, here.timeline, here.settled, \
                    CASE WHEN $5 THEN (SELECT count(*) FROM {schema}.records WHERE sealed IS NOT NULL) ELSE 0 END FROM here \
                 UNION ALL \
                 (SELECT r.name, r.sealed, r.timeline, r.changed::text::bigint, NULL::bigint FROM {schema}.records AS r \
                    WHERE (r.timeline, r.changed, r.name) > ($1, $2::text::xid8, $3) \
                    ORDER BY r.timeline, r.changed, r.name LIMIT $4)"
            ),
            extent: format!(
                "SELECT count(*) FILTER (WHERE sealed IS NOT NULL), coalesce(max(version), 0) FROM {schema}.records"
            ),
        }
    }
}

impl Postgres {
    /// How much there is.
    pub(super) async fn extent(&self) -> Result<Extent, PostgresError> {
        let rows = self.0.query(&self.0.sql.copying.extent, &[]).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it did not count".to_owned()))?;
        Ok(Extent { records: version(cell(row, 0)?)?, highest: version(cell(row, 1)?)? })
    }

    /// What was written from there on: at most a thousand records.
    pub(super) async fn changes(&self, from: &Since) -> Result<Changes, PostgresError> {
        let (transaction, name_after) = (from.cursor.transaction.to_string(), &from.name[..]);
        let parameters: Parameters<'_> = &[
            (&from.cursor.timeline, Type::INT4),
            (&transaction, Type::TEXT),
            (&name_after, Type::BYTEA),
            (&PAGE, Type::INT8),
            (&name_after.is_empty(), Type::BOOL),
        ];
        let rows = self.0.query(&self.0.sql.copying.changes, parameters).await?;
        let (mut here, mut written, mut last) = (None, Vec::with_capacity(rows.len()), None);
        for row in &rows {
            let at = Cursor { timeline: cell(row, 2)?, transaction: cell(row, 3)? };
            if cell::<Option<&[u8]>>(row, 0)?.is_none() {
                here = Some((at, version(cell(row, 4)?)?));
                continue;
            }
            let name = name(row, 0)?;
            last = Some(Since { cursor: at, name: name.as_bytes().to_vec() });
            written.push((name, cell(row, 1)?));
        }
        let (settled, records) = here.ok_or_else(|| PostgresError::Failed("it did not say where it is".to_owned()))?;
        let is_full = i64::try_from(written.len()).is_ok_and(|read| read >= PAGE);
        Ok(Changes { settled, records, written, next: last.filter(|_| is_full) })
    }
}
