//! Tests of ranges inside transactions: in order, with own writes, and validated as a whole.

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
fn a_range_is_in_order_and_includes_own_writes() {
    let dir = tempfile::tempdir().unwrap();
    let clock = oncekey::clock::ManualClock::new();
    let engine = open(dir.path(), &clock);
    engine.table("u").unwrap().insert("b", "another table").unwrap();
    for key in ["d", "b", "f"] {
        engine.table("t").unwrap().insert(key, "old").unwrap();
    }
    // These rows are in the record store then, the others are not yet.
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
            // Writes during the iteration.
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
fn a_long_range_is_complete() {
    let engine = Engine::options().temporary_store().unwrap();
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

// With the range read outside the transaction, one seat was booked twice: the second booking did not conflict with the
// first.
#[test]
fn only_one_of_two_transactions_fills_a_range_that_both_found_empty() {
    let engine = Engine::options().temporary_store().unwrap();
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

/// Returns the number of runs of a transaction that reads `t` from `b` up to `f`, excluding `f`. The rows are `b`, `c` and
/// `d`. `beside` runs during the first run.
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
fn only_changes_inside_a_read_range_make_a_transaction_run_again() {
    for (key, expected) in [("a", 1), ("b", 2), ("bb", 2), ("d", 2), ("e", 2), ("f", 1), ("g", 1)] {
        assert_eq!(runs_beside(usize::MAX, |table| table.insert(key, "y").unwrap()), expected, "insert {key}");
    }
    for (key, expected) in [("a", 1), ("c", 2), ("f", 1)] {
        assert_eq!(runs_beside(usize::MAX, |table| table.remove(key).unwrap()), expected, "remove {key}");
    }
    // A transaction that takes only the first row has read nothing after it.
    assert_eq!(runs_beside(1, |table| table.insert("bb", "y").unwrap()), 1);
    assert_eq!(runs_beside(1, |table| table.remove("b").unwrap()), 2);
}

#[test]
fn a_reader_of_a_constantly_changing_range_ends() {
    within(LATE, || {
        let engine = Engine::options().temporary_store().unwrap();
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
                // Wait until others have written. After three runs they wait themselves.
                if run < 3 {
                    let before = count.load(Ordering::SeqCst);
                    until("others go on", || count.load(Ordering::SeqCst) >= before + 2);
                }
                tx.table("sums")?.insert("sum", found.to_be_bytes())
            });
            done.store(true, Ordering::SeqCst);
            ended.unwrap();
            // One more for a writer that had checked before the table was locked.
            assert!(runs.load(Ordering::SeqCst) <= 5, "{runs:?} runs");
        });
    });
}
