//! Tests of the user's tables.

use oncekey::{Engine, ErrorKind, Key, Value, table::Rows};

use crate::common::*;

fn rows(rows: oncekey::Result<Rows>) -> Vec<(String, String)> {
    let text = |value: Value| String::from_utf8(value.to_vec()).unwrap();
    rows.unwrap().map(|row| row.map(|(key, value)| (text(key), text(value))).unwrap()).collect()
}

fn names(found: oncekey::Result<Rows>) -> String {
    rows(found).into_iter().map(|(key, _)| key).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_table_keeps_rows_in_the_order_of_their_keys_across_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let first = open(dir.path(), &clock);
    let table = first.table("t").unwrap();
    for key in ["b", "d", "a", "ba", "c"] {
        table.insert(key, key.to_uppercase()).unwrap();
    }
    table.insert("c", "new").unwrap();
    table.remove("d").unwrap();
    table.remove("never").unwrap();
    let expected = vec![("a", "A"), ("b", "B"), ("ba", "BA"), ("c", "new")];
    let expected: Vec<_> = expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(rows(table.iter()), expected, "from memory");
    first.close().unwrap();

    let second = open(dir.path(), &clock);
    let table = second.table("t").unwrap();
    assert_eq!(rows(table.iter()), expected, "from disk");
    table.insert("aa", "AA").unwrap();
    assert_eq!(names(table.iter()), "a aa b ba c", "from both");
    assert_eq!(names(table.prefix("b")), "b ba");
    assert_eq!(names(table.prefix("")), "a aa b ba c");
    assert_eq!(names(table.range("aa".."c")), "aa b ba");
    assert_eq!(names(table.range("aa"..="c")), "aa b ba c");
    assert_eq!(names(table.range(.."b")), "a aa");
    assert_eq!(names(table.range("x".."a")), "", "a range that is the wrong way round is empty");
    assert_eq!((table.len().unwrap(), table.is_empty().unwrap()), (5, false));
    assert_eq!((table.contains("a").unwrap(), table.contains("d").unwrap()), (true, false));
    assert_eq!(table.get("c").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(table.get("never").unwrap(), None);
    assert!(second.table("other").unwrap().is_empty().unwrap());
}

#[test]
fn tables_and_managers_of_the_same_name_are_separate() {
    let (engine, _) = engine();
    let (manager, table) = (texts(&engine), engine.table("m").unwrap());
    table.insert("k", "row").unwrap();
    assert_eq!(answer(&manager, "k"), "claimed");
    manager.remove("k").unwrap();
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"row"[..]));
    // One name is a prefix of the other.
    engine.table("m2").unwrap().insert("a", "x").unwrap();
    engine.table("m.").unwrap().insert("a", "x").unwrap();
    assert_eq!(names(table.iter()), "k");
    assert_eq!(engine.managers().unwrap(), Vec::<String>::new());
}

#[test]
fn values_of_any_length_and_content_are_kept() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let values: Vec<Vec<u8>> = [0, 1, 4096, 4097, 100_000, 1 << 20].map(|len| vec![7; len]).into();
    let engine = open(dir.path(), &clock);
    let table = engine.table("t").unwrap();
    for value in &values {
        table.insert((value.len() as u64).to_be_bytes(), value).unwrap();
    }
    table.insert([0xff; Key::MAX_BYTES], "last").unwrap();
    engine.close().unwrap();
    let engine = open(dir.path(), &clock);
    let table = engine.table("t").unwrap();
    let found: Vec<Value> = table.iter().unwrap().map(|row| row.unwrap().1).collect();
    assert_eq!(found.len(), values.len() + 1);
    assert!(found.iter().zip(&values).all(|(found, value)| **found == **value));
    assert_eq!(table.prefix([0xff; 3]).unwrap().count(), 1);
}

#[test]
fn invalid_names_keys_and_values_are_rejected_and_change_nothing() {
    let (engine, _) = engine();
    for name in ["", "A", "a/b", &"x".repeat(65)] {
        assert_eq!(engine.table(name).unwrap_err().kind(), ErrorKind::InvalidName);
    }
    let table = engine.table("t").unwrap();
    for key in [&[][..], &[0; Key::MAX_BYTES + 1]] {
        assert_eq!(table.get(key).unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(table.insert(key, "x").unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(table.remove(key).unwrap_err().kind(), ErrorKind::InvalidKey);
    }
    let error = table.insert("k", vec![0; (1 << 20) + 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(error.to_string(), "the value of k in table t is 1048577 bytes long, the limit is 1048576");
    assert!(table.is_empty().unwrap());
}

#[test]
fn a_table_of_a_closed_engine_returns_closed() {
    let (engine, _) = engine();
    let table = engine.table("t").unwrap();
    table.insert("k", "v").unwrap();
    engine.close().unwrap();
    let closed = |result: oncekey::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::Closed);
    closed(table.get("k").map(|_| ()));
    closed(table.insert("k", "v"));
    closed(table.remove("k"));
    closed(table.iter().map(|_| ()));
    closed(table.len().map(|_| ()));
}

#[test]
fn more_rows_than_a_batch_are_listed_once_each() {
    let (engine, _) = engine();
    let table = engine.table("t").unwrap();
    engine
        .atomic_phase(|tx| {
            let table = tx.table("t")?;
            (0..1000_u32).try_for_each(|number| table.insert(number.to_be_bytes(), "x"))
        })
        .unwrap();
    let keys: Vec<u32> =
        table.iter().unwrap().map(|row| u32::from_be_bytes(row.unwrap().0.as_ref().try_into().unwrap())).collect();
    assert_eq!(keys, (0..1000).collect::<Vec<_>>());
}

/// sled writes a page of its index that is larger than 128 KiB into a file of its own, and does not sync it.
#[test]
fn thousands_of_tables_and_long_keys_that_begin_alike_give_no_blob_file() {
    let dir = tempfile::tempdir().unwrap();
    let durability = oncekey::Durability::Eventual { interval: std::time::Duration::from_millis(5) };
    let engine = Engine::options().durability(durability).open(dir.path()).unwrap();
    for number in 0..3_000 {
        engine.table(&format!("tenant-{number:0>50}")).unwrap().insert("a", "b").unwrap();
    }
    let manager = texts(&engine);
    for number in 0..4_000 {
        assert_eq!(answer(&manager, &format!("{number:0>508}")), "claimed");
    }
    engine.compact_now().unwrap();
    let blobs = std::fs::read_dir(dir.path().join("store/sled/blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0);
    assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
    drop(manager);
    engine.close().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let row = engine.table(&format!("tenant-{:0>50}", 2_999)).unwrap().get("a").unwrap();
    assert_eq!(row.as_deref(), Some(&b"b"[..]));
    assert!(texts(&engine).get(format!("{:0>508}", 3_999)).unwrap().is_some());
}
