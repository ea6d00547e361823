//! Tests of a child of `fork`, which has copies of all handles and no threads. Its calls are rejected, and it does no
//! harm.
#![allow(unsafe_code, reason = "forking cannot be done without")]

use std::panic::{AssertUnwindSafe, UnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use oncekey::{CallOptions, Claim, Engine, ErrorKind, Manager, Result, Status, admin::Resolution};

use crate::process::check_survives;

const DIR: &str = "ONCEKEY_FORKED_DIR";

type Ops = Manager<u64>;

#[track_caller]
fn refused<R: std::fmt::Debug>(result: Result<R>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::StoreInUse);
}

/// Runs `body` in a child of `fork`, which then exits without running anything else. Returns true if it panicked.
fn forked(body: impl FnOnce() + UnwindSafe) -> bool {
    // SAFETY: the child uses only memory of this thread, and libc's allocator, which survives a fork.
    match unsafe { libc::fork() } {
        -1 => panic!("no fork"),
        0 => {
            let code = i32::from(catch_unwind(body).is_err());
            // SAFETY: the child ends here.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` is large enough.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(waited, child);
            assert!(libc::WIFEXITED(status), "the child was killed: {status}");
            libc::WEXITSTATUS(status) == 0
        }
    }
}

/// Makes every kind of call, and then drops or closes every handle.
fn all_refused(engine: Engine, ops: Ops, claims: Vec<Claim<u64>>, path: &Path) {
    refused(ops.begin("done"));
    refused(ops.begin("new"));
    refused(ops.begin_with("live-0", CallOptions::new().wait(Duration::from_secs(60))));
    refused(ops.get("done"));
    refused(ops.wait("live-0", Duration::from_secs(60)));
    refused(ops.initiate("by key"));
    refused(ops.success("by key", "1".parse().unwrap(), &1));
    refused(ops.remove("done"));
    refused(ops.forget("done"));
    refused(ops.resolve("live-0", Resolution::Retry));
    refused(ops.extend("done", Duration::from_secs(1)));
    assert!(ops.execute("new", |_| panic!("it must not run")).is_err());
    refused(engine.sync());
    refused(engine.compact_now());
    refused(engine.interrupted().and_then(|mut infos| infos.next().transpose()));
    refused(engine.managers());
    refused(Engine::open(path));
    for (n, claim) in claims.into_iter().enumerate() {
        match n {
            0 => assert_eq!(claim.succeed(&1).unwrap_err().error.kind(), ErrorKind::StoreInUse),
            1 => assert_eq!(claim.release().unwrap_err().error.kind(), ErrorKind::StoreInUse),
            _ => drop(claim),
        }
    }
    drop(ops);
    engine.close().unwrap();
}

/// Not a test: a process of its own, so that no thread of another test holds a lock at the fork.
#[test]
#[ignore = "started by another test"]
fn process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let path = Path::new(&dir);
    let engine = Engine::open(path).unwrap();
    let ops: Ops = engine.manager("m").unwrap();
    ops.execute("done", |_| Ok(7)).unwrap();
    let temporary = Engine::temporary().unwrap();
    let claims: Vec<_> = (0..4).map(|n| ops.begin(format!("live-{n}")).unwrap().into_claim().unwrap()).collect();
    // The child takes its copies from here, and the parent takes its own later.
    let mut handles = Some(((engine.clone(), ops.clone()), temporary.clone(), claims));
    let was_refused = forked(AssertUnwindSafe(|| {
        let ((engine, ops), temporary, claims) = handles.take().unwrap();
        all_refused(engine, ops, claims, path);
        refused(temporary.sync());
    }));
    assert!(was_refused, "the child was not refused as it should be");
    let (clones, clone, claims) = handles.take().unwrap();
    drop((clones, clone));
    // More copies than the queue to the compaction thread has places.
    let engines = vec![engine.clone(); 4];
    assert!(forked(AssertUnwindSafe(|| {
        // SAFETY: no handler is replaced. A process that hangs is killed, and the parent asserts that it was not.
        unsafe { libc::alarm(60) };
        for engine in engines.iter().cloned() {
            engine.close().unwrap();
        }
    })));
    drop(engines);
    // Other children end without drops, or unwind.
    assert!(forked(|| ()));
    assert!(!forked(|| panic!("as a child may")));
    assert!(temporary.path().exists(), "the child has taken the parent's directory away");
    // The parent still owns the store exclusively.
    assert_eq!(Engine::open(path).unwrap_err().kind(), ErrorKind::StoreInUse);
    for (n, claim) in (0..).zip(claims) {
        claim.succeed(&n).unwrap();
    }
    ops.execute("after", |_| Ok(8)).unwrap();
    drop(ops);
    engine.close().unwrap();
    let engine = Engine::open(path).unwrap();
    assert!(engine.opened().clean && engine.opened().interrupted == 0);
    let ops: Ops = engine.manager("m").unwrap();
    for (key, value) in [("done", 7), ("after", 8), ("live-0", 0), ("live-1", 1), ("live-2", 2), ("live-3", 3)] {
        let record = ops.get(key).unwrap().unwrap();
        assert_eq!((record.status(), record.into_outcome()), (Status::Succeeded, Some(Ok(value))), "{key}");
    }
    println!("\nsurvived");
}

#[test]
fn calls_of_a_forked_child_are_rejected_and_its_exit_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    check_survives("fork::process", DIR, &dir.path().join("store"));
}
