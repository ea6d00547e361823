//! Measures from ten thousand live keys to millions.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oncekey::{Durability, Engine};

use crate::arguments::Arguments;
use crate::chart::{Curve, curves};
use crate::measure::{Keys, Load, run, settle};
use crate::shared::files::{copy, disk, rss};
use crate::shared::{fill_with, median};
use crate::systems::{DAY, Mode, Oncekey};
use crate::table::{markdown, number};

const SIZES: [u64; 5] = [10_000, 100_000, 1_000_000, 2_000_000, 5_000_000];
pub(crate) const THREADS: [usize; 2] = [8, 64];
const ROUNDS: usize = 3;
const TIME: Duration = Duration::from_secs(3);

/// The measurements of a store of one size, medians over the rounds.
pub(crate) struct Size {
    pub(crate) live: u64,
    /// Cycles per second while it was filled from the previous size, without waiting for the disk.
    filled: f64,
    /// Bytes on disk for each live record after a clean close, including the journal.
    bytes: f64,
    /// The time to open, in milliseconds.
    open: f64,
    pub(crate) rates: [f64; 2],
    p99: [f64; 2],
    /// The memory of a process that opened the store and ran the loads, in MiB.
    pub(crate) rss: f64,
    /// The memory of the process that filled it from the previous size, before its close, in MiB.
    pub(crate) filled_rss: f64,
}

/// # Errors
///
/// Fails if an engine or the disk fails.
pub fn main() -> Result<()> {
    let arguments = Arguments::read(&["dir", "out", "max", "rounds", "measure", "fill", "first", "records"], &[])?;
    if let Some(path) = arguments.value("measure") {
        return measure_here(Path::new(path));
    }
    if let Some(path) = arguments.value("fill") {
        return fill_here(Path::new(path), arguments.number("first", 0)?, arguments.number("records", 0)?);
    }
    let most = arguments.number("max", 5_000_000)?;
    let rounds = usize::try_from(arguments.number("rounds", ROUNDS as u64)?)?;
    let sizes: Vec<u64> = SIZES.into_iter().filter(|size| *size <= most).collect();
    let found = measure(&arguments.directory(), &sizes, rounds)?;
    let text = page(&found, rounds);
    println!("{text}");
    arguments.write_out("scale.md", &text)?;
    arguments.write_out("scale.svg", &plot(&found))
}

/// Fills a store of each size, then opens a copy of each in turns. Each copy is opened in its own process, so that its
/// memory can be measured.
pub(crate) fn measure(base: &Path, sizes: &[u64], rounds: usize) -> Result<Vec<Size>> {
    let dir = tempfile::tempdir_in(base)?;
    let path = |size: u64| dir.path().join(size.to_string());
    let mut found = Vec::new();
    let mut before = None;
    for size in sizes {
        if let Some(before) = before {
            copy(&path(before), &path(*size));
        }
        let first = before.unwrap_or(0);
        let began = Instant::now();
        let filled_rss = filled_elsewhere(&path(*size), first, *size)?;
        let filled = (size - first) as f64 / began.elapsed().as_secs_f64();
        let bytes = disk(&path(*size)) * f64::from(1 << 20) / *size as f64;
        eprintln!("{} live: filled at {} a second, {bytes:.0} B each", number(*size as f64), number(filled));
        found.push(Size {
            live: *size,
            filled,
            bytes,
            open: 0.0,
            rates: [0.0; 2],
            p99: [0.0; 2],
            rss: 0.0,
            filled_rss,
        });
        before = Some(*size);
    }
    // A list for each size, with the output of its process in each round.
    let mut readings = vec![Vec::new(); sizes.len()];
    for round in 0..rounds {
        for (size, readings) in sizes.iter().zip(&mut readings) {
            let again = dir.path().join("copy");
            copy(&path(*size), &again);
            settle(base)?;
            readings.push(measure_elsewhere(&again)?);
            eprintln!("round {round}, {size} live: {:?}", readings.last());
            std::fs::remove_dir_all(&again)?;
        }
    }
    for (size, readings) in found.iter_mut().zip(&readings) {
        let middle = |at: usize| median(readings.iter().map(|reading: &Vec<f64>| reading[at]).collect());
        size.open = middle(0);
        size.rates = [middle(1), middle(3)];
        size.p99 = [middle(2), middle(4)];
        size.rss = middle(5);
    }
    Ok(found)
}

/// Adds records in a process of its own, and returns the memory that it had before its close, in MiB.
fn filled_elsewhere(path: &Path, first: u64, records: u64) -> Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--fill").arg(path).arg("--first").arg(first.to_string()).arg("--records").arg(records.to_string());
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.trim().parse().with_context(|| text.clone())
}

/// Adds records to a store, and prints the memory before its close.
pub(crate) fn fill_here(path: &Path, first: u64, records: u64) -> Result<()> {
    let durability = Durability::Eventual { interval: Duration::from_millis(50) };
    let engine = Engine::options().durability(durability).open(path)?;
    let manager = engine.manager("bench")?;
    fill_with(&manager, first, records);
    println!("{:.1}", rss());
    drop(manager);
    Ok(engine.close()?)
}

fn measure_elsewhere(path: &Path) -> Result<Vec<f64>> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.arg("--measure").arg(path).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let numbers = text.split_whitespace().map(|word| word.parse().with_context(|| text.clone()));
    let numbers = numbers.collect::<Result<Vec<f64>>>()?;
    ensure!(numbers.len() == 2 + 2 * THREADS.len(), "{command:?} said {text}");
    Ok(numbers)
}

/// Prints the time to open, then rate and 99th percentile for each number of threads, then the memory.
pub(crate) fn measure_here(path: &Path) -> Result<()> {
    let began = Instant::now();
    let system = Oncekey::open(path, Mode::Durable, DAY)?;
    print!("{:.2}", began.elapsed().as_secs_f64() * 1e3);
    // Far from the numbers that are in the store.
    let next = AtomicU64::new(1 << 40);
    for threads in THREADS {
        let load = Load { threads, keys: Keys::Random, warm_up: Duration::from_millis(500), time: TIME };
        let reading = run(&system, load, &next);
        print!(" {:.1} {:.3}", reading.rate, reading.p99);
    }
    println!(" {:.1}", rss());
    Ok(())
}

fn page(sizes: &[Size], rounds: usize) -> String {
    let head = [
        "live keys",
        "filled, cycles/s",
        "open, ms",
        "8 threads, cycles/s",
        "p99, ms",
        "64 threads, cycles/s",
        "p99, ms",
        "disk, B per record",
        "RSS, MiB",
    ];
    let rows = sizes.iter().map(|size| {
        vec![
            number(size.live as f64),
            number(size.filled),
            format!("{:.0}", size.open),
            number(size.rates[0]),
            format!("{:.1}", size.p99[0]),
            number(size.rates[1]),
            format!("{:.1}", size.p99[1]),
            number(size.bytes),
            number(size.rss),
        ]
    });
    format!(
        "# oncekey by the number of live keys\n\nDurable cycles with random keys and 256-byte outcomes, medians of {rounds} rounds of \
         {TIME:?} in turns, each on a copy of the filled store, in a process of its own.\n\n{}",
        markdown(&head.map(str::to_owned), &rows.collect::<Vec<_>>())
    )
}

fn plot(sizes: &[Size]) -> String {
    let curve = |name, value: &dyn Fn(&Size) -> f64| Curve {
        name,
        points: sizes.iter().map(|size| (size.live as f64, value(size))).collect(),
    };
    curves(&[
        (
            "cycles per second",
            vec![
                curve("64 threads", &|size| size.rates[1]),
                curve("8 threads", &|size| size.rates[0]),
                curve("while filled, relaxed", &|size| size.filled),
            ],
        ),
        ("p99, ms", vec![curve("64 threads", &|size| size.p99[1]), curve("8 threads", &|size| size.p99[0])]),
        ("disk, bytes per live record", vec![curve("after a clean close", &|size| size.bytes)]),
        ("memory, MiB", vec![curve("RSS", &|size| size.rss)]),
        ("open after a clean close, ms", vec![curve("open", &|size| size.open)]),
    ])
}
