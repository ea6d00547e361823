//! What a client is told where there is no response to give: problem details, RFC 9457.

use crate::api::manager::execute::ExecuteError;
use crate::types::error::{Error, ErrorKind};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use std::borrow::Cow;

/// One answer without a response of the operation's own. It names no key and tells nothing of any request's outcome, and
/// nothing of the engine's paths and files: clients read it.
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    /// It goes away by itself.
    passes: bool,
}

/// The member `code` is an extension: the statuses alone do not tell one 409 from another.
#[derive(Serialize)]
struct Details<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
}

impl Problem {
    pub(crate) const BAD_TARGET: Self =
        Self::new(StatusCode::BAD_REQUEST, "bad_target", "The target of the request is not a path.");
    pub(crate) const BAD_CONTENT: Self = Self::new(
        StatusCode::BAD_REQUEST,
        "bad_content",
        "The request cannot be read, so that it cannot be told from other requests with its idempotency key.",
    );
    pub(crate) const IN_PROGRESS: Self = Self::passing(
        StatusCode::CONFLICT,
        "in_progress",
        "A request with this idempotency key is still being processed. Send it again later.",
    );
    pub(crate) const INTERRUPTED: Self = Self::new(
        StatusCode::CONFLICT,
        "interrupted",
        "An earlier request with this idempotency key was interrupted, and it is not known whether it took effect. It is \
         held until that is settled.",
    );
    pub(crate) const MISMATCH: Self = Self::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "mismatch",
        "This idempotency key was used for another request. Use another key for this one.",
    );
    pub(crate) const NOT_STORED: Self = Self::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "not_stored",
        "The request was processed, but its outcome could not be stored and is not known for sure. Do not send it again \
         under another key.",
    );

    pub(crate) const RESPONSE_TOO_LARGE: Self = Self::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "response_too_large",
        "The response could be larger than what this service keeps with an idempotency key.",
    );

    const fn new(status: StatusCode, code: &'static str, detail: &'static str) -> Self {
        Self { status, code, detail: Cow::Borrowed(detail), passes: false }
    }

    const fn passing(status: StatusCode, code: &'static str, detail: &'static str) -> Self {
        Self { status, code, detail: Cow::Borrowed(detail), passes: true }
    }

    /// There is no header of this name.
    pub(crate) fn missing_key(header: &HeaderName) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "missing_key",
            detail: Cow::Owned(format!("This operation needs an idempotency key, in the header {header}.")),
            passes: false,
        }
    }

    /// A fault because of which there is no answer. None says that nothing was processed: an earlier request may have been, and a
    /// client that believes it takes another key and repeats the effect.
    pub(crate) fn fault(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidKey => Self {
                status: StatusCode::BAD_REQUEST,
                code: "invalid_key",
                detail: Cow::Owned(format!("The idempotency key is refused: {error}.")),
                passes: false,
            },
            ErrorKind::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "The request is too large to be kept with its idempotency key.",
            ),
            ErrorKind::Conflict => Self::passing(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Too many requests change the same data. Send the request again later, with the same key.",
            ),
            ErrorKind::Busy => Self::passing(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Too many requests are under way. Send the request again later, with the same key.",
            ),
            ErrorKind::Closed
            | ErrorKind::Poisoned
            | ErrorKind::Io
            | ErrorKind::Full
            | ErrorKind::Corrupt
            | ErrorKind::StoreInUse => Self::passing(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Idempotency keys cannot be looked up at present. Send the request again later, with the same key.",
            ),
            // There is a record, so something may have been processed.
            ErrorKind::Codec | ErrorKind::TypeMismatch | ErrorKind::UnknownRecoveryPoint => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "unreadable",
                "This service cannot read what it knows of this idempotency key. The request may have been processed: do not \
                 send it under another key.",
            ),
            _ => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The idempotency key cannot be handled by this service. Do not send the request under another key.",
            ),
        }
    }

    pub(crate) fn response(&self) -> http::Response<Vec<u8>> {
        let details = Details {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
        };
        // Numbers and text can always be written.
        let mut response = http::Response::new(serde_json::to_vec(&details).unwrap_or_default());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.passes {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl<T, E> ExecuteError<T, E> {
    /// The answer to an HTTP client, as problem details (RFC 9457) in JSON; `None` for [`Failed`](Self::Failed), whose failure
    /// is the answer.
    ///
    /// | | status | `code` |
    /// |---|---|---|
    /// | `InProgress` | 409, with `Retry-After` | `in_progress` |
    /// | `Interrupted` | 409 | `interrupted` |
    /// | `Mismatch` | 422 | `mismatch` |
    /// | `NotStored` | 500 | `not_stored`: it has run |
    /// | `Engine`, `InvalidKey` | 400 | `invalid_key` |
    /// | `Engine`, `TooLarge` | 413 | `too_large` |
    /// | `Engine`, a fault of the store | 503, with `Retry-After` | `unavailable` |
    /// | `Engine`, `Codec`, `TypeMismatch`, `UnknownRecoveryPoint` | 500 | `unreadable`: it may have run |
    /// | `Engine`, any other | 500 | `internal` |
    ///
    /// It names no key, tells nothing of the outcome of any request, and nothing of the error but for `InvalidKey`.
    ///
    /// ```
    /// use oncekey::{Begin, Engine, ExecuteError, ExecuteOptions, Manager};
    /// use std::time::Duration;
    ///
    /// let engine = Engine::temporary()?;
    /// let payments: Manager<String> = engine.manager("payments")?;
    /// let _owner = payments.begin("order-17")?;
    /// let options = ExecuteOptions::new().wait(Duration::ZERO);
    /// let refused = payments.execute_with("order-17", options, |_claim| unreachable!()).unwrap_err();
    /// let answer = refused.problem().unwrap();
    /// assert_eq!(answer.status(), 409);
    /// assert_eq!(answer.headers()["retry-after"], "1");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn problem(&self) -> Option<http::Response<Vec<u8>>> {
        let problem = match self {
            Self::Failed { .. } => return None,
            Self::InProgress(_) => Problem::IN_PROGRESS,
            Self::Interrupted(_) => Problem::INTERRUPTED,
            Self::Mismatch(_) => Problem::MISMATCH,
            Self::NotStored { .. } => Problem::NOT_STORED,
            Self::Engine(error) => Problem::fault(error),
        };
        Some(problem.response())
    }
}
