//! The apply thread: flushes durable commits into sled, merges runs, and deletes replaced ones. No other thread
//! writes to sled.

mod background;

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Inner;
use super::checkpoint::Job;
use super::format::frame::Frame;
use crate::store::runs::flush::{Deleted, Flusher};
use crate::store::runs::merge::Merge;
use crate::store::sled::disk_space::Wakeups;
use crate::types::error::{Error, ErrorKind, Result};

/// Bytes of commits after which they are flushed, even if no segment is full.
const FLUSH_BYTES: u64 = 4 << 20;
/// The bytes of unapplied commits up to which the thread keeps up with callers, and gives way to them.
const KEEPS_UP: u64 = 2 * FLUSH_BYTES;

/// The messages to the apply thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// A group is durable.
    Group {
        group: u64,
        /// The last frame in this and all earlier groups.
        frame: u64,
        bytes: u64,
        /// True if the group changes anything.
        changes: bool,
        /// True if the journal began a new segment.
        checkpoint: bool,
    },
    /// Flush as soon as this group is durable.
    Flush { group: u64 },
    /// Flush if a record in the memtable has expired, then rewrite or drop a run with expired records.
    Compact(Compaction),
    /// Flush now.
    #[cfg(test)]
    Checkpoint { reply: Sender<()> },
    /// No user will commit any more: flush, make the last checkpoint, and record the close in the journal.
    Close,
    /// The writer has ended.
    End,
}

impl Message {
    fn is_last(&self) -> bool {
        matches!(self, Self::Close | Self::End)
    }
}

#[derive(Debug)]
pub(crate) struct Compaction {
    /// The pass covers everything up to this group. The group is durable, but its message may not have arrived yet.
    pub(crate) group: u64,
    /// True if a run is rewritten for its first expired record. Otherwise a large run waits until half of its entries
    /// have expired.
    pub(crate) exact: bool,
    /// The store time at which the pass began. Records that expire later are left to the next pass, so that this one
    /// ends.
    pub(crate) began: u64,
    /// Gets the number of deleted records, or `None` if nothing is due.
    pub(crate) reply: Sender<Result<Option<Deleted>>>,
}

/// The inputs of the apply thread.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) messages: Receiver<Message>,
    /// Notifies that there may be space again.
    pub(crate) wakeups: Wakeups,
}

/// The state of the apply thread.
#[derive(Debug)]
pub(super) struct Applier {
    inner: Arc<Inner>,
    inbox: Inbox,
    checkpoints: Sender<Job>,
    flusher: Flusher,
    /// Commits that are durable but only in memory.
    pending: Pending,
    /// The last group for which a caller waits to be flushed.
    wanted: Option<u64>,
    /// Messages that came while there was no space, so that the writer never waits.
    backlog: VecDeque<Message>,
    merge: Option<(Box<Merge>, Option<Compaction>)>,
    compactions: VecDeque<Compaction>,
    /// True if there may be runs to merge.
    may_merge: bool,
    /// True if there was no space: no background step runs until the next message.
    rests: bool,
    /// The bytes of commits that were flushed since the thread last took messages, if there was a flush. More background
    /// steps run then.
    flushed: Option<u64>,
    /// True if blocks that nobody needs take too much space.
    is_behind: bool,
}

#[derive(Debug, Default)]
struct Pending {
    group: u64,
    frame: u64,
    bytes: u64,
    /// True if one of the groups changes anything.
    changes: bool,
    /// True if the commits must be flushed now: there are many, a segment has ended, or a caller waits.
    due: bool,
}

impl Pending {
    fn add(&mut self, group: u64, frame: u64, bytes: u64, changes: bool) {
        self.group = group;
        self.frame = self.frame.max(frame);
        self.bytes += bytes;
        self.changes |= changes;
    }
}

/// The decision whether the thread continues.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl Applier {
    /// Creates the state. `group` is the last group so far.
    pub(super) fn new(
        inner: Arc<Inner>,
        inbox: Inbox,
        checkpoints: Sender<Job>,
        (flusher, group): (Flusher, u64),
    ) -> Self {
        // The frame of this open changes nothing: the runs have all changes up to it.
        let pending = Pending { frame: inner.first, group, ..Pending::default() };
        Self {
            inner,
            inbox,
            checkpoints,
            flusher,
            pending,
            wanted: None,
            backlog: VecDeque::new(),
            merge: None,
            compactions: VecDeque::new(),
            may_merge: true,
            rests: false,
            flushed: None,
            is_behind: false,
        }
    }

    /// The main function of the apply thread. Ends at a close, or when the writer has ended.
    pub(super) fn run(&mut self) -> Result<()> {
        loop {
            let mut message = self.next();
            if message.is_none() && !self.has_work() && !self.pending.due {
                crossbeam_channel::select! {
                    recv(self.inbox.messages) -> sent => message = Some(sent.unwrap_or(Message::End)),
                    recv(self.inbox.wakeups) -> _ => self.rests = false,
                }
            }
            // Take all groups that have come, up to a flush: a background step takes much longer than a commit. Only
            // one other message, because callers that send them all the time could keep the thread from its work.
            self.flushed = None;
            while let Some(taken) = message {
                self.rests = false;
                if self.take(taken)? == Next::End {
                    return Ok(());
                }
                message = if self.flushed.is_some() || self.pending.due { None } else { self.next_group() };
            }
            if self.flush_if_due()? == Next::End || self.work_on()? == Next::End {
                return Ok(());
            }
        }
    }

    fn closes(&self) -> bool {
        self.backlog.iter().any(Message::is_last)
    }

    fn take(&mut self, message: Message) -> Result<Next> {
        match message {
            Message::End => return Ok(Next::End),
            Message::Group { group, frame, bytes, changes, checkpoint } => {
                self.pending.add(group, frame, bytes, changes);
                let is_wanted = self.wanted.is_some_and(|wanted| group >= wanted);
                self.pending.due |= checkpoint || is_wanted || self.pending.bytes >= FLUSH_BYTES;
                if !self.pending.changes && !self.pending.due {
                    // The group changes nothing, so the runs have everything.
                    self.inner.commit_queue.applied(group, std::mem::take(&mut self.pending.bytes));
                }
            }
            Message::Flush { group } => {
                if self.pending.group < group {
                    self.wanted = self.wanted.max(Some(group));
                } else if self.pending.changes || self.flusher.shared.memtable.len() > 0 {
                    return self.flush(&Purpose::Space);
                }
            }
            Message::Compact(compaction) => self.compactions.push_back(compaction),
            #[cfg(test)]
            Message::Checkpoint { reply } => return self.flush(&Purpose::Reply(reply)),
            Message::Close => return self.flush(&Purpose::Close).map(|_| Next::End),
        }
        Ok(Next::GoOn)
    }

    fn next(&mut self) -> Option<Message> {
        self.backlog.pop_front().or_else(|| self.inbox.messages.try_recv().ok())
    }

    /// Returns the next message if it is a group.
    fn next_group(&mut self) -> Option<Message> {
        let message = self.next()?;
        if matches!(message, Message::Group { .. }) {
            return Some(message);
        }
        self.backlog.push_front(message);
        None
    }

    /// Takes the groups that have come meanwhile, because one flush can cover them. Stops when the flush would become
    /// too large for the available space.
    fn catch_up(&mut self) {
        while self.pending.bytes < FLUSH_BYTES {
            let Some(Message::Group { group, frame, bytes, changes, .. }) = self.next_group() else { return };
            self.pending.add(group, frame, bytes, changes);
        }
    }

    fn flush_if_due(&mut self) -> Result<Next> {
        if self.pending.due { self.flush(&Purpose::Space) } else { Ok(Next::GoOn) }
    }

    /// Flushes all pending commits into a run, as soon as there is space.
    fn flush(&mut self, purpose: &Purpose) -> Result<Next> {
        self.catch_up();
        let Pending { group, frame, bytes, .. } = self.pending;
        self.pending = Pending { group, frame, ..Pending::default() };
        self.wanted = self.wanted.filter(|wanted| *wanted > group);
        let closes = matches!(purpose, Purpose::Close);
        if closes {
            // The next open continues this work.
            self.compactions.clear();
            self.merge = None;
        }
        if !self.write(frame, closes)? {
            return Ok(Next::End);
        }
        (self.may_merge, self.flushed) = (true, Some(bytes));
        if group > 0 {
            self.inner.commit_queue.applied(group, bytes);
        }
        let (applied, gone) = (self.inner.commit_queue.applied_bytes(), "the checkpoint thread has ended");
        let send = |reply| {
            let sent = self.checkpoints.send(Job { frame, applied, reply });
            sent.map_err(|_| Error::new(ErrorKind::Closed, gone))
        };
        // The checkpoint frame comes after everything that the flush saw in the memtable. The flush left out contents
        // that were replaced by newer ones not yet durable. When the checkpoint is durable, the newer contents are
        // too.
        match purpose {
            Purpose::Space => send(None)?,
            #[cfg(test)]
            Purpose::Reply(reply) => send(Some(reply.clone()))?,
            Purpose::Close => {
                let (reply, done) = crossbeam_channel::bounded(1);
                send(Some(reply))?;
                if done.recv().is_ok() {
                    self.record_close()?;
                }
            }
        }
        Ok(Next::GoOn)
    }

    /// Writes the contents up to this frame into a run, part by part, each as soon as there is space. Returns false if
    /// the store is closed before.
    fn write(&mut self, frame: u64, closes: bool) -> Result<bool> {
        self.look_at_backlog();
        let mut prepared = self.flusher.prepare(frame, &self.inner.now())?;
        loop {
            if let Some(full) = self.wait_for_space(prepared.bytes(), closes)? {
                self.leave_behind(&full);
                return Ok(false);
            }
            if !self.flusher.has_highest_id(&prepared) {
                // A merge has begun a run during the wait. A salvage without the newest list takes the run with the
                // higher number for the newer one.
                let again = self.flusher.prepare(frame, &self.inner.now())?;
                self.flusher.discard(std::mem::replace(&mut prepared, again));
                continue;
            }
            self.look_at_backlog();
            if self.flusher.write_part(&mut prepared)? {
                self.flusher.finish(prepared, &self.inner.now())?;
                return Ok(true);
            }
        }
    }

    /// Lets callers run first as long as the thread keeps up with them.
    pub(super) fn look_at_backlog(&self) {
        self.flusher.shared.tables.give_way.set(self.inner.commit_queue.unapplied() < KEEPS_UP);
    }

    /// Writes the closing frame.
    fn record_close(&self) -> Result<()> {
        let written = self.inner.commit_own_frame(&Frame::Closing);
        self.inner.commit_queue.end();
        written
    }

    /// Ends the store with commits that are only in the journal.
    fn leave_behind(&self, why: &Error) {
        let prefix = "the store is closed, and the next open brings the rest into the record store";
        *self.inner.left_behind.lock() = Some(why.wrap(why.kind(), prefix));
        self.inner.commit_queue.end();
    }

    /// Waits until there is space for a run of this many bytes, and frees space meanwhile. Returns the error if the
    /// store is closed before.
    fn wait_for_space(&mut self, bytes: u64, closes: bool) -> Result<Option<Error>> {
        while let Some(full) = self.inner.short(bytes) {
            if closes || self.closes() {
                return Ok(Some(full));
            }
            // This may take any time, so answer the waiting passes now.
            let under_way = self.merge.as_mut().and_then(|(_, compaction)| compaction.take());
            refuse(self.compactions.drain(..).chain(under_way), &full);
            self.rests = false;
            // Deleted blocks leave space inside sled's file.
            if self.has_work() && self.work()? == Next::GoOn && !self.rests {
                while let Ok(message) = self.inbox.messages.try_recv() {
                    self.put_aside(message);
                }
                continue;
            }
            crossbeam_channel::select! {
                recv(self.inbox.wakeups) -> _ => {}
                recv(self.inbox.messages) -> message => self.put_aside(message.unwrap_or(Message::End)),
            }
        }
        Ok(None)
    }

    /// Keeps a message until there is space, except for passes, which are answered meanwhile.
    fn put_aside(&mut self, message: Message) {
        match message {
            Message::Compact(compaction) => self.compactions.push_back(compaction),
            message => self.backlog.push_back(message),
        }
    }
}

fn refuse(compactions: impl Iterator<Item = Compaction>, error: &Error) {
    for compaction in compactions {
        // The caller may have gone.
        let _ = compaction.reply.send(Err(error.clone()));
    }
}

/// The reason for a flush, with the caller that waits for it.
enum Purpose {
    Space,
    #[cfg(test)]
    Reply(Sender<()>),
    Close,
}
