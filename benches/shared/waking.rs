//! Measures the time from the ending of a claim until its last waiter has the answer, compared with a bare condition
//! variable.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Begin, Manager, Waited};
use parking_lot::{Condvar, Mutex};

use super::{VALUE, key};

const STACK: usize = 64 << 10;
const LONG: Duration = Duration::from_secs(600);

/// Lets threads wait for one event. Returns the time from `wake` until the last thread is back. `is_parked` returns
/// true if all of them wait.
fn woken(waiters: usize, wait: impl Fn() + Sync, is_parked: impl Fn() -> bool, wake: impl FnOnce()) -> Duration {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..waiters)
            .map(|_| std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, &wait).unwrap())
            .collect();
        while !is_parked() {
            std::thread::yield_now();
        }
        let began = Instant::now();
        wake();
        for thread in threads {
            thread.join().unwrap();
        }
        began.elapsed()
    })
}

pub(crate) fn oncekey(manager: &Manager<Vec<u8>, String>, number: u64, waiters: usize) -> Duration {
    let Begin::Claimed(claim) = manager.begin(key(number)).unwrap() else { unreachable!("a new key") };
    let wait = || assert!(matches!(manager.wait(key(number), LONG), Ok(Waited::Finished(_))));
    let is_parked = || manager.engine().stats().waiting == waiters as u64;
    woken(waiters, wait, is_parked, || drop(claim.succeed(&VALUE.to_vec()).unwrap()))
}

pub(crate) fn bare(waiters: usize) -> Duration {
    let (ended, condvar, parked) = (Mutex::new(false), Condvar::new(), AtomicUsize::new(0));
    let wait = || {
        let mut ended = ended.lock();
        parked.fetch_add(1, Ordering::Relaxed);
        while !*ended {
            condvar.wait(&mut ended);
        }
    };
    let is_parked = || parked.load(Ordering::Relaxed) == waiters && !ended.is_locked();
    woken(waiters, wait, is_parked, || {
        *ended.lock() = true;
        condvar.notify_all();
    })
}
