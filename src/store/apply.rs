//! The thread that brings what is durable into sled: sled's only writer. It flushes, merges runs, and deletes those that were
//! replaced.

use std::collections::VecDeque;
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

/// Steps of a merge after a flush, if there is so much to merge; a step reads and writes up to 1 MiB. A byte is merged about four
/// times where keys are overwritten or there are a few GB, and a flush must not bring more than merges take away.
const STEPS: usize = 16;
/// Runs for each of which there is a step more.
const RUNS_A_STEP: usize = 2;

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
    /// Claims room to give sled so many bytes; nobody is held back.
    pub(crate) claim: Box<dyn Fn(u64) -> SpaceStatus + Send>,
    /// Whether there is room to write so many bytes once more, before what they replace is deleted.
    pub(crate) can_merge: Box<dyn Fn(u64) -> bool + Send>,
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
    /// There was no room: nothing is done beside commits until something comes.
    rests: bool,
    /// A run was written since the last step of what is done beside commits.
    has_flushed: bool,
}

#[derive(Debug, Default)]
struct Pending {
    group: u64,
    frame: u64,
    bytes: u64,
    /// Whether a group of them changes anything.
    changes: bool,
    /// They are to be flushed now: there are many, a segment has ended, or a caller waits for it.
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
            rests: false,
            has_flushed: false,
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
                self.pending.due |= checkpoint || is_wanted || self.pending.bytes >= FLUSH_BYTES;
                if !self.pending.changes && !self.pending.due {
                    // The runs have all there is.
                    (callbacks.applied)(group, std::mem::take(&mut self.pending.bytes));
                }
            }
            Message::Flush { group } => {
                if self.pending.group < group {
                    self.wanted = self.wanted.max(Some(group));
                } else if self.pending.changes || self.flusher.shared.memtable.len() > 0 {
                    return self.flush(inbox, callbacks, &Purpose::Room);
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

    fn flush_if_due(&mut self, inbox: &Inbox, callbacks: &Callbacks) -> Result<Next> {
        if self.pending.due { self.flush(inbox, callbacks, &Purpose::Room) } else { Ok(Next::GoOn) }
    }

    /// Brings all that is pending into a run, as soon as there is room.
    fn flush(&mut self, inbox: &Inbox, callbacks: &Callbacks, purpose: &Purpose) -> Result<Next> {
        self.catch_up(inbox);
        let Pending { group, frame, bytes, .. } = self.pending;
        self.pending = Pending { group, frame, ..Pending::default() };
        self.wanted = self.wanted.filter(|wanted| *wanted > group);
        let closes = matches!(purpose, Purpose::Close);
        if closes {
            // What is under way is left to the next open.
            self.compactions.clear();
            self.merge = None;
        }
        let prepared = self.flusher.prepare(frame, &(callbacks.now)())?;
        if let Some(full) = self.wait_for_room(&prepared, closes, inbox, callbacks)? {
            (callbacks.left_behind)(full);
            return Ok(Next::End);
        }
        self.flusher.write(prepared, &(callbacks.now)())?;
        (self.may_merge, self.has_flushed) = (true, true);
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
            Purpose::Room => send(None)?,
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
    ) -> Result<Option<Error>> {
        while let Some(full) = (callbacks.short)(prepared.bytes()) {
            if closes || self.backlog.iter().any(Message::is_last) {
                return Ok(Some(full));
            }
            // What is deleted leaves room inside sled's file.
            if self.flusher.has_unread() && !matches!((callbacks.claim)(0), SpaceStatus::Short(_)) {
                self.flusher.delete_some()?;
                continue;
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
        Ok(None)
    }

    /// Some steps of what is done beside commits. After a flush it is not left to the commits how many: they could bring more
    /// than merges take away.
    fn work_on(&mut self, inbox: &Inbox, callbacks: &Callbacks) -> Result<Next> {
        let steps = if self.has_flushed { STEPS + self.flusher.shared.runs.len() / RUNS_A_STEP } else { 1 };
        for _ in 0..steps {
            if !self.has_work() {
                break;
            }
            if self.work(inbox, callbacks)? == Next::End {
                return Ok(Next::End);
            }
            // What more comes is for the flush after this one.
            while !self.pending.due {
                let Some(message) = self.next(inbox) else { break };
                if !matches!(message, Message::Group { .. }) {
                    // A caller waits for it.
                    self.backlog.push_front(message);
                    return Ok(Next::GoOn);
                }
                self.take(message, inbox, callbacks)?;
            }
        }
        Ok(Next::GoOn)
    }

    /// A step of what is done beside commits. Where there is no room it rests until the next message.
    fn work(&mut self, inbox: &Inbox, callbacks: &Callbacks) -> Result<Next> {
        if let Some((merge, compaction)) = self.merge.take() {
            if let SpaceStatus::Short(full) = (callbacks.claim)(merge.bytes()) {
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
            if let Some(range) = merge::plan(&runs) {
                // One that was begun and given up half way would leave less room than there was.
                if (callbacks.can_merge)(merge::bytes(runs.get(range.clone()).unwrap_or_default())) {
                    let merge = Merge::begin(&mut self.flusher, range, (callbacks.now)());
                    self.merge = Some((Box::new(merge), None));
                } else {
                    (self.may_merge, self.rests) = (true, true);
                }
            }
        }
        Ok(Next::GoOn)
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
                merge.give_up(&mut self.flusher);
                refuse(compaction.into_iter(), &error);
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
            return self.flush(inbox, callbacks, &Purpose::Room);
        }
        let is_due = |run: &Arc<Run>| merge::due(run, compaction.exact) <= compaction.began;
        let due = self.flusher.shared.runs.now().iter().position(is_due);
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
    Room,
    #[cfg(test)]
    Reply(Sender<()>),
    Close,
}

/// The apply thread's life: until it is told to close, or the writer is gone.
pub(crate) fn run(mut applier: Applier, inbox: &Inbox, callbacks: &Callbacks) -> Result<()> {
    loop {
        let mut message = applier.next(inbox);
        if message.is_none() && !applier.has_work() && !applier.pending.due {
            crossbeam_channel::select! {
                recv(inbox.messages) -> sent => message = Some(sent.unwrap_or(Message::End)),
                recv(inbox.wakeups) -> _ => applier.rests = false,
            }
        }
        // All that has come meanwhile, up to a flush: a step takes much longer than a commit.
        applier.has_flushed = false;
        while let Some(taken) = message {
            applier.rests = false;
            if applier.take(taken, inbox, callbacks)? == Next::End {
                return Ok(());
            }
            message = if applier.has_flushed || applier.pending.due { None } else { applier.next(inbox) };
        }
        if applier.flush_if_due(inbox, callbacks)? == Next::End || applier.work_on(inbox, callbacks)? == Next::End {
            return Ok(());
        }
    }
}
