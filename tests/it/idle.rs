//! Tests of an idle engine: no sync, no wake-up, no write.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use oncekey::{Begin, CallOptions, Engine, Manager};

use crate::threads::{LATE, until, within};

const DIR: &str = "ONCEKEY_IDLE_DIR";

/// Not a test: the watched process. It works, keeps a claim and a waiter, and then waits for the end of its input.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::open(dir).unwrap();
    let ops: &Manager<u64, u64> = &engine.manager("ops").unwrap();
    thread::scope(|scope| {
        for me in 0..8 {
            scope.spawn(move || (0..200).for_each(|n| drop(ops.execute(format!("{me}-{n}"), |_| Ok(n)).unwrap())));
        }
    });
    engine.compact_now().unwrap();
    let claim = ops.begin("held").unwrap().into_claim().unwrap();
    thread::scope(|scope| {
        let successor = scope.spawn(|| ops.begin_with("held", CallOptions::new().wait(LATE * 60)).unwrap());
        until("the successor waits", || engine.stats().waiting == 1);
        std::io::stdout().lock().write_all(b"\nidle\n").unwrap();
        std::io::stdin().read_exact(&mut [0]).unwrap_err();
        std::io::stdout().lock().write_all(b"\nawake\n").unwrap();
        claim.succeed(&1).unwrap();
        assert!(matches!(successor.join().unwrap(), Begin::Replay(_)));
    });
}

fn sleep(seconds: &str) {
    assert!(Command::new("sleep").arg(seconds).status().unwrap().success());
}

fn calls(trace: &Path) -> Vec<String> {
    std::fs::read_to_string(trace).unwrap().lines().map(str::to_owned).collect()
}

/// Returns the system calls of ten idle seconds, one line each: those of sled's thread pool, and all others.
fn idle_calls() -> [Vec<String>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let trace = &dir.path().join("trace");
    let mut child = Command::new("strace")
        .args(["-f", "-ttt", "-o", trace.to_str().unwrap()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "idle::child", "--ignored", "--nocapture"])
        .env(DIR, dir.path().join("store"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "idle"));
    let at_idle = calls(trace).len();
    // Let the last threads go to sleep: a new segment may just have been requested.
    sleep("2");
    let asleep = calls(trace).len();
    sleep("10");
    let all = calls(trace);
    let [sleds, others] = by_thread(&all[asleep..]);
    // Check that the trace works: it contains the end of the input.
    drop(child.stdin.take());
    assert!(lines.any(|line| line.unwrap() == "awake"));
    assert!(child.wait().unwrap().success());
    assert!(calls(trace).len() > all.len(), "strace has seen nothing");
    println!(
        "lines of the trace: {at_idle} before, {} going to sleep, then in 10 s {} of sled's pool and {} of all others",
        asleep - at_idle,
        sleds.len(),
        others.len()
    );
    [sleds, others]
}

/// Sort by thread name, which exists only while the thread lives.
fn by_thread(calls: &[String]) -> [Vec<String>; 2] {
    let (mut sleds, mut others) = (Vec::new(), Vec::new());
    for call in calls {
        let tid = call.split(' ').next().unwrap();
        let name = std::fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
        let of = if name.starts_with("sled-io-") { &mut sleds } else { &mut others };
        of.push(format!("{} {call}", name.trim()));
    }
    [sleds, others]
}

/// `cargo test --test it idle::the_engine_s_idle_threads_make_no_system_call -- --exact --ignored --nocapture`
#[test]
#[ignore = "needs strace and 12 s"]
fn the_engine_s_idle_threads_make_no_system_call() {
    within(LATE, || {
        let [_, others] = idle_calls();
        assert!(others.is_empty(), "{others:#?}");
    });
}

/// The same for the whole process.
///
/// This cannot hold with sled 0.34.7. It keeps seven threads for the life of the process, each of which waits for work
/// one second at a time (`threadpool.rs`, `perform_work`).
#[test]
#[ignore = "fails: the seven threads of sled's pool, which cannot be ended, wake once a second; needs strace and 12 s"]
fn an_idle_process_makes_no_system_call() {
    within(LATE, || assert_eq!(idle_calls().concat(), [""; 0]));
}
