//! Models of reads and commits next to the apply thread, in every schedule that is tried. The commit queue, memtable,
//! version counters and read sets are those of the store; disk and sled are replaced. Reads, commits and the apply
//! thread do the steps of `Inner::read`, `Inner::commit` and `Applier` in the same order. Each fault changes the order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::memtable::{Entry, KeyHash, Memtable};
use super::read_sets::{ReadSet, ReadSets};
use super::{Content, Priority, StoreKey};
use crate::store::versions::{ReadVersion, Versions};
use crate::sync::group_commit::{Batch, CommitQueue, Config, Work};
use crate::sync::models::{NEVER, fails, holds};
use crate::sync::{Mutex, thread};
use crate::types::value::Value;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    DropsBeforeItPuts,
    DropsWhateverIsThere,
    ReadsSledFirst,
    LooksAtTheStripeLast,
    MovesTheStripesLater,
    DoesNotCheckTheStripes,
    AddsToTheReadSetLast,
    MarksTheReadSetsLater,
    DoesNotCheckTheReadSet,
    DoesNotWaitForItsTicket,
}

type Frame = Vec<(StoreKey, u8)>;

struct Store {
    fault: Fault,
    commit_queue: CommitQueue<Frame, ()>,
    memtable: Memtable,
    versions: Versions,
    read_sets: Arc<ReadSets>,
    sled: Mutex<BTreeMap<StoreKey, u8>>,
    /// The last group whose sync has ended.
    synced: AtomicU64,
}

struct Read {
    value: u8,
    seen: ReadVersion,
    ticket: u64,
}

fn key(name: u8) -> StoreKey {
    StoreKey::row("t", &[name])
}

impl Store {
    fn new(fault: Fault) -> Self {
        let config = Config {
            sized: |len| len,
            reserve: 0,
            max_unapplied: 1_000,
            max_unchecked: 1_000,
            interval: None,
            timeout: NEVER,
            applying: Arc::new(crate::sync::atomic::AtomicU64::new(0)),
            idle: NEVER,
        };
        Self {
            fault,
            commit_queue: CommitQueue::new(config, 0, 1, 1_000),
            memtable: Memtable::default(),
            versions: Versions::default(),
            read_sets: Arc::default(),
            sled: Mutex::default(),
            synced: AtomicU64::default(),
        }
    }

    fn hash(&self, key: &StoreKey) -> KeyHash {
        self.memtable.hash(key.bytes())
    }

    fn sled(&self, key: &StoreKey) -> u8 {
        self.sled.lock().get(key).copied().unwrap_or_default()
    }

    fn read(&self, key: &StoreKey) -> Read {
        let early = (self.fault == Fault::ReadsSledFirst).then(|| self.sled(key));
        let seen = self.versions.look(self.hash(key));
        let (value, ticket) = match self.memtable.get(self.hash(key), key) {
            Some(entry) => {
                let row = entry.content.and_then(Content::into_row).unwrap();
                (row.first().copied().unwrap(), entry.ticket)
            }
            None => (early.unwrap_or_else(|| self.sled(key)), 0),
        };
        let seen = if self.fault == Fault::LooksAtTheStripeLast { self.versions.look(self.hash(key)) } else { seen };
        Read { value, seen, ticket }
    }

    /// Reads and returns the content to a caller.
    fn answer(&self, key: &StoreKey) -> u8 {
        let read = self.read(key);
        if self.fault != Fault::DoesNotWaitForItsTicket {
            self.commit_queue.wait(read.ticket).unwrap();
        }
        assert!(self.synced.load(SeqCst) >= read.ticket, "an answer that a power cut could undo");
        read.value
    }

    /// Reads in a transaction.
    fn read_in(&self, set: &mut ReadSet, key: &StoreKey) -> u8 {
        if self.fault == Fault::AddsToTheReadSetLast {
            let value = self.read(key).value;
            set.add(key);
            return value;
        }
        set.add(key);
        self.read(key).value
    }

    /// Counts keys in a transaction.
    fn count_in(&self, set: &mut ReadSet, keys: &[StoreKey]) -> usize {
        let (from, end) = (key(0), key(9));
        if self.fault != Fault::AddsToTheReadSetLast {
            set.add_range(&from, Some(&end));
        }
        // The memtable first, as in `Store::keys`.
        let mut found = self.memtable.keys(&from, Some(&end), 9);
        found.extend(keys.iter().filter(|key| self.sled(key) > 0).cloned());
        found.sort();
        found.dedup();
        if self.fault == Fault::AddsToTheReadSetLast {
            set.add_range(&from, Some(&end));
        }
        found.len()
    }

    fn commit(&self, changes: &[(StoreKey, u8)], reads: &[ReadVersion]) -> Option<u64> {
        self.commit_in(changes, reads, None)
    }

    fn commit_in(&self, changes: &[(StoreKey, u8)], reads: &[ReadVersion], set: Option<&ReadSet>) -> Option<u64> {
        let admission = self.commit_queue.admit(changes.len(), Priority::User).unwrap();
        if self.fault != Fault::DoesNotCheckTheStripes && !self.versions.are_current(reads) {
            return None;
        }
        if self.fault != Fault::DoesNotCheckTheReadSet && !set.is_none_or(ReadSet::is_current) {
            return None;
        }
        let (number, ticket) = (admission.number(), admission.ticket());
        let entries = changes.iter().map(|(key, value)| {
            let content = Some(Content::Row(Value::from([*value].as_slice())));
            (key.clone(), Entry { number, ticket, content })
        });
        let advance = || changes.iter().for_each(|(key, _)| self.versions.advance(self.hash(key)));
        let mark = || changes.iter().for_each(|(key, _)| self.read_sets.mark(key));
        self.memtable.put_all(entries, || {
            if self.fault != Fault::MovesTheStripesLater {
                advance();
            }
            if self.fault != Fault::MarksTheReadSetsLater {
                mark();
            }
        });
        match self.fault {
            Fault::MovesTheStripesLater => advance(),
            Fault::MarksTheReadSetsLater => mark(),
            _ => {}
        }
        Some(admission.commit_bytes(&vec![0; changes.len()], changes.to_vec()))
    }

    /// Runs as the writer and the apply thread: writes, syncs, publishes and applies until every user has ended.
    fn write_and_apply(&self) {
        loop {
            match self.commit_queue.take() {
                Work::Write(batch, _) => {
                    self.synced.store(batch.group, SeqCst);
                    self.commit_queue.publish(batch.group);
                    self.apply(batch);
                }
                Work::Draining => self.commit_queue.end(),
                Work::Ended => return,
                Work::Idle => unreachable!(),
            }
        }
    }

    fn apply(&self, batch: Batch<Frame>) {
        for (number, frame) in (batch.first_frame..).zip(batch.frames) {
            for (key, value) in frame {
                let number = match (self.fault, self.memtable.get(self.hash(&key), &key)) {
                    (Fault::DropsWhateverIsThere, Some(entry)) => entry.number,
                    _ => number,
                };
                if self.fault == Fault::DropsBeforeItPuts {
                    self.memtable.remove_flushed(&key, number);
                }
                self.sled.lock().insert(key.clone(), value);
                self.memtable.remove_flushed(&key, number);
            }
        }
    }

    /// Runs `users` next to a writer.
    fn with(&self, users: impl FnOnce()) {
        thread::scope(|scope| {
            scope.spawn(|| self.write_and_apply());
            users();
            self.commit_queue.close();
        });
        assert_eq!(self.memtable.len(), 0, "left in the memtable");
    }
}

/// One thread writes a row again and again, another reads it. No read returns an older value than before, or one that
/// is not durable.
fn reads_beside_apply(fault: Fault) {
    let store = &Store::new(fault);
    store.with(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..=3 {
                    store.commit(&[(key(0), value)], &[]).unwrap();
                }
            });
            let mut last = 0;
            for _ in 0..4 {
                let value = store.answer(&key(0));
                assert!(value >= last, "an older value");
                last = value;
            }
        });
    });
    assert_eq!(store.read(&key(0)).value, 3);
}

#[test]
fn a_read_misses_nothing_while_it_is_applied() {
    holds(|| reads_beside_apply(Fault::None));
    fails(|| reads_beside_apply(Fault::DropsBeforeItPuts), "an older value");
    fails(|| reads_beside_apply(Fault::DropsWhateverIsThere), "an older value");
    fails(|| reads_beside_apply(Fault::ReadsSledFirst), "an older value");
}

#[test]
fn no_answer_is_returned_before_it_is_durable() {
    holds(|| reads_beside_apply(Fault::None));
    fails(|| reads_beside_apply(Fault::DoesNotWaitForItsTicket), "an answer that a power cut could undo");
}

/// Three threads add one to the same row. Each reads again after a conflict.
fn additions(fault: Fault) {
    let store = &Store::new(fault);
    store.with(|| {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let read = store.read(&key(0));
                        if let Some(ticket) = store.commit(&[(key(0), read.value + 1)], &[read.seen]) {
                            return store.commit_queue.wait(ticket).unwrap();
                        }
                    }
                });
            }
        });
    });
    assert_eq!(store.read(&key(0)).value, 3, "the sum");
}

#[test]
fn a_commit_on_something_stale_is_refused() {
    holds(|| additions(Fault::None));
    fails(|| additions(Fault::LooksAtTheStripeLast), "the sum");
    fails(|| additions(Fault::DoesNotCheckTheStripes), "the sum");
}

/// Two rows change together, while a reader reads both several times. `read` returns what it has read if all of it is
/// current.
fn two_rows(fault: Fault, read: impl Fn(&Store) -> Option<[u8; 2]>) {
    let store = &Store::new(fault);
    store.with(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..=2 {
                    store.commit(&[(key(0), value), (key(1), value)], &[]).unwrap();
                }
            });
            for _ in 0..3 {
                if let Some([one, other]) = read(store) {
                    assert_eq!(one, other, "two moments");
                }
            }
        });
    });
}

/// Reads both rows. If both versions are current, the values are from one moment.
fn by_stripes(store: &Store) -> Option<[u8; 2]> {
    let reads = [0, 1].map(|name| store.read(&key(name)));
    store.versions.are_current(&reads.each_ref().map(|read| read.seen)).then(|| reads.map(|read| read.value))
}

/// Reads both rows in a transaction. If the read set has no mark, the values are from one moment.
fn by_read_set(store: &Store) -> Option<[u8; 2]> {
    let mut set = ReadSet::new(&store.read_sets);
    let reads = [0, 1].map(|name| store.read_in(&mut set, &key(name)));
    set.is_current().then_some(reads)
}

#[test]
fn two_rows_of_one_commit_are_seen_together() {
    holds(|| two_rows(Fault::None, by_stripes));
    fails(|| two_rows(Fault::MovesTheStripesLater, by_stripes), "two moments");
}

#[test]
fn a_transaction_sees_one_moment() {
    holds(|| two_rows(Fault::None, by_read_set));
    fails(|| two_rows(Fault::AddsToTheReadSetLast, by_read_set), "two moments");
    fails(|| two_rows(Fault::MarksTheReadSetsLater, by_read_set), "two moments");
}

/// Three transactions each take the only seat if it is free, by writing a row of their own.
fn one_seat(fault: Fault) {
    let store = &Store::new(fault);
    let waiters = [1, 2, 3].map(key);
    store.with(|| {
        thread::scope(|scope| {
            for waiter in &waiters {
                let waiters = &waiters;
                scope.spawn(move || {
                    loop {
                        let mut set = ReadSet::new(&store.read_sets);
                        if store.count_in(&mut set, waiters) > 0 {
                            return;
                        }
                        if let Some(ticket) = store.commit_in(&[(waiter.clone(), 1)], &[], Some(&set)) {
                            return store.commit_queue.wait(ticket).unwrap();
                        }
                    }
                });
            }
        });
    });
    assert_eq!(waiters.iter().filter(|waiter| store.sled(waiter) > 0).count(), 1, "one waiter");
}

#[test]
fn a_new_row_in_a_range_refuses_the_commit() {
    holds(|| one_seat(Fault::None));
    fails(|| one_seat(Fault::AddsToTheReadSetLast), "one waiter");
    fails(|| one_seat(Fault::DoesNotCheckTheReadSet), "one waiter");
}
