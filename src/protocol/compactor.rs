//! The thread that deletes expired records in the background.
//!
//! The thread sleeps until the earliest expiry that it knows, or until a commit brings an earlier one. Two passes are
//! at least `interval` apart. The thread holds no handle, so dropping the last handle still closes the engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::protocol::Protocol;
use crate::sync::worker::Worker;
use crate::types::clock::{deadline, monotonic};
use crate::types::error::{Error, ErrorKind, Result};

/// A message to the thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// Compute again when the next record expires.
    Recheck,
    End,
}

/// The handle of the thread. Drop ends the thread.
#[derive(Debug)]
pub(crate) struct Compactor {
    commands: Sender<Command>,
    /// Makes a running pass end early.
    stopping: Arc<AtomicBool>,
    worker: Mutex<Worker>,
    /// The process that started the thread. A child of `fork` has no such thread, so nothing would read its messages.
    pid: u32,
}

impl Compactor {
    /// Starts the thread. A pass removes about `batch` unfinished records in each step, and passes are `interval`
    /// apart.
    pub(crate) fn start(protocol: &Arc<Protocol>, batch: usize, interval: Duration) -> Result<Self> {
        let (commands, inbox) = crossbeam_channel::bounded(2);
        let look = commands.clone();
        protocol.on_due(move || {
            // If the queue is full, the thread wakes anyway.
            let _ = look.try_send(Command::Recheck);
        });
        let (watched, notified) = (Arc::downgrade(protocol), Arc::downgrade(protocol));
        let stopping = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stopping);
        let worker = Worker::spawn(
            "oncekey-compact",
            move || run(&watched, &inbox, batch, interval, &stopped),
            move |why| {
                if let Some(protocol) = notified.upgrade() {
                    protocol.compaction_failed("the background compaction has ended", &Error::new(ErrorKind::Io, why));
                }
            },
        )?;
        Ok(Self { commands, stopping, worker: Mutex::new(worker), pid: std::process::id() })
    }

    /// Ends the thread after its current batch.
    pub(crate) fn end(&self) {
        if std::process::id() != self.pid {
            return;
        }
        self.stopping.store(true, Ordering::Relaxed);
        // An error means that the thread has ended already.
        let _ = self.commands.send(Command::End);
        self.worker.lock().join();
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Full | ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Unsettled)
}

fn run(
    protocol: &Weak<Protocol>,
    commands: &Receiver<Command>,
    batch: usize,
    interval: Duration,
    stopping: &AtomicBool,
) {
    let mut not_before: Option<Instant> = None;
    loop {
        let Some(due) = protocol.upgrade().map(|protocol| protocol.compaction_due()) else { return };
        // With an endless interval, only `compact_now` deletes.
        let due = due.filter(|_| deadline(interval).is_some());
        let at = due.and_then(deadline).map(|at| not_before.map_or(at, |not_before| at.max(not_before)));
        let command = match at {
            Some(at) => commands.recv_deadline(at),
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match command {
            Ok(Command::Recheck) => {}
            Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let Some(protocol) = protocol.upgrade() else { return };
                match protocol.compact(batch, &|| !stopping.load(Ordering::Relaxed)) {
                    Ok(_) => {}
                    // Try again after the interval: there may be space again, or the server may answer again.
                    Err(error) if is_temporary(error.kind()) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::Poisoned) => return,
                    // The rest was compacted. Later passes leave out the damaged records too.
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        protocol.compaction_failed("the background compaction left out damaged records", &error);
                    }
                    // Such as privileges that were taken away, and may be given back.
                    Err(error) => protocol.compaction_failed("a pass of the background compaction has failed", &error),
                }
                not_before = monotonic().checked_add(interval);
            }
        }
    }
}
