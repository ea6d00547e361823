//! Tests of difficult endings: a claim given up while the journal has no segment ready, a value read back differently, and
//! an engine error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use oncekey::*;

/// With segments this small, the next segment is often not ready when a claim is given up.
const SEGMENT: u64 = 64 << 10;

#[test]
fn a_released_or_dropped_claim_never_stays_in_progress() {
    let engine = Engine::options().segment_bytes(SEGMENT).temporary().unwrap();
    let manager: Manager<u64, String> =
        engine.manager_with("m", ManagerOptions::new().on_interrupted(OnInterrupted::Resume)).unwrap();
    let context = Context::new().with("large", vec![7_u8; 15 << 10]);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= 2_000 {
                        return;
                    }
                    let options = CallOptions::new().context(context.clone());
                    let claim = manager.begin_with(number.to_be_bytes(), options).unwrap().into_claim().unwrap();
                    // The disk has space, so an answer is never rejected; it may only take longer.
                    match number % 3 {
                        0 => drop(claim.release().unwrap()),
                        1 => drop(claim.interrupt().unwrap()),
                        _ => drop(claim),
                    }
                }
            });
        }
    });
    for number in 0..2_000_u64 {
        let claim = manager.begin(number.to_be_bytes()).unwrap().into_claim().unwrap();
        assert_eq!(claim.attempt(), 2);
        claim.succeed(&number).unwrap();
    }
    assert_eq!(engine.stats().in_progress, 0);
}

#[test]
fn every_replay_reads_the_first_answer() {
    #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Receipt {
        charge: String,
        #[serde(skip)]
        cached: u64,
    }
    let engine = Engine::temporary().unwrap();
    let manager: Manager<Receipt> = engine.manager("m").unwrap();
    let run = |_: &mut Claim<Receipt>| Ok(Receipt { charge: "ch_1".to_owned(), cached: 9 });
    let first = manager.execute("k", run).unwrap().into_value();
    assert_eq!(first, manager.execute("k", run).unwrap().into_value());
}

/// A failure made from an engine error is not the operation's own: it is not known whether anything happened.
#[test]
fn an_engine_error_that_the_operation_received_is_never_stored() {
    let engine = Engine::temporary().unwrap();
    let manager: Manager<u64> = engine.manager("m").unwrap();
    let options = CallOptions::new().context(Context::new().with("args", "not a number"));
    let failed = manager.execute_with("k", options, |claim| Ok(claim.context().decode::<u64>("args")?.unwrap_or(0)));
    assert!(matches!(failed, Err(ExecuteError::Failed { replayed: false, .. })));
    assert_eq!(manager.get("k").unwrap().unwrap().status(), Status::Interrupted);
    // Outside an operation the same error does not count.
    assert!(manager.get("k").unwrap().unwrap().info().context().decode::<u64>("args").is_err());
}
