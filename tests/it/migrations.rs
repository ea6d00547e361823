//! Tests of records of an older schema, read after a deploy.

use std::path::Path;
use std::time::Duration;

use oncekey::{
    Engine, ErrorKind, ExecuteError, Failure, Manager, ManagerOptions, OnInterrupted, Status, Waited,
    clock::ManualClock, stage::Next,
};
use serde::{Deserialize, Serialize};

use crate::common::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt0 {
    cents: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt1 {
    cents: u64,
    currency: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt2 {
    currency: String,
    milli: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Refusal {
    code: u32,
}

fn open_at(path: &Path) -> Engine {
    open(path, &ManualClock::new())
}

/// Creates a success and a failure for each older schema.
fn older(path: &Path) {
    let engine = open_at(path);
    let payments: Manager<Receipt0, String> = engine.manager("payments").unwrap();
    claim(&payments, "won-0").succeed(&Receipt0 { cents: 10 }).unwrap();
    claim(&payments, "lost-0").fail(&"17".to_owned()).unwrap();
    let options = ManagerOptions::new().schema(1);
    let payments: Manager<Receipt1, String> = engine.manager_with("payments", options).unwrap();
    claim(&payments, "won-1").succeed(&Receipt1 { cents: 11, currency: "SEK".to_owned() }).unwrap();
    claim(&payments, "lost-1").fail(&"18".to_owned()).unwrap();
}

#[allow(clippy::needless_pass_by_value, reason = "as a migration has it")]
fn from_0(old: Receipt0) -> Receipt2 {
    Receipt2 { currency: "EUR".to_owned(), milli: old.cents * 10 }
}

fn from_1(old: Receipt1) -> Receipt2 {
    Receipt2 { currency: old.currency, milli: old.cents * 10 }
}

fn options() -> ManagerOptions {
    ManagerOptions::new()
        .schema(2)
        .migrate(0, from_0)
        .migrate(1, from_1)
        .migrate_failure(1, |old: String| Refusal { code: old.parse().unwrap_or(0) })
}

#[test]
fn outcomes_of_older_schemas_are_read_as_the_new_types_by_every_call() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path());
    let engine = open_at(dir.path());
    let payments: Manager<Receipt2, Refusal> = engine.manager_with("payments", options()).unwrap();
    let (ten, eleven) = (from_0(Receipt0 { cents: 10 }), Receipt2 { currency: "SEK".to_owned(), milli: 110 });
    for _ in 0..2 {
        let replay = payments.execute("won-0", |_| unreachable!("it has run")).unwrap();
        assert_eq!((replay.value(), replay.replayed(), replay.info().schema()), (&ten, true, 0));
        assert_eq!(payments.get("won-1").unwrap().unwrap().outcome(), Some(Ok(&eleven)));
        let Waited::Finished(done) = payments.wait("won-1", Duration::ZERO).unwrap() else { panic!("it is finished") };
        assert_eq!(done.into_outcome(), Ok(Receipt2 { currency: "SEK".to_owned(), milli: 110 }));
        let failed = payments.execute("lost-1", |_| unreachable!("it has failed")).unwrap_err();
        let ExecuteError::Failed { error, status, replayed } = failed else { panic!("{failed:?}") };
        assert_eq!((error, status, replayed), (Refusal { code: 18 }, Status::Failed, true));
    }
    // Also through a scope, a batch and a clone.
    let answers = payments.clone().execute_many([("won-0", ()), ("won-1", ())], |_, ()| unreachable!("they have run"));
    let values: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().into_value()).collect();
    assert_eq!(values, [ten, eleven]);
    // There is no migration of failures from schema 0.
    assert_eq!(payments.get("lost-0").unwrap_err().kind(), ErrorKind::TypeMismatch);
    // New outcomes have the new schema.
    assert_eq!(claim(&payments, "new").succeed(&from_0(Receipt0 { cents: 1 })).unwrap().info().schema(), 2);
}

#[test]
fn bytes_of_another_type_than_the_migration_reads_are_a_mismatch() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path());
    let engine = open_at(dir.path());
    // The schema is right, but the bytes are of another type.
    let options = ManagerOptions::new().schema(2).migrate(0, from_1);
    let payments: Manager<Receipt2> = engine.manager_with("payments", options).unwrap();
    let error = payments.get("won-0").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TypeMismatch);
    assert!(error.to_string().contains("the outcome of key won-0 of payments"), "{error}");
}

#[test]
fn migrations_that_do_not_fit_the_manager_are_rejected() {
    let (engine, _) = engine();
    let ask = |options| engine.manager_with::<Receipt2, Failure>("payments", options).unwrap_err();
    let new = || ManagerOptions::new().schema(2);
    for (options, message) in [
        (new().migrate(2, from_1), "a migration of successes is from schema 2, which is the manager's own"),
        (new().migrate(0, from_0).migrate(0, from_0), "there are two migrations of successes from schema 0"),
        (new().migrate_failure(0, from_0), "the migration of failures from schema 0 makes"),
        (
            new().migrate(0, |old: Receipt2| Receipt0 { cents: old.milli }),
            "the migration of successes from schema 0 makes",
        ),
    ] {
        let error = ask(options);
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        assert!(error.to_string().contains(message), "{error}");
    }
    engine.manager_with::<Receipt2, String>("payments", new().migrate_failure(0, |same: String| same)).unwrap();
}

#[test]
fn a_checkpoint_of_an_older_type_is_read_as_the_new_one() {
    let (engine, _) = engine();
    let resume = || ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    {
        let orders: Manager<u64, String> = engine.manager_with("orders", resume()).unwrap();
        for (key, cents) in [("a", 10), ("b", 20)] {
            let mut claim = claim(&orders, key);
            claim.work_stage(|_| Next::advance_encoded("paid", &Receipt0 { cents })).unwrap();
        }
    }
    let options = resume().migrate_checkpoint(from_1).migrate_checkpoint(from_0);
    let orders: Manager<u64, String> = engine.manager_with("orders", options).unwrap();
    let claim_a = claim(&orders, "a");
    assert_eq!(claim_a.decode_checkpoint().unwrap(), Some(from_0(Receipt0 { cents: 10 })));
    assert_eq!(claim_a.decode_checkpoint().unwrap(), Some(Receipt0 { cents: 10 }));
    // Types to which no migration leads.
    assert_eq!(claim_a.decode_checkpoint::<Refusal>().unwrap_err().kind(), ErrorKind::TypeMismatch);
    // A failed attempt to decode does not count as an engine error: the operation's failure is stored.
    let mut claim_b = claim(&orders, "b");
    let error = orders.execute("c", |_| {
        let migrated: Option<Receipt2> = claim_b.decode_checkpoint().map_err(|error| error.to_string())?;
        Err(format!("{:?}", migrated.map(|new| new.milli)))
    });
    assert!(matches!(error, Err(ExecuteError::Failed { error, status: Status::Failed, .. }) if error == "Some(200)"));
    claim_b.release_on_drop(true);
}

#[test]
fn a_panic_of_a_migration_reaches_the_reader_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path());
    let engine = open_at(dir.path());
    let options = ManagerOptions::new().schema(2).migrate(0, |old: Receipt0| {
        assert!(old.cents != 10, "no such receipt");
        from_0(old)
    });
    let payments: Manager<Receipt2> = engine.manager_with("payments", options).unwrap();
    let read = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| payments.get("won-0").map(drop)));
    assert!(read().is_err() && read().is_err());
    // In a batch, the panic gives up the keys that were begun with it.
    let items = [("new", ()), ("won-0", ()), ("newer", ())];
    let batch = || payments.execute_many(items, |_, ()| unreachable!("nothing has run yet"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(batch)).is_err());
    assert_eq!(["new", "newer"].map(|key| answer(&payments, key)), ["interrupted"; 2]);
    drop(payments);
    let payments: Manager<Receipt0> = engine.manager("payments").unwrap();
    assert_eq!(
        payments.get("won-0").unwrap().unwrap().into_outcome().map(Result::ok),
        Some(Some(Receipt0 { cents: 10 }))
    );
}
