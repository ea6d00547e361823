//! Transactions: the reads and writes of one run, and the commit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend::Reads;
use super::owners::Entering;
use super::{Changed, Event, Protocol, Reason, RecordId, WaitFor, Written, lost, unexpected};
use crate::protocol::rules::{Action, Decision, Step, decide};
use crate::store::{Change, CommitOptions, Content, Load, Priority, StoreKey, Ticket};
use crate::sync::key_locks::{HeldLocks, LockSet};
use crate::types::clock::NEVER;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{Now, RecordInfo, Status};
use crate::types::telemetry;
use crate::types::value::Value;

thread_local! {
    /// The engines in whose transactions this thread is.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The state that the record of a claim must still have at the commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence<'a> {
    pub(crate) id: &'a RecordId,
    pub(crate) token: u64,
    pub(crate) point: &'a str,
    /// The TTL of the outcome in milliseconds. `None` means the TTL in the record.
    pub(crate) ttl: Option<u64>,
}

/// The reads of one run of a transaction, and the writes that it would commit.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(super) reads: Reads,
    pub(super) writes: BTreeMap<StoreKey, Option<Content>>,
    /// The records among the writes, with their statuses before.
    records: Vec<(StoreKey, Option<Status>)>,
    /// The records among the writes that keep their time of expiry.
    kept: Vec<StoreKey>,
    /// The records among the writes that a lock would claim.
    locked: Vec<StoreKey>,
    /// The newest group of the contents that were read.
    ticket: Ticket,
    /// The time of the first read. All decisions of the run use it.
    began: Option<Now>,
    /// The store time at which the first of the records that were read expires.
    until: Option<u64>,
    /// True if data that was read has changed. The run is then discarded.
    pub(super) stale: bool,
    /// The error that every write returns, if writes are not allowed.
    writable: Result<()>,
}

/// The writes of a workspace at some moment.
#[derive(Debug)]
pub(crate) struct Savepoint {
    writes: BTreeMap<StoreKey, Option<Content>>,
    records: Vec<(StoreKey, Option<Status>)>,
    kept: Vec<StoreKey>,
    locked: Vec<StoreKey>,
}

/// A workspace after its commit.
#[derive(Debug)]
pub(crate) struct CommittedWorkspace<'a> {
    /// The claims that it has made by locks.
    entering: Vec<(StoreKey, Entering<'a>)>,
    ticket: Ticket,
    written: Vec<Written>,
    decided: Option<Now>,
}

#[cfg(feature = "postgres")]
impl CommittedWorkspace<'_> {
    /// Returns the commit of one record that was made elsewhere.
    pub(super) fn made(written: Written, decided: Now) -> Self {
        Self { entering: Vec::new(), ticket: Ticket::default(), written: vec![written], decided: Some(decided) }
    }
}

impl Workspace {
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn write_row(&mut self, change: Change) -> Result<()> {
        self.check()?;
        self.writable.clone()?;
        self.writes.insert(change.key, change.content);
        Ok(())
    }

    pub(crate) fn savepoint(&self) -> Savepoint {
        let Self { writes, records, kept, locked, .. } = self;
        Savepoint { writes: writes.clone(), records: records.clone(), kept: kept.clone(), locked: locked.clone() }
    }

    /// Discards the writes since the savepoint. The reads since stay in the read set.
    pub(crate) fn roll_back(&mut self, Savepoint { writes, records, kept, locked }: Savepoint) {
        (self.writes, self.records, self.kept, self.locked) = (writes, records, kept, locked);
    }

    /// Returns the content that the transaction has written, or else the content that was read.
    pub(crate) fn newest(&self, at: &StoreKey, read: Content) -> Option<Content> {
        self.writes.get(at).cloned().unwrap_or(Some(read))
    }

    /// Takes back the first and only change of a record.
    pub(super) fn take_back(&mut self, id: &RecordId) {
        self.writes.remove(&id.at);
        self.records.retain(|(at, _)| *at != id.at);
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.stale { Err(stale()) } else { Ok(()) }
    }
}

impl Protocol {
    /// Returns an empty workspace for a run.
    pub(crate) fn workspace(&self) -> Workspace {
        Workspace {
            reads: self.store.reads(),
            writes: BTreeMap::new(),
            records: Vec::new(),
            kept: Vec::new(),
            locked: Vec::new(),
            ticket: Ticket::default(),
            began: None,
            until: None,
            stale: false,
            writable: self.store.check_writable(),
        }
    }

    /// Runs the closure of a transaction. Until it returns, this thread may not call the engine in another way.
    pub(crate) fn inside<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                let _ = INSIDE.try_with(|inside| inside.borrow_mut().pop());
            }
        }
        // While a thread ends, its thread-local state is gone. Then the thread stays unmarked.
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().push(self.address()));
        let _leave = Leave;
        f()
    }

    pub(crate) fn check_outside(&self) -> Result<()> {
        if INSIDE.try_with(|inside| inside.borrow().contains(&self.address())).unwrap_or(false) {
            let message = "the engine was called from inside a transaction, which can only use its own tables";
            return Err(Error::new(ErrorKind::InsideTransaction, message));
        }
        Ok(())
    }

    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Returns the content of a row, as of the same moment as everything else that the workspace has read.
    pub(crate) fn read_row(&self, workspace: &mut Workspace, at: &StoreKey) -> Result<Option<Value>> {
        Ok(self.read_in(workspace, at)?.and_then(Content::into_row))
    }

    pub(super) fn read_in(&self, workspace: &mut Workspace, at: &StoreKey) -> Result<Option<Content>> {
        workspace.check()?;
        if let Some(content) = workspace.writes.get(at) {
            return Ok(content.clone());
        }
        // Add the key before reading it, so that a commit in between marks the read set.
        workspace.reads.add(at);
        let content = self.fetch_in(workspace, at, Load::All)?;
        if content.as_ref().and_then(Content::record).is_some_and(|stored| self.must_give(stored)) {
            // Commit now that a caller is given the outcome, because a closure that then fails has read it too. This
            // commit marks the read set, so the closure runs again.
            if let Some(id) = RecordId::from_store(at.clone()) {
                self.give(&id, WaitFor::Nothing)?;
            }
        }
        // The earlier reads are still current, so all of them were true at the moment of this read.
        workspace.stale = !self.holds(workspace);
        workspace.check()?;
        Ok(content)
    }

    /// Reads a key that is in the read set.
    pub(super) fn fetch_in(&self, workspace: &mut Workspace, at: &StoreKey, load: Load) -> Result<Option<Content>> {
        let read = self.store.read_in(&workspace.reads, at, load)?;
        if read.record().is_some() {
            let expiry = read.next_expiry(&self.now_in(workspace));
            workspace.until = workspace.until.into_iter().chain((expiry != NEVER).then_some(expiry)).min();
        }
        workspace.ticket = workspace.ticket.max(read.ticket);
        Ok(read.content)
    }

    /// Returns the time of a workspace, which is fixed at its first read. If a record that was read expires before the
    /// commit, the run is discarded. The times of written records are moved to the commit.
    pub(super) fn now_in(&self, workspace: &mut Workspace) -> Now {
        *workspace.began.get_or_insert_with(|| self.store.now_in(&workspace.reads))
    }

    /// Adds a change of a record to the workspace.
    pub(super) fn change_in(&self, workspace: &mut Workspace, id: &RecordId, action: &Action<'_>) -> Result<Changed> {
        let content = self.read_in(workspace, &id.at)?;
        let stored = content.as_ref().and_then(Content::record);
        // The wall clock is shown to users, so it is read for each change. Each generation that a transaction starts
        // needs its own effect seed.
        let Now { wall, effect_seed, .. } = self.store.now();
        let now = Now { wall, effect_seed, ..self.now_in(workspace) };
        let after = match decide(stored.map(Arc::as_ref), action, &now) {
            Decision::Write(stored) => Some(stored),
            Decision::Delete => None,
            Decision::Keep(reason) => return Ok(Changed::Kept(reason, self.show(id, stored, &now))),
        };
        workspace.writable.clone()?;
        let is_first = !workspace.writes.contains_key(&id.at);
        if is_first {
            workspace.records.push((id.at.clone(), stored.map(|stored| stored.status(&now))));
        }
        if !action.keeps_expiry() {
            workspace.kept.retain(|kept| *kept != id.at);
        } else if is_first {
            workspace.kept.push(id.at.clone());
        }
        let changed = self.show(id, after.as_ref(), &now).map_or(Changed::Deleted, Changed::Written);
        workspace.writes.insert(id.at.clone(), after.map(Content::Record));
        Ok(changed)
    }

    /// Adds a [`lock`](Self::lock) to a transaction. The claim has no token before the commit.
    #[cfg(feature = "http")]
    pub(crate) fn lock_in(&self, workspace: &mut Workspace, id: &RecordId, lock: &Action<'_>) -> Result<super::Begun> {
        match self.change_in(workspace, id, lock)? {
            Changed::Written(info) => {
                workspace.locked.push(id.at.clone());
                Ok(super::Begun::Claimed(info))
            }
            kept => self.claimed(id, kept),
        }
    }

    /// Adds the step of a stage. The record must have the state of the fence from now to the commit.
    pub(crate) fn step(&self, workspace: &mut Workspace, fence: Fence<'_>, step: &Step) -> Result<()> {
        let Fence { id, token, point, ttl } = fence;
        match self.change_in(workspace, id, &Action::Stage { token, point, step, ttl })? {
            Changed::Written(_) | Changed::Kept(Reason::Already, _) => Ok(()),
            Changed::Kept(reason, _) => Err(lost(id, reason)),
            other @ Changed::Deleted => Err(unexpected(id, &other)),
        }
    }

    /// True if everything that was read is current.
    pub(crate) fn holds(&self, workspace: &Workspace) -> bool {
        !workspace.stale
            && workspace.reads.is_current()
            && workspace.until.is_none_or(|until| self.store.now().store < until)
    }

    /// Ends a run that changes nothing. Returns false if something that it read has changed.
    pub(crate) fn commit_reads(&self, workspace: &Workspace) -> Result<bool> {
        Ok(workspace.reads.commit()? && self.holds(workspace))
    }

    /// Waits until everything that was read is durable. Before that, the result must not be returned.
    pub(crate) fn wait_for(&self, workspace: &Workspace) -> Result<()> {
        self.store.wait(workspace.ticket)
    }

    /// Commits a workspace. Returns `None` if something that it read has changed. The caller then unlocks its key locks
    /// and calls [`announce`](Self::announce).
    pub(crate) fn commit(&self, workspace: &mut Workspace) -> Result<Option<CommittedWorkspace<'_>>> {
        if workspace.writes.is_empty() {
            let (entering, ticket, written) = (Vec::new(), workspace.ticket, Vec::new());
            let committed = CommittedWorkspace { entering, ticket, written, decided: None };
            return Ok(self.commit_reads(workspace)?.then_some(committed));
        }
        // Count the claims before the commit, so that a close does not miss them.
        let locked = workspace.locked.drain(..).map(|at| Ok((at, self.enter_owner()?)));
        let entering = locked.collect::<Result<Vec<_>>>()?;
        let changes = std::mem::take(&mut workspace.writes);
        let changes: Vec<_> = changes.into_iter().map(|(key, content)| Change { key, content }).collect();
        let decided = workspace.began.map(|now| now.store);
        let until = workspace.until.unwrap_or(NEVER);
        // A transaction of a running operation has the priority of an ending.
        let has_run = workspace.records.iter().any(|(_, before)| *before == Some(Status::InProgress));
        let priority = if has_run { Priority::Finishing } else { Priority::User };
        let options = CommitOptions { priority, decided, kept: &workspace.kept, until, read_set: None };
        let Some(committed) = self.store.commit_all(changes, &workspace.reads, options)? else { return Ok(None) };
        let written = workspace.records.drain(..).map(|(at, before)| {
            // The changes are in key order.
            let place = committed.changes.binary_search_by(|change| change.key.cmp(&at)).ok();
            let after = place.and_then(|place| committed.changes.get(place)?.record()).cloned();
            Written { at, before, after }
        });
        let (ticket, written) = (committed.ticket, written.collect());
        Ok(Some(CommittedWorkspace { entering, ticket, written, decided: workspace.began }))
    }

    /// Waits until a commit is durable, wakes waiters and notifies subscribers. Returns the records that the commit has
    /// written.
    pub(crate) fn announce(&self, committed: CommittedWorkspace<'_>) -> Result<Vec<RecordInfo>> {
        self.publish(&committed.written, committed.ticket, WaitFor::Sync)?;
        for (key, entering) in committed.entering {
            let written = committed.written.iter().find(|written| written.at == key);
            if let Some(stored) = written.and_then(|written| written.after.as_ref()) {
                entering.live(stored.token);
            }
        }
        // At the time of the decision: the written records may have expired since.
        let Some(now) = committed.decided else { return Ok(Vec::new()) };
        let mut shown = Vec::with_capacity(committed.written.len());
        for Written { at, before, after } in &committed.written {
            let info = || self.show(&RecordId::from_store(at.clone())?, after.as_ref(), &now);
            let Some(info) = info() else { continue };
            let owned = *before == Some(Status::InProgress);
            match info.status() {
                Status::InProgress if !owned => self.subscribers.notify(|| Event::Began(info.without_outcome())),
                Status::Succeeded | Status::Failed => self.subscribers.notify(|| Event::Ended(info.without_outcome())),
                Status::Released | Status::Interrupted if owned => {
                    if let Some(why) = info.interruption().filter(|_| info.status() == Status::Interrupted) {
                        telemetry::interrupted(info.manager(), info.key(), &why);
                    }
                    self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                }
                Status::InProgress | Status::Released | Status::Interrupted => {}
            }
            shown.push(info);
        }
        Ok(shown)
    }

    /// Returns an empty set of key locks, for a transaction.
    pub(crate) fn no_locks(&self) -> HeldLocks<'_> {
        self.key_locks.none()
    }

    fn lock_number(&self, key: &[u8]) -> usize {
        self.store.spread(key)
    }

    /// Returns the locks of the keys that conflicted. A range is locked as its table or manager.
    pub(crate) fn changed_locks(&self, workspace: &Workspace) -> LockSet {
        workspace.reads.conflicts().iter().map(|key| self.lock_number(key.bytes())).collect()
    }

    /// Returns the locks of everything that was read.
    pub(crate) fn read_locks(&self, workspace: &Workspace) -> LockSet {
        workspace.reads.all().iter().map(|key| self.lock_number(key.bytes())).collect()
    }

    /// Returns the locks of the keys that a workspace writes, including the record of its claim. Also returns the
    /// locks of the tables and managers of these keys.
    pub(crate) fn written_locks(&self, workspace: &Workspace, fence: Option<Fence<'_>>) -> (LockSet, LockSet) {
        let keys = || workspace.writes.keys().chain(fence.map(|fence| &fence.id.at));
        let locks = keys().map(|key| self.lock_number(key.bytes())).collect();
        (locks, keys().map(|key| self.lock_number(key.container_bytes())).collect())
    }

    /// Waits for transactions that have locked this key. Called before a change of one key reads it.
    pub(super) fn yield_to(&self, at: &StoreKey) {
        let locks = || [at.bytes(), at.container_bytes()].map(|key| self.lock_number(key)).into_iter().collect();
        self.key_locks.pass(locks);
    }

    #[cfg(test)]
    pub(crate) fn is_key_locked(&self, at: &StoreKey) -> bool {
        self.key_locks.is_taken(&LockSet::from_iter([self.lock_number(at.bytes())]))
    }

    /// Sets the longest wait for locks.
    #[cfg(test)]
    pub(crate) fn with_patience(mut self, patience: std::time::Duration) -> Self {
        self.key_locks = crate::sync::key_locks::KeyLocks::new(patience);
        self
    }

    /// Counts a repeated run.
    pub(crate) fn rerun(&self) {
        self.reruns.add(1);
        telemetry::runs_again();
    }
}

fn stale() -> Error {
    Error::new(ErrorKind::Conflict, "data that the transaction has read has changed: it runs again")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::Begun;
    use super::*;
    use crate::protocol::rules::{Ending, Start};
    use crate::types::options::{EngineOptions, OnInterrupted};

    fn open() -> (tempfile::TempDir, Protocol) {
        let dir = tempfile::tempdir().unwrap();
        let (protocol, _) = Protocol::open(dir.path(), &EngineOptions::default(), None).unwrap();
        (dir, protocol)
    }

    fn at(number: u32) -> StoreKey {
        Protocol::row("t", &number.to_be_bytes()).unwrap()
    }

    fn put(protocol: &Protocol, number: u32) {
        protocol.put_row(protocol.row_change("t", &number.to_be_bytes(), Some(b"x")).unwrap()).unwrap();
    }

    // Version counters are shared by many keys. When they checked transactions, commits of other keys made transactions
    // run again, and clients could choose such keys.
    #[test]
    fn commits_of_other_keys_do_not_conflict_with_a_workspace() {
        let (_dir, protocol) = open();
        let mut workspace = protocol.workspace();
        for number in 0..1000 {
            assert_eq!(protocol.read_row(&mut workspace, &at(number)).unwrap(), None);
        }
        let changes = (1000..200_000_u32).map(|number| Change { key: at(number), content: None });
        assert!(protocol.store.commit(changes.collect::<Vec<_>>(), &[], Priority::User).unwrap().is_some());
        assert!(protocol.holds(&workspace));
        workspace.write_row(protocol.row_change("t", b"mine", Some(b"x")).unwrap()).unwrap();
        assert!(protocol.commit(&mut workspace).unwrap().is_some());
    }

    #[test]
    fn a_conflict_is_noticed_by_the_next_read_and_by_the_commit() {
        let (_dir, protocol) = open();
        for next in [0, 1, 2] {
            let mut workspace = protocol.workspace();
            for number in [0, 1] {
                protocol.read_row(&mut workspace, &at(number)).unwrap();
            }
            put(&protocol, 0);
            assert_eq!(protocol.read_row(&mut workspace, &at(next)).unwrap_err().kind(), ErrorKind::Conflict, "{next}");
            assert!(workspace.is_stale() && !protocol.holds(&workspace));
            assert!(protocol.changed_locks(&workspace) == LockSet::from_iter([protocol.lock_number(at(0).bytes())]));
        }
        let mut workspace = protocol.workspace();
        protocol.read_row(&mut workspace, &at(0)).unwrap();
        put(&protocol, 0);
        assert!(protocol.commit(&mut workspace).unwrap().is_none(), "a phase that only reads");
    }

    // Changes of records once ignored the locks. A transaction that read a record that changed all the time then failed
    // in every run.
    #[test]
    fn changes_of_records_wait_for_the_locks_of_a_transaction_and_endings_do_not() {
        let (_dir, protocol) = open();
        let id = |key: &str| RecordId::new(&"m".into(), crate::types::key::Key::new(key).unwrap());
        let start = Start::plain(OnInterrupted::Hold);
        let begin = |key: &str| match protocol.begin(&id(key), &start).unwrap() {
            Begun::Claimed(info) => info.stored().token,
            other => panic!("{other:?}"),
        };
        let k = id("k");
        let changes: [&(dyn Fn() + Sync); 3] =
            [&|| assert!(begin("k") > 0), &|| assert!(protocol.remove(&k).unwrap()), &|| {
                protocol.import(&k, protocol.get(&k, Load::All).unwrap().unwrap().stored()).map(drop).unwrap();
            }];
        for held in [k.at.bytes(), k.at.container_bytes()] {
            for change in changes {
                let token = begin("k");
                let mut locks = protocol.no_locks();
                locks.lock_more(&LockSet::from_iter([protocol.lock_number(held)]));
                protocol.end(&k, token, &Ending::Release).unwrap();
                let given_back = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        change();
                        assert!(given_back.load(Ordering::SeqCst), "it did not wait");
                    });
                    for _ in 0..100 {
                        std::thread::yield_now();
                    }
                    given_back.store(true, Ordering::SeqCst);
                    drop(locks);
                    thread.join().unwrap();
                });
                if let Some(info) = protocol.get(&k, Load::WithoutOutcome).unwrap() {
                    let _ = protocol.end(&k, info.stored().token, &Ending::Release);
                    assert!(protocol.remove(&k).unwrap());
                }
            }
        }
    }
}
