//! Tests of listings by the command line, and of keys as they are printed and typed.

use oncekey::{Engine, Key, Manager, ManagerOptions};
use serde_json::Value as Json;

use crate::cli::{json, oncekey, printed, process, store};
use crate::common::*;

#[test]
fn a_listing_is_sorted_reversed_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store").to_str().unwrap().to_owned();
    let engine = Engine::open(&path).unwrap();
    let texts: Manager<String> = engine.manager("m").unwrap();
    for (key, length) in [("a", 3), ("b", 1), ("c", 2), ("d", 9)] {
        claim(&texts, key).succeed(&"x".repeat(length)).unwrap();
    }
    let forever: Manager<String> =
        engine.manager_with("never", ManagerOptions::new().success_ttl(oncekey::FOREVER)).unwrap();
    claim(&forever, "e").succeed(&"x".repeat(4)).unwrap();
    engine.close().unwrap();
    let keys = |args: &[&str]| -> String {
        let args = [&["list", &path, "--json"], args].concat();
        let records = printed(&args);
        let keys = records.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["key"].clone());
        keys.map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (keys(&[]), keys(&["--reverse"]), keys(&["--sort", "key"])),
        ("abcde".into(), "edcba".into(), "abcde".into())
    );
    assert_eq!(keys(&["--sort", "outcome"]), "bcaed");
    assert_eq!(keys(&["--sort", "outcome", "--reverse", "--limit", "2"]), "de");
    assert_eq!(
        (keys(&["--sort", "changed"]), keys(&["--sort", "created", "--limit", "1"])),
        ("abcde".into(), "a".into())
    );
    assert_eq!(keys(&["--sort", "expires"]).chars().last(), Some('e'));
    assert_eq!(keys(&["--sort", "tries", "--manager", "never"]), "e");
    assert_eq!([keys(&["--contains", "b"]), keys(&["--contains", "x"])].map(|keys| keys.len()), [1, 0]);
}

#[test]
fn tables_and_rows_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    assert_eq!(printed(&["tables", &path]), "no table has a row\n");
    assert_eq!(printed(&["rows", &path, "stock"]), "no row matches\n");
    let engine = Engine::open(&path).unwrap();
    let stock = engine.table("stock").unwrap();
    let of_parts = Key::from_parts(["shop", "pear"]).unwrap();
    for (key, value) in
        [(&b"apple"[..], &b"3"[..]), (b"b\xff c", b"\x00\xff"), (of_parts.as_bytes(), b"5"), (b"\xffkey\x01", b"6")]
    {
        stock.insert(key, value).unwrap();
    }
    for n in 0..300 {
        engine.table("many").unwrap().insert(format!("{n:03}"), "v").unwrap();
    }
    engine.table("emptied").unwrap().insert("k", "v").unwrap();
    engine.table("emptied").unwrap().remove("k").unwrap();
    engine.close().unwrap();
    let tables = printed(&["tables", &path]);
    let names: Vec<_> =
        tables.lines().skip(1).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>()).collect();
    assert_eq!(names, [["many", "300"], ["stock", "4"]]);
    assert_eq!(json(&["tables", &path]), serde_json::json!({ "table": "many", "rows": 300, "bytes": 1200 }));
    let rows = |args: &[&str]| -> Vec<Json> {
        let rows = printed(&[&["rows", &path, "stock", "--json"], args].concat());
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let keys: Vec<_> = rows(&[]).into_iter().map(|row| row["key"].clone()).collect();
    assert_eq!(keys, ["apple", "b%FF%20c", "/shop/pear", "%FF%6B%65%79%01"]);
    assert_eq!(rows(&["--key-prefix", "b%FF"])[0]["value"], serde_json::json!({ "base64": "AP8=" }));
    assert_eq!(rows(&["--key-prefix", "/shop/p"])[0]["value"], "5");
    assert_eq!((rows(&["--key-prefix", "/"]).len(), rows(&["--limit", "2"]).len()), (1, 2));
    assert_eq!(printed(&["rows", &path, "many", "--count"]), "300\n");
    assert!(printed(&["rows", &path, "stock"]).contains("apple"));
    assert_eq!(oncekey(&["rows", &path, "No!"]).0, 2);
}

/// Splits text into arguments as `xargs` does: at blanks, with quotes and the backslash.
fn xargs(text: &str) -> Vec<String> {
    let (mut words, mut word, mut chars) = (Vec::new(), None::<String>, text.chars());
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' | '"' => word.get_or_insert_default().extend(chars.by_ref().take_while(|other| *other != c)),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn keys_that_list_prints_are_taken_by_get_through_xargs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store").to_str().unwrap().to_owned();
    let engine = Engine::open(&path).unwrap();
    let payments: Manager<String> = engine.manager("payments").unwrap();
    let mut expected = Vec::new();
    for scope in [&[][..], &["acme"], &["acme", "eu/west"], &["-", "\u{4e16}"]] {
        let scoped = scope.iter().fold(payments.clone(), |manager, part| manager.scoped(part).unwrap());
        for key in [
            &b"order-42"[..],
            b"-n",
            b"a b'\"\\",
            b"/acme/order-42",
            "Z\u{fc}rich".as_bytes(),
            b"\xff\0",
            b"100%",
            b"--json",
        ] {
            claimed(scoped.begin(key).unwrap()).succeed(&String::new()).unwrap();
            expected.push(());
        }
    }
    engine.close().unwrap();
    let output = |args: &[&str]| {
        let ran = process(args).output().unwrap();
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let listed = output(&["list", &path, "--json"]);
    // As `jq -r .key` does, one line each.
    let lines = listed.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let keys: Vec<_> = lines.map(|record| record["key"].as_str().unwrap().to_owned()).collect();
    let words = xargs(&keys.join("\n"));
    assert_eq!(words.len(), expected.len());
    for (word, line) in words.iter().zip(listed.lines()) {
        let got: Json = serde_json::from_str(&output(&["get", &path, "payments", word, "--json"])).unwrap();
        let listed: Json = serde_json::from_str(line).unwrap();
        assert_eq!((&got["key"], &got["generation"]), (&listed["key"], &listed["generation"]), "{word}");
    }
    // The table shows the same words, and a prefix of each finds it.
    let table = output(&["list", &path]);
    for word in &words {
        assert!(table.lines().any(|line| line.split_whitespace().last() == Some(word)), "{word}: {table}");
        let found = output(&["list", &path, "--key-prefix", word, "--count"]);
        assert!(found.trim().parse::<u64>().unwrap() >= 1, "{word}: {found}");
    }
}
