//! Every call of the operating system fails once, or from then on for ever: each call of the engine still ends, with an answer
//! that holds or with an error.

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

/// Reads have tests of their own. Allocations are not here: the engine's go around libc, and what comes of them the tests of full
/// disks are about.
const CALLS: [Call; 8] =
    [Call::Write, Call::Sync, Call::SyncRange, Call::Truncate, Call::Open, Call::Rename, Call::Remove, Call::CreateDir];

const JOURNAL: &str = "store/journal";
const SLED: &str = "store/sled";

/// What a key holds once the process has ended.
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

/// What a key may hold after the calls that were made: of one that failed, what was before or what it was to make.
#[derive(Debug, Default)]
struct Expected(BTreeMap<String, Vec<State>>);

impl Expected {
    /// Takes note of a call that makes the key this, and of what came of it.
    fn note<R>(&mut self, key: &str, state: State, result: Result<R>) -> Result<R> {
        let may_be = self.0.entry(key.to_owned()).or_insert_with(|| vec![None]);
        match &result {
            Ok(_) => *may_be = vec![state],
            Err(_) => may_be.push(state),
        }
        result
    }

    /// A claim, whose process may end before it does.
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

/// Outcomes of all lengths: inline, in pieces, longer than a segment.
fn store(ops: &Ops, expected: &mut Expected) -> Result<()> {
    for (n, len) in [10, 5_000, 300, 20_000, 3_000, 3_000, 3_000].into_iter().enumerate() {
        let (key, value) = (format!("k{n}"), value(n, len));
        let claim = expected.begin(ops, &key)?;
        expected.note(&key, success(&value), claim.succeed(&value).map_err(|error| error.error))?;
    }
    Ok(())
}

/// About twenty operations, two opens and closes, which make and recycle segments, checkpoints, pieces and leftovers.
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
    let settled = ops.resolve("dropped", Resolution::Succeed(value(9, 9)));
    expected.note("dropped", success(&value(9, 9)), settled)?;
    for n in 0..7 {
        ops.get(format!("k{n}"))?;
    }
    engine.sync()
}

/// The disk's error itself for whoever waited for it, and `Poisoned` for every call from then on; or a refusal, after which all
/// goes on.
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

/// Whether the rule had an effect, and what the script came to.
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
    // It is as good as before.
    ops.execute("after", |_| Ok(value(1, 1))).unwrap();
    drop(ops);
    engine.close().unwrap();
    (hit, result.err().map(|error| error.kind()))
}

/// `ONCEKEY_FAILURES=all` makes every call fail, and not only some.
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
        // std tries again what was interrupted: for ever is for ever then.
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
                // A slice of the whole: the first ones, which create, and then some of the others.
                nth += if all { 1 } else { 2 + nth * 3 };
            }
        }
    }
    println!("{runs} runs; what the script ended with: {failed:?}");
    assert!(failed.values().sum::<u64>() > 40);
    assert!(["Io", "Full"].iter().all(|kind| failed.contains_key(*kind)), "{failed:?}");
}

/// A sector of the journal that cannot be read refuses the open, and changes nothing.
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

/// Opens it and reads everything: each answer is an error or right. Whether all of them are right.
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

/// sled takes a read that fails while it opens for the end of its log. What is gone then is missed, because the store was closed.
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
            // It may have been cut where it could not be read: then it is refused for good.
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

/// What a machine with other things to do may take for what needs no time.
const MARGIN: Duration = Duration::from_secs(5);

/// Owners and waiters while the disk fails: all are told, within the time that the options say; a disk that says so itself at
/// once.
fn all_are_told(call: Call, effect: Effect, timeout: Duration) {
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
            is_told(waited.join().unwrap());
        }
        ending.into_iter().map(|ended| ended.join().unwrap().unwrap_err().kind()).collect()
    });
    let (took, hangs) = (began.elapsed(), effect == Effect::Hang);
    assert!(took < MARGIN + if hangs { timeout } else { Duration::ZERO }, "{took:?}");
    // Those that waited for the disk have its error, those that came later what it means. Of one that hangs there is none.
    assert_eq!(kinds.contains(&ErrorKind::Io), !hangs, "{kinds:?}");
    assert!(kinds.iter().all(|kind| matches!(kind, ErrorKind::Io | ErrorKind::Poisoned)), "{kinds:?}");
    all_are_refused(&engine, ops);
    let began = Instant::now();
    assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(began.elapsed() < timeout + MARGIN);
    drop(rule);
    is_as_before(dir.path());
}

fn is_told(waited: Result<Waited<Vec<u8>>>) {
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

/// What hung lets the directory go when it comes back.
fn is_as_before(dir: &Path) {
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
fn a_sync_that_fails_and_a_write_that_fails_are_told_to_all() {
    for (call, effect) in [
        (Call::Sync, Effect::Errno(libc::EIO)),
        (Call::Write, Effect::Errno(libc::EIO)),
        (Call::Write, Effect::Errno(libc::ENOSPC)),
        (Call::Write, Effect::Short(0)),
    ] {
        within(LATE, move || all_are_told(call, effect, Duration::from_secs(30)));
    }
}

#[test]
fn a_sync_or_a_write_that_hangs_is_told_to_all_within_the_timeout() {
    for call in [Call::Sync, Call::Write] {
        within(LATE, move || all_are_told(call, Effect::Hang, Duration::from_secs(1)));
    }
}

/// A sync of sled, for which only those wait who want everything in it: here whoever compacts.
fn told_of_sled(effect: Effect, timeout: Duration) {
    let dir = tempfile::tempdir().unwrap();
    // Without the flag sled is synced after a few KiB.
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
        // The journal has it, whatever becomes of sled; the poison may be quicker.
        match large.succeed(&value(3, 60_000)) {
            Ok(_) => {}
            Err(error) => assert!(matches!(error.error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error:?}"),
        }
        let kind = engine.compact_now().unwrap_err().kind();
        assert!(kind == ErrorKind::Poisoned || (kind == ErrorKind::Io && effect != Effect::Hang), "{kind:?}");
        for waited in waiting {
            is_told(waited.join().unwrap());
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
    is_as_before(dir.path());
}

#[test]
fn a_sync_of_sled_that_fails_or_hangs_is_told_to_all() {
    within(LATE, || told_of_sled(Effect::Errno(libc::EIO), Duration::from_secs(30)));
    within(LATE, || told_of_sled(Effect::Hang, Duration::from_secs(1)));
}

/// The machine's clock, which panics in the thread that writes the journal once it is told to.
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
fn a_panic_in_the_thread_that_syncs_is_told_to_all() {
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
