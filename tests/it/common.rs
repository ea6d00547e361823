//! Shared code of the tests: engines on a manual clock, and short names for answers.

use std::path::Path;
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, Context, Engine, EngineOptions, Fingerprint, Manager, ManagerOptions, OnInterrupted,
    Status, Token, Waited, admin::Records, clock::ManualClock,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The last millisecond before the end of a time.
pub(crate) fn just_before(time: Duration) -> Duration {
    time.checked_sub(MS).unwrap()
}

/// A payload for outcomes, contexts and failures. It must not be printed anywhere.
pub(crate) const MARKER: &str = "4111-1111";

/// The manager that most tests use.
pub(crate) type Texts = Manager<String, String>;

pub(crate) fn options(clock: &ManualClock) -> EngineOptions {
    Engine::options().clock(clock.clone())
}

pub(crate) fn open(path: &Path, clock: &ManualClock) -> Engine {
    options(clock).open_store(path).unwrap()
}

pub(crate) fn engine() -> (Engine, ManualClock) {
    let clock = ManualClock::new();
    (options(&clock).temporary_store().unwrap(), clock)
}

/// As [`open`], for tests of what only the embedded store has.
pub(crate) fn open_local(path: &Path, clock: &ManualClock) -> Engine {
    options(clock).open(path).unwrap()
}

/// As [`engine`], for tests of what only the embedded store has.
pub(crate) fn local_engine() -> (Engine, ManualClock) {
    let clock = ManualClock::new();
    (options(&clock).temporary().unwrap(), clock)
}

/// Opens the store of a test: an embedded one, or one on PostgreSQL if `ONCEKEY_STORE` is `postgres`. Tests of what only
/// the embedded store has call `open` and `temporary` instead.
pub(crate) trait OpenStore {
    fn open_store(&self, path: &Path) -> oncekey::Result<Engine>;
    fn temporary_store(&self) -> oncekey::Result<Engine>;
}

#[cfg(not(feature = "postgres"))]
impl OpenStore for EngineOptions {
    fn open_store(&self, path: &Path) -> oncekey::Result<Engine> {
        self.open(path)
    }

    fn temporary_store(&self) -> oncekey::Result<Engine> {
        self.temporary()
    }
}

#[cfg(feature = "postgres")]
impl OpenStore for EngineOptions {
    fn open_store(&self, path: &Path) -> oncekey::Result<Engine> {
        let name = oncekey::Fingerprint::of(path.to_str().unwrap()).unwrap().to_string();
        on_postgres(self, &name[..32]).unwrap_or_else(|| self.open(path))
    }

    fn temporary_store(&self) -> oncekey::Result<Engine> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        on_postgres(self, &format!("temporary-{number}")).unwrap_or_else(|| self.temporary())
    }
}

#[cfg(feature = "postgres")]
fn on_postgres(options: &EngineOptions, schema: &str) -> Option<oncekey::Result<Engine>> {
    static SERVER: std::sync::OnceLock<crate::server::Server> = std::sync::OnceLock::new();
    if std::env::var("ONCEKEY_STORE").as_deref() != Ok("postgres") {
        return None;
    }
    let server = SERVER.get_or_init(|| crate::server::Server::start(""));
    Some(options.clone().schema(schema).connect(&server.url()))
}

pub(crate) fn texts_with(engine: &Engine, options: ManagerOptions) -> Texts {
    engine.manager_with("m", options).unwrap()
}

pub(crate) fn texts(engine: &Engine) -> Texts {
    texts_with(engine, ManagerOptions::new())
}

pub(crate) fn resuming(engine: &Engine) -> Texts {
    texts_with(engine, ManagerOptions::new().on_interrupted(OnInterrupted::Resume))
}

/// Returns a manager in an engine of its own.
pub(crate) fn fresh() -> (Texts, ManualClock) {
    let (engine, clock) = engine();
    (texts(&engine), clock)
}

pub(crate) trait Stored: Serialize + DeserializeOwned {}
impl<T: Serialize + DeserializeOwned> Stored for T {}

#[track_caller]
pub(crate) fn claimed<T, E>(begin: Begin<T, E>) -> Claim<T, E> {
    begin.into_claim().unwrap_or_else(|other| panic!("expected a claim, got {}", arm(&other)))
}

#[track_caller]
pub(crate) fn claim<T: Stored, E: Stored>(manager: &Manager<T, E>, key: &str) -> Claim<T, E> {
    claimed(manager.begin(key).unwrap())
}

/// Returns the name of an answer.
pub(crate) fn arm<T, E>(begin: &Begin<T, E>) -> &'static str {
    match begin {
        Begin::Claimed(_) => "claimed",
        Begin::Replay(_) => "replay",
        Begin::InProgress(_) => "in progress",
        Begin::Interrupted(_) => "interrupted",
        Begin::Paused(_) => "paused",
        Begin::Mismatch(_) => "mismatch",
    }
}

/// Returns the name of the answer of `begin`. Releases a claim again, so that the call changes little.
#[track_caller]
pub(crate) fn answer<T: Stored, E: Stored>(manager: &Manager<T, E>, key: &str) -> &'static str {
    answer_with(manager, key, CallOptions::new())
}

#[track_caller]
pub(crate) fn answer_with<T: Stored, E: Stored>(
    manager: &Manager<T, E>,
    key: &str,
    options: CallOptions,
) -> &'static str {
    let begin = manager.begin_with(key, options).unwrap();
    let arm = arm(&begin);
    if let Ok(claim) = begin.into_claim() {
        claim.release().unwrap();
    }
    arm
}

pub(crate) fn waited<T, E>(waited: &Waited<T, E>) -> &'static str {
    match waited {
        Waited::Finished(_) => "finished",
        Waited::Absent => "absent",
        Waited::Released => "released",
        Waited::Interrupted => "interrupted",
        Waited::TimedOut => "timed out",
        Waited::Closed => "closed",
    }
}

#[track_caller]
pub(crate) fn status<T: Stored, E: Stored>(manager: &Manager<T, E>, key: &str) -> Option<Status> {
    manager.get(key).unwrap().map(|record| record.status())
}

/// Returns the stored outcome.
#[track_caller]
pub(crate) fn outcome<T: Stored, E: Stored>(manager: &Manager<T, E>, key: &str) -> Option<Result<T, E>> {
    manager.get(key).unwrap().and_then(oncekey::Record::into_outcome)
}

/// Returns the keys of a listing, in order.
#[track_caller]
pub(crate) fn keys(records: Records) -> Vec<String> {
    records.map(|info| info.unwrap().key().to_string()).collect()
}

pub(crate) fn same(request: &str) -> CallOptions {
    CallOptions::new().fingerprint(Fingerprint::of(request).unwrap())
}

/// Returns the token with this number.
pub(crate) fn token(number: u64) -> Token {
    number.to_string().parse().unwrap()
}

pub(crate) fn about(name: &str, value: &str) -> Context {
    Context::new().with(name, value)
}

/// A type that no codec can read back if there is no note: the field is skipped, but required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Holed {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "Option::deserialize")]
    pub(crate) note: Option<String>,
    pub(crate) cents: u64,
}

/// A type that every codec reads back as `Unsigned`, unless the number is negative.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Ambiguous {
    Unsigned(u64),
    Signed(i64),
}

/// A type whose `Declined` bincode reads back as `Fraud`: a skipped variant shifts the later ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Shifted {
    #[serde(skip)]
    #[expect(dead_code, reason = "only its place matters")]
    Internal,
    Declined(u64),
    Fraud(u64),
}

/// Returns every file below a directory, with its size, to check that nothing changed.
pub(crate) fn tree(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
        let len = if metadata.is_dir() { 0 } else { metadata.len() };
        found.push((path, len));
    }
    found.sort();
    found
}
