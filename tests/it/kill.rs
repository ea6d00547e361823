//! Kills a process at random times under load, also during its open and close, and opens the store again. Every answer
//! is still valid, and the list of interrupted records contains exactly the live claims.

mod child;
mod model;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use oncekey::{Begin, Engine, Finished, Interruption, Manager, Record, RecordInfo, Status};

use crate::threads::{LATE, Rng, within};
use model::{Claimed, End, Model};

const DIR: &str = "ONCEKEY_KILL_DIR";
const ROUND: &str = "ONCEKEY_KILL_ROUND";
const STEPS: &str = "ONCEKEY_KILL_STEPS";

/// The number of kills of one directory.
const LIFE: u64 = 50;

/// Values are made from numbers, so that a line can name them. They have up to 9000 bytes, so some are stored in
/// chunks.
type Ops = Manager<Vec<u8>, Vec<u8>>;

fn value(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let len = if number % 16 == 0 { rng.below(9_000) } else { rng.below(200) };
    number.to_be_bytes().into_iter().chain((0..len).map(|_| rng.next().to_be_bytes()[0])).collect()
}

/// Returns the number of a value, if all its bytes are right.
fn number(bytes: &[u8]) -> u64 {
    let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    assert!(value(number) == bytes, "value {number} came back with other bytes");
    number
}

fn open(path: &Path) -> Engine {
    // Small segments, so that a round seals, recycles and checkpoints many of them.
    Engine::options().segment_bytes(128 << 10).open(path).unwrap()
}

fn claim_of(info: &RecordInfo) -> Claimed {
    (info.generation(), info.attempt())
}

fn finished(outcome: Result<&Vec<u8>, &Vec<u8>>) -> End {
    match outcome {
        Ok(bytes) => End::Finished { success: true, value: number(bytes) },
        Err(bytes) => End::Finished { success: false, value: number(bytes) },
    }
}

/// Returns how the record ended.
fn end_of(record: &Record<Vec<u8>, Vec<u8>>) -> End {
    match (record.status(), record.outcome()) {
        (Status::Succeeded | Status::Failed, Some(outcome)) => finished(outcome),
        (Status::Released, None) => End::Released,
        (Status::Interrupted, None) => End::Interrupted,
        other => panic!("{other:?}"),
    }
}

/// Opens the store here, and compares all its content with the model. Reads finished records in both ways.
fn check(model: &mut Model, path: &Path) {
    let engine = open(path);
    let ops: &Ops = &engine.manager("ops").unwrap();
    let interrupted: BTreeMap<_, _> = engine.interrupted().unwrap().map(|info| named(&info.unwrap())).collect();
    assert_eq!(interrupted.len() as u64, engine.opened().interrupted);
    model.compare(interrupted, |key| {
        let record = ops.get(key).unwrap()?;
        let end = end_of(&record);
        if let End::Finished { .. } = end {
            let Begin::Replay(done) = ops.begin(key).unwrap() else { panic!("{key} is not replayed") };
            assert_eq!(answered(&done), (claim_of(record.info()), end));
        }
        Some((claim_of(record.info()), end))
    });
    engine.close().unwrap();
}

fn named(info: &RecordInfo) -> (String, Claimed) {
    assert!(matches!(
        info.interruption(),
        Some(Interruption::ProcessEnded | Interruption::Dropped | Interruption::Reported)
    ));
    (info.key().as_str().unwrap().to_owned(), claim_of(info))
}

fn answered(done: &Finished<Vec<u8>, Vec<u8>>) -> (Claimed, End) {
    (claim_of(done.info()), finished(done.outcome()))
}

/// The step that the kill should hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Open,
    Load,
    Close,
}

/// The durations of open and close, so that a kill can hit them.
#[derive(Debug)]
struct Pace {
    open: Duration,
    close: Duration,
}

/// The progress of the child before the kill.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    opened: bool,
    closing: bool,
    closed: bool,
}

fn start(path: &Path, round: u64, aim: Aim) -> (Child, BufReader<ChildStdout>) {
    // A child that is killed during its close must get there by itself.
    let steps = if aim == Aim::Close { 40 } else { u64::MAX };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child::child", "--ignored", "--nocapture"])
        .env(DIR, path)
        .env(ROUND, round.to_string())
        .env(STEPS, steps.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// Kills the child at a random time within this duration. It may have ended before.
fn kill_within(time: Duration, rng: &mut Rng, child: &mut Child) {
    let moment = Duration::from_nanos(rng.below(u64::try_from(time.as_nanos()).unwrap().max(1)));
    let start = Instant::now();
    while start.elapsed() < moment {
        std::hint::spin_loop();
    }
    let _ = child.kill();
}

/// Runs the child until a random time and kills it. Reads all its lines: each answer was given before its line.
fn round(path: &Path, round: u64, aim: Aim, rng: &mut Rng, pace: &mut Pace, model: &mut Model) -> Came {
    let (mut child, mut lines) = start(path, round, aim);
    let mut came = Came::default();
    let mut left = if aim == Aim::Load { rng.below(4_000) } else { u64::MAX };
    let (mut line, mut since) = (String::new(), Instant::now());
    while lines.read_line(&mut line).unwrap() > 0 {
        // Ignore a line that the kill has cut.
        if let Some(said) = line.strip_prefix('@').and_then(|line| line.strip_suffix('\n')) {
            match said {
                "opening" => {
                    since = Instant::now();
                    if aim == Aim::Open {
                        kill_within(pace.open, rng, &mut child);
                    }
                }
                "opened" => {
                    came.opened = true;
                    pace.open = since.elapsed();
                }
                "closing" => {
                    came.closing = true;
                    since = Instant::now();
                    kill_within(pace.close, rng, &mut child);
                }
                "closed" => {
                    came.closed = true;
                    pace.close = since.elapsed();
                }
                said => model.line(said),
            }
            left = left.saturating_sub(1);
            if left == 0 {
                let _ = child.kill();
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    // A panic of the child is a failure, not a kill.
    assert!(status.code().is_none() || came.closed, "the child failed: {status:?}");
    model.killed();
    came
}

/// The number of kills by step.
#[derive(Debug, Default)]
struct Met {
    creating: u64,
    opening: u64,
    load: u64,
    closing: u64,
    /// The child had ended before the kill.
    missed: u64,
}

/// Kills processes on one directory several times, starting from an empty one.
fn life(kills: u64, rng: &mut Rng, pace: &mut Pace, met: &mut Met, counts: &mut model::Counts) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut model = Model::new(*counts);
    for nth in 0..kills {
        let aim = match rng.below(20) {
            _ if nth == 0 => Aim::Open,
            0..=8 => Aim::Open,
            9..=11 => Aim::Close,
            _ => Aim::Load,
        };
        let came = round(&path, rng.next(), aim, rng, pace, &mut model);
        let found = match came {
            Came { closed: true, .. } => &mut met.missed,
            Came { closing: true, .. } => &mut met.closing,
            Came { opened: true, .. } => &mut met.load,
            _ if nth == 0 => &mut met.creating,
            _ => &mut met.opening,
        };
        *found += 1;
        // In the other half of the rounds, the next child opens what the kill left.
        if rng.below(2) == 0 {
            check(&mut model, &path);
        }
    }
    check(&mut model, &path);
    *counts = model.counts;
}

/// Set `ONCEKEY_KILLS=1000` for more kills.
#[test]
fn random_kills_lose_no_answer_and_all_live_claims_are_listed() {
    let kills: u64 = std::env::var("ONCEKEY_KILLS").map_or(20, |n| n.parse().unwrap());
    let time = LATE * (2 + u32::try_from(kills).unwrap() / 15);
    within(time, move || {
        let mut rng = Rng::new(kills);
        let mut pace = Pace { open: Duration::from_millis(20), close: Duration::from_millis(20) };
        let (mut met, mut counts, mut left) = (Met::default(), model::Counts::default(), kills);
        while left > 0 {
            let some = left.min(LIFE);
            life(some, &mut rng, &mut pace, &mut met, &mut counts);
            left -= some;
        }
        println!("{kills} kills: {met:?}; {counts:?}");
        assert!(counts.answers > 50 * kills && counts.interrupted > kills, "there was no load");
        assert!(met.opening + met.creating >= kills / 5 && met.closing > 0 && met.load > 0, "{met:?}");
    });
}
