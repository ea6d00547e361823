//! Rescues what can still be read of a damaged store, into a new one.
//!
//! Takes each whole group of the journal, and each whole block of the record store, which is found in sled's file
//! without sled. Of several contents of a key the newest is taken: the list of runs has their order, and each record has
//! its revision. Nothing is written to the damaged store.

mod sources;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::open::{access, check_exists, check_ours};
use super::runs::build::Builder;
use super::{Store, files};
use crate::store::format::list::RunList;
use crate::store::journal::{self, Remains};
use crate::store::sled::raw;
use crate::store::sled::tables::Tables;
use crate::types::clock::{self, Anchor, StoreClock};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key;
use crate::types::options::EngineOptions;
use sources::Sources;

/// The number of problems and of lost keys that a report names.
const MAX_PROBLEMS: usize = 100;
/// The number of blocks that are written at once.
const BATCH: usize = 256;

/// The result of a [`salvage`](crate::EngineOptions::salvage).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct SalvageReport {
    /// Records in the new store. Those that were in progress are interrupted there.
    pub records: u64,
    /// Rows in the new store.
    pub rows: u64,
    /// The number of these records and rows that may be older than their last state, or may have been removed, because
    /// newer data is lost. Ask the systems that their operations call before you rely on them.
    pub in_doubt: u64,
    /// The keys of records and rows of which only parts were found. They are not in the new store, so an operation with
    /// such a key would run again.
    pub lost: Vec<String>,
    /// The number of further lost keys, if there are more than 100.
    pub more_lost: u64,
    /// Descriptions of the damage that was found. If there are more than 100, the last entry is the number of the others.
    pub problems: Vec<String>,
    /// The duration of the salvage.
    pub took: Duration,
}

impl SalvageReport {
    /// Returns true if everything was rescued as it was.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.in_doubt == 0 && self.lost.is_empty() && self.problems.is_empty()
    }
}

impl Store {
    /// Rescues into `into`, which must be empty or not exist. Calls `progress` with the number of keys that are written, and the
    /// number of all.
    pub(crate) fn salvage(
        from: &Path,
        into: &Path,
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<SalvageReport> {
        let began = clock::monotonic();
        let absolute = |path: &Path| std::path::absolute(path).map_err(|cause| Error::io("open store", path, &cause));
        let (from, into) = (&absolute(from)?, &absolute(into)?);
        options.check()?;
        let store = from.join("store");
        check_exists(from)?;
        check_ours(from, &store)?;
        if into.starts_with(from) || from.starts_with(into) {
            let message = format!("{} and {}: one contains the other", from.display(), into.display());
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        let _from = files::StoreLock::shared(from)?;
        let is_new = check_empty(into)?;
        if !options.any_file_system {
            files::check_file_system(from)?;
        }
        let remains = journal::remains(&store.join("journal"))?;
        let mut sources = Sources::new(&store.join("sled"), &remains);
        let remains = Remains { frames: Vec::new(), ..remains };
        files::create_dirs(into)?;
        write(into, options, &mut sources, &remains, progress).inspect_err(|_| {
            if is_new {
                // Ignore the result: the first error is returned. The directory stays if another program has put a file into it.
                let _ = std::fs::remove_dir(into);
            }
        })?;
        let mut report = sources.into_report();
        report.took = clock::monotonic().saturating_duration_since(began);
        Ok(report)
    }
}

/// Returns true if the directory must be created, and an error if it is not empty.
fn check_empty(into: &Path) -> Result<bool> {
    if !into.exists() {
        return Ok(true);
    }
    if files::entries(into)?.is_empty() {
        return Ok(false);
    }
    let message = format!("{} is not empty: a salvage goes into a directory of its own", into.display());
    Err(Error::new(ErrorKind::InvalidOptions, message))
}

/// Builds the new store under another name, and renames it when it is durable: an unfinished one is not opened as a store. After
/// an error nothing is left.
fn write(
    into: &Path,
    options: &EngineOptions,
    sources: &mut Sources,
    remains: &Remains,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let mut lock = files::Lock::take(&into.join("LOCK"), into)?;
    let half_made = into.join("store.new");
    files::create_dir(&half_made)?;
    let _dir = files::Lock::take_dir(&half_made, into)?;
    let made = write_parts(&half_made, options, sources, remains, progress).and_then(|()| {
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

fn write_parts(
    half_made: &Path,
    options: &EngineOptions,
    sources: &mut Sources,
    remains: &Remains,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let (store_id, total) = (key::random(), sources.len());
    let mut builder = Builder::new(&store_id, 1, total);
    let tables = Tables::create(&half_made.join("sled"), access(options), &store_id)?;
    let mut written = 0;
    sources.for_each(&mut |key, value| {
        builder.add(key, Some(value))?;
        if let Some(blocks) = builder.take_full(BATCH) {
            tables.write(&blocks)?;
        }
        written += 1;
        progress(written, total);
        Ok(())
    })?;
    // The highest number in the data, so that the owners of records in progress are dead, and no token is given twice.
    let frame = sources.last_number().max(remains.last_frame);
    let mut list = RunList { store_id, serial: 1, frame, complete: frame, next_id: 2, runs: Vec::new() };
    if written > 0 {
        let (run, blocks) = builder.finish()?;
        tables.write(&blocks)?;
        list.runs.push(run.info);
    }
    tables.set_list(&list)?;
    tables.close()?;
    let found = remains.anchor.unwrap_or(Anchor { store: sources.last_time(), ..Anchor::default() });
    let anchor = StoreClock::start(Arc::clone(&options.clock), found, options.max_offline).anchor();
    journal::create(&half_made.join("journal"), store_id, options.segment_bytes, frame, anchor)?;
    files::sync_tree(half_made)
}

/// Returns the id of the damaged store: the one in the journal, or else the one in sled's file.
fn store_of(sled: &Path, remains: &Remains) -> Result<Option<[u8; 16]>> {
    match remains.store_id {
        Some(id) => Ok(Some(id)),
        None => raw::store_of(sled),
    }
}
