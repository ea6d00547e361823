//! Errors for changes that the rules refuse.

use super::{Changed, RecordId};
use crate::protocol::rules::Reason;
use crate::types::error::{Error, ErrorKind};
use crate::types::record::Status;

pub(super) fn lost(id: &RecordId, reason: Reason) -> Error {
    let why = match reason {
        Reason::Superseded(token) => format!("it was revoked, or another claim took it over; the token is {token} now"),
        Reason::EndedOtherwise(status) => format!("it has ended already and is {status:?}"),
        Reason::Elsewhere => "it is at another recovery point".to_owned(),
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
