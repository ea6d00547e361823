//! Transactions over several keys: one session under SERIALIZABLE, which reads one snapshot.
//!
//! Changes of single records run under READ COMMITTED, and the server finds no conflict with them. So before its
//! commit, a transaction locks each record that it has read, which fails if the record has changed since. For each key
//! that it read and that had no row, it inserts the row of a removed record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::commit::{self, Found, Write};
use super::row::{Numbers, signed};
use super::session::{Fault, RETRY_PAUSE, Session, Taken, get};
use super::sql::Query;
use super::{Inner, REMOVED_FOR, commit::unsettled};
use crate::store::{
    Change, CommitOptions, Content, Index, Load, Read, ReadVersion, StoreKey, Ticket, check_commit_len,
};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::Now;

/// A string that sorts after the name of every manager and table.
const AFTER_ALL: &str = "{";

/// A listing of keys.
#[derive(Clone, Debug)]
pub(super) struct KeyList {
    query: Query,
    from: (String, Vec<u8>),
    end: (String, Vec<u8>),
    limit: i64,
}

impl KeyList {
    pub(super) fn new(index: Index, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Self {
        let query = match (from.is_record(), index) {
            (true, Index::All) => Query::Records,
            (true, Index::Unfinished) => Query::Unfinished,
            (false, _) => Query::Rows,
        };
        let tag = from.bytes().first();
        let end = end.filter(|end| end.bytes().first() == tag);
        let end = end.map_or_else(|| (AFTER_ALL.to_owned(), Vec::new()), bound);
        Self { query, from: bound(from), end, limit: i64::try_from(limit).unwrap_or(i64::MAX) }
    }

    pub(super) async fn read(&self, session: &mut Session) -> Result<Vec<StoreKey>, Fault> {
        let Self { query, from, end, limit } = self;
        let rows = session.rows(*query, &[&from.0, &from.1, &end.0, &end.1, limit]).await?;
        let key = |row: &tokio_postgres::Row| {
            let (name, key) = (get(row, 0)?, get(row, 1)?);
            Ok(if *query == Query::Rows { StoreKey::row(name, key) } else { StoreKey::record(name, key) })
        };
        rows.iter().map(key).collect()
    }
}

/// Splits a bound into a name and a key. A bound without a zero byte is a name: all keys of this name and of later
/// names are after it.
fn bound(at: &StoreKey) -> (String, Vec<u8>) {
    let rest = at.bytes().get(1..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0);
    let (name, key) = rest.split_at(end.unwrap_or(rest.len()));
    (String::from_utf8_lossy(name).into_owned(), key.get(1..).unwrap_or_default().to_vec())
}

/// Returns the keys, and where to continue.
pub(super) fn page(keys: Vec<StoreKey>, limit: usize) -> (Vec<StoreKey>, Option<StoreKey>) {
    let next = if keys.len() < limit { None } else { keys.last().map(StoreKey::successor) };
    (keys, next)
}

/// One run of a transaction. Its drop rolls back.
#[derive(Debug)]
pub(crate) struct Transaction {
    inner: Arc<Inner>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The session, from the first read or write on.
    taken: Option<Taken>,
    has_begun: bool,
    /// The store time of the snapshot.
    time: Option<u64>,
    /// The life of the server when the transaction began.
    life: String,
    /// True if another transaction was in the way, or the session was lost. The run then has no effect.
    is_stale: bool,
    /// The revisions of the records that were read.
    seen: BTreeMap<StoreKey, u64>,
    /// All keys that were read, and the managers and tables of ranges.
    keys: BTreeSet<StoreKey>,
}

impl Transaction {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self { inner: Arc::clone(inner), state: Mutex::default() }
    }

    pub(crate) fn is_current(&self) -> bool {
        !self.state.lock().is_stale
    }

    /// Returns all keys that were read, and the tables and managers of ranges.
    pub(crate) fn all(&self) -> BTreeSet<StoreKey> {
        self.state.lock().keys.clone()
    }

    /// Returns the time of the snapshot.
    pub(crate) fn now(&self) -> Now {
        let now = self.inner.now();
        Now { store: self.state.lock().time.unwrap_or(now.store), ..now }
    }

    /// Runs a step in the session. The first one begins the transaction. Returns `None` if the run has failed.
    fn step<T, F>(&self, step: impl FnOnce(Taken, u64) -> F) -> Result<Option<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<(T, Option<Taken>), Fault>> + Send + 'static,
    {
        self.inner.check()?;
        let deadline = self.inner.deadline(true);
        let mut state = self.state.lock();
        if state.is_stale {
            return Ok(None);
        }
        let begun = match (state.taken.take(), state.time) {
            (Some(taken), Some(time)) => (taken, time),
            _ if state.has_begun => {
                state.is_stale = true;
                return Ok(None);
            }
            _ => {
                state.has_begun = true;
                state.life = self.inner.keeper.life();
                let inner = Arc::clone(&self.inner);
                let begun = self.inner.answer(deadline, async move { begin(&inner).await });
                begun.unwrap_or_else(|| Err(self.inner.unreachable()))?
            }
        };
        state.time = Some(begun.1);
        self.inner.time.saw(begun.1);
        match self.inner.answer(deadline, step(begun.0, begun.1)) {
            Some(Ok((done, taken))) => {
                state.taken = taken;
                Ok(Some(done))
            }
            Some(Err(Fault::Refused(error))) => Err(error),
            Some(Err(Fault::Again | Fault::Lost(_))) => {
                state.is_stale = true;
                Ok(None)
            }
            None => Err(self.inner.unreachable()),
        }
    }

    /// Reads a key from the snapshot of the transaction.
    pub(crate) fn read(&self, key: &StoreKey, load: Load) -> Result<Read> {
        let (inner, at) = (Arc::clone(&self.inner), key.clone());
        let found = self.step(|mut taken, _| async move {
            let found = commit::read_once(&inner, &mut taken.session, &at, load).await?;
            Ok((found, Some(taken)))
        })?;
        let mut found: Found = found.unwrap_or_default();
        if self.inner.read_only {
            found.presume_death(self.inner.clock.wall());
        } else if found.has_free_owner() {
            // Declares the owner dead, if it is. The snapshot does not show that change, so the run is then stale.
            let (inner, at) = (Arc::clone(&self.inner), key.clone());
            let deadline = self.inner.deadline(true);
            let now = self.inner.answer(deadline, async move { commit::read(&inner, &at, Load::WithoutOutcome).await });
            let now = now.unwrap_or_else(|| Err(self.inner.unreachable()))?;
            if now.revision != found.revision {
                self.state.lock().is_stale = true;
            }
        }
        let mut state = self.state.lock();
        if key.is_record() {
            state.seen.insert(key.clone(), found.revision);
        }
        state.keys.insert(key.clone());
        Ok(Read { content: found.content, seen: ReadVersion::of_revision(found.revision), ticket: Ticket::default() })
    }

    /// Lists keys from the snapshot of the transaction.
    pub(crate) fn list(
        &self,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<(Vec<StoreKey>, Option<StoreKey>)> {
        let list = KeyList::new(index, from, end, limit);
        self.state.lock().keys.insert(from.container());
        let keys = self.step(|mut taken, _| async move {
            let keys = list.read(&mut taken.session).await?;
            Ok((keys, Some(taken)))
        })?;
        Ok(page(keys.unwrap_or_default(), limit))
    }

    /// Ends a run that changes nothing. Returns false if its reads fit no serial order of the transactions. The server
    /// checks that only at a commit.
    pub(crate) fn commit_reads(&self) -> Result<bool> {
        if !self.state.lock().has_begun {
            return Ok(true);
        }
        let inner = Arc::clone(&self.inner);
        let committed = self.step(|taken, _| async move {
            taken.session.run("COMMIT").await?;
            inner.transactions.give_back(taken);
            Ok(((), None))
        })?;
        Ok(committed.is_some())
    }

    /// Commits all changes or none. Returns false if something that was read has changed.
    pub(crate) fn commit(&self, changes: &mut [Change], options: &CommitOptions<'_>) -> Result<bool> {
        let inner = &self.inner;
        check_commit_len(changes)?;
        let deadline = inner.deadline(true);
        let (mut writes, mut rows) = (Vec::new(), Vec::new());
        let mut kept = self.state.lock().seen.clone();
        for (place, change) in changes.iter().enumerate() {
            if change.key.is_record() {
                let seen = kept.remove(&change.key).unwrap_or_default();
                writes.push((place, inner.write(change, seen, options, deadline)?));
            } else if let Some((name, key)) = change.key.split() {
                let value = change.content.clone().and_then(Content::into_row).map(|value| value.to_vec());
                rows.push((name.to_owned(), key.to_vec(), value));
            }
        }
        let plan = Arc::new(Plan { writes, rows, kept, until: options.until, xid: Mutex::default() });
        let (task, its) = (Arc::clone(inner), Arc::clone(&plan));
        let outcome = self.step(|taken, time| async move {
            let numbers = its.run(&task, taken, time).await?;
            Ok((numbers, None))
        });
        let numbers = match outcome {
            Ok(Some(numbers)) => numbers,
            // Without the number of the transaction, the commit was not sent.
            Ok(None) | Err(_) if plan.xid.lock().is_none() => {
                inner.conflicts.add(u64::from(outcome.is_ok()));
                return outcome.map(|_| false);
            }
            Ok(None) => {
                let (task, its, life) = (Arc::clone(inner), Arc::clone(&plan), self.state.lock().life.clone());
                let settled = inner.answer(deadline, async move { its.settle(&task, &life).await });
                let settled = settled.unwrap_or_else(|| Err(inner.unreachable()));
                match settled.map_err(|error| unsettled(&error))? {
                    Some(numbers) => numbers,
                    None => return Ok(false),
                }
            }
            Err(error) => return Err(unsettled(&error)),
        };
        inner.commits.add(1);
        inner.keep(plan.writes.iter().find_map(|(_, write)| write.claimed_by), deadline);
        for ((place, write), numbers) in plan.writes.iter().zip(numbers) {
            let Some(change) = changes.get_mut(*place) else { continue };
            if let Some(Content::Record(stored)) = &mut change.content {
                numbers.set(Arc::make_mut(stored));
            }
            if write.columns.state != 1 {
                inner.notify_waiters(&change.key);
            }
        }
        Ok(true)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // A child of `fork` shares the connection with its parent.
        let Some(taken) = self.state.get_mut().taken.take().filter(|_| !self.inner.is_forked()) else { return };
        let inner = Arc::clone(&self.inner);
        self.inner.handle.spawn(async move {
            if taken.session.run("ROLLBACK").await.is_ok() {
                inner.transactions.give_back(taken);
            }
        });
    }
}

/// Begins a transaction. Returns the time of its snapshot.
async fn begin(inner: &Arc<Inner>) -> Result<(Taken, u64), Error> {
    loop {
        let done = async {
            inner.tick_if_manual().await?;
            let mut taken = inner.transactions.take().await?;
            taken.session.run("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
            let row = taken.session.row(Query::Time, &[]).await?;
            let time: i64 = row.map(|row| get(&row, 1)).transpose()?.unwrap_or_default();
            Ok((taken, super::row::unsigned(time)))
        };
        match done.await {
            Ok(begun) => return Ok(begun),
            Err(fault) => {
                inner.transactions.clear();
                inner.pause_after(fault).await?;
            }
        }
    }
}

/// The commit of a transaction.
#[derive(Debug)]
struct Plan {
    /// The changes of records, with their places among all changes.
    writes: Vec<(usize, Write)>,
    rows: Vec<(String, Vec<u8>, Option<Vec<u8>>)>,
    /// The records that were read and are not written, with their revisions.
    kept: BTreeMap<StoreKey, u64>,
    /// The store time at which the first record that was read expires.
    until: u64,
    /// The number of the transaction, while it is not known whether its commit was made.
    xid: Mutex<Option<String>>,
}

impl Plan {
    async fn run(&self, inner: &Arc<Inner>, mut taken: Taken, began: u64) -> Result<Vec<Numbers>, Fault> {
        // The snapshot shows only the time at its beginning.
        let passed = self.passed_since(inner, began).await?;
        if super::row::unsigned(passed).saturating_add(began) >= self.until {
            return Err(Fault::Again);
        }
        let session = &mut taken.session;
        let mut numbers = Vec::with_capacity(self.writes.len());
        for (_, write) in &self.writes {
            let write = Write { slack: write.slack.saturating_add(passed), ..write.clone() };
            numbers.push(write.make(session, inner.class).await?.ok_or(Fault::Again)?);
        }
        for (name, key, value) in &self.rows {
            match value {
                Some(value) => session.rows(Query::PutRow, &[name, key, value]).await?,
                None => session.rows(Query::RemoveRow, &[name, key]).await?,
            };
        }
        for (key, revision) in &self.kept {
            let Some((name, key)) = key.split() else { continue };
            if *revision > 0 {
                session.rows(Query::Keep, &[&name, &key]).await?;
            } else {
                let until = signed(began.saturating_add(REMOVED_FOR)).saturating_add(passed);
                session.rows(Query::Absent, &[&name, &key, &until]).await?;
            }
        }
        let xid: String = session.value("SELECT pg_current_xact_id()::text", &[]).await?;
        *self.xid.lock() = Some(xid);
        let committed = session.run("COMMIT").await;
        if !matches!(committed, Err(Fault::Lost(_))) {
            *self.xid.lock() = None;
        }
        committed?;
        inner.transactions.give_back(taken);
        Ok(numbers)
    }

    /// Returns the milliseconds by which the store time has advanced since the snapshot.
    async fn passed_since(&self, inner: &Arc<Inner>, began: u64) -> Result<i64, Fault> {
        if self.writes.is_empty() && self.kept.is_empty() {
            return Ok(0);
        }
        inner.tick_if_manual().await?;
        let mut taken = inner.pool.take().await?;
        let row = taken.session.row(Query::Time, &[]).await?;
        inner.pool.give_back(taken);
        let now: i64 = row.map(|row| get(&row, 1)).transpose()?.unwrap_or_default();
        Ok(now.saturating_sub(signed(began)).max(0))
    }

    /// Finds out whether the commit was made, after its session was lost. Returns `None` if it was not.
    async fn settle(&self, inner: &Arc<Inner>, life: &str) -> Result<Option<Vec<Numbers>>, Error> {
        let xid = self.xid.lock().clone().unwrap_or_default();
        loop {
            let done = async {
                let (session, _) = inner.pool.connect().await?;
                let now: String = session.value(super::keeper::LIFE, &[]).await?;
                if timeline(&now) != timeline(life) {
                    return Err(unknown("another server has taken over"));
                }
                let status: Option<String> = session.value("SELECT pg_xact_status(($1::text)::xid8)", &[&xid]).await?;
                match status.as_deref() {
                    Some("aborted") => Ok(Some(None)),
                    Some("committed") => self.numbers(session).await.map(|numbers| Some(Some(numbers))),
                    Some(_) => Ok(None),
                    None => Err(unknown("the server no longer knows the transaction")),
                }
            };
            match done.await {
                Ok(Some(settled)) => return Ok(settled),
                Ok(None) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(fault) => inner.pause_after(fault).await?,
            }
        }
    }

    /// Reads the numbers of the records that the commit has written.
    async fn numbers(&self, mut session: Session) -> Result<Vec<Numbers>, Fault> {
        let mut all = Vec::with_capacity(self.writes.len());
        for (_, write) in &self.writes {
            let found = write.find(&mut session).await?;
            // The record was changed again since, so its numbers are no longer known.
            all.push(found.ok_or_else(|| unknown("a record has changed since"))?);
        }
        Ok(all)
    }
}

/// Returns the fault of a commit of which the server cannot tell whether it was made.
fn unknown(why: &str) -> Fault {
    Fault::Refused(Error::new(ErrorKind::Unsettled, why))
}

/// Returns the system and the timeline of a life of the server. Numbers of transactions are unique within a timeline.
fn timeline(life: &str) -> Option<&str> {
    life.rsplit_once('/').map(|(timeline, _)| timeline)
}
