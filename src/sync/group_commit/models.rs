//! Models of group commit: an answer never comes before its sync, in all tried orders of steps. Each model also detects
//! a fault that is put into it.

mod endings;
mod space;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{AtomicU64, Batch, CommitQueue, Config, Priority, Work};
use crate::sync::models::{ANY_TIME, NEVER, always_holds, fails, holds};
use crate::sync::{atomic, thread};
use crate::types::error::{Error, ErrorKind, Result};

/// The message of shuttle if tasks wait for ever.
const DEADLOCK: &str = "deadlock";

/// Each frame has a number of its own.
type Frames = CommitQueue<u32, u64>;

/// A fault in the code around the queue, or in a copy of one of its functions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    PublishesBeforeTheSync,
    /// Publishes frames that were committed during the sync.
    PublishesTheNewest,
    WakesWithoutASignal,
    ForgetsToApply,
    ForgetsToRefuse,
    AnswersOnATimeOut,
    EndsWithoutPoison,
    PoisonsWithoutASignal,
    ListensOnly,
    EndsAtOnce,
    LeavesTheQueueWithoutWaking,
}

/// The frames that survive a power cut: those of groups whose sync has ended.
#[derive(Default)]
struct Disk {
    frames: std::sync::Mutex<BTreeSet<u32>>,
    /// Accessed before and after a sync, to give the scheduler a choice.
    head: atomic::AtomicU64,
}

impl Disk {
    fn sync(&self, batch: &Batch<u32>) {
        self.head.store(batch.group, SeqCst);
        self.frames.lock().unwrap().extend(&batch.frames);
        self.head.store(batch.group, SeqCst);
    }

    fn has(&self, frame: u32) -> bool {
        self.frames.lock().unwrap().contains(&frame)
    }
}

struct Store {
    group: Frames,
    disk: Disk,
    /// The number of times that the writer was notified that no more users commit.
    drained: AtomicU32,
}

/// Creates a store. A group of n bytes takes n + 10; 20 bytes are reserved.
fn store(segment_space: u64, change: impl FnOnce(&mut Config)) -> Store {
    let mut config = Config {
        sized: |len| len + 10,
        reserve: 20,
        max_unapplied: 1_000,
        max_unchecked: 10_000,
        interval: None,
        timeout: NEVER,
        applying: Arc::new(AtomicU64::new(0)),
        idle: NEVER,
    };
    change(&mut config);
    Store { group: CommitQueue::new(config, 0, 100, segment_space), disk: Disk::default(), drained: AtomicU32::new(0) }
}

impl Store {
    fn commit(&self, frame: u32, priority: Priority) -> Result<u64> {
        // A frame may be shorter than admitted.
        Ok(self.group.admit(12, priority)?.commit_bytes(&[7; 10], frame))
    }

    /// Commits and waits. Asserts that the frame is on disk when the wait returns.
    fn commit_and_wait(&self, frame: u32, fault: Fault) -> Result<()> {
        let ticket = self.commit(frame, Priority::User)?;
        let waited = self.group.wait(ticket);
        if waited.is_ok() || fault == Fault::AnswersOnATimeOut {
            assert!(self.disk.has(frame), "an answer before its sync");
        }
        waited
    }

    fn written(&self, batch: &Batch<u32>, fault: Fault) {
        if fault == Fault::PublishesBeforeTheSync {
            self.group.publish(batch.group);
        }
        self.disk.sync(batch);
        match fault {
            Fault::PublishesTheNewest => self.group.publish(self.group.newest()),
            Fault::WakesWithoutASignal => {
                self.group.durable.store(batch.group, SeqCst);
                self.group.synced(batch.group).wake_all();
            }
            _ => self.group.publish(batch.group),
        }
    }

    fn applied(&self, batch: &Batch<u32>) {
        self.group.applied(batch.group, batch.payload.len() as u64);
        self.group.checkpointed(self.group.applied_bytes());
    }

    /// Runs as the writer of the store, which also applies the groups.
    fn write_groups(&self, fault: Fault) -> Result<()> {
        loop {
            match self.group.take() {
                Work::Write(batch, _) => {
                    self.written(&batch, fault);
                    if fault != Fault::ForgetsToApply {
                        self.applied(&batch);
                    }
                }
                Work::Idle => {
                    if let Some(batch) = self.group.take_empty() {
                        self.written(&batch, fault);
                    }
                }
                Work::Draining => {
                    self.drained.fetch_add(1, SeqCst);
                    self.group.end();
                }
                Work::Ended => return Ok(()),
            }
        }
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Io, "write journal: broken")
}

#[track_caller]
fn is<R: std::fmt::Debug>(result: Result<R>, kind: ErrorKind) {
    assert_eq!(result.unwrap_err().kind(), kind);
}

/// Three threads commit, one of them twice, beside a writer that ends after they are answered.
fn commits(fault: Fault, change: fn(&mut Config)) {
    let store = &store(1_000, change);
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(fault).unwrap());
        let users = [1, 2, 3].map(|frame| {
            scope.spawn(move || {
                store.commit_and_wait(frame, fault).unwrap();
                if frame == 1 {
                    store.commit_and_wait(10, fault).unwrap();
                }
            })
        });
        users.into_iter().for_each(|user| user.join().unwrap());
        store.group.close();
    });
    assert_eq!(store.drained.load(SeqCst), 1);
}

#[test]
fn no_answer_comes_before_its_sync() {
    holds(|| commits(Fault::None, |_| ()));
    fails(|| commits(Fault::PublishesBeforeTheSync, |_| ()), "an answer before its sync");
}

#[test]
fn a_sync_does_not_cover_later_commits() {
    holds(|| commits(Fault::None, |config| config.idle = ANY_TIME));
    fails(|| commits(Fault::PublishesTheNewest, |_| ()), "an answer before its sync");
}

#[test]
fn a_sync_wakes_all_its_waiters() {
    holds(|| commits(Fault::None, |_| ()));
    fails(|| commits(Fault::WakesWithoutASignal, |_| ()), DEADLOCK);
}

/// Runs one commit and one sync.
fn one_waits(fault: Fault) {
    let store = &store(1_000, |_| ());
    let ticket = store.commit(1, Priority::User).unwrap();
    let Work::Write(batch, _) = store.group.take() else { unreachable!() };
    thread::scope(|scope| {
        scope.spawn(move || store.written(&batch, fault));
        store.group.wait(ticket).unwrap();
        assert!(store.disk.has(1), "an answer before its sync");
    });
}

#[test]
fn a_sync_wakes_its_waiter_in_every_order() {
    always_holds(|| one_waits(Fault::None));
    fails(|| one_waits(Fault::WakesWithoutASignal), DEADLOCK);
    fails(|| one_waits(Fault::PublishesBeforeTheSync), "an answer before its sync");
}

/// The interval never ends by itself: a waiter must cut it short.
#[test]
fn a_wait_cuts_an_interval_short() {
    const YEAR: std::time::Duration = std::time::Duration::from_secs(31_536_000);
    holds(|| commits(Fault::None, |config| config.interval = Some(YEAR)));
    holds(|| commits(Fault::None, |config| config.interval = Some(ANY_TIME)));
    fails(|| waits_for_an_interval(YEAR), DEADLOCK);
}

/// A wait that does not make the group urgent.
fn waits_for_an_interval(interval: std::time::Duration) {
    let store = &store(1_000, |config| config.interval = Some(interval));
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let ticket = store.commit(1, Priority::User).unwrap();
        let synced = store.group.synced(ticket);
        loop {
            let seen = synced.current();
            if store.group.is_durable(ticket) {
                break;
            }
            synced.wait(seen, None);
        }
        store.group.close();
    });
}
