//! The steps of each key, with their begin and answer, and the states that are allowed after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use oncekey::{
    Interruption, Record, Status,
    clock::{Clock, ManualClock},
};

use crate::record::Recording;
use crate::threads::Rng;

/// The state of a key after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Absent,
    /// In progress. After a power cut it is interrupted.
    Claimed {
        attempt: u32,
    },
    /// In progress after a stage that left this number in its checkpoint and in a row.
    Staged {
        attempt: u32,
        number: u64,
    },
    Interrupted {
        attempt: u32,
        why: Interruption,
    },
    Released {
        attempt: u32,
    },
    /// A success or failure with the value of this number, and the earliest time of its expiry, in seconds.
    Ended {
        succeeded: bool,
        value: u64,
        expires: u64,
    },
}

/// The state of a key that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    pub(crate) attempt: u32,
    pub(crate) interruption: Option<Interruption>,
    pub(crate) value: Option<u64>,
    /// The number in the checkpoint of the last stage.
    pub(crate) stage: Option<u64>,
    /// In seconds since the start of the manual clock. No expiry counts as the latest.
    pub(crate) expires: u64,
}

impl Seen {
    /// Reads a record. Fails if the outcome is not, byte for byte, one that was stored.
    pub(crate) fn of(record: &Record<Vec<u8>, Vec<u8>>) -> Result<Self, String> {
        let outcome = record.outcome().map(|outcome| outcome.unwrap_or_else(|failure| failure));
        let info = record.info();
        let whole = |bytes: &[u8]| number(bytes).ok_or_else(|| format!("{} has other bytes", info.key()));
        let value = outcome.map(|bytes| whole(bytes)).transpose()?;
        let stage = info.checkpoint().map(whole).transpose()?;
        let since_beginning =
            |at: SystemTime| at.duration_since(ManualClock::new().wall()).map(|since| since.as_secs());
        let expires = info.expires_at().map_or(Ok(u64::MAX), since_beginning).map_err(|error| error.to_string())?;
        let (status, interruption) = (info.status(), info.interruption());
        Ok(Self { status, attempt: info.attempt(), interruption, value, stage, expires })
    }
}

impl Expected {
    /// Returns true if this state fits the one that was found, at a time of at most `now`.
    pub(crate) fn is(&self, seen: Option<&Seen>, now: u64) -> bool {
        let Some(seen) = seen else {
            return match self {
                Self::Absent => true,
                Self::Ended { expires, .. } => *expires <= now,
                _ => false,
            };
        };
        let found = (seen.status, seen.interruption, seen.value);
        let dead = (Status::Interrupted, Some(Interruption::ProcessEnded), None);
        match *self {
            Self::Absent => false,
            Self::Claimed { attempt } => found == dead && (seen.attempt, seen.stage) == (attempt, None),
            Self::Staged { attempt, number } => found == dead && (seen.attempt, seen.stage) == (attempt, Some(number)),
            Self::Interrupted { attempt, why } => {
                found == (Status::Interrupted, Some(why), None) && seen.attempt == attempt
            }
            Self::Released { attempt } => seen.status == Status::Released && seen.attempt == attempt,
            Self::Ended { succeeded, value, expires } => {
                let status = if succeeded { Status::Succeeded } else { Status::Failed };
                // The expiry is later if the store could not know how long the machine was off.
                (seen.status, seen.value) == (status, Some(value)) && seen.expires >= expires
            }
        }
    }
}

/// One change of one key, or of several keys in one frame, which is applied completely or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) key: String,
    /// The order of the steps of a key.
    pub(crate) turn: (u64, u8),
    /// The length of the log when the call began.
    pub(crate) began: usize,
    /// The length of the log when the call was answered. `usize::MAX` if there was no answer.
    pub(crate) answered: usize,
    /// The length of the log from which on the step must not be missing.
    pub(crate) durable: usize,
    pub(crate) expected: Expected,
}

/// The history of one recorded directory, shared by its threads.
pub(crate) struct History {
    pub(crate) recording: Recording,
    steps: Mutex<Vec<Step>>,
}

/// A call in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(pub(crate) usize);

impl History {
    pub(crate) fn new(recording: Recording) -> Self {
        Self { recording, steps: Mutex::default() }
    }

    pub(crate) fn begin(&self) -> Began {
        Began(self.recording.position())
    }

    /// Notes the answer to a call: the key has this state now. Keys with several owners are ordered by tokens.
    pub(crate) fn answer(&self, key: &str, began: Began, token: Option<(u64, u8)>, expected: Expected) {
        let answered = self.recording.mark(0);
        self.push(key, began, token, answered, expected);
    }

    /// Notes a call without an answer: it may have happened at any time after its begin.
    pub(crate) fn unanswered(&self, key: &str, began: Began, token: Option<(u64, u8)>, expected: Expected) {
        self.push(key, began, token, usize::MAX, expected);
    }

    fn push(&self, key: &str, began: Began, token: Option<(u64, u8)>, answered: usize, expected: Expected) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = token.unwrap_or((steps.len() as u64, 0));
        steps.push(Step { key: key.to_owned(), turn, began: began.0, answered, durable: answered, expected });
    }

    pub(crate) fn finish(self) -> (crate::record::Log, Vec<Step>) {
        (self.recording.finish(), self.steps.into_inner().unwrap())
    }
}

/// The ordered steps of each key, after its initial state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) initial: BTreeMap<String, Expected>,
    pub(crate) steps: BTreeMap<String, Vec<Step>>,
}

/// A fault in a crash state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// An answered step is missing, or older data was found.
    Lost(String),
    /// The store does not open.
    Refused(String),
    /// Anything else: a state that never existed, two opens that differ, a panic, a hang.
    Other(String),
}

impl Known {
    pub(crate) fn new(initial: BTreeMap<String, Expected>, steps: Vec<Step>) -> Self {
        let mut known = Self { initial, steps: BTreeMap::new() };
        for step in steps {
            known.steps.entry(step.key.clone()).or_default().push(step);
        }
        known.steps.values_mut().for_each(|steps| steps.sort_by_key(|step| step.turn));
        known
    }

    pub(crate) fn keys(&self) -> BTreeSet<&String> {
        self.initial.keys().chain(self.steps.keys()).collect()
    }

    fn of(&self, key: &str) -> (&Expected, &[Step]) {
        let initial = self.initial.get(key).unwrap_or(&Expected::Absent);
        (initial, self.steps.get(key).map_or(&[], Vec::as_slice))
    }

    /// Returns the smallest and largest number of steps of a key that fit the found state. Returns an error if none
    /// fits.
    pub(crate) fn happened(
        &self,
        key: &str,
        seen: Option<&Seen>,
        cut: usize,
        now: u64,
    ) -> Result<(usize, usize), Wrong> {
        let (initial, steps) = self.of(key);
        let begun = steps.iter().filter(|step| step.began < cut).count();
        let answered = steps.iter().rposition(|step| step.durable <= cut).map_or(0, |last| last + 1);
        let after = |count: usize| if count == 0 { initial } else { &steps[count - 1].expected };
        let agrees = |count: &usize| after(*count).is(seen, now);
        let mut counts = (answered..=begun.max(answered)).filter(agrees);
        let Some(least) = counts.next() else {
            let older = (0..answered).any(|count| agrees(&count));
            let expected: Vec<_> = (answered..=begun.max(answered)).map(after).collect();
            let text = format!("{key} is {seen:?}, it was {expected:?}; {answered} of {} steps answered", steps.len());
            return Err(if older || seen.is_none() { Wrong::Lost(text) } else { Wrong::Other(text) });
        };
        Ok((least, counts.next_back().unwrap_or(least)))
    }

    /// Checks the content that was found after a power cut at this length of the log. Each key has one of its states,
    /// none older than the answers, and all keys fit together at some commit.
    ///
    /// Returns the number of answered steps that are missing, which is allowed under `Eventual`.
    pub(crate) fn check(&self, found: &BTreeMap<String, Seen>, cut: usize, now: u64) -> Result<usize, Wrong> {
        if let Some(key) = found.keys().find(|key| !self.initial.contains_key(*key) && !self.steps.contains_key(*key)) {
            return Err(Wrong::Other(format!("{key} came from nowhere")));
        }
        // The latest begin of a step that is there, and the earliest answer of a step that is not.
        let (mut latest, mut earliest, mut count) = (None, None, 0);
        for key in self.keys() {
            let (least, most) = self.happened(key, found.get(key), cut, now)?;
            let steps = self.of(key).1;
            latest = latest.max(steps[..least].last().map(|step| (step.began, key)));
            count += steps[most..].iter().filter(|step| step.answered <= cut).count();
            let missing = steps.get(most).filter(|step| step.answered <= cut).map(|step| (step.answered, key));
            earliest = [earliest, missing].into_iter().flatten().min();
        }
        match (earliest, latest) {
            (Some((answered, missing)), Some((began, there))) if answered <= began => {
                Err(Wrong::Lost(format!("{missing} misses what was answered before what {there} has was begun")))
            }
            _ => Ok(count),
        }
    }

    /// Returns the largest number of steps of a key that fits the found state, and that state. If several states fit,
    /// takes the one that promises least: after a restart, a shorter TTL may look like a longer one.
    pub(crate) fn holds(&self, key: &str, seen: Option<&Seen>, cut: usize, now: u64) -> (usize, Expected) {
        let (least, most) = self.happened(key, seen, cut, now).unwrap();
        let (initial, steps) = self.of(key);
        let states = std::iter::once(initial).chain(steps.iter().map(|step| &step.expected));
        let agreeing = states.take(most + 1).skip(least).filter(|state| state.is(seen, now));
        let held = agreeing.min_by_key(|state| if let Expected::Ended { expires, .. } = state { *expires } else { 0 });
        (most, held.unwrap().clone())
    }

    /// Returns the state of each key, as the start of the next life.
    pub(crate) fn at(&self, found: &BTreeMap<String, Seen>, cut: usize, now: u64) -> BTreeMap<String, Expected> {
        let held = |key: &String| (key.clone(), self.holds(key, found.get(key), cut, now).1);
        self.keys().into_iter().map(held).collect()
    }
}

/// Returns the value of a number, so that its bytes name the number. Multiples of 16 give large values, which are
/// stored in chunks.
pub(crate) fn value(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let len = match number % 16 {
        0 => 4_000 + rng.below(30_000),
        1..=3 => rng.below(4_000),
        _ => rng.below(200),
    };
    number.to_be_bytes().into_iter().chain((0..len).map(|_| rng.next().to_be_bytes()[0])).collect()
}

/// Returns the number of a value, if all its bytes are right.
pub(crate) fn number(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    (value(number) == bytes).then_some(number)
}
