//! Brings what is durable into sled. One thread runs it: sled's only writer.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::checkpoint::Job;
use super::format::envelope::PiecesId;
use super::format::frame::{Change, Content, Frame, StoreKey};
use super::overlay::Overlay;
use super::tables::{Stamp, Tables};
use super::values::{self, Stray};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Status;

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
    /// Make a store checkpoint now.
    #[cfg(test)]
    Checkpoint { reply: Sender<()> },
    /// Every user's commit has come: make the last store checkpoint and say so in the journal.
    Close,
    /// The writer has ended.
    End,
}

/// Delete these records if they are still at that revision, and these leftovers if they are: in steps, between groups.
#[derive(Debug)]
pub(crate) struct Deletion {
    pub(crate) records: Vec<(StoreKey, u64)>,
    pub(crate) strays: Vec<Stray>,
    pub(crate) reply: Sender<Deleted>,
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
    store_id: [u8; 16],
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
    pub(crate) fn new(tables: Arc<Tables>, overlay: Arc<Overlay>, store_id: [u8; 16], last_frame: u64) -> Self {
        Self { tables, overlay, store_id, live: BTreeMap::new(), last_frame }
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
            Some(Content::Record(image)) if image.state == Status::InProgress => {
                self.live.insert(change.key, Live { content: Content::Record(image), id, in_sled: false });
            }
            content => {
                values::write(&self.tables, &change.key, content.as_ref(), id)?;
                self.live.remove(&change.key);
                self.overlay.drop_applied(&change.key, id.frame);
            }
        }
        Ok(())
    }

    /// Makes sled exactly the state after the last frame applied, and stamps it so. Not durable yet.
    pub(crate) fn settle(&mut self) -> Result<u64> {
        for (key, live) in self.live.iter_mut().filter(|(_, live)| !live.in_sled) {
            values::write(&self.tables, key, Some(&live.content), live.id)?;
            live.in_sled = true;
        }
        self.tables.set_stamp(Stamp { store_id: self.store_id, frame: self.last_frame })?;
        Ok(self.last_frame)
    }

    /// After a replay: everyone who was at work is dead, and sled has all there is.
    pub(crate) fn forget_live(&mut self) {
        self.live.clear();
        self.overlay.clear();
    }

    fn delete(&self, (key, revision): &(StoreKey, u64)) -> Result<Deleted> {
        // Begun anew meanwhile: whoever did that has counted it.
        let anew = self.overlay.contains(key);
        Ok(match values::delete_revision(&self.tables, key, *revision)?.filter(|_| !anew) {
            Some(head) => Deleted {
                records: 1,
                interrupted: u64::from(matches!(head.state, Status::InProgress | Status::Interrupted)),
                bytes: u64::from(head.outcome_len),
                strays: 0,
            },
            None => Deleted::default(),
        })
    }
}

/// A deletion on its way.
struct Deleting {
    records: std::vec::IntoIter<(StoreKey, u64)>,
    strays: std::vec::IntoIter<Stray>,
    reply: Sender<Deleted>,
    deleted: Deleted,
}

impl Deleting {
    fn new(Deletion { records, strays, reply }: Deletion) -> Self {
        Self { records: records.into_iter(), strays: strays.into_iter(), reply, deleted: Deleted::default() }
    }

    /// Deletes so many; gives itself back if there is more.
    fn step(mut self, applier: &Applier, limit: usize) -> Result<Option<Self>> {
        for _ in 0..limit {
            if let Some(record) = self.records.next() {
                self.deleted += applier.delete(&record)?;
            } else if let Some(stray) = self.strays.next() {
                self.deleted.strays += u64::from(values::drop_stray(&applier.tables, &stray)?);
            } else {
                // Whoever asked may have gone.
                let _ = self.reply.send(self.deleted);
                return Ok(None);
            }
        }
        Ok(Some(self))
    }
}

/// What the apply thread needs of the rest.
pub(crate) struct Surroundings {
    /// A group with so many payload bytes was applied.
    pub(crate) applied: Box<dyn Fn(u64, u64) + Send>,
    /// Payload bytes ever applied.
    pub(crate) applied_bytes: Box<dyn Fn() -> u64 + Send>,
    pub(crate) checkpoints: Sender<Job>,
    /// Says in the journal that the store was closed.
    pub(crate) closed: Box<dyn Fn() -> Result<()> + Send>,
}

/// What the apply thread is fed from.
pub(crate) struct Inbox {
    pub(crate) messages: Receiver<Message>,
    pub(crate) deletions: Receiver<Deletion>,
}

/// Records deleted at once while no group waits.
const DELETE_IDLE: usize = 64;

/// The apply thread's life: until it is told to close, or the writer is gone.
pub(crate) fn run(mut applier: Applier, inbox: &Inbox, around: &Surroundings) -> Result<()> {
    let mut deleting: Option<Deleting> = None;
    loop {
        let message = if deleting.is_some() {
            inbox.messages.try_recv().ok()
        } else {
            crossbeam_channel::select! {
                recv(inbox.messages) -> message => Some(message.unwrap_or(Message::End)),
                recv(inbox.deletions) -> deletion => {
                    deleting = deletion.ok().map(Deleting::new);
                    None
                }
            }
        };
        let count = match message {
            Some(Message::Close) => return close(&mut applier, around),
            Some(Message::End) => return Ok(()),
            Some(message) => apply(&mut applier, message, around)?,
            None => DELETE_IDLE,
        };
        // Twice what was applied: so what expires is deleted as fast as it comes, however long the queue is, and a group
        // does not wait long behind a deletion.
        if let Some(more) = deleting.take().or_else(|| inbox.deletions.try_recv().ok().map(Deleting::new)) {
            deleting = more.step(&applier, 2 * count)?;
        }
    }
}

/// Says how many frames there were.
fn apply(applier: &mut Applier, message: Message, around: &Surroundings) -> Result<usize> {
    match message {
        Message::Group { group, first_frame, frames, bytes, checkpoint } => {
            let count = frames.len();
            for (number, frame) in (first_frame..).zip(frames) {
                applier.apply(number, frame)?;
            }
            (around.applied)(group, bytes);
            if checkpoint {
                send_job(applier, around, None)?;
            }
            Ok(count)
        }
        #[cfg(test)]
        Message::Checkpoint { reply } => send_job(applier, around, Some(reply)).map(|()| 0),
        Message::Close | Message::End => Ok(0),
    }
}

fn close(applier: &mut Applier, around: &Surroundings) -> Result<()> {
    let (reply, done) = crossbeam_channel::bounded(1);
    send_job(applier, around, Some(reply))?;
    if done.recv().is_err() {
        return Ok(());
    }
    (around.closed)()
}

fn send_job(applier: &mut Applier, around: &Surroundings, reply: Option<Sender<()>>) -> Result<()> {
    let bytes = (around.applied_bytes)();
    let frame = applier.settle()?;
    let gone = |_| Error::new(ErrorKind::Closed, "the checkpoint thread has ended");
    around.checkpoints.send(Job { frame, applied: bytes, reply }).map_err(gone)
}
