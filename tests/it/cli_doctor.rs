//! Tests of `oncekey doctor`: each fault is named, with what to do next, and nothing is changed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oncekey::{Durability, Engine, Manager};
use serde_json::Value as Json;

use crate::cli::{oncekey, process};
use crate::common::*;
use crate::read_only::{everything, is_root};

/// Exit status, the words of the findings, the text for people, and the suggested commands.
type Examined = (u8, Vec<String>, String, Vec<String>);

/// Examines a directory that no process writes to, and checks that nothing was changed.
#[track_caller]
fn examined(path: &Path) -> Examined {
    let before = path.exists().then(|| everything(path));
    let examined = examined_in_use(path);
    assert!(before.is_none_or(|before| before == everything(path)), "{:?}", examined.1);
    examined
}

/// Examines a directory for machines and for people, and checks that both agree.
#[track_caller]
fn examined_in_use(path: &Path) -> Examined {
    let name = path.to_str().unwrap();
    let (status, out, err) = oncekey(&["doctor", name, "--json"]);
    assert_eq!(err, "", "{out}");
    let report: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(report["status"], status, "{out}");
    let (mut words, mut commands) = (Vec::new(), Vec::new());
    let (again, shown, err) = oncekey(&["doctor", name]);
    assert_eq!((again, err.as_str()), (status, ""), "{shown}");
    for found in report["findings"].as_array().unwrap() {
        // This machine's own disk.
        if found["what"] == "nearly-full" {
            continue;
        }
        let is_fine = found["severity"] == "fine";
        assert_eq!(found["next"].as_str().unwrap().is_empty(), is_fine, "{found}");
        let parts = [&found["text"], &found["next"], &found["command"]].map(|part| part.as_str().unwrap_or_default());
        assert!(parts.iter().all(|part| shown.contains(part)), "{found}: {shown}");
        words.push(found["what"].as_str().unwrap().to_owned());
        commands.extend(found["command"].as_str().map(str::to_owned));
    }
    (status, words, shown, commands)
}

/// Returns the text for people if one thing is wrong.
#[track_caller]
fn alone((found, words, shown, _): Examined, status: u8, what: &str) -> String {
    assert_eq!((found, words), (status, vec![what.to_owned()]), "{shown}");
    shown
}

/// Examines a directory in which one thing is wrong, and returns the text for people.
#[track_caller]
fn only(path: &Path, status: u8, what: &str) -> String {
    alone(examined(path), status, what)
}

fn fill(engine: &Engine) {
    let texts: Manager<String> = engine.manager("m").unwrap();
    for n in 0..20 {
        claim(&texts, &format!("k{n}")).succeed(&"x".repeat(1000)).unwrap();
    }
}

fn closed(path: &Path) {
    let engine = Engine::open(path).unwrap();
    fill(&engine);
    engine.close().unwrap();
}

#[test]
fn a_store_that_was_closed_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    closed(&path);
    let (status, words, shown, _) = examined(&path);
    assert_eq!((status, words), (0, ["closed", "sound"].map(str::to_owned).to_vec()), "{shown}");
    assert!(
        shown.contains("20 records and 0 rows, none damaged") && shown.ends_with("Nothing needs to be done.\n"),
        "{shown}"
    );
}

/// A script can tell from the JSON of a salvage which operations may run again.
#[test]
fn a_salvage_prints_the_ranges_in_which_records_may_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("store");
    // The journal has been written over since the first keys, so it cannot replace them.
    let options =
        Engine::options().segment_bytes(64 << 10).durability(Durability::Eventual { interval: Duration::from_secs(1) });
    let engine = options.open(path).unwrap();
    let payments: Manager<String> = engine.manager("payments").unwrap();
    let numbers = 0..3_000;
    for n in numbers.clone() {
        claim(&payments, &format!("k{n:04}")).succeed(&"x".repeat(100)).unwrap();
    }
    engine.close().unwrap();
    let db = path.join("store/sled/db");
    let mut bytes = fs::read(&db).unwrap();
    // One byte in each copy of the block with this key.
    let copies: Vec<_> = memchr::memmem::find_iter(&bytes, b"k0200").collect();
    for at in copies {
        bytes[at] ^= 1;
    }
    fs::write(&db, &bytes).unwrap();
    let [shown, json] = ["shown", "json"].map(|into| dir.path().join(into));
    let (status, out, err) = oncekey(&["salvage", path.to_str().unwrap(), "--into", shown.to_str().unwrap()]);
    assert_eq!(status, 4, "{out}{err}");
    let lines: Vec<_> = out.lines().filter_map(|line| line.strip_suffix(" may be lost")).collect();
    assert_eq!(lines.len(), 1, "{out}");
    let (after, before) =
        lines[0].strip_prefix("records of payments between ").and_then(|range| range.split_once(" and ")).unwrap();
    assert!(after < "k0200" && before > "k0200" && !out.contains("Nothing is lost"), "{out}");
    let (_, out, _) = oncekey(&["salvage", path.to_str().unwrap(), "--into", json.to_str().unwrap(), "--json"]);
    let report: Json = serde_json::from_str(&out).unwrap();
    let end = |key: &str| serde_json::json!({ "is_row": false, "of": "payments", "key": key });
    assert_eq!(report["lost_ranges"], serde_json::json!([{ "after": end(after), "before": end(before) }]), "{out}");
    assert_eq!(report["complete"], false);
    let engine = Engine::open(&json).unwrap();
    let payments: Manager<String> = engine.manager("payments").unwrap();
    let is_lost = |key: &str| payments.get(key).unwrap().is_none();
    for key in numbers.map(|n| format!("k{n:04}")) {
        assert_eq!(is_lost(&key), after < key.as_str() && key.as_str() < before, "{key}");
    }
}

#[test]
fn a_directory_without_a_store_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(only(&missing, 2, "missing").contains(missing.to_str().unwrap()));
    assert!(!missing.exists());
    only(dir.path(), 2, "empty");
    fs::create_dir(dir.path().join("store.new")).unwrap();
    only(dir.path(), 2, "half-made");
    // What a killed salvage or migration leaves: an empty store here would let every operation run again.
    let unfinished = dir.path().join("store.partial");
    fs::rename(dir.path().join("store.new"), &unfinished).unwrap();
    assert!(only(dir.path(), 2, "unfinished").contains("let no service create an empty store here"));
    fs::rename(&unfinished, dir.path().join("store.new")).unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    assert!(only(dir.path(), 2, "not-a-store").contains("notes.txt"));
    fs::create_dir(dir.path().join("store")).unwrap();
    only(dir.path(), 2, "not-a-store");
    let (status, out, _) = oncekey(&["doctor", dir.path().join("notes.txt").to_str().unwrap()]);
    assert!(status == 2 && out.contains("is not a directory"), "{out}");
}

#[test]
fn a_store_in_use_names_its_process_and_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    fill(&engine);
    let me = format!("process {} (", std::process::id());
    let names_me = |shown: &str| fs::metadata("/proc/locks").is_err() || shown.contains(&me);
    let (status, words, shown, _) = examined_in_use(dir.path());
    assert_eq!((status, words), (0, ["in-use", "sound"].map(str::to_owned).to_vec()), "{shown}");
    assert!(names_me(&shown) && shown.contains("which answers") && shown.contains("20 records"), "{shown}");
    // Also if its lock file was deleted.
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    let (_, _, shown, _) = examined_in_use(dir.path());
    assert!(names_me(&shown), "{shown}");
    engine.close().unwrap();

    let engine = Engine::options().admin(false).open(dir.path()).unwrap();
    let shown = alone(examined_in_use(dir.path()), 3, "in-use");
    assert!(names_me(&shown) && shown.contains("no process answers at"), "{shown}");

    // Its owner hangs up instead of an answer.
    let socket = std::os::unix::net::UnixListener::bind(dir.path().join("SOCKET")).unwrap();
    let owner = std::thread::spawn(move || (0..3).for_each(|_| drop(socket.accept().unwrap())));
    let shown = alone(examined_in_use(dir.path()), 3, "in-use");
    assert!(names_me(&shown) && shown.contains("SOCKET"), "{shown}");
    let (status, _, err) = oncekey(&["stats", dir.path().to_str().unwrap()]);
    assert!(status == 3 && err.contains("does not answer") && err.contains("`oncekey doctor` names"), "{status} {err}");
    owner.join().unwrap();
    engine.close().unwrap();
    fs::remove_file(dir.path().join("SOCKET")).unwrap();

    let reader = Engine::options().read_only(true).open(dir.path()).unwrap();
    let (status, words, shown, _) = examined(dir.path());
    if fs::metadata("/proc/locks").is_ok() {
        assert_eq!((status, words), (6, ["being-read", "closed", "sound"].map(str::to_owned).to_vec()), "{shown}");
        assert!(shown.contains(&me) && shown.contains("no service can open it"), "{shown}");
    }
    reader.close().unwrap();
}

#[test]
fn records_of_a_dead_owner_need_attention() {
    let dir = tempfile::tempdir().unwrap();
    // A blank, so that commands need quotes.
    let path = &dir.path().join("a store");
    let engine = Engine::open(path).unwrap();
    let texts: Manager<String> = engine.manager("m").unwrap();
    claim(&texts, "won").succeed(&"v".to_owned()).unwrap();
    std::mem::forget(claim(&texts, "held"));
    engine.crash();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(path.join("LOCK"), fs::Permissions::from_mode(0o644)).unwrap();
    let (status, words, shown, commands) = examined(path);
    let expected = ["died", "open-to-others", "interrupted", "sound"].map(str::to_owned).to_vec();
    assert_eq!((status, words), (6, expected), "{shown}");
    assert!(shown.contains("the last owner died: 3 commits") && shown.contains("1 records are interrupted"), "{shown}");
    let (_, quick, _) = oncekey(&["doctor", path.to_str().unwrap(), "--quick"]);
    assert!(quick.contains("died") && !quick.contains("none damaged"), "{quick}");
    // The commands do what they are for, as a shell runs them.
    let program = env!("CARGO_BIN_EXE_oncekey");
    let ran = commands.iter().map(|command| {
        let command = command.strip_prefix("oncekey").map_or(command.clone(), |rest| format!("{program}{rest}"));
        Command::new("sh").args(["-c", &command]).output().unwrap()
    });
    let outputs: Vec<_> = ran.collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{commands:?}: {outputs:?}");
    let listed = String::from_utf8(outputs[2].stdout.clone()).unwrap();
    assert!(outputs.len() == 3 && listed.contains("held"), "{listed}");
    let (status, words, shown, _) = examined(path);
    let expected = ["closed", "interrupted", "sound"].map(str::to_owned).to_vec();
    assert_eq!((status, words), (6, expected), "{shown}");
}

#[test]
fn damage_is_named_with_its_file_and_the_salvage_that_is_advised_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("store");
    closed(path);
    let (journal, saved) = (path.join("store/journal"), dir.path().join("saved"));
    fs::rename(&journal, &saved).unwrap();
    assert!(only(path, 4, "damaged").contains("store/journal is missing"));
    fs::rename(&saved, &journal).unwrap();

    let db = path.join("store/sled/db");
    let whole = fs::read(&db).unwrap();
    let mut bytes = whole.clone();
    let blocks: Vec<usize> = (0..bytes.len() - 4).filter(|at| &bytes[*at..at + 4] == b"okBk").collect();
    for at in blocks {
        bytes[at + 30] ^= 1;
    }
    fs::write(&db, &bytes).unwrap();
    let (status, words, shown, commands) = examined(path);
    assert_eq!((status, &*words), (4, &["damaged".to_owned()][..]), "{shown}");
    assert!(shown.contains(db.to_str().unwrap()), "{shown}");
    let words: Vec<_> = commands[0].split(' ').skip(1).collect();
    let (status, out, err) = oncekey(&words);
    assert!(status == 4 && out.contains("records and 0 rows rescued into"), "{out}{err}");
    // The keys in doubt are named, for people and for machines.
    let named = out.lines().filter_map(|line| line.strip_prefix("in doubt: ")).collect::<Vec<_>>();
    assert!(
        !named.is_empty() && named.iter().all(|named| named.starts_with("key ") && named.contains(" of ")),
        "{out}"
    );
    let again = ["salvage", path.to_str().unwrap(), "--into", dir.path().join("again").to_str().unwrap(), "--json"]
        .map(str::to_owned);
    let (_, out, _) = oncekey(&again.iter().map(String::as_str).collect::<Vec<_>>());
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let keys: Vec<_> = report["in_doubt_keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert_eq!((keys, report["in_doubt"].as_u64()), (named.clone(), Some(named.len() as u64)));
    assert!(dir.path().join("store.rescued/store").is_dir());
    fs::write(&db, &whole).unwrap();
    only_closed(path);

    // The first segment: its header is one sector.
    let segment = everything(&journal).into_iter().map(|(path, ..)| path).find(|path| path.is_file()).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[20] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    assert!(only(path, 4, "damaged").contains(segment.to_str().unwrap()));
    // Other versions of the format.
    bytes[20] ^= 1;
    for version in [1_u32, 77] {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        fs::write(&segment, &bytes).unwrap();
        assert!(only(path, 2, "other-format").contains(&format!("format {version}")));
    }
}

#[track_caller]
fn only_closed(path: &Path) {
    let (status, words, shown, _) = examined(path);
    assert_eq!((status, words), (0, ["closed", "sound"].map(str::to_owned).to_vec()), "{shown}");
}

#[test]
fn files_of_another_user_need_attention() {
    if !is_root() {
        println!("skipped: only root can give files away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("store");
    closed(path);
    let db = path.join("store/sled/db");
    chown(&db, Some(65_534), Some(65_534)).unwrap();
    let (status, words, shown, commands) = examined(path);
    assert_eq!((status, words), (6, ["foreign-files", "closed", "sound"].map(str::to_owned).to_vec()), "{shown}");
    assert!(shown.contains(&format!("{} to user 65534", db.display())), "{shown}");
    assert!(Command::new("sh").args(["-c", &commands[0]]).status().unwrap().success());
    only_closed(path);
}

#[test]
fn a_file_system_that_is_mounted_read_only_needs_attention() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("store");
    closed(path);
    let mounted = Command::new("mount").args(["--bind", "-o", "ro"]).args([path, path]).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: nothing can be mounted here");
        return;
    }
    let examined = std::panic::catch_unwind(|| examined(path));
    assert!(Command::new("umount").arg(path).status().unwrap().success());
    let (status, words, shown, _) = examined.unwrap();
    assert_eq!((status, words), (6, ["read-only", "closed", "sound"].map(str::to_owned).to_vec()), "{shown}");
}

#[test]
fn a_directory_without_the_right_to_read_it_says_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    closed(&path);
    let mut doctor = process(&["doctor", path.to_str().unwrap()]);
    if is_root() {
        // Another user, who can enter the directory above.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("oncekey");
        fs::copy(env!("CARGO_BIN_EXE_oncekey"), &program).unwrap();
        doctor = Command::new(program);
        doctor.args(["doctor", path.to_str().unwrap()]).current_dir("/").uid(65_534).gid(65_534);
    } else {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let ran = doctor.output().unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(5), "{out} {}", String::from_utf8_lossy(&ran.stderr));
    for text in ["cannot look into", "belongs to user", "Permission denied", "as the user of the service"] {
        assert!(out.contains(text), "{text}: {out}");
    }
}
