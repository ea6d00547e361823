//! Tests that set the machine's wall clock while a store is open and while it is closed.
#![allow(unsafe_code, reason = "interposing libc cannot be done without")]

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use libc::{c_int, clockid_t, timespec};
use oncekey::{Engine, Manager, ManagerOptions};

/// The error of this process's wall clock in seconds.
static WRONG_BY: AtomicI64 = AtomicI64::new(0);

/// std reads the wall clock here. The boot clock is read from the kernel, and no test sets it.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: the arguments are the caller's.
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
fn a_wall_clock_step_of_a_day_does_not_move_an_expiry() {
    let before = SystemTime::now();
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(dir.path()).unwrap();
    manager(&engine, Duration::from_secs(3600)).execute("hour", |_| Ok(1)).unwrap();
    for (n, step) in [DAY, -DAY, -DAY, DAY, 3 * DAY, -3 * DAY].into_iter().enumerate() {
        // Set the clock while the store is open, and while it is closed.
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
        // Read the record before the clock, so that it is not the older of both.
        while is_there(&engine, &brief) {
            assert!(began.elapsed() < Duration::from_secs(60), "step {n}: it stays");
            std::thread::yield_now();
        }
        assert!(began.elapsed() >= ttl, "step {n}: {:?}", began.elapsed());
    }
    assert_eq!(WRONG_BY.load(Ordering::Relaxed), 0);
    assert!(SystemTime::now() >= before);
}
