//! Limits on the number of waiting threads, for one key and for all keys.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use crate::sync::{Mutex, RandomState};

/// Counts waiting threads, so that the waiters of one key cannot take all threads of a pool.
pub(crate) struct WaitLimit<K> {
    per_key: usize,
    in_all: usize,
    waiting: Mutex<Waiting<K>>,
}

struct Waiting<K> {
    /// Contains a key only while a thread waits for it.
    by_key: HashMap<K, usize, RandomState>,
    in_all: usize,
}

impl<K: Eq + Hash + Clone> WaitLimit<K> {
    pub(crate) fn new(per_key: usize, in_all: usize) -> Self {
        let waiting = Waiting { by_key: HashMap::with_hasher(RandomState::new()), in_all: 0 };
        Self { per_key, in_all, waiting: Mutex::new(waiting) }
    }

    /// Counts one more waiting thread until the returned value is dropped. Returns `None` if a limit is reached.
    pub(crate) fn admit(&self, key: &K) -> Option<Admitted<'_, K>> {
        let mut waiting = self.waiting.lock();
        let of_key = waiting.by_key.get(key).copied().unwrap_or_default();
        if of_key >= self.per_key || waiting.in_all >= self.in_all {
            return None;
        }
        waiting.by_key.insert(key.clone(), of_key + 1);
        waiting.in_all += 1;
        Some(Admitted { limit: self, key: key.clone() })
    }
}

impl<K> fmt::Debug for WaitLimit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitLimit")
            .field("per_key", &self.per_key)
            .field("in_all", &self.in_all)
            .finish_non_exhaustive()
    }
}

/// The right of one thread to wait.
#[must_use = "dropping it ends the wait"]
pub(crate) struct Admitted<'a, K: Eq + Hash> {
    limit: &'a WaitLimit<K>,
    key: K,
}

impl<K: Eq + Hash> Drop for Admitted<'_, K> {
    fn drop(&mut self) {
        let mut waiting = self.limit.waiting.lock();
        waiting.in_all = waiting.in_all.saturating_sub(1);
        let Some(of_key) = waiting.by_key.get_mut(&self.key) else { return };
        *of_key = of_key.saturating_sub(1);
        if *of_key == 0 {
            waiting.by_key.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::WaitLimit;

    #[test]
    fn the_limits_per_key_and_in_all_are_kept() {
        let limit = WaitLimit::new(2, 3);
        let (first, second) = (limit.admit(&1), limit.admit(&1));
        assert!(first.is_some() && second.is_some() && limit.admit(&1).is_none());
        let third = limit.admit(&2);
        assert!(third.is_some() && limit.admit(&2).is_none() && limit.admit(&3).is_none());
        drop(first);
        assert!(limit.admit(&1).is_some() && limit.admit(&3).is_some());
        drop((second, third));
        assert!(limit.waiting.lock().by_key.is_empty(), "a key without waiters is removed");
        assert_eq!(limit.waiting.lock().in_all, 0);
    }

    #[test]
    fn a_limit_of_zero_admits_no_thread() {
        assert!(WaitLimit::new(0, 9).admit(&1).is_none());
        assert!(WaitLimit::new(9, 0).admit(&1).is_none());
    }

    #[test]
    fn concurrent_threads_are_counted_exactly() {
        let (limit, start) = (WaitLimit::new(3, 5), Barrier::new(8));
        for _ in 0..50 {
            let held = thread::scope(|scope| {
                let one = |key| (start.wait(), limit.admit(&key)).1;
                let threads: Vec<_> = (0..8).map(|nth| scope.spawn(move || one(nth % 2))).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(held.len(), 5);
            assert!([0, 1].iter().all(|key| held.iter().filter(|admitted| admitted.key == *key).count() <= 3));
        }
    }
}
