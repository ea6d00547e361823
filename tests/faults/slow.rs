//! Tests of a slow disk that works: no call hangs, and the engine is not poisoned.

use std::path::Path;
use std::thread;
use std::time::Duration;

use oncekey::{Engine, EngineOptions, Manager, Value};

use crate::inject::{Call, Effect, Injected, Rule};
use crate::threads::{LATE, within};

/// Returns the number of times that each value is written. With unbounded writes in sled, 120 times always made sled
/// hang.
fn times() -> u8 {
    std::env::var("ONCEKEY_LARGE_VALUES").map_or(12, |text| text.parse().unwrap())
}

fn options() -> EngineOptions {
    Engine::options().sync_timeout(Duration::from_secs(5))
}

/// Slows down sled's writes.
fn slow(dir: &Path) -> Injected {
    let path = dir.join("store/sled/db").to_string_lossy().into_owned();
    Rule { path, call: Call::Write, nth: 1, times: u64::MAX, effect: Effect::Slow(Duration::from_millis(15)) }.inject()
}

/// Large values are overwritten and removed. This made sled hang, and with it all engines of the process.
#[test]
fn large_values_of_two_engines_do_not_hang_sled() {
    let times = times();
    within(LATE * u32::from(1 + times / 40), move || {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let value = |n: u8| Value::from(vec![n; 1_000_000]);
        thread::scope(|scope| {
            for dir in &dirs {
                scope.spawn(move || {
                    let engine = &options().open(dir.path()).unwrap();
                    let slow = slow(dir.path());
                    thread::scope(|scope| {
                        scope.spawn(move || {
                            let table = engine.table("t").unwrap();
                            (0..times).for_each(|n| table.insert("big", value(n)).unwrap());
                        });
                        let ops: &Manager<Value> = &engine.manager("ops").unwrap();
                        for n in 0..times {
                            ops.execute("job", |_| Ok(value(n))).unwrap();
                            assert!(ops.remove("job").unwrap());
                        }
                    });
                    engine.clone().close().unwrap();
                    assert!(slow.hits() > 0);
                });
            }
        });
        // The shared threads have no work left.
        for dir in &dirs {
            let engine = options().open(dir.path()).unwrap();
            assert_eq!(engine.table("t").unwrap().get("big").unwrap().unwrap(), value(times - 1));
        }
    });
}
