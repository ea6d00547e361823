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
    /// Delete these records if they are still at that revision, and these leftovers if they are.
    Delete { records: Vec<(StoreKey, u64)>, strays: Vec<Stray>, reply: Sender<Deleted> },
    /// Make a store checkpoint now.
    #[cfg(test)]
    Checkpoint { reply: Sender<()> },
    /// Every user's commit has come: make the last store checkpoint and say so in the journal.
    Close,
    /// The writer has ended.
    End,
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

    fn delete(&self, records: &[(StoreKey, u64)]) -> Result<Deleted> {
        let mut deleted = Deleted::default();
        for (key, revision) in records {
            if let Some(head) = values::delete_revision(&self.tables, key, *revision)? {
                deleted.records += 1;
                deleted.interrupted += u64::from(matches!(head.state, Status::InProgress | Status::Interrupted));
                deleted.bytes += u64::from(head.outcome_len);
            }
        }
        Ok(deleted)
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

/// The apply thread's life: until it is told to close, or the writer is gone.
pub(crate) fn run(mut applier: Applier, messages: &Receiver<Message>, around: &Surroundings) -> Result<()> {
    for message in messages {
        match message {
            Message::Group { group, first_frame, frames, bytes, checkpoint } => {
                for (number, frame) in (first_frame..).zip(frames) {
                    applier.apply(number, frame)?;
                }
                (around.applied)(group, bytes);
                if checkpoint {
                    send_job(&mut applier, around, None)?;
                }
            }
            Message::Delete { records, strays, reply } => {
                let mut deleted = applier.delete(&records)?;
                for stray in &strays {
                    deleted.strays += u64::from(values::drop_stray(&applier.tables, stray)?);
                }
                // Whoever asked may have gone.
                let _ = reply.send(deleted);
            }
            #[cfg(test)]
            Message::Checkpoint { reply } => send_job(&mut applier, around, Some(reply))?,
            Message::Close => {
                let (reply, done) = crossbeam_channel::bounded(1);
                send_job(&mut applier, around, Some(reply))?;
                if done.recv().is_err() {
                    return Ok(());
                }
                return (around.closed)();
            }
            Message::End => return Ok(()),
        }
    }
    Ok(())
}

fn send_job(applier: &mut Applier, around: &Surroundings, reply: Option<Sender<()>>) -> Result<()> {
    let bytes = (around.applied_bytes)();
    let frame = applier.settle()?;
    let gone = |_| Error::new(ErrorKind::Closed, "the checkpoint thread has ended");
    around.checkpoints.send(Job { frame, applied: bytes, reply }).map_err(gone)
}
