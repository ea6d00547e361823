//! Group commit: changes of many keys in one statement.
//!
//! The *committer* has two sessions for begins and endings. A caller that finds one of them idle runs its own statement
//! on it, and waits for the answer itself. Changes that arrive while both are busy are queued, and a thread of the
//! committer makes up to 128 begins, or as many endings, in one statement. The keys are sorted, so no two groups
//! deadlock.
//!
//! The committer only saves time. Changes that it cannot make, and changes whose answer is lost, are made *apart*: each
//! by `commit::settle`, in a statement of its own. The committer cannot make a change while it has no session, if the
//! row is locked, or if the server refuses the statement because of another row of the group.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
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

/// The number of sessions. With two, the server commits one group while the next is collected and sent. With more, the
/// groups are smaller, and take more of its processor time.
const SESSIONS: usize = 2;
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

/// Commits the changes of this engine, with a few sessions of its own.
#[derive(Debug, Default)]
pub(super) struct Committer {
    state: Mutex<State>,
    /// Notified when a thread of the committer has work, and when the committer is closed.
    work_arrived: Condvar,
    pub(super) closing: Closing,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<LocalSession>,
    /// The number of sessions that callers and threads use.
    busy: usize,
    /// The number of sessions that threads are to connect.
    wanted: usize,
    /// The number of sessions that threads are connecting.
    connecting: usize,
    waiting: Vec<Arc<Entry>>,
    /// The hashes of the keys that the sessions change. Another change of such a key waits in the queue, and not at the
    /// server, where the others of its group would wait too.
    in_flight: HashSet<u64>,
    is_closed: bool,
}

/// A change that waits for its group.
#[derive(Debug)]
struct Entry {
    write: Arc<Write>,
    /// The hash of its key.
    hash: u64,
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

/// The right to use a session of the committer. Its drop gives the session back, unless that has ended.
struct SessionGuard<'a> {
    committer: &'a Committer,
    session: Option<LocalSession>,
    /// The hashes of the keys that are changed.
    hashes: Vec<u64>,
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.committer.give_back(self.session.take(), &self.hashes);
    }
}

/// Changes for one statement. The drop answers the callers that have no answer, which only a panic leaves over.
struct Group(Vec<Arc<Entry>>);

impl Drop for Group {
    fn drop(&mut self) {
        answer_all(&self.0, Answer::Apart { was_sent: true });
    }
}

/// The work of a thread of the committer.
#[allow(clippy::large_enum_variant, reason = "there is one value for each thread, on its stack")]
enum Work {
    Connect,
    Commit(LocalSession, Group),
}

/// Makes a change together with those of other callers.
pub(super) fn commit(inner: &Arc<Inner>, write: &Arc<Write>, deadline: Instant) -> Answer {
    let size = write.columns.body.len() + write.columns.outcome.as_ref().map_or(0, Vec::len);
    let is_plain = write.dead.is_none() && !write.keeps_expiry && size <= MAX_BYTES;
    let (claims, is_new) = (row::claims(&write.columns) && write.claimed_by.is_some(), write.seen == 0);
    let (generation, token) = (write.columns.generation, write.columns.token);
    let begins = is_new && claims && generation == 0 && write.until.is_none() && write.columns.outcome.is_none();
    let ends = !is_new && generation != 0 && token != 0 && write.claimed_by.is_none();
    if is_plain && (begins || ends) {
        inner.committer.commit(inner, write, deadline)
    } else {
        Answer::Apart { was_sent: false }
    }
}

impl Committer {
    /// Starts the threads of the committer, one for each session. Those that were started end at `close`.
    pub(super) fn start(inner: &Arc<Inner>, workers: &mut Vec<Worker>) -> Result<()> {
        for _ in 0..SESSIONS {
            let (inner, broken) = (Arc::clone(inner), Arc::clone(inner));
            // After a panic of a thread, every change is made apart.
            let on_panic = move |_| broken.committer.close();
            workers.push(Worker::spawn("oncekey-group", move || inner.committer.run(&inner), on_panic)?);
        }
        Ok(())
    }

    /// Ends the sessions, and the calls that use them or wait for them. `is_closed` of the store must be true before.
    pub(super) fn close(&self) {
        self.closing.notify();
        let mut state = self.state.lock();
        state.is_closed = true;
        self.work_arrived.notify_all();
        let (idle, waiting) = (std::mem::take(&mut state.idle), std::mem::take(&mut state.waiting));
        drop(state);
        drop(idle);
        answer_all(&waiting, Answer::Apart { was_sent: false });
    }

    fn commit(&self, inner: &Arc<Inner>, write: &Arc<Write>, deadline: Instant) -> Answer {
        // A thread of a runtime must not run another one. With a manual clock a thread of the committer makes the
        // change, after it has advanced the time.
        let drives = !inner.clock.is_manual() && tokio::runtime::Handle::try_current().is_err();
        let hash = inner.hasher.hash_one((&write.name, &write.key));
        let mut state = self.state.lock();
        // If others wait, an idle session is left to the thread that was notified.
        let is_next = state.waiting.is_empty() && !state.in_flight.contains(&hash);
        if let Some(session) = if drives && is_next { state.take_session() } else { None } {
            state.in_flight.insert(hash);
            drop(state);
            return SessionGuard::new(self, session, vec![hash]).commit(inner, write, deadline);
        }
        if state.idle.is_empty() && state.busy + state.wanted + state.connecting < SESSIONS {
            state.wanted += 1;
            self.work_arrived.notify_one();
        }
        if state.is_closed || state.has_no_session() {
            return Answer::Apart { was_sent: false };
        }
        let entry = state.enter(write, hash, deadline);
        self.notify_of_group(&state);
        drop(state);
        entry.wait()
    }

    /// Notifies a thread if there are a session and changes for it.
    fn notify_of_group(&self, state: &State) {
        if !state.idle.is_empty() && !state.waiting.is_empty() {
            self.work_arrived.notify_one();
        }
    }

    /// Gives the session back after its use, or notes with `None` that it has ended.
    fn give_back(&self, session: Option<LocalSession>, hashes: &[u64]) {
        let mut state = self.state.lock();
        state.busy -= 1;
        for hash in hashes {
            state.in_flight.remove(hash);
        }
        self.add(state, session);
    }

    /// Adds a session that is idle from here on.
    fn add(&self, mut state: MutexGuard<'_, State>, session: Option<LocalSession>) {
        match session {
            Some(session) if !state.is_closed => {
                state.idle.push(session);
                self.notify_of_group(&state);
            }
            session => {
                let abandoned = if state.has_no_session() { std::mem::take(&mut state.waiting) } else { Vec::new() };
                drop(state);
                drop(session);
                answer_all(&abandoned, Answer::Apart { was_sent: false });
            }
        }
    }

    /// Works until the store is closed.
    fn run(&self, inner: &Arc<Inner>) {
        while let Some(work) = self.next_work() {
            match work {
                Work::Connect => {
                    let session = LocalSession::connect(inner);
                    let mut state = self.state.lock();
                    state.connecting -= 1;
                    self.add(state, session);
                }
                Work::Commit(session, group) => self.commit_group(inner, session, &group.0),
            }
        }
    }

    fn next_work(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if state.wanted > 0 {
                state.wanted -= 1;
                state.connecting += 1;
                return Some(Work::Connect);
            }
            // It is empty if all callers have left, or if their keys are in flight.
            let group = if state.idle.is_empty() { Vec::new() } else { state.take_group() };
            if let Some(session) = if group.is_empty() { None } else { state.take_session() } {
                self.notify_of_group(&state);
                return Some(Work::Commit(session, Group(group)));
            }
            self.work_arrived.wait(&mut state);
        }
    }

    fn commit_group(&self, inner: &Arc<Inner>, session: LocalSession, entries: &[Arc<Entry>]) {
        let hashes = entries.iter().map(|entry| entry.hash).collect();
        let mut guard = SessionGuard::new(self, session, hashes);
        let all = |answer| answer_all(entries, answer);
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

impl<'a> SessionGuard<'a> {
    fn new(committer: &'a Committer, session: LocalSession, hashes: Vec<u64>) -> Self {
        Self { committer, session: Some(session), hashes }
    }

    /// Makes one change.
    fn commit(mut self, inner: &Inner, write: &Write, deadline: Instant) -> Answer {
        let Some(session) = &mut self.session else { return Answer::Apart { was_sent: false } };
        match session.call(inner, deadline, async |session| write.make(session, inner.class).await) {
            Ok(Ok(made)) => Answer::Made(made),
            // The server has refused the statement, so nothing has changed.
            Ok(Err(_)) => Answer::Apart { was_sent: false },
            Err(no_answer) => self.end(inner, no_answer),
        }
    }

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
    fn has_no_session(&self) -> bool {
        self.idle.is_empty() && self.busy == 0
    }

    fn take_session(&mut self) -> Option<LocalSession> {
        let session = self.idle.pop();
        self.busy += usize::from(session.is_some());
        session
    }

    fn enter(&mut self, write: &Arc<Write>, hash: u64, deadline: Instant) -> Arc<Entry> {
        let stage = Mutex::new(Stage::Waiting);
        let entry = Arc::new(Entry { write: Arc::clone(write), hash, deadline, stage, answered: Condvar::new() });
        self.waiting.push(Arc::clone(&entry));
        entry
    }

    /// Takes entries of one incarnation whose callers still wait, in the order of their keys.
    fn take_group(&mut self) -> Vec<Arc<Entry>> {
        let mut group: Vec<Arc<Entry>> = Vec::new();
        let mut rest = Vec::new();
        for entry in self.waiting.drain(..) {
            let owner = group.first().map(|first| first.write.claimed_by);
            let fits = group.len() < MAX_KEYS && owner.is_none_or(|owner| owner == entry.write.claimed_by);
            if fits && !self.in_flight.contains(&entry.hash) {
                if entry.is_sent() {
                    group.push(entry);
                }
            } else {
                rest.push(entry);
            }
        }
        self.waiting = rest;
        self.in_flight.extend(group.iter().map(|entry| entry.hash));
        group.sort_by(|a, b| (&a.write.name, &a.write.key).cmp(&(&b.write.name, &b.write.key)));
        group
    }
}

fn answer_all(entries: &[Arc<Entry>], answer: Answer) {
    for entry in entries {
        entry.answer(answer);
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

    /// Answers the caller, unless it has an answer.
    fn answer(&self, answer: Answer) {
        let mut stage = self.stage.lock();
        if !matches!(*stage, Stage::Answered(_)) {
            *stage = Stage::Answered(answer);
            self.answered.notify_one();
        }
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
