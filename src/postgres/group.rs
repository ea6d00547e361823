//! Group commit: changes of many keys in one statement.
//!
//! Begins and endings have a *committer* each, with one session. A caller that finds the session idle runs its own
//! statement on it, and waits for the answer itself. Changes that arrive meanwhile are queued, and the thread of the
//! committer makes up to 128 of them in one statement. Their keys are sorted, so no two groups deadlock.
//!
//! A committer only saves time. Changes that it cannot make, and changes whose answer is lost, are made *apart*: each
//! by `commit::settle`, in a statement of its own. A committer cannot make a change while it has no session, if the row
//! is locked, or if the server refuses the statement because of another row of the group.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio_postgres::types::ToSql;

use super::Inner;
use super::commit::Write;
use super::local_session::{Closing, LocalSession, NoAnswer};
use super::row::{self, Numbers, signed};
use super::session::{Fault, Session, get};
use super::sql::Query;
use crate::sync::worker::Worker;
use crate::types::clock::monotonic;
use crate::types::error::Result;

/// The largest number of keys in a group.
const MAX_KEYS: usize = 128;
/// The largest size of the values of one key in a group, in bytes. A larger change would delay the others.
const MAX_BYTES: usize = 16 << 10;

/// The answer to the caller of a change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// The change was made, or `None`: the row had changed before, or a condition did not hold.
    Made(Option<Numbers>),
    /// The change must be made apart from others. If it was sent, it may have been made already.
    Apart { was_sent: bool },
}

#[derive(Debug, Default)]
pub(super) struct Committers {
    begins: Committer,
    endings: Committer,
    pub(super) closing: Closing,
}

#[derive(Debug, Default)]
struct Committer {
    state: Mutex<State>,
    /// Notified when the thread of the committer has work, and when the committer is closed.
    work_arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    session: SessionState,
    waiting: Vec<Arc<Entry>>,
    is_closed: bool,
}

/// The session of a committer.
#[derive(Debug, Default)]
enum SessionState {
    #[default]
    Down,
    /// The thread of the committer is to connect, or connects.
    Connecting,
    Idle(Box<LocalSession>),
    /// The thread of the committer is to make the queued changes.
    Handed(Box<LocalSession>),
    /// A caller or the thread of the committer uses the session.
    Busy,
}

/// A change that waits for its group.
#[derive(Debug)]
struct Entry {
    write: Arc<Write>,
    deadline: Instant,
    stage: Mutex<Stage>,
    answered: Condvar,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Waiting,
    Sent,
    Answered(Answer),
    /// The caller has left at its deadline.
    Left,
}

/// The right to use the session of a committer. Its drop gives the session back, unless that has ended.
struct SessionGuard<'a> {
    committer: &'a Committer,
    session: Option<Box<LocalSession>>,
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.committer.give_back(self.session.take());
    }
}

/// The work of the thread of a committer.
enum Work {
    Connect,
    Commit(Box<LocalSession>, Vec<Arc<Entry>>),
}

impl Committers {
    /// Starts the thread of each committer.
    pub(super) fn start(inner: &Arc<Inner>) -> Result<Vec<Worker>> {
        let start = |name: &str, of: fn(&Committers) -> &Committer| {
            let (inner, broken) = (Arc::clone(inner), Arc::clone(inner));
            let run = move || of(&inner.committers).run(&inner);
            // After a panic of the thread, every change is made apart.
            Worker::spawn(name, run, move |_| of(&broken.committers).close())
        };
        Ok(vec![
            start("oncekey-pg-begins", |committers| &committers.begins)?,
            start("oncekey-pg-ends", |committers| &committers.endings)?,
        ])
    }

    /// Ends the sessions, and the calls that use them or wait for them. `is_closed` of the store must be true before.
    pub(super) fn close(&self) {
        self.closing.notify();
        self.begins.close();
        self.endings.close();
    }
}

/// Makes a change together with those of other callers.
pub(super) fn commit(inner: &Arc<Inner>, write: &Arc<Write>, deadline: Instant) -> Answer {
    let size = write.columns.body.len() + write.columns.outcome.as_ref().map_or(0, Vec::len);
    let is_plain = write.dead.is_none() && !write.keeps_expiry && size <= MAX_BYTES;
    let (claims, is_new) = (row::claims(&write.columns) && write.claimed_by.is_some(), write.seen == 0);
    let (generation, token) = (write.columns.generation, write.columns.token);
    if is_plain && is_new && claims && generation == 0 && write.until.is_none() && write.columns.outcome.is_none() {
        inner.committers.begins.commit(inner, write, deadline)
    } else if is_plain && !is_new && generation != 0 && token != 0 && write.claimed_by.is_none() {
        inner.committers.endings.commit(inner, write, deadline)
    } else {
        Answer::Apart { was_sent: false }
    }
}

impl Committer {
    fn commit(&self, inner: &Arc<Inner>, write: &Arc<Write>, deadline: Instant) -> Answer {
        // A thread of a runtime must not run another one. With a manual clock the thread of the committer makes the
        // change, after it has advanced the time.
        let drives = !inner.clock.is_manual() && tokio::runtime::Handle::try_current().is_err();
        let mut state = self.state.lock();
        let entry = match std::mem::replace(&mut state.session, SessionState::Busy) {
            session @ (SessionState::Down | SessionState::Connecting) => {
                if matches!(session, SessionState::Down) && !state.is_closed {
                    self.work_arrived.notify_one();
                    state.session = SessionState::Connecting;
                } else {
                    state.session = session;
                }
                return Answer::Apart { was_sent: false };
            }
            SessionState::Idle(session) if drives => {
                drop(state);
                return self.commit_alone(inner, session, write, deadline);
            }
            SessionState::Idle(session) => {
                state.session = SessionState::Handed(session);
                self.work_arrived.notify_one();
                state.enter(write, deadline)
            }
            session @ (SessionState::Handed(_) | SessionState::Busy) => {
                state.session = session;
                state.enter(write, deadline)
            }
        };
        drop(state);
        entry.wait()
    }

    fn commit_alone(&self, inner: &Inner, session: Box<LocalSession>, write: &Write, deadline: Instant) -> Answer {
        let mut guard = SessionGuard { committer: self, session: Some(session) };
        let Some(session) = &mut guard.session else { return Answer::Apart { was_sent: false } };
        match session.call(inner, deadline, async |session| write.make(session, inner.class).await) {
            Ok(Ok(made)) => Answer::Made(made),
            // The server has refused the statement, so nothing has changed.
            Ok(Err(_)) => Answer::Apart { was_sent: false },
            Err(no_answer) => guard.end(inner, no_answer),
        }
    }

    /// Gives the session back after its use, or notes with `None` that it has ended.
    fn give_back(&self, session: Option<Box<LocalSession>>) {
        let mut state = self.state.lock();
        match session {
            Some(session) if !state.is_closed && state.waiting.is_empty() => {
                state.session = SessionState::Idle(session);
            }
            Some(session) if !state.is_closed => {
                state.session = SessionState::Handed(session);
                self.work_arrived.notify_one();
            }
            session => {
                State::disconnect(state);
                drop(session);
            }
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        self.work_arrived.notify_all();
        State::disconnect(state);
    }

    /// Works until the store is closed.
    fn run(&self, inner: &Arc<Inner>) {
        while let Some(work) = self.next_work() {
            match work {
                Work::Connect => self.give_back(LocalSession::connect(inner).map(Box::new)),
                Work::Commit(session, entries) => self.commit_group(inner, session, &entries),
            }
        }
    }

    fn next_work(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            match std::mem::replace(&mut state.session, SessionState::Busy) {
                SessionState::Handed(session) => {
                    let entries = state.take_group();
                    if entries.is_empty() {
                        // All callers have left.
                        state.session = SessionState::Idle(session);
                    } else {
                        return Some(Work::Commit(session, entries));
                    }
                }
                SessionState::Connecting => {
                    state.session = SessionState::Connecting;
                    return Some(Work::Connect);
                }
                session => state.session = session,
            }
            self.work_arrived.wait(&mut state);
        }
    }

    fn commit_group(&self, inner: &Arc<Inner>, session: Box<LocalSession>, entries: &[Arc<Entry>]) {
        let mut guard = SessionGuard { committer: self, session: Some(session) };
        let all = |answer: Answer| entries.iter().for_each(|entry| entry.answer(answer));
        let deadline = entries.iter().map(|entry| entry.deadline).max().unwrap_or_else(monotonic);
        if inner.clock.is_manual() {
            let task = Arc::clone(inner);
            let ticked = inner.answer(deadline, async move { task.tick_if_manual().await });
            if !matches!(ticked, Some(Ok(()))) {
                return all(Answer::Apart { was_sent: false });
            }
        }
        let Some(session) = &mut guard.session else { return };
        let made = session.call(inner, deadline, async |session| match entries {
            [entry] => {
                let made = entry.write.make(session, inner.class).await?;
                Ok(made.map(|numbers| (entry.write.change, numbers)).into_iter().collect())
            }
            _ => make_all(inner, session, entries).await,
        });
        match made {
            Ok(Ok(made)) => {
                for entry in entries {
                    entry.answer(Answer::Made(made.get(&entry.write.change).copied()));
                }
            }
            Ok(Err(_)) => all(Answer::Apart { was_sent: false }),
            Err(no_answer) => all(guard.end(inner, no_answer)),
        }
    }
}

impl SessionGuard<'_> {
    /// Ends the session after a call without an answer.
    fn end(&mut self, inner: &Inner, no_answer: NoAnswer) -> Answer {
        drop(self.session.take());
        match no_answer {
            NoAnswer::NotSent => Answer::Apart { was_sent: false },
            NoAnswer::Sent(why) => {
                *inner.why.lock() = Some(why);
                // The server may have restarted.
                inner.pool.clear();
                Answer::Apart { was_sent: true }
            }
        }
    }
}

impl State {
    /// Ends the session. The callers that wait for it make their changes apart.
    fn disconnect(mut state: MutexGuard<'_, Self>) {
        let (session, waiting) = (std::mem::take(&mut state.session), std::mem::take(&mut state.waiting));
        drop(state);
        drop(session);
        for entry in waiting {
            entry.answer(Answer::Apart { was_sent: false });
        }
    }

    fn enter(&mut self, write: &Arc<Write>, deadline: Instant) -> Arc<Entry> {
        let stage = Mutex::new(Stage::Waiting);
        let entry = Arc::new(Entry { write: Arc::clone(write), deadline, stage, answered: Condvar::new() });
        self.waiting.push(Arc::clone(&entry));
        entry
    }

    /// Takes entries of one incarnation whose callers still wait, in the order of their keys.
    fn take_group(&mut self) -> Vec<Arc<Entry>> {
        let mut group: Vec<Arc<Entry>> = Vec::new();
        let mut rest = Vec::new();
        for entry in self.waiting.drain(..) {
            let owner = group.first().map(|first| first.write.claimed_by);
            if group.len() < MAX_KEYS && owner.is_none_or(|owner| owner == entry.write.claimed_by) {
                if entry.is_sent() {
                    group.push(entry);
                }
            } else {
                rest.push(entry);
            }
        }
        self.waiting = rest;
        group.sort_by(|a, b| (&a.write.name, &a.write.key).cmp(&(&b.write.name, &b.write.key)));
        group
    }
}

impl Entry {
    /// Marks the change as sent, and returns true, unless its caller has left.
    fn is_sent(&self) -> bool {
        let mut stage = self.stage.lock();
        let waits = matches!(*stage, Stage::Waiting);
        if waits {
            *stage = Stage::Sent;
        }
        waits
    }

    fn answer(&self, answer: Answer) {
        *self.stage.lock() = Stage::Answered(answer);
        self.answered.notify_one();
    }

    /// Waits for the answer until the deadline.
    fn wait(&self) -> Answer {
        let mut stage = self.stage.lock();
        loop {
            if let Stage::Answered(answer) = *stage {
                return answer;
            }
            if self.answered.wait_until(&mut stage, self.deadline).timed_out() {
                return match std::mem::replace(&mut *stage, Stage::Left) {
                    Stage::Answered(answer) => answer,
                    Stage::Sent => Answer::Apart { was_sent: true },
                    Stage::Waiting | Stage::Left => Answer::Apart { was_sent: false },
                };
            }
        }
    }
}

type Made = HashMap<i64, Numbers>;

/// Makes the changes of a group. Returns the numbers of those that were made, by their random numbers.
async fn make_all(inner: &Inner, session: &mut Session, entries: &[Arc<Entry>]) -> Result<Made, Fault> {
    let writes = || entries.iter().map(|entry| &*entry.write);
    let names: Vec<&str> = writes().map(|write| write.name.as_str()).collect();
    let keys: Vec<&[u8]> = writes().map(|write| write.key.as_slice()).collect();
    let changes: Vec<i64> = writes().map(|write| write.change).collect();
    let bodies: Vec<&[u8]> = writes().map(|write| write.columns.body.as_slice()).collect();
    // The statement adds the time of the commit.
    let since = |write: &Write, time: i64| time.saturating_sub(signed(write.decided)).saturating_add(write.slack);
    let updated: Vec<i64> = writes().map(|write| since(write, write.columns.updated)).collect();
    let expires: Vec<Option<i64>> =
        writes().map(|write| write.columns.expires.map(|expires| since(write, expires))).collect();
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&names, &keys, &changes, &updated, &expires, &bodies];
    let Some(me) = writes().find_map(|write| write.claimed_by) else {
        let columns = || writes().map(|write| &write.columns);
        let states: Vec<i16> = columns().map(|columns| columns.state).collect();
        let generations: Vec<i64> = columns().map(|columns| columns.generation).collect();
        let tokens: Vec<i64> = columns().map(|columns| columns.token).collect();
        let outcomes: Vec<Option<&[u8]>> = columns().map(|columns| columns.outcome.as_deref()).collect();
        let seen: Vec<i64> = writes().map(|write| signed(write.seen)).collect();
        let until: Vec<Option<i64>> = writes().map(|write| write.until).collect();
        let rest: [&(dyn ToSql + Sync); 6] = [&states, &generations, &tokens, &outcomes, &seen, &until];
        values.extend_from_slice(&rest);
        return read_made(&session.rows(Query::UpdateMany, &values).await?);
    };
    let rest: [&(dyn ToSql + Sync); 2] = [&inner.class, &me];
    values.extend_from_slice(&rest);
    read_made(&session.rows(Query::InsertMany, &values).await?)
}

fn read_made(rows: &[tokio_postgres::Row]) -> Result<Made, Fault> {
    rows.iter().map(|row| Ok((get(row, 0)?, Numbers::read(row, 1)?))).collect()
}
