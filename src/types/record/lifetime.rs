//! The lifetime of a record, and whether its owner is alive.

#[cfg(feature = "postgres")]
use super::{Interruption, StoredRecord};
use super::{Now, Status, THIS_FRAME};
use crate::types::clock::NEVER;

/// The fields of a [`StoredRecord`] that decide how long the record exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) state: Status,
    pub(crate) token: u64,
    pub(crate) updated: u64,
    pub(crate) expires: u64,
    pub(crate) interrupted_ttl: u64,
}

impl Lifetime {
    /// Returns the status. A record in progress whose owner is dead is interrupted.
    pub(crate) fn status(&self, now: &Now) -> Status {
        if self.state == Status::InProgress && self.is_owner_dead(now) { Status::Interrupted } else { self.state }
    }

    /// Returns true if the owner belonged to an earlier open. An owner that a transaction is about to make has no token
    /// yet.
    fn is_owner_dead(&self, now: &Now) -> bool {
        self.token != THIS_FRAME && self.token < now.first
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        !self.state.is_finished()
    }

    pub(crate) fn expires_at(&self, now: &Now) -> u64 {
        if self.state != Status::InProgress {
            self.expires
        } else if self.is_owner_dead(now) {
            // The time of the process's death is unknown. Count from this open, the latest possible time.
            self.updated.max(now.opened).saturating_add(self.interrupted_ttl)
        } else {
            NEVER
        }
    }
}

#[cfg(feature = "postgres")]
impl StoredRecord {
    /// Returns the record after the death of its owner, as it is stored. `store` and `wall` are the times of the
    /// discovery.
    pub(crate) fn orphaned(&self, store: u64, wall: u64) -> Self {
        Self {
            state: Status::Interrupted,
            bound: true,
            interruption: Some(Interruption::ProcessEnded),
            revision: THIS_FRAME,
            updated_at: wall,
            updated: store,
            expires: store.saturating_add(self.interrupted_ttl),
            ..self.clone()
        }
    }

    /// Returns the record after a claim that no caller has got, as it is stored.
    pub(crate) fn given_back(&self, store: u64, wall: u64) -> Self {
        Self {
            state: Status::Released,
            revision: THIS_FRAME,
            updated_at: wall,
            updated: store,
            expires: store.saturating_add(self.ttl_of_release()),
            ..self.clone()
        }
    }
}
