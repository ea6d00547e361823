//! Measures each goal.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use oncekey::{Begin, Durability, Engine, Manager, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arguments::Arguments;
use crate::background::background;
use crate::compare::{LIMIT, Plan, THREADS};
use crate::measure::{Row, best, in_turns, ours, settle};
use crate::scale;
use crate::shared::files::disk;
use crate::shared::waking::{bare, oncekey};
use crate::shared::{RECORD, VALUE, fill, fill_with, key, median, raw_sled};
use crate::sustained::{Sustained, sustained};
use crate::systems::{Candidate, DAY, DURABLE, IDEAL, Kind, Mode, Oncekey, RELAXED};
use crate::table::{markdown, number};

/// A figure of this run, and its goal.
struct Measure {
    name: String,
    goal: f64,
    reached: f64,
    /// True if the goal is a maximum, false if it is a minimum.
    is_cost: bool,
    note: String,
}

impl Measure {
    fn is_met(&self) -> bool {
        if self.is_cost { self.reached <= self.goal } else { self.reached >= self.goal }
    }
}

type Group = (&'static str, fn(&Path, &Arguments) -> Result<Vec<Measure>>);

const GROUPS: [Group; 7] = [
    ("durable", durable),
    ("replay", replay),
    ("waiters", waiters),
    ("sustained", eventual),
    ("open", open),
    ("scale", live),
    ("background", beside_background_work),
];

/// # Errors
///
/// Fails if an engine or the disk fails.
pub fn main() -> Result<()> {
    let arguments = Arguments::read(&["dir", "out", "seconds", "records", "measure", "fill", "first"], &["quick"])?;
    if let Some(path) = arguments.value("measure") {
        return scale::measure_here(Path::new(path));
    }
    if let Some(path) = arguments.value("fill") {
        return scale::fill_here(Path::new(path), arguments.number("first", 0)?, arguments.number("records", 0)?);
    }
    let base = arguments.directory();
    let mut rows = Vec::new();
    for (name, measure) in GROUPS {
        if arguments.words.is_empty() || arguments.words.iter().any(|word| word == name) {
            for measure in measure(&base, &arguments)? {
                let sign = if measure.is_cost { "at most" } else { "at least" };
                rows.push(vec![
                    measure.name.clone(),
                    format!("{sign} {}", measure.goal),
                    format!("{:.2}", measure.reached),
                    if measure.is_met() { "yes" } else { "no" }.to_owned(),
                    measure.note.clone(),
                ]);
                eprintln!("{}", rows.last().unwrap().join(" | "));
            }
        }
    }
    let head = ["measure", "goal", "reached", "met", ""].map(str::to_owned);
    let text = format!(
        "# Goals\n\nEach figure comes from this run. \
         Most are ratios of two readings of it.\n\n{}",
        markdown(&head, &rows)
    );
    println!("{text}");
    arguments.write_out("goals.md", &text)
}

fn plan(arguments: &Arguments) -> Plan {
    if arguments.flag("quick") { Plan::QUICK } else { Plan::FULL }
}

fn rounds(arguments: &Arguments) -> usize {
    if arguments.flag("quick") { 1 } else { 5 }
}

fn durable(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let dir = tempfile::tempdir_in(base)?;
    let plan = plan(arguments);
    let candidates: Vec<Candidate> =
        DURABLE.iter().copied().filter(|candidate| candidate.kind != Kind::Server && candidate.is_durable).collect();
    let columns = THREADS.map(|threads| plan.column(threads));
    let rows = in_turns(dir.path(), Mode::Durable, &candidates, &columns, &AtomicU64::new(0), LIMIT)?;
    let mut found = Vec::new();
    let against = |rows: &[Row], column: usize, goal: f64, which: &dyn Fn(&Candidate) -> bool, what: &str| {
        let (ours, theirs) = (ours(rows)?, best(rows, column, which)?);
        Some(Measure {
            name: format!("durable cycles at {}, divided by {what}", THREADS[column]),
            goal,
            reached: ours.over(theirs, column)?,
            is_cost: false,
            note: format!(
                "{} of oncekey, {} of {}",
                number(ours.rate(column)?),
                number(theirs.rate(column)?),
                theirs.candidate.name
            ),
        })
    };
    for (column, goal) in [1.2, 1.05, 1.1].into_iter().enumerate() {
        found.extend(against(&rows, column, goal, &|candidate| candidate.name == IDEAL.name, "the ideal appended log"));
    }
    for (column, goal) in [1.0, 1.3, 1.7].into_iter().enumerate() {
        let is_plain = |candidate: &Candidate| candidate.kind == Kind::Embedded;
        found.extend(against(&rows, column, goal, &is_plain, "the best embedded peer"));
    }
    for (column, goal) in [1.0, 1.2, 1.3].into_iter().enumerate() {
        let what = "the best embedded peer, writer threads allowed";
        found.extend(against(&rows, column, goal, &Candidate::is_peer, what));
    }
    Ok(found)
}

const HOT: u64 = 1_000;
const FINISHED: u64 = 100_000;
/// The calls of a round. A round is short, because the speed of a shared machine changes within seconds.
const READS: u64 = 20_000;
const READ_ROUNDS: usize = 51;

fn replay(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let dir = tempfile::tempdir_in(base)?;
    let values = filled::<Value>(&dir.path().join("values"), Value::from(VALUE.as_slice()))?;
    let numbers = filled::<Vec<u8>>(&dir.path().join("numbers"), VALUE.to_vec())?;
    let db = raw_sled(&dir.path().join("sled"), FINISHED);
    let keys: Vec<_> = (0..HOT).map(key).collect();
    let rounds = if arguments.flag("quick") { 1 } else { READ_ROUNDS };
    let (mut of_bytes, mut of_numbers, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        raw.push(timed(READS, |number| {
            let value = db.get(keys[usize::try_from(number % HOT).unwrap()]).unwrap().unwrap().to_vec();
            assert_eq!(value.len(), RECORD);
        }));
        of_bytes.push(timed(READS, |number| replayed(&values, number)));
        of_numbers.push(timed(READS, |number| replayed(&numbers, number)));
    }
    let against = |what: &str, goal: f64, ours: Vec<f64>| Measure {
        name: format!("replays of {what}, one thread, divided by raw sled's `get` of {RECORD} bytes"),
        goal,
        // The ratio of each round, because both of its readings have the same speed of the machine.
        reached: median(ours.iter().zip(&raw).map(|(ours, raw)| ours / raw).collect()),
        is_cost: false,
        note: format!("{} and {} a second", number(median(ours)), number(median(raw.clone()))),
    };
    Ok(vec![
        against("bytes (`Value`)", 1.8, of_bytes),
        against("256 numbers (`Vec<u8>`), decoded one by one", 1.2, of_numbers),
    ])
}

/// Returns a manager of a store that was filled with finished records of one type, closed and opened again.
fn filled<T: Serialize + DeserializeOwned + 'static>(path: &Path, value: T) -> Result<Manager<T, String>> {
    let durability = Durability::Eventual { interval: Duration::from_millis(50) };
    let engine = Engine::options().durability(durability).open(path)?;
    let manager: Manager<T, String> = engine.manager("bench")?;
    for number in 0..FINISHED {
        match manager.begin(key(number))? {
            Begin::Claimed(claim) => drop(claim.succeed(&value)?),
            other => bail!("a key that was never used: {other:?}"),
        }
    }
    drop(manager);
    engine.close()?;
    Ok(Engine::open(path)?.manager("bench")?)
}

fn replayed<T: Serialize + DeserializeOwned + AsRef<[u8]>>(manager: &Manager<T, String>, number: u64) {
    match manager.begin(key(number % HOT)).unwrap() {
        Begin::Replay(record) => assert_eq!(record.outcome().unwrap().as_ref().len(), 256),
        other => unreachable!("a finished key: {other:?}"),
    }
}

/// Returns calls per second.
fn timed(calls: u64, call: impl Fn(u64)) -> f64 {
    (0..HOT).for_each(&call);
    let began = Instant::now();
    (0..calls).for_each(call);
    calls as f64 / began.elapsed().as_secs_f64()
}

fn waiters(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let waiters = if arguments.flag("quick") { 1_000 } else { 10_000 };
    let dir = tempfile::tempdir_in(base)?;
    let engine = Engine::open(dir.path())?;
    let manager = engine.manager("bench")?;
    let (mut ours, mut least) = (Vec::new(), Vec::new());
    for round in 0..rounds(arguments) {
        ours.push(oncekey(&manager, round as u64, waiters).as_secs_f64() * 1e3);
        least.push(bare(waiters).as_secs_f64() * 1e3);
    }
    drop(manager);
    engine.close()?;
    let (ours, least) = (median(ours), median(least));
    Ok(vec![Measure {
        name: format!("time to wake {waiters} waiters, divided by a bare `notify_all`"),
        goal: 1.5,
        reached: ours / least,
        is_cost: true,
        note: format!("{ours:.1} ms and {least:.1} ms"),
    }])
}

/// Returns the duration of a long measurement.
fn long(arguments: &Arguments) -> Result<Duration> {
    Ok(Duration::from_secs(arguments.number("seconds", if arguments.flag("quick") { 5 } else { 60 })?))
}

/// Returns the number of live keys.
fn window(arguments: &Arguments) -> u64 {
    if arguments.flag("quick") { 20_000 } else { 200_000 }
}

fn eventual(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let dir = tempfile::tempdir_in(base)?;
    let live = window(arguments);
    let time = long(arguments)?;
    // Run the three fastest shortly, and then each as long as oncekey.
    let peers: Vec<Candidate> = RELAXED.iter().copied().filter(Candidate::is_peer).collect();
    let mut rows =
        in_turns(dir.path(), Mode::Relaxed, &peers, &[plan(arguments).column(8)], &AtomicU64::new(0), LIMIT)?;
    rows.sort_by(|one, other| other.rate(0).unwrap_or(0.0).total_cmp(&one.rate(0).unwrap_or(0.0)));
    let mut theirs = Vec::new();
    for row in rows.iter().take(3) {
        let system = (row.candidate.open)(&dir.path().join(format!("peer-{}", theirs.len())), Mode::Relaxed)?;
        let churned = sustained(&*system, live, time, |done| done >= live, |_| (0.0, 0.0));
        eprintln!("{}: {} a second", row.candidate.name, number(churned.rate));
        theirs.push((row.candidate.name, churned.rate));
        drop(system);
        settle(base)?;
    }
    let (peer, theirs) = theirs.into_iter().max_by(|one, other| one.1.total_cmp(&other.1)).unwrap();
    let ours = moving_window(dir.path(), live, time)?;
    let [_, second, third] = [0, 1, 2].map(|third| {
        let seconds = ours.seconds.chunks(ours.seconds.len().div_ceil(3)).nth(third).unwrap_or(&[]);
        let sum = seconds.iter().fold((0.0, 0.0), |sum, at| (sum.0 + at.0, sum.1 + at.1));
        (sum.0 / seconds.len().max(1) as f64, sum.1 / seconds.len().max(1) as f64)
    });
    let note = format!("{} of oncekey, {} of {peer}, for {time:?}", number(ours.rate), number(theirs));
    Ok(vec![
        Measure {
            name: "cycles without waiting, 8 threads, 200,000 live, divided by the best embedded peer that never syncs"
                .into(),
            goal: 1.7,
            reached: ours.rate / theirs,
            is_cost: false,
            note,
        },
        Measure {
            name: "its unapplied bytes in the last third of that time, divided by the second".to_owned(),
            goal: 1.1,
            reached: third.0 / second.0,
            is_cost: true,
            note: format!("{:.1} and {:.1} MiB; {} and {} live", third.0, second.0, number(third.1), number(second.1)),
        },
    ])
}

/// oncekey forgets by time. A first run without it shows how long a record must live.
fn moving_window(dir: &Path, live: u64, time: Duration) -> Result<Sustained> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let trial = Oncekey::open(&dir.join("trial"), Mode::Relaxed, DAY)?;
    let rate = sustained(&trial, live, Duration::from_secs(5), |done| done >= live, |_| (0.0, 0.0)).rate;
    drop(trial);
    settle(dir)?;
    let ttl = Duration::from_secs_f64(live as f64 / rate);
    let system = Oncekey::open(&dir.join("window"), Mode::Relaxed, ttl)?;
    let began = Instant::now();
    let full = |_| began.elapsed() > ttl + Duration::from_secs(1);
    Ok(sustained(&system, live, time, full, |done| {
        let stats = system.engine.stats();
        (mib(stats.unapplied_bytes), done.saturating_sub(stats.expired) as f64)
    }))
}

fn open(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let records = arguments.number("records", if arguments.flag("quick") { 20_000 } else { 5_000_000 })?;
    let dir = tempfile::tempdir_in(base)?;
    let path = dir.path().join("store");
    fill(&path, records);
    let bytes = disk(&path) * f64::from(1 << 20) / records as f64;
    settle(base)?;
    let (mut closed, mut died) = (Vec::new(), Vec::new());
    for round in 0..rounds(arguments).min(3) {
        let began = Instant::now();
        let engine = Engine::open(&path)?;
        closed.push(began.elapsed().as_secs_f64());
        // A kill leaves commits that are only in the journal.
        fill_with(
            &engine.manager("bench")?,
            (1 << 40) + 10_000 * round as u64,
            (1 << 40) + 10_000 * (round as u64 + 1),
        );
        engine.crash();
        let began = Instant::now();
        let engine = Engine::open(&path)?;
        died.push(began.elapsed().as_secs_f64());
        engine.close()?;
    }
    let seconds = |when: &str, goal: f64, of: Vec<f64>| Measure {
        name: format!("seconds to open {} live records after a {when}", number(records as f64)),
        goal,
        reached: median(of),
        is_cost: true,
        note: String::new(),
    };
    Ok(vec![
        Measure {
            name: format!("bytes on disk for each of {} live records, after a close", number(records as f64)),
            goal: 550.0,
            reached: bytes,
            is_cost: true,
            note: "with the journal".to_owned(),
        },
        seconds("close", 1.2, closed),
        seconds("kill", 2.0, died),
    ])
}

fn live(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let asked = if arguments.flag("quick") { [10_000, 50_000, 100_000] } else { [100_000, 1_000_000, 2_000_000] };
    let sizes = scale::measure(base, &asked, if arguments.flag("quick") { 1 } else { 3 })?;
    let [few, middle, many] = &sizes[..] else { unreachable!("three sizes") };
    let threads = scale::THREADS[1];
    Ok(vec![
        Measure {
            name: format!(
                "durable cycles, {threads} threads, {} live, divided by {} live",
                number(many.live as f64),
                number(few.live as f64)
            ),
            goal: 0.95,
            reached: many.rates[1] / few.rates[1],
            is_cost: false,
            note: format!("{} and {} a second", number(many.rates[1]), number(few.rates[1])),
        },
        Measure {
            name: format!(
                "RSS after an open of {} live and {threads} threads at work, MiB",
                number(middle.live as f64)
            ),
            goal: 200.0,
            reached: middle.rss,
            is_cost: true,
            note: format!("{:.0} MiB at {} live", many.rss, number(many.live as f64)),
        },
        Measure {
            name: format!("RSS right after a fill up to {} live, MiB", number(many.live as f64)),
            goal: 300.0,
            reached: many.filled_rss,
            is_cost: true,
            note: String::new(),
        },
    ])
}

fn beside_background_work(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let dir = tempfile::tempdir_in(base)?;
    let path = dir.path().join("store");
    let system = Oncekey::open(&path, Mode::Durable, DAY)?;
    let time = long(arguments)?;
    let found = background(&system, &path, time)?;
    let share = found.share * 100.0;
    Ok(vec![Measure {
        name: "p99 of durable cycles, 8 threads, beside a flush or merge, divided by p99 without".to_owned(),
        goal: 1.5,
        reached: found.beside / found.without,
        is_cost: true,
        note: format!("{:.2} and {:.2} ms; {share:.0} % of the cycles ran beside one", found.beside, found.without),
    }])
}
