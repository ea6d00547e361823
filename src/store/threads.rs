//! The threads of a store: the writer writes the journal, the apply thread writes sled, the checkpoint thread frees
//! segments, and one thread prepares new segments.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::apply::{Applier, Inbox, Message};
use super::journal::{Writer, segment_for, usable};
use super::{Inner, checkpoint, files};
use crate::store::runs::flush::Flusher;
use crate::store::sled::disk_space::Wakeups;
use crate::sync::group_commit::{Batch, Target, Verdict, Work};
use crate::sync::worker::Worker;
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

/// The longest wait of commits for the checkpoint that frees a segment of the journal, if none can be created.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The threads, and the lock on the directory. Each thread shares the lock, so a thread that hangs in the operating
/// system keeps it.
#[derive(Debug)]
pub(crate) struct Running {
    workers: Vec<Worker>,
    /// Disconnected when the last thread has ended.
    ended: Receiver<()>,
    timeout: Duration,
    lock: Arc<files::StoreLock>,
}

/// The callers' side of the apply thread.
#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) messages: Sender<Message>,
    /// Disconnected when the thread has ended. Messages in its queue are then never answered.
    pub(crate) ended: Receiver<Infallible>,
}

/// Creates both ends of the channel: the callers' and the thread's.
pub(crate) fn apply_channel(wakeups: Wakeups) -> (Apply, (Inbox, Sender<Infallible>)) {
    // Unbounded, so that the writer never waits for a flush. The bytes of unapplied commits are limited instead.
    let (messages, received) = crossbeam_channel::unbounded();
    let (alive, ended) = crossbeam_channel::bounded(0);
    let inbox = Inbox { messages: received, wakeups };
    (Apply { messages, ended }, (inbox, alive))
}

/// Starts the threads. `flushed` has the flusher, and the number of the last group, whose changes are in runs.
pub(crate) fn start(
    inner: &Arc<Inner>,
    writer: Writer,
    flushed: (Flusher, u64),
    (inbox, apply_alive): (Inbox, Sender<Infallible>),
    lock: files::StoreLock,
    timeout: Duration,
) -> Result<Running> {
    let (alive, ended) = crossbeam_channel::bounded(0);
    let lock = Arc::new(lock);
    let mut running = Running { workers: Vec::new(), ended, timeout, lock };
    // Unbounded: the apply thread must never wait for a checkpoint, which waits for the writer, which waits for the
    // apply thread. There is at most one job for each segment that was filled meanwhile.
    let (checkpoints, jobs) = crossbeam_channel::unbounded();
    running.spawn(inner, &alive, "oncekey-journal", move |inner| write(&inner, writer))?;
    running.spawn(inner, &alive, "oncekey-apply", move |inner| {
        let mut applier = Applier::new(Arc::clone(&inner), inbox, checkpoints, flushed);
        let ended = applier.run();
        if let Err(error) = &ended {
            // Poison before the channels of this thread disconnect: other threads would take the end for a close.
            inner.commit_queue.poison(error.clone());
        }
        drop(apply_alive);
        ended
    })?;
    running.spawn(inner, &alive, "oncekey-checkpoint", move |inner| checkpoint::run(&jobs, &inner))?;
    running.spawn(inner, &alive, "oncekey-segments", move |inner| {
        prepare(&inner);
        Ok(())
    })?;
    Ok(running)
}

/// Creates the value for a store that is only read, which has no threads.
pub(crate) fn none(lock: files::StoreLock, timeout: Duration) -> Running {
    let (_, ended) = crossbeam_channel::bounded(0);
    Running { workers: Vec::new(), ended, timeout, lock: Arc::new(lock) }
}

impl Running {
    /// Starts a thread whose error or panic poisons the store.
    fn spawn(
        &mut self,
        inner: &Arc<Inner>,
        alive: &Sender<()>,
        name: &'static str,
        body: impl FnOnce(Arc<Inner>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (mine, for_panic) = (Arc::clone(inner), Arc::clone(inner));
        let held = (alive.clone(), Arc::clone(&self.lock));
        let work = move || {
            let _held = held;
            if let Err(error) = body(Arc::clone(&mine)) {
                mine.commit_queue.poison(error);
            }
        };
        let on_panic = move |why: String| {
            let message = format!("the engine is poisoned: its thread {name} panicked: {why}");
            for_panic.commit_queue.poison(Error::new(ErrorKind::Poisoned, message));
            // If the writer panicked, the apply thread must end too. The writer sends this message when it ends
            // normally.
            let _ = for_panic.apply.messages.send(Message::End);
        };
        let worker = Worker::spawn(name, work, on_panic).inspect_err(|error| {
            // Threads that run already must end.
            inner.commit_queue.poison(error.clone());
        })?;
        self.workers.push(worker);
        Ok(())
    }

    /// Ends the threads, closes sled and unlocks the directory.
    pub(crate) fn close(self, inner: &Inner) -> Result<()> {
        let Self { mut workers, ended, timeout, lock } = self;
        let was_sound = inner.commit_queue.check();
        inner.commit_queue.close();
        if !wait_until_ended(&ended, inner) {
            // A thread hangs in the operating system, and keeps the lock until it returns.
            let message =
                format!("the engine is poisoned: its threads made no progress for {timeout:?} while it was closed");
            let error = inner.commit_queue.poison(Error::new(ErrorKind::Poisoned, message));
            std::mem::forget(workers);
            return Err(error);
        }
        workers.iter_mut().for_each(Worker::join);
        let closed = inner.shared.tables.close_within(timeout, Arc::clone(&lock));
        if closed.is_ok() && !inner.read_only {
            inner.disk_space.give_back();
        }
        // Empty the memtable: from now on another process may own the store.
        inner.shared.memtable.clear();
        drop(lock);
        let left_behind = inner.left_behind.lock().take().map_or(Ok(()), Err);
        // Errors of commits for which this call has waited take precedence.
        was_sound.and(inner.commit_queue.check_waited()).and(left_behind).and(closed)
    }
}

/// Waits while the threads make progress, because applying may take a while. Returns false after a timeout without
/// progress.
fn wait_until_ended(ended: &Receiver<()>, inner: &Inner) -> bool {
    let mut patience = inner.commit_queue.patience();
    loop {
        let Some(deadline) = patience.deadline() else { return ended.recv().is_err() };
        if ended.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected) {
            return true;
        }
        patience.waited(true, inner.commit_queue.progress());
        if (patience.for_writing(), patience.for_applying()) == (Verdict::Stalled, Verdict::Stalled) {
            return false;
        }
    }
}

/// The main function of the writer thread.
fn write(inner: &Inner, mut writer: Writer) -> Result<()> {
    let written = write_groups(inner, &mut writer);
    if let Err(error) = &written {
        inner.commit_queue.poison(error.clone());
    }
    // There will be no more groups. An error means that the apply thread has ended.
    let _ = inner.apply.messages.send(Message::End);
    written
}

fn write_groups(inner: &Inner, writer: &mut Writer) -> Result<()> {
    loop {
        match inner.commit_queue.take() {
            Work::Write(batch, place) => {
                let entered = writer.write(&batch, place, inner.clock.anchor())?;
                inner.commit_queue.publish(batch.group);
                // An error means that the apply thread has ended: the store closes and this group changes nothing, or
                // the thread failed and has poisoned the store.
                let _ = inner.apply.messages.send(message(&batch, entered));
                if entered {
                    writer.seal()?;
                }
            }
            Work::Idle => {
                if let Some(batch) = inner.commit_queue.take_empty() {
                    writer.write(&batch, Target::Current, inner.clock.anchor())?;
                    inner.commit_queue.publish(batch.group);
                    let _ = inner.apply.messages.send(message(&batch, false));
                }
            }
            Work::Draining => {
                let _ = inner.apply.messages.send(Message::Close);
            }
            Work::Ended => return Ok(()),
        }
    }
}

pub(crate) fn message(batch: &Batch<bool>, checkpoint: bool) -> Message {
    let frame = batch.first_frame.saturating_add(batch.frames.len() as u64).saturating_sub(1);
    let changes = batch.frames.contains(&true);
    Message::Group { group: batch.group, frame, bytes: batch.payload.len() as u64, changes, checkpoint }
}

/// Waits for the checkpoint that frees a segment. Returns false at once if there is nothing to free, or if the apply
/// thread has no space either.
fn wait_for_release(inner: &Inner) -> bool {
    let until = clock::deadline(RELEASE_TIMEOUT);
    let released = inner.pool.released();
    if inner.commit_queue.is_stalled() || inner.commit_queue.unapplied() == 0 {
        return false;
    }
    let group = inner.commit_queue.durable();
    let is_sent = inner.send(Message::Flush { group }).is_ok();
    if is_sent {
        inner.pool.wait_for_release(released, until);
    }
    is_sent
}

/// The main function of the thread that keeps the next segment ready.
fn prepare(inner: &Inner) {
    while let Some(need) = inner.commit_queue.wait_wanted() {
        let need = segment_for(need);
        // Segments grow with the rate of commits. But there are up to four of them, and the runs need space too.
        let wanted = inner.pool.wanted(need).min(inner.disk_space.free_up_to(16 * need) / 16).max(need);
        let prepare = || {
            let set_apart = inner.disk_space.set_apart(wanted);
            inner.pool.prepare(need, wanted, set_apart.bytes)
        };
        let mut spare = prepare();
        if spare.is_err() && wait_for_release(inner) {
            // Try again even after the timeout, because the answer is for commits that have come meanwhile too.
            spare = prepare();
        }
        let offer = spare.map(|spare| (usable(spare.size), spare));
        if let Some(unused) = inner.commit_queue.provide_segment(offer) {
            inner.pool.give_back(unused);
        }
    }
}
