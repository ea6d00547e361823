//! Several engines with the same store: one owner at a time, exactly one successor, and owners that die.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oncekey::{
    Begin, CallOptions, Claim, Engine, ErrorKind, Interruption, Manager, ManagerOptions, OnInterrupted, Status, Waited,
};

use crate::proxy::Proxy;
use crate::{new_schema, open, options, shared};

pub(crate) type Texts = Manager<String, String>;

/// A wait that ends much earlier, unless something is broken.
const LATE: Duration = Duration::from_secs(60);

pub(crate) fn claimed(begin: Begin<String, String>) -> Claim<String, String> {
    begin.into_claim().unwrap_or_else(|_| panic!("the key can be claimed"))
}

pub(crate) fn texts(engine: &Engine) -> Texts {
    engine.manager("m").unwrap()
}

fn resuming(engine: &Engine) -> Texts {
    engine.manager_with("m", ManagerOptions::new().on_interrupted(OnInterrupted::Resume)).unwrap()
}

#[test]
fn an_answer_is_seen_by_every_engine() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    let (one, two) = (texts(&one), texts(&two));
    let claim = claimed(one.begin("k").unwrap());
    assert!(matches!(two.begin("k").unwrap(), Begin::InProgress(_)));
    claim.succeed(&"done".to_owned()).unwrap();
    let Begin::Replay(record) = two.begin("k").unwrap() else { panic!("the answer is stored") };
    assert_eq!(record.into_outcome(), Ok("done".to_owned()));
    // The columns for operators.
    assert_eq!(shared().sql(&format!("SELECT manager, state, owner FROM \"{schema}\".records")), "m|2|1");
}

#[test]
fn a_closed_engine_leaves_its_answers() {
    let schema = new_schema();
    let engine = open(&schema);
    assert!(engine.opened().created);
    texts(&engine).execute("k", |_| Ok("done".to_owned())).unwrap();
    engine.close().unwrap();
    let engine = open(&schema);
    assert!(!engine.opened().created);
    assert_eq!(texts(&engine).get("k").unwrap().unwrap().status(), Status::Succeeded);
}

#[test]
fn a_waiter_of_another_engine_gets_the_answer() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    let claim = claimed(texts(&one).begin("k").unwrap());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| texts(&two).wait("k", LATE).unwrap());
        let successor = scope.spawn(|| texts(&two).begin_with("k", CallOptions::new().wait(LATE)).unwrap());
        crate::until(|| two.stats().waiting == 2);
        claim.succeed(&"done".to_owned()).unwrap();
        assert!(matches!(waiter.join().unwrap(), Waited::Finished(_)));
        assert!(matches!(successor.join().unwrap(), Begin::Replay(_)));
    });
}

/// Each of the successors in three engines runs the operation once: a release goes to exactly one.
#[test]
fn a_released_key_goes_to_exactly_one_successor() {
    let schema = new_schema();
    hand_over(&[open(&schema), open(&schema), open(&schema)]);
}

#[test]
fn a_released_key_goes_to_exactly_one_successor_although_every_notification_is_lost() {
    let (schema, proxy) = (new_schema(), Proxy::start());
    proxy.drop_notifications();
    let connect = || options(&schema).connect(&proxy.url()).unwrap();
    hand_over(&[connect(), connect(), connect()]);
    assert!(proxy.lost() > 0);
}

#[test]
fn a_claim_of_another_engine_can_be_revoked_and_not_removed() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    let claim = claimed(texts(&one).begin("k").unwrap());
    assert_eq!(texts(&two).remove("k").unwrap_err().kind(), ErrorKind::OwnedByClaim);
    texts(&two).revoke("k").unwrap();
    assert_eq!(claim.succeed(&"late".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
    let info = texts(&one).get("k").unwrap().unwrap().info().clone();
    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::Revoked)));
}

fn hand_over(engines: &[Engine; 3]) {
    let (running, done, began) = (AtomicU32::new(0), AtomicU32::new(0), Instant::now());
    std::thread::scope(|scope| {
        for successor in 0..30 {
            let (engine, running, done) = (&engines[successor % 3], &running, &done);
            scope.spawn(move || {
                let claim = claimed(texts(engine).begin_with("k", CallOptions::new().wait(LATE)).unwrap());
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two owners at once");
                done.fetch_add(1, Ordering::SeqCst);
                assert_eq!(running.fetch_sub(1, Ordering::SeqCst), 1);
                claim.release().unwrap();
            });
        }
    });
    assert_eq!(done.into_inner(), 30);
    assert!(began.elapsed() < LATE);
    assert_eq!(texts(&engines[0]).get("k").unwrap().unwrap().info().attempt(), 30);
}

#[test]
fn many_engines_that_begin_one_key_make_one_claim() {
    let schema = new_schema();
    let engines: Vec<Engine> = (0..4).map(|_| open(&schema)).collect();
    for key in 0..20 {
        let key = format!("{key}");
        let claims: Vec<_> = std::thread::scope(|scope| {
            let key = key.as_str();
            let begin = |engine| scope.spawn(move || texts(engine).begin(key).unwrap().into_claim().ok());
            let threads: Vec<_> = engines.iter().chain(&engines).map(begin).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claims.len(), 1, "claims of {key}");
    }
}

/// All of them start at once, so several find no tables. Only the first then creates them.
#[test]
fn one_of_many_engines_that_open_at_once_creates_the_store() {
    for _ in 0..3 {
        let schema = new_schema();
        let together = std::sync::Barrier::new(6);
        let connect = || {
            together.wait();
            open(&schema).opened().created
        };
        let created = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(connect)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|created| *created).count()
        });
        assert_eq!(created, 1);
    }
}

#[test]
fn tokens_of_a_key_only_grow_also_after_a_removal() {
    let schema = new_schema();
    let (one, two) = (open(&schema), open(&schema));
    let mut last = 0;
    for round in 0..10 {
        let texts = texts(if round % 2 == 0 { &one } else { &two });
        let claim = claimed(texts.begin("k").unwrap());
        let token = claim.token();
        assert!(token > last, "{token} after {last}");
        last = token;
        claim.succeed(&String::new()).unwrap();
        assert!(texts.forget("k").unwrap());
        assert!(texts.get("k").unwrap().is_none());
    }
}

const SCHEMA: &str = "ONCEKEY_TEST_SCHEMA";
const URL: &str = "ONCEKEY_TEST_URL";

/// Not a test: a process that claims keys and waits until a test kills it.
#[test]
#[ignore = "a process of other tests"]
fn owner() {
    let Ok(schema) = std::env::var(SCHEMA) else { return };
    let engine = Engine::options().schema(schema).connect(&std::env::var(URL).unwrap()).unwrap();
    let _held = claimed(texts(&engine).begin("held").unwrap());
    let _resumed = claimed(resuming(&engine).begin("resumed").unwrap());
    engine.manager::<String, String>("m").unwrap().initiate("by-key").unwrap();
    println!("\nready");
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Starts a process that owns keys.
fn start_owner(schema: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "engines::owner", "--ignored", "--nocapture"]);
    command.env(SCHEMA, schema).env(URL, shared().url()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    assert!(out.lines().any(|line| line.unwrap() == "ready"), "the process has claimed its keys");
    child
}

#[test]
fn the_records_of_a_killed_process_are_interrupted_at_once() {
    let schema = new_schema();
    let engine = open(&schema);
    let mut owner = start_owner(&schema);
    let texts = texts(&engine);
    for key in ["held", "resumed", "by-key"] {
        assert_eq!(texts.get(key).unwrap().unwrap().status(), Status::InProgress, "{key}");
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    crate::until(|| texts.get("held").unwrap().unwrap().status() == Status::Interrupted);
    let infos: Vec<_> = engine.interrupted().unwrap().map(Result::unwrap).collect();
    let all: Vec<_> = infos.iter().map(|info| (info.key().to_string(), info.interruption())).collect();
    let dead = |key: &str| (key.to_owned(), Some(Interruption::ProcessEnded));
    assert_eq!(all, [dead("by-key"), dead("held"), dead("resumed")]);
    assert!(matches!(texts.begin("held").unwrap(), Begin::Interrupted(_)));
    assert_eq!(claimed(resuming(&engine).begin("resumed").unwrap()).attempt(), 2);
}

#[test]
fn a_successor_takes_over_from_a_killed_process() {
    let schema = new_schema();
    let engines = [open(&schema), open(&schema)];
    let mut owner = start_owner(&schema);
    std::thread::scope(|scope| {
        let wait = |engine| {
            let options = CallOptions::new().wait(LATE);
            scope.spawn(move || claimed(resuming(engine).begin_with("resumed", options).unwrap()).release().unwrap())
        };
        let waiters: Vec<_> = engines.iter().chain(&engines).map(wait).collect();
        crate::until(|| engines.iter().all(|engine| engine.stats().waiting == 2));
        owner.kill().unwrap();
        owner.wait().unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
    assert_eq!(texts(&engines[0]).get("resumed").unwrap().unwrap().info().attempt(), 5);
}

#[test]
fn an_open_reports_what_a_killed_process_has_left() {
    let schema = new_schema();
    drop(open(&schema));
    let mut owner = start_owner(&schema);
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The server frees the lock when it notices the end of the connection.
    crate::until(|| open(&schema).opened().interrupted == 3);
    assert_eq!(open(&schema).opened().interrupted, 3);
}
