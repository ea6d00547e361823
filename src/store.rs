//! Keeps records: durable before anyone is told, read back as they were.
//!
//! A commit goes into the journal's next group and into the memtable, under one short lock; its caller waits for the group's
//! sync. Now and then one thread flushes what is durable: sorted, as one run of blocks, into sled. Reads look into the memtable
//! first and into the runs second; a flush publishes the run first and removes from the memtable second, so a read cannot miss
//! both, and what it finds in a run is durable.
//!
//! No call to sled is made under the lock. A fixed table of version stripes stands for all keys: a read notes its key's
//! stripe first, a commit moves the stripe of each key it writes, and is refused if one that it read has moved. What a
//! transaction reads is in its read set: a commit marks each set that has one of its keys, and is refused if its own is marked.

mod apply;
mod backup;
mod checkpoint;
mod commit;
mod compact;
mod files;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod memtable;
mod open;
mod read_sets;
mod runs;
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
pub(crate) use format::frame::{Change, Content, StoreKey};
pub use open::OpenReport;
pub(crate) use runs::Load;
use verify::Problems;
pub use verify::VerifyReport;

use crate::sync::group_commit::CommitQueue;
pub(crate) use crate::sync::group_commit::Priority;
use crate::types::clock::{NEVER, StoreClock};
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::record::{EffectSeeds, Now, StoredRecord};
use crate::types::stats::{Counter, Stats};
use crate::types::telemetry::{self, Work};
use apply::Message;
use journal::{JournalStats, Pool, Spare};
pub(crate) use read_sets::ReadSet;
use read_sets::ReadSets;
pub(crate) use runs::flush::Deleted;
use runs::flush::Shared;
use sled::disk_space::{DiskSpace, SpaceStatus};
use threads::{Apply, Running};
pub(crate) use versions::ReadVersion;
use versions::Versions;

/// An open store. Dropped, it closes.
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
    eventual: bool,
    first: u64,
    opened: u64,
    effect_seeds: EffectSeeds,
    clock: StoreClock,
    /// With each frame goes whether it changes anything.
    commit_queue: CommitQueue<bool, Spare>,
    versions: Versions,
    read_sets: Arc<ReadSets>,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    disk_space: DiskSpace,
    /// Why sled was left behind the journal when the store was closed, if it was.
    left_behind: Mutex<Option<Error>>,
    apply: Apply,
    journal: Arc<JournalStats>,
    commits: Counter,
    conflicts: Counter,
    checkpoints: Arc<Counter>,
}

/// What a key held, and what to show for it at the commit.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) content: Option<Content>,
    pub(crate) seen: ReadVersion,
    /// To be waited for before anyone is told of the content.
    pub(crate) ticket: Ticket,
}

impl Read {
    pub(crate) fn record(&self) -> Option<&Arc<StoredRecord>> {
        self.content.as_ref().and_then(Content::record)
    }

    /// Store time at which the record that is there now is absent.
    pub(crate) fn lapses(&self, now: &Now) -> u64 {
        self.record().map(|stored| stored.expires_at(now)).filter(|expires| *expires > now.store).unwrap_or(NEVER)
    }
}

/// Which keys to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Index {
    /// All.
    All,
    /// Of records in progress, released or interrupted, and now and then one that was.
    Unfinished,
}

impl Store {
    /// What a key holds now. `Whole` also reads the outcome.
    pub(crate) fn read(&self, key: &StoreKey, load: Load) -> Result<Read> {
        self.inner.check()?;
        self.inner.read(key, load)
    }

    /// Commits all the changes or nothing; `None` if something that was read has changed. The caller waits for the ticket.
    pub(crate) fn commit<'a, C: AsMut<[Change]>>(
        &self,
        mut changes: C,
        reads: &[ReadVersion],
        options: impl Into<CommitOptions<'a>>,
    ) -> Result<Option<Committed<C>>> {
        self.inner.check()?;
        let ticket = self.inner.commit(changes.as_mut(), reads, &options.into())?;
        Ok(ticket.map(|ticket| Committed { ticket, changes }))
    }

    /// For a run of a transaction, which has read nothing yet.
    pub(crate) fn read_set(&self) -> ReadSet {
        ReadSet::new(&self.inner.read_sets)
    }

    /// A number that spreads keys evenly, and that nobody outside can foretell.
    pub(crate) fn spread(&self, key: &[u8]) -> usize {
        self.inner.versions.spread(key)
    }

    /// Waits until what has this ticket survives a power cut. Under `Eventual` it does not wait.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<()> {
        if self.inner.eventual { self.inner.commit_queue.check() } else { self.inner.commit_queue.wait(ticket.0) }
    }

    /// Waits until everything committed so far is durable, under `Eventual` too.
    pub(crate) fn sync(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.commit_queue.wait(self.inner.commit_queue.newest())
    }

    /// The keys at or after `from` and before `end`, in order, and where to go on. Each is to be read by itself: right at one
    /// moment per key, not a snapshot.
    pub(crate) fn keys(
        &self,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<(Vec<StoreKey>, Option<StoreKey>)> {
        self.inner.check()?;
        let shared = &self.inner.shared;
        // In this order: what is flushed meanwhile is in both.
        let mut keys = match index {
            Index::All => shared.memtable.keys(from, end, limit),
            Index::Unfinished => shared.memtable.unfinished(from, end, limit),
        };
        match index {
            Index::All => keys.extend(shared.runs.keys(&shared.tables, from, end, limit)?),
            Index::Unfinished => keys.extend(shared.unfinished.keys(from, end, limit)),
        }
        // As in `Inner::read`.
        shared.tables.check_open()?;
        keys.sort();
        keys.dedup();
        // Both sides were read this far at least.
        keys.truncate(limit);
        let next = if keys.len() < limit { None } else { keys.last().map(StoreKey::successor) };
        Ok((keys, next))
    }

    /// Waits until everything that is committed now is in a run.
    pub(crate) fn drain(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.look_for_room();
        let group = self.inner.commit_queue.newest();
        self.inner.send(Message::Flush { group })?;
        self.inner.commit_queue.wait_applied(group)
    }

    /// Reads everything, beside everything else that goes on.
    pub(crate) fn verify(&self) -> Result<VerifyReport> {
        self.inner.check()?;
        let mut problems = Problems::default();
        {
            let pin = self.inner.pool.pin();
            let durable = self.inner.commit_queue.durable();
            for problem in journal::check(self.inner.pool.dir(), durable, pin.released)? {
                problems.add(problem);
            }
        }
        verify::verify(&self.inner.shared, problems, &|| self.inner.check())
    }

    pub(crate) fn now(&self) -> Now {
        self.inner.now()
    }

    /// Unique to this store, for its whole life.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.inner.store_id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Called once, with no lock held, when the store can promise nothing any more.
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

    /// Whether this process is a child of the one that opened the store: none of the threads is here, and any lock may be held
    /// by one of them for ever.
    pub(crate) fn is_forked(&self) -> bool {
        std::process::id() != self.inner.pid
    }

    /// Waits for what was committed, lets no more in, and frees the directory. Once; later calls only wait for that.
    pub(crate) fn close(&self) -> Result<()> {
        if self.is_forked() {
            // There is nothing to end here, and nothing to free: the parent has it. A thread of the parent may have had the lock.
            if let Some(mut running) = self.running.try_lock() {
                std::mem::forget(running.take());
            }
            return Ok(());
        }
        // Held to the end: whoever closes too may rely on the directory being free then, and nobody else takes it.
        let mut running = self.running.lock();
        running.take().map_or(Ok(()), |running| {
            let _working = telemetry::enter(Work::Close, &self.inner.path);
            running.close(&self.inner)
        })
    }
}

#[cfg(feature = "test-util")]
impl Store {
    /// Frees the directory and leaves behind what the death of the process would: what is only in memory is lost.
    pub(crate) fn crash(&self) {
        // Nothing is written any more: the threads end where they are.
        self.inner.commit_queue.poison(Error::closed());
        let _ = self.close();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `close`.
        error::handled(|| drop(self.close()));
    }
}

impl Inner {
    fn now(&self) -> Now {
        let (store, wall) = (self.clock.now(), self.clock.wall());
        Now { store, wall, first: self.first, opened: self.opened, effect_seed: self.effect_seeds.draw() }
    }

    /// A child of `fork` has no threads of ours and shares the lock: it must not touch anything.
    fn check(&self) -> Result<()> {
        if std::process::id() != self.pid {
            let message = format!("the store {} was opened by the parent of this process", self.path.display());
            return Err(Error::new(ErrorKind::StoreInUse, message));
        }
        self.commit_queue.check()
    }

    fn read(&self, key: &StoreKey, load: Load) -> Result<Read> {
        // Before the content: a commit moves the stripe when it puts the content into the memtable.
        let seen = self.versions.look(key);
        if let Some(entry) = self.shared.memtable.get(key) {
            return Ok(Read { content: entry.content, seen, ticket: Ticket(entry.ticket) });
        }
        let content = self.shared.runs.read(&self.shared.tables, key, load)?;
        // Behind the look into memory, which a close clears when it has closed sled: what is not there then is not absent.
        self.shared.tables.check_open()?;
        Ok(Read { content, seen, ticket: Ticket(0) })
    }

    /// Nothing tells when there is room again on a disk that was full: whoever comes looks.
    fn look_for_room(&self) {
        if self.commit_queue.is_stalled() {
            // Why there is no room is told to those whose commit is refused.
            error::handled(|| {
                if let SpaceStatus::Enough = self.disk_space.claim(self.disk_space.waited_for()) {
                    self.commit_queue.resume();
                }
            });
            // It may go on with less than users need.
            self.disk_space.wake();
        }
    }

    /// For the apply thread: why so many bytes cannot be applied. Holds users back when it is about to be so.
    fn short(&self, bytes: u64) -> Option<Error> {
        let look = self.disk_space.claim(bytes);
        self.disk_space.wait_for(if matches!(look, SpaceStatus::Short(_)) { bytes } else { 0 });
        match look {
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

    /// Why the apply thread does not answer.
    fn ended(&self) -> Error {
        self.commit_queue.check().err().unwrap_or_else(Error::closed)
    }
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
mod tests;
