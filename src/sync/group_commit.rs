//! Group commit: many commits share one sync. This module knows no key, record or store.
//!
//! Commits are added to a group under a short lock. One writer takes the group, writes and syncs it, and publishes its
//! number; meanwhile the next group fills.
//!
//! Callers can wait for at most two groups: the one being synced and the one being filled. So two event counts, chosen
//! by the parity of the number, let a sync wake only its own waiters. The design is that of okaywal's `log_file.rs`.
//! There one of the callers syncs for the others; here a thread does, so a caller that returns early cannot leave
//! others asleep.
//!
//! The queue also accounts for space, so that a commit is rejected before it changes anything. The queue counts
//! the space in the current segment, the space in the next segment, and the bytes that are not applied yet.

mod admission;
mod patience;
mod poison;
mod priority;
mod stall;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::event_count::EventCount;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::stats::Counter;
use admission::busy;
pub(crate) use patience::{Patience, Progress, Verdict};
use poison::Poison;
pub(crate) use priority::Priority;
use state::{Phase, State};

/// The fixed properties of a commit queue.
#[derive(Debug)]
pub(crate) struct Config {
    /// Returns the number of bytes that a group takes in its segment, from the number of its payload bytes.
    pub(crate) sized: fn(u64) -> u64,
    /// Bytes of a segment reserved for endings and for the store's own frames, half each.
    pub(crate) reserve: u64,
    /// The largest number of payload bytes that may be committed but not applied.
    pub(crate) max_unapplied: u64,
    /// The largest number of payload bytes that may be committed since the last checkpoint.
    pub(crate) max_unchecked: u64,
    /// The time from the first commit of a group until the writer takes the group. `None` means at once.
    pub(crate) interval: Option<Duration>,
    /// The longest wait of a call for other calls, and the longest time without progress before the queue is poisoned.
    pub(crate) timeout: Duration,
    /// Counts the steps of the apply thread, which also increments it within a group.
    pub(crate) applying: Arc<AtomicU64>,
    /// The longest sleep of the writer without a commit.
    pub(crate) idle: Duration,
}

/// The queue of commits. `C` is the data of a frame for the apply thread, `S` a segment.
#[derive(Debug)]
pub(crate) struct CommitQueue<C, S> {
    config: Config,
    state: Mutex<State<C, S>>,
    /// Notified if a frame was committed, if the current group is urgent, and at the end.
    work_arrived: Condvar,
    /// Notified if a group was applied, and if nothing will be applied.
    applied_changed: Condvar,
    /// Notified if a segment is requested.
    segment_requested: Condvar,
    /// Signalled when a group of this parity is durable.
    synced: [EventCount; 2],
    /// The number of the last durable group.
    durable: AtomicU64,
    /// The newest group that has a waiter with a timeout. This waiter has the timeout for all waiters of this group and
    /// of earlier ones.
    timed: AtomicU64,
    is_stalled: AtomicBool,
    /// Counts the steps of the writer and of the preparation of segments.
    writing: AtomicU64,
    /// For tests: makes each call of `progress` report progress. A thread that makes real progress could be scheduled
    /// too late.
    #[cfg(test)]
    always_progresses: AtomicBool,
    poison: Poison,
    pub(crate) waits: Counter,
}

/// The next task of the writer.
#[derive(Debug)]
pub(crate) enum Work<C, S> {
    Write(Batch<C>, Target<S>),
    /// Nothing was committed for the idle time.
    Idle,
    /// The writer has taken all commits of users. Returned once.
    Draining,
    /// Nothing more will be committed.
    Ended,
}

/// A group taken for writing, with all its frames.
#[derive(Debug)]
pub(crate) struct Batch<C> {
    pub(crate) group: u64,
    pub(crate) first_frame: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) frames: Vec<C>,
}

/// The segment that a group is written to.
#[derive(Debug)]
pub(crate) enum Target<S> {
    Current,
    /// The group is the first of this segment, which becomes the current one.
    Next(S),
}

impl<C, S> CommitQueue<C, S> {
    /// Creates a queue. `durable` is the number of the last group in the journal. `segment_space` is the space after
    /// that group, in bytes.
    pub(crate) fn new(config: Config, durable: u64, next_frame: u64, segment_space: u64) -> Self {
        Self {
            config,
            state: Mutex::new(State::new(durable, next_frame, segment_space)),
            work_arrived: Condvar::new(),
            applied_changed: Condvar::new(),
            segment_requested: Condvar::new(),
            synced: Default::default(),
            durable: AtomicU64::new(durable),
            timed: AtomicU64::new(durable),
            is_stalled: AtomicBool::new(false),
            writing: AtomicU64::new(0),
            #[cfg(test)]
            always_progresses: AtomicBool::new(false),
            poison: Poison::default(),
            waits: Counter::new("oncekey_sync_waits_total"),
        }
    }

    /// Runs `f` with the commit lock held. `f` must be short and must not wait.
    pub(crate) fn exclusive<R>(&self, f: impl FnOnce() -> R) -> R {
        let _state = self.state.lock();
        f()
    }

    /// Runs `f` between two commits, as [`exclusive`](Self::exclusive) does. Also returns the number of the last frame,
    /// and the group to wait for until everything up to it is durable.
    pub(crate) fn at_one_commit<R>(&self, f: impl FnOnce() -> R) -> (u64, u64, R) {
        let state = self.state.lock();
        let group = if state.frames.is_empty() { state.filling - 1 } else { state.filling };
        (state.next_frame - 1, group, f())
    }

    /// Makes the writer take the current group without waiting for its interval.
    fn flush_now(&self, state: &mut State<C, S>) {
        if !state.frames.is_empty() {
            state.urgent = true;
            self.work_arrived.notify_one();
        }
    }

    fn request_segment(&self, state: &mut State<C, S>, need: u64) {
        if state.next_segment.as_ref().is_none_or(|(size, _)| *size < need) && state.wanted < need {
            state.wanted = need;
            self.segment_requested.notify_one();
        }
    }

    /// Waits for the next group, and takes it. Called by the writer.
    pub(crate) fn take(&self) -> Work<C, S> {
        let mut state = self.state.lock();
        let idle_until = clock::deadline(self.config.idle);
        loop {
            if self.poison.check().is_err() {
                return Work::Ended;
            }
            if state.frames.is_empty() {
                match state.phase {
                    Phase::Closing => {
                        state.phase = Phase::Draining;
                        return Work::Draining;
                    }
                    Phase::Closed => return Work::Ended,
                    Phase::Open | Phase::Draining => {}
                }
                if wait_until(&self.work_arrived, &mut state, idle_until) {
                    return Work::Idle;
                }
                continue;
            }
            let due = state.since.and_then(|since| since.checked_add(self.config.interval?));
            let waits = due.is_some() && !state.urgent && state.phase == Phase::Open;
            let full = state.payload.len() as u64 >= self.config.max_unapplied / 4;
            if !waits || full || wait_until(&self.work_arrived, &mut state, due) {
                if let Some(work) = self.take_filled(&mut state) {
                    return work;
                }
                drop(state);
                // `admit` accepts no frame without space for it, so this is a bug.
                self.poison(Error::new(ErrorKind::Poisoned, "a journal group has no space although it was accepted"));
                return Work::Ended;
            }
        }
    }

    fn take_filled(&self, state: &mut State<C, S>) -> Option<Work<C, S>> {
        let need = (self.config.sized)(state.payload.len() as u64);
        let target = if need <= state.segment_space {
            state.segment_space -= need;
            Target::Current
        } else if let Some((size, next_segment)) = state.next_segment.take() {
            state.segment_space = size.saturating_sub(need);
            self.request_segment(state, 1);
            Target::Next(next_segment)
        } else {
            return None;
        };
        let frames = std::mem::take(&mut state.frames);
        let batch = Batch {
            group: state.filling,
            first_frame: state.next_frame - frames.len() as u64,
            payload: std::mem::take(&mut state.payload),
            frames,
        };
        state.filling += 1;
        state.urgent = false;
        state.since = None;
        self.wake_admitted(state);
        Some(Work::Write(batch, target))
    }

    /// Takes an empty group that carries only an anchor, if it fits. Called by the writer of an idle store.
    pub(crate) fn take_empty(&self) -> Option<Batch<C>> {
        let mut state = self.state.lock();
        let need = (self.config.sized)(0);
        if !state.frames.is_empty() || need > state.segment_space {
            return None;
        }
        state.segment_space -= need;
        let batch =
            Batch { group: state.filling, first_frame: state.next_frame, payload: Vec::new(), frames: Vec::new() };
        state.filling += 1;
        Some(batch)
    }

    /// Marks all groups up to `group` as durable, and wakes their waiters. Called by the writer.
    pub(crate) fn publish(&self, group: u64) {
        self.durable.store(group, Ordering::Release);
        self.writing.fetch_add(1, Ordering::Relaxed);
        // Signal after the store: a waiter that has read the old number then finds that the event count has changed.
        self.synced(group).signal();
    }

    /// Waits until `group` is durable, as long as the writer makes progress.
    ///
    /// If that fails, returns the first error itself. All later calls get it as `Poisoned`.
    pub(crate) fn wait(&self, group: u64) -> Result<()> {
        if self.is_durable(group) {
            return self.check();
        }
        if self.config.interval.is_some() {
            let mut state = self.state.lock();
            if state.filling == group {
                self.flush_now(&mut state);
            }
        }
        self.waits.add(1);
        let synced = self.synced(group);
        let mut patience = None;
        loop {
            // Read before the checks: after a later signal the wait below returns at once.
            let seen = synced.current();
            self.check_waited()?;
            if self.is_durable(group) {
                return Ok(());
            }
            // One waiter has the timeout for all, because a timer costs as much as the wait itself.
            if self.timed.load(Ordering::Relaxed) < group && self.timed.fetch_max(group, Ordering::Relaxed) < group {
                patience = Some(self.patience());
            }
            if patience.as_ref().is_some_and(|patience| patience.for_writing() == Verdict::Stalled) {
                self.poison(stalled("a commit waited for its sync", self.config.timeout));
                return self.check_waited();
            }
            let timed_out = synced.wait(seen, patience.as_ref().and_then(Patience::deadline));
            if let Some(patience) = &mut patience {
                patience.waited(timed_out, self.progress());
            }
        }
    }

    pub(crate) fn is_durable(&self, group: u64) -> bool {
        self.durable() >= group
    }

    /// Returns the number of the last durable group.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Returns the newest group that has a frame. When this group is durable, all frames so far are.
    pub(crate) fn newest(&self) -> u64 {
        let state = self.state.lock();
        if state.frames.is_empty() { state.filling - 1 } else { state.filling }
    }

    /// Marks `group`, which has `bytes` payload bytes, as applied.
    pub(crate) fn applied(&self, group: u64, bytes: u64) {
        let mut state = self.state.lock();
        state.unapplied = state.unapplied.saturating_sub(bytes);
        state.applied = group;
        self.config.applying.fetch_add(1, Ordering::Relaxed);
        self.wake_admitted(&state);
        self.applied_changed.notify_all();
    }

    /// Waits until `group` is applied. Fails as [`wait`](Self::wait) does, and with `Busy` if it takes longer than the
    /// timeout.
    pub(crate) fn wait_applied(&self, group: u64) -> Result<()> {
        self.wait(group)?;
        let mut patience = self.patience();
        let mut state = self.state.lock();
        while state.applied < group {
            self.check_waited()?;
            if state.phase == Phase::Closed {
                return Err(Error::closed());
            }
            if let Some((why, _)) = state.stall.as_ref().filter(|(_, stops_applying)| *stops_applying) {
                return Err(why.clone());
            }
            match patience.for_applying() {
                Verdict::WaitOn => {}
                Verdict::Progressing => return Err(busy("a group waited to be applied", self.config.timeout)),
                Verdict::Stalled => {
                    drop(state);
                    self.poison(stalled("a group waited to be applied", self.config.timeout));
                    return self.check_waited();
                }
            }
            let timed_out = wait_until(&self.applied_changed, &mut state, patience.deadline());
            patience.waited(timed_out, self.progress());
        }
        Ok(())
    }

    /// Returns the number of payload bytes applied so far. Read it before a checkpoint, and pass it to
    /// [`Self::checkpointed`] afterwards.
    pub(crate) fn applied_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.committed.saturating_sub(state.unapplied)
    }

    pub(crate) fn checkpointed(&self, applied: u64) {
        let mut state = self.state.lock();
        state.checked = state.checked.max(applied);
        self.config.applying.fetch_add(1, Ordering::Relaxed);
        self.wake_admitted(&state);
    }

    pub(crate) fn unapplied(&self) -> u64 {
        self.state.lock().unapplied
    }

    /// Waits until a segment is requested, and returns its smallest size. Returns `None` at the end. Called by the
    /// thread that prepares segments.
    pub(crate) fn wait_wanted(&self) -> Option<u64> {
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Closed || self.poison.check().is_err() {
                return None;
            }
            if state.wanted > 0 {
                return Some(state.wanted);
            }
            self.segment_requested.wait(&mut state);
        }
    }

    /// Provides the next segment, or the reason why there is none. Returns the segment that is not used: the one that
    /// was provided before, or the new one if it is not larger.
    pub(crate) fn provide_segment(&self, provided: Result<(u64, S)>) -> Option<S> {
        let mut state = self.state.lock();
        state.wanted = 0;
        self.writing.fetch_add(1, Ordering::Relaxed);
        match provided {
            Ok((size, segment)) if state.next_segment.as_ref().is_none_or(|(old, _)| *old < size) => {
                let unused = state.next_segment.replace((size, segment)).map(|(_, old)| old);
                self.wake_admitted(&state);
                unused
            }
            Ok((_, segment)) => {
                state.wake_first();
                Some(segment)
            }
            Err(error) => {
                state.refusals += 1;
                state.refused = Some(error);
                state.wake_queue();
                None
            }
        }
    }

    /// Rejects all further commits of users. Those that wait for space get `Closed`.
    pub(crate) fn close(&self) {
        self.set_phase(Phase::Closing);
    }

    /// Rejects all further commits. The writer ends when it has written the admitted ones.
    pub(crate) fn end(&self) {
        self.set_phase(Phase::Closed);
    }

    fn set_phase(&self, phase: Phase) {
        let mut state = self.state.lock();
        state.phase = phase;
        self.notify_everything(&state);
    }

    /// Calls `f` once if the queue is poisoned, now or later, with no lock held.
    pub(crate) fn on_poison(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        self.poison.listen(f);
        // Take the lock once: a concurrent `poison` takes it too, so at least one of the two calls sees both the error
        // and the listener.
        drop(self.state.lock());
        self.poison.report();
    }

    /// Poisons the queue. The first error stays, and every later call gets it. Returns that error.
    pub(crate) fn poison(&self, error: Error) -> Error {
        let first = self.poison.set(error);
        let state = self.state.lock();
        self.notify_everything(&state);
        drop(state);
        self.synced.iter().for_each(EventCount::signal);
        self.poison.report();
        first.clone()
    }

    fn notify_everything(&self, state: &State<C, S>) {
        self.work_arrived.notify_all();
        self.applied_changed.notify_all();
        self.segment_requested.notify_all();
        state.wake_queue();
    }

    /// Starts the timeout of a wait for the writer or the apply thread.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.config.timeout, self.progress())
    }

    pub(crate) fn progress(&self) -> Progress {
        #[cfg(test)]
        if self.always_progresses.load(Ordering::Relaxed) {
            self.writing.fetch_add(1, Ordering::Relaxed);
            self.config.applying.fetch_add(1, Ordering::Relaxed);
        }
        let written = self.writing.load(Ordering::Relaxed);
        Progress { written, applied: self.config.applying.load(Ordering::Relaxed) }
    }

    /// Returns `Poisoned` if the queue is poisoned.
    pub(crate) fn check(&self) -> Result<()> {
        self.poison.check()
    }

    /// Returns the first error itself if the queue is poisoned. For calls that waited for the step that failed.
    pub(crate) fn check_waited(&self) -> Result<()> {
        self.poison.check_waited()
    }

    fn synced(&self, group: u64) -> &EventCount {
        let [even, odd] = &self.synced;
        if group % 2 == 0 { even } else { odd }
    }
}

/// Waits for a notification or the deadline. Returns true if the deadline has passed. `None` means no deadline.
fn wait_until<T>(condvar: &Condvar, guard: &mut MutexGuard<'_, T>, deadline: Option<Instant>) -> bool {
    if let Some(deadline) = deadline {
        return condvar.wait_until(guard, deadline).timed_out();
    }
    condvar.wait(guard);
    false
}

fn stalled(what: &str, timeout: Duration) -> Error {
    Error::new(ErrorKind::Poisoned, format!("the engine is poisoned: {what} for {timeout:?}"))
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
mod tests;
