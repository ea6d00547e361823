//! Problem details (RFC 9457): the response to a client when there is no response of the operation.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use crate::api::manager::Begin;
use crate::api::manager::execute::ExecuteError;
use crate::types::error::{Error, ErrorKind};
use crate::types::record::RecordInfo;

/// The response to an HTTP client when there is no response of the operation: problem details (RFC 9457), in JSON.
///
/// [`Requests::handle`](crate::http::Requests::handle) returns these. A handler of your own gets them from
/// [`Begin::problem`], [`ExecuteError::problem`] and [`Problem::missing_key`], and converts an [`Error`] with `From`.
/// In the table, "fault" marks the problems for which [`is_fault`](Self::is_fault) is true.
///
/// | `code` | status | when | fault |
/// |---|---|---|---|
/// | `missing_key` | 400 | the request has no key | |
/// | `invalid_key` | 400 | the key is malformed or too long | |
/// | `bad_target` | 400 | the request target is not a path | |
/// | `bad_content` | 400 | the rule of [`SameRequest`](crate::http::SameRequest) cannot read the request | |
/// | `too_large` | 413 | the parameters to be [kept](crate::http::Requests::keep_params) are too large | |
/// | `mismatch` | 422 | the key belongs to a different request | |
/// | `in_progress` | 409, with `Retry-After` | another request with this key is still running | |
/// | `paused` | 503, with `Retry-After` | an earlier attempt was released less than [`retry_pause`](crate::ManagerOptions::retry_pause) ago | |
/// | `interrupted` | 409 | an earlier attempt was interrupted, and its record is held | |
/// | `expired` | 410 | the answer has expired, and the manager [remembers](crate::ManagerOptions::remember_expired) the key | |
/// | `response_too_large` | 500 | the response could be too large to be stored; the operation did not run | yes |
/// | `not_stored` | 500 | the operation ran, and its outcome could not be stored | yes |
/// | `unreadable` | 500 | this service cannot read the stored outcome or stage | yes |
/// | `unavailable` | 503, with `Retry-After` | the store cannot be used at present: for example, it is closed, poisoned, full, overloaded or read-only | yes |
/// | `internal` | 500 | any other error of the engine | yes |
///
/// `Retry-After` is 1 s, or what is left of the pause of a `paused` key, rounded up to seconds.
///
/// The body never contains a key or an outcome. Only `invalid_key` contains the text of an error. No body says that
/// nothing was processed, because an earlier request may have been. A client that believed this would send the request
/// under another key, and repeat the effect.
///
/// ```
/// use oncekey::{Begin, Engine, Manager};
///
/// let engine = Engine::temporary()?;
/// let payments: Manager<String> = engine.manager("payments")?;
/// let _owner = payments.begin("order-17")?;
/// let problem = payments.begin("order-17")?.problem().unwrap();
/// assert_eq!((problem.code(), problem.is_fault()), ("in_progress", false));
/// let answer = problem.with_type("https://example.com/problems/").response();
/// assert_eq!(
///     (answer.status().as_u16(), &answer.headers()["retry-after"]),
///     (409, &"1".parse().unwrap())
/// );
/// let body = String::from_utf8_lossy(answer.body());
/// assert!(body.contains("\"type\":\"https://example.com/problems/in_progress\""));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    is_fault: bool,
    /// The time after which another try may get another answer. `None` if another try would get the same answer.
    retry_after: Option<Duration>,
    error: Option<Error>,
    type_prefix: Option<Arc<str>>,
}

/// The body. The member `code` is an extension, because several problems share one status.
#[derive(Serialize)]
struct Details<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
}

impl Problem {
    /// The time that a client should wait before it tries again, unless the record names one.
    const RETRY_AFTER: Duration = Duration::from_secs(1);

    /// Creates the problem for a request that has no key in this header.
    ///
    /// ```
    /// use http::{HeaderName, Request, Response};
    /// use oncekey::{CallOptions, Engine, ExecuteError, Fingerprint, Key, Manager, Status};
    /// use oncekey::http::Problem;
    /// use std::time::Duration;
    ///
    /// type Answer = Result<Response<Vec<u8>>, Problem>;
    ///
    /// fn pay(payments: &Manager<u64, String>, request: &Request<Vec<u8>>) -> Answer {
    ///     let header = HeaderName::from_static("idempotency-key");
    ///     let key = Key::from_headers(request.headers())?;
    ///     let key = key.ok_or_else(|| Problem::missing_key(&header))?;
    ///     let (method, path) = (request.method().as_str(), request.uri().path());
    ///     let same = Fingerprint::builder().part(method).part(path).part(request.body());
    ///     let options = CallOptions::new().fingerprint(same.finish()).wait(Duration::ZERO);
    ///     Ok(match payments.execute_with(&key, options, |_claim| Ok(1999)) {
    ///         Ok(done) => http::Response::new(done.value().to_string().into_bytes()),
    ///         Err(ExecuteError::Failed { error, status, .. }) => {
    ///             let (status, retry) = match status {
    ///                 Status::Failed => (402, false), // final: every retry gets it
    ///                 Status::Released => (503, true), // nothing has happened: send it again
    ///                 _ => (500, false), // it is not known whether it has happened
    ///             };
    ///             let answer = http::Response::builder().status(status);
    ///             let answer = if retry { answer.header("retry-after", "1") } else { answer };
    ///             answer.body(error.into_bytes()).expect("a status and a header")
    ///         }
    ///         Err(other) => return Err(other.problem().expect("all others have one")),
    ///     })
    /// }
    /// # let engine = Engine::temporary()?;
    /// # let request = http::Request::post("/payments").header("idempotency-key", "k1").body(b"20 EUR".to_vec()).unwrap();
    /// # assert_eq!(pay(&engine.manager("payments")?, &request).unwrap().body(), b"1999");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn missing_key(header: &HeaderName) -> Self {
        let detail = format!("This operation needs an idempotency key, in the header {header}.");
        Self::new(StatusCode::BAD_REQUEST, "missing_key", detail)
    }

    /// Sets the URI of the problem's type to this prefix followed by the code. Default: `about:blank`.
    pub fn with_type(self, prefix: impl Into<Arc<str>>) -> Self {
        Self { type_prefix: Some(prefix.into()), ..self }
    }

    /// Returns the HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the code, which is the member `code` of the body.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns true for a fault of the service or its store, which an operator should look at. Otherwise the cause is a
    /// mistake of the client or the state of the key.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        self.is_fault
    }

    /// Returns the error that caused the problem, for the log.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// Returns the time that the client should wait before it sends the request again. `Retry-After` has it, rounded up
    /// to seconds. Returns `None` if another try would get the same answer.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns the HTTP response. Its extensions contain this problem and, for a fault, the [`Error`].
    #[must_use]
    pub fn response(self) -> http::Response<Vec<u8>> {
        let phrase = self.status.canonical_reason().unwrap_or_default();
        let (kind, title) = match &self.type_prefix {
            // RFC 9457 asks for the phrase of the status as the title of this type.
            None => (Cow::Borrowed("about:blank"), Cow::Borrowed(phrase)),
            Some(prefix) => (format!("{prefix}{}", self.code).into(), self.code.replace('_', " ").into()),
        };
        let status = self.status.as_u16();
        let details = Details { kind: &kind, title: &title, status, detail: &self.detail, code: self.code };
        // Serializing numbers and text cannot fail.
        let mut response = http::Response::new(serde_json::to_vec(&details).unwrap_or_default());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after() {
            // Round up: a client that comes too early would have to wait again.
            let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(error) = self.error.as_ref().filter(|_| self.is_fault) {
            response.extensions_mut().insert(error.clone());
        }
        response.extensions_mut().insert(self);
        response
    }

    fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        Self { status, code, detail, is_fault: false, retry_after: None, error: None, type_prefix: None }
    }

    fn fault(status: StatusCode, code: &'static str, detail: &'static str) -> Self {
        Self { is_fault: true, ..Self::new(status, code, detail) }
    }

    fn unavailable(detail: &'static str) -> Self {
        Self {
            retry_after: Some(Self::RETRY_AFTER),
            ..Self::fault(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
        }
    }

    fn because_of(self, error: Error) -> Self {
        Self { error: Some(error), ..self }
    }

    pub(crate) fn bad_target(error: Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_target", "The target of the request is not a path.").because_of(error)
    }

    pub(crate) fn bad_content(error: Error) -> Self {
        let detail =
            "The request cannot be read, so it cannot be compared with other requests that have its idempotency key.";
        Self::new(StatusCode::BAD_REQUEST, "bad_content", detail).because_of(error)
    }

    pub(crate) fn in_progress() -> Self {
        let detail = "A request with this idempotency key is still being processed. Send it again later.";
        Self { retry_after: Some(Self::RETRY_AFTER), ..Self::new(StatusCode::CONFLICT, "in_progress", detail) }
    }

    pub(crate) fn paused(info: &RecordInfo) -> Self {
        let detail = "An earlier request with this idempotency key could not be processed. Send it again later, with \
                      the same key.";
        let retry_after = info.retry_after().or(Some(Self::RETRY_AFTER));
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "paused", detail) }
    }

    pub(crate) fn interrupted() -> Self {
        let detail = "An earlier request with this idempotency key was interrupted, and it is not known whether it \
                      took effect. The key is held until that is known.";
        Self::new(StatusCode::CONFLICT, "interrupted", detail)
    }

    pub(crate) fn mismatch() -> Self {
        let detail = "This idempotency key was used for another request. Use another key for this one.";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "mismatch", detail)
    }

    pub(crate) fn not_stored(error: Error) -> Self {
        let detail = "The request was processed, but its outcome could not be stored and is not known for sure. Do not \
                      send it again under another key.";
        Self::fault(StatusCode::INTERNAL_SERVER_ERROR, "not_stored", detail).because_of(error)
    }

    pub(crate) fn response_too_large(error: Error) -> Self {
        let detail = "The response could be larger than what this service keeps with an idempotency key.";
        Self::fault(StatusCode::INTERNAL_SERVER_ERROR, "response_too_large", detail).because_of(error)
    }
}

/// Converts an error that left the request without a response.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = match error.kind() {
            ErrorKind::InvalidKey => {
                let detail = format!("The idempotency key is refused: {error}.");
                Self::new(StatusCode::BAD_REQUEST, "invalid_key", detail)
            }
            ErrorKind::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "The request is too large to be kept with its idempotency key.",
            ),
            ErrorKind::Mismatch => Self::mismatch(),
            ErrorKind::Expired => Self::new(
                StatusCode::GONE,
                "expired",
                "This idempotency key was used, and its answer is no longer kept. Send a new request under a new key.",
            ),
            ErrorKind::Conflict => Self::unavailable(
                "Too many requests change the same data. Send the request again later, with the same key.",
            ),
            ErrorKind::Busy => {
                Self::unavailable("Too many requests are under way. Send the request again later, with the same key.")
            }
            ErrorKind::Closed
            | ErrorKind::Poisoned
            | ErrorKind::Unavailable
            | ErrorKind::Unsettled
            | ErrorKind::Io
            | ErrorKind::Full
            | ErrorKind::Corrupt
            | ErrorKind::ReadOnly
            | ErrorKind::StoreInUse => Self::unavailable(
                "Idempotency keys cannot be looked up at present. Send the request again later, with the same key.",
            ),
            // A record exists, so the request may have been processed.
            ErrorKind::Codec | ErrorKind::TypeMismatch | ErrorKind::UnknownRecoveryPoint => Self::fault(
                StatusCode::INTERNAL_SERVER_ERROR,
                "unreadable",
                "This service cannot read what it knows of this idempotency key. The request may have been processed: do \
                 not send it under another key.",
            ),
            _ => Self::fault(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The idempotency key cannot be handled by this service. Do not send the request under another key.",
            ),
        };
        problem.because_of(error)
    }
}

impl From<Problem> for http::Response<Vec<u8>> {
    fn from(problem: Problem) -> Self {
        problem.response()
    }
}

impl<T, E> Begin<T, E> {
    /// Returns the problem to send to an HTTP client. Returns `None` for [`Claimed`](Self::Claimed) and
    /// [`Replay`](Self::Replay), for which the response comes from the operation or the record. [`Problem`] lists all
    /// codes.
    ///
    /// ```
    /// use oncekey::{
    ///     Begin, Engine,
    ///     http::{Problem, Requests, Response},
    /// };
    ///
    /// fn pay(
    ///     payments: &Requests,
    ///     request: &http::Request<&str>,
    /// ) -> Result<http::Response<Vec<u8>>, Problem> {
    ///     let header = http::HeaderName::from_static("idempotency-key");
    ///     let key = request.headers().get(&header).ok_or(Problem::missing_key(&header))?;
    ///     let key = key.to_str().unwrap_or_default(); // no text is no key, and refused below
    ///     Ok(
    ///         match payments.initialize_request(
    ///             Some(key),
    ///             request.method(),
    ///             request.body(),
    ///             request.uri().path(),
    ///         )? {
    ///             Begin::Claimed(claim) => {
    ///                 let paid = Response::new(http::StatusCode::CREATED)
    ///                     .body(claim.effect_id("charge"));
    ///                 claim.succeed(&paid).map_err(oncekey::Error::from)?;
    ///                 paid.into()
    ///             }
    ///             Begin::Replay(done) => {
    ///                 done.into_outcome().unwrap_or_else(|failure| failure).into()
    ///             }
    ///             other => return Err(other.problem().expect("all others have one")),
    ///         },
    ///     )
    /// }
    /// # let engine = Engine::temporary()?;
    /// # let payments = engine.requests("payments")?;
    /// let request = |key, body| {
    ///     http::Request::post("/").header("idempotency-key", key).body(body).unwrap()
    /// };
    /// assert_eq!(pay(&payments, &request("k", "20 EUR")).unwrap().status(), 201);
    /// assert_eq!(pay(&payments, &request("k", "21 EUR")).unwrap_err().code(), "mismatch");
    /// assert_eq!(pay(&payments, &request("", "20 EUR")).unwrap_err().code(), "invalid_key");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::Claimed(_) | Self::Replay(_) => None,
            Self::InProgress(_) => Some(Problem::in_progress()),
            Self::Interrupted(_) => Some(Problem::interrupted()),
            Self::Paused(info) => Some(Problem::paused(info)),
            Self::Mismatch(_) => Some(Problem::mismatch()),
        }
    }
}

impl<T, E> ExecuteError<T, E> {
    /// Returns the problem to send to an HTTP client. Returns `None` for [`Failed`](Self::Failed), whose failure is the
    /// answer. [`Problem`] lists all codes.
    ///
    /// ```
    /// use oncekey::{CallOptions, Engine, ExecuteError, Manager};
    /// use std::time::Duration;
    ///
    /// let engine = Engine::temporary()?;
    /// let payments: Manager<String> = engine.manager("payments")?;
    /// let _owner = payments.begin("order-17")?;
    /// let options = CallOptions::new().wait(Duration::ZERO);
    /// let refused =
    ///     payments.execute_with("order-17", options, |_claim| unreachable!()).unwrap_err();
    /// assert_eq!(refused.problem().unwrap().response().status(), 409);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        Some(match self {
            Self::Failed { .. } => return None,
            Self::InProgress(_) => Problem::in_progress(),
            Self::Interrupted(_) => Problem::interrupted(),
            Self::Paused(info) => Problem::paused(info),
            Self::Mismatch(_) => Problem::mismatch(),
            Self::NotStored { error, .. } => Problem::not_stored(error.error.clone()),
            Self::Engine(error) => error.clone().into(),
        })
    }
}
