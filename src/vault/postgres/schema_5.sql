-- What operators do to a vault that several workers share: a new data key, backups, a move that begins. {schema} stands for the quoted
-- name of the schema.

-- How far the sealing under a new data key is, as the worker says that does it. At most one row; none where nothing is left to do.
CREATE TABLE {schema}.rekeying (
    one     boolean PRIMARY KEY CHECK (one),
    done    bigint  NOT NULL,
    total   bigint  NOT NULL,
    problem text
);

-- When the newest backup that is complete was begun, in milliseconds since 1970: of those that workers make by a schedule, and of any.
CREATE TABLE {schema}.backups (
    what     text   PRIMARY KEY CHECK (what IN ('scheduled', 'any')),
    begun_at bigint NOT NULL
);

-- Puts records that were sealed anew in the place of what they were sealed as, those of them that are of that version still; gives how
-- many. Nothing else of a record changes, so that it is no news. The vault's row is locked, so that the keys stay as they are and the
-- vault is not moved meanwhile. A record that somebody writes just now is left out: it is under the new key then.
-- It waits for no standby: should it be lost with its primary, so is whatever was written after it.
CREATE FUNCTION {schema}.reseal_5(
    p_keyring bigint, p_names bytea[], p_versions bigint[], p_sealed bytea[], p_tombstones bytea[]
) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    v_resealed int;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '10s', true);
    PERFORM 1 FROM {schema}.vault WHERE version = p_keyring AND unusable IS NULL FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the keys were changed' USING ERRCODE = 'CV007';
    END IF;
    WITH free AS MATERIALIZED (
        SELECT r.name FROM {schema}.records AS r WHERE r.name = ANY (p_names) ORDER BY r.name FOR UPDATE SKIP LOCKED
    )
    UPDATE {schema}.records AS r SET sealed = w.sealed, tombstone = w.tombstone
        FROM unnest(p_names, p_versions, p_sealed, p_tombstones) AS w (name, version, sealed, tombstone)
            JOIN free ON free.name = w.name
        WHERE r.name = w.name AND r.version = w.version;
    GET DIAGNOSTICS v_resealed = ROW_COUNT;
    RETURN v_resealed;
END
$$;

-- The same for what workers have said of a provider.
CREATE FUNCTION {schema}.reseal_lane_5(p_keyring bigint, p_lane bytea, p_version bigint, p_sealed bytea)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '10s', true);
    PERFORM 1 FROM {schema}.vault WHERE version = p_keyring AND unusable IS NULL FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the keys were changed' USING ERRCODE = 'CV007';
    END IF;
    UPDATE {schema}.lanes SET sealed = p_sealed WHERE lane = p_lane AND version = p_version;
END
$$;

-- As put_lane_1, sealed under the keys of that version, which must still be the newest; 0: that does not matter.
CREATE FUNCTION {schema}.put_lane_5(
    p_lane bytea, p_expected bigint, p_sealed bytea, p_keyring bigint, p_asynchronous boolean
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    -- Before the keys are looked at: whoever retires a key waits for all transactions that have their number already.
    v_here CONSTANT xid8 := pg_current_xact_id();
BEGIN
    IF p_keyring <> 0 AND p_keyring IS DISTINCT FROM (SELECT version FROM {schema}.vault) THEN
        RAISE EXCEPTION 'the keys were changed' USING ERRCODE = 'CV007';
    END IF;
    RETURN {schema}.put_lane_1(p_lane, p_expected, p_sealed, p_asynchronous);
END
$$;

-- Puts keys without the older data keys in the place of those of that version, if nothing is sealed under another data key than p_current
-- (its number as it stands in a seal): how much is. Whoever calls it has the lease of that work, and has waited for every transaction that
-- may have begun before the new data key was there.
CREATE FUNCTION {schema}.retire_5(
    p_replica bytea, p_fence bigint, p_version bigint, p_current bytea, p_keyring bytea, p_recipients text,
    p_asynchronous boolean
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_left bigint;
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    PERFORM 1 FROM {schema}.leases WHERE what = 'rekey' AND holder = p_replica AND fence = p_fence FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another does it' USING ERRCODE = 'CV003';
    END IF;
    PERFORM 1 FROM {schema}.vault WHERE version = p_version AND unusable IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the keys were changed' USING ERRCODE = 'CV007';
    END IF;
    SELECT (SELECT count(*) FROM {schema}.records
                WHERE substring(sealed FROM 2 FOR 4) <> p_current OR substring(tombstone FROM 2 FOR 4) <> p_current)
        + (SELECT count(*) FROM {schema}.lanes WHERE substring(sealed FROM 2 FOR 4) <> p_current) INTO v_left;
    IF v_left = 0 THEN
        UPDATE {schema}.vault SET version = version + 1, keyring = p_keyring, recipients = p_recipients;
        DELETE FROM {schema}.rekeying;
    END IF;
    RETURN v_left;
END
$$;

-- Says how far the sealing under a new data key is. It waits for nobody.
CREATE FUNCTION {schema}.rekeying_5(p_done bigint, p_total bigint, p_problem text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '2s', true);
    INSERT INTO {schema}.rekeying VALUES (true, p_done, p_total, p_problem)
        ON CONFLICT (one) DO UPDATE SET done = p_done, total = p_total, problem = p_problem;
END
$$;

-- Notes that a backup was completed that was begun then; an earlier one than is known changes nothing. It waits for nobody: one that is lost
-- is made once more.
CREATE FUNCTION {schema}.backed_up_5(p_what text, p_begun_at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '2s', true);
    INSERT INTO {schema}.backups AS b VALUES (p_what, p_begun_at)
        ON CONFLICT (what) DO UPDATE SET begun_at = greatest(b.begun_at, p_begun_at);
END
$$;

-- As found_1, unless a vault is on its way here: whoever started too soon would make an empty one in its place.
CREATE FUNCTION {schema}.found_5(
    p_keyring bytea, p_recipients text, p_name bytea, p_version bigint, p_sealed bytea, p_asynchronous boolean
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.moving IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT 1 FROM {schema}.moving WHERE NOT leaving AND NOT ended) THEN
        RAISE EXCEPTION 'a vault is being moved here' USING ERRCODE = 'CV008';
    END IF;
    PERFORM {schema}.found_1(p_keyring, p_recipients, p_name, p_version, p_sealed, p_asynchronous);
END
$$;

-- Says that a vault is coming, before the one that it comes from is marked, over what was said so of another. Refused where anything is.
CREATE FUNCTION {schema}.announce_5(p_id bytea, p_place text, p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    LOCK TABLE {schema}.moving IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT 1 FROM {schema}.vault) OR EXISTS (SELECT 1 FROM {schema}.records) THEN
        RAISE EXCEPTION 'a vault is there' USING ERRCODE = 'CV004';
    END IF;
    INSERT INTO {schema}.moving VALUES (true, p_id, false, p_place, false)
        ON CONFLICT (one) DO UPDATE SET id = p_id, leaving = false, place = p_place, ended = false;
END
$$;

-- As arrive_3, also where the move was announced.
CREATE FUNCTION {schema}.arrive_5(
    p_id bytea, p_place text, p_why text, p_keyring bytea, p_recipients text, p_asynchronous boolean
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM {schema}.vault) THEN
        DELETE FROM {schema}.moving WHERE id = p_id AND NOT leaving AND NOT ended;
    END IF;
    PERFORM {schema}.arrive_3(p_id, p_place, p_why, p_keyring, p_recipients, p_asynchronous);
END
$$;
