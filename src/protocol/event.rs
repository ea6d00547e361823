//! What happens in an engine, told to whoever listens.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::types::error::Error;
use crate::types::record::RecordInfo;
use crate::types::stats::Counter;

/// Something that happened. Told with no lock of a record held, and after it is durable; only the end of a claim that was
/// dropped is told when it is committed, because a drop waits for nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A claim was made.
    Began(RecordInfo),
    /// A stored outcome was given as an answer.
    Replayed(RecordInfo),
    /// A claim ended, or an operator settled a record; see its [`status`](RecordInfo::status).
    Ended(RecordInfo),
    /// Records were found past their TTL and deleted.
    Expired {
        /// How many.
        count: u64,
    },
    /// A compaction ended.
    Compacted(Compacted),
    /// The background compaction has ended, because of this.
    CompactionFailed(Error),
    /// The engine can promise nothing any more.
    Poisoned(Error),
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Records deleted.
    pub removed: u64,
    /// Encoded bytes of their outcomes.
    pub bytes: u64,
    /// Leftovers of a crash that were deleted.
    pub leftovers: u64,
    /// How long it took.
    pub took: Duration,
}

/// A subscription to the events of an engine, as an iterator. `next` waits for the next event; after a
/// [`close`](crate::Engine::close) the iterator ends once the queue is empty.
#[derive(Debug)]
pub struct Events(Receiver<Event>);

impl Events {
    /// The most events in the queue of one subscription; an event that comes when it is full is dropped and counted.
    pub const CAPACITY: usize = 1024;

    /// Returns the next event if there is one already.
    #[must_use]
    pub fn try_next(&self) -> Option<Event> {
        self.0.try_recv().ok()
    }

    /// Returns the events that are there already, and ends where `next` would wait.
    pub fn ready(&self) -> impl Iterator<Item = Event> {
        self.0.try_iter()
    }

    /// Waits for the next event, up to `timeout`. Returns `None` when the time is over, or when the engine was closed.
    #[must_use]
    pub fn next_timeout(&self, timeout: Duration) -> Option<Event> {
        self.0.recv_timeout(timeout).ok()
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.0.recv().ok()
    }
}

/// The subscribers. Each has a queue of its own: two receivers of one channel would get half each.
#[derive(Debug)]
pub(crate) struct Subscribers {
    /// `None` once closed.
    subscribers: Mutex<Option<Vec<Sender<Event>>>>,
    dropped: Counter,
}

impl Default for Subscribers {
    fn default() -> Self {
        Self { subscribers: Mutex::new(Some(Vec::new())), dropped: Counter::new("oncekey_events_dropped_total") }
    }
}

impl Subscribers {
    pub(crate) fn subscribe(&self) -> Events {
        let (sender, receiver) = crossbeam_channel::bounded(Events::CAPACITY);
        // Dropped, it disconnects the receiver.
        if let Some(subscribers) = &mut *self.subscribers.lock() {
            subscribers.push(sender);
        }
        Events(receiver)
    }

    /// Makes the event only if somebody listens.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        let mut subscribers = self.subscribers.lock();
        let Some(subscribers) = subscribers.as_mut().filter(|subscribers| !subscribers.is_empty()) else { return };
        let event = event();
        subscribers.retain(|subscriber| match subscriber.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.dropped.add(1);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }

    /// Ends every subscription, now and later: receivers see the channel disconnect once they have read what is in it.
    pub(crate) fn close(&self) {
        *self.subscribers.lock() = None;
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}
