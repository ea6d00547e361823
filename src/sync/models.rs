//! The primitives on top of shuttle's scheduler, and the functions that run models.
//!
//! The primitives behave as those of `parking_lot`: no poison, no spurious wake-up, and notifications in order of
//! arrival. A deadline may pass at any moment, because the scheduler chooses when the task that sets the time-out runs.
//! A deadline more than a day ahead never passes.
//!
//! Atomics are sequentially consistent here. A model does not show that weaker orders suffice.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use shuttle::future::batch_semaphore::{BatchSemaphore, Fairness};
use shuttle::rand::Rng;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};
pub(crate) use shuttle::{sync::atomic, thread};

use atomic::{AtomicBool, Ordering};

/// A hasher that is the same in every run. Otherwise a schedule could not be replayed.
pub(crate) type RandomState = BuildHasherDefault<DefaultHasher>;

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// `None` during a wait.
    held: Option<shuttle::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = match self.0.try_lock() {
            Ok(held) => held,
            Err(std::sync::TryLockError::Poisoned(held)) => held.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard { mutex: self, held: Some(held) })
    }

    /// Locks, or gives up at the deadline. A random choice decides at the start: give up without a wait, or wait for
    /// ever, so that a time-out cannot hide a deadlock.
    pub(crate) fn try_lock_until(&self, deadline: Instant) -> Option<MutexGuard<'_, T>> {
        let waits = !may_pass(deadline) || shuttle::rand::thread_rng().r#gen();
        if waits { Some(self.lock()) } else { self.try_lock() }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.try_lock().is_none()
    }
}

impl<T> MutexGuard<'_, T> {
    pub(crate) fn unlock_fair(guard: Self) {
        drop(guard);
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("held outside of waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("held outside of waits")
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar {
    queue: Arc<Queue>,
    /// Read at points where the scheduler may run other tasks.
    step: AtomicBool,
}

/// The lock of this queue is never held across a step of the scheduler.
type Queue = std::sync::Mutex<VecDeque<Arc<Stay>>>;

/// One wait. A notification or the passing of its deadline takes it out of the queue and wakes it.
#[derive(Debug)]
struct Stay {
    woken: BatchSemaphore,
    timed_out: std::sync::atomic::AtomicBool,
}

pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notify_one(&self) {
        self.step.load(Ordering::SeqCst);
        let first = self.queue.lock().unwrap().pop_front();
        first.into_iter().for_each(|stay| stay.woken.release(1));
    }

    pub(crate) fn notify_all(&self) {
        self.step.load(Ordering::SeqCst);
        let all = std::mem::take(&mut *self.queue.lock().unwrap());
        all.into_iter().for_each(|stay| stay.woken.release(1));
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_or(guard, |_| ());
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        let stay = self.wait_or(guard, |stay| {
            if may_pass(deadline) {
                let (queue, stay) = (Arc::clone(&self.queue), Arc::clone(stay));
                thread::spawn(move || time_out(&queue, &stay));
            }
        });
        WaitTimeoutResult(stay.timed_out.load(Ordering::SeqCst))
    }

    fn wait_or<T>(&self, guard: &mut MutexGuard<'_, T>, meanwhile: impl FnOnce(&Arc<Stay>)) -> Arc<Stay> {
        self.step.load(Ordering::SeqCst);
        let stay = Arc::new(Stay {
            woken: BatchSemaphore::new(0, Fairness::StrictlyFair),
            timed_out: std::sync::atomic::AtomicBool::new(false),
        });
        self.queue.lock().unwrap().push_back(Arc::clone(&stay));
        meanwhile(&stay);
        drop(guard.held.take());
        stay.woken.acquire_blocking(1).expect("never closed");
        guard.held = guard.mutex.lock().held;
        stay
    }
}

/// Times out a wait, after a random number of steps.
fn time_out(queue: &Queue, stay: &Arc<Stay>) {
    for _ in 0..*[0, 4, 16].get(shuttle::rand::thread_rng().gen_range(0..3)).unwrap_or(&0) {
        thread::yield_now();
    }
    let mut queue = queue.lock().unwrap();
    let place = queue.iter().position(|other| Arc::ptr_eq(other, stay));
    let waits = place.and_then(|place| queue.remove(place));
    drop(queue);
    if let Some(stay) = waits {
        stay.timed_out.store(true, Ordering::SeqCst);
        stay.woken.release(1);
    }
}

#[expect(clippy::disallowed_methods, reason = "the primitives are below the clock")]
fn may_pass(deadline: Instant) -> bool {
    deadline < Instant::now() + Duration::from_secs(86_400)
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> shuttle::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock whose initializers take no step of the scheduler.
#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    cell: std::sync::OnceLock<T>,
    step: AtomicBool,
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self { cell: std::sync::OnceLock::new(), step: AtomicBool::default() }
    }
}

impl<T> OnceLock<T> {
    fn cell(&self) -> &std::sync::OnceLock<T> {
        self.step.load(Ordering::SeqCst);
        &self.cell
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.cell().get()
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.cell().set(value)
    }

    pub(crate) fn get_or_init(&self, f: impl FnOnce() -> T) -> &T {
        self.cell().get_or_init(f)
    }
}

/// A deadline that never passes.
pub(crate) const NEVER: Duration = Duration::MAX;
/// A deadline that may pass at any moment.
pub(crate) const ANY_TIME: Duration = Duration::from_secs(1);

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Returns the number of schedules for each kind of scheduler.
fn schedules() -> usize {
    number("ONCEKEY_SCHEDULES").unwrap_or(100)
}

fn seed() -> u64 {
    number("ONCEKEY_SEED").unwrap_or(1) as u64
}

fn run(scheduler: impl Scheduler + 'static, shown: FailurePersistence, model: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.failure_persistence = shown;
    config.silence_warnings = true;
    config.stack_size = 1 << 17;
    Runner::new(scheduler, config).run(model);
}

/// Asserts that the model succeeds under every tried schedule: random ones, and ones with few changes of priority.
pub(crate) fn holds(model: impl Fn() + Send + Sync + Copy + 'static) {
    if let Ok(schedule) = std::env::var("ONCEKEY_SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(&schedule), FailurePersistence::None, model);
    }
    run(RandomScheduler::new_from_seed(seed(), schedules()), FailurePersistence::Print, model);
    for load in [2, 4] {
        run(PctScheduler::new_from_seed(seed(), load, schedules() / 2), FailurePersistence::Print, model);
    }
}

/// Asserts that the model, with a fault in it, fails in this way under one of many schedules.
#[track_caller]
pub(crate) fn fails(model: impl Fn() + Send + Sync + Copy + 'static, how: &str) {
    const TRIED: usize = 5_000;
    if std::env::var_os("ONCEKEY_SCHEDULE").is_some() {
        return;
    }
    let tried = Arc::new(AtomicUsize::new(0));
    let schedulers: [Box<dyn Scheduler + Send>; 3] = [
        Box::new(RandomScheduler::new_from_seed(seed(), TRIED)),
        Box::new(PctScheduler::new_from_seed(seed(), 2, TRIED)),
        Box::new(PctScheduler::new_from_seed(seed(), 4, TRIED)),
    ];
    let failed = schedulers.into_iter().find_map(|scheduler| {
        let count = Arc::clone(&tried);
        let counted = move || {
            count.fetch_add(1, Ordering::SeqCst);
            model();
        };
        catch_unwind(AssertUnwindSafe(|| run(scheduler, FailurePersistence::None, counted))).err()
    });
    let payload = failed.expect("no schedule showed the fault");
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    assert!(text.contains(how), "not {how}: {text}");
    println!("schedule {} showed: {how}", tried.load(Ordering::SeqCst));
}

/// Asserts as [`holds`] does, but under every possible schedule. For the smallest models, without deadlines that pass.
pub(crate) fn always_holds(model: impl Fn() + Send + Sync + Copy + 'static) {
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    let counted = move || {
        count.fetch_add(1, Ordering::SeqCst);
        model();
    };
    run(DfsScheduler::new(None, false), FailurePersistence::Print, counted);
    println!("{} schedules, all there are", tried.load(Ordering::SeqCst));
}
