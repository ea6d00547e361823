//! Outcomes that are given to callers. A resolution can be undone until then.

use super::errors::not_resolved;
use super::{Changed, Event, Load, Protocol, RecordId, WaitFor, not_found, unexpected};
use crate::protocol::rules::{Action, Reason};
use crate::store::Read;
use crate::types::error::Result;
use crate::types::record::RecordInfo;

/// True if an answer with this reason would give a caller an outcome that can still be undone.
pub(super) fn tells(reason: Reason, read: &Read) -> bool {
    matches!(reason, Reason::Finished | Reason::Already | Reason::EndedOtherwise(_))
        && read.record().is_some_and(|stored| stored.holds_outcome())
}

impl Protocol {
    /// Makes a resolved record interrupted again, unless a caller has been given its outcome.
    pub(crate) fn undo(&self, id: &RecordId) -> Result<()> {
        match self.change(id, &Action::Undo, WaitFor::Sync)? {
            Changed::Written(info) => {
                self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Reason::Unfit(status), _) => Err(not_resolved(id, status)),
            Changed::Kept(Reason::Absent, _) => Err(not_found(id)),
            other => Err(unexpected(id, &other)),
        }
    }

    /// Returns the record for a caller, after the record is durable. If the outcome is loaded, the caller is given it,
    /// so the resolution of an interrupted record can no longer be undone.
    pub(crate) fn get(&self, id: &RecordId, load: Load) -> Result<Option<RecordInfo>> {
        loop {
            match self.peek(id, load)? {
                Some(info) if load == Load::All && info.stored().holds_outcome() => self.give(id, WaitFor::Sync)?,
                info => return Ok(info),
            }
        }
    }

    /// Returns the record as [`get`](Self::get) does, for an operator.
    pub(crate) fn peek(&self, id: &RecordId, load: Load) -> Result<Option<RecordInfo>> {
        self.check()?;
        self.read_durable(id, load)
    }

    /// Commits that a caller is about to be given the outcome of a resolved record.
    pub(super) fn give(&self, id: &RecordId, wait_for: WaitFor) -> Result<()> {
        // A caller that holds locks of keys must not wait for them here.
        self.change_settled(id, &Action::Give, wait_for, None).map(drop)
    }
}
