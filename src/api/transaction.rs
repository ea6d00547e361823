//! Transactions: several rows, and a claim's record, change together or not at all.

mod attached;
mod options;
mod rows;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::protocol::rules::Step;
use crate::protocol::{CommittedWorkspace, Fence, Protocol, RecordId, Workspace};
use crate::sync::key_locks::LockSet;
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::key::check_name;
use crate::types::record::RecordInfo;
use crate::types::value::Value;
#[cfg(feature = "http")]
pub(crate) use attached::part;
#[cfg(not(feature = "http"))]
use attached::part;
use attached::{attach, attached};
pub use options::{Isolation, PhaseOptions};
pub use rows::TransactionRows;

/// The number of failed runs after which a transaction locks the keys that conflicted.
const RUNS_WITHOUT_LOCKS: usize = 3;

/// The number of failed runs after which a transaction locks everything that it reads and writes. Needed where each run
/// conflicts on another key.
const RUNS_BEFORE_FULL_LOCKS: usize = 16;

/// A running transaction: the argument of the closure of an [`atomic_phase`](crate::Engine::atomic_phase) or a
/// [`work_stage`](crate::Claim::work_stage). Everything that is read was true at one moment, and everything that is
/// written is committed at that moment, all or nothing.
///
/// Transactions are optimistic. No lock is held while the closure runs, so a slow closure delays no other thread. If
/// another commit changes data that the closure has read, the closure runs again, whatever it returned. The closure
/// never sees two states at once: a read that no longer fits the earlier ones returns `Conflict`, and the run is
/// discarded. A run is discarded too if a record that it has read expires before the run ends.
///
/// After 3 discarded runs a transaction locks the keys on which it conflicted, and for a range the whole table. Until
/// it ends, other transactions, [`Table`](crate::table::Table)s and changes of records wait before they write these
/// keys. Endings of claims never wait. After 16 runs it locks everything that it reads or writes. A transaction that
/// has held or awaited locks for [`sync_timeout`](crate::EngineOptions::sync_timeout) is not run again and returns
/// `Conflict`. So it also ends if its closure waits for a thread that waits for these locks.
///
/// - The closure may run several times, so it must not cause an effect that cannot be undone.
/// - The closure may use only the tables of its transaction and
///   [`Requests::with_transaction`](crate::http::Requests::with_transaction). An `atomic_phase` of the same engine
///   inside is part of the transaction: its changes are committed with the rest, and are discarded alone if it fails.
///   Any other call into the engine returns [`InsideTransaction`](ErrorKind::InsideTransaction).
/// - A range is checked as a whole: a row that appears in a range that was read is a conflict.
pub struct Transaction {
    protocol: Arc<Protocol>,
    workspace: RefCell<Workspace>,
    tables: RefCell<Vec<Arc<str>>>,
    /// The claims that the transaction makes, each with a function to call after the commit.
    claims: RefCell<Vec<NewClaim>>,
    /// True if the engine returned an error to the closure.
    faulted: Cell<bool>,
}

/// A claim that a transaction makes. The function is called with the record after the commit.
type NewClaim = (RecordId, Box<dyn FnOnce(RecordInfo)>);

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Transaction {
    /// The largest number of runs of a closure before the transaction returns [`Conflict`](ErrorKind::Conflict).
    pub const MAX_RUNS: usize = 64;

    /// Returns a table inside the transaction. Several tables can be used at the same time.
    ///
    /// # Errors
    ///
    /// `InvalidName` unless the name is 1 to 64 of `a-z 0-9 . _ -`.
    pub fn table(&self, name: &str) -> Result<TransactionTable<'_>> {
        self.noted(check_name("table", name))?;
        let mut tables = self.tables.borrow_mut();
        let known = tables.iter().position(|known| **known == *name);
        let index = known.unwrap_or(tables.len());
        if known.is_none() {
            tables.push(name.into());
        }
        Ok(TransactionTable { transaction: self, index })
    }

    /// Calls `f` with the workspace, for records of the same engine.
    pub(crate) fn with_workspace<R>(
        &self,
        protocol: &Protocol,
        f: impl FnOnce(&mut Workspace) -> Result<R>,
    ) -> Result<R> {
        if !std::ptr::eq(&raw const *self.protocol, protocol) {
            let message = "the transaction and the requests belong to different engines";
            return self.noted(Err(Error::new(ErrorKind::InvalidOptions, message)));
        }
        let done = f(&mut self.workspace.borrow_mut());
        self.noted(done)
    }

    /// Calls `made` after the transaction is committed and durable, if it has claimed this record.
    #[cfg(feature = "http")]
    pub(crate) fn on_claim(&self, id: RecordId, made: impl FnOnce(RecordInfo) + 'static) {
        self.claims.borrow_mut().push((id, Box::new(made)));
    }

    /// Notes an error of the engine, so that a failure made from it is not stored as the operation's own.
    fn noted<R>(&self, result: Result<R>) -> Result<R> {
        if result.is_err() {
            self.faulted.set(true);
        }
        result
    }
}

/// A table inside a [`Transaction`].
#[derive(Clone, Copy)]
pub struct TransactionTable<'tx> {
    transaction: &'tx Transaction,
    index: usize,
}

impl TransactionTable<'_> {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> String {
        self.shared_name().as_ref().to_owned()
    }

    fn shared_name(&self) -> Arc<str> {
        self.transaction.tables.borrow().get(self.index).map_or_else(|| Arc::from(""), Arc::clone)
    }

    /// Returns the value of a key: as this transaction has written it, or else as it is committed.
    ///
    /// # Errors
    ///
    /// `InvalidKey`; `Conflict` if the value does not fit the earlier reads: return this error, and the closure runs
    /// again.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let Transaction { protocol, workspace, .. } = self.transaction;
        let read = Protocol::row(&self.shared_name(), key.as_ref())
            .and_then(|at| protocol.read_row(&mut workspace.borrow_mut(), &at));
        self.transaction.noted(read)
    }

    /// Returns true if the key has a value.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.get(key).map(|value| value.is_some())
    }

    /// Sets the value of a key when the transaction is committed. This reads nothing, so it cannot conflict.
    ///
    /// # Errors
    ///
    /// `InvalidKey`; `TooLarge` over [`EngineOptions::max_value_bytes`](crate::EngineOptions::max_value_bytes).
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(key.as_ref(), Some(value.as_ref()))
    }

    /// Removes a key when the transaction is committed.
    ///
    /// # Errors
    ///
    /// `InvalidKey`.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(key.as_ref(), None)
    }

    fn write(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let Transaction { protocol, workspace, .. } = self.transaction;
        let written = protocol
            .row_change(&self.shared_name(), key, value)
            .and_then(|change| workspace.borrow_mut().write_row(change));
        self.transaction.noted(written)
    }
}

impl fmt::Debug for TransactionTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionTable").field("name", &self.shared_name()).finish_non_exhaustive()
    }
}

/// A ready-made error type for phases: `-> Result<R, PhaseError<&str>>`.
#[derive(Clone, Debug)]
pub enum PhaseError<X> {
    /// The error of the closure.
    User(X),
    /// An error of the engine.
    Engine(Error),
}

impl<X> From<Error> for PhaseError<X> {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl<X: fmt::Display> fmt::Display for PhaseError<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl<X: fmt::Debug + fmt::Display> std::error::Error for PhaseError<X> {}

/// The reason why a run commits nothing.
pub(crate) enum Stop<X> {
    /// The closure has returned this error.
    RolledBack(X),
    /// An error of the engine. For example, the claim no longer owns its record at its recovery point.
    Fault(Error),
    Panicked(Box<dyn Any + Send>),
}

impl<X> From<X> for Stop<X> {
    fn from(error: X) -> Self {
        Self::RolledBack(error)
    }
}

/// The parameters of a transaction, other than its closure.
pub(crate) struct Setting<'a, X> {
    pub(crate) fence: Option<Fence<'a>>,
    /// Set if the engine returned an error to the caller, or to the closure in the last run.
    pub(crate) faulted: Option<&'a AtomicBool>,
    /// Returns true if the closure runs again after this error of its own.
    pub(crate) should_retry: Option<&'a dyn Fn(&X) -> bool>,
}

impl<X: From<Error>> Setting<'_, X> {
    fn raise(&self) {
        if let Some(faulted) = self.faulted {
            faulted.store(true, Ordering::Relaxed);
        }
    }

    fn fault(&self, error: Error) -> X {
        self.raise();
        X::from(error)
    }

    fn runs_again_after<R>(&self, ended: &Result<R, Stop<X>>) -> bool {
        matches!((ended, self.should_retry), (Err(Stop::RolledBack(error)), Some(judge)) if judge(error))
    }
}

/// Runs an atomic phase. If this thread is inside a transaction of the same engine, the phase becomes part of it.
pub(crate) fn phase<R, X: From<Error>>(
    protocol: &Arc<Protocol>,
    options: &PhaseOptions<'_, X>,
    work: impl Fn(&Transaction) -> Result<R, X>,
) -> Result<R, X> {
    let ended = if let Some(outer) = attached(protocol) {
        part(&outer, || work(&outer))
    } else {
        let setting = Setting { fence: None, faulted: None, should_retry: options.should_retry.as_deref() };
        run(protocol, &setting, |tx| Ok((work(tx)?, Step::Stay))).map(|(value, _)| value)
    };
    ended.map_err(|error| options.failed(error))
}

/// Runs the closure until its reads are current when it ends. Commits its writes and the step of the claim's record.
/// Returns the result with the records that the commit has written.
pub(crate) fn run<R, X: From<Error>>(
    protocol: &Arc<Protocol>,
    setting: &Setting<'_, X>,
    work: impl Fn(&Transaction) -> Result<(R, Step), Stop<X>>,
) -> Result<(R, Vec<RecordInfo>), X> {
    let fence = setting.fence;
    // A claim may run stages after a close of the engine.
    let check = || if fence.is_some() { protocol.check_outside() } else { protocol.check() };
    check().map_err(|error| setting.fault(error))?;
    protocol.record_drops();
    let (mut taken, mut conflicted) = (protocol.no_locks(), LockSet::default());
    let uses_before = error::uses();
    let mut runs = 0;
    // One deadline for all runs: in each of them, the closure may wait for a thread that waits for these locks.
    while runs < Transaction::MAX_RUNS && !taken.is_overdue() {
        runs += 1;
        // Errors of an earlier run reach no caller, so they do not count.
        error::reset_uses(uses_before);
        let transaction = Rc::new(Transaction {
            protocol: Arc::clone(protocol),
            workspace: RefCell::new(protocol.workspace()),
            tables: RefCell::default(),
            claims: RefCell::default(),
            faulted: Cell::default(),
        });
        let ran = begin(&transaction, fence, &work);
        let had_fault = transaction.faulted.get();
        let mut workspace = transaction.workspace.replace(protocol.workspace());
        let (written, containers) = protocol.written_locks(&workspace, fence);
        if ran.is_ok() {
            taken.yield_to(&written, &containers);
        }
        let ran = match ran {
            Err(Stop::Panicked(_)) => ran,
            // Check again after the reads: they may show what a claim has done after a close.
            ran => check().map_err(Stop::Fault).and(ran),
        };
        let ended = end(protocol, fence, &mut workspace, ran);
        let Some(ended) = ended else {
            protocol.rerun();
            conflicted.add(protocol.changed_locks(&workspace));
            if runs >= RUNS_BEFORE_FULL_LOCKS {
                conflicted.add(protocol.read_locks(&workspace));
                conflicted.add(written);
            }
            if runs >= RUNS_WITHOUT_LOCKS {
                taken.lock_only(&conflicted);
            } else {
                taken.clear();
            }
            continue;
        };
        if runs < Transaction::MAX_RUNS && !taken.is_overdue() && setting.runs_again_after(&ended) {
            continue;
        }
        if had_fault {
            setting.raise();
        }
        // Unlock before the wait for the sync.
        drop(taken);
        return conclude(protocol, setting, &workspace, ended, transaction.claims.take());
    }
    drop(taken);
    let message = format!("a transaction ran {runs} times, and each time another commit changed data that it had read");
    Err(setting.fault(Error::new(ErrorKind::Conflict, message)))
}

/// Returns the result to the caller, after everything that the result depends on is durable.
fn conclude<R, X: From<Error>>(
    protocol: &Protocol,
    setting: &Setting<'_, X>,
    workspace: &Workspace,
    ended: Result<(R, CommittedWorkspace<'_>), Stop<X>>,
    claims: Vec<NewClaim>,
) -> Result<(R, Vec<RecordInfo>), X> {
    let fault = |error: Error| setting.fault(error);
    let durable = protocol.wait_for(workspace);
    match ended {
        Ok((value, committed)) => {
            let written = protocol.announce(committed).map_err(fault)?;
            for (id, made) in claims {
                if let Some(info) = written.iter().find(|info| id.is_of(info)) {
                    made(info.clone());
                }
            }
            Ok((value, written))
        }
        Err(Stop::RolledBack(error)) => durable.map_err(fault).and(Err(error)),
        Err(Stop::Fault(error)) => Err(fault(error)),
        // The panic continues even if the engine is poisoned.
        Err(Stop::Panicked(panic)) => resume_unwind(panic),
    }
}

fn begin<R, X>(
    transaction: &Rc<Transaction>,
    fence: Option<Fence<'_>>,
    work: impl Fn(&Transaction) -> Result<(R, Step), Stop<X>>,
) -> Result<(R, Step), Stop<X>> {
    let protocol = &transaction.protocol;
    if let Some(fence) = fence {
        protocol.step(&mut transaction.workspace.borrow_mut(), fence, &Step::Stay).map_err(Stop::Fault)?;
    }
    let inside = || protocol.inside(|| attach(transaction, || work(transaction)));
    // The closure is `Fn` and has no state of its own. The workspace is discarded after a panic.
    catch_unwind(AssertUnwindSafe(inside)).unwrap_or_else(|panic| Err(Stop::Panicked(panic)))
}

/// Ends a run. Returns `None` if data that the run has read has changed: then its result is ignored.
fn end<'a, R, X>(
    protocol: &'a Protocol,
    fence: Option<Fence<'_>>,
    workspace: &mut Workspace,
    ran: Result<(R, Step), Stop<X>>,
) -> Option<Result<(R, CommittedWorkspace<'a>), Stop<X>>> {
    if !protocol.holds(workspace) {
        return None;
    }
    let (value, step) = match ran {
        Ok(ran) => ran,
        // The error may depend on what was read.
        Err(stop @ Stop::RolledBack(_)) => {
            return match protocol.commit_reads(workspace) {
                Ok(holds) => holds.then_some(Err(stop)),
                Err(error) => Some(Err(Stop::Fault(error))),
            };
        }
        Err(stop) => return Some(Err(stop)),
    };
    let stepped = fence.map_or(Ok(()), |fence| protocol.step(workspace, fence, &step));
    match stepped.and_then(|()| protocol.commit(workspace)) {
        Ok(committed) => committed.map(|committed| Ok((value, committed))),
        Err(_) if workspace.is_stale() => None,
        Err(error) => Some(Err(Stop::Fault(error))),
    }
}

#[cfg(test)]
mod tests;
