//! The wrapper of sled. Only one thread writes. Only the parts of sled that work well are used.
//!
//! sled's flush is not durable on Linux, its transactions lock the whole process, a kill during an open can make a
//! store unusable by its snapshots, and some calls panic. So each flush is followed by a real sync, transactions are
//! not used, torn snapshots are removed before an open, and every call is guarded.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::sled::{Db, IVec, Tree};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::store::files;
use crate::store::format::list::{self, RunList};
use crate::store::format::{block, corrupt};
use crate::store::sled::blobs::Blobs;
use crate::store::sled::open_on_copy;
use crate::store::sled::snapshots;
use crate::store::sled::write_barrier::{Share, WriteBarrier};
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

/// The number of blocks between two flushes, about 256 KiB. With much more under way, sled's threads were seen to
/// deadlock, and unwritten data piles up in memory.
const FLUSH_BLOCKS: usize = 64;
/// The number of blocks whose keys are written first, with empty values. sled then splits its leaves while they are
/// small, and writes a third of the bytes that it otherwise would.
const KEYS_FIRST: usize = 1 << 10;

#[derive(Debug)]
pub(crate) struct Tables {
    dir: PathBuf,
    /// `None` once closed.
    trees: RwLock<Option<Trees>>,
    pub(crate) barriers: WriteBarrier,
    pub(crate) blobs: Blobs,
    /// While a test holds it, every flush waits.
    #[cfg(test)]
    pub(crate) flush_gate: Mutex<()>,
    /// The number of writes that succeed before all writes fail.
    #[cfg(test)]
    pub(crate) writes_left: AtomicU64,
}

#[derive(Debug)]
struct Trees {
    db: Db,
    file: Arc<File>,
    meta: Tree,
    blocks: Tree,
    /// Dropped after sled, by the order of these fields.
    _share: Share,
}

/// A block and its key.
pub(crate) type Keyed = ([u8; 12], Vec<u8>);

impl Tables {
    /// Opens the existing files. Creates missing ones only if `create` is true.
    pub(crate) fn open(dir: &Path, cache_capacity: u64, sync_flag: bool, create: bool) -> Result<Self> {
        open_on_copy::settle(dir)?;
        if create {
            files::create_dir(dir)?;
        } else if !dir.join("db").is_file() || !dir.join("conf").is_file() {
            return Err(corrupt(format!("the record store {} is missing", dir.display())));
        }
        snapshots::settle(dir)?;
        // Set the flag before sled creates its files, so that they inherit it. Files on btrfs do not inherit it, so it
        // is set again below.
        let flagged = sync_flag && files::set_sync_flag(dir);
        // Take the share before sled is opened, because an open writes.
        let share = Share::take();
        let open = |dir: &Path| open_db(dir, cache_capacity);
        let copied = if flagged || create { None } else { open_on_copy::open(dir, open)? };
        let opened = copied.map_or_else(|| open(dir), Ok)?;
        let db = opened.0.clone().ok_or_else(Error::closed)?;
        files::make_private(dir)?;
        // Make the name of the new snapshot durable before anything else is synced: from here on the log may need it.
        files::sync_dir(dir)?;
        let file = dir.join("db");
        let (blobs, flagged) = Blobs::open(dir, flagged && files::set_sync_flag(&file))?;
        let file = File::open(&file).map_err(|cause| Error::io("open", &file, &cause))?;
        let tree = |name: &str| guard(dir, || db.open_tree(name));
        let (meta, blocks) = (tree("meta")?, tree("blocks")?);
        let trees = Trees { meta, blocks, file: Arc::new(file), db, _share: share };
        Ok(Self {
            dir: dir.to_owned(),
            blobs,
            trees: RwLock::new(Some(trees)),
            barriers: WriteBarrier::new(flagged),
            #[cfg(test)]
            flush_gate: Mutex::new(()),
            #[cfg(test)]
            writes_left: AtomicU64::new(u64::MAX),
        })
    }

    /// Returns `Closed` after a close.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.trees.read().is_some() { Ok(()) } else { Err(Error::closed()) }
    }

    pub(crate) fn block(&self, key: &[u8]) -> Result<Option<IVec>> {
        self.with_trees(|trees| trees.blocks.get(key))
    }

    /// Writes blocks that have no reader yet, and makes them durable.
    pub(crate) fn write(&self, blocks: &[Keyed]) -> Result<()> {
        for blocks in blocks.chunks(KEYS_FIRST) {
            for (key, _) in blocks {
                self.insert(key, &[])?;
            }
            for blocks in blocks.chunks(FLUSH_BLOCKS) {
                for (key, bytes) in blocks {
                    self.insert(key, bytes)?;
                }
                self.flush()?;
            }
        }
        Ok(())
    }

    pub(crate) fn insert(&self, key: &[u8], bytes: &[u8]) -> Result<()> {
        let turn = self.turn(key.len() + bytes.len())?;
        let old = self.with_trees(|trees| trees.blocks.insert(key, bytes))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(turn);
        self.changed()
    }

    pub(crate) fn remove(&self, key: &[u8]) -> Result<()> {
        let turn = self.turn(key.len())?;
        let old = self.with_trees(|trees| trees.blocks.remove(key))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(turn);
        self.changed()
    }

    /// Returns the numbers of all runs that have a block in sled.
    pub(crate) fn run_ids(&self) -> Result<Vec<u64>> {
        let mut ids: Vec<u64> = Vec::new();
        let mut from = block::key(0, 0);
        while let Some(key) = self.with_trees(|trees| trees.blocks.range(from..).keys().next().transpose())? {
            let id = block::run_of(&key);
            ids.push(id);
            let Some(next) = id.checked_add(1) else { break };
            from = block::key(next, 0);
        }
        Ok(ids)
    }

    /// Returns the keys of the first blocks of a run in sled, at most `limit`.
    pub(crate) fn blocks_of(&self, run: u64, limit: usize) -> Result<Vec<IVec>> {
        let (from, end) = (block::key(run, 0), block::key(run.saturating_add(1), 0));
        self.with_trees(|trees| trees.blocks.range(from..end).keys().take(limit).collect())
    }

    pub(crate) fn list(&self) -> Result<Option<RunList>> {
        let bytes = self.with_trees(|trees| trees.meta.get(list::KEY))?;
        bytes.map(|bytes| RunList::decode(&bytes)).transpose()
    }

    /// Replaces the list, durably. The runs in it must be durable before.
    pub(crate) fn set_list(&self, list: &RunList) -> Result<()> {
        let bytes = list.encode()?;
        let turn = self.turn(bytes.len())?;
        let old = self.with_trees(|trees| trees.meta.insert(list::KEY, bytes))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(turn);
        self.flush()
    }

    /// Returns a guard to hold during a change.
    #[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "for tests"))]
    fn turn(&self, bytes: usize) -> Result<Option<MutexGuard<'_, ()>>> {
        #[cfg(test)]
        if self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(Error::new(ErrorKind::Io, "a test makes this write fail"));
        }
        Ok(self.barriers.change(bytes))
    }

    /// Makes a barrier or a flush if one is due. Called after each change.
    fn changed(&self) -> Result<()> {
        if self.barriers.is_due() {
            return self.flush();
        }
        if self.barriers.is_flush_due() {
            return if self.barriers.sync_flag { self.write_out() } else { self.flush() };
        }
        Ok(())
    }

    /// Makes sled write everything that it was given. This does not sync.
    fn write_out(&self) -> Result<()> {
        let under_way = self.barriers.under_way();
        self.with_trees(|trees| trees.db.flush())?;
        self.barriers.flushed(under_way);
        Ok(())
    }

    /// Makes everything written so far durable.
    pub(crate) fn flush(&self) -> Result<()> {
        #[cfg(test)]
        let _gate = self.flush_gate.lock();
        let _alone = self.barriers.alone();
        self.write_out()?;
        let trees = self.trees.read();
        let trees = trees.as_ref().ok_or_else(Error::closed)?;
        trees.file.sync_data().map_err(|cause| Error::io("sync", &self.dir.join("db"), &cause))?;
        self.barriers.done();
        Ok(())
    }

    /// Closes sled. Its drop syncs, and panics if that fails.
    pub(crate) fn close(&self) -> Result<()> {
        let Some(trees) = self.trees.write().take() else { return Ok(()) };
        let file = Arc::clone(&trees.file);
        catch_unwind(AssertUnwindSafe(|| drop(trees)))
            .map_err(|_| Error::new(ErrorKind::Io, format!("close {}: sled panicked", self.dir.display())))?;
        wait_until_unlocked(&file, &self.dir)
    }

    /// Returns an error if there is a file that sled never syncs. Called before the journal frees any segment.
    pub(crate) fn check_blobs(&self) -> Result<()> {
        let blobs = self.blobs.unsynced()?;
        if blobs == 0 {
            return Ok(());
        }
        let dir = self.dir.display();
        let message =
            format!("the record store {dir} has {blobs} values in files of their own, which are never synced");
        Err(Error::new(ErrorKind::Corrupt, message))
    }

    fn with_trees<R>(&self, f: impl FnOnce(&Trees) -> ::sled::Result<R>) -> Result<R> {
        let trees = self.trees.read();
        let trees = trees.as_ref().ok_or_else(Error::closed)?;
        guard(&self.dir, || f(trees))
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // sled is still open here only after a failed open, which returns its own error.
        let _ = self.close();
    }
}

/// Runs a call into sled. Turns a panic into an error.
fn guard<R>(dir: &Path, f: impl FnOnce() -> ::sled::Result<R>) -> Result<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|cause| convert(dir, &cause)),
        Err(_) => Err(corrupt(format!("sled panicked in {}", dir.display()))),
    }
}

fn convert(dir: &Path, cause: &::sled::Error) -> Error {
    match cause {
        ::sled::Error::Io(cause) => Error::io("access record store", dir, cause),
        cause => corrupt(format!("the record store {} is damaged: {cause}", dir.display())),
    }
}

/// Opens sled with three quarters of this capacity. sled counts its pages by their size on disk, and in memory they
/// were seen to take about a third more.
fn open_db(dir: &Path, cache_capacity: u64) -> Result<open_on_copy::Opened> {
    let path = dir.join("db");
    if path.exists() {
        let file = File::open(&path).map_err(|cause| Error::io("open", &path, &cause))?;
        wait_until_unlocked(&file, dir)?;
    }
    let counted = cache_capacity / 4 * 3;
    let config = ::sled::Config::new().path(dir).cache_capacity(counted).flush_every_ms(None);
    guard(dir, || config.open()).map(|db| open_on_copy::Opened(Some(db)))
}

/// Waits until sled's threads have unlocked the file, a moment after the last handle is dropped. sled does not notify,
/// so this is the only place that polls. The store's own lock is held, so the owner can only be this process.
fn wait_until_unlocked(db: &File, dir: &Path) -> Result<()> {
    let until = clock::deadline(Duration::from_secs(2));
    let (mutex, never) = (Mutex::new(()), Condvar::new());
    while !files::try_lock(db).map_err(|cause| Error::io("lock", &dir.join("db"), &cause))? {
        if until.is_none_or(|until| clock::monotonic() >= until) {
            let message = format!("the record store {} is open already, in this process or another", dir.display());
            return Err(Error::new(ErrorKind::StoreInUse, message));
        }
        never.wait_for(&mut mutex.lock(), Duration::from_millis(1));
    }
    files::unlock(db);
    Ok(())
}
