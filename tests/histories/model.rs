//! What one key does, one call after the other: the rules of a record, told without the crate's code.

use serde::{Deserialize, Serialize};

/// Milliseconds would be too fine: every time-out here is a number of hours.
pub(crate) type Hour = u64;

pub(crate) const SUCCESS_TTL: Hour = 2;
pub(crate) const FAILURE_TTL: Hour = 1;
pub(crate) const EXTENDED: Hour = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Settled {
    Retry,
    Success(u64),
    Failure(u64),
}

/// A call. Values are never used twice, so that each says where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Op {
    Begin,
    /// With a time-out of some milliseconds.
    BeginOrWait,
    Wait,
    Get,
    Succeed { token: u64, value: u64 },
    Fail { token: u64, value: u64 },
    Release { token: u64 },
    Interrupt { token: u64 },
    Initiate,
    SuccessByKey { value: u64 },
    ReleaseByKey,
    Resolve(Settled),
    Extend,
    Remove,
    Reopen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Success(u64),
    Failure(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Is(bool),
    Claimed { token: u64, attempt: u32 },
    Finished(Outcome),
    InProgress,
    Released,
    Interrupted,
    Absent,
    /// What `get` says of an unfinished record.
    Unfinished { status: Unfinished, attempt: u32 },
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Unfinished {
    InProgress,
    Released,
    Interrupted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Refusal {
    OwnedByClaim,
    NotInProgress,
    NotInterrupted,
    NotFound,
    ClaimLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Claim(u64),
    Process,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Absent,
    InProgress { owner: Owner, attempt: u32 },
    Released { attempt: u32 },
    Interrupted { attempt: u32 },
    Finished { outcome: Outcome, expires: Hour },
}

/// A key between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    state: State,
    now: Hour,
    /// The largest token that a claim of the key had.
    newest: u64,
    /// An interrupted record is claimed by whoever comes next.
    resumes: bool,
}

impl Model {
    pub(crate) fn new(resumes: bool) -> Self {
        Self { state: State::Absent, now: 0, newest: 0, resumes }
    }

    /// The key after a call that answered this; `None` if it cannot have answered this now. Without an answer the call was cut
    /// off, and happens all the same.
    pub(crate) fn step(mut self, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        let (right, next) = self.apply(op);
        match (right, answer) {
            (Answer::Claimed { attempt, .. }, Some(Answer::Claimed { token, attempt: told })) => {
                if *told != attempt || *token <= self.newest {
                    return None;
                }
                self.newest = *token;
                self.state = State::InProgress { owner: Owner::Claim(*token), attempt };
            }
            (right, answer) if answer.is_none_or(|answer| *answer == right) => self.state = next,
            _ => return None,
        }
        Some(self)
    }

    /// Time passes.
    pub(crate) fn later(mut self, hours: Hour) -> Self {
        self.now += hours;
        if matches!(self.state, State::Finished { expires, .. } if expires <= self.now) {
            self.state = State::Absent;
        }
        self
    }

    /// The process ends, and another opens the store.
    pub(crate) fn restarted(mut self) -> Self {
        if let State::InProgress { attempt, .. } = self.state {
            self.state = State::Interrupted { attempt };
        }
        self
    }

    fn apply(&self, op: &Op) -> (Answer, State) {
        match op {
            Op::Begin | Op::BeginOrWait => self.begin(Owner::Claim(0)),
            Op::Initiate => match self.begin(Owner::Process) {
                (Answer::Claimed { .. }, next) => (Answer::Is(true), next),
                (_, same) => (Answer::Is(false), same),
            },
            Op::Wait => (self.seen(), self.state),
            Op::Get => (self.got(), self.state),
            Op::Succeed { token, value } => self.end(*token, self.finished(Outcome::Success(*value))),
            Op::Fail { token, value } => self.end(*token, self.finished(Outcome::Failure(*value))),
            Op::Release { token } => self.end(*token, State::Released { attempt: self.attempt() }),
            Op::Interrupt { token } => self.end(*token, State::Interrupted { attempt: self.attempt() }),
            Op::SuccessByKey { value } => self.end_by_key(self.finished(Outcome::Success(*value))),
            Op::ReleaseByKey => self.end_by_key(State::Released { attempt: self.attempt() }),
            Op::Resolve(settled) => self.resolve(*settled),
            Op::Extend => self.extend(),
            Op::Remove => match self.state {
                State::Absent => (Answer::Is(false), self.state),
                State::InProgress { owner: Owner::Claim(_), .. } => self.refuse(Refusal::OwnedByClaim),
                _ => (Answer::Is(true), State::Absent),
            },
            Op::Reopen => match self.state {
                State::Finished { .. } => (Answer::Is(true), State::Absent),
                State::InProgress { .. } => self.refuse(Refusal::OwnedByClaim),
                _ => (Answer::Is(false), self.state),
            },
        }
    }

    fn begin(&self, owner: Owner) -> (Answer, State) {
        let claimed = |attempt| (Answer::Claimed { token: 0, attempt }, State::InProgress { owner, attempt });
        match self.state {
            State::Absent => claimed(1),
            State::Released { attempt } => claimed(attempt + 1),
            State::Interrupted { attempt } if self.resumes => claimed(attempt + 1),
            _ => (self.seen(), self.state),
        }
    }

    fn seen(&self) -> Answer {
        match self.state {
            State::Absent => Answer::Absent,
            State::InProgress { .. } => Answer::InProgress,
            State::Released { .. } => Answer::Released,
            State::Interrupted { .. } => Answer::Interrupted,
            State::Finished { outcome, .. } => Answer::Finished(outcome),
        }
    }

    fn got(&self) -> Answer {
        let unfinished = |status| Answer::Unfinished { status, attempt: self.attempt() };
        match self.state {
            State::InProgress { .. } => unfinished(Unfinished::InProgress),
            State::Released { .. } => unfinished(Unfinished::Released),
            State::Interrupted { .. } => unfinished(Unfinished::Interrupted),
            State::Absent | State::Finished { .. } => self.seen(),
        }
    }

    fn attempt(&self) -> u32 {
        match self.state {
            State::InProgress { attempt, .. } | State::Released { attempt } | State::Interrupted { attempt } => attempt,
            State::Absent | State::Finished { .. } => 0,
        }
    }

    fn finished(&self, outcome: Outcome) -> State {
        let ttl = if matches!(outcome, Outcome::Success(_)) { SUCCESS_TTL } else { FAILURE_TTL };
        State::Finished { outcome, expires: self.now + ttl }
    }

    fn refuse(&self, refusal: Refusal) -> (Answer, State) {
        (Answer::Refused(refusal), self.state)
    }

    fn end(&self, token: u64, next: State) -> (Answer, State) {
        match self.state {
            State::InProgress { owner, .. } if owner == Owner::Claim(token) => (Answer::Done, next),
            _ => self.refuse(Refusal::ClaimLost),
        }
    }

    fn end_by_key(&self, next: State) -> (Answer, State) {
        match self.state {
            State::InProgress { owner: Owner::Process, .. } => (Answer::Done, next),
            State::InProgress { .. } => self.refuse(Refusal::OwnedByClaim),
            _ => self.refuse(Refusal::NotInProgress),
        }
    }

    fn resolve(&self, settled: Settled) -> (Answer, State) {
        match (self.state, settled) {
            (State::Interrupted { attempt }, Settled::Retry) => (Answer::Done, State::Released { attempt }),
            (State::Interrupted { .. }, Settled::Success(value)) => {
                (Answer::Done, self.finished(Outcome::Success(value)))
            }
            (State::Interrupted { .. }, Settled::Failure(value)) => {
                (Answer::Done, self.finished(Outcome::Failure(value)))
            }
            (State::Absent, _) => self.refuse(Refusal::NotFound),
            (State::InProgress { .. }, _) => self.refuse(Refusal::OwnedByClaim),
            _ => self.refuse(Refusal::NotInterrupted),
        }
    }

    fn extend(&self) -> (Answer, State) {
        let State::Finished { outcome, expires } = self.state else { return (Answer::Is(false), self.state) };
        (Answer::Is(true), State::Finished { outcome, expires: expires.max(self.now + EXTENDED) })
    }
}
