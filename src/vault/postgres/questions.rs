//! What is asked of all grants, in SQL: of the database's clear columns, and where records are wanted, of those in the same statement.
//!
//! Where grants are looked for one by one there is an index; a census, a forecast and the soonest ends read the table.

use super::Standing;

/// The statements, with the schema's name in them. Moments are given in milliseconds since 1970.
pub(super) struct Questions {
    /// Who has a fingerprint.
    pub(super) holder: String,
    /// Records by name, each with its grant's last fetch as it was noted.
    pub(super) with_fetched: String,
    /// Whether a lane has another grant of a person, or of nobody knows whom, but one.
    pub(super) shared_with: String,
    /// Whether it has another living one at all.
    pub(super) shared_with_any: String,
    /// Of which something is to be told before a moment.
    pub(super) warns: String,
    /// Which serve nobody.
    pub(super) unfinished: String,
    /// Which are graves since before a moment.
    pub(super) graves: String,
    /// How many are.
    pub(super) grave_count: String,
    /// Which end before a moment, or end and are not active.
    pub(super) soonest: String,
    /// How many end on each day, and which of those have ended by a moment.
    pub(super) ends: String,
    /// The table.
    pub(super) work: String,
}

impl Questions {
    pub(super) fn of(schema: &str) -> Self {
        let of = "SELECT r.name, r.version, r.sealed, r.tombstone FROM";
        let [active, lost, grave] = [Standing::Active, Standing::Lost, Standing::Grave].map(|standing| standing as i16);
        Self {
            holder: format!(
                "{of} {schema}.fingerprints AS w JOIN {schema}.records AS r USING (name) WHERE w.fingerprint = $1"
            ),
            with_fetched: format!(
                "{of} {schema}.records AS r LEFT JOIN {schema}.work AS w USING (name) WHERE r.name = ANY ($1)",
                of = of.replace(" FROM", ", (extract(epoch FROM w.fetched) * 1000)::bigint FROM"),
            ),
            shared_with: format!(
                "SELECT EXISTS (SELECT FROM {schema}.work WHERE lane = $1 AND person IS NULL AND name <> $3) \
                 OR EXISTS (SELECT FROM {schema}.work WHERE lane = $1 AND person = $2 AND name <> $3)"
            ),
            shared_with_any: format!(
                "SELECT EXISTS (SELECT FROM {schema}.work WHERE lane = $1 AND person IS NULL AND name <> $2) \
                 OR EXISTS (SELECT FROM {schema}.work WHERE lane = $1 AND person > ''::bytea AND name <> $2)"
            ),
            warns: format!(
                "{of} (SELECT name, ends FROM {schema}.work WHERE warns <= to_timestamp($1 / 1000.0) \
                    AND lane = ANY ($3) ORDER BY ends, name LIMIT $2) AS w JOIN {schema}.records AS r USING (name) ORDER BY w.ends, r.name"
            ),
            unfinished: format!(
                "{of} (SELECT name FROM {schema}.work WHERE organizations = 0 AND state <> {grave} AND name > $1 \
                    ORDER BY name LIMIT $2) AS w JOIN {schema}.records AS r USING (name) ORDER BY r.name"
            ),
            graves: format!(
                "{of} (SELECT name FROM {schema}.work WHERE organizations = 0 AND state = {grave} \
                    AND ends < to_timestamp($1 / 1000.0) ORDER BY ends LIMIT $2) AS w JOIN {schema}.records AS r USING (name)"
            ),
            grave_count: format!("SELECT count(*) FROM {schema}.work WHERE organizations = 0 AND state = {grave}"),
            soonest: format!(
                "{of} (SELECT name, ends FROM {schema}.work WHERE coalesce(organizations, 1) > 0 AND state <> {grave} \
                    AND (ends <= to_timestamp($1 / 1000.0) OR ends IS NOT NULL AND state <> {active}) \
                    ORDER BY ends, name LIMIT $2) AS w JOIN {schema}.records AS r USING (name) ORDER BY w.ends, r.name"
            ),
            ends: format!(
                "SELECT lane, floor(extract(epoch FROM ends) / 86400)::bigint, ends <= to_timestamp($1 / 1000.0), \
                    count(*), count(*) FILTER (WHERE end_assumed) \
                 FROM {schema}.work WHERE ends IS NOT NULL AND state NOT IN ({lost}, {grave}) AND coalesce(organizations, 1) > 0 \
                 GROUP BY 1, 2, 3 ORDER BY 2, 1 LIMIT $2"
            ),
            work: format!("{schema}.work"),
        }
    }
}
