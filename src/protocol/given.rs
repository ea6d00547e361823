//! Outcomes that are given to callers. A resolution can be undone until then.

use super::errors::not_resolved;
use super::{Changed, Event, Load, Protocol, RecordId, WaitFor, has_changed, not_found, unexpected};
use crate::protocol::rules::{Action, Reason};
use crate::store::Read;
use crate::types::error::Result;
use crate::types::record::{RecordInfo, StoredRecord};

impl Protocol {
    /// Returns true if a commit must come before a caller gets this outcome, because an operator could still undo the
    /// outcome. A read-only engine commits nothing: like a read by an operator, its read is no answer to a caller.
    pub(super) fn must_give(&self, stored: &StoredRecord) -> bool {
        stored.holds_outcome() && self.store.check_writable().is_ok()
    }

    /// Returns true if an answer with this reason gives the outcome to a caller, which must be committed first.
    pub(super) fn gives_outcome(&self, reason: Reason, read: &Read) -> bool {
        matches!(reason, Reason::Finished | Reason::Already | Reason::EndedOtherwise(_))
            && read.record().is_some_and(|stored| self.must_give(stored))
    }

    /// Makes a resolved record interrupted again, unless a caller has been given its outcome. With `seen`, only in that
    /// revision.
    pub(crate) fn undo(&self, id: &RecordId, seen: Option<u64>) -> Result<()> {
        match self.change(id, &Action::Undo { seen }, WaitFor::Sync)? {
            Changed::Written(info) => {
                self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Reason::Unfit(status), _) => Err(not_resolved(id, status)),
            Changed::Kept(Reason::Changed, _) => Err(has_changed(id)),
            Changed::Kept(Reason::Absent, _) => Err(not_found(id)),
            other => Err(unexpected(id, &other)),
        }
    }

    /// Returns the record for a caller, after the record is durable. If the outcome is loaded, the caller is given it,
    /// so the resolution of an interrupted record can no longer be undone.
    pub(crate) fn get(&self, id: &RecordId, load: Load) -> Result<Option<RecordInfo>> {
        loop {
            match self.peek(id, load)? {
                Some(info) if load == Load::All && self.must_give(info.stored()) => self.give(id, WaitFor::Sync)?,
                info => return Ok(info),
            }
        }
    }

    /// Returns the record as [`get`](Self::get) does, for an operator.
    pub(crate) fn peek(&self, id: &RecordId, load: Load) -> Result<Option<RecordInfo>> {
        self.while_open(|| self.read_durable(id, load))
    }

    /// Returns the record as [`peek`](Self::peek) does, for the operator of a store that may be closed, and has live
    /// claims.
    pub(crate) fn inspect(&self, id: &RecordId, load: Load) -> Result<Option<RecordInfo>> {
        self.check_owned()?;
        self.read_durable(id, load)
    }

    /// Commits that a caller is about to be given the outcome of a resolved record.
    pub(super) fn give(&self, id: &RecordId, wait_for: WaitFor) -> Result<()> {
        // A caller that holds locks of keys must not wait for them here.
        self.change_directly(id, &Action::Give, wait_for, None).map(drop)
    }
}
