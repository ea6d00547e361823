//! Tests of values whose type has changed since they were stored.

use oncekey::{
    CallOptions, Context, Engine, ErrorKind, ExecuteError, Manager, ManagerOptions, OnInterrupted, stage::Next,
};
use serde::{Deserialize, Serialize};

use crate::common::*;

mod first {
    #[derive(Debug, PartialEq, super::Serialize, super::Deserialize)]
    pub(super) struct Plan {
        pub(super) amount: u64,
        pub(super) fee: u64,
    }
}

mod second {
    #[derive(Debug, PartialEq, super::Serialize, super::Deserialize)]
    pub(super) struct Plan {
        pub(super) fee: u64,
        pub(super) amount: u64,
    }
}

const PLAN: first::Plan = first::Plan { amount: 1999, fee: 3 };

#[test]
fn reordered_fields_are_a_mismatch_without_a_raised_schema() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let plans: Manager<first::Plan, first::Plan> = engine.manager("plans").unwrap();
    plans.execute("won", |_| Ok(PLAN)).unwrap();
    plans.execute("lost", |_| Err(PLAN)).unwrap_err();
    drop(plans);
    engine.close().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let plans: Manager<second::Plan, second::Plan> = engine.manager("plans").unwrap();
    for key in ["won", "lost"] {
        let refused = plans.execute(key, |_| unreachable!()).unwrap_err();
        assert!(matches!(refused, ExecuteError::Engine(error) if error.kind() == ErrorKind::TypeMismatch), "{key}");
        assert_eq!(plans.get(key).unwrap_err().kind(), ErrorKind::TypeMismatch);
    }
    drop(plans);
    engine.close().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let plans: Manager<first::Plan, first::Plan> = engine.manager("plans").unwrap();
    assert_eq!(plans.execute("won", |_| unreachable!()).unwrap().into_value(), PLAN);
}

#[test]
fn a_checkpoint_and_a_context_of_a_changed_type_are_mismatches() {
    let dir = tempfile::tempdir().unwrap();
    let resume = || ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    {
        let engine = Engine::open(dir.path()).unwrap();
        let orders: Manager<u64> = engine.manager_with("orders", resume()).unwrap();
        let options = CallOptions::new().context(Context::new().with_encoded("plan", &PLAN).unwrap());
        let mut claim = claimed(orders.begin_with("k", options).unwrap());
        claim.work_stage(|_| Next::advance_encoded("planned", &PLAN)).unwrap();
        drop(claim);
        drop(orders);
        engine.close().unwrap();
    }
    let engine = Engine::open(dir.path()).unwrap();
    let orders: Manager<u64> = engine.manager_with("orders", resume().schema(2)).unwrap();
    let claim = claim(&orders, "k");
    let (as_stored, stored) = (claim.decode_checkpoint::<first::Plan>(), claim.context().decode::<first::Plan>("plan"));
    assert_eq!((as_stored.unwrap(), stored.unwrap()), (Some(PLAN), Some(PLAN)));
    assert_eq!(claim.decode_checkpoint::<second::Plan>().unwrap_err().kind(), ErrorKind::TypeMismatch);
    // A context stores JSON, whose fields have names. A change is detected there too.
    assert_eq!(claim.context().decode::<(u64, u64)>("plan").unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(claim.context().decode::<second::Plan>("plan").unwrap_err().kind(), ErrorKind::TypeMismatch);
}

#[test]
fn a_value_that_cannot_be_stored_is_found_before_the_operation_runs() {
    let (engine, _) = engine();
    let manager: Manager<Holed, u64> = engine.manager("m").unwrap();
    let error = manager.encode_outcome(Ok(&Holed { note: None, cents: 1 })).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec);
    assert!(error.to_string().contains("an outcome of m"), "{error}");
    manager.encode_outcome(Ok(&Holed { note: Some("x".to_owned()), cents: 1 })).unwrap();
    manager.encode_outcome(Err(&1)).unwrap();
}
