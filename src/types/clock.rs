//! The one place where time is read: wall clock, boot clock, store time, and deadlines of waits.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// A TTL that never ends.
pub const FOREVER: Duration = Duration::MAX;

/// The store time "never".
pub(crate) const NEVER: u64 = u64::MAX;

/// The source of time of an engine.
///
/// TTLs are measured by [`boot`](Clock::boot), so steps of the wall clock have no effect on them. The wall clock serves
/// two purposes: it is shown to people, and it bounds how much time counts between two opens.
pub trait Clock: Debug + Send + Sync {
    /// Returns the time of the wall clock.
    fn wall(&self) -> SystemTime;

    /// Returns the time since the machine booted, including time in suspend.
    ///
    /// Returns `None` if there is no such clock. In that case forward steps of the wall clock count as time.
    fn boot(&self) -> Option<BootTime> {
        None
    }

    /// Returns true if the clock stands still until a test moves it.
    ///
    /// With such a clock there is no background compaction: only [`compact_now`](crate::Engine::compact_now) deletes
    /// expired records.
    fn is_manual(&self) -> bool {
        false
    }
}

/// The time since boot, with an id of that boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootTime {
    /// An id that is different for each boot.
    pub id: [u8; 16],
    /// The time since that boot.
    pub elapsed: Duration,
}

/// The clocks of the operating system.
///
/// The wall clock is `CLOCK_REALTIME`. On Linux, the boot clock is `CLOCK_BOOTTIME` with the kernel's boot id. On other
/// systems, the boot clock is the monotonic clock, and each process counts as a boot of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn boot(&self) -> Option<BootTime> {
        system_boot()
    }
}

#[cfg(target_os = "linux")]
fn system_boot() -> Option<BootTime> {
    static ID: OnceLock<Option<[u8; 16]>> = OnceLock::new();
    let id = *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        uuid::Uuid::parse_str(text.trim()).ok().map(uuid::Uuid::into_bytes)
    });
    // Without the kernel's id, each process counts as a boot of its own. Records can then expire late, but never early.
    let id = id.unwrap_or_else(process_id);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let elapsed = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
    Some(BootTime { id, elapsed })
}

#[cfg(not(target_os = "linux"))]
fn system_boot() -> Option<BootTime> {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(monotonic);
    Some(BootTime { id: process_id(), elapsed: monotonic().saturating_duration_since(start) })
}

/// Returns an id of this process, for use as a boot id. The start time is part of it, because process ids are used
/// again.
fn process_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        let started = SystemClock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        ((started.as_nanos() << 32) | u128::from(std::process::id())).to_le_bytes()
    })
}

/// A clock for tests that stands still until it is moved. Clones share the time.
///
/// ```
/// # use oncekey::{Engine, clock::ManualClock};
/// # use std::time::Duration;
/// let clock = ManualClock::new();
/// let engine = Engine::options().clock(clock.clone()).temporary()?;
/// clock.advance(Duration::from_secs(86_400));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Manual>>);

#[derive(Debug)]
struct Manual {
    wall: SystemTime,
    boot: BootTime,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl ManualClock {
    /// Creates a clock at 2020-01-01 00:00 UTC, one hour after boot.
    #[must_use]
    pub fn new() -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_836_800);
        let boot = BootTime { id: [0; 16], elapsed: Duration::from_secs(3600) };
        Self(Arc::new(Mutex::new(Manual { wall, boot })))
    }

    /// Advances the wall clock and the boot clock.
    pub fn advance(&self, by: Duration) {
        self.with(|now| {
            now.wall = now.wall.checked_add(by).unwrap_or(now.wall);
            now.boot.elapsed = now.boot.elapsed.saturating_add(by);
        });
    }

    /// Sets the wall clock only, as an operator or NTP would.
    pub fn set_wall(&self, to: SystemTime) {
        self.with(|now| now.wall = to);
    }

    /// Simulates a reboot: changes the boot id and restarts the boot clock at zero. The wall clock keeps its time.
    pub fn reboot(&self) {
        self.with(|now| {
            let id = u128::from_le_bytes(now.boot.id).wrapping_add(1);
            now.boot = BootTime { id: id.to_le_bytes(), elapsed: Duration::ZERO };
        });
    }

    fn with<R>(&self, f: impl FnOnce(&mut Manual) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> SystemTime {
        self.with(|now| now.wall)
    }

    fn boot(&self) -> Option<BootTime> {
        Some(self.with(|now| now.boot))
    }

    fn is_manual(&self) -> bool {
        true
    }
}

/// Returns the time of the monotonic clock, which is used for waits only.
#[expect(clippy::disallowed_methods, reason = "the one place where the monotonic clock is read")]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

/// Returns the deadline of a wait that starts now. `None` means no deadline: the timeout is too large for an `Instant`.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    monotonic().checked_add(timeout)
}

/// Converts to milliseconds. Rounds up, so that nothing expires early. [`FOREVER`] becomes [`NEVER`].
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(NEVER)
}

pub(crate) fn wall_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(NEVER)
}

pub(crate) fn wall_time(millis: u64) -> SystemTime {
    // If the platform's `SystemTime` ends earlier, return the epoch: this value is only displayed.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A reading of store time, wall clock and boot clock at one moment. Each journal group contains one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// Store time in milliseconds.
    pub(crate) store: u64,
    /// Wall clock in milliseconds since 1970.
    pub(crate) wall: u64,
    pub(crate) boot_id: [u8; 16],
    /// Time since boot in milliseconds.
    pub(crate) boot: u64,
}

/// The clock that measures TTLs, in milliseconds. Store time never goes back, neither across restarts nor at steps of
/// the wall clock.
///
/// An early expiry runs an operation twice; a late one costs some bytes. So in any doubt this clock counts less time,
/// not more.
#[derive(Debug)]
pub(crate) struct StoreClock {
    clock: Arc<dyn Clock>,
    base: u64,
    origin: Origin,
    highest: AtomicU64,
}

#[derive(Debug)]
enum Origin {
    Boot(BootTime),
    /// Wall milliseconds.
    Wall(u64),
}

impl StoreClock {
    /// Continues from the last anchor `found` in the store.
    ///
    /// Within the same boot, the time since the anchor is the smaller of wall time and boot time. After a reboot, it is
    /// the wall time, at most `max_offline`.
    pub(crate) fn start(clock: Arc<dyn Clock>, found: Anchor, max_offline: Duration) -> Self {
        let wall = wall_millis(clock.wall());
        let boot = clock.boot();
        let wall_delta = wall.saturating_sub(found.wall);
        let passed = match boot {
            // Round up as `anchor` does. Otherwise a restart within the same millisecond would look like another boot.
            Some(now) if now.id == found.boot_id && millis(now.elapsed) >= found.boot => {
                wall_delta.min(duration_millis(now.elapsed).saturating_sub(found.boot))
            }
            // Another boot, another time namespace, or no boot clock.
            _ => wall_delta.min(duration_millis(max_offline)),
        };
        let base = found.store.saturating_add(passed).min(NEVER - 1);
        let origin = boot.map_or(Origin::Wall(wall), Origin::Boot);
        Self { clock, base, origin, highest: AtomicU64::new(base) }
    }

    /// Returns the store time in milliseconds.
    pub(crate) fn now(&self) -> u64 {
        let passed = match &self.origin {
            Origin::Boot(start) => self
                .clock
                .boot()
                .filter(|now| now.id == start.id)
                .map_or(0, |now| duration_millis(now.elapsed.saturating_sub(start.elapsed))),
            Origin::Wall(start) => wall_millis(self.clock.wall()).saturating_sub(*start),
        };
        // Stay below `NEVER`: otherwise a faulty clock could expire records that never expire.
        let now = self.base.saturating_add(passed).min(NEVER - 1);
        self.highest.fetch_max(now, Ordering::Relaxed).max(now)
    }

    pub(crate) fn wall(&self) -> u64 {
        wall_millis(self.clock.wall())
    }

    pub(crate) fn is_manual(&self) -> bool {
        self.clock.is_manual()
    }

    pub(crate) fn anchor(&self) -> Anchor {
        // Read store time before the other clocks, and round these up. Time that passes in between is then lost, not
        // counted twice.
        let store = self.now();
        let boot = self.clock.boot().unwrap_or(BootTime { id: [0; 16], elapsed: Duration::ZERO });
        let wall = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Anchor { store, wall: millis(wall), boot_id: boot.id, boot: millis(boot.elapsed) }
    }
}

fn duration_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn start(clock: &ManualClock, found: Anchor, max_offline: Duration) -> StoreClock {
        StoreClock::start(Arc::new(clock.clone()), found, max_offline)
    }

    #[test]
    fn steps_of_the_wall_clock_have_no_effect() {
        let clock = ManualClock::new();
        let store = start(&clock, Anchor::default(), Duration::ZERO);
        let before = store.now();
        clock.set_wall(clock.wall() + DAY);
        assert_eq!(store.now(), before);
        clock.set_wall(SystemTime::UNIX_EPOCH);
        assert_eq!(store.now(), before);
        clock.advance(Duration::from_millis(7));
        assert_eq!(store.now(), before + 7);
    }

    #[test]
    fn within_one_boot_the_smaller_of_wall_and_boot_time_counts() {
        let clock = ManualClock::new();
        let anchor = start(&clock, Anchor::default(), Duration::ZERO).anchor();
        clock.advance(Duration::from_millis(50));
        assert_eq!(start(&clock, anchor, Duration::ZERO).now(), anchor.store + 50);
        clock.set_wall(SystemTime::UNIX_EPOCH);
        assert_eq!(start(&clock, anchor, Duration::ZERO).now(), anchor.store);
    }

    #[test]
    fn after_a_reboot_wall_time_counts_up_to_max_offline() {
        let clock = ManualClock::new();
        let anchor = start(&clock, Anchor::default(), Duration::ZERO).anchor();
        clock.reboot();
        clock.set_wall(clock.wall() + DAY);
        assert_eq!(start(&clock, anchor, Duration::ZERO).now(), anchor.store);
        assert_eq!(start(&clock, anchor, Duration::from_secs(5)).now(), anchor.store + 5000);
        assert_eq!(start(&clock, anchor, 2 * DAY).now(), anchor.store + 86_400_000);
    }

    /// A small random number generator, so that a seed names a sequence.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }

        /// Returns up to 6.4 days. The exponent is uniform, so small and large times are equally likely.
        fn time(&mut self) -> Duration {
            let exponent = self.below(40);
            Duration::from_micros(self.below((1 << exponent) + 1))
        }
    }

    /// The time that really passed, and the allowed errors of store time.
    #[derive(Default)]
    struct Truth {
        passed: Duration,
        may_be_early: Duration,
        may_be_late: Duration,
    }

    /// Runs 50 random steps: time passes, the wall clock is set, the store is opened again, the machine reboots. Checks
    /// the bounds after each step. Takes anchors at random, as written groups would.
    fn live(seed: u64, max_offline: Duration) {
        let mut dice = Dice(seed);
        let clock = ManualClock::new();
        let mut truth = Truth::default();
        let mut store = start(&clock, Anchor::default(), max_offline);
        let began = store.now();
        let (mut anchor, mut since_anchor) = (store.anchor(), Duration::ZERO);
        // The error of the wall clock in microseconds: the sum of all steps since the anchor.
        let mut set_by: i128 = 0;
        for step in 0..50 {
            let time = dice.time();
            match dice.below(6) {
                0 | 1 => {
                    clock.advance(time);
                    truth.passed += time;
                    since_anchor += time;
                }
                2 => {
                    let forward = dice.below(2) == 0;
                    let to = if forward { clock.wall() + time } else { clock.wall() - time };
                    clock.set_wall(to);
                    let micros = i128::try_from(time.as_micros()).unwrap();
                    set_by += if forward { micros } else { -micros };
                }
                3 => (anchor, since_anchor, set_by) = (store.anchor(), Duration::ZERO, 0),
                4 => {
                    // Closed for a while within one boot: time by which the wall clock was set back does not count.
                    clock.advance(time);
                    truth.passed += time;
                    let lost = u64::try_from((-set_by).max(0)).unwrap();
                    truth.may_be_late += Duration::from_micros(lost) + Duration::from_millis(3);
                    store = start(&clock, anchor, max_offline);
                    (anchor, since_anchor, set_by) = (store.anchor(), Duration::ZERO, 0);
                }
                _ => {
                    // Off during a reboot: wall time since the anchor counts, up to the limit.
                    clock.advance(time);
                    clock.reboot();
                    truth.passed += time;
                    let error = Duration::from_micros(u64::try_from(set_by.max(0)).unwrap());
                    truth.may_be_early += error.min(max_offline);
                    truth.may_be_late += since_anchor + time + Duration::from_millis(3);
                    store = start(&clock, anchor, max_offline);
                    (anchor, since_anchor, set_by) = (store.anchor(), Duration::ZERO, 0);
                }
            }
            let shown = Duration::from_millis(store.now() - began);
            assert!(
                shown <= truth.passed + truth.may_be_early,
                "seed {seed}, step {step}: early, {shown:?} of {:?}",
                truth.passed
            );
            let late = truth.may_be_late + Duration::from_millis(3);
            assert!(shown + late >= truth.passed, "seed {seed}, step {step}: late, {shown:?} of {:?}", truth.passed);
        }
    }

    #[test]
    fn random_clock_steps_keep_store_time_within_its_bounds() {
        for seed in 0..1000 {
            live(seed, Duration::ZERO);
            live(seed, Duration::from_secs(3600));
        }
    }

    #[test]
    fn store_time_stays_below_never() {
        let found = Anchor { store: NEVER - 3, ..Anchor::default() };
        let clock = ManualClock::new();
        let store = start(&clock, found, Duration::ZERO);
        clock.advance(DAY);
        assert_eq!(store.now(), NEVER - 1);
    }

    #[test]
    fn milliseconds_round_up_and_forever_saturates() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_millis(3)), 3);
        assert_eq!(millis(FOREVER), NEVER);
    }
}
