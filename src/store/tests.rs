//! Tests of the whole store, with real files.

mod churn;
mod commits;
mod compaction;
mod contents;
mod damage;
mod expired_runs;
mod failures;
mod kill;
mod open;
mod raw;
mod rotation;
mod runs;
mod salvage;
mod under_way;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;

use super::format::block;
use super::format::record::tests::sample;
use super::format::segment::{FileKind, GroupHeader, SECTOR, SegmentHeader, sized};
use super::*;
use crate::types::clock::{ManualClock, NEVER};
use crate::types::options::EngineOptions;
use crate::types::record::{Status, THIS_FRAME};
use crate::types::value::Value;

const SMALL_SEGMENT: u64 = 8 << 10;

fn options() -> EngineOptions {
    EngineOptions::default().clock(ManualClock::new()).segment_bytes(SMALL_SEGMENT)
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

thread_local! {
    /// The number of times that this thread has asked for the number of the process.
    pub(crate) static PID_CHECKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn open(dir: &Path) -> (Store, OpenReport) {
    open_with(dir, &options())
}

fn open_with(dir: &Path, options: &EngineOptions) -> (Store, OpenReport) {
    Store::open(dir, options).unwrap()
}

fn key(name: impl AsRef<[u8]>) -> StoreKey {
    StoreKey::record("m", name.as_ref())
}

/// Returns a succeeded record with this outcome that never expires.
fn done(outcome: &[u8]) -> StoredRecord {
    StoredRecord {
        generation: THIS_FRAME,
        revision: THIS_FRAME,
        token: THIS_FRAME,
        expires: NEVER,
        outcome_len: u32::try_from(outcome.len()).unwrap(),
        outcome: Some(Value::from(outcome)),
        ..sample()
    }
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect()
}

fn at_work() -> StoredRecord {
    StoredRecord { state: Status::InProgress, ..unfinished(Status::InProgress) }
}

fn unfinished(state: Status) -> StoredRecord {
    StoredRecord { state, interruption: None, outcome_len: 0, outcome: None, ..done(b"") }
}

fn set(key: &StoreKey, stored: StoredRecord) -> Change {
    Change { key: key.clone(), content: Some(Content::Record(Arc::new(stored))) }
}

/// Commits a record, waits until it is durable, and returns its number.
fn put(store: &Store, key: &StoreKey, stored: StoredRecord) -> u64 {
    match &put_all(store, vec![set(key, stored)])[0].content {
        Some(Content::Record(stored)) => stored.revision,
        other => panic!("not a record: {other:?}"),
    }
}

/// Commits changes together, waits until they are durable, and returns them as committed.
fn put_all(store: &Store, changes: Vec<Change>) -> Vec<Change> {
    let committed = store.commit(changes, &[], Priority::User).unwrap().unwrap();
    store.wait(committed.ticket).unwrap();
    committed.changes
}

fn remove(store: &Store, key: &StoreKey) {
    put_all(store, vec![Change { key: key.clone(), content: None }]);
}

fn stored(store: &Store, key: &StoreKey) -> Option<StoredRecord> {
    store.read(key, Load::All).unwrap().record().map(|stored| StoredRecord::clone(stored))
}

fn outcome(store: &Store, key: &StoreKey) -> Option<Vec<u8>> {
    stored(store, key).map(|stored| stored.outcome.map(|outcome| outcome.to_vec()).unwrap_or_default())
}

/// Requests a flush as the end of a segment does, without waiting.
fn ask_for_flush(store: &Store) {
    let group = store.inner.commit_queue.newest();
    store.inner.send(apply::Message::Flush { group }).unwrap();
}

/// Returns the number of entries in all runs, including removed keys.
fn entries(store: &Store) -> u64 {
    store.inner.shared.runs.current().iter().map(|run| run.info.entries).sum()
}

/// Waits until sled has blocks of listed runs only.
fn wait_for_deletions(store: &Store) {
    while stored_runs(store) > store.inner.shared.runs.current().len() {
        std::thread::yield_now();
    }
}

/// Returns the number of runs with blocks in sled, listed or not.
fn stored_runs(store: &Store) -> usize {
    store.inner.shared.tables.run_ids().unwrap().len()
}

/// Makes a checkpoint and waits until it is durable.
fn checkpoint(store: &Store) {
    // The message of the last group may not have reached the apply thread yet.
    store.drain().unwrap();
    let (reply, done) = crossbeam_channel::bounded(1);
    store.inner.apply.messages.send(apply::Message::Checkpoint { reply }).unwrap();
    done.recv().unwrap();
}

/// Ends the threads as a crash would, without a checkpoint or closing frame, and unlocks the directory.
fn crash(store: Store) {
    store.inner.commit_queue.poison(Error::new(ErrorKind::Io, "a crash"));
    assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Poisoned);
    drop(store);
}

/// Removes a block, as sled silently does when it cannot read a part of its log.
fn lose(store: &Store, run: u64, number: u32) {
    let tables = &store.inner.shared.tables;
    let place = block::Place { run, number };
    assert!(tables.block(place).unwrap().is_some());
    tables.remove(&block::key(place)).unwrap();
}

/// Copies the files while the store is open. Commits since the last flush are only in the journal.
fn copy(store: &Store) -> TempDir {
    store.sync().unwrap();
    // Otherwise a merge could write to sled meanwhile.
    let _no_step = store.inner.shared.waiting_at_steps.lock();
    loop {
        let to = temp();
        // The checkpoint thread may rename or remove a segment meanwhile. Then the copy is of no single moment.
        match copy_tree(&store.path().join("store"), &to.path().join("store")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => {
                copied.unwrap();
                return to;
            }
        }
    }
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for (path, kind) in files::entries(from).unwrap() {
        let to = to.join(path.file_name().unwrap());
        if kind.is_dir() {
            copy_tree(&path, &to)?;
        } else {
            std::fs::copy(&path, &to)?;
        }
    }
    Ok(())
}

fn journal_dir(dir: &Path) -> PathBuf {
    dir.join("store/journal")
}

/// A segment file and the offsets of its groups.
struct Segment {
    path: PathBuf,
    header: SegmentHeader,
    groups: Vec<(usize, GroupHeader)>,
    seal: Option<usize>,
}

/// Returns all segments with a header, by number.
fn segments(dir: &Path) -> Vec<Segment> {
    let mut segments = Vec::new();
    for (path, _) in files::entries(&journal_dir(dir)).unwrap() {
        let bytes = std::fs::read(&path).unwrap();
        let FileKind::Segment(header) = SegmentHeader::decode(&bytes) else { continue };
        let (mut groups, mut seal, mut at) = (Vec::new(), None, SECTOR);
        while let Some((group, _)) = bytes.get(at..).and_then(|bytes| GroupHeader::decode(bytes, header.salt)) {
            if group.is_seal {
                seal = Some(at);
                break;
            }
            groups.push((at, group));
            at += usize::try_from(sized(u64::from(group.payload_len))).unwrap();
        }
        segments.push(Segment { path, header, groups, seal });
    }
    segments.sort_by_key(|segment| segment.header.number);
    segments
}

fn journal_files(dir: &Path) -> usize {
    files::entries(&journal_dir(dir)).unwrap().len()
}

/// Flips a bit. A second call restores it.
fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// Checks that `Store::open` returns an error of this kind that contains `names`.
#[track_caller]
fn refused(dir: &Path, kind: ErrorKind, names: &str) -> Error {
    let error = Store::open(dir, &options()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(names), "{error} does not name {names}");
    error
}
