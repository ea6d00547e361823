//! Opens a store: finds it or makes it, brings sled up to the journal, and starts the threads.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::apply::Applier;
use super::format::corrupt;
use super::format::frame::{self, Change, Content, Frame, StoreKey};
use super::format::hash;
use super::format::list::RunList;
use super::format::segment::{SECTOR, sized};
use super::journal::{self, Recovered, Writer, segment_for};
use super::memtable::{Entry, Memtable};
use super::read_sets::ReadSets;
use super::runs::{Run, Runs};
use super::{Inner, Store, files, threads};
use crate::store::runs::flush::{Deleted, Flusher, Shared};
use crate::store::runs::unfinished::Unfinished;
use crate::store::sled::disk_space::{DiskSpace, SpaceStatus};
use crate::store::sled::snapshots;
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

/// Each open numbers its frames from a random number between the next multiple of this and the one after it: what carries a
/// lower number is from an open that has ended, and a restored copy does not give the fencing tokens of the original again.
const RANGE: u64 = 1 << 32;
/// Payload that may be committed and not yet be in sled.
const MAX_UNAPPLIED: u64 = 16 << 20;
/// Payload that may be committed since the last store checkpoint: what recovery has to replay at most, but for one group.
const MAX_UNCHECKED: u64 = 256 << 20;
/// How often an idle store notes the time.
const ANCHOR_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// What a group takes that only has a frame of the store's own.
const MARK_GROUP: u64 = SECTOR as u64;

/// What is replayed at once before it is flushed, in payload bytes.
const REPLAYED_AT_ONCE: u64 = 4 << 20;
/// The same where there is little room.
const REPLAYED_IF_LOW: u64 = 256 << 10;
/// Runs left by earlier opens that are deleted while the store is in service; more are deleted before.
const MAX_LEFTOVERS: u64 = 100;
/// What a record takes besides its key and outcome, about.
const RECORD_WEIGHT: usize = 400;
/// Blocks of runs that an open reads, to be sure that sled has lost none: 8 MB. More are left to `verify`.
const MAX_CHECKED: u64 = if cfg!(test) { 100 } else { 2_000 };

/// What a store's directory holds.
const PARTS: [&str; 2] = ["journal", "sled"];

/// What an open found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// There was no store; now there is.
    pub created: bool,
    /// The last owner closed it.
    pub clean: bool,
    /// Interrupted records, those whose process has died included.
    pub interrupted: u64,
    /// Commits that the journal had and sled did not.
    pub frames_replayed: u64,
    /// Bytes of a last write that was cut off. It was never answered.
    pub torn_bytes: u64,
    /// Other users, or the group, have rights on the store's directory and on what is in it: they may read answers, or keep
    /// the store from being opened by locking it. A store that this version makes is for its owner only; for one that was
    /// made otherwise, `chmod -R go= DIRECTORY` takes those rights away. Nothing is changed by the open itself.
    pub open_to_others: bool,
    /// Snapshots of the record store that were moved aside, which only a repair does.
    pub snapshots_moved: u64,
    /// How long it took.
    pub took: Duration,
}

impl Store {
    /// Opens the store in `path`, or makes one where nothing is. `Full` if the disk has not the room for what an open writes:
    /// sled's snapshot, what is replayed. The next one begins with that again.
    pub(crate) fn open(path: &Path, options: &EngineOptions) -> Result<(Self, OpenReport)> {
        Self::find_and_open(path, options, false)
    }

    /// Opens the store in `path` without sled's snapshots, which are moved aside first: sled then reads its whole log.
    pub(crate) fn repair(path: &Path, options: &EngineOptions) -> Result<(Self, OpenReport)> {
        Self::find_and_open(path, &options.clone().create(false), true)
    }

    fn find_and_open(path: &Path, options: &EngineOptions, repairs: bool) -> Result<(Self, OpenReport)> {
        let began = clock::monotonic();
        // The working directory may be another one by the time that a path is needed again.
        let path = &std::path::absolute(path).map_err(|cause| Error::io("open store", path, &cause))?;
        let _working = telemetry::enter(Work::Open, path);
        options.check()?;
        let open = || {
            let (lock, created) = find_or_create(path, options)?;
            let snapshots_moved = if repairs { snapshots::move_aside(&path.join("store"))? } else { 0 };
            let (store, report) = Self::open_found(path, options, lock)?;
            if report.torn_bytes > 0 {
                telemetry::torn_tail(report.torn_bytes);
            }
            let open_to_others = is_open_to_others(path);
            if open_to_others {
                telemetry::open_to_others(path);
            }
            let took = clock::monotonic().saturating_duration_since(began);
            Ok((store, OpenReport { created, open_to_others, snapshots_moved, took, ..report }))
        };
        open().map_err(|error: Error| match error.io_kind() {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                error.wrap(ErrorKind::Full, "no room to open the store")
            }
            _ => error,
        })
    }

    fn open_found(path: &Path, options: &EngineOptions, lock: files::StoreLock) -> Result<(Self, OpenReport)> {
        let dir = path.join("store");
        // Before sled, which writes when it is opened: a journal that is refused leaves everything as it was.
        let recovered = journal::recover(&dir.join("journal"), options.segment_bytes)?;
        let tables = Tables::open(&dir.join("sled"), options.cache_capacity, options.sync_flag, false)?;
        let (room, wakeups) = DiskSpace::new(&dir.join("sled"));
        let list = read_list(&dir, &tables, &recovered)?;
        let mut report =
            OpenReport { clean: recovered.clean, torn_bytes: recovered.torn_bytes, ..OpenReport::default() };
        let clock = StoreClock::start(Arc::clone(&options.clock), recovered.anchor, options.max_offline);
        let first = first_number(recovered.last_frame.max(list.frame));
        let (opened, store_id) = (clock.now(), list.store_id);
        let effect_seeds = EffectSeeds::of_this_open();
        let now = Now { store: opened, wall: clock.wall(), first, opened, effect_seed: effect_seeds.draw() };
        let shared = Arc::new(open_runs(&dir, tables, &list, &now)?);
        let (mut flusher, leftovers) = Flusher::open(Arc::clone(&shared), &list)?;
        // A clean close too may leave what it was replacing just then.
        let leftovers = if report.clean { 0 } else { leftovers };
        *shared.left_out.lock() += Deleted { leftovers, ..Deleted::default() };
        while leftovers > MAX_LEFTOVERS && flusher.has_unread() {
            flusher.delete_some()?;
        }
        report.frames_replayed = replay(&recovered, list.complete, &mut flusher, &room, &now)?;
        let (mut writer, pool, mut group) = start_journal(recovered, store_id, first, &clock)?;
        let mut next_frame = first + 1;
        if report.frames_replayed > 0 || !report.clean {
            // Before anything is served; and a process that dies again and again at its start leaves no segments behind.
            flush(&mut flusher, &room, first, &now)?;
            group += 1;
            write_mark(&mut writer, group, next_frame, &Frame::Checkpointed(first), &clock)?;
            next_frame += 1;
            pool.release(first);
        }
        report.interrupted = shared.unfinished.count_interrupted(&now);
        let applier = Applier::new(flusher, first, group);
        let config = config(options, Arc::clone(&shared.tables.barriers.progress));
        let group = CommitQueue::new(config, group, next_frame, writer.room());
        let (apply, thread_end) = threads::apply_channel(wakeups);
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            store_id,
            pid: std::process::id(),
            eventual: options.durability != Durability::Immediate,
            first,
            opened,
            effect_seeds,
            clock,
            commit_queue: group,
            versions: Versions::default(),
            read_sets: Arc::new(ReadSets::default()),
            shared,
            pool,
            disk_space: room,
            left_behind: Mutex::default(),
            apply,
            journal: writer.stats(),
            commits: Counter::new("oncekey_commits_total"),
            conflicts: Counter::new("oncekey_commit_conflicts_total"),
            checkpoints: Arc::new(Counter::new("oncekey_store_checkpoints_total")),
        });
        inner.remove_expired_at_open();
        let running = threads::start(&inner, writer, applier, thread_end, lock, options.sync_timeout)?;
        Ok((Self { inner, running: Mutex::new(Some(running)) }, report))
    }
}

/// The lock, and whether the store was made.
fn find_or_create(path: &Path, options: &EngineOptions) -> Result<(files::StoreLock, bool)> {
    if !options.create && !files::is_dir(&path.join("store")) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no store in {}", path.display())));
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
    if half_made.exists() && is_half_made(&half_made)? {
        // Its maker lives if it has it locked.
        let _dir = files::Lock::take_dir(&half_made, path)?;
        std::fs::remove_dir_all(&half_made).map_err(|cause| Error::io("remove half-made store", &half_made, &cause))?;
    }
    // sled writes when it is opened, and what it cannot write it would leave half done.
    let sled = store.join("sled");
    // Looked at under the lock: somebody may have made it before the lock was ours.
    if files::is_dir(&store) {
        let dir = files::Lock::take_dir(&store, path)?;
        DiskSpace::new(if files::is_dir(&sled) { &sled } else { path }).0.check()?;
        // Whoever made it may have been killed before this.
        files::sync_dir(path)?;
        return Ok((files::StoreLock { _file: file, _dir: dir }, false));
    }
    DiskSpace::new(path).0.check()?;
    files::sync_entry(path)?;
    files::create_dir(&half_made)?;
    let dir = files::Lock::take_dir(&half_made, path)?;
    create(&half_made, options)?;
    std::fs::rename(&half_made, &store).map_err(|cause| Error::io("create store", &store, &cause))?;
    files::sync_dir(path)?;
    Ok((files::StoreLock { _file: file, _dir: dir }, true))
}

/// Whether others get as far as the data or the lock file. Nobody gets past a directory that is for its owner only.
fn is_open_to_others(path: &Path) -> bool {
    let parts = [path.join("store"), path.join("LOCK")];
    files::is_open_to_others(path) && parts.iter().any(|part| files::is_open_to_others(part))
}

/// A directory that holds anything else is not ours to fill. `lost+found` is what a fresh file system comes with.
fn check_ours(path: &Path, store: &Path) -> Result<()> {
    let foreign = |entry: &Path| {
        let message = format!("{} is not a store and not empty: it holds {}", path.display(), entry.display());
        Error::new(ErrorKind::UnsupportedFormat, message)
    };
    if files::is_dir(store) {
        // With one of them gone it is a damaged store.
        let is_ours = PARTS.iter().any(|part| files::is_dir(&store.join(part)));
        return if is_ours { Ok(()) } else { Err(foreign(store)) };
    }
    for (entry, _) in files::entries(path)? {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_ours = match name {
            "LOCK" | "lost+found" => true,
            "store.new" => {
                files::entries(&entry)?.iter().all(|(part, _)| PARTS.iter().any(|name| part.ends_with(name)))
            }
            _ => false,
        };
        if !is_ours {
            return Err(foreign(&entry));
        }
    }
    Ok(())
}

/// A store that was being made when its process died holds nothing but its parts.
fn is_half_made(dir: &Path) -> Result<bool> {
    Ok(files::entries(dir)?.iter().all(|(part, _)| PARTS.iter().any(|name| part.ends_with(name))))
}

/// Built aside and renamed when every byte is durable, so that a crash leaves no store or a whole one.
fn create(dir: &Path, options: &EngineOptions) -> Result<()> {
    let store_id = key::random();
    let tables = Tables::open(&dir.join("sled"), options.cache_capacity, options.sync_flag, true)?;
    tables.set_list(&RunList { store_id, frame: 0, complete: 0, next_id: 1, runs: Vec::new() })?;
    tables.close()?;
    let anchor = StoreClock::start(Arc::clone(&options.clock), clock::Anchor::default(), Duration::ZERO).anchor();
    journal::create(&dir.join("journal"), store_id, options.segment_bytes, 0, anchor)?;
    files::sync_tree(dir)
}

/// sled and the journal must know the same past.
fn check_list(dir: &Path, list: &RunList, recovered: &Recovered) -> Result<()> {
    if list.store_id != recovered.store_id {
        return Err(corrupt(format!("the journal and the record store in {} belong to two stores", dir.display())));
    }
    let (sled, journal) = (list.frame, recovered.checkpointed);
    if sled < journal {
        let message = format!("the record store in {} ends at frame {sled}, it had frame {journal}", dir.display());
        return Err(corrupt(message));
    }
    if sled > recovered.last_frame {
        let end = recovered.last_frame;
        return Err(corrupt(format!("the journal in {} ends at frame {end}, it had frame {sled}", dir.display())));
    }
    Ok(())
}

/// The number of an open's first frame, behind the last one that there is.
fn first_number(last: u64) -> u64 {
    let [a, b, c, d, ..] = key::random();
    let within = u64::from(u32::from_le_bytes([a, b, c, d]));
    (last / RANGE + 1).saturating_mul(RANGE).saturating_add(within)
}

/// The list of the runs of a store, which belongs to this journal.
fn read_list(dir: &Path, tables: &Tables, recovered: &Recovered) -> Result<RunList> {
    let empty = || corrupt(format!("the record store in {} is empty", dir.display()));
    let list = tables.list()?.ok_or_else(empty)?;
    check_list(dir, &list, recovered)?;
    Ok(list)
}

/// Reads the indexes of the runs, and of a small store every block: what sled does not have any more is missed.
pub(super) fn open_runs(dir: &Path, tables: Tables, list: &RunList, now: &Now) -> Result<Shared> {
    let damaged = |error: Error| error.wrap(error.kind(), &format!("the record store in {}", dir.display()));
    let mut runs = Vec::with_capacity(list.runs.len());
    for info in &list.runs {
        runs.push(Arc::new(Run::open(&tables, *info).map_err(damaged)?));
    }
    if list.runs.iter().map(|run| u64::from(run.blocks)).sum::<u64>() <= MAX_CHECKED {
        for run in &runs {
            run.check(&tables, &mut Err).map_err(damaged)?;
        }
    }
    let unfinished = Unfinished::default();
    for (at, run) in runs.iter().enumerate() {
        for (key, lifetime) in &run.index.unfinished {
            if !is_replaced(&tables, runs.get(at + 1..).unwrap_or_default(), key)? {
                unfinished.update(std::iter::once((key, Some(*lifetime))), now);
            }
        }
    }
    let shared =
        Shared { tables, memtable: Memtable::default(), runs: Runs::default(), unfinished, left_out: Mutex::default() };
    shared.runs.publish(runs);
    Ok(shared)
}

/// Whether one of these runs says something of the key.
fn is_replaced(tables: &Tables, newer: &[Arc<Run>], key: &StoreKey) -> Result<bool> {
    let hash = hash(key.bytes());
    for run in newer {
        if run.find(tables, key.bytes(), hash)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts the changes after the last checkpoint, and after the frame up to which the runs are complete, into the memtable, and into
/// runs in steps. Returns the number of commits.
pub(super) fn replay(
    recovered: &Recovered,
    complete: u64,
    flusher: &mut Flusher,
    room: &DiskSpace,
    now: &Now,
) -> Result<u64> {
    let step =
        || if matches!(room.look(REPLAYED_AT_ONCE), SpaceStatus::Enough) { REPLAYED_AT_ONCE } else { REPLAYED_IF_LOW };
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
            flush(flusher, room, number, now)?;
            (bytes, most) = (0, step());
        }
        Ok(())
    })?;
    Ok(replayed)
}

/// Brings what was replayed into a run, if there is room for it.
pub(super) fn flush(flusher: &mut Flusher, room: &DiskSpace, frame: u64, now: &Now) -> Result<()> {
    flusher.mark_complete(frame);
    let prepared = flusher.prepare(frame, now)?;
    // What sled read of values in files of their own is to be durable before the journal gives anything up.
    flusher.shared.tables.blobs.sync()?;
    match room.claim(prepared.bytes()) {
        SpaceStatus::Short(full) => Err(full),
        SpaceStatus::Enough | SpaceStatus::Low(_) => flusher.write(prepared, now),
    }
}

/// About what a change takes in memory.
fn weight(change: &Change) -> u64 {
    let content = match &change.content {
        None => 0,
        Some(Content::Row(value)) => value.len(),
        Some(Content::Record(stored)) => stored.outcome.as_ref().map_or(0, |outcome| outcome.len()) + RECORD_WEIGHT,
    };
    (change.key.bytes().len() + content) as u64
}

/// A fresh segment behind everything found, with the opening frame durable in it. Also the number of the last group.
fn start_journal(
    recovered: Recovered,
    store_id: [u8; 16],
    first: u64,
    clock: &StoreClock,
) -> Result<(Writer, Arc<journal::Pool>, u64)> {
    let (pool, chain) = (Arc::clone(&recovered.pool), recovered.chain);
    let tail = recovered.into_tail()?;
    let spare = pool.prepare(segment_for(4 * MARK_GROUP), 0, u64::MAX)?;
    let mut writer = Writer::start(store_id, Arc::clone(&pool), chain, tail, spare, first)?;
    let group = chain.group + 1;
    write_mark(&mut writer, group, first, &Frame::Opening, clock)?;
    writer.seal()?;
    Ok((writer, pool, group))
}

fn write_mark(writer: &mut Writer, group: u64, number: u64, frame: &Frame, clock: &StoreClock) -> Result<()> {
    let mut payload = Vec::new();
    frame::encode(frame, &mut payload)?;
    let batch = Batch { group, first_frame: number, payload, frames: vec![false] };
    writer.write(&batch, Target::Current, clock.anchor()).map(|_| ())
}

fn config(options: &EngineOptions, applying: Arc<AtomicU64>) -> Config {
    Config {
        sized,
        // For what the store says of itself when it closes, half of it at least.
        reserve: (options.segment_bytes / 8).max(4 * MARK_GROUP),
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
