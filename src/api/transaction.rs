//! Several rows, and a claim's record, changed together or not at all.

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

/// After so many runs that came to nothing, it keeps others off what they have changed under it.
const FREE_RUNS: usize = 3;

/// After so many, off all that it reads and writes: where it meets others somewhere else each time.
const SPARING_RUNS: usize = 16;

/// The inside of an [`atomic_phase`](crate::Engine::atomic_phase) or a [`work_stage`](crate::Claim::work_stage): what is read
/// holds at one moment, what is written is committed with it, all or nothing.
///
/// It is optimistic. No lock is held while the closure runs, so it may be slow without stopping anyone who does not conflict
/// with it; when another commit has changed what it read, it is run again, whatever it returned. It never sees two states at
/// once: a read that no longer fits those before it answers `Conflict`, and the run comes to nothing. So it is when a record that
/// it has seen expires before its end.
///
/// After three runs that came to nothing, it goes first on the keys that others have changed under it: other transactions,
/// [`Table`](crate::table::Table)s and changes of records that would write one of these wait until it has ended, and all others go on.
/// Endings of claims never wait. After a range it is the whole table that waits. What is slow and meets others often delays just
/// those. After sixteen, whoever would write anything that it reads or writes waits. A transaction that has kept others waiting
/// for [`sync_timeout`](crate::EngineOptions::sync_timeout) does not run again, and answers `Conflict`: so it ends, too, where its
/// closure waits for a thread that waits for it.
///
/// - Nothing that cannot be undone belongs inside: the closure may run several times.
/// - Only its own tables may be used inside, and [`Requests::with_transaction`](crate::http::Requests::with_transaction). An
///   `atomic_phase` of the same engine inside is part of the transaction: what it writes is committed with the rest, and what a
///   part that fails has written is not. Any other call into the engine answers
///   [`InsideTransaction`](ErrorKind::InsideTransaction).
/// - A range that was read is checked as a whole: a row that comes into it counts as a change of what was read.
pub struct Transaction {
    protocol: Arc<Protocol>,
    workspace: RefCell<Workspace>,
    tables: RefCell<Vec<Arc<str>>>,
    /// The claims that it makes, each with a function to call after the commit.
    claims: RefCell<Vec<NewClaim>>,
    /// A fault of the engine has reached the closure.
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
    /// How often the closure of a transaction is run before it answers [`Conflict`](ErrorKind::Conflict).
    pub const MAX_RUNS: usize = 64;

    /// A table inside the transaction; as many as you like at once.
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

    /// Records of the same store, in the same transaction.
    pub(crate) fn with_workspace<R>(
        &self,
        protocol: &Protocol,
        f: impl FnOnce(&mut Workspace) -> Result<R>,
    ) -> Result<R> {
        if !std::ptr::eq(&raw const *self.protocol, protocol) {
            let message = "the transaction is of another engine than the requests";
            return self.noted(Err(Error::new(ErrorKind::InvalidOptions, message)));
        }
        let done = f(&mut self.workspace.borrow_mut());
        self.noted(done)
    }

    /// Calls it once the transaction is committed and durable, if that has claimed this record.
    #[cfg(feature = "http")]
    pub(crate) fn on_claim(&self, id: RecordId, made: impl FnOnce(RecordInfo) + 'static) {
        self.claims.borrow_mut().push((id, Box::new(made)));
    }

    /// A fault that the operation meets here is not its own failure.
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
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.shared_name().as_ref().to_owned()
    }

    fn shared_name(&self) -> Arc<str> {
        self.transaction.tables.borrow().get(self.index).map_or_else(|| Arc::from(""), Arc::clone)
    }

    /// The value of a key, as this transaction has written it, or as it is committed.
    ///
    /// # Errors
    ///
    /// `InvalidKey`; `Conflict` when it no longer fits what was read before: return it, and the closure is run again.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let Transaction { protocol, workspace, .. } = self.transaction;
        let read = Protocol::row(&self.shared_name(), key.as_ref())
            .and_then(|at| protocol.read_row(&mut workspace.borrow_mut(), &at));
        self.transaction.noted(read)
    }

    /// Whether the key has a value.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.get(key).map(|value| value.is_some())
    }

    /// Gives a key a value, once the transaction is committed. Reads nothing, so by itself it conflicts with nobody.
    ///
    /// # Errors
    ///
    /// `InvalidKey`, and `TooLarge` over [`EngineOptions::max_value_bytes`](crate::EngineOptions::max_value_bytes).
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(key.as_ref(), Some(value.as_ref()))
    }

    /// Takes a key's value away, once the transaction is committed.
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

/// A ready-made error for phases of those who have none of their own: `-> Result<R, PhaseError<&str>>`.
#[derive(Clone, Debug)]
pub enum PhaseError<X> {
    /// The closure's own.
    User(X),
    /// The engine's.
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

/// How a run ended, when everything that it read still holds.
enum Ended<'a, R, X> {
    Committed(R, CommittedWorkspace<'a>),
    RolledBack(X),
    Fault(Error),
    Panicked(Box<dyn Any + Send>),
}

/// Beside its closure, what a transaction runs with.
pub(crate) struct Setting<'a, X> {
    pub(crate) fence: Option<Fence<'a>>,
    /// Raised when a fault of the engine is returned, or reaches the closure in the run that counts.
    pub(crate) faulted: Option<&'a AtomicBool>,
    /// Whether the closure runs again after this error of its own.
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

    fn runs_again_after<R>(&self, ended: &Ended<'_, R, X>) -> bool {
        matches!((ended, self.should_retry), (Ended::RolledBack(error), Some(judge)) if judge(error))
    }
}

/// An atomic phase; a part of the transaction of the same engine that this thread is in, if it is in one.
pub(crate) fn phase<R, X: From<Error>>(
    protocol: &Arc<Protocol>,
    options: &PhaseOptions<'_, X>,
    work: impl Fn(&Transaction) -> Result<R, X>,
) -> Result<R, X> {
    let ended = if let Some(outer) = attached(protocol) {
        part(&outer, || work(&outer))
    } else {
        let setting = Setting { fence: None, faulted: None, should_retry: options.should_retry.as_deref() };
        run(protocol, &setting, |tx| Ok((work(tx)?, Ok(Step::Stay)))).map(|(value, _)| value)
    };
    ended.map_err(|error| options.failed(error))
}

/// Runs the closure until what it read still holds when it ends, and commits what it wrote, with what it makes of the
/// claim's record. Also returns the records that the commit has written.
pub(crate) fn run<R, X: From<Error>>(
    protocol: &Arc<Protocol>,
    setting: &Setting<'_, X>,
    work: impl Fn(&Transaction) -> Result<(R, Result<Step>), X>,
) -> Result<(R, Vec<RecordInfo>), X> {
    let fence = setting.fence;
    // A claim may go on after a close: its store is open as long as it lives.
    let checked = if fence.is_some() { protocol.check_outside() } else { protocol.check() };
    checked.map_err(|error| setting.fault(error))?;
    protocol.settle_abandoned();
    let (mut taken, mut met) = (protocol.no_locks(), LockSet::default());
    let met_before = error::met();
    let mut runs = 0;
    // One deadline for all runs: a thread of the closure's own may wait for what this holds, in each of them.
    while runs < Transaction::MAX_RUNS && !taken.is_overdue() {
        runs += 1;
        // Errors of a run that is run again are told to nobody.
        error::forget_met_since(met_before);
        let transaction = Rc::new(Transaction {
            protocol: Arc::clone(protocol),
            workspace: RefCell::new(protocol.workspace()),
            tables: RefCell::default(),
            claims: RefCell::default(),
            faulted: Cell::default(),
        });
        let worked = begin(&transaction, fence, &work);
        let met_fault = transaction.faulted.get();
        let mut workspace = transaction.workspace.replace(protocol.workspace());
        let (written, containers) = protocol.written_locks(&workspace, fence);
        if matches!(worked, Ok(Ok(Ok(_)))) {
            taken.yield_to(&written, &containers);
        }
        let ended = end(protocol, fence, &mut workspace, worked);
        let Some(ended) = ended else {
            protocol.rerun();
            taken.clear();
            met.add(protocol.changed_locks(&workspace));
            if runs >= SPARING_RUNS {
                met.add(protocol.read_locks(&workspace));
                met.add(written);
            }
            if runs >= FREE_RUNS {
                taken.lock_more(&met);
            }
            continue;
        };
        if runs < Transaction::MAX_RUNS && !taken.is_overdue() && setting.runs_again_after(&ended) {
            continue;
        }
        if met_fault {
            setting.raise();
        }
        // Not while others would have to wait for a sync too.
        drop(taken);
        return conclude(protocol, setting, &workspace, ended, transaction.claims.take());
    }
    drop(taken);
    let message = format!("a transaction was run {runs} times; each time others changed what it had read");
    Err(setting.fault(Error::new(ErrorKind::Conflict, message)))
}

/// What the caller is told, once all that it can conclude anything from is durable.
fn conclude<R, X: From<Error>>(
    protocol: &Protocol,
    setting: &Setting<'_, X>,
    workspace: &Workspace,
    ended: Ended<'_, R, X>,
    claims: Vec<NewClaim>,
) -> Result<(R, Vec<RecordInfo>), X> {
    let fault = |error: Error| setting.fault(error);
    let durable = protocol.wait_for(workspace);
    match ended {
        Ended::Committed(value, committed) => {
            let written = protocol.tell(committed).map_err(fault)?;
            for (id, made) in claims {
                if let Some(info) = written.iter().find(|info| id.is_of(info)) {
                    made(info.clone());
                }
            }
            Ok((value, written))
        }
        Ended::RolledBack(error) => durable.map_err(fault).and(Err(error)),
        Ended::Fault(error) => Err(fault(error)),
        // Where the engine can promise nothing any more, the panic still goes on.
        Ended::Panicked(panic) => resume_unwind(panic),
    }
}

/// The closure's answer, if it did not panic, if the claim is where it was.
type Worked<R, X> = Result<std::thread::Result<Result<(R, Result<Step>), X>>>;

fn begin<R, X>(
    transaction: &Rc<Transaction>,
    fence: Option<Fence<'_>>,
    work: impl Fn(&Transaction) -> Result<(R, Result<Step>), X>,
) -> Worked<R, X> {
    let protocol = &transaction.protocol;
    if let Some(fence) = fence {
        protocol.step(&mut transaction.workspace.borrow_mut(), fence, &Step::Stay)?;
    }
    let inside = || protocol.inside(|| attach(transaction, || work(transaction)));
    // The closure's own state is its own: it is `Fn`, and what is rolled back here is thrown away.
    Ok(catch_unwind(AssertUnwindSafe(inside)))
}

/// `None` if something that was read has changed: then the run is judged by nothing that it returned.
fn end<'a, R, X>(
    protocol: &'a Protocol,
    fence: Option<Fence<'_>>,
    workspace: &mut Workspace,
    worked: Worked<R, X>,
) -> Option<Ended<'a, R, X>> {
    if !protocol.holds(workspace) {
        return None;
    }
    let (value, step) = match worked {
        Ok(Ok(Ok(worked))) => worked,
        Ok(Ok(Err(error))) => return Some(Ended::RolledBack(error)),
        Ok(Err(panic)) => return Some(Ended::Panicked(panic)),
        Err(error) => return Some(Ended::Fault(error)),
    };
    let stepped = step.and_then(|step| fence.map_or(Ok(()), |fence| protocol.step(workspace, fence, &step)));
    match stepped.and_then(|()| protocol.commit(workspace)) {
        Ok(committed) => committed.map(|committed| Ended::Committed(value, committed)),
        Err(_) if workspace.is_stale() => None,
        Err(error) => Some(Ended::Fault(error)),
    }
}

#[cfg(test)]
mod tests;
