//! Brings what is durable into sled. One thread runs it: sled's only writer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::checkpoint::Job;
use super::expiries::Expiries;
use super::format::envelope::PiecesId;
use super::format::frame::{Change, Content, Frame, StoreKey};
use super::format::record::Head;
use super::overlay::Overlay;
use super::values::{self, Due, Stray};
use super::verify::{Ground, Problems, Scans, VerifyReport};
use crate::store::sled::disk_space::Wakeups;
use crate::store::sled::tables::{Name, Stamp, Tables};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::Status;

/// What the apply thread is asked to do, in this order.
#[derive(Debug)]
pub(crate) enum Message {
    /// A group that is durable.
    Group {
        group: u64,
        first_frame: u64,
        frames: Vec<Frame>,
        bytes: u64,
        /// The journal has grown by a segment.
        checkpoint: bool,
    },
    /// Read everything that sled holds, in steps, between groups.
    Verify { problems: Problems, reply: Sender<Result<VerifyReport>> },
    /// Make a store checkpoint now.
    #[cfg(test)]
    Checkpoint { reply: Sender<()> },
    /// Every user's commit has come: make the last store checkpoint and say so in the journal.
    Close,
    /// The writer has ended.
    End,
}

impl Message {
    fn is_last(&self) -> bool {
        matches!(self, Self::Close | Self::End)
    }
}

/// Delete these records if they are still what they were, and these leftovers if they are: in steps, between groups.
#[derive(Debug)]
pub(crate) struct Deletion {
    /// First whatever leads to records that expire is to be written.
    pub(crate) lists: bool,
    pub(crate) records: Vec<Due>,
    pub(crate) strays: Vec<Stray>,
    pub(crate) reply: Sender<Result<Deleted>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deleted {
    pub(crate) records: u64,
    /// Of the records, those that were interrupted.
    pub(crate) interrupted: u64,
    /// Encoded bytes of their outcomes.
    pub(crate) bytes: u64,
    /// What a crash had left behind.
    pub(crate) strays: u64,
}

impl std::ops::AddAssign for Deleted {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.interrupted += other.interrupted;
        self.bytes += other.bytes;
        self.strays += other.strays;
    }
}

/// Applies frames. Also used, without its thread, to replay them at open.
#[derive(Debug)]
pub(crate) struct Applier {
    tables: Arc<Tables>,
    overlay: Arc<Overlay>,
    pub(crate) expiries: Expiries,
    /// The last one that sled was given.
    stamp: Stamp,
    /// Every record in progress that was applied. They stay in the overlay and reach sled only at a checkpoint, so that a
    /// short operation costs sled one record.
    live: BTreeMap<StoreKey, Live>,
    last_frame: u64,
}

#[derive(Debug)]
struct Live {
    content: Content,
    id: PiecesId,
    in_sled: bool,
}

impl Applier {
    pub(crate) fn new(tables: Arc<Tables>, overlay: Arc<Overlay>, stamp: Stamp, opening: u64) -> Self {
        let expiries = Expiries::new(opening);
        Self { tables, overlay, expiries, stamp, live: BTreeMap::new(), last_frame: stamp.frame }
    }

    pub(crate) fn apply(&mut self, number: u64, frame: Frame) -> Result<()> {
        if let Frame::Changes(changes) = frame {
            for (place, change) in (0..).zip(changes) {
                self.change(PiecesId { frame: number, place }, change)?;
            }
        }
        self.last_frame = number;
        Ok(())
    }

    fn change(&mut self, id: PiecesId, change: Change) -> Result<()> {
        match change.content {
            Some(Content::Record(stored)) if stored.state == Status::InProgress => {
                self.live.insert(change.key, Live { content: Content::Record(stored), id, in_sled: false });
            }
            content => {
                values::write(&self.tables, &mut self.expiries, &change.key, content.as_ref(), id)?;
                self.live.remove(&change.key);
                self.overlay.drop_applied(&change.key, id.frame);
            }
        }
        Ok(())
    }

    /// Makes sled exactly the state after the last frame applied, and stamps it so. Not durable yet. Only the stamps of an open
    /// and of a close say what sled holds: behind any other, deletions go on that no frame tells of.
    pub(crate) fn settle(&mut self, says_what: bool) -> Result<u64> {
        for (key, live) in self.live.iter_mut().filter(|(_, live)| !live.in_sled) {
            values::write(&self.tables, &mut self.expiries, key, Some(&live.content), live.id)?;
            live.in_sled = true;
        }
        self.expiries.write_all(&self.tables)?;
        let digest = self.tables.digest().filter(|_| says_what);
        self.stamp = Stamp { frame: self.last_frame, digest, ..self.stamp };
        self.tables.set_stamp(self.stamp)?;
        Ok(self.last_frame)
    }

    /// Before a deletion: the stamp is not to say any more what sled holds, or the next open would miss what is deleted.
    fn unstamp(&mut self) -> Result<()> {
        if self.stamp.digest.take().is_some() {
            self.tables.set_stamp(self.stamp)?;
            self.tables.flush()?;
        }
        Ok(())
    }

    /// About how much a message brings into sled.
    fn bytes_of(&self, message: &Message) -> u64 {
        let (bytes, checkpoint) = match message {
            Message::Group { bytes, checkpoint, .. } => (*bytes, *checkpoint),
            _ => (0, true),
        };
        // Looked through only when they are written: there may be very many.
        let live = if checkpoint { self.live.values().filter(|live| !live.in_sled).count() } else { 0 };
        bytes.saturating_add(LIVE_BYTES.saturating_mul(live as u64))
    }

    /// After a replay: everyone who was at work is dead, and sled has all there is.
    pub(crate) fn forget_live(&mut self) {
        self.live.clear();
        self.overlay.clear();
    }

    /// Reads on what somebody wants verified or counted.
    fn scan(&mut self, scans: &mut Scans, has_room: bool) {
        let Self { tables, overlay, expiries, live, .. } = self;
        scans.step(Ground { tables, overlay, expiries, has_room }, || {
            // What sled will have at the next checkpoint and does not have yet.
            let mut waiting = 0;
            for (key, _) in live.iter().filter(|(_, live)| !live.in_sled) {
                waiting += u64::from(tables.get(Name::Records, key.in_record_tree())?.is_none());
            }
            Ok(waiting)
        });
    }
}

/// A deletion on its way.
struct Deleting {
    records: std::vec::IntoIter<Due>,
    strays: std::vec::IntoIter<Stray>,
    lists: bool,
    reply: Sender<Result<Deleted>>,
    deleted: Deleted,
}

impl Deleting {
    fn new(Deletion { lists, records, strays, reply }: Deletion) -> Self {
        let (records, strays) = (records.into_iter(), strays.into_iter());
        Self { lists, records, strays, reply, deleted: Deleted::default() }
    }

    /// Deletes nothing more, because there is no room.
    fn refuse(self, full: Error) {
        let _ = self.reply.send(Err(full));
    }

    /// Deletes so many; gives itself back if there is more.
    fn step(mut self, applier: &mut Applier, callbacks: &Callbacks, limit: usize) -> Result<Option<Self>> {
        if std::mem::take(&mut self.lists) {
            applier.expiries.write_all(&applier.tables)?;
        }
        let mut gone = Vec::new();
        for (key, found) in self.records.by_ref().take(limit) {
            gone.extend(values::delete(&applier.tables, &key, &found)?.map(|head| (key, head)));
        }
        if !gone.is_empty() {
            (callbacks.forgotten)(&mut gone);
        }
        for (_, head) in gone {
            self.deleted.records += 1;
            self.deleted.interrupted += u64::from(matches!(head.state, Status::InProgress | Status::Interrupted));
            self.deleted.bytes += u64::from(head.outcome_len);
        }
        if !self.records.as_slice().is_empty() {
            return Ok(Some(self));
        }
        for stray in self.strays.by_ref().take(limit) {
            self.deleted.strays += u64::from(values::drop_stray(&applier.tables, &stray)?);
        }
        if !self.strays.as_slice().is_empty() {
            return Ok(Some(self));
        }
        // Whoever asked may have gone.
        let _ = self.reply.send(Ok(self.deleted));
        Ok(None)
    }
}

/// Is given records that were deleted, and how they began.
pub(crate) type Forget = Box<dyn Fn(&mut Vec<(StoreKey, Head)>) + Send>;

/// What the apply thread needs of the rest.
pub(crate) struct Callbacks {
    /// A group with so many payload bytes was applied.
    pub(crate) applied: Box<dyn Fn(u64, u64) + Send>,
    /// Payload bytes ever applied.
    pub(crate) applied_bytes: Box<dyn Fn() -> u64 + Send>,
    pub(crate) checkpoints: Sender<Job>,
    /// sled has these records no more, and who has read one there commits nothing on it. Those that somebody has begun anew
    /// before, and so has counted, are taken out.
    pub(crate) forgotten: Forget,
    /// Says in the journal that the store was closed.
    pub(crate) closed: Box<dyn Fn() -> Result<()> + Send>,
    /// Why there is no room to apply so many bytes, if there is none.
    pub(crate) short: Box<dyn Fn(u64) -> Option<Error> + Send>,
    /// The store is closed before there was room.
    pub(crate) left_behind: Box<dyn Fn(Error) + Send>,
}

/// What the apply thread is fed from.
pub(crate) struct Inbox {
    pub(crate) messages: Receiver<Message>,
    pub(crate) deletions: Receiver<Deletion>,
    /// There may be room again.
    pub(crate) wakeups: Wakeups,
}

/// Records deleted at once while no group comes.
const DELETE_IDLE: usize = 64;

/// Records deleted for each two frames applied while groups come. A record takes two, so that what expires is deleted faster
/// than it comes, however long the queue is; and not as fast as can be, because commits need the processor and the disk too.
const DELETE_FOR_TWO: usize = 3;

/// Of a single frame it would take for ever.
const DELETE_AT_LEAST: usize = 4;

/// After so long without a group none is expected.
const LULL: Duration = Duration::from_millis(5);

/// Bytes counted for a record in progress that a store checkpoint brings into sled; most contexts are shorter.
const LIVE_BYTES: u64 = 1024;

/// The apply thread's life: until it is told to close, or the writer is gone.
pub(crate) fn run(mut applier: Applier, inbox: &Inbox, callbacks: &Callbacks) -> Result<()> {
    let mut deleting: Option<Deleting> = None;
    let mut scans = Scans::new(&applier.tables);
    // What came while there was no room: the writer never waits for that.
    let mut backlog = VecDeque::new();
    let mut is_lull = true;
    loop {
        let message = if !backlog.is_empty() {
            backlog.pop_front()
        } else if !scans.is_empty() || (deleting.is_some() && is_lull) {
            inbox.messages.try_recv().ok()
        } else if deleting.is_some() {
            let message = inbox.messages.recv_timeout(LULL).ok();
            is_lull = message.is_none();
            message
        } else {
            crossbeam_channel::select! {
                recv(inbox.messages) -> message => Some(message.unwrap_or(Message::End)),
                recv(inbox.deletions) -> deletion => {
                    deleting = deletion.ok().map(Deleting::new);
                    None
                }
            }
        };
        let to_delete = match message {
            Some(Message::End) => return Ok(()),
            Some(Message::Verify { problems, reply }) => {
                scans.add(&applier.tables, problems, reply);
                0
            }
            Some(message) => {
                let mut waiting = Waiting { backlog: &mut backlog, scans: &mut scans, deleting: &mut deleting };
                if let Some(full) = wait_for_room(&mut applier, &message, inbox, &mut waiting, callbacks) {
                    (callbacks.left_behind)(full);
                    return Ok(());
                }
                if matches!(message, Message::Close) {
                    return close(&mut applier, callbacks);
                }
                is_lull = false;
                DELETE_AT_LEAST.max(DELETE_FOR_TWO * apply(&mut applier, message, callbacks)? / 2)
            }
            None if is_lull || !scans.is_empty() => DELETE_IDLE,
            None => 0,
        };
        if let Some(more) = deleting.take().or_else(|| inbox.deletions.try_recv().ok().map(Deleting::new)) {
            if let Some(full) = (callbacks.short)(0) {
                more.refuse(full);
            } else {
                applier.unstamp()?;
                deleting = more.step(&mut applier, callbacks, to_delete)?;
            }
        }
        applier.scan(&mut scans, true);
    }
}

/// What is there beside a message.
struct Waiting<'a> {
    backlog: &'a mut VecDeque<Message>,
    scans: &'a mut Scans,
    deleting: &'a mut Option<Deleting>,
}

/// Waits until there is room for what the message brings; what only reads goes on meanwhile, and what deletes is refused, for
/// nobody knows how long that is. Gives the reason back if the store is closed before.
fn wait_for_room(
    applier: &mut Applier,
    message: &Message,
    inbox: &Inbox,
    Waiting { backlog, scans, deleting }: &mut Waiting<'_>,
    callbacks: &Callbacks,
) -> Option<Error> {
    let bytes = applier.bytes_of(message);
    while let Some(full) = (callbacks.short)(bytes) {
        if let Some(deletion) = deleting.take() {
            deletion.refuse(full.clone());
        }
        if std::iter::once(message).chain(backlog.iter()).any(Message::is_last) {
            return Some(full);
        }
        let read_on =
            if scans.is_empty() { crossbeam_channel::never() } else { crossbeam_channel::after(Duration::ZERO) };
        crossbeam_channel::select! {
            recv(read_on) -> _ => applier.scan(scans, false),
            recv(inbox.wakeups) -> _ => {}
            recv(inbox.messages) -> message => match message {
                Ok(Message::Verify { problems, reply }) => scans.add(&applier.tables, problems, reply),
                message => backlog.push_back(message.unwrap_or(Message::End)),
            },
            recv(inbox.deletions) -> deletion => {
                if let Ok(deletion) = deletion {
                    Deleting::new(deletion).refuse(full);
                }
            }
        }
    }
    None
}

/// Says how many frames there were.
fn apply(applier: &mut Applier, message: Message, callbacks: &Callbacks) -> Result<usize> {
    match message {
        Message::Group { group, first_frame, frames, bytes, checkpoint } => {
            let count = frames.len();
            for (number, frame) in (first_frame..).zip(frames) {
                applier.apply(number, frame)?;
            }
            (callbacks.applied)(group, bytes);
            if checkpoint {
                send_job(applier, callbacks, false, None)?;
            }
            Ok(count)
        }
        #[cfg(test)]
        Message::Checkpoint { reply } => send_job(applier, callbacks, false, Some(reply)).map(|()| 0),
        Message::Verify { .. } | Message::Close | Message::End => Ok(0),
    }
}

fn close(applier: &mut Applier, callbacks: &Callbacks) -> Result<()> {
    let (reply, done) = crossbeam_channel::bounded(1);
    send_job(applier, callbacks, true, Some(reply))?;
    if done.recv().is_err() {
        return Ok(());
    }
    (callbacks.closed)()
}

fn send_job(applier: &mut Applier, callbacks: &Callbacks, closes: bool, reply: Option<Sender<()>>) -> Result<()> {
    let bytes = (callbacks.applied_bytes)();
    let frame = applier.settle(closes)?;
    let gone = |_| Error::new(ErrorKind::Closed, "the checkpoint thread has ended");
    callbacks.checkpoints.send(Job { frame, applied: bytes, reply }).map_err(gone)
}
