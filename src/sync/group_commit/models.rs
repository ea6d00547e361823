//! Who commits is answered, and not before the sync, under every order that is tried; and each model shows the fault that is
//! put into it.

mod endings;
mod room;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{AtomicU64, Batch, CommitQueue, Config, Priority, Work};
use crate::sync::models::{ANY_TIME, NEVER, always_holds, fails, holds};
use crate::sync::{atomic, thread};
use crate::types::error::{Error, ErrorKind, Result};

/// What shuttle says of tasks that wait for ever.
const LEFT_BEHIND: &str = "deadlock";

/// A frame is known by a number of its own.
type Frames = CommitQueue<u32, u64>;

/// A fault in those around a group, or in a copy of one of its functions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    PublishesBeforeTheSync,
    /// The sync covers what was committed while it ran.
    PublishesTheNewest,
    NotifiesPastTheLock,
    ForgetsToApply,
    ForgetsToRefuse,
    AnswersOnATimeOut,
    EndsWithoutPoison,
    PoisonsPastTheLock,
    ListensOnly,
    EndsAtOnce,
    LeavesTheQueueInSilence,
}

/// What a power cut would leave: the frames of groups whose sync has ended.
#[derive(Default)]
struct Disk {
    frames: std::sync::Mutex<BTreeSet<u32>>,
    /// Its steps are the scheduler's.
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
    /// How often the writer was told that no user's commit will come.
    drained: AtomicU32,
}

/// A group of n bytes takes n + 10; 20 are reserved.
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
        Ok(self.group.admit(10, priority)?.commit(&[7; 10], frame))
    }

    /// Who is answered has what it committed.
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
            Fault::NotifiesPastTheLock => {
                self.group.durable.store(batch.group, SeqCst);
                self.group.condvar(batch.group).notify_all();
            }
            _ => self.group.publish(batch.group),
        }
    }

    fn applied(&self, batch: &Batch<u32>) {
        self.group.applied(batch.group, batch.payload.len() as u64);
        self.group.checkpointed(self.group.applied_bytes());
    }

    /// As the store's writer, with the apply thread in it.
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

/// Three commit, one of them twice, beside a writer that is told to end when they are answered.
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
fn a_sync_in_flight_covers_nobody_who_came_later() {
    holds(|| commits(Fault::None, |config| config.idle = ANY_TIME));
    fails(|| commits(Fault::PublishesTheNewest, |_| ()), "an answer before its sync");
}

#[test]
fn a_sync_wakes_all_that_it_covers() {
    holds(|| commits(Fault::None, |_| ()));
    fails(|| commits(Fault::NotifiesPastTheLock, |_| ()), LEFT_BEHIND);
}

/// One commit and one sync.
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
fn a_sync_wakes_one_who_waits_in_every_order() {
    always_holds(|| one_waits(Fault::None));
    fails(|| one_waits(Fault::NotifiesPastTheLock), LEFT_BEHIND);
    fails(|| one_waits(Fault::PublishesBeforeTheSync), "an answer before its sync");
}

/// The interval never passes: whoever waits cuts it short.
#[test]
fn an_interval_is_cut_short_by_whoever_waits() {
    const YEAR: std::time::Duration = std::time::Duration::from_secs(31_536_000);
    holds(|| commits(Fault::None, |config| config.interval = Some(YEAR)));
    holds(|| commits(Fault::None, |config| config.interval = Some(ANY_TIME)));
    fails(|| waits_for_an_interval(YEAR), LEFT_BEHIND);
}

/// A wait that does not say that it waits.
fn waits_for_an_interval(interval: std::time::Duration) {
    let store = &store(1_000, |config| config.interval = Some(interval));
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let ticket = store.commit(1, Priority::User).unwrap();
        let mut waiters = store.group.waiters.lock();
        while !store.group.is_durable(ticket) {
            store.group.condvar(ticket).wait_until(&mut waiters, None);
        }
        drop(waiters);
        store.group.close();
    });
}
