//! Requests inside a transaction.

use std::fmt;

use super::{NewRequest, RequestPatch, Requests};
use crate::error::Result;
use crate::key::Key;
use crate::options::OnInterrupted;
use crate::outcome::Record;
use crate::protocol::{Draft, Protocol};
use crate::response::Response;
use crate::transaction::Transaction;

/// [`Requests`] inside a [`Transaction`]: what is done here is committed with the rows that it writes, or not at all.
#[derive(Clone)]
pub struct TransactionRequests<'tx> {
    requests: Requests,
    transaction: &'tx Transaction,
}

impl Requests {
    /// These requests, inside a transaction of the same engine.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{Engine, Error, NewRequest, RequestPatch, Response, Status};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let key = engine.atomic_phase(|tx| {
    ///     let key = requests.with_transaction(tx).create(NewRequest::new("POST", "/orders"))?;
    ///     tx.table("carts")?.insert("17", &key)?;
    ///     Ok::<_, Error>(key)
    /// })?;
    /// engine.atomic_phase(|tx| {
    ///     tx.table("carts")?.remove("17")?;
    ///     let gone = RequestPatch::new().response(Response::new(StatusCode::GONE));
    ///     requests.with_transaction(tx).update(&key, gone)
    /// })?;
    /// assert_eq!(requests.retrieve(&key)?.unwrap().status(), Status::Succeeded);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn with_transaction<'tx>(&self, transaction: &'tx Transaction) -> TransactionRequests<'tx> {
        TransactionRequests { requests: self.clone(), transaction }
    }
}

impl TransactionRequests<'_> {
    /// As [`Requests::create`]: the key, once the transaction is committed.
    ///
    /// # Errors
    ///
    /// As [`Requests::create`]; `InvalidOptions` in the transaction of another engine.
    pub fn create(&self, request: NewRequest) -> Result<Key> {
        self.run(|protocol, draft| {
            let (key, described) = request.described(self.requests.keep_params)?;
            let manager = &self.requests.manager;
            let place = manager.place(key)?;
            let start = manager.start(self.requests.options(described, OnInterrupted::Resume), false)?;
            protocol.create_in(draft, &place, &start).map(|()| place.key)
        })
    }

    /// As [`Requests::update`].
    ///
    /// # Errors
    ///
    /// As [`Requests::update`]; `InvalidOptions` in the transaction of another engine.
    pub fn update(&self, key: impl AsRef<[u8]>, patch: RequestPatch) -> Result<()> {
        self.run(|protocol, draft| {
            let place = self.requests.manager.place(key)?;
            protocol.patch_in(draft, &place, &self.requests.checked(&place, patch)?)
        })
    }

    /// As [`Requests::retrieve`], with what this transaction has made of it. The generation of a request that it has created is
    /// known only when it is committed.
    ///
    /// # Errors
    ///
    /// `Conflict` when it no longer fits what was read before: return it, and the closure is run again.
    pub fn retrieve(&self, key: impl AsRef<[u8]>) -> Result<Option<Record<Response, Response>>> {
        self.run(|protocol, draft| {
            let manager = &self.requests.manager;
            let info = protocol.get_in(draft, &manager.place(key)?)?;
            info.map(|info| Record::decode(info, manager.options.schema)).transpose()
        })
    }

    fn run<R>(&self, f: impl FnOnce(&Protocol, &mut Draft) -> Result<R>) -> Result<R> {
        let protocol = self.requests.manager.engine().protocol();
        self.transaction.with_draft(protocol, |draft| f(protocol, draft))
    }
}

impl fmt::Debug for TransactionRequests<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionRequests").field("requests", &self.requests).finish_non_exhaustive()
    }
}
