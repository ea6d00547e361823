//! What `handle` can be told.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};

use super::same::SameRequest;
use crate::http::problem::Problem;
use crate::http::response::{self, OF_THE_FIRST_ANSWER, Response};
use crate::types::key::Key;

/// How [`Requests::handle`](crate::http::Requests::handle) treats requests: for a service by
/// [`with_handling`](crate::http::Requests::with_handling), for one call by [`handle_with`](crate::http::Requests::handle_with). A clone is
/// cheap.
///
/// ```
/// use http::{Method, StatusCode, header};
/// use oncekey::{Engine, http::{HandleOptions, Response, SameRequest}};
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
/// assert_eq!(pay(r#"{"cents":1999.0,"to":"ada"}"#).headers()["idempotent-replayed"], "true");
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits this long for another owner of the key before the answer is 409. Default 0: never waits. A request that waits
    /// holds its thread, so their number is [bounded](crate::EngineOptions::max_waiting_per_key): one more is 409 at once.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self
    }

    /// Whether a request without a key is refused, with 400. Default: yes. Otherwise it runs each time that it is sent, and
    /// nothing is stored, as for [`without_key`](Self::without_key).
    pub fn key_required(mut self, required: bool) -> Self {
        self.key_required = required;
        self
    }

    /// Reads the key in this header. Default: `Idempotency-Key`.
    pub fn key_header(mut self, name: HeaderName) -> Self {
        self.key_header = name;
        self
    }

    /// What is the same request; another request under the key of one is 422. Default: [`SameRequest::by_bytes`].
    pub fn same_request(mut self, rule: SameRequest) -> Self {
        self.same = rule;
        self
    }

    /// Also accepts a record that this older rule says is of the same request; may be called several times, newest first. So
    /// a deploy with another [`same_request`](Self::same_request) turns no retry into a mismatch. Drop the older rule once
    /// the records of its time have expired. Default: none.
    pub fn or_older_rule(mut self, rule: SameRequest) -> Self {
        self.older.push(rule);
        self
    }

    /// Passes requests of these methods through: with or without a key, they run each time and nothing is stored. Replaces
    /// the list. Default: `GET`, `HEAD` and `OPTIONS`. `PUT` and `DELETE` may be added where running twice does no harm.
    ///
    /// The operation's claim is then one that has no record: its token is 0, its
    /// [`effect_id`](crate::Claim::effect_id) is another for each run, and its stages are `ClaimLost`.
    ///
    /// ```
    /// use http::{Method, StatusCode};
    /// use oncekey::{Engine, http::{HandleOptions, Response}};
    ///
    /// let engine = Engine::temporary()?;
    /// let carts = engine.requests("carts")?.with_handling(HandleOptions::new().without_key([
    ///     Method::GET,
    ///     Method::HEAD,
    ///     Method::OPTIONS,
    ///     Method::PUT,
    /// ]));
    /// let put = http::Request::put("/carts/17").body("two apples").unwrap();
    /// let answer = carts.handle(&put, |_request, _claim| Ok(Response::new(StatusCode::NO_CONTENT)));
    /// assert_eq!(answer.status(), 204);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn without_key(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.unkeyed = methods.into_iter().collect();
        self
    }

    /// Leaves these headers out of what is stored, and of replays. Replaces the list. Default: `Date`, `Set-Cookie` and
    /// `WWW-Authenticate`. The first client gets them.
    ///
    /// Neither stored nor replayed, whatever the list: headers of the connection (`Connection` and those that it names,
    /// `Keep-Alive`, `Proxy-Authenticate`, `Proxy-Authorization`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding`,
    /// `Upgrade`), `Content-Length`, which the server sets, and an upstream's own `Idempotent-Replayed`. The response of a
    /// [`work_stage`](crate::Claim::work_stage) is stored as [`Response::not_stored`] says, and also replayed without these.
    pub fn not_replayed(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.not_replayed = names.into_iter().collect();
        self
    }

    /// Says that the body of a response may have this many bytes. If that is over the engine's
    /// [`max_value_bytes`](crate::EngineOptions::max_value_bytes), a request is refused with 500 `response_too_large` before the
    /// operation runs. Default 0: never refused.
    ///
    /// Whatever is said here, a response that turns out too large is sent to the first client, and stored without its body:
    /// replays have its status, its headers but those that describe the body, and `Idempotent-Body-Omitted`, the number of bytes
    /// of the body. The [`Error`](crate::Error) is in the first response's extensions, for the log.
    pub fn response_bytes(mut self, bytes: usize) -> Self {
        self.response_bytes = bytes;
        self
    }

    /// Sets the addresses of the types of [problems](Problem): this prefix, and the code, e.g.
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

    pub(super) fn told(&self, problem: Problem) -> http::Response<Vec<u8>> {
        self.typed(problem).response()
    }

    pub(super) fn passes(&self, method: &Method) -> bool {
        self.unkeyed.contains(method)
    }

    /// The key of a request; `None` if it needs none and has none.
    pub(super) fn key<B>(&self, request: &http::Request<B>) -> Result<Option<Key>, Problem> {
        let key = Key::from_headers_named(request.headers(), &self.key_header)?;
        if key.is_none() && self.key_required && !self.passes(request.method()) {
            return Err(Problem::missing_key(&self.key_header));
        }
        Ok(key)
    }

    /// The response as it is to be stored: without what belongs to the first answer only.
    pub(super) fn storable(&self, response: Response) -> Response {
        response.with_not_stored(Arc::clone(&self.not_replayed))
    }

    /// Removes what belongs to the first answer only.
    pub(super) fn leave_out(&self, headers: &mut HeaderMap) {
        response::leave_out(headers, &self.not_replayed);
    }
}
