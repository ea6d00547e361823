//! The first error, which is the last word, and who is to be told of it.

use std::fmt;

use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::types::error::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Poison {
    first: OnceLock<First>,
    listener: OnceLock<Listener>,
    told: AtomicBool,
}

/// What went wrong, and what that means for every call that comes later.
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

    /// For those who waited for what failed.
    pub(super) fn check_waited(&self) -> Result<()> {
        self.first.get().map_or(Ok(()), |first| Err(first.cause.clone()))
    }

    /// The first error stays; it is returned.
    pub(super) fn set(&self, error: Error) -> &Error {
        let first = self.first.get_or_init(|| match error.kind() {
            // `Closed` is said of a crash that a test asked for: nothing is wrong with the disk.
            ErrorKind::Poisoned | ErrorKind::Closed => First { poisoned: error.clone(), cause: error },
            _ => First { poisoned: error.wrap(ErrorKind::Poisoned, "the engine is poisoned"), cause: error },
        });
        &first.poisoned
    }

    /// Once, at open; others are ignored.
    pub(super) fn listen(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(f)));
    }

    /// Tells the listener, once, if there are both an error and a listener. To be called with no lock held.
    pub(super) fn tell(&self) {
        let (Some(first), Some(listener)) = (self.first.get(), self.listener.get()) else { return };
        if !self.told.swap(true, Ordering::Relaxed) {
            (listener.0)(&first.poisoned);
        }
    }
}
