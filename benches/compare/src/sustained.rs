//! Moves a window of live keys for a minute: each new key removes the oldest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::measure::cycle;
use crate::shared::key;
use crate::systems::{Key, System};

const THREADS: usize = 8;
/// The number of keys that are forgotten together.
const BATCH: u64 = 1024;

pub(crate) struct Sustained {
    /// Cycles per second after the window is full.
    pub(crate) rate: f64,
    /// The result of `probe`, once per second after the window is full.
    pub(crate) seconds: Vec<(f64, f64)>,
}

/// Runs cycles without a pause for this time after the window is full. `probe` gets the number of cycles so far.
pub(crate) fn sustained(
    system: &dyn System,
    live: u64,
    time: Duration,
    full: impl Fn(u64) -> bool,
    probe: impl Fn(u64) -> (f64, f64),
) -> Sustained {
    let (next, done, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let is_over = || ended.load(Ordering::Relaxed);
    let pause = || std::thread::sleep(Duration::from_millis(1));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut session = system.session();
                while !is_over() {
                    cycle(&mut *session, key(next.fetch_add(1, Ordering::Relaxed)));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let mut forgotten = 0;
            while !is_over() {
                if done.load(Ordering::Relaxed) < forgotten + live + BATCH {
                    pause();
                    continue;
                }
                let keys: Vec<Key> = (forgotten..forgotten + BATCH).map(key).collect();
                system.forget(&keys);
                forgotten += BATCH;
            }
        });
        while !full(done.load(Ordering::Relaxed)) {
            pause();
        }
        let (began, before) = (Instant::now(), done.load(Ordering::Relaxed));
        let mut seconds = Vec::new();
        while began.elapsed() < time {
            std::thread::sleep(Duration::from_secs(1));
            seconds.push(probe(done.load(Ordering::Relaxed)));
        }
        let rate = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        Sustained { rate, seconds }
    })
}
