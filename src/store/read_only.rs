//! Opens a store read-only: writes and creates nothing, takes a shared lock, and does not open sled.
//!
//! Blocks are read directly from sled's file, and later frames of the journal are replayed into the memtable. So this
//! works on a file system that is mounted read-only, and needs only read permission. A writer and a reader exclude each
//! other, so the files do not change while they are read.

use std::path::Path;
use std::sync::Arc;

use super::memtable::Entry;
use super::open::{Parts, check_exists, check_ours, first_number, is_open_to_others, new_inner, open_runs};
use super::{OpenReport, Store, files, threads};
use crate::store::format::frame::Frame;
use crate::store::journal;
use crate::store::runs::flush::Shared;
use crate::store::sled;
use crate::store::sled::disk_space::DiskSpace;
use crate::types::clock::{self, StoreClock};
use crate::types::error::{Error, Result};
use crate::types::options::EngineOptions;
use crate::types::record::{EffectSeeds, Now};
use crate::types::telemetry::{self, Work};

impl Store {
    /// Opens the store in `path` to read it.
    pub(crate) fn open_read_only(path: &Path, options: &EngineOptions) -> Result<(Self, OpenReport)> {
        let began = clock::monotonic();
        let path = &std::path::absolute(path).map_err(|cause| Error::io("open store", path, &cause))?;
        let _working = telemetry::enter(Work::Open, path);
        options.check()?;
        let lock = lock(path, options.any_file_system)?;
        let dir = path.join("store");
        let recovered = journal::recover_read_only(&dir.join("journal"))?;
        let (tables, list, rebuilt) = sled::open::open_read_only(&dir.join("sled"), &recovered.summary())?;
        let clock = StoreClock::start(Arc::clone(&options.clock), recovered.anchor, options.max_offline);
        let (first, effect_seeds) = (first_number(recovered.last_frame.max(list.frame)), EffectSeeds::of_this_open());
        let opened = clock.now();
        let now = Now { store: opened, wall: clock.wall(), first, opened, effect_seed: effect_seeds.draw() };
        let shared = Arc::new(open_runs(&dir, tables, &list, &now)?);
        let frames_replayed = replay(&recovered, list.complete, &shared, &now)?;
        let report = OpenReport {
            clean: recovered.clean,
            torn_bytes: recovered.torn_bytes,
            interrupted: shared.unfinished.count_interrupted(&now),
            frames_replayed,
            open_to_others: is_open_to_others(path),
            rebuilt,
            ..OpenReport::default()
        };
        // Segments before the checkpoint are not needed.
        recovered.pool.release(recovered.checkpointed);
        let (disk_space, wakeups) = DiskSpace::new(&dir.join("sled"));
        let parts = Parts {
            store_id: list.store_id,
            first,
            opened,
            effect_seeds,
            clock,
            shared,
            pool: recovered.pool,
            disk_space,
            journal: Arc::default(),
            group: recovered.chain.group,
            next_frame: first + 1,
            segment_space: 0,
        };
        // No thread reads the queue, because every commit is refused before it gets there.
        let (inner, _) = new_inner(path, options, parts, wakeups);
        let running = threads::none(lock, options.sync_timeout);
        let took = clock::monotonic().saturating_duration_since(began);
        Ok((Self { inner, running: parking_lot::Mutex::new(Some(running)) }, OpenReport { took, ..report }))
    }
}

/// Takes the shared lock, which excludes writers while it is held.
fn lock(path: &Path, any_file_system: bool) -> Result<files::StoreLock> {
    check_exists(path)?;
    if !any_file_system {
        files::check_file_system(path)?;
    }
    check_ours(path, &path.join("store"))?;
    files::StoreLock::shared(path)
}

/// Puts the changes after the frame up to which the runs are complete into the memtable.
fn replay(recovered: &journal::Recovered, complete: u64, shared: &Shared, now: &Now) -> Result<u64> {
    let mut replayed = 0;
    recovered.replay(&mut |number, frame| {
        let Frame::Changes(changes) = frame else { return Ok(()) };
        if number <= complete {
            return Ok(());
        }
        replayed += 1;
        let lifetimes: Vec<_> = changes
            .iter()
            .map(|change| (change.key.clone(), change.record().map(|stored| stored.lifetime())))
            .collect();
        // The index of unfinished records was read from the runs, which do not have these changes.
        shared.unfinished.update(lifetimes.iter().map(|(key, lifetime)| (key, *lifetime)), now);
        let entries = changes.into_iter().map(|change| {
            let entry = Entry { number, ticket: 0, content: change.content };
            (change.key, entry)
        });
        shared.memtable.put_all(entries, || ());
        Ok(())
    })?;
    Ok(replayed)
}
