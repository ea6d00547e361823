//! Transactions: what a run has read and would write, as of one moment, and its commit.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Because, Changed, Haste, Place, Protocol, Told, Written, lost, unexpected};
use crate::clock::NEVER;
use crate::error::{Error, ErrorKind, Result};
use crate::lanes::{LaneSet, Taken};
use crate::record::{Now, RecordInfo, Status};
use crate::store::{Change, Content, Depth, Entrant, Seen, Store, StoreKey, Terms, Ticket};
use crate::telemetry;
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
    reads: BTreeSet<Seen>,
    /// The store's moves when all that was read was last looked at and was current.
    as_of: Option<u64>,
    /// How many of them were looked at for that, all times together.
    #[cfg(test)]
    looked: usize,
    writes: BTreeMap<StoreKey, Option<Content>>,
    /// The records among the writes, and what they were.
    records: Vec<(StoreKey, Option<Status>)>,
    /// Those of them whose time runs on as before.
    kept: Vec<StoreKey>,
    /// Of the newest thing that was read.
    ticket: Ticket,
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

    pub(crate) fn write_row(&mut self, change: Change) -> Result<()> {
        self.check()?;
        self.writes.insert(change.key, change.content);
        Ok(())
    }

    /// The lanes of all that was read.
    pub(crate) fn read_lanes(&self) -> LaneSet {
        self.reads.iter().map(|read| read.stripe()).collect()
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

    pub(super) fn read_in(&self, draft: &mut Draft, at: &StoreKey) -> Result<Option<Content>> {
        draft.check()?;
        if let Some(content) = draft.writes.get(at) {
            return Ok(content.clone());
        }
        let read = self.store.read(at, Depth::Whole)?;
        if read.record().is_some() {
            let lapses = read.lapses(&self.now_in(draft));
            draft.until = draft.until.into_iter().chain((lapses != NEVER).then_some(lapses)).min();
        }
        draft.reads.insert(read.seen);
        draft.ticket = draft.ticket.max(read.ticket);
        // What was read before is as it was, so all of it held at the moment of this read.
        draft.stale = !self.holds(draft);
        draft.check()?;
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
        let is_first = !draft.writes.contains_key(&place.at);
        if is_first {
            draft.records.push((place.at.clone(), image.map(|image| image.status(&now))));
        }
        if !event.keeps_expiry() {
            draft.kept.retain(|kept| *kept != place.at);
        } else if is_first {
            draft.kept.push(place.at.clone());
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

    /// Whether everything that was read is still so. Looks at all of it only when something has been committed meanwhile.
    pub(crate) fn holds(&self, draft: &mut Draft) -> bool {
        if draft.stale {
            return false;
        }
        let moves = Some(self.store.moves());
        if draft.as_of != moves {
            #[cfg(test)]
            {
                draft.looked += draft.reads.len();
            }
            if !draft.reads.iter().all(|read| self.store.is_current(*read)) {
                return false;
            }
            draft.as_of = moves;
        }
        draft.until.is_none_or(|until| self.store.now().store < until)
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
        let until = draft.until.unwrap_or(NEVER);
        let terms = Terms { who: Entrant::User, decided, kept: &draft.kept, until };
        let reads: Vec<Seen> = draft.reads.iter().copied().collect();
        let Some(committed) = self.store.commit(changes, &reads, terms)? else { return Ok(None) };
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

    /// For a transaction that keeps others off what they have changed under it.
    pub(crate) fn no_lanes(&self) -> Taken<'_> {
        self.lanes.none()
    }

    /// The lanes of what a draft has read and somebody has changed since.
    pub(crate) fn changed_lanes(&self, draft: &Draft) -> LaneSet {
        draft.reads.iter().filter(|read| !self.store.is_current(**read)).map(|read| read.stripe()).collect()
    }

    /// The lanes of what a draft writes, the record of its claim included.
    pub(crate) fn written_lanes(draft: &Draft, fence: Option<Fence<'_>>) -> LaneSet {
        draft.writes.keys().chain(fence.map(|fence| &fence.place.at)).map(Store::stripe).collect()
    }

    #[cfg(test)]
    pub(crate) fn is_lane_taken(&self, at: &StoreKey) -> bool {
        self.lanes.is_taken(&LaneSet::from_iter([Store::stripe(at)]))
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
        telemetry::runs_again();
    }
}

fn stale() -> Error {
    Error::new(ErrorKind::Conflict, "what the transaction has read has changed: it runs again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::EngineOptions;

    fn open() -> (tempfile::TempDir, Protocol) {
        let dir = tempfile::tempdir().unwrap();
        let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default(), None).unwrap();
        (dir, protocol)
    }

    fn at(number: u32) -> StoreKey {
        Protocol::row("t", &number.to_be_bytes()).unwrap()
    }

    fn put(protocol: &Protocol, number: u32) {
        protocol.put_row(protocol.row_change("t", &number.to_be_bytes(), Some(b"x")).unwrap()).unwrap();
    }

    // Each read looked at all before it: a phase of 32,000 took seconds.
    #[test]
    fn what_was_read_is_looked_at_again_only_after_a_commit() {
        let (_dir, protocol) = open();
        let mut draft = Draft::default();
        for number in 0..1000 {
            assert_eq!(protocol.read_row(&mut draft, &at(number)).unwrap(), None);
        }
        assert_eq!(draft.looked, 1, "the first one");
        let reads = draft.reads.len();
        put(&protocol, 5000);
        for number in 0..1000 {
            protocol.read_row(&mut draft, &at(number)).unwrap();
        }
        assert_eq!((draft.looked, draft.reads.len()), (1 + reads, reads), "once more, and nothing is noted twice");
        assert!(protocol.commit(&mut draft).unwrap().is_some());
    }

    #[test]
    fn a_commit_is_met_by_the_very_next_read_and_by_the_end() {
        let (_dir, protocol) = open();
        for next in [0, 1, 2] {
            let mut draft = Draft::default();
            for number in [0, 1] {
                protocol.read_row(&mut draft, &at(number)).unwrap();
            }
            put(&protocol, 0);
            assert_eq!(protocol.read_row(&mut draft, &at(next)).unwrap_err().kind(), ErrorKind::Conflict, "{next}");
            assert!(draft.is_stale() && !protocol.holds(&mut draft));
            assert!(protocol.changed_lanes(&draft) == LaneSet::from_iter([Store::stripe(&at(0))]));
        }
        let mut draft = Draft::default();
        protocol.read_row(&mut draft, &at(0)).unwrap();
        put(&protocol, 0);
        assert!(protocol.commit(&mut draft).unwrap().is_none(), "a phase that only reads");
    }
}
