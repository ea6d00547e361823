//! Incarnations: the lives of an engine at the server.
//!
//! The keeper session of an incarnation holds an advisory lock from before the first claim. If the lock is free, the
//! incarnation is dead for ever. An engine that loses the session begins another incarnation, and adopts those of its
//! claims that no other engine has interrupted meanwhile. A claim whose row is locked by a transaction of the user is
//! adopted after the end of that transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use super::Inner;
use super::session::{Fault, Notifications, RETRY_PAUSE, Session, get};
use crate::types::clock::monotonic;
use crate::types::error::{Error, ErrorKind, Result};

/// The longest time for a new incarnation to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time that owners have to come back after a restart of the server, which has freed all locks at once.
const GRACE: Duration = Duration::from_secs(5);
/// The settings with which the server notices a cut connection of a keeper after about 11 s.
const KEEPALIVES: &str = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 11000; SET statement_timeout = '10s'; SET idle_session_timeout = 0;";
/// Identifies the life of the server, from its start to its end. Advisory locks do not outlive it.
pub(super) const LIFE: &str = "SELECT s.system_identifier || '/' || c.timeline_id || '/'
    || extract(epoch FROM pg_postmaster_start_time()) FROM pg_control_system() s, pg_control_checkpoint() c";

#[derive(Debug, Default)]
pub(super) struct Keeper {
    state: Mutex<State>,
    began: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Holds the lock.
    session: Option<Session>,
    life: String,
    /// All incarnations of this engine, the present one last.
    mine: Vec<i32>,
    is_closed: bool,
    /// Owners of an earlier life of the server, and when each was first seen without its lock.
    returning: HashMap<i32, Instant>,
}

impl Keeper {
    /// Returns the present incarnation. Waits for a new one if the last has lost its session. Returns `None` if there
    /// is none at the deadline.
    pub(super) fn incarnation(&self, deadline: Instant) -> Result<Option<i32>> {
        let mut state = self.state.lock();
        loop {
            match state.mine.last() {
                _ if state.is_closed => return Err(Error::closed()),
                Some(number) if state.session.is_some() => return Ok(Some(*number)),
                _ => {}
            }
            if self.began.wait_until(&mut state, deadline).timed_out() {
                return Ok(None);
            }
        }
    }

    /// Returns the last incarnation, alive or not.
    pub(super) fn last(&self) -> i32 {
        self.state.lock().mine.last().copied().unwrap_or_default()
    }

    /// Returns the life of the server in which the last incarnation began.
    pub(super) fn life(&self) -> String {
        self.state.lock().life.clone()
    }

    /// Returns true if an owner without its lock may be declared dead.
    ///
    /// # Errors
    ///
    /// Fails if the engine has no session. It then does not know whether the server has restarted, and `false` would
    /// show the key of a dead owner as in progress.
    pub(super) fn may_declare(&self, owner: i32, life: Option<&str>) -> Result<bool, Fault> {
        let mut state = self.state.lock();
        if state.mine.contains(&owner) {
            return Ok(false);
        }
        if state.is_closed {
            return Err(Fault::Refused(Error::closed()));
        }
        if state.session.is_none() {
            return Err(Fault::Lost("the engine has lost its session".to_owned()));
        }
        if life == Some(state.life.as_str()) {
            return Ok(true);
        }
        let now = monotonic();
        let first = *state.returning.entry(owner).or_insert(now);
        Ok(now.saturating_duration_since(first) >= GRACE)
    }

    /// Ends the session of this incarnation. The keeper begins another one.
    pub(super) fn give_up(&self, incarnation: i32) {
        let mut state = self.state.lock();
        if state.mine.last() == Some(&incarnation) {
            drop(state.session.take());
        }
    }

    /// Refuses further claims. Returns the session that holds the lock.
    pub(super) fn close(&self) -> Option<Session> {
        let mut state = self.state.lock();
        state.is_closed = true;
        self.began.notify_all();
        state.session.take()
    }
}

/// Begins an incarnation.
pub(super) async fn begin(inner: &Arc<Inner>) -> Result<Notifications, Fault> {
    let (session, notifications) = inner.pool.connect().await?;
    // Settings that this version of the server does not have are left out.
    for setting in KEEPALIVES.split_inclusive(';') {
        match session.run(setting).await {
            Ok(()) | Err(Fault::Refused(_)) => {}
            Err(fault) => return Err(fault),
        }
    }
    let (schema, class) = (&inner.schema, inner.class);
    let number: i32 = session.value(&format!("SELECT nextval('{schema}.incarnation')::integer"), &[]).await?;
    session.run(&format!("SELECT pg_advisory_lock({class}, {number})")).await?;
    let life: String = session.value(LIFE, &[]).await?;
    // The first commit of the incarnation is synchronous. When it returns, everything that this engine can read is
    // durable, also on a standby.
    let id = Uuid::from_bytes(inner.id);
    let born = format!(
        "INSERT INTO {schema}.incarnations (id, server) SELECT $1::integer, $2::text
         WHERE EXISTS (SELECT FROM {schema}.store WHERE id = '{id}')"
    );
    let born = session.client.execute(&born, &[&number, &life]).await.map_err(|cause| Fault::new(&cause))?;
    if born == 0 {
        let message = "the tables hold another store now, which was moved there";
        return Err(Fault::Refused(Error::new(ErrorKind::Unavailable, message)));
    }
    prune(inner, &session, number).await?;
    // Before the adoption: if this session is lost too, the next incarnation adopts from this one.
    let mine = {
        let mut state = inner.keeper.state.lock();
        state.mine.push(number);
        state.mine.clone()
    };
    if mine.len() > 1 {
        adopt(inner, &session, &mine).await?;
    }
    session.run(&format!("LISTEN {}", inner.waits.channel)).await?;
    let mut state = inner.keeper.state.lock();
    if state.is_closed {
        return Err(Fault::Refused(Error::closed()));
    }
    state.life = life;
    state.session = Some(session);
    inner.keeper.began.notify_all();
    Ok(notifications)
}

/// Deletes some of the incarnations that are dead and own nothing, so that the table does not grow. Each check takes a
/// lock of the server for a moment, so not all at once.
async fn prune(inner: &Inner, session: &Session, number: i32) -> Result<(), Fault> {
    let (schema, class) = (&inner.schema, inner.class);
    let prune = format!(
        "DELETE FROM {schema}.incarnations WHERE id IN (
             SELECT id FROM {schema}.incarnations
             WHERE id < $1 AND id NOT IN (SELECT owner FROM {schema}.records WHERE state = 1) ORDER BY id LIMIT 100)
         AND pg_try_advisory_xact_lock_shared({class}, id)"
    );
    session.client.execute(&prune, &[&number]).await.map(drop).map_err(|cause| Fault::new(&cause))
}

/// Selects the live claims of earlier incarnations ($2) of the last one ($1).
const MINE: &str = "state = 1 AND owner = ANY ($2) AND owner <> $1";

/// Gives the live claims of earlier incarnations to the last one. Those whose rows are locked get it later.
async fn adopt(inner: &Arc<Inner>, session: &Session, mine: &[i32]) -> Result<(), Fault> {
    if !adopt_unlocked(inner, session, mine).await? {
        tokio::spawn(adopt_rest(Arc::clone(inner)));
    }
    Ok(())
}

/// Adopts the claims whose rows are not locked. Returns true if these are all.
async fn adopt_unlocked(inner: &Inner, session: &Session, mine: &[i32]) -> Result<bool, Fault> {
    let (schema, number) = (&inner.schema, mine.last());
    let adopt = format!(
        "UPDATE {schema}.records r SET owner = $1
         FROM (SELECT manager, key FROM {schema}.records WHERE {MINE} FOR UPDATE SKIP LOCKED) free
         WHERE r.manager = free.manager AND r.key = free.key"
    );
    session.client.execute(&adopt, &[&number, &mine]).await.map_err(|cause| Fault::new(&cause))?;
    let all = format!("SELECT NOT EXISTS (SELECT FROM {schema}.records WHERE {MINE})");
    session.value(&all, &[&number, &mine]).await
}

/// Adopts the claims whose rows were locked, each after the end of the transaction that has locked it.
async fn adopt_rest(inner: Arc<Inner>) {
    while !inner.keeper.state.lock().is_closed && adopt_locked(&inner).await.is_err() {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn adopt_locked(inner: &Arc<Inner>) -> Result<(), Fault> {
    // Not a session of the pool, because the user's transaction may take long.
    let (session, _) = inner.pool.connect().await?;
    let schema = &inner.schema;
    let next = format!("SELECT manager, key FROM {schema}.records WHERE {MINE} LIMIT 1");
    // Waits for the row. One row at a time, because others must not stay locked meanwhile.
    let adopt = format!("UPDATE {schema}.records SET owner = $1 WHERE {MINE} AND manager = $3 AND key = $4");
    loop {
        let mine = inner.keeper.state.lock().mine.clone();
        if adopt_unlocked(inner, &session, &mine).await? {
            return Ok(());
        }
        let number = mine.last();
        let row = session.client.query_opt(&next, &[&number, &mine]).await.map_err(|cause| Fault::new(&cause))?;
        let Some(row) = row else { continue };
        let (name, key): (&str, &[u8]) = (get(&row, 0)?, get(&row, 1)?);
        let adopted = session.client.execute(&adopt, &[&number, &mine, &name, &key]).await;
        adopted.map_err(|cause| Fault::new(&cause))?;
    }
}

/// Adopts a claim of this incarnation that was committed after a later one had adopted the others.
pub(super) async fn adopt_late(inner: &Arc<Inner>, mut claimed_by: i32) -> Result<(), Fault> {
    loop {
        let mine = inner.keeper.state.lock().mine.clone();
        // An incarnation that begins from here on sees the claim.
        if mine.last() == Some(&claimed_by) {
            return Ok(());
        }
        let taken = inner.pool.take().await?;
        adopt(inner, &taken.session, &mine).await?;
        inner.pool.give_back(taken);
        claimed_by = mine.last().copied().unwrap_or_default();
    }
}

/// Keeps an incarnation alive: reads its notifications until its session ends, and then begins another one.
pub(super) async fn run(inner: Arc<Inner>, mut notifications: Notifications) {
    loop {
        while let Some(notification) = notifications.recv().await {
            inner.waits.heard(notification.payload(), inner.keeper.last());
        }
        inner.keeper.give_up(inner.keeper.last());
        notifications = loop {
            if inner.keeper.state.lock().is_closed {
                return;
            }
            match tokio::time::timeout(PATIENCE, begin(&inner)).await {
                Ok(Ok(notifications)) => break notifications,
                Ok(Err(fault)) => *inner.why.lock() = Some(fault.unchanged().to_string()),
                Err(_) => {}
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
    }
}
