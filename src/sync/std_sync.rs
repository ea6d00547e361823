//! A gate and bells for a crowd: std's lock and condition variable, in the shape of `parking_lot`'s. A ring wakes everyone by one
//! system call, where `parking_lot` lets each who has got the lock wake the next: for many who only look and go, that is a call
//! and a switch for every one of them.

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
    /// Until the next ring, the deadline, or a moment for no reason; says whether the deadline has passed. `None` is never.
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
