//! Tests of overload and of a process that is stopped for a while. Neither poisons the engine.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use oncekey::{Engine, ErrorKind, ExecuteError, Manager, Value};

use crate::common::SECOND;
use crate::threads::{LATE, within};

const DIR: &str = "ONCEKEY_STOPPED_DIR";

/// Writes 100 MB at once through a queue of 16 MiB.
#[test]
fn under_overload_endings_are_stored_and_begins_may_be_busy() {
    within(LATE, || {
        let engine = Engine::options().sync_timeout(SECOND * 2).temporary().unwrap();
        let ops: &Manager<Value> = &engine.manager("ops").unwrap();
        let (value, ran) = (&Value::from(vec![7_u8; 1_000_000]), &AtomicU64::new(0));
        let stored: u64 = thread::scope(|scope| {
            let threads: Vec<_> = (0..100)
                .map(|thread| {
                    scope.spawn(move || {
                        let done = ops.execute(format!("{thread}"), |_| {
                            ran.fetch_add(1, Ordering::SeqCst);
                            Ok(value.clone())
                        });
                        match done {
                            Ok(_) => 1,
                            Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::Busy => 0,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(stored > 0);
        assert_eq!(ran.load(Ordering::SeqCst), stored, "what has run is stored, and what was refused has not run");
        ops.execute("after", |_| Ok(value.clone())).unwrap();
        engine.close().unwrap();
    });
}

/// Not a test: the process that is stopped. It prints a line when all its threads have made calls.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::options().sync_timeout(Duration::from_millis(400)).open(dir).unwrap();
    let ops: &Manager<u64> = &engine.manager("ops").unwrap();
    println!();
    for round in 0.. {
        thread::scope(|scope| {
            for me in 0..8 {
                scope.spawn(move || {
                    for n in 0..20 {
                        ops.execute(format!("{round}-{me}-{n}"), |_| Ok(n)).unwrap();
                    }
                });
            }
        });
        println!("@round {round}");
    }
}

#[test]
fn a_process_stopped_for_longer_than_the_timeout_continues() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "overload::child", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut round = || said.find(|line| line.starts_with('@')).expect("the child goes on");
        round();
        for _ in 0..3 {
            signal("-STOP");
            // Stop the process for several timeouts.
            thread::sleep(SECOND);
            signal("-CONT");
            // The pipe still contains at most two lines from before the stop.
            (0..4).for_each(|_| drop(round()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    });
}
