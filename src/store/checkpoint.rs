//! The checkpoint thread: records in the journal what is durable in runs, so that older segments become free.

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::journal::Pool;
use crate::types::error::{ErrorKind, Result};
use crate::types::stats::Counter;
use crate::types::telemetry::{self, Work};

/// A checkpoint to make: the runs have all changes up to this frame.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) frame: u64,
    /// The payload bytes that had been applied then.
    pub(crate) applied: u64,
    pub(crate) reply: Option<Sender<()>>,
}

pub(crate) struct Callbacks {
    pub(crate) path: PathBuf,
    pub(crate) pool: Arc<Pool>,
    pub(crate) count: Arc<Counter>,
    /// Writes a checkpoint frame for this frame, and waits until it is durable.
    pub(crate) record: Box<dyn Fn(u64) -> Result<()> + Send>,
    /// Reports the payload bytes that need not be replayed any more.
    pub(crate) done: Box<dyn Fn(u64) + Send>,
}

/// The main function of the checkpoint thread.
pub(crate) fn run(jobs: &Receiver<Job>, callbacks: &Callbacks) -> Result<()> {
    while let Ok(next) = jobs.recv() {
        // The latest job includes all earlier ones.
        let waiting: Vec<Job> = std::iter::once(next).chain(jobs.try_iter()).collect();
        let Some(job) = waiting.last() else { break };
        let _working = telemetry::enter(Work::StoreCheckpoint, &callbacks.path);
        match (callbacks.record)(job.frame) {
            // A close with a full disk does not wait for this checkpoint. The next open replays more.
            Err(error) if error.kind() == ErrorKind::Closed => break,
            recorded => recorded?,
        }
        callbacks.pool.release(job.frame);
        callbacks.count.add(1);
        (callbacks.done)(job.applied);
        for reply in waiting.into_iter().filter_map(|job| job.reply) {
            // The caller may have gone.
            let _ = reply.send(());
        }
    }
    Ok(())
}
