//! Reads an HTTP request into a [`NewRequest`], and begins or drives it.

use super::Requests;
use super::request::NewRequest;
use crate::api::manager::Begin;
use crate::api::manager::drive::{DriveError, Stages};
use crate::api::manager::execute::{Executed, answer};
use crate::http::problem::Problem;
use crate::http::response::Response;
use crate::types::error::{Error, Result};
use crate::types::options::OnInterrupted;

impl Requests {
    /// Reads the key and the fingerprint of an HTTP request as [`handle`](Requests::handle) does, for handlers of your
    /// own. Uses the [options](Requests::with_handling) of these requests.
    ///
    /// If the request has no key and needs none, a new random key is generated.
    ///
    /// # Errors
    ///
    /// The problem to send to the client: `missing_key`, `invalid_key`, `bad_target`, or `bad_content` if the rule
    /// cannot read the request.
    ///
    /// ```
    /// use http::{StatusCode, header};
    /// use oncekey::{
    ///     Begin, Engine,
    ///     http::{HandleOptions, Requests, Response, SameRequest},
    /// };
    ///
    /// fn pay(
    ///     payments: &Requests,
    ///     request: &http::Request<&str>,
    /// ) -> Result<http::Response<Vec<u8>>, oncekey::http::Problem> {
    ///     let begin = payments.begin(payments.read(request)?)?;
    ///     if let Some(problem) = begin.problem() {
    ///         return Err(problem);
    ///     }
    ///     Ok(match begin {
    ///         Begin::Claimed(claim) => {
    ///             let paid =
    ///                 Response::new(StatusCode::CREATED).body(claim.effect_id("charge"));
    ///             claim.succeed(&paid).map_err(oncekey::Error::from)?;
    ///             paid.into()
    ///         }
    ///         Begin::Replay(done) => {
    ///             done.into_outcome().unwrap_or_else(|failure| failure).into()
    ///         }
    ///         _ => unreachable!("all others are problems"),
    ///     })
    /// }
    /// # let engine = Engine::temporary()?;
    /// let options = HandleOptions::new().same_request(SameRequest::by_content());
    /// let payments = engine.requests("payments")?.with_handling(options);
    /// let request = |body| {
    ///     let json = http::Request::post("/payments")
    ///         .header(header::CONTENT_TYPE, "application/json");
    ///     json.header("idempotency-key", "k").body(body).unwrap()
    /// };
    /// let first = pay(&payments, &request(r#"{"to":"ada","cents":1999}"#)).unwrap();
    /// let again = pay(&payments, &request(r#"{"cents":1999,"to":"ada"}"#)).unwrap();
    /// assert_eq!(first.body(), again.body());
    /// assert_eq!(pay(&payments, &request("{}")).unwrap_err().code(), "mismatch");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn read<B: AsRef<[u8]>>(&self, request: &http::Request<B>) -> Result<NewRequest, Problem> {
        let options = &self.handling;
        let read = options.key(request).and_then(|key| NewRequest::read(key, request, options));
        read.map_err(|problem| options.typed(problem))
    }

    /// Asks for the right to run a request, as [`initialize_request`](Requests::initialize_request) does. Waits for
    /// another owner for the time that [`NewRequest::wait`] sets.
    ///
    /// # Errors
    ///
    /// `InvalidOptions` for a malformed method or a path that does not begin with `/`. With
    /// [`keep_params`](Requests::keep_params), also its errors.
    ///
    /// ```
    /// # use oncekey::{Begin, Engine, http::NewRequest};
    /// # let engine = Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let request =
    ///     NewRequest::new("POST", "/orders").key("k1".parse()?).params(&("cart", 17))?;
    /// let Begin::Claimed(claim) = requests.begin(request.clone())? else { panic!() };
    /// assert!(matches!(requests.begin(request)?, Begin::InProgress(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn begin(&self, request: NewRequest) -> Result<Begin<Response, Response>> {
        let (key, begin) = request.described(self.keep_params)?;
        self.manager.begin_with(key, begin)
    }

    /// Runs the remaining stages of a request, or replays its response, as [`drive`](Requests::drive) does.
    ///
    /// # Errors
    ///
    /// The errors of [`drive`](Requests::drive).
    ///
    /// ```
    /// use oncekey::{
    ///     Error,
    ///     http::{NewRequest, Response},
    ///     stage::{Next, STARTED, Stages},
    /// };
    ///
    /// let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// let stages = Stages::new().stage(STARTED, |claim| {
    ///     claim.work_stage(|_tx| {
    ///         Ok::<_, Error>(Next::Succeed(Response::new(http::StatusCode::CREATED)))
    ///     })
    /// });
    /// let sent = http::Request::post("/orders")
    ///     .header("idempotency-key", "k1")
    ///     .body("two apples")
    ///     .unwrap();
    /// let Ok(request) = requests.read(&sent) else { panic!() };
    /// assert!(!requests.drive_new(request.clone(), &stages)?.replayed());
    /// assert!(requests.drive_new(request, &stages)?.replayed());
    /// # Ok::<(), oncekey::stage::DriveError<Response, Response, Error>>(())
    /// ```
    pub fn drive_new<X: From<Error>>(
        &self,
        request: NewRequest,
        stages: &Stages<'_, Response, Response, X>,
    ) -> Result<Executed<Response>, DriveError<Response, Response, X>> {
        let is_keyed = request.key.is_some();
        let (key, options) = request.described(self.keep_params)?;
        let policy = self.manager.options.on_interrupted.unwrap_or(OnInterrupted::Resume);
        self.manager.claim_and_run(key, options.on_interrupted(policy), |claim| {
            let driven = if is_keyed { claim.drive(stages) } else { claim.drive_unkeyed(stages) };
            Ok(answer(driven?, false)?)
        })
    }
}
