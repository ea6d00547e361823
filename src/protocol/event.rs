//! Events of an engine, and the queues of their subscribers.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::types::error::Error;
use crate::types::record::RecordInfo;
use crate::types::stats::Counter;

/// An event of an engine.
///
/// Events are sent after the change is durable, with no lock of a record held. There is one exception: the end of a
/// dropped claim is sent at its commit, because a drop waits for nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A claim was created.
    Began(RecordInfo),
    /// A stored outcome was returned.
    Replayed(RecordInfo),
    /// A claim ended, or a caller resolved or revoked a record. See its [`status`](RecordInfo::status).
    Ended(RecordInfo),
    /// Expired records were deleted.
    Expired {
        /// The number of records, counted as in [`Stats::expired`](crate::admin::Stats::expired).
        count: u64,
    },
    /// A compaction pass ended.
    Compacted(Compacted),
    /// The background compaction met this error. After [`Corrupt`](crate::ErrorKind::Corrupt) it continues without the
    /// damaged records. After any other error but a panic of its thread it tries again later.
    CompactionFailed(Error),
    /// The engine is poisoned by this error.
    Poisoned(Error),
    /// The queue of this subscription was full, and events were dropped at this point.
    Missed {
        /// The number of events.
        count: u64,
    },
}

/// The result of a compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Compacted {
    /// The number of deleted records, counted as in [`Stats::expired`](crate::admin::Stats::expired).
    pub removed: u64,
    /// The size of their encoded outcomes, in bytes.
    pub bytes: u64,
    /// The number of incomplete runs that a crash had left in the store.
    pub leftovers: u64,
    /// The duration of the compaction.
    pub took: Duration,
}

/// A subscription to the events of an engine, as an iterator.
///
/// `next` waits for the next event. After a [`close`](crate::Engine::close) the iterator returns the queued events and
/// then ends. A subscriber that falls behind gets [`Event::Missed`] in the place of the events that were dropped.
#[derive(Debug)]
pub struct Events {
    queue: Receiver<Queued>,
    /// Dropped with the subscription: a full queue does not show that it has no reader any more.
    _reader: Arc<()>,
}

/// An entry in the queue of a subscription.
#[derive(Debug)]
enum Queued {
    Event(Event),
    Gap(Arc<Gap>),
}

/// The number of events that were dropped at one point of a queue. `None` after the subscriber has received it.
#[derive(Debug)]
struct Gap(Mutex<Option<u64>>);

impl Gap {
    fn new() -> Self {
        Self(Mutex::new(Some(1)))
    }

    /// Counts one more event. Returns false if the subscriber has received the number already.
    fn widen(&self) -> bool {
        let mut missed = self.0.lock();
        *missed = missed.map(|missed| missed + 1);
        missed.is_some()
    }
}

impl Queued {
    fn into_event(self) -> Event {
        match self {
            Self::Event(event) => event,
            Self::Gap(gap) => Event::Missed { count: gap.0.lock().take().unwrap_or_default() },
        }
    }
}

impl Events {
    /// The largest number of events in the queue of one subscription. While it is full, new events are dropped and
    /// counted.
    pub const CAPACITY: usize = 1024;

    /// Returns the next event if there is one, without waiting.
    #[must_use]
    pub fn try_next(&self) -> Option<Event> {
        self.queue.try_recv().ok().map(Queued::into_event)
    }

    /// Returns the queued events, without waiting.
    pub fn ready(&self) -> impl Iterator<Item = Event> {
        self.queue.try_iter().map(Queued::into_event)
    }

    /// Waits for the next event. Returns `Some(None)` after the timeout, and `None` if the engine is closed or `ended`
    /// is disconnected.
    #[expect(clippy::option_option, reason = "an event, none yet, or none any more")]
    pub(crate) fn next_until(&self, ended: &Receiver<Infallible>, timeout: Duration) -> Option<Option<Event>> {
        crossbeam_channel::select! {
            recv(self.queue) -> queued => queued.ok().map(|queued| Some(queued.into_event())),
            recv(ended) -> _ => None,
            default(timeout) => Some(None),
        }
    }

    /// Waits for the next event for at most `timeout`. Returns `None` after the timeout, or if the engine is closed.
    #[must_use]
    pub fn next_timeout(&self, timeout: Duration) -> Option<Event> {
        self.queue.recv_timeout(timeout).ok().map(Queued::into_event)
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.queue.recv().ok().map(Queued::into_event)
    }
}

/// The sending end of a subscription.
#[derive(Debug)]
struct Subscriber {
    queue: Sender<Queued>,
    reader: Weak<()>,
    /// The gap at the end of the queue, if it ends with one.
    gap: Option<Arc<Gap>>,
}

/// The result of sending an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Queued,
    Dropped,
    /// The subscription is gone.
    Unread,
}

impl Subscriber {
    /// Puts the event into the queue, or counts it in the gap at its end. Called by one thread at a time.
    fn send(&mut self, event: &Event) -> Sent {
        if self.reader.strong_count() == 0 {
            return Sent::Unread;
        }
        let is_full = self.queue.len() >= Events::CAPACITY;
        if is_full && self.gap.as_ref().is_some_and(|gap| gap.widen()) {
            return Sent::Dropped;
        }
        // A gap that the subscriber has received was the last entry, so the queue was empty then.
        let (queued, sent) = if is_full && self.gap.is_none() {
            let gap = Arc::new(Gap::new());
            self.gap = Some(Arc::clone(&gap));
            (Queued::Gap(gap), Sent::Dropped)
        } else {
            self.gap = None;
            (Queued::Event(event.clone()), Sent::Queued)
        };
        // The queue has a place for a gap after the last event, so it is never full here.
        if self.queue.try_send(queued).is_ok() { sent } else { Sent::Unread }
    }
}

/// The subscribers. Each has its own queue, because two receivers of one channel would get half of the events each.
#[derive(Debug)]
pub(crate) struct Subscribers {
    /// `None` after the close.
    senders: Mutex<Option<Vec<Subscriber>>>,
    /// False if there is no subscriber, so that an event without one takes no lock. Changed with the lock held.
    is_any: AtomicBool,
    dropped: Counter,
}

impl Default for Subscribers {
    fn default() -> Self {
        Self {
            senders: Mutex::new(Some(Vec::new())),
            is_any: AtomicBool::new(false),
            dropped: Counter::new("oncekey_events_dropped_total"),
        }
    }
}

impl Subscribers {
    pub(crate) fn subscribe(&self) -> Events {
        // One more place, for a gap after the last event.
        let (queue, receiver) = crossbeam_channel::bounded(Events::CAPACITY + 1);
        let reader = Arc::new(());
        // After the close the sender is dropped, which ends the subscription.
        if let Some(senders) = &mut *self.senders.lock() {
            senders.push(Subscriber { queue, reader: Arc::downgrade(&reader), gap: None });
            self.is_any.store(true, Ordering::Release);
        }
        Events { queue: receiver, _reader: reader }
    }

    /// Sends an event to all subscribers. Calls `event` only if there is a subscriber.
    pub(crate) fn notify(&self, event: impl FnOnce() -> Event) {
        if !self.is_any.load(Ordering::Acquire) {
            return;
        }
        let mut senders = self.senders.lock();
        let Some(senders) = senders.as_mut().filter(|senders| !senders.is_empty()) else { return };
        let event = event();
        senders.retain_mut(|subscriber| {
            let sent = subscriber.send(&event);
            self.dropped.add(u64::from(sent == Sent::Dropped));
            sent != Sent::Unread
        });
        self.is_any.store(!senders.is_empty(), Ordering::Release);
    }

    /// Ends all subscriptions, present and future. Receivers first read the events in their queues.
    pub(crate) fn close(&self) {
        *self.senders.lock() = None;
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}
