//! Live claims. While one is alive, the directory stays locked, so no other process can begin the same operation.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::{Changed, Event, Protocol, RecordId, WaitFor, has_changed, lost, not_found, owned, unexpected};
use crate::protocol::rules::{Action, Ending, Reason};
use crate::store::{Load, StoreKey};
use crate::types::clock::monotonic;
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::record::RecordInfo;
use crate::types::token::Token;

thread_local! {
    /// The operations that this thread runs, as pairs of engine and key.
    static RUNNING: RefCell<Vec<(usize, StoreKey)>> = const { RefCell::new(Vec::new()) };
}

/// The claims of one engine.
#[derive(Debug, Default)]
pub(super) struct Owners {
    state: Mutex<State>,
    /// Notified when the number of claims becomes zero.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// The number of claims whose commit is not durable yet.
    entering: usize,
    /// The tokens of the live claims.
    live: HashSet<u64>,
    /// True after all handles except those of claims were dropped.
    left: bool,
    /// Served until the store ends. `None` before the start and after the end.
    service: Option<Arc<dyn Service>>,
}

/// A service that lasts as long as the store is open, or a claim is alive.
pub(crate) trait Service: fmt::Debug + Send + Sync {
    /// Refuses new clients. Called while the store is locked, with no lock held.
    fn stop(&self);
    /// Waits until every answer has ended. Called after a stop, with no lock held.
    fn join(&self);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Only threads that run an operation may claim further keys.
    Draining,
    Closed,
}

impl State {
    fn count(&self) -> usize {
        self.entering + self.live.len()
    }
}

/// A claim whose commit is not durable yet.
#[derive(Debug)]
pub(super) struct Entering<'a> {
    protocol: &'a Protocol,
    committed: bool,
}

impl Entering<'_> {
    /// Turns the durable claim into a live one with this token.
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

/// A guard: until it is dropped, this thread runs the operation of a key.
#[derive(Debug)]
pub(crate) struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        let _ = RUNNING.try_with(|running| running.borrow_mut().pop());
    }
}

impl Protocol {
    /// Counts a claim before it is committed, so that a close does not miss it. Fails if the engine is closed.
    pub(super) fn enter_owner(&self) -> Result<Entering<'_>> {
        // Look before taking the lock, because thread-local state needs none.
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

    /// Removes a claim that this process has just ended. The last claim of a closed engine closes the store.
    pub(crate) fn leave_owner(&self, token: u64) {
        self.forget_owner(|state| state.live.remove(&token));
    }

    /// Removes a claim that was dropped, as [`leave_owner`](Self::leave_owner) does.
    pub(crate) fn drop_owner(&self, token: u64) {
        // A child of `fork` owns none of the claims that were copied into it.
        if !self.store.is_forked() {
            self.leave_owner(token);
        }
    }

    /// Counts a claim that has ended.
    pub(crate) fn cycle_ended(&self, id: &RecordId, began: Instant) {
        self.cycles.add(&id.manager, monotonic().saturating_duration_since(began));
    }

    fn forget_owner(&self, forget: impl FnOnce(&mut State) -> bool) {
        let mut state = self.owners.state.lock();
        if !forget(&mut state) || state.count() > 0 {
            return;
        }
        let (closed, left) = (state.phase == Phase::Closed, state.left);
        drop(state);
        self.owners.idle.notify_all();
        if closed {
            // `close` has returned already. The next open repairs what a failed close here leaves.
            error::handled(|| drop(self.end_store()));
        } else if left {
            self.end_service();
        }
    }

    /// Sets the service that lasts until the store ends. Called once, before the first claim.
    pub(crate) fn serve(&self, service: Arc<dyn Service>) {
        self.owners.state.lock().service = Some(service);
    }

    /// Ends the service, unless a claim is alive: then the last claim ends it. Called when the last handle but those of
    /// claims is dropped.
    pub(crate) fn leave(&self) {
        let is_idle = {
            let mut state = self.owners.state.lock();
            state.left = true;
            state.count() == 0
        };
        if is_idle {
            self.end_service();
        }
    }

    /// Ends the service while the store is locked: the next owner may start its own.
    fn end_service(&self) {
        if let Some(service) = self.stop_service() {
            service.join();
        }
    }

    fn stop_service(&self) -> Option<Arc<dyn Service>> {
        let service = self.owners.state.lock().service.take()?;
        service.stop();
        Some(service)
    }

    /// Returns `Deadlock` on a thread that runs an operation, because the thread would wait for its own claim.
    pub(crate) fn check_not_running(&self) -> Result<()> {
        if self.is_running(None) {
            let message = "a running operation cannot wait until all operations have ended";
            return Err(Error::new(ErrorKind::Deadlock, message));
        }
        Ok(())
    }

    /// Refuses new claims except those of running operations, and waits until no claim is alive or the deadline has
    /// passed. Returns at once in a child of `fork`, which owns no claim.
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

    /// Refuses all claims from now on and wakes every waiter. Closes the store if no claim is alive. Otherwise returns
    /// `ClaimsAlive`, and the last claim closes the store. Must not be called inside a transaction.
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
                // The last claim has ended since the count, and has closed the store.
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

    /// Closes the store although claims are alive. They can no longer end their records.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn abort(&self) -> Result<()> {
        self.forget_all_owners();
        self.end_store()
    }

    /// Ends the store as the death of the process would.
    #[cfg(feature = "test-util")]
    pub(crate) fn crash(&self) {
        self.forget_all_owners();
        self.owners.state.lock().service = None;
        // Close before the crash: the subscribers of a process that dies get no event.
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
        let service = self.stop_service();
        let ended = self.store.close();
        self.subscribers.close();
        // Join after the close: it ends the calls into the store in which an answer may wait.
        if let Some(service) = service {
            service.join();
        }
        ended
    }

    /// Marks this thread as running the operation of a key until the guard is dropped.
    pub(crate) fn running(&self, id: &RecordId) -> Running {
        // While a thread ends, its thread-local state is gone. Then the thread stays unmarked.
        let _ = RUNNING.try_with(|running| running.borrow_mut().push((self.address(), id.at.clone())));
        Running(())
    }

    /// True if this thread runs the operation of this key, or of any key for `None`.
    fn is_running(&self, at: Option<&StoreKey>) -> bool {
        let is = |(engine, key): &(usize, StoreKey)| *engine == self.address() && at.is_none_or(|at| at == key);
        RUNNING.try_with(|running| running.borrow().iter().any(is)).unwrap_or(false)
    }

    /// Returns `Deadlock` if only this thread could end the wait.
    pub(super) fn check_wait(&self, id: &RecordId) -> Result<()> {
        if !self.is_running(Some(&id.at)) {
            return Ok(());
        }
        let message = format!("this thread runs the operation of {}: waiting for it would never end", id.named());
        Err(Error::new(ErrorKind::Deadlock, message))
    }

    /// Returns `Closed` once the store is closed. After a close of the engine the store stays open while a claim is
    /// alive.
    pub(super) fn check_owned(&self) -> Result<()> {
        self.check_outside()?;
        let state = self.owners.state.lock();
        if state.phase == Phase::Closed && state.count() == 0 { Err(Error::closed()) } else { Ok(()) }
    }

    /// Ends a record that this process began by key. Fenced by the token.
    pub(crate) fn end_by_key(&self, id: &RecordId, token: Token, ending: &Ending, schema: u32) -> Result<()> {
        match self.change(id, &Action::EndByKey { token: token.get(), ending, schema }, WaitFor::Sync)? {
            Changed::Written(info) => {
                self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                Ok(())
            }
            Changed::Kept(Reason::Already, _) => Ok(()),
            Changed::Kept(Reason::OwnedByClaim, _) => Err(owned(id)),
            Changed::Kept(reason, _) => Err(lost(id, reason)),
            other @ Changed::Deleted => Err(unexpected(id, &other)),
        }
    }

    /// Takes a record in progress away from its owner, whose claim is then lost. Also works after a close, while a
    /// claim is alive.
    pub(crate) fn revoke(&self, id: &RecordId, seen: Option<u64>) -> Result<RecordInfo> {
        loop {
            // Revoke only the owner with this token, never a later one.
            let token = self.inspect(id, Load::WithoutOutcome)?.map_or(0, |info| info.stored().token);
            return match self.change(id, &Action::Revoke { token, seen }, WaitFor::Sync)? {
                Changed::Written(info) => {
                    // Notify first: without its last claim, a closed engine has no subscribers.
                    self.subscribers.notify(|| Event::Ended(info.without_outcome()));
                    self.leave_owner(token);
                    Ok(info)
                }
                Changed::Kept(Reason::Superseded(_), _) => continue,
                Changed::Kept(Reason::Changed, _) => Err(has_changed(id)),
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
