//! Store time, which no wall clock moves, and the expiry of records by it.
//!
//! The time is a number in the database. A *tick* is an advance of the time; the ticks are counted. An engine that has
//! seen a tick makes the next one if no other engine has made it, and advances the time by at most the time that it has
//! measured since. So store time never runs faster than real time. A record that is written between two ticks gets the
//! time of the earlier tick, and the later tick adds the whole time between them. So its TTL would end early by at most
//! one advance, which is therefore added to every expiry. While no engine is open, the time does not advance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::session::{Fault, Session, get};
use super::sql::Query;
use super::{Inner, REMOVED_FOR, Write, row};
use crate::store::Deleted;
use crate::types::clock::NEVER;
use crate::types::record::Now;

/// The time between two ticks.
const INTERVAL: Duration = Duration::from_secs(10);
/// The largest advance of one tick, in milliseconds. More than the interval, so that a late tick loses nothing.
pub(super) const MAX_ADVANCE: u64 = 20_000;

#[derive(Debug, Default)]
pub(super) struct Time {
    /// The newest time that a statement has returned.
    known: AtomicU64,
    /// The last tick that was seen, and the time of the engine's clock after it.
    seen: tokio::sync::Mutex<(i64, u64)>,
}

impl Time {
    pub(super) fn now(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }

    pub(super) fn saw(&self, time: u64) {
        self.known.fetch_max(time, Ordering::Relaxed);
    }
}

impl Inner {
    /// Reads the tick and the time.
    pub(super) async fn look_at_time(&self) -> Result<(), Fault> {
        let mut taken = self.pool.take().await?;
        let mut seen = self.time.seen.lock().await;
        *seen = self.read_tick(&mut taken.session).await?;
        drop(seen);
        self.pool.give_back(taken);
        Ok(())
    }

    async fn read_tick(&self, session: &mut Session) -> Result<(i64, u64), Fault> {
        let row = session.row(Query::Time, &[]).await?;
        let tick = row.map(|row| self.tick_of(&row)).transpose()?.unwrap_or_default();
        // Read the clock after the answer, so that this reading is not earlier than the tick.
        Ok((tick, self.clock.now()))
    }

    fn tick_of(&self, row: &tokio_postgres::Row) -> Result<i64, Fault> {
        self.time.saw(row::unsigned(get(row, 1)?));
        get(row, 0)
    }

    /// Advances the time by the time that has passed since this engine saw the last tick.
    pub(super) async fn tick(&self) -> Result<(), Fault> {
        let mut seen = self.time.seen.lock().await;
        let now = self.clock.now();
        let passed = now.saturating_sub(seen.1);
        if passed == 0 {
            return Ok(());
        }
        let advance = row::signed(if self.clock.is_manual() { passed } else { passed.min(MAX_ADVANCE) });
        let mut taken = self.pool.take().await?;
        *seen = match taken.session.row(Query::Tick, &[&seen.0, &advance]).await? {
            Some(row) => (self.tick_of(&row)?, now),
            // Another engine has advanced the time.
            None => self.read_tick(&mut taken.session).await?,
        };
        drop(seen);
        self.pool.give_back(taken);
        Ok(())
    }

    /// Advances the time at each call if the clock is manual, so that the time is exact.
    pub(super) async fn tick_if_manual(&self) -> Result<(), Fault> {
        if self.clock.is_manual() && !self.read_only { self.tick().await } else { Ok(()) }
    }
}

/// Advances the time every 10 s. With a manual clock, each call does that instead.
pub(super) async fn run(inner: Arc<Inner>) {
    while !inner.clock.is_manual() {
        tokio::time::sleep(INTERVAL).await;
        // Ignore a failure: the next tick makes up for it.
        let _ = tokio::time::timeout(INTERVAL, inner.tick()).await;
    }
}

/// Returns the milliseconds for which expired rows stay, so that the numbers of a key only grow.
fn delay(inner: &Inner) -> u64 {
    if inner.clock.is_manual() { 0 } else { REMOVED_FOR }
}

/// Returns the store time of the next deletion.
pub(super) async fn next_due(inner: &Arc<Inner>) -> Result<u64, Fault> {
    let mut taken = inner.pool.take().await?;
    let row = taken.session.row(Query::NextDue, &[]).await?;
    inner.pool.give_back(taken);
    let earliest: Option<i64> = row.map(|row| get(&row, 0)).transpose()?.flatten();
    Ok(earliest.map_or(NEVER, |earliest| row::unsigned(earliest).saturating_add(delay(inner))))
}

/// Deletes expired records. Of records that are remembered after their TTL, deletes the contents. Returns `None` if
/// there are none.
///
/// Only the engine that holds the lock of the compaction deletes, in one transaction. If `waits` is true, the others
/// wait for the lock. Otherwise they return `None`.
pub(super) async fn forget_expired(inner: &Arc<Inner>, limit: usize, waits: bool) -> Result<Option<Deleted>, Fault> {
    inner.tick_if_manual().await?;
    let mut taken = inner.pool.take().await?;
    let session = &mut taken.session;
    session.run("BEGIN").await?;
    let lock = if waits { Query::AwaitCompaction } else { Query::TryCompaction };
    let row = session.row(lock, &[&inner.class]).await?;
    if !waits && row.map(|row| get(&row, 0)).transpose()? != Some(true) {
        session.run("COMMIT").await?;
        inner.pool.give_back(taken);
        return Ok(None);
    }
    // From here on, statements see the deletions of the last holder of the lock.
    let row = session.row(Query::Time, &[]).await?;
    row.map(|row| inner.tick_of(&row)).transpose()?;
    let now = Now { store: inner.time.now(), ..inner.now() };
    let due = row::signed(now.store.saturating_sub(delay(inner)));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = session.rows(Query::Expired, &[&due, &limit]).await?;
    let mut deleted = (!rows.is_empty()).then(Deleted::default);
    for row in rows {
        let (name, key, state): (&str, &[u8], i16) = (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
        let numbers = row::Numbers::read(&row, 3)?;
        let revision = row::signed(numbers.revision());
        if state == 0 {
            session.rows(Query::Delete, &[&name, &key, &revision]).await?;
            continue;
        }
        let stored = row::record(numbers, get(&row, 8)?, get(&row, 9)?, None)?;
        match stored.remembered(&now) {
            None => drop(session.rows(Query::Delete, &[&name, &key, &revision]).await?),
            Some(rest) => {
                let columns = row::Columns::new(&rest).map_err(Fault::Refused)?;
                let write = Write {
                    name: name.to_owned(),
                    key: key.to_vec(),
                    columns,
                    seen: numbers.revision(),
                    change: super::random(),
                    decided: now.store,
                    slack: 0,
                    keeps_expiry: true,
                    until: None,
                    claimed_by: None,
                    dead: None,
                };
                write.make(session, inner.class).await?;
            }
        }
        // Otherwise the record was counted when its contents were deleted.
        if let Some(deleted) = deleted.as_mut().filter(|_| !stored.is_forgotten) {
            deleted.add(stored.outcome_len);
            deleted.interrupted += u64::from(state == 5);
        }
    }
    session.run("COMMIT").await?;
    inner.pool.give_back(taken);
    Ok(deleted)
}
