//! Faults of an engine, for the checker to detect. They are placed between the threads and the engine, or in the
//! engine's options.

use std::time::Duration;

use oncekey::{Durability, EngineOptions, ErrorKind, Status, admin::Resolution};
use serde::{Deserialize, Serialize};

use crate::caller::{Caller, World};
use crate::calls::Held;
use crate::model::{Answer, Hour, Op, ROWS, RowOp, SUCCESS_TTL, Unfinished};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    None,
    /// Answers calls before the journal is synced.
    AnswersBeforeSync,
    /// Answers an ending, and makes it a little later.
    AnswersBeforeCommit,
    /// Gives a second claim to some callers that should get "in progress".
    TwoOwners,
    /// Keeps returning the first outcome that was read.
    StaleReplay,
    ExpiresEarly,
    ExpiresLate,
    /// Resumes records that must be held.
    NoHold,
    /// Releases, at the open, the records that the death of a process left.
    FreesTheDead,
    /// Makes a call, and answers that the engine is busy.
    BusyAndDone,
    /// An ending by key ends the key's newest `initiate`, whichever it belongs to.
    UnfencedByKey,
    /// Refuses an ending as busy.
    BusyEnding,
    /// Answers a close with no live claims.
    CloseForgetsClaims,
    /// Refuses the endings of live claims after a close.
    CloseEndsClaims,
    /// Answers reads after a close.
    AnswersAfterClose,
    /// Answers a revoke, and leaves the key to its owner.
    RevokesNobody,
    /// Reads a range before the transaction that writes, and does not check it.
    ReadsRangeBefore,
    /// Leaves out all rows of a range but the first.
    CutsRange,
}

impl Fault {
    pub(crate) const ALL: [Self; 17] = [
        Self::AnswersBeforeSync,
        Self::AnswersBeforeCommit,
        Self::TwoOwners,
        Self::StaleReplay,
        Self::ExpiresEarly,
        Self::ExpiresLate,
        Self::NoHold,
        Self::FreesTheDead,
        Self::BusyAndDone,
        Self::UnfencedByKey,
        Self::BusyEnding,
        Self::CloseForgetsClaims,
        Self::CloseEndsClaims,
        Self::AnswersAfterClose,
        Self::RevokesNobody,
        Self::ReadsRangeBefore,
        Self::CutsRange,
    ];

    pub(crate) fn options(self, options: EngineOptions) -> EngineOptions {
        match self {
            Self::AnswersBeforeSync => options.durability(Durability::Eventual { interval: Duration::from_millis(50) }),
            _ => options,
        }
    }

    pub(crate) fn success_ttl(self) -> Option<Hour> {
        match self {
            Self::ExpiresEarly => Some(SUCCESS_TTL - 1),
            Self::ExpiresLate => Some(SUCCESS_TTL + 1),
            _ => None,
        }
    }

    /// Turns a number that chooses a call into one that chooses a call on which the fault shows. Two `initiate`s of one
    /// key and a late ending of the first are rare among all calls.
    pub(crate) fn favors(self, dice: u64) -> u64 {
        match self {
            Self::UnfencedByKey if dice % 4 > 0 => 17 + dice % 6,
            _ => dice,
        }
    }

    pub(crate) fn opened(self, world: &World<'_>) {
        if self != Self::FreesTheDead {
            return;
        }
        for key in world.keys {
            if world.ops.get(key).unwrap().is_some_and(|record| record.status() == Status::Interrupted) {
                world.ops.resolve(key, Resolution::Retry).unwrap();
            }
        }
    }
}

impl Caller<'_> {
    /// Returns the engine's answer, or the fault's.
    pub(crate) fn answer(&mut self, key: usize, op: Op, claim: Option<Held>) -> Option<Answer> {
        match (self.world.fault, op) {
            (Fault::AnswersBeforeCommit, Op::End { ending, .. }) => {
                self.owed.push((claim?, ending));
                Some(Answer::Done)
            }
            (Fault::TwoOwners, Op::Begin { .. }) => match self.ask(key, op, claim) {
                Some(Answer::Unfinished { .. }) => self.ask_of(&self.world.behind, key, op, None),
                answer => answer,
            },
            (Fault::StaleReplay, Op::Begin { .. } | Op::Get) => {
                if let Some(known) = self.cache.get(&key) {
                    return Some(Answer::Finished(*known));
                }
                let answer = self.ask(key, op, claim);
                if let Some(Answer::Finished(known)) = answer {
                    self.cache.insert(key, known);
                }
                answer
            }
            (Fault::BusyAndDone, Op::Begin { .. } | Op::Remove) => match self.ask(key, op, claim)? {
                Answer::Claimed { .. } | Answer::Did(true) if self.rng.below(4) == 0 => Some(Answer::Busy),
                answer => Some(answer),
            },
            (Fault::BusyEnding, Op::End { .. }) if self.rng.below(4) == 0 => {
                self.held.extend(claim);
                Some(Answer::Busy)
            }
            (Fault::CloseForgetsClaims, Op::Close) => self.ask(key, op, claim).map(|_| Answer::Alive(0)),
            // The claim is dropped: its store must end all the same.
            (Fault::CloseEndsClaims, Op::End { .. }) if self.is_closed() => None,
            (Fault::AnswersAfterClose, Op::Get) => Some(self.ask(key, op, claim).unwrap_or(Answer::Absent)),
            (Fault::RevokesNobody, Op::Revoke) => match self.ask(key, Op::Get, claim)? {
                Answer::Unfinished { status: Unfinished::InProgress, .. } => Some(Answer::Done),
                _ => self.ask(key, op, None),
            },
            (Fault::ReadsRangeBefore, Op::Rows(RowOp::ReadAndPut { from, row, value })) => {
                let read = self.ask(key, Op::Rows(RowOp::Read { from }), claim)?;
                std::thread::yield_now();
                self.ask(key, Op::Rows(RowOp::Put { row, value }), None)?;
                Some(read)
            }
            (Fault::CutsRange, Op::Rows(_)) => match self.ask(key, op, claim)? {
                Answer::Rows(mut read) => {
                    let first = read.iter().position(|value| *value > 0).unwrap_or(ROWS - 1);
                    read[first + 1..].fill(0);
                    Some(Answer::Rows(read))
                }
                answer => Some(answer),
            },
            (Fault::NoHold, Op::Begin { request, waits, .. }) => {
                self.ask(key, Op::Begin { request, waits, resumes: true }, claim)
            }
            (Fault::UnfencedByKey, Op::EndByKey { ending, .. }) => {
                let newest = self.world.tokens.lock().unwrap().get(&key).and_then(|of_key| of_key.last().copied());
                self.ask(key, Op::EndByKey { token: newest?, ending }, claim)
            }
            _ => self.ask(key, op, claim),
        }
    }

    fn is_closed(&self) -> bool {
        self.world.ops.get("k").is_err_and(|error| error.kind() == ErrorKind::Closed)
    }

    /// Makes the endings that were already answered.
    pub(crate) fn pay(&mut self) {
        for (claim, ending) in std::mem::take(&mut self.owed) {
            let op = Op::End { token: claim.1.token(), ending };
            self.ask(claim.0, op, Some(claim));
        }
    }
}
