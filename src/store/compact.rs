//! Finds what is expired, and what a crash has left behind, and has the apply thread delete it.
//!
//! What is due is led to by the blocks of the expiry tree: the cost is that of what is deleted, not of what is kept. Leftovers
//! can only come from a crash, so they are looked for after one, in the background, step by step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::ahead::Ahead;
use super::apply::{Deleted, Deletion};
use super::format::frame::StoreKey;
use super::format::{behind, block};
use super::values::{self, Due, Load, Stray};
use super::{Index, Inner, Store};
use crate::store::sled::tables::Name;
use crate::types::clock::NEVER;
use crate::types::error::Result;
use crate::types::record::{Status, StoredRecord};

/// Blocks of the expiry tree that a pass takes at once, to go through their keys in order.
const AHEAD: usize = if cfg!(test) { 2 } else { 1 << 12 };

/// What one step found to delete.
#[derive(Debug, Default)]
pub(super) struct Found {
    due: Vec<Due>,
    strays: Vec<Stray>,
}

#[cfg(test)]
impl Found {
    pub(super) fn of(key: StoreKey, bytes: ::sled::IVec) -> Self {
        Self::of_many(vec![(key, bytes)])
    }

    pub(super) fn of_many(due: Vec<Due>) -> Self {
        Self { due, strays: Vec::new() }
    }
}

/// How far one pass has come. To be ended by [`Store::end_pass`].
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// Blocks whose time has not come are looked at too, for those of their records that have expired.
    is_exact: bool,
    ahead: Ahead,
    from: Vec<u8>,
    under_way: Option<UnderWay>,
}

impl Pass {
    /// Over all that has expired; else blocks are left until all their records have.
    pub(crate) fn exact() -> Self {
        Self { is_exact: true, ..Self::default() }
    }

    /// The last time of a block that it looks at.
    fn until(&self, now: u64) -> u64 {
        if self.is_exact { block::time(now) } else { now }
    }
}

/// What the apply thread was given to delete, and answers when it has.
type UnderWay = Receiver<Result<Deleted>>;

/// What is known of expiries that no entry of the tree leads to, and of what a crash has left behind.
#[derive(Debug)]
pub(super) struct Leftovers {
    /// When the first record whose process died expires.
    dead_due: AtomicU64,
    /// Where the search for pieces that nobody names goes on.
    pieces: Mutex<Option<Vec<u8>>>,
}

impl Leftovers {
    /// There can only be some if a crash was noted, and not all was looked at since.
    pub(super) fn new(noted: bool) -> Self {
        Self { dead_due: AtomicU64::new(NEVER), pieces: Mutex::new(noted.then(Vec::new)) }
    }
}

/// What a look at all unfinished records found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) interrupted: u64,
    deleted: Deleted,
}

impl Store {
    /// When something is to be deleted, in store time; [`NEVER`] if nothing is known of.
    pub(crate) fn next_due(&self) -> Result<u64> {
        if self.leftovers.pieces.lock().is_some() {
            return Ok(0);
        }
        // In this order: a block that is written meanwhile is seen twice.
        let not_listed = self.inner.not_listed.load(Ordering::Acquire);
        let first = self.inner.tables.range(Name::Expiry, &[], None, 1)?;
        let first = first.first().map_or(NEVER, |(key, _)| block::time_of(key));
        Ok(first.min(not_listed).min(self.dead_due()))
    }

    /// The earliest time at which something unfinished expires; [`NEVER`] if nothing does.
    pub(crate) fn dead_due(&self) -> u64 {
        self.leftovers.dead_due.load(Ordering::Relaxed)
    }

    /// How long until then; `None` if nobody can tell, because time is moved by hand.
    pub(crate) fn time_until(&self, due: u64) -> Option<Duration> {
        let clock = &self.inner.clock;
        (due != NEVER && !clock.is_manual()).then(|| Duration::from_millis(due.saturating_sub(clock.now())))
    }

    /// Whether everything committed is in sled.
    pub(crate) fn is_drained(&self) -> bool {
        self.inner.commit_queue.unapplied() == 0
    }

    /// Gives some of what is due to the apply thread to delete, about `limit` records, and says what came of those before;
    /// `None` when there is no more.
    pub(crate) fn compact(&self, pass: &mut Pass, limit: usize) -> Result<Option<Deleted>> {
        self.inner.check()?;
        let now = self.inner.clock.now();
        if let Some(found) = self.inner.find_expired(pass, now, limit)? {
            // Found while those were being deleted.
            let before = self.end_pass(pass)?;
            pass.under_way = self.inner.begin_deletion(found)?;
            return Ok(Some(before));
        }
        if pass.under_way.is_some() {
            return self.end_pass(pass).map(Some);
        }
        if self.dead_due() <= now {
            return self.survey_unfinished(limit).map(|survey| Some(survey.deleted));
        }
        self.sweep_pieces(limit)
    }

    /// Waits for what the apply thread was given, and says what came of it.
    pub(crate) fn end_pass(&self, pass: &mut Pass) -> Result<Deleted> {
        pass.under_way.take().map_or(Ok(Deleted::default()), |under_way| self.inner.end_deletion(&under_way))
    }

    /// Counts what is interrupted, and deletes what is expired because its process died, and entries that lead nowhere. Looks
    /// at all that is unfinished.
    pub(super) fn survey_unfinished(&self, limit: usize) -> Result<Survey> {
        let (mut from, mut survey, mut dead_due) = (Some(StoreKey::first_record()), Survey::default(), NEVER);
        let end = from.as_ref().and_then(StoreKey::behind_prefix);
        while let Some(at) = from {
            let (keys, next) = self.keys(Index::Unfinished, &at, end.as_ref(), limit)?;
            let (now, mut found) = (self.now(), Found::default());
            for key in keys {
                let in_overlay = self.inner.overlay.contains(&key);
                let read = self.inner.read(&key, Load::WithoutOutcome)?;
                match read.record() {
                    Some(stored) if stored.seen(&now).is_none() => {
                        // Sled may have another revision by now, which is not due.
                        let held = values::found(&self.inner.tables, &key)?;
                        let held = held.filter(|(head, _)| head.revision == stored.revision);
                        found.due.extend(held.map(|(_, bytes)| (key, bytes)));
                    }
                    Some(stored) if is_unfinished(stored) => {
                        survey.interrupted += u64::from(stored.status(&now) == Status::Interrupted);
                        dead_due = dead_due.min(stored.expires_at(&now));
                    }
                    _ if in_overlay => {}
                    _ => found.strays.push(Stray::Unfinished(key)),
                }
            }
            survey.deleted += self.inner.delete(found)?;
            from = next;
        }
        self.leftovers.dead_due.store(dead_due, Ordering::Relaxed);
        Ok(survey)
    }

    /// Looks at the pieces of about `limit` values, and deletes those that nobody names.
    fn sweep_pieces(&self, limit: usize) -> Result<Option<Deleted>> {
        let Some(mut from) = self.leftovers.pieces.lock().clone() else { return Ok(None) };
        let (mut found, mut ended) = (Found::default(), false);
        for _ in 0..limit {
            let Some((pieces, next)) = values::next_pieces(&self.inner.tables, &from)? else {
                found.strays.push(Stray::SweepNote);
                ended = true;
                break;
            };
            // What is being written now looks like one; the apply thread looks again.
            if values::is_stray(&self.inner.tables, &pieces)? {
                found.strays.push(pieces);
            }
            from = next;
        }
        let deleted = self.inner.delete(found)?;
        // Two passes at once look at some twice.
        *self.leftovers.pieces.lock() = (!ended).then_some(from);
        Ok(Some(deleted))
    }
}

fn is_unfinished(stored: &StoredRecord) -> bool {
    matches!(stored.state, Status::InProgress | Status::Released | Status::Interrupted)
}

impl Inner {
    /// What the next so many keys of the expiry tree lead to, as far as it is due; `None` when there are no more.
    pub(super) fn find_expired(&self, pass: &mut Pass, now: u64, limit: usize) -> Result<Option<Found>> {
        if pass.from.is_empty() && self.not_listed.load(Ordering::Acquire) <= pass.until(now) {
            self.list_expiries()?;
        }
        if pass.ahead.is_empty() {
            let strays = pass.ahead.take_emptied();
            if !strays.is_empty() {
                return Ok(Some(Found { due: Vec::new(), strays }));
            }
            if !self.look_ahead(pass, now)? {
                return Ok(None);
            }
        }
        let mut found = Found::default();
        for key in pass.ahead.take(limit) {
            // What was begun anew is written anew, and named then if it expires; looked for before the record is read, for
            // what is being applied is still here.
            if self.overlay.contains(&key) {
                continue;
            }
            let held = values::found(&self.tables, &key)?;
            found.due.extend(held.filter(|(head, _)| head.expires <= now).map(|(_, bytes)| (key, bytes)));
        }
        Ok(Some(found))
    }

    /// Whether there is more that is due.
    fn look_ahead(&self, pass: &mut Pass, now: u64) -> Result<bool> {
        let end = pass.until(now).saturating_add(1).to_be_bytes();
        let blocks = self.tables.range(Name::Expiry, &pass.from, Some(&end), AHEAD)?;
        let Some((last, _)) = blocks.last() else { return Ok(false) };
        pass.from = behind(last);
        pass.ahead = Ahead::new(blocks, now)?;
        Ok(true)
    }

    /// Has the apply thread write the blocks that it is filling.
    pub(super) fn list_expiries(&self) -> Result<()> {
        let under_way = self.send_deletion(Found::default(), true)?;
        self.end_deletion(&under_way).map(drop)
    }

    /// Deletes records that are absent for every reader already, unless somebody has begun them anew.
    pub(super) fn delete(&self, found: Found) -> Result<Deleted> {
        let under_way = self.begin_deletion(found)?;
        under_way.map_or(Ok(Deleted::default()), |under_way| self.end_deletion(&under_way))
    }

    pub(super) fn begin_deletion(&self, found: Found) -> Result<Option<UnderWay>> {
        let Found { mut due, strays } = found;
        self.commit_queue.exclusive(|| {
            due.retain(|(key, _)| !self.overlay.contains(key));
            self.changed(due.iter().map(|(key, _)| key));
        });
        if due.is_empty() && strays.is_empty() {
            return Ok(None);
        }
        self.send_deletion(Found { due, strays }, false).map(Some)
    }

    fn send_deletion(&self, Found { due, strays }: Found, lists: bool) -> Result<UnderWay> {
        self.look_for_room();
        let (reply, deleted) = crossbeam_channel::bounded(1);
        // A queue of one that is full is one more thing to wait for, and may never be emptied.
        crossbeam_channel::select! {
            send(self.apply.deletions, Deletion { lists, records: due, strays, reply }) -> sent => sent.map_err(|_| self.ended())?,
            recv(self.apply.ended) -> _ => return Err(self.ended()),
        }
        Ok(deleted)
    }

    pub(super) fn end_deletion(&self, under_way: &UnderWay) -> Result<Deleted> {
        crossbeam_channel::select! {
            recv(under_way) -> deleted => deleted.unwrap_or_else(|_| {
                // It failed at this very message, and says why before it has ended.
                let Err(crossbeam_channel::RecvError) = self.apply.ended.recv();
                Err(self.ended())
            }),
            recv(self.apply.ended) -> _ => Err(self.ended()),
        }
    }
}
