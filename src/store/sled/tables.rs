//! sled, behind a wall: opened hardened, written by one thread, asked only for what it does well.
//!
//! sled's flush is not durable on Linux, its transactions lock the whole process, its snapshots can brick a store when a
//! process is killed while it opens, and it panics here and there. So: no flush without a real sync, no transactions, torn
//! snapshots removed before opening, and every call guarded.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::sled::{Db, IVec, Tree};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::store::digest::Digest;
pub(crate) use crate::store::digest::Name;
use crate::store::files;
use crate::store::format::envelope::{self, Envelope};
use crate::store::format::frame::StoreKey;
use crate::store::format::{Fields, behind, corrupt};
use crate::store::sled::blobs::Blobs;
use crate::store::sled::open_on_copy;
use crate::store::sled::snapshots;
use crate::store::sled::write_barrier::{Share, WriteBarrier};
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

const STAMP: &[u8] = b"stamp";
const SWEEP: &[u8] = b"sweep";
const TABLE_PREFIX: &str = "table/";

/// Entries read at once when they are counted.
const COUNT_BATCH: usize = 512;

/// Up to which frame sled has everything, whose it is, and what it holds then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) store_id: [u8; 16],
    pub(crate) frame: u64,
    /// `None` if nobody has counted.
    pub(crate) digest: Option<Digest>,
}

#[derive(Debug)]
pub(crate) struct Tables {
    dir: PathBuf,
    /// `None` once closed.
    trees: RwLock<Option<Trees>>,
    pub(crate) barriers: WriteBarrier,
    pub(crate) blobs: Blobs,
    ledger: Mutex<Ledger>,
    /// Whoever holds it keeps every flush waiting.
    #[cfg(test)]
    pub(crate) flush_gate: Mutex<()>,
    /// So many writes succeed, the others fail.
    #[cfg(test)]
    pub(crate) writes_left: AtomicU64,
}

/// What is in sled by every change that was made.
#[derive(Debug, Default)]
struct Ledger {
    /// `None` until something is known of it.
    total: Option<Digest>,
    /// What a scan has counted so far, and the place behind it: changes before that place are its business too.
    scan: Option<(Vec<u8>, Digest)>,
}

#[derive(Debug)]
struct Trees {
    db: Db,
    file: Arc<File>,
    meta: Tree,
    records: Tree,
    unfinished: Tree,
    expiry: Tree,
    chunks: Tree,
    tables: Mutex<HashMap<String, Tree>>,
    /// Given back after sled is gone: the order of these fields.
    _share: Share,
}

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
        let trees = Trees {
            meta: tree("meta")?,
            records: tree("records")?,
            unfinished: tree("unfinished")?,
            expiry: tree("expiry")?,
            chunks: tree("chunks")?,
            tables: Mutex::new(open_tables(&db, dir)?),
            file: Arc::new(file),
            db,
            _share: share,
        };
        Ok(Self {
            dir: dir.to_owned(),
            blobs,
            trees: RwLock::new(Some(trees)),
            barriers: WriteBarrier::new(flagged),
            ledger: Mutex::default(),
            #[cfg(test)]
            flush_gate: Mutex::new(()),
            #[cfg(test)]
            writes_left: AtomicU64::new(u64::MAX),
        })
    }

    pub(crate) fn get(&self, name: Name<'_>, key: &[u8]) -> Result<Option<IVec>> {
        self.with(name, |tree| tree.map_or(Ok(None), |tree| tree.get(key)))
    }

    /// Replaces what is there if it is `old`; else says what it is.
    pub(crate) fn swap(
        &self,
        name: Name<'_>,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<&IVec>,
    ) -> Result<std::result::Result<(), Option<IVec>>> {
        let _turn = self.turn(key, new.map(AsRef::as_ref))?;
        self.create_table(name, new.is_some())?;
        let swapped =
            self.with(name, |tree| tree.map_or(Ok(Ok(())), |tree| tree.compare_and_swap(key, old, new.cloned())))?;
        if swapped.is_ok() {
            self.note(name, key, old, new.map(AsRef::as_ref));
            self.barriers.changed(old.map_or(0, <[u8]>::len));
        }
        Ok(swapped.map_err(|other| other.current))
    }

    /// Removes what is there if it is still this.
    pub(crate) fn remove_same(&self, name: Name<'_>, key: &[u8], found: &[u8]) -> Result<bool> {
        Ok(self.swap(name, key, Some(found), None)?.is_ok())
    }

    pub(crate) fn insert(&self, name: Name<'_>, key: &[u8], value: Vec<u8>) -> Result<()> {
        let _turn = self.turn(key, Some(&value))?;
        let value = IVec::from(value);
        let old = self.with(name, |tree| tree.map_or(Ok(None), |tree| tree.insert(key, value.clone())))?;
        self.note(name, key, old.as_deref(), Some(&value));
        self.barriers.changed(old.map_or(0, |old| old.len()));
        Ok(())
    }

    pub(crate) fn remove(&self, name: Name<'_>, key: &[u8]) -> Result<()> {
        let _turn = self.turn(key, None)?;
        let old = self.with(name, |tree| tree.map_or(Ok(None), |tree| tree.remove(key)))?;
        self.note(name, key, old.as_deref(), None);
        self.barriers.changed(old.map_or(0, |old| old.len()));
        Ok(())
    }

    /// An entry was replaced, has come or has gone.
    fn note(&self, name: Name<'_>, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        let mut ledger = self.ledger.lock();
        if let Some(total) = &mut ledger.total {
            total.change(name, key, old, new);
        }
        if let Some((end, counted)) = &mut ledger.scan {
            if place(name, key).is_some_and(|place| place < *end) {
                counted.change(name, key, old, new);
            }
        }
    }

    /// Whoever holds it keeps sled's writer from ending its next change.
    #[cfg(test)]
    pub(crate) fn hold_ledger(&self) -> impl Drop + '_ {
        self.ledger.lock()
    }

    /// What sled should hold.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.ledger.lock().total
    }

    /// What sled holds from here on is this, and what every change makes of it.
    pub(crate) fn set_digest(&self, digest: Option<Digest>) {
        self.ledger.lock().total = digest;
    }

    /// What sled holds, by reading it; `None` if that is more than so many entries.
    pub(crate) fn count(&self, limit: usize) -> Result<Option<Digest>> {
        let tables = self.table_names()?;
        let tables = tables.iter().map(|table| Name::Table(table));
        self.count_in([Name::Unfinished, Name::Records].into_iter().chain(tables), limit)
    }

    /// As [`count`](Self::count), of these trees only.
    pub(crate) fn count_in<'a>(
        &self,
        names: impl IntoIterator<Item = Name<'a>>,
        limit: usize,
    ) -> Result<Option<Digest>> {
        let (mut counted, mut left) = (Digest::default(), limit);
        for name in names {
            let mut from = Vec::new();
            loop {
                let batch = self.range(name, &from, None, COUNT_BATCH)?;
                let Some((last, _)) = batch.last() else { break };
                let Some(fewer) = left.checked_sub(batch.len()) else { return Ok(None) };
                left = fewer;
                from = behind(last);
                for (key, value) in &batch {
                    counted.change(name, key, None, Some(value));
                }
            }
        }
        Ok(Some(counted))
    }

    /// Of all tables that somebody has written, in order.
    pub(crate) fn table_names(&self) -> Result<Vec<String>> {
        self.with_trees(|trees| {
            let mut names: Vec<String> = trees.tables.lock().keys().cloned().collect();
            names.sort();
            Ok(names)
        })
    }

    /// Begins a scan that goes on beside changes.
    pub(crate) fn begin_scan(&self) {
        self.ledger.lock().scan = Some(Default::default());
    }

    /// The scan has read this entry; all before it in its tree, and all trees before, it has read too.
    pub(crate) fn scanned(&self, name: Name<'_>, key: &[u8], value: &[u8]) {
        if let Some((end, counted)) = &mut self.ledger.lock().scan {
            counted.change(name, key, None, Some(value));
            if let Some(mut place) = place(name, key) {
                place.push(0);
                *end = place;
            }
        }
    }

    /// The scan has read all of a tree: what comes into it from now on is the changes' business.
    pub(crate) fn scanned_all(&self, name: Name<'_>) {
        if let Some((end, _)) = &mut self.ledger.lock().scan {
            if let Some(mut place) = place(name, &[]) {
                if let Some(last) = place.last_mut() {
                    *last = last.saturating_add(1);
                }
                *end = place;
            }
        }
    }

    /// The scan has read every table there is: those that come now are the changes' business too.
    pub(crate) fn scanned_all_tables(&self) {
        if let Some((end, _)) = &mut self.ledger.lock().scan {
            *end = vec![u8::MAX];
        }
    }

    /// The scan has read everything: what it has counted.
    pub(crate) fn end_scan(&self) -> Option<Digest> {
        self.ledger.lock().scan.take().map(|(_, counted)| counted)
    }

    /// To be held by whoever changes something, until it is done.
    #[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "for tests"))]
    fn turn(&self, key: &[u8], value: Option<&[u8]>) -> Result<Option<MutexGuard<'_, ()>>> {
        #[cfg(test)]
        if self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(Error::new(ErrorKind::Io, "this write was to fail"));
        }
        Ok(self.barriers.change(key.len() + value.map_or(0, <[u8]>::len)))
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
        let mut stamp = || -> Option<Stamp> {
            let (store_id, frame, known) = (fields.array()?, fields.u64()?, fields.u8()?);
            let digest = if known == 1 { Some(Digest::decode(&mut fields)?) } else { None };
            fields.0.is_empty().then_some(Stamp { store_id, frame, digest })
        };
        stamp().map(Some).ok_or_else(|| corrupt(format!("the stamp in {} is malformed", self.dir.display())))
    }

    pub(crate) fn set_stamp(&self, stamp: Stamp) -> Result<()> {
        let digest = stamp.digest.map(|digest| digest.encode());
        let known = [u8::from(digest.is_some())];
        let digest = digest.as_ref().map_or(&[] as &[u8], |bytes| bytes);
        let content = [stamp.store_id.as_slice(), &stamp.frame.to_le_bytes(), &known, digest].concat();
        let bytes = envelope::encode(STAMP, &Envelope::Inline(&content))?;
        let _turn = self.turn(STAMP, Some(&bytes))?;
        self.with_trees(|trees| trees.meta.insert(STAMP, bytes)).map(|_| ())
    }

    /// Whether a crash may have left pieces that nobody names, and not all were looked at since.
    pub(crate) fn sweep(&self) -> Result<bool> {
        self.with_trees(|trees| trees.meta.contains_key(SWEEP))
    }

    pub(crate) fn set_sweep(&self, wanted: bool) -> Result<()> {
        let _turn = self.turn(SWEEP, None)?;
        if wanted {
            let bytes = envelope::encode(SWEEP, &Envelope::Inline(&[]))?;
            self.with_trees(|trees| trees.meta.insert(SWEEP, bytes)).map(|_| ())
        } else {
            self.with_trees(|trees| trees.meta.remove(SWEEP)).map(|_| ())
        }
    }

    /// To be called after each change: a flush is due now and then, and a barrier where the file system does not sync by itself.
    pub(crate) fn changed(&self) -> Result<()> {
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

/// In the order of a scan: records first, then tables by name. `None` where a scan counts nothing.
fn place(name: Name<'_>, key: &[u8]) -> Option<Vec<u8>> {
    let key = match name {
        Name::Records => StoreKey::from_record_tree(key),
        Name::Table(table) => StoreKey::row(table, key),
        Name::Unfinished | Name::Expiry | Name::Chunks => return None,
    };
    Some(key.bytes().to_vec())
}

fn open_tables(db: &Db, dir: &Path) -> Result<HashMap<String, Tree>> {
    let mut tables = HashMap::new();
    for name in guard(dir, || Ok(db.tree_names()))? {
        let name = String::from_utf8_lossy(&name).into_owned();
        if let Some(table) = name.strip_prefix(TABLE_PREFIX) {
            tables.insert(table.to_owned(), guard(dir, || db.open_tree(&name))?);
        }
    }
    Ok(tables)
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
