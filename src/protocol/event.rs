//! Events of an engine, and the queues of their subscribers.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
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
        /// The number of records.
        count: u64,
    },
    /// A compaction pass ended.
    Compacted(Compacted),
    /// The background compaction met this error. After [`Corrupt`](crate::ErrorKind::Corrupt) it continues without the
    /// damaged records. After any other error it has stopped.
    CompactionFailed(Error),
    /// The engine is poisoned by this error.
    Poisoned(Error),
}

/// The result of a compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Compacted {
    /// The number of deleted records.
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
/// then ends.
#[derive(Debug)]
pub struct Events(Receiver<Event>);

impl Events {
    /// The largest number of events in the queue of one subscription. While it is full, new events are dropped and
    /// counted.
    pub const CAPACITY: usize = 1024;

    /// Returns the next event if there is one, without waiting.
    #[must_use]
    pub fn try_next(&self) -> Option<Event> {
        self.0.try_recv().ok()
    }

    /// Returns the queued events, without waiting.
    pub fn ready(&self) -> impl Iterator<Item = Event> {
        self.0.try_iter()
    }

    /// Waits for the next event. Returns `Some(None)` after the timeout, and `None` if the engine is closed or `ended`
    /// is disconnected.
    #[expect(clippy::option_option, reason = "an event, none yet, or none any more")]
    pub(crate) fn next_until(&self, ended: &Receiver<Infallible>, timeout: Duration) -> Option<Option<Event>> {
        crossbeam_channel::select! {
            recv(self.0) -> event => event.ok().map(Some),
            recv(ended) -> _ => None,
            default(timeout) => Some(None),
        }
    }

    /// Waits for the next event for at most `timeout`. Returns `None` after the timeout, or if the engine is closed.
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

/// The subscribers. Each has its own queue, because two receivers of one channel would get half of the events each.
#[derive(Debug)]
pub(crate) struct Subscribers {
    /// `None` after the close.
    senders: Mutex<Option<Vec<Sender<Event>>>>,
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
        let (sender, receiver) = crossbeam_channel::bounded(Events::CAPACITY);
        // After the close the sender is dropped, which ends the subscription.
        if let Some(senders) = &mut *self.senders.lock() {
            senders.push(sender);
            self.is_any.store(true, Ordering::Release);
        }
        Events(receiver)
    }

    /// Sends an event to all subscribers. Calls `event` only if there is a subscriber.
    pub(crate) fn notify(&self, event: impl FnOnce() -> Event) {
        if !self.is_any.load(Ordering::Acquire) {
            return;
        }
        let mut senders = self.senders.lock();
        let Some(senders) = senders.as_mut().filter(|senders| !senders.is_empty()) else { return };
        let event = event();
        senders.retain(|subscriber| match subscriber.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.dropped.add(1);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
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
