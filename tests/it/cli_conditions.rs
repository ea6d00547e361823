//! The command line on stores in every condition: read-only commands change nothing, and others keep the owner.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Output;

use oncekey::Engine;

use crate::cli::{process, store};
use crate::read_only::{everything, is_root};

/// Runs the program, and returns its exit status and what it printed.
#[track_caller]
fn ran(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = process(args).output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(!out.contains("panicked") && !err.contains("panicked"), "{args:?}: {out}{err}");
    (status.code().unwrap(), out, err)
}

/// Returns the read-only commands for this store.
fn looking<'a>(path: &'a str, copy: &'a str) -> Vec<Vec<&'a str>> {
    vec![
        vec!["stats", path],
        vec!["list", path],
        vec!["tables", path],
        vec!["rows", path, "t"],
        vec!["get", path, "payments", "won"],
        vec!["verify", path],
        vec!["export", path],
        vec!["resolve", path, "payments", "/user-7/order-42", "--retry", "--dry-run"],
        vec!["doctor", path],
        vec!["doctor", path, "--quick", "--json"],
        vec!["backup", path, copy],
    ]
}

fn closed(dir: &Path) -> PathBuf {
    let path = store(dir);
    Engine::open(&path).unwrap().close().unwrap();
    path.into()
}

#[track_caller]
fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let files = everything(&path.join("store/journal")).into_iter().map(|(path, ..)| path);
    files.filter(|path| path.is_file()).collect()
}

/// A condition of a store, a function that creates it, and the exit status of a command that reads everything.
type Condition = (&'static str, fn(&Path), i32);

const CONDITIONS: [Condition; 9] = [
    ("closed", |_| (), 0),
    (
        "died",
        |path| {
            let engine = Engine::open(path).unwrap();
            engine.table("t").unwrap().insert("row", "value").unwrap();
            engine.crash();
        },
        0,
    ),
    (
        "zeroed",
        |path| {
            change(&path.join("store/sled/db"), |bytes| {
                let end = bytes.len().min(1 << 20);
                bytes[..end].fill(0);
            });
        },
        4,
    ),
    ("truncated", |path| change(&path.join("store/sled/db"), |bytes| bytes.truncate(1000)), 4),
    ("without records", |path| fs::remove_file(path.join("store/sled/db")).unwrap(), 4),
    ("without a journal", |path| fs::remove_dir_all(path.join("store/journal")).unwrap(), 4),
    ("damaged journal", |path| change(&segments(path)[0], |bytes| bytes[20] ^= 1), 4),
    (
        "foreign",
        |path| {
            fs::remove_dir_all(path).unwrap();
            fs::create_dir(path).unwrap();
            fs::write(path.join("notes.txt"), "mine").unwrap();
        },
        2,
    ),
    (
        "empty",
        |path| {
            fs::remove_dir_all(path).unwrap();
            fs::create_dir(path).unwrap();
        },
        2,
    ),
];

#[test]
fn commands_that_look_change_nothing_in_any_condition() {
    for (condition, damage, status) in CONDITIONS {
        let dir = tempfile::tempdir().unwrap();
        let path = &closed(dir.path());
        damage(path);
        let copy = dir.path().join("copy");
        let (name, copy_name) = (path.to_str().unwrap(), copy.to_str().unwrap());
        let before = everything(path);
        for args in looking(name, copy_name) {
            let first = ran(&args);
            let is_doctor = args[0] == "doctor";
            if !is_doctor {
                assert_eq!(first.0, status, "{condition}: {args:?}: {first:?}");
                // The error names the object, and says what can be done.
                assert!(status == 0 || first.2.contains(name), "{condition}: {args:?}: {}", first.2);
                assert!(status != 4 || first.2.contains("oncekey doctor"), "{condition}: {args:?}: {}", first.2);
                assert_eq!(copy.exists(), status == 0 && args[0] == "backup", "{condition}: {args:?}");
            }
            assert!(everything(path) == before, "{condition}: {args:?} changed something");
            if args[0] != "backup" {
                let second = ran(&args);
                let without_time = |text: &str| {
                    text.lines().filter(|line| !line.starts_with("opened in")).map(str::to_owned).collect::<Vec<_>>()
                };
                assert_eq!(without_time(&first.2), without_time(&second.2), "{condition}: {args:?}");
                if ["stats", "tables", "rows", "verify"].contains(&args[0]) || is_doctor {
                    assert_eq!(without_time(&first.1), without_time(&second.1), "{condition}: {args:?}");
                }
            }
        }
        assert!(everything(path) == before, "{condition}");
    }
}

/// Returns everything except modification times: an open for writing claims disk space before it reads.
fn without_times(path: &Path) -> Vec<(PathBuf, Vec<i64>, Vec<u8>)> {
    everything(path).into_iter().map(|(path, facts, bytes)| (path, facts[..3].to_vec(), bytes)).collect()
}

#[test]
fn commands_that_write_change_nothing_in_a_store_that_they_refuse() {
    for (condition, damage, status) in CONDITIONS {
        if status == 0 {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = &closed(dir.path());
        damage(path);
        let name = path.to_str().unwrap();
        let before = without_times(path);
        for args in [
            &["resolve", name, "payments", "/user-7/order-42", "--retry"][..],
            &["revoke", name, "payments", "/user-7/order-42"],
            &["forget", name, "payments", "won"],
            &["remove", name, "payments", "won"],
            &["extend", name, "payments", "won", "2h"],
            &["compact", name],
            &["repair", name],
        ] {
            let (found, out, err) = ran(args);
            assert_eq!(found, status, "{condition}: {args:?}: {out}{err}");
            assert!(format!("{out}{err}").contains(name), "{condition}: {args:?}: {out}{err}");
            assert!(without_times(path) == before, "{condition}: {args:?} changed something");
        }
    }
}

#[test]
fn files_that_root_writes_belong_to_the_owner_of_the_store() {
    const OWNER: u32 = 65_534;
    if !is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = &PathBuf::from(store(dir.path()));
    for (entry, ..) in everything(path) {
        chown(entry, Some(OWNER), Some(OWNER)).unwrap();
    }
    let (name, copy, rescued) = (path.to_str().unwrap(), dir.path().join("copy"), dir.path().join("rescued"));
    let export = dir.path().join("export");
    fs::write(&export, ran(&["export", name]).1).unwrap();
    for args in [
        &["repair", name][..],
        &["resolve", name, "payments", "/user-7/order-42", "--retry"],
        &["forget", name, "payments", "won"],
        &["import", name, export.to_str().unwrap()],
        &["compact", name],
        &["backup", name, copy.to_str().unwrap()],
        &["salvage", name, "--into", rescued.to_str().unwrap()],
    ] {
        let (status, out, err) = ran(args);
        assert_eq!(status, 0, "{args:?}: {out}{err}");
        let made = [path, &copy, &rescued].into_iter().filter(|path| path.exists()).flat_map(|path| everything(path));
        let of_others: Vec<_> =
            made.filter(|(_, facts, _)| facts[0] != i64::from(OWNER)).map(|(path, ..)| path).collect();
        assert!(of_others.is_empty(), "{args:?}: {of_others:?}");
    }
}
