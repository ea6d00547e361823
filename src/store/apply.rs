//! The thread that brings what is durable into sled: sled's only writer. It flushes, merges runs, and deletes those that were
//! replaced.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::checkpoint::Job;
use super::runs::Run;
use crate::store::runs::flush::{Deleted, Flusher, Prepared};
use crate::store::runs::merge::{self, Merge, Step};
use crate::store::sled::disk_space::{SpaceStatus, Wakeups};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::Now;

/// Bytes of commits after which they are flushed, if no segment ends before.
const FLUSH_BYTES: u64 = 4 << 20;

/// Behind each flush a step of work is done for so many runs, and one more.
const RUNS_A_STEP: usize = 2;
/// The same where the disk is small for what is stored: whole merges.
const MAX_STEPS: usize = 256;

/// What the apply thread is asked to do, in this order.
#[derive(Debug)]
pub(crate) enum Message {
    /// A group is durable.
    Group {
        group: u64,
        /// The last frame of it and of all before.
        frame: u64,
        bytes: u64,
        /// Whether it changes anything.
        changes: bool,
        /// The journal has grown by a segment.
        checkpoint: bool,
    },
    /// Flush, as soon as this group is durable.
    Flush { group: u64 },
    /// Flush what has expired in memory, then rewrite a run for what has expired in it.
    Compact(Compaction),
    /// Flush now.
    #[cfg(test)]
    Checkpoint { reply: Sender<()> },
    /// Every user's commit has come: flush, make the last checkpoint and say so in the journal.
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
    /// Everything up to this group is to be looked at; it is durable, and its message may still come.
    pub(crate) group: u64,
    /// For the first record of a run that has expired; else a large one is left until half have.
    pub(crate) exact: bool,
    /// Store time when the pass began: what expires later is left to the next, or a pass might never end.
    pub(crate) began: u64,
    /// Is told what was deleted; `None` if nothing is due.
    pub(crate) reply: Sender<Result<Option<Deleted>>>,
}

/// What the apply thread needs of the rest.
pub(crate) struct Callbacks {
    pub(crate) now: Box<dyn Fn() -> Now + Send>,
    /// A group with so many payload bytes was applied.
    pub(crate) applied: Box<dyn Fn(u64, u64) + Send>,
    /// Payload bytes ever applied.
    pub(crate) applied_bytes: Box<dyn Fn() -> u64 + Send>,
    pub(crate) checkpoints: Sender<Job>,
    /// Says in the journal that the store was closed.
    pub(crate) closed: Box<dyn Fn() -> Result<()> + Send>,
    /// Why there is no room to give sled so many bytes, if there is none; then users are held back.
    pub(crate) short: Box<dyn Fn(u64) -> Option<Error> + Send>,
    /// Whether there is room to give sled so many bytes, as far as one can see.
    pub(crate) look: Box<dyn Fn(u64) -> SpaceStatus + Send>,
    /// Claims room to give sled so many bytes; nobody is held back.
    pub(crate) claim: Box<dyn Fn(u64) -> SpaceStatus + Send>,
    /// The store is closed before there was room.
    pub(crate) left_behind: Box<dyn Fn(Error) + Send>,
}

/// What the apply thread is fed from.
pub(crate) struct Inbox {
    pub(crate) messages: Receiver<Message>,
    /// There may be room again.
    pub(crate) wakeups: Wakeups,
}

/// What the apply thread works on.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) flusher: Flusher,
    /// Durable, and in memory only.
    pending: Pending,
    /// The last group that somebody waits for.
    wanted: Option<u64>,
    /// What came while there was no room: the writer never waits for that.
    backlog: VecDeque<Message>,
    merge: Option<(Box<Merge>, Option<Compaction>)>,
    compactions: VecDeque<Compaction>,
    /// Whether there may be runs to merge.
    may_merge: bool,
    /// Runs that were to be merged and could not be read; they are left alone.
    unreadable: Vec<u64>,
    /// Why the last of them could not be read.
    why: Option<Error>,
    flushes: u64,
    /// There was no room: nothing is done beside commits until something comes.
    rests: bool,
}

#[derive(Debug, Default)]
struct Pending {
    group: u64,
    frame: u64,
    bytes: u64,
    /// Whether a group of them changes anything.
    changes: bool,
}

impl Pending {
    fn add(&mut self, group: u64, frame: u64, bytes: u64, changes: bool) {
        self.group = group;
        self.frame = self.frame.max(frame);
        self.bytes += bytes;
        self.changes |= changes;
    }
}

/// Whether the thread goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl Applier {
    /// `group` is the last one that there is. `opening` is the frame of this open: it changes nothing, so that the runs have the state after it.
    pub(crate) fn new(flusher: Flusher, opening: u64, group: u64) -> Self {
        let pending = Pending { frame: opening, group, ..Pending::default() };
        Self {
            flusher,
            pending,
            wanted: None,
            backlog: VecDeque::new(),
            merge: None,
            compactions: VecDeque::new(),
            may_merge: true,
            unreadable: Vec::new(),
            why: None,
            flushes: 0,
            rests: false,
        }
    }

    fn has_work(&self) -> bool {
        let is_work = self.merge.is_some() || self.may_merge || self.can_compact() || self.flusher.has_unread();
        is_work && !self.rests
    }

    fn can_compact(&self) -> bool {
        self.compactions.front().is_some_and(|compaction| compaction.group <= self.pending.group)
    }

    fn take(&mut self, message: Message, inbox: &Inbox, callbacks: &Callbacks) -> Result<Next> {
        match message {
            Message::End => return Ok(Next::End),
            Message::Group { group, frame, bytes, changes, checkpoint } => {
                self.pending.add(group, frame, bytes, changes);
                let is_wanted = self.wanted.is_some_and(|wanted| group >= wanted);
                if checkpoint || is_wanted || self.pending.bytes >= FLUSH_BYTES {
                    return self.flush(inbox, callbacks, &Purpose::DiskSpace);
                }
                if !self.pending.changes {
                    // The runs have all there is.
                    (callbacks.applied)(group, std::mem::take(&mut self.pending.bytes));
                }
            }
            Message::Flush { group } => {
                if self.pending.group < group {
                    self.wanted = self.wanted.max(Some(group));
                } else if self.pending.changes || self.flusher.shared.memtable.len() > 0 {
                    return self.flush(inbox, callbacks, &Purpose::DiskSpace);
                }
            }
            Message::Compact(compaction) => self.compactions.push_back(compaction),
            #[cfg(test)]
            Message::Checkpoint { reply } => return self.flush(inbox, callbacks, &Purpose::Reply(reply)),
            Message::Close => return self.flush(inbox, callbacks, &Purpose::Close).map(|_| Next::End),
        }
        Ok(Next::GoOn)
    }

    fn next(&mut self, inbox: &Inbox) -> Option<Message> {
        self.backlog.pop_front().or_else(|| inbox.messages.try_recv().ok())
    }

    /// Takes the groups that came while it was at something else: one flush is enough for them. But a flush must not become so
    /// large that there is no room for it.
    fn catch_up(&mut self, inbox: &Inbox) {
        while self.pending.bytes < FLUSH_BYTES {
            let Some(message) = self.next(inbox) else { return };
            match message {
                Message::Group { group, frame, bytes, changes, .. } => self.pending.add(group, frame, bytes, changes),
                other => {
                    self.backlog.push_front(other);
                    return;
                }
            }
        }
    }

    /// Brings all that is pending into a run, as soon as there is room.
    fn flush(&mut self, inbox: &Inbox, callbacks: &Callbacks, purpose: &Purpose) -> Result<Next> {
        self.catch_up(inbox);
        let Pending { group, frame, bytes, .. } = self.pending;
        self.pending = Pending { group, frame, bytes: 0, changes: false };
        self.wanted = self.wanted.filter(|wanted| *wanted > group);
        let closes = matches!(purpose, Purpose::Close);
        if closes {
            // What is under way is left to the next open.
            self.compactions.clear();
            self.merge = None;
        }
        let prepared = self.flusher.prepare(frame, &(callbacks.now)())?;
        if let Some(full) = self.wait_for_room(&prepared, closes, inbox, callbacks) {
            (callbacks.left_behind)(full);
            return Ok(Next::End);
        }
        self.flusher.write(prepared, &(callbacks.now)())?;
        (self.may_merge, self.flushes) = (true, self.flushes.wrapping_add(1));
        if group > 0 {
            (callbacks.applied)(group, bytes);
        }
        let (applied, gone) = ((callbacks.applied_bytes)(), "the checkpoint thread has ended");
        let send = |reply| {
            let sent = callbacks.checkpoints.send(Job { frame, applied, reply });
            sent.map_err(|_| Error::new(ErrorKind::Closed, gone))
        };
        // The mark in the journal comes behind everything that the flush has seen in memory. So what it left out, because something
        // newer that is not durable yet had taken its place, is not forgotten before that is durable.
        match purpose {
            Purpose::DiskSpace => send(None)?,
            #[cfg(test)]
            Purpose::Reply(reply) => send(Some(reply.clone()))?,
            Purpose::Close => {
                let (reply, done) = crossbeam_channel::bounded(1);
                send(Some(reply))?;
                if done.recv().is_ok() {
                    (callbacks.closed)()?;
                }
            }
        }
        Ok(Next::GoOn)
    }

    /// Waits until there is room for a run. Gives the reason back if the store is closed before.
    fn wait_for_room(
        &mut self,
        prepared: &Prepared,
        closes: bool,
        inbox: &Inbox,
        callbacks: &Callbacks,
    ) -> Option<Error> {
        while let Some(full) = (callbacks.short)(prepared.bytes()) {
            if closes || self.backlog.iter().any(Message::is_last) {
                return Some(full);
            }
            // Nobody knows how long that is.
            let under_way = self.merge.as_mut().and_then(|(_, compaction)| compaction.take());
            refuse(self.compactions.drain(..).chain(under_way), &full);
            crossbeam_channel::select! {
                recv(inbox.wakeups) -> _ => {}
                recv(inbox.messages) -> message => match message {
                    Ok(Message::Compact(compaction)) => self.compactions.push_back(compaction),
                    message => self.backlog.push_back(message.unwrap_or(Message::End)),
                },
            }
        }
        None
    }

    /// A step of what is done beside commits. Where there is no room it rests until the next message.
    fn work(&mut self, inbox: &Inbox, callbacks: &Callbacks) -> Result<Next> {
        if let Some((merge, compaction)) = self.merge.take() {
            let full = match (callbacks.claim)(merge.bytes()) {
                SpaceStatus::Short(full) => Some(full),
                // Nobody waits for it, and what is left is for those who commit.
                SpaceStatus::Low(full) => Some(full).filter(|_| compaction.is_none()),
                SpaceStatus::Enough => None,
            };
            if let Some(full) = full {
                self.flusher.give_up(merge.id());
                refuse(compaction.into_iter(), &full);
                self.rests = true;
            } else {
                self.step(merge, compaction)?;
            }
        } else if self.can_compact() {
            if let Some(compaction) = self.compactions.pop_front() {
                return self.compact(compaction, inbox, callbacks);
            }
        } else if self.flusher.has_unread() {
            self.rests = matches!((callbacks.claim)(0), SpaceStatus::Short(_));
            if !self.rests {
                self.flusher.delete_some()?;
            }
        } else if self.may_merge {
            self.may_merge = false;
            let runs = self.flusher.shared.runs.now();
            let planned = merge::plan(&runs, &self.unreadable);
            // Begun only if it can end: until then it takes room and gives none. A claim counts three bytes for one, which is more
            // than a whole merge was seen to take.
            let has_room = |range: &Range<usize>| {
                matches!((callbacks.look)(Merge::bytes_of(&runs, range.clone()) / 2), SpaceStatus::Enough)
            };
            if let Some(range) = planned.filter(has_room) {
                let merge = Merge::begin(&mut self.flusher, range, (callbacks.now)());
                self.merge = Some((Box::new(merge), None));
            }
        }
        Ok(Next::GoOn)
    }

    /// Steps of work to be done behind a flush.
    fn steps(&self, callbacks: &Callbacks) -> usize {
        let runs = self.flusher.shared.runs.now();
        // While there is room to merge: what was replaced must not take all of the disk.
        match (callbacks.look)(Merge::bytes_of(&runs, 0..runs.len())) {
            SpaceStatus::Enough => runs.len() / RUNS_A_STEP,
            SpaceStatus::Low(_) | SpaceStatus::Short(_) => MAX_STEPS,
        }
    }

    fn step(&mut self, mut merge: Box<Merge>, compaction: Option<Compaction>) -> Result<()> {
        match merge.step(&mut self.flusher)? {
            Step::More => self.merge = Some((merge, compaction)),
            Step::Done(deleted) => {
                self.may_merge = true;
                match compaction {
                    Some(compaction) => self.answer(&compaction, deleted),
                    None => *self.flusher.shared.left_out.lock() += deleted,
                }
            }
            Step::Unreadable(error) => {
                self.may_merge = true;
                self.flusher.give_up(merge.id());
                self.unreadable.extend(merge.inputs());
                self.why = Some(error.clone());
                match compaction {
                    // In the background the others are next: one that is damaged must not end all forgetting.
                    Some(compaction) if !compaction.exact => self.compactions.push_front(compaction),
                    compaction => refuse(compaction.into_iter(), &error),
                }
            }
        }
        Ok(())
    }

    fn compact(&mut self, compaction: Compaction, inbox: &Inbox, callbacks: &Callbacks) -> Result<Next> {
        let now = (callbacks.now)();
        // Only what is durable can be flushed.
        if self.pending.changes && self.flusher.shared.memtable.earliest_expiry(&now) <= compaction.began {
            // In the queue, so that it is answered if there is no room.
            self.compactions.push_front(compaction);
            return self.flush(inbox, callbacks, &Purpose::DiskSpace);
        }
        let is_due = |run: &Arc<Run>| merge::due(&run.info, compaction.exact) <= compaction.began;
        let can_be_read = |run: &Arc<Run>| !self.unreadable.contains(&run.info.id);
        let runs = self.flusher.shared.runs.now();
        let due = runs.iter().position(|run| is_due(run) && can_be_read(run));
        // Told when all that can be forgotten is.
        let why = self.why.as_ref().filter(|_| compaction.exact && due.is_none() && runs.iter().any(is_due));
        if let Some(why) = why.cloned() {
            refuse(std::iter::once(compaction), &why);
            return Ok(Next::GoOn);
        }
        if let SpaceStatus::Short(full) = (callbacks.claim)(0) {
            refuse(std::iter::once(compaction), &full);
        } else if let Some(at) = due {
            let merge = Merge::begin(&mut self.flusher, at..at + 1, now);
            self.merge = Some((Box::new(merge), Some(compaction)));
        } else {
            self.answer_left_out(&compaction);
        }
        Ok(Next::GoOn)
    }

    fn answer(&mut self, compaction: &Compaction, mut deleted: Deleted) {
        deleted += std::mem::take(&mut *self.flusher.shared.left_out.lock());
        // Whoever asked may have gone.
        let _ = compaction.reply.send(Ok(Some(deleted)));
    }

    fn answer_left_out(&mut self, compaction: &Compaction) {
        let deleted = std::mem::take(&mut *self.flusher.shared.left_out.lock());
        let _ = compaction.reply.send(Ok((!deleted.is_empty()).then_some(deleted)));
    }
}

fn refuse(compactions: impl Iterator<Item = Compaction>, full: &Error) {
    for compaction in compactions {
        // Whoever asked may have gone.
        let _ = compaction.reply.send(Err(full.clone()));
    }
}

/// Why it is flushed, and who waits for it.
enum Purpose {
    DiskSpace,
    #[cfg(test)]
    Reply(Sender<()>),
    Close,
}

/// The apply thread's life: until it is told to close, or the writer is gone.
pub(crate) fn run(mut applier: Applier, inbox: &Inbox, callbacks: &Callbacks) -> Result<()> {
    loop {
        let mut message = match applier.next(inbox) {
            None if !applier.has_work() => Some(inbox.messages.recv().unwrap_or(Message::End)),
            message => message,
        };
        let flushes = applier.flushes;
        // All that waits comes before a step of work, up to the next flush.
        while let Some(taken) = message {
            applier.rests = false;
            if applier.take(taken, inbox, callbacks)? == Next::End {
                return Ok(());
            }
            message = if applier.flushes == flushes { applier.next(inbox) } else { None };
        }
        // The more there is to merge, the more of it: what is committed must not outrun that for ever.
        let more = if applier.flushes == flushes { 0 } else { applier.steps(callbacks) };
        for _ in 0..=more {
            if applier.has_work() && applier.work(inbox, callbacks)? == Next::End {
                return Ok(());
            }
        }
    }
}
