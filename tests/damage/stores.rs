//! Stores with known content, closed or not closed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use oncekey::{
    CallOptions, Claim, Context, Engine, Error, Fingerprint, Manager, ManagerOptions, Result, admin::Resolution,
    clock::ManualClock, stage::Next,
};
use tempfile::TempDir;

use crate::states::{Content, Name, States, all, see};
use crate::threads::Rng;

const CHILD_DIR: &str = "ONCEKEY_DAMAGE_DIR";
const ROUNDS: u64 = 3;
const KEYS: u64 = 120;
const THREADS: usize = 4;
/// The number of operations before a stop. 4096 bytes of the journal hold no more.
const LAST: usize = 8;

type Ops = Manager<Vec<u8>, Vec<u8>>;

/// A stopped store with its known content.
pub(crate) struct Stopped {
    pub(crate) name: &'static str,
    pub(crate) clean: bool,
    dir: TempDir,
    /// The records and rows in it.
    pub(crate) expected: BTreeMap<Name, Content>,
    /// All states that records and rows have had.
    pub(crate) states: States,
    /// The names in the last groups of the journal. If all these groups are missing, an older state of these names is
    /// right too.
    pub(crate) last: BTreeSet<Name>,
}

pub(crate) fn open(path: &Path) -> Result<Engine> {
    Engine::options().clock(ManualClock::new()).segment_bytes(32 << 10).open(path)
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &to);
        } else if path.is_file() {
            fs::copy(&path, &to).unwrap();
        } else {
            // The socket that a killed process has left is no part of the store.
            assert!(path.ends_with("SOCKET"), "{}", path.display());
        }
    }
}

impl Stopped {
    fn new(name: &'static str, clean: bool, dir: TempDir, states: States, last: BTreeSet<Name>) -> Self {
        let mut stopped = Self { name, clean, dir, expected: BTreeMap::new(), states, last };
        let copy = stopped.copy();
        let engine = open(&copy.path().join("it")).unwrap();
        assert_eq!(engine.opened().clean, clean);
        for name in all(&engine).unwrap() {
            let content = see(&engine, &name).unwrap().unwrap();
            stopped.expected.insert(name, content);
        }
        assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new(), "{name}");
        stopped
    }

    /// Expects the last state of each key.
    fn has_all(self) -> Self {
        for (name, last) in self.states.latest() {
            assert_eq!(self.expected.get(name), last, "{name:?}");
        }
        assert!(self.expected.keys().all(|name| self.states.knows(name)));
        self
    }

    /// Returns a copy to damage, in the directory `it`.
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

fn claim(ops: &Ops, key: &str, options: CallOptions) -> Claim<Vec<u8>, Vec<u8>> {
    ops.begin_with(key, options).unwrap().into_claim().unwrap_or_else(|_| panic!("{key} is not free"))
}

/// Fills a store and notes its content.
struct Filler<'a> {
    engine: &'a Engine,
    states: &'a mut States,
}

impl Filler<'_> {
    fn note(&mut self, manager: &str, key: &str) {
        let name = Name::record(manager, key);
        self.states.note(&name, see(self.engine, &name).unwrap());
    }

    fn note_row(&mut self, key: &str) {
        let name = Name::row("rows", key);
        self.states.note(&name, see(self.engine, &name).unwrap());
    }

    /// Fills the store with everything: all states, short and long outcomes, contexts, fingerprints, expiry, stages
    /// with rows, changes of older records and rows.
    fn fill(&mut self, round: u64) {
        for index in 0..KEYS {
            let manager = ["cards", "mail", "stock.moves"][usize::try_from(index % 3).unwrap()];
            let options = ManagerOptions::new().success_ttl(Duration::from_secs(86_400));
            let ops: Ops = self.engine.manager_with(manager, options).unwrap();
            self.one(&ops, manager, round, index);
            if round > 0 {
                self.change_older(&ops, manager, round - 1, index);
            }
        }
    }

    fn one(&mut self, ops: &Ops, manager: &str, round: u64, index: u64) {
        let (seed, key) = (round * KEYS + index, format!("{round}-{index}"));
        let mut options = CallOptions::new();
        if index % 4 == 0 {
            options = options.fingerprint(Fingerprint::of(&seed).unwrap()).context(Context::new().with("user", "ada"));
        }
        let mut claim = claim(ops, &key, options);
        self.note(manager, &key);
        if index % 5 < 2 {
            for step in 0..=index % 3 {
                self.stage(&mut claim, manager, &key, &bytes(seed + step, 20 + seed * 20 * step));
            }
        }
        match index % 10 {
            0..=3 => drop(claim.succeed(&bytes(seed, seed % 300)).unwrap()),
            4 => drop(claim.fail(&bytes(seed, 50)).unwrap()),
            5 => drop(claim.succeed(&bytes(seed, 5_000 + seed * 40)).unwrap()),
            6 if index % 20 == 6 => drop(claim.succeed(&bytes(seed, 5_000 + seed * 40)).unwrap()),
            7 => drop(claim.release().unwrap()),
            8 => drop(claim.interrupt().unwrap()),
            // Leak the claim: its record stays in progress.
            _ => std::mem::forget(claim),
        }
        self.note(manager, &key);
    }

    fn stage(&mut self, claim: &mut Claim<Vec<u8>, Vec<u8>>, manager: &str, key: &str, bytes: &[u8]) {
        let advanced = claim.work_stage(|tx| -> Result<_, Error> {
            tx.table("rows")?.insert(key, bytes)?;
            Ok(Next::advance_with("staged", bytes))
        });
        advanced.unwrap();
        self.note(manager, key);
        self.note_row(key);
    }

    fn change_older(&mut self, ops: &Ops, manager: &str, round: u64, index: u64) {
        let (seed, old) = (round * KEYS + index, format!("{round}-{index}"));
        let rows = self.engine.table("rows").unwrap();
        match index % 20 {
            0 | 6 => rows.insert(&old, bytes(seed, 100)).unwrap(),
            2 => drop(ops.remove(&old).unwrap()),
            4 => drop(ops.forget(&old).unwrap()),
            8 => ops.resolve(&old, Resolution::Succeed(bytes(seed, 900))).unwrap(),
            10 => rows.remove(&old).unwrap(),
            11 => drop(ops.extend(&old, Duration::from_secs(9 * 86_400)).unwrap()),
            _ => {}
        }
        self.note(manager, &old);
        self.note_row(&old);
    }

    /// Makes the last operations before a stop. Returns the names that they wrote.
    fn finish(&mut self) -> BTreeSet<Name> {
        let ops: Ops = self.engine.manager("last").unwrap();
        let mut last = BTreeSet::new();
        for index in 0..LAST {
            let key = index.to_string();
            let mut claim = claim(&ops, &key, CallOptions::new());
            self.note("last", &key);
            if index % 2 == 0 {
                self.stage(&mut claim, "last", &key, &[6; 700]);
                last.insert(Name::row("rows", &key));
            }
            claim.succeed(&vec![7; 700]).unwrap();
            self.note("last", &key);
            last.insert(Name::record("last", &key));
        }
        last
    }
}

fn filled(rounds: u64) -> (TempDir, PathBuf, States) {
    let (dir, mut states) = (tempfile::tempdir().unwrap(), States::default());
    let path = dir.path().to_owned();
    for round in 0..rounds {
        let engine = open(&path).unwrap();
        Filler { engine: &engine, states: &mut states }.fill(round);
        // Some claims were leaked.
        engine.abort().unwrap();
    }
    (dir, path, states)
}

/// Returns a store that was closed after the given number of sessions.
pub(crate) fn closed(rounds: u64) -> Stopped {
    let (dir, _, states) = filled(rounds);
    let name = if rounds == 1 { "closed after one session" } else { "closed after several" };
    Stopped::new(name, true, dir, states, BTreeSet::new()).has_all()
}

/// Returns a copy of an open, idle store.
pub(crate) fn quiet(rounds: u64) -> Stopped {
    let (_dir, path, mut states) = filled(rounds - 1);
    let engine = open(&path).unwrap();
    let mut filler = Filler { engine: &engine, states: &mut states };
    filler.fill(rounds - 1);
    let last = filler.finish();
    // Commits after the last flush are only in the journal.
    engine.sync().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&path.join("store"), &copy.path().join("store"));
    let name = if rounds == 1 { "stopped in its first session" } else { "stopped in a later one" };
    Stopped::new(name, false, copy, states, last).has_all()
}

/// Returns the value that the child stores under this key.
fn answer(index: u64) -> Vec<u8> {
    bytes(index, index * 37 % 6_000)
}

/// Returns a store whose process was killed during its work.
pub(crate) fn killed() -> Stopped {
    let (dir, path, states) = filled(ROUNDS - 1);
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
        answered.push(Name::record("load", answer));
        if answered.len() == 400 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    let mut stopped = Stopped::new("killed under load", false, dir, states, BTreeSet::new());
    let latest: Vec<Name> = answered.iter().rev().take(LAST * THREADS).cloned().collect();
    let answered: BTreeSet<Name> = answered.into_iter().collect();
    assert!(answered.iter().all(|name| stopped.expected.contains_key(name)), "what was answered is there");
    let load = stopped.expected.iter().filter(|(name, _)| name.is_of("load"));
    for (name, content) in load {
        let index = std::str::from_utf8(name.key()).unwrap().split_once('-').unwrap().1.parse().unwrap();
        let is_done = content.is_success(&answer(index));
        assert!(is_done || (content.is_dead() && !answered.contains(name)), "{name:?} is {content:?}");
        // The record was begun before it ended.
        stopped.states.note(name, Some(content.before_its_end()));
        stopped.states.note(name, Some(content.clone()));
        // Records without an answer may be there, and may disappear with the last group.
        if !answered.contains(name) {
            stopped.last.insert(name.clone());
        }
    }
    stopped.last.extend(latest);
    stopped.has_all()
}

/// Not a test: the process that is killed.
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
                    ops.execute(&key, |_| Ok(answer(index))).unwrap();
                    std::io::stdout().lock().write_all(format!("@{key}\n").as_bytes()).unwrap();
                }
            });
        }
    });
}
