//! Rescues what can still be read of a damaged store, into a new one.
//!
//! Takes each whole group of the journal, and each whole block of the record store, which is found in sled's file
//! without sled. Of several contents of a key the newest is taken: the list of runs has their order, and each record
//! has its revision. Nothing is written to the damaged store.

mod lost;
mod sources;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::create::{Contents, check_empty, create};
use super::open::{check_exists, check_ours};
use super::{Store, StoreKey, files};
use crate::store::journal::{self, Remains};
use crate::store::sled::raw;
use crate::types::clock::{self, Anchor, StoreClock};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key;
use crate::types::options::EngineOptions;
pub use lost::{LostRange, RangeEnd};
use sources::Sources;

/// The number of problems, of keys in doubt, of lost keys, and of ranges of lost keys that a report names.
const MAX_PROBLEMS: usize = 100;

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
    /// The keys of the records and rows in doubt, in key order, of the first 100.
    pub in_doubt_keys: Vec<String>,
    /// The keys of records and rows of which only parts were found. They are not in the new store, so an operation with
    /// such a key would run again. Further keys may be lost without a trace: see [`lost_ranges`](Self::lost_ranges).
    pub lost: Vec<String>,
    /// The number of further lost keys, if there are more than 100.
    pub more_lost: u64,
    /// The ranges of keys, in key order, of which records and rows may be lost without a trace. An operation with a key
    /// in such a range that the new store does not have may have run before, and would run again. If there are more
    /// than 100, the last one extends over the others. A range without ends means that it is unknown which keys are lost.
    #[serde(default)]
    pub lost_ranges: Vec<LostRange>,
    /// Descriptions of the damage that was found. If there are more than 100, the last entry is the number of the
    /// others.
    pub problems: Vec<String>,
    /// The duration of the salvage.
    pub took: Duration,
}

impl SalvageReport {
    /// Returns true if everything was rescued as it was.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.in_doubt == 0 && self.lost.is_empty() && self.lost_ranges.is_empty() && self.problems.is_empty()
    }
}

impl Store {
    /// Rescues into `into`, which must be empty or not exist. Calls `progress` with the number of keys that are
    /// written, and the number of all.
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
        check_empty(into)?;
        if !options.any_file_system {
            files::check_file_system(from)?;
        }
        let remains = journal::remains(&store.join("journal"))?;
        let mut sources = Sources::new(&store.join("sled"), &remains);
        let remains = Remains { frames: Vec::new(), ..remains };
        let mut contents = Rescued { sources: &mut sources, remains: &remains, options };
        create(into, options, key::random(), &mut contents, progress)?;
        let mut report = sources.into_report();
        report.took = clock::monotonic().saturating_duration_since(began);
        Ok(report)
    }
}

/// The contents of the new store: everything that was found.
struct Rescued<'a> {
    sources: &'a mut Sources,
    remains: &'a Remains,
    options: &'a EngineOptions,
}

impl Contents for Rescued<'_> {
    fn len(&self) -> u64 {
        self.sources.len()
    }

    fn for_each(&mut self, f: &mut dyn FnMut(&StoreKey, &[u8]) -> Result<()>) -> Result<()> {
        self.sources.for_each(f)
    }

    fn end(&self) -> (u64, Anchor) {
        let Self { sources, remains, options } = self;
        let found = remains.anchor.unwrap_or(Anchor { store: sources.last_time(), ..Anchor::default() });
        let anchor = StoreClock::start(Arc::clone(&options.clock), found, options.max_offline).anchor();
        (sources.last_number().max(remains.last_frame), anchor)
    }
}

/// Returns the id of the damaged store: the one in the journal, or else the one in sled's file.
fn store_of(sled: &Path, remains: &Remains) -> Result<Option<[u8; 16]>> {
    match remains.store_id {
        Some(id) => Ok(Some(id)),
        None => raw::store_of(sled),
    }
}
