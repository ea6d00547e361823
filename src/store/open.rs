//! Opens a store: finds it or makes it, brings sled up to the journal, and starts the threads.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::apply::Applier;
use super::compact::Leftovers;
use super::digest::Digest;
use super::expiries::Expiries;
use super::format::corrupt;
use super::format::frame::{self, Frame};
use super::format::segment::{SECTOR, sized};
use super::journal::{self, Recovered, Writer, segment_for};
use super::overlay::Overlay;
use super::read_sets::ReadSets;
use super::{Inner, Store, files, threads, values};
use crate::store::sled::disk_space::DiskSpace;
use crate::store::sled::snapshots;
use crate::store::sled::tables::{Name, Stamp, Tables};
use crate::store::versions::Versions;
use crate::sync::atomic::AtomicU64;
use crate::sync::group_commit::{Batch, CommitQueue, Config, Target};
use crate::types::clock::{self, StoreClock};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key;
use crate::types::options::{Durability, EngineOptions};
use crate::types::record::EffectSeeds;
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

/// Records and rows that are counted at open, to be sure that sled has lost none.
const MAX_COUNTED: usize = if cfg!(test) { 100 } else { 20_000 };
/// Blocks of the expiry tree that are read then, of up to 4 KiB each.
const MAX_LISTED: usize = 1 << 10;
/// Unfinished records looked at in one step.
const SURVEY_BATCH: usize = 1024;

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
        let stamp = read_stamp(&dir, &tables, &recovered)?;
        let mut report =
            OpenReport { clean: recovered.clean, torn_bytes: recovered.torn_bytes, ..OpenReport::default() };
        let clock = StoreClock::start(Arc::clone(&options.clock), recovered.anchor, options.max_offline);
        let (tables, overlay) = (Arc::new(tables), Arc::new(Overlay::default()));
        let first = first_number(recovered.last_frame.max(stamp.frame));
        let mut applier = Applier::new(Arc::clone(&tables), Arc::clone(&overlay), stamp, first);
        recovered.replay(&mut |number, frame| {
            report.frames_replayed += u64::from(matches!(frame, Frame::Changes(_)));
            applier.apply(number, frame)
        })?;
        let (mut writer, pool, mut group) = start_journal(recovered, stamp.store_id, first, &clock)?;
        let mut next_frame = first + 1;
        // It changes nothing, so that sled is also the state after it.
        applier.apply(first, Frame::Opening)?;
        if !report.clean {
            // Found by the background compaction, which forgets it when it is through.
            tables.set_sweep(true)?;
        }
        if report.frames_replayed > 0 || !report.clean {
            recount(&tables, &mut applier.expiries, report.frames_replayed > 0)?;
            // Before anything is served; and a process that dies again and again at its start leaves no segments behind.
            applier.settle(true)?;
            tables.flush()?;
            tables.blobs.sync()?;
            group += 1;
            write_mark(&mut writer, group, next_frame, Frame::Checkpointed(first), &clock)?;
            next_frame += 1;
            pool.release(first);
        }
        applier.forget_live();
        let leftovers = Leftovers::new(tables.sweep()?);
        let config = config(options, Arc::clone(&tables.barriers.progress));
        let group = CommitQueue::new(config, group, next_frame, writer.room());
        let (apply, thread_end) = threads::apply_channel(wakeups);
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            store_id: stamp.store_id,
            pid: std::process::id(),
            eventual: options.durability != Durability::Immediate,
            first,
            opened: clock.now(),
            effect_seeds: EffectSeeds::of_this_open(),
            clock,
            commit_queue: group,
            versions: Versions::default(),
            read_sets: Arc::new(ReadSets::default()),
            overlay,
            tables,
            pool,
            disk_space: room,
            left_behind: Mutex::default(),
            apply,
            not_listed: applier.expiries.earliest(),
            journal: writer.stats(),
            commits: Counter::new("oncekey_commits_total"),
            conflicts: Counter::new("oncekey_commit_conflicts_total"),
            checkpoints: Arc::new(Counter::new("oncekey_store_checkpoints_total")),
        });
        let running = threads::start(&inner, writer, applier, thread_end, lock, options.sync_timeout)?;
        let store = Self { inner, running: Mutex::new(Some(running)), leftovers };
        report.interrupted = store.survey_unfinished(SURVEY_BATCH)?.interrupted;
        Ok((store, report))
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
    tables.set_stamp(Stamp { store_id, frame: 0, digest: Some(Digest::default()) })?;
    tables.flush()?;
    tables.close()?;
    let anchor = StoreClock::start(Arc::clone(&options.clock), clock::Anchor::default(), Duration::ZERO).anchor();
    journal::create(&dir.join("journal"), store_id, options.segment_bytes, anchor)?;
    files::sync_tree(dir)
}

/// sled and the journal must know the same past.
fn check_stamp(dir: &Path, stamp: Stamp, recovered: &Recovered) -> Result<()> {
    if stamp.store_id != recovered.store_id {
        return Err(corrupt(format!("the journal and the record store in {} belong to two stores", dir.display())));
    }
    let (sled, journal) = (stamp.frame, recovered.checkpointed);
    if sled < journal {
        let message = format!("the record store in {} ends at frame {sled}, it had frame {journal}", dir.display());
        return Err(corrupt(message));
    }
    if sled > recovered.last_frame {
        let last = recovered.last_frame;
        return Err(corrupt(format!("the journal in {} ends at frame {last}, it had frame {sled}", dir.display())));
    }
    Ok(())
}

/// Since the last stamp sled has got some of what came later, and nobody knows which: so it is counted anew, a large one in the
/// background.
fn recount(tables: &Tables, expiries: &mut Expiries, replayed: bool) -> Result<()> {
    if !replayed && tables.digest().is_some() {
        return Ok(());
    }
    tables.set_digest(None);
    let Some(counted) = tables.count(MAX_COUNTED)? else { return Ok(()) };
    let blocks = tables.range(Name::Expiry, &[], None, MAX_LISTED + 1)?;
    if blocks.len() > MAX_LISTED {
        return Ok(());
    }
    tables.set_digest(Some(counted));
    expiries.begin_list();
    for (key, bytes) in blocks {
        // One that cannot be read leads nowhere.
        let _ = expiries.list(&key, &bytes);
    }
    for (raw, found) in tables.range(Name::Records, &[], None, MAX_COUNTED)? {
        values::mend_hints(tables, expiries, &raw, &found)?;
    }
    expiries.end_list();
    Ok(())
}

/// The number of an open's first frame, behind the last one that there is.
fn first_number(last: u64) -> u64 {
    let [a, b, c, d, ..] = key::random();
    let within = u64::from(u32::from_le_bytes([a, b, c, d]));
    (last / RANGE + 1).saturating_mul(RANGE).saturating_add(within)
}

/// The stamp of a store, which belongs to this journal, and says what sled holds if nothing was committed behind it.
fn read_stamp(dir: &Path, tables: &Tables, recovered: &Recovered) -> Result<Stamp> {
    let empty = || corrupt(format!("the record store in {} is empty", dir.display()));
    let stamp = tables.stamp()?.ok_or_else(empty)?;
    check_stamp(dir, stamp, recovered)?;
    // A stamp that the journal does not know of may be there without all that was written before it.
    let checkpointed = recovered.checkpointed;
    if recovered.clean || (stamp.frame == checkpointed && recovered.last_change <= checkpointed) {
        check_digest(dir, tables, stamp)?;
    }
    Ok(stamp)
}

/// Nothing was committed since sled was stamped, so it holds exactly what that says. Counting takes time, so only small stores are; what is
/// unfinished is read at every open anyway.
fn check_digest(dir: &Path, tables: &Tables, stamp: Stamp) -> Result<()> {
    tables.set_digest(stamp.digest);
    let Some(mut was) = stamp.digest else { return Ok(()) };
    let is = if was.records.saturating_add(was.rows) <= MAX_COUNTED as u64 {
        tables.count(usize::MAX)?
    } else {
        was = Digest { unfinished: was.unfinished, unfinished_sum: was.unfinished_sum, ..Digest::default() };
        tables.count_in([Name::Unfinished], usize::MAX)?
    };
    let is = is.unwrap_or_default();
    if is == was { Ok(()) } else { Err(corrupt(format!("the record store in {} {}", dir.display(), is.differs(&was)))) }
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
    let spare = pool.prepare(segment_for(4 * MARK_GROUP), u64::MAX)?;
    let mut writer = Writer::start(store_id, Arc::clone(&pool), chain, tail, spare, first)?;
    let group = chain.group + 1;
    write_mark(&mut writer, group, first, Frame::Opening, clock)?;
    writer.seal()?;
    Ok((writer, pool, group))
}

fn write_mark(writer: &mut Writer, group: u64, number: u64, frame: Frame, clock: &StoreClock) -> Result<()> {
    let batch = Batch { group, first_frame: number, payload: frame::encode(&frame)?, frames: vec![frame] };
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
