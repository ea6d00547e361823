//! Waiting for another owner: enter the queue, read again, park.

use std::time::Instant;

use super::{Begun, Place, Protocol};
use crate::error::{Error, ErrorKind, Result};
use crate::record::{RecordInfo, Status};
use crate::slots::{Role, Woken};
use crate::store::Depth;
use crate::transition::Start;

/// How a wait ended.
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
    /// As `begin`, but waits for another owner until the deadline, and may take the key over when that gives up.
    pub(crate) fn begin_or_wait(&self, place: &Place, start: &Start, deadline: Option<Instant>) -> Result<Begun> {
        let first = self.begin(place, start)?;
        if !matches!(first, Begun::InProgress(_)) {
            return Ok(first);
        }
        let mut seat = self.slots.enter(place.at.clone(), Role::Heir);
        let mut overtaken = false;
        let mut timed_out = false;
        loop {
            // Read after entering the queue: an ending in between was not missed.
            let begun = self.begin(place, start)?;
            match begun {
                Begun::Claimed(_) => {
                    seat.claimed();
                    return Ok(begun);
                }
                Begun::InProgress(_) if !timed_out => {}
                // A turn that this seat may have is passed on when it is dropped.
                other => return Ok(other),
            }
            if overtaken {
                seat.rejoin();
                overtaken = false;
                continue;
            }
            match seat.park(deadline) {
                Woken::Look | Woken::Turn => overtaken = true,
                Woken::TimedOut => timed_out = true,
                Woken::Closed => return Err(self.gone(place)),
            }
        }
    }

    /// Waits until nobody is at work on the key.
    pub(crate) fn wait(&self, place: &Place, deadline: Option<Instant>) -> Result<Awaited> {
        if let Some(ended) = self.look(place)? {
            return Ok(ended);
        }
        let mut seat = self.slots.enter(place.at.clone(), Role::Observer);
        loop {
            if let Some(ended) = self.look(place)? {
                return Ok(ended);
            }
            match seat.park(deadline) {
                Woken::Look | Woken::Turn => {
                    if let Some(ended) = self.look(place)? {
                        return Ok(ended);
                    }
                    // Somebody else has begun already.
                    seat.rejoin();
                }
                Woken::TimedOut => return Ok(self.look(place)?.unwrap_or(Awaited::TimedOut)),
                Woken::Closed => {
                    let error = self.gone(place);
                    return if error.kind() == ErrorKind::Closed { Ok(Awaited::Closed) } else { Err(error) };
                }
            }
        }
    }

    /// `None` while somebody is at work.
    fn look(&self, place: &Place) -> Result<Option<Awaited>> {
        let Some(info) = self.get(place, Depth::Whole)? else { return Ok(Some(Awaited::Absent)) };
        Ok(match info.status() {
            Status::InProgress => None,
            Status::Succeeded | Status::Failed => Some(Awaited::Finished(info)),
            Status::Released => Some(Awaited::Released),
            Status::Interrupted => Some(Awaited::Interrupted),
        })
    }

    /// Why the queues were closed.
    fn gone(&self, place: &Place) -> Error {
        self.get(place, Depth::Head).err().unwrap_or_else(Error::closed)
    }
}
