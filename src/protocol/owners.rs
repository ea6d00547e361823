//! Live claims: as long as one lives, the directory stays locked, so that no other owner can be at work elsewhere.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::{Changed, Event, Protocol, RecordId, WaitFor, lost, not_found, owned, unexpected};
use crate::protocol::rules::{Action, Ending, Reason};
use crate::store::{Load, StoreKey};
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::record::RecordInfo;
use crate::types::token::Token;

thread_local! {
    /// The keys whose operations this thread is running, each with its engine.
    static RUNNING: RefCell<Vec<(usize, StoreKey)>> = const { RefCell::new(Vec::new()) };
}

/// The claims of one engine.
#[derive(Debug, Default)]
pub(super) struct Owners {
    state: Mutex<State>,
    /// The number of claims has become zero.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Claims that are being committed.
    entering: usize,
    /// The tokens of the live claims.
    live: HashSet<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Only operations that are running may claim further keys.
    Draining,
    Closed,
}

impl State {
    fn count(&self) -> usize {
        self.entering + self.live.len()
    }
}

/// A claim that is being committed.
#[derive(Debug)]
pub(super) struct Entering<'a> {
    protocol: &'a Protocol,
    committed: bool,
}

impl Entering<'_> {
    /// Its commit is durable: from now on it is a live claim with this token.
    pub(super) fn live(mut self, token: u64) {
        let mut state = self.protocol.owners.state.lock();
        state.entering -= 1;
        state.live.insert(token);
        self.committed = true;
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.protocol.forget_owner(|state| {
                state.entering -= 1;
                true
            });
        }
    }
}

/// While it lives, this thread runs the operation of a key.
#[derive(Debug)]
pub(crate) struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        let _ = RUNNING.try_with(|running| running.borrow_mut().pop());
    }
}

impl Protocol {
    /// Counts a claim before it is committed, so that a close does not miss it.
    pub(super) fn enter_owner(&self) -> Result<Entering<'_>> {
        // Looked at before the lock is taken: it reads thread-local state only.
        let nested = self.is_running(None);
        let mut state = self.owners.state.lock();
        match state.phase {
            Phase::Open => {}
            Phase::Draining if nested => {}
            Phase::Draining | Phase::Closed => return Err(Error::closed()),
        }
        state.entering += 1;
        Ok(Entering { protocol: self, committed: false })
    }

    /// A claim has ended or was dropped. The last one of a closed engine ends the store.
    pub(crate) fn leave_owner(&self, token: u64) {
        self.forget_owner(|state| state.live.remove(&token));
    }

    fn forget_owner(&self, forget: impl FnOnce(&mut State) -> bool) {
        // A child of `fork` owns none of the claims that it has a copy of.
        if self.store.is_forked() {
            return;
        }
        let mut state = self.owners.state.lock();
        if !forget(&mut state) || state.count() > 0 {
            return;
        }
        let closed = state.phase == Phase::Closed;
        drop(state);
        self.owners.idle.notify_all();
        if closed {
            // `close` has returned already. An error here is found by the next open.
            error::handled(|| drop(self.end_store()));
        }
    }

    /// `Deadlock` on a thread that runs an operation: it would wait for its own claim.
    pub(crate) fn check_not_running(&self) -> Result<()> {
        if self.is_running(None) {
            let message = "an operation waits for the end of all operations, and so for itself";
            return Err(Error::new(ErrorKind::Deadlock, message));
        }
        Ok(())
    }

    /// Refuses new claims, but for those of running operations, and waits until no claim is alive. A child of `fork` has none.
    pub(crate) fn drain(&self, deadline: Option<Instant>) {
        if self.store.is_forked() {
            return;
        }
        let mut state = self.owners.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
        }
        while state.count() > 0 {
            match deadline {
                None => self.owners.idle.wait(&mut state),
                Some(deadline) => {
                    if self.owners.idle.wait_until(&mut state, deadline).timed_out() {
                        return;
                    }
                }
            }
        }
    }

    /// Refuses all claims from now on, wakes every waiter, and ends the store, unless claims are alive: then the last of them
    /// ends it. To be called outside of transactions.
    pub(crate) fn close(&self) -> Result<()> {
        if self.store.is_forked() {
            return Ok(());
        }
        self.closed.store(true, Ordering::Release);
        let alive = || {
            let mut state = self.owners.state.lock();
            state.phase = Phase::Closed;
            state.count()
        };
        let any = alive() > 0;
        self.wait_queue.close();
        if any {
            match self.store.sync() {
                // The last claim has ended meanwhile.
                Err(error) if error.kind() == ErrorKind::Closed => {}
                synced => synced?,
            }
            let alive = alive();
            if alive > 0 {
                let directory = self.path().display();
                let message = format!("{alive} claims are alive: the store {directory} stays locked until they end");
                return Err(Error::new(ErrorKind::ClaimsAlive, message));
            }
        }
        self.end_store()
    }

    /// Closes the store although claims are alive, which keep nothing.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn abort(&self) -> Result<()> {
        self.forget_all_owners();
        self.end_store()
    }

    /// Ends the store as the death of the process would.
    #[cfg(feature = "test-util")]
    pub(crate) fn crash(&self) {
        self.forget_all_owners();
        // First: a process that dies tells nobody.
        self.subscribers.close();
        self.store.crash();
    }

    #[cfg(any(feature = "fuzzing", feature = "test-util"))]
    fn forget_all_owners(&self) {
        self.closed.store(true, Ordering::Release);
        let mut state = self.owners.state.lock();
        state.phase = Phase::Closed;
        state.live.clear();
        drop(state);
        self.wait_queue.close();
    }

    fn end_store(&self) -> Result<()> {
        let ended = self.store.close();
        self.subscribers.close();
        ended
    }

    /// Marks this thread as running the operation of a key, until the guard is dropped.
    pub(crate) fn running(&self, id: &RecordId) -> Running {
        // Thread-local state is gone where the thread ends: what runs there cannot be marked.
        let _ = RUNNING.try_with(|running| running.borrow_mut().push((self.address(), id.at.clone())));
        Running(())
    }

    /// Whether this thread runs the operation of a key, or of any key.
    fn is_running(&self, at: Option<&StoreKey>) -> bool {
        let is = |(engine, key): &(usize, StoreKey)| *engine == self.address() && at.is_none_or(|at| at == key);
        RUNNING.try_with(|running| running.borrow().iter().any(is)).unwrap_or(false)
    }

    /// Refuses a wait that only the waiting thread itself could end.
    pub(super) fn check_wait(&self, id: &RecordId) -> Result<()> {
        if !self.is_running(Some(&id.at)) {
            return Ok(());
        }
        let message = format!("this thread runs the operation of {}: waiting for it would never end", id.named());
        Err(Error::new(ErrorKind::Deadlock, message))
    }

    /// `Closed` once the store has ended: after a close it is open as long as a claim is alive.
    pub(super) fn check_owned(&self) -> Result<()> {
        self.check_outside()?;
        let state = self.owners.state.lock();
        if state.phase == Phase::Closed && state.count() == 0 { Err(Error::closed()) } else { Ok(()) }
    }

    /// Ends what this process began by key. The token is the fence.
    pub(crate) fn end_by_key(&self, id: &RecordId, token: Token, ending: &Ending, schema: u32) -> Result<()> {
        match self.change(id, &Action::EndByKey { token: token.get(), ending, schema }, WaitFor::Sync)? {
            Changed::Written(info) => {
                self.subscribers.tell(|| Event::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Reason::Already, _) => Ok(()),
            Changed::Kept(Reason::OwnedByClaim, _) => Err(owned(id)),
            Changed::Kept(reason, _) => Err(lost(id, reason)),
            other @ Changed::Deleted => Err(unexpected(id, &other)),
        }
    }

    /// Takes a record in progress away from its owner, whose claim is lost then, after a close too.
    pub(crate) fn revoke(&self, id: &RecordId) -> Result<RecordInfo> {
        loop {
            // Only the owner that was seen is revoked, never one that came after it.
            self.check_owned()?;
            let token = self.read_durable(id, Load::WithoutOutcome)?.map_or(0, |info| info.stored().token);
            return match self.change(id, &Action::Revoke { token }, WaitFor::Sync)? {
                Changed::Written(info) => {
                    self.leave_owner(token);
                    self.subscribers.tell(|| Event::Ended(info.without_outcome()));
                    Ok(info)
                }
                Changed::Kept(Reason::Superseded(_), _) => continue,
                Changed::Kept(Reason::Unfit(status), _) => {
                    let message = format!("{} has no live owner to revoke, it is {status:?}", id.named());
                    Err(Error::new(ErrorKind::NotInProgress, message))
                }
                Changed::Kept(Reason::Absent, _) => Err(not_found(id)),
                other => Err(unexpected(id, &other)),
            };
        }
    }
}
