//! Stores whose content is known, closed and not closed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use oncekey::{
    BeginOptions, Claim, Context, Engine, Fingerprint, Manager, ManagerOptions, ManualClock, RecordFilter, Resolution,
    Result, Status, Value,
};
use tempfile::TempDir;

use crate::threads::{Rng, until};

const CHILD_DIR: &str = "ONCEKEY_DAMAGE_DIR";
const ROUNDS: u64 = 3;
const KEYS: u64 = 120;
const THREADS: usize = 4;
/// So many operations are the last ones before a stop: 4096 bytes of the journal hold no more.
const LAST: usize = 8;

type Ops = Manager<Vec<u8>, Vec<u8>>;
/// Manager and key.
pub(crate) type Name = (String, Vec<u8>);

/// All that a caller can see of a record, but for times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    outcome: Option<(bool, Vec<u8>)>,
    rest: String,
}

/// A store that has stopped, and what must be in it.
pub(crate) struct Stopped {
    pub(crate) name: &'static str,
    pub(crate) clean: bool,
    dir: TempDir,
    pub(crate) expected: BTreeMap<Name, Seen>,
    /// What the very last groups of the journal may have held: if all of them are gone, an older state of these is right too.
    pub(crate) last: BTreeSet<Name>,
}

pub(crate) fn open(path: &Path) -> Result<Engine> {
    Engine::options().clock(ManualClock::new()).segment_bytes(32 << 10).open(path)
}

pub(crate) fn see(engine: &Engine, name: &Name) -> Result<Option<Seen>> {
    Ok(engine.raw(&name.0)?.get(&name.1)?.map(|record| {
        let info = record.info();
        let context: Vec<_> = info.context().iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        let rest = (info.fingerprint(), context, info.attempt(), info.generation(), info.policy(), info.interruption());
        let outcome = |value: &Value, is_ok| Some((is_ok, value.to_vec()));
        Seen {
            status: record.status(),
            outcome: record.outcome().and_then(|it| it.map_or_else(|v| outcome(v, false), |v| outcome(v, true))),
            rest: format!("{rest:?} {:?} {:?}", info.recovery_point(), info.checkpoint()),
        }
    }))
}

/// Everything that a listing gives.
pub(crate) fn list(engine: &Engine) -> Result<Vec<Name>> {
    let name =
        |info: Result<oncekey::RecordInfo>| info.map(|info| (info.manager().to_owned(), info.key().as_ref().to_vec()));
    engine.records(RecordFilter::new())?.map(name).collect()
}

pub(crate) fn interrupted(engine: &Engine) -> Result<Vec<Name>> {
    let name =
        |info: Result<oncekey::RecordInfo>| info.map(|info| (info.manager().to_owned(), info.key().as_ref().to_vec()));
    engine.interrupted()?.map(name).collect()
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

impl Seen {
    /// Whether it may have been what `later` was before: without another outcome.
    pub(crate) fn is_older_than(&self, later: &Self) -> bool {
        self.outcome.is_none() || later.outcome.is_none() || self.outcome == later.outcome
    }
}

impl Stopped {
    pub(crate) fn interrupted(&self) -> Vec<Name> {
        let interrupted = self.expected.iter().filter(|(_, seen)| seen.status == Status::Interrupted);
        interrupted.map(|(name, _)| name.clone()).collect()
    }

    fn new(name: &'static str, clean: bool, dir: TempDir, last: BTreeSet<Name>) -> Self {
        let mut stopped = Self { name, clean, dir, expected: BTreeMap::new(), last };
        let copy = stopped.copy();
        let engine = open(&copy.path().join("it")).unwrap();
        assert_eq!(engine.opened().clean, clean);
        for name in list(&engine).unwrap() {
            let seen = see(&engine, &name).unwrap().unwrap();
            stopped.expected.insert(name, seen);
        }
        assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new(), "{name}");
        stopped
    }

    /// A copy to be damaged, in `it`.
    pub(crate) fn copy(&self) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        copy_tree(self.dir.path(), &to.path().join("it"));
        to
    }
}

fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next().to_be_bytes()[0]).collect()
}

fn claim(ops: &Ops, key: &str, options: BeginOptions) -> Claim<Vec<u8>, Vec<u8>> {
    ops.begin_with(key, options).unwrap().into_claim().unwrap_or_else(|_| panic!("{key} is not free"))
}

/// A round of everything: each state, long and short outcomes, contexts, fingerprints, expiry, changes of older records.
fn fill(engine: &Engine, round: u64) {
    let names = ["cards", "mail", "stock.moves"];
    let managers: Vec<Ops> = names
        .iter()
        .map(|name| engine.manager_with(name, ManagerOptions::new().success_ttl(Duration::from_secs(86_400))).unwrap())
        .collect();
    for index in 0..KEYS {
        let seed = round * KEYS + index;
        let (ops, key) = (&managers[usize::try_from(index % 3).unwrap()], format!("{round}-{index}"));
        let mut options = BeginOptions::new();
        if index % 4 == 0 {
            options = options.fingerprint(Fingerprint::of(&seed).unwrap()).context(Context::new().with("user", "ada"));
        }
        let claim = claim(ops, &key, options);
        match index % 10 {
            0..=3 => drop(claim.succeed(&bytes(seed, seed % 300)).unwrap()),
            4 => drop(claim.fail(&bytes(seed, 50)).unwrap()),
            5 | 6 => drop(claim.succeed(&bytes(seed, 5_000 + seed * 40)).unwrap()),
            7 => drop(claim.release().unwrap()),
            8 => drop(claim.interrupt().unwrap()),
            // Never dropped: its record stays in progress until the stop.
            _ => std::mem::forget(claim),
        }
        if round > 0 {
            let (older, old) = (&managers[usize::try_from(index % 3).unwrap()], format!("{}-{index}", round - 1));
            match index % 20 {
                2 => drop(older.remove(&old).unwrap()),
                4 => drop(older.reopen(&old).unwrap()),
                8 => older.resolve(&old, Resolution::Succeed(bytes(seed, 900))).unwrap(),
                11 => drop(older.extend(&old, Duration::from_secs(9 * 86_400)).unwrap()),
                _ => {}
            }
        }
    }
}

fn filled(rounds: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    for round in 0..rounds {
        let engine = open(&path).unwrap();
        fill(&engine, round);
        engine.close().unwrap();
    }
    (dir, path)
}

/// Closed once, after one session and after several.
pub(crate) fn closed(rounds: u64) -> Stopped {
    let (dir, _) = filled(rounds);
    let name = if rounds == 1 { "closed after one session" } else { "closed after several" };
    Stopped::new(name, true, dir, BTreeSet::new())
}

/// Copied while it is open and nothing happens.
pub(crate) fn quiet(rounds: u64) -> Stopped {
    let (_dir, path) = filled(rounds - 1);
    let engine = open(&path).unwrap();
    fill(&engine, rounds - 1);
    let ops: Ops = engine.manager("last").unwrap();
    let last = (0..LAST).map(|index| {
        ops.execute(index.to_string(), |_| Ok(vec![7; 700])).unwrap();
        ("last".to_owned(), index.to_string().into_bytes())
    });
    let last = last.collect();
    until("everything is in sled", || engine.stats().unapplied_bytes == 0);
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&path.join("store"), &copy.path().join("store"));
    let name = if rounds == 1 { "stopped in its first session" } else { "stopped in a later one" };
    Stopped::new(name, false, copy, last)
}

/// Killed while it works.
pub(crate) fn killed() -> Stopped {
    let (dir, path) = filled(ROUNDS - 1);
    let exe = std::env::current_exe().unwrap();
    let mut child = Command::new(exe)
        .args(["stores::child", "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIR, &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut answered = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, answer)) = line.split_once('@') else { continue };
        answered.push(("load".to_owned(), answer.as_bytes().to_vec()));
        if answered.len() == 400 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    let stopped = Stopped::new("killed under load", false, dir, BTreeSet::new());
    let latest: Vec<Name> = answered.iter().rev().take(LAST * THREADS).cloned().collect();
    let answered: BTreeSet<Name> = answered.into_iter().collect();
    for name in &answered {
        assert_eq!(stopped.expected[name].status, Status::Succeeded, "{name:?} was answered");
    }
    // What nobody was answered may be there, and be gone with the last group.
    let others = stopped.expected.keys().filter(|name| name.0 == "load" && !answered.contains(*name));
    let last = others.cloned().chain(latest).collect();
    Stopped { last, ..stopped }
}

/// Not a test: what is killed.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let engine = open(dir.as_ref()).unwrap();
    let ops: Ops = engine.manager("load").unwrap();
    thread::scope(|scope| {
        for me in 0..THREADS {
            let ops = &ops;
            scope.spawn(move || {
                for index in 0_u64.. {
                    let key = format!("{me}-{index}");
                    ops.execute(&key, |_| Ok(bytes(index, index * 37 % 6_000))).unwrap();
                    std::io::stdout().lock().write_all(format!("@{key}\n").as_bytes()).unwrap();
                }
            });
        }
    });
}
