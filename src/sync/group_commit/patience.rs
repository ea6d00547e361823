//! Timeouts of waits, and the decision whether the disk has failed.
//!
//! A wait consists of slices, each an eighth of the timeout. A slice counts only if it ended on time. If the process or
//! its machine was stopped, the slice ends much later than requested. Such a slice says nothing about the disk.

use std::time::{Duration, Instant};

use crate::types::clock;

/// A model tries every order in which slices end, so it has fewer of them.
const SLICES: u32 = if cfg!(all(test, oncekey_shuttle)) { 2 } else { 8 };

/// The largest delay with which a busy machine wakes a thread after a short slice.
const SLACK: Duration = Duration::from_millis(20);

/// Counters of the steps that background threads have made. They only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Steps of the journal: groups written, segments prepared.
    pub(crate) written: u64,
    /// Steps of the record store: changes applied, checkpoints made.
    pub(crate) applied: u64,
}

/// The state of one wait.
#[derive(Debug)]
pub(crate) struct Patience {
    slice: Duration,
    began: Instant,
    seen: Progress,
    /// The number of slices that counted: since the wait began, and since the last progress of each kind.
    slices: u32,
    not_written: u32,
    not_applied: u32,
}

impl Patience {
    pub(crate) fn new(timeout: Duration, seen: Progress) -> Self {
        let slice = timeout / SLICES;
        Self { slice, began: clock::monotonic(), seen, slices: 0, not_written: 0, not_applied: 0 }
    }

    /// Returns the end of the current slice. `None` means that it never ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.began.checked_add(self.slice)
    }

    /// Records the end of a wait. `timed_out` is true if the deadline passed.
    pub(crate) fn waited(&mut self, timed_out: bool, seen: Progress) {
        if timed_out {
            self.slice_ended(clock::monotonic(), seen);
        }
    }

    fn slice_ended(&mut self, now: Instant, seen: Progress) {
        let took = now.saturating_duration_since(self.began);
        self.began = now;
        // The wait took half a slice longer than requested: the process was not running all the time.
        if took > self.slice.saturating_add(SLACK.max(self.slice / 2)) {
            return;
        }
        self.slices += 1;
        self.not_written = if seen.written == self.seen.written { self.not_written + 1 } else { 0 };
        self.not_applied = if seen.applied == self.seen.applied { self.not_applied + 1 } else { 0 };
        self.seen = seen;
    }

    /// Returns true if the wait has lasted for the timeout.
    pub(crate) fn is_over(&self) -> bool {
        self.slices >= SLICES
    }

    /// Returns the verdict on a wait for the journal.
    pub(crate) fn for_writing(&self) -> Verdict {
        self.verdict(self.not_written)
    }

    /// Returns the verdict on a wait for the record store.
    pub(crate) fn for_applying(&self) -> Verdict {
        self.verdict(self.not_applied)
    }

    fn verdict(&self, slices_without_progress: u32) -> Verdict {
        match slices_without_progress {
            SLICES.. => Verdict::Stalled,
            0 if self.is_over() => Verdict::Progressing,
            _ => Verdict::WaitOn,
        }
    }
}

/// The verdict on a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Keep waiting. Either the timeout has not passed, or the last slice had no progress, which may be the start of a
    /// stall.
    WaitOn,
    /// The timeout has passed, and there is progress.
    Progressing,
    /// There was no progress for the timeout.
    Stalled,
}

#[cfg(all(test, not(oncekey_shuttle)))]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(8);
    const SLICE: Duration = Duration::from_secs(1);

    fn progress(written: u64, applied: u64) -> Progress {
        Progress { written, applied }
    }

    fn waiting() -> (Patience, Instant) {
        let patience = Patience::new(TIMEOUT, progress(0, 0));
        let began = patience.began;
        (patience, began)
    }

    #[test]
    fn a_timeout_without_progress_is_a_stall() {
        let (mut patience, mut now) = waiting();
        for _ in 0..SLICES {
            assert!(!patience.is_over());
            assert_eq!((patience.for_writing(), patience.for_applying()), (Verdict::WaitOn, Verdict::WaitOn));
            now += SLICE;
            patience.slice_ended(now, progress(0, 0));
        }
        assert!(patience.is_over());
        assert_eq!((patience.for_writing(), patience.for_applying()), (Verdict::Stalled, Verdict::Stalled));
    }

    #[test]
    fn progress_of_journal_and_record_store_is_counted_separately() {
        let (mut patience, mut now) = waiting();
        for nth in 1..=u64::from(SLICES) {
            now += SLICE;
            patience.slice_ended(now, progress(nth, nth / 8));
        }
        assert_eq!((patience.for_writing(), patience.for_applying()), (Verdict::Progressing, Verdict::Progressing));
        now += SLICE;
        patience.slice_ended(now, progress(9, 1));
        // The whole wait is over the timeout, but the time without progress is not.
        assert_eq!((patience.for_writing(), patience.for_applying()), (Verdict::Progressing, Verdict::WaitOn));
        for _ in 1..SLICES {
            now += SLICE;
            patience.slice_ended(now, progress(9, 1));
        }
        assert_eq!((patience.for_writing(), patience.for_applying()), (Verdict::WaitOn, Verdict::Stalled));
    }

    #[test]
    fn a_wait_that_was_woken_does_not_count_as_a_slice() {
        let (mut patience, _) = waiting();
        for _ in 0..100 {
            patience.waited(false, progress(0, 0));
        }
        assert_eq!(patience.slices, 0);
    }

    #[test]
    fn time_in_which_the_process_did_not_run_does_not_count() {
        let (mut patience, mut now) = waiting();
        for _ in 0..100 {
            now += TIMEOUT * 10;
            patience.slice_ended(now, progress(0, 0));
        }
        assert!(!patience.is_over());
        assert_eq!(patience.for_writing(), Verdict::WaitOn);
        for _ in 0..SLICES {
            now += SLICE;
            patience.slice_ended(now, progress(0, 0));
        }
        assert_eq!(patience.for_writing(), Verdict::Stalled, "the time after the pause counts");
    }
}
