//! Tests of moves between a directory and a database: nothing that a client or an operator can see changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use oncekey::admin::{RecordFilter, Resolution};
use oncekey::clock::ManualClock;
use oncekey::{
    CallOptions, Context, Engine, ErrorKind, Fingerprint, Key, Manager, ManagerOptions, OnInterrupted, stage::Next,
};
use serde_json::{Value as Json, json};

use crate::cli::{address, oncekey, printed};
use crate::engines::{claimed, texts};
use crate::{new_schema, open, options, shared};

const HOUR: Duration = Duration::from_secs(3600);

/// Puts a record in every state into the store, and rows. Returns the token of an owner by key.
fn fill(engine: &Engine, clock: &ManualClock) -> oncekey::Token {
    let options = ManagerOptions::new().schema(3).success_ttl(HOUR).failure_ttl(2 * HOUR).retry_pause(HOUR);
    let texts: Manager<String, String> = engine.manager_with("m", options).unwrap();
    let begin = CallOptions::new()
        .fingerprint(Fingerprint::of("request").unwrap())
        .context(Context::new().with("user", "ada").with("raw", vec![0, 159, 146]));
    claimed(texts.begin_with("won", begin).unwrap()).succeed(&"receipt".to_owned()).unwrap();
    claimed(texts.begin("lost").unwrap()).fail(&"declined".to_owned()).unwrap();
    let key = Key::from_bytes(b"a\0\xff").unwrap();
    claimed(texts.begin(key).unwrap()).succeed(&"x".repeat(300_000)).unwrap();
    clock.advance(Duration::from_secs(7));
    claimed(texts.begin("paused").unwrap()).release().unwrap();
    for key in ["held", "retried", "resolved", "twice"] {
        drop(claimed(texts.begin(key).unwrap()));
    }
    texts.resolve("retried", Resolution::Retry).unwrap();
    texts.resolve("resolved", Resolution::Succeed("by hand".to_owned())).unwrap();
    let for_ever = ManagerOptions::new().success_ttl(oncekey::FOREVER).on_interrupted(OnInterrupted::Resume);
    let resuming: Manager<String, String> = engine.manager_with("n", for_ever).unwrap();
    claimed(resuming.begin("kept").unwrap()).succeed(&String::new()).unwrap();
    for leaks in [false, true] {
        let mut staged = claimed(resuming.begin(if leaks { "leaked" } else { "staged" }).unwrap());
        let stage = |_: &oncekey::Transaction| Ok::<_, oncekey::Error>(Next::advance_with("half", vec![1, 2, 255]));
        staged.work_stage(stage).unwrap();
        if leaks {
            std::mem::forget(staged);
        }
    }
    let remembered = ManagerOptions::new().success_ttl(Duration::from_secs(1)).remember_expired(HOUR);
    let remembering: Manager<String, String> = engine.manager_with("r", remembered).unwrap();
    claimed(remembering.begin("over").unwrap()).succeed(&"gone".to_owned()).unwrap();
    clock.advance(Duration::from_secs(2));
    let (accounts, empty) = (engine.table("accounts").unwrap(), engine.table("empty").unwrap());
    accounts.insert("ada", "100").unwrap();
    accounts.insert(b"\0\xff", "").unwrap();
    empty.insert("a", "b").unwrap();
    empty.remove("a").unwrap();
    texts.initiate("by key").unwrap().unwrap()
}

/// Everything that can be seen of a store: records by manager and key, and rows.
fn all(engine: &Engine) -> BTreeMap<String, Json> {
    let mut found = BTreeMap::new();
    for info in engine.records(RecordFilter::new()).unwrap() {
        let info = info.unwrap();
        let record = engine.raw(info.manager()).unwrap().get(info.key()).unwrap().unwrap();
        let info = record.info();
        let seen = json!({
            "record": serde_json::to_value(&record).unwrap(), "effect": info.effect_id("charge"),
            "undoable": info.is_undoable(), "retry after": info.retry_after().map(|time| time.as_millis()),
        });
        found.insert(format!("{} {}", info.manager(), info.key()), seen);
    }
    for table in engine.tables().unwrap() {
        for row in engine.table(&table).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            found.insert(format!("row {table} {key:?}"), json!(value.to_vec()));
        }
    }
    found
}

/// Leaves out the revisions and times of deaths: a directory shows a death that no commit has recorded yet.
fn same_deaths(mut all: BTreeMap<String, Json>) -> BTreeMap<String, Json> {
    for seen in all.values_mut() {
        if seen["record"]["interruption"] == "ProcessEnded" {
            seen["record"]["revision"] = Json::Null;
            seen["record"]["updated_at_ms"] = Json::Null;
        }
    }
    all
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn files(dir: &Path) -> Vec<u8> {
    let done = Command::new("tar").args(["--sort=name", "-c", "-C"]).arg(dir).arg(".").output().unwrap();
    assert!(done.status.success());
    done.stdout
}

#[test]
fn a_store_moves_there_and_back_and_nothing_changes() {
    for is_killed in [false, true] {
        let (dir, clock, schema) = (tempfile::tempdir().unwrap(), ManualClock::new(), new_schema());
        let (first, back) = (dir.path().join("first"), dir.path().join("back"));
        let engine = Engine::options().clock(clock.clone()).open(&first).unwrap();
        fill(&engine, &clock);
        if is_killed {
            engine.crash();
        } else {
            // A leaked claim keeps the store open, so end it as a close does.
            engine.abort().unwrap();
        }
        let before = files(&first);
        copy(&first, &dir.path().join("copy"));
        let options = options(&schema).clock(clock.clone());
        let mut seen = Vec::new();
        let report = options.migrate_to_postgres(&first, &shared().url(), |done, of| seen.push((done, of))).unwrap();
        assert!(seen.len() as u64 >= report.records + report.rows && seen.last().is_some_and(|(done, of)| done == of));
        assert!(files(&first) == before, "the source has changed");

        // The moved store has the contents that the next open of the directory shows.
        let opened = Engine::options().clock(clock.clone()).open(dir.path().join("copy")).unwrap();
        let moved = options.connect(&shared().url()).unwrap();
        let (expected, there) = (all(&opened), all(&moved));
        assert_eq!(report.records, opened.records(RecordFilter::new()).unwrap().count() as u64);
        assert_eq!((report.interrupted, report.rows), (2, 2));
        same(&same_deaths(expected), &same_deaths(there.clone()));
        check_use(&moved, &opened);

        let there = all(&moved);
        let again = options.migrate_from_postgres(&shared().url(), &back, |_, _| ()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::StoreInUse, "{again}");
        assert!(!back.exists());
        moved.close().unwrap();
        let rows = || shared().sql(&format!("SELECT * FROM \"{schema}\".records ORDER BY manager, key"));
        let before = rows();
        options.migrate_from_postgres(&shared().url(), &back, |_, _| ()).unwrap();
        assert!(rows() == before, "the source has changed");
        let returned = Engine::options().clock(clock.clone()).open(&back).unwrap();
        same(&there, &all(&returned));
        assert_eq!(returned.verify().unwrap().problems, Vec::<String>::new());
        check_use(&returned, &opened);
    }
}

#[track_caller]
fn same(expected: &BTreeMap<String, Json>, found: &BTreeMap<String, Json>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (key, expected) in expected {
        assert_eq!(expected, &found[key], "{key}");
    }
}

/// Checks that the moved store replays, remembers, pauses and continues as the other store does.
fn check_use(moved: &Engine, other: &Engine) {
    let new = || ManagerOptions::new().schema(3);
    let texts: Manager<String, String> = moved.manager_with("m", new()).unwrap();
    let twin: Manager<String, String> = other.manager_with("m", new()).unwrap();
    let won = texts.execute_with("won", CallOptions::new().fingerprint(Fingerprint::of("request").unwrap()), |_| {
        panic!("it has run")
    });
    assert_eq!(won.unwrap().value(), "receipt");
    assert!(matches!(texts.begin("paused").unwrap(), oncekey::Begin::Paused(_)));
    let remembering: Manager<String, String> = moved.manager("r").unwrap();
    assert_eq!(remembering.begin("over").map(drop).unwrap_err().kind(), ErrorKind::Expired);
    // A later claim of the same generation has the same effect ids and a larger token.
    let highest = all(moved).values().filter_map(|seen| seen["record"]["token"].as_u64()).max().unwrap();
    let claim = claimed(texts.begin("retried").unwrap());
    assert_eq!(claim.effect_id("e"), twin.get("retried").unwrap().unwrap().info().effect_id("e"));
    assert!(claim.token() > highest);
    claim.release().unwrap();
}

#[test]
fn a_move_refuses_a_source_in_use_and_a_target_with_contents() {
    let (dir, schema) = (tempfile::tempdir().unwrap(), new_schema());
    let (path, into) = (dir.path().join("store"), dir.path().join("into"));
    let (options, url) = (options(&schema), shared().url());
    let to = || options.migrate_to_postgres(&path, &url, |_, _| ()).map(drop).map_err(|error| error.kind());
    let from = || options.migrate_from_postgres(&url, &into, |_, _| ()).map(drop).map_err(|error| error.kind());
    assert_eq!((to(), from()), (Err(ErrorKind::NotFound), Err(ErrorKind::NotFound)));
    let engine = Engine::open(&path).unwrap();
    texts(&engine).execute("k", |_| Ok("v".to_owned())).unwrap();
    assert_eq!(to(), Err(ErrorKind::StoreInUse));
    engine.close().unwrap();
    assert_eq!(shared().sql(&format!("SELECT to_regnamespace('\"{schema}\"') IS NULL")), "t", "nothing was created");
    // Empty tables that a migration of the service has made, and then an engine that has them open.
    shared().sql(&options.schema_sql().unwrap());
    let service = open(&schema);
    assert_eq!(to(), Err(ErrorKind::StoreInUse));
    service.close().unwrap();
    to().unwrap();
    assert_eq!(to(), Err(ErrorKind::InvalidOptions));
    let error = options.migrate_to_postgres(&path, &url, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("this very store"), "{error}");
    assert_eq!(texts(&open(&schema)).get("k").unwrap().unwrap().into_outcome(), Some(Ok("v".to_owned())));

    std::fs::create_dir(&into).unwrap();
    std::fs::write(into.join("file"), "x").unwrap();
    assert_eq!(from(), Err(ErrorKind::InvalidOptions));
    std::fs::remove_file(into.join("file")).unwrap();
    from().unwrap();
    assert!(Engine::open(&into).unwrap().manager::<String, String>("m").unwrap().get("k").unwrap().is_some());
}

const FROM: &str = "ONCEKEY_TEST_MIGRATE_FROM";
const INTO: &str = "ONCEKEY_TEST_MIGRATE_INTO";
const SCHEMA: &str = "ONCEKEY_TEST_MIGRATE_SCHEMA";

/// Not a test: a process that dies in the middle of a move.
#[test]
#[ignore = "a process of the next test"]
fn mover() {
    let (Ok(from), Ok(into), Ok(schema)) = (std::env::var(FROM), std::env::var(INTO), std::env::var(SCHEMA)) else {
        return;
    };
    let dies = |done, of| {
        if done == of {
            std::process::abort();
        }
    };
    let options = options(&schema);
    if from.starts_with("host=") {
        drop(options.migrate_from_postgres(&from, into, dies));
    } else {
        drop(options.migrate_to_postgres(from, &into, dies));
    }
}

#[test]
fn a_move_that_is_killed_leaves_nothing_that_opens() {
    let (dir, schema, url) = (tempfile::tempdir().unwrap(), new_schema(), shared().url());
    let (path, into) = (dir.path().join("store"), dir.path().join("into"));
    let engine = Engine::open(&path).unwrap();
    for key in 0..1000 {
        texts(&engine).execute(format!("{key}"), |_| Ok("v".to_owned())).unwrap();
    }
    engine.close().unwrap();
    let killed = |from: &str, into: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "migrate::mover", "--ignored", "--nocapture"]);
        command.env(FROM, from).env(INTO, into).env(SCHEMA, &schema).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().unwrap();
        assert!(std::os::unix::process::ExitStatusExt::signal(&status).is_some(), "{status}");
    };
    killed(path.to_str().unwrap(), &url);
    let options = options(&schema);
    assert_eq!(options.clone().create(false).connect(&url).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
    let report = options.migrate_to_postgres(&path, &url, |_, _| ()).unwrap();
    assert_eq!(report.records, 1000);
    killed(&url, into.to_str().unwrap());
    let opened = Engine::options().create(false).open(&into).map(drop).unwrap_err();
    assert_eq!(opened.kind(), ErrorKind::NotFound, "{opened}");
    let fresh = dir.path().join("fresh");
    assert_eq!(options.migrate_from_postgres(&url, &fresh, |_, _| ()).unwrap().records, 1000);
}

#[test]
fn the_command_moves_a_store_and_says_what_to_do_next() {
    let (dir, schema, url) = (tempfile::tempdir().unwrap(), new_schema(), address("oncekey"));
    let (path, back) = (dir.path().join("store"), dir.path().join("back"));
    let engine = Engine::open(&path).unwrap();
    drop(claimed(texts(&engine).begin("held").unwrap()));
    engine.close().unwrap();
    let (path, back) = (path.to_str().unwrap(), back.to_str().unwrap());
    let effect = |store: &[&str]| {
        let shown = printed(&[&["get"], store, &["m", "held", "--effect", "charge"]].concat());
        shown.lines().find(|line| line.starts_with("effect id")).map(str::to_owned).unwrap()
    };
    let first = effect(&[path]);
    let moved = printed(&["migrate", path, &url, "--schema", &schema]);
    assert!(moved.contains("1 records") && moved.contains("oncekey doctor"), "{moved}");
    let report = printed(&["migrate", &url, back, "--schema", &schema, "--json"]);
    assert_eq!(serde_json::from_str::<Json>(&report).unwrap()["records"], 1);
    let effects = [effect(&[&url, "--schema", &schema]), effect(&[back])];
    assert!(effects.iter().all(|effect| *effect == first), "{effects:?}");
    for args in [["migrate", path, back], ["migrate", &url, &url]] {
        let (status, _, err) = oncekey(&args);
        assert!(status == 2 && err.contains("one of them"), "{err}");
    }
    let (status, _, err) = oncekey(&["migrate", path, &url, "--schema", &schema]);
    assert!(status == 2 && err.contains("this very store"), "{err}");
}
