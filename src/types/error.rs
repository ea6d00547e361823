//! The one error of this crate.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The result of most calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as one cheap-to-clone value.
///
/// Expected answers of the protocol (in progress, mismatch, timed out, ...) are values, never errors.
/// An `Error` says that a call could not do its work; [`kind`](Error::kind) says what to do next.
pub struct Error(Arc<Inner>);

thread_local! {
    /// How often this thread has been given an error, or has looked at one or dropped one.
    static MET: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has met an error of this engine: was given one, looked at one, or dropped one. If the number grows while
/// an operation runs, a failure that the operation returns may be one of them in disguise.
pub(crate) fn met() -> u64 {
    MET.get()
}

/// Counts one more: an answer that is neither an [`Error`] nor the failure of an operation.
pub(crate) fn meet() {
    MET.set(MET.get().wrapping_add(1));
}

/// Resets the count to an earlier one: the errors since then were handled.
pub(crate) fn forget_met_since(then: u64) {
    MET.set(then);
}

/// Runs a part of the engine that handles its errors itself: no operation on this thread has met them.
pub(crate) fn handled<R>(work: impl FnOnce() -> R) -> R {
    let before = met();
    let done = work();
    forget_met_since(before);
    done
}

/// A copy that is handed out counts like a new one: a poisoned engine keeps its error.
impl Clone for Error {
    fn clone(&self) -> Self {
        Self::met(Arc::clone(&self.0))
    }
}

/// It may have been made before the operation that drops it now, and be turned into a failure without a look at it.
impl Drop for Error {
    fn drop(&mut self) {
        meet();
    }
}

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// What a caller does next about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key is empty, too long or malformed. Refuse the request; nothing changed.
    InvalidKey,
    /// A manager, table, context or recovery-point name is not allowed. Fix the program.
    InvalidName,
    /// An option or an argument has a value that is not allowed. Fix the program.
    InvalidOptions,
    /// A value is over a limit. Store less, or raise the limit; nothing changed.
    TooLarge,
    /// Another process, or this one, has the store open. Stop it, or wait until it has ended.
    StoreInUse,
    /// The engine was closed. Open it again.
    Closed,
    /// From `close`: the engine is closed, and everything committed is durable, but live claims keep the directory locked. End or
    /// drop them, or end the process.
    ClaimsAlive,
    /// The thread would wait for an operation that it runs itself. Fix the program; nothing changed.
    Deadlock,
    /// An earlier write or sync failed and nothing can be promised any more, not even for reads. Stop the process, look at
    /// the disk, start again: what was answered before is there.
    Poisoned,
    /// The operating system refused a read, a write or a directory. A call that waited for that write may be undone or not, and
    /// those that come later answer `Poisoned`.
    Io,
    /// There is no room on the disk, for the journal to grow or for the record store behind it. Make room and call again;
    /// nothing changed. From `close`: everything answered is in the journal, and the next open brings it into the record store.
    Full,
    /// The engine is overloaded, and the call has waited for [`sync_timeout`](crate::EngineOptions::sync_timeout). Nothing
    /// changed: call again later, with fewer calls at once. The ending of an operation that has run never gets this.
    Busy,
    /// What is on disk is damaged. Nothing was guessed and nothing was changed: restore it, or look at it with the tools.
    Corrupt,
    /// The directory is not a store, or one of a newer format. Check the path and the version of this crate.
    UnsupportedFormat,
    /// A value cannot be encoded, or not be read back as it was: nothing was stored. Or bytes that are read as an encoded value
    /// were not encoded. Fix the type, or read the bytes as they are.
    Codec,
    /// A record, a value or a manager is used with other types or another schema than it was made with. Fix the program or
    /// migrate.
    TypeMismatch,
    /// The claim no longer owns its record: it ended otherwise, or another claim took over. Do not act on it; read the record.
    ClaimLost,
    /// A by-key call on a record that a live [`Claim`](crate::Claim) or process owns. Use the claim, or wait for its end.
    OwnedByClaim,
    /// The key belongs to another request. Refuse this one, or give it a key of its own; nothing changed.
    Mismatch,
    /// There is no such record.
    NotFound,
    /// The record is not in progress, so it cannot be ended or changed so.
    NotInProgress,
    /// Only an interrupted record can be resolved.
    NotInterrupted,
    /// More than one record matches.
    Ambiguous,
    /// A transaction met others too often. Run it again.
    Conflict,
    /// A call into the engine from inside a transaction's closure. Fix the program.
    InsideTransaction,
    /// No stage is known for the record's recovery point. Fix the program or resolve the record.
    UnknownRecoveryPoint,
    /// A stage ended without an advance, or with one to where the record was already. Fix the stage.
    Stalled,
    /// A failure was made from an error of this crate, which is no outcome of the operation. Nothing was stored: release or
    /// interrupt the record, or fail with an error of your own.
    EngineFailure,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::met(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    fn met(inner: Arc<Inner>) -> Self {
        meet();
        Self(inner)
    }

    /// What every call answers behind a close.
    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the engine is closed")
    }

    /// `action` is a verb with what it concerns, e.g. "write journal segment".
    pub(crate) fn io(action: &str, path: &Path, cause: &io::Error) -> Self {
        Self::io_as(ErrorKind::Io, action, path, cause)
    }

    pub(crate) fn io_as(kind: ErrorKind, action: &str, path: &Path, cause: &io::Error) -> Self {
        let message = format!("{action} {}: {cause}", path.display());
        Self::met(Arc::new(Inner { kind, message, source: Some(copy(cause)) }))
    }

    /// The same cause under another kind, with a prefix that says what it means now.
    pub(crate) fn wrap(&self, kind: ErrorKind, prefix: &str) -> Self {
        let source = self.0.source.as_ref().map(copy);
        Self::met(Arc::new(Inner { kind, message: format!("{prefix}: {}", self.0.message), source }))
    }

    /// What the caller does next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        meet();
        self.0.kind
    }

    /// The operating system's kind of error, where it was one.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        meet();
        self.0.source.as_ref().map(io::Error::kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        meet();
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        meet();
        write!(f, "Error({:?}: {})", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    /// The operating system's error, where there was one. [`Display`](fmt::Display) ends with its text.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        meet();
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// `io::Error` cannot be cloned.
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
