//! A whole HTTP request, answered once, by the IETF draft on the `Idempotency-Key` header.

use std::time::Duration;

use http::HeaderValue;

use super::Requests;
use super::request::Described;
use crate::claim::Claim;
use crate::error::{Error, ErrorKind, Result};
use crate::execute::ExecuteError;
use crate::key::Key;
use crate::options::{ExecuteOptions, OnInterrupted};
use crate::problem::Problem;
use crate::response::Response;

impl Requests {
    /// Answers an HTTP request, by running the operation once for its `Idempotency-Key`. For any server that works with
    /// threads; never waits for another owner.
    ///
    /// | the key | the answer |
    /// |---|---|
    /// | is new | what the operation returns, stored; an `Err` as [`on_error`](Requests::on_error) says |
    /// | has an outcome | that response, with `Idempotent-Replayed: true` if its headers have room for that |
    /// | is missing or malformed | 400 |
    /// | has another method, path, query or body | 422 |
    /// | is in progress | 409 with `Retry-After` |
    /// | was interrupted, and is held | 409 |
    ///
    /// The last four, and faults of the engine, have a body of problem details, as [`ExecuteError::problem`] has. The
    /// [`Error`] of a fault, which clients are not told, is in the response's extensions, for the log.
    ///
    /// An interruption is held unless the options say otherwise. A panic of the operation goes on through here. The context has
    /// the query, if there is one, as `params`, a `String`; the body is not kept.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{Engine, OnError, Response};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("payments")?.on_error(|response| {
    ///     if response.status().is_server_error() { OnError::Release } else { OnError::Store }
    /// });
    /// let request = http::Request::post("/payments").header("idempotency-key", "k1").body("20 EUR").unwrap();
    /// // Whoever the session says: one user's keys never meet another's.
    /// let of_ada = requests.scoped("ada")?;
    /// let first = of_ada.handle(&request, |request, claim| {
    ///     let charge = claim.effect_id("charge");
    ///     Ok(Response::new(StatusCode::CREATED).body(format!("{charge}: {}", request.body())))
    /// });
    /// let again = of_ada.handle(&request, |_request, _claim| unreachable!("it has run"));
    /// assert_eq!((again.status(), again.body()), (first.status(), first.body()));
    /// assert_eq!(again.headers()["idempotent-replayed"], "true");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn handle<B: AsRef<[u8]>>(
        &self,
        request: &http::Request<B>,
        operation: impl FnOnce(&http::Request<B>, &mut Claim<Response, Response>) -> Result<Response, Response>,
    ) -> http::Response<Vec<u8>> {
        let (key, options) = match self.asked(request) {
            Ok(Some(asked)) => asked,
            Ok(None) => return Problem::MISSING_KEY.response(),
            // What a path may be is checked against the request here, and not against the program.
            Err(error) if error.kind() == ErrorKind::InvalidOptions => return logged(&Problem::BAD_TARGET, error),
            Err(error) => return logged(&Problem::fault(&error), error),
        };
        match self.manager.execute_with(key, options, |claim| operation(request, claim)) {
            Ok(done) => {
                let replayed = done.replayed();
                sent(done.into_value(), replayed)
            }
            Err(ExecuteError::Failed { error: response, replayed }) => sent(response, replayed),
            Err(ExecuteError::InProgress(_)) => Problem::IN_PROGRESS.response(),
            Err(ExecuteError::Interrupted(_)) => Problem::INTERRUPTED.response(),
            Err(ExecuteError::Mismatch(_)) => Problem::MISMATCH.response(),
            // Its claim ends here, so that the record is interrupted: nobody may be told what came of it.
            Err(ExecuteError::NotStored { error, .. }) => logged(&Problem::NOT_STORED, error.into()),
            Err(ExecuteError::Engine(error)) => logged(&Problem::fault(&error), error),
        }
    }

    fn asked<B: AsRef<[u8]>>(&self, request: &http::Request<B>) -> Result<Option<(Key, ExecuteOptions)>> {
        let Some(key) = Key::from_headers(request.headers())? else { return Ok(None) };
        let begin = self.options(Described::of(request)?, OnInterrupted::Hold);
        Ok(Some((key, ExecuteOptions::from(begin).wait(Duration::ZERO))))
    }
}

fn sent(response: Response, replayed: bool) -> http::Response<Vec<u8>> {
    let mut sent: http::Response<Vec<u8>> = response.into();
    if replayed {
        // A map that is full, with over 24,000 names, has no room for one more: then the answer is what counts.
        let _ = sent.headers_mut().try_insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    sent
}

fn logged(problem: &Problem, error: Error) -> http::Response<Vec<u8>> {
    let mut response = problem.response();
    response.extensions_mut().insert(error);
    response
}
