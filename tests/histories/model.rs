//! What one key does, one call after the other: the rules of a record, told without the crate's code.

use serde::{Deserialize, Serialize};

/// Milliseconds would be too fine: every time-to-live here is a number of hours.
pub(crate) type Hour = u64;

pub(crate) const SUCCESS_TTL: Hour = 2;
pub(crate) const FAILURE_TTL: Hour = 1;
pub(crate) const UNFINISHED_TTL: Hour = 4;
pub(crate) const EXTENDED: Hour = 5;

/// Which payload a retry carries; 0 is none.
pub(crate) type Request = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Success(u64),
    Failure(u64),
}

/// How a claim ends, or an interrupted record is resolved. Values are never used twice, so that each says where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Ending {
    Finish(Outcome),
    Release,
    Interrupt,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Op {
    /// With a time-out or at once.
    Begin {
        request: Request,
        resumes: bool,
        waits: bool,
    },
    Initiate,
    /// Until nobody is at work.
    Wait,
    Get,
    /// With the token of a claim.
    End {
        token: u64,
        ending: Ending,
    },
    /// As an ending, but nobody is told whether it was one, and it is not durable when it returns.
    Drop {
        token: u64,
        releases: bool,
    },
    EndByKey(Ending),
    Resolve(Ending),
    Extend,
    Remove,
    Reopen,
    /// Takes it away from its owner.
    Revoke,
    /// Time passes, for all keys.
    Later(Hour),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Did(bool),
    Claimed {
        token: u64,
        generation: u64,
        attempt: u32,
    },
    Finished(Outcome),
    Mismatch,
    Absent,
    Unfinished {
        status: Unfinished,
        attempt: u32,
    },
    /// What `wait` says: it does not say which attempt it is.
    Is(Unfinished),
    Refused(Refusal),
    /// Others were waiting: nothing has changed.
    Busy,
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
    InProgress(Owner),
    Released,
    Interrupted,
    Finished(Outcome),
}

/// One generation of a key. Request and policy are fixed when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Life {
    request: Request,
    resumes: bool,
    /// Something may have happened under its request.
    bound: bool,
    /// Nothing while only by-key verbs have seen it.
    generation: Option<u64>,
    attempt: u32,
    state: State,
    /// When it is absent again; never while it has an owner.
    expires: Hour,
}

/// A key between two calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    life: Option<Life>,
    now: Hour,
    /// The largest token that a claim of the key had.
    newest: u64,
}

impl Model {
    /// The key after a call that answered this; `None` if it cannot have answered this now. Without an answer the call was cut
    /// off, and happens all the same.
    pub(crate) fn step(self, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        if answer == Some(&Answer::Busy) {
            // What has run is recorded, whoever waits.
            let ends = matches!(op, Op::End { .. } | Op::Drop { .. } | Op::EndByKey(_));
            return (!ends).then_some(self);
        }
        let (right, mut next) = self.apply(op);
        match (right, answer) {
            (
                Answer::Claimed { generation, attempt, .. },
                Some(Answer::Claimed { token, generation: of, attempt: nth }),
            ) => {
                let same = if attempt == 1 { of == token } else { generation == 0 || generation == *of };
                if !same || *nth != attempt || *token <= self.newest {
                    return None;
                }
                next.newest = *token;
                let life = next.life.as_mut()?;
                (life.state, life.generation) = (State::InProgress(Owner::Claim(*token)), Some(*of));
                Some(next)
            }
            (right, answer) => answer.is_none_or(|answer| *answer == right).then_some(next),
        }
    }

    /// The process ends, and at this hour another opens the store. What had an owner then has time from there on.
    pub(crate) fn restarted(self, now: Hour) -> Self {
        let mut next = self.later(now - self.now);
        if let Some(life) = &mut next.life {
            if matches!(life.state, State::InProgress(_)) {
                (life.state, life.expires, life.bound) = (State::Interrupted, now + UNFINISHED_TTL, true);
            }
        }
        next
    }

    fn later(mut self, hours: Hour) -> Self {
        self.now += hours;
        let now = self.now;
        self.life = self.life.filter(|life| matches!(life.state, State::InProgress(_)) || now < life.expires);
        self
    }

    fn apply(self, op: &Op) -> (Answer, Self) {
        match *op {
            Op::Begin { request, resumes, .. } => self.begin(request, resumes, Owner::Claim(0)),
            Op::Initiate => match self.begin(0, false, Owner::Process) {
                (Answer::Claimed { .. }, next) => (Answer::Did(true), next),
                (_, same) => (Answer::Did(false), same),
            },
            Op::Get => (self.seen(), self),
            Op::Wait => match self.seen() {
                Answer::Unfinished { status, .. } => (Answer::Is(status), self),
                other => (other, self),
            },
            Op::End { token, ending } => match self.life {
                Some(life) if life.state == State::InProgress(Owner::Claim(token)) => {
                    (Answer::Done, self.ended(ending))
                }
                _ => self.refuse(Refusal::ClaimLost),
            },
            Op::Drop { token, releases } => {
                let ending = if releases { Ending::Release } else { Ending::Interrupt };
                (Answer::Done, self.apply(&Op::End { token, ending }).1)
            }
            Op::EndByKey(ending) => match self.life.map(|life| life.state) {
                Some(State::InProgress(Owner::Process)) => (Answer::Done, self.ended(ending)),
                Some(State::InProgress(Owner::Claim(_))) => self.refuse(Refusal::OwnedByClaim),
                _ => self.refuse(Refusal::NotInProgress),
            },
            Op::Resolve(ending) => match self.life.map(|life| life.state) {
                Some(State::Interrupted) => (Answer::Done, self.ended(ending)),
                Some(State::InProgress(_)) => self.refuse(Refusal::OwnedByClaim),
                Some(State::Released | State::Finished(_)) => self.refuse(Refusal::NotInterrupted),
                None => self.refuse(Refusal::NotFound),
            },
            Op::Extend => self.extend(),
            Op::Remove => match self.life.map(|life| life.state) {
                Some(State::InProgress(_)) => self.refuse(Refusal::OwnedByClaim),
                life => (Answer::Did(life.is_some()), Self { life: None, ..self }),
            },
            Op::Reopen => match self.life.map(|life| life.state) {
                Some(State::InProgress(_)) => self.refuse(Refusal::OwnedByClaim),
                Some(State::Finished(_)) => (Answer::Did(true), Self { life: None, ..self }),
                Some(State::Released | State::Interrupted) | None => (Answer::Did(false), self),
            },
            Op::Revoke => match self.life.map(|life| life.state) {
                Some(State::InProgress(_)) => (Answer::Done, self.ended(Ending::Interrupt)),
                Some(_) => self.refuse(Refusal::NotInProgress),
                None => self.refuse(Refusal::NotFound),
            },
            Op::Later(hours) => (Answer::Done, self.later(hours)),
        }
    }

    fn begin(self, request: Request, resumes: bool, owner: Owner) -> (Answer, Self) {
        let state = State::InProgress(owner);
        let fresh = Life { request, resumes, bound: false, generation: None, attempt: 1, state, expires: 0 };
        let life = match self.life {
            None => fresh,
            Some(life) if life.state == State::Released && !life.bound && life.request != request => fresh,
            Some(life) if life.request != 0 && life.request != request => return (Answer::Mismatch, self),
            Some(life) => match life.state {
                State::Interrupted if !life.resumes => return (self.seen(), self),
                State::InProgress(_) | State::Finished(_) => return (self.seen(), self),
                State::Released | State::Interrupted => Life { attempt: life.attempt + 1, state, ..life },
            },
        };
        let (generation, attempt) = (life.generation.unwrap_or(0), life.attempt);
        (Answer::Claimed { token: 0, generation, attempt }, Self { life: Some(life), ..self })
    }

    fn seen(&self) -> Answer {
        let Some(life) = &self.life else { return Answer::Absent };
        let status = match life.state {
            State::Finished(outcome) => return Answer::Finished(outcome),
            State::InProgress(_) => Unfinished::InProgress,
            State::Released => Unfinished::Released,
            State::Interrupted => Unfinished::Interrupted,
        };
        Answer::Unfinished { status, attempt: life.attempt }
    }

    fn ended(self, ending: Ending) -> Self {
        let (state, ttl) = match ending {
            Ending::Finish(outcome @ Outcome::Success(_)) => (State::Finished(outcome), SUCCESS_TTL),
            Ending::Finish(outcome @ Outcome::Failure(_)) => (State::Finished(outcome), FAILURE_TTL),
            Ending::Release => (State::Released, UNFINISHED_TTL),
            Ending::Interrupt => (State::Interrupted, UNFINISHED_TTL),
        };
        // No claim here asks for an effect id; what was begun by key may have had any effect.
        let life = self.life.map(|life| {
            let untouched = matches!((life.state, ending), (State::InProgress(Owner::Claim(_)), Ending::Release));
            Life { state, bound: life.bound || !untouched, expires: self.now + ttl, ..life }
        });
        Self { life, ..self }
    }

    fn refuse(self, refusal: Refusal) -> (Answer, Self) {
        (Answer::Refused(refusal), self)
    }

    fn extend(self) -> (Answer, Self) {
        match self.life {
            Some(life) if matches!(life.state, State::Finished(_)) => {
                let expires = life.expires.max(self.now + EXTENDED);
                (Answer::Did(true), Self { life: Some(Life { expires, ..life }), ..self })
            }
            _ => (Answer::Did(false), self),
        }
    }
}
