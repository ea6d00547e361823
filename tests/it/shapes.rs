//! Tests of the public types, whatever their parameters: `Send` and `Sync`, `Debug` without payload, conversions of errors.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use oncekey::admin::*;
use oncekey::clock::*;
use oncekey::*;
use serde::{Deserialize, Serialize};

use crate::common::{MARKER, Texts, about, claim, claimed, engine, local_engine, options, token};

/// A type without `Send`, `Sync` and `Debug`. A manager of it is `Send` and `Sync`.
#[derive(Serialize, Deserialize)]
struct Local {
    #[serde(skip)]
    not_send: PhantomData<*const ()>,
}

fn send_sync_static<T: Send + Sync + 'static>() {}
fn send_static<T: Send + 'static>() {}

#[test]
fn handles_are_send_and_sync_whatever_the_types_are() {
    send_sync_static::<Engine>();
    send_sync_static::<EngineOptions>();
    send_sync_static::<Manager<Local, Local>>();
    send_sync_static::<Claim<Local, Local>>();
    send_sync_static::<Pending<Local, Local>>();
    send_sync_static::<EndError<Claim<Local, Local>>>();
    send_sync_static::<RawManager>();
    send_sync_static::<RecordInfo>();
    send_sync_static::<Error>();
    send_sync_static::<Begin<String, String>>();
    send_sync_static::<Waited<String, String>>();
    send_sync_static::<ExecuteError<String, String>>();
    send_sync_static::<Executed<String>>();
    send_sync_static::<(Record<String, String>, Finished<String, String>)>();
    send_sync_static::<(Key, Fingerprint, Context, Value, Failure, ManualClock, RecordFilter)>();
    send_static::<Records>();
}

/// Detects whether a type is `Debug`: if it is, Rust finds the inherent method first.
struct Probe<T>(PhantomData<T>);

impl<T: Debug> Probe<T> {
    #[expect(clippy::unused_self, reason = "found by method lookup")]
    fn is_debug(&self) -> bool {
        true
    }
}

trait Otherwise {
    fn is_debug(&self) -> bool {
        false
    }
}

impl<T> Otherwise for Probe<T> {}

macro_rules! is_debug {
    ($type:ty) => {
        Probe::<$type>(PhantomData).is_debug()
    };
}

#[test]
fn debug_needs_no_debug_of_the_types() {
    assert!(!is_debug!(Local), "the probe tells nothing");
    assert!(is_debug!(Manager<Local, Local>));
    assert!(is_debug!(Claim<Local, Local>));
    assert!(is_debug!(EndError<Claim<Local, Local>>));
    assert!(is_debug!(Pending<Local, Local>));
    assert!(is_debug!(Finished<Local, Local>));
    assert!(is_debug!(Record<Local, Local>));
    assert!(is_debug!(Executed<Local>));
    assert!(is_debug!(ExecuteError<Local, Local>));
}

#[test]
fn debug_of_an_answer_needs_no_debug_of_the_types() {
    assert!(is_debug!(Begin<Local, Local>), "Begin");
    assert!(is_debug!(Waited<Local, Local>), "Waited");
    assert!(is_debug!(Resolution<Local, Local>), "Resolution");
}

/// The payload is printed neither as text nor as a list of bytes.
#[track_caller]
fn hides(shown: &impl Debug) {
    let bytes = MARKER.as_bytes();
    for text in [format!("{shown:?}"), format!("{shown:#?}")] {
        let list = format!("{bytes:?}").replace(['[', ']'], "");
        let dense: String = text.split_whitespace().collect();
        // Do not print the text here: it must not appear in a test's output either.
        assert!(!text.contains(MARKER), "it shows the text, in {} bytes", text.len());
        assert!(!dense.contains(&list.replace(' ', "")), "it shows the bytes, in {} bytes", text.len());
    }
}

#[test]
fn debug_prints_no_payload() {
    let (engine, _) = engine();
    let manager: Texts = engine.manager("m").unwrap();
    let marked = MARKER.to_owned();
    let begin = CallOptions::new().context(about("card", MARKER));
    hides(&begin);
    let owner = claimed(manager.begin_with("k", begin).unwrap());
    hides(&owner);
    let too_large = "x".repeat(2 << 20) + MARKER;
    let refused = owner.succeed(&too_large).unwrap_err();
    hides(&refused);
    hides(&refused.error);
    hides(&manager.begin("k").unwrap());
    let finished = refused.claim.succeed(&marked).unwrap();
    hides(&finished);
    hides(&finished.info());
    hides(&Record::from(finished));
    hides(&manager.begin("k").unwrap());
    hides(&manager.wait("k", FOREVER).unwrap());
    hides(&manager.get("k").unwrap());
    hides(&engine.raw("m").unwrap().get("k").unwrap());
    hides(&manager.execute("k", |_| Err(marked.clone())).unwrap());
    hides(&manager.execute("failed", |_| Err(marked.clone())).unwrap_err());
    hides(&manager.execute("failed", |_| Err(marked.clone())).unwrap_err());
    let unstored = manager.execute("unstored", |_| Ok(too_large)).unwrap_err();
    hides(&unstored);
    hides(&engine.records(RecordFilter::new().context("card", MARKER)).unwrap());
    hides(&(Value::from(MARKER), about("card", MARKER), engine.stats(), engine.opened()));
    hides(&manager);
    let event = engine.events();
    drop(claim(&manager, "last"));
    hides(&event.ready().collect::<Vec<_>>());
}

#[test]
fn debug_of_a_resolution_prints_no_payload() {
    hides(&Resolution::<String, String>::Succeed(MARKER.to_owned()));
    hides(&Resolution::<String, String>::Fail(MARKER.to_owned()));
}

#[test]
fn debug_of_a_handle_prints_no_payload_of_its_store() {
    let (engine, _) = engine();
    let manager: Texts = engine.manager("m").unwrap();
    let options = CallOptions::new().context(about("card", MARKER));
    claimed(manager.begin_with("k", options).unwrap()).succeed(&MARKER.to_owned()).unwrap();
    // Waits until the record is in the record store.
    engine.compact_now().unwrap();
    hides(&manager);
    hides(&engine);
    hides(&engine.raw("m").unwrap());
    assert!(format!("{engine:?}").len() < 1000, "a line of a log, not the inside of the engine");
}

// A commit that is not written yet is in a buffer of the engine, and is not shown either.
#[test]
fn debug_of_a_handle_prints_no_payload_on_its_way_to_the_disk() {
    let clock = ManualClock::new();
    let interval = Duration::from_secs(3600);
    let engine = options(&clock).durability(Durability::Eventual { interval }).temporary().unwrap();
    let manager: Texts = engine.manager("m").unwrap();
    claim(&manager, "k").succeed(&MARKER.to_owned()).unwrap();
    hides(&manager);
    hides(&engine);
}

#[test]
fn errors_become_io_errors_of_the_fitting_kind() {
    let (engine, _) = local_engine();
    let manager: Texts = engine.manager("m").unwrap();
    let file = engine.path().join("LOCK");
    let kind = |error: Error| {
        let (text, ours) = (error.to_string(), error.kind());
        let error = io::Error::from(error);
        assert_eq!(error.to_string(), text);
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        assert_eq!(inner.map(Error::kind), Some(ours), "the error itself is inside");
        error.kind()
    };
    assert_eq!(kind(manager.begin("").unwrap_err()), io::ErrorKind::InvalidInput);
    assert_eq!(kind(engine.raw("A").unwrap_err()), io::ErrorKind::InvalidInput);
    assert_eq!(kind(manager.extend("k", Duration::ZERO).unwrap_err()), io::ErrorKind::InvalidInput);
    assert_eq!(kind(manager.resolve("k", Resolution::Retry).unwrap_err()), io::ErrorKind::NotFound);
    assert_eq!(kind(Engine::open(&file).unwrap_err()), io::ErrorKind::NotADirectory);
    assert_eq!(kind(Engine::open(engine.path().join("store")).unwrap_err()), io::ErrorKind::InvalidData);
    assert_eq!(kind(Context::new().with("n", "x").decode::<u64>("n").unwrap_err()), io::ErrorKind::InvalidData);
    assert_eq!(kind(manager.success("k", token(1), &String::new()).unwrap_err()), io::ErrorKind::Other);
    let io = Engine::open(&file).unwrap_err();
    assert_eq!((io.kind(), io.io_kind()), (ErrorKind::Io, Some(io::ErrorKind::NotADirectory)));
    let source = std::error::Error::source(&io).unwrap().to_string();
    assert!(io.to_string().ends_with(&source), "{io} does not end with {source}");
    assert_eq!(Failure::from(io.clone()).to_string(), io.to_string(), "the cause is printed once");
    let bad_key = manager.begin("").unwrap_err();
    assert!(bad_key.io_kind().is_none() && std::error::Error::source(&bad_key).is_none());
}

#[test]
fn errors_are_values_that_name_their_kind() {
    let (engine, _) = engine();
    let error = engine.raw("Bad Name").unwrap_err();
    assert_eq!(error.clone().kind(), error.kind());
    assert!(format!("{error:?}").contains("InvalidName"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("\"Bad Name\"") && text.starts_with(char::is_lowercase), "{text}");
    let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
    assert_eq!(boxed.to_string(), text);
}
