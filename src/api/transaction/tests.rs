use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::protocol::rules::{Ending, Start};
use crate::protocol::{Begun, Load, RecordId};
use crate::types::key::Key;
use crate::types::options::{EngineOptions, OnInterrupted};
use crate::types::record::{STARTED, Status};

fn open(dir: &TempDir) -> Arc<Protocol> {
    open_with(dir, Duration::ZERO)
}

/// Opens a store with this longest wait for locks.
fn open_with(dir: &TempDir, patience: Duration) -> Arc<Protocol> {
    let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default(), None).unwrap();
    Arc::new(protocol.with_patience(patience))
}

const PLAIN: Setting<'static, Error> = Setting { fence: None, faulted: None, should_retry: None };

fn temp() -> (TempDir, Arc<Protocol>) {
    let dir = tempfile::tempdir().unwrap();
    let protocol = open(&dir);
    (dir, protocol)
}

/// Runs `f` on another thread.
fn elsewhere<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| scope.spawn(f).join().unwrap())
}

fn put(protocol: &Protocol, key: &str) {
    let change = protocol.row_change("t", key.as_bytes(), Some(b"x")).unwrap();
    elsewhere(|| protocol.put_row(change)).unwrap();
}

fn row(protocol: &Protocol, key: &str) -> Option<Value> {
    protocol.get_row(&Protocol::row("t", key.as_bytes()).unwrap()).unwrap()
}

fn is_locked(protocol: &Protocol, key: &str) -> bool {
    protocol.is_key_locked(&Protocol::row("t", key.as_bytes()).unwrap())
}

#[test]
fn a_phase_that_conflicts_in_every_run_returns_conflict() {
    let (_dir, protocol) = temp();
    let runs = AtomicUsize::new(0);
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.get("a")?;
        put(&protocol, "a");
        tx.table("t")?.insert("b", "x")?;
        Ok(((), Step::Stay))
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(runs.into_inner(), Transaction::MAX_RUNS);
    assert_eq!(protocol.stats().transaction_reruns, Transaction::MAX_RUNS as u64);
    assert_eq!(row(&protocol, "b"), None);
    assert!(!is_locked(&protocol, "a"), "all locks are released");
}

// The closure waits for a thread that waits for the locks of the transaction, so no run can succeed. Such a transaction
// once waited in each of 60 runs, for minutes.
#[test]
fn a_transaction_that_waits_for_its_own_locks_ends_after_the_first_run_with_locks() {
    let dir = tempfile::tempdir().unwrap();
    let protocol = open_with(&dir, Duration::from_millis(100));
    let runs = AtomicUsize::new(0);
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.get("a")?;
        put(&protocol, "a");
        Ok(((), Step::Stay))
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(runs.into_inner(), RUNS_WITHOUT_LOCKS + 1, "the first run that holds locks is the last");
    assert!(!is_locked(&protocol, "a") && row(&protocol, "a").is_some());
}

#[test]
fn after_three_conflicts_a_transaction_locks_only_the_keys_that_conflicted() {
    let (_dir, protocol) = temp();
    let runs = AtomicUsize::new(0);
    let cold: Vec<String> = (0..400).map(|number| format!("cold-{number}")).collect();
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        let t = tx.table("t")?;
        t.get("hot")?;
        cold.iter().try_for_each(|key| t.get(key).map(drop))?;
        t.insert("mine", "x")?;
        assert_eq!(is_locked(&protocol, "hot"), run > RUNS_WITHOUT_LOCKS, "run {run}");
        assert!(!is_locked(&protocol, "mine") && cold.iter().all(|key| !is_locked(&protocol, key)), "run {run}");
        if run <= RUNS_WITHOUT_LOCKS {
            put(&protocol, "hot");
        }
        Ok(((), Step::Stay))
    });
    ended.unwrap();
    assert_eq!(runs.into_inner(), RUNS_WITHOUT_LOCKS + 1);
    assert!(row(&protocol, "mine").is_some() && !is_locked(&protocol, "hot"));
}

#[test]
fn after_sixteen_conflicts_a_transaction_locks_all_that_it_reads_and_writes() {
    let (_dir, protocol) = temp();
    let runs = AtomicUsize::new(0);
    let keys: Vec<String> = (0..RUNS_BEFORE_FULL_LOCKS * 2).map(|number| format!("k-{number}")).collect();
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        let t = tx.table("t")?;
        keys.iter().try_for_each(|key| t.get(key).map(drop))?;
        t.insert("mine", "x")?;
        let kept = keys.iter().filter(|key| is_locked(&protocol, key)).count();
        let expected = if run <= RUNS_WITHOUT_LOCKS { 0 } else { run - 1 };
        assert_eq!(kept, if run > RUNS_BEFORE_FULL_LOCKS { keys.len() } else { expected }, "run {run}");
        assert_eq!(is_locked(&protocol, "mine"), run > RUNS_BEFORE_FULL_LOCKS);
        if run <= RUNS_BEFORE_FULL_LOCKS {
            put(&protocol, &keys[run]);
        }
        Ok(((), Step::Stay))
    });
    ended.unwrap();
    assert_eq!(runs.into_inner(), RUNS_BEFORE_FULL_LOCKS + 1);
}

/// Claims a key. Returns its id and token.
fn claim(protocol: &Protocol) -> (RecordId, u64) {
    let id = RecordId::new(&"m".into(), Key::new("k").unwrap());
    let Begun::Claimed(info) = protocol.begin(&id, &Start::plain(OnInterrupted::Hold)).unwrap() else {
        panic!("a new key")
    };
    let token = info.stored().token;
    (id, token)
}

/// Returns every step of a stage.
fn steps() -> [Step; 4] {
    let advance = |point: &str| Step::Advance { point: point.to_owned(), checkpoint: None };
    let (success, failure) = (Ending::Succeed("x".into()), Ending::Fail("x".into()));
    [Step::Stay, advance("on"), Step::End(success), Step::End(failure)]
}

/// Runs a stage that writes a row. Returns its result, and how often its closure ran.
fn staged(protocol: &Arc<Protocol>, fence: Fence<'_>, step: &Step, meanwhile: impl Fn()) -> (Result<()>, usize) {
    let runs = AtomicUsize::new(0);
    let ended = run::<(), Error>(protocol, &Setting { fence: Some(fence), ..PLAIN }, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.insert("row", "x")?;
        meanwhile();
        Ok(((), step.clone()))
    });
    (ended.map(drop), runs.into_inner())
}

#[test]
fn a_stage_with_another_token_or_recovery_point_loses_its_claim_and_writes_nothing() {
    let (_dir, protocol) = temp();
    let (id, token) = claim(&protocol);
    let stale = [(token + 1, STARTED), (token - 1, STARTED), (token, "elsewhere"), (token + 1, "elsewhere")];
    for ((token, point), step) in stale.into_iter().flat_map(|fence| steps().map(|step| (fence, step))) {
        let fence = Fence { id: &id, token, point, ttl: None };
        let (ended, runs) = staged(&protocol, fence, &step, || ());
        assert_eq!((ended.unwrap_err().kind(), runs), (ErrorKind::ClaimLost, 0), "{fence:?} {step:?}");
        let mut workspace = protocol.workspace();
        assert_eq!(protocol.step(&mut workspace, fence, &step).unwrap_err().kind(), ErrorKind::ClaimLost);
        assert!(protocol.written_locks(&workspace, None).0 == LockSet::default(), "it would write nothing");
        assert_eq!(row(&protocol, "row"), None);
    }
    let (ended, runs) = staged(&protocol, Fence { id: &id, token, point: STARTED, ttl: None }, &Step::Stay, || ());
    assert!(ended.is_ok() && runs == 1 && row(&protocol, "row").is_some(), "the right one");
}

#[test]
fn a_stage_whose_claim_ends_or_advances_meanwhile_loses_it_and_writes_nothing() {
    let advance = Step::Advance { point: "on".to_owned(), checkpoint: None };
    for step in steps() {
        for moves_on in [false, true] {
            let (_dir, protocol) = temp();
            let (id, token) = claim(&protocol);
            let fence = Fence { id: &id, token, point: STARTED, ttl: None };
            let meanwhile = || {
                if moves_on {
                    let mut other = protocol.workspace();
                    protocol.step(&mut other, fence, &advance).unwrap();
                    assert!(protocol.commit(&mut other).unwrap().is_some());
                } else {
                    elsewhere(|| protocol.end(&id, token, &Ending::Release)).unwrap();
                }
            };
            let (ended, runs) = staged(&protocol, fence, &step, meanwhile);
            assert_eq!((ended.unwrap_err().kind(), runs), (ErrorKind::ClaimLost, 1), "{step:?} {moves_on}");
            assert_eq!(row(&protocol, "row"), None);
        }
    }
}

#[test]
fn a_stage_of_a_closed_engine_is_refused_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let protocol = open(&dir);
    let (id, token) = claim(&protocol);
    let fence = Fence { id: &id, token, point: STARTED, ttl: None };
    // Close inside the closure, and then before the stage.
    for runs in [1, 0] {
        let (ended, ran) = staged(&protocol, fence, &Step::Stay, || elsewhere(|| protocol.abort().unwrap()));
        assert_eq!((ended.unwrap_err().kind(), ran), (ErrorKind::Closed, runs));
    }
    drop(protocol);
    assert_eq!(row(&open(&dir), "row"), None);
}

// A dropped claim that was not recorded, because the journal was full, once left its key in progress for transactions.
#[cfg(feature = "http")]
#[test]
fn a_transaction_records_pending_drops_before_it_reads() {
    let (_dir, protocol) = temp();
    let (id, token) = claim(&protocol);
    protocol.abandon_unrecorded(&id, token, Ending::Release);
    let patch = crate::protocol::rules::Patch { recovery_point: Some("paid".to_owned()), ..Default::default() };
    let patched = run::<(), Error>(&protocol, &PLAIN, |tx| {
        tx.with_workspace(&protocol, |workspace| protocol.patch_in(workspace, &id, &patch))?;
        Ok(((), Step::Stay))
    });
    patched.unwrap();
    let info = protocol.get(&id, Load::WithoutOutcome).unwrap().unwrap();
    assert_eq!((info.status(), info.recovery_point()), (Status::Released, "paid"));
}
