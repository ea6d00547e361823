//! Waits for another owner: enter the queue, read again, park.

use std::time::Instant;

use super::{Begun, Protocol, RecordId};
use crate::protocol::rules::Start;
use crate::store::Load;
use crate::sync::wait_queue::{Role, Woken};
use crate::types::clock::monotonic;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{RecordInfo, Status};

/// Returns true if the record was released by an owner. A record that was created and never begun has the same status,
/// but no owner has released it.
fn is_released(info: &RecordInfo) -> bool {
    info.status() == Status::Released && info.attempt() > 0
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= monotonic())
}

/// The result of a wait.
#[derive(Debug)]
pub(crate) enum Awaited {
    Finished(RecordInfo),
    Absent,
    Released,
    Interrupted,
    TimedOut,
    Closed,
}

impl Protocol {
    /// Begins as `begin` does, but waits for another owner until the deadline. May take over the key when its owner
    /// gives up.
    ///
    /// If too many threads are waiting already, returns "in progress" at once.
    pub(crate) fn begin_or_wait(&self, id: &RecordId, start: &Start, deadline: Option<Instant>) -> Result<Begun> {
        let first = self.begin(id, start)?;
        if !matches!(first, Begun::InProgress(_)) {
            return Ok(first);
        }
        self.check_wait(id)?;
        // Declared before the waiter, so that the waiter is dropped first: the guard counts this thread for as long as
        // the thread may be parked.
        let Some(_admitted) = self.wait_limit.admit(&id.at) else { return Ok(first) };
        let _measured = self.waits.start(&id.manager);
        let _await = self.store.awaits(&id.at);
        let mut waiter = self.wait_queue.enter(id.at.clone(), Role::Successor);
        let mut overtaken = false;
        let mut timed_out = false;
        loop {
            // Read after entering the queue. Then an ending in between either shows in this read or wakes the waiter.
            let begun = self.begin_again(id, start)?;
            match begun {
                Begun::Claimed(_) => {
                    waiter.claimed();
                    return Ok(begun);
                }
                Begun::InProgress(_) if !timed_out => {}
                // Dropping the waiter passes on a hand-over that it may have.
                other => return Ok(other),
            }
            if overtaken {
                waiter.rejoin();
                overtaken = false;
                continue;
            }
            match waiter.park(deadline) {
                // Check the deadline here too, because other threads may wake this one again and again.
                Woken::Changed | Woken::HandedOver => (overtaken, timed_out) = (true, is_past(deadline)),
                Woken::TimedOut => timed_out = true,
                Woken::Closed => return Err(self.gone(id)),
            }
        }
    }

    /// Waits until the key has no owner, and no successor is about to begin.
    pub(crate) fn wait(&self, id: &RecordId, deadline: Option<Instant>) -> Result<Awaited> {
        if let Some(ended) = self.look(id)? {
            return Ok(ended);
        }
        // In a read-only engine no event would end the wait.
        self.store.check_writable()?;
        self.check_wait(id)?;
        match self.wait_in_queue(id, deadline) {
            // The engine was closed while the key was in progress. Return the same as if the close had woken this
            // waiter.
            Err(error) if error.kind() == ErrorKind::Closed => Ok(Awaited::Closed),
            ended => ended,
        }
    }

    fn wait_in_queue(&self, id: &RecordId, deadline: Option<Instant>) -> Result<Awaited> {
        let _measured = self.waits.start(&id.manager);
        let _await = self.store.awaits(&id.at);
        let mut waiter = self.wait_queue.enter(id.at.clone(), Role::Observer);
        loop {
            if let Some(ended) = self.look(id)? {
                return Ok(ended);
            }
            match waiter.park(deadline) {
                Woken::Changed | Woken::HandedOver => {
                    if let Some(ended) = self.look(id)? {
                        return Ok(ended);
                    }
                    // Another owner has begun already.
                    if is_past(deadline) {
                        return self.look_late(id);
                    }
                    waiter.rejoin();
                }
                Woken::TimedOut => return self.look_late(id),
                Woken::Closed => {
                    let error = self.gone(id);
                    return if error.kind() == ErrorKind::Closed { Ok(Awaited::Closed) } else { Err(error) };
                }
            }
        }
    }

    /// Reads the record. Returns `None` while it has an owner or a successor is about to begin.
    fn look(&self, id: &RecordId) -> Result<Option<Awaited>> {
        let mut read = self.get(id, Load::All)?;
        loop {
            let Some(info) = read else { return Ok(Some(Awaited::Absent)) };
            match info.status() {
                Status::InProgress => return Ok(None),
                Status::Succeeded | Status::Failed => return Ok(Some(Awaited::Finished(info))),
                Status::Interrupted => return Ok(Some(Awaited::Interrupted)),
                // Created and never begun, or a successor is about to begin.
                Status::Released if !is_released(&info) || self.wait_queue.has_successor(&id.at) => return Ok(None),
                Status::Released => {}
            }
            // The successor may have begun between the two checks. If the record is unchanged, it was released while
            // there was no successor.
            read = self.get(id, Load::All)?;
            if read.as_ref().is_some_and(|again| again.stored().revision == info.stored().revision) {
                return Ok(Some(Awaited::Released));
            }
        }
    }

    /// Reads the record at the deadline. A released record counts as released, even if a successor is about to begin.
    fn look_late(&self, id: &RecordId) -> Result<Awaited> {
        if let Some(ended) = self.look(id)? {
            return Ok(ended);
        }
        let released = self.get(id, Load::WithoutOutcome)?.is_some_and(|info| is_released(&info));
        Ok(if released { Awaited::Released } else { Awaited::TimedOut })
    }

    /// Returns the error for a closed queue: poison or close.
    fn gone(&self, id: &RecordId) -> Error {
        self.get(id, Load::WithoutOutcome).err().unwrap_or_else(Error::closed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::protocol::rules::Ending;
    use crate::protocol::tests::CallingClock;
    use crate::types::key::Key;
    use crate::types::options::{EngineOptions, OnInterrupted};

    thread_local! {
        /// The number of wake-ups that this thread still gets.
        static WAKES_LEFT: Cell<u32> = const { Cell::new(0) };
    }

    /// Returns how often a waiter was woken before it noticed that its deadline had passed.
    fn wakes(hands_over: bool, wait: impl FnOnce(&Protocol, &RecordId, &Start, Option<Instant>)) -> u32 {
        const WAKES: u32 = 1_000;
        let dir = tempfile::tempdir().unwrap();
        let clock = CallingClock::default();
        let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default().clock(clock.clone()), None).unwrap();
        let (protocol, start) = (Arc::new(protocol), Start::plain(OnInterrupted::Hold));
        let id = RecordId::new(&"m".into(), Key::new("k").unwrap());
        let Begun::Claimed(owner) = protocol.begin(&id, &start).unwrap() else { panic!("the key is new") };
        let (waking, at) = (Arc::downgrade(&protocol), id.at.clone());
        // The waiter reads the time between its read of the record and its wait. Each wait then ends at once.
        clock.calls(move || {
            let left = WAKES_LEFT.get();
            let Some(protocol) = waking.upgrade().filter(|_| left > 0) else { return };
            WAKES_LEFT.set(left - 1);
            if hands_over {
                protocol.wait_queue.hand_over(&at);
            } else {
                protocol.wait_queue.wake_all(&at);
            }
        });
        WAKES_LEFT.set(WAKES);
        wait(&protocol, &id, &start, Some(monotonic()));
        let woken = WAKES - WAKES_LEFT.replace(0);
        protocol.end(&id, owner.stored().token, &Ending::Release).unwrap();
        woken
    }

    #[test]
    fn each_wake_up_of_a_waiter_checks_its_deadline() {
        for hands_over in [false, true] {
            let begins = wakes(hands_over, |protocol, id, start, deadline| {
                let begun = protocol.begin_or_wait(id, start, deadline).unwrap();
                assert!(matches!(begun, Begun::InProgress(_)), "{begun:?}");
            });
            let waits = wakes(hands_over, |protocol, id, _, deadline| {
                let waited = protocol.wait(id, deadline).unwrap();
                assert!(matches!(waited, Awaited::TimedOut), "{waited:?}");
            });
            assert!((1..10).contains(&begins) && (1..10).contains(&waits), "woken {begins} and {waits} times");
        }
    }
}
