//! The store on PostgreSQL, for engines in several processes.
//!
//! A commit changes a row only if the row still has the revision that was read. The owner of a record is an
//! *incarnation*: the life of an engine at one session of the server, which holds an advisory lock. An owner whose lock
//! is free is declared dead by a commit. So its own ending and the declaration meet at the row, and one of them wins.
//!
//! Most begins and endings run on the thread of their caller or of the committer (`group`). All other calls to the server
//! run on one thread of the engine. Every call has a deadline, so a server that does not answer makes no caller hang.

mod commit;
mod group;
mod keeper;
mod local_session;
mod migrate;
mod open;
mod report;
mod row;
mod server;
mod session;
mod sql;
mod staged;
mod thread;
mod time;
mod tls;
mod transaction;
mod unsettled;
mod verify;
mod waits;

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::store::{
    Change, CommitOptions, Committed, Content, Deleted, Index, Load, OpenReport, Priority, Read, ReadVersion, StoreKey,
    Ticket,
};
use crate::sync::worker::Worker;
use crate::types::clock::{Anchor, NEVER, StoreClock, monotonic};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::options::EngineOptions;
use crate::types::record::{EffectSeeds, Now, StoredRecord};
use crate::types::stats::{Counter, Stats};
use commit::{Found, Write};
use group::{Answer, Committer};
use keeper::Keeper;
pub(crate) use migrate::{Source, Target};
pub use report::ServerReport;
use row::signed;
pub(crate) use server::Server;
use session::{Fault, Pool};
pub use staged::SqlValue;
pub(crate) use staged::{Fenced, Settled, StageTerms, Staged, Stop, is_unknown};
use thread::{Running, answer, deadline_of, start_thread};
use time::Time;
pub(crate) use tls::{Tls, tls_of};
pub(crate) use transaction::Transaction;
use waits::Waits;
pub(crate) use waits::{Await, Happened};

/// The number of sessions for calls, and of those for transactions.
const SESSIONS: usize = 8;
/// The longest time that the drop of a claim waits for the server. A drop without an answer is recorded later.
const DROP_PATIENCE: Duration = Duration::from_secs(1);
/// The time for which the row of a removed record stays, in milliseconds of store time. No statement runs that long, so
/// no claim whose number was drawn before the removal is made after the row is deleted.
const REMOVED_FOR: u64 = 60_000;

/// An open store. Its drop closes it.
pub(crate) struct Store {
    inner: Arc<Inner>,
    running: Mutex<Option<Running>>,
    /// The threads of the committer.
    workers: Mutex<Vec<Worker>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("place", &self.inner.place).finish_non_exhaustive()
    }
}

struct Inner {
    place: PathBuf,
    schema: String,
    id: [u8; 16],
    /// The first half of the keys of all advisory locks of this store.
    class: i32,
    pid: u32,
    timeout: Duration,
    handle: Handle,
    pool: Pool,
    /// The sessions of transactions. They are separate, so that a call inside a transaction never waits for the session
    /// of that transaction.
    transactions: Pool,
    keeper: Keeper,
    committer: Committer,
    waits: Waits,
    clock: StoreClock,
    time: Time,
    effect_seeds: EffectSeeds,
    hasher: RandomState,
    is_closed: AtomicBool,
    /// True if the store is open read-only. Then there is no incarnation, and this engine does not advance the time.
    read_only: bool,
    /// The reason why the last attempt to reach the server failed.
    why: Mutex<Option<String>>,
    commits: Counter,
    conflicts: Counter,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Returns the statements that create the tables of a store in this schema.
pub(crate) fn schema_sql(schema: &str) -> String {
    sql::SCHEMA.replace("{s}", &sql::quoted(schema))
}

/// Returns the first half of the keys of all advisory locks of a store.
fn class_of(id: [u8; 16]) -> i32 {
    let [a, b, c, d, ..] = id;
    i32::from_le_bytes([a, b, c, d])
}

/// Returns random bits.
fn random() -> i64 {
    crate::types::key::random().first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes))
}

impl Store {
    /// Connects to the server, tests it, and finds or creates the store in the schema of the options.
    pub(crate) fn connect(server: Server, options: &EngineOptions) -> Result<(Self, OpenReport)> {
        let began = monotonic();
        options.check()?;
        crate::types::key::check_name("schema", &options.schema)?;
        let (handle, running) = start_thread(&server.place)?;
        let schema: Arc<str> = sql::quoted(&options.schema).into();
        let pool = |is_open| Pool::new(Arc::clone(&server.connect), Arc::clone(&schema), SESSIONS, is_open);
        let (first, name, creates) = (pool(false), options.schema.clone(), options.create && !options.read_only);
        let deadline = deadline_of(options.sync_timeout);
        let found = answer(&handle, deadline, async move {
            open::test_server(&first).await?;
            open::find_or_create(&first, &name, creates).await
        });
        let found = found.unwrap_or_else(|| Err(Fault::Lost("it does not answer".to_owned())));
        let found = found.map_err(|fault| failed("open store", &server.place, &fault.unchanged()))?;
        let inner = Arc::new(Inner {
            schema: schema.to_string(),
            id: found.id,
            class: class_of(found.id),
            pid: std::process::id(),
            timeout: options.sync_timeout,
            pool: pool(true),
            transactions: pool(true),
            place: server.place,
            handle,
            keeper: Keeper::default(),
            committer: Committer::default(),
            waits: Waits::new(found.id),
            clock: StoreClock::start(Arc::clone(&options.clock), Anchor::default(), Duration::ZERO),
            time: Time::default(),
            effect_seeds: EffectSeeds::of_this_open(),
            hasher: RandomState::new(),
            is_closed: AtomicBool::new(false),
            read_only: options.read_only,
            why: Mutex::default(),
            commits: Counter::new("oncekey_commits_total"),
            conflicts: Counter::new("oncekey_commit_conflicts_total"),
        });
        let store = Self { inner, running: Mutex::new(Some(running)), workers: Mutex::default() };
        let interrupted = store.start(deadline)?;
        if !options.read_only {
            Committer::start(&store.inner, &mut store.workers.lock())?;
        }
        let report = OpenReport { interrupted, took: monotonic().saturating_duration_since(began), ..found.report };
        Ok((store, report))
    }

    /// Begins the first incarnation and starts the tasks, unless the store is open read-only. Returns the number of
    /// interrupted records.
    fn start(&self, deadline: Instant) -> Result<u64> {
        let inner = Arc::clone(&self.inner);
        let begun = self.inner.answer(deadline, async move {
            inner.look_at_time().await?;
            if inner.read_only {
                return open::count_interrupted(&inner).await;
            }
            let notifications = keeper::begin(&inner).await?;
            tokio::spawn(keeper::run(Arc::clone(&inner), notifications));
            tokio::spawn(waits::run(Arc::clone(&inner)));
            tokio::spawn(time::run(Arc::clone(&inner)));
            open::record_deaths(&inner).await?;
            open::count_interrupted(&inner).await
        });
        let begun = begun.unwrap_or_else(|| Err(Fault::Lost("it does not answer".to_owned())));
        begun.map_err(|fault| failed("open store", &self.inner.place, &fault.unchanged()))
    }

    /// Sets the function that is called when another engine has changed a key for which a caller waits.
    pub(crate) fn on_change(&self, f: impl Fn(&StoreKey, Happened) + Send + Sync + 'static) {
        self.inner.waits.on_change(Box::new(f));
    }

    /// Reports changes of the key by other engines until the guard is dropped.
    pub(crate) fn awaits(&self, key: &StoreKey) -> Await {
        Await::new(&self.inner, key)
    }

    /// Returns the content of a key, and the store time of that read. `waits` is false for a drop of a claim.
    pub(crate) fn look(&self, key: &StoreKey, load: Load, waits: bool) -> Result<(Now, Read)> {
        self.inner.check()?;
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        let deadline = self.inner.deadline(waits);
        let found = self.inner.answer(deadline, async move { commit::read(&inner, &key, load).await });
        let Found { content, revision, time, .. } = found.unwrap_or_else(|| Err(self.inner.unreachable()))?;
        self.inner.time.saw(time);
        let now = Now { store: time, ..self.inner.now() };
        Ok((now, Read { content, seen: ReadVersion::of_revision(revision), ticket: Ticket::default() }))
    }

    /// Returns a guess at the result of [`look`](Self::look): this record, or no record.
    pub(crate) fn guess(&self, known: Option<&Arc<StoredRecord>>) -> (Now, Read) {
        let seen = ReadVersion::of_revision(known.map_or(0, |stored| stored.revision));
        let content = known.cloned().map(Content::Record);
        (self.inner.now(), Read { content, seen, ticket: Ticket::default() })
    }

    /// Commits a change of one record, or changes without reads. Returns `None` if a record that was read has changed.
    pub(crate) fn commit<C: AsMut<[Change]>>(
        &self,
        mut changes: C,
        reads: &[ReadVersion],
        options: &CommitOptions<'_>,
    ) -> Result<Option<Committed<C>>> {
        self.inner.check_writable()?;
        match (changes.as_mut(), reads) {
            ([change], [seen]) if change.key.is_record() => {
                if !self.change(change, *seen, options)? {
                    self.inner.conflicts.add(1);
                    return Ok(None);
                }
                self.inner.commits.add(1);
            }
            (changes, _) => {
                let deadline = self.inner.deadline(true);
                // The changes depend on no read, so after a conflict with another transaction, try again.
                while !self.transaction().commit(changes, options)? {
                    if monotonic() >= deadline {
                        return Err(Error::new(ErrorKind::Busy, "other transactions change the same row all the time"));
                    }
                }
            }
        }
        Ok(Some(Committed { ticket: Ticket::default(), changes }))
    }

    /// Returns a new transaction, which takes a session at its first read or write.
    pub(crate) fn transaction(&self) -> Transaction {
        Transaction::new(&self.inner)
    }

    fn change(&self, change: &mut Change, seen: ReadVersion, options: &CommitOptions<'_>) -> Result<bool> {
        let inner = &self.inner;
        let deadline = inner.deadline(options.priority != Priority::GivingUp);
        let write = Arc::new(inner.write(change, seen.revision(), options, deadline)?);
        let made = match group::commit(inner, &write, deadline) {
            Answer::Made(made) => Ok(made),
            Answer::Apart { was_sent } => inner.change_apart(&write, was_sent, deadline),
        };
        if made.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsettled) && write.claimed_by.is_some() {
            unsettled::give_back(inner, Arc::clone(&write));
        }
        let Some(numbers) = made? else { return Ok(false) };
        inner.keep(write.claimed_by, deadline);
        if let Some(Content::Record(stored)) = &mut change.content {
            numbers.set(Arc::make_mut(stored));
        }
        if write.columns.state != 1 {
            inner.notify_waiters(&change.key);
        }
        Ok(true)
    }

    /// Returns the keys at or after `from` and before `end` in order, and where to continue.
    pub(crate) fn keys(
        &self,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<(Vec<StoreKey>, Option<StoreKey>)> {
        self.inner.check()?;
        let list = transaction::KeyList::new(index, from, end, limit);
        let inner = Arc::clone(&self.inner);
        let keys = self.inner.answer(self.inner.deadline(true), async move {
            loop {
                let done = async {
                    let mut taken = inner.pool.take().await?;
                    let keys = list.read(&mut taken.session).await?;
                    inner.pool.give_back(taken);
                    Ok(keys)
                };
                match done.await {
                    Ok(keys) => return Ok(keys),
                    Err(fault) => inner.pause_after(fault).await?,
                }
            }
        });
        let keys = keys.unwrap_or_else(|| Err(self.inner.unreachable()))?;
        Ok(transaction::page(keys, limit))
    }

    /// Deletes some of the expired records. Returns `None` if there are no more. While another engine deletes, an exact
    /// pass waits, and any other pass returns `None`.
    pub(crate) fn compact(&self, limit: usize, is_exact: bool) -> Result<Option<Deleted>> {
        self.inner.check()?;
        let inner = Arc::clone(&self.inner);
        let deleted = self.inner.answer(self.inner.deadline(true), async move {
            time::forget_expired(&inner, limit, is_exact).await.map_err(Fault::unchanged)
        });
        deleted.unwrap_or_else(|| Err(self.inner.unreachable()))
    }

    /// Returns the store time of the next deletion, or [`NEVER`].
    pub(crate) fn next_due(&self) -> u64 {
        let inner = Arc::clone(&self.inner);
        let due = self.inner.answer(self.inner.deadline(true), async move { time::next_due(&inner).await });
        // Without an answer, look again at the next change.
        due.and_then(Result::ok).unwrap_or(NEVER)
    }

    /// Returns the time until `due`, or `None` for [`NEVER`] or with a manual clock.
    pub(crate) fn time_until(&self, due: u64) -> Option<Duration> {
        let is_never = due == NEVER || self.inner.clock.is_manual();
        (!is_never).then(|| Duration::from_millis(due.saturating_sub(self.inner.time.now())))
    }

    pub(crate) fn now(&self) -> Now {
        self.inner.now()
    }

    pub(crate) fn id(&self) -> [u8; 16] {
        self.inner.id
    }

    /// Returns the address of the database, without user and password.
    pub(crate) fn place(&self) -> &Path {
        &self.inner.place
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.inner.check()
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        self.inner.check_writable()
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.inner.is_forked()
    }

    pub(crate) fn spread(&self, key: &[u8]) -> usize {
        usize::try_from(self.inner.hasher.hash_one(key) >> 32).unwrap_or_default()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { commits: self.inner.commits.get(), conflicts: self.inner.conflicts.get(), ..Stats::default() }
    }

    /// Ends all sessions, and so frees the lock of this incarnation. Later calls only wait for the first one.
    pub(crate) fn close(&self) {
        if self.is_forked() {
            // This is a child of `fork`: the parent owns the thread.
            if let Some(mut running) = self.running.try_lock() {
                std::mem::forget(running.take());
            }
            return;
        }
        self.inner.is_closed.store(true, Ordering::Release);
        self.inner.committer.close();
        let mut running = self.running.lock();
        if let Some(session) = self.inner.keeper.close() {
            // A server that does not answer frees the lock when it notices the end of the session.
            let unlocked = async move { session.run("SELECT pg_advisory_unlock_all()").await };
            let _ = self.inner.answer(self.inner.deadline(false), unlocked);
        }
        drop(running.take());
        self.workers.lock().clear();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn failed(what: &str, place: &Path, why: &Error) -> Error {
    why.wrap(why.kind(), &format!("{what} {}", place.display()))
}

impl Inner {
    fn answer<T: Send + 'static>(
        &self,
        deadline: Instant,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        answer(&self.handle, deadline, call)
    }

    fn deadline(&self, waits: bool) -> Instant {
        let timeout = if waits { self.timeout } else { self.timeout.min(DROP_PATIENCE) };
        deadline_of(timeout)
    }

    fn now(&self) -> Now {
        // By its token no owner is dead: a read records the death of an owner before it returns.
        let effect_seed = self.effect_seeds.draw();
        Now { store: self.time.now(), wall: self.clock.wall(), first: 0, opened: 0, effect_seed }
    }

    fn is_forked(&self) -> bool {
        std::process::id() != self.pid
    }

    fn check(&self) -> Result<()> {
        if self.is_forked() {
            let message = format!("the store {} was opened by the parent of this process", self.place.display());
            return Err(Error::new(ErrorKind::StoreInUse, message));
        }
        if self.is_closed.load(Ordering::Acquire) { Err(Error::closed()) } else { Ok(()) }
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only {
            let message = format!("the store {} is open read-only", self.place.display());
            return Err(Error::new(ErrorKind::ReadOnly, message));
        }
        self.check()
    }

    /// Makes sure that a claim that was just committed belongs to the present incarnation.
    fn keep(self: &Arc<Self>, claimed_by: Option<i32>, deadline: Instant) {
        let Some(claimed_by) = claimed_by.filter(|me| *me != self.keeper.last()) else { return };
        let inner = Arc::clone(self);
        // Ignore the result: if the server does not answer, the next incarnation adopts the claim.
        let _ = self.answer(deadline, async move { keeper::adopt_late(&inner, claimed_by).await });
    }

    /// Returns the error of a call that had no answer by its deadline.
    fn unreachable(&self) -> Error {
        if self.is_closed.load(Ordering::Acquire) {
            return Error::closed();
        }
        let why = self.why.lock().clone().unwrap_or_else(|| "it does not answer".to_owned());
        Error::new(ErrorKind::Unavailable, format!("the server of {} cannot be reached: {why}", self.place.display()))
    }

    /// Returns the milliseconds to add to every expiry, so that no record expires early: see [`time`].
    fn slack(&self) -> i64 {
        if self.clock.is_manual() { 0 } else { signed(time::MAX_ADVANCE) }
    }
}
