//! Checks everything that is stored while the store is in use.
//!
//! Runs never change, and no run is deleted while it is read, so every problem found is real. The list has the number
//! of blocks and entries of each run, so missing ones are noticed.

use std::iter::Peekable;
use std::sync::Arc;

use super::format::frame::StoreKey;
use super::runs::{Item, Merged, Run};
use crate::store::runs::flush::Shared;
use crate::types::error::{Error, ErrorKind, Result};

/// The number of problems that are reported one by one.
const MAX_PROBLEMS: usize = 100;

/// The result of [`Engine::verify`](crate::Engine::verify).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The number of records, including expired ones that are still stored. 0 if a run is damaged.
    pub records: u64,
    /// The number of rows in all tables. 0 if a run is damaged.
    pub rows: u64,
    /// The problems. Each names its manager and key, table and key, run and block, or file. If there are very many, the
    /// last one says how many more there are.
    pub problems: Vec<String>,
}

/// A limited list of problems.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    reported: Vec<String>,
    unreported: u64,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        if self.reported.len() < MAX_PROBLEMS {
            self.reported.push(problem);
        } else {
            self.unreported += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.reported.is_empty()
    }

    /// Adds an error as a problem if data was read and is wrong. Returns it if data could not be read.
    fn sort(&mut self, error: Error) -> Result<()> {
        if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnsupportedFormat) {
            self.add(error.to_string());
            return Ok(());
        }
        Err(error)
    }

    fn into_reported(mut self) -> Vec<String> {
        if self.unreported > 0 {
            self.reported.push(format!("and {} more", self.unreported));
        }
        self.reported
    }
}

/// Reads all runs. `problems` were found before. Calls `goes_on` between steps, and stops with its error.
pub(crate) fn verify(
    shared: &Shared,
    mut problems: Problems,
    goes_on: &dyn Fn() -> Result<()>,
) -> Result<VerifyReport> {
    // The memtable first: entries that are flushed in between are then seen twice, and counted once.
    let in_memory = shared.memtable.all();
    let runs = shared.runs.current();
    let mut are_sound = true;
    for run in runs.iter() {
        run.check(&shared.tables, &mut |error| {
            goes_on()?;
            are_sound = false;
            problems.sort(error)
        })?;
        goes_on()?;
    }
    let (mut records, mut rows) = (0, 0);
    if are_sound {
        let mut keys = Keys::new(shared, &runs, in_memory)?;
        while let Some((key, is_there)) = keys.next(shared)? {
            let count = if key.is_record() { &mut records } else { &mut rows };
            *count += u64::from(is_there);
        }
    }
    shared.tables.check_open()?;
    debug_assert!(are_sound || !problems.is_empty(), "a damaged run has a problem");
    Ok(VerifyReport { records, rows, problems: problems.into_reported() })
}

/// Iterates over every key of the memtable and the runs, in order. The flag is false for a key that is absent.
struct Keys {
    in_memory: Peekable<std::vec::IntoIter<(StoreKey, bool)>>,
    merged: Merged,
    head: Option<Item>,
}

impl Keys {
    fn new(shared: &Shared, runs: &[Arc<Run>], in_memory: Vec<(StoreKey, bool)>) -> Result<Self> {
        let mut merged = Merged::new(&shared.tables, runs, &[])?;
        let head = merged.next(&shared.tables)?;
        Ok(Self { in_memory: in_memory.into_iter().peekable(), merged, head })
    }

    fn next(&mut self, shared: &Shared) -> Result<Option<(StoreKey, bool)>> {
        let newest = match (self.in_memory.peek(), &self.head) {
            (Some((key, _)), Some(item)) if *key > item.key => None,
            (Some((key, _)), head) => {
                if head.as_ref().is_some_and(|item| item.key == *key) {
                    self.head = self.merged.next(&shared.tables)?;
                }
                self.in_memory.next()
            }
            (None, _) => None,
        };
        if newest.is_some() {
            return Ok(newest);
        }
        let Some(item) = self.head.take() else { return Ok(None) };
        self.head = self.merged.next(&shared.tables)?;
        Ok(Some((item.key, item.value.is_some())))
    }
}
