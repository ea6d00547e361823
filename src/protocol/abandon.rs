//! Claims that were dropped, or whose process died: ended without an answer and without a wait.

use super::{Changed, Event, Haste, ListRange, Place, Protocol, Told};
use crate::clock::NEVER;
use crate::error::{ErrorKind, Result};
use crate::record::{RecordInfo, Status};
use crate::transition::{Ending, Patch};

/// Records that an open looks at in one step.
const BATCH: usize = 1024;

impl Protocol {
    /// To be called before anybody can begin. Of the dead whose time runs out, it runs from the open that found them: kept in
    /// memory only, it would start again with the next open, and who was told that a record is absent would see it again.
    pub(super) fn record_deaths(&self) -> Result<()> {
        let mut range = (self.store.dead_due() != NEVER).then(|| ListRange::new(None, &[], true));
        let mut recorded = false;
        while let Some(from) = range {
            let (infos, next) = self.list(&from, BATCH)?;
            let dead = |info: &&RecordInfo| info.image().state == Status::InProgress;
            for info in infos.iter().filter(dead).filter(|info| info.image().unfinished_ttl != NEVER) {
                let place = Place::new(&info.manager().into(), info.key().clone());
                match self.change(&place, &Event::Patch(&Patch::default()), Haste::Committed) {
                    // As late as the next open, but all can be read.
                    Err(error) if error.kind() == ErrorKind::Full => return Ok(()),
                    changed => recorded |= matches!(changed?, Changed::Written(_)),
                }
            }
            range = next;
        }
        if recorded { self.store.sync() } else { Ok(()) }
    }

    /// Ends a claim without an answer and without waiting: for a drop. What the journal has no room for now is recorded when
    /// somebody asks for the key, or by the background compaction; what cannot be recorded at all is found by the next open.
    pub(crate) fn abandon(&self, place: &Place, token: u64, ending: Ending) {
        if let Err(error) = self.give_up(place, token, &ending, Haste::Committed) {
            self.drops_not_recorded.add(1);
            if error.kind() == ErrorKind::Full {
                self.abandoned.lock().insert(place.at.clone(), (place.clone(), token, ending));
                self.due.lower(0);
            }
        }
    }

    /// Records the drops that the journal had no room for: before a transaction too, which may look at any record.
    pub(crate) fn settle_abandoned(&self) {
        let all: Vec<_> = self.abandoned.lock().values().cloned().collect();
        for (place, token, ending) in all {
            // Without room for one there is none for the others.
            if self.settle(&place, token, &ending).is_err_and(|error| error.kind() == ErrorKind::Full) {
                return;
            }
        }
    }

    /// As [`settle_abandoned`](Self::settle_abandoned), for a key that somebody asks for.
    pub(super) fn settle_at(&self, place: &Place) {
        // Nearly always there is none.
        let found = self.abandoned.lock().get(&place.at).cloned();
        if let Some((place, token, ending)) = found {
            // What is still not recorded is there for the next to ask.
            let _ = self.settle(&place, token, &ending);
        }
    }

    /// It is known until it is recorded: whoever asks meanwhile must not find the key at work. Two may record it, one does.
    fn settle(&self, place: &Place, token: u64, ending: &Ending) -> Result<()> {
        let settled = self.give_up(place, token, ending, Haste::Durable);
        if settled.is_ok() {
            let mut abandoned = self.abandoned.lock();
            if abandoned.get(&place.at).is_some_and(|(_, of, _)| *of == token) {
                abandoned.remove(&place.at);
            }
        } else {
            // A pass of the compaction that ran meanwhile has not seen it.
            self.due.lower(0);
        }
        settled
    }

    /// As a drop that the journal has no room for.
    #[cfg(test)]
    pub(crate) fn abandon_unrecorded(&self, place: &Place, token: u64, ending: Ending) {
        self.abandoned.lock().insert(place.at.clone(), (place.clone(), token, ending));
    }

    fn give_up(&self, place: &Place, token: u64, ending: &Ending, haste: Haste) -> Result<()> {
        // Anything else says that somebody else ended it, or removed it.
        if let Changed::Written(info) = self.change_settled(place, &Event::End { token, ending }, haste)? {
            self.hub.tell(|| Told::Ended(info.without_outcome()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::options::{EngineOptions, OnInterrupted};
    use crate::protocol::Begun;
    use crate::transition::Start;

    #[test]
    fn nobody_meets_a_drop_that_is_just_being_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default(), None).unwrap();
        let start = Start::plain(OnInterrupted::Hold);
        let claim = |place: &Place| match protocol.begin(place, &start).unwrap() {
            Begun::Claimed(info) => info.image().token,
            other => panic!("{}: {other:?}", place.named()),
        };
        let places: Vec<_> = (0..64).map(|n| Place::new(&"m".into(), Key::new(format!("{n}")).unwrap())).collect();
        for place in &places {
            protocol.abandon_unrecorded(place, claim(place), Ending::Release);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| protocol.settle_abandoned());
            // Each waits for a sync, so that the other is somewhere among them.
            for place in &places {
                claim(place);
            }
        });
        assert!(protocol.abandoned.lock().is_empty());
        assert_eq!(protocol.stats().in_progress, 64);
    }
}
