//! Counts over all grants, made by the database from what it knows in clear.

use std::{fmt::Write as _, time::Duration};

use tokio_postgres::{Row, types::Type};

use super::{
    super::{LaneId, Parameters, PostgresError, Standing, cell, work::millis},
    Store,
};
use crate::vault::VaultError;

/// A grant counts as overdue only after this much patience, so that one whose turn is now is not reported.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lines of [`Store::ends`], each a day of one provider: years of a hundred providers.
const MOST_DAYS: i64 = 100_000;

/// One provider's counts. A grant that the database knows no dates of yet counts as one organization.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneCount {
    /// The provider, as [`Store::lane`] says it.
    pub lane: LaneId,
    /// Organizations whose grant is active; a paused one is counted as paused, here and below, and nowhere else.
    pub active: u64,
    /// Whose grant fails.
    pub failing: u64,
    /// Whose grant is in doubt.
    pub in_doubt: u64,
    /// Whose grant is lost.
    pub lost: u64,
    /// Whose grant is paused.
    pub paused: u64,
    /// Organizations whose consent ends within the longest of the steps, or ends and is not active.
    pub attention: u64,
    /// Grants that serve somebody, here and below.
    pub grants: u64,
    /// Those whose consent is past its end.
    pub expired: u64,
    /// For each step, those whose consent ends within it and is not past its end.
    pub expiring_within: Vec<u64>,
    /// Those whose consent's end was assumed.
    pub end_assumed: u64,
    /// Those that are kept warm and whose access token has lapsed.
    pub access_expired: u64,
    /// Those that are kept warm and should have been exchanged, or whose access token has lapsed.
    pub overdue: u64,
    /// Exchanges a minute that keep those warm.
    pub needed_per_minute: f64,
}

/// When consents end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Those past their end that are not lost.
    pub ended: u64,
    /// Those to come, the soonest first.
    pub days: Vec<EndingDay>,
}

/// How many of a provider's consents end on a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndingDay {
    /// The provider, as [`Store::lane`] says it.
    pub lane: LaneId,
    /// The day in UTC, counted from 1970-01-01.
    pub day: i64,
    /// How many end.
    pub consents: u64,
    /// Of how many of them the end was assumed.
    pub assumed: u64,
}

impl Store {
    /// Counts every provider's grants; `steps` are the warnings before an end. `warm`: providers whose grants are kept warm only if they were
    /// fetched within that time, or never exchanged; the database does not know of a limit on being idle. Looks at every grant.
    pub async fn census(&self, steps: &[Duration], warm: &[(LaneId, Duration)]) -> Result<Vec<LaneCount>, VaultError> {
        let now = self.0.clock.now().wall;
        let longest = millis(now + steps.iter().max().copied().unwrap_or_default());
        let ends: Vec<i64> = steps.iter().map(|step| millis(now + *step)).collect();
        let lanes: Vec<&[u8]> = warm.iter().map(|(lane, _)| &lane[..]).collect();
        let since: Vec<i64> = warm.iter().map(|(_, within)| millis(now - *within)).collect();
        let sql = statement(&self.0.postgres.0.sql.questions.work, steps.len());
        let (late, now) = (millis(now - PATIENCE), millis(now));
        let parameters: Parameters<'_> = &[
            (&now, Type::INT8),
            (&late, Type::INT8),
            (&longest, Type::INT8),
            (&ends, Type::INT8_ARRAY),
            (&lanes, Type::BYTEA_ARRAY),
            (&since, Type::INT8_ARRAY),
        ];
        let rows = self.0.asked(&sql, parameters).await?;
        let counts: Result<Vec<_>, _> = rows.iter().map(|row| count(row, steps.len())).collect();
        counts.map_err(|error| self.0.failed(error))
    }

    /// When the consents of grants that are not lost end, by day and provider. Looks at every grant.
    pub async fn ends(&self) -> Result<Ends, VaultError> {
        let now = millis(self.0.clock.now().wall);
        let sql = &self.0.postgres.0.sql.questions.ends;
        let rows = self.0.asked(sql, &[(&now, Type::INT8), (&MOST_DAYS, Type::INT8)]).await?;
        let mut ends = Ends::default();
        for row in &rows {
            ends.add(row).map_err(|error| self.0.failed(error))?;
        }
        Ok(ends)
    }
}

impl Ends {
    fn add(&mut self, row: &Row) -> Result<(), PostgresError> {
        let consents = number(row, 3)?;
        if cell(row, 2)? {
            self.ended += consents;
        } else {
            self.days.push(EndingDay { lane: lane(row)?, day: cell(row, 1)?, consents, assumed: number(row, 4)? });
        }
        Ok(())
    }
}

/// The statement of a census with so many steps. It is given, in milliseconds, the present, the moment before which what is due is
/// late, the end of the longest step, the ends of all steps, and of some lanes since when a fetch keeps warm.
fn statement(work: &str, steps: usize) -> String {
    let [active, failing, in_doubt, lost, grave, outage] =
        [Standing::Active, Standing::Failing, Standing::InDoubt, Standing::Lost, Standing::Grave, Standing::Outage]
            .map(|standing| standing as i16);
    let of = |states: &str| {
        format!("coalesce(sum(t.serves) FILTER (WHERE NOT t.paused AND t.state IN ({states})), 0)::bigint")
    };
    let mut sql = format!(
        "SELECT t.lane, {}, {}, {}, {}, coalesce(sum(t.serves) FILTER (WHERE t.paused), 0)::bigint, \
            coalesce(sum(t.serves) FILTER (WHERE t.ends <= $3 OR t.ends IS NOT NULL AND t.state <> {active}), 0)::bigint, \
            count(*), count(*) FILTER (WHERE t.ends <= $1), count(*) FILTER (WHERE t.end_assumed), \
            count(*) FILTER (WHERE t.warm AND coalesce(t.lapses <= $1, true)), \
            count(*) FILTER (WHERE t.warm AND (coalesce(t.lapses <= $1, true) OR t.due <= $2)), \
            coalesce(sum(60000.0 / greatest(t.every_ms, 100)) FILTER (WHERE t.warm), 0)::float8",
        of(&active.to_string()),
        of(&format!("{failing}, {outage}")),
        of(&in_doubt.to_string()),
        of(&lost.to_string()),
    );
    for step in 1..=steps {
        let _ = write!(sql, ", count(*) FILTER (WHERE t.ends > $1 AND t.ends <= ($4)[{step}])");
    }
    let ms = |column: &str| format!("(extract(epoch FROM w.{column}) * 1000)::bigint");
    let _ = write!(
        sql,
        " FROM (SELECT w.lane, w.state, w.paused, w.end_assumed, w.every_ms, coalesce(w.organizations, 1) AS serves, \
                {} AS ends, {} AS lapses, {} AS due, \
                NOT w.paused AND w.state <> {lost} AND (k.since IS NULL OR w.lapses IS NULL OR coalesce({} >= k.since, false)) AS warm \
            FROM {work} AS w LEFT JOIN unnest($5, $6) AS k (lane, since) ON k.lane = w.lane \
            WHERE coalesce(w.organizations, 1) > 0 AND w.state <> {grave}) AS t GROUP BY t.lane",
        ms("ends"),
        ms("lapses"),
        ms("due"),
        ms("fetched"),
    );
    sql
}

fn count(row: &Row, steps: usize) -> Result<LaneCount, PostgresError> {
    const FIRST_STEP: usize = 13;
    Ok(LaneCount {
        lane: lane(row)?,
        active: number(row, 1)?,
        failing: number(row, 2)?,
        in_doubt: number(row, 3)?,
        lost: number(row, 4)?,
        paused: number(row, 5)?,
        attention: number(row, 6)?,
        grants: number(row, 7)?,
        expired: number(row, 8)?,
        end_assumed: number(row, 9)?,
        access_expired: number(row, 10)?,
        overdue: number(row, 11)?,
        needed_per_minute: cell(row, 12)?,
        expiring_within: (FIRST_STEP..FIRST_STEP + steps)
            .map(|column| number(row, column))
            .collect::<Result<_, _>>()?,
    })
}

fn lane(row: &Row) -> Result<LaneId, PostgresError> {
    let lane: &[u8] = cell(row, 0)?;
    lane.try_into().map_err(|_| PostgresError::Failed("it holds a provider under a name that is none".to_owned()))
}

fn number(row: &Row, column: usize) -> Result<u64, PostgresError> {
    Ok(u64::try_from(cell::<i64>(row, column)?).unwrap_or(0))
}
