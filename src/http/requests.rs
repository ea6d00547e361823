//! Requests: operations with a method, a path and parameters, whose outcome is an HTTP response.

// Declared first, so that its methods come first on the page of `Requests`.
mod handle;

mod finding;
mod inside;
mod locking;
mod options;
mod read;
mod request;
mod same;
#[cfg(feature = "postgres")]
mod sql;

use std::fmt;

use serde::Serialize;

use crate::api::engine::Engine;
use crate::api::manager::drive::{DriveError, Stages};
use crate::api::manager::execute::Executed;
use crate::api::manager::{Begin, Manager};
use crate::http::header::from_header;
use crate::http::response::Response;
use crate::protocol::RecordId;
use crate::protocol::rules::{Ending, Patch};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::IntoKey;
use crate::types::options::{ManagerOptions, OnError};
use crate::types::outcome::Record;
use crate::types::record::{FINISHED, RecordInfo, check_checkpoint, check_recovery_point};
use crate::types::value::Value;
pub use inside::TransactionRequests;
pub use locking::{Locked, Locking};
pub use options::HandleOptions;
pub use request::{Created, NewRequest, RequestPatch};
pub use same::SameRequest;

/// Operations that have a method, a path and parameters, and whose outcome is a [`Response`].
///
/// The handle wraps a [`Manager`] whose successes and failures are both responses.
///
/// - **Fingerprint.** Method, path and parameters form the fingerprint, so a different request under the same key is a
///   mismatch.
/// - **Context.** The record's context contains the method and the path, as `method` and `path`. The parameters are not
///   stored, unless [`keep_params`](Requests::keep_params) is set.
/// - **Interruption.** If [`on_interrupted`](ManagerOptions::on_interrupted) is not set, an interrupted request is
///   held. A request of [`drive`](Requests::drive) resumes at its recovery point instead.
///
/// Cheap to clone; clones share everything.
///
/// ```
/// use http::StatusCode;
/// use oncekey::{Begin, Engine, http::Response};
///
/// let engine = Engine::temporary()?;
/// let requests = engine.requests("checkout")?.scoped("user-7")?;
/// let params = ("cart", 17);
/// let Begin::Claimed(claim) =
///     requests.initialize_request(Some("k1"), "POST", &params, "/carts")?
/// else {
///     panic!()
/// };
/// claim.succeed(&Response::new(StatusCode::CREATED).body("order 1"))?;
///
/// let Begin::Replay(done) =
///     requests.initialize_request(Some("k1"), "POST", &params, "/carts")?
/// else {
///     panic!()
/// };
/// assert_eq!(done.outcome().unwrap().body_bytes(), b"order 1");
/// let other = requests.initialize_request(Some("k1"), "DELETE", &params, "/carts")?;
/// assert!(matches!(other, Begin::Mismatch(_)));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
pub struct Requests {
    manager: Manager<Response, Response>,
    handling: HandleOptions,
    keep_params: bool,
}

impl Engine {
    /// Returns the requests of this name, with the default options. They share their records with the manager of the
    /// same name.
    ///
    /// # Errors
    ///
    /// The errors of [`manager`](Engine::manager).
    pub fn requests(&self, name: &str) -> Result<Requests> {
        self.requests_with(name, ManagerOptions::new())
    }

    /// Returns the requests of this name, with options. The options belong to this handle and its clones.
    ///
    /// # Errors
    ///
    /// The errors of [`manager_with`](Engine::manager_with).
    ///
    /// ```
    /// use oncekey::{Engine, ManagerOptions, OnInterrupted, http::NewRequest};
    ///
    /// let engine = Engine::temporary()?;
    /// let held = engine
    ///     .requests_with("r", ManagerOptions::new().on_interrupted(OnInterrupted::Hold))?;
    /// assert_eq!(
    ///     held.create(NewRequest::new("POST", "/orders"))?.info().policy(),
    ///     OnInterrupted::Hold
    /// );
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn requests_with(&self, name: &str, options: ManagerOptions) -> Result<Requests> {
        let manager = self.manager_with(name, options)?.on_error(default_rule);
        Ok(Requests { manager, handling: HandleOptions::new(), keep_params: false })
    }
}

impl Requests {
    /// Returns the manager, for the calls that `Requests` does not have: wait, resolve, forget, remove, extend.
    ///
    /// ```
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// assert!(!requests.manager().remove("k1")?);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn manager(&self) -> &Manager<Response, Response> {
        &self.manager
    }

    /// Returns the requests of one authenticated user or tenant, as [`Manager::scoped`] does. Without a scope, a client
    /// that guesses the key and the request of another client reads that client's response.
    ///
    /// # Errors
    ///
    /// `InvalidKey` if the scope is empty, made of parts, or leaves no room for a key.
    ///
    /// ```
    /// # use oncekey::http::NewRequest;
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let created = requests
    ///     .scoped("ada")?
    ///     .create(NewRequest::new("POST", "/orders").key("k1".parse()?))?;
    /// assert!(requests.scoped("eve")?.retrieve("k1")?.is_none());
    /// assert!(requests.retrieve(created.key())?.is_some());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn scoped(&self, scope: impl IntoKey) -> Result<Self> {
        Ok(Self { manager: self.manager.scoped(scope)?, ..self.clone() })
    }

    /// Sets the rule by which [`handle`](Requests::handle) stores, releases or interrupts after a response, as
    /// [`Manager::on_error`] does for errors. The rule is applied to every response, `Ok` or `Err`.
    ///
    /// The default stores every response below 500. A 5xx is [`ReleaseUnlessEffect`](OnError::ReleaseUnlessEffect). If
    /// the operation asked for an [`effect_id`](crate::Claim::effect_id) or committed a stage, the effect may have
    /// happened, and the record is interrupted: the client gets the 5xx, and its retries get 409 until the key is
    /// [resolved](Manager::resolve). Otherwise the key is released.
    ///
    /// If your effects do not use the claim's `effect_id`, classify a 5xx as [`Interrupt`](OnError::Interrupt). Release
    /// the key only after a response that proves that nothing happened.
    ///
    /// ```
    /// # use oncekey::OnError;
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let requests = requests.on_error(|response| match response.status().as_u16() {
    ///     // Validation, conflicts, rate limits: the client may correct the request or retry.
    ///     400 | 409 | 422 | 429 | 500.. => OnError::ReleaseUnlessEffect,
    ///     _ => OnError::Store,
    /// });
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn on_error(self, classify: impl Fn(&Response) -> OnError + Send + Sync + 'static) -> Self {
        Self { manager: self.manager.on_error(classify), ..self }
    }

    /// Sets the options for [`handle`](Requests::handle).
    ///
    /// ```
    /// # use oncekey::http::HandleOptions;
    /// # use std::time::Duration;
    /// # let engine = oncekey::Engine::temporary()?;
    /// let patient = engine
    ///     .requests("checkout")?
    ///     .with_handling(HandleOptions::new().wait(Duration::from_secs(2)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn with_handling(self, options: HandleOptions) -> Self {
        Self { handling: options, ..self }
    }

    /// Sets whether the parameters of new requests are stored in their context, as `params`, in clear text. Default:
    /// false. Parameters that are not stored may have any size.
    ///
    /// Use it for workers that [`lock`](Requests::lock) a request later and need its parameters, or to
    /// [`find`](Requests::find) requests by them. Listings and the command line show the parameters. A call returns
    /// `TooLarge` if they do not fit into a [`Context`](crate::Context), and `Codec` if they cannot be encoded.
    ///
    /// ```
    /// # use oncekey::http::NewRequest;
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?.keep_params(true);
    /// let created =
    ///     requests.create(NewRequest::new("POST", "/orders").params(&("cart", 17))?)?;
    /// assert_eq!(
    ///     created.info().context().decode::<(String, i32)>("params")?,
    ///     Some(("cart".to_owned(), 17))
    /// );
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn keep_params(self, keep: bool) -> Self {
        Self { keep_params: keep, ..self }
    }

    /// Asks for the right to run a request. Never waits for another owner.
    ///
    /// `header_key` is the value of the client's `Idempotency-Key` header, which is read as by
    /// [`Key::from_headers`](crate::Key::from_headers). Without a value, a new random key is generated. This new key is
    /// the last of the [`parts`](crate::Key::parts) of the claim's key.
    ///
    /// # Errors
    ///
    /// - `InvalidKey` for a malformed key.
    /// - `InvalidOptions` for a malformed method, or a path that does not begin with `/`.
    /// - `Codec` for parameters that cannot be serialized.
    ///
    /// With [`keep_params`](Requests::keep_params), also its errors.
    pub fn initialize_request(
        &self,
        header_key: Option<&str>,
        method: impl AsRef<str>,
        params: &impl Serialize,
        path: &str,
    ) -> Result<Begin<Response, Response>> {
        self.begin(self.sent(header_key, method, params, path)?)
    }

    /// Runs the remaining stages of a request, or replays its response. Waits for another owner as [`Manager::execute`]
    /// does. The arguments are the same as for [`initialize_request`](Requests::initialize_request).
    ///
    /// A request that this call begins resumes after an interruption, unless the manager's options say otherwise.
    ///
    /// Without a `header_key`, only the stages can learn the generated key, from [`Claim::key`](crate::Claim::key), so
    /// the caller cannot retry a request that fails. If no stage has stored anything and no
    /// [`effect_id`](crate::Claim::effect_id) was asked for, the record of a request that fails is removed instead of
    /// released. Otherwise the record stays at its recovery point, where [`find`](Requests::find) lists it until its
    /// TTL ends. To be able to retry, pass a key from [`Key::generate`](crate::Key::generate).
    ///
    /// # Errors
    ///
    /// See [`DriveError`] and [`Claim::drive`](crate::Claim::drive). Invalid arguments return `Execute` with an
    /// `Engine` error inside.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{
    ///     Error,
    ///     http::Response,
    ///     stage::{Next, STARTED, Stages},
    /// };
    ///
    /// let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let stages = Stages::new()
    ///     .stage(STARTED, |claim| {
    ///         claim.work_stage(|tx| {
    ///             tx.table("orders")?.insert("1", "two apples")?;
    ///             Ok::<_, Error>(Next::advance("ordered"))
    ///         })
    ///     })
    ///     .stage("ordered", |claim| {
    ///         claim.work_stage(|_tx| {
    ///             Ok::<_, Error>(Next::Succeed(Response::new(StatusCode::CREATED)))
    ///         })
    ///     });
    /// let done = requests.drive(Some("k1"), "POST", &("cart", 17), "/carts", &stages)?;
    /// assert_eq!(done.value().status(), StatusCode::CREATED);
    /// assert!(
    ///     requests.drive(Some("k1"), "POST", &("cart", 17), "/carts", &stages)?.replayed()
    /// );
    /// # Ok::<(), oncekey::stage::DriveError<Response, Response, Error>>(())
    /// ```
    pub fn drive<X: From<Error>>(
        &self,
        header_key: Option<&str>,
        method: impl AsRef<str>,
        params: &impl Serialize,
        path: &str,
        stages: &Stages<'_, Response, Response, X>,
    ) -> Result<Executed<Response>, DriveError<Response, Response, X>> {
        self.drive_new(self.sent(header_key, method, params, path)?, stages)
    }

    /// Returns the request of a client with this header and these parameters.
    fn sent(
        &self,
        header_key: Option<&str>,
        method: impl AsRef<str>,
        params: &impl Serialize,
        path: &str,
    ) -> Result<NewRequest> {
        let key = header_key.map(|header| from_header(header.as_bytes())).transpose()?;
        let request = key.into_iter().fold(NewRequest::new(method, path), NewRequest::key);
        request.with_params(params, self.keep_params)
    }

    /// Creates a request without an owner, for workers to [`lock`](Requests::lock). If the same request exists already,
    /// in any state, it stays unchanged. [`Created::is_new`] tells the two cases apart.
    ///
    /// # Errors
    ///
    /// `Mismatch` if the key belongs to another request; otherwise the errors of
    /// [`initialize_request`](Requests::initialize_request).
    ///
    /// ```
    /// # use oncekey::{Status, http::NewRequest};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let request =
    ///     NewRequest::new("POST", "/orders").key("k1".parse()?).params(&("cart", 17))?;
    /// let created = requests.create(request.clone())?;
    /// assert!(created.is_new() && !requests.create(request)?.is_new());
    /// assert_eq!((created.info().status(), created.info().attempt()), (Status::Released, 0));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn create(&self, request: NewRequest) -> Result<Created> {
        let (key, begin) = request.described(self.keep_params)?;
        let id = self.manager.id(key)?;
        let start = self.manager.start(begin, false)?;
        self.manager.engine().protocol().create(&id, &start).map(Created::new)
    }

    /// Returns the record of a request in any state, or `None` if there is no record.
    ///
    /// ```
    /// # use oncekey::{http::NewRequest, stage::STARTED};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let created = requests.create(NewRequest::new("POST", "/orders"))?;
    /// let record = requests.retrieve(created.key())?.unwrap();
    /// assert_eq!((record.info().recovery_point(), record.outcome()), (STARTED, None));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn retrieve(&self, key: impl IntoKey) -> Result<Option<Record<Response, Response>>> {
        self.manager.get(key)
    }

    /// Asks for the right to run an existing request. Does not compare the method, the path or the parameters. Never
    /// waits for another owner.
    ///
    /// # Errors
    ///
    /// `NotFound` if the request does not exist.
    ///
    /// ```
    /// # use oncekey::{Begin, http::NewRequest};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let created = requests.create(NewRequest::new("POST", "/orders"))?;
    /// let Begin::Claimed(claim) = requests.lock(created.key())? else { panic!() };
    /// assert_eq!(claim.context().text("path"), Some("/orders"));
    /// assert!(matches!(requests.lock(created.key())?, Begin::InProgress(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn lock(&self, key: impl IntoKey) -> Result<Begin<Response, Response>> {
        let id = self.manager.id(key)?;
        let begun = self.manager.engine().protocol().lock(&id, &self.manager.lock())?;
        self.manager.answer(id, begun)
    }

    /// Changes a request that is neither finished nor owned: sets its recovery point and checkpoint, or ends it with a
    /// response.
    ///
    /// A response ends the request as a success, whatever its HTTP status. Without a response, a held request stays
    /// held; to change that, see [`Manager::resolve`].
    ///
    /// # Errors
    ///
    /// - `NotFound` if the request does not exist, `OwnedByClaim` while it is in progress, `NotInProgress` if it is
    ///   finished.
    /// - `InvalidOptions` for a patch that is empty, sets the recovery point [`FINISHED`](crate::stage::FINISHED), or
    ///   has a response and anything else.
    /// - `InvalidName` for a malformed name of a recovery point.
    /// - `TooLarge` for a checkpoint or a response over the engine's limit.
    ///
    /// ```
    /// # use oncekey::http::{NewRequest, RequestPatch};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let created = requests.create(NewRequest::new("POST", "/orders"))?;
    /// let info = requests.update(
    ///     created.key(),
    ///     RequestPatch::new().recovery_point("paid").checkpoint("ch_1"),
    /// )?;
    /// assert_eq!((info.recovery_point(), info.checkpoint()), ("paid", Some(&b"ch_1"[..])));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn update(&self, key: impl IntoKey, patch: RequestPatch) -> Result<RecordInfo> {
        let id = self.manager.id(key)?;
        let patch = self.checked(&id, patch)?;
        self.manager.engine().protocol().patch(&id, &patch)
    }

    /// Checks a patch and encodes its response.
    fn checked(&self, id: &RecordId, patch: RequestPatch) -> Result<Patch> {
        let RequestPatch { recovery_point, checkpoint, response } = patch;
        if recovery_point.is_none() && checkpoint.is_none() && response.is_none() {
            return Err(invalid("the patch is empty"));
        }
        if response.is_some() && (recovery_point.is_some() || checkpoint.is_some()) {
            return Err(invalid(
                "the patch has both a response, which ends the request, and a recovery point or checkpoint",
            ));
        }
        if let Some(point) = &recovery_point {
            if point == FINISHED {
                return Err(invalid("the patch sets the recovery point of finished requests but has no response"));
            }
            check_recovery_point(point)?;
        }
        let limit = self.manager.engine().protocol().max_value_bytes();
        check_checkpoint(checkpoint.as_ref().map_or(0, Vec::len), limit)?;
        let success = response.map(|response| self.manager.encode(id, &response)).transpose()?;
        let ending = success.map(|bytes| (Ending::Succeed(bytes), self.manager.options.schema));
        Ok(Patch { recovery_point, checkpoint: checkpoint.map(Value::from), forgets_checkpoint: false, ending })
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests")
            .field("manager", &self.manager)
            .field("handling", &self.handling)
            .field("keep_params", &self.keep_params)
            .finish()
    }
}

fn default_rule(response: &Response) -> OnError {
    if response.status().is_server_error() { OnError::ReleaseUnlessEffect } else { OnError::Store }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOptions, message)
}
