-- The tables of a store of the crate oncekey.
CREATE SCHEMA IF NOT EXISTS {s};
-- Generations, revisions and tokens. The numbers of one key only grow.
CREATE SEQUENCE {s}.number AS bigint;
CREATE SEQUENCE {s}.incarnation AS integer;
CREATE TABLE {s}.store (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    id     uuid    NOT NULL DEFAULT gen_random_uuid(),
    format integer NOT NULL,
    -- Counts the advances of the time.
    tick   bigint  NOT NULL DEFAULT 0,
    -- Store time in milliseconds.
    time   bigint  NOT NULL DEFAULT 0);
CREATE TABLE {s}.incarnations (
    id     integer     PRIMARY KEY,
    -- The life of the server in which it began: system, timeline, start.
    server text        NOT NULL,
    began  timestamptz NOT NULL DEFAULT now());
CREATE TABLE {s}.records (
    manager    text COLLATE "C" NOT NULL,
    key        bytea       NOT NULL,
    -- 0 removed, 1 in progress, 2 succeeded, 3 failed, 4 released, 5 interrupted.
    state      smallint    NOT NULL,
    generation bigint      NOT NULL,
    revision   bigint      NOT NULL,
    token      bigint      NOT NULL,
    -- The incarnation that made or adopted the last claim.
    owner      integer     NOT NULL,
    -- A number of the last change, by which the engine finds out whether that change was made.
    change     bigint      NOT NULL,
    -- The number of the last change that was made by the function `stage`. Other changes leave it as it is.
    staged     bigint      NOT NULL DEFAULT 0,
    -- Store time in milliseconds. A record without `expires` is kept for ever.
    updated    bigint      NOT NULL,
    expires    bigint,
    -- By the clock of the server, for operators.
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- All other fields, in the format of the embedded store.
    body       bytea       NOT NULL,
    outcome    bytea,
    PRIMARY KEY (manager, key)) WITH (fillfactor = 80);
CREATE INDEX records_unfinished ON {s}.records (manager, key) WHERE state IN (1, 4, 5);
CREATE INDEX records_due ON {s}.records (expires) WHERE expires IS NOT NULL;
CREATE TABLE {s}.rows (
    "table" text COLLATE "C" NOT NULL,
    key     bytea NOT NULL,
    value   bytea NOT NULL,
    PRIMARY KEY ("table", key));
-- Changes a record in a transaction of the user. If it fails, the transaction cannot be committed. The parameters: $1
-- store, $2 manager, $3 key, $4 the revision that the row must have, $5 its next revision, $6 owner, $7 the transaction
-- that has locked the row, $8 state, $9 the time of the decision, $10 the milliseconds that are added to the times, $11
-- the time from which the change is refused, $12 updated, $13 expires, $14 whether `expires` stays as it is, $15 body,
-- $16 outcome.
CREATE FUNCTION {s}.stage(
    text, text, bytea, bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint, boolean, bytea, bytea,
    OUT updated bigint, OUT expires bigint) LANGUAGE plpgsql AS $stage$
#variable_conflict use_column
DECLARE
    -- A snapshot may be older than the decision.
    clock bigint := (SELECT greatest(s.time, $9) FROM {s}.store s WHERE s.id = $1::uuid);
BEGIN
    IF clock IS NULL THEN
        RAISE EXCEPTION 'the schema holds another store' USING ERRCODE = 'OK002';
    ELSIF $7 <> txid_current() THEN
        RAISE EXCEPTION 'the transaction of the stage has ended' USING ERRCODE = 'OK003';
    END IF;
    -- An answer is durable when the commit returns.
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    UPDATE {s}.records r SET
        state = $8::smallint, revision = $5, change = $5, staged = $5, owner = greatest(r.owner, $6::integer),
        updated = $12 + clock - $9 + $10,
        expires = CASE WHEN $14 THEN $13 ELSE $13 + clock - $9 + $10 END, updated_at = now(), body = $15, outcome = $16
    WHERE r.manager = $2 AND r.key = $3 AND r.revision = $4 AND ($11 IS NULL OR clock < $11)
    RETURNING r.updated, r.expires INTO updated, expires;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the claim is lost, or its record has changed' USING ERRCODE = 'OK001';
    END IF;
END $stage$;
INSERT INTO {s}.store (format) VALUES (1);
