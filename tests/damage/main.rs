//! Tests of damage of every kind in every file. The engine returns a typed error or the right data, but never a wrong
//! answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod harm;
mod states;
mod stores;
#[path = "../it/threads.rs"]
#[allow(dead_code, reason = "shared")]
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harm::{Harm, Part};
use oncekey::{Engine, Error, ErrorKind, clock::ManualClock};
use states::{Name, all, interrupted, see};
use stores::{Stopped, open};
use threads::{Rng, within};

/// The result of a case, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// All data is there and right.
    Intact,
    /// The open failed.
    Refused,
    /// A read failed, and all other reads returned the right data.
    Unreadable,
    /// The last group is missing, as if its write had been torn.
    Torn,
    /// Data is missing or old, and no error reports it.
    Lost,
    /// Data appeared that never existed.
    Wrong,
}

const CLASSES: [Class; 6] = [Class::Intact, Class::Refused, Class::Unreadable, Class::Torn, Class::Lost, Class::Wrong];

/// For stores that were not closed, at most one of this number of cases, plus three, may be torn. One run had 9 of 1,800.
const TORN: u64 = 100;

struct Case {
    clean: bool,
    part: Part,
    harm: Harm,
    class: Class,
    /// True if `verify` found no problem in the data that was served.
    verified: bool,
    /// The share of records and rows that a salvage has rescued as they were.
    rescued: f64,
    note: String,
}

#[track_caller]
fn typed(error: &Error) {
    let allowed = [ErrorKind::Corrupt, ErrorKind::UnsupportedFormat, ErrorKind::Io, ErrorKind::Poisoned];
    assert!(allowed.contains(&error.kind()), "{error}: {:?}", error.kind());
}

/// Opens the store and reads everything.
fn examine(path: &Path, store: &Stopped, part: Part) -> (Class, bool, String) {
    let before = harm::contents(path);
    let engine = match open(path) {
        Ok(engine) => engine,
        Err(error) => {
            typed(&error);
            assert!(harm::contents(path) == before, "an open that was refused has changed something: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error} names no file");
            return (Class::Refused, true, error.to_string());
        }
    };
    drop(before);
    let mut worst = (Class::Intact, String::new());
    let mut note = |class: Class, why: String| {
        if class > worst.0 {
            worst = (class, why);
        }
    };
    let last = if part == Part::Segment { &store.last } else { &BTreeSet::new() };
    read_all(&engine, store, last, &mut note);
    // The engine must still work, or return an error.
    if let Err(error) = write_one(&engine) {
        typed(&error);
        note(Class::Unreadable, error.to_string());
    }
    let report = engine.verify();
    if let Err(error) = &report {
        typed(error);
    }
    let found = report.as_ref().map_or(true, |report| !report.problems.is_empty());
    if let Err(error) = engine.close() {
        typed(&error);
        note(Class::Unreadable, error.to_string());
    }
    if found && worst.0 == Class::Intact {
        // `verify` has found the damage before a read.
        worst = (Class::Unreadable, format!("{report:?}"));
    }
    (worst.0, found, worst.1)
}

fn read_all(engine: &Engine, store: &Stopped, last: &BTreeSet<Name>, note: &mut impl FnMut(Class, String)) {
    // An earlier state of a key is less bad than a state that it never had.
    let older = |name: &Name| if last.contains(name) { Class::Torn } else { Class::Lost };
    for name in store.states.names() {
        let expected = store.expected.get(name);
        match see(engine, name) {
            Err(error) => {
                typed(&error);
                note(Class::Unreadable, format!("{name}: {error}"));
            }
            Ok(found) if found.as_ref() == expected => {}
            Ok(found) if store.states.ever(name, found.as_ref()) => note(older(name), format!("{name} was {found:?}")),
            Ok(found) => note(Class::Wrong, format!("{name}: {found:?}, not {expected:?}")),
        }
    }
    let interrupted_before = store.expected.iter().filter(|(_, content)| content.is_interrupted());
    let lists = [
        (all(engine), store.expected.keys().cloned().collect::<BTreeSet<_>>()),
        (interrupted(engine), interrupted_before.map(|(name, _)| name.clone()).collect()),
    ];
    for (found, expected) in lists {
        match found {
            Err(error) => {
                typed(&error);
                note(Class::Unreadable, format!("listing: {error}"));
            }
            Ok(found) => {
                let found = found.into_iter().collect::<BTreeSet<_>>();
                for name in found.symmetric_difference(&expected) {
                    let class = if store.states.knows(name) { older(name) } else { Class::Wrong };
                    note(class, format!("{name} is listed: {}", found.contains(name)));
                }
            }
        }
    }
}

fn write_one(engine: &Engine) -> Result<(), Error> {
    let manager = engine.manager::<u64, u64>("after")?;
    let done = manager.execute("new", |_| Ok(7)).map_err(|error| match error {
        oncekey::ExecuteError::Engine(error) => error,
        other => panic!("{other:?}"),
    })?;
    assert_eq!((*done.value(), done.replayed()), (7, false));
    Ok(())
}

fn case(store: &Stopped, seed: u64) -> Case {
    let mut rng = Rng::new(seed);
    let copy = store.copy();
    let path = copy.path().join("it");
    let (part, harm, how) = harm::damage(&path, &mut rng);
    let note = |why: &str| format!("{}: seed {seed}: {how}: {why}", store.name);
    let rescued = rescue(&path, &copy.path().join("rescued"), store, &note);
    let (class, verified, why) = examine(&path, store, part);
    Case { clean: store.clean, part, harm, class, verified, rescued, note: note(&why) }
}

/// Salvages the store. Returns the share of records and rows that the new store has unchanged. Checks that the report is
/// not complete if any content is older or missing, except for the content of the last groups.
fn rescue(from: &Path, into: &Path, store: &Stopped, note: &dyn Fn(&str) -> String) -> f64 {
    let before = harm::contents(from);
    let options = Engine::options().clock(ManualClock::new()).segment_bytes(32 << 10);
    let report = match options.salvage(from, into) {
        Ok(report) => report,
        Err(error) => {
            // A segment with another version in its header.
            assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{}", note(&error.to_string()));
            assert!(!into.exists());
            return 0.0;
        }
    };
    assert!(harm::contents(from) == before, "{}", note("a salvage has changed what it reads"));
    let engine = open(into).unwrap_or_else(|error| panic!("{}", note(&error.to_string())));
    assert!(engine.opened().clean);
    let found: BTreeMap<Name, _> =
        all(&engine).unwrap().into_iter().map(|name| (name.clone(), see(&engine, &name).unwrap())).collect();
    assert_eq!(found.len() as u64, report.records + report.rows, "{}", note(&format!("{report:?}")));
    let is_right = |name: &&Name| found.get(*name).is_some_and(|found| found.as_ref() == store.expected.get(*name));
    let right = store.expected.keys().filter(is_right).count();
    for (name, content) in &found {
        let ever = store.states.ever(name, content.as_ref());
        assert!(ever || store.last.contains(name), "{}", note(&format!("{name} never was {content:?}")));
        let is_told =
            store.expected.get(name) == content.as_ref() || !report.is_complete() || store.last.contains(name);
        assert!(is_told, "{}", note(&format!("{name} is older, and {report:?}")));
    }
    let is_told = right == store.expected.len() || !report.is_complete() || !store.last.is_empty();
    assert!(is_told, "{}", note(&format!("{right} of {}, and {report:?}", store.expected.len())));
    assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
    engine.close().unwrap();
    #[allow(clippy::cast_precision_loss, reason = "a share")]
    let share = right as f64 / store.expected.len() as f64;
    share
}

type Table = BTreeMap<(bool, Part, Harm), [u64; CLASSES.len() + 1]>;

/// For each part: the cases, those with everything rescued, the sum of the shares, and the smallest share.
type Rescues = BTreeMap<(bool, Part), (u32, u32, f64, f64)>;

fn print_rescued(rescues: &Rescues) {
    println!("\n{:<14} {:<13} {:>6} {:>8} {:>9} {:>9}", "stopped", "file", "cases", "all", "mean", "least");
    for ((clean, part), (cases, all, sum, least)) in rescues {
        let (stop, part) = (if *clean { "cleanly" } else { "uncleanly" }, format!("{part:?}"));
        let mean = 100.0 * sum / f64::from(*cases);
        println!("{stop:<14} {part:<13} {cases:>6} {all:>8} {mean:>8.2}% {:>8.2}%", 100.0 * least);
    }
}

fn print(table: &Table) {
    let mut out = format!("\n{:<14} {:<13} {:<11} {:>6}", "stopped", "file", "damage", "cases");
    for class in CLASSES {
        write!(out, " {:>10}", format!("{class:?}")).unwrap();
    }
    writeln!(out, " {:>10}", "by verify").unwrap();
    let mut sum = [0; CLASSES.len() + 1];
    for ((clean, part, harm), counts) in table {
        let (stop, part, harm) =
            (if *clean { "cleanly" } else { "uncleanly" }, format!("{part:?}"), format!("{harm:?}"));
        write!(out, "{stop:<14} {part:<13} {harm:<11} {:>6}", counts[..CLASSES.len()].iter().sum::<u64>()).unwrap();
        for count in counts {
            write!(out, " {count:>10}").unwrap();
        }
        writeln!(out).unwrap();
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    write!(out, "{:<40} {:>6}", "all", sum[..CLASSES.len()].iter().sum::<u64>()).unwrap();
    for count in sum {
        write!(out, " {count:>10}").unwrap();
    }
    println!("{out}");
}

/// `ONCEKEY_DAMAGE` sets the number of cases, and `ONCEKEY_DAMAGE_SEED` the first seed.
#[test]
fn damage_is_an_error_or_the_right_data() {
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |value| value.parse().unwrap());
    let (cases, first) = (number("ONCEKEY_DAMAGE", 300), number("ONCEKEY_DAMAGE_SEED", 1));
    let began = Instant::now();
    let build = [stores::closed, stores::quiet].map(|build| [1, 3].map(build));
    let mut stores: Vec<Arc<Stopped>> = build.into_iter().flatten().map(Arc::new).collect();
    stores.push(Arc::new(stores::killed()));
    println!("{} stores in {:?}", stores.len(), began.elapsed());
    let next = AtomicU64::new(first);
    let (table, bad) = (Mutex::new(Table::new()), Mutex::new(Vec::new()));
    let rescues = Mutex::new(Rescues::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + cases {
                        break;
                    }
                    let store = Arc::clone(&stores[usize::try_from(seed).unwrap() % stores.len()]);
                    let case = within(Duration::from_secs(120), move || case(&store, seed));
                    {
                        let mut rescues = rescues.lock().unwrap();
                        let of_part = rescues.entry((case.clean, case.part)).or_insert((0, 0, 0.0, 1.0));
                        of_part.0 += 1;
                        of_part.1 += u32::from(case.rescued >= 1.0);
                        of_part.2 += case.rescued;
                        of_part.3 = of_part.3.min(case.rescued);
                    }
                    let mut table = table.lock().unwrap();
                    let counts = table.entry((case.clean, case.part, case.harm)).or_default();
                    counts[case.class as usize] += 1;
                    counts[CLASSES.len()] += u64::from(case.verified && case.class > Class::Refused);
                    if case.class >= Class::Torn {
                        bad.lock().unwrap().push(case);
                    }
                }
            });
        }
    });
    let (table, bad) = (table.into_inner().unwrap(), bad.into_inner().unwrap());
    print(&table);
    print_rescued(&rescues.into_inner().unwrap());
    println!("{cases} cases in {:?}", began.elapsed());
    let unclean =
        table.iter().filter(|((clean, ..), _)| !clean).map(|(_, counts)| counts[..CLASSES.len()].iter().sum::<u64>());
    let unclean = unclean.sum::<u64>();
    for case in &bad {
        println!("{:?}: {}", case.class, case.note);
        let allowed = case.class == Class::Torn && !case.clean && case.part == Part::Segment;
        assert!(allowed, "{:?}: {}", case.class, case.note);
    }
    let torn = bad.len() as u64;
    assert!(torn <= 3 + unclean / TORN, "{torn} cases of {unclean} are torn");
}
