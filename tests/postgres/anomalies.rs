//! Tests that the transactions of several engines agree with some serial order, although each reads one snapshot.

use std::sync::atomic::{AtomicU32, Ordering};

use oncekey::{Engine, Error, Transaction};

use crate::{new_schema, open};

fn get(tx: &Transaction, key: &str) -> Result<u8, Error> {
    Ok(tx.table("t")?.get(key)?.map_or(0, |value| value[0]))
}

/// Reads both rows in a transaction of its own. If it fails, it returns them in its error.
fn both(engine: &Engine, fails: bool) -> (u8, u8) {
    let ended = engine.atomic_phase(|tx| {
        let both = (get(tx, "x")?, get(tx, "y")?);
        if fails { Err(Failed::With(both)) } else { Ok(both) }
    });
    match ended {
        Ok(both) | Err(Failed::With(both)) => both,
        Err(Failed::Error(error)) => panic!("{error}"),
    }
}

#[derive(Debug)]
enum Failed {
    With((u8, u8)),
    Error(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// One transaction has read x. Another one then changes x, and a third one reads this x and no y. So the first one
/// comes after the third one, and cannot write a y that depends on the old x.
fn in_order(fails: bool) {
    let (schema, runs) = (new_schema(), AtomicU32::new(0));
    let (one, two) = (open(&schema), open(&schema));
    one.atomic_phase(|tx| tx.table("t")?.insert("x", [1])).unwrap();
    one.atomic_phase(|tx| {
        let x = get(tx, "x")?;
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            std::thread::scope(|scope| {
                let others = scope.spawn(|| {
                    two.atomic_phase(|tx| tx.table("t")?.insert("x", [10])).unwrap();
                    both(&two, fails)
                });
                assert_eq!(others.join().unwrap(), (10, 0));
            });
        }
        tx.table("t")?.insert("y", [x + 1])
    })
    .unwrap();
    assert_eq!((both(&two, false), runs.into_inner()), ((10, 11), 2));
}

#[test]
fn the_reads_of_a_transaction_agree_with_the_serial_order() {
    in_order(false);
}

#[test]
fn the_reads_of_a_failing_transaction_agree_with_the_serial_order() {
    in_order(true);
}
