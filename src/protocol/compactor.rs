//! Deletes in the background what has expired.
//!
//! One thread. It sleeps until the earliest expiry it knows of, or until an ending tells it of an earlier one; two passes are
//! at least the interval apart. It holds no handle: a forgotten engine closes all the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::protocol::Protocol;
use crate::sync::worker::Worker;
use crate::types::clock::{deadline, monotonic};
use crate::types::error::{ErrorKind, Result};

/// How to tell the thread that something is due earlier than it thinks.
#[derive(Debug)]
pub(crate) enum Command {
    /// Look again at what is due.
    SpaceStatus,
    End,
}

/// The thread. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Compactor {
    commands: Sender<Command>,
    /// The pass that runs is to end too.
    stopping: Arc<AtomicBool>,
    worker: Mutex<Worker>,
    /// A child of `fork` has no such thread: what it sends stays in the queue.
    pid: u32,
}

impl Compactor {
    /// `batch` records are deleted at a time; passes are `interval` apart.
    pub(crate) fn start(protocol: &Arc<Protocol>, batch: usize, interval: Duration) -> Result<Self> {
        let (commands, inbox) = crossbeam_channel::bounded(2);
        let look = commands.clone();
        protocol.on_due(move || {
            // A full queue wakes it as well.
            let _ = look.try_send(Command::SpaceStatus);
        });
        let (watched, told) = (Arc::downgrade(protocol), Arc::downgrade(protocol));
        let stopping = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stopping);
        let worker = Worker::spawn(
            "oncekey-compact",
            move || run(&watched, &inbox, batch, interval, &stopped),
            move |why| {
                if let Some(protocol) = told.upgrade() {
                    protocol.compaction_failed(&why);
                }
            },
        )?;
        Ok(Self { commands, stopping, worker: Mutex::new(worker), pid: std::process::id() })
    }

    /// Ends the thread, after the batch it is at.
    pub(crate) fn end(&self) {
        if std::process::id() != self.pid {
            return;
        }
        self.stopping.store(true, Ordering::Relaxed);
        // An error says that it has ended.
        let _ = self.commands.send(Command::End);
        self.worker.lock().join();
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.end();
    }
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
        // An interval without end leaves everything to others.
        let due = due.filter(|_| deadline(interval).is_some());
        let at = due.and_then(deadline).map(|at| not_before.map_or(at, |not_before| at.max(not_before)));
        let command = match at {
            Some(at) => commands.recv_deadline(at),
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match command {
            Ok(Command::SpaceStatus) => {}
            Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let Some(protocol) = protocol.upgrade() else { return };
                match protocol.compact(batch, &|| !stopping.load(Ordering::Relaxed)) {
                    Ok(_) => {}
                    // It is still due: after the interval there may be room again.
                    Err(error) if error.kind() == ErrorKind::Full => {}
                    Err(error) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::Poisoned) => return,
                    Err(error) => {
                        protocol.compaction_failed(&error.to_string());
                        return;
                    }
                }
                not_before = monotonic().checked_add(interval);
            }
        }
    }
}
