//! The order in which commits are admitted: endings before begins, and first come, first served within a class. If
//! there is space and credit for all waiting commits, the order does not matter: each is admitted as it comes.

use std::sync::Arc;
use std::time::Duration;

use super::patience::{Patience, Verdict};
use super::state::{Phase, QueuePosition, State};
use super::{CommitQueue, Config, stalled, wait_until};
use crate::sync::group_commit::priority::{Class, Priority};
use crate::sync::{Condvar, MutexGuard};
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

/// The right to commit one frame. Holds the commit lock, so keep it only briefly.
#[derive(Debug)]
pub(crate) struct Admission<'a, C, S> {
    commit_queue: &'a CommitQueue<C, S>,
    state: MutexGuard<'a, State<C, S>>,
    /// The admitted length of the frame in bytes, and its own length once it is appended.
    len: usize,
}

/// The reason why a commit waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// The journal has no space until the writer takes a group or a segment is prepared.
    Space,
    /// Too many bytes are not applied, or not in a checkpoint.
    Credit,
    /// Earlier commits of this class, or commits of a class that goes first, are waiting.
    Turn,
}

/// A waiting commit.
struct Waiting {
    position: QueuePosition,
    wakeup: Arc<Condvar>,
    patience: Patience,
}

/// A guard that leaves the queue on drop, because the caller's closure may panic.
struct KeepsPosition<'a, C, S> {
    commit_queue: &'a CommitQueue<C, S>,
    position: QueuePosition,
}

impl<C, S> Drop for KeepsPosition<'_, C, S> {
    fn drop(&mut self) {
        self.commit_queue.state.lock().leave(self.position);
    }
}

impl<C, S> Admission<'_, C, S> {
    /// Returns the number of the frame.
    pub(crate) fn number(&self) -> u64 {
        self.state.next_frame
    }

    /// Returns the number of the group that will contain the frame.
    pub(crate) fn ticket(&self) -> u64 {
        self.state.filling
    }

    /// Appends the frame's bytes to the group. `write` may append up to the admitted length; if it appends more or fails,
    /// nothing is appended. Call [`commit`](Self::commit) next.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
        let payload = &mut self.state.payload;
        let before = payload.len();
        payload.reserve(self.len);
        let written = write(payload).and_then(|()| match payload.len().checked_sub(before) {
            Some(len) if len <= self.len => Ok(len),
            // Space was counted for the admitted length, so this is a bug.
            _ => Err(Error::new(ErrorKind::TooLarge, format!("a commit is longer than {} bytes", self.len))),
        });
        self.len = written.inspect_err(|_| payload.truncate(before))?;
        Ok(())
    }

    /// Counts the appended frame, and returns the number of its group. The writer may take the group after this.
    pub(crate) fn commit(mut self, frame: C) -> u64 {
        let Self { commit_queue, state, len } = &mut self;
        let was_empty = state.frames.is_empty();
        state.frames.push(frame);
        state.next_frame = state.next_frame.saturating_add(1);
        state.committed += *len as u64;
        state.unapplied += *len as u64;
        if was_empty {
            state.since = commit_queue.config.interval.map(|_| clock::monotonic());
            commit_queue.work_arrived.notify_one();
        }
        state.filling
    }
}

#[cfg(test)]
impl<C, S> Admission<'_, C, S> {
    /// Appends these bytes and commits.
    pub(crate) fn commit_bytes(mut self, bytes: &[u8], frame: C) -> u64 {
        self.append(|payload| {
            payload.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        self.commit(frame)
    }
}

impl<C, S> CommitQueue<C, S> {
    /// Waits until there is space for a frame of `len` bytes and no other commit goes first. Then takes the commit
    /// lock.
    ///
    /// Returns `Busy` if that takes longer than the timeout although the store makes progress; endings then continue to
    /// wait. Without progress the queue is poisoned.
    pub(crate) fn admit(&self, len: usize, priority: Priority) -> Result<Admission<'_, C, S>> {
        self.admit_after(len, priority, || ())
    }

    /// Does the same as [`admit`](Self::admit). After a wait, first calls `read_again` without the commit lock, because
    /// facts that the caller has read, such as the time, are old by then.
    pub(crate) fn admit_after(
        &self,
        len: usize,
        priority: Priority,
        mut read_again: impl FnMut(),
    ) -> Result<Admission<'_, C, S>> {
        let mut state = self.state.lock();
        let (refusals, mut waiting, mut is_old) = (state.refusals, None::<Waiting>, false);
        let ended = loop {
            let position = waiting.as_ref().map(|waiting| waiting.position);
            let lack = match (self.lack(&mut state, len as u64, priority, position, refusals), position) {
                (Ok(None), Some(position)) if std::mem::take(&mut is_old) => {
                    // Unlock during the callback, but keep the position, so that no newcomer overtakes.
                    drop(state);
                    let keeps = KeepsPosition { commit_queue: self, position };
                    read_again();
                    std::mem::forget(keeps);
                    state = self.state.lock();
                    continue;
                }
                (lack, _) => lack,
            };
            let lack = match lack {
                Ok(None) => break Ok(()),
                Ok(Some(lack)) => lack,
                Err(error) => break Err(error),
            };
            // Not reached: `lack` returns an error for a commit that must not wait.
            let Some(class) = priority.class() else { break Err(no_space()) };
            let Waiting { wakeup, patience, .. } = waiting.get_or_insert_with(|| {
                let (position, wakeup) = state.enqueue(class, len as u64);
                Waiting { position, wakeup, patience: self.patience() }
            });
            match verdict(patience, lack) {
                Verdict::Stalled => {
                    // Unlock, because `poison` calls the listener. No commit is admitted after this anyway.
                    drop(state);
                    let error = self.poison(stalled("a commit waited for space", self.config.timeout));
                    state = self.state.lock();
                    break Err(error);
                }
                Verdict::Progressing if priority.may_be_busy() => {
                    break Err(busy("a commit waited for its turn", self.config.timeout));
                }
                Verdict::Progressing | Verdict::WaitOn => {}
            }
            let timed_out = wait_until(wakeup, &mut state, patience.deadline());
            patience.waited(timed_out, self.progress());
            is_old = true;
        };
        if let Some(Waiting { position, .. }) = waiting {
            state.leave(position);
        }
        ended.map(|()| Admission { commit_queue: self, state, len })
    }

    /// Returns the reason why a frame cannot be committed now, or `None` if it can. Returns an error if waiting is
    /// useless.
    fn lack(
        &self,
        state: &mut State<C, S>,
        len: u64,
        priority: Priority,
        position: Option<QueuePosition>,
        refusals: u64,
    ) -> Result<Option<Lack>> {
        self.check()?;
        if state.phase == Phase::Closed || (state.phase != Phase::Open && priority != Priority::Store) {
            return Err(Error::closed());
        }
        let reserve = priority.leaves(self.config.reserve, len);
        let fits = (self.config.sized)(state.payload.len() as u64 + len) + reserve <= state.space();
        let may_enter = fits && (priority.is_exempt() || self.has_credit(state, 0));
        if let Some((why, _)) = state.stall.as_ref().filter(|_| priority.is_held_back(may_enter)) {
            return Err(why.clone());
        }
        let own = if position.is_some() { 0 } else { len };
        let is_first = priority.class().is_none_or(|class: Class| state.is_first(class, position));
        // If there is enough for all, no commit waits for its turn. Otherwise, after a shortage, each commit would wait
        // for the one before it, and the queue would never become empty.
        if may_enter && (is_first || self.is_enough(state, own)) {
            return Ok(None);
        }
        if !fits {
            self.request_segment(state, (self.config.sized)(len) + self.config.reserve);
            if priority == Priority::GivingUp || state.refusals != refusals {
                return Err(state.refused.clone().unwrap_or_else(no_space));
            }
        }
        // The current group may be waiting only for its interval. Flush it, so that space or credit becomes free.
        self.flush_now(state);
        Ok(Some(match (fits, may_enter) {
            (false, _) => Lack::Space,
            (true, false) => Lack::Credit,
            (true, true) => Lack::Turn,
        }))
    }

    /// Returns true if there is credit after `more` bytes.
    fn has_credit(&self, state: &State<C, S>, more: u64) -> bool {
        let Config { max_unapplied, max_unchecked, .. } = self.config;
        state.unapplied + more < max_unapplied && state.committed + more - state.checked < max_unchecked
    }

    /// Returns true if there is space and credit for all waiting commits, and for `more` bytes.
    fn is_enough(&self, state: &State<C, S>, more: u64) -> bool {
        let len = state.payload.len() as u64 + state.queued + more;
        let fits = (self.config.sized)(len) + self.config.reserve <= state.space();
        fits && self.has_credit(state, state.queued + more)
    }

    /// Wakes the commits that can be admitted now, because there is more space or credit than before.
    pub(super) fn wake_admitted(&self, state: &State<C, S>) {
        if self.is_enough(state, 0) { state.wake_queue() } else { state.wake_first() }
    }
}

fn verdict(patience: &Patience, lack: Lack) -> Verdict {
    match lack {
        Lack::Space => patience.for_writing(),
        Lack::Credit => patience.for_applying(),
        // The first of the queue checks the progress.
        Lack::Turn if patience.is_over() => Verdict::Progressing,
        Lack::Turn => Verdict::WaitOn,
    }
}

pub(super) fn busy(what: &str, timeout: Duration) -> Error {
    Error::new(ErrorKind::Busy, format!("the engine is busy: {what} for {timeout:?}"))
}

fn no_space() -> Error {
    Error::new(ErrorKind::Full, "the journal has no space left")
}
