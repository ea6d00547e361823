//! The checkpoint thread: records in the journal which frames are durable in runs, so that older segments become free.

use crossbeam_channel::{Receiver, Sender};

use super::Inner;
use super::format::frame::Frame;
use crate::types::error::{ErrorKind, Result};
use crate::types::telemetry::{self, Work};

/// A checkpoint to make: the runs have all changes up to this frame.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) frame: u64,
    /// The payload bytes that had been applied then.
    pub(crate) applied: u64,
    pub(crate) reply: Option<Sender<()>>,
}

/// The main function of the checkpoint thread.
pub(super) fn run(jobs: &Receiver<Job>, inner: &Inner) -> Result<()> {
    while let Ok(next) = jobs.recv() {
        // The latest job includes all earlier ones.
        let waiting: Vec<Job> = std::iter::once(next).chain(jobs.try_iter()).collect();
        let Some(job) = waiting.last() else { break };
        let _working = telemetry::enter(Work::StoreCheckpoint, &inner.path);
        match inner.commit_own_frame(&Frame::Checkpointed(job.frame)) {
            // A close with a full disk does not wait for this checkpoint. The next open replays more.
            Err(error) if error.kind() == ErrorKind::Closed => break,
            recorded => recorded?,
        }
        inner.pool.release(job.frame);
        inner.checkpoints.add(1);
        inner.commit_queue.checkpointed(job.applied);
        for reply in waiting.into_iter().filter_map(|job| job.reply) {
            // The caller may have gone.
            let _ = reply.send(());
        }
    }
    Ok(())
}
