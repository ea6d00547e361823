//! Transactions: what a run has read and would write, as of one moment, and its commit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Because, Changed, Haste, Place, Protocol, Told, Written, lost, unexpected};
use crate::clock::NEVER;
use crate::error::{Error, ErrorKind, Result};
use crate::lanes::{LaneSet, Taken};
use crate::record::{Now, RecordInfo, Status};
use crate::store::{Change, Content, Depth, Entrant, Seen, StoreKey, Terms, Ticket};
use crate::transition::{Decision, Event, Step, decide};
use crate::value::Value;

thread_local! {
    /// The engines in whose transactions this thread is.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A claim, as long as it is where it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence<'a> {
    pub(crate) place: &'a Place,
    pub(crate) token: u64,
    pub(crate) point: &'a str,
}

/// What one run of a transaction has read, and what it would write.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    reads: Vec<Seen>,
    writes: BTreeMap<StoreKey, Option<Content>>,
    /// The records among the writes, and what they were.
    records: Vec<(StoreKey, Option<Status>)>,
    /// Of the newest thing that was read.
    ticket: Ticket,
    /// Of all that was read or written.
    lanes: LaneSet,
    /// When the first record was looked at: the time of all that is seen and decided.
    began: Option<Now>,
    /// Store time at which the first of the records that were seen is absent.
    until: Option<u64>,
    /// Something that was read has changed: this run comes to nothing.
    stale: bool,
}

/// A draft that was committed.
#[derive(Debug)]
pub(crate) struct Drafted {
    ticket: Ticket,
    written: Vec<Written>,
    decided: Option<Now>,
}

impl Draft {
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    fn check(&self) -> Result<()> {
        if self.stale { Err(stale()) } else { Ok(()) }
    }
}

impl Protocol {
    /// Runs a transaction's closure: meanwhile this thread may not call the engine otherwise.
    pub(crate) fn inside<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                let _ = INSIDE.try_with(|inside| inside.borrow_mut().pop());
            }
        }
        // It is gone where the thread ends: what runs there has nothing to be marked with.
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().push(self.address()));
        let _leave = Leave;
        f()
    }

    pub(crate) fn check_outside(&self) -> Result<()> {
        if INSIDE.try_with(|inside| inside.borrow().contains(&self.address())).unwrap_or(false) {
            let message = "the engine was called from inside a transaction, which can only use its own tables";
            return Err(Error::new(ErrorKind::InsideTransaction, message));
        }
        Ok(())
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// What a row holds, as of the same moment as everything else that the draft has read.
    pub(crate) fn read_row(&self, draft: &mut Draft, at: &StoreKey) -> Result<Option<Value>> {
        Ok(self.read_in(draft, at)?.and_then(Content::into_row))
    }

    pub(crate) fn write_row(&self, draft: &mut Draft, change: Change) -> Result<()> {
        draft.check()?;
        draft.lanes.add(self.store.stripe(&change.key));
        draft.writes.insert(change.key, change.content);
        Ok(())
    }

    pub(super) fn read_in(&self, draft: &mut Draft, at: &StoreKey) -> Result<Option<Content>> {
        draft.check()?;
        draft.lanes.add(self.store.stripe(at));
        if let Some(content) = draft.writes.get(at) {
            return Ok(content.clone());
        }
        let read = self.store.read(at, Depth::Whole)?;
        if read.record().is_some() {
            let lapses = read.lapses(&self.now_in(draft));
            draft.until = draft.until.into_iter().chain((lapses != NEVER).then_some(lapses)).min();
        }
        // What was read before is as it was, so all of it held at the moment of this read.
        draft.stale = !self.holds(draft);
        draft.check()?;
        draft.reads.push(read.seen);
        draft.ticket = draft.ticket.max(read.ticket);
        Ok(read.content)
    }

    /// The time in a draft. It stands still: what expires meanwhile ends the run, and what is made is moved to the commit.
    pub(super) fn now_in(&self, draft: &mut Draft) -> Now {
        *draft.began.get_or_insert_with(|| self.store.now())
    }

    /// Changes a record along with the rest.
    pub(super) fn change_in(&self, draft: &mut Draft, place: &Place, event: &Event<'_>) -> Result<Changed> {
        let content = self.read_in(draft, &place.at)?;
        let image = content.as_ref().and_then(Content::record);
        // What is shown to people is when it was changed.
        let now = Now { wall: self.store.now().wall, ..self.now_in(draft) };
        let after = match decide(image.map(Arc::as_ref), event, &now) {
            Decision::Write(image) => Some(Arc::new(*image)),
            Decision::Delete => None,
            Decision::Keep(because) => return Ok(Changed::Kept(because, self.show(place, image, &now))),
        };
        if !draft.writes.contains_key(&place.at) {
            draft.records.push((place.at.clone(), image.map(|image| image.status(&now))));
        }
        let changed = self.show(place, after.as_ref(), &now).map_or(Changed::Deleted, Changed::Written);
        draft.writes.insert(place.at.clone(), after.map(Content::Record));
        Ok(changed)
    }

    /// What a stage makes of its record, which must be where it was, from now to the commit.
    pub(crate) fn step(&self, draft: &mut Draft, fence: Fence<'_>, step: &Step) -> Result<()> {
        let Fence { place, token, point } = fence;
        match self.change_in(draft, place, &Event::Stage { token, point, step })? {
            Changed::Written(_) | Changed::Kept(Because::Already, _) => Ok(()),
            Changed::Kept(because, _) => Err(lost(place, because)),
            other @ Changed::Deleted => Err(unexpected(place, &other)),
        }
    }

    /// Whether everything that was read is still so.
    pub(crate) fn holds(&self, draft: &Draft) -> bool {
        !draft.stale
            && self.store.are_current(&draft.reads)
            && draft.until.is_none_or(|until| self.store.now().store < until)
    }

    /// Waits until everything that was read is durable: before that, nobody may be told.
    pub(crate) fn wait_for(&self, draft: &Draft) -> Result<()> {
        self.store.wait(draft.ticket)
    }

    /// Commits all of a draft; `None` if something that it read has changed. To be followed by
    /// [`tell`](Self::tell), once the lanes are given back.
    pub(crate) fn commit(&self, draft: &mut Draft) -> Result<Option<Drafted>> {
        if draft.writes.is_empty() {
            let drafted = Drafted { ticket: draft.ticket, written: Vec::new(), decided: None };
            return Ok(self.holds(draft).then_some(drafted));
        }
        let changes = std::mem::take(&mut draft.writes);
        let changes = changes.into_iter().map(|(key, content)| Change { key, content }).collect();
        let decided = draft.began.map(|now| now.store);
        let terms = Terms { who: Entrant::User, decided, until: draft.until.unwrap_or(NEVER) };
        let Some(committed) = self.store.commit(changes, &draft.reads, terms)? else { return Ok(None) };
        let written = draft.records.drain(..).map(|(at, before)| {
            let change = committed.changes.iter().find(|change| change.key == at);
            let after = change.and_then(Change::record).cloned();
            Written { at, before, after }
        });
        Ok(Some(Drafted { ticket: committed.ticket, written: written.collect(), decided: draft.began }))
    }

    /// Waits until a commit is durable, and wakes those whom it concerns. The record of the fence, if it was written.
    pub(crate) fn tell(&self, drafted: &Drafted, fence: Option<Fence<'_>>) -> Result<Option<RecordInfo>> {
        self.publish(&drafted.written, drafted.ticket, Haste::Durable)?;
        // As it was then: by now what was written may have expired.
        let Some(now) = drafted.decided else { return Ok(None) };
        for Written { at, after, .. } in &drafted.written {
            let ended = after.as_ref().filter(|image| matches!(image.state, Status::Succeeded | Status::Failed));
            let info = || self.show(&Place::from_store(at.clone())?, Some(ended?), &now);
            if let Some(info) = info() {
                self.hub.tell(|| Told::Ended(info.without_outcome()));
            }
        }
        let Some(Fence { place, .. }) = fence else { return Ok(None) };
        let written = drafted.written.iter().find(|written| written.at == place.at);
        Ok(written.and_then(|written| self.show(place, written.after.as_ref(), &now)))
    }

    /// Keeps others off what this draft has read and written, when it has met them too often.
    pub(crate) fn take_lanes(&self, draft: &Draft) -> Taken<'_> {
        self.lanes.take(draft.lanes)
    }

    /// Whether a transaction that has met others too often is at work on the same rows.
    pub(crate) fn is_in_a_taken_lane(&self, draft: &Draft) -> bool {
        !draft.writes.is_empty() && self.lanes.is_taken(draft.lanes)
    }

    /// Nobody waits for a lane.
    #[cfg(test)]
    pub(crate) fn impatient(mut self) -> Self {
        self.lanes = crate::lanes::Lanes::new(std::time::Duration::ZERO);
        self
    }

    /// A run came to nothing and is followed by another.
    pub(crate) fn rerun(&self) {
        self.reruns.add(1);
    }
}

fn stale() -> Error {
    Error::new(ErrorKind::Conflict, "what the transaction has read has changed: it runs again")
}
