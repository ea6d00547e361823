//! The first error, which is the last word, and who is to be told of it.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub(super) struct Poison {
    first: OnceLock<Error>,
    listener: OnceLock<Listener>,
    told: AtomicBool,
}

struct Listener(Box<dyn Fn(&Error) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Poison {
    pub(super) fn check(&self) -> Result<()> {
        self.first.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The first error stays; it is returned.
    pub(super) fn set(&self, error: Error) -> &Error {
        self.first.get_or_init(|| match error.kind() {
            ErrorKind::Poisoned => error,
            _ => error.wrap(ErrorKind::Poisoned, "the engine is poisoned"),
        })
    }

    /// Once, at open; others are ignored.
    pub(super) fn listen(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(f)));
    }

    /// Tells the listener, once, if there are both an error and a listener. To be called with no lock held.
    pub(super) fn tell(&self) {
        let (Some(error), Some(listener)) = (self.first.get(), self.listener.get()) else { return };
        if !self.told.swap(true, Ordering::Relaxed) {
            (listener.0)(error);
        }
    }
}
