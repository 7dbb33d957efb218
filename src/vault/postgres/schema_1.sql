-- The first schema. {schema} stands for the quoted name of the schema.
--
-- What is in clear here is all that the database learns: keyed names, versions, and what claims are made by.
-- docs/replicas-design.md says why each table is as it is.

-- Records, sealed. A row stays when its record is deleted: its version goes on counting, and whoever follows is told.
CREATE TABLE {schema}.records (
    name     bytea  PRIMARY KEY CHECK (length(name) = 17),
    version  bigint NOT NULL CHECK (version > 0),
    sealed   bytea,
    timeline int    NOT NULL,
    changed  xid8   NOT NULL
) WITH (fillfactor = 80);
-- Ciphertext cannot be made smaller.
ALTER TABLE {schema}.records ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX records_news ON {schema}.records (timeline, changed, name);

-- What is to be done about a grant, and who does it. Claims change no indexed column, and find room on their row's page.
CREATE TABLE {schema}.work (
    name     bytea       PRIMARY KEY,
    lane     bytea       NOT NULL,
    state    smallint    NOT NULL,
    due      timestamptz,
    ends     timestamptz,
    person   bytea,
    holder   bytea,
    fence    bigint      NOT NULL DEFAULT 0,
    until    timestamptz,
    timeline int         NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE INDEX work_due ON {schema}.work (lane, due) WHERE due IS NOT NULL;

-- The places in which a replica makes its commits, one after the other in each.
CREATE TABLE {schema}.writers (
    replica bytea       NOT NULL,
    place   smallint    NOT NULL,
    last    bigint      NOT NULL,
    void    boolean     NOT NULL,
    seen    timestamptz NOT NULL,
    PRIMARY KEY (replica, place)
) WITH (fillfactor = 50);

-- Which history of the server this is: a standby that is promoted begins another. Fails on a standby.
CREATE FUNCTION {schema}.timeline_1() RETURNS int LANGUAGE sql STABLE AS $$
    SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
$$;

-- Makes the rest of the transaction wait for its standbys, and its warnings be heard. It is refused where there is no
-- standby to wait for, unless that is allowed.
CREATE FUNCTION {schema}.synchronous_1(p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT p_asynchronous AND current_setting('synchronous_standby_names') = '' THEN
        RAISE EXCEPTION 'no standby has to confirm commits' USING ERRCODE = 'CV001';
    END IF;
    IF current_setting('synchronous_commit') <> 'remote_apply' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM set_config('client_min_messages', 'warning', true), set_config('lock_timeout', '10s', true);
END
$$;

-- Makes the places of a replica, and forgets those of replicas that have written nothing for a week.
CREATE FUNCTION {schema}.enlist_1(p_replica bytea, p_places int, p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    DELETE FROM {schema}.writers WHERE replica IN (
        SELECT replica FROM {schema}.writers GROUP BY replica HAVING max(seen) < clock_timestamp() - interval '7 days');
    INSERT INTO {schema}.writers
        SELECT p_replica, place, 0, false, clock_timestamp() FROM generate_series(0, p_places - 1) AS place
        ON CONFLICT DO NOTHING;
END
$$;

-- One commit: all of it, or an error and nothing. Where p_fence_name is given, its claim must be the one of that number;
-- it is then prolonged, or given up where p_lease_ms is 0. In p_expected, 0 stands for a record that was never there.
-- A grant's work goes where its lane is null.
CREATE FUNCTION {schema}.commit_1(
    p_replica bytea, p_place smallint, p_number bigint, p_asynchronous boolean,
    p_fence_name bytea, p_fence bigint, p_lease_ms bigint,
    p_names bytea[], p_expected bigint[], p_versions bigint[], p_sealed bytea[],
    p_work bytea[], p_lanes bytea[], p_states smallint[], p_dues bigint[], p_ends bigint[], p_persons bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_here CONSTANT xid8 := pg_current_xact_id();
    v_last bigint;
    v_written bigint;
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);

    SELECT last INTO v_last FROM {schema}.writers WHERE replica = p_replica AND place = p_place FOR UPDATE;
    IF v_last IS NULL OR v_last >= p_number THEN
        RAISE EXCEPTION 'this place is gone, or has gone on' USING ERRCODE = 'CV002';
    ELSIF v_last < p_number - 1 THEN
        RAISE EXCEPTION 'a commit that was confirmed is missing' USING ERRCODE = 'CV005';
    END IF;
    UPDATE {schema}.writers SET last = p_number, void = false, seen = clock_timestamp()
        WHERE replica = p_replica AND place = p_place;

    -- In one order, so that two commits never wait for each other.
    PERFORM 1 FROM {schema}.records WHERE name = ANY (p_names) ORDER BY name FOR UPDATE;

    IF p_fence_name IS NOT NULL THEN
        UPDATE {schema}.work
            SET until = CASE WHEN p_lease_ms > 0 THEN clock_timestamp() + p_lease_ms * interval '1 ms' END,
                holder = CASE WHEN p_lease_ms > 0 THEN holder END,
                timeline = v_timeline
            WHERE name = p_fence_name AND holder = p_replica AND fence = p_fence;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'another has the claim' USING ERRCODE = 'CV003';
        END IF;
    END IF;

    UPDATE {schema}.records AS r
        SET version = w.version, sealed = w.sealed, timeline = v_timeline, changed = v_here
        FROM unnest(p_names, p_expected, p_versions, p_sealed) AS w (name, expected, version, sealed)
        WHERE r.name = w.name AND r.version = w.expected;
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> (SELECT count(*) FROM unnest(p_expected) AS expected WHERE expected <> 0) THEN
        RAISE EXCEPTION 'a record has another version' USING ERRCODE = 'CV004';
    END IF;
    -- A unique violation means the same.
    INSERT INTO {schema}.records
        SELECT w.name, w.version, w.sealed, v_timeline, v_here
        FROM unnest(p_names, p_expected, p_versions, p_sealed) AS w (name, expected, version, sealed)
        WHERE w.expected = 0 ORDER BY w.name;

    INSERT INTO {schema}.work AS t (name, lane, state, due, ends, person)
        SELECT w.name, w.lane, w.state, to_timestamp(w.due / 1000.0), to_timestamp(w.ends / 1000.0), w.person
        FROM unnest(p_work, p_lanes, p_states, p_dues, p_ends, p_persons) AS w (name, lane, state, due, ends, person)
        WHERE w.lane IS NOT NULL ORDER BY w.name
        ON CONFLICT (name) DO UPDATE
        SET lane = excluded.lane, state = excluded.state, due = excluded.due, ends = excluded.ends,
            person = excluded.person;
    DELETE FROM {schema}.work AS t
        USING unnest(p_work, p_lanes) AS w (name, lane) WHERE t.name = w.name AND w.lane IS NULL;
END
$$;

-- Settles the commit of that number, whose outcome its replica does not know: true where it was not made, and then it never
-- will be. It waits for a transaction that is under way, and is itself a commit that standbys confirm.
CREATE FUNCTION {schema}.settle_1(p_replica bytea, p_place smallint, p_number bigint, p_asynchronous boolean)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_last bigint;
    v_void boolean;
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    SELECT last INTO v_last FROM {schema}.writers WHERE replica = p_replica AND place = p_place FOR UPDATE;
    IF v_last IS NULL OR v_last > p_number THEN
        RAISE EXCEPTION 'this place is gone, or has gone on' USING ERRCODE = 'CV002';
    ELSIF v_last < p_number - 1 THEN
        RAISE EXCEPTION 'a commit that was confirmed is missing' USING ERRCODE = 'CV005';
    END IF;
    UPDATE {schema}.writers
        SET void = void OR last < p_number, last = p_number, seen = clock_timestamp()
        WHERE replica = p_replica AND place = p_place RETURNING void INTO v_void;
    RETURN v_void;
END
$$;

-- Claims what is due in a lane, the longest due first. A claim of an earlier timeline counts as running, whatever its time says,
-- unless p_earlier.
CREATE FUNCTION {schema}.claim_1(
    p_replica bytea, p_lane bytea, p_most int, p_lease_ms bigint, p_earlier boolean, p_asynchronous boolean
) RETURNS TABLE (claimed bytea, number bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_now CONSTANT timestamptz := clock_timestamp();
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    RETURN QUERY
        UPDATE {schema}.work AS w
            SET holder = p_replica, fence = w.fence + 1, timeline = v_timeline,
                until = clock_timestamp() + p_lease_ms * interval '1 ms'
            WHERE w.name = ANY (ARRAY (
                SELECT f.name FROM {schema}.work AS f
                    WHERE f.lane = p_lane AND f.due <= v_now
                        AND (f.holder IS NULL OR f.until < v_now AND (f.timeline = v_timeline OR p_earlier))
                    ORDER BY f.due LIMIT p_most FOR UPDATE SKIP LOCKED))
            RETURNING w.name, w.fence;
END
$$;

-- Claims one grant in the same way, due or not. It waits for a commit that is under way there.
CREATE FUNCTION {schema}.claim_one_1(
    p_replica bytea, p_name bytea, p_lease_ms bigint, p_earlier boolean, p_asynchronous boolean
) RETURNS TABLE (claimed bytea, number bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    RETURN QUERY
        UPDATE {schema}.work AS w
            SET holder = p_replica, fence = w.fence + 1, timeline = v_timeline,
                until = clock_timestamp() + p_lease_ms * interval '1 ms'
            WHERE w.name = p_name
                AND (w.holder IS NULL OR w.until < clock_timestamp() AND (w.timeline = v_timeline OR p_earlier))
            RETURNING w.name, w.fence;
END
$$;

-- Gives claims up.
CREATE FUNCTION {schema}.give_up_1(p_replica bytea, p_names bytea[], p_fences bigint[], p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    UPDATE {schema}.work AS w SET holder = NULL, until = NULL
        FROM unnest(p_names, p_fences) AS c (name, fence)
        WHERE w.name = c.name AND w.fence = c.fence AND w.holder = p_replica;
END
$$;
