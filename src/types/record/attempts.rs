//! The history of a record: the attempts before the current one.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Interruption, RecordInfo, StoredRecord};
use crate::types::clock::wall_time;

/// An attempt of a record's generation that ended without an outcome and was followed by another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EarlierAttempt {
    /// Its number, as in [`RecordInfo::attempt`].
    pub attempt: u32,
    /// The wall clock when the key was claimed.
    pub began_at: SystemTime,
    /// The wall clock at the last change of the record in this attempt. For an owner whose process ended, this may be
    /// before the end.
    pub changed_at: SystemTime,
    /// The interruption, or `None` if the key was released.
    pub interruption: Option<Interruption>,
}

/// An attempt that has ended. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedAttempt {
    pub(crate) attempt: u32,
    pub(crate) began: u64,
    pub(crate) changed: u64,
    pub(crate) interruption: Option<Interruption>,
}

/// The history of a record that was claimed again after its first attempt, or after it was only created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempts {
    /// The wall clock at the latest claim.
    pub(crate) began: u64,
    /// The latest attempts before it, at most [`RecordInfo::MAX_EARLIER_ATTEMPTS`].
    pub(crate) earlier: Vec<EndedAttempt>,
}

impl StoredRecord {
    /// Returns the wall clock at the latest claim. There must have been one.
    fn began(&self) -> u64 {
        self.attempts.as_ref().map_or(self.created_at, |attempts| attempts.began)
    }

    /// Returns the history for another attempt, which begins at this wall clock. `interruption` tells how the one before
    /// it ended.
    pub(crate) fn attempts_before(&self, wall: u64, interruption: Option<Interruption>) -> Attempts {
        let mut earlier = self.attempts.as_ref().map_or_else(Vec::new, |attempts| attempts.earlier.clone());
        if self.attempt > 0 {
            if earlier.len() >= RecordInfo::MAX_EARLIER_ATTEMPTS {
                earlier.remove(0);
            }
            let (attempt, began, changed) = (self.attempt, self.began(), self.updated_at);
            earlier.push(EndedAttempt { attempt, began, changed, interruption });
        }
        Attempts { began: wall, earlier }
    }
}

impl RecordInfo {
    /// The number of earlier attempts that a record remembers: 16.
    pub const MAX_EARLIER_ATTEMPTS: usize = 16;

    /// Returns when the current or last attempt claimed the key, by the wall clock. Returns `None` if the record was
    /// only created.
    #[must_use]
    pub fn claimed_at(&self) -> Option<SystemTime> {
        let stored = self.stored();
        (stored.attempt > 0).then(|| wall_time(stored.began()))
    }

    /// Returns the attempts of this generation before the current or last one, oldest first. A record remembers the
    /// latest [`MAX_EARLIER_ATTEMPTS`](Self::MAX_EARLIER_ATTEMPTS).
    ///
    /// ```
    /// # use oncekey::{Engine, Interruption, Manager, ManagerOptions, OnInterrupted};
    /// # let engine = Engine::temporary()?;
    /// let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    /// let payments: Manager<u64> = engine.manager_with("payments", options)?;
    /// drop(payments.begin("order-42")?.into_claim().unwrap());
    /// let claim = payments.begin("order-42")?.into_claim().unwrap();
    /// let record = payments.get("order-42")?.unwrap();
    /// let earlier: Vec<_> = record.info().earlier_attempts().map(|it| (it.attempt, it.interruption)).collect();
    /// assert_eq!(earlier, [(1, Some(Interruption::Dropped))]);
    /// # claim.release().unwrap();
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn earlier_attempts(&self) -> impl Iterator<Item = EarlierAttempt> + '_ {
        let earlier = self.stored().attempts.as_ref().map_or(&[][..], |attempts| &attempts.earlier);
        earlier.iter().map(|ended| EarlierAttempt {
            attempt: ended.attempt,
            began_at: wall_time(ended.began),
            changed_at: wall_time(ended.changed),
            interruption: ended.interruption,
        })
    }
}
