//! The wrapper of sled. One thread writes. Each flush is followed by a sync, transactions are not used, and each call
//! is guarded against panics: [`super`] lists the faults of sled.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::sled::{Db, IVec, Tree};
use crossbeam_channel::RecvTimeoutError;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::store::files;
use crate::store::format::block::{self, Place};
use crate::store::format::corrupt;
use crate::store::format::list::{self, RunInfo, RunList};
use crate::store::sled::blobs::Blobs;
use crate::store::sled::panics;
use crate::store::sled::raw::RawBlocks;
use crate::store::sled::write_barrier::{Share, WriteBarrier};
use crate::sync::give_way::GiveWay;
use crate::sync::worker::Worker;
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

/// The number of blocks between two flushes, about 256 KiB. With much more under way, sled's threads were seen to
/// deadlock, and unwritten data piles up in memory.
const FLUSH_BLOCKS: usize = 64;
/// The number of blocks whose keys are written first, with empty values. sled then splits its leaves while they are
/// small, and writes a third of the bytes that it otherwise would.
const KEYS_FIRST: usize = 1 << 10;

/// The longest wait for sled to end. After a failed write it may never end.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// In a store of up to this many blocks (8 MB), an open looks up every block in sled; in a larger one, only the
/// indexes.
const MAX_CHECKED: u64 = if cfg!(test) { 100 } else { 2_000 };

/// The options for opening sled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) cache_capacity: u64,
    /// True if the file system is asked to sync every write immediately.
    pub(crate) sync_flag: bool,
}

#[derive(Debug)]
pub(crate) struct Tables {
    dir: PathBuf,
    store_id: [u8; 16],
    /// `None` once closed.
    backend: RwLock<Option<Backend>>,
    pub(crate) barriers: WriteBarrier,
    /// For all work of the thread that writes.
    pub(crate) give_way: GiveWay,
    pub(crate) blobs: Blobs,
    /// While a test holds it, every flush waits.
    #[cfg(test)]
    pub(crate) flush_gate: Mutex<()>,
    /// While a test holds it, sled does not end.
    #[cfg(test)]
    pub(crate) close_gate: Arc<Mutex<()>>,
    /// The number of writes that succeed before all writes fail.
    #[cfg(test)]
    pub(crate) writes_left: AtomicU64,
}

#[derive(Debug)]
enum Backend {
    Sled(Trees),
    /// For a store that is only read.
    Raw(RawBlocks),
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
    /// Creates an empty sled, without a list. The caller makes it durable as a whole.
    pub(crate) fn create(dir: &Path, access: Access, store_id: &[u8; 16]) -> Result<Self> {
        files::create_dir(dir)?;
        let mut tables = Self::open(dir, access, store_id)?;
        tables.barriers = WriteBarrier::new(true);
        Ok(tables)
    }

    /// Wraps files that are read without sled.
    pub(super) fn raw(dir: &Path, store_id: &[u8; 16], blobs: Blobs, blocks: RawBlocks) -> Self {
        Self::new(dir, store_id, Backend::Raw(blocks), blobs, true)
    }

    /// Opens sled on files that are known to be whole, or on an empty directory.
    pub(super) fn open(dir: &Path, access: Access, store_id: &[u8; 16]) -> Result<Self> {
        let flagged = access.sync_flag && files::set_sync_flag(dir);
        // Take the share before sled is opened, because an open writes.
        let share = Share::take();
        let mut opened = open_db(dir, access.cache_capacity)?;
        files::make_private(dir)?;
        // Make the name of the new snapshot durable before anything else is synced: from here on the log may need it.
        files::sync_dir(dir)?;
        let file = dir.join("db");
        // On btrfs files do not inherit the flag.
        let (blobs, flagged) = Blobs::open(dir, flagged && files::set_sync_flag(&file))?;
        let file = File::open(&file).map_err(|cause| Error::io("open", &file, &cause))?;
        let tree = |name: &str| {
            let db = opened.db.as_ref().ok_or_else(Error::closed)?;
            guard(dir, || db.open_tree(name))
        };
        let (meta, blocks) = (tree("meta")?, tree("blocks")?);
        let db = opened.db.take().ok_or_else(Error::closed)?;
        let trees = Trees { meta, blocks, file: Arc::new(file), db, _share: share };
        Ok(Self::new(dir, store_id, Backend::Sled(trees), blobs, flagged))
    }

    fn new(dir: &Path, store_id: &[u8; 16], backend: Backend, blobs: Blobs, sync_flag: bool) -> Self {
        Self {
            dir: dir.to_owned(),
            store_id: *store_id,
            blobs,
            backend: RwLock::new(Some(backend)),
            barriers: WriteBarrier::new(sync_flag),
            give_way: GiveWay::default(),
            #[cfg(test)]
            flush_gate: Mutex::new(()),
            #[cfg(test)]
            close_gate: Arc::default(),
            #[cfg(test)]
            writes_left: AtomicU64::new(u64::MAX),
        }
    }

    /// Returns an error unless sled finds this list and the blocks of its runs. See [`MAX_CHECKED`].
    pub(super) fn check(&self, list: &RunList) -> Result<()> {
        let missing =
            |what: &dyn std::fmt::Display| corrupt(format!("{}: sled has lost {what}", self.dir.join("db").display()));
        let found = self.list()?;
        if found.is_none_or(|found| found.serial != list.serial) {
            return Err(missing(&Place::LIST));
        }
        let is_small = list.runs.iter().map(RunInfo::live_blocks).sum::<u64>() <= MAX_CHECKED;
        for run in &list.runs {
            let entries = if is_small { run.entry_blocks() } else { 0..0 };
            for number in entries.chain(run.index()) {
                let place = Place { run: run.id, number };
                let block = self.block(place)?.ok_or_else(|| missing(&place))?;
                block::find(&self.store_id, &block)
                    .filter(|found| found.place == place)
                    .ok_or_else(|| missing(&place))?;
            }
        }
        Ok(())
    }

    pub(crate) fn store_id(&self) -> &[u8; 16] {
        &self.store_id
    }

    /// Returns an error of kind `Closed` after a close.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.backend.read().is_some() { Ok(()) } else { Err(Error::closed()) }
    }

    pub(crate) fn block(&self, place: Place) -> Result<Option<IVec>> {
        match &*self.backend.read() {
            Some(Backend::Sled(trees)) => guard(&self.dir, || trees.blocks.get(block::key(place))),
            Some(Backend::Raw(blocks)) => blocks.read(place),
            None => Err(Error::closed()),
        }
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
        let guard = self.begin_change(key.len() + bytes.len())?;
        let old = self.with_trees(|trees| trees.blocks.insert(key, bytes))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(guard);
        self.changed()
    }

    pub(crate) fn remove(&self, key: &[u8]) -> Result<()> {
        let guard = self.begin_change(key.len())?;
        let old = self.with_trees(|trees| trees.blocks.remove(key))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(guard);
        self.changed()
    }

    /// Returns the numbers of all runs that have a block in sled.
    pub(crate) fn run_ids(&self) -> Result<Vec<u64>> {
        let mut ids: Vec<u64> = Vec::new();
        let mut from = block::key(Place { run: 0, number: 0 });
        while let Some(key) = self.with_trees(|trees| trees.blocks.range(from..).keys().next().transpose())? {
            let id = block::run_of(&key);
            ids.push(id);
            let Some(next) = id.checked_add(1) else { break };
            from = block::key(Place { run: next, number: 0 });
        }
        Ok(ids)
    }

    /// Returns the keys of the first of these blocks of a run in sled, at most `limit`.
    pub(crate) fn blocks_of(&self, run: u64, blocks: &Range<u32>, limit: usize) -> Result<Vec<IVec>> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let key = |number| block::key(Place { run, number });
        let (from, end) = (key(blocks.start), key(blocks.end));
        self.with_trees(|trees| trees.blocks.range(from..end).keys().take(limit).collect())
    }

    pub(crate) fn list(&self) -> Result<Option<RunList>> {
        let bytes = self.with_trees(|trees| trees.meta.get(list::KEY))?;
        bytes.map(|bytes| RunList::decode(&self.store_id, &bytes)).transpose()
    }

    /// Replaces the list, durably. The runs in it must be durable before.
    pub(crate) fn set_list(&self, list: &RunList) -> Result<()> {
        let bytes = list.encode()?;
        let guard = self.begin_change(bytes.len())?;
        let old = self.with_trees(|trees| trees.meta.insert(list::KEY, bytes))?;
        self.barriers.changed(old.map_or(0, |old| old.len()));
        drop(guard);
        self.flush()
    }

    /// Returns a guard to hold during a change.
    #[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "for tests"))]
    fn begin_change(&self, bytes: usize) -> Result<Option<MutexGuard<'_, ()>>> {
        self.give_way.between_steps();
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
        let backend = self.backend.read();
        let Some(Backend::Sled(trees)) = &*backend else { return Err(self.not_sled(backend.as_ref())) };
        trees.file.sync_data().map_err(|cause| Error::io("sync", &self.dir.join("db"), &cause))?;
        self.barriers.done();
        Ok(())
    }

    /// Closes as [`close`](Self::close) does, but waits at most `timeout`: after a failed write, sled's drop may wait
    /// for ever. The drop then goes on in a thread of its own, which keeps `kept` until sled is dropped.
    pub(crate) fn close_within(&self, timeout: Duration, kept: impl Send + 'static) -> Result<()> {
        let Some(backend) = self.backend.write().take() else { return Ok(()) };
        #[cfg(test)]
        let gate = Arc::clone(&self.close_gate);
        let close = move |dir: &Path| {
            #[cfg(test)]
            let _gate = gate.lock();
            let closed = drop_and_unlock(backend, dir);
            drop(kept);
            closed
        };
        end_within(&self.dir, timeout, close)
    }

    /// Closes sled. Its drop syncs, and panics if that fails.
    pub(crate) fn close(&self) -> Result<()> {
        self.backend.write().take().map_or(Ok(()), |backend| drop_and_unlock(backend, &self.dir))
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
        match &*self.backend.read() {
            Some(Backend::Sled(trees)) => guard(&self.dir, || f(trees)),
            other => Err(self.not_sled(other.as_ref())),
        }
    }

    /// Returns the reason why there is no sled to call.
    fn not_sled(&self, backend: Option<&Backend>) -> Error {
        match backend {
            Some(_) => Error::new(ErrorKind::ReadOnly, format!("the record store {} is only read", self.dir.display())),
            None => Error::closed(),
        }
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // sled is still open here only after an error, which is returned instead of this one.
        let _ = self.close_within(DROP_TIMEOUT, ());
    }
}

/// Runs a call into sled. Turns a panic into an error.
fn guard<R>(dir: &Path, f: impl FnOnce() -> ::sled::Result<R>) -> Result<R> {
    match panics::catch(f) {
        Some(result) => result.map_err(|cause| convert(dir, &cause)),
        None => Err(corrupt(format!("sled panicked over {}", dir.join("db").display()))),
    }
}

/// Ends sled in a thread of its own, and waits no longer than `timeout`.
fn end_within(dir: &Path, timeout: Duration, end: impl FnOnce(&Path) -> Result<()> + Send + 'static) -> Result<()> {
    let (ended, closed) = crossbeam_channel::bounded(1);
    let of_thread = dir.to_owned();
    let close = move || {
        // Ignore the result: the caller may not wait any more.
        let _ = ended.send(end(&of_thread));
    };
    let worker = Worker::spawn("oncekey-close", close, |_| ())?;
    match closed.recv_timeout(timeout) {
        Ok(closed) => closed,
        Err(RecvTimeoutError::Disconnected) => Err(panicked_at_close(dir)),
        Err(RecvTimeoutError::Timeout) => {
            std::mem::forget(worker);
            let message = format!("close {}: sled has not ended for {timeout:?}", dir.display());
            Err(Error::new(ErrorKind::Poisoned, message))
        }
    }
}

fn drop_and_unlock(backend: Backend, dir: &Path) -> Result<()> {
    let Backend::Sled(trees) = backend else { return Ok(()) };
    let file = Arc::clone(&trees.file);
    panics::catch(|| drop(trees)).ok_or_else(|| panicked_at_close(dir))?;
    wait_until_unlocked(&file, dir)
}

fn panicked_at_close(dir: &Path) -> Error {
    Error::new(ErrorKind::Io, format!("close {}: sled panicked", dir.display()))
}

fn convert(dir: &Path, cause: &::sled::Error) -> Error {
    match cause {
        ::sled::Error::Io(cause) => Error::io("access record store", dir, cause),
        cause => corrupt(format!("the record store {} is damaged: {cause}", dir.join("db").display())),
    }
}

/// An open sled whose trees are not open yet. Its drop syncs, and panics if that fails.
struct Opened {
    db: Option<Db>,
    dir: PathBuf,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        // An earlier error is returned instead of this one.
        let _ =
            end_within(&self.dir, DROP_TIMEOUT, |dir| panics::catch(|| drop(db)).ok_or_else(|| panicked_at_close(dir)));
    }
}

/// Opens sled with three quarters of this capacity. sled counts its pages by their size on disk, and in memory they
/// were seen to take about a third more.
fn open_db(dir: &Path, cache_capacity: u64) -> Result<Opened> {
    panics::hide();
    let path = dir.join("db");
    if files::exists(&path)? {
        let file = File::open(&path).map_err(|cause| Error::io("open", &path, &cause))?;
        wait_until_unlocked(&file, dir)?;
    }
    let counted = cache_capacity / 4 * 3;
    let config = ::sled::Config::new().path(dir).cache_capacity(counted).flush_every_ms(None);
    guard(dir, || config.open()).map(|db| Opened { db: Some(db), dir: dir.to_owned() })
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
