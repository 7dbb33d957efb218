//! What others have written, in an order that skips nothing.
//!
//! Every record has the timeline and the number of the transaction that wrote it last. Transactions do not commit in the order of their
//! numbers, so the cursor goes no further than to the oldest that is still under way (`pg_snapshot_xmin`): what is beyond is handed
//! over too, and once more by the next poll. And numbers are given out anew: by a server that crashed, those that never reached its
//! disk; by a standby that is promoted, those that it never heard of. So the cursor goes no further than to the newest record either,
//! whose transaction is durable; and the timeline, which a promotion raises, counts before the number.

use tokio_postgres::types::Type;

use super::{Parameters, Postgres, cell, error::PostgresError, name, version};
use crate::vault::name::Name;

/// How many records one poll reads at most; the next goes on from there.
const PAGE: i64 = 1000;

/// Up to where everything was seen: a timeline of the server, and a transaction's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// How often a standby had been promoted, plus one.
    pub timeline: i32,
    /// Transactions below have ended, and what they wrote was seen.
    pub transaction: i64,
}

/// A record that was written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its name.
    pub name: Name,
    /// Its version; one that is known already is nothing new.
    pub version: u64,
    /// Whether it was deleted.
    pub gone: bool,
}

/// Follows what is written, from the moment it was made.
#[derive(Debug)]
pub struct News {
    postgres: Postgres,
    cursor: Cursor,
    /// In the middle of a poll that has more than a page: after which record it goes on, and where the cursor will be.
    page: Option<(Cursor, Vec<u8>, Cursor)>,
}

/// The reading: first a row of where the server is, then records.
pub(super) fn sql(schema: &str) -> String {
    format!(
        "WITH line AS MATERIALIZED (SELECT {schema}.timeline_1() AS timeline), \
         here AS MATERIALIZED (SELECT line.timeline, least(pg_snapshot_xmin(pg_current_snapshot())::text::bigint, \
            coalesce((SELECT r.changed::text::bigint + 1 FROM {schema}.records AS r WHERE r.timeline = line.timeline \
                ORDER BY r.timeline DESC, r.changed DESC LIMIT 1), 0)) AS settled FROM line) \
         SELECT NULL::bytea, NULL::bigint, NULL::boolean, here.timeline, here.settled FROM here \
         UNION ALL \
         (SELECT r.name, r.version, r.sealed IS NULL, r.timeline, r.changed::text::bigint FROM {schema}.records AS r \
            WHERE (r.timeline, r.changed, r.name) > ($1, $2::text::xid8, $3) \
            ORDER BY r.timeline, r.changed, r.name LIMIT $4)"
    )
}

/// One page of records, and where the server was then.
struct Page {
    here: Cursor,
    records: Vec<(Fresh, Cursor)>,
}

impl Postgres {
    /// Follows what is written from now on. Whatever is read after this is as new as the news.
    pub async fn news(&self) -> Result<News, PostgresError> {
        // A page that is empty wherever the server is.
        let end = Cursor { timeline: i32::MAX, transaction: i64::MAX };
        let cursor = self.page(end, &[], 0).await?.here;
        Ok(News { postgres: self.clone(), cursor, page: None })
    }

    /// Follows what is written from there on.
    pub(super) fn news_after(&self, cursor: Cursor) -> News {
        News { postgres: self.clone(), cursor, page: None }
    }

    async fn page(&self, after: Cursor, name_after: &[u8], most: i64) -> Result<Page, PostgresError> {
        let transaction = after.transaction.to_string();
        let parameters: Parameters<'_> = &[
            (&after.timeline, Type::INT4),
            (&transaction, Type::TEXT),
            (&name_after, Type::BYTEA),
            (&most, Type::INT8),
        ];
        let rows = self.0.query(&self.0.sql.news, parameters).await?;
        let (mut here, mut records) = (None, Vec::with_capacity(rows.len()));
        for row in &rows {
            let at = Cursor { timeline: cell(row, 3)?, transaction: cell(row, 4)? };
            if cell::<Option<&[u8]>>(row, 0)?.is_none() {
                here = Some(at);
                continue;
            }
            records.push((Fresh { name: name(row, 0)?, version: version(cell(row, 1)?)?, gone: cell(row, 2)? }, at));
        }
        let here = here.ok_or_else(|| PostgresError::Failed("it did not say where it is".to_owned()))?;
        Ok(Page { here, records })
    }
}

impl News {
    /// Up to where everything was seen.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The server's timeline when it was last asked.
    pub fn timeline(&self) -> i32 {
        self.cursor.timeline
    }

    /// The records that were written since, at most a thousand at once, and whether that is all for now. One may come again that
    /// was given before. After an error nothing is lost: the next poll begins where this one did.
    pub async fn poll(&mut self) -> Result<(Vec<Fresh>, bool), PostgresError> {
        let (after, name_after) = match &self.page {
            Some((after, name, _)) => (*after, &name[..]),
            None => (self.cursor, &[][..]),
        };
        let page = self.postgres.page(after, name_after, PAGE).await?;
        if page.here < self.cursor {
            let _ = self.postgres.0.over.set(PostgresError::WentBack);
            return Err(PostgresError::WentBack);
        }
        // What the first page's moment had settled: later ones may have skipped what was written at a place they had passed.
        let settled = self.page.as_ref().map_or(page.here, |(.., settled)| *settled);
        let is_full = i64::try_from(page.records.len()).is_ok_and(|read| read >= PAGE);
        self.page = match page.records.last() {
            Some((last, at)) if is_full => Some((*at, last.name.as_bytes().to_vec(), settled)),
            _ => {
                self.cursor = settled;
                None
            }
        };
        Ok((page.records.into_iter().map(|(fresh, _)| fresh).collect(), !is_full))
    }
}
