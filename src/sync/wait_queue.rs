//! Queues of callers that wait for a key to change its owner. *The commit decides; the wait queue only waits.*
//!
//! A sharded table from keys to queues of waiters. A key has an entry only while it has waiters.
//!
//! The order of steps prevents lost wake-ups. A waiter enters (or rejoins), *then* reads the record, *then* parks. A
//! change of the record is committed first and wakes second. So the read sees the change, or the change finds the
//! waiter in the queue.
//!
//! Lock order: first the shard, then the signal. No lock is held while a thread is notified.

use std::array;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutex, RandomState};

/// The number of shards. Callers that wait for different keys rarely share one. A power of two, so that bytes spread
/// evenly.
const SHARDS: usize = 32;

/// The reason why a waiter waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Waits for any change.
    Observer,
    /// Waits to take over the key.
    Successor,
}

/// The reason why [`Waiter::park`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Woken {
    /// The record changed, and all waiters were woken. Read it again.
    Changed,
    /// The owner gave up the key, and only this successor was woken.
    HandedOver,
    /// The deadline passed. The waiter is still in the queue.
    TimedOut,
    /// The queue is closed.
    Closed,
}

/// The signal of one stay in a queue. A signal is first removed from the queue and then set, each at most once.
#[derive(Default)]
struct Signal {
    signalled: Mutex<Option<Woken>>,
    notified: Condvar,
}

impl Signal {
    fn wake(&self, woken: Woken) {
        *self.signalled.lock() = Some(woken);
        self.notified.notify_one();
    }

    fn is_hand_over(&self) -> bool {
        *self.signalled.lock() == Some(Woken::HandedOver)
    }
}

/// Waiters by place. A map, because with thousands of time-outs a search through a list would be slow.
type Waiters = BTreeMap<u64, Arc<Signal>>;

#[derive(Default)]
struct Queue {
    observers: Waiters,
    successors: Waiters,
    /// The places of successors that were handed the key, and have neither claimed it nor passed it on.
    handed_over: BTreeSet<u64>,
}

impl Queue {
    fn waiters(&mut self, role: Role) -> &mut Waiters {
        match role {
            Role::Observer => &mut self.observers,
            Role::Successor => &mut self.successors,
        }
    }

    fn len(&self) -> usize {
        self.observers.len() + self.successors.len()
    }

    /// Returns true if there is a successor that will take the key when it is free.
    fn has_successor(&self) -> bool {
        !self.successors.is_empty() || !self.handed_over.is_empty()
    }

    fn wake(self, woken: Woken) {
        for signal in self.successors.values().chain(self.observers.values()) {
            signal.wake(woken);
        }
    }
}

struct Shard<K> {
    queues: HashMap<K, Queue>,
    last_place: u64,
    closed: bool,
}

impl<K: Eq + Hash + Clone> Shard<K> {
    /// Adds a waiter at the place that it kept, or at the back.
    fn insert(&mut self, key: &K, role: Role, kept: Option<u64>) -> (u64, Arc<Signal>) {
        self.last_place += 1;
        let place = kept.unwrap_or(self.last_place);
        let signal = Arc::<Signal>::default();
        if self.closed {
            signal.wake(Woken::Closed);
        } else {
            self.queues.entry(key.clone()).or_default().waiters(role).insert(place, Arc::clone(&signal));
        }
        (place, signal)
    }

    /// Hands the key over to the first successor. The caller unlocks the shard, and then notifies the returned signal.
    ///
    /// Removing the successor and setting its signal are one step under the lock. Otherwise a waiter that times out in
    /// between would find itself neither queued nor signalled. Then it would leave, and the hand-over would be lost.
    fn pass_on(&mut self, key: &K) -> Option<Arc<Signal>> {
        let queue = self.queues.get_mut(key)?;
        let (place, successor) = queue.successors.pop_first()?;
        queue.handed_over.insert(place);
        *successor.signalled.lock() = Some(Woken::HandedOver);
        Some(successor)
    }

    /// Removes and returns the observers if no successor is left. Nothing else may happen to the key, so they must read
    /// it now. The caller unlocks the shard, and then notifies them.
    fn observers_alone(&mut self, key: &K) -> Queue {
        match self.queues.get_mut(key) {
            Some(queue) if !queue.has_successor() => {
                Queue { observers: mem::take(&mut queue.observers), ..Queue::default() }
            }
            Some(_) | None => Queue::default(),
        }
    }

    fn forget_if_empty(&mut self, key: &K) {
        if self.queues.get(key).is_some_and(|queue| queue.len() == 0 && queue.handed_over.is_empty()) {
            self.queues.remove(key);
        }
    }
}

/// A table of the callers that wait, by key.
pub(crate) struct WaitQueue<K> {
    hasher: RandomState,
    shards: [Mutex<Shard<K>>; SHARDS - 1],
    /// The last shard, which is not in the array, so that a look-up always succeeds.
    last: Mutex<Shard<K>>,
}

impl<K> Default for WaitQueue<K> {
    fn default() -> Self {
        let shard = || Mutex::new(Shard { queues: HashMap::new(), last_place: 0, closed: false });
        Self { hasher: RandomState::new(), shards: array::from_fn(|_| shard()), last: shard() }
    }
}

impl<K> std::fmt::Debug for WaitQueue<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitQueue").finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone> WaitQueue<K> {
    /// Enters the queue at the back. Read the record again before parking.
    pub(crate) fn enter(&self, key: K, role: Role) -> Waiter<'_, K> {
        let shard = self.shard(&key);
        let (place, signal) = shard.lock().insert(&key, role, None);
        Waiter { shard, key, role, place, signal, saw: None, claimed: false }
    }

    /// Wakes all waiters of the key, after an ending or a removal.
    pub(crate) fn wake_all(&self, key: &K) {
        let queue = self.shard(key).lock().queues.remove(key);
        // Notify after unlocking the shard. If a waiter is gone, nothing is lost, because all are notified.
        if let Some(queue) = queue {
            queue.wake(Woken::Changed);
        }
    }

    /// Hands the key to the first successor, after its owner gave up. The others continue to wait. If there is no
    /// successor, wakes the observers.
    pub(crate) fn hand_over(&self, key: &K) {
        let mut shard = self.shard(key).lock();
        let successor = shard.pass_on(key);
        let observers = shard.observers_alone(key);
        shard.forget_if_empty(key);
        drop(shard);
        if let Some(successor) = successor {
            successor.notified.notify_one();
        }
        observers.wake(Woken::Changed);
    }

    /// Returns true if a successor waits, or has been handed the key and has not begun yet. If the last successor
    /// leaves without the key, the observers are woken.
    pub(crate) fn has_successor(&self, key: &K) -> bool {
        self.shard(key).lock().queues.get(key).is_some_and(Queue::has_successor)
    }

    /// Wakes all current and later waiters with `Closed`. A waiter that was woken before gets it when it rejoins.
    pub(crate) fn close(&self) {
        for shard in self.all() {
            let mut shard = shard.lock();
            shard.closed = true;
            let queues = mem::take(&mut shard.queues);
            drop(shard);
            for queue in queues.into_values() {
                queue.wake(Woken::Closed);
            }
        }
    }

    /// Returns the number of waiters, counted at each call, so that it cannot drift.
    pub(crate) fn waiting(&self) -> usize {
        self.all().map(|shard| shard.lock().queues.values().map(Queue::len).sum::<usize>()).sum()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all().all(|shard| shard.lock().queues.is_empty())
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K>> {
        let [byte, ..] = self.hasher.hash_one(key).to_le_bytes();
        self.shards.get(usize::from(byte) % SHARDS).unwrap_or(&self.last)
    }

    fn all(&self) -> impl Iterator<Item = &Mutex<Shard<K>>> {
        self.shards.iter().chain([&self.last])
    }
}

/// A place in the queue of a key. Drop leaves the queue, and passes on an unused hand-over.
#[must_use = "dropping a waiter leaves the queue"]
pub(crate) struct Waiter<'a, K: Eq + Hash + Clone> {
    shard: &'a Mutex<Shard<K>>,
    key: K,
    role: Role,
    /// The position in the queue, unique: the entry at this place is this waiter.
    place: u64,
    signal: Arc<Signal>,
    /// The value that `park` returned for this stay.
    saw: Option<Woken>,
    claimed: bool,
}

impl<K: Eq + Hash + Clone> Waiter<'_, K> {
    /// Waits until woken or until the deadline. `None` means no deadline.
    ///
    /// After `Changed` and `HandedOver` the waiter is no longer in the queue. Parking again without `rejoin` returns
    /// the same.
    pub(crate) fn park(&mut self, deadline: Option<Instant>) -> Woken {
        let (mut signalled, mut timed_out) = (self.signal.signalled.lock(), false);
        loop {
            if let Some(woken) = *signalled {
                self.saw = Some(woken);
                return woken;
            }
            // Check the time-out after the signal: if both came at once, the signal wins.
            if timed_out {
                return Woken::TimedOut;
            }
            match deadline {
                None => self.signal.notified.wait(&mut signalled),
                Some(deadline) => timed_out = self.signal.notified.wait_until(&mut signalled, deadline).timed_out(),
            }
        }
    }

    /// Enters the queue again. Then read the record again, and park.
    ///
    /// A successor that a newcomer overtook after a hand-over gets its old place. All others go to the back. The old
    /// place is before all that came later, and several overtaken successors keep their order.
    pub(crate) fn rejoin(&mut self) {
        let mut shard = self.shard.lock();
        // After a time-out the waiter is still in the queue.
        if shard.queues.get_mut(&self.key).is_some_and(|q| q.waiters(self.role).contains_key(&self.place)) {
            return;
        }
        let kept = self.signal.is_hand_over().then_some(self.place);
        if let Some(queue) = shard.queues.get_mut(&self.key) {
            queue.handed_over.remove(&self.place);
        }
        // Use a new signal: a `Changed` for the last stay may still be on its way, and would be taken for one of this
        // stay.
        (self.place, self.signal) = shard.insert(&self.key, self.role, kept);
        self.saw = None;
    }

    /// Marks the hand-over as used, because this successor has claimed the key. Its drop then wakes no other waiter.
    ///
    /// Consumes only a hand-over that `park` returned. One that was not seen yet may come from the end of the claim
    /// just made. Passing that one on costs a spurious wake-up; keeping it could lose the only hand-over.
    pub(crate) fn claimed(mut self) {
        if self.saw == Some(Woken::HandedOver) {
            *self.signal.signalled.lock() = None;
        }
        self.claimed = true;
    }
}

impl<K: Eq + Hash + Clone> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        // This waiter is out of the queue and has no hand-over. Skip the lock, because thousands may have been woken at
        // once.
        if self.saw == Some(Woken::Changed) {
            return;
        }
        let mut shard = self.shard.lock();
        if let Some(queue) = shard.queues.get_mut(&self.key) {
            queue.waiters(self.role).remove(&self.place);
            queue.handed_over.remove(&self.place);
        }
        // Hand-overs are given under the shard's lock to queued waiters. So this waiter has its hand-over by now, or
        // never gets one.
        let successor = if self.signal.is_hand_over() { shard.pass_on(&self.key) } else { None };
        // If the last successor leaves without the key, the observers must read the record.
        let leaves = self.role == Role::Successor && !self.claimed;
        let observers = if leaves { shard.observers_alone(&self.key) } else { Queue::default() };
        shard.forget_if_empty(&self.key);
        drop(shard);
        if let Some(successor) = successor {
            successor.notified.notify_one();
        }
        observers.wake(Woken::Changed);
    }
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use super::{Instant, Role, WaitQueue, Waiter, Woken};

    #[expect(clippy::disallowed_methods, reason = "deadlines of tests")]
    fn after(micros: u64) -> Instant {
        Instant::now() + Duration::from_micros(micros)
    }

    /// A deadline that is reached only if a wake-up was lost.
    const LATE: u64 = 60_000_000;

    fn signalled(waiter: &mut Waiter<'_, u32>) -> Woken {
        waiter.park(Some(after(0)))
    }

    fn successors<const N: usize>(wait_queue: &WaitQueue<u32>) -> [Waiter<'_, u32>; N] {
        std::array::from_fn(|_| wait_queue.enter(7, Role::Successor))
    }

    #[test]
    fn hand_overs_go_to_successors_in_order_and_observers_wake_after_the_last() {
        let wait_queue = WaitQueue::default();
        let mut successors = successors::<5>(&wait_queue);
        let mut others = [
            wait_queue.enter(7, Role::Observer),
            wait_queue.enter(7, Role::Observer),
            wait_queue.enter(8, Role::Successor),
        ];
        for round in 0..5 {
            wait_queue.hand_over(&7);
            for (i, successor) in successors.iter_mut().enumerate() {
                assert_eq!(signalled(successor), if i <= round { Woken::HandedOver } else { Woken::TimedOut });
            }
            assert_eq!(others.each_mut().map(signalled), [Woken::TimedOut; 3], "the successors come first");
        }
        for (nth, successor) in successors.into_iter().enumerate() {
            assert!(wait_queue.has_successor(&7));
            drop(successor);
            assert_eq!(signalled(&mut others[0]), if nth == 4 { Woken::Changed } else { Woken::TimedOut });
        }
        let signalled = others.each_mut().map(signalled);
        assert_eq!((signalled, wait_queue.waiting()), ([Woken::Changed, Woken::Changed, Woken::TimedOut], 1));
        let [mut first, second, _other] = others;
        first.rejoin();
        wait_queue.hand_over(&7);
        assert_eq!(first.park(None), Woken::Changed, "no successor takes it over");
        drop((first, second));
        assert!(!wait_queue.has_successor(&7) && wait_queue.has_successor(&8));
    }

    #[test]
    fn an_observer_stays_parked_when_the_successor_claims() {
        let wait_queue = WaitQueue::default();
        let [mut successor] = successors(&wait_queue);
        let mut observer = wait_queue.enter(7, Role::Observer);
        wait_queue.hand_over(&7);
        assert_eq!(successor.park(None), Woken::HandedOver);
        successor.claimed();
        assert_eq!((signalled(&mut observer), wait_queue.has_successor(&7)), (Woken::TimedOut, false));
        wait_queue.wake_all(&7);
        assert_eq!(observer.park(None), Woken::Changed);
    }

    #[test]
    fn rejoin_goes_to_the_back_after_a_change_and_to_the_old_place_after_a_hand_over() {
        let wait_queue = WaitQueue::default();
        let [mut a, mut b, mut c] = successors(&wait_queue);
        wait_queue.wake_all(&7);
        for waiter in [&mut b, &mut c, &mut a] {
            assert_eq!(waiter.park(None), Woken::Changed);
            waiter.rejoin();
        }
        wait_queue.hand_over(&7);
        wait_queue.hand_over(&7);
        assert_eq!([&mut a, &mut b, &mut c].map(signalled), [Woken::TimedOut, Woken::HandedOver, Woken::HandedOver]);
        // Both were overtaken: they go before `a` and keep their order, although `c` rejoins first.
        c.rejoin();
        b.rejoin();
        wait_queue.hand_over(&7);
        assert_eq!([&mut a, &mut b, &mut c].map(signalled), [Woken::TimedOut, Woken::HandedOver, Woken::TimedOut]);
    }

    #[test]
    fn an_unclaimed_hand_over_passes_to_the_next_successor() {
        let wait_queue = WaitQueue::default();
        let [mut dropped, unseen, mut timed_out, mut used, mut last] = successors(&wait_queue);
        wait_queue.hand_over(&7);
        assert_eq!([&mut dropped, &mut timed_out].map(signalled), [Woken::HandedOver, Woken::TimedOut]);
        drop(dropped);
        unseen.claimed();
        drop(timed_out);
        assert_eq!(signalled(&mut used), Woken::HandedOver);
        used.claimed();
        assert_eq!((signalled(&mut last), wait_queue.waiting()), (Woken::TimedOut, 1));
    }

    #[test]
    fn a_panic_passes_the_hand_over_on() {
        let wait_queue = WaitQueue::default();
        let [mut first, mut second] = successors(&wait_queue);
        thread::scope(|scope| {
            let successor = scope.spawn(move || assert_eq!(first.park(None), Woken::Changed, "on purpose"));
            wait_queue.hand_over(&7);
            assert_eq!(second.park(Some(after(LATE))), Woken::HandedOver);
            assert!(successor.join().is_err());
        });
    }

    #[test]
    fn close_wakes_current_and_later_waiters() {
        let wait_queue = WaitQueue::default();
        let [mut turned] = successors(&wait_queue);
        wait_queue.hand_over(&7);
        thread::scope(|scope| {
            for mut waiter in (0..50).map(|key| wait_queue.enter(key, Role::Successor)) {
                scope.spawn(move || assert_eq!(waiter.park(Some(after(LATE))), Woken::Closed));
            }
            wait_queue.close();
        });
        assert_eq!(wait_queue.enter(3, Role::Observer).park(None), Woken::Closed);
        turned.rejoin();
        assert_eq!((turned.park(None), wait_queue.is_empty()), (Woken::Closed, true));
    }

    #[test]
    fn a_thousand_threads_wake_at_one_ending() {
        let wait_queue = &WaitQueue::default();
        thread::scope(|scope| {
            for role in [Role::Successor, Role::Observer].repeat(500) {
                scope.spawn(move || assert_eq!(wait_queue.enter(7, role).park(Some(after(LATE))), Woken::Changed));
            }
            while wait_queue.waiting() < 1_000 {
                thread::yield_now();
            }
            wait_queue.wake_all(&7);
        });
        assert!(wait_queue.is_empty());
    }

    #[test]
    fn a_hand_over_during_time_outs_is_not_lost() {
        let wait_queue = WaitQueue::default();
        for round in 0..500 {
            let impatient = successors::<3>(&wait_queue);
            let [mut patient] = successors(&wait_queue);
            let (start, deadline) = (&Barrier::new(4), after(150));
            thread::scope(|scope| {
                for mut waiter in impatient {
                    scope.spawn(move || (start.wait(), waiter.park(Some(deadline))));
                }
                start.wait();
                // Move the time of the hand-over across the time of the time-outs.
                while after(round % 100) < deadline + Duration::from_micros(50) {}
                wait_queue.hand_over(&7);
                assert_eq!(patient.park(Some(after(LATE))), Woken::HandedOver, "round {round}");
            });
            patient.claimed();
            assert!(wait_queue.is_empty());
        }
    }

    /// Tests the whole contract with a record of one bit: owners release, newcomers overtake, some waiters time out.
    #[test]
    fn every_patient_successor_gets_the_key_under_contention() {
        let (wait_queue, owned) = (WaitQueue::default(), AtomicBool::new(false));
        let take = || !owned.swap(true, SeqCst);
        let run_once = &|patience| {
            let mut waiter = wait_queue.enter(7, Role::Successor);
            while !take() {
                match waiter.park(Some(after(patience))) {
                    Woken::TimedOut => return assert_ne!(patience, LATE, "a wake was lost"),
                    _ if take() => break,
                    _ => waiter.rejoin(),
                }
            }
            waiter.claimed();
            thread::yield_now();
            owned.store(false, SeqCst);
            wait_queue.hand_over(&7);
        };
        thread::scope(|scope| {
            for patience in [LATE, 20].repeat(3) {
                scope.spawn(move || (0..300).for_each(|_| run_once(patience)));
            }
        });
        assert!(wait_queue.is_empty());
    }
}
