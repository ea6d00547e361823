//! The work of the recorded engines: several threads, all kinds of endings, passing time, restarts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, Durability, Engine, EngineOptions, FOREVER, Interruption, Manager, ManagerOptions,
    OnInterrupted, Transaction, Value, admin::Resolution, clock::ManualClock, stage::Next,
};

use crate::history::{Began, Expected, History, Known, number, value};
use crate::record::{Event, Log, Recording};
use crate::threads::Rng;

pub(crate) type Ops = Manager<Vec<u8>, Vec<u8>>;

const THREADS: u64 = 4;
const ROUNDS: u64 = 2;
/// The number of operations of each thread in a round, normal and heavy. In a heavy round half of the values are large,
/// so that sled's log is filled and cleaned up.
const OPERATIONS: [u64; 2] = [10, 60];
const HOUR: u64 = 3600;

/// The settings of a recorded life. Everything random depends on the seed only, except the order of threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) sync_flag: bool,
    pub(crate) eventual: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) heavy: bool,
    pub(crate) sessions: u64,
    /// The number of earlier lives of the directory.
    pub(crate) life: u32,
    /// The number of earlier boots of the machine, and the seconds that passed.
    pub(crate) boots: u32,
    pub(crate) now: u64,
}

impl Setup {
    pub(crate) fn options(&self, clock: &ManualClock) -> EngineOptions {
        let interval = Duration::from_millis(2);
        let durability = if self.eventual { Durability::Eventual { interval } } else { Durability::Immediate };
        Engine::options()
            .segment_bytes(self.segment_bytes)
            .sync_flag(self.sync_flag)
            .durability(durability)
            .clock(clock.clone())
    }
}

pub(crate) fn clock(now: u64, boots: u32) -> ManualClock {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(now));
    (0..boots).for_each(|_| clock.reboot());
    clock
}

pub(crate) fn manager(engine: &Engine) -> Ops {
    engine.manager_with("ops", ManagerOptions::new().success_ttl(FOREVER).failure_ttl(FOREVER)).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Opening,
    Working,
    Closing,
}

/// A recorded life of a directory.
pub(crate) struct Run {
    pub(crate) setup: Setup,
    pub(crate) log: Log,
    pub(crate) known: Arc<Known>,
    /// The phases, with the length of the log at which each began. The first begins at 0.
    pub(crate) phases: Vec<(usize, Phase)>,
    /// The times in seconds, with the length of the log from which on each holds.
    pub(crate) times: Vec<(usize, u64)>,
    /// States before this length of the log belong to another life.
    pub(crate) from: usize,
}

impl Run {
    /// Returns the latest time that the store may assume at this length of the log.
    pub(crate) fn now(&self, cut: usize) -> u64 {
        self.times.iter().rfind(|(from, _)| *from <= cut).map_or(self.setup.now, |(_, now)| *now)
    }

    /// Returns the phase, and the number of phases before it.
    pub(crate) fn phase(&self, cut: usize) -> (usize, Phase) {
        let nth = self.phases.iter().rposition(|(from, _)| *from <= cut).unwrap();
        (nth, self.phases[nth].1)
    }
}

/// Opens the store below the directory, and works on it in as many sessions as the setup has.
pub(crate) fn run(setup: Setup, dir: &Path, initial: BTreeMap<String, Expected>) -> Run {
    let store = dir.canonicalize().unwrap().join("store");
    let history = History::new(Recording::start(dir));
    let (mut phases, mut times, mut now) = (Vec::new(), Vec::new(), setup.now);
    let clock = clock(now, setup.boots);
    let mut rng = Rng::new(setup.seed);
    let syncs = Mutex::new(Vec::new());
    let mut phase = |phase| phases.push((history.recording.position(), phase));
    for session in 0..setup.sessions {
        phase(Phase::Opening);
        let engine = setup.options(&clock).open(&store).unwrap();
        history.recording.mark(0);
        assert!(!setup.sync_flag || engine.stats().sled_sync_flag, "this file system has no sync flag");
        phase(Phase::Working);
        let ops = manager(&engine);
        resolve_interrupted(&engine, &ops, &history, now, &mut rng);
        for round in 0..ROUNDS {
            thread::scope(|scope| {
                for me in 0..THREADS {
                    let prefix = format!("{}-{session}-{round}", setup.life);
                    let rng = Rng::new(rng.next());
                    let worker = Worker {
                        history: &history,
                        ops: &ops,
                        syncs: &syncs,
                        now,
                        me,
                        prefix,
                        rng,
                        heavy: setup.heavy,
                    };
                    scope.spawn(move || worker.work());
                }
            });
            let hours = rng.below(4) * HOUR;
            now += hours;
            times.push((history.recording.position(), now));
            clock.advance(Duration::from_secs(hours));
            engine.compact_now().unwrap();
        }
        phase(Phase::Closing);
        drop(ops);
        let began = history.begin();
        // Some claims were leaked, as by a process that dies.
        engine.abort().unwrap();
        syncs.lock().unwrap().push((began, history.recording.mark(0)));
    }
    let (log, mut steps) = history.finish();
    if setup.eventual {
        let journal = synced_groups(&log);
        let syncs = syncs.into_inner().unwrap();
        for step in steps.iter_mut().filter(|step| step.answered != usize::MAX) {
            let asked = syncs.iter().filter(|(began, _)| began.0 >= step.answered).map(|(_, answered)| *answered).min();
            // By then the journal has written the group in progress, a seal, and the group with this commit. Count
            // groups, not time, because the recorder slows everything down. `src/sync/group_commit/tests.rs` tests that
            // a group is taken within the interval.
            let written = journal.iter().filter(|(began, _)| *began >= step.answered).nth(2).map(|(_, ended)| *ended);
            step.durable = asked.into_iter().chain(written).min().unwrap_or(usize::MAX);
        }
    }
    Run { setup, log, known: Arc::new(Known::new(initial, steps)), phases, times, from: 0 }
}

/// Returns, for each group or seal of the journal, the length of the log before its write and after its sync.
fn synced_groups(log: &Log) -> Vec<(usize, usize)> {
    let is_group = |bytes: &[u8], offset: u64| offset > 0 && bytes.iter().any(|byte| *byte != 0);
    let (mut unsynced, mut synced) = (BTreeMap::new(), Vec::new());
    for (at, event) in log.events.iter().enumerate() {
        match event {
            Event::Write { node, offset, bytes } if log.is_journal(*node) && is_group(bytes, *offset) => {
                unsynced.entry(*node).or_insert(at);
            }
            Event::Synced { node, .. } => synced.extend(unsynced.remove(node).map(|began| (began, at + 1))),
            _ => {}
        }
    }
    synced
}

/// Returns the TTL of outcomes of this key, in seconds. Keys of `initiate` have the TTL of their manager.
fn ttl(key: &str) -> u64 {
    match crc(key) % 3 {
        _ if key.starts_with('i') || has_stages(key) => u64::MAX,
        0 => HOUR,
        1 => 3 * HOUR,
        _ => u64::MAX,
    }
}

/// Such a key is used for stages only, so that its record and its row always agree.
pub(crate) fn has_stages(key: &str) -> bool {
    key.starts_with('t')
}

fn crc(key: &str) -> u64 {
    key.bytes().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

fn resumes(key: &str) -> bool {
    !key.starts_with('i') && crc(key) % 2 == 0
}

fn options(key: &str) -> CallOptions {
    let ttl = if ttl(key) == u64::MAX { FOREVER } else { Duration::from_secs(ttl(key)) };
    let policy = if resumes(key) { OnInterrupted::Resume } else { OnInterrupted::Hold };
    CallOptions::new().success_ttl(ttl).failure_ttl(ttl).on_interrupted(policy)
}

fn ended(key: &str, succeeded: bool, value: u64, now: u64) -> Expected {
    Expected::Ended { succeeded, value, expires: now.saturating_add(ttl(key)) }
}

/// Resolves the records that the last session or a crash interrupted: retries some, gives some an outcome, leaves some.
fn resolve_interrupted(engine: &Engine, ops: &Ops, history: &History, now: u64, rng: &mut Rng) {
    let infos: Vec<_> = engine.interrupted().unwrap().map(Result::unwrap).collect();
    for info in infos {
        let (key, number) = (info.key().as_str().unwrap().to_owned(), rng.next());
        if has_stages(&key) {
            continue;
        }
        let began = history.begin();
        let after = match rng.below(5) {
            0 => {
                ops.resolve(&key, Resolution::Retry).unwrap();
                Expected::Released { attempt: info.attempt() }
            }
            1 => {
                ops.resolve(&key, Resolution::Succeed(value(number))).unwrap();
                ended(&key, true, number, now)
            }
            2 => {
                ops.resolve(&key, Resolution::Fail(value(number))).unwrap();
                ended(&key, false, number, now)
            }
            3 => {
                assert!(ops.remove(&key).unwrap());
                Expected::Absent
            }
            _ => continue,
        };
        history.answer(&key, began, None, after);
    }
}

const ACCOUNTS: u64 = 8;
const AT_FIRST: i64 = 1000;

fn balance(value: Option<Value>) -> i64 {
    value.map_or(AT_FIRST, |value| i64::from_be_bytes(value.as_ref().try_into().unwrap()))
}

fn write_row(tx: &Transaction, key: &str, number: u64) -> Result<(), oncekey::Error> {
    tx.table("rows")?.insert(key, value(number))
}

/// Returns the number in the row of each key that has stages. Returns an error if the sum of the accounts is wrong.
pub(crate) fn rows(engine: &Engine) -> Result<BTreeMap<String, Option<u64>>, String> {
    let failed = |error: oncekey::Error| error.to_string();
    let accounts = engine.table("accounts").map_err(failed)?;
    let mut sum = 0;
    for account in 0..ACCOUNTS {
        sum += balance(accounts.get([u8::try_from(account).unwrap()]).map_err(failed)?);
    }
    if sum != AT_FIRST * i64::try_from(ACCOUNTS).unwrap() {
        return Err(format!("half a transfer is there: the accounts add up to {sum}"));
    }
    let rows = engine.table("rows").and_then(|table| table.iter()).map_err(failed)?;
    rows.map(|row| {
        let (key, bytes) = row.map_err(failed)?;
        Ok((String::from_utf8_lossy(&key).into_owned(), number(&bytes)))
    })
    .collect()
}

/// One thread of one round. It owns its keys, except those that start with `s`.
struct Worker<'a> {
    history: &'a History,
    ops: &'a Ops,
    syncs: &'a Mutex<Vec<(Began, usize)>>,
    now: u64,
    me: u64,
    prefix: String,
    rng: Rng,
    heavy: bool,
}

impl Worker<'_> {
    fn work(mut self) {
        let mut old = Vec::new();
        for nth in 0..OPERATIONS[usize::from(self.heavy)] {
            let key = format!("k-{}-{}-{nth}", self.prefix, self.me);
            let large = self.heavy && self.rng.below(2) == 0;
            let number = self.rng.next() & if large { !15 } else { u64::MAX };
            match self.rng.below(15) {
                0..=2 => self.execute(&key, number),
                3 => self.claim(&key).into_iter().for_each(|claim| self.end(claim, &key, false, number)),
                4 => self.release_and_take_over(&key, number),
                5 => self.interrupt(&key, number),
                6 => self.drop_claim(&key),
                7 => self.initiate(&format!("i{key}"), number),
                8 => self.change_old(&old, number),
                9 => self.sync(),
                10 | 11 => self.share(number),
                12 => self.transfer(number),
                _ => self.stages(&format!("t{key}"), number),
            }
            old.push(key);
        }
    }

    fn execute(&self, key: &str, number: u64) {
        let mut began = self.history.begin();
        let done = self.ops.execute_with(key, options(key), |claim| {
            self.history.answer(key, began, None, Expected::Claimed { attempt: claim.attempt() });
            began = self.history.begin();
            Ok(value(number))
        });
        assert!(!done.unwrap().replayed());
        self.history.answer(key, began, None, ended(key, true, number, self.now));
    }

    fn claim(&self, key: &str) -> Option<Claim<Vec<u8>, Vec<u8>>> {
        let began = self.history.begin();
        let Begin::Claimed(claim) = self.ops.begin_with(key, options(key)).unwrap() else { return None };
        self.history.answer(key, began, None, Expected::Claimed { attempt: claim.attempt() });
        Some(claim)
    }

    fn end(&self, claim: Claim<Vec<u8>, Vec<u8>>, key: &str, succeeds: bool, number: u64) {
        let began = self.history.begin();
        if succeeds {
            claim.succeed(&value(number)).unwrap();
        } else {
            claim.fail(&value(number)).unwrap();
        }
        self.history.answer(key, began, None, ended(key, succeeds, number, self.now));
    }

    fn release_and_take_over(&self, key: &str, number: u64) {
        let Some(claim) = self.claim(key) else { return };
        let (attempt, began) = (claim.attempt(), self.history.begin());
        claim.release().unwrap();
        self.history.answer(key, began, None, Expected::Released { attempt });
        if number % 3 > 0 {
            self.claim(key).into_iter().for_each(|claim| self.end(claim, key, true, number));
        }
    }

    fn interrupt(&self, key: &str, number: u64) {
        let Some(claim) = self.claim(key) else { return };
        let (attempt, began) = (claim.attempt(), self.history.begin());
        claim.interrupt().unwrap();
        self.history.answer(key, began, None, Expected::Interrupted { attempt, why: Interruption::Reported });
        if number % 3 == 0 {
            return;
        }
        if resumes(key) {
            self.claim(key).into_iter().for_each(|claim| self.end(claim, key, true, number));
        } else {
            let began = self.history.begin();
            self.ops.resolve(key, Resolution::Retry).unwrap();
            self.history.answer(key, began, None, Expected::Released { attempt });
        }
    }

    /// A drop has no answer.
    fn drop_claim(&self, key: &str) {
        let Some(mut claim) = self.claim(key) else { return };
        let (attempt, began) = (claim.attempt(), self.history.begin());
        let releases = crc(key) % 3 == 0;
        claim.release_on_drop(releases);
        drop(claim);
        let why = Interruption::Dropped;
        let after = if releases { Expected::Released { attempt } } else { Expected::Interrupted { attempt, why } };
        self.history.unanswered(key, began, None, after);
    }

    /// One in three stays in progress for ever.
    fn initiate(&self, key: &str, number: u64) {
        let began = self.history.begin();
        let token = self.ops.initiate(key).unwrap().unwrap();
        self.history.answer(key, began, None, Expected::Claimed { attempt: 1 });
        let began = self.history.begin();
        match number % 3 {
            0 => {}
            1 => {
                self.ops.success(key, token, &value(number)).unwrap();
                self.history.answer(key, began, None, ended(key, true, number, self.now));
            }
            _ => {
                self.ops.release(key, token).unwrap();
                self.history.answer(key, began, None, Expected::Released { attempt: 1 });
            }
        }
    }

    /// Changes a key that this thread used before, in whatever state it is.
    fn change_old(&mut self, old: &[String], number: u64) {
        if old.is_empty() {
            return;
        }
        let key = &old[usize::try_from(self.rng.below(old.len() as u64)).unwrap()];
        let began = self.history.begin();
        match self.rng.below(4) {
            0 => {
                if self.ops.remove(key).unwrap() {
                    self.history.answer(key, began, None, Expected::Absent);
                }
            }
            1 => {
                if self.ops.forget(key).unwrap() {
                    self.history.answer(key, began, None, Expected::Absent);
                    self.claim(key).into_iter().for_each(|claim| self.end(claim, key, true, number));
                }
            }
            2 => self.extend(key, began),
            _ => self.claim(key).into_iter().for_each(|claim| self.end(claim, key, false, number)),
        }
    }

    fn extend(&self, key: &str, began: Began) {
        let Some(record) = self.ops.get(key).unwrap() else { return };
        let Some(outcome) = record.outcome() else { return };
        let succeeded = outcome.is_ok();
        let number = number(outcome.unwrap_or_else(|failure| failure)).unwrap();
        assert!(self.ops.extend(key, Duration::from_secs(9 * HOUR)).unwrap());
        let expires = self.now.saturating_add(ttl(key).max(9 * HOUR));
        self.history.answer(key, began, None, Expected::Ended { succeeded, value: number, expires });
    }

    fn sync(&self) {
        let began = self.history.begin();
        self.ops.engine().sync().unwrap();
        self.syncs.lock().unwrap().push((began, self.history.recording.mark(0)));
    }

    /// Runs stages that leave the same number in the record and in a row. One in four operations stops between them.
    fn stages(&mut self, key: &str, number: u64) {
        let Some(mut claim) = self.claim(key) else { return };
        let attempt = claim.attempt();
        let steps = 1 + number / 16 % 3;
        for step in 0..steps {
            // The first number stays as it is, so its value can be a large one.
            let number = number.wrapping_add(step);
            let began = self.history.begin();
            claim
                .work_stage(|tx| write_row(tx, key, number).map(|()| Next::advance_with("staged", value(number))))
                .unwrap();
            self.history.answer(key, began, None, Expected::Staged { attempt, number });
        }
        if self.rng.below(4) == 0 {
            // Leak the claim: it stays in progress.
            std::mem::forget(claim);
            return;
        }
        let (number, began) = (number.wrapping_add(steps), self.history.begin());
        claim.work_stage(|tx| write_row(tx, key, number).map(|()| Next::Succeed(value(number)))).unwrap();
        self.history.answer(key, began, None, ended(key, true, number, self.now));
    }

    /// Moves an amount between two accounts, so that their sum stays the same.
    fn transfer(&self, number: u64) {
        let name = |number: u64| [u8::try_from(number % ACCOUNTS).unwrap()];
        let transferred: Result<(), oncekey::Error> = self.ops.engine().atomic_phase(|tx| {
            let accounts = tx.table("accounts")?;
            let (from, to, amount) = (name(number), name(number / ACCOUNTS), number % 50);
            let left = balance(accounts.get(from)?) - i64::try_from(amount).unwrap();
            accounts.insert(from, left.to_be_bytes())?;
            let more = balance(accounts.get(to)?) + i64::try_from(amount).unwrap();
            accounts.insert(to, more.to_be_bytes())
        });
        transferred.unwrap();
    }

    /// A key that all threads want. Its owner releases or ends it, and a waiter takes it over.
    fn share(&self, number: u64) {
        let key = &format!("s-{}-{}", self.prefix, number / 16 % 2);
        let began = self.history.begin();
        let answer = self.ops.begin_with(key, options(key).wait(Duration::from_secs(60))).unwrap();
        let Begin::Claimed(claim) = answer else { return };
        let (token, attempt) = (claim.token(), claim.attempt());
        self.history.answer(key, began, Some((token, 0)), Expected::Claimed { attempt });
        thread::yield_now();
        let began = self.history.begin();
        let after = if number / 16 % 5 == 0 {
            claim.succeed(&value(number)).unwrap();
            ended(key, true, number, self.now)
        } else {
            claim.release().unwrap();
            Expected::Released { attempt }
        };
        self.history.answer(key, began, Some((token, 1)), after);
    }
}
