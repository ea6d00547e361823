//! The local store of records and rows. An answer is durable before a caller gets it, except under
//! `Durability::Eventual`.
//!
//! A commit goes into the current group of the journal and into the memtable, under one short lock. Its caller waits
//! for the sync of the group. From time to time the apply thread flushes durable commits into sled, as one sorted run
//! of blocks. A read looks into the memtable first and then into the runs. A flush publishes the run before it removes
//! the contents from the memtable, so a read cannot miss both. Everything in a run is durable.
//!
//! No call to sled is made under the lock. Conflicts of single keys are found by version counters, each shared by many
//! keys: a read notes the counter of its key, and a commit moves the counters of its keys. The commit is refused if a
//! counter that it has noted has moved. Conflicts of transactions are found by read sets: a commit marks each set that
//! contains one of its keys, and is refused if its own set is marked.

mod apply;
mod backup;
mod checkpoint;
mod commit;
mod compact;
mod create;
mod disk_usage;
mod files;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod memtable;
mod open;
mod page;
mod read_only;
mod read_sets;
mod record_cache;
mod runs;
mod salvage;
mod sled;
mod threads;
mod verify;
mod versions;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub use backup::BackupReport;
pub(crate) use commit::{CommitOptions, Committed, Ticket};
pub(crate) use compact::Pass;
#[cfg(feature = "postgres")]
pub(crate) use create::Contents;
#[cfg(feature = "postgres")]
pub(crate) use format::frame::max_encoded_len_of as check_commit_len;
pub(crate) use format::frame::{Change, Content, StoreKey};
#[cfg(feature = "postgres")]
pub(crate) use format::record::{decode as decode_record, encode as encode_record, state_code};
pub use open::OpenReport;
pub(crate) use page::Page;
pub(crate) use runs::Load;
pub use salvage::{LostRange, RangeEnd, SalvageReport};
use verify::Problems;
pub use verify::VerifyReport;

use crate::sync::group_commit::CommitQueue;
pub(crate) use crate::sync::group_commit::Priority;
use crate::types::clock::{NEVER, StoreClock};
use crate::types::error::{self, Error, ErrorKind, Result};
#[cfg(feature = "postgres")]
use crate::types::options::EngineOptions;
use crate::types::record::{EffectSeeds, Now, StoredRecord};
use crate::types::stats::{Counter, Stats};
use crate::types::telemetry::{self, Work};
use apply::Message;
use journal::{JournalStats, Pool, Spare};
pub(crate) use read_sets::ReadSet;
use read_sets::ReadSets;
use record_cache::RecordCache;
pub(crate) use runs::flush::Deleted;
use runs::flush::Shared;
use sled::disk_space::{DiskSpace, LARGE_COMMIT, SpaceStatus};
use threads::{Apply, Running};
pub(crate) use versions::ReadVersion;
use versions::Versions;

/// An open store. Its drop closes it.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Arc<Inner>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    store_id: [u8; 16],
    pid: u32,
    /// True if the store is open read-only.
    read_only: bool,
    eventual: bool,
    /// The number of the first frame of this open.
    first: u64,
    /// The store time of this open.
    opened: u64,
    effect_seeds: EffectSeeds,
    clock: StoreClock,
    /// With a flag for each frame: true if the frame changes anything.
    commit_queue: CommitQueue<bool, Spare>,
    versions: Versions,
    read_sets: Arc<ReadSets>,
    record_cache: RecordCache,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    disk_space: DiskSpace,
    /// The reason why the close left commits in the journal only, if it did.
    left_behind: Mutex<Option<Error>>,
    apply: Apply,
    journal: Arc<JournalStats>,
    commits: Counter,
    conflicts: Counter,
    checkpoints: Arc<Counter>,
}

/// The content of a key, with the version to check at a commit.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) content: Option<Content>,
    pub(crate) seen: ReadVersion,
    /// The group to wait for before the content may be returned to a caller.
    pub(crate) ticket: Ticket,
}

impl Read {
    pub(crate) fn record(&self) -> Option<&Arc<StoredRecord>> {
        self.content.as_ref().and_then(Content::record)
    }

    /// Returns the store time at which the record expires. Returns [`NEVER`] if it never does, or already has.
    pub(crate) fn next_expiry(&self, now: &Now) -> u64 {
        self.record().map(|stored| stored.expires_at(now)).filter(|expires| *expires > now.store).unwrap_or(NEVER)
    }
}

/// The keys that a listing returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Index {
    /// The keys of all records and rows.
    All,
    /// The keys of records that are in progress, released or interrupted. May include the key of a record that was so
    /// until recently.
    Unfinished,
}

impl Store {
    /// Returns the content of a key. `load` selects whether the outcome is read too.
    pub(crate) fn read(&self, key: &StoreKey, load: Load) -> Result<Read> {
        self.inner.check()?;
        self.inner.read(key, load)
    }

    /// Returns the version of a key. A commit with this version is refused if the key changes before the commit.
    pub(crate) fn version(&self, key: &StoreKey) -> Result<ReadVersion> {
        self.inner.check()?;
        Ok(self.inner.versions.look(self.inner.shared.memtable.hash(key.bytes())))
    }

    /// Commits all changes or none. Returns `None` if something that was read has changed. The caller waits for the
    /// ticket.
    pub(crate) fn commit<'a, C: AsMut<[Change]>>(
        &self,
        mut changes: C,
        reads: &[ReadVersion],
        options: impl Into<CommitOptions<'a>>,
    ) -> Result<Option<Committed<C>>> {
        // Each read in `reads` has made this check. The process cannot have forked since, because the reads and the
        // commit are in one call.
        if reads.is_empty() {
            self.inner.check()?;
        }
        let ticket = self.inner.commit(changes.as_mut(), reads, &options.into())?;
        Ok(ticket.map(|ticket| Committed { ticket, changes }))
    }

    /// Returns `ReadOnly` if nothing may be changed.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.inner.check_writable()
    }

    /// Returns an empty read set, for a run of a transaction.
    pub(crate) fn read_set(&self) -> ReadSet {
        ReadSet::new(&self.inner.read_sets)
    }

    /// Returns a number that spreads keys evenly and that clients cannot predict.
    pub(crate) fn spread(&self, key: &[u8]) -> usize {
        self.inner.shared.memtable.hash(key).number()
    }

    /// Waits until the commit with this ticket survives a power cut. Returns at once under `Eventual`.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<()> {
        if self.inner.eventual { self.inner.commit_queue.check() } else { self.inner.commit_queue.wait(ticket.0) }
    }

    /// Waits until everything committed so far is durable, also under `Eventual`.
    pub(crate) fn sync(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.commit_queue.wait(self.inner.commit_queue.newest())
    }

    /// Returns the keys at or after `from` and before `end` in order, and where to continue. The caller reads each key
    /// by itself, so a listing is not a snapshot.
    pub(crate) fn keys(
        &self,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<(Vec<StoreKey>, Option<StoreKey>)> {
        self.inner.check()?;
        let shared = &self.inner.shared;
        // The memtable first: keys that are flushed in between are then in both, not missed.
        let mut keys = match index {
            Index::All => shared.memtable.keys(from, end, limit),
            Index::Unfinished => shared.memtable.unfinished(from, end, limit),
        };
        match index {
            Index::All => keys.extend(shared.runs.keys(&shared.tables, from, end, limit)?),
            Index::Unfinished => keys.extend(shared.unfinished.keys(from, end, limit)),
        }
        // Check after the lookups, for the reason that `Inner::read` gives.
        shared.tables.check_open()?;
        keys.sort();
        keys.dedup();
        // Each side returned at most `limit` keys. After the first `limit` of both together, one side may have more
        // keys that were not read.
        keys.truncate(limit);
        let next = if keys.len() < limit { None } else { keys.last().map(StoreKey::successor) };
        Ok((keys, next))
    }

    /// Returns the records at or after `from` and before `end` in order, without their outcomes. Reads `limit` keys, of
    /// which some may have no record. Not a snapshot.
    pub(crate) fn records(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Result<Page> {
        self.inner.check()?;
        self.inner.shared.records(from, end, limit)
    }

    /// Waits until everything committed so far is in a run.
    pub(crate) fn drain(&self) -> Result<()> {
        self.inner.check()?;
        self.check_writable()?;
        self.inner.look_for_space();
        let group = self.inner.commit_queue.newest();
        self.inner.send(Message::Flush { group })?;
        self.inner.commit_queue.wait_applied(group)
    }

    /// Keeps the segments of the journal from being freed until the result is dropped.
    #[cfg(test)]
    pub(crate) fn pin_segments(&self) -> impl Sized + use<'_> {
        self.inner.pool.pin()
    }

    #[cfg(test)]
    pub(crate) fn verify(&self) -> Result<VerifyReport> {
        self.verify_while(&|| Ok(()))
    }

    /// Checks everything that is stored, while other calls continue. Calls `goes_on` between steps, and stops with its
    /// error.
    pub(crate) fn verify_while(&self, goes_on: &dyn Fn() -> Result<()>) -> Result<VerifyReport> {
        self.inner.check()?;
        let mut problems = Problems::default();
        {
            let pin = self.inner.pool.pin();
            let durable = self.inner.commit_queue.durable();
            for problem in journal::check(self.inner.pool.dir(), durable, pin.released)? {
                problems.add(problem);
            }
        }
        verify::verify(&self.inner.shared, problems, &|| self.inner.check().and_then(|()| goes_on()))
    }

    pub(crate) fn now(&self) -> Now {
        self.inner.now()
    }

    /// Builds a store with these contents in a directory that is empty or does not exist. After an error there is no
    /// store.
    #[cfg(feature = "postgres")]
    pub(crate) fn create(
        into: &Path,
        options: &EngineOptions,
        id: [u8; 16],
        contents: &mut dyn Contents,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let into = std::path::absolute(into).map_err(|cause| Error::io("create store", into, &cause))?;
        create::create(&into, options, id, contents, progress)
    }

    /// Returns the id of the store, which never changes.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.inner.store_id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Calls `f` once with the first error, with no lock held, when the store is poisoned.
    pub(crate) fn on_poison(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        self.inner.commit_queue.on_poison(f);
    }

    pub(crate) fn stats(&self) -> Stats {
        let inner = &self.inner;
        Stats {
            commits: inner.commits.get(),
            conflicts: inner.conflicts.get(),
            groups: inner.journal.groups.get(),
            syncs: inner.journal.syncs.get(),
            journal_bytes: inner.journal.bytes.get(),
            sync_waits: inner.commit_queue.waits.get(),
            segments: inner.pool.files(),
            unapplied_bytes: inner.commit_queue.unapplied(),
            store_checkpoints: inner.checkpoints.get(),
            sled_sync_flag: inner.shared.tables.barriers.sync_flag,
            ..Stats::default()
        }
    }

    /// True in a child of `fork`. The child has none of the threads, and a lock may be held for ever by a thread that
    /// it does not have.
    pub(crate) fn is_forked(&self) -> bool {
        self.inner.is_forked()
    }

    /// Waits for accepted commits, refuses further ones, and unlocks the directory. Later calls only wait for the first
    /// one.
    pub(crate) fn close(&self) -> Result<()> {
        if self.is_forked() {
            // The parent owns the threads and the directory, so there is nothing to end. A thread of the parent may
            // have held this lock.
            if let Some(mut running) = self.running.try_lock() {
                std::mem::forget(running.take());
            }
            return Ok(());
        }
        // Held until the directory is unlocked: a second call of `close` must not return earlier.
        let mut running = self.running.lock();
        running.take().map_or(Ok(()), |running| {
            let _working = telemetry::enter(Work::Close, &self.inner.path);
            running.close(&self.inner)
        })
    }
}

#[cfg(feature = "test-util")]
impl Store {
    /// Unlocks the directory, and leaves the state that the death of the process would: contents that are only in
    /// memory are lost.
    pub(crate) fn crash(&self) {
        // Poison first, so that the threads end without another write.
        self.inner.commit_queue.poison(Error::closed());
        let _ = self.close();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A caller that needs the error calls `close`.
        error::handled(|| drop(self.close()));
    }
}

impl Inner {
    fn now(&self) -> Now {
        let (store, wall) = (self.clock.now(), self.clock.wall());
        Now { store, wall, first: self.first, opened: self.opened, effect_seed: self.effect_seeds.draw() }
    }

    fn is_forked(&self) -> bool {
        #[cfg(test)]
        tests::PID_CHECKS.set(tests::PID_CHECKS.get() + 1);
        std::process::id() != self.pid
    }

    /// Refuses every call in a child of `fork`: it has none of the threads, and shares the lock.
    fn check(&self) -> Result<()> {
        if self.is_forked() {
            let message = format!("the store {} was opened by the parent of this process", self.path.display());
            return Err(Error::new(ErrorKind::StoreInUse, message));
        }
        self.commit_queue.check()
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only {
            let message = format!("the store {} is open read-only", self.path.display());
            return Err(Error::new(ErrorKind::ReadOnly, message));
        }
        Ok(())
    }

    fn read(&self, key: &StoreKey, load: Load) -> Result<Read> {
        // Note the version before reading: a commit moves the counter when it puts the content into the memtable.
        let hash = self.shared.memtable.hash(key.bytes());
        let seen = self.versions.look(hash);
        if let Some(entry) = self.shared.memtable.get(hash, key) {
            return Ok(Read { content: entry.content, seen, ticket: Ticket(entry.ticket) });
        }
        let content = self.read_runs(key, seen, load)?;
        // Check after the lookups: a close clears the memtable after it has closed sled, so a key that was not found
        // may exist, and another process may have changed one that was.
        self.shared.tables.check_open()?;
        Ok(Read { content, seen, ticket: Ticket(0) })
    }

    /// Returns the content of a key that is not in the memtable.
    fn read_runs(&self, key: &StoreKey, seen: ReadVersion, load: Load) -> Result<Option<Content>> {
        if let Some(record) = self.record_cache.get(key, seen) {
            return Ok(Some(Content::Record(record)));
        }
        let content = self.shared.runs.read(&self.shared.tables, key, load)?;
        if let Some(record) = content.as_ref().and_then(Content::record).filter(|record| record.outcome.is_some()) {
            self.record_cache.insert(key, seen, record);
        }
        Ok(content)
    }

    /// Looks for space after a stall. The system does not notify when a full disk has space again, so each caller
    /// looks.
    fn look_for_space(&self) {
        if self.commit_queue.is_stalled() {
            // The callers whose commits are refused get the error instead.
            error::handled(|| {
                if let SpaceStatus::Enough = self.disk_space.claim(self.disk_space.waited_for()) {
                    self.commit_queue.resume();
                }
            });
            // Wake the apply thread also if users stay refused: it can continue with less space than they need.
            self.disk_space.wake();
        }
    }

    /// Returns `Full` if a commit of this many bytes is large and could not be applied. Smaller commits find out when
    /// the apply thread claims space for them.
    fn check_large_commit(&self, len: usize, priority: Priority) -> Result<()> {
        let len = len as u64;
        if len < LARGE_COMMIT || priority == Priority::GivingUp {
            return Ok(());
        }
        self.disk_space.check_large_commit(len, self.commit_queue.unapplied().saturating_add(len))
    }

    /// Returns the error if there is no space to give sled this many bytes. Stalls users' commits if space is low.
    /// Called by the apply thread.
    fn short(&self, bytes: u64) -> Option<Error> {
        let status = self.disk_space.claim(bytes);
        self.disk_space.wait_for(if matches!(status, SpaceStatus::Short(_)) { bytes } else { 0 });
        match status {
            SpaceStatus::Enough => {
                if self.commit_queue.is_stalled() {
                    self.commit_queue.resume();
                }
                None
            }
            SpaceStatus::Low(why) => {
                self.commit_queue.stall(why, false);
                None
            }
            SpaceStatus::Short(why) => {
                self.commit_queue.stall(why.clone(), true);
                Some(why)
            }
        }
    }

    /// Returns the error to report when the apply thread has ended.
    fn ended(&self) -> Error {
        self.commit_queue.check().err().unwrap_or_else(Error::closed)
    }
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
pub(crate) mod tests;
