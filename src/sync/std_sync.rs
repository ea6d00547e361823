//! Std's mutex and condition variable, in the form of `parking_lot`'s.
//!
//! They are used where one notification wakes many threads. Std wakes all by one system call. In `parking_lot`, each
//! thread that gets the lock wakes the next, which costs a call and a context switch for every thread.

use std::sync::PoisonError;
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct StdMutex(std::sync::Mutex<()>);

#[derive(Debug)]
pub(crate) struct StdMutexGuard<'a>(Option<std::sync::MutexGuard<'a, ()>>);

impl StdMutex {
    pub(crate) fn lock(&self) -> StdMutexGuard<'_> {
        StdMutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    #[cfg(test)]
    pub(crate) fn try_lock(&self) -> Option<StdMutexGuard<'_>> {
        self.0.try_lock().ok().map(|held| StdMutexGuard(Some(held)))
    }
}

#[derive(Debug, Default)]
pub(crate) struct StdCondvar(std::sync::Condvar);

impl StdCondvar {
    /// Waits for a notification or the deadline, and may wake spuriously. Returns true if the deadline has passed.
    /// `None` means no deadline.
    #[expect(clippy::disallowed_methods, reason = "std waits for a while, not until a moment")]
    pub(crate) fn wait_until(&self, guard: &mut StdMutexGuard<'_>, deadline: Option<Instant>) -> bool {
        let Some(held) = guard.0.take() else { return true };
        let (held, late) = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(left) => {
                let (held, result) = self.0.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner);
                (held, result.timed_out())
            }
            None => (self.0.wait(held).unwrap_or_else(PoisonError::into_inner), false),
        };
        guard.0 = Some(held);
        late
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}
