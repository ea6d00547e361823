//! The durable cycle, begin and succeed with a 256-byte value, beside the ideal log: a hash map and a file that is appended
//! to, with one `fdatasync` for each group. Both answer nobody before the sync. In turns, in one process, on one disk.
//!
//! `cargo bench --bench cycle [-- DIRECTORY]`; the directory must be on a real disk.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

mod shared;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use oncekey::{Engine, Manager};
use shared::{VALUE, asked_directory, cycle, key, median};

const THREADS: [usize; 3] = [1, 8, 64];
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);

/// The least that keeps the promise: what was answered is in the file, and synced.
struct IdealLog {
    state: Mutex<Log>,
    work: Condvar,
    synced: Condvar,
}

#[derive(Default)]
struct Log {
    map: HashMap<Vec<u8>, Vec<u8>>,
    buffer: Vec<u8>,
    group: u64,
    durable: u64,
    ended: bool,
}

impl IdealLog {
    fn start(path: &Path) -> (Arc<Self>, std::thread::JoinHandle<()>) {
        let log = Arc::new(Self {
            state: Mutex::new(Log { group: 1, ..Log::default() }),
            work: Condvar::new(),
            synced: Condvar::new(),
        });
        let mut file = File::create(path).unwrap();
        let writer = Arc::clone(&log);
        let thread = std::thread::spawn(move || {
            loop {
                let (bytes, group) = {
                    let mut state = writer.state.lock().unwrap();
                    while state.buffer.is_empty() {
                        if state.ended {
                            return;
                        }
                        state = writer.work.wait(state).unwrap();
                    }
                    state.group += 1;
                    (std::mem::take(&mut state.buffer), state.group - 1)
                };
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                writer.state.lock().unwrap().durable = group;
                writer.synced.notify_all();
            }
        });
        (log, thread)
    }

    fn put(&self, key: &[u8], value: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.map.insert(key.to_vec(), value.to_vec());
        state.buffer.extend_from_slice(&u32::try_from(key.len() + value.len()).unwrap().to_le_bytes());
        state.buffer.extend_from_slice(key);
        state.buffer.extend_from_slice(value);
        let mine = state.group;
        self.work.notify_one();
        while state.durable < mine {
            state = self.synced.wait(state).unwrap();
        }
    }

    fn end(&self) {
        self.state.lock().unwrap().ended = true;
        self.work.notify_one();
    }
}

/// Cycles per second of so many threads. `cycle` gets a number that is new each time.
fn measure(threads: usize, next: &AtomicU64, cycle: impl Fn(u64) + Sync) -> f64 {
    let done = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while began.elapsed() < ROUND {
                    cycle(next.fetch_add(1, Ordering::Relaxed));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let done = done.into_inner() as f64;
    done / began.elapsed().as_secs_f64()
}

fn main() {
    let base = asked_directory();
    let dir = tempfile::tempdir_in(&base).unwrap();
    println!("durable cycles per second, medians of {ROUNDS} rounds of {ROUND:?} in turns, in {}", base.display());
    println!("| threads | ideal log | oncekey | ratio | commits per sync |");
    println!("|---|---|---|---|---|");
    let next = AtomicU64::new(0);
    for threads in THREADS {
        let (mut ideal, mut ours) = (Vec::new(), Vec::new());
        let path = dir.path().join(format!("oncekey-{threads}"));
        let engine = Engine::open(&path).unwrap();
        let manager: Manager<Vec<u8>, String> = engine.manager("bench").unwrap();
        let value = VALUE.to_vec();
        for round in 0..ROUNDS {
            let (log, thread) = IdealLog::start(&dir.path().join(format!("log-{threads}-{round}")));
            ideal.push(measure(threads, &next, |number| {
                log.put(&key(number), b"begun");
                log.put(&key(number), &VALUE);
            }));
            log.end();
            thread.join().unwrap();
            ours.push(measure(threads, &next, |number| cycle(&manager, number, &value)));
        }
        let stats = engine.stats();
        let (ideal, ours) = (median(ideal), median(ours));
        #[allow(clippy::cast_precision_loss, reason = "a ratio")]
        let shared = stats.commits as f64 / stats.syncs as f64;
        println!("| {threads} | {ideal:.0} | {ours:.0} | {:.2} | {shared:.1} |", ours / ideal);
        engine.close().unwrap();
    }
}
