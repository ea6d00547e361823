//! Errors for changes that the rules refuse.

use super::{Changed, RecordId};
use crate::protocol::rules::Reason;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::options::OnInterrupted;
use crate::types::record::{RecordInfo, Status};

pub(super) fn lost(id: &RecordId, reason: Reason) -> Error {
    let why = match reason {
        Reason::Superseded(token) => format!("it was revoked, or another claim took it over; the token is {token} now"),
        Reason::EndedOtherwise(status) => format!("it has ended already and is {status:?}"),
        Reason::Elsewhere => "it is at another recovery point".to_owned(),
        Reason::Changed => "its record has been changed by others".to_owned(),
        Reason::Absent => "its record was removed or has expired".to_owned(),
        other => format!("{other:?}"),
    };
    Error::new(ErrorKind::ClaimLost, format!("the claim on {} is lost: {why}", id.named()))
}

pub(super) fn owned(id: &RecordId) -> Error {
    Error::new(ErrorKind::OwnedByClaim, format!("{} is in progress: only its owner can do that", id.named()))
}

pub(super) fn has_changed(id: &RecordId) -> Error {
    Error::new(
        ErrorKind::Changed,
        format!("{} has changed since it was read: read it again, and decide again", id.named()),
    )
}

pub(super) fn not_found(id: &RecordId) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} has no record", id.named()))
}

pub(super) fn not_resolved(id: &RecordId, status: Status) -> Error {
    let why = "only a resolution can be undone, and only until a caller begins the key or gets the outcome";
    Error::new(ErrorKind::NotResolved, format!("{} is {status:?}: {why}", id.named()))
}

pub(super) fn expired(id: &RecordId) -> Error {
    let message = format!("{} has expired: it was used, and its answer is not kept any more", id.named());
    Error::new(ErrorKind::Expired, message)
}

/// Returns the error for a result that the rules never return for this action.
pub(super) fn unexpected(id: &RecordId, changed: &Changed) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} changed while it was read: {changed:?}", id.named()))
}

/// Returns the record if a stage can run on it without a claim.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only requests are changed without a claim"))]
pub(super) fn unowned(id: &RecordId, info: RecordInfo) -> Result<RecordInfo> {
    match info.status() {
        Status::InProgress => Err(owned(id)),
        Status::Released => Ok(info),
        Status::Interrupted if info.policy() == OnInterrupted::Resume => Ok(info),
        status => Err(unfit(id, status)),
    }
}

#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only requests are changed without a claim"))]
fn unfit(id: &RecordId, status: Status) -> Error {
    Error::new(ErrorKind::NotInProgress, format!("{} cannot be changed, it is {status:?}", id.named()))
}

/// Returns the record after a change of one without an owner.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only requests are changed without a claim"))]
pub(super) fn patched(id: &RecordId, changed: Changed) -> Result<RecordInfo> {
    match changed {
        Changed::Written(info) => Ok(info.without_outcome()),
        Changed::Kept(Reason::OwnedByClaim, _) => Err(owned(id)),
        Changed::Kept(Reason::Unfit(status), _) => Err(unfit(id, status)),
        Changed::Kept(Reason::Absent, _) => Err(not_found(id)),
        other => Err(unexpected(id, &other)),
    }
}
