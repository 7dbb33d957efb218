-- The second schema: what one of the replicas does for all of them, and what they share of a provider. {schema} stands for the
-- quoted name of the schema. docs/replicas-design.md says why each table is as it is.

-- Singular work. A row stays when nobody has the lease, so that its number goes on counting.
CREATE TABLE {schema}.leases (
    what     text        PRIMARY KEY CHECK (length(what) BETWEEN 1 AND 100),
    holder   bytea,
    fence    bigint      NOT NULL,
    until    timestamptz NOT NULL,
    -- How long it was given for, in milliseconds.
    length   bigint      NOT NULL,
    timeline int         NOT NULL
) WITH (fillfactor = 50);

-- How a provider is, as the replica saw it that found a change last; sealed.
CREATE TABLE {schema}.lanes (
    lane    bytea  PRIMARY KEY CHECK (length(lane) = 16),
    version bigint NOT NULL CHECK (version > 0),
    sealed  bytea  NOT NULL
) WITH (fillfactor = 50);

-- When a budget has its next turn. Not logged: a crash and a promotion empty it, and a budget that is not there begins as after a quiet
-- time, which the seconds without a server mostly were.
CREATE UNLOGGED TABLE {schema}.turns (
    budget bytea       PRIMARY KEY CHECK (length(budget) = 17),
    next   timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Gives the lease of that name to the replica, for so long: its new number, or null while another has it. Who has it already is given it
-- anew. A lease of an earlier timeline was measured by another server's clock: it begins once more by this one's. One that is lost with its
-- primary was no more than work that is done twice.
CREATE FUNCTION {schema}.lease_1(p_replica bytea, p_what text, p_length_ms bigint, p_asynchronous boolean)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_timeline CONSTANT int := {schema}.timeline_1();
    v_row {schema}.leases%ROWTYPE;
BEGIN
    -- Who only finds that another has it writes nothing.
    IF EXISTS (SELECT FROM {schema}.leases WHERE what = p_what AND holder <> p_replica AND timeline = v_timeline
            AND until >= clock_timestamp()) THEN
        RETURN NULL;
    END IF;
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    INSERT INTO {schema}.leases VALUES (p_what, NULL, 0, clock_timestamp(), 0, v_timeline) ON CONFLICT DO NOTHING;
    SELECT * INTO v_row FROM {schema}.leases WHERE what = p_what FOR UPDATE;
    IF v_row.holder IS NOT NULL AND v_row.holder <> p_replica THEN
        IF v_row.timeline <> v_timeline THEN
            UPDATE {schema}.leases
                SET timeline = v_timeline, until = clock_timestamp() + v_row.length * interval '1 ms'
                WHERE what = p_what;
            RETURN NULL;
        ELSIF v_row.until >= clock_timestamp() THEN
            RETURN NULL;
        END IF;
    END IF;
    UPDATE {schema}.leases
        SET holder = p_replica, fence = fence + 1, timeline = v_timeline, length = p_length_ms,
            until = clock_timestamp() + p_length_ms * interval '1 ms'
        WHERE what = p_what RETURNING fence INTO v_row.fence;
    RETURN v_row.fence;
END
$$;

-- Prolongs a lease, or ends it where the length is 0; false where it is another's by now, or was given anew.
CREATE FUNCTION {schema}.prolong_1(
    p_replica bytea, p_what text, p_fence bigint, p_length_ms bigint, p_asynchronous boolean
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.unconfirmed_1(p_asynchronous);
    UPDATE {schema}.leases
        SET holder = CASE WHEN p_length_ms > 0 THEN holder END,
            timeline = {schema}.timeline_1(), length = p_length_ms,
            until = clock_timestamp() + p_length_ms * interval '1 ms'
        WHERE what = p_what AND holder = p_replica AND fence = p_fence;
    RETURN FOUND;
END
$$;

-- Reserves at most so many of a budget's turns, one after each interval, and none that is later than p_ahead from now: how many, and how
-- long from now the first is, in microseconds; it may have been a while ago, at most p_burst. Where it gives none, that is when to ask
-- again. One budget's turns are given to one replica after the other, whatever their clocks say.
CREATE FUNCTION {schema}.reserve_1(
    p_budget bytea, p_most int, p_interval_us bigint, p_burst_us bigint, p_ahead_us bigint
) RETURNS TABLE (turns int, first_us bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_interval CONSTANT interval := p_interval_us * interval '1 microsecond';
    v_ahead CONSTANT interval := p_ahead_us * interval '1 microsecond';
    v_now timestamptz;
    v_next timestamptz;
    v_turns int;
BEGIN
    -- Whoever has a budget waits for nobody.
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '2s', true);
    INSERT INTO {schema}.turns VALUES (p_budget, '-infinity') ON CONFLICT DO NOTHING;
    SELECT t.next INTO v_next FROM {schema}.turns AS t WHERE t.budget = p_budget FOR UPDATE;
    v_now := clock_timestamp();
    -- What was not asked for is lost but for a burst; and none was ever given that is later, unless the clock went back.
    v_next := least(greatest(v_next, v_now - p_burst_us * interval '1 microsecond'), v_now + v_ahead + v_interval);
    v_turns := CASE WHEN v_next > v_now + v_ahead THEN 0 ELSE least(
        p_most::bigint,
        1 + (extract(epoch FROM v_now + v_ahead - v_next) * 1000000)::bigint / greatest(p_interval_us, 1))::int END;
    UPDATE {schema}.turns AS t SET next = v_next + v_turns * v_interval WHERE t.budget = p_budget;
    RETURN QUERY SELECT v_turns, (extract(epoch FROM v_next - v_now) * 1000000)::bigint
        - CASE WHEN v_turns = 0 THEN p_ahead_us ELSE 0 END;
END
$$;

-- Writes how a provider is, where it is of that version still (0: was never written): its new version, or null where another has
-- written first.
CREATE FUNCTION {schema}.put_lane_1(p_lane bytea, p_expected bigint, p_sealed bytea, p_asynchronous boolean)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_version bigint;
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    IF p_expected = 0 THEN
        INSERT INTO {schema}.lanes VALUES (p_lane, 1, p_sealed) ON CONFLICT DO NOTHING RETURNING version INTO v_version;
    ELSE
        UPDATE {schema}.lanes SET version = version + 1, sealed = p_sealed
            WHERE lane = p_lane AND version = p_expected RETURNING version INTO v_version;
    END IF;
    RETURN v_version;
END
$$;
