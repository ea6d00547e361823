//! A process that opens a store, lets threads call it, closes it and opens it again, until it is killed or done.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use oncekey::{Engine, clock::ManualClock};
use serde::{Deserialize, Serialize};

use crate::caller::{Caller, End, Line, World, say};
use crate::calls::{Held, hours};
use crate::faults::Fault;
use crate::model::{Hour, Op};

pub(crate) const PLAN: &str = "ONCEKEY_HISTORY_PLAN";
pub(crate) const KEYS: usize = 3;
/// The number of calls of each thread between two opens.
const CALLS: u64 = 9;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) path: PathBuf,
    pub(crate) seed: u64,
    /// The hour of the clock at the start.
    pub(crate) hour: Hour,
    pub(crate) threads: u64,
    /// The number of opens of the store.
    pub(crate) sessions: u64,
    pub(crate) fault: Fault,
}

fn open(path: &Path, clock: &ManualClock, fault: Fault) -> Engine {
    let options = Engine::options().segment_bytes(64 << 10).clock(clock.clone());
    fault.options(options).open(path).unwrap()
}

fn live(plan: &Plan) {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("k-{key}")).collect();
    let (clock, hour) = (ManualClock::new(), AtomicU64::new(plan.hour));
    clock.advance(hours(plan.hour));
    let mut held: Vec<Vec<Held>> = (0..plan.threads).map(|_| Vec::new()).collect();
    for session in 0..plan.sessions {
        let engine = open(&plan.path, &clock, plan.fault);
        let world = World::new(&engine, &keys, (&clock, &hour), plan.fault);
        plan.fault.opened(&world);
        say(Line::Opened(hour.load(Ordering::Relaxed)));
        let is_last = session + 1 == plan.sessions;
        let seed = plan.seed ^ session << 8;
        let end = if seed % 2 == 0 { End::Close } else { End::Abort };
        held = thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(held)
                .map(|(nth, old)| {
                    // One thread closes the store during the calls of the others.
                    let caller = Caller::new(&world, nth, seed ^ nth);
                    scope.spawn(move || caller.run(CALLS, (nth == 0 && !is_last).then_some(end), old))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        if is_last {
            let mut last = Caller::new(&world, plan.threads, 0);
            (0..KEYS).for_each(|key| assert!(last.call(key, Op::Get, None)));
        }
        if !is_last && end == End::Close {
            thread::scope(|scope| {
                for (nth, held) in (0..).zip(std::mem::take(&mut held)) {
                    let caller = Caller::new(&world, nth, !seed ^ nth);
                    scope.spawn(move || caller.outlive(held));
                }
            });
            held = (0..plan.threads).map(|_| Vec::new()).collect();
            drop(world);
            // The last claim has ended the store: the next open is let in.
        } else {
            drop(world);
            // Claims are alive. For them the abort is the death of the process.
            engine.abort().unwrap();
        }
        say(Line::Stopped);
    }
}

/// Not a test: the process that is killed.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    // End the line that libtest has begun with the name of the test.
    println!();
    live(&serde_json::from_str(&plan).unwrap());
}
