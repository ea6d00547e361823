//! Helpers for the tests of concurrency.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use oncekey::CallOptions;

/// A bound for waits. Reaching it means that the engine hangs.
pub(crate) const LATE: Duration = Duration::from_secs(60);

/// A random number generator with a seed: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Runs a test that hangs if the engine does, and fails it after `time`. Its threads are left behind.
pub(crate) fn within<T: Send + 'static>(time: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    let worker = thread::spawn(move || {
        let result = body();
        // Ignore the result: the receiver is gone if the test has failed by timeout.
        let _ = done.send(result);
    });
    match result.recv_timeout(time) {
        Ok(result) => {
            worker.join().unwrap();
            result
        }
        Err(RecvTimeoutError::Timeout) => panic!("a thread still waits after {time:?}"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(worker.join().expect_err("it ended without a result"))
        }
    }
}

/// Spins until the condition is true.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LATE, "not in {LATE:?}: {what}");
        thread::yield_now();
    }
}

/// Returns options that wait as long as a test may take.
pub(crate) fn patient() -> CallOptions {
    CallOptions::new().wait(LATE)
}

/// A thread whose state other threads can read.
#[derive(Clone, Debug)]
pub(crate) struct Sleeper(Option<PathBuf>);

impl Sleeper {
    /// Returns the calling thread.
    pub(crate) fn me() -> Self {
        let task = std::fs::read_link("/proc/thread-self").ok();
        Self(task.map(|task| PathBuf::from("/proc").join(task).join("stat")))
    }

    /// Returns true if the system reports that the thread sleeps. Without `/proc`, always returns true.
    ///
    /// A waiter counted by `stats().waiting` has entered the queue, but may not have read the record yet. If it also
    /// sleeps, and no other thread uses the engine, it is parked.
    pub(crate) fn sleeps(&self) -> bool {
        let Some(path) = &self.0 else { return true };
        let Ok(stat) = std::fs::read_to_string(path) else { return false };
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }
}
