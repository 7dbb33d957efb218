-- The first schema. {schema} stands for the quoted name of the schema.
--
-- What is in clear here is all that the database learns: keyed names, versions, and what claims are made by.
-- docs/replicas-design.md says why each table is as it is.

-- One row: the keys, encrypted by age to every recipient, and the public keys of those. Its version goes up with every change of it.
-- Where unusable says why, the vault is not opened: it has moved elsewhere, or is not complete.
CREATE TABLE {schema}.vault (
    one        boolean PRIMARY KEY CHECK (one),
    version    bigint  NOT NULL,
    keyring    bytea   NOT NULL,
    recipients text    NOT NULL,
    unusable   text
);

-- Records, sealed. A row stays for a while when its record is deleted: its version goes on counting, and whoever follows is told. Its
-- tombstone is the sealed id of what was deleted.
CREATE TABLE {schema}.records (
    name      bytea  PRIMARY KEY CHECK (length(name) = 17),
    version   bigint NOT NULL CHECK (version > 0),
    sealed    bytea,
    tombstone bytea,
    gone      timestamptz,
    timeline  int    NOT NULL,
    changed   xid8   NOT NULL
) WITH (fillfactor = 80);
-- Ciphertext cannot be made smaller.
ALTER TABLE {schema}.records ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX records_news ON {schema}.records (timeline, changed, name);
CREATE INDEX records_gone ON {schema}.records (gone) WHERE gone IS NOT NULL;

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
    lease_ms bigint      NOT NULL DEFAULT 0,
    timeline int         NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE INDEX work_due ON {schema}.work (lane, due) WHERE due IS NOT NULL;

-- Which grant remembers a long-lived secret, current or spent: a keyed hash of the secret, and the name of the grant's record.
CREATE TABLE {schema}.fingerprints (
    fingerprint bytea PRIMARY KEY CHECK (length(fingerprint) = 16),
    name        bytea NOT NULL
);
CREATE INDEX fingerprints_of ON {schema}.fingerprints (name);

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

-- For claims: the transaction does not wait for its standbys. A claim that is lost with its primary costs nothing, since an intent
-- is committed under it before anything is sent that must not be sent twice.
CREATE FUNCTION {schema}.unconfirmed_1(p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    PERFORM set_config('synchronous_commit', 'off', true);
END
$$;

-- Makes a vault of these keys and this first record, unless there is one.
CREATE FUNCTION {schema}.found_1(
    p_keyring bytea, p_recipients text, p_name bytea, p_version bigint, p_sealed bytea, p_asynchronous boolean
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    INSERT INTO {schema}.vault VALUES (true, 1, p_keyring, p_recipients, NULL) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        INSERT INTO {schema}.records
            VALUES (p_name, p_version, p_sealed, NULL, NULL, {schema}.timeline_1(), pg_current_xact_id());
    END IF;
END
$$;

-- Puts other keys in the place of those of that version. Whoever seals under the older ones is refused from then on.
CREATE FUNCTION {schema}.put_keyring_1(p_version bigint, p_keyring bytea, p_recipients text, p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    UPDATE {schema}.vault SET version = version + 1, keyring = p_keyring, recipients = p_recipients
        WHERE version = p_version;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the keys were changed meanwhile' USING ERRCODE = 'CV004';
    END IF;
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

-- One commit: all of it, or an error and nothing. Every claim that is named must be the one of its number; it is then prolonged, or
-- given up where its lease is 0. p_keyring is the version of the keys that it was sealed under, or 0. Of p_expected, 0 stands for
-- a record that was never there, -1 for one that is not there, and -2 for whatever is there of an earlier version.
-- A grant's work goes where its lane is null. p_new are fingerprints that no grant but those that are written may remember.
CREATE FUNCTION {schema}.commit_1(
    p_replica bytea, p_place smallint, p_number bigint, p_asynchronous boolean, p_keyring bigint,
    p_claims bytea[], p_fences bigint[], p_leases bigint[],
    p_names bytea[], p_expected bigint[], p_versions bigint[], p_sealed bytea[], p_tombstones bytea[],
    p_work bytea[], p_lanes bytea[], p_states smallint[], p_dues bigint[], p_ends bigint[], p_persons bytea[],
    p_fingerprints bytea[], p_fingerprints_of bytea[], p_new bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_here CONSTANT xid8 := pg_current_xact_id();
    v_last bigint;
    v_held bigint;
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
    IF p_keyring <> 0 AND p_keyring IS DISTINCT FROM (SELECT version FROM {schema}.vault) THEN
        RAISE EXCEPTION 'the keys were changed' USING ERRCODE = 'CV007';
    END IF;

    -- In one order, so that two commits never wait for each other.
    PERFORM 1 FROM {schema}.records WHERE name = ANY (p_names) ORDER BY name FOR UPDATE;
    IF cardinality(p_claims) > 0 THEN
        PERFORM 1 FROM {schema}.work WHERE name = ANY (p_claims) ORDER BY name FOR UPDATE;
        UPDATE {schema}.work AS t
            SET until = CASE WHEN c.lease > 0 THEN clock_timestamp() + c.lease * interval '1 ms' END,
                holder = CASE WHEN c.lease > 0 THEN t.holder END,
                lease_ms = c.lease, timeline = v_timeline
            FROM unnest(p_claims, p_fences, p_leases) AS c (name, fence, lease)
            WHERE t.name = c.name AND t.holder = p_replica AND t.fence = c.fence;
        GET DIAGNOSTICS v_held = ROW_COUNT;
        IF v_held <> cardinality(p_claims) THEN
            RAISE EXCEPTION 'another has the claim' USING ERRCODE = 'CV003';
        END IF;
    END IF;

    IF EXISTS (
        SELECT 1 FROM unnest(p_names, p_expected) AS w (name, expected)
            LEFT JOIN {schema}.records AS r ON r.name = w.name
            WHERE w.expected >= 0 AND w.expected <> coalesce(r.version, 0) OR w.expected = -1 AND r.sealed IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'a record has another version' USING ERRCODE = 'CV004';
    ELSIF EXISTS (
        SELECT 1 FROM unnest(p_names, p_versions) AS w (name, version)
            JOIN {schema}.records AS r ON r.name = w.name WHERE r.version >= w.version
    ) THEN
        RAISE EXCEPTION 'a record has a later version' USING ERRCODE = 'CV006';
    END IF;
    -- Before the update, so that it finds none of these. A unique violation means that a record has another version.
    INSERT INTO {schema}.records
        SELECT w.name, w.version, w.sealed, w.tombstone,
                CASE WHEN w.sealed IS NULL THEN clock_timestamp() END, v_timeline, v_here
            FROM unnest(p_names, p_expected, p_versions, p_sealed, p_tombstones)
                AS w (name, expected, version, sealed, tombstone)
            WHERE (w.sealed IS NOT NULL OR w.expected = 0)
                AND NOT EXISTS (SELECT 1 FROM {schema}.records AS r WHERE r.name = w.name)
            ORDER BY w.name;
    -- What is deleted and not there stays as it is, unless its version was named.
    UPDATE {schema}.records AS r
        SET version = w.version, sealed = w.sealed, tombstone = w.tombstone,
            gone = CASE WHEN w.sealed IS NULL THEN clock_timestamp() END, timeline = v_timeline, changed = v_here
        FROM unnest(p_names, p_expected, p_versions, p_sealed, p_tombstones)
            AS w (name, expected, version, sealed, tombstone)
        WHERE r.name = w.name AND r.version < w.version
            AND (w.sealed IS NOT NULL OR r.sealed IS NOT NULL OR w.expected >= 0);

    IF cardinality(p_work) = 0 THEN
        RETURN;
    END IF;
    INSERT INTO {schema}.work AS t (name, lane, state, due, ends, person)
        SELECT w.name, w.lane, w.state, to_timestamp(w.due / 1000.0), to_timestamp(w.ends / 1000.0), w.person
        FROM unnest(p_work, p_lanes, p_states, p_dues, p_ends, p_persons) AS w (name, lane, state, due, ends, person)
        WHERE w.lane IS NOT NULL ORDER BY w.name
        ON CONFLICT (name) DO UPDATE
        SET lane = excluded.lane, state = excluded.state, due = excluded.due, ends = excluded.ends,
            person = excluded.person
        WHERE (t.lane, t.state, t.due, t.ends, t.person)
            IS DISTINCT FROM (excluded.lane, excluded.state, excluded.due, excluded.ends, excluded.person);
    DELETE FROM {schema}.work AS t
        USING unnest(p_work, p_lanes) AS w (name, lane) WHERE t.name = w.name AND w.lane IS NULL;

    DELETE FROM {schema}.fingerprints AS f WHERE f.name = ANY (p_work) AND NOT EXISTS (
        SELECT 1 FROM unnest(p_fingerprints, p_fingerprints_of) AS k (fingerprint, name)
            WHERE k.fingerprint = f.fingerprint AND k.name = f.name);
    INSERT INTO {schema}.fingerprints
        SELECT k.fingerprint, k.name FROM unnest(p_fingerprints, p_fingerprints_of) AS k (fingerprint, name)
            ORDER BY k.fingerprint ON CONFLICT DO NOTHING;
    IF EXISTS (
        SELECT 1 FROM {schema}.fingerprints AS f WHERE f.fingerprint = ANY (p_new) AND NOT f.name = ANY (p_work)
    ) THEN
        RAISE EXCEPTION 'a grant has this secret' USING ERRCODE = 'CV004';
    END IF;
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
-- until whoever asks has seen the present one (p_seen is the one that it has seen for p_seen_ms) for as long as that claim was to last.
CREATE FUNCTION {schema}.claim_1(
    p_replica bytea, p_lane bytea, p_most int, p_lease_ms bigint, p_seen int, p_seen_ms bigint,
    p_asynchronous boolean
) RETURNS TABLE (claimed bytea, number bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_now CONSTANT timestamptz := clock_timestamp();
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    RETURN QUERY
        UPDATE {schema}.work AS w
            SET holder = p_replica, fence = w.fence + 1, timeline = v_timeline, lease_ms = p_lease_ms,
                until = clock_timestamp() + p_lease_ms * interval '1 ms'
            WHERE w.name = ANY (ARRAY (
                SELECT f.name FROM {schema}.work AS f
                    WHERE f.lane = p_lane AND f.due <= v_now
                        AND (f.holder IS NULL OR CASE WHEN f.timeline = v_timeline
                            THEN f.until < v_now ELSE p_seen = v_timeline AND f.lease_ms <= p_seen_ms END)
                    ORDER BY f.due LIMIT p_most FOR UPDATE SKIP LOCKED))
            RETURNING w.name, w.fence;
END
$$;

-- Claims one grant in the same way, due or not; or prolongs the claim that p_mine is the number of, which keeps it. What this replica
-- holds under another number is its own to take again. It waits for a commit that is under way there. A null number: another has it.
-- No row: there is no such grant.
CREATE FUNCTION {schema}.claim_one_1(
    p_replica bytea, p_name bytea, p_mine bigint, p_lease_ms bigint, p_seen int, p_seen_ms bigint,
    p_asynchronous boolean
) RETURNS TABLE (claimed bytea, number bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    RETURN QUERY
        UPDATE {schema}.work AS w
            SET fence = CASE WHEN w.holder = p_replica AND w.fence = p_mine THEN w.fence ELSE w.fence + 1 END,
                holder = p_replica, timeline = v_timeline, lease_ms = p_lease_ms,
                until = clock_timestamp() + p_lease_ms * interval '1 ms'
            WHERE w.name = p_name
                AND (w.holder IS NULL OR w.holder = p_replica OR CASE WHEN w.timeline = v_timeline
                    THEN w.until < clock_timestamp() ELSE p_seen = v_timeline AND w.lease_ms <= p_seen_ms END)
            RETURNING w.name, w.fence;
    IF NOT FOUND THEN
        RETURN QUERY SELECT w.name, NULL::bigint FROM {schema}.work AS w WHERE w.name = p_name;
    END IF;
END
$$;

-- Gives claims up.
CREATE FUNCTION {schema}.give_up_1(p_replica bytea, p_names bytea[], p_fences bigint[], p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    UPDATE {schema}.work AS w SET holder = NULL, until = NULL
        FROM unnest(p_names, p_fences) AS c (name, fence)
        WHERE w.name = c.name AND w.fence = c.fence AND w.holder = p_replica;
END
$$;

-- Forgets some of what was deleted long ago.
CREATE FUNCTION {schema}.forget_1(p_days int, p_most int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    v_forgotten int;
BEGIN
    DELETE FROM {schema}.records WHERE name = ANY (ARRAY (
        SELECT r.name FROM {schema}.records AS r WHERE r.gone < clock_timestamp() - p_days * interval '1 day'
            LIMIT p_most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_forgotten = ROW_COUNT;
    RETURN v_forgotten;
END
$$;
