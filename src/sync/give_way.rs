//! Background work that gives way to callers.

use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::thread;

/// The number of steps between two offers of the core. If all cores are busy, an offer can cost the thread its time
/// slice, so an offer at every step would slow it down too much.
const STEPS: u32 = 8;

/// Decides whether a background thread gives way to other threads between its small steps.
///
/// If all cores are busy, a caller that wakes up otherwise waits until the time slice of the background thread ends,
/// some milliseconds. By default the thread does not give way.
#[derive(Debug, Default)]
pub(crate) struct GiveWay {
    is_on: AtomicBool,
    steps: AtomicU32,
    /// The number of times that the thread gave way.
    #[cfg(test)]
    pub(crate) turns: AtomicU32,
}

impl GiveWay {
    pub(crate) fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Lets threads that wait for a core run first. Call it after every few microseconds of work, without a lock.
    pub(crate) fn between_steps(&self) {
        let is_turn = self.steps.fetch_add(1, Ordering::Relaxed) % STEPS == 0;
        if is_turn && self.is_on.load(Ordering::Relaxed) {
            #[cfg(test)]
            self.turns.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_gives_way_after_some_steps_if_that_is_on() {
        let give_way = GiveWay::default();
        for (is_on, turns) in [(false, 0), (true, 10), (false, 10)] {
            give_way.set(is_on);
            (0..10 * STEPS).for_each(|_| give_way.between_steps());
            assert_eq!(give_way.turns.load(Ordering::Relaxed), turns);
        }
    }
}
