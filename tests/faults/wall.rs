//! The wall clock of the machine is set while a store is open and while it is closed.
#![allow(unsafe_code, reason = "interposing libc cannot be done without")]

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use libc::{c_int, clockid_t, timespec};
use oncekey::{Engine, Manager, ManagerOptions};

/// By how many seconds the wall clock of this process is wrong.
static WRONG_BY: AtomicI64 = AtomicI64::new(0);

/// std asks here for the wall clock. The time since boot is asked of the kernel, and nobody sets that.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: as the caller was given them.
    let returned = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if clock == libc::CLOCK_REALTIME && returned == 0 {
        // SAFETY: the kernel has just written it.
        unsafe { (*time).tv_sec += WRONG_BY.load(Ordering::Relaxed) };
    }
    c_int::try_from(returned).unwrap_or(-1)
}

const DAY: i64 = 86_400;

fn manager(engine: &Engine, ttl: Duration) -> Manager<u64> {
    engine.manager_with("m", ManagerOptions::new().success_ttl(ttl)).unwrap()
}

fn is_there(engine: &Engine, key: &str) -> bool {
    manager(engine, Duration::from_secs(3600)).get(key).unwrap().is_some()
}

#[test]
fn a_wall_clock_set_by_a_day_expires_nothing_early_and_keeps_nothing_longer() {
    let before = SystemTime::now();
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(dir.path()).unwrap();
    manager(&engine, Duration::from_secs(3600)).execute("hour", |_| Ok(1)).unwrap();
    for (n, step) in [DAY, -DAY, -DAY, DAY, 3 * DAY, -3 * DAY].into_iter().enumerate() {
        // While it is open, and while it is not.
        if n % 2 == 0 {
            let before = SystemTime::now();
            WRONG_BY.fetch_add(step, Ordering::Relaxed);
            assert_eq!(SystemTime::now() > before, step > 0, "the clock was not set");
            assert!(is_there(&engine, "hour"), "step {n}");
        }
        let brief = format!("brief-{n}");
        let ttl = Duration::from_millis(200);
        let began = Instant::now();
        manager(&engine, ttl).execute(&brief, |_| Ok(1)).unwrap();
        engine.close().unwrap();
        if n % 2 == 1 {
            WRONG_BY.fetch_add(step, Ordering::Relaxed);
        }
        engine = Engine::open(dir.path()).unwrap();
        assert!(is_there(&engine, "hour"), "step {n}");
        // Looked at before the clock is, so that it is not older than that.
        while is_there(&engine, &brief) {
            assert!(began.elapsed() < Duration::from_secs(60), "step {n}: it stays");
            std::thread::yield_now();
        }
        assert!(began.elapsed() >= ttl, "step {n}: {:?}", began.elapsed());
    }
    assert_eq!(WRONG_BY.load(Ordering::Relaxed), 0);
    assert!(SystemTime::now() >= before);
}
