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

/// Nobody waits longer than this for locks.
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

/// Another thread, meanwhile.
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

fn is_kept(protocol: &Protocol, key: &str) -> bool {
    protocol.is_key_locked(&Protocol::row("t", key.as_bytes()).unwrap())
}

#[test]
fn a_phase_that_meets_others_every_time_answers_conflict() {
    let (_dir, protocol) = temp();
    let runs = AtomicUsize::new(0);
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.get("a")?;
        put(&protocol, "a");
        tx.table("t")?.insert("b", "x")?;
        Ok(((), Ok(Step::Stay)))
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(runs.into_inner(), Transaction::MAX_RUNS);
    assert_eq!(protocol.stats().transaction_reruns, Transaction::MAX_RUNS as u64);
    assert_eq!(row(&protocol, "b"), None);
    assert!(!is_kept(&protocol, "a"), "nothing is left taken");
}

// A thread of the closure that waits for what the transaction itself holds cannot have it. It waited in each of 60 runs, for
// minutes.
#[test]
fn a_transaction_whose_own_thread_waits_for_its_locks_ends_with_the_first_wait() {
    let dir = tempfile::tempdir().unwrap();
    let protocol = open_with(&dir, Duration::from_millis(100));
    let runs = AtomicUsize::new(0);
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.get("a")?;
        put(&protocol, "a");
        Ok(((), Ok(Step::Stay)))
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(runs.into_inner(), FREE_RUNS + 1, "the first run that holds locks is the last");
    assert!(!is_kept(&protocol, "a") && row(&protocol, "a").is_some());
}

#[test]
fn who_met_others_too_often_keeps_them_off_what_they_changed_and_off_nothing_else() {
    let (_dir, protocol) = temp();
    let runs = AtomicUsize::new(0);
    let cold: Vec<String> = (0..400).map(|number| format!("cold-{number}")).collect();
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        let t = tx.table("t")?;
        t.get("hot")?;
        cold.iter().try_for_each(|key| t.get(key).map(drop))?;
        t.insert("mine", "x")?;
        assert_eq!(is_kept(&protocol, "hot"), run > FREE_RUNS, "run {run}");
        assert!(!is_kept(&protocol, "mine") && cold.iter().all(|key| !is_kept(&protocol, key)), "run {run}");
        if run <= FREE_RUNS {
            put(&protocol, "hot");
        }
        Ok(((), Ok(Step::Stay)))
    });
    ended.unwrap();
    assert_eq!(runs.into_inner(), FREE_RUNS + 1);
    assert!(row(&protocol, "mine").is_some() && !is_kept(&protocol, "hot"));
}

#[test]
fn who_meets_others_somewhere_else_each_time_keeps_them_off_everything_in_the_end() {
    let (_dir, protocol) = temp();
    let runs = AtomicUsize::new(0);
    let keys: Vec<String> = (0..SPARING_RUNS * 2).map(|number| format!("k-{number}")).collect();
    let ended = run::<(), Error>(&protocol, &PLAIN, |tx| {
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        let t = tx.table("t")?;
        keys.iter().try_for_each(|key| t.get(key).map(drop))?;
        t.insert("mine", "x")?;
        let kept = keys.iter().filter(|key| is_kept(&protocol, key)).count();
        let expected = if run <= FREE_RUNS { 0 } else { run - 1 };
        assert_eq!(kept, if run > SPARING_RUNS { keys.len() } else { expected }, "run {run}");
        assert_eq!(is_kept(&protocol, "mine"), run > SPARING_RUNS);
        if run <= SPARING_RUNS {
            put(&protocol, &keys[run]);
        }
        Ok(((), Ok(Step::Stay)))
    });
    ended.unwrap();
    assert_eq!(runs.into_inner(), SPARING_RUNS + 1);
}

/// A claim of this protocol's: where it is, and its token.
fn claim(protocol: &Protocol) -> (RecordId, u64) {
    let id = RecordId::new(&"m".into(), Key::new("k").unwrap());
    let Begun::Claimed(info) = protocol.begin(&id, &Start::plain(OnInterrupted::Hold)).unwrap() else {
        panic!("a new key")
    };
    let token = info.stored().token;
    (id, token)
}

/// All that a stage may make of its record.
fn steps() -> [Step; 4] {
    let advance = |point: &str| Step::Advance { point: point.to_owned(), checkpoint: None };
    let (success, failure) = (Ending::Succeed("x".into()), Ending::Fail("x".into()));
    [Step::Stay, advance("on"), Step::End(success), Step::End(failure)]
}

/// What a stage with this fence comes to that writes a row, and how often it has run.
fn staged(protocol: &Arc<Protocol>, fence: Fence<'_>, step: &Step, meanwhile: impl Fn()) -> (Result<()>, usize) {
    let runs = AtomicUsize::new(0);
    let ended = run::<(), Error>(protocol, &Setting { fence: Some(fence), ..PLAIN }, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.insert("row", "x")?;
        meanwhile();
        Ok(((), Ok(step.clone())))
    });
    (ended.map(drop), runs.into_inner())
}

#[test]
fn a_stage_of_another_token_or_at_another_point_is_lost_and_writes_nothing() {
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
fn a_stage_whose_claim_ends_or_moves_on_while_it_runs_is_lost_and_writes_nothing() {
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
    // Closed under the closure, and before.
    for runs in [1, 0] {
        let (ended, ran) = staged(&protocol, fence, &Step::Stay, || elsewhere(|| protocol.abort().unwrap()));
        assert_eq!((ended.unwrap_err().kind(), ran), (ErrorKind::Closed, runs));
    }
    drop(protocol);
    assert_eq!(row(&open(&dir), "row"), None);
}

// A drop that a full disk kept out of the journal left its key in progress for those who met it in a transaction.
#[cfg(feature = "http")]
#[test]
fn a_drop_that_was_not_recorded_is_settled_before_a_transaction_looks_at_it() {
    let (_dir, protocol) = temp();
    let (id, token) = claim(&protocol);
    protocol.abandon_unrecorded(&id, token, Ending::Release);
    let patch = crate::protocol::rules::Patch { recovery_point: Some("paid".to_owned()), ..Default::default() };
    let patched = run::<(), Error>(&protocol, &PLAIN, |tx| {
        tx.with_workspace(&protocol, |workspace| protocol.patch_in(workspace, &id, &patch))?;
        Ok(((), Ok(Step::Stay)))
    });
    patched.unwrap();
    let info = protocol.get(&id, Load::WithoutOutcome).unwrap().unwrap();
    assert_eq!((info.status(), info.recovery_point()), (Status::Released, "paid"));
}
