//! Reads and changes of single records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::row::{self, Columns, Numbers, signed, unsigned};
use super::session::{Fault, RETRY_PAUSE, Session, get};
use super::sql::Query;
use super::waits;
use super::{Inner, REMOVED_FOR};
use crate::store::{Change, CommitOptions, Content, Load, StoreKey};
use crate::types::clock::monotonic;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::StoredRecord;

/// The content of a key, as one statement has read it.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) content: Option<Content>,
    /// 0 if the key has no row. A removed record has a row and no content.
    pub(super) revision: u64,
    /// The store time of the same snapshot.
    pub(super) time: u64,
    /// The owner of a record in progress whose lock was free, with the life of the server in which it began.
    free: Option<(i32, Option<String>)>,
}

impl Found {
    /// Shows a record whose owner holds no lock as interrupted, in the form in which the next reading engine will store
    /// it.
    pub(super) fn presume_death(&mut self, wall: u64) {
        if let Some(Content::Record(stored)) = self.content.as_mut().filter(|_| self.free.is_some()) {
            let revision = stored.revision;
            *stored = Arc::new(StoredRecord { revision, ..stored.orphaned(self.time, wall) });
        }
    }

    pub(super) fn has_free_owner(&self) -> bool {
        self.free.is_some()
    }
}

/// A change of one record.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) name: String,
    pub(super) key: Vec<u8>,
    pub(super) columns: Columns,
    /// The revision that the row must still have, 0 if there must be none.
    pub(super) seen: u64,
    /// A random number, by which the row of this change is found again.
    pub(super) change: i64,
    /// The store time of the decision.
    pub(super) decided: u64,
    /// The number of milliseconds that the commit adds to the times of the record, besides the time since the decision.
    pub(super) slack: i64,
    pub(super) keeps_expiry: bool,
    /// The store time from which the change is refused.
    pub(super) until: Option<i64>,
    /// The incarnation that becomes the owner, if the change makes a claim. Its lock must be held.
    pub(super) claimed_by: Option<i32>,
    /// The owner that the change declares dead, if it does. Its lock must be free.
    pub(super) dead: Option<i32>,
}

impl Write {
    /// Makes the change, unless the row has changed or a condition does not hold.
    pub(super) async fn make(&self, session: &mut Session, class: i32) -> Result<Option<Numbers>, Fault> {
        let Columns { state, generation, token, updated, expires, body, outcome } = &self.columns;
        let (decided, owner) = (signed(self.decided), self.claimed_by.unwrap_or_default());
        let (query, owner, seen) = match (self.seen, self.dead) {
            (0, _) => (Query::Insert, Some(owner), 0),
            (seen, None) => (Query::Update, self.claimed_by, signed(seen)),
            (seen, Some(_)) => (Query::Declare, self.claimed_by, signed(seen)),
        };
        let mut values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = vec![
            &self.name,
            &self.key,
            state,
            generation,
            token,
            &owner,
            &self.change,
            updated,
            expires,
            &decided,
            &self.slack,
            &self.keeps_expiry,
            body,
            outcome,
            &self.until,
            &class,
            &self.claimed_by,
        ];
        if self.seen != 0 {
            values.push(&seen);
        }
        if query == Query::Declare {
            values.push(&self.dead);
        }
        let row = session.row(query, &values).await?;
        row.map(|row| Numbers::read(&row, 0)).transpose()
    }

    /// Returns the numbers of this change if it was made and is still the last one.
    pub(super) async fn find(&self, session: &mut Session) -> Result<Option<Numbers>, Fault> {
        let row = session.row(Query::Find, &[&self.name, &self.key, &self.change]).await?;
        row.map(|row| Numbers::read(&row, 0)).transpose()
    }
}

/// Reads a key in one statement. Declares no owner dead, but gives up the own incarnation if its lock is free: otherwise
/// a claim in its name would be refused again and again, until the keeper notices that its session is lost.
pub(super) async fn read_once(
    inner: &Inner,
    session: &mut Session,
    key: &StoreKey,
    load: Load,
) -> Result<Found, Fault> {
    let Some((name, bytes)) = key.split() else { return Ok(Found::default()) };
    if !key.is_record() {
        let row = session.row(Query::ReadRow, &[&name, &bytes]).await?;
        let value = row.map(|row| get::<&[u8]>(&row, 0).map(|value| Content::Row(value.into()))).transpose()?;
        return Ok(Found { content: value, ..Found::default() });
    }
    let query = if load == Load::All { Query::Read } else { Query::ReadWithoutOutcome };
    let me = inner.keeper.last();
    let Some(row) = session.row(query, &[&name, &bytes, &me, &inner.class]).await? else {
        let message = "the tables of the store are empty";
        return Err(Fault::Refused(Error::new(ErrorKind::UnsupportedFormat, message)));
    };
    if get(&row, 13)? {
        inner.keeper.give_up(me);
    }
    let mut found = Found { time: unsigned(get(&row, 0)?), ..Found::default() };
    let state: Option<i16> = get(&row, 1)?;
    if let Some(state) = state {
        let numbers = Numbers::read(&row, 2)?;
        found.revision = numbers.revision();
        if state != 0 {
            let stored = row::record(numbers, get(&row, 7)?, get(&row, 12)?, get(&row, 8)?)?;
            found.content = Some(Content::Record(stored));
        }
        if get(&row, 10)? {
            found.free = Some((get(&row, 9)?, get(&row, 11)?));
        }
    }
    Ok(found)
}

/// Reads a key. If the owner of its record is dead, the record is first changed to interrupted, so that no answer
/// depends only on a look at a lock. A record whose row is locked is in progress until the transaction with the lock
/// ends.
pub(super) async fn read(inner: &Arc<Inner>, key: &StoreKey, load: Load) -> Result<Found, Error> {
    let attempt = || async {
        inner.tick_if_manual().await?;
        let mut taken = inner.pool.take().await?;
        let mut found = read_once(inner, &mut taken.session, key, load).await?;
        if inner.read_only {
            found.presume_death(inner.clock.wall());
            inner.pool.give_back(taken);
            return Ok(found);
        }
        let dead = match &found.free {
            Some((owner, life)) => inner.keeper.may_declare(*owner, life.as_deref())?.then_some(*owner),
            None => None,
        };
        let Some(owner) = dead else {
            inner.pool.give_back(taken);
            return Ok(found);
        };
        // The record is complete even if `load` leaves out the outcome: a record in progress has none.
        if let Some(write) = declaration(inner, key, &found, owner).map_err(Fault::Refused)? {
            if write.make(&mut taken.session, inner.class).await?.is_none() {
                let revision = found.revision;
                found = read_once(inner, &mut taken.session, key, load).await?;
                if found.revision == revision {
                    inner.pool.give_back(taken);
                    return Ok(found);
                }
            }
        }
        inner.pool.give_back(taken);
        Err(Fault::Again)
    };
    inner.retried(attempt).await
}

fn declaration(inner: &Inner, key: &StoreKey, found: &Found, owner: i32) -> Result<Option<Write>> {
    let stored = found.content.as_ref().and_then(Content::record);
    let Some((stored, (name, bytes))) = stored.zip(key.split()) else { return Ok(None) };
    let orphaned = StoredRecord::orphaned(stored, found.time, inner.clock.wall());
    Ok(Some(Write {
        name: name.to_owned(),
        key: bytes.to_vec(),
        columns: Columns::new(&orphaned)?,
        seen: found.revision,
        change: super::random(),
        decided: found.time,
        slack: inner.slack(),
        keeps_expiry: false,
        until: None,
        claimed_by: None,
        dead: Some(owner),
    }))
}

/// Makes a change. After the loss of a session it makes the same change again. Only the first attempt that reaches the
/// row changes it; the others find that change.
///
/// `was_sent` is true if the change was sent before this call, and its answer was lost. Otherwise this sets `sent`
/// before it sends the change. If the caller has set `sent` by then, it has left at its deadline, and nothing is sent.
pub(super) async fn settle(
    inner: &Arc<Inner>,
    write: &Write,
    sent: &AtomicBool,
    mut was_sent: bool,
) -> Result<Option<Numbers>, Error> {
    loop {
        let mut is_sent = was_sent;
        let done = async {
            inner.tick_if_manual().await?;
            let mut taken = inner.pool.take().await?;
            if !was_sent && sent.swap(true, Ordering::Relaxed) {
                return Err(Fault::Refused(inner.unreachable()));
            }
            is_sent = true;
            let mut made = write.make(&mut taken.session, inner.class).await?;
            if made.is_none() && was_sent {
                made = write.find(&mut taken.session).await?;
            }
            inner.pool.give_back(taken);
            Ok(made)
        };
        match done.await {
            Ok(made) => return Ok(made),
            Err(Fault::Refused(error)) if was_sent => return Err(unsettled(&error)),
            Err(fault) => inner.pause_after(fault).await?,
        }
        was_sent = is_sent;
    }
}

pub(super) fn unsettled(why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unsettled, format!("the server was lost during a commit, which may have been made: {why}"))
}

impl Inner {
    /// Returns the change of a record's row. Waits for an incarnation if the change makes a claim.
    pub(super) fn write(
        &self,
        change: &Change,
        seen: u64,
        options: &CommitOptions<'_>,
        deadline: Instant,
    ) -> Result<Write> {
        let Some((name, key)) = change.key.split() else {
            return Err(Error::new(ErrorKind::Corrupt, "a key has no name"));
        };
        let decided = options.decided.unwrap_or_else(|| self.time.now());
        let columns = match change.record() {
            Some(stored) => Columns::new(stored)?,
            None => Columns::removed(decided, decided.saturating_add(REMOVED_FOR)),
        };
        let claimed_by = if row::claims(&columns) {
            let incarnation = self.keeper.incarnation(deadline)?;
            Some(incarnation.ok_or_else(|| self.unreachable())?)
        } else {
            None
        };
        Ok(Write {
            name: name.to_owned(),
            key: key.to_vec(),
            columns,
            seen,
            change: super::random(),
            decided,
            slack: self.slack(),
            keeps_expiry: options.kept.contains(&change.key),
            until: row::time(options.until),
            claimed_by,
            dead: None,
        })
    }

    /// Makes a change in a statement of its own. `was_sent` is true if the change was sent before.
    pub(super) fn change_apart(
        self: &Arc<Self>,
        write: &Arc<Write>,
        was_sent: bool,
        deadline: Instant,
    ) -> Result<Option<Numbers>> {
        let sent = Arc::new(AtomicBool::new(was_sent));
        let (task, its, sends) = (Arc::clone(self), Arc::clone(write), Arc::clone(&sent));
        let settle = async move { settle(&task, &its, &sends, was_sent).await };
        let made = if monotonic() < deadline { self.answer(deadline, settle) } else { None };
        made.unwrap_or_else(|| {
            let why = self.unreachable();
            // A change that was not sent is not sent later.
            Err(if sent.swap(true, Ordering::Relaxed) { unsettled(&why) } else { why })
        })
    }

    /// Repeats the attempt until the server answers. Returns the error of a server that refuses.
    pub(super) async fn retried<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(fault) => self.pause_after(fault).await?,
            }
        }
    }

    /// Waits 50 ms before the next attempt if the server was lost. Returns the error of a server that refuses.
    pub(super) async fn pause_after(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Refused(error) => Err(error),
            Fault::Again => Ok(()),
            Fault::Lost(why) => {
                *self.why.lock() = Some(why);
                self.pool.clear();
                tokio::time::sleep(RETRY_PAUSE).await;
                Ok(())
            }
        }
    }

    /// Notifies the waiters of other engines that a key has lost its owner.
    pub(super) fn notify_waiters(self: &Arc<Self>, key: &StoreKey) {
        if let Some(message) = self.waits.answer(key, self.keeper.last()) {
            waits::send(self, message);
        }
    }
}
