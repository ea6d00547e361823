//! Tests of the operator's command line, called in this process and as a separate process.

use std::fs;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use oncekey::cli::{Describers, run};
use oncekey::{Engine, Failure, Key, Manager, ManagerOptions, OnInterrupted, Status};
use serde_json::Value as Json;

use crate::common::*;

/// Exit status, standard output, standard error.
pub(crate) type Ran = (u8, String, String);

pub(crate) fn oncekey(args: &[&str]) -> Ran {
    oncekey_with(&Describers::new(), args)
}

pub(crate) fn oncekey_with(describers: &Describers, args: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = run(describers, args, &mut out, &mut err);
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[track_caller]
pub(crate) fn printed(args: &[&str]) -> String {
    let (status, out, err) = oncekey(args);
    assert_eq!((status, err.as_str()), (0, ""), "{args:?} printed {out}");
    out
}

/// Returns the first line of the output as JSON.
#[track_caller]
pub(crate) fn json(args: &[&str]) -> Json {
    let args = [args, &["--json"]].concat();
    serde_json::from_str(printed(&args).lines().next().unwrap()).unwrap()
}

/// Creates and closes a store with a record in every state except in progress.
pub(crate) fn store(dir: &Path) -> String {
    let path = dir.join("store");
    let engine = Engine::open(&path).unwrap();
    let options = ManagerOptions::new().schema(3).success_ttl(oncekey::FOREVER).released_ttl(oncekey::FOREVER);
    let payments: Manager<String> = engine.manager_with("payments", options).unwrap();
    let begin = same("a").context(about("user", "ada").with("raw", vec![0, 159, 146]));
    claimed(payments.begin_with("won", begin).unwrap()).succeed(&"receipt".to_owned()).unwrap();
    claim(&payments, "lost").fail(&Failure::new("declined")).unwrap();
    drop(claim(&payments.scoped("user-7").unwrap(), "order-42"));
    claim(&payments, "tab\tkey").release().unwrap();
    let resuming: Manager<u64> =
        engine.manager_with("other", ManagerOptions::new().on_interrupted(OnInterrupted::Resume)).unwrap();
    let mut staged = claim(&resuming, "staged");
    staged
        .work_stage(|_| Ok::<_, oncekey::Error>(oncekey::stage::Next::advance_with("half", vec![1, 2, 255])))
        .unwrap();
    // Leak the claim, as if the process had died.
    std::mem::forget(staged);
    engine.crash();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_operator_lists_shows_and_resolves_interrupted_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let listed = printed(&["list", &path, "--manager", "payments", "--status", "interrupted"]);
    assert!(listed.lines().count() == 2 && listed.contains("/user-7/order-42"), "{listed}");

    let record = printed(&["get", &path, "payments", "/user-7/order-42", "--effect", "charge"]);
    assert!(record.contains("Interrupted (Dropped)") && record.contains("outcome      none"), "{record}");
    let key = Key::from_parts(["user-7", "order-42"]).unwrap();
    let effect = {
        let engine = Engine::open(&path).unwrap();
        engine.raw("payments").unwrap().get(&key).unwrap().unwrap().info().effect_id("charge")
    };
    assert!(record.contains(&format!("effect id    {effect} (charge)")), "{record}");

    let seen = json(&["get", &path, "payments", "/user-7/order-42"])["revision"].as_u64().unwrap();
    let (stale, seen) = ((seen - 1).to_string(), seen.to_string());
    let resolve = |revision: &str| {
        ["resolve", &path, "payments", "/user-7/order-42", "--retry", "--revision", revision].map(ToOwned::to_owned)
    };
    let refused = resolve(&stale);
    let (status, out, err) = oncekey(&refused.each_ref().map(String::as_str));
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.contains(&format!("has changed: its revision is {seen}")), "{err}");
    let resolved = printed(&resolve(&seen).each_ref().map(String::as_str));
    assert!(resolved.contains("released"), "{resolved}");
    let (status, out, err) = oncekey(&["resolve", &path, "payments", "/user-7/order-42", "--retry"]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.contains("is not interrupted, it is Released"), "{err}");

    // Use the outcome of one key for another key.
    let encoded = dir.path().join("outcome");
    let mut bytes = Vec::new();
    assert_eq!(run(&Describers::new(), ["get", &path, "payments", "won", "--outcome"], &mut bytes, &mut io::sink()), 0);
    fs::write(&encoded, &bytes).unwrap();
    let engine = Engine::open(&path).unwrap();
    let payments: Manager<String> = engine.manager_with("payments", ManagerOptions::new().schema(3)).unwrap();
    drop(claim(&payments, "held"));
    engine.close().unwrap();
    drop(payments);
    printed(&["resolve", &path, "payments", "held", "--succeed", encoded.to_str().unwrap()]);
    let engine = Engine::open(&path).unwrap();
    let payments: Manager<String> = engine.manager_with("payments", ManagerOptions::new().schema(3)).unwrap();
    assert!(matches!(outcome(&payments, "held"), Some(Ok(text)) if text == "receipt"));
    assert_eq!(answer(&payments.scoped("user-7").unwrap(), "order-42"), "claimed");
}

#[test]
fn get_shows_the_stored_fields() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let stats = json(&["stats", &path]);
    assert_eq!((&stats["clean"], &stats["interrupted"]), (&Json::from(false), &Json::from(2)));
    assert_eq!(stats["managers"]["payments"]["records"]["Released"], 1);
    assert!(stats["journal_disk_bytes"].as_u64() > Some(0) && stats["sled_disk_bytes"].as_u64() > Some(0), "{stats}");
    assert_eq!(stats["cycles"]["count"], 0);
    // Looking changes nothing: a second look prints the same.
    let before = tree(Path::new(&path));
    let printed_twice = [0, 1].map(|_| without_time(&printed(&["stats", &path])));
    assert!(printed_twice[0].contains("died; ") && printed_twice[0] == printed_twice[1], "{printed_twice:?}");
    assert!(printed_twice[0].contains("of the journal, "), "{printed_twice:?}");
    assert_eq!(tree(Path::new(&path)), before);

    let won = json(&["get", &path, "payments", "won"]);
    assert_eq!((&won["status"], &won["schema"]), (&Json::from("Succeeded"), &Json::from(3)));
    assert_eq!((&won["context"]["user"], &won["success_ttl_ms"]), (&Json::from("ada"), &Json::Null));
    let text = printed(&["get", &path, "payments", "won"]);
    assert!(text.contains("24 bytes, schema 3: \"receipt\"\n"), "{text}");
    let staged = json(&["get", &path, "other", "staged"]);
    assert_eq!((&staged["recovery_point"], &staged["interruption"]), (&"half".into(), &"ProcessEnded".into()));
    assert_eq!(staged["checkpoint"]["base64"], "AQL/");

    // A key with a control character is found by its printed form and by its own bytes.
    assert_eq!(json(&["get", &path, "payments", "tab%09key"]), json(&["get", &path, "payments", "tab\tkey"]));
    let keys = |args: &[&str]| printed(&[&["list", &path, "--json"], args].concat()).lines().count();
    assert_eq!((keys(&[]), keys(&["--limit", "2"]), keys(&["--key-prefix", "lo"])), (5, 2, 1));
    assert_eq!((keys(&["--older-than", "1h"]), keys(&["--newer-than", "1h"])), (0, 5));
    assert_eq!((keys(&["--status", "failed"]), keys(&["--status", "failed", "--status", "released"])), (1, 2));
    for word in ["interrupted", "Interrupted"] {
        assert_eq!(keys(&["--status", word]), 2, "{word}");
    }
    for word in ["in-progress", "InProgress", "in_progress"] {
        assert_eq!(keys(&["--status", word]), 0, "{word}");
    }
    assert_eq!((keys(&["--scope", "user-7"]), keys(&["--scope", "/user-7"]), keys(&["--scope", "user"])), (1, 1, 0));
    assert_eq!(
        (keys(&["--key-prefix", "/user-7/ord"]), keys(&["--key-prefix", "/us"]), keys(&["--key-prefix", "us"])),
        (1, 1, 0)
    );
    assert_eq!((keys(&["--context", "user=ada"]), keys(&["--context", "user=eve"])), (1, 0));
    assert_eq!(keys(&["--recovery-point", "half"]), 1);
    assert_eq!(printed(&["list", &path, "--manager", "payments", "--count"]), "4\n");
    assert_eq!(printed(&["list", &path, "--manager", "nobody"]), "no record matches\n");
    let verified = printed(&["verify", &path]);
    assert!(
        verified.contains("5 records and 0 rows read and compared") && verified.contains("\n0 problems"),
        "{verified}"
    );
    assert_eq!(json(&["compact", &path])["removed"], 0);

    printed(&["forget", &path, "payments", "won"]);
    printed(&["remove", &path, "payments", "tab\tkey"]);
    for gone in [["forget", &path, "payments", "won"], ["remove", &path, "payments", "won"], ["get", &path, "m", "k"]] {
        assert_eq!(oncekey(&gone).0, 1, "{gone:?}");
    }
}

#[test]
fn describers_of_a_service_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let describers = Describers::new().manager::<String, Failure>("payments", 3, |outcome| match outcome {
        Ok(text) => format!("<{text}>"),
        Err(failure) => failure.message().to_owned(),
    });
    let shown = |key: &str, more: &str| oncekey_with(&describers, &["get", &path, "payments", key, more]).1;
    assert!(shown("won", "--any-file-system").contains("24 bytes, schema 3: <receipt>"));
    assert!(shown("lost", "--json").contains("\"described\":\"declined\""));
    assert!(oncekey_with(&describers, &["get", &path, "other", "staged"]).1.contains("none"));
}

/// The fields that an import cannot keep.
const RENEWED: [&str; 5] = ["store", "generation", "revision", "token", "expires_at_ms"];

fn without(fields: &[&str], export: &str) -> Vec<Json> {
    let records = export.lines().map(|line| {
        let mut record: Json = serde_json::from_str(line).unwrap();
        for field in fields {
            record.as_object_mut().unwrap().remove(*field).unwrap();
        }
        record
    });
    records.collect()
}

#[test]
fn an_imported_export_is_exported_again_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let first = printed(&["export", &path]);
    assert_eq!(first.lines().count(), 5);
    let file = dir.path().join("export.jsonl");
    fs::write(&file, &first).unwrap();
    let copy = dir.path().join("copy").to_str().unwrap().to_owned();
    let import = ["import", &copy, file.to_str().unwrap()];
    assert_eq!(json(&import), serde_json::json!({ "imported": 5, "present": 0 }));
    assert_eq!(without(&RENEWED, &printed(&["export", &copy])), without(&RENEWED, &first));
    assert_eq!(json(&import), serde_json::json!({ "imported": 0, "present": 5 }));
    let filtered = printed(&["export", &copy, "--manager", "other"]);
    assert_eq!(filtered.lines().count(), 1);
    // The service reads it unchanged too.
    let engine = Engine::open(&copy).unwrap();
    let payments: Manager<String> = engine.manager_with("payments", ManagerOptions::new().schema(3)).unwrap();
    assert_eq!(arm(&payments.begin_with("won", same("a")).unwrap()), "replay");
    assert_eq!(answer(&payments, "won"), "mismatch");
    assert_eq!(status(&payments.scoped("user-7").unwrap(), "order-42"), Some(Status::Interrupted));
}

#[test]
fn an_import_rejects_an_invalid_line_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let good = printed(&["export", &path, "--key-prefix", "won"]);
    let record: Json = serde_json::from_str(&good).unwrap();
    let with = |field: &str, value: Json| {
        let mut record = record.clone();
        record[field] = value;
        record.to_string()
    };
    let long = "x".repeat(600);
    let bad = [
        "{".to_owned(),
        "null".to_owned(),
        with("version", 2.into()),
        with("surprise", 1.into()),
        with("manager", "../x".into()),
        with("key", "".into()),
        with("key", long.as_str().into()),
        with("status", "Interrupted".into()),
        with("outcome", Json::Null),
        with("outcome", serde_json::json!({ "base64": "?" })),
        with("fingerprint", "abc".into()),
        with("fingerprint", "\u{e9}".repeat(32).into()),
        with("success_ttl_ms", 0.into()),
        with("recovery_point", long.as_str().into()),
        with("context", serde_json::json!({ "": "x" })),
        with("created_at_ms", (-1).into()),
    ];
    let (file, copy) = (dir.path().join("bad"), dir.path().join("copy"));
    let (file_name, copy_name) = (file.to_str().unwrap(), copy.to_str().unwrap());
    // Nothing is created for an input that cannot be read.
    fs::write(&file, "{").unwrap();
    for (input, why) in [(file_name, "line 1 of "), ("missing", "open missing")] {
        let (status, _, err) = oncekey(&["import", copy_name, input]);
        assert!(status == 5 && err.contains(why) && !copy.exists(), "{input}: {status} {err}");
    }
    for line in bad {
        fs::write(&file, format!("{good}\n{line}\n")).unwrap();
        let (status, _, err) = oncekey(&["import", copy_name, file_name]);
        assert!(status == 5 && err.contains("line 3 of "), "{line}: {status} {err}");
        assert_eq!(printed(&["export", copy_name]).lines().count(), 1, "{line}");
    }
}

#[test]
fn a_store_in_use_or_missing_is_reported_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let engine = Engine::options().admin(false).open(&path).unwrap();
    let before = tree(Path::new(&path));
    for command in ["stats", "list", "verify", "compact", "export", "repair"] {
        let (status, out, err) = oncekey(&[command, &path]);
        assert_eq!((status, out.as_str()), (3, ""), "{command}");
        assert!(err.contains("is open already") && err.contains("stop the service"), "{command}: {err}");
    }
    assert_eq!(tree(Path::new(&path)), before);
    engine.close().unwrap();
    let missing = dir.path().join("missing");
    for command in ["stats", "list", "verify", "compact", "export", "repair"] {
        let (status, _, err) = oncekey(&[command, missing.to_str().unwrap()]);
        assert!(status == 2 && err.contains("there is no store in"), "{command}: {status} {err}");
        assert!(!missing.exists(), "{command}");
    }
    let foreign = dir.path().join("foreign");
    fs::create_dir_all(foreign.join("store")).unwrap();
    for command in ["stats", "list", "verify", "compact", "export", "repair", "watch"] {
        let (status, _, err) = oncekey(&[command, foreign.to_str().unwrap()]);
        assert!(status == 2 && err.contains("is not a store"), "{command}: {status} {err}");
    }
}

/// Leaves out how long the open took.
fn without_time(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("opened in")).collect::<Vec<_>>().join("\n")
}

fn snapshots(path: &str) -> Vec<PathBuf> {
    let files = tree(Path::new(path)).into_iter().map(|(path, _)| path);
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("snap.")).collect()
}

#[test]
fn repair_puts_in_order_what_can_be_read_and_changes_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    // While the store is closed its time stands still. So the wall-clock time of expiry is a little later in each
    // export.
    let exported = || without(&["expires_at_ms"], &printed(&["export", &path]));
    let before = exported();
    let [snapshot] = &snapshots(&path)[..] else { panic!("one snapshot is expected: {:?}", snapshots(&path)) };
    let mut bytes = fs::read(snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(snapshot, &bytes).unwrap();
    // Looking does not need the snapshot.
    assert_eq!(exported(), before);
    let found = printed(&["repair", &path]);
    assert!(found.contains("nothing will be lost") && found.contains("was rebuilt"), "{found}");
    assert_eq!(exported(), before);
    assert!(printed(&["repair", &path]).contains("was whole"));
    assert_eq!(exported(), before);
    // Each block of the record store is damaged.
    let db = Path::new(&path).join("store/sled/db");
    let mut bytes = fs::read(&db).unwrap();
    let blocks: Vec<usize> = (0..bytes.len() - 4).filter(|at| &bytes[*at..at + 4] == b"okBk").collect();
    for at in blocks {
        bytes[at + 30] ^= 1;
    }
    fs::write(&db, &bytes).unwrap();
    let before = tree(Path::new(&path));
    let (status, out, _) = oncekey(&["repair", &path]);
    assert!(status == 4 && out.contains(db.to_str().unwrap()) && out.contains("nothing was changed"), "{out}");
    assert_eq!(tree(Path::new(&path)), before);
}

#[test]
fn an_invalid_command_line_gets_a_helpful_error() {
    for (args, message) in [
        (&[][..], "Usage: oncekey"),
        (&["lst"], "a similar subcommand exists: 'list'"),
        (&["list"], "Usage: oncekey list <STORE>"),
        (&["list", "a", "b"], "unexpected argument 'b'"),
        (&["list", "a", "--status", "gone"], "possible values: in-progress, succeeded"),
        (&["list", "a", "--limit", "0"], "invalid value '0' for '--limit <COUNT>': the minimum is 1"),
        (&["list", "a", "--older-than", "soon"], "invalid value 'soon' for '--older-than <DURATION>'"),
        (&["list", "a", "--context", "user"], "it is written as NAME=VALUE"),
        (&["list", "a", "--retry"], "unexpected argument '--retry'"),
        (&["--retry"], "unexpected argument '--retry'"),
        (&["list", "a", "--limit", "1", "--limit", "2"], "cannot be used multiple times"),
        (&["list", "a", "--limit", "1", "--count"], "cannot be used with '--count'"),
        (&["resolve", "a", "m", "k"], "--retry|--succeed <FILE>|--fail <FILE>"),
        (&["resolve", "a", "m", "k", "--retry", "--fail", "x"], "cannot be used with '--fail <FILE>'"),
        (&["get", "a", "m", "k", "-x"], "unexpected argument '-x'"),
    ] {
        let (status, out, err) = oncekey(args);
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}");
        assert!(err.contains(message) && err.contains("--help"), "{args:?}: {err}");
    }
    let (status, out, err) = oncekey(&["list", "a", "--status", "gone", "--json"]);
    let error: Json = serde_json::from_str(&err).unwrap();
    assert_eq!((status, out.as_str(), &error["status"]), (2, "", &Json::from(2)));
    let help = printed(&["--help"]);
    assert!(help.contains("Exit status:\n  0  done") && help.contains("Examples:\n  oncekey doctor"), "{help}");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<_> = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert_eq!(commands.iter().filter(|command| !command.is_empty()).count(), 25);
    for command in commands.into_iter().filter(|command| !command.is_empty()) {
        assert!(printed(&[command, "--help"]).contains(&format!("Usage: oncekey {command}")), "{command}");
    }
    #[cfg(not(feature = "postgres"))]
    for args in [
        &["stats", "postgres://app:secret@db/payments"][..],
        &["doctor", "postgresql://app:secret@db/payments"],
        &["list", "postgres://db/payments", "--schema", "payments"],
        &["schema"],
        &["migrate", "/tmp/store", "postgres://app:secret@db/payments"],
    ] {
        let (status, _, err) = oncekey(args);
        assert!(status == 2 && err.contains("without the feature `postgres`") && !err.contains("secret"), "{err}");
    }
    assert_eq!(printed(&["--version"]), format!("oncekey {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn revoke_reports_that_a_record_has_no_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    // Its process has died.
    assert_eq!(
        printed(&["revoke", &path, "other", "staged"]),
        "key staged of other is interrupted: it has no live owner\n"
    );
    assert_eq!(json(&["revoke", &path, "other", "staged"])["result"], "interrupted");
    let (status, out, err) = oncekey(&["revoke", &path, "payments", "won"]);
    assert_ne!((status, out.as_str()), (0, ""));
    assert!(err.contains("won") && err.contains("no live owner") && err.contains("Succeeded"), "{err}");
    let (status, out, err) = oncekey(&["revoke", &path, "payments", "absent"]);
    assert_eq!((status, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("absent"), "{err}");
    // The refused commands have changed nothing.
    assert_eq!(json(&["get", &path, "other", "staged"])["recovery_point"], "half");
}

#[test]
fn completions_and_the_manual_page_name_every_command() {
    let (completions, manual) = (printed(&["completions", "bash"]), printed(&["man"]));
    for command in ["stats", "list", "get", "resolve", "revoke", "forget", "export", "import", "repair"] {
        assert!(completions.contains(command) && manual.contains(command), "{command}");
    }
    for line in manual.lines().filter_map(|line| line.strip_prefix("oncekey\\-")) {
        let command = line.split_once("(1)").unwrap().0;
        let page = printed(&["man", command]);
        assert!(page.contains(&format!("oncekey\\-{command}")), "{page}");
    }
    assert!(printed(&["man", "resolve"]).contains("\\-\\-dry\\-run"));
    assert_eq!(oncekey(&["man", "frobnicate"]).0, 2);
    let sections: Vec<_> = manual.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    for section in ["DESCRIPTION", "OPTIONS", "SUBCOMMANDS", "\"EXIT STATUS\"", "\"EXAMPLES\""] {
        assert!(sections.contains(&section), "{section}: {sections:?}");
    }
    assert!(
        manual.contains("/PART/PART")
            && manual.contains("  3  the store is in use, and the command cannot ask its owner\n"),
        "{manual}"
    );
}

#[test]
fn bench_measures_both_logs_and_leaves_no_files() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let measured = json(&["bench", dir.path().to_str().unwrap(), "--threads", "2"]);
    for field in ["ideal_per_second", "cycles_per_second", "commits_per_sync"] {
        assert!(measured[0][field].as_f64().unwrap() > 0.0, "{measured}");
    }
    assert_eq!(tree(dir.path()), []);
}

struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    for args in [vec!["--help"], vec!["list", &path], vec!["export", &path], vec!["list", &path, "--json"]] {
        let mut err = Vec::new();
        assert_eq!((run(&Describers::new(), &args, &mut Closed, &mut err), err), (0, vec![]), "{args:?}");
    }
}

pub(crate) fn process(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncekey"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_binary_returns_the_exit_status_and_survives_a_closed_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let ran = |args: &[&str]| -> Output { process(args).output().unwrap() };
    let listed = ran(&["list", &path]);
    // Standard output is not a terminal, so there are no colours.
    assert!(listed.status.success() && listed.stderr.is_empty() && !listed.stdout.contains(&0x1b));
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count(), 6);
    assert_eq!(ran(&["get", &path, "payments", "nobody"]).status.code(), Some(1));
    assert_eq!(ran(&["frobnicate"]).status.code(), Some(2));
    let engine = Engine::options().admin(false).open(&path).unwrap();
    assert_eq!(ran(&["list", &path]).status.code(), Some(3));
    // The output is larger than the buffer of a pipe.
    let texts: Manager<String> = engine.manager("large").unwrap();
    for key in ["a", "b", "c", "d"] {
        claim(&texts, key).succeed(&"x".repeat(100_000)).unwrap();
    }
    engine.close().unwrap();
    let mut export = process(&["export", &path]).spawn().unwrap();
    let mut stdout = export.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let ended = export.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
}
