//! Measures each goal.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Result;
use oncekey::{Begin, Engine, Manager, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arguments::Arguments;
use crate::compare::{LIMIT, Plan, THREADS};
use crate::measure::{Row, best, in_turns, ours, settle};
use crate::scale;
use crate::shared::files::copy;
use crate::shared::waking::{bare, oncekey};
use crate::shared::{fill, key, median, stored_key};
use crate::sustained::{Sustained, sustained};
use crate::systems::{Candidate, DURABLE, IDEAL, Kind, Mode, Oncekey, RELAXED};
use crate::table::{markdown, number};

/// A ratio of two figures of this run.
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

const GROUPS: [Group; 6] = [
    ("durable", durable),
    ("replay", replay),
    ("waiters", waiters),
    ("sustained", eventual),
    ("open", open),
    ("scale", live),
];

/// # Errors
///
/// Fails if an engine or the disk fails.
pub fn main() -> Result<()> {
    let arguments = Arguments::read(&["dir", "out", "seconds", "records", "measure"], &["quick"])?;
    if let Some(path) = arguments.value("measure") {
        return scale::measure_here(Path::new(path));
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
    let text = format!("# Goals\n\nEach figure is a ratio of two readings of this run.\n\n{}", markdown(&head, &rows));
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
    for (column, goal) in [1.0, 0.9, 0.7].into_iter().enumerate() {
        found.extend(against(&rows, column, goal, &|candidate| candidate.name == IDEAL.name, "the ideal appended log"));
    }
    for (column, goal) in [1.0, 1.3, 1.7].into_iter().enumerate() {
        let is_plain = |candidate: &Candidate| candidate.kind == Kind::Embedded;
        found.extend(against(&rows, column, goal, &is_plain, "the best embedded peer"));
        found.extend(against(
            &rows,
            column,
            goal,
            &Candidate::is_peer,
            "the best embedded peer, writer threads allowed",
        ));
    }
    Ok(found)
}

const HOT: u64 = 1_000;
const FINISHED: u64 = 100_000;
const READS: u64 = 200_000;

fn replay(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let dir = tempfile::tempdir_in(base)?;
    fill(dir.path(), FINISHED);
    let sled = dir.path().join("store").join("sled");
    let (mut bytes, mut numbers, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds(arguments) {
        bytes.push(replays::<Value>(dir.path())?);
        numbers.push(replays::<Vec<u8>>(dir.path())?);
        let (db, _) = open_sled(&sled);
        let tree = db.open_tree("records")?;
        let keys: Vec<_> = (0..HOT).map(stored_key).collect();
        raw.push(timed(READS, |number| {
            let value = tree.get(&keys[usize::try_from(number % HOT).unwrap()]).unwrap().unwrap().to_vec();
            assert!(value.len() >= 256);
        }));
    }
    let raw = median(raw);
    let against = |what: &str, ours: Vec<f64>| {
        let ours = median(ours);
        Measure {
            name: format!("replays of {what}, one thread, divided by raw sled's `get` of the same record"),
            goal: 0.6,
            reached: ours / raw,
            is_cost: false,
            note: format!("{} and {} a second", number(ours), number(raw)),
        }
    };
    Ok(vec![against("bytes (`Value`)", bytes), against("256 numbers (`Vec<u8>`), decoded one by one", numbers)])
}

/// Returns replays per second.
fn replays<T: Serialize + DeserializeOwned + AsRef<[u8]>>(path: &Path) -> Result<f64> {
    let engine = Engine::open(path)?;
    let manager: Manager<T, String> = engine.manager("bench")?;
    let rate = timed(READS, |number| match manager.begin(key(number % HOT)).unwrap() {
        Begin::Replay(record) => assert_eq!(record.outcome().unwrap().as_ref().len(), 256),
        other => unreachable!("a finished key: {other:?}"),
    });
    drop(manager);
    engine.close()?;
    Ok(rate)
}

/// Returns calls per second.
fn timed(calls: u64, call: impl Fn(u64)) -> f64 {
    (0..HOT).for_each(&call);
    let began = Instant::now();
    (0..calls).for_each(call);
    calls as f64 / began.elapsed().as_secs_f64()
}

/// Opens sled itself, with the engine's cache size. After a close sled unlocks its file a little later and without
/// notice. So only the attempt that succeeds is timed.
fn open_sled(path: &Path) -> (sled::Db, Duration) {
    let patience = Instant::now();
    loop {
        let began = Instant::now();
        match sled::Config::new().path(path).cache_capacity(96 << 20).open() {
            Ok(db) => return (db, began.elapsed()),
            Err(cause) => assert!(patience.elapsed() < Duration::from_secs(10), "{}: {cause}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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

/// Returns the number of live keys.
fn window(arguments: &Arguments) -> u64 {
    if arguments.flag("quick") { 20_000 } else { 200_000 }
}

fn eventual(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let dir = tempfile::tempdir_in(base)?;
    let live = window(arguments);
    let time = Duration::from_secs(arguments.number("seconds", if arguments.flag("quick") { 5 } else { 60 })?);
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
            goal: 1.0,
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
    let trial = Oncekey::open(&dir.join("trial"), Mode::Relaxed, scale::DAY)?;
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
    let records = arguments.number("records", if arguments.flag("quick") { 20_000 } else { 1_000_000 })?;
    let dir = tempfile::tempdir_in(base)?;
    let (path, again) = (dir.path().join("store"), dir.path().join("again"));
    fill(&path, records);
    copy(&path, &again);
    settle(base)?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..rounds(arguments) {
        let began = Instant::now();
        let engine = Engine::open(&path)?;
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        engine.close()?;
        let (db, took) = open_sled(&again.join("store").join("sled"));
        raw.push(took.as_secs_f64() * 1e3);
        drop(db);
    }
    let (ours, raw) = (median(ours), median(raw));
    Ok(vec![Measure {
        name: format!("time to open after a clean close, {} live, divided by raw sled's", number(records as f64)),
        goal: 1.2,
        reached: ours / raw,
        is_cost: true,
        note: format!("{ours:.0} ms and {raw:.0} ms"),
    }])
}

fn live(base: &Path, arguments: &Arguments) -> Result<Vec<Measure>> {
    let (few, many) = if arguments.flag("quick") { (10_000, 100_000) } else { (100_000, 2_000_000) };
    let sizes = scale::measure(base, &[few, many], if arguments.flag("quick") { 1 } else { 3 })?;
    let [few, many] = &sizes[..] else { unreachable!("two sizes") };
    let threads = scale::THREADS[1];
    Ok(vec![Measure {
        name: format!(
            "durable cycles, {threads} threads, {} live, divided by {} live",
            number(many.live as f64),
            number(few.live as f64)
        ),
        goal: 0.5,
        reached: many.rates[1] / few.rates[1],
        is_cost: false,
        note: format!("{} and {} a second", number(many.rates[1]), number(few.rates[1])),
    }])
}
