//! A counter that threads wait for, until it changes.
//!
//! On Linux this is a futex: a signal wakes all waiting threads by one system call, and they take no lock afterwards.
//! With a mutex, the woken threads would take it one after the other, many of them with a system call and a context
//! switch.

use std::time::Instant;

/// An event count. To wait for a condition, repeat: read [`current`](Self::current), check the condition, call
/// [`wait`](Self::wait). To signal: make the condition true, then call [`signal`](Self::signal).
#[derive(Debug, Default)]
pub(crate) struct EventCount(imp::Count);

impl EventCount {
    /// Returns the number of signals so far. Read it before the condition is checked.
    pub(crate) fn current(&self) -> u32 {
        self.0.current()
    }

    /// Waits until there are more than `seen` signals, or the deadline has passed. May return earlier. Returns true if
    /// the deadline has passed. `None` means no deadline.
    pub(crate) fn wait(&self, seen: u32, deadline: Option<Instant>) -> bool {
        self.0.wait(seen, deadline)
    }

    /// Wakes all waiting threads. A thread that read [`current`](Self::current) before does not wait.
    pub(crate) fn signal(&self) {
        self.0.change();
        self.0.wake_all();
    }

    /// A faulty signal that does not wake threads that are about to wait.
    #[cfg(all(test, oncekey_shuttle))]
    pub(crate) fn wake_all(&self) {
        self.0.wake_all();
    }
}

#[cfg(all(target_os = "linux", not(all(test, oncekey_shuttle))))]
mod imp {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use rustix::io::Errno;
    use rustix::thread::futex::{self, Flags, Timespec};

    use crate::types::clock::monotonic;

    #[derive(Debug, Default)]
    pub(super) struct Count(AtomicU32);

    impl Count {
        pub(super) fn current(&self) -> u32 {
            self.0.load(Ordering::Acquire)
        }

        pub(super) fn wait(&self, seen: u32, deadline: Option<Instant>) -> bool {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(monotonic()));
            // A deadline that the kernel cannot represent never passes.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            // After other errors the count has changed or a signal has arrived, so the caller checks its condition
            // again.
            futex::wait(&self.0, Flags::PRIVATE, seen, left.as_ref()) == Err(Errno::TIMEDOUT)
        }

        pub(super) fn change(&self) {
            self.0.fetch_add(1, Ordering::Release);
        }

        pub(super) fn wake_all(&self) {
            // Fails only for an invalid address.
            let _ = futex::wake(&self.0, Flags::PRIVATE, i32::MAX.unsigned_abs());
        }
    }
}

#[cfg(not(all(target_os = "linux", not(all(test, oncekey_shuttle)))))]
mod imp {
    use std::time::Instant;

    use crate::sync::{Condvar, Mutex};

    #[derive(Debug, Default)]
    pub(super) struct Count {
        count: Mutex<u32>,
        changed: Condvar,
    }

    impl Count {
        pub(super) fn current(&self) -> u32 {
            *self.count.lock()
        }

        pub(super) fn wait(&self, seen: u32, deadline: Option<Instant>) -> bool {
            let mut count = self.count.lock();
            if *count != seen {
                return false;
            }
            let Some(deadline) = deadline else {
                self.changed.wait(&mut count);
                return false;
            };
            self.changed.wait_until(&mut count, deadline).timed_out()
        }

        pub(super) fn change(&self) {
            let mut count = self.count.lock();
            *count = count.wrapping_add(1);
        }

        pub(super) fn wake_all(&self) {
            self.changed.notify_all();
        }
    }
}

#[cfg(all(test, not(oncekey_shuttle)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::types::clock::{FOREVER, deadline, monotonic};

    #[test]
    fn a_signal_after_current_was_read_is_not_missed_and_wakes_all_waiters() {
        let (event, is_over) = (EventCount::default(), AtomicBool::new(false));
        let seen = event.current();
        event.signal();
        assert!(!event.wait(seen, None), "it returns at once");
        thread::scope(|scope| {
            for timeout in [FOREVER, Duration::from_secs(3600)].into_iter().cycle().take(8) {
                let (event, is_over) = (&event, &is_over);
                scope.spawn(move || {
                    loop {
                        let seen = event.current();
                        if is_over.load(Ordering::SeqCst) {
                            return;
                        }
                        assert!(!event.wait(seen, deadline(timeout)));
                    }
                });
            }
            is_over.store(true, Ordering::SeqCst);
            event.signal();
        });
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let event = EventCount::default();
        let deadline = monotonic() + Duration::from_millis(20);
        let timed_out =
            std::iter::repeat_with(|| event.wait(event.current(), Some(deadline))).any(|timed_out| timed_out);
        assert!(timed_out && monotonic() >= deadline);
    }
}
