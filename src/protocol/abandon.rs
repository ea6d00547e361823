//! Claims that were dropped, or whose process died: ended without an answer and without a wait.

use super::{Action, Changed, Event, ListRange, Protocol, RecordId, WaitFor};
use crate::protocol::rules::{Ending, Patch};
use crate::types::clock::NEVER;
use crate::types::error::{self, ErrorKind, Result};
use crate::types::record::{RecordInfo, Status};

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
            let dead = |info: &&RecordInfo| info.stored().state == Status::InProgress;
            for info in infos.iter().filter(dead).filter(|info| info.stored().interrupted_ttl != NEVER) {
                let id = RecordId::new(&info.manager().into(), info.key().clone());
                match self.change(&id, &Action::Patch(&Patch::default()), WaitFor::Nothing) {
                    // As late as the next open, but all can be read.
                    Err(error) if error.kind() == ErrorKind::Full => return Ok(()),
                    changed => recorded |= matches!(changed?, Changed::Written(_)),
                }
            }
            range = next;
        }
        if recorded { self.store.sync() } else { Ok(()) }
    }

    /// Ends a claim without an answer and without waiting: for a drop. What cannot be recorded now is recorded when somebody asks
    /// for the key, before a transaction, or by the background compaction. If the engine is closed, poisoned, or the parent's,
    /// nothing more is recorded, and the next open finds the claim interrupted.
    pub(crate) fn abandon(&self, id: &RecordId, token: u64, ending: Ending) {
        let given_up =
            error::handled(|| self.give_up(id, token, &ending, WaitFor::Nothing).map_err(|error| error.kind()));
        if let Err(kind) = given_up {
            self.drops_not_recorded.add(1);
            if !matches!(kind, ErrorKind::Closed | ErrorKind::Poisoned | ErrorKind::StoreInUse) {
                self.abandoned.lock().insert(id.at.clone(), (id.clone(), token, ending));
                self.due.lower(0);
            }
        }
    }

    /// Records the drops that could not be recorded at once: before a transaction too, which may look at any record.
    pub(crate) fn settle_abandoned(&self) {
        let all: Vec<_> = self.abandoned.lock().values().cloned().collect();
        for (id, token, ending) in all {
            // What the journal refuses to one, it refuses to the others. Other errors are of one record.
            let settled = self.settle(&id, token, &ending);
            if let Err(ErrorKind::Full | ErrorKind::Io | ErrorKind::Closed | ErrorKind::Poisoned) = settled {
                return;
            }
        }
    }

    /// As [`settle_abandoned`](Self::settle_abandoned), for a key that somebody asks for.
    pub(super) fn settle_at(&self, id: &RecordId) {
        // Nearly always there is none.
        let found = self.abandoned.lock().get(&id.at).cloned();
        if let Some((id, token, ending)) = found {
            // What is still not recorded is there for the next to ask.
            let _: Result<(), ErrorKind> = self.settle(&id, token, &ending);
        }
    }

    /// It is known until it is recorded: whoever asks meanwhile must not find the key at work. Two may record it, one does.
    fn settle(&self, id: &RecordId, token: u64, ending: &Ending) -> Result<(), ErrorKind> {
        // The caller asked for something else, and is not told of errors here.
        let settled = error::handled(|| self.give_up(id, token, ending, WaitFor::Sync).map_err(|error| error.kind()));
        if settled.is_ok() {
            let mut abandoned = self.abandoned.lock();
            if abandoned.get(&id.at).is_some_and(|(_, of, _)| *of == token) {
                abandoned.remove(&id.at);
            }
        } else {
            // A pass of the compaction that ran meanwhile has not seen it.
            self.due.lower(0);
        }
        settled
    }

    /// As a drop that could not be recorded at once.
    #[cfg(test)]
    pub(crate) fn abandon_unrecorded(&self, id: &RecordId, token: u64, ending: Ending) {
        self.abandoned.lock().insert(id.at.clone(), (id.clone(), token, ending));
    }

    fn give_up(&self, id: &RecordId, token: u64, ending: &Ending, wait_for: WaitFor) -> Result<()> {
        // Anything else says that somebody else ended it, or removed it.
        if let Changed::Written(info) = self.change_settled(id, &Action::End { token, ending, ttl: None }, wait_for)? {
            self.subscribers.tell(|| Event::Ended(info.without_outcome()));
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
    fn nobody_meets_a_drop_that_is_just_being_recorded() {
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
            scope.spawn(|| protocol.settle_abandoned());
            // Each waits for a sync, so that the other is somewhere among them.
            for id in &ids {
                claim(id);
            }
        });
        assert!(protocol.abandoned.lock().is_empty());
        assert_eq!(protocol.stats().in_progress, 64);
    }

    #[test]
    fn a_drop_that_any_error_keeps_from_being_recorded_is_recorded_later() {
        let dir = tempfile::tempdir().unwrap();
        // One group fills a segment, and no other is to be had.
        let options = EngineOptions::default().segment_bytes(4096).compaction_interval(std::time::Duration::MAX);
        let (protocol, _) = Protocol::open(dir.path(), &options, None).unwrap();
        let start = Start::plain(OnInterrupted::Hold);
        let ids: Vec<_> = (0..200).map(|n| RecordId::new(&"m".into(), Key::new(format!("{n}")).unwrap())).collect();
        // The names of the next segments are taken: that is no lack of room.
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
        let met = error::met();
        for (id, token) in &claims {
            protocol.abandon(id, *token, Ending::Release);
        }
        assert!(!protocol.abandoned.lock().is_empty());
        protocol.settle_abandoned();
        for (id, _) in &claims {
            protocol.settle_at(id);
        }
        assert!(!protocol.abandoned.lock().is_empty());
        assert_eq!(error::met(), met, "whose operation runs here has met none of these errors");
        for path in &taken {
            let _ = std::fs::remove_dir(path);
        }
        protocol.settle_abandoned();
        for (id, _) in &claims {
            // Each may have to ask once more: the first only asks for a segment.
            let begun = (0..5).find_map(|_| protocol.begin(id, &start).ok());
            assert!(matches!(begun, Some(Begun::Claimed(_))), "{} is still in progress", id.named());
        }
        assert!(protocol.abandoned.lock().is_empty());
    }
}
