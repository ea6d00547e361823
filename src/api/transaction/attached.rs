//! The transactions that this thread is inside. A phase inside a phase of the same engine is part of it.

use std::cell::RefCell;
use std::rc::Rc;

use super::Transaction;
use crate::protocol::{Protocol, Savepoint};

thread_local! {
    static ATTACHED: RefCell<Vec<Rc<Transaction>>> = const { RefCell::new(Vec::new()) };
}

/// Runs a closure inside a transaction. A phase of the same engine on this thread is then part of the transaction.
pub(super) fn attach<R>(transaction: &Rc<Transaction>, f: impl FnOnce() -> R) -> R {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            let _ = ATTACHED.try_with(|attached| attached.borrow_mut().pop());
        }
    }
    // While a thread ends, its thread-local state is gone. Then a phase inside is refused.
    let _ = ATTACHED.try_with(|attached| attached.borrow_mut().push(Rc::clone(transaction)));
    let _leave = Leave;
    f()
}

/// Returns the transaction of this engine that this thread is inside.
pub(super) fn attached(protocol: &Protocol) -> Option<Rc<Transaction>> {
    let of_this = |transaction: &&Rc<Transaction>| std::ptr::eq(&raw const *transaction.protocol, protocol);
    ATTACHED.try_with(|attached| attached.borrow().iter().find(of_this).map(Rc::clone)).ok().flatten()
}

/// Runs a part of a transaction, all or nothing: its writes are discarded if it fails or panics.
pub(crate) fn part<R, X>(transaction: &Transaction, work: impl FnOnce() -> Result<R, X>) -> Result<R, X> {
    struct RollBack<'a>(&'a Transaction, Option<(Savepoint, usize)>);
    impl Drop for RollBack<'_> {
        fn drop(&mut self) {
            if let Some((savepoint, claims)) = self.1.take() {
                self.0.workspace.borrow_mut().roll_back(savepoint);
                self.0.claims.borrow_mut().truncate(claims);
            }
        }
    }
    let before = (transaction.workspace.borrow().savepoint(), transaction.claims.borrow().len());
    let mut unless_done = RollBack(transaction, Some(before));
    let done = work()?;
    unless_done.1 = None;
    Ok(done)
}
