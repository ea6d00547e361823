//! The first error of the queue, and the listener that is notified of it.

use std::fmt;

use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::types::error::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Poison {
    first: OnceLock<First>,
    listener: OnceLock<Listener>,
    reported: AtomicBool,
}

/// The first error, and the form in which later calls get it.
#[derive(Debug)]
struct First {
    cause: Error,
    poisoned: Error,
}

struct Listener(Box<dyn Fn(&Error) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Poison {
    pub(super) fn check(&self) -> Result<()> {
        self.first.get().map_or(Ok(()), |first| Err(first.poisoned.clone()))
    }

    /// Returns the error itself, for calls that waited for the step that failed.
    pub(super) fn check_waited(&self) -> Result<()> {
        self.first.get().map_or(Ok(()), |first| Err(first.cause.clone()))
    }

    /// Sets the error unless one is set. Returns the one that stays.
    pub(super) fn set(&self, error: Error) -> &Error {
        let first = self.first.get_or_init(|| match error.kind() {
            // A test that simulates a crash sets `Closed`. Nothing is wrong with the disk then.
            ErrorKind::Poisoned | ErrorKind::Closed => First { poisoned: error.clone(), cause: error },
            _ => First { poisoned: error.wrap(ErrorKind::Poisoned, "the engine is poisoned"), cause: error },
        });
        &first.poisoned
    }

    /// Sets the listener, at open. Further calls have no effect.
    pub(super) fn listen(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(f)));
    }

    /// Calls the listener if there are both an error and a listener. Calls it once. No lock may be held here.
    pub(super) fn report(&self) {
        let (Some(first), Some(listener)) = (self.first.get(), self.listener.get()) else { return };
        if !self.reported.swap(true, Ordering::Relaxed) {
            (listener.0)(&first.poisoned);
        }
    }
}
