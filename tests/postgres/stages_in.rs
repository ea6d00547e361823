//! Stages in transactions of the user's own client.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use oncekey::clock::ManualClock;
use oncekey::sql::is_conflict;
use oncekey::sql::postgres::{Client, Error as SqlError, Transaction};
use oncekey::stage::{Next, PhaseError, STARTED};
use oncekey::table::{Isolation, PhaseOptions};
use oncekey::{
    Begin, Claim, Engine, Error, ErrorKind, Manager, ManagerOptions, OnInterrupted, Status, admin::Event,
    admin::RecordFilter,
};

use crate::engines::{Texts, claimed, texts};
use crate::{client, new_schema, open, options, shared, until};

/// The error type of a service.
pub(crate) type Boxed = Box<dyn std::error::Error + Send + Sync>;
type Claimed = Claim<String, String>;

/// A store, a table of the user and a client.
pub(crate) struct Shop {
    pub(crate) schema: String,
    pub(crate) engine: Engine,
    pub(crate) client: Client,
}

impl Shop {
    pub(crate) fn new() -> Self {
        let schema = new_schema();
        let engine = open(&schema);
        Self::of(schema, engine)
    }

    pub(crate) fn of(schema: String, engine: Engine) -> Self {
        let client = client(&shared().url());
        shared().sql(&format!("CREATE TABLE \"{schema}\".effects (key text)"));
        Self { schema, engine, client }
    }

    pub(crate) fn texts(&self) -> Texts {
        let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
        self.engine.manager_with("m", options).unwrap()
    }

    pub(crate) fn begin(&self, key: &str) -> Claimed {
        claimed(self.texts().begin(key).unwrap())
    }

    pub(crate) fn insert(&self, key: &str) -> String {
        format!("INSERT INTO \"{}\".effects VALUES ('{key}')", self.schema)
    }

    /// Returns the number of the user's rows with this key.
    pub(crate) fn effects(&self, key: &str) -> String {
        shared().sql(&format!("SELECT count(*) FROM \"{}\".effects WHERE key = '{key}'", self.schema))
    }

    pub(crate) fn point(&self, key: &str) -> String {
        self.texts().get(key).unwrap().unwrap().info().recovery_point().to_owned()
    }
}

#[track_caller]
pub(crate) fn is_kind<T: std::fmt::Debug>(done: Result<T, Boxed>, kind: ErrorKind, names: &str) {
    let error = done.unwrap_err();
    let error = error.downcast_ref::<Error>().unwrap_or_else(|| panic!("not of the engine: {error}"));
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(names), "{error}");
}

#[test]
fn rows_and_record_change_together() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let insert = shop.insert("k");
    let events = shop.engine.events();
    claim
        .work_stage_in(&mut shop.client, |tx| {
            tx.execute(&insert, &[])?;
            Ok::<_, Boxed>(Next::advance_with("reserved", "two apples"))
        })
        .unwrap();
    assert_eq!((claim.recovery_point(), claim.checkpoint()), ("reserved", Some(&b"two apples"[..])));
    assert_eq!((shop.effects("k"), shop.point("k")), ("1".to_owned(), "reserved".to_owned()));
    // The record stays, and only the rows change.
    claim
        .work_stage_in(&mut shop.client, |tx| {
            tx.execute(&insert, &[])?;
            Ok::<_, Boxed>(Next::Stay)
        })
        .unwrap();
    assert_eq!((shop.effects("k"), claim.recovery_point()), ("2".to_owned(), "reserved"));
    let token = claim.token();
    claim.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::Succeed("done".to_owned()))).unwrap();
    assert_eq!(claim.token(), token);
    let Begin::Replay(record) = shop.texts().begin("k").unwrap() else { panic!("it has its answer") };
    assert_eq!(record.into_outcome(), Ok("done".to_owned()));
    assert_eq!(claim.into_finished().unwrap().into_outcome(), Ok("done".to_owned()));
    let ended = |event: Event| matches!(event, Event::Ended(info) if info.status() == Status::Succeeded);
    assert!(events.ready().any(ended), "subscribers are notified");
    assert_eq!(shop.engine.stats().in_progress, 0);

    let mut claim = shop.begin("fails");
    claim.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::Fail("sold out".to_owned()))).unwrap();
    let outcome = shop.texts().get("fails").unwrap().unwrap().into_outcome();
    assert_eq!(outcome, Some(Err("sold out".to_owned())));
}

#[test]
fn an_error_or_a_panic_rolls_back_and_the_claim_goes_on() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let insert = shop.insert("k");
    let failed = claim.work_stage_in(&mut shop.client, |tx| {
        tx.execute(&insert, &[])?;
        Err::<Next<String, String>, Boxed>("no".into())
    });
    assert_eq!(failed.unwrap_err().to_string(), "no");
    // An error of the server, too.
    let failed = claim.work_stage_in(&mut shop.client, |tx| {
        tx.execute(&insert, &[])?;
        tx.execute("SELECT 1 / 0", &[])?;
        Ok::<_, Boxed>(Next::advance("on"))
    });
    assert!(failed.unwrap_err().downcast_ref::<SqlError>().is_some());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        claim.work_stage_in(&mut shop.client, |tx| -> Result<Next<String, String>, Boxed> {
            tx.execute(&insert, &[])?;
            panic!("a bug");
        })
    }));
    assert!(panicked.is_err());
    // Outcomes that cannot be stored.
    let large = "x".repeat(2 << 20);
    let failed = claim.work_stage_in(&mut shop.client, |tx| {
        tx.execute(&insert, &[])?;
        Ok::<_, Boxed>(Next::Succeed(large.clone()))
    });
    is_kind(failed, ErrorKind::TooLarge, "");
    let failed = claim.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::advance("")));
    is_kind(failed, ErrorKind::InvalidName, "");
    assert_eq!((shop.effects("k"), claim.recovery_point()), ("0".to_owned(), STARTED));
    claim
        .work_stage_in(&mut shop.client, |tx| {
            tx.execute(&insert, &[])?;
            Ok::<_, Boxed>(Next::advance("on"))
        })
        .unwrap();
    assert_eq!(shop.effects("k"), "1");
    claim.succeed(&"done".to_owned()).unwrap();
}

#[test]
fn a_lost_claim_commits_nothing() {
    let mut shop = Shop::new();
    let insert = shop.insert("k");
    let stage = |claim: &mut Claimed, client: &mut Client| {
        claim.work_stage_in(client, |tx| {
            tx.execute(&insert, &[])?;
            Ok::<_, Boxed>(Next::advance("late"))
        })
    };
    // Revoked, and taken over by another engine.
    let mut claim = shop.begin("k");
    shop.texts().revoke("k").unwrap();
    is_kind(stage(&mut claim, &mut shop.client), ErrorKind::ClaimLost, "k");
    let other = open(&shop.schema);
    let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    let its: Texts = other.manager_with("m", options).unwrap();
    let successor = claimed(its.begin("k").unwrap());
    is_kind(stage(&mut claim, &mut shop.client), ErrorKind::ClaimLost, "k");
    let refused = claim.stage_sql(Next::advance("late")).map_err(Boxed::from);
    is_kind(refused, ErrorKind::ClaimLost, "k");
    successor.succeed(&"of the successor".to_owned()).unwrap();
    is_kind(stage(&mut claim, &mut shop.client), ErrorKind::ClaimLost, "k");
    its.remove("k").unwrap();
    is_kind(stage(&mut claim, &mut shop.client), ErrorKind::ClaimLost, "k");
    // After its end.
    let mut ended = shop.begin("ended");
    ended.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::Succeed("done".to_owned()))).unwrap();
    is_kind(stage(&mut ended, &mut shop.client), ErrorKind::ClaimLost, "Succeeded");
    assert_eq!(shop.effects("k"), "0");
}

#[test]
fn a_revoke_waits_for_a_stage_and_other_calls_do_not() {
    let mut shop = Shop::new();
    let other = open(&shop.schema);
    let mut claim = shop.begin("k");
    let insert = shop.insert("k");
    std::thread::scope(|scope| {
        let revoke = Cell::new(None);
        claim
            .work_stage_in(&mut shop.client, |tx| {
                tx.execute(&insert, &[])?;
                assert!(matches!(texts(&other).begin("k").unwrap(), Begin::InProgress(_)));
                assert_eq!(other.records(RecordFilter::new()).unwrap().count(), 1);
                other.verify().unwrap();
                other.compact_now().unwrap();
                drop(open(&shop.schema));
                revoke.set(Some(scope.spawn(|| texts(&other).revoke("k"))));
                let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
                until(|| shared().sql(waits) != "0");
                Ok::<_, Boxed>(Next::advance("reserved"))
            })
            .unwrap();
        revoke.take().unwrap().join().unwrap().unwrap();
    });
    let record = texts(&other).get("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().recovery_point()), (Status::Interrupted, "reserved"));
    assert_eq!(shop.effects("k"), "1");
}

#[test]
fn the_closure_may_not_call_its_engine() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let texts = shop.texts();
    let failed = claim.work_stage_in(&mut shop.client, |_| {
        texts.revoke("k")?;
        Ok::<_, Boxed>(Next::Stay)
    });
    is_kind(failed, ErrorKind::InsideTransaction, "");
}

#[test]
fn the_transaction_must_last_until_the_end_of_the_stage() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    for end in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN"] {
        let ended = claim.work_stage_in(&mut shop.client, |tx| {
            tx.batch_execute(end)?;
            Ok::<_, Boxed>(Next::advance("on"))
        });
        is_kind(ended, ErrorKind::InvalidOptions, "ended");
        shop.client.batch_execute("ROLLBACK").unwrap();
    }
    // A failed statement whose error the closure hides.
    let insert = shop.insert("k");
    let hidden = claim.work_stage_in(&mut shop.client, |tx| {
        tx.execute(&insert, &[])?;
        let _ = tx.execute("SELECT 1 / 0", &[]);
        Ok::<_, Boxed>(Next::advance("on"))
    });
    is_kind(hidden, ErrorKind::InvalidOptions, "failed");
    // In a savepoint, a failed statement does no harm.
    claim
        .work_stage_in(&mut shop.client, |tx| {
            let mut inner = tx.transaction()?;
            let _ = inner.execute("SELECT 1 / 0", &[]);
            drop(inner);
            tx.execute(&insert, &[])?;
            Ok::<_, Boxed>(Next::advance("on"))
        })
        .unwrap();
    assert_eq!(shop.effects("k"), "1");
    // A constraint that is checked at the commit.
    let schema = &shop.schema;
    shared().sql(&format!("CREATE TABLE \"{schema}\".once (key text UNIQUE DEFERRABLE INITIALLY DEFERRED)"));
    let twice = format!("INSERT INTO \"{schema}\".once VALUES ('k'), ('k')");
    let refused = claim.work_stage_in(&mut shop.client, |tx| {
        tx.execute(&twice, &[])?;
        Ok::<_, Boxed>(Next::advance("further"))
    });
    is_kind(refused, ErrorKind::Unavailable, "once_key_key");
    assert_eq!((claim.recovery_point(), shop.point("k").as_str()), ("on", "on"));
    claim.succeed(&"done".to_owned()).unwrap();
}

#[test]
fn clients_of_other_databases_and_stores_are_refused() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let mut refused = |url: &str, names: &str| {
        let stage = claim.work_stage_in(&mut client(url), |_| Ok::<_, Boxed>(Next::advance("on")));
        is_kind(stage, ErrorKind::InvalidOptions, names);
    };
    let url = shared().url();
    refused(&url.replace("dbname=postgres", "dbname=template1"), "another database");
    let elsewhere = format!("elsewhere_{}", shop.schema.replace('-', "_"));
    shared().sql(&format!("CREATE DATABASE {elsewhere} TEMPLATE template0"));
    let url_of_it = url.replace("dbname=postgres", &format!("dbname={elsewhere}"));
    // A store in a schema of the same name.
    drop(options(&shop.schema).connect(&url_of_it).unwrap());
    refused(&url_of_it, "another store");
    shared().sql(&format!("CREATE ROLE \"user-{}\" LOGIN", shop.schema));
    let app = url.replace("user=oncekey", &format!("user=user-{}", shop.schema));
    refused(&app, "permission denied");
    refused(&format!("{url} options='-c default_transaction_read_only=on'"), "read only");
    // The privileges of the documentation are enough.
    let schema = &shop.schema;
    shared().sql(&format!(
        "GRANT USAGE ON SCHEMA \"{schema}\" TO \"user-{schema}\"; GRANT SELECT ON \"{schema}\".store TO \"user-{schema}\";
         GRANT SELECT, UPDATE ON \"{schema}\".records TO \"user-{schema}\"; GRANT INSERT ON \"{schema}\".effects TO \"user-{schema}\""
    ));
    let insert = shop.insert("k");
    claim
        .work_stage_in(&mut client(&app), |tx| {
            tx.execute(&insert, &[])?;
            Ok::<_, Boxed>(Next::advance("on"))
        })
        .unwrap();
    assert_eq!(shop.effects("k"), "1");
    // An embedded store has no database.
    let local = Engine::temporary().unwrap();
    let mut claim = claimed(texts(&local).begin("k").unwrap());
    let stage = claim.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::advance("on")));
    is_kind(stage, ErrorKind::InvalidOptions, "not in a database");
    is_kind(claim.stage_sql(Next::Stay).map_err(Boxed::from), ErrorKind::InvalidOptions, "not in a database");
}

#[test]
fn a_client_without_a_connection_changes_nothing() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let pid: i32 = shop.client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    shared().sql(&format!("SELECT pg_terminate_backend({pid})"));
    let stage =
        |client: &mut Client, claim: &mut Claimed| claim.work_stage_in(client, |_| Ok::<_, Boxed>(Next::advance("on")));
    is_kind(stage(&mut shop.client, &mut claim), ErrorKind::Unavailable, "lost its connection");
    stage(&mut client(&shared().url()), &mut claim).unwrap();
    assert_eq!(shop.point("k"), "on");
}

/// Two transactions read both items and write one each: one of them must run again.
#[test]
fn a_serializable_stage_runs_again_after_a_conflict() {
    let mut shop = Shop::new();
    let schema = &shop.schema;
    shared().sql(&format!(
        "CREATE TABLE \"{schema}\".stock (item text, n int); INSERT INTO \"{schema}\".stock VALUES ('a', 1), ('b', 1)"
    ));
    let (sum, take) = (
        format!("SELECT sum(n) FROM \"{schema}\".stock"),
        format!("UPDATE \"{schema}\".stock SET n = n - 1 WHERE item = 'a'"),
    );
    let other = format!(
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(n) FROM \"{schema}\".stock;
         UPDATE \"{schema}\".stock SET n = n - 1 WHERE item = 'b'; COMMIT"
    );
    // An item may be taken if two are left. The closure returns a conflict as a boxed error, or in a type of its own
    // that `should_retry` judges.
    let run = |key: &str, claim: &mut Claimed, client: &mut Client, options: Option<&PhaseOptions<'_, MyError>>| {
        shared().sql(&format!("UPDATE \"{schema}\".stock SET n = 1"));
        let runs = Cell::new(0);
        let stage = |tx: &mut Transaction<'_>| -> Result<Next<String, String>, SqlError> {
            runs.set(runs.get() + 1);
            let left: i64 = tx.query_one(&sum, &[])?.get(0);
            if runs.get() == 1 {
                shared().sql(&other);
            }
            if left < 2 {
                return Ok(Next::Fail("sold out".to_owned()));
            }
            tx.execute(&take, &[])?;
            Ok(Next::Succeed(key.to_owned()))
        };
        match options {
            Some(options) => claim.work_stage_in_with(client, options, |tx| stage(tx).map_err(MyError::Sql)).unwrap(),
            None => claim.work_stage_in(client, |tx| stage(tx).map_err(Boxed::from)).unwrap(),
        }
        runs.get()
    };
    let mut claim = shop.begin("boxed");
    assert_eq!(run("boxed", &mut claim, &mut shop.client, None), 2);
    let mut claim = shop.begin("judged");
    let retries =
        PhaseOptions::new().should_retry(|error: &MyError| matches!(error, MyError::Sql(error) if is_conflict(error)));
    assert_eq!(run("judged", &mut claim, &mut shop.client, Some(&retries)), 2);
    for key in ["boxed", "judged"] {
        let outcome = shop.texts().get(key).unwrap().unwrap().into_outcome();
        assert_eq!(outcome, Some(Err("sold out".to_owned())), "{key}");
    }
    // Under a weaker level there is no conflict.
    let mut claim = shop.begin("weaker");
    let weaker = PhaseOptions::new().isolation(Isolation::ReadCommitted);
    assert_eq!(run("weaker", &mut claim, &mut shop.client, Some(&weaker)), 1);
    let level = Cell::new(String::new());
    let mut claim = shop.begin("level");
    let repeatable = PhaseOptions::new().isolation(Isolation::RepeatableRead);
    claim
        .work_stage_in_with(&mut shop.client, &repeatable, |tx| {
            level.set(tx.query_one("SHOW transaction_isolation", &[]).map_err(PhaseError::User)?.get(0));
            Ok::<_, PhaseError<SqlError>>(Next::Stay)
        })
        .unwrap();
    assert_eq!(level.take(), "repeatable read");
    assert!(shop.engine.stats().transaction_reruns >= 2);
}

#[derive(Debug)]
enum MyError {
    Sql(SqlError),
    Engine(#[expect(dead_code, reason = "it is printed")] Error),
}

impl From<Error> for MyError {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

#[test]
fn an_answer_is_durable_whatever_the_client_s_session_says() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    let shown = Cell::new(String::new());
    shop.client.batch_execute("SET synchronous_commit = off").unwrap();
    claim
        .work_stage_in(&mut shop.client, |tx| {
            shown.set(tx.query_one("SHOW synchronous_commit", &[])?.get(0));
            tx.batch_execute(
                "CREATE TEMP TABLE seen (setting text) ON COMMIT PRESERVE ROWS;
                 CREATE FUNCTION pg_temp.note() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END';
                 CREATE TEMP TABLE late (n int);
                 CREATE CONSTRAINT TRIGGER note AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION pg_temp.note();
                 INSERT INTO late VALUES (1)",
            )?;
            Ok::<_, Boxed>(Next::advance("on"))
        })
        .unwrap();
    assert_eq!(shown.take(), "off");
    let at_commit: String = shop.client.query_one("SELECT setting FROM seen", &[]).unwrap().get(0);
    assert_eq!(at_commit, "on");
    let after: String = shop.client.query_one("SHOW synchronous_commit", &[]).unwrap().get(0);
    assert_eq!(after, "off", "the session keeps its setting");
}

/// The snapshot of the transaction is older than its commit.
#[test]
fn the_ttl_of_an_outcome_starts_at_the_end_of_the_stage() {
    let (schema, clock) = (new_schema(), ManualClock::new());
    let engine = options(&schema).clock(clock.clone()).connect(&shared().url()).unwrap();
    let mut shop = Shop::of(schema, engine);
    let ttl = ManagerOptions::new().success_ttl(Duration::from_secs(10));
    let texts: Texts = shop.engine.manager_with("m", ttl).unwrap();
    for isolation in [Isolation::ReadCommitted, Isolation::Serializable] {
        let key = format!("{isolation:?}");
        let mut claim = claimed(texts.begin(key.as_str()).unwrap());
        let options = PhaseOptions::new().isolation(isolation);
        claim
            .work_stage_in_with(&mut shop.client, &options, |_| {
                clock.advance(Duration::from_secs(7));
                Ok::<_, Boxed>(Next::Succeed(String::new()))
            })
            .unwrap();
        clock.advance(Duration::from_millis(9_999));
        assert!(texts.get(key.as_str()).unwrap().is_some(), "{key} has not expired");
        clock.advance(Duration::from_millis(1));
        assert!(texts.get(key.as_str()).unwrap().is_none(), "{key} has expired");
    }
}

/// While a stage runs, the engine loses its session: it has another one at once, and the claim is adopted afterwards.
#[test]
fn a_claim_in_a_stage_is_adopted_after_the_stage() {
    let mut shop = Shop::new();
    let other = open(&shop.schema);
    let (mut claim, rest) = (shop.begin("k"), shop.begin("rest"));
    let insert = shop.insert("k");
    let owner = |key: &str| {
        let has = format!("position('{key}'::bytea in key) > 0");
        shared().sql(&format!("SELECT owner FROM \"{}\".records WHERE {has}", shop.schema))
    };
    claim
        .work_stage_in(&mut shop.client, |tx| {
            tx.execute(&insert, &[])?;
            crate::faults::end_keeper(&shop.schema, 1);
            until(|| owner("rest") == "3");
            assert!(matches!(texts(&other).begin("k").unwrap(), Begin::InProgress(_)), "its row is locked");
            Ok::<_, Boxed>(Next::advance("reserved"))
        })
        .unwrap();
    until(|| owner("k") == "3");
    assert!(matches!(texts(&other).begin("k").unwrap(), Begin::InProgress(_)), "it was adopted");
    claim.succeed(&"done".to_owned()).unwrap();
    rest.succeed(&"done".to_owned()).unwrap();
}

#[test]
fn a_stage_ends_a_claim_also_after_a_close_of_its_engine() {
    let mut shop = Shop::new();
    let mut claim = shop.begin("k");
    assert_eq!(shop.engine.close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
    claim.work_stage_in(&mut shop.client, |_| Ok::<_, Boxed>(Next::Succeed("done".to_owned()))).unwrap();
    let engine = open(&shop.schema);
    let texts: Manager<String, String> = engine.manager("m").unwrap();
    assert_eq!(texts.get("k").unwrap().unwrap().into_outcome(), Some(Ok("done".to_owned())));
}
