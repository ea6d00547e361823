//! What requests do beside running: they are announced, claimed by whoever knows their key, and patched.

use std::sync::Arc;

use super::{Begun, Changed, Depth, Draft, Haste, Place, Protocol, Scan, Told, lost, not_found, owned, unexpected};
use crate::protocol::rules::{Because, Decision, Event, Patch, Start, decide};
use crate::store::Content;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::options::OnInterrupted;
use crate::types::record::{Now, RecordInfo, Status};

impl Protocol {
    /// Makes a record that nobody owns; one of the same request that is there already stays as it is. Says whether it made one.
    pub(crate) fn create(&self, place: &Place, start: &Start) -> Result<(RecordInfo, bool)> {
        created(place, self.change(place, &Event::Create(start), Haste::Durable)?)
    }

    /// Removes the record of a claim under which nothing has happened.
    pub(crate) fn discard(&self, place: &Place, token: u64) -> Result<()> {
        match self.change(place, &Event::Discard { token }, Haste::Durable)? {
            Changed::Deleted => Ok(()),
            Changed::Kept(because, _) => Err(lost(place, because)),
            other @ Changed::Written(_) => Err(unexpected(place, &other)),
        }
    }

    /// As `begin`, whatever the request was, but makes no record.
    pub(crate) fn lock(&self, place: &Place, schema: u32, max_attempts: u32) -> Result<Begun> {
        self.claimed(place, self.change(place, &Event::Lock { schema, max_attempts }, Haste::Durable)?)
    }

    /// Returns the record that a `begin` of a new key would make, and stores nothing. Its token, generation and revision are 0.
    pub(crate) fn unrecorded(&self, place: &Place, start: &Start) -> Result<RecordInfo> {
        // An owner is alive if its token is not below `first`.
        let now = Now { first: 0, ..self.store.now() };
        let image = match decide(None, &Event::Begin(start), &now) {
            Decision::Write(image) => Some(Arc::from(image)),
            _ => None,
        };
        self.show(place, image.as_ref(), &now).ok_or_else(|| not_found(place))
    }

    /// Changes a record that nobody owns and that has not ended.
    pub(crate) fn patch(&self, place: &Place, patch: &Patch) -> Result<RecordInfo> {
        let info = patched(place, self.change(place, &Event::Patch(patch), Haste::Durable)?)?;
        if info.status() == Status::Succeeded {
            self.hub.tell(|| Told::Ended(info.clone()));
        }
        Ok(info)
    }
    /// The record of a key, as of the same moment as everything else that the draft has read.
    pub(crate) fn get_in(&self, draft: &mut Draft, place: &Place) -> Result<Option<RecordInfo>> {
        let content = self.read_in(draft, &place.at)?;
        Ok(self.show(place, content.as_ref().and_then(Content::record), &self.now_in(draft)))
    }

    /// As [`create`](Self::create), along with the rest of a transaction.
    pub(crate) fn create_in(&self, draft: &mut Draft, place: &Place, start: &Start) -> Result<(RecordInfo, bool)> {
        created(place, self.change_in(draft, place, &Event::Create(start))?)
    }

    /// The next records of a scan, as of the same moment as everything else that the draft has read; `None` behind the last.
    pub(crate) fn list_in(&self, draft: &mut Draft, scan: &mut Scan) -> Result<Option<Vec<RecordInfo>>> {
        let Some(found) = self.scan_in(draft, scan, Depth::Head)? else { return Ok(None) };
        let now = self.now_in(draft);
        let shown = found.into_iter().filter_map(|(at, content)| {
            let info = self.show(&Place::from_store(at)?, content.record(), &now)?;
            Some(info.without_outcome())
        });
        Ok(Some(shown.collect()))
    }

    /// A record that a stage can be run on without a claim: nobody owns it, and it is neither finished nor held.
    pub(crate) fn unowned_in(&self, draft: &mut Draft, place: &Place) -> Result<RecordInfo> {
        let info = self.get_in(draft, place)?.ok_or_else(|| not_found(place))?;
        match info.status() {
            Status::InProgress => Err(owned(place)),
            Status::Released => Ok(info),
            Status::Interrupted if info.policy() == OnInterrupted::Resume => Ok(info),
            status => Err(unfit(place, status)),
        }
    }

    /// As [`patch`](Self::patch), along with the rest of a transaction.
    pub(crate) fn patch_in(&self, draft: &mut Draft, place: &Place, patch: &Patch) -> Result<RecordInfo> {
        patched(place, self.change_in(draft, place, &Event::Patch(patch))?)
    }
}

fn created(place: &Place, changed: Changed) -> Result<(RecordInfo, bool)> {
    match changed {
        Changed::Written(info) => Ok((info, true)),
        Changed::Kept(Because::Already, Some(info)) => Ok((info.without_outcome(), false)),
        Changed::Kept(Because::Mismatch, _) => {
            Err(Error::new(ErrorKind::Mismatch, format!("{} belongs to another request", place.named())))
        }
        other => Err(unexpected(place, &other)),
    }
}

fn unfit(place: &Place, status: Status) -> Error {
    Error::new(ErrorKind::NotInProgress, format!("{} cannot be changed, it is {status:?}", place.named()))
}

fn patched(place: &Place, changed: Changed) -> Result<RecordInfo> {
    match changed {
        Changed::Written(info) => Ok(info.without_outcome()),
        Changed::Kept(Because::OwnedByClaim, _) => Err(owned(place)),
        Changed::Kept(Because::Unfit(status), _) => Err(unfit(place, status)),
        Changed::Kept(Because::Absent, _) => Err(not_found(place)),
        other => Err(unexpected(place, &other)),
    }
}
