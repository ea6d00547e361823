//! Ends claims without an outcome and without a wait: those that were dropped, and those whose process died.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{Action, Changed, Event, ListRange, Protocol, RecordId, StoreKey, WaitFor};
use crate::protocol::rules::{Ending, Patch};
use crate::types::clock::NEVER;
use crate::types::error::{self, ErrorKind, Result};
use crate::types::record::{RecordInfo, Status};

/// The number of records that an open reads in one step.
const BATCH: usize = 1024;

/// Drops that could not be recorded at once, with their tokens.
#[derive(Debug, Default)]
pub(super) struct Abandoned {
    /// False if there is no such drop, so that a call learns that without the lock. Changed with the lock held.
    is_any: AtomicBool,
    all: Mutex<HashMap<StoreKey, Dropped>>,
}

type Dropped = (RecordId, u64, Ending);

impl Abandoned {
    fn change(&self, change: impl FnOnce(&mut HashMap<StoreKey, Dropped>)) {
        let mut all = self.all.lock();
        change(&mut all);
        self.is_any.store(!all.is_empty(), Ordering::Release);
    }

    fn add(&self, id: &RecordId, token: u64, ending: Ending) {
        self.change(|all| drop(all.insert(id.at.clone(), (id.clone(), token, ending))));
    }

    fn get(&self, at: &StoreKey) -> Option<Dropped> {
        if self.is_empty() { None } else { self.all.lock().get(at).cloned() }
    }

    fn all(&self) -> Vec<Dropped> {
        if self.is_empty() { Vec::new() } else { self.all.lock().values().cloned().collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_any.load(Ordering::Acquire)
    }
}

impl Protocol {
    /// Stores the expiry of records whose process died and that have a TTL. The TTL starts at the open that finds them.
    /// If this expiry were not stored, the next open would start it again, and records that readers saw as absent would
    /// return. Called before the first claim.
    pub(super) fn record_deaths(&self) -> Result<()> {
        let mut range = (self.store.unfinished_due() != NEVER).then(|| ListRange::new(None, &[], true));
        let mut recorded = false;
        while let Some(from) = range {
            let (infos, next) = self.list(&from, BATCH)?;
            let dead = |info: &&RecordInfo| info.stored().state == Status::InProgress;
            for info in infos.iter().filter(dead).filter(|info| info.stored().interrupted_ttl != NEVER) {
                let id = RecordId::new(&info.manager().into(), info.key().clone());
                match self.change(&id, &Action::Patch(&Patch::default()), WaitFor::Nothing) {
                    // The journal is full. The TTL starts at the next open instead, and this open serves reads.
                    Err(error) if error.kind() == ErrorKind::Full => return Ok(()),
                    changed => recorded |= matches!(changed?, Changed::Written(_)),
                }
            }
            range = next;
        }
        if recorded { self.store.sync() } else { Ok(()) }
    }

    /// Ends a claim without an outcome and without waiting, for a drop. A drop that cannot be recorded now is recorded
    /// when a caller asks for the key, before a transaction, or by the background compaction. If the engine is closed
    /// or poisoned, or this is a child of `fork`, the drop is never recorded, and the next open finds the claim
    /// interrupted.
    pub(crate) fn abandon(&self, id: &RecordId, token: u64, ending: Ending) {
        let given_up =
            error::handled(|| self.give_up(id, token, &ending, WaitFor::Nothing).map_err(|error| error.kind()));
        if let Err(kind) = given_up {
            self.drops_not_recorded.add(1);
            if !matches!(kind, ErrorKind::Closed | ErrorKind::Poisoned | ErrorKind::StoreInUse) {
                self.abandoned.add(id, token, ending);
                self.due.lower(0);
            }
        }
    }

    /// Records the drops that could not be recorded at once. Also called before a transaction, which may read any
    /// record.
    pub(crate) fn record_drops(&self) {
        for (id, token, ending) in self.abandoned.all() {
            // These errors come from the journal, so the other drops would fail too. Any other error is about one
            // record.
            let recorded = self.record_drop(&id, token, &ending);
            if let Err(ErrorKind::Full | ErrorKind::Io | ErrorKind::Closed | ErrorKind::Poisoned) = recorded {
                return;
            }
        }
    }

    /// Records the drop of one key, if it has one that is not recorded.
    pub(super) fn record_drop_of(&self, id: &RecordId) {
        // Most keys have no such drop.
        if let Some((id, token, ending)) = self.abandoned.get(&id.at) {
            // After an error, the next caller tries again.
            let _: Result<(), ErrorKind> = self.record_drop(&id, token, &ending);
        }
    }

    /// Records one drop, and only then removes it from the list: a caller that asks in between must not find the key in
    /// progress. If two threads record it, the rules accept one.
    fn record_drop(&self, id: &RecordId, token: u64, ending: &Ending) -> Result<(), ErrorKind> {
        // The caller asked for something else, so it gets no error from here.
        let recorded = error::handled(|| self.give_up(id, token, ending, WaitFor::Sync).map_err(|error| error.kind()));
        if recorded.is_ok() {
            self.abandoned.change(|all| {
                if all.get(&id.at).is_some_and(|(_, of, _)| *of == token) {
                    all.remove(&id.at);
                }
            });
        } else {
            // Schedule the compaction again: a pass that ran meanwhile has not seen this drop.
            self.due.lower(0);
        }
        recorded
    }

    /// Adds a drop as if it could not be recorded at once.
    #[cfg(test)]
    pub(crate) fn abandon_unrecorded(&self, id: &RecordId, token: u64, ending: Ending) {
        self.abandoned.add(id, token, ending);
    }

    fn give_up(&self, id: &RecordId, token: u64, ending: &Ending, wait_for: WaitFor) -> Result<()> {
        // Any other result means that another caller ended or removed the record.
        if let Changed::Written(info) =
            self.change_directly(id, &Action::End { token, ending, ttl: None }, wait_for, None)?
        {
            self.subscribers.notify(|| Event::Ended(info.without_outcome()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Begun;
    use crate::protocol::rules::Start;
    use crate::types::key::Key;
    use crate::types::options::{EngineOptions, OnInterrupted};

    #[test]
    fn no_caller_finds_a_key_in_progress_while_its_drop_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default(), None).unwrap();
        let start = Start::plain(OnInterrupted::Hold);
        let claim = |id: &RecordId| match protocol.begin(id, &start).unwrap() {
            Begun::Claimed(info) => info.stored().token,
            other => panic!("{}: {other:?}", id.named()),
        };
        let ids: Vec<_> = (0..64).map(|n| RecordId::new(&"m".into(), Key::new(format!("{n}")).unwrap())).collect();
        for id in &ids {
            protocol.abandon_unrecorded(id, claim(id), Ending::Release);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| protocol.record_drops());
            // Each `begin` waits for a sync, so the other thread runs in between.
            for id in &ids {
                claim(id);
            }
        });
        assert!(protocol.abandoned.is_empty());
        assert_eq!(protocol.stats().in_progress, 64);
    }

    #[test]
    fn a_drop_that_could_not_be_recorded_after_any_error_is_recorded_later() {
        let dir = tempfile::tempdir().unwrap();
        // One group fills a segment, and no further segment can be created.
        let options = EngineOptions::default().segment_bytes(4096).compaction_interval(std::time::Duration::MAX);
        let (protocol, _) = Protocol::open(dir.path(), &options, None).unwrap();
        let start = Start::plain(OnInterrupted::Hold);
        let ids: Vec<_> = (0..200).map(|n| RecordId::new(&"m".into(), Key::new(format!("{n}")).unwrap())).collect();
        // No segment is used again. Take the names of the next ones: the error is then not `Full`.
        let pinned = protocol.store.pin_segments();
        let taken: Vec<_> = (2..2000).map(|n| dir.path().join(format!("store/journal/{n:08}.journal"))).collect();
        let mut claims = Vec::new();
        for id in &ids {
            match protocol.begin(id, &start) {
                Ok(Begun::Claimed(info)) => claims.push((id, info.stored().token)),
                Ok(other) => panic!("{}: {other:?}", id.named()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                    break;
                }
            }
            if claims.len() == 10 {
                for path in &taken {
                    let _ = std::fs::create_dir(path);
                }
            }
        }
        assert!((10..200).contains(&claims.len()));
        let uses = error::uses();
        for (id, token) in &claims {
            protocol.abandon(id, *token, Ending::Release);
        }
        assert!(!protocol.abandoned.is_empty());
        protocol.record_drops();
        for (id, _) in &claims {
            protocol.record_drop_of(id);
        }
        assert!(!protocol.abandoned.is_empty());
        assert_eq!(error::uses(), uses, "errors of drops do not count for the running operation");
        for path in &taken {
            let _ = std::fs::remove_dir(path);
        }
        drop(pinned);
        protocol.record_drops();
        for (id, _) in &claims {
            // The first attempt may only ask for a new segment.
            let begun = (0..5).find_map(|_| protocol.begin(id, &start).ok());
            assert!(matches!(begun, Some(Begun::Claimed(_))), "{} is still in progress", id.named());
        }
        assert!(protocol.abandoned.is_empty());
    }
}
