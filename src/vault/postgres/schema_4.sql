-- What a worker has to know of grants that it does not keep in memory: which are due, and how many there are of what kind. {schema}
-- stands for the quoted name of the schema. docs/replicas-design.md says why each column is as it is.

ALTER TABLE {schema}.work
    -- Whether the dates below, and due, are those of the grant as it is. Where they are not, it counts as due once.
    ADD COLUMN dated         boolean NOT NULL DEFAULT false,
    -- When there is something to tell of its consent's end.
    ADD COLUMN warns         timestamptz,
    -- When its access token ends.
    ADD COLUMN lapses        timestamptz,
    -- From one refresh to the next.
    ADD COLUMN every_ms      bigint,
    -- How many organizations it serves; null: whoever wrote it did not say.
    ADD COLUMN organizations int,
    ADD COLUMN paused        boolean NOT NULL DEFAULT false,
    ADD COLUMN end_assumed   boolean NOT NULL DEFAULT false,
    -- When one of its organizations was last fetched, roughly.
    ADD COLUMN fetched       timestamptz,
    -- due changes with each exchange, and leaves an entry behind in every index: few of them at a time are to be walked past.
    SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
UPDATE {schema}.work SET due = NULL WHERE due IS NOT NULL;
CREATE INDEX work_undated ON {schema}.work (lane) WHERE NOT dated;
CREATE INDEX work_warns ON {schema}.work (warns) WHERE warns IS NOT NULL;
CREATE INDEX work_person ON {schema}.work (lane, person);
CREATE INDEX work_unused ON {schema}.work (state, ends) WHERE organizations = 0;

-- These three do what they did; they are called by every commit and claim, and cost more than that. What is volatile is put in the place
-- of its call, and what assigns needs no executor.
CREATE OR REPLACE FUNCTION {schema}.timeline_1() RETURNS int LANGUAGE sql VOLATILE AS $$
    SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
$$;
CREATE OR REPLACE FUNCTION {schema}.synchronous_1(p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_set text;
BEGIN
    IF NOT p_asynchronous AND current_setting('synchronous_standby_names') = '' THEN
        RAISE EXCEPTION 'no standby has to confirm commits' USING ERRCODE = 'CV001';
    END IF;
    IF current_setting('synchronous_commit') <> 'remote_apply' THEN
        v_set := set_config('synchronous_commit', 'on', true);
    END IF;
    v_set := set_config('client_min_messages', 'warning', true) || set_config('lock_timeout', '10s', true);
END
$$;
CREATE OR REPLACE FUNCTION {schema}.unconfirmed_1(p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_set text;
BEGIN
    IF NOT p_asynchronous AND current_setting('synchronous_standby_names') = '' THEN
        RAISE EXCEPTION 'no standby has to confirm commits' USING ERRCODE = 'CV001';
    END IF;
    v_set := set_config('synchronous_commit', 'off', true) || set_config('client_min_messages', 'warning', true)
        || set_config('lock_timeout', '10s', true);
END
$$;

-- One commit, as commit_1 makes it: all of it, or an error and nothing. Where every record is written over whatever is there of an earlier
-- version, p_expected is empty. What is told of a grant whose claim is named is written with the claim. p_dated says whether the dates are
-- known; p_states are 1 active, 2 failing, 3 in doubt, 4 lost, 5 remembered for its spent tokens, 6 failing because of the provider; a person
-- of no bytes is nobody.
CREATE FUNCTION {schema}.commit_2(
    p_replica bytea, p_place smallint, p_number bigint, p_asynchronous boolean, p_keyring bigint,
    p_claims bytea[], p_fences bigint[], p_leases bigint[],
    p_names bytea[], p_expected bigint[], p_versions bigint[], p_sealed bytea[], p_tombstones bytea[],
    p_work bytea[], p_lanes bytea[], p_states smallint[], p_ends bigint[], p_persons bytea[], p_organizations int[],
    p_paused boolean[], p_assumed boolean[], p_fetched bigint[], p_dated boolean[], p_dues bigint[], p_warns bigint[],
    p_lapses bigint[], p_every bigint[],
    p_fingerprints bytea[], p_fingerprints_of bytea[], p_new bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_here CONSTANT xid8 := pg_current_xact_id();
    v_last bigint;
    v_count bigint;
    v_there bytea[];
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);

    UPDATE {schema}.writers SET last = p_number, void = false, seen = clock_timestamp()
        WHERE replica = p_replica AND place = p_place AND last = p_number - 1;
    IF NOT FOUND THEN
        SELECT last INTO v_last FROM {schema}.writers WHERE replica = p_replica AND place = p_place FOR UPDATE;
        IF v_last IS NULL OR v_last >= p_number - 1 THEN
            RAISE EXCEPTION 'this place is gone, or has gone on' USING ERRCODE = 'CV002';
        END IF;
        RAISE EXCEPTION 'a commit that was confirmed is missing' USING ERRCODE = 'CV005';
    END IF;
    IF p_keyring <> 0 AND p_keyring IS DISTINCT FROM (SELECT version FROM {schema}.vault) THEN
        RAISE EXCEPTION 'the keys were changed' USING ERRCODE = 'CV007';
    END IF;

    -- Nearly every commit is of one grant, under its claim. Statements of one row are planned once in a connection's life; those of lists,
    -- below, are planned anew each time, which is most of what they cost.
    IF cardinality(p_claims) = 1 AND cardinality(p_expected) = 0 AND cardinality(p_names) <= 8
        AND (cardinality(p_work) = 0 OR p_work = p_claims AND p_lanes[1] IS NOT NULL) AND cardinality(p_new) = 0 THEN
        IF cardinality(p_work) = 0 THEN
            UPDATE {schema}.work
                SET until = CASE WHEN p_leases[1] > 0 THEN clock_timestamp() + p_leases[1] * interval '1 ms' END,
                    holder = CASE WHEN p_leases[1] > 0 THEN holder END,
                    lease_ms = p_leases[1], timeline = v_timeline
                WHERE name = p_claims[1] AND holder = p_replica AND fence = p_fences[1];
        ELSE
            UPDATE {schema}.work
                SET until = CASE WHEN p_leases[1] > 0 THEN clock_timestamp() + p_leases[1] * interval '1 ms' END,
                    holder = CASE WHEN p_leases[1] > 0 THEN holder END,
                    lease_ms = p_leases[1], timeline = v_timeline,
                    lane = p_lanes[1], state = p_states[1], ends = to_timestamp(p_ends[1] / 1000.0), person = p_persons[1],
                    organizations = p_organizations[1], paused = coalesce(p_paused[1], false),
                    end_assumed = coalesce(p_assumed[1], false),
                    fetched = greatest(fetched, to_timestamp(p_fetched[1] / 1000.0)), dated = coalesce(p_dated[1], false),
                    due = to_timestamp(p_dues[1] / 1000.0), warns = to_timestamp(p_warns[1] / 1000.0),
                    lapses = to_timestamp(p_lapses[1] / 1000.0), every_ms = p_every[1]
                WHERE name = p_claims[1] AND holder = p_replica AND fence = p_fences[1];
        END IF;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'another has the claim' USING ERRCODE = 'CV003';
        END IF;
        -- In order of names, as below.
        FOR v_at IN 1 .. cardinality(p_names) LOOP
            IF p_sealed[v_at] IS NULL THEN
                UPDATE {schema}.records
                    SET version = p_versions[v_at], sealed = NULL, tombstone = p_tombstones[v_at], gone = clock_timestamp(),
                        timeline = v_timeline, changed = v_here
                    WHERE name = p_names[v_at] AND sealed IS NOT NULL AND version < p_versions[v_at];
            ELSE
                INSERT INTO {schema}.records AS r
                    VALUES (p_names[v_at], p_versions[v_at], p_sealed[v_at], p_tombstones[v_at], NULL, v_timeline, v_here)
                    ON CONFLICT (name) DO UPDATE
                    SET version = excluded.version, sealed = excluded.sealed, tombstone = excluded.tombstone, gone = NULL,
                        timeline = v_timeline, changed = v_here
                    WHERE r.version < excluded.version;
            END IF;
            IF NOT FOUND THEN
                PERFORM 1 FROM {schema}.records WHERE name = p_names[v_at] AND version >= p_versions[v_at];
                IF FOUND THEN
                    RAISE EXCEPTION 'a record has a later version' USING ERRCODE = 'CV006';
                END IF;
            END IF;
        END LOOP;
        IF cardinality(p_work) > 0 THEN
            DELETE FROM {schema}.fingerprints WHERE name = p_work[1] AND NOT fingerprint = ANY (p_fingerprints);
            INSERT INTO {schema}.fingerprints
                SELECT fingerprint, p_work[1] FROM unnest(p_fingerprints) AS fingerprint ORDER BY fingerprint
                ON CONFLICT DO NOTHING;
        END IF;
        RETURN;
    END IF;

    -- In one order, here and below, so that two commits never wait for each other.
    IF cardinality(p_claims) > 1 THEN
        PERFORM 1 FROM {schema}.work WHERE name = ANY (p_claims) ORDER BY name FOR UPDATE;
    END IF;
    IF cardinality(p_claims) > 0 THEN
        IF cardinality(p_work) = 0 THEN
            UPDATE {schema}.work AS t
                SET until = CASE WHEN c.lease > 0 THEN clock_timestamp() + c.lease * interval '1 ms' END,
                    holder = CASE WHEN c.lease > 0 THEN t.holder END,
                    lease_ms = c.lease, timeline = v_timeline
                FROM unnest(p_claims, p_fences, p_leases) AS c (name, fence, lease)
                WHERE t.name = c.name AND t.holder = p_replica AND t.fence = c.fence;
        ELSE
            UPDATE {schema}.work AS t
                SET until = CASE WHEN c.lease > 0 THEN clock_timestamp() + c.lease * interval '1 ms' END,
                    holder = CASE WHEN c.lease > 0 THEN t.holder END,
                    lease_ms = c.lease, timeline = v_timeline,
                    lane = coalesce(w.lane, t.lane),
                    state = CASE WHEN w.lane IS NULL THEN t.state ELSE w.state END,
                    ends = CASE WHEN w.lane IS NULL THEN t.ends ELSE to_timestamp(w.ends / 1000.0) END,
                    person = CASE WHEN w.lane IS NULL THEN t.person ELSE w.person END,
                    organizations = CASE WHEN w.lane IS NULL THEN t.organizations ELSE w.organizations END,
                    paused = CASE WHEN w.lane IS NULL THEN t.paused ELSE coalesce(w.paused, false) END,
                    end_assumed = CASE WHEN w.lane IS NULL THEN t.end_assumed ELSE coalesce(w.assumed, false) END,
                    fetched = greatest(t.fetched, to_timestamp(w.fetched / 1000.0)),
                    dated = CASE WHEN w.lane IS NULL THEN t.dated ELSE coalesce(w.dated, false) END,
                    due = CASE WHEN w.lane IS NULL THEN t.due ELSE to_timestamp(w.due / 1000.0) END,
                    warns = CASE WHEN w.lane IS NULL THEN t.warns ELSE to_timestamp(w.warns / 1000.0) END,
                    lapses = CASE WHEN w.lane IS NULL THEN t.lapses ELSE to_timestamp(w.lapses / 1000.0) END,
                    every_ms = CASE WHEN w.lane IS NULL THEN t.every_ms ELSE w.every END
                FROM unnest(p_claims, p_fences, p_leases) AS c (name, fence, lease)
                    LEFT JOIN unnest(p_work, p_lanes, p_states, p_ends, p_persons, p_organizations, p_paused, p_assumed,
                            p_fetched, p_dated, p_dues, p_warns, p_lapses, p_every)
                        AS w (name, lane, state, ends, person, organizations, paused, assumed, fetched, dated, due, warns,
                            lapses, every)
                        ON w.name = c.name
                WHERE t.name = c.name AND t.holder = p_replica AND t.fence = c.fence;
        END IF;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        IF v_count <> cardinality(p_claims) THEN
            RAISE EXCEPTION 'another has the claim' USING ERRCODE = 'CV003';
        END IF;
    END IF;

    -- What is there stays as it is from here on. What is not may be written by another at any moment: that is found out by the insertion.
    SELECT coalesce(array_agg(r.name), '{}') INTO v_there FROM (
        SELECT name FROM {schema}.records WHERE name = ANY (p_names) ORDER BY name FOR UPDATE) AS r;
    IF EXISTS (
        SELECT 1 FROM unnest(p_names, p_expected) AS w (name, expected)
            LEFT JOIN {schema}.records AS r ON r.name = w.name
            WHERE w.expected >= 0 AND w.expected <> coalesce(r.version, 0) OR w.expected = -1 AND r.sealed IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'a record has another version' USING ERRCODE = 'CV004';
    ELSIF EXISTS (
        SELECT 1 FROM unnest(p_names, p_versions) AS w (name, version)
            JOIN {schema}.records AS r ON r.name = w.name WHERE r.name = ANY (v_there) AND r.version >= w.version
    ) THEN
        RAISE EXCEPTION 'a record has a later version' USING ERRCODE = 'CV006';
    END IF;
    -- A unique violation means that another has written such a record since: it has another version.
    INSERT INTO {schema}.records
        SELECT w.name, w.version, w.sealed, w.tombstone,
                CASE WHEN w.sealed IS NULL THEN clock_timestamp() END, v_timeline, v_here
            FROM unnest(p_names, p_expected, p_versions, p_sealed, p_tombstones)
                AS w (name, expected, version, sealed, tombstone)
            WHERE (w.sealed IS NOT NULL OR w.expected = 0)
                AND NOT w.name = ANY (v_there)
            ORDER BY w.name;
    -- What is deleted and not there stays as it is, unless its version was named.
    UPDATE {schema}.records AS r
        SET version = w.version, sealed = w.sealed, tombstone = w.tombstone,
            gone = CASE WHEN w.sealed IS NULL THEN clock_timestamp() END, timeline = v_timeline, changed = v_here
        FROM unnest(p_names, p_expected, p_versions, p_sealed, p_tombstones)
            AS w (name, expected, version, sealed, tombstone)
        WHERE r.name = w.name AND r.name = ANY (v_there) AND r.version < w.version
            AND (w.sealed IS NOT NULL OR r.sealed IS NOT NULL OR w.expected >= 0);

    IF cardinality(p_work) = 0 THEN
        RETURN;
    END IF;
    IF NOT p_work <@ p_claims THEN
        INSERT INTO {schema}.work AS t (name, lane, state, ends, person, organizations, paused, end_assumed, fetched, dated,
                due, warns, lapses, every_ms)
            SELECT w.name, w.lane, w.state, to_timestamp(w.ends / 1000.0), w.person, w.organizations,
                coalesce(w.paused, false), coalesce(w.assumed, false), to_timestamp(w.fetched / 1000.0),
                coalesce(w.dated, false), to_timestamp(w.due / 1000.0), to_timestamp(w.warns / 1000.0),
                to_timestamp(w.lapses / 1000.0), w.every
            FROM unnest(p_work, p_lanes, p_states, p_ends, p_persons, p_organizations, p_paused, p_assumed, p_fetched,
                    p_dated, p_dues, p_warns, p_lapses, p_every)
                AS w (name, lane, state, ends, person, organizations, paused, assumed, fetched, dated, due, warns, lapses,
                    every)
            WHERE w.lane IS NOT NULL AND NOT w.name = ANY (p_claims) ORDER BY w.name
            ON CONFLICT (name) DO UPDATE
            SET lane = excluded.lane, state = excluded.state, ends = excluded.ends, person = excluded.person,
                organizations = excluded.organizations, paused = excluded.paused, end_assumed = excluded.end_assumed,
                fetched = greatest(t.fetched, excluded.fetched), dated = excluded.dated, due = excluded.due,
                warns = excluded.warns, lapses = excluded.lapses, every_ms = excluded.every_ms;
    END IF;
    IF array_position(p_lanes, NULL) IS NOT NULL THEN
        DELETE FROM {schema}.work AS t
            USING unnest(p_work, p_lanes) AS w (name, lane) WHERE t.name = w.name AND w.lane IS NULL;
    END IF;

    DELETE FROM {schema}.fingerprints AS f WHERE f.name = ANY (p_work) AND NOT EXISTS (
        SELECT 1 FROM unnest(p_fingerprints, p_fingerprints_of) AS k (fingerprint, name)
            WHERE k.fingerprint = f.fingerprint AND k.name = f.name);
    INSERT INTO {schema}.fingerprints
        SELECT k.fingerprint, k.name FROM unnest(p_fingerprints, p_fingerprints_of) AS k (fingerprint, name)
            ORDER BY k.fingerprint ON CONFLICT DO NOTHING;
    IF cardinality(p_new) > 0 AND EXISTS (
        SELECT 1 FROM {schema}.fingerprints AS f WHERE f.fingerprint = ANY (p_new) AND NOT f.name = ANY (p_work)
    ) THEN
        RAISE EXCEPTION 'a grant has this secret' USING ERRCODE = 'CV004';
    END IF;
END
$$;

-- Older workers write no dates: what they write is not dated from then on, whatever was known before.
CREATE OR REPLACE FUNCTION {schema}.commit_1(
    p_replica bytea, p_place smallint, p_number bigint, p_asynchronous boolean, p_keyring bigint,
    p_claims bytea[], p_fences bigint[], p_leases bigint[],
    p_names bytea[], p_expected bigint[], p_versions bigint[], p_sealed bytea[], p_tombstones bytea[],
    p_work bytea[], p_lanes bytea[], p_states smallint[], p_dues bigint[], p_ends bigint[], p_persons bytea[],
    p_fingerprints bytea[], p_fingerprints_of bytea[], p_new bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.commit_2(
        p_replica, p_place, p_number, p_asynchronous, p_keyring, p_claims, p_fences, p_leases,
        p_names, p_expected, p_versions, p_sealed, p_tombstones,
        p_work, p_lanes, p_states, p_ends, p_persons, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
        p_fingerprints, p_fingerprints_of, p_new);
END
$$;

-- Claims what is due in a lane as claim_1 does, the longest due first, and p_undated more of those whose dates nobody wrote. What was
-- fetched last is told with each. Where nothing is due, nothing is written.
CREATE FUNCTION {schema}.claim_due_4(
    p_replica bytea, p_lane bytea, p_most int, p_undated int, p_lease_ms bigint, p_seen int, p_seen_ms bigint,
    p_asynchronous boolean
) RETURNS TABLE (claimed bytea, number bigint, was_dated boolean, due_ms bigint, fetched_ms bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_now CONSTANT timestamptz := clock_timestamp();
    v_names bytea[];
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    -- A plan from when the table was small would read all of it.
    PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true);
    v_names := ARRAY (
        SELECT f.name FROM {schema}.work AS f
            WHERE f.lane = p_lane AND f.due <= v_now
                AND (f.holder IS NULL OR CASE WHEN f.timeline = v_timeline
                    THEN f.until < v_now ELSE p_seen = v_timeline AND f.lease_ms <= p_seen_ms END)
            ORDER BY f.due LIMIT p_most FOR UPDATE SKIP LOCKED)
        || ARRAY (
        SELECT f.name FROM {schema}.work AS f
            WHERE f.lane = p_lane AND NOT f.dated
                AND (f.holder IS NULL OR CASE WHEN f.timeline = v_timeline
                    THEN f.until < v_now ELSE p_seen = v_timeline AND f.lease_ms <= p_seen_ms END)
            LIMIT p_undated FOR UPDATE SKIP LOCKED);
    IF cardinality(v_names) = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE {schema}.work AS w
            SET holder = p_replica, fence = w.fence + 1, timeline = v_timeline, lease_ms = p_lease_ms,
                until = clock_timestamp() + p_lease_ms * interval '1 ms'
            WHERE w.name = ANY (v_names)
            RETURNING w.name, w.fence, w.dated, (extract(epoch FROM w.due) * 1000)::bigint,
                (extract(epoch FROM w.fetched) * 1000)::bigint;
END
$$;

-- Writes dates under claims, without a record, and gives those claims up of which p_over says so. Where the lane is null, all that is
-- known but the dates stays as it is. What is another's by now stays whole. It waits for no standby: dates that are lost with their
-- primary are worked out again.
CREATE FUNCTION {schema}.put_off_4(
    p_replica bytea, p_fences bigint[], p_over boolean[], p_asynchronous boolean,
    p_work bytea[], p_lanes bytea[], p_states smallint[], p_ends bigint[], p_persons bytea[], p_organizations int[],
    p_paused boolean[], p_assumed boolean[], p_fetched bigint[], p_dated boolean[], p_dues bigint[], p_warns bigint[],
    p_lapses bigint[], p_every bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    PERFORM 1 FROM {schema}.work WHERE name = ANY (p_work) ORDER BY name FOR UPDATE;
    UPDATE {schema}.work AS t
        SET holder = CASE WHEN NOT w.over THEN t.holder END,
            until = CASE WHEN NOT w.over THEN t.until END,
            lane = coalesce(w.lane, t.lane),
            state = CASE WHEN w.lane IS NULL THEN t.state ELSE w.state END,
            ends = CASE WHEN w.lane IS NULL THEN t.ends ELSE to_timestamp(w.ends / 1000.0) END,
            person = CASE WHEN w.lane IS NULL THEN t.person ELSE w.person END,
            organizations = CASE WHEN w.lane IS NULL THEN t.organizations ELSE w.organizations END,
            paused = CASE WHEN w.lane IS NULL THEN t.paused ELSE w.paused END,
            end_assumed = CASE WHEN w.lane IS NULL THEN t.end_assumed ELSE w.assumed END,
            fetched = greatest(t.fetched, to_timestamp(w.fetched / 1000.0)),
            dated = w.dated, due = to_timestamp(w.due / 1000.0), warns = to_timestamp(w.warns / 1000.0),
            lapses = to_timestamp(w.lapses / 1000.0), every_ms = w.every
        FROM unnest(p_fences, p_over, p_work, p_lanes, p_states, p_ends, p_persons, p_organizations, p_paused, p_assumed,
                p_fetched, p_dated, p_dues, p_warns, p_lapses, p_every)
            AS w (fence, over, name, lane, state, ends, person, organizations, paused, assumed, fetched, dated, due, warns,
                lapses, every)
        WHERE t.name = w.name AND t.fence = w.fence AND t.holder = p_replica;
END
$$;

-- Notes when grants were last fetched. What somebody is writing at the moment is left out: it is noted with the next fetch.
CREATE FUNCTION {schema}.fetched_4(p_names bytea[], p_fetched bigint[], p_asynchronous boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    UPDATE {schema}.work AS t SET fetched = greatest(t.fetched, to_timestamp(f.fetched / 1000.0))
        FROM unnest(p_names, p_fetched) AS f (name, fetched)
        WHERE t.name = f.name AND t.name = ANY (ARRAY (
            SELECT l.name FROM {schema}.work AS l WHERE l.name = ANY (p_names) ORDER BY l.name FOR UPDATE SKIP LOCKED));
END
$$;

-- After an outage of a provider: what fails because of it, and is due later than p_spread_ms from now, is due within that; at most
-- p_most, and how many they were.
CREATE FUNCTION {schema}.bring_forward_4(p_lane bytea, p_spread_ms bigint, p_most int, p_asynchronous boolean)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    v_spread CONSTANT interval := p_spread_ms * interval '1 ms';
    v_brought int;
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    UPDATE {schema}.work AS t SET due = clock_timestamp() + random() * v_spread
        WHERE t.name = ANY (ARRAY (
            SELECT l.name FROM {schema}.work AS l
                WHERE l.lane = p_lane AND l.due > clock_timestamp() + v_spread AND l.state = 6 AND NOT l.paused
                LIMIT p_most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_brought = ROW_COUNT;
    RETURN v_brought;
END
$$;

-- As accept_3; and whatever was written of dates is of another time.
CREATE FUNCTION {schema}.accept_4(p_name bytea, p_version bigint, p_sealed bytea, p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.accept_3(p_name, p_version, p_sealed, p_asynchronous);
    UPDATE {schema}.work SET dated = false, due = NULL WHERE dated;
END
$$;
