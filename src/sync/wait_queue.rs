//! Where callers wait for a key to change hands. *The commit decides; slots only wait.*
//!
//! A sharded table, key -> queue of seats; an entry exists only while someone sits in it.
//! Callers keep one order: enter (or rejoin), *then* read the record, *then* park. Whoever changes the record commits
//! first and wakes second, so a change is either in that read or finds the seat in its queue.
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

/// What a seat waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Only wants to look again.
    Observer,
    /// Wants to take the key over when its owner gives up.
    Heir,
}

/// Why [`Seat::park`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Woken {
    /// Something ended: read again. Everyone was woken.
    Look,
    /// The owner gave up, and this is the one heir that was woken for it.
    Turn,
    /// The deadline passed first. The seat is still in the queue.
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

    fn is_turn(&self) -> bool {
        *self.told.lock() == Some(Woken::Turn)
    }
}

/// By place; maps, so that thousands of time-outs do not each search a list.
type Seats = BTreeMap<u64, Arc<Signal>>;

#[derive(Default)]
struct Queue {
    observers: Seats,
    heirs: Seats,
    /// The places of heirs that have their turn and have neither used it nor passed it on.
    turns: BTreeSet<u64>,
}

impl Queue {
    fn seats(&mut self, role: Role) -> &mut Seats {
        match role {
            Role::Observer => &mut self.observers,
            Role::Heir => &mut self.heirs,
        }
    }

    fn len(&self) -> usize {
        self.observers.len() + self.heirs.len()
    }

    /// Whether somebody is there who takes the key over once it is free.
    fn has_heir(&self) -> bool {
        !self.heirs.is_empty() || !self.turns.is_empty()
    }

    fn tell(self, woken: Woken) {
        for signal in self.heirs.values().chain(self.observers.values()) {
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
            self.queues.entry(key.clone()).or_default().seats(role).insert(place, Arc::clone(&signal));
        }
        (place, signal)
    }

    /// The heir has its turn when this returns; the caller unlocks the shard and then notifies it.
    ///
    /// Taking the heir out and telling it are one step under the shard's lock. Were they two, a seat that times out
    /// in between would find itself neither in the queue nor told, leave, and lose the turn.
    fn give_turn(&mut self, key: &K) -> Option<Arc<Signal>> {
        let queue = self.queues.get_mut(key)?;
        let (place, heir) = queue.heirs.pop_first()?;
        queue.turns.insert(place);
        *heir.told.lock() = Some(Woken::Turn);
        Some(heir)
    }

    /// The observers, if no heir is left: they look again, and the key may stay as it is. The caller unlocks the shard and tells
    /// them.
    fn observers_alone(&mut self, key: &K) -> Queue {
        match self.queues.get_mut(key) {
            Some(queue) if !queue.has_heir() => {
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
pub(crate) struct Slots<K> {
    hasher: RandomState,
    shards: [Mutex<Shard<K>>; SHARDS - 1],
    /// Outside the array, so that a look-up is total.
    last: Mutex<Shard<K>>,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        let shard = || Mutex::new(Shard { queues: HashMap::new(), last_place: 0, closed: false });
        Self { hasher: RandomState::new(), shards: array::from_fn(|_| shard()), last: shard() }
    }
}

impl<K> std::fmt::Debug for Slots<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone> Slots<K> {
    /// Sits down at the back of the key's queue. Read the record again before parking.
    pub(crate) fn enter(&self, key: K, role: Role) -> Seat<'_, K> {
        let shard = self.shard(&key);
        let (place, signal) = shard.lock().sit(&key, role, None);
        Seat { shard, key, role, place, signal, saw: None, claimed: false }
    }

    /// An ending or a removal: everyone who waits for the key looks again.
    pub(crate) fn wake_all(&self, key: &K) {
        let queue = self.shard(key).lock().queues.remove(key);
        // Told without the shard's lock: a `Look` that finds its seat gone is no loss, everyone got one.
        if let Some(queue) = queue {
            queue.tell(Woken::Look);
        }
    }

    /// The owner gave up: the first heir has its turn, everyone else waits on. Without an heir the observers look again.
    pub(crate) fn hand_over(&self, key: &K) {
        let mut shard = self.shard(key).lock();
        let heir = shard.give_turn(key);
        let observers = shard.observers_alone(key);
        shard.forget_if_empty(key);
        drop(shard);
        if let Some(heir) = heir {
            heir.was_told.notify_one();
        }
        observers.tell(Woken::Look);
    }

    /// Whether an heir waits for the key, or has its turn and has not begun. An observer in the queue is told when the last heir
    /// leaves without the key.
    pub(crate) fn has_heir(&self, key: &K) -> bool {
        self.shard(key).lock().queues.get(key).is_some_and(Queue::has_heir)
    }

    /// Every seat, now and later, gets `Closed`. One that was already woken learns it when it rejoins.
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

    /// How many seats are in queues; counted, not kept, so that it cannot drift.
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

/// A place in a key's queue. Dropping it leaves the queue, and passes on a turn that was not used.
#[must_use = "dropping a seat leaves the queue"]
pub(crate) struct Seat<'a, K: Eq + Hash + Clone> {
    shard: &'a Mutex<Shard<K>>,
    key: K,
    role: Role,
    /// Orders the queue, and is this seat's alone: what sits at it is this seat.
    place: u64,
    signal: Arc<Signal>,
    /// What `park` found of this stay.
    saw: Option<Woken>,
    claimed: bool,
}

impl<K: Eq + Hash + Clone> Seat<'_, K> {
    /// Waits until woken or until the deadline, `None` being for ever.
    ///
    /// After `Look` and `Turn` the seat is out of the queue, and parking again without `rejoin` returns the same.
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

    /// Back into the queue, to read the record again and park: to the place it had if its turn came to nothing because
    /// a newcomer overtook it, else to the back.
    /// Its old place is before everyone who sat behind it, and of several overtaken heirs the earlier stays first.
    pub(crate) fn rejoin(&mut self) {
        let mut shard = self.shard.lock();
        // A time-out does not leave the queue.
        if shard.queues.get_mut(&self.key).is_some_and(|q| q.seats(self.role).contains_key(&self.place)) {
            return;
        }
        let kept = self.signal.is_turn().then_some(self.place);
        if let Some(queue) = shard.queues.get_mut(&self.key) {
            queue.turns.remove(&self.place);
        }
        // A fresh signal, because a `Look` for the last stay may still be on its way and would be taken for this one's.
        (self.place, self.signal) = shard.sit(&self.key, self.role, kept);
        self.saw = None;
    }

    /// This heir took the key: its turn is used and wakes nobody else.
    ///
    /// Only a turn that `park` returned: one that nobody saw may stem from an end of the very claim just made. Passed on
    /// in vain it costs one look; kept, it might be the only one.
    pub(crate) fn claimed(mut self) {
        if self.saw == Some(Woken::Turn) {
            *self.signal.told.lock() = None;
        }
        self.claimed = true;
    }
}

impl<K: Eq + Hash + Clone> Drop for Seat<'_, K> {
    fn drop(&mut self) {
        // It is out of the queue, and nobody tells it anything more: thousands who were woken at once need not meet again.
        if self.saw == Some(Woken::Look) {
            return;
        }
        let mut shard = self.shard.lock();
        if let Some(queue) = shard.queues.get_mut(&self.key) {
            queue.seats(self.role).remove(&self.place);
            queue.turns.remove(&self.place);
        }
        // Turns are given under the shard's lock to seats in the queue: this one has its turn by now, or never will.
        let heir = if self.signal.is_turn() { shard.give_turn(&self.key) } else { None };
        // The last heir may have been what they waited for.
        let leaves = self.role == Role::Heir && !self.claimed;
        let observers = if leaves { shard.observers_alone(&self.key) } else { Queue::default() };
        shard.forget_if_empty(&self.key);
        drop(shard);
        if let Some(heir) = heir {
            heir.was_told.notify_one();
        }
        observers.tell(Woken::Look);
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

    use super::{Instant, Role, Seat, Slots, Woken};

    #[expect(clippy::disallowed_methods, reason = "deadlines of tests")]
    fn after(micros: u64) -> Instant {
        Instant::now() + Duration::from_micros(micros)
    }

    /// Not reached unless a wake was lost.
    const LATE: u64 = 60_000_000;

    fn told(seat: &mut Seat<'_, u32>) -> Woken {
        seat.park(Some(after(0)))
    }

    fn heirs<const N: usize>(slots: &Slots<u32>) -> [Seat<'_, u32>; N] {
        std::array::from_fn(|_| slots.enter(7, Role::Heir))
    }

    #[test]
    fn a_turn_goes_to_one_heir_in_order_and_observers_look_when_none_is_left() {
        let slots = Slots::default();
        let mut heirs = heirs::<5>(&slots);
        let mut others = [slots.enter(7, Role::Observer), slots.enter(7, Role::Observer), slots.enter(8, Role::Heir)];
        for turn in 0..5 {
            slots.hand_over(&7);
            for (i, heir) in heirs.iter_mut().enumerate() {
                assert_eq!(told(heir), if i <= turn { Woken::Turn } else { Woken::TimedOut });
            }
            assert_eq!(others.each_mut().map(told), [Woken::TimedOut; 3], "the heirs come first");
        }
        for (nth, heir) in heirs.into_iter().enumerate() {
            assert!(slots.has_heir(&7));
            drop(heir);
            assert_eq!(told(&mut others[0]), if nth == 4 { Woken::Look } else { Woken::TimedOut });
        }
        let told = others.each_mut().map(told);
        assert_eq!((told, slots.waiting()), ([Woken::Look, Woken::Look, Woken::TimedOut], 1));
        let [mut first, second, _other] = others;
        first.rejoin();
        slots.hand_over(&7);
        assert_eq!(first.park(None), Woken::Look, "nobody takes it over");
        drop((first, second));
        assert!(!slots.has_heir(&7) && slots.has_heir(&8));
    }

    #[test]
    fn an_observer_waits_on_when_the_heir_has_claimed() {
        let slots = Slots::default();
        let [mut heir] = heirs(&slots);
        let mut observer = slots.enter(7, Role::Observer);
        slots.hand_over(&7);
        assert_eq!(heir.park(None), Woken::Turn);
        heir.claimed();
        assert_eq!((told(&mut observer), slots.has_heir(&7)), (Woken::TimedOut, false));
        slots.wake_all(&7);
        assert_eq!(observer.park(None), Woken::Look);
    }

    #[test]
    fn a_look_rejoins_at_the_back_and_a_turn_at_the_head() {
        let slots = Slots::default();
        let [mut a, mut b, mut c] = heirs(&slots);
        slots.wake_all(&7);
        for seat in [&mut b, &mut c, &mut a] {
            assert_eq!(seat.park(None), Woken::Look);
            seat.rejoin();
        }
        slots.hand_over(&7);
        slots.hand_over(&7);
        assert_eq!([&mut a, &mut b, &mut c].map(told), [Woken::TimedOut, Woken::Turn, Woken::Turn]);
        // Overtaken: both go before `a`, in their own order whoever is quicker.
        c.rejoin();
        b.rejoin();
        slots.hand_over(&7);
        assert_eq!([&mut a, &mut b, &mut c].map(told), [Woken::TimedOut, Woken::Turn, Woken::TimedOut]);
    }

    #[test]
    fn a_turn_ends_with_a_claim_and_else_passes_on() {
        let slots = Slots::default();
        let [mut dropped, unseen, mut timed_out, mut used, mut last] = heirs(&slots);
        slots.hand_over(&7);
        assert_eq!([&mut dropped, &mut timed_out].map(told), [Woken::Turn, Woken::TimedOut]);
        drop(dropped);
        unseen.claimed();
        drop(timed_out);
        assert_eq!(told(&mut used), Woken::Turn);
        used.claimed();
        assert_eq!((told(&mut last), slots.waiting()), (Woken::TimedOut, 1));
    }

    #[test]
    fn a_panic_passes_the_turn_on() {
        let slots = Slots::default();
        let [mut first, mut second] = heirs(&slots);
        thread::scope(|scope| {
            let heir = scope.spawn(move || assert_eq!(first.park(None), Woken::Look, "on purpose"));
            slots.hand_over(&7);
            assert_eq!(second.park(Some(after(LATE))), Woken::Turn);
            assert!(heir.join().is_err());
        });
    }

    #[test]
    fn close_wakes_all_now_and_later() {
        let slots = Slots::default();
        let [mut turned] = heirs(&slots);
        slots.hand_over(&7);
        thread::scope(|scope| {
            for mut seat in (0..50).map(|key| slots.enter(key, Role::Heir)) {
                scope.spawn(move || assert_eq!(seat.park(Some(after(LATE))), Woken::Closed));
            }
            slots.close();
        });
        assert_eq!(slots.enter(3, Role::Observer).park(None), Woken::Closed);
        turned.rejoin();
        assert_eq!((turned.park(None), slots.is_empty()), (Woken::Closed, true));
    }

    #[test]
    fn a_thousand_threads_wake_at_one_ending() {
        let slots = &Slots::default();
        thread::scope(|scope| {
            for role in [Role::Heir, Role::Observer].repeat(500) {
                scope.spawn(move || assert_eq!(slots.enter(7, role).park(Some(after(LATE))), Woken::Look));
            }
            while slots.waiting() < 1_000 {
                thread::yield_now();
            }
            slots.wake_all(&7);
        });
        assert!(slots.is_empty());
    }

    #[test]
    fn a_turn_that_meets_time_outs_is_never_lost() {
        let slots = Slots::default();
        for round in 0..500 {
            let impatient = heirs::<3>(&slots);
            let [mut patient] = heirs(&slots);
            let (start, deadline) = (&Barrier::new(4), after(150));
            thread::scope(|scope| {
                for mut seat in impatient {
                    scope.spawn(move || (start.wait(), seat.park(Some(deadline))));
                }
                start.wait();
                // Sweeps the moment of the turn across the moment of the time-outs.
                while after(round % 100) < deadline + Duration::from_micros(50) {}
                slots.hand_over(&7);
                assert_eq!(patient.park(Some(after(LATE))), Woken::Turn, "round {round}");
            });
            patient.claimed();
            assert!(slots.is_empty());
        }
    }

    /// The whole contract against a record of one bit: owners release, newcomers overtake, the impatient give up.
    #[test]
    fn every_patient_heir_gets_the_key_under_contention() {
        let (slots, owned) = (Slots::default(), AtomicBool::new(false));
        let take = || !owned.swap(true, SeqCst);
        let run_once = &|patience| {
            let mut seat = slots.enter(7, Role::Heir);
            while !take() {
                match seat.park(Some(after(patience))) {
                    Woken::TimedOut => return assert_ne!(patience, LATE, "a wake was lost"),
                    _ if take() => break,
                    _ => seat.rejoin(),
                }
            }
            seat.claimed();
            thread::yield_now();
            owned.store(false, SeqCst);
            slots.hand_over(&7);
        };
        thread::scope(|scope| {
            for patience in [LATE, 20].repeat(3) {
                scope.spawn(move || (0..300).for_each(|_| run_once(patience)));
            }
        });
        assert!(slots.is_empty());
    }
}
