//! Runs calls of every kind on an engine that closes, crashes and opens again, and compares it with the model of the
//! histories.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use oncekey::fuzzing::SYNCS_LEFT;
use oncekey::{Engine, ErrorKind, clock::ManualClock};

use super::calls::{Held, Ops, ask, hours, manager};
use super::model::{Answer, Ending, Hour, Incarnation, Model, Op, Outcome, SUCCESS_TTL};

const MAX_STEPS: usize = 60;

#[derive(Debug, Arbitrary)]
enum End {
    Succeed,
    Fail,
    Release,
    Interrupt,
    Drop(bool),
}

#[derive(Debug, Arbitrary)]
enum Step {
    Begin {
        key: u8,
        request: u8,
        resumes: bool,
        waits: bool,
    },
    End {
        claim: u8,
        how: End,
    },
    Initiate {
        key: u8,
    },
    EndByKey {
        key: u8,
        late: bool,
        how: End,
    },
    Resolve {
        key: u8,
        how: End,
    },
    Look {
        key: u8,
        waits: bool,
    },
    Extend {
        key: u8,
    },
    Forget {
        key: u8,
        reopens: bool,
    },
    Later(u8),
    Compact,
    /// This number of syncs succeeds, and then all fail.
    Break(u8),
    Reopen,
}

/// The possible states of a key.
type Maybe = HashSet<Model>;

struct Run<'a> {
    path: &'a Path,
    clock: ManualClock,
    hour: Hour,
    engine: Engine,
    ops: Ops,
    held: Vec<Held>,
    /// Keys with the tokens that `initiate` gave for them, the newest last.
    tokens: Vec<(u8, u64)>,
    keys: BTreeMap<u8, Maybe>,
    /// Additional states of a key after a crash: a drop does not report when it is durable.
    undone: BTreeMap<u8, Maybe>,
    /// The last value. No value is used twice.
    values: u64,
}

fn opened(path: &Path, clock: &ManualClock) -> (Engine, Ops) {
    let engine = Engine::options().segment_bytes(8 << 10).clock(clock.clone()).open(path).unwrap();
    let ops = manager(&engine, "ops", SUCCESS_TTL);
    (engine, ops)
}

fn stepped(maybe: &Maybe, op: &Op, answer: Option<&Answer>) -> Maybe {
    maybe.iter().filter_map(|model| model.step(Incarnation::default(), op, answer)).collect()
}

impl Run<'_> {
    fn step(&mut self, step: &Step) {
        let key = |key: &u8| key % 4;
        match step {
            Step::Begin { key: of, request, resumes, waits } => {
                self.call(key(of), Op::Begin { request: request % 3, resumes: *resumes, waits: *waits }, None);
            }
            Step::End { claim, how } if !self.held.is_empty() => {
                let nth = usize::from(*claim) % self.held.len();
                let (key, claim) = self.held.swap_remove(nth);
                let token = claim.token();
                let op = match how {
                    End::Drop(releases) => Op::Drop { token, releases: *releases },
                    how => Op::End { token, ending: self.ending(how) },
                };
                self.call(u8::try_from(key).unwrap(), op, Some((key, claim)));
            }
            Step::End { .. } => {}
            Step::Initiate { key: of } => self.call(key(of), Op::Initiate, None),
            Step::EndByKey { key: of, late, how } => {
                let of_key = self.tokens.iter().rev().filter(|(at, _)| *at == key(of));
                if let Some((_, token)) = of_key.take(1 + usize::from(*late)).last().copied() {
                    let ending = self.settled(how);
                    self.call(key(of), Op::EndByKey { token, ending }, None);
                }
            }
            Step::Resolve { key: of, how } => {
                let ending = self.settled(how);
                self.call(key(of), Op::Resolve(ending), None);
            }
            Step::Look { key: of, waits } => self.call(key(of), if *waits { Op::Wait } else { Op::Get }, None),
            Step::Extend { key: of } => self.call(key(of), Op::Extend, None),
            Step::Forget { key: of, reopens } => {
                self.call(key(of), if *reopens { Op::Reopen } else { Op::Remove }, None);
            }
            Step::Later(by) => self.later(Hour::from(by % 4)),
            Step::Compact => {
                if let Err(error) = self.engine.compact_now() {
                    self.crashed(error.kind());
                }
            }
            Step::Break(syncs) => SYNCS_LEFT.store(u64::from(syncs % 8), Ordering::SeqCst),
            Step::Reopen => self.reopen(),
        }
    }

    fn ending(&mut self, how: &End) -> Ending {
        self.values += 1;
        match how {
            End::Succeed => Ending::Finish(Outcome::Success(self.values)),
            End::Fail => Ending::Finish(Outcome::Failure(self.values)),
            End::Release | End::Drop(true) => Ending::Release,
            End::Interrupt | End::Drop(false) => Ending::Interrupt,
        }
    }

    /// Returns the ending for a record without a holder.
    fn settled(&mut self, how: &End) -> Ending {
        match self.ending(how) {
            Ending::Interrupt => Ending::Release,
            ending => ending,
        }
    }

    fn call(&mut self, key: u8, op: Op, claim: Option<Held>) {
        let name = format!("k-{key}");
        let of = (usize::from(key), name.as_str());
        let answered = ask(&self.ops, of, op, claim, Duration::ZERO, &mut self.held);
        let before = self.keys.entry(key).or_insert_with(|| HashSet::from([Model::default().restarted(self.hour)]));
        match answered {
            Ok(answer) => {
                if let Answer::Initiated { token } = answer {
                    self.tokens.push((key, token));
                }
                let after = stepped(before, &op, Some(&answer));
                assert!(!after.is_empty(), "{op:?} -> {answer:?} of {before:?}");
                let was = std::mem::replace(before, after);
                if matches!(op, Op::Drop { .. }) {
                    self.undone.entry(key).or_default().extend(was);
                } else if matches!(answer, Answer::Claimed { .. } | Answer::Initiated { .. } | Answer::Done) {
                    // This call is durable, and so are all calls before it.
                    self.undone.clear();
                }
            }
            Err(error) => {
                let after = stepped(before, &op, None);
                before.extend(after);
                self.crashed(error.kind());
            }
        }
    }

    fn later(&mut self, by: Hour) {
        self.clock.advance(hours(by));
        self.hour += by;
        for maybe in self.keys.values_mut().chain(self.undone.values_mut()) {
            *maybe = stepped(maybe, &Op::Later(by), None);
        }
    }

    fn reopen(&mut self) {
        match self.engine.clone().abort() {
            Ok(()) => self.undone.clear(),
            Err(error) => self.broke(error.kind()),
        }
        self.open();
    }

    /// Handles a failed sync. All later calls fail, and the store is opened again.
    fn crashed(&mut self, kind: ErrorKind) {
        self.broke(kind);
        assert_eq!(self.engine.sync().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(self.engine.clone().abort().unwrap_err().kind(), ErrorKind::Poisoned);
        self.open();
    }

    fn broke(&mut self, kind: ErrorKind) {
        assert!(matches!(kind, ErrorKind::Io | ErrorKind::Poisoned), "{kind:?}");
        for (key, undone) in std::mem::take(&mut self.undone) {
            self.keys.entry(key).or_default().extend(undone);
        }
    }

    fn open(&mut self) {
        SYNCS_LEFT.store(u64::MAX, Ordering::SeqCst);
        self.held.clear();
        (self.engine, self.ops) = opened(self.path, &self.clock);
        for maybe in self.keys.values_mut() {
            *maybe = maybe.iter().map(|model| model.restarted(self.hour)).collect();
        }
    }
}

/// Asserts that each answer is one of the model's, across failures and reopens.
pub fn engine_ops(data: &[u8]) {
    let _alone = super::alone();
    SYNCS_LEFT.store(u64::MAX, Ordering::SeqCst);
    let (dir, clock) = (super::directory(), ManualClock::new());
    let path = dir.path().join("store");
    let (engine, ops) = opened(&path, &clock);
    let (keys, undone) = (BTreeMap::new(), BTreeMap::new());
    let mut run =
        Run { path: &path, clock, hour: 0, engine, ops, held: Vec::new(), tokens: Vec::new(), keys, undone, values: 0 };
    let mut bytes = Unstructured::new(data);
    for step in bytes.arbitrary_iter::<Step>().unwrap().take(MAX_STEPS).map_while(Result::ok) {
        run.step(&step);
    }
    for key in 0..4 {
        run.call(key, Op::Get, None);
    }
    run.reopen();
    for key in 0..4 {
        run.call(key, Op::Get, None);
    }
    run.held.clear();
    run.engine.close().unwrap();
}
