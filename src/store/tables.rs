//! sled, behind a wall: opened hardened, written by one thread, asked only for what it does well.
//!
//! sled's flush is not durable on Linux, its transactions lock the whole process, its snapshots can brick a store when a
//! process is killed while it opens, and it panics here and there. So: no flush without a real sync, no transactions, torn
//! snapshots removed before opening, and every call guarded.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::sled::{Db, IVec, Tree};
use parking_lot::{Condvar, Mutex, RwLock};

use super::files;
use super::format::envelope::{self, Envelope};
use super::format::{Fields, corrupt};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};

/// What sled may have written behind a barrier's back; more, and a power cut can take what an older barrier had made safe.
const MAX_BARRIER_BYTES: usize = 256 << 10;
const STAMP: &[u8] = b"stamp";
const SWEEP: &[u8] = b"sweep";
const TABLE_PREFIX: &str = "table/";

/// One of sled's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Records,
    Unfinished,
    Expiry,
    Chunks,
    Table(&'a str),
}

/// Up to which frame sled has everything, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) store_id: [u8; 16],
    pub(crate) frame: u64,
}

#[derive(Debug)]
pub(crate) struct Tables {
    dir: PathBuf,
    /// `None` once closed.
    trees: RwLock<Option<Trees>>,
    /// Every write is synced by the file system; else by a barrier every few changes.
    pub(crate) sync_flag: bool,
    changes: AtomicU64,
    changes_per_barrier: AtomicU64,
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
    file: File,
    meta: Tree,
    records: Tree,
    unfinished: Tree,
    expiry: Tree,
    chunks: Tree,
    tables: Mutex<HashMap<String, Tree>>,
}

impl Tables {
    /// Opens what is there, or, if `create`, what is not.
    pub(crate) fn open(dir: &Path, cache_capacity: u64, sync_flag: bool, create: bool) -> Result<Self> {
        if create {
            files::create_dir(dir)?;
        } else if !dir.join("db").is_file() || !dir.join("conf").is_file() {
            return Err(corrupt(format!("the record store {} is missing", dir.display())));
        }
        remove_torn_snapshots(dir)?;
        // Before sled makes its files, so that they inherit the flag; btrfs does not inherit, hence again behind it.
        let flagged = sync_flag && files::set_sync_flag(dir);
        let db = open_db(dir, cache_capacity)?;
        let file = dir.join("db");
        let flagged = flagged && files::set_sync_flag(&file) && set_blobs_flag(dir);
        let file = File::open(&file).map_err(|cause| Error::io("open", &file, &cause))?;
        let tree = |name: &str| guard(dir, || db.open_tree(name));
        let trees = Trees {
            meta: tree("meta")?,
            records: tree("records")?,
            unfinished: tree("unfinished")?,
            expiry: tree("expiry")?,
            chunks: tree("chunks")?,
            tables: Mutex::new(open_tables(&db, dir)?),
            file,
            db,
        };
        Ok(Self {
            dir: dir.to_owned(),
            trees: RwLock::new(Some(trees)),
            sync_flag: flagged,
            changes: AtomicU64::new(0),
            changes_per_barrier: AtomicU64::new(64),
            #[cfg(test)]
            flush_gate: Mutex::new(()),
            #[cfg(test)]
            writes_left: AtomicU64::new(u64::MAX),
        })
    }

    pub(crate) fn get(&self, name: Name<'_>, key: &[u8]) -> Result<Option<IVec>> {
        self.with(name, |tree| tree.map_or(Ok(None), |tree| tree.get(key)))
    }

    /// Replaces what is there, which must be `old`: nobody else writes.
    pub(crate) fn swap(&self, name: Name<'_>, key: &[u8], old: Option<&[u8]>, new: Option<Vec<u8>>) -> Result<()> {
        self.count_write()?;
        self.create_table(name, new.is_some())?;
        let swapped = self
            .with(name, |tree| tree.map_or(Ok(Ok(())), |tree| tree.compare_and_swap(key, old, new.map(IVec::from))))?;
        swapped.map_err(|_| corrupt(format!("somebody else wrote {} in {}", key.escape_ascii(), self.dir.display())))
    }

    pub(crate) fn insert(&self, name: Name<'_>, key: &[u8], value: Vec<u8>) -> Result<()> {
        self.count_write()?;
        self.with(name, |tree| tree.map_or(Ok(None), |tree| tree.insert(key, value))).map(|_| ())
    }

    pub(crate) fn remove(&self, name: Name<'_>, key: &[u8]) -> Result<()> {
        self.count_write()?;
        self.with(name, |tree| tree.map_or(Ok(None), |tree| tree.remove(key))).map(|_| ())
    }

    /// In tests, the write that fails.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "for tests"))]
    fn count_write(&self) -> Result<()> {
        #[cfg(test)]
        if self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(Error::new(ErrorKind::Io, "this write was to fail"));
        }
        Ok(())
    }

    /// The first entries at or behind `from`, and before `end`.
    pub(crate) fn range(
        &self,
        name: Name<'_>,
        from: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(IVec, IVec)>> {
        self.with(name, |tree| {
            let Some(tree) = tree else { return Ok(Vec::new()) };
            match end {
                Some(end) if end <= from => Ok(Vec::new()),
                Some(end) => tree.range(from..end).take(limit).collect(),
                None => tree.range(from..).take(limit).collect(),
            }
        })
    }

    pub(crate) fn stamp(&self) -> Result<Option<Stamp>> {
        let Some(bytes) = self.with_trees(|trees| trees.meta.get(STAMP))? else { return Ok(None) };
        let Envelope::Inline(content) = envelope::decode(STAMP, &bytes)? else { return Ok(None) };
        let mut fields = Fields(content);
        let stamp = fields.array().and_then(|store_id| Some(Stamp { store_id, frame: fields.u64()? }));
        stamp.map(Some).ok_or_else(|| corrupt(format!("the stamp in {} is malformed", self.dir.display())))
    }

    pub(crate) fn set_stamp(&self, stamp: Stamp) -> Result<()> {
        let content = [stamp.store_id.as_slice(), &stamp.frame.to_le_bytes()].concat();
        let bytes = envelope::encode(STAMP, &Envelope::Inline(&content))?;
        self.with_trees(|trees| trees.meta.insert(STAMP, bytes)).map(|_| ())
    }

    /// Whether a crash may have left pieces that nobody names, and not all were looked at since.
    pub(crate) fn sweep(&self) -> Result<bool> {
        self.with_trees(|trees| trees.meta.contains_key(SWEEP))
    }

    pub(crate) fn set_sweep(&self, wanted: bool) -> Result<()> {
        if wanted {
            let bytes = envelope::encode(SWEEP, &Envelope::Inline(&[]))?;
            self.with_trees(|trees| trees.meta.insert(SWEEP, bytes)).map(|_| ())
        } else {
            self.with_trees(|trees| trees.meta.remove(SWEEP)).map(|_| ())
        }
    }

    /// To be called after each change: where the file system does not sync by itself, a barrier is due now and then.
    pub(crate) fn changed(&self) -> Result<()> {
        if self.sync_flag
            || self.changes.fetch_add(1, Ordering::Relaxed) + 1 < self.changes_per_barrier.load(Ordering::Relaxed)
        {
            return Ok(());
        }
        self.changes.store(0, Ordering::Relaxed);
        let written = self.flush()?;
        let limit = self.changes_per_barrier.load(Ordering::Relaxed);
        let limit = if written > MAX_BARRIER_BYTES {
            (limit / 2).max(1)
        } else if written < MAX_BARRIER_BYTES / 4 {
            (limit * 2).min(4096)
        } else {
            limit
        };
        self.changes_per_barrier.store(limit, Ordering::Relaxed);
        Ok(())
    }

    /// Makes everything written so far durable. Says how many bytes sled had left to write.
    pub(crate) fn flush(&self) -> Result<usize> {
        #[cfg(test)]
        let _gate = self.flush_gate.lock();
        let written = self.with_trees(|trees| trees.db.flush())?;
        let trees = self.trees.read();
        let trees = trees.as_ref().ok_or_else(closed)?;
        trees.file.sync_data().map_err(|cause| Error::io("sync", &self.dir.join("db"), &cause))?;
        Ok(written)
    }

    /// Files that sled never syncs: there must be none.
    pub(crate) fn blobs(&self) -> Result<usize> {
        let blobs = self.dir.join("blobs");
        if files::is_dir(&blobs) { Ok(files::entries(&blobs)?.len()) } else { Ok(0) }
    }

    /// Lets go of sled. Its own drop syncs, and panics when that fails.
    pub(crate) fn close(&self) -> Result<()> {
        let Some(trees) = self.trees.write().take() else { return Ok(()) };
        catch_unwind(AssertUnwindSafe(|| drop(trees)))
            .map_err(|_| Error::new(ErrorKind::Io, format!("close {}: sled panicked", self.dir.display())))?;
        wait_until_unlocked(&self.dir)
    }

    fn create_table(&self, name: Name<'_>, wanted: bool) -> Result<()> {
        let Name::Table(table) = name else { return Ok(()) };
        if !wanted {
            return Ok(());
        }
        self.with_trees(|trees| {
            let mut tables = trees.tables.lock();
            if !tables.contains_key(table) {
                let tree = trees.db.open_tree(format!("{TABLE_PREFIX}{table}"))?;
                tables.insert(table.to_owned(), tree);
            }
            Ok(())
        })
    }

    /// A table that nobody wrote yet has no tree.
    fn with<R>(&self, name: Name<'_>, f: impl FnOnce(Option<&Tree>) -> ::sled::Result<R>) -> Result<R> {
        self.with_trees(|trees| match name {
            Name::Records => f(Some(&trees.records)),
            Name::Unfinished => f(Some(&trees.unfinished)),
            Name::Expiry => f(Some(&trees.expiry)),
            Name::Chunks => f(Some(&trees.chunks)),
            Name::Table(table) => {
                let tree = trees.tables.lock().get(table).cloned();
                f(tree.as_ref())
            }
        })
    }

    fn with_trees<R>(&self, f: impl FnOnce(&Trees) -> ::sled::Result<R>) -> Result<R> {
        let trees = self.trees.read();
        let trees = trees.as_ref().ok_or_else(closed)?;
        guard(&self.dir, || f(trees))
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // After an open that failed: there is nobody to tell.
        let _ = self.close();
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the engine is closed")
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

fn open_tables(db: &Db, dir: &Path) -> Result<HashMap<String, Tree>> {
    let mut tables = HashMap::new();
    for name in db.tree_names() {
        let name = String::from_utf8_lossy(&name).into_owned();
        if let Some(table) = name.strip_prefix(TABLE_PREFIX) {
            tables.insert(table.to_owned(), guard(dir, || db.open_tree(&name))?);
        }
    }
    Ok(tables)
}

/// sled takes a snapshot that was being written when the process was killed for the newest one, and refuses to open. The one
/// before it, and the whole log, are only removed after the rename.
fn remove_torn_snapshots(dir: &Path) -> Result<()> {
    for (path, _) in files::entries(dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(&path).map_err(|cause| Error::io("remove torn snapshot", &path, &cause))?;
        }
    }
    Ok(())
}

fn set_blobs_flag(dir: &Path) -> bool {
    let blobs = dir.join("blobs");
    !files::is_dir(&blobs) || files::set_sync_flag(&blobs)
}

fn open_db(dir: &Path, cache_capacity: u64) -> Result<Db> {
    wait_until_unlocked(dir)?;
    let config = ::sled::Config::new().path(dir).cache_capacity(cache_capacity).flush_every_ms(None);
    guard(dir, || config.open())
}

/// sled's threads let go of its lock a moment after the last handle is gone, and nothing tells when: the one place where
/// something is tried again and again. The store's own lock is held, so only this process can be meant.
fn wait_until_unlocked(dir: &Path) -> Result<()> {
    let path = dir.join("db");
    let until = clock::deadline(Duration::from_secs(2));
    let (mutex, never) = (Mutex::new(()), Condvar::new());
    loop {
        if !path.exists() {
            return Ok(());
        }
        match files::Lock::take(&path, dir) {
            Err(error)
                if error.kind() == ErrorKind::StoreInUse && until.is_some_and(|until| clock::monotonic() < until) =>
            {
                never.wait_for(&mut mutex.lock(), Duration::from_millis(1));
            }
            other => return other.map(drop),
        }
    }
}
