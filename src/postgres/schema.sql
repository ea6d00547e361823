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
    -- The incarnation of the last claim.
    owner      integer     NOT NULL,
    -- The random number of the last change, by which its author finds out whether it was made.
    change     bigint      NOT NULL,
    -- Store time in milliseconds. A record without `expires` is kept for ever.
    updated    bigint      NOT NULL,
    expires    bigint,
    -- For people.
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
INSERT INTO {s}.store (format) VALUES (1);
