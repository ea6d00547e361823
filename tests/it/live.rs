//! Tests of the socket of an open store: what operators do to a store that is in use, and what clients can cost.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use oncekey::admin::{LiveStore, RecordFilter, Resolution};
use oncekey::clock::ManualClock;
use oncekey::{Engine, ErrorKind, Interruption, Manager, ManagerOptions, Status, Value};

use crate::common::*;
use crate::threads::{LATE, until, within};

/// The greeting of this version.
const GREETING: [u8; 18] = *b"oncekey\0\x03\0\0\0\x050.1.0";

fn socket(store: &Path) -> PathBuf {
    store.join("SOCKET")
}

fn connect(store: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket(store)).unwrap();
    stream.set_read_timeout(Some(LATE)).unwrap();
    stream
}

/// Connects and reads the greeting.
fn greeted(store: &Path) -> UnixStream {
    let mut stream = connect(store);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, GREETING);
    stream
}

/// Reads a failed reply.
fn failure(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.first(), Some(&4), "{bytes:?}");
    String::from_utf8_lossy(&bytes[5..]).into_owned()
}

#[test]
fn an_open_store_gives_the_same_answers_through_its_socket_as_to_its_owner() {
    within(LATE, || {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let engine = open(dir.path(), &clock);
        assert_eq!(engine.socket().unwrap(), Some(socket(dir.path()).as_path()));
        let metadata = fs::metadata(socket(dir.path())).unwrap();
        assert!(metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o600);
        let texts = texts_with(&engine, ManagerOptions::new().failure_ttl(MINUTE));
        claimed(texts.begin_with("won", same("r").context(about("user", "ada"))).unwrap())
            .succeed(&"receipt".to_owned())
            .unwrap();
        claim(&texts, "lost").fail(&"declined".to_owned()).unwrap();
        drop(claim(&texts, "dropped"));
        let _held = claim(&texts, "held");
        claim(&texts.scoped("user-7").unwrap(), "order").release().unwrap();
        let large = "x".repeat(600_000);
        claim(&texts, "large").succeed(&large).unwrap();

        let live = LiveStore::connect(dir.path()).unwrap();
        assert_eq!((live.path(), live.opened().unwrap()), (dir.path(), *engine.opened()));
        assert_eq!(live.stats().unwrap(), engine.stats());
        let filters = [
            RecordFilter::new(),
            RecordFilter::new().manager("m").status(Status::Interrupted),
            RecordFilter::new().key_prefix("l").manager("m"),
            RecordFilter::new().context("user", "ada"),
            RecordFilter::new().manager("other"),
            RecordFilter::new().matching(|info| info.key().to_string() == "won"),
        ];
        let shown = |info: oncekey::Result<oncekey::RecordInfo>| format!("{:?}", info.unwrap());
        for (filter, found) in filters.into_iter().zip([6, 1, 2, 1, 0, 1]) {
            let records: Vec<_> = live.records(filter.clone()).unwrap().map(shown).collect();
            let local: Vec<_> = engine.records(filter.clone()).unwrap().map(shown).collect();
            assert_eq!((records.len(), records), (found, local), "{filter:?}");
        }
        let raw = engine.raw("m").unwrap();
        let json = |record: &oncekey::Record<Value, Value>| serde_json::to_string(record).unwrap();
        for record in live.whole_records(RecordFilter::new()).unwrap() {
            let record = record.unwrap();
            assert_eq!(json(&record), json(&raw.get(record.info().key()).unwrap().unwrap()));
        }
        for key in ["won", "lost", "dropped", "held", "large", "missing"] {
            let (live, local) = (live.get("m", key).unwrap(), raw.get(key).unwrap());
            assert_eq!(live.as_ref().map(json), local.as_ref().map(json), "{key}");
        }
        let table = engine.table("t").unwrap();
        for n in 0..100_u8 {
            table.insert([n / 10, n], vec![n; 10_000]).unwrap();
        }
        let rows: Vec<_> = live.rows("t", [3]).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, table.prefix([3]).unwrap().map(Result::unwrap).collect::<Vec<_>>());
        assert_eq!((rows.len(), live.rows("t", "").unwrap().count()), (10, 100));
        live.sync().unwrap();
    });
}

/// A change through the socket is one of the service.
#[test]
fn an_open_store_is_changed_through_its_socket() {
    within(LATE, || {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let engine = open(dir.path(), &clock);
        let texts = texts_with(&engine, ManagerOptions::new().failure_ttl(MINUTE));
        claim(&texts, "lost").fail(&"declined".to_owned()).unwrap();
        claim(&texts, "won").succeed(&"receipt".to_owned()).unwrap();
        drop(claim(&texts, "dropped"));
        let held = claim(&texts, "held");
        engine.table("t").unwrap().insert("k", "v").unwrap();
        let live = LiveStore::connect(dir.path()).unwrap();
        let bytes = texts.encode_outcome(Ok(&"resolved".to_owned())).unwrap();
        live.resolve("m", "dropped", Resolution::Succeed(bytes)).unwrap();
        assert_eq!(outcome(&texts, "dropped"), Some(Ok("resolved".to_owned())));
        assert_eq!(live.resolve("m", "dropped", Resolution::Retry).unwrap_err().kind(), ErrorKind::NotInterrupted);
        assert_eq!(live.revoke("m", "held").unwrap().interruption(), Some(Interruption::Revoked));
        assert_eq!(held.succeed(&"late".to_owned()).unwrap_err().error.kind(), ErrorKind::ClaimLost);
        live.resolve("m", "held", Resolution::Retry).unwrap();
        assert_eq!(status(&texts, "held"), Some(Status::Released));
        assert!(live.extend("m", "lost", DAY).unwrap() && !live.extend("m", "missing", DAY).unwrap());
        clock.advance(MINUTE);
        assert!(live.get("m", "lost").unwrap().is_some());
        assert!(live.forget("m", "lost").unwrap() && !live.forget("m", "lost").unwrap());
        assert!(live.remove("m", "held").unwrap() && !live.remove("m", "held").unwrap());
        clock.advance(YEAR);
        assert_eq!(live.compact_now().unwrap().removed, 2);
        let verified = live.verify().unwrap();
        assert_eq!((verified.records, verified.problems), (0, Vec::new()));
        let copies = tempfile::tempdir().unwrap();
        assert_eq!(live.backup(copies.path().join("copy")).unwrap().rows, 1);
        assert!(Engine::options().create(false).open(copies.path().join("copy")).is_ok());
        let other = Engine::open(copies.path().join("other")).unwrap();
        drop(claim(&self::texts(&other), "foreign"));
        let foreign = other.raw("m").unwrap().get("foreign").unwrap().unwrap();
        assert!(live.import(&foreign).unwrap() && !live.import(&foreign).unwrap());
        assert_eq!(status(&texts, "foreign"), Some(Status::Interrupted));
        // Errors have the owner's kinds and messages.
        let error = live.backup(copies.path().join("copy")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        assert_eq!(error.to_string(), engine.backup(copies.path().join("copy")).unwrap_err().to_string());
        assert_eq!(live.get("NO NAME", "k").unwrap_err().kind(), ErrorKind::InvalidName);
        let too_large = live.resolve("m", "k", Resolution::Succeed(vec![0; 2 << 20].into())).unwrap_err();
        assert_eq!(too_large.kind(), ErrorKind::TooLarge);
    });
}

/// The last handle closes the store although clients are connected, and a client finds the next owner.
#[test]
fn a_client_keeps_no_store_open() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..5 {
            let engine = Engine::open(dir.path()).unwrap();
            assert!(engine.opened().clean, "round {round}");
            let store = LiveStore::connect(dir.path()).unwrap();
            let _events = store.events().unwrap();
            let _silent = connect(dir.path());
            if round % 2 == 0 {
                drop(engine);
            } else {
                engine.close().unwrap();
            }
            assert!(!socket(dir.path()).exists());
            assert_eq!(store.stats().unwrap_err().kind(), ErrorKind::StoreInUse);
            assert_eq!(LiveStore::connect(dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
        }
    });
}

#[test]
fn a_socket_that_a_crash_has_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Engine::open(dir.path()).unwrap().crash();
    assert!(fs::symlink_metadata(socket(dir.path())).unwrap().file_type().is_socket());
    let error = LiveStore::connect(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreInUse);
    // One that was being made is replaced too.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("SOCKET.new")).unwrap());
    let engine = Engine::open(dir.path()).unwrap();
    assert!(engine.socket().unwrap().is_some());
    LiveStore::connect(dir.path()).unwrap().stats().unwrap();
    assert!(!dir.path().join("SOCKET.new").exists());
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_served_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a".repeat(100)).join("b".repeat(100));
    let engine = Engine::open(&path).unwrap();
    assert!(engine.socket().unwrap().is_some());
    assert_eq!(LiveStore::connect(&path).unwrap().stats().unwrap().commits, 0);
}

/// An engine opens although its socket cannot be made, says why, and leaves what is in the way.
#[test]
fn a_file_in_the_place_of_the_socket_is_left_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    drop(Engine::open(dir.path()).unwrap());
    fs::write(socket(dir.path()), "mine").unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let error = engine.socket().unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("SOCKET"), "{error}");
    assert_eq!(answer(&texts(&engine), "k"), "claimed");
    engine.close().unwrap();
    assert_eq!(fs::read(socket(dir.path())).unwrap(), b"mine");
}

#[test]
fn no_socket_is_served_where_it_is_turned_off() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::options().admin(false).open(dir.path()).unwrap();
    assert!(engine.socket().unwrap().is_none() && !socket(dir.path()).exists());
    let temporary = Engine::temporary().unwrap();
    assert!(temporary.socket().unwrap().is_none() && !socket(temporary.path()).exists());
}

#[test]
fn a_client_or_server_of_another_version_gets_its_number() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let mut stream = greeted(dir.path());
        stream.write_all(b"oncekey\0\x07\0\0\0\x039.9").unwrap();
        let said = failure(&mut stream);
        assert!(said.contains("oncekey 9.9 with version 7") && said.contains("oncekey 0.1.0 with version 3"), "{said}");
        // A client of before the greeting named the build.
        let mut stream = greeted(dir.path());
        stream.write_all(b"oncekey\0\x01\0\0\0").unwrap();
        assert!(failure(&mut stream).contains("version 1"));
        engine.close().unwrap();

        let answers = |bytes: &'static [u8]| {
            let _ = fs::remove_file(socket(dir.path()));
            let listener = std::os::unix::net::UnixListener::bind(socket(dir.path())).unwrap();
            thread::spawn(move || {
                for _ in 0..2 {
                    let (mut client, _) = listener.accept().unwrap();
                    client.write_all(bytes).unwrap();
                    // The client sends nothing more if the greeting is of another version.
                    let _ = client.read_to_end(&mut Vec::new());
                }
            })
        };
        for (greeting, named) in [
            (b"oncekey\0\x04\0\0\0\x039.9".as_slice(), "oncekey 9.9 with version 4"),
            (b"oncekey\0\x01\0\0\0", "oncekey an unknown version with version 1"),
        ] {
            let server = answers(greeting);
            for _ in 0..2 {
                let error = LiveStore::connect(dir.path()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
                assert!(error.to_string().contains(named), "{error}");
                assert!(error.to_string().contains("this is oncekey 0.1.0 with version 3"), "{error}");
            }
            server.join().unwrap();
        }
        // A build of the same version whose messages differ all the same.
        let server = answers(b"oncekey\0\x03\0\0\0\x030.0\x01\x01\0\0\0\xff");
        let error = LiveStore::connect(dir.path()).unwrap().stats().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
        assert!(error.to_string().contains("is oncekey 0.0 with"), "{error}");
        server.join().unwrap();
    });
}

#[test]
fn malformed_requests_are_refused_and_half_ones_are_dropped() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let _engine = Engine::open(dir.path()).unwrap();
        // A request that is no request.
        let mut stream = greeted(dir.path());
        stream.write_all(&GREETING).unwrap();
        stream.write_all(b"\x01\x04\0\0\0\xff\xff\xff\xff").unwrap();
        assert!(failure(&mut stream).contains("request"));
        // A length beyond the limit, an unknown kind, another protocol: the connection ends.
        for bytes in [b"\x01\xff\xff\xff\xff".as_slice(), b"\x09\0\0\0\0"] {
            let mut stream = greeted(dir.path());
            stream.write_all(&[&GREETING, bytes].concat()).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        }
        let mut stream = greeted(dir.path());
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        // Half a request, and then the client goes.
        let mut stream = greeted(dir.path());
        stream.write_all(&GREETING).unwrap();
        stream.write_all(b"\x01\xff\0\0\0abc").unwrap();
        drop(stream);
        LiveStore::connect(dir.path()).unwrap().stats().unwrap();
    });
}

/// Each connection that is open and silent has one of the places, and a later client is refused.
#[test]
fn a_thousand_clients_cost_a_bounded_number_of_threads() {
    within(LATE * 3, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let texts = texts(&engine);
        let threads = || fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        let before = threads();
        let (mut silent, mut refused) = (Vec::new(), 0);
        for n in 0..1_000 {
            let mut stream = greeted(dir.path());
            stream.set_nonblocking(true).unwrap();
            if silent.len() >= 16 {
                stream.set_nonblocking(false).unwrap();
                assert!(failure(&mut stream).contains("clients"));
                refused += 1;
            } else {
                silent.push(stream);
            }
            if n % 100 == 0 {
                assert_eq!(answer(&texts, "k"), "claimed");
            }
        }
        assert_eq!((silent.len(), refused), (16, 984));
        assert!(threads() <= before + 16 + 200, "{} threads, {before} before", threads());
        let error = LiveStore::connect(dir.path()).unwrap().stats().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop(silent);
        // Places are free as soon as their threads have seen the end.
        let served = AtomicBool::new(false);
        until("a place is free", || {
            served.store(LiveStore::connect(dir.path()).unwrap().stats().is_ok(), SeqCst);
            served.load(SeqCst)
        });
    });
}

/// A client asks for everything and never reads: commits go on, and so does the close.
#[test]
fn a_client_that_never_reads_delays_no_other_client() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let ops: Manager<Vec<u8>> = engine.manager("ops").unwrap();
        for n in 0..30 {
            ops.execute(format!("{n}"), |_| Ok(vec![7; 100_000])).unwrap();
        }
        let store = LiveStore::connect(dir.path()).unwrap();
        // These hang in the middle: their replies do not fit into the buffer of the socket.
        let stuck: Vec<_> = (0..4).map(|_| store.whole_records(RecordFilter::new()).unwrap()).collect();
        for n in 0..20 {
            ops.execute(format!("more {n}"), |_| Ok(vec![7; 1_000])).unwrap();
        }
        assert!(ops.remove("1").unwrap());
        engine.compact_now().unwrap();
        assert_eq!(store.stats().unwrap().in_progress, 0);
        drop(ops);
        engine.close().unwrap();
        // The client still gets the records that were sent before the close, and then an error instead of the end.
        let errors: Vec<_> = stuck.into_iter().filter_map(|records| records.last().unwrap().err()).collect();
        assert!(
            !errors.is_empty() && errors.iter().all(|error| error.to_string().contains("closed the store")),
            "{errors:?}"
        );
        assert!(Engine::open(dir.path()).unwrap().opened().clean);
    });
}

const UNWRITABLE: &str = "ONCEKEY_UNWRITABLE";

/// Not a test: the process of a user that may not write into the directory of its store, only below it.
#[test]
#[ignore = "started by another test"]
fn unwritable_child() {
    let Ok(dir) = std::env::var(UNWRITABLE) else { return };
    let engine = Engine::open(dir).unwrap();
    let error = engine.socket().unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::PermissionDenied), "{error}");
    assert_eq!(answer(&texts(&engine), "k"), "claimed");
    println!("served without");
}

/// Copies a program to where every user may start it.
fn for_all(program: &Path, dir: &Path) -> PathBuf {
    let copied = dir.join("program");
    fs::copy(program, &copied).unwrap();
    fs::set_permissions(&copied, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    copied
}

/// A command that another user runs, if this one is root and the system has `setpriv`.
fn as_another_user(program: &Path) -> Option<Command> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let is_there = Command::new("setpriv").arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_root || !is_there {
        println!("skipped: needs root and setpriv");
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).current_dir("/");
    Some(command)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn an_engine_that_may_not_make_its_socket_opens_and_reports_why() {
    let dir = tempfile::tempdir().unwrap();
    let program = for_all(&std::env::current_exe().unwrap(), dir.path());
    let Some(mut child) = as_another_user(&program) else { return };
    let store = dir.path().join("store");
    drop(Engine::open(&store).unwrap());
    let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(&store).status().unwrap();
    assert!(owned.success());
    fs::set_permissions(&store, fs::Permissions::from_mode(0o555)).unwrap();
    child.args(["live::unwritable_child", "--exact", "--ignored", "--nocapture"]).env(UNWRITABLE, &store);
    let output = child.output().unwrap();
    assert!(output.status.success() && text(&output).contains("served without"), "{}", text(&output));
}

/// Even where the modes of the files would let another user in.
#[test]
fn a_client_of_another_user_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = for_all(Path::new(env!("CARGO_BIN_EXE_oncekey")), dir.path());
    let Some(mut child) = as_another_user(&program) else { return };
    let store = dir.path().join("store");
    let engine = Engine::open(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(socket(&store), fs::Permissions::from_mode(0o666)).unwrap();
    let output = child.arg("watch").arg(&store).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("another user than 65534"), "{}", text(&output));
    engine.close().unwrap();
}
