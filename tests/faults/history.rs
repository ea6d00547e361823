//! What was done to each key, when it was begun and answered, and what may be found after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use oncekey::{
    Interruption, Record, Status,
    clock::{Clock, ManualClock},
};

use crate::record::Recording;
use crate::threads::Rng;

/// What a key holds after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Absent,
    /// In progress; after a power cut, interrupted by it.
    Claimed {
        attempt: u32,
    },
    /// The same behind a stage that left this number in its checkpoint, and in a row.
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
    /// A success or a failure with the value of this number, and when it expires at the earliest, in seconds.
    Ended {
        succeeded: bool,
        value: u64,
        expires: u64,
    },
}

/// What a key was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    pub(crate) attempt: u32,
    pub(crate) interruption: Option<Interruption>,
    pub(crate) value: Option<u64>,
    /// What its last stage left in its checkpoint.
    pub(crate) stage: Option<u64>,
    /// In seconds since the manual clock's beginning; nothing is as late as never.
    pub(crate) expires: u64,
}

impl Seen {
    /// Fails if the outcome is not, byte for byte, one that was ever stored.
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
    /// Whether it is what was found, when it cannot be later than `now`.
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
                // Later where the store could not tell how long the machine was off.
                (seen.status, seen.value) == (status, Some(value)) && seen.expires >= expires
            }
        }
    }
}

/// One change of one key, or of several at once: a frame has all of them or none.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) key: String,
    /// The order of a key's steps.
    pub(crate) turn: (u64, u8),
    /// The log's length when the call began.
    pub(crate) began: usize,
    /// The log's length when it had been answered; for ever away if nobody was told.
    pub(crate) answered: usize,
    /// From this length of the log on it must not be missing.
    pub(crate) durable: usize,
    pub(crate) expected: Expected,
}

/// What happens to one recorded directory. Shared by the threads that do it.
pub(crate) struct History {
    pub(crate) recording: Recording,
    steps: Mutex<Vec<Step>>,
}

/// A call on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(pub(crate) usize);

impl History {
    pub(crate) fn new(recording: Recording) -> Self {
        Self { recording, steps: Mutex::default() }
    }

    pub(crate) fn begin(&self) -> Began {
        Began(self.recording.position())
    }

    /// The call was answered: the key holds this now. Keys with several owners say whose turn it was by their tokens.
    pub(crate) fn answer(&self, key: &str, began: Began, token: Option<(u64, u8)>, expected: Expected) {
        let answered = self.recording.mark(0);
        self.push(key, began, token, answered, expected);
    }

    /// The call answers nothing: it may have happened from its beginning on.
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

/// The steps of each key, in order, on top of what it held before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) initial: BTreeMap<String, Expected>,
    pub(crate) steps: BTreeMap<String, Vec<Step>>,
}

/// What a crash state shows to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Something that was answered is missing, or older than it was.
    Lost(String),
    /// It does not open.
    Refused(String),
    /// Anything else: a state that never was, two opens that differ, a panic, a hang.
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

    /// How many of a key's steps had happened, the least and the most that agree with what is found. An error if none does.
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

    /// Checks what was found after a power cut at this length of the log: for each key one of its states, none older than
    /// what was answered, and all of them together as they were after some one commit. Says how many steps were
    /// answered and are missing, as they may be where nobody waits.
    pub(crate) fn check(&self, found: &BTreeMap<String, Seen>, cut: usize, now: u64) -> Result<usize, Wrong> {
        if let Some(key) = found.keys().find(|key| !self.initial.contains_key(*key) && !self.steps.contains_key(*key)) {
            return Err(Wrong::Other(format!("{key} came from nowhere")));
        }
        // The latest beginning of anything that is there, and the earliest answer to anything that is not.
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

    /// How many of a key's steps had happened, the most that agree with what is found, and what it holds. Of the states that
    /// agree it is the one that promises least: after a restart a shorter time may look like a longer one.
    pub(crate) fn holds(&self, key: &str, seen: Option<&Seen>, cut: usize, now: u64) -> (usize, Expected) {
        let (least, most) = self.happened(key, seen, cut, now).unwrap();
        let (initial, steps) = self.of(key);
        let states = std::iter::once(initial).chain(steps.iter().map(|step| &step.expected));
        let agreeing = states.take(most + 1).skip(least).filter(|state| state.is(seen, now));
        let held = agreeing.min_by_key(|state| if let Expected::Ended { expires, .. } = state { *expires } else { 0 });
        (most, held.unwrap().clone())
    }

    /// What each key holds by what was found, to go on from there.
    pub(crate) fn at(&self, found: &BTreeMap<String, Seen>, cut: usize, now: u64) -> BTreeMap<String, Expected> {
        let held = |key: &String| (key.clone(), self.holds(key, found.get(key), cut, now).1);
        self.keys().into_iter().map(held).collect()
    }
}

/// A value is made from a number, so that its bytes say which it is. A multiple of 16 is so large that it is stored in pieces.
pub(crate) fn value(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let len = match number % 16 {
        0 => 4_000 + rng.below(30_000),
        1..=3 => rng.below(4_000),
        _ => rng.below(200),
    };
    number.to_be_bytes().into_iter().chain((0..len).map(|_| rng.next().to_be_bytes()[0])).collect()
}

/// Which it is, if every byte is as it was.
pub(crate) fn number(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    (value(number) == bytes).then_some(number)
}
