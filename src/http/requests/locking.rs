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

/// The answer of [`TransactionRequests::lock`](crate::http::TransactionRequests::lock): like [`Begin`](crate::Begin),
/// for a request that exists.
#[derive(Debug)]
#[must_use = "a request that is locked and dropped is interrupted by the commit"]
pub enum Locking {
    /// The transaction locks the request.
    Locked(Locked),
    /// The request has a response.
    Replay(Finished<Response, Response>),
    /// Another owner runs the request.
    InProgress(RecordInfo),
    /// The request was interrupted, and is held until it is resolved.
    Interrupted(RecordInfo),
    /// The request was released less than [`retry_pause`](crate::ManagerOptions::retry_pause) ago.
    Paused(RecordInfo),
}

/// A request that a transaction locks. The commit of the transaction makes a claim of the request.
///
/// Return this value from the closure, and then call [`into_claim`](Self::into_claim). The request ends in one of these
/// states:
///
/// | the transaction | the request |
/// |---|---|
/// | is committed | in progress, owned by the claim of [`into_claim`](Self::into_claim) |
/// | is committed, and this value was dropped, inside the closure or later | interrupted, as by a dropped claim |
/// | is not committed: the closure failed or panicked, or the process died | unchanged; `into_claim` returns `ClaimLost` |
/// | runs again | unchanged; `into_claim` of the earlier run's value returns `ClaimLost` |
/// | fails in the sync, so it may be committed or not | unchanged or interrupted; the next open decides |
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
        // If this value is dropped first, the slot drops the claim that the commit makes.
        let (slot, manager, of) = (Arc::clone(&made), manager.clone(), id.clone());
        transaction.on_claim(id, move |info| *slot.lock() = Some(manager.claim(of, info)));
        Self { info, made }
    }

    /// Returns the request as the transaction sees it: its recovery point, its checkpoint, its context. The generation
    /// and the token are not known before the commit.
    #[must_use]
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }

    /// Returns the claim that the commit has made.
    ///
    /// # Errors
    ///
    /// `ClaimLost` if the transaction is not committed: it failed, ran again, or is still running.
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
