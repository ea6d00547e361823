//! Tests of durable linearizability: all answers of calls on a few keys, across kills and reopens, agree with some
//! order of the calls, one after the other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod caller;
mod calls;
mod checker;
mod faults;
#[cfg(feature = "postgres")]
mod instance;
mod life;
mod model;
#[cfg(feature = "postgres")]
#[path = "../postgres/server.rs"]
#[allow(dead_code, reason = "shared")]
mod server;
#[cfg(feature = "postgres")]
mod several;
mod still;
mod table;
#[path = "../it/threads.rs"]
#[allow(dead_code, reason = "shared")]
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use caller::Line;
use checker::{Call, Object, Phase, check};
use faults::Fault;
use life::{PLAN, Plan};
use model::{Answer, Hour, Incarnation, Model, Op};
use table::Table;
use threads::{LATE, Rng, within};

/// Runs a process with this plan, until it has printed this number of lines. All that it printed has happened.
fn lived(plan: &Plan, lines_left: u64) -> Vec<Line> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::child", "--ignored", "--nocapture"])
        .env(PLAN, serde_json::to_string(plan).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let (mut lines, mut text, mut left) = (Vec::new(), String::new(), lines_left);
    if left == 0 {
        let _ = child.kill();
    }
    while said.read_line(&mut text).unwrap() > 0 {
        // Ignore a line that the kill has cut.
        if let Some(line) = text.strip_prefix('@').and_then(|text| text.strip_suffix('\n')) {
            lines.push(serde_json::from_str(line).unwrap());
            left = left.saturating_sub(1);
            if left == 0 {
                let _ = child.kill();
            }
        }
        text.clear();
    }
    let status = child.wait().unwrap();
    // A panic of the child is a failure, not a kill.
    assert!(status.code().is_none_or(|code| code == 0), "the child failed: {status:?}");
    lines
}

/// Counts for the report.
#[derive(Clone, Debug, Default)]
struct Counts {
    calls: u64,
    answers: u64,
    opens: u64,
    /// All other processes were killed.
    closes: u64,
    /// Closes at which claims were alive.
    outlived: u64,
    /// The pairs of call and answer that occurred.
    kinds: BTreeSet<String>,
}

impl Counts {
    fn add(&mut self, lines: &[Line]) {
        let word = |text: String| text.split([' ', '(']).next().unwrap_or_default().to_owned();
        let mut calls = BTreeMap::new();
        for line in lines {
            match line {
                Line::Opened(_) => calls.clear(),
                Line::Call { thread, op, .. } => {
                    self.calls += 1;
                    calls.insert(*thread, word(format!("{op:?}")));
                }
                Line::Answer { thread, answer } => {
                    self.answers += 1;
                    self.outlived += u64::from(matches!(answer, Answer::Alive(1..)));
                    let answer = match answer {
                        Answer::Claimed { .. } | Answer::Finished(_) | Answer::Rows(_) | Answer::Alive(_) => {
                            word(format!("{answer:?}"))
                        }
                        Answer::Unfinished { status, .. } => format!("{status:?}"),
                        _ => format!("{answer:?}"),
                    };
                    self.kinds.insert(format!("{}: {answer}", calls[thread]));
                }
                Line::Stopped => self.closes += 1,
                Line::Closed { .. } | Line::Closing | Line::Process { .. } => {}
            }
        }
        self.opens += lines.iter().filter(|line| matches!(line, Line::Opened(_))).count() as u64;
    }
}

/// Runs several processes on one store. The last one ends by itself.
fn history(path: &Path, rng: &mut Rng, fault: Fault) -> Vec<Line> {
    let kills = rng.below(3);
    let threads = 4 + rng.below(5);
    let mut lines = Vec::new();
    for nth in 0..=kills {
        let hour = lines.iter().map(passed).sum();
        let plan = Plan { path: path.to_owned(), seed: rng.next(), hour, threads, sessions: 1 + rng.below(3), fault };
        lines.extend(lived(&plan, if nth == kills { u64::MAX } else { rng.below(threads * 24) }));
    }
    lines
}

/// Returns the time that passes with this call, answered or not. The next process starts after it.
fn passed(line: &Line) -> Hour {
    match line {
        Line::Call { op: Op::Later(hours), .. } => *hours,
        _ => 0,
    }
}

/// Returns the calls on each key and on the table, by phase.
fn phases(lines: &[Line]) -> Vec<Vec<Phase>> {
    let mut phases = vec![Vec::new(); life::KEYS + 1];
    for lines in lines.chunk_by(|_, line| !matches!(line, Line::Opened(_))) {
        // Killed before the open.
        let Some((Line::Opened(opened), calls)) = lines.split_first() else { continue };
        for (key, phases) in phases.iter_mut().enumerate() {
            phases.push(Phase { opened: Some(*opened), calls: calls_on(key, calls) });
        }
    }
    phases
}

fn calls_on(key: usize, lines: &[Line]) -> Vec<Call> {
    // A drop has no answer, so it is unknown whether the store was open, and when the drop became durable.
    let stopped = matches!(lines.last(), Some(Line::Stopped));
    let closes = |line: &Line| matches!(line, Line::Closing | Line::Call { op: Op::Close, .. });
    let closing = lines.iter().position(closes).unwrap_or(lines.len());
    // When an abort ended the store is unknown.
    let is_forced = lines.iter().any(|line| matches!(line, Line::Closing));
    let recorded = if stopped { closing } else { 0 };
    let by = Incarnation::default();
    let mut calls = Vec::new();
    for (began, line) in lines.iter().enumerate() {
        let Line::Call { thread, key: of, op } = *line else { continue };
        if of != key && passed(line) == 0 && op != Op::Close {
            continue;
        }
        let answer = lines[began..].iter().enumerate().find_map(|(after, line)| match line {
            Line::Answer { thread: of, answer } if *of == thread => Some((began + after, Some(*answer))),
            Line::Closed { thread: of } if *of == thread => Some((began + after, None)),
            _ => None,
        });
        let answer = match answer {
            // The store was closed, so the call has not happened.
            Some((_, None)) if is_forced => continue,
            Some((at, None)) => Some((at, Answer::Closed)),
            Some((at, _)) if at >= recorded && matches!(op, Op::Drop { .. }) => None,
            Some((at, Some(answer))) => Some((at, answer)),
            None => None,
        };
        if let (Op::Close, Some((at, _))) = (op, answer) {
            calls.push(Call { by, op: Op::Closing, began, answer: Some((at, Answer::Done)) });
        }
        calls.push(Call { by, op, began, answer });
    }
    after_calls_in_flight(&mut calls);
    calls
}

/// A call that is in flight when the close is called may commit after the close has returned. So the close takes effect
/// at the latest when these calls are answered.
fn after_calls_in_flight(calls: &mut [Call]) {
    let Some(closed) = calls.iter().find(|call| call.op == Op::Close).and_then(|call| call.answer) else { return };
    let in_flight = calls.iter().filter(|call| call.began < closed.0).filter_map(|call| call.answer);
    let last = in_flight.map(|(at, _)| at).max().unwrap_or(0);
    for call in calls.iter_mut().filter(|call| matches!(call.op, Op::Closing | Op::Close)) {
        call.answer = call.answer.map(|(at, answer)| (at.max(last), answer));
    }
}

/// Returns the part that no order explains, if there is one.
fn fault_of(lines: &[Line]) -> Option<String> {
    fault_in(&phases(lines))
}

/// Takes the phases of each key and of the table.
fn fault_in(phases: &[Vec<Phase>]) -> Option<String> {
    phases.iter().enumerate().find_map(|(key, phases)| match key {
        life::KEYS => unexplained::<Table>("the table", phases),
        key => unexplained::<Model>(&format!("key {key}"), phases),
    })
}

fn unexplained<M: Object>(what: &str, phases: &[Phase]) -> Option<String> {
    let violation = check::<M>(phases).err()?;
    let until: Vec<_> = phases[..=violation.phase].iter().map(ToString::to_string).collect();
    Some(format!("{what}: no order explains the last of\n{}after {:?}", until.join("\n"), violation.before))
}

/// Returns a directory. Most histories do not wait for a disk, because a kill needs none.
fn directory(nth: u64) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if nth % 4 > 0 && memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Set `ONCEKEY_HISTORIES=1000` for more histories, and `ONCEKEY_SEED` for others.
#[test]
fn calls_are_linearizable_across_kills_and_reopens() {
    let (histories, seed) = (number("ONCEKEY_HISTORIES", 50), number("ONCEKEY_SEED", 1));
    let mut counts = Counts::default();
    for nth in 0..histories {
        let lines = within(LATE, move || {
            let dir = directory(nth);
            history(&dir.path().join("store"), &mut Rng::new(seed.wrapping_add(nth << 32)), Fault::None)
        });
        counts.add(&lines);
        if let Some(fault) = fault_of(&lines) {
            panic!("history {nth} of seed {seed}: {fault}");
        }
    }
    let Counts { calls, answers, opens, closes, outlived, kinds } = counts;
    println!("{histories} histories: {calls} calls, {answers} answers, {opens} opens, {closes} closes: {kinds:#?}");
    println!("claims outlived {outlived} closes");
    assert!(outlived > histories / 10, "claims outlived {outlived} closes only");
    assert!(answers > 50 * histories && calls > answers, "there was little to explain");
    assert!(closes > histories && opens > closes + histories / 4, "there were few kills");
    assert!(kinds.len() > 30, "calls were answered in {} ways only", kinds.len());
}

#[test]
fn every_seeded_fault_is_detected() {
    for fault in Fault::ALL {
        let found = within(LATE * 3, move || {
            (1..=200).find(|nth| {
                let dir = directory(*nth);
                let lines = history(&dir.path().join("store"), &mut Rng::new(*nth), fault);
                fault_of(&lines).is_some()
            })
        });
        println!("{fault:?}: found in history {found:?}");
        assert!(found.is_some(), "{fault:?} was not found");
    }
}
