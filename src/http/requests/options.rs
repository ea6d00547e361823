//! The options of `handle`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};

use super::same::SameRequest;
use crate::http::problem::Problem;
use crate::http::response::{self, OF_THE_FIRST_ANSWER, Response};
use crate::types::key::Key;

/// The options of [`Requests::handle`](crate::http::Requests::handle). Set them for all calls with
/// [`with_handling`](crate::http::Requests::with_handling), or for one call with
/// [`handle_with`](crate::http::Requests::handle_with). Clones are cheap.
///
/// ```
/// use http::{Method, StatusCode, header};
/// use oncekey::{
///     Engine,
///     http::{HandleOptions, Response, SameRequest},
/// };
/// use std::time::Duration;
///
/// let engine = Engine::temporary()?;
/// let options = HandleOptions::new()
///     .wait(Duration::from_secs(2))
///     .same_request(SameRequest::by_content())
///     .or_older_rule(SameRequest::by_bytes());
/// let payments = engine.requests("payments")?.with_handling(options);
/// let pay = |body: &'static str| {
///     let request = http::Request::post("/payments")
///         .header("idempotency-key", "k1")
///         .header(header::CONTENT_TYPE, "application/json")
///         .body(body)
///         .unwrap();
///     payments.handle(&request, |_request, _claim| Ok(Response::new(StatusCode::CREATED)))
/// };
/// assert_eq!(pay(r#"{"to":"ada","cents":1999}"#).status(), 201);
/// assert_eq!(
///     pay(r#"{"cents":1999.0,"to":"ada"}"#).headers()["idempotent-replayed"],
///     "true"
/// );
/// assert_eq!(pay(r#"{"cents":2999,"to":"ada"}"#).status(), 422);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HandleOptions {
    pub(super) wait: Duration,
    key_required: bool,
    key_header: HeaderName,
    pub(super) same: SameRequest,
    pub(super) older: Vec<SameRequest>,
    unkeyed: Arc<[Method]>,
    not_replayed: Arc<[HeaderName]>,
    pub(super) response_bytes: usize,
    problem_type: Option<Arc<str>>,
}

impl Default for HandleOptions {
    fn default() -> Self {
        Self {
            wait: Duration::ZERO,
            key_required: true,
            key_header: HeaderName::from_static("idempotency-key"),
            same: SameRequest::by_bytes(),
            older: Vec::new(),
            unkeyed: [Method::GET, Method::HEAD, Method::OPTIONS].into(),
            not_replayed: OF_THE_FIRST_ANSWER.into(),
            response_bytes: 0,
            problem_type: None,
        }
    }
}

impl HandleOptions {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a request waits for another owner of its key before the answer is 409. Default: 0, no wait.
    ///
    /// A waiting request occupies its thread, so the number of waiters is
    /// [bounded](crate::EngineOptions::max_waiting_per_key). A request over the bound gets 409 at once.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self
    }

    /// Sets whether a request without a key gets 400. Default: true. If false, such a request runs each time and
    /// nothing is stored, as for [`without_key`](Self::without_key).
    pub fn key_required(mut self, required: bool) -> Self {
        self.key_required = required;
        self
    }

    /// Sets the header that contains the key. Default: `Idempotency-Key`.
    pub fn key_header(mut self, name: HeaderName) -> Self {
        self.key_header = name;
        self
    }

    /// Sets the rule that decides whether two requests with one key are the same. A different request gets 422.
    /// Default: [`SameRequest::by_bytes`].
    pub fn same_request(mut self, rule: SameRequest) -> Self {
        self.same = rule;
        self
    }

    /// Also accepts a record that was stored under this older rule, if the rule says that it belongs to the same
    /// request. Call it once for each older rule, newest first. Default: none.
    ///
    /// With it, a deploy that changes [`same_request`](Self::same_request) does not turn retries into mismatches.
    /// Remove the older rule when the records stored under it have expired.
    pub fn or_older_rule(mut self, rule: SameRequest) -> Self {
        self.older.push(rule);
        self
    }

    /// Sets the methods whose requests pass through: with or without a key, they run each time and nothing is stored.
    /// Replaces the list. Default: `GET`, `HEAD` and `OPTIONS`. Add `PUT` and `DELETE` where running twice does no
    /// harm.
    ///
    /// The operation gets a claim without a record: its token is 0, its [`effect_id`](crate::Claim::effect_id) differs
    /// in each run, and its stages return `ClaimLost`.
    ///
    /// ```
    /// use http::{Method, StatusCode};
    /// use oncekey::{
    ///     Engine,
    ///     http::{HandleOptions, Response},
    /// };
    ///
    /// let engine = Engine::temporary()?;
    /// let carts =
    ///     engine.requests("carts")?.with_handling(HandleOptions::new().without_key([
    ///         Method::GET,
    ///         Method::HEAD,
    ///         Method::OPTIONS,
    ///         Method::PUT,
    ///     ]));
    /// let put = http::Request::put("/carts/17").body("two apples").unwrap();
    /// let answer =
    ///     carts.handle(&put, |_request, _claim| Ok(Response::new(StatusCode::NO_CONTENT)));
    /// assert_eq!(answer.status(), 204);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn without_key(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.unkeyed = methods.into_iter().collect();
        self
    }

    /// Sets the headers that are neither stored nor replayed. The first client still gets them. Replaces the list.
    /// Default: `Date`, `Set-Cookie` and `WWW-Authenticate`.
    ///
    /// Some headers are never stored or replayed, whatever the list:
    ///
    /// - headers of the connection: `Connection` and the headers that it names, `Keep-Alive`, `Proxy-Authenticate`,
    ///   `Proxy-Authorization`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding`, `Upgrade`
    /// - `Content-Length`, which the server sets
    /// - `Idempotent-Replayed`, if an upstream has set it
    ///
    /// For the response of a [`work_stage`](crate::Claim::work_stage), the list of [`Response::not_stored`] decides
    /// what is stored. Its replays leave out the headers of this list too.
    pub fn not_replayed(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.not_replayed = names.into_iter().collect();
        self
    }

    /// Announces the largest size of a response's body, in bytes. If it exceeds the engine's
    /// [`max_value_bytes`](crate::EngineOptions::max_value_bytes), a request gets 500 `response_too_large` and the
    /// operation does not run. Default: 0, no check.
    ///
    /// A response that turns out too large is sent to the first client in any case, and stored without its body.
    /// Replays have its status, its headers except those that describe the body, and the header
    /// `Idempotent-Body-Omitted` with the size of the body in bytes. The extensions of the first response contain the
    /// [`Error`](crate::Error), for the log.
    pub fn response_bytes(mut self, bytes: usize) -> Self {
        self.response_bytes = bytes;
        self
    }

    /// Sets the URIs of the types of [problems](Problem) to this prefix followed by the code, for example
    /// `https://example.com/problems/in_progress`. Default: every type is `about:blank`.
    pub fn problem_type(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.problem_type = Some(prefix.into());
        self
    }

    pub(super) fn typed(&self, problem: Problem) -> Problem {
        match &self.problem_type {
            Some(prefix) => problem.with_type(Arc::clone(prefix)),
            None => problem,
        }
    }

    pub(super) fn respond(&self, problem: Problem) -> http::Response<Vec<u8>> {
        self.typed(problem).response()
    }

    pub(super) fn passes_through(&self, method: &Method) -> bool {
        self.unkeyed.contains(method)
    }

    /// Returns the key of a request, or `None` if the request has no key and needs none.
    pub(super) fn key<B>(&self, request: &http::Request<B>) -> Result<Option<Key>, Problem> {
        let key = Key::from_headers_named(request.headers(), &self.key_header)?;
        if key.is_none() && self.key_required && !self.passes_through(request.method()) {
            return Err(Problem::missing_key(&self.key_header));
        }
        Ok(key)
    }

    /// Returns the response with the list of headers that are not stored.
    pub(super) fn storable(&self, response: Response) -> Response {
        response.with_not_stored(Arc::clone(&self.not_replayed))
    }

    /// Removes the headers that only the first client gets.
    pub(super) fn leave_out(&self, headers: &mut HeaderMap) {
        response::leave_out(headers, &self.not_replayed);
    }
}
