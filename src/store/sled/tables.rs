//! sled, behind a wall: opened hardened, written by one thread, asked only for what it does well.
//!
//! sled's flush is not durable on Linux, its transactions lock the whole process, its snapshots can brick a store when a
//! process is killed while it opens, and it panics here and there. So: no flush without a real sync, no transactions, torn
//! snapshots removed before opening, and every call guarded.

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

/// Blocks written between two flushes, about 256 KiB: with much more under way, sled's threads were seen to wait for each other
/// for ever, and what they have not written yet piles up in memory.
const FLUSH_BLOCKS: usize = 64;
/// Of this many blocks the keys are written first, with empty values: then sled splits its leaves while they are small, and writes a
/// third of what it would write.
const KEYS_FIRST: usize = 1 << 10;

#[derive(Debug)]
pub(crate) struct Tables {
    dir: PathBuf,
    /// `None` once closed.
    trees: RwLock<Option<Trees>>,
    pub(crate) barriers: WriteBarrier,
    pub(crate) blobs: Blobs,
    /// Whoever holds it keeps every flush waiting.
    #[cfg(test)]
    pub(crate) flush_gate: Mutex<()>,
    /// So many writes succeed, the others fail.
    #[cfg(test)]
    pub(crate) writes_left: AtomicU64,
}

#[derive(Debug)]
struct Trees {
    db: Db,
    file: Arc<File>,
    meta: Tree,
    blocks: Tree,
    /// Given back after sled is gone: the order of these fields.
    _share: Share,
}

/// A block and its key.
pub(crate) type Keyed = ([u8; 12], Vec<u8>);

impl Tables {
    /// Opens what is there, or, if `create`, what is not.
    pub(crate) fn open(dir: &Path, cache_capacity: u64, sync_flag: bool, create: bool) -> Result<Self> {
        open_on_copy::settle(dir)?;
        if create {
            files::create_dir(dir)?;
        } else if !dir.join("db").is_file() || !dir.join("conf").is_file() {
            return Err(corrupt(format!("the record store {} is missing", dir.display())));
        }
        snapshots::settle(dir)?;
        // Before sled makes its files, so that they inherit the flag; btrfs does not inherit, hence again behind it.
        let flagged = sync_flag && files::set_sync_flag(dir);
        // Before sled is opened, which writes.
        let share = Share::take();
        let open = |dir: &Path| open_db(dir, cache_capacity);
        let copied = if flagged || create { None } else { open_on_copy::open(dir, open)? };
        let opened = copied.map_or_else(|| open(dir), Ok)?;
        let db = opened.0.clone().ok_or_else(Error::closed)?;
        files::make_private(dir)?;
        // Its new snapshot's name, before anything else is synced: the log may need it from here on.
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

    /// An error once closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.trees.read().is_some() { Ok(()) } else { Err(Error::closed()) }
    }

    pub(crate) fn block(&self, key: &[u8]) -> Result<Option<IVec>> {
        self.with_trees(|trees| trees.blocks.get(key))
    }

    /// Writes blocks that nobody reads yet, and makes them durable.
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

    /// The numbers of all runs of which sled has a block.
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

    /// The first blocks of a run that sled has, up to this many.
    pub(crate) fn blocks_of(&self, run: u64, limit: usize) -> Result<Vec<IVec>> {
        let (from, end) = (block::key(run, 0), block::key(run.saturating_add(1), 0));
        self.with_trees(|trees| trees.blocks.range(from..end).keys().take(limit).collect())
    }

    pub(crate) fn list(&self) -> Result<Option<RunList>> {
        let bytes = self.with_trees(|trees| trees.meta.get(list::KEY))?;
        bytes.map(|bytes| RunList::decode(&bytes)).transpose()
    }

    /// Replaces the list, durably. What it lists must be durable before.
    pub(crate) fn set_list(&self, list: &RunList) -> Result<()> {
        let bytes = list.encode()?;
        let turn = self.turn(bytes.len())?;
        let old = self.with_trees(|trees| trees.meta.insert(list::KEY, bytes))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(turn);
        self.flush()
    }

    /// To be held by whoever changes something, until it is done.
    #[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "for tests"))]
    fn turn(&self, bytes: usize) -> Result<Option<MutexGuard<'_, ()>>> {
        #[cfg(test)]
        if self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(Error::new(ErrorKind::Io, "this write was to fail"));
        }
        Ok(self.barriers.change(bytes))
    }

    /// To be called after each change: a flush is due now and then, and a barrier where the file system does not sync by itself.
    fn changed(&self) -> Result<()> {
        if self.barriers.is_due() {
            return self.flush();
        }
        if self.barriers.is_flush_due() {
            return if self.barriers.sync_flag { self.write_out() } else { self.flush() };
        }
        Ok(())
    }

    /// Has sled write everything that it was given so far.
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

    /// Lets go of sled. Its own drop syncs, and panics when that fails.
    pub(crate) fn close(&self) -> Result<()> {
        let Some(trees) = self.trees.write().take() else { return Ok(()) };
        let file = Arc::clone(&trees.file);
        catch_unwind(AssertUnwindSafe(|| drop(trees)))
            .map_err(|_| Error::new(ErrorKind::Io, format!("close {}: sled panicked", self.dir.display())))?;
        wait_until_unlocked(&file, &self.dir)
    }

    /// There must be no files that sled never syncs, before the journal gives anything up.
    pub(crate) fn check_blobs(&self) -> Result<()> {
        let blobs = self.blobs.unsynced()?;
        if blobs == 0 {
            return Ok(());
        }
        let dir = self.dir.display();
        let message = format!("the record store {dir} has {blobs} values in files of their own, which nobody syncs");
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
        // After an open that failed: there is nobody to tell.
        let _ = self.close();
    }
}

/// A panic inside sled is an error outside.
fn guard<R>(dir: &Path, f: impl FnOnce() -> ::sled::Result<R>) -> Result<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|cause| convert(dir, &cause)),
        Err(_) => Err(corrupt(format!("sled panicked over {}", dir.display()))),
    }
}

fn convert(dir: &Path, cause: &::sled::Error) -> Error {
    match cause {
        ::sled::Error::Io(cause) => Error::io("access record store", dir, cause),
        cause => corrupt(format!("the record store {} is damaged: {cause}", dir.display())),
    }
}

/// sled counts its pages as they are on disk; in memory they were seen to take about four thirds of that.
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

/// sled's threads let go of its lock a moment after the last handle is gone, and nothing tells when: the one place where
/// something is tried again and again. The store's own lock is held, so only this process can be meant.
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
