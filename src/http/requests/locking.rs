//! The claim of a request that a transaction locks.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::api::claim::Claim;
use crate::api::manager::Manager;
use crate::api::transaction::Transaction;
use crate::http::response::Response;
use crate::protocol::RecordId;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::outcome::Finished;
use crate::types::record::RecordInfo;

/// What [`TransactionRequests::lock`](crate::http::TransactionRequests::lock) answers: as [`Begin`](crate::Begin), for a request that
/// exists.
#[derive(Debug)]
#[must_use = "a request that is locked and dropped is interrupted by the commit"]
pub enum Locking {
    /// The transaction locks it.
    Locked(Locked),
    /// It has been answered.
    Replay(Finished<Response, Response>),
    /// Another owner is at work.
    InProgress(RecordInfo),
    /// It is held until it is resolved.
    Interrupted(RecordInfo),
    /// It was released within [`retry_pause`](crate::ManagerOptions::retry_pause).
    Paused(RecordInfo),
}

/// A request that a transaction locks: a claim, once that is committed.
///
/// Return it from the closure, and then call [`into_claim`](Self::into_claim). What becomes of the request:
///
/// | the transaction | the request |
/// |---|---|
/// | is committed | in progress, owned by the claim of [`into_claim`](Self::into_claim) |
/// | is committed, and this was dropped, inside the closure or after it | interrupted, as by a dropped claim |
/// | is not committed: the closure failed or panicked, or the process died before | as before, and `into_claim` is `ClaimLost` |
/// | runs again | as before; the `Locked` of the run before is `ClaimLost` |
/// | cannot say whether it is committed: a failed sync | as before, or interrupted: the next open knows |
#[must_use = "a request that is locked and dropped is interrupted by the commit"]
pub struct Locked {
    info: RecordInfo,
    made: Arc<Mutex<Option<Claim<Response, Response>>>>,
}

impl Locked {
    pub(super) fn new(
        manager: &Manager<Response, Response>,
        transaction: &Transaction,
        id: RecordId,
        info: RecordInfo,
    ) -> Self {
        let made = Arc::<Mutex<Option<Claim<Response, Response>>>>::default();
        // If this is dropped, the claim that the commit makes is dropped with the slot.
        let (slot, manager, of) = (Arc::clone(&made), manager.clone(), id.clone());
        transaction.on_claim(id, move |info| *slot.lock() = Some(manager.claim(of, info)));
        Self { info, made }
    }

    /// The request as the transaction sees it: its recovery point, its checkpoint, its context. Its generation and its token are known
    /// when it is committed.
    #[must_use]
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }

    /// Returns the claim that the commit has made.
    ///
    /// # Errors
    ///
    /// `ClaimLost` if the transaction is not committed: it has failed, or ran again, or is not over yet.
    pub fn into_claim(self) -> Result<Claim<Response, Response>> {
        let made = self.made.lock().take();
        made.ok_or_else(|| {
            let message = format!("the transaction that locked key {} is not committed", self.info.key());
            Error::new(ErrorKind::ClaimLost, message)
        })
    }
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").field("info", &self.info).finish_non_exhaustive()
    }
}
