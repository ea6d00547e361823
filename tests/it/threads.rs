//! What the tests of concurrency share.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use oncekey::ExecuteOptions;

/// Nothing here takes so long, except for ever.
pub(crate) const LATE: Duration = Duration::from_secs(60);

/// Repeatable randomness: splitmix64.
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

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Runs a test that would hang if the engine did, and fails it then: its threads are left behind.
pub(crate) fn within<T: Send + 'static>(time: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    let worker = thread::spawn(move || {
        let result = body();
        // Nobody listens any more once the test has failed for being late.
        let _ = done.send(result);
    });
    match result.recv_timeout(time) {
        Ok(result) => {
            worker.join().unwrap();
            result
        }
        Err(RecvTimeoutError::Timeout) => panic!("somebody still waits after {time:?}"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(worker.join().expect_err("it ended without a result"))
        }
    }
}

/// Spins until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LATE, "not in {LATE:?}: {what}");
        thread::yield_now();
    }
}

/// Waits for another owner as long as a test may take.
pub(crate) fn patient() -> ExecuteOptions {
    ExecuteOptions::new().wait(LATE)
}

/// A thread that others can see asleep.
#[derive(Clone, Debug)]
pub(crate) struct Sleeper(Option<PathBuf>);

impl Sleeper {
    /// The calling thread.
    pub(crate) fn me() -> Self {
        let task = std::fs::read_link("/proc/thread-self").ok();
        Self(task.map(|task| PathBuf::from("/proc").join(task).join("stat")))
    }

    /// Whether the system says that it sleeps; where there is no `/proc`, always.
    ///
    /// `stats().waiting` counts a waiter that has sat down but may still be about to read the record. One that also sleeps,
    /// in an engine where nobody else is at work, is parked.
    pub(crate) fn sleeps(&self) -> bool {
        let Some(path) = &self.0 else { return true };
        let Ok(stat) = std::fs::read_to_string(path) else { return false };
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }
}
