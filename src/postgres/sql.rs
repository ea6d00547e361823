//! The prepared statements of calls. Each takes one round trip, and reads records and rows by the primary key or by one
//! index.
//!
//! They run under READ COMMITTED, except those of transactions. A statement that changes a record does so only if its
//! row still has the revision that was read.

/// The tables, with `{s}` for the quoted name of the schema.
pub(super) const SCHEMA: &str = include_str!("schema.sql");

/// A statement, which each session prepares once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Query {
    Time,
    Tick,
    Read,
    ReadWithoutOutcome,
    Insert,
    Update,
    InsertMany,
    UpdateMany,
    Declare,
    Find,
    Draw,
    Claimed,
    Staged,
    Withdraw,
    Keep,
    Absent,
    ReadRow,
    PutRow,
    RemoveRow,
    Records,
    Unfinished,
    Rows,
    Awaited,
    TryCompaction,
    AwaitCompaction,
    Expired,
    Delete,
    NextDue,
}

impl Query {
    /// Returns the text for tables in the schema with this quoted name.
    pub(super) fn text(self, schema: &str) -> String {
        let text = match self {
            Self::Time => "SELECT tick, time FROM {s}.store",
            // Fenced by the tick: of all engines that read one tick, only one advances the time.
            Self::Tick => "UPDATE {s}.store SET tick = tick + 1, time = time + $2 WHERE tick = $1 RETURNING tick, time",
            Self::Read => return READ.replace("{outcome}", "r.outcome").replace("{s}", schema),
            Self::ReadWithoutOutcome => return READ.replace("{outcome}", "NULL::bytea").replace("{s}", schema),
            Self::Insert => INSERT,
            Self::Update => return update("", "", "", "").replace("{s}", schema),
            Self::Declare => return declare().replace("{s}", schema),
            Self::InsertMany => INSERT_MANY,
            Self::UpdateMany => UPDATE_MANY,
            Self::Find => {
                "SELECT generation, revision, token, updated, expires FROM {s}.records
                 WHERE manager = $1 AND key = $2 AND change = $3"
            }
            Self::Draw => "SELECT nextval('{s}.number'), time FROM {s}.store",
            Self::Claimed => return fence(schema, false),
            Self::Staged => STAGED,
            Self::Withdraw => WITHDRAW,
            // Fails under SERIALIZABLE if the row has changed since it was read.
            Self::Keep => "SELECT FROM {s}.records WHERE manager = $1 AND key = $2 FOR SHARE",
            // The same for a key that was read and had no row.
            Self::Absent => {
                "INSERT INTO {s}.records (manager, key, state, generation, revision, token, owner, change, updated,
                                          expires, body)
                 SELECT $1, $2, 0, n, n, n, 0, 0, 0, $3, '' FROM (SELECT nextval('{s}.number') AS n) n
                 ON CONFLICT (manager, key) DO NOTHING"
            }
            Self::ReadRow => "SELECT value FROM {s}.rows WHERE \"table\" = $1 AND key = $2",
            Self::PutRow => {
                "INSERT INTO {s}.rows (\"table\", key, value) VALUES ($1, $2, $3)
                 ON CONFLICT (\"table\", key) DO UPDATE SET value = excluded.value"
            }
            Self::RemoveRow => "DELETE FROM {s}.rows WHERE \"table\" = $1 AND key = $2",
            Self::Records => {
                "SELECT manager, key FROM {s}.records WHERE (manager, key) >= ($1, $2) AND (manager, key) < ($3, $4)
                 AND state > 0 ORDER BY manager, key LIMIT $5"
            }
            Self::Unfinished => {
                "SELECT manager, key FROM {s}.records WHERE (manager, key) >= ($1, $2) AND (manager, key) < ($3, $4)
                 AND state IN (1, 4, 5) ORDER BY manager, key LIMIT $5"
            }
            Self::Rows => {
                "SELECT \"table\", key FROM {s}.rows WHERE (\"table\", key) >= ($1, $2)
                 AND (\"table\", key) < ($3, $4) ORDER BY \"table\", key LIMIT $5"
            }
            Self::Awaited => {
                "SELECT r.manager, r.key, r.revision, r.state, r.state = 1 AND NOT CASE WHEN r.state = 1 AND r.owner <> $3
                        THEN pg_try_advisory_xact_lock_shared($4, r.owner) ELSE false END
                 FROM unnest($1::text[], $2::bytea[]) a (manager, key)
                 JOIN {s}.records r ON r.manager = a.manager AND r.key = a.key"
            }
            // No incarnation has the number 0. The end of the transaction frees the lock.
            Self::TryCompaction => "SELECT pg_try_advisory_xact_lock($1::integer, 0)",
            Self::AwaitCompaction => "SELECT pg_advisory_xact_lock($1::integer, 0)",
            // Rows that a transaction has locked are left for the next pass: no two wait for each other.
            Self::Expired => {
                "SELECT r.manager, r.key, r.state, r.generation, r.revision, r.token, r.updated, r.expires, r.body,
                        octet_length(r.outcome)
                 FROM {s}.records r WHERE r.expires <= $1 ORDER BY r.expires LIMIT $2
                 FOR UPDATE SKIP LOCKED"
            }
            Self::Delete => "DELETE FROM {s}.records WHERE manager = $1 AND key = $2 AND revision = $3",
            Self::NextDue => "SELECT min(expires) FROM {s}.records WHERE expires IS NOT NULL",
        };
        text.replace("{s}", schema)
    }
}

/// Reads the record and the time, and returns a row in any case. If another engine owns the record, the row tells whether
/// the lock of that owner is free. It always tells whether the lock of the own incarnation is free. That is $3, or 0 if
/// there is none.
const READ: &str = "
SELECT t.time, r.state, r.generation, r.revision, r.token, r.updated, r.expires, r.body, {outcome}, r.owner,
       CASE WHEN r.state = 1 AND r.owner <> $3 THEN pg_try_advisory_xact_lock_shared($4, r.owner) ELSE false END,
       CASE WHEN r.state = 1 AND r.owner <> $3 THEN (SELECT i.server FROM {s}.incarnations i WHERE i.id = r.owner) END,
       octet_length(r.outcome),
       CASE WHEN $3 > 0 THEN pg_try_advisory_xact_lock_shared($4, $3) ELSE false END
FROM {s}.store t LEFT JOIN {s}.records r ON r.manager = $1 AND r.key = $2";

/// Reads the numbers that tell whether a stage was committed.
const STAGED: &str = "
SELECT generation, revision, token, updated, expires, staged, change FROM {s}.records WHERE manager = $1 AND key = $2";

/// Gives the row another revision, after the end of a transaction that has locked it. A later statement that expects
/// the old revision then changes nothing.
const WITHDRAW: &str = "
UPDATE {s}.records SET revision = nextval('{s}.number'), change = $4
WHERE manager = $1 AND key = $2 AND revision = $3";

// The parameters of `INSERT` and `UPDATE`: $1 manager, $2 key, $3 state, $4 generation, $5 token (0: the number of this
// commit), $6 owner, $7 change, $8 updated, $9 expires, $10 the time of the decision, $11 the milliseconds that are
// added to the times, $12 whether `expires` stays as it is, $13 body, $14 outcome, $15 the time from which the commit
// is refused, $16 the class of the locks, $17 the incarnation whose claim this is, and whose lock must be held.

/// Adds a record if its key has no row. If the key has one, or if a condition does not hold, the statement returns no
/// row and draws no number. So a begin of a key that has a record writes nothing.
const INSERT: &str = "
INSERT INTO {s}.records
       (manager, key, state, generation, revision, token, owner, change, updated, expires, body, outcome)
SELECT $1::text, $2::bytea, $3::smallint, CASE WHEN $4::bigint = 0 THEN n.number ELSE $4::bigint END, n.number,
       CASE WHEN $5::bigint = 0 THEN n.number ELSE $5::bigint END, $6::integer, $7::bigint,
       $8::bigint + n.time - $10::bigint + $11::bigint,
       CASE WHEN $12::boolean THEN $9::bigint ELSE $9::bigint + n.time - $10::bigint + $11::bigint END,
       $13::bytea, $14::bytea
FROM (SELECT nextval('{s}.number') AS number, time FROM {s}.store
      WHERE ($15::bigint IS NULL OR time < $15::bigint)
        AND NOT EXISTS (SELECT FROM {s}.records WHERE manager = $1::text AND key = $2::bytea)
        AND ($17::integer IS NULL OR NOT pg_try_advisory_xact_lock_shared($16::integer, $17::integer))) n
ON CONFLICT (manager, key) DO NOTHING
RETURNING generation, revision, token, updated, expires";

/// Returns the statement that changes the row with the revision $18.
fn update(condition: &str, held: &str, from: &str, and: &str) -> String {
    format!(
        "WITH n AS MATERIALIZED (
    SELECT nextval('{{s}}.number') AS number, time FROM {{s}}.store
    WHERE ($15::bigint IS NULL OR time < $15::bigint)
      AND ($17::integer IS NULL OR NOT pg_try_advisory_xact_lock_shared($16::integer, $17::integer)){condition}){held}
UPDATE {{s}}.records r SET
    state = $3::smallint, generation = CASE WHEN $4::bigint = 0 THEN n.number ELSE $4::bigint END, revision = n.number,
    token = CASE WHEN $5::bigint = 0 THEN n.number ELSE $5::bigint END,
    owner = COALESCE($6::integer, r.owner), change = $7::bigint,
    updated = $8::bigint + n.time - $10::bigint + $11::bigint,
    expires = CASE WHEN $12::boolean THEN $9::bigint ELSE $9::bigint + n.time - $10::bigint + $11::bigint END,
    updated_at = now(), body = $13::bytea, outcome = $14::bytea
FROM n{from} WHERE r.manager = $1::text AND r.key = $2::bytea AND r.revision = $18::bigint{and}
RETURNING r.generation, r.revision, r.token, r.updated, r.expires"
    )
}

/// Returns the statement that changes the row as [`update`] does, if $19 is its owner and holds no lock. A row that a
/// transaction has locked is left alone: its owner may be alive and in a stage.
fn declare() -> String {
    update(
        "\n      AND pg_try_advisory_xact_lock_shared($16::integer, $19::integer)",
        ", held AS MATERIALIZED (
    SELECT r.revision FROM {s}.records r WHERE r.manager = $1::text AND r.key = $2::bytea AND r.revision = $18::bigint
    FOR UPDATE SKIP LOCKED)",
        ", held",
        " AND r.owner = $19::integer",
    )
}

/// Returns the statement that reads the record of a key in the store $3, without its outcome. `locks` selects whether
/// the row is locked until the end of the transaction, whose number is then returned too.
pub(super) fn fence(schema: &str, locks: bool) -> String {
    let (transaction, lock) = if locks { ("txid_current()", " FOR UPDATE") } else { ("NULL::bigint", "") };
    format!(
        "SELECT (SELECT time FROM {schema}.store WHERE id = $3::text::uuid), r.state, r.generation, r.revision, r.token,
                r.updated, r.expires, r.body, octet_length(r.outcome), r.staged, {transaction}
         FROM {schema}.records r WHERE r.manager = $1 AND r.key = $2{lock}"
    )
}

// The first parameters of `INSERT_MANY` and `UPDATE_MANY`, each an array: $1 managers, $2 keys, $3 changes, $4
// `updated` and $5 `expires` relative to the time of the commit, $6 bodies.

/// Adds new claims of the incarnation $8, whose lock of the class $7 must be held. Returns a row for each added claim.
///
/// With `OFFSET`, the server looks up key by key, and never reads the whole table for a join.
const INSERT_MANY: &str = "
WITH n AS MATERIALIZED (
    SELECT time FROM {s}.store WHERE NOT pg_try_advisory_xact_lock_shared($7::integer, $8::integer))
INSERT INTO {s}.records
       (manager, key, state, generation, revision, token, owner, change, updated, expires, body)
SELECT m.manager, m.key, 1, m.number, m.number, m.number, $8::integer, m.change, m.updated, m.expires, m.body
FROM (SELECT a.manager, a.key, a.change, a.updated + n.time AS updated, a.expires + n.time AS expires, a.body,
             nextval('{s}.number') AS number
      FROM n CROSS JOIN unnest($1::text[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[])
                        a (manager, key, change, updated, expires, body)
      WHERE NOT EXISTS (SELECT FROM {s}.records r WHERE r.manager = a.manager AND r.key = a.key OFFSET 0)) m
ON CONFLICT (manager, key) DO NOTHING
RETURNING change, generation, revision, token, updated, expires";

/// Changes rows that still have the revisions $11, before the times $12. The other arrays: $7 states, $8 generations,
/// $9 tokens, $10 outcomes. Returns a row for each changed one.
///
/// The rows are found first, and key by key because of `OFFSET`. Then each revision is compared again, with that of the
/// row that is changed.
const UPDATE_MANY: &str = "
WITH n AS MATERIALIZED (SELECT time FROM {s}.store)
UPDATE {s}.records r SET
    state = f.state, generation = f.generation, revision = nextval('{s}.number'), token = f.token, change = f.change,
    updated = f.updated, expires = f.expires, updated_at = now(), body = f.body, outcome = f.outcome
FROM (SELECT found.ctid, a.seen, a.state, a.generation, a.token, a.change, a.updated + n.time AS updated,
             a.expires + n.time AS expires, a.body, a.outcome
      FROM n
      CROSS JOIN unnest($1::text[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[], $7::smallint[],
                        $8::bigint[], $9::bigint[], $10::bytea[], $11::bigint[], $12::bigint[])
           a (manager, key, change, updated, expires, body, state, generation, token, outcome, seen, until)
      CROSS JOIN LATERAL (SELECT r.ctid FROM {s}.records r
                          WHERE r.manager = a.manager AND r.key = a.key AND r.revision = a.seen OFFSET 0) found
      WHERE a.until IS NULL OR n.time < a.until) f
WHERE r.ctid = f.ctid AND r.revision = f.seen
RETURNING r.change, r.generation, r.revision, r.token, r.updated, r.expires";

/// Returns a name as a quoted identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
