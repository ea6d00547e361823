//! The error type of this crate.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The result of a call into the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a call into the engine. Clones are cheap.
///
/// Expected answers of the protocol (in progress, mismatch, timed out, ...) are values, never errors. An `Error` means
/// that a call could not do its work. Its [`kind`](Error::kind) tells the caller what to do next.
pub struct Error(Arc<Inner>);

thread_local! {
    /// The number of times that this thread received, read or dropped an error.
    static USES: Cell<u64> = const { Cell::new(0) };
}

/// Returns the number of times that this thread received, read or dropped an error of this engine.
///
/// If the number grows while an operation runs, the failure that the operation returns may be one of these errors in
/// another form.
pub(crate) fn uses() -> u64 {
    USES.get()
}

/// Increments [`uses`]. Also called for answers such as `InProgress`, which are no [`Error`].
pub(crate) fn count_use() {
    USES.set(USES.get().wrapping_add(1));
}

/// Resets the count to the earlier value `then`, because the errors since then were handled.
pub(crate) fn reset_uses(then: u64) {
    USES.set(then);
}

/// Runs a part of the engine that handles its own errors. Errors inside it do not count.
pub(crate) fn handled<R>(work: impl FnOnce() -> R) -> R {
    let before = uses();
    let done = work();
    reset_uses(before);
    done
}

/// Counts each clone like a new error: a poisoned engine keeps its error and hands out clones.
impl Clone for Error {
    fn clone(&self) -> Self {
        Self::counted(Arc::clone(&self.0))
    }
}

/// Counts a dropped error too. The error may be older than the operation that drops it, and may become a failure
/// unread.
impl Drop for Error {
    fn drop(&mut self) {
        count_use();
    }
}

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// The kind of an [`Error`], which tells the caller what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key is empty, too long or malformed. Nothing changed. Reject the request.
    InvalidKey,
    /// The name of a manager, table, schema, context entry or recovery point is not allowed. Fix the program.
    InvalidName,
    /// The value of an option or argument is not allowed. Fix the program.
    InvalidOptions,
    /// A value exceeds a limit. Nothing changed. Store less, or raise the limit.
    TooLarge,
    /// Another process, or this one, has the store open. Stop that process, or wait until it ends.
    StoreInUse,
    /// The engine is [read-only](crate::EngineOptions::read_only). Nothing changed. Open the store without that option.
    ReadOnly,
    /// The engine is closed. Open it again.
    Closed,
    /// Returned by `close`: the engine is closed and all commits are durable, but live claims keep the directory
    /// locked. End or drop the claims, or end the process.
    ClaimsAlive,
    /// The thread would wait for an operation that it runs itself. Nothing changed. Fix the program.
    Deadlock,
    /// An earlier write or sync failed. The engine can no longer promise anything, not even about reads. Stop the
    /// process, check the disk, start again. All earlier answers are still stored.
    Poisoned,
    /// A read, write or directory operation of the operating system failed. Calls that waited for that write may have
    /// taken effect or not. Later calls return `Poisoned`.
    Io,
    /// The disk has no space for the journal or for the record store. Nothing changed. Free some space and call again.
    /// Returned by `close`: all answers are in the journal, and the next open applies them to the record store.
    Full,
    /// The engine is overloaded, and the call waited for [`sync_timeout`](crate::EngineOptions::sync_timeout). Nothing
    /// changed. Call again later, and make fewer calls at a time. Ending an operation that has run never returns this,
    /// except on PostgreSQL: there the call also returns this if a transaction keeps the record locked.
    Busy,
    /// The server of the store cannot be reached, or refuses calls for now. Nothing changed. Call again later. Only
    /// with a store on PostgreSQL.
    Unavailable,
    /// The server of the store was lost during a commit, and it is not known whether the change was made. Call again: a
    /// retry finds out. Only with a store on PostgreSQL.
    Unsettled,
    /// Data on disk is damaged. The engine neither guessed nor changed anything. Restore a backup, or rescue what is
    /// left with [`EngineOptions::salvage`](crate::EngineOptions::salvage).
    Corrupt,
    /// The directory is not a store, or has a format of another version of this crate. Check the path and the version.
    UnsupportedFormat,
    /// A value cannot be encoded, or cannot be read back as it was; nothing was stored. Or bytes that were not encoded
    /// are read as an encoded value. Fix the type, or read the bytes unchanged.
    Codec,
    /// A record, value or manager is used with another type or schema than it was created with. Fix the program, or
    /// migrate the data.
    TypeMismatch,
    /// The claim no longer owns its record: the record was ended by another call, or another claim took it over. Do not
    /// act on the claim. Read the record.
    ClaimLost,
    /// A by-key call on a record that a live [`Claim`](crate::Claim) or process owns. Use the claim, or wait for its
    /// end.
    OwnedByClaim,
    /// The key belongs to another request. Nothing changed. Reject this request, or give it another key.
    Mismatch,
    /// The key was used, its answer has expired, and the key is [remembered](crate::ManagerOptions::remember_expired).
    /// Nothing runs under this key. Reject the request.
    Expired,
    /// The record does not exist.
    NotFound,
    /// The record is not in progress, so the call cannot end or change it.
    NotInProgress,
    /// The record is not interrupted, so it cannot be resolved.
    NotInterrupted,
    /// The record has changed since the caller read it. Nothing changed now. Read it again and decide again.
    Changed,
    /// The resolution cannot be undone: there was none, or a caller has claimed the key again or received the outcome.
    NotResolved,
    /// Several records match where at most one is expected. Narrow the filter.
    Ambiguous,
    /// A transaction conflicted with others too often. Run it again.
    Conflict,
    /// A transaction's closure called the engine. Fix the program.
    InsideTransaction,
    /// No stage is registered for the record's recovery point. Fix the program, or resolve the record.
    UnknownRecoveryPoint,
    /// A stage returned and had changed neither the recovery point nor the checkpoint. Or no stage has ended the claim
    /// whose outcome is asked for. Fix the stage.
    Stalled,
    /// An outcome is or contains a [`Failure`](crate::Failure) that was made from an error of this crate, so it is not
    /// stored. Release or interrupt the record, or end it with an outcome of your own.
    EngineFailure,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::counted(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    fn counted(inner: Arc<Inner>) -> Self {
        count_use();
        Self(inner)
    }

    /// Returns the error of every call after a close.
    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the engine is closed")
    }

    /// Returns an `Io` error. `action` is a verb and its object, such as "write journal segment".
    pub(crate) fn io(action: &str, path: &Path, cause: &io::Error) -> Self {
        Self::io_as(ErrorKind::Io, action, path, cause)
    }

    pub(crate) fn io_as(kind: ErrorKind, action: &str, path: &Path, cause: &io::Error) -> Self {
        let message = format!("{action} {}: {cause}", path.display());
        Self::counted(Arc::new(Inner { kind, message, source: Some(copy(cause)) }))
    }

    /// Returns an error of another kind with the same cause. `prefix` comes before the message.
    pub(crate) fn wrap(&self, kind: ErrorKind, prefix: &str) -> Self {
        let source = self.0.source.as_ref().map(copy);
        Self::counted(Arc::new(Inner { kind, message: format!("{prefix}: {}", self.0.message), source }))
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        count_use();
        self.0.kind
    }

    /// Returns the operating system's kind of error, if the cause is one.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        count_use();
        self.0.source.as_ref().map(io::Error::kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        count_use();
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        count_use();
        write!(f, "Error({:?}: {})", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    /// Returns the operating system's error, if there is one. [`Display`](fmt::Display) ends with its text.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        count_use();
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// Copies the kind and text of an `io::Error`, which cannot be cloned.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = error.io_kind().unwrap_or(match error.kind() {
            ErrorKind::InvalidKey | ErrorKind::InvalidName | ErrorKind::InvalidOptions => io::ErrorKind::InvalidInput,
            ErrorKind::Corrupt | ErrorKind::UnsupportedFormat | ErrorKind::Codec => io::ErrorKind::InvalidData,
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        });
        Self::new(kind, error)
    }
}
