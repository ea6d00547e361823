//! Opens a crash state, and compares it with the answers.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;

use oncekey::{
    Engine, Status,
    admin::{OpenReport, RecordFilter},
};
use tempfile::TempDir;

use crate::disk::Image;
use crate::history::{Known, Seen, Wrong, number, value};
use crate::threads::LATE;
use crate::workload::{Ops, Run, Setup, clock, has_stages, manager, rows};

/// The content that was found, by key.
pub(crate) type Found = BTreeMap<String, Seen>;

/// The result for a crash state without faults.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) found: Found,
    /// The report of its first open.
    pub(crate) report: OpenReport,
    /// The number of answered steps that are missing.
    pub(crate) missing: usize,
}

/// A key that the check itself uses, to test that the store still works.
const PROBE: &str = "probe";

/// Returns a directory for crash states. It is in memory if possible, because crash states need not be durable.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// Returns true if the file system of the temporary directory supports the sync flag. Otherwise tests that need the
/// flag are skipped.
pub(crate) fn has_sync_flag() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let engine = Engine::options().sync_flag(true).open(dir.path()).unwrap();
        let found = engine.stats().sled_sync_flag;
        if !found {
            println!("left out: the sync flag, which the file system of {} does not have", dir.path().display());
        }
        found
    })
}

fn other(what: impl Into<String>) -> Wrong {
    Wrong::Other(what.into())
}

fn refused(what: &str, error: &oncekey::Error) -> Wrong {
    Wrong::Refused(format!("{what}: {error}"))
}

/// Reads the whole content in every way, and compares the results.
fn observe(engine: &Engine, ops: &Ops, known: &Known) -> Result<Found, Wrong> {
    let mut found = Found::new();
    for key in known.keys() {
        if let Some(record) = ops.get(key).map_err(|error| refused("get", &error))? {
            found.insert(key.clone(), Seen::of(&record).map_err(Wrong::Other)?);
        }
    }
    let listed = engine.records(RecordFilter::new()).map_err(|error| refused("list", &error))?;
    let mut names = Vec::new();
    for info in listed {
        let info = info.map_err(|error| refused("list", &error))?;
        let key = info.key().to_string();
        if key != PROBE && found.get(&key).is_none_or(|seen| seen.status != info.status()) {
            return Err(other(format!("{key} is listed as {info:?} and read as {:?}", found.get(&key))));
        }
        names.push(key);
    }
    names.retain(|name| name != PROBE);
    if !names.iter().eq(found.keys()) {
        let missing: Vec<_> = found.keys().filter(|key| !names.contains(key)).collect();
        return Err(other(format!("{missing:?} can be read and are not listed")));
    }
    let staged: BTreeMap<String, Option<u64>> = found
        .iter()
        .filter(|(key, seen)| has_stages(key) && seen.stage.or(seen.value).is_some())
        .map(|(key, seen)| (key.clone(), seen.stage.or(seen.value)))
        .collect();
    let rows = rows(engine).map_err(other)?;
    if rows != staged {
        return Err(other(format!("the records say {staged:?}, their rows {rows:?}")));
    }
    let mut interrupted = Vec::new();
    for info in engine.interrupted().map_err(|error| refused("list", &error))? {
        interrupted.push(info.map_err(|error| refused("list", &error))?.key().to_string());
    }
    let read = found.iter().filter(|(_, seen)| seen.status == Status::Interrupted).map(|(key, _)| key.clone());
    if !read.clone().eq(interrupted.iter().cloned()) {
        return Err(other(format!("interrupted are {:?}, listed {interrupted:?}", read.collect::<Vec<_>>())));
    }
    if engine.opened().interrupted != interrupted.len() as u64 {
        return Err(other(format!("{:?}, listed {}", engine.opened(), interrupted.len())));
    }
    Ok(found)
}

/// Opens the store twice, checks its content, uses it and closes it.
fn open_twice(path: &Path, setup: Setup, known: &Known, (cut, now): (usize, u64)) -> Result<Examined, Wrong> {
    let options = setup.options(&clock(now, setup.boots + 1));
    let engine = options.open(path).map_err(|error| refused("open", &error))?;
    let (ops, report) = (manager(&engine), *engine.opened());
    let found = observe(&engine, &ops, known)?;
    let missing = known.check(&found, cut, now)?;
    let probed = ops.execute(PROBE, |_| Ok(value(1))).map_err(|error| other(format!("{error:?}")))?;
    if cut % 4 == 0 {
        engine.compact_now().map_err(|error| refused("compact", &error))?;
        let left = observe(&engine, &ops, known)?;
        if left != found {
            return Err(other(format!("compaction made {left:?} of {found:?}")));
        }
    }
    drop(ops);
    engine.close().map_err(|error| refused("close", &error))?;
    let engine = options.open(path).map_err(|error| refused("second open", &error))?;
    let ops = manager(&engine);
    let again = observe(&engine, &ops, known)?;
    if again != found {
        return Err(other(format!("the second open has {again:?}, the first had {found:?}")));
    }
    let probe = ops.get(PROBE).map_err(|error| refused("get", &error))?;
    let same = probe.and_then(|record| record.into_outcome()?.ok()).and_then(|bytes| number(&bytes)) == Some(1);
    if !same || probed.replayed() || !engine.opened().clean {
        return Err(other(format!("the second open lost a probe, or is not clean: {:?}", engine.opened())));
    }
    Ok(Examined { found, report, missing })
}

/// Checks one crash state in a directory of its own. A panic or a hang counts as wrong too.
pub(crate) fn examine(image: &Image, run: &Run, cut: usize) -> Result<Examined, Wrong> {
    let dir = scratch();
    image.write(dir.path());
    let (setup, now, known) = (run.setup, run.now(cut), Arc::clone(&run.known));
    let path: PathBuf = dir.path().join("store");
    let (done, result) = channel();
    let worker = thread::spawn(move || {
        let examined = catch_unwind(AssertUnwindSafe(|| open_twice(&path, setup, &known, (cut, now))));
        // Ignore the result: the receiver is gone after a timeout.
        let _ = done.send(examined.unwrap_or_else(|_| Err(other("it panicked"))));
    });
    let Ok(examined) = result.recv_timeout(LATE) else { return Err(other("it hangs")) };
    worker.join().unwrap();
    examined
}
