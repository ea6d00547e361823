//! The model of one key, call after call: the rules of a record, without code of the crate.

use serde::{Deserialize, Serialize};

/// An hour. All TTLs here are whole hours, so finer time is not needed.
pub(crate) type Hour = u64;

pub(crate) const SUCCESS_TTL: Hour = 2;
pub(crate) const FAILURE_TTL: Hour = 1;
pub(crate) const UNFINISHED_TTL: Hour = 4;
pub(crate) const EXTENDED: Hour = 5;

/// The payload of a retry. 0 means no fingerprint.
pub(crate) type Request = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Success(u64),
    Failure(u64),
}

/// The ending of a claim, or the resolution of an interrupted record. Each value is used once, so that it shows its
/// origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Ending {
    Finish(Outcome),
    Release,
    Interrupt,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Op {
    /// With a timeout or without waiting.
    Begin {
        request: Request,
        resumes: bool,
        waits: bool,
    },
    Initiate,
    /// Waits until the key has no owner.
    Wait,
    Get,
    /// Ends the claim with this token.
    End {
        token: u64,
        ending: Ending,
    },
    /// Drops a claim. The call has no answer, and is not durable when it returns.
    Drop {
        token: u64,
        releases: bool,
    },
    /// With the token of an `initiate`.
    EndByKey {
        token: u64,
        ending: Ending,
    },
    Resolve(Ending),
    Extend,
    Remove,
    Reopen,
    /// Takes the key from its owner.
    Revoke,
    /// A call on the table, which is checked as an object of its own.
    Rows(RowOp),
    /// Lets time pass, for all keys.
    Later(Hour),
    /// The first step of a close, for all keys: from here on calls are refused. Claims may still end before the close
    /// counts them.
    Closing,
    /// Closes the engine, for all keys. A live claim keeps the store open, and can end.
    Close,
    /// A process has joined the others, and has recorded the deaths before it.
    Joins,
    /// An incarnation loses its lock. From here on others may declare its claims dead.
    Loses,
    /// The next incarnation of the process adopts the claims that no other engine has declared dead.
    Adopts,
    /// A process ends, and all of its locks are free. The next process that reads one of its claims declares the claim
    /// dead.
    Dies,
}

/// A process between two losses of its lock, on PostgreSQL. There is one without several processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Incarnation {
    pub(crate) process: u8,
    /// The number of losses before.
    pub(crate) nth: u8,
}

impl Incarnation {
    /// The number of incarnations of each process that a history may have.
    pub(crate) const MOST: u8 = 4;

    fn bit(self) -> u64 {
        assert!(self.process < 16 && self.nth < Self::MOST, "{self:?}");
        1 << (self.process * Self::MOST + self.nth)
    }
}

pub(crate) const ROWS: usize = 4;

/// A call on a table of a few rows. The value 0 is a row that is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum RowOp {
    Put {
        row: usize,
        value: u64,
    },
    /// Reads a range in a transaction: the rows from this one on.
    Read {
        from: usize,
    },
    /// Reads a range and writes a row in one transaction. The row may be outside of the range.
    ReadAndPut {
        from: usize,
        row: usize,
        value: u64,
    },
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
    Initiated {
        token: u64,
    },
    Finished(Outcome),
    Mismatch,
    Absent,
    Unfinished {
        status: Unfinished,
        attempt: u32,
    },
    /// The answer of `wait`, which does not name the attempt.
    Is(Unfinished),
    Refused(Refusal),
    /// The engine was busy, and nothing has changed.
    Busy,
    /// The rows of the range. Rows outside of it are 0.
    Rows([u64; ROWS]),
    /// The answer of `close`: the number of live claims.
    Alive(u64),
    /// The engine is closed.
    Closed,
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
    Process(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    InProgress(Owner),
    Released,
    Interrupted,
    Finished(Outcome),
}

impl State {
    fn after(ending: Ending) -> Self {
        match ending {
            Ending::Finish(outcome) => Self::Finished(outcome),
            Ending::Release => Self::Released,
            Ending::Interrupt => Self::Interrupted,
        }
    }
}

/// One generation of a key. Request and policy are fixed at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Life {
    request: Request,
    resumes: bool,
    /// True if an effect may have happened for its request.
    bound: bool,
    /// `None` if only by-key calls have used it.
    generation: Option<u64>,
    attempt: u32,
    state: State,
    /// The owner, if the record is in progress.
    owner: Incarnation,
    /// The claim that was declared dead, if no other claim came after it.
    orphan: Option<u64>,
    /// The token of its last owner, if that was one by key.
    by_key: Option<u64>,
    /// The hour from which it is absent. Not used while the key has an owner.
    expires: Hour,
}

/// A key between two calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    life: Option<Life>,
    now: Hour,
    /// The largest token of all claims of the key.
    newest: u64,
    /// Calls may find the store closed. Calls that began before may still take effect.
    closing: bool,
    closed: bool,
    /// The incarnations that have lost their locks, and those whose processes have ended: a set of bits each.
    lost: u64,
    dead: u64,
}

impl Model {
    /// Returns the key after a call with this answer. Returns `None` if the call cannot have this answer now. A call
    /// without an answer was cut off, and takes effect here all the same.
    pub(crate) fn step(self, by: Incarnation, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        match op {
            Op::Loses => return Some(Self { lost: self.lost | by.bit(), ..self }),
            Op::Adopts => return Some(self.adopted(by)),
            Op::Dies => {
                let all = (0..Incarnation::MOST).map(|nth| Incarnation { nth, ..by }.bit());
                return Some(Self { dead: self.dead | all.sum::<u64>(), ..self });
            }
            _ => {}
        }
        if answer == Some(&Answer::Busy) {
            // An ending is never busy: its operation has run and must be recorded.
            let ends = matches!(op, Op::End { .. } | Op::Drop { .. } | Op::EndByKey { .. });
            return (!ends && !self.closed).then_some(self);
        }
        if answer == Some(&Answer::Closed) {
            return (self.closing && !self.outlives_close(op)).then_some(self);
        }
        // A look at it declares it interrupted first.
        let is_dead = |owner: Incarnation| self.dead & owner.bit() > 0 && owner.process != by.process;
        if !matches!(op, Op::Later(_)) && self.owner().is_some_and(is_dead) {
            return None;
        }
        if let Op::Joins = op {
            return Some(self);
        }
        if let Op::Closing = op {
            return Some(Self { closing: true, ..self });
        }
        if let Op::Close = op {
            // The number is of all keys, so only zero says something about this one.
            let is_right = !matches!((answer, self.claim()), (Some(Answer::Alive(0)), Some(_)));
            return is_right.then_some(Self { closing: true, closed: true, ..self });
        }
        if self.closed && !matches!(op, Op::End { .. } | Op::Drop { .. } | Op::Revoke | Op::Later(_)) {
            return None;
        }
        let (right, mut next) = self.apply(op);
        if let (Some(life), Answer::Claimed { .. } | Answer::Initiated { .. }) = (&mut next.life, &right) {
            (life.owner, life.orphan) = (by, None);
        }
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
            (Answer::Initiated { .. }, Some(Answer::Initiated { token })) => {
                if *token <= self.newest {
                    return None;
                }
                next.newest = *token;
                let life = next.life.as_mut()?;
                (life.state, life.by_key) = (State::InProgress(Owner::Process(*token)), Some(*token));
                if life.attempt == 1 {
                    life.generation = Some(*token);
                }
                Some(next)
            }
            (right, answer) => answer.is_none_or(|answer| *answer == right).then_some(next),
        }
    }

    fn owner(&self) -> Option<Incarnation> {
        self.life.filter(|life| matches!(life.state, State::InProgress(_))).map(|life| life.owner)
    }

    /// Returns the key after another process has declared its owner dead, if it can. This happens between calls.
    pub(crate) fn declared(self) -> Option<Self> {
        let owner = self.owner()?;
        ((self.lost | self.dead) & owner.bit() > 0).then(|| self.interrupted())
    }

    fn adopted(mut self, by: Incarnation) -> Self {
        let owns = self.owner() == Some(by);
        if let Some(life) = self.life.as_mut().filter(|_| owns) {
            life.owner.nth += 1;
        }
        self
    }

    fn claim(&self) -> Option<u64> {
        match self.life?.state {
            State::InProgress(Owner::Claim(token)) => Some(token),
            _ => None,
        }
    }

    /// Returns whether the call works after a close, because its claim is alive and keeps the store open.
    fn outlives_close(&self, op: &Op) -> bool {
        match op {
            Op::End { token, .. } | Op::Drop { token, .. } => self.claim() == Some(*token),
            Op::Revoke => self.claim().is_some(),
            _ => false,
        }
    }

    /// Ends the process, and opens the store again at this hour. The TTL of interrupted records starts here.
    pub(crate) fn restarted(self, now: Hour) -> Self {
        Self { closing: false, closed: false, ..self.later(now - self.now) }.interrupted()
    }

    /// Ends the claim of the key without an ending, if it has one.
    fn interrupted(mut self) -> Self {
        let expires = self.now + UNFINISHED_TTL;
        let orphan = self.claim();
        if let Some(life) = self.life.as_mut().filter(|life| matches!(life.state, State::InProgress(_))) {
            life.orphan = orphan;
            (life.state, life.expires, life.bound) = (State::Interrupted, expires, true);
        }
        self
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
            Op::Initiate => match self.begin(0, false, Owner::Process(0)) {
                (Answer::Claimed { .. }, next) => (Answer::Initiated { token: 0 }, next),
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
                // The record has ended in that way already.
                Some(Life { state, orphan, .. }) if (state, orphan) == (State::after(ending), Some(token)) => {
                    (Answer::Done, self)
                }
                _ => self.refuse(Refusal::ClaimLost),
            },
            Op::Drop { token, releases } => {
                let ending = if releases { Ending::Release } else { Ending::Interrupt };
                (Answer::Done, self.apply(&Op::End { token, ending }).1)
            }
            Op::EndByKey { token, ending } => match self.life.filter(|life| life.by_key == Some(token)) {
                Some(Life { state: State::InProgress(_), .. }) => (Answer::Done, self.ended(ending)),
                Some(Life { state, .. }) if state == State::after(ending) => (Answer::Done, self),
                _ => self.refuse(Refusal::ClaimLost),
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
                Some(State::InProgress(_)) => {
                    let revoked = self.ended(Ending::Interrupt);
                    let life = revoked.life.map(|life| Life { by_key: None, ..life });
                    (Answer::Done, Self { life, ..revoked })
                }
                Some(_) => self.refuse(Refusal::NotInProgress),
                None => self.refuse(Refusal::NotFound),
            },
            Op::Later(hours) => (Answer::Done, self.later(hours)),
            Op::Rows(_) | Op::Closing | Op::Close | Op::Joins | Op::Loses | Op::Adopts | Op::Dies => {
                panic!("{op:?} is of no key")
            }
        }
    }

    fn begin(self, request: Request, resumes: bool, owner: Owner) -> (Answer, Self) {
        let state = State::InProgress(owner);
        let (by_key, generation, orphan, owner) = (None, None, None, Incarnation::default());
        let fresh =
            Life { request, resumes, bound: false, generation, attempt: 1, state, owner, orphan, by_key, expires: 0 };
        let life = match self.life {
            None => fresh,
            Some(life) if life.state == State::Released && !life.bound && life.request != request => fresh,
            Some(life) if life.request != 0 && life.request != request => return (Answer::Mismatch, self),
            Some(life) => match life.state {
                State::Interrupted if !life.resumes => return (self.seen(), self),
                State::InProgress(_) | State::Finished(_) => return (self.seen(), self),
                State::Released | State::Interrupted => Life { attempt: life.attempt + 1, state, by_key, ..life },
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
        let state = State::after(ending);
        let ttl = match ending {
            Ending::Finish(Outcome::Success(_)) => SUCCESS_TTL,
            Ending::Finish(Outcome::Failure(_)) => FAILURE_TTL,
            Ending::Release | Ending::Interrupt => UNFINISHED_TTL,
        };
        // No claim here asks for an effect id. A record that was begun by key may have had any effect.
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
