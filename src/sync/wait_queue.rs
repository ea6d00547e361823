//! Where callers wait for a key to change hands. *The commit decides; the wait queue only waits.*
//!
//! A sharded table, key -> queue of waiters; an entry exists only while someone sits in it.
//! Callers keep one order: enter (or rejoin), *then* read the record, *then* park. Whoever changes the record commits
//! first and wakes second, so a change is either in that read or finds the waiter in its queue.
//!
//! Locks: a shard's, then a signal's, never the other way; neither is held while a thread is notified.

use std::array;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutex, RandomState};

/// Enough that callers who wait for different keys seldom meet; a power of two, so that bytes spread evenly.
const SHARDS: usize = 32;

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Only wants to look again.
    Observer,
    /// Wants to take the key over when its owner gives up.
    Successor,
}

/// Why [`Waiter::park`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Woken {
    /// Something ended: read again. Everyone was woken.
    Changed,
    /// The owner gave up, and this is the one successor that was woken for it.
    HandedOver,
    /// The deadline passed first. The waiter is still in the queue.
    TimedOut,
    /// Nothing will ever be woken again.
    Closed,
}

/// One stay in a queue. It is taken out of the queue at most once and told at most once, after that.
#[derive(Default)]
struct Signal {
    told: Mutex<Option<Woken>>,
    was_told: Condvar,
}

impl Signal {
    fn tell(&self, woken: Woken) {
        *self.told.lock() = Some(woken);
        self.was_told.notify_one();
    }

    fn is_hand_over(&self) -> bool {
        *self.told.lock() == Some(Woken::HandedOver)
    }
}

/// By place; maps, so that thousands of time-outs do not each search a list.
type Waiters = BTreeMap<u64, Arc<Signal>>;

#[derive(Default)]
struct Queue {
    observers: Waiters,
    successors: Waiters,
    /// The places of successors that have their turn and have neither used it nor passed it on.
    turns: BTreeSet<u64>,
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

    /// Whether somebody is there who takes the key over once it is free.
    fn has_successor(&self) -> bool {
        !self.successors.is_empty() || !self.turns.is_empty()
    }

    fn tell(self, woken: Woken) {
        for signal in self.successors.values().chain(self.observers.values()) {
            signal.tell(woken);
        }
    }
}

struct Shard<K> {
    queues: HashMap<K, Queue>,
    last_place: u64,
    closed: bool,
}

impl<K: Eq + Hash + Clone> Shard<K> {
    /// At the place it kept, or at the back.
    fn sit(&mut self, key: &K, role: Role, kept: Option<u64>) -> (u64, Arc<Signal>) {
        self.last_place += 1;
        let place = kept.unwrap_or(self.last_place);
        let signal = Arc::<Signal>::default();
        if self.closed {
            signal.tell(Woken::Closed);
        } else {
            self.queues.entry(key.clone()).or_default().waiters(role).insert(place, Arc::clone(&signal));
        }
        (place, signal)
    }

    /// The successor has its hand-over when this returns; the caller unlocks the shard and then notifies it.
    ///
    /// Taking the successor out and telling it are one step under the shard's lock. Were they two, a waiter that times out
    /// in between would find itself neither in the queue nor told, leave, and lose the hand-over.
    fn pass_on(&mut self, key: &K) -> Option<Arc<Signal>> {
        let queue = self.queues.get_mut(key)?;
        let (place, successor) = queue.successors.pop_first()?;
        queue.turns.insert(place);
        *successor.told.lock() = Some(Woken::HandedOver);
        Some(successor)
    }

    /// The observers, if no successor is left: they look again, and the key may stay as it is. The caller unlocks the shard and tells
    /// them.
    fn observers_alone(&mut self, key: &K) -> Queue {
        match self.queues.get_mut(key) {
            Some(queue) if !queue.has_successor() => {
                Queue { observers: mem::take(&mut queue.observers), ..Queue::default() }
            }
            Some(_) | None => Queue::default(),
        }
    }

    fn forget_if_empty(&mut self, key: &K) {
        if self.queues.get(key).is_some_and(|queue| queue.len() == 0 && queue.turns.is_empty()) {
            self.queues.remove(key);
        }
    }
}

/// The table of who waits for which key.
pub(crate) struct WaitQueue<K> {
    hasher: RandomState,
    shards: [Mutex<Shard<K>>; SHARDS - 1],
    /// Outside the array, so that a look-up is total.
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
    /// Sits down at the back of the key's queue. Read the record again before parking.
    pub(crate) fn enter(&self, key: K, role: Role) -> Waiter<'_, K> {
        let shard = self.shard(&key);
        let (place, signal) = shard.lock().sit(&key, role, None);
        Waiter { shard, key, role, place, signal, saw: None, claimed: false }
    }

    /// An ending or a removal: everyone who waits for the key looks again.
    pub(crate) fn wake_all(&self, key: &K) {
        let queue = self.shard(key).lock().queues.remove(key);
        // Told without the shard's lock: a `Changed` that finds its waiter gone is no loss, everyone got one.
        if let Some(queue) = queue {
            queue.tell(Woken::Changed);
        }
    }

    /// The owner gave up: the first successor has its hand-over, everyone else waits on. Without a successor the observers look again.
    pub(crate) fn hand_over(&self, key: &K) {
        let mut shard = self.shard(key).lock();
        let successor = shard.pass_on(key);
        let observers = shard.observers_alone(key);
        shard.forget_if_empty(key);
        drop(shard);
        if let Some(successor) = successor {
            successor.was_told.notify_one();
        }
        observers.tell(Woken::Changed);
    }

    /// Whether a successor waits for the key, or has its hand-over and has not begun. An observer in the queue is told when the last successor
    /// leaves without the key.
    pub(crate) fn has_successor(&self, key: &K) -> bool {
        self.shard(key).lock().queues.get(key).is_some_and(Queue::has_successor)
    }

    /// Every waiter, now and later, gets `Closed`. One that was already woken learns it when it rejoins.
    pub(crate) fn close(&self) {
        for shard in self.all() {
            let mut shard = shard.lock();
            shard.closed = true;
            let queues = mem::take(&mut shard.queues);
            drop(shard);
            for queue in queues.into_values() {
                queue.tell(Woken::Closed);
            }
        }
    }

    /// How many waiters are in queues; counted, not kept, so that it cannot drift.
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

/// A place in a key's queue. Dropping it leaves the queue, and passes on a hand-over that was not used.
#[must_use = "dropping a waiter leaves the queue"]
pub(crate) struct Waiter<'a, K: Eq + Hash + Clone> {
    shard: &'a Mutex<Shard<K>>,
    key: K,
    role: Role,
    /// Orders the queue, and is this waiter's alone: what sits at it is this waiter.
    place: u64,
    signal: Arc<Signal>,
    /// What `park` found of this stay.
    saw: Option<Woken>,
    claimed: bool,
}

impl<K: Eq + Hash + Clone> Waiter<'_, K> {
    /// Waits until woken or until the deadline, `None` being for ever.
    ///
    /// After `Changed` and `HandedOver` the waiter is out of the queue, and parking again without `rejoin` returns the same.
    pub(crate) fn park(&mut self, deadline: Option<Instant>) -> Woken {
        let (mut told, mut timed_out) = (self.signal.told.lock(), false);
        loop {
            if let Some(woken) = *told {
                self.saw = Some(woken);
                return woken;
            }
            // Only after that look: a wake that raced with the time-out wins.
            if timed_out {
                return Woken::TimedOut;
            }
            match deadline {
                None => self.signal.was_told.wait(&mut told),
                Some(deadline) => timed_out = self.signal.was_told.wait_until(&mut told, deadline).timed_out(),
            }
        }
    }

    /// Back into the queue, to read the record again and park: to the place it had if its hand-over came to nothing because
    /// a newcomer overtook it, else to the back.
    /// Its old place is before everyone who sat behind it, and of several overtaken successors the earlier stays first.
    pub(crate) fn rejoin(&mut self) {
        let mut shard = self.shard.lock();
        // A time-out does not leave the queue.
        if shard.queues.get_mut(&self.key).is_some_and(|q| q.waiters(self.role).contains_key(&self.place)) {
            return;
        }
        let kept = self.signal.is_hand_over().then_some(self.place);
        if let Some(queue) = shard.queues.get_mut(&self.key) {
            queue.turns.remove(&self.place);
        }
        // A fresh signal, because a `Changed` for the last stay may still be on its way and would be taken for this one's.
        (self.place, self.signal) = shard.sit(&self.key, self.role, kept);
        self.saw = None;
    }

    /// This successor took the key: its hand-over is used and wakes nobody else.
    ///
    /// Only a hand-over that `park` returned: one that nobody saw may stem from an end of the very claim just made. Passed on
    /// in vain it costs one look; kept, it might be the only one.
    pub(crate) fn claimed(mut self) {
        if self.saw == Some(Woken::HandedOver) {
            *self.signal.told.lock() = None;
        }
        self.claimed = true;
    }
}

impl<K: Eq + Hash + Clone> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        // It is out of the queue, and nobody tells it anything more: thousands who were woken at once need not meet again.
        if self.saw == Some(Woken::Changed) {
            return;
        }
        let mut shard = self.shard.lock();
        if let Some(queue) = shard.queues.get_mut(&self.key) {
            queue.waiters(self.role).remove(&self.place);
            queue.turns.remove(&self.place);
        }
        // Turns are given under the shard's lock to waiters in the queue: this one has its hand-over by now, or never will.
        let successor = if self.signal.is_hand_over() { shard.pass_on(&self.key) } else { None };
        // The last successor may have been what they waited for.
        let leaves = self.role == Role::Successor && !self.claimed;
        let observers = if leaves { shard.observers_alone(&self.key) } else { Queue::default() };
        shard.forget_if_empty(&self.key);
        drop(shard);
        if let Some(successor) = successor {
            successor.was_told.notify_one();
        }
        observers.tell(Woken::Changed);
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

    /// Not reached unless a wake was lost.
    const LATE: u64 = 60_000_000;

    fn told(waiter: &mut Waiter<'_, u32>) -> Woken {
        waiter.park(Some(after(0)))
    }

    fn successors<const N: usize>(wait_queue: &WaitQueue<u32>) -> [Waiter<'_, u32>; N] {
        std::array::from_fn(|_| wait_queue.enter(7, Role::Successor))
    }

    #[test]
    fn a_hand_over_goes_to_one_heir_in_order_and_observers_look_when_none_is_left() {
        let wait_queue = WaitQueue::default();
        let mut successors = successors::<5>(&wait_queue);
        let mut others = [
            wait_queue.enter(7, Role::Observer),
            wait_queue.enter(7, Role::Observer),
            wait_queue.enter(8, Role::Successor),
        ];
        for turn in 0..5 {
            wait_queue.hand_over(&7);
            for (i, successor) in successors.iter_mut().enumerate() {
                assert_eq!(told(successor), if i <= turn { Woken::HandedOver } else { Woken::TimedOut });
            }
            assert_eq!(others.each_mut().map(told), [Woken::TimedOut; 3], "the successors come first");
        }
        for (nth, successor) in successors.into_iter().enumerate() {
            assert!(wait_queue.has_successor(&7));
            drop(successor);
            assert_eq!(told(&mut others[0]), if nth == 4 { Woken::Changed } else { Woken::TimedOut });
        }
        let told = others.each_mut().map(told);
        assert_eq!((told, wait_queue.waiting()), ([Woken::Changed, Woken::Changed, Woken::TimedOut], 1));
        let [mut first, second, _other] = others;
        first.rejoin();
        wait_queue.hand_over(&7);
        assert_eq!(first.park(None), Woken::Changed, "nobody takes it over");
        drop((first, second));
        assert!(!wait_queue.has_successor(&7) && wait_queue.has_successor(&8));
    }

    #[test]
    fn an_observer_waits_on_when_the_heir_has_claimed() {
        let wait_queue = WaitQueue::default();
        let [mut successor] = successors(&wait_queue);
        let mut observer = wait_queue.enter(7, Role::Observer);
        wait_queue.hand_over(&7);
        assert_eq!(successor.park(None), Woken::HandedOver);
        successor.claimed();
        assert_eq!((told(&mut observer), wait_queue.has_successor(&7)), (Woken::TimedOut, false));
        wait_queue.wake_all(&7);
        assert_eq!(observer.park(None), Woken::Changed);
    }

    #[test]
    fn a_look_rejoins_at_the_back_and_a_hand_over_at_the_head() {
        let wait_queue = WaitQueue::default();
        let [mut a, mut b, mut c] = successors(&wait_queue);
        wait_queue.wake_all(&7);
        for waiter in [&mut b, &mut c, &mut a] {
            assert_eq!(waiter.park(None), Woken::Changed);
            waiter.rejoin();
        }
        wait_queue.hand_over(&7);
        wait_queue.hand_over(&7);
        assert_eq!([&mut a, &mut b, &mut c].map(told), [Woken::TimedOut, Woken::HandedOver, Woken::HandedOver]);
        // Overtaken: both go before `a`, in their own order whoever is quicker.
        c.rejoin();
        b.rejoin();
        wait_queue.hand_over(&7);
        assert_eq!([&mut a, &mut b, &mut c].map(told), [Woken::TimedOut, Woken::HandedOver, Woken::TimedOut]);
    }

    #[test]
    fn a_hand_over_ends_with_a_claim_and_else_passes_on() {
        let wait_queue = WaitQueue::default();
        let [mut dropped, unseen, mut timed_out, mut used, mut last] = successors(&wait_queue);
        wait_queue.hand_over(&7);
        assert_eq!([&mut dropped, &mut timed_out].map(told), [Woken::HandedOver, Woken::TimedOut]);
        drop(dropped);
        unseen.claimed();
        drop(timed_out);
        assert_eq!(told(&mut used), Woken::HandedOver);
        used.claimed();
        assert_eq!((told(&mut last), wait_queue.waiting()), (Woken::TimedOut, 1));
    }

    #[test]
    fn a_panic_passes_the_turn_on() {
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
    fn close_wakes_all_now_and_later() {
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
    fn a_hand_over_that_meets_time_outs_is_never_lost() {
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
                // Sweeps the moment of the hand-over across the moment of the time-outs.
                while after(round % 100) < deadline + Duration::from_micros(50) {}
                wait_queue.hand_over(&7);
                assert_eq!(patient.park(Some(after(LATE))), Woken::HandedOver, "round {round}");
            });
            patient.claimed();
            assert!(wait_queue.is_empty());
        }
    }

    /// The whole contract against a record of one bit: owners release, newcomers overtake, the impatient give up.
    #[test]
    fn every_patient_heir_gets_the_key_under_contention() {
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
