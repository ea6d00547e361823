//! Opens a store: finds or creates it, replays the journal, and starts the threads.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::apply::Inbox;
use super::create::{PARTIAL, PARTS, RECORD_CACHE, access, create_empty, is_half_made, remove_half_made};
use super::format::frame::{self, Change, Content, Frame};
use super::format::list::RunList;
use super::format::segment::{SECTOR, sized};
use super::journal::{self, JournalStats, Recovered, Writer, segment_for};
use super::memtable::{Entry, Memtable};
use super::read_sets::ReadSets;
use super::record_cache::RecordCache;
use super::runs::{Run, Runs, have};
use super::{Inner, Store, files, threads};
use crate::store::runs::flush::{Deleted, Flusher, Shared};
use crate::store::runs::unfinished::Unfinished;
use crate::store::sled;
use crate::store::sled::disk_space::{DiskSpace, SpaceStatus, Wakeups};
use crate::store::sled::tables::Tables;
use crate::store::versions::Versions;
use crate::sync::atomic::AtomicU64;
use crate::sync::group_commit::{Batch, CommitQueue, Config, Target};
use crate::types::clock::{self, StoreClock};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key;
use crate::types::options::{Durability, EngineOptions};
use crate::types::record::{EffectSeeds, Now};
use crate::types::stats::Counter;
use crate::types::telemetry::{self, Work};

/// The size of a range of frame numbers. Each open starts its numbers at a random place in the next range. So a token
/// of an earlier range belongs to an open that has ended, and a restored copy does not repeat the tokens of the
/// original.
const RANGE: u64 = 1 << 32;
/// The largest number of payload bytes that may be committed and not yet in runs.
const MAX_UNAPPLIED: u64 = 16 << 20;
/// The largest number of payload bytes that may be committed since the last checkpoint. A recovery replays at most this
/// and one group.
const MAX_UNCHECKED: u64 = 256 << 20;
/// The interval in which an idle store records its clocks.
const ANCHOR_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// The bytes of a group with only one frame of the store's own.
const OWN_FRAME_GROUP: u64 = SECTOR as u64;

/// The payload bytes that a replay reads before it flushes.
const REPLAYED_AT_ONCE: u64 = 4 << 20;
/// The payload bytes that a replay reads before it flushes, when space is low.
const REPLAYED_IF_LOW: u64 = 256 << 10;
/// The number of unlisted runs that are deleted while the store is in use. If there are more, the open deletes some
/// first.
const MAX_LEFTOVERS: u64 = 100;
/// The approximate bytes of a record in memory, without its key and outcome.
const RECORD_WEIGHT: usize = 400;

/// The result of an open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[non_exhaustive]
pub struct OpenReport {
    /// True if there was no store and the open created one.
    pub created: bool,
    /// True if the last owner closed the store.
    pub clean: bool,
    /// The number of interrupted records, including those whose process has died.
    pub interrupted: u64,
    /// The number of commits that were only in the journal.
    pub frames_replayed: u64,
    /// The size in bytes of an incomplete last write that was cut off. Only under [`Durability::Eventual`] may a
    /// caller have been given an answer for it.
    pub torn_bytes: u64,
    /// True if other users have permissions on the directory of the store or its content. They may read stored answers,
    /// or lock the store and so prevent an open. Stores created by this version are for their owner only. For others,
    /// `chmod -R go= DIRECTORY` removes the permissions. The open changes nothing.
    pub open_to_others: bool,
    /// True if the record store could not be opened as it was, after a crash or because of damage. All its blocks were
    /// there, and it was rebuilt from them, so nothing is lost. A read-only engine leaves that to the next open for
    /// writing.
    pub rebuilt: bool,
    /// On PostgreSQL, true if the server names a synchronous standby (`synchronous_standby_names`). Each answer is on
    /// that standby too, and survives a failover to it. If false, a failover may lose the last answers and claims.
    pub synchronous_standby: bool,
    /// The duration of the open.
    pub took: Duration,
}

impl Store {
    /// Opens the store in `path`, or creates it. Returns `Full` if there is no space for the writes of an open: sled's
    /// snapshot and the replay. The next open then starts again.
    pub(crate) fn open(path: &Path, options: &EngineOptions) -> Result<(Self, OpenReport)> {
        let began = clock::monotonic();
        // The working directory may change before the path is used again.
        let path = &std::path::absolute(path).map_err(|cause| Error::io("open store", path, &cause))?;
        let _working = telemetry::enter(Work::Open, path);
        options.check()?;
        let open = || {
            let (lock, created) = find_or_create(path, options)?;
            let (store, report) = Self::open_found(path, options, lock)?;
            if report.torn_bytes > 0 {
                telemetry::torn_tail(report.torn_bytes);
            }
            let open_to_others = is_open_to_others(path);
            if open_to_others {
                telemetry::open_to_others(path);
            }
            let took = clock::monotonic().saturating_duration_since(began);
            Ok((store, OpenReport { created, open_to_others, took, ..report }))
        };
        open().map_err(|error: Error| match error.io_kind() {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                error.wrap(ErrorKind::Full, "no space to open the store")
            }
            _ => error,
        })
    }

    fn open_found(path: &Path, options: &EngineOptions, mut lock: files::StoreLock) -> Result<(Self, OpenReport)> {
        let dir = path.join("store");
        // Read the journal before sled is opened, because sled writes when it is opened: an open that refuses the
        // journal changes nothing.
        let recovered = journal::recover(&dir.join("journal"), options.segment_bytes)?;
        let (tables, list, rebuilt) = sled::open::open(&dir.join("sled"), access(options), &recovered.summary())?;
        let (space, wakeups) = DiskSpace::new(&dir.join("sled"));
        let mut report =
            OpenReport { clean: recovered.clean, torn_bytes: recovered.torn_bytes, rebuilt, ..OpenReport::default() };
        let clock = StoreClock::start(Arc::clone(&options.clock), recovered.anchor, options.max_offline);
        let first = first_number(recovered.last_frame.max(list.frame));
        let (opened, store_id) = (clock.now(), list.store_id);
        let effect_seeds = EffectSeeds::of_this_open();
        let now = Now { store: opened, wall: clock.wall(), first, opened, effect_seed: effect_seeds.draw() };
        let shared = Arc::new(open_runs(&dir, tables, &list, &now)?);
        let (mut flusher, leftovers) = Flusher::open(Arc::clone(&shared), &list)?;
        // Report only what a crash left: after a clean close, an unlisted run is one that was just being replaced.
        let leftovers = if report.clean { 0 } else { leftovers };
        *shared.left_out.lock() += Deleted { leftovers, ..Deleted::default() };
        while leftovers > MAX_LEFTOVERS && flusher.has_deletable() {
            flusher.delete_some()?;
        }
        report.frames_replayed = replay(&recovered, list.complete, &mut flusher, &space, &now)?;
        let (mut writer, pool, mut group) = start_journal(recovered, store_id, first, &clock)?;
        let mut next_frame = first + 1;
        if report.frames_replayed > 0 || !report.clean {
            // Make a checkpoint before the first call: a process that dies at every start must not add a segment each
            // time.
            flush(&mut flusher, &space, first, &now)?;
            group += 1;
            write_own_frame(&mut writer, group, next_frame, &Frame::Checkpointed(first), &clock)?;
            next_frame += 1;
            pool.release(first);
        }
        report.interrupted = shared.unfinished.count_interrupted(&now);
        let parts = Parts {
            store_id,
            first,
            opened,
            effect_seeds,
            clock,
            shared,
            pool,
            disk_space: space,
            journal: writer.stats(),
            group,
            next_frame,
            segment_space: writer.space(),
        };
        let (inner, thread_end) = new_inner(path, options, parts, wakeups);
        inner.remove_expired_at_open();
        lock.keep();
        let running = threads::start(&inner, writer, (flusher, group), thread_end, lock, options.sync_timeout)?;
        Ok((Self { inner, running: Mutex::new(Some(running)) }, report))
    }
}

/// The results of the steps of an open, from which the store is made.
pub(super) struct Parts {
    pub(super) store_id: [u8; 16],
    pub(super) first: u64,
    pub(super) opened: u64,
    pub(super) effect_seeds: EffectSeeds,
    pub(super) clock: StoreClock,
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<journal::Pool>,
    pub(super) disk_space: DiskSpace,
    pub(super) journal: Arc<JournalStats>,
    /// The number of the last group.
    pub(super) group: u64,
    pub(super) next_frame: u64,
    /// Bytes for groups that are left in the current segment.
    pub(super) segment_space: u64,
}

/// Returns the store, and the apply thread's end of its channel.
pub(super) fn new_inner(
    path: &Path,
    options: &EngineOptions,
    parts: Parts,
    wakeups: Wakeups,
) -> (Arc<Inner>, (Inbox, Sender<Infallible>)) {
    let config = config(options, Arc::clone(&parts.shared.tables.barriers.progress));
    let (apply, thread_end) = threads::apply_channel(wakeups);
    let inner = Inner {
        path: path.to_owned(),
        store_id: parts.store_id,
        pid: std::process::id(),
        read_only: options.read_only,
        eventual: options.durability != Durability::Immediate,
        first: parts.first,
        opened: parts.opened,
        effect_seeds: parts.effect_seeds,
        clock: parts.clock,
        commit_queue: CommitQueue::new(config, parts.group, parts.next_frame, parts.segment_space),
        versions: Versions::default(),
        read_sets: Arc::new(ReadSets::default()),
        record_cache: RecordCache::new(options.cache_capacity / RECORD_CACHE),
        shared: parts.shared,
        pool: parts.pool,
        disk_space: parts.disk_space,
        left_behind: Mutex::default(),
        apply,
        journal: parts.journal,
        commits: Counter::new("oncekey_commits_total"),
        conflicts: Counter::new("oncekey_commit_conflicts_total"),
        checkpoints: Arc::new(Counter::new("oncekey_store_checkpoints_total")),
    };
    (Arc::new(inner), thread_end)
}

/// Returns the locks, and true if the store was created.
fn find_or_create(path: &Path, options: &EngineOptions) -> Result<(files::StoreLock, bool)> {
    if !options.create {
        check_exists(path)?;
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(Error::io("open store", path, &io::ErrorKind::NotADirectory.into())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            files::create_dirs(path)?;
        }
        Err(cause) => return Err(Error::io("open store", path, &cause)),
    }
    if !options.any_file_system {
        files::check_file_system(path)?;
    }
    let store = path.join("store");
    check_ours(path, &store)?;
    let file = files::Lock::take(&path.join("LOCK"), path)?;
    let half_made = path.join("store.new");
    remove_half_made(&half_made, path)?;
    // Check under the lock: another process may have created the store meanwhile.
    if files::is_dir(&store)? {
        let dir = files::Lock::take_dir(&store, path)?;
        // The process that created it may have been killed before this sync.
        files::sync_dir(path)?;
        return Ok((files::StoreLock::new(file, dir), false));
    }
    // On a full disk, sled would leave an incomplete file.
    DiskSpace::new(path).0.check()?;
    files::sync_entry(path)?;
    files::create_dir(&half_made)?;
    let dir = files::Lock::take_dir(&half_made, path)?;
    create_empty(&half_made, options)?;
    std::fs::rename(&half_made, &store).map_err(|cause| Error::io("create store", &store, &cause))?;
    files::sync_dir(path)?;
    Ok((files::StoreLock::new(file, dir), true))
}

/// Returns `NotFound` if there is no store in `path`.
pub(super) fn check_exists(path: &Path) -> Result<()> {
    let store = path.join("store");
    match std::fs::metadata(&store) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(cause) if !matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(Error::io("open store", &store, &cause))
        }
        _ => Err(Error::new(ErrorKind::NotFound, format!("there is no store in {}", path.display()))),
    }
}

/// True if other users can reach the data or the lock file. A directory for its owner only protects everything in it.
pub(super) fn is_open_to_others(path: &Path) -> bool {
    let parts = [path.join("store"), path.join("LOCK")];
    files::is_open_to_others(path) && parts.iter().any(|part| files::is_open_to_others(part))
}

/// Refuses a directory with other files, except `lost+found` of a new file system.
pub(super) fn check_ours(path: &Path, store: &Path) -> Result<()> {
    let foreign = |entry: &Path| {
        let message = format!("{} is not a store and not empty: it holds {}", path.display(), entry.display());
        Error::new(ErrorKind::UnsupportedFormat, message)
    };
    if files::is_dir(store)? {
        // If only one of the parts is missing, this is a damaged store.
        for part in PARTS {
            if files::is_dir(&store.join(part))? {
                return Ok(());
            }
        }
        return Err(foreign(store));
    }
    for (entry, _) in files::entries(path)? {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_ours = match name {
            "LOCK" | "lost+found" => true,
            "store.new" => is_half_made(&entry)?,
            PARTIAL => {
                let message = format!("{} has an unfinished salvage or migration: run it again", path.display());
                return Err(Error::new(ErrorKind::UnsupportedFormat, message));
            }
            _ => false,
        };
        if !is_ours {
            return Err(foreign(&entry));
        }
    }
    Ok(())
}

/// Returns the number of the first frame of this open, higher than every earlier one.
pub(super) fn first_number(last: u64) -> u64 {
    let [a, b, c, d, ..] = key::random();
    let within = u64::from(u32::from_le_bytes([a, b, c, d]));
    (last / RANGE + 1).saturating_mul(RANGE).saturating_add(within)
}

/// Reads the indexes of the runs.
pub(super) fn open_runs(dir: &Path, tables: Tables, list: &RunList, now: &Now) -> Result<Shared> {
    let damaged = |error: Error| error.wrap(error.kind(), &format!("the record store in {}", dir.display()));
    let mut runs = Vec::with_capacity(list.runs.len());
    for info in &list.runs {
        runs.push(Arc::new(Run::open(&tables, *info).map_err(damaged)?));
    }
    let unfinished = Unfinished::default();
    for (at, run) in runs.iter().enumerate() {
        for (key, lifetime) in &run.index.unfinished {
            let newer = runs.iter().skip(at + 1);
            if run.has(&tables, key)? && !have(&tables, newer, key)? {
                unfinished.update(std::iter::once((key, Some(*lifetime))), now);
            }
        }
    }
    let shared = Shared {
        tables,
        memtable: Memtable::default(),
        runs: Runs::default(),
        unfinished,
        left_out: Mutex::default(),
        #[cfg(test)]
        waiting_at_steps: Mutex::default(),
    };
    shared.runs.publish(runs);
    Ok(shared)
}

/// Replays the changes after the last checkpoint that the runs do not have. Puts them into the memtable, and flushes in
/// steps. Returns the number of commits.
pub(super) fn replay(
    recovered: &Recovered,
    complete: u64,
    flusher: &mut Flusher,
    space: &DiskSpace,
    now: &Now,
) -> Result<u64> {
    let step =
        || if matches!(space.look(REPLAYED_AT_ONCE), SpaceStatus::Enough) { REPLAYED_AT_ONCE } else { REPLAYED_IF_LOW };
    let (mut replayed, mut bytes, mut most) = (0, 0, step());
    recovered.replay(&mut |number, frame| {
        let Frame::Changes(changes) = frame else { return Ok(()) };
        if number <= complete {
            return Ok(());
        }
        replayed += 1;
        bytes += changes.iter().map(weight).sum::<u64>();
        let entries = changes.into_iter().map(|change| {
            let entry = Entry { number, ticket: 0, content: change.content };
            (change.key, entry)
        });
        flusher.shared.memtable.put_all(entries, || ());
        if bytes >= most {
            flush(flusher, space, number, now)?;
            (bytes, most) = (0, step());
        }
        Ok(())
    })?;
    Ok(replayed)
}

/// Flushes the replayed changes into a run, if there is space.
pub(super) fn flush(flusher: &mut Flusher, space: &DiskSpace, frame: u64, now: &Now) -> Result<()> {
    flusher.mark_complete(frame);
    let mut prepared = flusher.prepare(frame, now)?;
    // Sync values that sled has in files of their own, before the journal frees any segment.
    flusher.shared.tables.blobs.sync()?;
    loop {
        if let SpaceStatus::Short(full) = space.claim(prepared.bytes()) {
            return Err(full);
        }
        if flusher.write_part(&mut prepared)? {
            return flusher.finish(prepared, now);
        }
    }
}

/// Returns the approximate size of a change in memory, in bytes.
fn weight(change: &Change) -> u64 {
    let content = match &change.content {
        None => 0,
        Some(Content::Row(value)) => value.len(),
        Some(Content::Record(stored)) => stored.outcome.as_ref().map_or(0, |outcome| outcome.len()) + RECORD_WEIGHT,
    };
    (change.key.bytes().len() + content) as u64
}

/// Starts a new segment with a durable opening frame, after everything that was found. Also returns the number of the
/// last group.
fn start_journal(
    recovered: Recovered,
    store_id: [u8; 16],
    first: u64,
    clock: &StoreClock,
) -> Result<(Writer, Arc<journal::Pool>, u64)> {
    let (pool, chain) = (Arc::clone(&recovered.pool), recovered.chain);
    let tail = recovered.into_tail()?;
    let spare = pool.prepare(segment_for(4 * OWN_FRAME_GROUP), 0, u64::MAX)?;
    let mut writer = Writer::start(store_id, Arc::clone(&pool), chain, tail, spare, first)?;
    let group = chain.group + 1;
    write_own_frame(&mut writer, group, first, &Frame::Opening, clock)?;
    writer.seal()?;
    Ok((writer, pool, group))
}

fn write_own_frame(writer: &mut Writer, group: u64, number: u64, frame: &Frame, clock: &StoreClock) -> Result<()> {
    let mut payload = Vec::new();
    frame::encode(frame, &mut payload)?;
    let batch = Batch { group, first_frame: number, payload, frames: vec![false] };
    writer.write(&batch, Target::Current, clock.anchor()).map(|_| ())
}

fn config(options: &EngineOptions, applying: Arc<AtomicU64>) -> Config {
    Config {
        sized,
        // At least half of this is for the store's own frames during a close.
        reserve: (options.segment_bytes / 8).max(4 * OWN_FRAME_GROUP),
        max_unapplied: MAX_UNAPPLIED,
        max_unchecked: MAX_UNCHECKED,
        interval: match options.durability {
            Durability::Immediate => None,
            Durability::Eventual { interval } => Some(interval),
        },
        timeout: options.sync_timeout,
        applying,
        idle: ANCHOR_INTERVAL,
    }
}
