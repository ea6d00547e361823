//! Creates a store: an empty one, or one with the contents of a damaged store or of a database.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::format::list::RunList;
use super::runs::build::Builder;
use super::sled::tables::{Access, Tables};
use super::{StoreKey, files, journal};
use crate::types::clock::{Anchor, NEVER, StoreClock};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key;
use crate::types::options::EngineOptions;

/// The number of blocks that are written at once.
const BATCH: usize = 256;

/// The cache of records gets the capacity divided by this number; the rest is for blocks.
pub(super) const RECORD_CACHE: u64 = 8;

/// The directories of a store.
pub(super) const PARTS: [&str; 2] = ["journal", "sled"];
/// The name of a store that is built from the contents of another one, until it is whole. An open refuses it, because a
/// store that it creates instead would have none of the keys.
pub(super) const PARTIAL: &str = "store.partial";

/// Creates a store without records. When it returns, every byte is durable. The caller then renames the directory to its
/// place, so a crash leaves no store or a complete one.
pub(super) fn create_empty(dir: &Path, options: &EngineOptions) -> Result<()> {
    let store_id = key::random();
    let tables = Tables::create(&dir.join("sled"), access(options), &store_id)?;
    tables.set_list(&RunList { store_id, serial: 1, frame: 0, complete: 0, next_id: 1, runs: Vec::new() })?;
    tables.close()?;
    let anchor = StoreClock::start(Arc::clone(&options.clock), Anchor::default(), Duration::ZERO).anchor();
    journal::create(&dir.join("journal"), store_id, options.segment_bytes, 0, anchor)?;
    files::sync_tree(dir)
}

/// Returns the part of the options that concerns sled.
pub(super) fn access(options: &EngineOptions) -> Access {
    let cache_capacity = options.cache_capacity - options.cache_capacity / RECORD_CACHE;
    Access { cache_capacity, sync_flag: options.sync_flag }
}

/// The contents of a new store.
pub(crate) trait Contents {
    /// Returns the number of keys, as far as it is known.
    fn len(&self) -> u64;

    /// Calls `f` with each key and encoded content, in order.
    fn for_each(&mut self, f: &mut dyn FnMut(&StoreKey, &[u8]) -> Result<()>) -> Result<()>;

    /// Returns a number that no record exceeds, and the clock. Called after [`for_each`](Self::for_each).
    fn end(&self) -> (u64, Anchor);
}

/// Returns true if the directory must be created. Returns an error if its parent is missing, or if it has anything but
/// what an earlier, unfinished call of [`create`] has left.
pub(super) fn check_empty(into: &Path) -> Result<bool> {
    if !files::exists(into)? {
        files::check_parent(into)?;
        return Ok(true);
    }
    let mut is_empty = true;
    for (entry, _) in files::entries(into)? {
        is_empty &= entry.ends_with("LOCK") || (entry.ends_with(PARTIAL) && is_half_made(&entry)?);
    }
    if is_empty {
        return Ok(false);
    }
    let message = format!("{} is not empty: the new store needs a directory of its own", into.display());
    Err(Error::new(ErrorKind::InvalidOptions, message))
}

/// Creates a store with these contents. `into` must be empty or not exist; after an error it is so again. Removes
/// what a call that was killed has left there. Calls `progress` with the number of keys that are written, and the number
/// of all.
pub(super) fn create(
    into: &Path,
    options: &EngineOptions,
    store_id: [u8; 16],
    contents: &mut dyn Contents,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let is_new = check_empty(into)?;
    files::create_dirs(into)?;
    let write = |half_made: &Path| write_parts(half_made, options, store_id, contents, progress);
    create_whole(into, write).inspect_err(|_| {
        if is_new {
            // Ignore the result: the first error is returned. The directory stays if another program has put a file
            // into it.
            let _ = std::fs::remove_dir(into);
        }
    })
}

/// Calls `write` with a directory under another name, and renames it when it is durable: an unfinished one is not
/// opened as a store.
fn create_whole(into: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut lock = files::Lock::take(&into.join("LOCK"), into)?;
    // Check under the lock: another process may have created a store meanwhile.
    check_empty(into)?;
    let half_made = into.join(PARTIAL);
    remove_half_made(&half_made, into)?;
    files::create_dir(&half_made)?;
    let _dir = files::Lock::take_dir(&half_made, into)?;
    let made = write(&half_made).and_then(|()| {
        let store = into.join("store");
        std::fs::rename(&half_made, &store).map_err(|cause| Error::io("create store", &store, &cause))
    });
    if let Err(error) = made {
        let _ = std::fs::remove_dir_all(&half_made);
        return Err(error);
    }
    lock.keep();
    files::sync_dir(into)
}

/// True if the directory has nothing but parts of a store: its process died while it created the store.
pub(super) fn is_half_made(dir: &Path) -> Result<bool> {
    Ok(files::entries(dir)?.iter().all(|(part, _)| PARTS.iter().any(|name| part.ends_with(name))))
}

/// Removes what a process that died has left of a store that it created in `into`.
pub(super) fn remove_half_made(half_made: &Path, into: &Path) -> Result<()> {
    if !files::exists(half_made)? || !is_half_made(half_made)? {
        return Ok(());
    }
    // A locked directory belongs to a process that is creating it now.
    let _dir = files::Lock::take_dir(half_made, into)?;
    std::fs::remove_dir_all(half_made).map_err(|cause| Error::io("remove half-made store", half_made, &cause))
}

fn write_parts(
    half_made: &Path,
    options: &EngineOptions,
    store_id: [u8; 16],
    contents: &mut dyn Contents,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let total = contents.len();
    // The time at which the contents expire is that of another store, so the run is rewritten when half have expired.
    let mut builder = Builder::new(&store_id, 1, total, &[], NEVER);
    let tables = Tables::create(&half_made.join("sled"), access(options), &store_id)?;
    let mut written = 0;
    contents.for_each(&mut |key, value| {
        builder.add(key, Some(value))?;
        if let Some(blocks) = builder.take_full(BATCH) {
            tables.write(&blocks)?;
        }
        written += 1;
        progress(written, total);
        Ok(())
    })?;
    // The highest number in the data, so that the owners of records in progress are dead, and no token is given twice.
    let (frame, anchor) = contents.end();
    let mut list = RunList { store_id, serial: 1, frame, complete: frame, next_id: 2, runs: Vec::new() };
    if let Some((run, blocks)) = builder.finish()? {
        tables.write(&blocks)?;
        list.runs.push(run.info);
    }
    tables.set_list(&list)?;
    tables.close()?;
    journal::create(&half_made.join("journal"), store_id, options.segment_bytes, frame, anchor)?;
    files::sync_tree(half_made)
}
