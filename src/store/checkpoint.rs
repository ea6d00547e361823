//! Tells the journal what it may forget, once the runs have it durably.

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::journal::Pool;
use crate::types::error::{ErrorKind, Result};
use crate::types::stats::Counter;
use crate::types::telemetry::{self, Work};

/// The runs have the state after this frame.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) frame: u64,
    /// Payload bytes that had been applied then.
    pub(crate) applied: u64,
    pub(crate) reply: Option<Sender<()>>,
}

pub(crate) struct Callbacks {
    pub(crate) path: PathBuf,
    pub(crate) pool: Arc<Pool>,
    pub(crate) count: Arc<Counter>,
    /// Says in the journal that sled has everything up to a frame, and waits until that is durable.
    pub(crate) record: Box<dyn Fn(u64) -> Result<()> + Send>,
    /// Payload bytes that need not be replayed any more.
    pub(crate) done: Box<dyn Fn(u64) + Send>,
}

/// The checkpoint thread's life, off the path of commits and of their application.
pub(crate) fn run(jobs: &Receiver<Job>, callbacks: &Callbacks) -> Result<()> {
    while let Ok(next) = jobs.recv() {
        // A later state has all of an earlier one.
        let waiting: Vec<Job> = std::iter::once(next).chain(jobs.try_iter()).collect();
        let Some(job) = waiting.last() else { break };
        let _working = telemetry::enter(Work::StoreCheckpoint, &callbacks.path);
        match (callbacks.record)(job.frame) {
            // A full disk's close did not wait for this. What is not recorded is replayed.
            Err(error) if error.kind() == ErrorKind::Closed => break,
            recorded => recorded?,
        }
        callbacks.pool.release(job.frame);
        callbacks.count.add(1);
        (callbacks.done)(job.applied);
        for reply in waiting.into_iter().filter_map(|job| job.reply) {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
    }
    Ok(())
}
