//! Actions that only requests use: create a record without an owner, claim it by its key, and patch it.

use super::errors::{patched, unowned};
use super::{
    Begun, Changed, Event, Load, Protocol, RecordId, Scan, WaitFor, Workspace, expired, lost, not_found, unexpected,
};
use crate::protocol::rules::{Action, Decision, Patch, Reason, Start, decide};
use crate::store::Content;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{Now, RecordInfo, Status};

impl Protocol {
    /// Creates a record without an owner, or returns the existing record of the same request. Returns true if it
    /// created one.
    pub(crate) fn create(&self, id: &RecordId, start: &Start) -> Result<(RecordInfo, bool)> {
        created(id, self.change(id, &Action::Create(start), WaitFor::Sync)?)
    }

    /// Removes the record of a claim. The caller knows that nothing has happened under it.
    pub(crate) fn discard(&self, id: &RecordId, token: u64) -> Result<()> {
        match self.change(id, &Action::Discard { token }, WaitFor::Sync)? {
            Changed::Deleted => Ok(()),
            Changed::Kept(reason, _) => Err(lost(id, reason)),
            other @ Changed::Written(_) => Err(unexpected(id, &other)),
        }
    }

    /// Claims an existing record as `begin` does, but compares no fingerprints.
    pub(crate) fn lock(&self, id: &RecordId, lock: &Action<'_>) -> Result<Begun> {
        self.claimed(id, self.change(id, lock, WaitFor::Sync)?)
    }

    /// Returns the record that `begin` would make for a new key, and stores nothing. Its token, generation and revision
    /// are 0.
    pub(crate) fn unrecorded(&self, id: &RecordId, start: &Start) -> Result<RecordInfo> {
        // An owner is alive if its token is not below `first`. The token here is 0.
        let now = Now { first: 0, ..self.store.now() };
        let stored = match decide(None, &Action::Begin(start), &now) {
            Decision::Write(stored) => Some(stored),
            _ => None,
        };
        self.show(id, stored.as_ref(), &now).ok_or_else(|| not_found(id))
    }

    /// Changes a record that has no owner and is not finished.
    pub(crate) fn patch(&self, id: &RecordId, patch: &Patch) -> Result<RecordInfo> {
        let info = patched(id, self.change(id, &Action::Patch(patch), WaitFor::Sync)?)?;
        if info.status() == Status::Succeeded {
            self.subscribers.notify(|| Event::Ended(info.clone()));
        }
        Ok(info)
    }

    /// Returns the record of a key, as of the same moment as everything else that the workspace has read.
    pub(crate) fn get_in(&self, workspace: &mut Workspace, id: &RecordId) -> Result<Option<RecordInfo>> {
        let content = self.read_in(workspace, &id.at)?;
        Ok(self.show(id, content.as_ref().and_then(Content::record), &self.now_in(workspace)))
    }

    /// Adds a [`create`](Self::create) to a transaction.
    pub(crate) fn create_in(
        &self,
        workspace: &mut Workspace,
        id: &RecordId,
        start: &Start,
    ) -> Result<(RecordInfo, bool)> {
        created(id, self.change_in(workspace, id, &Action::Create(start))?)
    }

    /// Returns the next records of a scan, as of the same moment as everything else that the workspace has read.
    /// Returns `None` at the end.
    pub(crate) fn list_in(&self, workspace: &mut Workspace, scan: &mut Scan) -> Result<Option<Vec<RecordInfo>>> {
        let Some(found) = self.scan_in(workspace, scan, Load::WithoutOutcome)? else { return Ok(None) };
        let now = self.now_in(workspace);
        let shown = found.into_iter().filter_map(|(at, content)| {
            let info = self.show(&RecordId::from_store(at)?, content.record(), &now)?;
            Some(info.without_outcome())
        });
        Ok(Some(shown.collect()))
    }

    /// Returns a record on which a stage can run without a claim: a released one, or an interrupted one that may be
    /// resumed.
    pub(crate) fn unowned_in(&self, workspace: &mut Workspace, id: &RecordId) -> Result<RecordInfo> {
        let info = self.get_in(workspace, id)?.ok_or_else(|| not_found(id))?;
        unowned(id, info)
    }

    /// Adds a [`patch`](Self::patch) to a transaction.
    pub(crate) fn patch_in(&self, workspace: &mut Workspace, id: &RecordId, patch: &Patch) -> Result<RecordInfo> {
        patched(id, self.change_in(workspace, id, &Action::Patch(patch))?)
    }
}

fn created(id: &RecordId, changed: Changed) -> Result<(RecordInfo, bool)> {
    match changed {
        Changed::Written(info) => Ok((info, true)),
        Changed::Kept(Reason::Already, Some(info)) => Ok((info.without_outcome(), false)),
        Changed::Kept(Reason::Expired, _) => Err(expired(id)),
        Changed::Kept(Reason::Mismatch, _) => {
            Err(Error::new(ErrorKind::Mismatch, format!("{} belongs to another request", id.named())))
        }
        other => Err(unexpected(id, &other)),
    }
}
