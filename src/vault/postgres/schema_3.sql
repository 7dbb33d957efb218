-- Moves of the vault into this database and out of it. {schema} stands for the quoted name of the schema.

-- At most one row: the last move, or the one under way.
CREATE TABLE {schema}.moving (
    one     boolean PRIMARY KEY CHECK (one),
    id      bytea   NOT NULL CHECK (length(id) = 16),
    leaving boolean NOT NULL,
    place   text    NOT NULL,
    ended   boolean NOT NULL
);

-- Nobody commits any more to a vault that leaves: there are no places, and none is made.
CREATE FUNCTION {schema}.no_places_3() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM {schema}.moving WHERE leaving) THEN
        RAISE EXCEPTION 'the vault is being moved elsewhere' USING ERRCODE = 'CV002';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER no_places_3 BEFORE INSERT ON {schema}.writers FOR EACH ROW EXECUTE FUNCTION {schema}.no_places_3();

-- Marks the vault as one that leaves, or has left where p_ended. Commits under way are waited for. It is refused while anybody has a
-- claim: an answer may be on its way that must be stored here.
CREATE FUNCTION {schema}.leave_3(p_id bytea, p_place text, p_ended boolean, p_why text, p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    DELETE FROM {schema}.writers;
    -- Once it is marked, nothing comes of a claim any more.
    IF NOT EXISTS (SELECT 1 FROM {schema}.moving WHERE id = p_id AND leaving)
        AND EXISTS (SELECT 1 FROM {schema}.work WHERE holder IS NOT NULL AND until > clock_timestamp()) THEN
        RAISE EXCEPTION 'a worker has claims' USING ERRCODE = 'CV003';
    END IF;
    INSERT INTO {schema}.moving VALUES (true, p_id, true, p_place, p_ended)
        ON CONFLICT (one) DO UPDATE SET id = p_id, leaving = true, place = p_place, ended = p_ended;
    UPDATE {schema}.vault SET unusable = p_why;
END
$$;

-- Takes the mark of that move off.
CREATE FUNCTION {schema}.remain_3(p_id bytea, p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    DELETE FROM {schema}.moving WHERE id = p_id AND leaving;
    IF FOUND THEN
        UPDATE {schema}.vault SET unusable = NULL;
    END IF;
END
$$;

-- Makes the beginning of a vault that nobody can use yet, or finds the one that this very move has begun.
CREATE FUNCTION {schema}.arrive_3(
    p_id bytea, p_place text, p_why text, p_keyring bytea, p_recipients text, p_asynchronous boolean
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    IF EXISTS (SELECT 1 FROM {schema}.moving WHERE id = p_id AND NOT leaving AND NOT ended) THEN
        RETURN;
    ELSIF EXISTS (SELECT 1 FROM {schema}.vault) OR EXISTS (SELECT 1 FROM {schema}.records) THEN
        RAISE EXCEPTION 'a vault is there' USING ERRCODE = 'CV004';
    END IF;
    INSERT INTO {schema}.vault (one, version, keyring, recipients, unusable)
        VALUES (true, 1, p_keyring, p_recipients, p_why);
    INSERT INTO {schema}.moving VALUES (true, p_id, false, p_place, false)
        ON CONFLICT (one) DO UPDATE SET id = p_id, leaving = false, place = p_place, ended = false;
END
$$;

-- All of it is there: from now on it is used.
CREATE FUNCTION {schema}.arrived_3(p_id bytea, p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    UPDATE {schema}.moving SET ended = true WHERE id = p_id AND NOT leaving;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another move has been here' USING ERRCODE = 'CV004';
    END IF;
    UPDATE {schema}.vault SET unusable = NULL;
END
$$;

-- Removes what that move has brought, if it is not whole.
CREATE FUNCTION {schema}.vacate_3(p_id bytea, p_asynchronous boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    DELETE FROM {schema}.moving WHERE id = p_id AND NOT leaving AND NOT ended;
    IF FOUND THEN
        DELETE FROM {schema}.vault;
        DELETE FROM {schema}.records;
        DELETE FROM {schema}.work;
        DELETE FROM {schema}.fingerprints;
    END IF;
END
$$;

-- Takes the vault as it is, with this record about itself: after it was restored, or where it was moved away and the other is lost. Whoever
-- had it open commits no more.
CREATE FUNCTION {schema}.accept_3(p_name bytea, p_version bigint, p_sealed bytea, p_asynchronous boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.synchronous_1(p_asynchronous);
    IF EXISTS (SELECT 1 FROM {schema}.moving WHERE NOT leaving AND NOT ended) THEN
        RAISE EXCEPTION 'it is not whole' USING ERRCODE = 'CV004';
    END IF;
    DELETE FROM {schema}.writers;
    DELETE FROM {schema}.moving WHERE leaving;
    UPDATE {schema}.vault SET unusable = NULL;
    UPDATE {schema}.records
        SET version = p_version, sealed = p_sealed, timeline = {schema}.timeline_1(), changed = pg_current_xact_id()
        WHERE name = p_name AND version < p_version;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another has done so' USING ERRCODE = 'CV004';
    END IF;
END
$$;
