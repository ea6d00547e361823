//! What an engine could do wrong: put between the threads and the engine, or into its options, for the checker to find.

use std::time::Duration;

use oncekey::{Durability, EngineOptions, Status, admin::Resolution};
use serde::{Deserialize, Serialize};

use crate::caller::{Caller, World};
use crate::calls::Held;
use crate::model::{Answer, Hour, Op, SUCCESS_TTL};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    None,
    /// Calls are answered before the journal is synced.
    AnswersBeforeSync,
    /// An ending is answered, and made a little later.
    AnswersBeforeCommit,
    /// Who is refused because another is at work is at times let in all the same.
    TwoOwners,
    /// An outcome that was read once is given ever after.
    StaleReplay,
    ExpiresEarly,
    ExpiresLate,
    /// What must be held is resumed.
    NoHold,
    /// An open frees what the death of a process left behind.
    FreesTheDead,
    /// A call is made, and its caller is told that others were waiting.
    BusyAndDone,
}

impl Fault {
    pub(crate) const ALL: [Self; 9] = [
        Self::AnswersBeforeSync,
        Self::AnswersBeforeCommit,
        Self::TwoOwners,
        Self::StaleReplay,
        Self::ExpiresEarly,
        Self::ExpiresLate,
        Self::NoHold,
        Self::FreesTheDead,
        Self::BusyAndDone,
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
    /// The engine's answer, or what the fault makes of it.
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
            (Fault::NoHold, Op::Begin { request, waits, .. }) => {
                self.ask(key, Op::Begin { request, waits, resumes: true }, claim)
            }
            _ => self.ask(key, op, claim),
        }
    }

    /// Makes the endings that were answered before.
    pub(crate) fn pay(&mut self) {
        for (claim, ending) in std::mem::take(&mut self.owed) {
            let op = Op::End { token: claim.1.token(), ending };
            self.ask(claim.0, op, Some(claim));
        }
    }
}
