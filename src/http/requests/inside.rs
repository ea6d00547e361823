//! Requests inside a transaction.

use std::fmt;

use serde::Serialize;

use super::finding::choose;
use super::locking::{Locked, Locking};
use super::{Created, NewRequest, RequestPatch, Requests};
use crate::api::claim::stage::Next;
use crate::api::records::RecordFilter;
use crate::api::transaction::{self, Transaction};
use crate::http::response::Response;
use crate::protocol::rules::{Patch, Step};
use crate::protocol::{Begun, Protocol, RecordId, Workspace};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::IntoKey;
use crate::types::outcome::{Finished, Record};
use crate::types::record::RecordInfo;

/// [`Requests`] inside a [`Transaction`]. Changes made here are committed together with the rows that the transaction
/// writes, or not at all.
#[derive(Clone)]
pub struct TransactionRequests<'tx> {
    requests: Requests,
    transaction: &'tx Transaction,
}

impl Requests {
    /// Returns these requests inside a transaction of the same engine.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{
    ///     Engine, Error, Status,
    ///     http::{NewRequest, RequestPatch, Response},
    /// };
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let key = engine.atomic_phase(|tx| {
    ///     let created =
    ///         requests.with_transaction(tx).create(NewRequest::new("POST", "/orders"))?;
    ///     tx.table("carts")?.insert("17", created.key().as_bytes())?;
    ///     Ok::<_, Error>(created.key().clone())
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

    /// Returns the change that a stage makes to a record without an owner. Returns `None` for [`Next::Stay`].
    pub(super) fn patch_of(&self, id: &RecordId, next: Next<Response, Response>) -> Result<Option<Patch>> {
        let manager = &self.manager;
        let encode = |response: &Response| manager.encode(id, response);
        Ok(match next.into_step(manager.engine().protocol().max_value_bytes(), encode, encode)? {
            Step::Stay => None,
            Step::Advance { point, checkpoint } => {
                Some(Patch { recovery_point: Some(point), checkpoint, forgets_checkpoint: true, ending: None })
            }
            Step::End(ending) => Some(Patch { ending: Some((ending, manager.options.schema)), ..Patch::default() }),
        })
    }
}

impl TransactionRequests<'_> {
    /// Creates a request, as [`Requests::create`] does. The request exists when the transaction is committed.
    ///
    /// # Errors
    ///
    /// The errors of [`Requests::create`]; `InvalidOptions` in a transaction of another engine.
    pub fn create(&self, request: NewRequest) -> Result<Created> {
        self.run(|protocol, workspace| self.create_in(protocol, workspace, request))
    }

    /// Returns the request of a client, and creates it if it does not exist. Takes the arguments of
    /// [`Requests::initialize_request`] but makes no claim, because a claim exists only after a commit.
    /// [`work_stage`](Self::work_stage) works without a claim.
    ///
    /// # Errors
    ///
    /// The errors of [`Requests::initialize_request`], and:
    ///
    /// - `Mismatch` if the key belongs to another request.
    /// - `InvalidOptions` in a transaction of another engine.
    pub fn initialize_request(
        &self,
        header_key: Option<&str>,
        method: impl AsRef<str>,
        params: &impl Serialize,
        path: &str,
    ) -> Result<Created> {
        self.run(|protocol, workspace| {
            self.create_in(protocol, workspace, self.requests.sent(header_key, method, params, path)?)
        })
    }

    fn create_in(&self, protocol: &Protocol, workspace: &mut Workspace, request: NewRequest) -> Result<Created> {
        let Requests { manager, keep_params, .. } = &self.requests;
        let (key, begin) = request.described(*keep_params)?;
        let (id, start) = (manager.id(key)?, manager.start(begin, false)?);
        protocol.create_in(workspace, &id, &start).map(Created::new)
    }

    /// Locks a request, as [`Requests::lock`] does. The commit makes the claim; [`Locked::into_claim`] returns it.
    ///
    /// ```
    /// use oncekey::{
    ///     Engine, Error,
    ///     http::{Locking, NewRequest, Response},
    /// };
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// requests.create(NewRequest::new("POST", "/orders").key("k1".parse()?))?;
    /// // The row says which worker has the request. Row and claim are committed together.
    /// let locking = engine.atomic_phase(|tx| {
    ///     tx.table("workers")?.insert("k1", "worker 7")?;
    ///     requests.with_transaction(tx).lock("k1")
    /// })?;
    /// let Locking::Locked(locked) = locking else { panic!() };
    /// locked.into_claim()?.succeed(&Response::new(http::StatusCode::CREATED))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`Requests::lock`]; `InvalidOptions` in a transaction of another engine.
    pub fn lock(&self, key: impl IntoKey) -> Result<Locking> {
        let manager = &self.requests.manager;
        let id = manager.id(key)?;
        let begun = self.run(|protocol, workspace| protocol.lock_in(workspace, &id, &manager.lock()))?;
        Ok(match begun {
            Begun::Claimed(info) => Locking::Locked(Locked::new(manager, self.transaction, id, info)),
            Begun::Replay(info) => Locking::Replay(Finished::decode(info, &manager.options)?),
            Begun::InProgress(info) => Locking::InProgress(info),
            Begun::Interrupted(info) | Begun::Mismatch(info) => Locking::Interrupted(info),
            Begun::Paused(info) => Locking::Paused(info),
        })
    }

    /// Changes a request, as [`Requests::update`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Requests::update`]; `InvalidOptions` in a transaction of another engine.
    pub fn update(&self, key: impl IntoKey, patch: RequestPatch) -> Result<()> {
        self.run(|protocol, workspace| {
            let id = self.requests.manager.id(key)?;
            protocol.patch_in(workspace, &id, &self.requests.checked(&id, patch)?).map(drop)
        })
    }

    /// Runs a stage of a request that has no owner. The closure's writes and the record's new state are committed
    /// together with the rest of the transaction.
    ///
    /// No claim is needed. If two transactions run the same stage, only one commits. The other runs again and sees the
    /// new recovery point.
    ///
    /// If the closure fails, its writes are rolled back, even if the rest of the transaction is committed.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{
    ///     Engine, Error,
    ///     http::{NewRequest, Response},
    ///     stage::{Next, STARTED},
    /// };
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// requests.create(NewRequest::new("POST", "/orders").key("k1".parse()?))?;
    /// for _ in 0..2 {
    ///     engine.atomic_phase(|tx| {
    ///         requests.with_transaction(tx).work_stage("k1", |info| {
    ///             if info.recovery_point() == STARTED {
    ///                 tx.table("stock")?.insert("apple", "2")?;
    ///                 return Ok::<_, Error>(Next::advance("reserved"));
    ///             }
    ///             Ok(Next::Succeed(Response::new(StatusCode::CREATED)))
    ///         })
    ///     })?;
    /// }
    /// assert!(requests.retrieve("k1")?.unwrap().outcome().is_some());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of the closure, and of the engine:
    ///
    /// - `NotFound` if the request does not exist, `OwnedByClaim` while it is in progress.
    /// - `NotInProgress` if it is finished or held, or if the closure itself changed its recovery point.
    /// - `InvalidName` for a malformed name of a recovery point.
    /// - `Codec` or `TooLarge` if a response or checkpoint cannot be stored.
    /// - `InvalidOptions` in a transaction of another engine.
    pub fn work_stage<X: From<Error>>(
        &self,
        key: impl IntoKey,
        work: impl FnOnce(&RecordInfo) -> Result<Next<Response, Response>, X>,
    ) -> Result<RecordInfo, X> {
        transaction::part(self.transaction, || {
            let (id, info) = self.run(|protocol, workspace| {
                let id = self.requests.manager.id(key)?;
                protocol.unowned_in(workspace, &id).map(|info| (id, info))
            })?;
            let next = work(&info)?;
            let staged = self.run(|protocol, workspace| {
                let still = protocol.unowned_in(workspace, &id)?;
                if still.recovery_point() != info.recovery_point() {
                    let message = format!("the stage of key {} has changed the recovery point itself", info.key());
                    return Err(Error::new(ErrorKind::NotInProgress, message));
                }
                let patch = self.requests.patch_of(&id, next)?;
                patch.map_or(Ok(still), |patch| protocol.patch_in(workspace, &id, &patch))
            });
            Ok(staged?)
        })
    }

    /// Returns the record of a request, as [`Requests::retrieve`] does. The record includes the changes of this
    /// transaction. The generation of a request that the transaction created is not known before the commit.
    ///
    /// # Errors
    ///
    /// `Conflict` if a commit has changed something that this transaction read before. Return the error; the closure
    /// then runs again.
    pub fn retrieve(&self, key: impl IntoKey) -> Result<Option<Record<Response, Response>>> {
        self.run(|protocol, workspace| {
            let id = self.requests.manager.id(key)?;
            self.read(protocol, workspace, &id)
        })
    }

    fn read(
        &self,
        protocol: &Protocol,
        workspace: &mut Workspace,
        id: &RecordId,
    ) -> Result<Option<Record<Response, Response>>> {
        let info = protocol.get_in(workspace, id)?;
        info.map(|info| Record::decode(info, &self.requests.manager.options)).transpose()
    }

    /// Lists the requests that match, as [`Requests::find`] does, in one `Vec`. The list includes the changes of this
    /// transaction. If another commit adds or changes a request within the filter's key prefix, the closure runs again.
    ///
    /// # Errors
    ///
    /// The errors of [`Requests::find`]; `Conflict` as for [`retrieve`](Self::retrieve).
    pub fn find(&self, filter: RecordFilter) -> Result<Vec<RecordInfo>> {
        let manager = &self.requests.manager;
        let (filter, mut scan) = self.run(|_protocol, _workspace| {
            let filter = filter.limited_to(manager.name(), &manager.scope)?;
            let scan = filter.range()?.into_scan();
            Ok((filter, scan))
        })?;
        let mut found = Vec::new();
        while let Some(infos) = self.run(|protocol, workspace| protocol.list_in(workspace, &mut scan))? {
            // Apply the filter outside `run`: it may call a closure of the user, which may use the transaction.
            found.extend(infos.into_iter().filter(|info| filter.matches(info)));
        }
        Ok(found)
    }

    /// Returns the only request that matches, as [`Requests::retrieve_one`] does. Reads as [`find`](Self::find) does.
    ///
    /// # Errors
    ///
    /// `Ambiguous` if several requests match; otherwise the errors of [`find`](Self::find).
    pub fn retrieve_one(&self, filter: RecordFilter) -> Result<Option<Record<Response, Response>>> {
        self.retrieve_where(filter, |_record| true)
    }

    /// Returns the only request that matches the filter and the closure, as [`Requests::retrieve_where`] does. Reads as
    /// [`find`](Self::find) does.
    ///
    /// # Errors
    ///
    /// The errors of [`retrieve_one`](Self::retrieve_one).
    pub fn retrieve_where(
        &self,
        filter: RecordFilter,
        matches: impl Fn(&Record<Response, Response>) -> bool,
    ) -> Result<Option<Record<Response, Response>>> {
        let mut only = None;
        for info in self.find(filter)? {
            let id = self.requests.manager.id_of(&info);
            let record = self.run(|protocol, workspace| self.read(protocol, workspace, &id))?;
            if let Some(record) = record.filter(&matches) {
                self.run(|_protocol, _workspace| choose(&mut only, record))?;
            }
        }
        Ok(only)
    }

    fn run<R>(&self, f: impl FnOnce(&Protocol, &mut Workspace) -> Result<R>) -> Result<R> {
        let protocol = self.requests.manager.engine().protocol();
        self.transaction.with_workspace(protocol, |workspace| f(protocol, workspace))
    }
}

impl fmt::Debug for TransactionRequests<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionRequests").field("requests", &self.requests).finish_non_exhaustive()
    }
}
