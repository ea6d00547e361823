//! Ranges inside transactions: in order, with what was written, and checked as a whole.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use oncekey::{Engine, Error, table::TransactionRows};

use crate::common::*;
use crate::threads::{LATE, until, within};

fn keys(rows: TransactionRows<'_>) -> oncekey::Result<Vec<String>> {
    rows.map(|row| row.map(|(key, _)| String::from_utf8(key.to_vec()).unwrap())).collect()
}

#[test]
fn a_range_is_in_order_and_has_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let clock = oncekey::clock::ManualClock::new();
    let engine = open(dir.path(), &clock);
    engine.table("u").unwrap().insert("b", "another table").unwrap();
    for key in ["d", "b", "f"] {
        engine.table("t").unwrap().insert(key, "old").unwrap();
    }
    // These are in the record store then, the others are not yet.
    engine.close().unwrap();
    let engine = open(dir.path(), &clock);
    engine.table("t").unwrap().insert("c", "old").unwrap();
    engine.table("t").unwrap().remove("f").unwrap();
    engine
        .atomic_phase(|tx| {
            let t = tx.table("t")?;
            t.insert("e", "new")?;
            t.insert("c", "new")?;
            t.remove("d")?;
            assert_eq!(keys(t.iter())?, ["b", "c", "e"]);
            assert_eq!(keys(t.range("c".."e"))?, ["c"]);
            assert_eq!(keys(t.range("c"..="e"))?, ["c", "e"]);
            assert_eq!(keys(t.range("e".."c"))?, [""; 0]);
            assert_eq!(keys(t.prefix("e"))?, ["e"]);
            assert_eq!((t.len()?, t.is_empty()?, tx.table("none")?.is_empty()?), (3, false, true));
            let values: Vec<Vec<u8>> = t.iter().map(|row| Ok(row?.1.to_vec())).collect::<oncekey::Result<_>>()?;
            assert_eq!(values, [&b"old"[..], b"new", b"new"]);
            // What is written while it goes on.
            for row in &t {
                let (key, value) = row?;
                assert!(*key != *b"e" || *value == *b"newer", "{key:?}");
                t.insert("e", "newer")?;
                t.remove("c")?;
            }
            assert_eq!(keys(t.iter())?, ["b", "e"]);
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(engine.table("t").unwrap().len().unwrap(), 2);
}

#[test]
fn a_long_range_is_all_there() {
    let engine = Engine::temporary().unwrap();
    let expected: BTreeMap<Vec<u8>, Vec<u8>> =
        (0..2000_u32).map(|number| (number.to_be_bytes().to_vec(), number.to_le_bytes().to_vec())).collect();
    let written = engine.atomic_phase(|tx| {
        let t = tx.table("t")?;
        expected.iter().filter(|(key, _)| key[3] % 3 > 0).try_for_each(|(key, value)| t.insert(key, value))
    });
    written.unwrap();
    let found = engine.atomic_phase(|tx| {
        let t = tx.table("t")?;
        expected.iter().filter(|(key, _)| key[3] % 3 == 0).try_for_each(|(key, value)| t.insert(key, value))?;
        t.iter()
            .map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect::<oncekey::Result<BTreeMap<_, _>>>()
    });
    assert_eq!(found.unwrap(), expected);
}

// With the range read outside there were two bookings of one seat: nothing told the second that there was a first.
#[test]
fn of_two_that_found_a_range_empty_only_one_fills_it() {
    let engine = Engine::temporary().unwrap();
    let both = Barrier::new(2);
    let book = |who: &str| {
        let is_first = AtomicBool::new(true);
        let booked = engine.atomic_phase(|tx| {
            let seats = tx.table("seats")?;
            let taken = seats.prefix("show-1/").next().transpose()?.is_some();
            if is_first.swap(false, Ordering::SeqCst) {
                both.wait();
            }
            if !taken {
                seats.insert(format!("show-1/{who}"), "x")?;
            }
            Ok::<_, Error>(!taken)
        });
        booked.unwrap()
    };
    let booked = std::thread::scope(|scope| {
        let threads = ["ada", "eve"].map(|who| scope.spawn(move || book(who)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(booked.iter().filter(|booked| **booked).count(), 1);
    assert_eq!(engine.table("seats").unwrap().len().unwrap(), 1);
}

/// How often a transaction runs that reads `t` from `b` to before `f`, where there are `b`, `c` and `d`, and beside which this
/// is done in its first run.
fn runs_beside(rows: usize, meanwhile: impl Fn(&oncekey::table::Table) + Sync) -> u32 {
    let engine = Engine::temporary().unwrap();
    let table = engine.table("t").unwrap();
    for key in ["b", "c", "d"] {
        table.insert(key, "x").unwrap();
    }
    let runs = AtomicU32::new(0);
    engine
        .atomic_phase(|tx| {
            let t = tx.table("t")?;
            for row in t.range("b".."f").take(rows) {
                row?;
            }
            if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                std::thread::scope(|scope| scope.spawn(|| meanwhile(&table)).join().unwrap());
            }
            t.insert("mine", "x")
        })
        .unwrap();
    runs.into_inner()
}

#[test]
fn what_changes_in_a_range_makes_it_run_again_and_nothing_else_does() {
    for (key, expected) in [("a", 1), ("b", 2), ("bb", 2), ("d", 2), ("e", 2), ("f", 1), ("g", 1)] {
        assert_eq!(runs_beside(usize::MAX, |table| table.insert(key, "y").unwrap()), expected, "insert {key}");
    }
    for (key, expected) in [("a", 1), ("c", 2), ("f", 1)] {
        assert_eq!(runs_beside(usize::MAX, |table| table.remove(key).unwrap()), expected, "remove {key}");
    }
    // Of the first row alone nothing behind it was read.
    assert_eq!(runs_beside(1, |table| table.insert("bb", "y").unwrap()), 1);
    assert_eq!(runs_beside(1, |table| table.remove("b").unwrap()), 2);
}

#[test]
fn who_reads_a_range_that_others_fill_all_the_time_ends() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let (done, count) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let table = engine.table("t").unwrap();
                while !done.load(Ordering::SeqCst) {
                    table.insert(count.load(Ordering::SeqCst).to_be_bytes(), "x").unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
            let runs = AtomicU32::new(0);
            let ended = engine.atomic_phase(|tx| {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                let found = tx.table("t")?.len()?;
                // As long as it takes others to write, until they wait.
                if run < 3 {
                    let before = count.load(Ordering::SeqCst);
                    until("others go on", || count.load(Ordering::SeqCst) >= before + 2);
                }
                tx.table("sums")?.insert("sum", found.to_be_bytes())
            });
            done.store(true, Ordering::SeqCst);
            ended.unwrap();
            // One more for a writer that had looked before the table was locked.
            assert!(runs.load(Ordering::SeqCst) <= 5, "{runs:?} runs");
        });
    });
}
