//! Holds up statements at the server, so that the calls of other threads are collected into groups.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use oncekey::Engine;

use crate::engines::{Texts, claimed, texts};
use crate::threads::Sleeper;
use crate::{new_schema, open, shared, until};

/// Selects the sessions that wait at a gate.
const AT_GATE: &str = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%{s}%'";

/// A store with triggers: changes of keys that contain a *shut* name wait until the test opens that name, and each
/// statement counts its rows.
pub(crate) struct Gate {
    pub(crate) schema: String,
}

impl Gate {
    /// Opens a new store that has a gate.
    pub(crate) fn new_store() -> (Engine, Self) {
        let schema = new_schema();
        let engine = open(&schema);
        let gate = Self::add(&schema, &engine);
        (engine, gate)
    }

    /// Adds the gate to a store that is open, and waits until there are groups.
    pub(crate) fn add(schema: &str, engine: &Engine) -> Self {
        let gate = Self { schema: schema.to_owned() };
        gate.sql(
            "CREATE TABLE {s}.shut (name text);
             CREATE FUNCTION {s}.wait() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN WHILE EXISTS (SELECT FROM {s}.shut WHERE position(convert_to(name, ''UTF8'') IN NEW.key) > 0) LOOP
                     PERFORM pg_sleep(0.002);
                  END LOOP; RETURN NEW; END';
             CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON {s}.records FOR EACH ROW EXECUTE FUNCTION {s}.wait();
             CREATE TABLE {s}.sizes (kind text, keys bigint);
             CREATE FUNCTION {s}.count() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO {s}.sizes SELECT TG_OP, count(*) FROM new; RETURN NULL; END';
             CREATE TRIGGER inserted AFTER INSERT ON {s}.records REFERENCING NEW TABLE AS new FOR EACH STATEMENT
                 EXECUTE FUNCTION {s}.count();
             CREATE TRIGGER updated AFTER UPDATE ON {s}.records REFERENCING NEW TABLE AS new FOR EACH STATEMENT
                 EXECUTE FUNCTION {s}.count()",
        );
        gate.connect(engine);
        gate
    }

    pub(crate) fn sql(&self, text: &str) -> String {
        shared().sql(&text.replace("{s}", &format!("\"{}\"", self.schema)))
    }

    /// Makes begins and endings until there were groups of both.
    pub(crate) fn connect(&self, engine: &Engine) {
        let texts = texts(engine);
        let number = AtomicUsize::new(0);
        let cycle = || {
            let key = format!("connects {}", number.fetch_add(1, Ordering::Relaxed));
            drop(claimed(texts.begin(key).unwrap()).release().unwrap());
        };
        until(|| {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(cycle);
                }
            });
            self.largest("INSERT") > 1 && self.largest("UPDATE") > 1
        });
        self.sql("DELETE FROM {s}.sizes");
    }

    pub(crate) fn shut(&self, name: &str) {
        self.sql(&format!("INSERT INTO {{s}}.shut VALUES ('{name}')"));
    }

    pub(crate) fn open(&self, name: &str) {
        self.sql(&format!("DELETE FROM {{s}}.shut WHERE name = '{name}'"));
    }

    /// Returns the count of the expression `then` over the statements that wait at a gate and contain this word.
    pub(crate) fn waiting(&self, word: &str, then: &str) -> usize {
        self.sql(&format!("SELECT count({then}) {AT_GATE} AND query LIKE '%{word}%'")).parse().unwrap()
    }

    /// Ends a session that waits at a gate.
    pub(crate) fn end_one(&self) {
        until(|| self.sql(&format!("SELECT pg_terminate_backend(pid) FROM (SELECT pid {AT_GATE} LIMIT 1) p")) == "t");
    }

    pub(crate) fn largest(&self, kind: &str) -> usize {
        self.sql(&format!("SELECT COALESCE(max(keys), 0) FROM {{s}}.sizes WHERE kind = '{kind}'")).parse().unwrap()
    }
}

pub(crate) type Call<'a, T> = Box<dyn FnOnce() -> T + Send + 'a>;

/// The number of sessions of the committer.
const SESSIONS: usize = 2;

/// Shuts the gate, and makes a call for each session, whose key contains the name `gate`. Returns when all sessions wait.
pub(crate) fn occupy<'scope>(
    scope: &'scope Scope<'scope, '_>,
    gate: &Gate,
    call: &'scope (impl Fn(usize) + Sync),
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    gate.shut("gate");
    let start = |session| {
        let thread = scope.spawn(move || call(session));
        // One after the other: two calls that wait for a session would share it.
        until(|| gate.waiting("", "*") > session);
        thread
    };
    (0..SESSIONS).map(start).collect()
}

/// Runs the calls while all sessions are occupied by `first`. When all of them wait, opens the gate and runs `then`.
/// Returns the results of the calls.
pub(crate) fn together<T: Send>(
    gate: &Gate,
    first: impl Fn(usize) + Sync,
    calls: Vec<Call<'_, T>>,
    then: impl FnOnce(),
) -> Vec<T> {
    std::thread::scope(|scope| {
        let occupied = occupy(scope, gate, &first);
        let open = || {
            gate.open("gate");
            then();
        };
        let answers = queued(calls, open);
        for thread in occupied {
            thread.join().unwrap();
        }
        answers
    })
}

/// Runs the calls while all sessions are occupied. When all of them wait, runs `then`, which opens the gate. Returns the
/// results of the calls.
pub(crate) fn queued<T: Send>(calls: Vec<Call<'_, T>>, then: impl FnOnce()) -> Vec<T> {
    let (sleepers, count) = (Mutex::new(Vec::new()), calls.len());
    let run = |call: Call<'_, T>| {
        sleepers.lock().unwrap().push(Sleeper::me());
        call()
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = calls.into_iter().map(|call| scope.spawn(move || run(call))).collect();
        until(|| {
            let sleepers = sleepers.lock().unwrap();
            // The drop of a claim ends after a second.
            let ended = threads.iter().filter(|thread| thread.is_finished()).count();
            sleepers.len() == count && sleepers.iter().filter(|sleeper| sleeper.sleeps()).count() + ended >= count
        });
        then();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Begins a key that waits at the gate.
pub(crate) fn begin_at_gate(texts: &Texts) -> impl Fn(usize) + Sync {
    |session| drop(claimed(texts.begin(format!("gate {session}")).unwrap()))
}

/// Ends a claim whose key waits at the gate.
pub(crate) fn end_at_gate(texts: &Texts) -> impl Fn(usize) + Sync {
    let claims: [_; SESSIONS] =
        std::array::from_fn(|session| Mutex::new(Some(claimed(texts.begin(format!("gate {session}")).unwrap()))));
    move |session| {
        let claim = claims[session].lock().unwrap().take().unwrap();
        drop(claim.succeed(&"done".to_owned()).unwrap());
    }
}
