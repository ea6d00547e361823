//! Measures the table and the chart.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::arguments::Arguments;
use crate::chart;
use crate::measure::{Column, Keys, Load, Row, best, in_turns, ours, settle};
use crate::systems::{Candidate, DURABLE, Kind, Mode, RELAXED, SHARED, STATEMENTS};
use crate::table::{markdown, number, optional};

/// The durations and the number of rounds.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

impl Plan {
    pub(crate) const FULL: Self =
        Self { rounds: 5, warm_up: Duration::from_millis(150), time: Duration::from_millis(400) };
    pub(crate) const QUICK: Self =
        Self { rounds: 1, warm_up: Duration::from_millis(50), time: Duration::from_millis(200) };

    /// Reads `--quick`, and `--rounds N`, `--warm-up MS`, `--time MS` for special measurements.
    fn asked(arguments: &Arguments) -> Result<Self> {
        let plan = if arguments.flag("quick") { Self::QUICK } else { Self::FULL };
        let milliseconds = |name, default: Duration| {
            Ok::<_, anyhow::Error>(Duration::from_millis(arguments.number(name, u64::try_from(default.as_millis())?)?))
        };
        Ok(Self {
            rounds: usize::try_from(arguments.number("rounds", plan.rounds as u64)?)?,
            warm_up: milliseconds("warm-up", plan.warm_up)?,
            time: milliseconds("time", plan.time)?,
        })
    }

    pub(crate) fn column(&self, threads: usize) -> Column {
        let load = Load { threads, keys: Keys::Random, warm_up: self.warm_up, time: self.time };
        Column { load, rounds: self.rounds }
    }
}

pub(crate) const THREADS: [usize; 3] = [1, 8, 64];
/// The longest duration of a whole run, also on a slow disk.
pub(crate) const LIMIT: Duration = Duration::from_secs(360);
const RELAXED_THREADS: [usize; 2] = [1, 8];

/// # Errors
///
/// Fails if an engine or the disk fails.
pub fn main() -> Result<()> {
    let arguments = Arguments::read(&["dir", "out", "only", "rounds", "warm-up", "time"], &["quick"])?;
    let plan = Plan::asked(&arguments)?;
    let base = arguments.directory();
    let dir = tempfile::tempdir_in(&base)?;
    // A server may run as another user.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    let chosen = |all: &[Candidate]| -> Vec<Candidate> {
        let wanted = |name: &str| arguments.value("only").is_none_or(|part| name.contains(part));
        all.iter().copied().filter(|candidate| candidate.kind == Kind::Ours || wanted(candidate.name)).collect()
    };
    settle(dir.path())?;
    let (next, began) = (AtomicU64::new(0), Instant::now());
    let mut columns: Vec<Column> = THREADS.iter().map(|threads| plan.column(*threads)).collect();
    let many = plan.column(64);
    columns.push(Column { load: Load { keys: Keys::Ordered, ..many.load }, rounds: plan.rounds.min(3) });
    let durable = in_turns(dir.path(), Mode::Durable, &chosen(DURABLE), &columns, &next, LIMIT * 3 / 4)?;
    let columns: Vec<Column> = RELAXED_THREADS.iter().map(|threads| plan.column(*threads)).collect();
    let relaxed = in_turns(dir.path(), Mode::Relaxed, &chosen(RELAXED), &columns, &next, LIMIT / 4)?;
    let text = page(&plan, &durable, &relaxed, began.elapsed());
    println!("{text}");
    arguments.write_out("compare.md", &text)?;
    arguments.write_out("compare.svg", &chart::bars(&durable, &relaxed, &RELAXED_THREADS))
}

fn page(plan: &Plan, durable: &[Row], relaxed: &[Row], took: Duration) -> String {
    let mut text = String::from("# oncekey and its peers\n\n");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    writeln!(
        text,
        "A cycle is two commits: insert a record in progress if its key is absent, then replace it by an outcome of 256 \
         bytes. Keys are 16 random bytes. Cycles per second, medians of at most {} rounds of {:?} in turns, in one process, on one \
         disk and {cores} cores, in {:.0} s. `x` is oncekey divided by the other in \
         the same round, the median of that.\n",
        durable.first().map_or(0, |row| row.readings[0].len()),
        plan.time,
        took.as_secs_f64()
    )
    .unwrap();
    text += "## Durable: no answer before it is on disk\n\n";
    text += &durable_table(durable);
    text.push('\n');
    for (column, threads) in THREADS.iter().enumerate() {
        for (what, kinds) in
            [("as they are", &[Kind::Embedded][..]), ("a writer thread allowed", &[Kind::Embedded, Kind::Grouped])]
        {
            let peer = best(durable, column, |candidate| candidate.is_durable && kinds.contains(&candidate.kind));
            let (Some(peer), Some(ours)) = (peer, ours(durable)) else { continue };
            let ratio = optional(ours.over(peer, column), |ratio| format!("{ratio:.2}"));
            let name = peer.candidate.name;
            writeln!(text, "- At {threads}: oncekey / best embedded peer, {what}: {ratio} ({name})").unwrap();
        }
    }
    let find = |wanted: Candidate| durable.iter().find(|row| row.candidate.name == wanted.name);
    if let (Some(shared), Some(statements)) = (find(SHARED), find(STATEMENTS)) {
        for (column, threads) in THREADS.iter().enumerate() {
            let ratio = optional(shared.over(statements, column), |ratio| format!("{ratio:.2}"));
            writeln!(text, "- At {threads}: oncekey on PostgreSQL / the two statements: {ratio}").unwrap();
        }
    }
    text += &doubts(durable);
    text += "\n## Relaxed: no call waits for the disk\n\n";
    text += "oncekey syncs in the background every 50 ms (`Durability::Eventual`). redb does the same, because it reuses no \
             page before; SQLite and raw sled sync when they see fit, the others never. A power cut may damage LMDB's file \
             here; the others lose what came last.\n\n";
    text += &relaxed_table(relaxed);
    text += "\n## Versions\n\n";
    text += &versions();
    text
}

/// Returns warnings about figures that are impossible on a quiet machine. Readers should then measure again.
fn doubts(rows: &[Row]) -> String {
    let find = |name| rows.iter().find(|row| row.candidate.name == name);
    let mut text = String::new();
    if let (Some(limit), Some(appended)) = (find("ideal log, overwritten"), find("ideal log, appended")) {
        for (column, threads) in THREADS.iter().enumerate() {
            if let Some(ratio) = limit.over(appended, column).filter(|ratio| *ratio < 0.95) {
                writeln!(
                    text,
                    "- Disturbed: at {threads} the log that is written over made {ratio:.2} of the cycles of the one that grows."
                )
                .unwrap();
            }
        }
    }
    if find("RocksDB").is_some_and(|row| row.rate(2) < row.rate(0)) {
        text += "- Disturbed: RocksDB was slower at 64 threads than at 1.\n";
    }
    text
}

fn name(row: &Row) -> String {
    let name = row.candidate.name;
    match (row.candidate.is_durable, row.candidate.kind) {
        (false, _) => format!("{name} (*not durable*)"),
        (_, Kind::Ours) => format!("**{name}**"),
        _ => name.to_owned(),
    }
}

/// Returns the rates, and the ratios of oncekey's rates to them.
fn rates(rows: &[Row], row: &Row, columns: &[usize]) -> (Vec<String>, Vec<String>) {
    let ratio = |column| ours(rows)?.over(row, column);
    let rates = columns.iter().map(|column| optional(row.rate(*column), number)).collect();
    let ratios = columns.iter().map(|column| optional(ratio(*column), |ratio| format!("{ratio:.2}"))).collect();
    (rates, ratios)
}

fn durable_table(rows: &[Row]) -> String {
    let head = ["", "1 thread", "8", "64", "64, UUID v7", "p99 at 64, ms", "x at 1", "x at 8", "x at 64"];
    let lines = rows.iter().map(|row| {
        let (rates, ratios) = rates(rows, row, &[0, 1, 2]);
        let mut line = vec![name(row)];
        if let Some(cause) = &row.absent {
            line.push(cause.replace(['\n', '|'], " "));
            line.resize(head.len(), String::new());
            return line;
        }
        line.extend(rates);
        line.push(optional(row.rate(3), number));
        line.push(optional(row.p99(2), |p99| format!("{p99:.1}")));
        line.extend(ratios);
        line
    });
    markdown(&head.map(str::to_owned), &lines.collect::<Vec<_>>())
}

fn relaxed_table(rows: &[Row]) -> String {
    let head = ["", "1 thread", "8", "p99 at 8, ms", "x at 1", "x at 8"];
    let lines = rows.iter().map(|row| {
        let (rates, ratios) = rates(rows, row, &[0, 1]);
        let p99 = optional(row.p99(1), |p99| format!("{p99:.1}"));
        [vec![row.candidate.name.to_owned()], rates, vec![p99], ratios].concat()
    });
    markdown(&head.map(str::to_owned), &lines.collect::<Vec<_>>())
}

/// Returns the versions of the crates from the lock file, of SQLite in its crate, and of the servers as they report
/// them.
fn versions() -> String {
    let lock = include_str!("../Cargo.lock");
    let mut found: Vec<String> = ["fjall", "heed", "redb", "rocksdb", "rusqlite", "sled"]
        .into_iter()
        .filter_map(|name| {
            let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
            Some(format!("{name} {}", rest.split('"').next()?))
        })
        .collect();
    found.push(format!("SQLite {}", rusqlite::version()));
    for program in ["redis-server", "postgres"] {
        if let Ok(output) = Command::new(program).arg("--version").output() {
            found.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
    }
    found.join(", ") + ".\n"
}
