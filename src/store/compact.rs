//! Finds what is expired, and what a crash has left behind, and has the apply thread delete it.
//!
//! What is due is led to by the expiry tree: the cost is that of what is deleted, not of what is kept. Leftovers can only come
//! from a crash, so they are looked for after one, in the background, step by step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::apply::{Deleted, Deletion};
use super::format::behind;
use super::format::frame::{Content, StoreKey};
use super::tables::Name;
use super::values::{self, Depth, Stray};
use super::{Index, Inner, Store};
use crate::clock::NEVER;
use crate::error::Result;
use crate::record::{Image, Status};

/// Entries looked at in one step for the first that is due.
const HINTS: usize = 64;

/// A record to delete, if it is still at this revision.
type Due = (StoreKey, u64);

/// What one step found to delete.
#[derive(Debug, Default)]
pub(super) struct Found {
    due: Vec<Due>,
    strays: Vec<Stray>,
}

#[cfg(test)]
impl Found {
    pub(super) fn of(key: StoreKey, revision: u64) -> Self {
        Self { due: vec![(key, revision)], strays: Vec::new() }
    }
}

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
        let (mut from, dead_due) = (Vec::new(), self.leftovers.dead_due.load(Ordering::Relaxed));
        loop {
            let hints = self.inner.tables.range(Name::Expiry, &from, None, HINTS)?;
            let Some((last, _)) = hints.last() else { return Ok(dead_due) };
            from = behind(last);
            // A key that was begun anew is not due; its next ending says when it is.
            let mut due = hints.iter().filter_map(|(hint, _)| values::split_expiry_key(hint));
            if let Some((time, _)) = due.find(|(_, raw)| !self.inner.overlay.contains(&StoreKey::from_record_tree(raw)))
            {
                return Ok(time.min(dead_due));
            }
        }
    }

    /// How long until then; `None` if nobody can tell, because time is moved by hand.
    pub(crate) fn time_until(&self, due: u64) -> Option<Duration> {
        let clock = &self.inner.clock;
        (due != NEVER && !clock.is_manual()).then(|| Duration::from_millis(due.saturating_sub(clock.now())))
    }

    /// Whether everything committed is in sled.
    pub(crate) fn is_drained(&self) -> bool {
        self.inner.group.unapplied() == 0
    }

    /// Deletes some of what is due, about `limit` records; `None` when there is no more.
    pub(crate) fn compact(&self, limit: usize) -> Result<Option<Deleted>> {
        self.inner.check()?;
        let now = self.inner.clock.now();
        if let Some(found) = self.inner.find_expired(now, limit)? {
            return self.inner.delete(found).map(Some);
        }
        if self.leftovers.dead_due.load(Ordering::Relaxed) <= now {
            return self.survey_unfinished(limit).map(|survey| Some(survey.deleted));
        }
        self.sweep_pieces(limit)
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
                let read = self.inner.read(&key, Depth::Head)?;
                match read.record() {
                    Some(image) if image.seen(&now).is_none() => found.due.push((key, image.revision)),
                    Some(image) if is_unfinished(image) => {
                        survey.interrupted += u64::from(image.status(&now) == Status::Interrupted);
                        dead_due = dead_due.min(image.expires_at(&now));
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

fn is_unfinished(image: &Image) -> bool {
    matches!(image.state, Status::InProgress | Status::Released | Status::Interrupted)
}

impl Inner {
    /// What the expiry tree leads to, as far as it is due.
    pub(super) fn find_expired(&self, now: u64, limit: usize) -> Result<Option<Found>> {
        let end = now.saturating_add(1).to_be_bytes();
        let mut from = Vec::new();
        loop {
            let hints = self.tables.range(Name::Expiry, &from, Some(&end), limit)?;
            let Some((last, _)) = hints.last() else { return Ok(None) };
            // Where to go on if all of these are of keys that were begun anew.
            from = behind(last);
            let mut found = Found::default();
            for (hint, _) in hints {
                let Some((time, raw)) = values::split_expiry_key(&hint) else {
                    found.strays.push(Stray::Expiry(hint));
                    continue;
                };
                let key = StoreKey::from_record_tree(raw);
                // After the hint was read, before the record is: what is being applied is still here.
                if self.overlay.contains(&key) {
                    continue;
                }
                match values::read(&self.tables, &key, Depth::Head)? {
                    Some(Content::Record(image)) if image.expires == time => found.due.push((key, image.revision)),
                    _ => found.strays.push(Stray::Expiry(hint)),
                }
            }
            if !found.due.is_empty() || !found.strays.is_empty() {
                return Ok(Some(found));
            }
        }
    }

    /// Deletes records that are absent for every reader already, unless somebody has begun them anew.
    pub(super) fn delete(&self, found: Found) -> Result<Deleted> {
        let Found { mut due, strays } = found;
        self.group.exclusive(|| {
            due.retain(|(key, _)| !self.overlay.contains(key));
            for (key, _) in &due {
                self.move_stripe(key);
            }
        });
        if due.is_empty() && strays.is_empty() {
            return Ok(Deleted::default());
        }
        self.look_for_room();
        let (reply, deleted) = crossbeam_channel::bounded(1);
        // A queue of one that is full is one more thing to wait for, and may never be emptied.
        crossbeam_channel::select! {
            send(self.apply.deletions, Deletion { records: due, strays, reply }) -> sent => sent.map_err(|_| self.ended())?,
            recv(self.apply.ended) -> _ => return Err(self.ended()),
        }
        crossbeam_channel::select! {
            recv(deleted) -> deleted => deleted.unwrap_or_else(|_| {
                // It failed at this very message, and says why before it has ended.
                let Err(crossbeam_channel::RecvError) = self.apply.ended.recv();
                Err(self.ended())
            }),
            recv(self.apply.ended) -> _ => Err(self.ended()),
        }
    }
}
