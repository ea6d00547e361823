//! Group commit: many commits, one sync. Knows no key, record or store.
//!
//! Commits fill one group under a short lock. One writer takes what is filled, writes and syncs it, and publishes its number;
//! meanwhile the next group fills. There are never more than two groups that somebody can wait for, the one being synced and
//! the one being filled, so two condition variables, by parity of the number, let a sync wake only its own. The shape is that
//! of okaywal's `log_file.rs` with the leader made a thread, so that no caller's early return can leave others asleep.
//!
//! The group also accounts for room, so that a commit is refused before it changes anything: in the region that is being
//! written, in a spare region that somebody prepares ahead, and in what may lie unapplied behind the sync.

mod admission;
mod patience;
mod poison;
mod priority;
mod stall;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, StdCondvar, StdMutex};
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::stats::Counter;
use admission::busy;
pub(crate) use patience::{Patience, Progress, Verdict};
use poison::Poison;
pub(crate) use priority::Priority;
use state::{Phase, State};

/// Fixed properties of a group.
#[derive(Debug)]
pub(crate) struct Config {
    /// Bytes that a group of so many payload bytes takes in its region.
    pub(crate) sized: fn(u64) -> u64,
    /// Room in a region that only exempt commits may use; half of it is the store's alone.
    pub(crate) reserve: u64,
    /// Payload bytes that may be committed and not applied.
    pub(crate) max_unapplied: u64,
    /// Payload bytes that may be committed since the last checkpoint.
    pub(crate) max_unchecked: u64,
    /// How long after its first commit a group is taken; `None` is at once.
    pub(crate) interval: Option<Duration>,
    /// How long a call waits for others, and how long nothing may move before that is the end.
    pub(crate) timeout: Duration,
    /// Counts the steps of the apply thread, which also increments it within a group.
    pub(crate) applying: Arc<AtomicU64>,
    /// How long the writer sleeps when nothing is committed.
    pub(crate) idle: Duration,
}

/// `C` is what travels with a frame to whoever applies it, `S` a spare region.
#[derive(Debug)]
pub(crate) struct CommitQueue<C, S> {
    config: Config,
    state: Mutex<State<C, S>>,
    /// Something was committed, or is wanted sooner, or the end has come.
    work_arrived: Condvar,
    /// More was applied than before, or nothing will be.
    applied_changed: Condvar,
    /// A spare region is wanted.
    spare_wanted: Condvar,
    /// Held only to check `durable` before parking: the commit lock stays out of the way of those who are woken.
    waiters: StdMutex,
    synced: [StdCondvar; 2],
    /// The last group that is durable.
    durable: AtomicU64,
    is_stalled: AtomicBool,
    /// Counts the steps of the writer and of the preparation of segments.
    writing: AtomicU64,
    /// Every look at the progress finds some: a test's own thread could be scheduled too late to make it.
    #[cfg(test)]
    moves_at_each_look: AtomicBool,
    poison: Poison,
    pub(crate) waits: Counter,
}

/// What the writer is to do.
#[derive(Debug)]
pub(crate) enum Work<C, S> {
    Write(Batch<C>, Target<S>),
    /// Nothing was committed for a long time.
    Idle,
    /// Every user's commit was taken. Told once.
    Draining,
    /// Nothing will come any more.
    Ended,
}

/// A group that is full of frames.
#[derive(Debug)]
pub(crate) struct Batch<C> {
    pub(crate) group: u64,
    pub(crate) first_frame: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) frames: Vec<C>,
}

/// Where a group goes.
#[derive(Debug)]
pub(crate) enum Target<S> {
    Current,
    /// This region becomes the current one.
    Next(S),
}

impl<C, S> CommitQueue<C, S> {
    /// `durable` is the last group there is, `region` the room behind it.
    pub(crate) fn new(config: Config, durable: u64, next_frame: u64, segment_space: u64) -> Self {
        Self {
            config,
            state: Mutex::new(State::new(durable, next_frame, segment_space)),
            work_arrived: Condvar::new(),
            applied_changed: Condvar::new(),
            spare_wanted: Condvar::new(),
            waiters: StdMutex::default(),
            synced: Default::default(),
            durable: AtomicU64::new(durable),
            is_stalled: AtomicBool::new(false),
            writing: AtomicU64::new(0),
            #[cfg(test)]
            moves_at_each_look: AtomicBool::new(false),
            poison: Poison::default(),
            waits: Counter::new("oncekey_sync_waits_total"),
        }
    }

    /// Runs with the commit lock held: short, and without a call that could wait.
    pub(crate) fn exclusive<R>(&self, f: impl FnOnce() -> R) -> R {
        let _state = self.state.lock();
        f()
    }

    /// The group that is being filled is not to wait for its interval.
    fn flush_now(&self, state: &mut State<C, S>) {
        if !state.frames.is_empty() {
            state.urgent = true;
            self.work_arrived.notify_one();
        }
    }

    fn request_segment(&self, state: &mut State<C, S>, need: u64) {
        if state.next_segment.as_ref().is_none_or(|(size, _)| *size < need) && state.wanted < need {
            state.wanted = need;
            self.spare_wanted.notify_one();
        }
    }

    /// For the writer: the next group, as soon as there is one.
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
                // `admit` lets nothing in that has no room.
                self.poison(Error::new(ErrorKind::Poisoned, "a journal group has no room although it was accepted"));
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
        state.wake_first();
        Some(Work::Write(batch, target))
    }

    /// For the writer: the anchor group of an idle store, if it fits; it has no frames.
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

    /// For the writer: everything up to `group` is durable.
    pub(crate) fn publish(&self, group: u64) {
        self.durable.store(group, Ordering::Release);
        self.writing.fetch_add(1, Ordering::Relaxed);
        // Whoever saw the old number holds this lock until it is parked.
        drop(self.waiters.lock());
        self.condvar(group).notify_all();
    }

    /// Waits until `group` is durable, as long as the writer makes progress. If that fails the error is the first one itself,
    /// which every call from now on gets as `Poisoned`.
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
        let mut patience = self.patience();
        let mut waiters = self.waiters.lock();
        loop {
            self.check_waited()?;
            if self.is_durable(group) {
                return Ok(());
            }
            if patience.for_writing() == Verdict::Stalled {
                drop(waiters);
                self.poison(stalled("a commit waited for its sync", self.config.timeout));
                return self.check_waited();
            }
            let timed_out = self.condvar(group).wait_until(&mut waiters, patience.deadline());
            patience.waited(timed_out, self.progress());
        }
    }

    pub(crate) fn is_durable(&self, group: u64) -> bool {
        self.durable() >= group
    }

    /// The last group that is.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The newest group that has a frame, for those who want everything durable.
    pub(crate) fn newest(&self) -> u64 {
        let state = self.state.lock();
        if state.frames.is_empty() { state.filling - 1 } else { state.filling }
    }

    /// A group with so many payload bytes was applied.
    pub(crate) fn applied(&self, group: u64, bytes: u64) {
        let mut state = self.state.lock();
        state.unapplied = state.unapplied.saturating_sub(bytes);
        state.applied = group;
        self.config.applying.fetch_add(1, Ordering::Relaxed);
        state.wake_first();
        self.applied_changed.notify_all();
    }

    /// Waits until `group` is applied. Errors as of [`wait`](Self::wait), and `Busy` if it takes longer than the timeout.
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
                Verdict::Moves => return Err(busy("a group waited to be applied", self.config.timeout)),
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

    /// Payload bytes ever applied: take it, make a checkpoint of at least that, then call [`Self::checkpointed`].
    pub(crate) fn applied_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.committed.saturating_sub(state.unapplied)
    }

    pub(crate) fn checkpointed(&self, applied: u64) {
        let mut state = self.state.lock();
        state.checked = state.checked.max(applied);
        self.config.applying.fetch_add(1, Ordering::Relaxed);
        state.wake_first();
    }

    pub(crate) fn unapplied(&self) -> u64 {
        self.state.lock().unapplied
    }

    /// For whoever prepares spare regions: the size that is wanted, at least; `None` at the end.
    pub(crate) fn wait_wanted(&self) -> Option<u64> {
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Closed || self.poison.check().is_err() {
                return None;
            }
            if state.wanted > 0 {
                return Some(state.wanted);
            }
            self.spare_wanted.wait(&mut state);
        }
    }

    /// A spare region, or why there is none. Gives back the one it replaces, or itself if a larger one is there.
    pub(crate) fn provide_segment(&self, provide_segment: Result<(u64, S)>) -> Option<S> {
        let mut state = self.state.lock();
        state.wanted = 0;
        self.writing.fetch_add(1, Ordering::Relaxed);
        match provide_segment {
            Ok((size, next_segment)) if state.next_segment.as_ref().is_none_or(|(old, _)| *old < size) => {
                let unused = state.next_segment.replace((size, next_segment)).map(|(_, old)| old);
                state.wake_first();
                unused
            }
            Ok((_, next_segment)) => {
                state.wake_first();
                Some(next_segment)
            }
            Err(error) => {
                state.refusals += 1;
                state.refused = Some(error);
                state.wake_queue();
                None
            }
        }
    }

    /// Lets no user's commit in any more; those that wait for room get `Closed`.
    pub(crate) fn close(&self) {
        self.set_phase(Phase::Closing);
    }

    /// Lets nothing in; the writer ends when it has written what there is.
    pub(crate) fn end(&self) {
        self.set_phase(Phase::Closed);
    }

    fn set_phase(&self, phase: Phase) {
        let mut state = self.state.lock();
        state.phase = phase;
        self.notify_everything(&state);
    }

    /// Called once, with no lock held, when the group is poisoned, or now if it is.
    pub(crate) fn on_poison(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        self.poison.listen(f);
        // Whoever poisons meanwhile takes this lock too: one of both sees what the other has set.
        drop(self.state.lock());
        self.poison.tell();
    }

    /// The first error stays, and is what every call gets from now on. Returns it.
    pub(crate) fn poison(&self, error: Error) -> Error {
        let first = self.poison.set(error);
        let state = self.state.lock();
        self.notify_everything(&state);
        drop(state);
        drop(self.waiters.lock());
        for condvar in &self.synced {
            condvar.notify_all();
        }
        self.poison.tell();
        first.clone()
    }

    fn notify_everything(&self, state: &State<C, S>) {
        self.work_arrived.notify_all();
        self.applied_changed.notify_all();
        self.spare_wanted.notify_all();
        state.wake_queue();
    }

    /// Starts the time-out of a wait for the writer or the apply thread.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.config.timeout, self.progress())
    }

    pub(crate) fn progress(&self) -> Progress {
        #[cfg(test)]
        if self.moves_at_each_look.load(Ordering::Relaxed) {
            self.writing.fetch_add(1, Ordering::Relaxed);
            self.config.applying.fetch_add(1, Ordering::Relaxed);
        }
        let written = self.writing.load(Ordering::Relaxed);
        Progress { written, applied: self.config.applying.load(Ordering::Relaxed) }
    }

    /// `Poisoned` once anything went wrong for good.
    pub(crate) fn check(&self) -> Result<()> {
        self.poison.check()
    }

    /// As [`check`](Self::check), for whoever waited for what failed: the error itself.
    pub(crate) fn check_waited(&self) -> Result<()> {
        self.poison.check_waited()
    }

    fn condvar(&self, group: u64) -> &StdCondvar {
        let [even, odd] = &self.synced;
        if group % 2 == 0 { even } else { odd }
    }
}

/// Whether the deadline has passed; `None` is never.
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
