//! A process that calls a store on PostgreSQL beside others, until it is killed or done.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::thread;

use oncekey::{Engine, clock::ManualClock};
use serde::{Deserialize, Serialize};

use crate::caller::{Caller, Event, Line, World, say};
use crate::faults::Fault;
use crate::life::KEYS;
use crate::model::{Ending, Op};
use crate::still::Still;

pub(crate) const PLAN: &str = "ONCEKEY_INSTANCE_PLAN";
/// The threads of process n are those from n times this on.
pub(crate) const THREADS: u64 = 16;
/// The number of calls of each thread.
const CALLS: u64 = 12;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) url: String,
    pub(crate) schema: String,
    /// The directory of the lines, and of the locks of [`Still`].
    pub(crate) dir: PathBuf,
    pub(crate) process: u8,
    pub(crate) seed: u64,
    pub(crate) threads: u64,
}

/// The lines of all processes arrive here, in the order of time.
pub(crate) const LINES: &str = "lines";
static OUT: OnceLock<UnixDatagram> = OnceLock::new();

/// Sends a line, if this process is one of several.
pub(crate) fn sent(text: &str) -> bool {
    OUT.get().is_some_and(|out| out.send(text.as_bytes()).unwrap() > 0)
}

fn live(plan: &Plan) {
    let out = UnixDatagram::unbound().unwrap();
    out.connect(plan.dir.join(LINES)).unwrap();
    OUT.set(out).unwrap();
    let said = |event| say(Line::Process { process: plan.process, event });
    let (keys, clock): (Vec<String>, _) = ((0..KEYS).map(|key| format!("k-{key}")).collect(), ManualClock::new());
    let engine = Engine::options().clock(clock.clone()).schema(plan.schema.as_str()).connect(&plan.url).unwrap();
    let hour = AtomicU64::new(0);
    let still = Still::shared(plan.dir.clone());
    let world = World { still, ..World::new(&engine, &keys, (&clock, &hour), Fault::None) };
    said(Event::Joined);
    let first = u64::from(plan.process) * THREADS;
    let mut held: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (first..first + plan.threads)
            .map(|nth| {
                let caller = Caller::new(&world, nth, plan.seed ^ nth << 8);
                scope.spawn(move || caller.run(CALLS, None, Vec::new()))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut last = Caller::new(&world, first + plan.threads, 0);
    (0..KEYS).for_each(|key| assert!(last.call(key, Op::Get, None)));
    let closes = plan.seed % 2 == 0;
    if closes {
        while let Some((key, claim)) = held.pop() {
            let op = Op::End { token: claim.token(), ending: Ending::Release };
            last.call(key, op, Some((key, claim)));
        }
    }
    drop(last);
    drop(world);
    said(Event::Ends);
    if closes {
        engine.close().unwrap();
    } else {
        // Claims are alive: the process dies for them.
        engine.abort().unwrap();
    }
}

/// Not a test: a process that is killed.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    live(&serde_json::from_str(&plan).unwrap());
}
