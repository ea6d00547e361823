//! Every call of the operating system fails once, or from then on for ever: each call of the engine still ends, with an answer
//! that holds or with an error.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use oncekey::{
    BootTime, Clock, Engine, Error, ErrorKind, Manager, ManagerOptions, ManualClock, Resolution, Result, Waited,
};

use crate::inject::{Call, Effect, Rule};
use crate::threads::{LATE, within};

type Ops = Manager<Vec<u8>>;

/// Not reads: sled takes one that fails while it opens for the end of its log.
const CALLS: [Call; 9] = [
    Call::Write,
    Call::Sync,
    Call::SyncRange,
    Call::Truncate,
    Call::Allocate,
    Call::Open,
    Call::Rename,
    Call::Remove,
    Call::CreateDir,
];

/// What a key may hold after the calls that were made: of one that failed, what was before or what it was to make.
#[derive(Debug, Default)]
struct Expected(BTreeMap<String, Vec<Option<Vec<u8>>>>);

impl Expected {
    /// Takes note of a call that makes the key's outcome this, and of what came of it.
    fn note<R>(&mut self, key: &str, outcome: Option<Vec<u8>>, result: Result<R>) -> Result<R> {
        let may_be = self.0.entry(key.to_owned()).or_insert_with(|| vec![None]);
        match &result {
            Ok(_) => *may_be = vec![outcome],
            Err(_) => may_be.push(outcome),
        }
        result
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
        let Ok(claim) = ops.begin(&key)?.into_claim() else { continue };
        expected.note(&key, Some(value.clone()), claim.succeed(&value).map_err(|error| error.error))?;
    }
    Ok(())
}

/// About twenty operations, two opens and closes, which make and recycle segments, checkpoints, pieces and leftovers.
fn script(path: &Path, clock: &ManualClock, expected: &mut Expected) -> Result<()> {
    let engine = open(path, clock)?;
    let ops = self::ops(&engine)?;
    store(&ops, expected)?;
    for n in 0..3 {
        brief(&engine)?.execute(format!("b{n}"), |_| Ok(value(n, 6_000))).map_err(of_execute)?;
    }
    let released = ops.begin("given up")?.into_claim();
    released.map_or(Ok(()), |claim| claim.release().map(drop).map_err(|error| error.error))?;
    drop(ops.begin("dropped")?);
    let held = ops.begin("held")?;
    expected.note("k0", None, ops.remove("k0"))?;
    clock.advance(Duration::from_secs(2));
    engine.compact_now()?;
    drop(held);
    drop(ops);
    engine.close()?;
    let engine = open(path, clock)?;
    let ops = self::ops(&engine)?;
    engine.interrupted()?.try_for_each(|info| info.map(drop))?;
    let settled = ops.resolve("dropped", Resolution::Succeed(value(9, 9)));
    expected.note("dropped", Some(value(9, 9)), settled)?;
    for n in 0..7 {
        ops.get(format!("k{n}"))?;
    }
    engine.sync()?;
    drop(ops);
    engine.close()
}

fn of_execute<T, E>(error: oncekey::ExecuteError<T, E>) -> Error {
    match error {
        oncekey::ExecuteError::Engine(error) => error,
        oncekey::ExecuteError::NotStored { error, .. } => error.error,
        _ => panic!("an answer that does not fit"),
    }
}

/// Whether the rule had an effect, and what the script came to.
fn run(call: Call, nth: u64, times: u64, effect: Effect) -> (bool, Option<ErrorKind>) {
    let dir = tempfile::tempdir().unwrap();
    let (path, clock) = (dir.path().join("store"), ManualClock::new());
    let mut expected = Expected::default();
    let what = format!("{call:?} {nth} x {times}, {effect:?}");
    let rule = Rule { path: dir.path().to_str().unwrap().to_owned(), call, nth, times, effect }.inject();
    let result = script(&path, &clock, &mut expected);
    let hit = rule.hits() > 0;
    drop(rule);
    assert!(hit || result.is_ok(), "{what}: {result:?}");
    let engine = open(&path, &clock).unwrap_or_else(|error| panic!("{what}: {result:?}, and then {error}"));
    let ops = self::ops(&engine).unwrap();
    for (key, may_be) in &expected.0 {
        let found = ops.get(key).unwrap().and_then(oncekey::Record::into_outcome).map(|outcome| outcome.unwrap());
        assert!(may_be.contains(&found), "{what}: {result:?}, and {key} is not as it was answered");
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
                let (hit, kind) = within(LATE, move || run(call, nth, times, effect));
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
}

/// Owners and waiters while the disk fails: all are told, within the time that the options say.
fn all_are_told(path: &str, call: Call, effect: Effect, timeout: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::options().sync_timeout(timeout).open(dir.path()).unwrap();
    let ops: Ops = engine.manager("m").unwrap();
    ops.execute("before", |_| Ok(value(1, 100))).unwrap();
    let claims: Vec<_> = (0..4).map(|n| ops.begin(format!("live-{n}")).unwrap().into_claim().unwrap()).collect();
    let at = dir.path().join(path).to_str().unwrap().to_owned();
    let rule = Rule { path: at, call, nth: 1, times: u64::MAX, effect }.inject();
    let (began, line) = (Instant::now(), &Barrier::new(4));
    thread::scope(|scope| {
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
        for ended in ending {
            assert_eq!(ended.join().unwrap().unwrap_err().kind(), ErrorKind::Poisoned);
        }
        for waited in waiting {
            match waited.join().unwrap() {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Poisoned),
                Ok(answer) => assert!(matches!(answer, Waited::Closed), "{answer:?}"),
            }
        }
    });
    let took = began.elapsed();
    // Twice, and what a machine with other things to do may take.
    assert!(took < timeout * 2 + Duration::from_secs(10), "{took:?}");
    for error in [
        ops.get("before").map(drop).unwrap_err(),
        ops.begin("new").map(drop).unwrap_err(),
        engine.sync().unwrap_err(),
        engine.compact_now().map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }
    drop(ops);
    assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
    // What hung lets the directory go when it comes back.
    drop(rule);
    crate::threads::until("the directory is free", || match Engine::open(dir.path()) {
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
        within(LATE, move || all_are_told("store/journal", call, effect, Duration::from_secs(30)));
    }
}

#[test]
fn a_sync_or_a_write_that_hangs_is_told_to_all_within_the_timeout() {
    for call in [Call::Sync, Call::Write] {
        within(LATE, move || all_are_told("store/journal", call, Effect::Hang, Duration::from_secs(1)));
    }
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
