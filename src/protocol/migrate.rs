//! Moves a store between a directory and a database.
//!
//! The new store has the same id, numbers, times and effect ids. No process has the source open, so every owner is
//! dead: records in progress are interrupted, as by the next open.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Protocol;
use crate::postgres::{Server, Source, Target};
use crate::store::{Content, Contents, Index, Load, Store, StoreKey, encode_record};
use crate::types::clock::{Anchor, StoreClock, monotonic};
use crate::types::error::Result;
use crate::types::options::EngineOptions;
use crate::types::record::{EffectSeeds, Now, Status, StoredRecord};

/// The number of keys that are listed at once.
const BATCH: usize = 256;

/// The result of [`migrate_to_postgres`](crate::EngineOptions::migrate_to_postgres) and
/// [`migrate_from_postgres`](crate::EngineOptions::migrate_from_postgres).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrateReport {
    /// The number of records in the new store.
    pub records: u64,
    /// The number of records that were in progress. They are interrupted in the new store, as their owners are dead.
    pub interrupted: u64,
    /// The number of rows in the new store.
    pub rows: u64,
    /// The duration of the move.
    pub took: Duration,
}

impl MigrateReport {
    /// Counts a content, and returns the content for the new store, if there is one. `last` is the highest number so
    /// far.
    fn keep(&mut self, content: Content, now: &Now, last: &mut u64) -> Option<Content> {
        let Content::Record(stored) = content else {
            self.rows += 1;
            return Some(content);
        };
        let kept = if stored.state == Status::InProgress {
            self.interrupted += 1;
            *last += 1;
            Arc::new(StoredRecord { revision: *last, ..stored.orphaned(now.store, now.wall) })
        } else if stored.seen(now).is_some() || stored.lifetime().is_unfinished() || stored.expires > now.store {
            stored
        } else {
            // An expired record keeps only its key, if that is remembered.
            Arc::new(stored.remembered(now)?)
        };
        self.records += u64::from(!kept.is_forgotten);
        Some(Content::Record(kept))
    }
}

impl Protocol {
    /// Copies the store in a directory, which no process has open, into a database.
    pub(crate) fn migrate_to_postgres(
        from: &Path,
        server: &Server,
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<MigrateReport> {
        let began = monotonic();
        // Holds the lock of a reader, so no process changes the store.
        let (source, _) = Store::open_read_only(from, options)?;
        let keys = keys_of(&source)?;
        let now = source.now();
        let mut target = Target::create(server, options, source.id())?;
        let (mut report, mut last) = (MigrateReport::default(), now.first);
        let total = keys.len() as u64;
        for (done, key) in (1..).zip(keys) {
            if let Some(content) = source.read(&key, Load::All)?.content {
                if let Some(content) = report.keep(content, &now, &mut last) {
                    target.add(&key, &content)?;
                }
            }
            progress(done, total);
        }
        target.commit(source.id(), now.store, last)?;
        source.close()?;
        report.took = monotonic().saturating_duration_since(began);
        Ok(report)
    }

    /// Copies the store in a database, which no engine has open, into a directory.
    pub(crate) fn migrate_from_postgres(
        server: &Server,
        into: &Path,
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<MigrateReport> {
        let began = monotonic();
        let source = Source::open(server, options)?;
        // The store time continues from the time in the database.
        let found = Anchor { store: source.time, wall: u64::MAX, ..Anchor::default() };
        let anchor = StoreClock::start(Arc::clone(&options.clock), found, Duration::ZERO).anchor();
        let wall = anchor.wall;
        let effect_seed = EffectSeeds::of_this_open().draw();
        let now = Now { store: source.time, wall, first: 0, opened: source.time, effect_seed };
        let (id, last) = (source.id, source.last);
        let mut moved = Moved { source, now, anchor, last, report: MigrateReport::default() };
        Store::create(into, options, id, &mut moved, progress)?;
        let took = monotonic().saturating_duration_since(began);
        Ok(MigrateReport { took, ..moved.report })
    }
}

/// Returns all keys of a store, in order.
fn keys_of(source: &Store) -> Result<Vec<StoreKey>> {
    let mut keys = Vec::new();
    for first in [StoreKey::first_record(), StoreKey::first_row()] {
        let end = first.prefix_end();
        let mut from = Some(first);
        while let Some(at) = from {
            let (found, next) = source.keys(Index::All, &at, end.as_ref(), BATCH)?;
            keys.extend(found);
            from = next;
        }
    }
    Ok(keys)
}

/// The contents of a database, for a directory.
struct Moved {
    source: Source,
    now: Now,
    anchor: Anchor,
    last: u64,
    report: MigrateReport,
}

impl Contents for Moved {
    fn len(&self) -> u64 {
        self.source.keys
    }

    fn for_each(&mut self, f: &mut dyn FnMut(&StoreKey, &[u8]) -> Result<()>) -> Result<()> {
        let Self { source, now, last, report, .. } = self;
        let mut bytes = Vec::new();
        source.for_each(&mut |key, content| {
            let Some(content) = report.keep(content, now, last) else { return Ok(()) };
            bytes.clear();
            match &content {
                Content::Row(value) => bytes.extend_from_slice(value),
                Content::Record(stored) => encode_record(stored, &mut bytes)?,
            }
            f(&key, &bytes)
        })
    }

    fn end(&self) -> (u64, Anchor) {
        (self.last, self.anchor)
    }
}
