//! Copies the store as it was at one commit, while commits continue.
//!
//! Under the commit lock, a backup starts a snapshot of the memtable and takes the list of runs. Together they are the
//! state of the store after one frame. The contents of the snapshot are copied after that, one shard after the other.
//! Runs never change, and no run is deleted while the backup holds it. The copy is a new store with one run. It is
//! written under a temporary name and renamed when every byte is durable.

use std::borrow::Cow;
use std::fs::{self, Permissions};
use std::io;
use std::iter::Peekable;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::format::frame::{Content, StoreKey};
use super::format::list::RunList;
use super::format::record;
use super::memtable::Entry;
use super::runs::build::Builder;
use super::runs::{Item, Merged, RunSet};
use super::{Inner, Store, files, journal};
use crate::store::format::block::BLOCK;
use crate::store::sled::disk_space::{DiskSpace, SpaceStatus};
use crate::store::sled::tables::{Access, Keyed, Tables};
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{Now, Status};

/// The cache of the copy's record store in bytes. The copy is written and never read back.
const CACHE: u64 = 16 << 20;
/// The number of blocks in one write.
const BATCH: usize = 256;
/// The name of the directory while it is filled. No part of a store has this name, so an open refuses the unfinished
/// copy.
const PARTIAL: &str = "partial";

/// The result of [`Engine::backup`](crate::Engine::backup).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// The number of the last commit in the copy. The copy has every earlier commit and no later one.
    pub commit: u64,
    /// Records with a live owner at that commit. An open of the copy finds them interrupted.
    pub in_progress: u64,
    /// Interrupted records.
    pub interrupted: u64,
    /// Released records.
    pub released: u64,
    /// Records that have succeeded.
    pub succeeded: u64,
    /// Records that have failed.
    pub failed: u64,
    /// Rows of all tables together.
    pub rows: u64,
    /// The size of the copy's files, in bytes.
    pub bytes: u64,
    /// The duration of the copy.
    pub took: Duration,
}

impl BackupReport {
    /// Returns the number of records in all states. Expired records are not copied.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.in_progress + self.interrupted + self.released + self.succeeded + self.failed
    }

    fn count(&mut self, status: Status) {
        *match status {
            Status::InProgress => &mut self.in_progress,
            Status::Interrupted => &mut self.interrupted,
            Status::Released => &mut self.released,
            Status::Succeeded => &mut self.succeeded,
            Status::Failed => &mut self.failed,
        } += 1;
    }
}

impl Store {
    /// Copies the store into a directory that does not exist yet.
    pub(crate) fn back_up(&self, path: &Path, goes_on: &dyn Fn() -> Result<()>) -> Result<BackupReport> {
        let began = clock::monotonic();
        self.inner.check()?;
        let path = std::path::absolute(path).map_err(|cause| Error::io("back up to", path, &cause))?;
        let copied = self.inner.back_up(&path, goes_on).map_err(|error| match error.io_kind() {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                error.wrap(ErrorKind::Full, "no space for the backup")
            }
            _ => error,
        })?;
        Ok(BackupReport { took: clock::monotonic().saturating_duration_since(began), ..copied })
    }
}

impl Inner {
    fn back_up(&self, path: &Path, goes_on: &dyn Fn() -> Result<()>) -> Result<BackupReport> {
        let parent = self.check_destination(path)?;
        let unfinished = tempfile::Builder::new()
            .prefix(".oncekey-backup-")
            .permissions(Permissions::from_mode(files::DIR_MODE))
            .tempdir_in(&parent)
            .map_err(|cause| Error::io("create directory in", &parent, &cause))?;
        let partial = unfinished.path().join(PARTIAL);
        files::create_dir(&partial)?;
        let report = self.copy_into(&partial, goes_on)?;
        files::sync_tree(&partial)?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|cause| Error::io("rename the backup to", to, &cause))
        };
        rename(&partial, &unfinished.path().join("store"))?;
        files::sync_dir(unfinished.path())?;
        rename(unfinished.path(), path)?;
        // The directory has been renamed, so do not delete it.
        let _ = unfinished.keep();
        files::sync_parent(path)?;
        Ok(report)
    }

    /// Returns the directory that the copy will be in.
    fn check_destination(&self, path: &Path) -> Result<PathBuf> {
        let exists = || {
            let cause = io::Error::new(io::ErrorKind::AlreadyExists, "it exists, and a backup makes a new directory");
            Error::io_as(ErrorKind::InvalidOptions, "back up to", path, &cause)
        };
        match fs::symlink_metadata(path) {
            Ok(_) => return Err(exists()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(Error::io("back up to", path, &cause)),
        }
        let parent = files::check_parent(path)?;
        if self.path.canonicalize().is_ok_and(|store| parent.starts_with(store)) {
            let message = format!("the backup {} would be inside the store itself", path.display());
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        Ok(parent)
    }

    fn copy_into(&self, dir: &Path, goes_on: &dyn Fn() -> Result<()>) -> Result<BackupReport> {
        DiskSpace::new(dir).0.check()?;
        let state = self.frozen_state();
        // The copy must not contain a commit that a power cut could undo.
        self.commit_queue.wait(state.group)?;
        let sled = dir.join("sled");
        let access = Access { cache_capacity: CACHE, sync_flag: self.shared.tables.barriers.sync_flag };
        let tables = Tables::create(&sled, access, &self.store_id)?;
        let (space, _) = DiskSpace::new(&sled);
        let mut report = BackupReport { commit: state.frame, ..BackupReport::default() };
        self.copy_run(state, (&tables, &space), &mut report, goes_on)?;
        tables.check_blobs()?;
        tables.close()?;
        space.give_back();
        journal::create(&dir.join("journal"), self.store_id, 0, report.commit, self.clock.anchor())?;
        report.bytes = size_of(dir)?;
        Ok(report)
    }

    fn frozen_state(&self) -> FrozenState {
        // Read the clock before taking the commit lock: it may be user code.
        let now = self.now();
        let snapshot = self.shared.memtable.snapshot();
        let (frame, group, runs) = self.commit_queue.at_one_commit(|| {
            // The memtable first: contents that are flushed in between are then in both.
            snapshot.start();
            self.shared.runs.current()
        });
        FrozenState { frame, group, in_memory: snapshot.read(), runs, now }
    }

    /// Writes all contents as one run, and the list that names it.
    fn copy_run(
        &self,
        state: FrozenState,
        (to, space): (&Tables, &DiskSpace),
        report: &mut BackupReport,
        goes_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let FrozenState { frame, mut in_memory, runs, now, .. } = state;
        in_memory.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let (id, from) = (1, &self.shared.tables);
        let most = runs.iter().map(|run| run.info.entries).sum::<u64>() + in_memory.len() as u64;
        let mut builder = Builder::new(&self.store_id, id, most, &[], now.store);
        let merged = Merged::new(from, &runs, &[])?;
        let mut entries = Entries { in_memory: in_memory.into_iter().peekable(), merged, head: None };
        entries.head = entries.merged.next(from)?;
        while let Some((key, value)) = entries.next(from)? {
            let value = match value {
                Some(value) if key.is_record() => kept(value, &now, report)?,
                value => value.inspect(|_| report.rows += 1),
            };
            if let Some(value) = value {
                builder.add(&key, Some(&value))?;
            }
            if let Some(blocks) = builder.take_full(BATCH) {
                // The engine may have been closed, or poisoned, meanwhile.
                self.check().and_then(|()| goes_on())?;
                write(to, space, &blocks)?;
            }
        }
        from.check_open()?;
        let mut list =
            RunList { store_id: self.store_id, serial: 1, frame, complete: frame, next_id: id + 1, runs: Vec::new() };
        if let Some((run, blocks)) = builder.finish()? {
            write(to, space, &blocks)?;
            list.runs.push(run.info);
        }
        to.set_list(&list)
    }
}

/// The state of the store after one frame.
struct FrozenState {
    /// The number of that frame.
    frame: u64,
    /// After a wait for this group, everything in this state is durable.
    group: u64,
    in_memory: Vec<(StoreKey, Entry)>,
    runs: RunSet,
    now: Now,
}

/// Iterates over every key of the memtable and the runs, in order, with its newest content.
struct Entries {
    in_memory: Peekable<std::vec::IntoIter<(StoreKey, Entry)>>,
    merged: Merged,
    head: Option<Item>,
}

impl Entries {
    /// Returns the next key and its encoded content; `None` for a key that was removed.
    fn next(&mut self, tables: &Tables) -> Result<Option<(StoreKey, Option<Vec<u8>>)>> {
        let is_before = |key: &StoreKey, item: &Option<Item>| item.as_ref().is_none_or(|item| *key <= item.key);
        if let Some((key, entry)) = self.in_memory.next_if(|(key, _)| is_before(key, &self.head)) {
            if self.head.as_ref().is_some_and(|item| item.key == key) {
                self.head = self.merged.next(tables)?;
            }
            return Ok(Some((key, encoded(entry.content)?)));
        }
        let Some(item) = self.head.take() else { return Ok(None) };
        self.head = self.merged.next(tables)?;
        let value = item.value.as_ref().map(|value| value.load_all(tables).map(Cow::into_owned)).transpose()?;
        Ok(Some((item.key, value)))
    }
}

fn encoded(content: Option<Content>) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match content {
        None => return Ok(None),
        Some(Content::Row(value)) => bytes.extend_from_slice(&value),
        Some(Content::Record(stored)) => record::encode(&stored, &mut bytes)?,
    }
    Ok(Some(bytes))
}

/// Returns the part of a record that the copy keeps, and counts the record. An expired finished record keeps only its
/// key if it is remembered, and otherwise nothing. An expired unfinished record is copied, and the open of the copy
/// removes it.
fn kept(bytes: Vec<u8>, now: &Now, report: &mut BackupReport) -> Result<Option<Vec<u8>>> {
    let stored = record::decode(&bytes)?;
    if let Some((status, _)) = stored.seen(now) {
        report.count(status);
        return Ok(Some(bytes));
    }
    if stored.lifetime().is_unfinished() || stored.expires > now.store {
        return Ok(Some(bytes));
    }
    let remembered = stored.remembered(now).map(|stored| Content::Record(stored.into()));
    encoded(remembered)
}

/// Writes blocks into the copy, if there is space for them and for the needs of a store on the same disk.
fn write(to: &Tables, space: &DiskSpace, blocks: &[Keyed]) -> Result<()> {
    match space.claim(blocks.len() as u64 * BLOCK as u64) {
        SpaceStatus::Enough => to.write(blocks),
        SpaceStatus::Low(full) | SpaceStatus::Short(full) => Err(full),
    }
}

fn size_of(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for (path, kind) in files::entries(dir)? {
        bytes += if kind.is_dir() {
            size_of(&path)?
        } else {
            fs::metadata(&path).map_err(|cause| Error::io("look at", &path, &cause))?.len()
        };
    }
    Ok(bytes)
}
