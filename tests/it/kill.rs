//! Killed at random under load and opened again: every answer given is still given.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use oncekey::{Begin, Claim, Engine, ExecuteError, Manager, Resolution, Status};

use crate::threads::{LATE, Rng, within};

const DIR: &str = "ONCEKEY_KILL_DIR";
const ROUND: &str = "ONCEKEY_KILL_ROUND";
const THREADS: u64 = 8;
/// New keys in each round.
const KEYS: u64 = 300;

/// A value is made from a number, so that a line can say which it is; up to 9000 bytes, so that some are kept in pieces.
type Ops = Manager<Vec<u8>, Vec<u8>>;

fn value(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let len = if number % 16 == 0 { rng.below(9_000) } else { rng.below(200) };
    number.to_be_bytes().into_iter().chain((0..len).map(|_| rng.next().to_be_bytes()[0])).collect()
}

/// Which it is, if every byte is as it was.
fn number(bytes: &[u8]) -> u64 {
    let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    assert!(value(number) == bytes, "value {number} came back with other bytes");
    number
}

fn open(path: &Path) -> Engine {
    // Small segments, so that many are sealed, recycled and checkpointed in a round.
    Engine::options().segment_bytes(128 << 10).open(path).unwrap()
}

/// What the child says: one line, one write.
fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("@{line}\n").as_bytes()).unwrap();
}

fn tell(key: &str, outcome: Result<&Vec<u8>, &Vec<u8>>, replayed: bool) {
    let (kind, bytes) = match outcome {
        Ok(bytes) => ("ok", bytes),
        Err(bytes) => ("err", bytes),
    };
    say(&format!("answer {key} {kind} {} {replayed}", number(bytes)));
}

fn tell_run(claim: &Claim<Vec<u8>, Vec<u8>>, mine: u64) {
    say(&format!("run {} {mine} {}", String::from_utf8_lossy(claim.key().as_ref()), claim.attempt()));
}

fn execute(ops: &Ops, key: &str, mine: u64) {
    let executed = ops.execute(key, |claim| {
        tell_run(claim, mine);
        if mine % 4 == 0 { Err(value(mine)) } else { Ok(value(mine)) }
    });
    match executed {
        Ok(done) => tell(key, Ok(done.value()), done.replayed()),
        Err(ExecuteError::Failed { error, replayed }) => tell(key, Err(&error), replayed),
        other => panic!("{key}: {other:?}"),
    }
}

fn begin(ops: &Ops, key: &str, mine: u64, releases: bool) {
    match ops.begin(key).unwrap() {
        Begin::Claimed(claim) if releases => {
            // Before, because afterwards another may run it at once.
            say(&format!("free {key}"));
            claim.release().unwrap();
        }
        Begin::Claimed(claim) => {
            tell_run(&claim, mine);
            let done = claim.fail(&value(mine)).unwrap();
            tell(key, done.outcome(), false);
        }
        Begin::Replay(done) => tell(key, done.outcome(), true),
        Begin::InProgress(_) => {}
        other => panic!("{key}: {other:?}"),
    }
}

fn initiate(ops: &Ops, key: &str, mine: u64) {
    if ops.initiate(key, None).unwrap() {
        say(&format!("run {key} {mine} 0"));
        ops.success(key, &value(mine)).unwrap();
        tell(key, Ok(&value(mine)), false);
    } else if let Some(record) = ops.get(key).unwrap() {
        record.outcome().into_iter().for_each(|outcome| tell(key, outcome, true));
    }
}

/// Settles what the last round's death left.
fn settle(engine: &Engine, ops: &Ops, rng: &mut Rng) {
    let infos: Vec<_> = engine.interrupted().unwrap().map(Result::unwrap).collect();
    assert_eq!(infos.len() as u64, engine.opened().interrupted);
    for info in infos {
        let key = info.key().as_str().unwrap().to_owned();
        say(&format!("interrupted {key}"));
        let mine = rng.next();
        if rng.below(3) > 0 {
            say(&format!("free {key}"));
            ops.resolve(&key, Resolution::Retry).unwrap();
        } else {
            say(&format!("run {key} {mine} 0"));
            ops.resolve(&key, Resolution::Succeed(value(mine))).unwrap();
            tell(&key, Ok(&value(mine)), false);
        }
    }
}

/// Not a test: what is killed.
#[test]
#[ignore = "started by another test"]
fn child() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().unwrap();
    // libtest has begun a line with the test's name.
    say("\n@opening");
    let engine = open(dir.as_ref());
    say("opened");
    let ops: &Ops = &engine.manager("ops").unwrap();
    settle(&engine, ops, &mut Rng::new(round));
    // One round in eight ends by itself, to be killed while it closes, or not at all.
    let steps = if round % 8 == 3 { 40 } else { u64::MAX };
    thread::scope(|scope| {
        for me in 0..THREADS {
            let mut rng = Rng::new(round << 8 | me);
            scope.spawn(move || {
                for _ in 0..steps {
                    let old = round > 0 && rng.below(2) == 0;
                    let key = if old { rng.below(round * KEYS) } else { round * KEYS + rng.below(KEYS) };
                    let (key, mine) = (&format!("key-{key}"), rng.next());
                    match rng.below(8) {
                        0..=3 => execute(ops, key, mine),
                        4 => begin(ops, key, mine, false),
                        5 | 6 => begin(ops, key, mine, true),
                        _ => initiate(ops, key, mine),
                    }
                }
            });
        }
    });
    say("closing");
    engine.close().unwrap();
    say("closed");
}

/// What the parent knows of a key.
#[derive(Debug, Default)]
struct Known {
    /// Kind and value, once anybody was told.
    answer: Option<(String, u64)>,
    /// Values that an owner may have stored.
    possible: Vec<u64>,
    /// An owner may have run the operation since the key was last free: nobody else may.
    spent: bool,
}

#[derive(Debug, Default)]
struct Model {
    keys: HashMap<String, Known>,
    answers: usize,
    runs: usize,
    interrupted: usize,
}

impl Model {
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let Some(key) = words.get(1) else { return };
        let known = self.keys.entry((*key).to_owned()).or_default();
        match words[..] {
            ["run", key, mine, _attempt] => {
                assert!(!known.spent, "{key} ran twice: {line}, {known:?}");
                assert_eq!(known.answer, None, "{key} ran although it was answered");
                known.spent = true;
                known.possible.push(mine.parse().unwrap());
                self.runs += 1;
            }
            ["free", key] => {
                assert_eq!(known.answer, None, "{key} was owned although it was answered");
                known.spent = false;
            }
            ["interrupted", key] => {
                assert_eq!(known.answer, None, "{key} is interrupted although it was answered");
                // Whoever resolves it runs it.
                known.spent = false;
                self.interrupted += 1;
            }
            ["answer", key, kind, number, _replayed] => {
                self.answers += 1;
                let answer = (kind.to_owned(), number.parse().unwrap());
                assert!(known.possible.contains(&answer.1), "{key} is answered with what nobody stored: {line}");
                let first = known.answer.get_or_insert(answer.clone());
                assert_eq!(*first, answer, "{key} was answered otherwise before");
            }
            _ => panic!("{line:?}"),
        }
    }

    /// Opens the store here, and asks for every answer again, in both ways.
    fn check(&self, path: &Path) {
        let engine = open(path);
        let ops: &Ops = &engine.manager("ops").unwrap();
        for (key, known) in &self.keys {
            let Some((kind, value)) = &known.answer else { continue };
            let record = ops.get(key).unwrap().unwrap_or_else(|| panic!("{key} is lost"));
            let status = if kind == "ok" { Status::Succeeded } else { Status::Failed };
            assert_eq!(record.status(), status, "{key}");
            let Begin::Replay(done) = ops.begin(key).unwrap() else { panic!("{key} is not replayed") };
            for outcome in [record.outcome().unwrap(), done.outcome()] {
                assert_eq!(outcome.map_or_else(|bytes| number(bytes), |bytes| number(bytes)), *value, "{key}");
            }
        }
        for info in engine.interrupted().unwrap() {
            let key = info.unwrap().key().as_str().unwrap().to_owned();
            assert!(self.keys.get(&key).is_none_or(|known| known.answer.is_none()), "{key} is interrupted");
        }
        engine.close().unwrap();
    }
}

fn start(path: &Path, round: u64) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored", "--nocapture"])
        .env(DIR, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// Lets the child run up to a random moment, kills it, and takes in all it has said. Whether it was open, and whether it
/// was closing.
fn round(path: &Path, round: u64, rng: &mut Rng, model: &mut Model) -> (bool, bool) {
    let (mut child, mut lines) = start(path, round);
    let (mut opened, mut closing, mut closed) = (false, false, false);
    // A third is killed while it opens, a few milliseconds long, the others after so many lines.
    let in_open = round % 3 == 1;
    let mut left = if round % 8 == 3 { u64::MAX } else { rng.below(3_000) };
    let killed = AtomicBool::new(false);
    let kill = |spin: u64, child: &mut Child| {
        if !killed.swap(true, SeqCst) {
            (0..spin).for_each(|_| std::hint::spin_loop());
            // It may have ended by itself.
            let _ = child.kill();
        }
    };
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        // A line that the kill has cut was said of nothing that the model has to know: the answer was not given.
        if let Some(said) = line.strip_prefix('@').and_then(|line| line.strip_suffix('\n')) {
            match said {
                "opening" if in_open => kill(rng.below(400_000), &mut child),
                "" | "opening" => {}
                "opened" => opened = true,
                "closing" => {
                    closing = true;
                    kill(rng.below(200_000), &mut child);
                }
                "closed" => closed = true,
                said => model.line(said),
            }
            left = left.saturating_sub(1);
            if left == 0 {
                kill(0, &mut child);
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    assert!(killed.into_inner(), "the child ended by itself: {status:?}");
    // A panic of the child is not a kill.
    assert!(status.code().is_none() || closed, "the child failed: {status:?}");
    (opened, closing)
}

/// `ONCEKEY_KILLS=100` makes them more.
#[test]
fn killed_at_random_and_opened_again_every_answer_is_still_given() {
    let kills: u64 = std::env::var("ONCEKEY_KILLS").map_or(15, |n| n.parse().unwrap());
    let time = LATE * (2 + u32::try_from(kills).unwrap() / 15);
    within(time, move || {
        let dir = tempfile::tempdir().unwrap();
        let (mut model, mut rng) = (Model::default(), Rng::new(kills));
        let (mut opening, mut closing) = (0, 0);
        for nth in 0..kills {
            let (was_open, was_closing) = round(dir.path(), nth, &mut rng, &mut model);
            opening += u64::from(!was_open);
            closing += u64::from(was_closing);
            // The next child opens what was left as it is, but for every fourth round.
            if nth % 4 == 3 {
                model.check(dir.path());
            }
        }
        model.check(dir.path());
        let Model { answers, runs, interrupted, .. } = model;
        println!(
            "{kills} kills, {opening} in open, {closing} in close: {answers} answers, {runs} runs, {interrupted} interrupted"
        );
        assert!(answers > 1_000 && interrupted > 0 && closing > 0, "there was no load");
    });
}
