//! Threads that make every kind of call on few keys, and record each call and its answer.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oncekey::{Engine, ErrorKind, clock::ManualClock};
use serde::{Deserialize, Serialize};

use crate::calls::{Held, Ops, ask, hours, manager};
use crate::faults::Fault;
use crate::model::{Answer, Ending, Hour, Op, Outcome, ROWS, Request, RowOp, SUCCESS_TTL};
use crate::still::Still;
use crate::threads::Rng;

/// A line of a history. The order of the lines is the order of time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The store was opened at this hour.
    Opened(Hour),
    Call {
        thread: u64,
        key: usize,
        op: Op,
    },
    Answer {
        thread: u64,
        answer: Answer,
    },
    /// The store is closed, so the call has not happened.
    Closed {
        thread: u64,
    },
    /// From here on, calls may find the store closed.
    Closing,
    /// All threads have stopped by themselves.
    Stopped,
    /// Of several processes with one store.
    Process {
        process: u8,
        event: Event,
    },
}

/// The parts of a process's life, in pairs: something happens between the first and the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    Starts,
    Joined,
    /// The server ends its sessions, and with them its lock.
    Loses,
    Lost,
    /// The process has another lock and has adopted its claims, and no call runs in any process.
    Adopted,
    Ends,
    /// All of its sessions have ended.
    Ended,
}

/// Writes one line in one write: before a call, or after its answer.
pub(crate) fn say(line: Line) {
    let text = format!("@{}\n", serde_json::to_string(&line).unwrap());
    #[cfg(feature = "postgres")]
    if crate::instance::sent(&text) {
        return;
    }
    std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
}

/// The end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By `close`: live claims keep the store open until they end.
    Close,
    /// By `abort`: live claims keep nothing, as if the process had died.
    Abort,
}

/// The state that all threads of a store share.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) ops: Ops,
    /// A manager that faults use for data that no answer may show.
    pub(crate) behind: Ops,
    pub(crate) keys: &'a [String],
    pub(crate) clock: &'a ManualClock,
    pub(crate) hour: &'a AtomicU64,
    pub(crate) still: Still,
    /// The tokens of each key that were given by `initiate`, the newest last.
    pub(crate) tokens: Mutex<HashMap<usize, Vec<u64>>>,
    pub(crate) fault: Fault,
}

impl<'a> World<'a> {
    pub(crate) fn new(
        engine: &'a Engine,
        keys: &'a [String],
        (clock, hour): (&'a ManualClock, &'a AtomicU64),
        fault: Fault,
    ) -> Self {
        let ops = manager(engine, "ops", fault.success_ttl().unwrap_or(SUCCESS_TTL));
        let behind = manager(engine, "behind", SUCCESS_TTL);
        Self { engine, ops, behind, keys, clock, hour, still: Still::default(), tokens: Mutex::default(), fault }
    }
}

/// A thread that makes calls.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) world: &'a World<'a>,
    pub(crate) thread: u64,
    pub(crate) rng: Rng,
    pub(crate) held: Vec<Held>,
    /// Endings that a fault has answered but not made.
    pub(crate) owed: Vec<(Held, Ending)>,
    /// Outcomes that a fault remembers.
    pub(crate) cache: HashMap<usize, Outcome>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(world: &'a World<'a>, thread: u64, seed: u64) -> Self {
        Self { world, thread, rng: Rng::new(seed), held: Vec::new(), owed: Vec::new(), cache: HashMap::new() }
    }

    /// Makes calls until the store is closed, or this number of calls. Then closes the store, if this thread is the one
    /// that does so. `old` are claims from before the last close, which can do nothing.
    pub(crate) fn run(mut self, calls: u64, closes: Option<End>, old: Vec<Held>) -> Vec<Held> {
        for (_, claim) in old {
            assert_eq!(claim.succeed(&0).unwrap_err().kind(), ErrorKind::Closed);
        }
        for _ in 0..calls {
            if !self.step() {
                return self.held;
            }
        }
        match closes {
            Some(End::Close) => assert!(self.call(0, Op::Close, None)),
            Some(End::Abort) => {
                say(Line::Closing);
                self.world.engine.clone().abort().unwrap();
            }
            None => {}
        }
        self.held
    }

    /// Ends all claims that outlived the close of their engine, or takes them away.
    pub(crate) fn outlive(mut self, held: Vec<Held>) {
        self.held = held;
        self.pay();
        while let Some((key, claim)) = self.held.pop() {
            let (dice, value) = (self.rng.below(8), self.rng.next());
            if dice == 0 {
                self.call(key, Op::Revoke, None);
            }
            let token = claim.token();
            let op = match dice {
                1 => Op::Drop { token, releases: value % 2 == 0 },
                2 => Op::End { token, ending: Ending::Release },
                _ => Op::End { token, ending: Ending::Finish(Outcome::Success(value)) },
            };
            self.call(key, op, Some((key, claim)));
            if dice == 3 {
                self.call(key, Op::Get, None);
            }
        }
    }

    /// Makes one call. Returns false if the store is closed.
    fn step(&mut self) -> bool {
        self.pay();
        let key = usize::try_from(self.rng.below(self.world.keys.len() as u64 + 1)).unwrap();
        let (key, op, claim) = if key == self.world.keys.len() { (key, self.rows(), None) } else { self.choose(key) };
        self.call(key, op, claim)
    }

    pub(crate) fn call(&mut self, key: usize, op: Op, claim: Option<Held>) -> bool {
        let thread = self.thread;
        let still = &self.world.still;
        let _still = if let Op::Later(_) = op { still.moves() } else { still.calls() };
        say(Line::Call { thread, key, op });
        let answer = self.answer(key, op, claim);
        say(answer.map_or(Line::Closed { thread }, |answer| Line::Answer { thread, answer }));
        if let Some(Answer::Initiated { token }) = answer {
            // After the line: else a kill in between leaves an ending by a token that no answer has given.
            self.world.tokens.lock().unwrap().entry(key).or_default().push(token);
        }
        answer.is_some()
    }

    fn rows(&mut self) -> Op {
        let mut below = |bound: usize| usize::try_from(self.rng.below(bound as u64)).unwrap();
        let (from, row, dice) = (below(ROWS), below(ROWS), below(8));
        let value = if dice == 0 { 0 } else { self.rng.next() };
        Op::Rows(match dice {
            0 | 1 => RowOp::Put { row, value },
            2 | 3 => RowOp::Read { from },
            _ => RowOp::ReadAndPut { from, row, value },
        })
    }

    /// Chooses a call. An ending takes one of the held claims.
    fn choose(&mut self, key: usize) -> (usize, Op, Option<Held>) {
        let (dice, number) = (self.world.fault.favors(self.rng.below(32)), self.rng.next());
        let outcome = if number % 3 == 0 { Outcome::Failure(number) } else { Outcome::Success(number) };
        let ending = match number / 3 % 4 {
            0 => Ending::Release,
            1 => Ending::Interrupt,
            _ => Ending::Finish(outcome),
        };
        if !self.held.is_empty() && (dice < 10 || self.held.len() > 2) {
            let nth = usize::try_from(self.rng.below(self.held.len() as u64)).unwrap();
            let (key, claim) = self.held.swap_remove(nth);
            let token = claim.token();
            let op = match dice % 4 {
                0 => Op::Drop { token, releases: number % 2 == 0 },
                _ => Op::End { token, ending },
            };
            return (key, op, Some((key, claim)));
        }
        let resolution = if ending == Ending::Interrupt { Ending::Finish(outcome) } else { ending };
        // Most retries carry the same request.
        let request = Request::from(number % 16 == 0) + Request::from(number % 5 == 0);
        let begin = |waits| Op::Begin { request, resumes: number / 5 % 2 == 0, waits };
        let op = match dice {
            0..=11 => begin(false),
            12..=14 => begin(true),
            15 => Op::Wait,
            16 => Op::Revoke,
            17..=19 => Op::Initiate,
            20..=22 => self.token(key, number).map_or(Op::Initiate, |token| Op::EndByKey { token, ending: resolution }),
            23..=25 => Op::Resolve(resolution),
            26 => Op::Extend,
            27 => Op::Remove,
            28 => Op::Reopen,
            29 | 30 => Op::Later(1 + number % 3),
            _ => Op::Get,
        };
        (key, op, None)
    }

    /// Returns a token of the key, mostly the newest.
    fn token(&self, key: usize, number: u64) -> Option<u64> {
        let tokens = self.world.tokens.lock().unwrap();
        let of_key = tokens.get(&key)?;
        let back = usize::from(number / 16 % 3 == 0);
        of_key.iter().rev().nth(back).or(of_key.last()).copied()
    }

    /// Returns the answer of the engine, or `None` if it is closed.
    pub(crate) fn ask(&mut self, key: usize, op: Op, claim: Option<Held>) -> Option<Answer> {
        self.ask_of(&self.world.ops, key, op, claim)
    }

    /// Advances the time of the store. A call does so by what the clock of its process has advanced, unless other
    /// processes have done so since its last look.
    fn advance_all(&self, by: Duration) {
        for by in [Duration::from_millis(1), by] {
            self.world.clock.advance(by);
            self.world.ops.get("no key of a history").unwrap();
        }
    }

    pub(crate) fn ask_of(&mut self, ops: &Ops, key: usize, op: Op, claim: Option<Held>) -> Option<Answer> {
        if let Op::Later(by) = op {
            self.world.hour.fetch_add(by, Ordering::Relaxed);
            if self.world.still.is_shared() {
                self.advance_all(hours(by));
            } else {
                self.world.clock.advance(hours(by));
            }
            return Some(Answer::Done);
        }
        let longest = if self.world.still.is_shared() { 40_000 } else { 4_000 };
        let patience = Duration::from_micros(self.rng.below(longest));
        let name = self.world.keys.get(key).map_or("", String::as_str);
        match ask(ops, (key, name), op, claim, patience, &mut self.held) {
            Ok(answer) => Some(answer),
            Err(error) if error.kind() == ErrorKind::Closed => None,
            Err(error) => panic!("{op:?}: {error}"),
        }
    }
}
