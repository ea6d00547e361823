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
    /// use oncekey::{Engine, Error, Status, http::{NewRequest, RequestPatch, Response}};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let key = engine.atomic_phase(|tx| {
    ///     let created = requests.with_transaction(tx).create(NewRequest::new("POST", "/orders"))?;
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
}

impl TransactionRequests<'_> {
    /// As [`Requests::create`]; made once the transaction is committed.
    ///
    /// # Errors
    ///
    /// As [`Requests::create`]; `InvalidOptions` in the transaction of another engine.
    pub fn create(&self, request: NewRequest) -> Result<Created> {
        self.run(|protocol, workspace| self.create_in(protocol, workspace, request))
    }

    /// The request that a client sent, or a new one: with the arguments of [`Requests::initialize_request`], but without a claim,
    /// which nobody can have before the transaction is committed. [`work_stage`](Self::work_stage) needs none.
    ///
    /// # Errors
    ///
    /// As [`Requests::initialize_request`]; `Mismatch` if the key belongs to another request; `InvalidOptions` in the transaction of
    /// another engine.
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

    /// As [`Requests::lock`]; the claim is made by the commit: [`Locked::into_claim`] has it.
    ///
    /// ```
    /// use oncekey::{Engine, Error, http::{Locking, NewRequest, Response}};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// requests.create(NewRequest::new("POST", "/orders").key("k1".parse()?))?;
    /// // The row says which worker has it, and both are so or neither.
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
    /// As [`Requests::lock`]; `InvalidOptions` in the transaction of another engine.
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

    /// As [`Requests::update`].
    ///
    /// # Errors
    ///
    /// As [`Requests::update`]; `InvalidOptions` in the transaction of another engine.
    pub fn update(&self, key: impl IntoKey, patch: RequestPatch) -> Result<()> {
        self.run(|protocol, workspace| {
            let id = self.requests.manager.id(key)?;
            protocol.patch_in(workspace, &id, &self.requests.checked(&id, patch)?).map(drop)
        })
    }

    /// Runs a stage of a request that nobody owns: what the closure writes in this transaction and what it makes of the record are
    /// committed together, with the rest. Two transactions that run the same stage do not both commit: one of them runs again, and
    /// sees the recovery point that the other has left. So this needs no claim.
    ///
    /// What the closure has written is rolled back if it fails, whatever becomes of the rest.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{Engine, Error, Next, STARTED, http::{NewRequest, Response}};
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
    /// The closure's own. Of the engine's: `NotFound`; `OwnedByClaim` while it is in progress; `NotInProgress` if it is finished, or
    /// held, or if the closure has changed it otherwise; `InvalidName` for a recovery point; `Codec` and `TooLarge` for what cannot be
    /// stored; `InvalidOptions` in the transaction of another engine.
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
                    let message = format!("the stage of key {} has moved its recovery point by itself", info.key());
                    return Err(Error::new(ErrorKind::NotInProgress, message));
                }
                let patch = self.patch(&id, next)?;
                patch.map_or(Ok(still), |patch| protocol.patch_in(workspace, &id, &patch))
            });
            Ok(staged?)
        })
    }

    /// Returns the change that a stage makes of a record without an owner; `None` for [`Next::Stay`].
    fn patch(&self, id: &RecordId, next: Next<Response, Response>) -> Result<Option<Patch>> {
        let manager = &self.requests.manager;
        let encode = |response: &Response| manager.encode(id, response);
        Ok(match next.into_step(manager.engine().protocol().max_value_bytes(), encode, encode)? {
            Step::Stay => None,
            Step::Advance { point, checkpoint } => {
                Some(Patch { recovery_point: Some(point), checkpoint, forgets_checkpoint: true, ending: None })
            }
            Step::End(ending) => Some(Patch { ending: Some((ending, manager.options.schema)), ..Patch::default() }),
        })
    }

    /// As [`Requests::retrieve`], with what this transaction has made of it. The generation of a request that it has created is
    /// known only when it is committed.
    ///
    /// # Errors
    ///
    /// `Conflict` when it no longer fits what was read before: return it, and the closure is run again.
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

    /// As [`Requests::find`], all at once, with what this transaction has made of them. A request that another commit adds or
    /// changes, of those that the filter's key prefix allows, makes the closure run again.
    ///
    /// # Errors
    ///
    /// As [`Requests::find`]; `Conflict` as for [`retrieve`](Self::retrieve).
    pub fn find(&self, filter: RecordFilter) -> Result<Vec<RecordInfo>> {
        let manager = &self.requests.manager;
        let (filter, mut scan) = self.run(|_protocol, _workspace| {
            let filter = filter.limited_to(manager.name(), &manager.scope)?;
            let scan = filter.range()?.into_scan();
            Ok((filter, scan))
        })?;
        let mut found = Vec::new();
        while let Some(infos) = self.run(|protocol, workspace| protocol.list_in(workspace, &mut scan))? {
            // The workspace is free here: the filter may have a predicate of the caller's.
            found.extend(infos.into_iter().filter(|info| filter.matches(info)));
        }
        Ok(found)
    }

    /// As [`Requests::retrieve_one`], as [`find`](Self::find) goes through them.
    ///
    /// # Errors
    ///
    /// `Ambiguous` if several match; otherwise as [`find`](Self::find).
    pub fn retrieve_one(&self, filter: RecordFilter) -> Result<Option<Record<Response, Response>>> {
        self.retrieve_where(filter, |_record| true)
    }

    /// As [`Requests::retrieve_where`], as [`find`](Self::find) goes through them.
    ///
    /// # Errors
    ///
    /// As [`retrieve_one`](Self::retrieve_one).
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
