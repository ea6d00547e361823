//! Where rules, mechanisms and store meet: begin, end, wait, expire.
//!
//! Every change goes the same way: decide (`transition`), commit (`store`), wait until durable, wake (`slots`), tell
//! (`event`). A commit that is refused because the record changed meanwhile is decided anew.

mod abandon;
pub(crate) mod compactor;
pub(crate) mod event;
mod expire;
mod list;
mod owners;
#[cfg(feature = "http")]
mod requests;
mod rows;
pub(crate) mod rules;
mod scan;
mod temporary;
mod transaction;
mod wait;

pub(crate) use list::ListRange;
pub(crate) use owners::Running;
pub(crate) use rows::RowRange;
pub(crate) use scan::Scan;
pub(crate) use transaction::{Draft, Drafted, Fence, Savepoint};
pub(crate) use wait::Awaited;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::protocol::event::{Event as Told, Hub};
use crate::protocol::rules::{Because, Decision, Ending, Event, Start, decide};
use crate::store::{Change, Entrant, Read, Store, Terms, Ticket};
pub(crate) use crate::store::{Content, Depth, StoreKey};
pub use crate::store::{OpenReport, VerifyReport};
use crate::sync::key_locks::Lanes;
use crate::sync::wait_queue::Slots;
use crate::types::clock::NEVER;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::Key;
use crate::types::options::{EngineOptions, OnInterrupted};
use crate::types::record::{Image, Interruption, Now, RecordInfo, Status};
use crate::types::stats::{Counter, Gauge, Stats};
use crate::types::telemetry::{self, Work};
use expire::Due;
use owners::Owners;
use temporary::OwnDirectory;

/// One key of one manager.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) manager: Arc<str>,
    pub(crate) key: Key,
    at: StoreKey,
}

impl Place {
    pub(crate) fn new(manager: &Arc<str>, key: Key) -> Self {
        let at = StoreKey::record(manager, key.as_bytes());
        Self { manager: Arc::clone(manager), key, at }
    }

    /// Whether it is the same key of the same manager.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.at == other.at
    }

    fn from_store(at: StoreKey) -> Option<Self> {
        let (manager, key) = at.split()?;
        Some(Self { manager: manager.into(), key: Key::new(key).ok()?, at })
    }

    /// How messages name it.
    fn named(&self) -> String {
        format!("key {} of {}", self.key, self.manager)
    }
}

/// Whether the caller is told only when it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
    Durable,
    /// The caller must not wait: a drop.
    Committed,
}

/// Who of those that wait for a key is to look at it, now that it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Nobody,
    /// The one whose turn it is to take the key over, and those who only look.
    Heir,
    All,
}

impl Next {
    fn after(image: Option<&Image>) -> Self {
        match image.map(|image| (image.state, image.policy)) {
            Some((Status::InProgress, _)) => Self::Nobody,
            Some((Status::Released, _) | (Status::Interrupted, OnInterrupted::Resume)) => Self::Heir,
            Some((Status::Succeeded | Status::Failed, _) | (Status::Interrupted, OnInterrupted::Hold)) | None => {
                Self::All
            }
        }
    }
}

/// What `begin` found or made.
#[derive(Debug)]
pub(crate) enum Begun {
    Claimed(RecordInfo),
    Replay(RecordInfo),
    InProgress(RecordInfo),
    Interrupted(RecordInfo),
    Mismatch(RecordInfo),
}

/// What an event made of a record.
#[derive(Debug)]
enum Changed {
    Written(RecordInfo),
    Deleted,
    Kept(Because, Option<RecordInfo>),
}

/// A record that a commit wrote, or deleted.
#[derive(Debug)]
struct Written {
    at: StoreKey,
    before: Option<Status>,
    after: Option<Arc<Image>>,
}

#[derive(Debug)]
pub(crate) struct Protocol {
    store: Store,
    /// Removed with the last handle, after the store is closed: the order of these fields.
    _directory: Option<OwnDirectory>,
    max_value_bytes: usize,
    slots: Arc<Slots<StoreKey>>,
    hub: Arc<Hub>,
    closed: AtomicBool,
    owners: Owners,
    due: Due,
    /// For transactions that met others too often.
    lanes: Lanes,
    /// Transactions that were run again.
    reruns: Counter,
    /// Drops that could not be recorded at once, with their tokens.
    abandoned: Mutex<HashMap<StoreKey, (Place, u64, Ending)>>,
    in_progress: Gauge,
    interrupted: Gauge,
    replays: Counter,
    drops_not_recorded: Counter,
}

impl Protocol {
    /// Opens the store in `path`; `directory` is removed with the last handle.
    pub(crate) fn open(
        path: &Path,
        options: &EngineOptions,
        directory: Option<tempfile::TempDir>,
    ) -> Result<(Self, OpenReport)> {
        let (store, report) = Store::open(path, options)?;
        let (slots, hub) = (Arc::new(Slots::default()), Arc::new(Hub::default()));
        let (woken, told) = (Arc::clone(&slots), Arc::clone(&hub));
        store.on_poison(move |error| {
            telemetry::poisoned(error);
            woken.close();
            told.tell(|| Told::Poisoned(error.clone()));
        });
        let count = Gauge::new("oncekey_interrupted");
        count.add(i64::try_from(report.interrupted).unwrap_or(i64::MAX));
        let protocol = Self {
            store,
            _directory: directory.map(OwnDirectory::new),
            max_value_bytes: options.max_value_bytes,
            slots,
            hub,
            closed: AtomicBool::new(false),
            owners: Owners::default(),
            due: Due::default(),
            lanes: Lanes::new(options.sync_timeout),
            reruns: Counter::new("oncekey_transaction_reruns_total"),
            abandoned: Mutex::default(),
            in_progress: Gauge::new("oncekey_in_progress"),
            interrupted: count,
            replays: Counter::new("oncekey_replays_total"),
            drops_not_recorded: Counter::new("oncekey_drops_not_recorded_total"),
        };
        protocol.record_deaths()?;
        protocol.due.lower(protocol.store.next_due()?);
        Ok((protocol, report))
    }

    /// Opens a store without the snapshots of its record store, and closes it again.
    pub(crate) fn repair(path: &Path, options: &EngineOptions) -> Result<OpenReport> {
        let (store, report) = Store::repair(path, options)?;
        store.close().map(|()| report)
    }

    /// Asks for the right to run the operation. Never waits for another owner.
    pub(crate) fn begin(&self, place: &Place, start: &Start) -> Result<Begun> {
        self.claimed(place, self.change(place, &Event::Begin(start), Haste::Durable)?)
    }

    /// What came of the wish to claim it.
    fn claimed(&self, place: &Place, changed: Changed) -> Result<Begun> {
        match changed {
            Changed::Written(info) => {
                self.hub.tell(|| Told::Began(info.without_outcome()));
                Ok(Begun::Claimed(info))
            }
            Changed::Kept(Because::Finished, Some(info)) => Ok(Begun::Replay(info)),
            Changed::Kept(Because::InProgress, Some(info)) => Ok(Begun::InProgress(info)),
            Changed::Kept(Because::Interrupted, Some(info)) => Ok(Begun::Interrupted(info)),
            Changed::Kept(Because::Mismatch, Some(info)) => {
                telemetry::mismatch(&place.manager, &place.key);
                Ok(Begun::Mismatch(info))
            }
            Changed::Kept(Because::Elsewhere, Some(info)) => {
                let (named, point) = (place.named(), info.recovery_point());
                let message = format!("{named} is at the recovery point {point:?}, and this operation has no stages");
                Err(Error::new(ErrorKind::UnknownRecoveryPoint, message))
            }
            Changed::Kept(Because::Absent, _) => Err(not_found(place)),
            other => Err(unexpected(place, &other)),
        }
    }

    /// To be called when a stored outcome could be read and is given as an answer.
    pub(crate) fn replayed(&self, info: &RecordInfo) {
        self.replays.add(1);
        self.hub.tell(|| Told::Replayed(info.without_outcome()));
    }

    /// Ends a claim, fenced by its token.
    pub(crate) fn end(&self, place: &Place, token: u64, ending: &Ending) -> Result<RecordInfo> {
        match self.change(place, &Event::End { token, ending }, Haste::Durable)? {
            Changed::Written(info) => {
                self.hub.tell(|| Told::Ended(info.without_outcome()));
                Ok(info)
            }
            Changed::Kept(Because::Already, Some(info)) => Ok(info),
            Changed::Kept(because, _) => Err(lost(place, because)),
            other @ Changed::Deleted => Err(unexpected(place, &other)),
        }
    }

    /// Ends what this process began by key.
    pub(crate) fn end_by_key(&self, place: &Place, ending: &Ending, schema: u32) -> Result<()> {
        match self.change(place, &Event::EndByKey { ending, schema }, Haste::Durable)? {
            Changed::Written(info) => {
                self.hub.tell(|| Told::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Because::OwnedByClaim, _) => Err(owned(place)),
            Changed::Kept(Because::Unfit(status), _) => Err(not_in_progress(place, &format!("it is {status:?}"))),
            Changed::Kept(Because::Absent, _) => Err(not_in_progress(place, "there is no such record")),
            other => Err(unexpected(place, &other)),
        }
    }

    /// Settles an interrupted record.
    pub(crate) fn resolve(&self, place: &Place, ending: &Ending, schema: Option<u32>) -> Result<()> {
        match self.change(place, &Event::Resolve { ending, schema }, Haste::Durable)? {
            Changed::Written(info) => {
                self.hub.tell(|| Told::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Because::OwnedByClaim, _) => Err(owned(place)),
            Changed::Kept(Because::Unfit(status), _) => Err(Error::new(
                ErrorKind::NotInterrupted,
                format!("{} is not interrupted, it is {status:?}", place.named()),
            )),
            Changed::Kept(Because::Absent, _) => Err(not_found(place)),
            other => Err(unexpected(place, &other)),
        }
    }

    /// Forgets a finished record.
    pub(crate) fn reopen(&self, place: &Place) -> Result<bool> {
        self.forget(place, &Event::Reopen)
    }

    /// Forgets a record that no claim owns.
    pub(crate) fn remove(&self, place: &Place) -> Result<bool> {
        self.forget(place, &Event::Remove)
    }

    fn forget(&self, place: &Place, event: &Event<'_>) -> Result<bool> {
        match self.change(place, event, Haste::Durable)? {
            Changed::Deleted => Ok(true),
            Changed::Kept(Because::OwnedByClaim, _) => Err(owned(place)),
            Changed::Kept(..) => Ok(false),
            other @ Changed::Written(_) => Err(unexpected(place, &other)),
        }
    }

    /// Keeps a finished record at least so many milliseconds from now.
    pub(crate) fn extend(&self, place: &Place, ttl: u64) -> Result<bool> {
        let changed = self.change(place, &Event::Extend(ttl), Haste::Durable)?;
        Ok(matches!(changed, Changed::Written(_) | Changed::Kept(Because::Already, _)))
    }

    /// Takes over a record of another store, unless the key has one here.
    pub(crate) fn import(&self, place: &Place, image: &Image) -> Result<bool> {
        Ok(matches!(self.change(place, &Event::Import(image), Haste::Durable)?, Changed::Written(_)))
    }

    /// The record, as it is durably now.
    pub(crate) fn get(&self, place: &Place, depth: Depth) -> Result<Option<RecordInfo>> {
        self.check()?;
        // Asked before the record is read: later, what has changed since could seem to have expired.
        let now = self.store.now();
        let read = self.store.read(&place.at, depth)?;
        self.store.wait(read.ticket)?;
        Ok(self.show(place, read.record(), &now))
    }

    /// The one way to change a record.
    fn change(&self, place: &Place, event: &Event<'_>, haste: Haste) -> Result<Changed> {
        if haste == Haste::Durable {
            // A claim may end after a close: its store is open as long as it lives.
            let checked = if matches!(event, Event::End { .. }) { self.check_outside() } else { self.check() };
            checked?;
            self.settle_at(place);
        }
        // Endings never wait for a transaction.
        if who(event, haste) == Entrant::User {
            self.give_way(&place.at);
        }
        self.change_settled(place, event, haste)
    }

    /// As [`change`](Self::change), where no drop of this key waits to be recorded, or this is it.
    fn change_settled(&self, place: &Place, event: &Event<'_>, haste: Haste) -> Result<Changed> {
        loop {
            // In this order, as in `get`.
            let now = self.store.now();
            let read = self.store.read(&place.at, Depth::Whole)?;
            let before = read.record().map(|image| image.status(&now));
            let content = match decide(read.record().map(Arc::as_ref), event, &now) {
                Decision::Write(image) => Some(Content::Record(Arc::new(*image))),
                Decision::Delete => None,
                Decision::Keep(because) => return self.keep(place, &read, because, &now),
            };
            let change = Change { key: place.at.clone(), content };
            let kept = if event.keeps_expiry() { std::slice::from_ref(&place.at) } else { &[] };
            let (who, until) = (who(event, haste), read.lapses(&now));
            let terms = Terms { who, decided: Some(now.store), kept, until, read_set: None };
            let claims = matches!(event, Event::Begin(_) | Event::Lock { .. });
            let entering = if claims { Some(self.enter_owner()?) } else { None };
            let Some(committed) = self.store.commit(vec![change], &[read.seen], terms)? else { continue };
            let after = committed.changes.first().and_then(Change::record).cloned();
            if let Event::End { ending: Ending::Interrupt(why), .. } = event {
                telemetry::interrupted(&place.manager, &place.key, why);
            }
            let written = Written { at: place.at.clone(), before, after };
            self.publish(std::slice::from_ref(&written), committed.ticket, haste)?;
            if let (Some(entering), Some(image)) = (entering, written.after.as_ref().filter(|image| !image.by_key)) {
                entering.live(image.token);
            }
            return Ok(self.show(place, written.after.as_ref(), &now).map_or(Changed::Deleted, Changed::Written));
        }
    }

    /// Wakes and counts, now that this is committed, and waits until it is durable.
    fn publish(&self, written: &[Written], ticket: Ticket, haste: Haste) -> Result<()> {
        for Written { at, before, after } in written {
            self.count(*before, after.as_ref().map(|image| image.state));
            if Next::after(after.as_deref()) == Next::Heir {
                // At once: the heir's own commit lies behind this one, and its wait covers both.
                self.slots.hand_over(at);
            }
        }
        let durable = if haste == Haste::Durable { self.store.wait(ticket) } else { Ok(()) };
        for Written { at, after, .. } in written {
            if Next::after(after.as_deref()) == Next::All {
                self.slots.wake_all(at);
            }
            self.due.lower(after.as_ref().map_or(NEVER, |image| image.expires));
        }
        durable
    }

    /// An answer reveals what was read, so it waits until that is durable.
    fn keep(&self, place: &Place, read: &Read, because: Because, now: &Now) -> Result<Changed> {
        self.store.wait(read.ticket)?;
        Ok(Changed::Kept(because, self.show(place, read.record(), now)))
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

    /// As it was at `now`: a moment later it may have expired.
    fn show(&self, place: &Place, image: Option<&Arc<Image>>, now: &Now) -> Option<RecordInfo> {
        RecordInfo::new(self.store.id(), &place.manager, &place.key, image?, now)
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.check()?;
        self.store.sync()
    }

    /// Reads everything, and says what is damaged.
    pub(crate) fn verify(&self) -> Result<VerifyReport> {
        self.check()?;
        let _working = telemetry::enter(Work::Verify, self.path());
        self.store.verify()
    }

    /// The largest encoded outcome.
    pub(crate) fn max_value_bytes(&self) -> u64 {
        self.max_value_bytes as u64
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn path(&self) -> &Path {
        self.store.path()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            in_progress: self.in_progress.get(),
            interrupted: self.interrupted.get(),
            waiting: u64::try_from(self.slots.waiting()).unwrap_or(u64::MAX),
            replays: self.replays.get(),
            events_dropped: self.hub.dropped(),
            drops_not_recorded: self.drops_not_recorded.get(),
            expired: self.due.expired(),
            compaction_failures: self.due.failures(),
            transaction_reruns: self.reruns.get(),
            ..self.store.stats()
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.check_outside()?;
        if self.closed.load(Ordering::Acquire) { Err(Error::closed()) } else { Ok(()) }
    }
}

/// Who commits this.
fn who(event: &Event<'_>, haste: Haste) -> Entrant {
    match (haste, event) {
        (Haste::Committed, _) => Entrant::GivingUp,
        (
            Haste::Durable,
            Event::Revoke { .. }
            | Event::End { ending: Ending::Release | Ending::ReleaseUntouched | Ending::Interrupt(_), .. },
        ) => Entrant::Ending,
        (Haste::Durable, Event::End { .. } | Event::Discard { .. } | Event::EndByKey { .. }) => Entrant::Finishing,
        (Haste::Durable, _) => Entrant::User,
    }
}

pub(crate) fn panicked_or_dropped() -> Interruption {
    if std::thread::panicking() { Interruption::Panicked } else { Interruption::Dropped }
}

fn lost(place: &Place, because: Because) -> Error {
    let why = match because {
        Because::Superseded(token) => format!("it was revoked or another claim took it over, the token is {token} now"),
        Because::EndedOtherwise(status) => format!("it has ended already and is {status:?}"),
        Because::Elsewhere => "it is at another recovery point".to_owned(),
        Because::Absent => "its record was removed or has expired".to_owned(),
        other => format!("{other:?}"),
    };
    Error::new(ErrorKind::ClaimLost, format!("the claim on {} is lost: {why}", place.named()))
}

fn owned(place: &Place) -> Error {
    Error::new(ErrorKind::OwnedByClaim, format!("{} is in progress: only its owner can do that", place.named()))
}

fn not_in_progress(place: &Place, why: &str) -> Error {
    let message = format!("{} was not begun by key in this process: {why}", place.named());
    Error::new(ErrorKind::NotInProgress, message)
}

fn not_found(place: &Place) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} has no record", place.named()))
}

/// An answer that the rules do not give to this event.
fn unexpected(place: &Place, changed: &Changed) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} changed while it was looked at: {changed:?}", place.named()))
}
