//! Tests of atomic phases: atomicity, isolation and progress.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};

use oncekey::{Durability, Engine, Error, ErrorKind, Transaction, Value, stage::PhaseError, table::Table};

use crate::common::*;
use crate::threads::{LATE, until, within};

fn number(value: Option<Value>) -> u64 {
    value.map_or(0, |value| u64::from_be_bytes(value.as_ref().try_into().unwrap()))
}

fn at(table: &Table, key: &str) -> u64 {
    number(table.get(key).unwrap())
}

fn add(tx: &Transaction, key: &str, by: u64) -> oncekey::Result<()> {
    let table = tx.table("t")?;
    table.insert(key, (number(table.get(key)?) + by).to_be_bytes())
}

#[test]
fn a_phase_reads_its_own_writes() {
    let (engine, _) = engine();
    let table = engine.table("t").unwrap();
    table.insert("old", "1").unwrap();
    engine
        .atomic_phase(|tx| {
            let (t, other) = (tx.table("t")?, tx.table("other")?);
            assert_eq!((t.name(), other.name()), ("t".to_owned(), "other".to_owned()));
            t.insert("new", "2")?;
            t.remove("old")?;
            assert!(t.contains("new")? && !t.contains("old")? && !other.contains("new")?);
            t.insert("new", "3")?;
            assert_eq!(t.get("new")?.as_deref(), Some(&b"3"[..]));
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(table.get("new").unwrap().as_deref(), Some(&b"3"[..]));
    assert!(!table.contains("old").unwrap());
}

#[test]
fn an_error_and_a_panic_roll_back() {
    let (engine, _) = engine();
    let refused = engine.atomic_phase(|tx| {
        tx.table("t")?.insert("a", "1")?;
        Err::<(), _>(PhaseError::User("no"))
    });
    assert!(matches!(refused, Err(PhaseError::User("no"))));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        engine.atomic_phase::<(), Error>(|tx| {
            tx.table("t")?.insert("a", "1")?;
            panic!("on purpose")
        })
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
    assert!(engine.table("t").unwrap().is_empty().unwrap());
    engine.atomic_phase(|tx| add(tx, "a", 1)).unwrap();
}

#[test]
fn too_large_and_malformed_input_is_rejected_inside_too() {
    let (engine, _) = engine();
    let refused = |work: &dyn Fn(&Transaction) -> oncekey::Result<()>| engine.atomic_phase(work).unwrap_err().kind();
    assert_eq!(refused(&|tx| tx.table("No").map(|_| ())), ErrorKind::InvalidName);
    assert_eq!(refused(&|tx| tx.table("t")?.insert("", "x")), ErrorKind::InvalidKey);
    assert_eq!(refused(&|tx| tx.table("t")?.insert("k", vec![0; (1 << 20) + 1])), ErrorKind::TooLarge);
    let frame = refused(&|tx| {
        let table = tx.table("t")?;
        (0..40_u8).try_for_each(|key| table.insert([key], vec![0; 1 << 20]))
    });
    assert_eq!(frame, ErrorKind::TooLarge);
    assert!(engine.table("t").unwrap().is_empty().unwrap());
}

#[test]
fn calls_of_the_engine_are_rejected_inside() {
    let (engine, _) = engine();
    let (manager, table) = (texts(&engine), engine.table("t").unwrap());
    let held = claim(&manager, "held");
    let other = Engine::options().temporary_store().unwrap();
    engine
        .atomic_phase(|tx| {
            let refused = |result: oncekey::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InsideTransaction);
            };
            refused(manager.begin("k").map(|_| ()));
            refused(manager.execute("k", |_| unreachable!()).map(|_| ()).map_err(|error| match error {
                oncekey::ExecuteError::Engine(error) => error,
                _ => unreachable!(),
            }));
            refused(manager.get("k").map(|_| ()));
            refused(manager.wait("held", MINUTE).map(|_| ()));
            refused(manager.remove("k").map(|_| ()));
            refused(table.get("k").map(|_| ()));
            refused(table.insert("k", "v"));
            refused(table.iter().map(|_| ()));
            refused(engine.sync());
            refused(engine.compact_now().map(|_| ()));
            refused(engine.interrupted().and_then(|mut found| found.next().transpose()).map(|_| ()));
            refused(engine.managers().map(|_| ()));
            refused(engine.clone().close());
            // Another store and other threads are not affected.
            other.atomic_phase(|tx| add(tx, "k", 1))?;
            std::thread::scope(|scope| scope.spawn(|| table.insert("thread", "v")).join().unwrap())?;
            add(tx, "k", 1)
        })
        .unwrap();
    assert_eq!((at(&table, "k"), table.contains("thread").unwrap()), (1, true));
    held.succeed(&"still alive".to_owned()).unwrap();
}

#[test]
fn a_claim_dropped_inside_is_interrupted() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let held = Mutex::new(Some(claim(&manager, "k")));
    let drop_it = |_: &Transaction| {
        drop(held.lock().unwrap().take());
        Ok::<_, Error>(())
    };
    engine.atomic_phase(drop_it).unwrap();
    assert_eq!(answer(&manager, "k"), "interrupted");
    assert_eq!(engine.stats().drops_not_recorded, 0);
}

#[test]
fn a_phase_with_stale_reads_runs_again_whatever_it_returned() {
    let (engine, _) = local_engine();
    let table = engine.table("t").unwrap();
    for ending in ["ok", "error", "panic", "ignored"] {
        table.insert("a", 0_u64.to_be_bytes()).unwrap();
        let runs = AtomicU32::new(0);
        let ended = engine.atomic_phase(|tx| {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            let t = tx.table("t")?;
            let seen = number(t.get("a")?);
            assert_eq!(seen, u64::from(run));
            t.insert("seen", seen.to_be_bytes())?;
            if run == 0 {
                // Another thread writes meanwhile.
                std::thread::scope(|scope| scope.spawn(|| table.insert("a", 1_u64.to_be_bytes())).join().unwrap())?;
                match ending {
                    "ok" => {}
                    "error" => return Err(PhaseError::User("a state that is no more")),
                    "panic" => panic!("a state that is no more"),
                    _ => {
                        // The next read returns `Conflict`, and the run is discarded even if the closure ignores that.
                        assert!(matches!(t.get("b").map_err(|error| error.kind()), Err(ErrorKind::Conflict)));
                        assert!(t.insert("b", "x").is_err());
                    }
                }
            }
            Ok(seen)
        });
        assert_eq!((ended.unwrap(), runs.into_inner()), (1, 2), "{ending}");
        assert_eq!(at(&table, "seen"), 1);
    }
    assert_eq!(engine.stats().transaction_reruns, 4);
}

#[test]
fn sixty_four_threads_count_exactly() {
    let (engine, _) = local_engine();
    let each = 1000;
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for _ in 0..each {
                    engine.atomic_phase(|tx| add(tx, "counter", 1)).unwrap();
                }
            });
        }
    });
    assert_eq!(at(&engine.table("t").unwrap(), "counter"), 64 * each);
}

#[test]
fn transfers_keep_the_sum_for_every_reader() {
    const ACCOUNTS: u64 = 100;
    let (engine, _) = local_engine();
    let name = |account: u64| format!("account-{account}");
    engine.atomic_phase(|tx| (0..ACCOUNTS).try_for_each(|account| add(tx, &name(account), 1000))).unwrap();
    let sum = || {
        engine.atomic_phase(|tx| {
            let table = tx.table("t")?;
            (0..ACCOUNTS).try_fold(0, |sum, account| Ok::<_, Error>(sum + number(table.get(name(account))?)))
        })
    };
    let (done, start) = (AtomicBool::new(false), Barrier::new(66));
    std::thread::scope(|scope| {
        let movers: Vec<_> = (0..64_u64)
            .map(|mover| {
                let (engine, start) = (&engine, &start);
                scope.spawn(move || {
                    start.wait();
                    for step in 0..100_u64 {
                        let (from, to) = ((mover * 31 + step * 7) % ACCOUNTS, (mover * 17 + step * 13) % ACCOUNTS);
                        let moved: Result<(), PhaseError<&str>> = engine.atomic_phase(|tx| {
                            let table = tx.table("t")?;
                            let amount = step % 50;
                            let left = number(table.get(name(from))?).checked_sub(amount);
                            let left = left.ok_or(PhaseError::User("short"))?;
                            table.insert(name(from), left.to_be_bytes())?;
                            add(tx, &name(to), amount)?;
                            Ok(())
                        });
                        assert!(matches!(moved, Ok(()) | Err(PhaseError::User("short"))), "{moved:?}");
                    }
                })
            })
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let mut seen = 0;
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(sum().unwrap(), ACCOUNTS * 1000);
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        for mover in movers {
            mover.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    });
    assert_eq!(sum().unwrap(), ACCOUNTS * 1000);
}

// Once, versions were kept for groups of keys. Then rows without writers were read up to 64 times during other commits.
#[test]
fn commits_of_other_keys_do_not_make_a_phase_run_again() {
    let options = Engine::options().durability(Durability::Eventual { interval: SECOND });
    let engine = options.temporary_store().unwrap();
    let (manager, table) = (texts(&engine), engine.table("t").unwrap());
    let runs = AtomicU32::new(0);
    engine
        .atomic_phase(|tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            let t = tx.table("t")?;
            for number in 0..500 {
                t.get(format!("account-{number}"))?;
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0..2000 {
                        manager.execute(format!("k-{number}"), |_| Ok("done".to_owned())).unwrap();
                        table.insert(format!("other-{number}"), "x").unwrap();
                    }
                });
            });
            t.insert("sum", "x")
        })
        .unwrap();
    assert_eq!((runs.into_inner(), engine.stats().transaction_reruns), (1, 0));
}

/// The two ways to write a row.
const WRITES: [fn(&Engine, &str); 2] = [
    |engine, key| engine.table("t").unwrap().insert(key, "x").unwrap(),
    |engine, key| engine.atomic_phase(|tx| tx.table("t")?.insert(key, "x")).unwrap(),
];

// The reader conflicts in every run until it locks its keys. Writers of other keys never wait for the reader.
#[test]
fn a_long_reader_that_always_conflicts_ends_and_blocks_no_other_keys() {
    for write in WRITES {
        within(LATE, move || read_long_beside(write));
    }
}

fn read_long_beside(write: fn(&Engine, &str)) {
    let (engine, _) = engine();
    let table = engine.table("t").unwrap();
    let (done, runs) = (AtomicBool::new(false), AtomicU32::new(0));
    let (hot, cold) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for (key, count) in [("hot", &hot), ("cold", &cold)] {
            let (engine, done) = (&engine, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    write(engine, key);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let ended = engine.atomic_phase(|tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            let t = tx.table("t")?;
            t.get("hot")?;
            for other in 0..100 {
                t.get(format!("other-{other}"))?;
            }
            // Wait until the other writers have written several times. In that time an unblocked writer would also have
            // changed a row that was read.
            let written = cold.load(Ordering::Relaxed);
            until("others go on", || cold.load(Ordering::Relaxed) >= written + 8);
            t.insert("long", "x")
        });
        done.store(true, Ordering::Relaxed);
        ended.unwrap();
    });
    assert!(table.contains("long").unwrap());
    let runs = runs.into_inner();
    // One more for a writer that had checked before the keys were locked.
    assert!(runs <= 5, "{runs} runs");
    assert!(hot.into_inner() > 0);
}

/// A thread-local value that reads a table when the thread ends, and reports the result.
struct Parting(Table, std::sync::mpsc::Sender<std::thread::Result<bool>>);

impl Drop for Parting {
    fn drop(&mut self) {
        let Self(table, said) = self;
        let look = std::panic::AssertUnwindSafe(|| table.contains("k").unwrap());
        let _ = said.send(std::panic::catch_unwind(look));
    }
}

#[test]
fn a_thread_local_may_use_the_engine_in_its_destructor() {
    thread_local! {
        static EARLY: std::cell::OnceCell<Parting> = const { std::cell::OnceCell::new() };
        static LATE: std::cell::OnceCell<Parting> = const { std::cell::OnceCell::new() };
    }
    let (engine, _) = engine();
    let table = engine.table("t").unwrap();
    table.insert("k", "v").unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    // A thread drops its thread-local values in either order, so one of the two is dropped after the engine's own.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            EARLY.with(|early| early.set(Parting(table.clone(), said.clone())).ok().unwrap());
            engine.atomic_phase(|tx| add(tx, "n", 1)).unwrap();
            LATE.with(|late| late.set(Parting(table.clone(), said.clone())).ok().unwrap());
        });
    });
    for _ in 0..2 {
        assert!(heard.recv().unwrap().unwrap());
    }
}
