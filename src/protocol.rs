//! The path of every change: begin, end, wait, expire.
//!
//! Every change takes the same steps: decide (`rules`), commit (`store`), wait until durable, wake waiters
//! (`wait_queue`), notify subscribers (`event`). If the record changes before the commit, the commit is refused and the
//! decision is made again.

mod abandon;
mod backend;
mod batch;
pub(crate) mod compactor;
mod erase;
mod errors;
pub(crate) mod event;
mod expire;
mod given;
mod list;
mod maintenance;
#[cfg(feature = "postgres")]
mod migrate;
mod open;
mod owners;
#[cfg(feature = "http")]
mod requests;
mod rows;
pub(crate) mod rules;
mod scan;
#[cfg(feature = "postgres")]
pub(crate) mod staged;
mod temporary;
mod transaction;
mod wait;

pub(crate) use batch::{Entered, MAX_COMMIT_BYTES, ToEnd};
use errors::{expired, has_changed, lost, not_found, owned, unexpected};
pub(crate) use list::ListRange;
#[cfg(feature = "postgres")]
pub use migrate::MigrateReport;
pub(crate) use owners::{Running, Service};
pub(crate) use rows::RowRange;
pub(crate) use scan::Scan;
pub(crate) use transaction::{CommittedWorkspace, Fence, Savepoint, Workspace};
pub(crate) use wait::Awaited;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::protocol::event::{Event, Subscribers};
use crate::protocol::rules::{Action, Decision, Ending, Reason, Start, decide};
pub use crate::store::{BackupReport, LostRange, OpenReport, RangeEnd, SalvageReport, VerifyReport};
use crate::store::{Change, CommitOptions, Priority, Read, Ticket};
pub(crate) use crate::store::{Content, Load, StoreKey};
use crate::sync::key_locks::KeyLocks;
use crate::sync::wait_limit::WaitLimit;
use crate::sync::wait_queue::WaitQueue;
use crate::types::clock::NEVER;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::histogram::Durations;
use crate::types::key::Key;
use crate::types::options::OnInterrupted;
use crate::types::record::{Interruption, Now, RecordInfo, Status, StoredRecord};
use crate::types::stats::{Counter, Gauge, ManagerCounter, Stats};
use crate::types::telemetry;
use abandon::Abandoned;
use backend::Backend;
use expire::Due;
use owners::Owners;
use temporary::OwnDirectory;

/// A key of a manager.
#[derive(Clone, Debug)]
pub(crate) struct RecordId {
    pub(crate) manager: Arc<str>,
    pub(crate) key: Key,
    at: StoreKey,
}

impl RecordId {
    pub(crate) fn new(manager: &Arc<str>, key: Key) -> Self {
        let at = StoreKey::record(manager, key.as_bytes());
        Self { manager: Arc::clone(manager), key, at }
    }

    /// True if both are the same key of the same manager.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.at == other.at
    }

    fn from_store(at: StoreKey) -> Option<Self> {
        let (manager, key) = at.split()?;
        Some(Self { manager: manager.into(), key: Key::from_bytes(key).ok()?, at })
    }

    fn named(&self) -> String {
        format!("key {} of {}", self.key, self.manager)
    }
}

/// Selects whether the caller waits until the change is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitFor {
    Sync,
    /// A drop: the caller must not wait.
    Nothing,
}

/// The waiters of a key to wake after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    None,
    /// The first successor, and all observers.
    Successor,
    All,
}

impl Wake {
    fn after(stored: Option<&StoredRecord>) -> Self {
        match stored.map(|stored| (stored.state, stored.policy)) {
            // No waiter can take over the key yet, so all return.
            Some((Status::Released, _)) if stored.is_some_and(|stored| stored.retry_pause > 0) => Self::All,
            Some((Status::InProgress, _)) => Self::None,
            Some((Status::Released, _) | (Status::Interrupted, OnInterrupted::Resume)) => Self::Successor,
            Some((Status::Succeeded | Status::Failed, _) | (Status::Interrupted, OnInterrupted::Hold)) | None => {
                Self::All
            }
        }
    }
}

/// The result of `begin`.
#[derive(Debug)]
pub(crate) enum Begun {
    Claimed(RecordInfo),
    Replay(RecordInfo),
    InProgress(RecordInfo),
    Interrupted(RecordInfo),
    Paused(RecordInfo),
    Mismatch(RecordInfo),
}

/// The effect of an action on a record.
#[derive(Debug)]
enum Changed {
    Written(RecordInfo),
    Deleted,
    Kept(Reason, Option<RecordInfo>),
}

/// A record that a commit has written or deleted.
#[derive(Debug)]
struct Written {
    at: StoreKey,
    before: Option<Status>,
    after: Option<Arc<StoredRecord>>,
}

#[derive(Debug)]
pub(crate) struct Protocol {
    store: Backend,
    /// Dropped after the store is closed, by the order of these fields. The drop removes the directory.
    _directory: Option<OwnDirectory>,
    max_value_bytes: usize,
    wait_queue: Arc<WaitQueue<StoreKey>>,
    wait_limit: WaitLimit<StoreKey>,
    subscribers: Arc<Subscribers>,
    closed: AtomicBool,
    owners: Owners,
    due: Due,
    /// The locks of transactions that have conflicted too often.
    key_locks: KeyLocks,
    /// The number of transaction runs that were repeated.
    reruns: Counter,
    abandoned: Abandoned,
    in_progress: Gauge,
    interrupted: Gauge,
    replays: ManagerCounter,
    drops_not_recorded: Counter,
    cycles: Durations,
    waits: Durations,
}

impl Protocol {
    /// Claims the key, or returns why not. Never waits for another owner.
    pub(crate) fn begin(&self, id: &RecordId, start: &Start) -> Result<Begun> {
        let action = Action::Begin(start);
        self.prepare(id, &action)?;
        self.claimed(id, self.change_directly(id, &action, WaitFor::Sync, self.store.guess(&action, None))?)
    }

    /// Does the same as [`begin`](Self::begin), for a key that is known to have a record.
    fn begin_again(&self, id: &RecordId, start: &Start) -> Result<Begun> {
        self.claimed(id, self.change(id, &Action::Begin(start), WaitFor::Sync)?)
    }

    /// Converts the result of an action that claims.
    fn claimed(&self, id: &RecordId, changed: Changed) -> Result<Begun> {
        match changed {
            Changed::Written(info) => {
                self.subscribers.notify(|| Event::Began(info.without_outcome()));
                Ok(Begun::Claimed(info))
            }
            Changed::Kept(Reason::Finished, Some(info)) => Ok(Begun::Replay(info)),
            Changed::Kept(Reason::InProgress, Some(info)) => Ok(Begun::InProgress(info)),
            Changed::Kept(Reason::Interrupted, Some(info)) => Ok(Begun::Interrupted(info)),
            Changed::Kept(Reason::Paused, Some(info)) => Ok(Begun::Paused(info)),
            Changed::Kept(Reason::Mismatch, Some(info)) => {
                telemetry::mismatch(&id.manager, &id.key);
                Ok(Begun::Mismatch(info))
            }
            Changed::Kept(Reason::Elsewhere, Some(info)) => {
                let (named, point) = (id.named(), info.recovery_point());
                let message = format!("{named} is at the recovery point {point:?}, and this operation has no stages");
                Err(Error::new(ErrorKind::UnknownRecoveryPoint, message))
            }
            Changed::Kept(Reason::Absent, _) => Err(not_found(id)),
            Changed::Kept(Reason::Expired, _) => Err(expired(id)),
            other => Err(unexpected(id, &other)),
        }
    }

    /// Counts and reports that a stored outcome is returned. Called after it was decoded.
    pub(crate) fn replayed(&self, info: &RecordInfo) {
        self.replays.add(info.manager(), 1);
        self.subscribers.notify(|| Event::Replayed(info.without_outcome()));
    }

    /// Ends a claim. Fenced by its token.
    pub(crate) fn end(&self, id: &RecordId, token: u64, ending: &Ending) -> Result<RecordInfo> {
        self.end_claim(ToEnd { id, token, ending, ttl: None, known: None })
    }

    /// Ends a claim as [`end`](Self::end) does, with a TTL for its outcome.
    pub(crate) fn end_claim(&self, end: ToEnd<'_>) -> Result<RecordInfo> {
        let ToEnd { id, token, ending, ttl, known } = end;
        let action = Action::End { token, ending, ttl };
        self.prepare(id, &action)?;
        match self.change_directly(id, &action, WaitFor::Sync, self.store.guess(&action, known))? {
            Changed::Written(info) => {
                self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                Ok(info)
            }
            Changed::Kept(Reason::Already, Some(info)) => Ok(info),
            Changed::Kept(reason, _) => Err(lost(id, reason)),
            other @ Changed::Deleted => Err(unexpected(id, &other)),
        }
    }

    /// Resolves an interrupted record.
    pub(crate) fn resolve(&self, id: &RecordId, ending: &Ending, schema: Option<u32>, seen: Option<u64>) -> Result<()> {
        if let Ending::Succeed(bytes) | Ending::Fail(bytes) = ending {
            self.check_outcome(bytes)?;
        }
        match self.change(id, &Action::Resolve { ending, schema, seen }, WaitFor::Sync)? {
            Changed::Written(info) => {
                self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Reason::OwnedByClaim, _) => Err(owned(id)),
            Changed::Kept(Reason::Unfit(status), _) => Err(Error::new(
                ErrorKind::NotInterrupted,
                format!("{} is not interrupted, it is {status:?}", id.named()),
            )),
            Changed::Kept(Reason::Changed, _) => Err(has_changed(id)),
            Changed::Kept(Reason::Absent, _) => Err(not_found(id)),
            other => Err(unexpected(id, &other)),
        }
    }

    /// Deletes a finished record.
    pub(crate) fn forget(&self, id: &RecordId) -> Result<bool> {
        self.forget_by(id, &Action::Forget)
    }

    /// Deletes a record without a live owner.
    pub(crate) fn remove(&self, id: &RecordId) -> Result<bool> {
        self.forget_by(id, &Action::Remove)
    }

    fn forget_by(&self, id: &RecordId, action: &Action<'_>) -> Result<bool> {
        match self.change(id, action, WaitFor::Sync)? {
            Changed::Deleted => Ok(true),
            Changed::Kept(Reason::OwnedByClaim, _) => Err(owned(id)),
            Changed::Kept(..) => Ok(false),
            other @ Changed::Written(_) => Err(unexpected(id, &other)),
        }
    }

    /// Keeps a finished record for at least `ttl` milliseconds from now.
    pub(crate) fn extend(&self, id: &RecordId, ttl: u64) -> Result<bool> {
        let changed = self.change(id, &Action::Extend(ttl), WaitFor::Sync)?;
        Ok(matches!(changed, Changed::Written(_) | Changed::Kept(Reason::Already, _)))
    }

    /// Stores a record of another store, unless the key has a record here.
    pub(crate) fn import(&self, id: &RecordId, stored: &StoredRecord) -> Result<bool> {
        stored.outcome.as_ref().map_or(Ok(()), |bytes| self.check_outcome(bytes))?;
        Ok(matches!(self.change(id, &Action::Import(stored), WaitFor::Sync)?, Changed::Written(_)))
    }

    fn read_durable(&self, id: &RecordId, load: Load) -> Result<Option<RecordInfo>> {
        let (now, read) = self.store.look(&id.at, load, true)?;
        self.store.wait(read.ticket)?;
        Ok(self.show(id, read.record(), &now))
    }

    /// Changes a record. All changes outside of transactions take this path.
    fn change(&self, id: &RecordId, action: &Action<'_>, wait_for: WaitFor) -> Result<Changed> {
        if wait_for == WaitFor::Sync {
            self.prepare(id, action)?;
        }
        self.change_directly(id, action, wait_for, None)
    }

    /// Checks that the action is allowed now. Records a pending drop of this key, and waits for transactions.
    fn prepare(&self, id: &RecordId, action: &Action<'_>) -> Result<()> {
        self.check_allowed(action)?;
        self.record_drop_of(id);
        // Endings never wait for the locks of transactions.
        if priority_of(action, WaitFor::Sync) == Priority::User {
            self.yield_to(&id.at);
        }
        Ok(())
    }

    fn check_allowed(&self, action: &Action<'_>) -> Result<()> {
        match action {
            // A claim may end after a close: the store stays open while a claim is alive. A call that gives an outcome
            // makes its own check.
            Action::End { .. } | Action::Give => self.check_outside(),
            // An operator may revoke a claim also after a close, so that the store can close.
            Action::Revoke { .. } => self.check_owned(),
            _ => self.check(),
        }
    }

    /// Changes a record as [`change`](Self::change) does, without recording a pending drop of this key first and
    /// without waiting for locks of transactions. A guess at the record saves a read if it is right.
    fn change_directly(
        &self,
        id: &RecordId,
        action: &Action<'_>,
        wait_for: WaitFor,
        mut guess: Option<(Now, Read)>,
    ) -> Result<Changed> {
        loop {
            let is_guess = guess.is_some();
            let (now, read) = match guess.take() {
                Some(guess) => guess,
                None => self.store.look(&id.at, Load::All, wait_for == WaitFor::Sync)?,
            };
            if wait_for == WaitFor::Sync {
                // Check again after the read, which may show a change that a claim has made after a close.
                self.check_allowed(action)?;
            }
            let before = read.record().map(|stored| stored.status(&now));
            let content = match decide(read.record().map(Arc::as_ref), action, &now) {
                Decision::Write(stored) => Some(Content::Record(stored)),
                Decision::Delete => None,
                // A guess is no answer: read the record, and decide again.
                Decision::Keep(_) if is_guess => continue,
                Decision::Keep(reason) if wait_for == WaitFor::Sync && self.gives_outcome(reason, &read) => {
                    self.give(id, wait_for)?;
                    continue;
                }
                Decision::Keep(reason) => return self.keep(id, &read, reason, &now),
            };
            let change = Change { key: id.at.clone(), content };
            let kept = if action.keeps_expiry() { std::slice::from_ref(&id.at) } else { &[] };
            let (priority, until) = (priority_of(action, wait_for), read.next_expiry(&now));
            let options = CommitOptions { priority, decided: Some(now.store), kept, until, read_set: None };
            let claims = matches!(action, Action::Begin(_) | Action::Lock { .. });
            let entering = if claims { Some(self.enter_owner()?) } else { None };
            let Some(committed) = self.store.commit([change], &[read.seen], options)? else { continue };
            let after = committed.changes.first().and_then(Change::record).cloned();
            if let Action::End { ending: Ending::Interrupt(why), .. } = action {
                telemetry::interrupted(&id.manager, &id.key, why);
            }
            let written = Written { at: id.at.clone(), before, after };
            self.publish(std::slice::from_ref(&written), committed.ticket, wait_for)?;
            if let (Some(entering), Some(stored)) = (entering, written.after.as_ref().filter(|stored| !stored.by_key)) {
                entering.live(stored.token);
            }
            return Ok(self.show(id, written.after.as_ref(), &now).map_or(Changed::Deleted, Changed::Written));
        }
    }

    /// Waits until a commit is durable, wakes the waiters of its records, and counts the records by status.
    fn publish(&self, written: &[Written], ticket: Ticket, wait_for: WaitFor) -> Result<()> {
        for Written { at, before, after } in written {
            self.count(*before, after.as_ref().map(|stored| stored.state));
            if Wake::after(after.as_deref()) == Wake::Successor {
                // Hand over before the sync: the successor's own commit comes after this one, so its wait covers both.
                self.wait_queue.hand_over(at);
            }
        }
        let durable = if wait_for == WaitFor::Sync { self.store.wait(ticket) } else { Ok(()) };
        for Written { at, after, .. } in written {
            if Wake::after(after.as_deref()) == Wake::All {
                self.wait_queue.wake_all(at);
            }
            self.due.lower(after.as_ref().map_or(NEVER, |stored| stored.expires));
        }
        durable
    }

    /// Returns the reason for no change. Waits until the record is durable, because the answer depends on it.
    fn keep(&self, id: &RecordId, read: &Read, reason: Reason, now: &Now) -> Result<Changed> {
        self.store.wait(read.ticket)?;
        Ok(Changed::Kept(reason, self.show(id, read.record(), now)))
    }

    fn count(&self, before: Option<Status>, after: Option<Status>) {
        for (status, by) in [(before, -1), (after, 1)] {
            match status {
                Some(Status::InProgress) => self.in_progress.add(by),
                Some(Status::Interrupted) => self.interrupted.add(by),
                Some(Status::Succeeded | Status::Failed | Status::Released) | None => {}
            }
        }
    }

    /// Returns the record as it was at `now`, because it may have expired since.
    fn show(&self, id: &RecordId, stored: Option<&Arc<StoredRecord>>, now: &Now) -> Option<RecordInfo> {
        RecordInfo::new(self.store.id(), &id.manager, &id.key, stored?, now)
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.check()?;
        self.store.sync()
    }

    /// Returns the largest size of an encoded outcome, in bytes.
    pub(crate) fn max_value_bytes(&self) -> u64 {
        self.max_value_bytes as u64
    }

    pub(crate) fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    pub(crate) fn path(&self) -> &Path {
        self.store.path()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            in_progress: self.in_progress.get(),
            interrupted: self.interrupted.get(),
            waiting: u64::try_from(self.wait_queue.waiting()).unwrap_or(u64::MAX),
            replays: self.replays.get(),
            events_dropped: self.subscribers.dropped(),
            drops_not_recorded: self.drops_not_recorded.get(),
            expired: self.due.expired(),
            compaction_failures: self.due.failures(),
            transaction_reruns: self.reruns.get(),
            cycles: self.cycles.read(),
            waits: self.waits.read(),
            ..self.store.stats()
        }
    }

    /// Runs a read. Returns `Closed` if the engine is closed before the read or after it: claims may still change
    /// records after a close, and other callers must not see that.
    fn while_open<R>(&self, read: impl FnOnce() -> Result<R>) -> Result<R> {
        self.check()?;
        let read = read()?;
        self.check()?;
        Ok(read)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.check_outside()?;
        if self.closed.load(Ordering::Acquire) { Err(Error::closed()) } else { Ok(()) }
    }
}

/// Returns the priority of the commit.
fn priority_of(action: &Action<'_>, wait_for: WaitFor) -> Priority {
    match (wait_for, action) {
        // A read must not fail where an ending would not.
        (_, Action::Give) => Priority::Finishing,
        (WaitFor::Nothing, _) => Priority::GivingUp,
        (
            WaitFor::Sync,
            Action::Revoke { .. }
            | Action::End {
                ending: Ending::Release | Ending::ReleaseUntouched | Ending::ReleaseTouched | Ending::Interrupt(_),
                ..
            },
        ) => Priority::Ending,
        (WaitFor::Sync, Action::End { .. } | Action::Discard { .. } | Action::EndByKey { .. }) => Priority::Finishing,
        (WaitFor::Sync, _) => Priority::User,
    }
}

pub(crate) fn panicked_or_dropped() -> Interruption {
    if std::thread::panicking() { Interruption::Panicked } else { Interruption::Dropped }
}

#[cfg(test)]
mod tests;
