//! Each call of the operating system fails, once or from then on. Each call of the engine still ends, with a valid
//! answer or an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use oncekey::{
    Claim, Engine, Error, ErrorKind, Manager, ManagerOptions, Result, Status, Waited,
    admin::Resolution,
    clock::{BootTime, Clock, ManualClock},
};

use crate::inject::{Call, Effect, Rule};
use crate::threads::{LATE, within};

type Ops = Manager<Vec<u8>>;

/// Reads have separate tests. Allocations are missing, because the engine does not call libc for them. The tests of
/// full disks cover their failures.
const CALLS: [Call; 8] =
    [Call::Write, Call::Sync, Call::SyncRange, Call::Truncate, Call::Open, Call::Rename, Call::Remove, Call::CreateDir];

const JOURNAL: &str = "store/journal";
const SLED: &str = "store/sled";

/// The state of a key after the process has ended.
type State = Option<(Status, Option<Vec<u8>>)>;

#[expect(clippy::unnecessary_wraps, reason = "a state")]
fn unfinished(status: Status) -> State {
    Some((status, None))
}

#[expect(clippy::unnecessary_wraps, reason = "a state")]
fn success(value: &[u8]) -> State {
    Some((Status::Succeeded, Some(value.to_vec())))
}

fn state(ops: &Ops, key: &str) -> Result<State> {
    let record = ops.get(key)?;
    Ok(record.map(|record| (record.status(), record.into_outcome().map(std::result::Result::unwrap))))
}

/// The allowed states of each key. After a failed call, both the old and the new state are allowed.
#[derive(Debug, Default)]
struct Expected(BTreeMap<String, Vec<State>>);

impl Expected {
    /// Notes a call that sets the key to this state, and its result.
    fn note<R>(&mut self, key: &str, state: State, result: Result<R>) -> Result<R> {
        let may_be = self.0.entry(key.to_owned()).or_insert_with(|| vec![None]);
        match &result {
            Ok(_) => *may_be = vec![state],
            Err(_) => may_be.push(state),
        }
        result
    }

    /// Begins the key. The process may end before the claim does.
    fn begin(&mut self, ops: &Ops, key: &str) -> Result<Claim<Vec<u8>>> {
        let begun = self.note(key, unfinished(Status::Interrupted), ops.begin(key))?;
        Ok(begun.into_claim().unwrap_or_else(|_| panic!("{key} is not free")))
    }
}

fn value(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + n) % 251).to_le_bytes()[0]).collect()
}

fn open(path: &Path, clock: &ManualClock) -> Result<Engine> {
    Engine::options().clock(clock.clone()).segment_bytes(8 << 10).sync_timeout(Duration::from_secs(20)).open(path)
}

fn ops(engine: &Engine) -> Result<Ops> {
    engine.manager_with("m", ManagerOptions::new().success_ttl(Duration::from_secs(3600)))
}

fn brief(engine: &Engine) -> Result<Ops> {
    engine.manager_with("brief", ManagerOptions::new().success_ttl(Duration::from_secs(1)))
}

/// Stores outcomes of all lengths: inline, in chunks, longer than a segment.
fn store(ops: &Ops, expected: &mut Expected) -> Result<()> {
    for (n, len) in [10, 5_000, 300, 20_000, 3_000, 3_000, 3_000].into_iter().enumerate() {
        let (key, value) = (format!("k{n}"), value(n, len));
        let claim = expected.begin(ops, &key)?;
        expected.note(&key, success(&value), claim.succeed(&value).map_err(|error| error.error))?;
    }
    Ok(())
}

/// Makes about twenty operations, two opens and two closes. They create and recycle segments, checkpoints, chunks and
/// leftovers.
fn script(path: &Path, clock: &ManualClock, expected: &mut Expected) -> Result<()> {
    let engine = open(path, clock)?;
    checked(&engine, first_session(&engine, clock, expected))?;
    engine.close()?;
    let engine = open(path, clock)?;
    checked(&engine, second_session(&engine, expected))?;
    engine.close()
}

fn first_session(engine: &Engine, clock: &ManualClock, expected: &mut Expected) -> Result<()> {
    let ops = self::ops(engine)?;
    store(&ops, expected)?;
    for n in 0..3 {
        brief(engine)?.execute(format!("b{n}"), |_| Ok(value(n, 6_000))).map_err(of_execute)?;
    }
    let claim = expected.begin(&ops, "given up")?;
    expected.note("given up", unfinished(Status::Released), claim.release().map_err(|error| error.error))?;
    let claim = expected.begin(&ops, "reported")?;
    expected.note("reported", unfinished(Status::Interrupted), claim.interrupt().map_err(|error| error.error))?;
    drop(expected.begin(&ops, "dropped")?);
    let held = expected.begin(&ops, "held")?;
    expected.note("k0", None, ops.remove("k0"))?;
    clock.advance(Duration::from_secs(2));
    engine.compact_now()?;
    drop(held);
    Ok(())
}

fn second_session(engine: &Engine, expected: &mut Expected) -> Result<()> {
    let ops = self::ops(engine)?;
    engine.interrupted()?.try_for_each(|info| info.map(drop))?;
    let resolved = ops.resolve("dropped", Resolution::Succeed(value(9, 9)));
    expected.note("dropped", success(&value(9, 9)), resolved)?;
    for n in 0..7 {
        ops.get(format!("k{n}"))?;
    }
    engine.sync()
}

/// Checks the error of a failed call. Calls that waited for the disk get its error, and all later calls get `Poisoned`.
/// Or the call was rejected, and the engine works as before.
fn checked(engine: &Engine, result: Result<()>) -> Result<()> {
    let Err(error) = result else { return Ok(()) };
    let next = [engine.sync(), engine.sync()].map(|synced| synced.err().map(|error| error.kind()));
    let is_lost = |verb: &str| error.to_string().contains(&format!("{verb} journal segment"));
    if error.kind() == ErrorKind::Poisoned || is_lost("sync") || is_lost("write") {
        assert_eq!(next, [Some(ErrorKind::Poisoned); 2], "{error}");
    }
    assert!(next[0].is_none() || next[1] == Some(ErrorKind::Poisoned), "{error}, and then {next:?}");
    Err(error)
}

fn of_execute<T, E>(error: oncekey::ExecuteError<T, E>) -> Error {
    match error {
        oncekey::ExecuteError::Engine(error) => error,
        oncekey::ExecuteError::NotStored { error, .. } => error.error,
        _ => panic!("an answer that does not fit"),
    }
}

/// Runs the script with a rule. Returns true if the rule had an effect, and the kind of the script's error.
fn run((call, at): (Call, &str), nth: u64, times: u64, effect: Effect) -> (bool, Option<ErrorKind>) {
    let dir = tempfile::tempdir().unwrap();
    let (path, clock) = (dir.path().join("store"), ManualClock::new());
    let mut expected = Expected::default();
    let what = format!("{call:?} {nth} x {times} in {at:?}, {effect:?}");
    let rule = Rule { path: path.join(at).to_str().unwrap().to_owned(), call, nth, times, effect }.inject();
    let result = script(&path, &clock, &mut expected);
    let hit = rule.hits() > 0;
    drop(rule);
    assert!(hit || result.is_ok(), "{what}: {result:?}");
    if let Err(error) = &result {
        let kinds = [ErrorKind::Io, ErrorKind::Full, ErrorKind::Poisoned];
        assert!(kinds.contains(&error.kind()), "{what}: {error}: {:?}", error.kind());
    }
    let engine = open(&path, &clock).unwrap_or_else(|error| panic!("{what}: {result:?}, and then {error}"));
    let ops = self::ops(&engine).unwrap();
    for (key, may_be) in &expected.0 {
        let found = state(&ops, key).unwrap();
        let status = found.as_ref().map(|(status, _)| status);
        assert!(may_be.contains(&found), "{what}: {result:?}, and {key} is {status:?}, not as it was answered");
    }
    // The engine works as before.
    ops.execute("after", |_| Ok(value(1, 1))).unwrap();
    drop(ops);
    engine.close().unwrap();
    (hit, result.err().map(|error| error.kind()))
}

/// Set `ONCEKEY_FAILURES=all` to test every call, not only some.
#[test]
fn every_call_may_fail() {
    let all = std::env::var("ONCEKEY_FAILURES").is_ok();
    let effects =
        [Effect::Errno(libc::EIO), Effect::Errno(libc::ENOSPC), Effect::Short(100), Effect::Errno(libc::EINTR)];
    let (mut runs, mut failed) = (0_u64, BTreeMap::new());
    for (call, effect) in CALLS.into_iter().flat_map(|call| effects.map(|effect| (call, effect))) {
        if matches!(effect, Effect::Short(_)) && call != Call::Write {
            continue;
        }
        // std repeats interrupted calls, so a permanent interruption would never end.
        let interrupts = effect == Effect::Errno(libc::EINTR);
        if interrupts && !matches!(call, Call::Write | Call::Sync | Call::Open) {
            continue;
        }
        for times in if interrupts { vec![1] } else { vec![1, u64::MAX] } {
            let mut nth = 1;
            loop {
                let (hit, kind) = within(LATE, move || run((call, ""), nth, times, effect));
                runs += 1;
                if !hit {
                    break;
                }
                *failed.entry(kind.map_or("nothing".to_owned(), |kind| format!("{kind:?}"))).or_insert(0_u64) += 1;
                // Test the first calls, which create the store, and then a part of the others.
                nth += if all { 1 } else { 2 + nth * 3 };
            }
        }
    }
    println!("{runs} runs; what the script ended with: {failed:?}");
    assert!(failed.values().sum::<u64>() > 40);
    assert!(["Io", "Full"].iter().all(|kind| failed.contains_key(*kind)), "{failed:?}");
}

/// A sector of the journal that cannot be read makes the open fail, and nothing is changed.
#[test]
fn every_read_of_the_journal_may_fail() {
    let mut failed = 0_u64;
    for times in [1, u64::MAX] {
        for nth in 1.. {
            let (hit, kind) = within(LATE, move || run((Call::Read, JOURNAL), nth, times, Effect::Errno(libc::EIO)));
            if !hit {
                break;
            }
            assert_eq!(kind, Some(ErrorKind::Io), "read {nth}");
            failed += 1;
        }
    }
    println!("{failed} reads of the journal failed");
    assert!(failed > 10);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).unwrap() }
    }
}

/// Opens the store and reads everything: each read returns an error or the right data. Returns true if all reads are
/// right.
fn read_all(path: &Path, clock: &ManualClock, expected: &Expected, what: &str) -> bool {
    let Ok(engine) = open(path, clock) else { return false };
    let ops = self::ops(&engine).unwrap();
    let mut all = true;
    for (key, may_be) in &expected.0 {
        match state(&ops, key) {
            Ok(found) => assert!(may_be.contains(&found), "{what}: {key} is wrong"),
            Err(_) => all = false,
        }
    }
    drop(ops);
    engine.close().is_ok() && all
}

/// sled treats a failed read during its open as the end of its log. The engine detects the missing data, because the
/// store was closed.
#[test]
fn every_read_of_sled_in_a_closed_store_may_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (path, clock, mut expected) = (dir.path().join("closed"), ManualClock::new(), Expected::default());
    script(&path, &clock, &mut expected).unwrap();
    let (mut failed, mut right) = (0_u64, 0_u64);
    for times in [1, u64::MAX] {
        let mut nth = 1;
        loop {
            let copied = dir.path().join(format!("copy-{times}-{nth}"));
            copy(&path, &copied);
            let at = copied.join(SLED).to_str().unwrap().to_owned();
            let rule = Rule { path: at, call: Call::Read, nth, times, effect: Effect::Errno(libc::EIO) }.inject();
            let what = format!("read {nth} x {times}");
            let all = read_all(&copied, &clock, &expected, &what);
            let hit = rule.hits() > 0;
            drop(rule);
            // sled may have cut its log at the unreadable place. Then every later open fails.
            right += u64::from(read_all(&copied, &clock, &expected, &what));
            if !hit {
                assert!(all);
                break;
            }
            failed += 1;
            nth += 1 + nth / 8;
        }
    }
    println!("{failed} reads of sled failed, and of as many stores {right} are whole when it can be read again");
    assert!(failed > 10);
}

/// The time that a busy machine may take for something that needs no time.
const MARGIN: Duration = Duration::from_secs(5);

/// Owners and waiters while the disk fails: all get an answer within the configured time. If the disk returns an error,
/// they get it at once.
fn all_callers_get_the_error(call: Call, effect: Effect, timeout: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::options().sync_timeout(timeout).open(dir.path()).unwrap();
    let ops: Ops = engine.manager("m").unwrap();
    ops.execute("before", |_| Ok(value(1, 100))).unwrap();
    let claims: Vec<_> = (0..4).map(|n| ops.begin(format!("live-{n}")).unwrap().into_claim().unwrap()).collect();
    let at = dir.path().join(JOURNAL).to_str().unwrap().to_owned();
    let rule = Rule { path: at, call, nth: 1, times: u64::MAX, effect }.inject();
    let (began, line) = (Instant::now(), &Barrier::new(4));
    let kinds: Vec<_> = thread::scope(|scope| {
        let ops = &ops;
        let waiting: Vec<_> =
            (0..4).map(|n| scope.spawn(move || ops.wait(format!("live-{n}"), Duration::from_secs(3600)))).collect();
        let ending: Vec<_> = claims
            .into_iter()
            .map(|claim| {
                scope.spawn(move || {
                    line.wait();
                    claim.succeed(&value(2, 100)).map(drop).map_err(|error| error.error)
                })
            })
            .collect();
        for waited in waiting {
            ends_with_a_result(waited.join().unwrap());
        }
        ending.into_iter().map(|ended| ended.join().unwrap().unwrap_err().kind()).collect()
    });
    let (took, hangs) = (began.elapsed(), effect == Effect::Hang);
    assert!(took < MARGIN + if hangs { timeout } else { Duration::ZERO }, "{took:?}");
    // Calls that waited for the disk get its error, later calls get `Poisoned`. A disk that hangs returns no error.
    assert_eq!(kinds.contains(&ErrorKind::Io), !hangs, "{kinds:?}");
    assert!(kinds.iter().all(|kind| matches!(kind, ErrorKind::Io | ErrorKind::Poisoned)), "{kinds:?}");
    all_are_refused(&engine, ops);
    let began = Instant::now();
    assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(began.elapsed() < timeout + MARGIN);
    drop(rule);
    is_free_and_works_again(dir.path());
}

fn ends_with_a_result(waited: Result<Waited<Vec<u8>>>) {
    match waited {
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error}"),
        Ok(answer) => assert!(matches!(answer, Waited::Closed), "{answer:?}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the last handle but one")]
fn all_are_refused(engine: &Engine, ops: Ops) {
    for error in [
        ops.get("before").map(drop).unwrap_err(),
        ops.begin("new").map(drop).unwrap_err(),
        engine.sync().unwrap_err(),
        engine.compact_now().map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }
}

/// Checks that the store is free and works again once the hanging call returns.
fn is_free_and_works_again(dir: &Path) {
    crate::threads::until("the directory is free", || match Engine::open(dir) {
        Ok(engine) => {
            let ops: Ops = engine.manager("m").unwrap();
            assert_eq!(ops.get("before").unwrap().unwrap().outcome(), Some(Ok(&value(1, 100))));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::StoreInUse, "{error}");
            false
        }
    });
}

#[test]
fn all_callers_get_the_error_of_a_failed_sync_or_write() {
    for (call, effect) in [
        (Call::Sync, Effect::Errno(libc::EIO)),
        (Call::Write, Effect::Errno(libc::EIO)),
        (Call::Write, Effect::Errno(libc::ENOSPC)),
        (Call::Write, Effect::Short(0)),
    ] {
        within(LATE, move || all_callers_get_the_error(call, effect, Duration::from_secs(30)));
    }
}

#[test]
fn a_hanging_sync_or_write_fails_all_callers_within_the_timeout() {
    for call in [Call::Sync, Call::Write] {
        within(LATE, move || all_callers_get_the_error(call, Effect::Hang, Duration::from_secs(1)));
    }
}

/// A failed sync of sled. Only calls that want all data in sled wait for it: here a compaction.
fn callers_get_the_error_of_sled(effect: Effect, timeout: Duration) {
    let dir = tempfile::tempdir().unwrap();
    // Without the sync flag, sled is synced after a few KiB.
    let engine = Engine::options().sync_timeout(timeout).sync_flag(false).open(dir.path()).unwrap();
    let ops: Ops = engine.manager("m").unwrap();
    ops.execute("before", |_| Ok(value(1, 100))).unwrap();
    let live = ops.begin("live").unwrap().into_claim().unwrap();
    let large = ops.begin("large").unwrap().into_claim().unwrap();
    let at = dir.path().join(SLED).to_str().unwrap().to_owned();
    let rule = Rule { path: at, call: Call::Sync, nth: 1, times: u64::MAX, effect }.inject();
    let began = Instant::now();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| ops.wait("live", Duration::from_secs(3600)))).collect();
        // The outcome is in the journal, so it may succeed. The poison may also be faster.
        match large.succeed(&value(3, 60_000)) {
            Ok(_) => {}
            Err(error) => assert!(matches!(error.error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error:?}"),
        }
        let kind = engine.compact_now().unwrap_err().kind();
        assert!(kind == ErrorKind::Poisoned || (kind == ErrorKind::Io && effect != Effect::Hang), "{kind:?}");
        for waited in waiting {
            ends_with_a_result(waited.join().unwrap());
        }
    });
    let took = began.elapsed();
    assert!(took < MARGIN + if effect == Effect::Hang { timeout } else { Duration::ZERO }, "{took:?}");
    drop(live);
    all_are_refused(&engine, ops);
    let began = Instant::now();
    assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(began.elapsed() < timeout + MARGIN);
    drop(rule);
    is_free_and_works_again(dir.path());
}

#[test]
fn a_failed_or_hanging_sync_of_sled_fails_all_callers() {
    within(LATE, || callers_get_the_error_of_sled(Effect::Errno(libc::EIO), Duration::from_secs(30)));
    within(LATE, || callers_get_the_error_of_sled(Effect::Hang, Duration::from_secs(1)));
}

/// The clock of the machine. Once armed, it panics in the thread that writes the journal.
#[derive(Debug)]
struct Bomb(Arc<AtomicBool>);

impl Clock for Bomb {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn boot(&self) -> Option<BootTime> {
        let is_writer = thread::current().name() == Some("oncekey-journal");
        assert!(!is_writer || !self.0.load(SeqCst), "the bomb");
        None
    }
}

#[test]
fn a_panic_in_the_journal_thread_fails_all_callers() {
    within(LATE, || {
        let (dir, lit) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let engine = Engine::options().clock(Bomb(Arc::clone(&lit))).open(dir.path()).unwrap();
        let ops: Ops = engine.manager("m").unwrap();
        let claim = ops.begin("live").unwrap().into_claim().unwrap();
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| ops.wait("live", Duration::from_secs(3600)))).collect();
            lit.store(true, SeqCst);
            assert_eq!(claim.succeed(&value(1, 1)).unwrap_err().error.kind(), ErrorKind::Poisoned);
            for waited in waiting {
                assert!(waited.join().unwrap().map_or_else(
                    |error| error.kind() == ErrorKind::Poisoned,
                    |answer| { matches!(answer, Waited::Closed) }
                ));
            }
        });
        drop(ops);
        assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
    });
}
