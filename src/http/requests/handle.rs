//! Handles whole HTTP requests by the IETF draft on the `Idempotency-Key` header.

use http::HeaderValue;

use super::Requests;
use super::options::HandleOptions;
use super::request::NewRequest;
use crate::api::claim::{Claim, EndError};
use crate::api::manager::execute::{ExecuteError, Executed, Failed};
use crate::http::problem::Problem;
use crate::http::response::{BODY_OMITTED, REPLAYED, Response};
use crate::protocol::RecordId;
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::key::Key;
use crate::types::options::{CallOptions, OnError};

impl Requests {
    /// Answers an HTTP request: runs the operation once for its `Idempotency-Key`, and replays the stored response to
    /// every retry. Works with any server that handles requests in threads.
    ///
    /// These are the defaults; [`HandleOptions`] change them. Requests with the method `GET`, `HEAD` or `OPTIONS` pass
    /// through: they need no key, they run each time, and nothing is stored. The call never waits for another owner of
    /// the key.
    ///
    /// | the key | the answer |
    /// |---|---|
    /// | is new | the response that the operation returns, `Ok` or `Err`; [`on_error`](Requests::on_error) decides whether it is stored |
    /// | has an outcome | the stored response with `Idempotent-Replayed: true`, without the [headers](HandleOptions::not_replayed) that only the first client gets |
    /// | had an outcome that has expired, and is [remembered](crate::ManagerOptions::remember_expired) | 410 |
    /// | is missing or malformed | 400 |
    /// | belongs to a request with another method, path, query or body | 422 |
    /// | is in progress | 409 with `Retry-After` |
    /// | was interrupted, and is held | 409 |
    /// | was released less than [`retry_pause`](crate::ManagerOptions::retry_pause) ago | 503 with `Retry-After` |
    ///
    /// From the third row on, and for faults of the engine, the answer is a [`Problem`], which is also in the
    /// response's extensions. For a fault, the extensions also contain the [`Error`], for the log. The client does not
    /// see the error.
    ///
    /// An interrupted record is held, unless the manager's options say otherwise. A panic of the operation unwinds
    /// through this call. The record's context has the method and the path. With [`keep_params`](Requests::keep_params)
    /// it also has the query, as the `String` `params`. The body of the request is never stored.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{Engine, http::Response};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("payments")?;
    /// let request = http::Request::post("/payments")
    ///     .header("idempotency-key", "k1")
    ///     .body("20 EUR")
    ///     .unwrap();
    /// // The user of the session: the keys of different users are separate.
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
        self.handle_with(request, &self.handling, operation)
    }

    /// Answers an HTTP request as [`handle`](Requests::handle) does. Uses these options instead of the options set by
    /// [`with_handling`](Requests::with_handling).
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{
    ///     Engine,
    ///     http::{HandleOptions, Response},
    /// };
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("payments")?;
    /// // An end point whose older clients send no key.
    /// let options = HandleOptions::new().key_required(false);
    /// let request = http::Request::post("/feedback").body("fine").unwrap();
    /// let answer = requests.handle_with(&request, &options, |_request, _claim| {
    ///     Ok(Response::new(StatusCode::ACCEPTED))
    /// });
    /// assert_eq!(answer.status(), 202);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn handle_with<B: AsRef<[u8]>>(
        &self,
        request: &http::Request<B>,
        options: &HandleOptions,
        operation: impl FnOnce(&http::Request<B>, &mut Claim<Response, Response>) -> Result<Response, Response>,
    ) -> http::Response<Vec<u8>> {
        if options.passes_through(request.method()) {
            return self.pass_through(request, options, operation);
        }
        let (key, execute) = match self.asked(request, options) {
            Ok(Some(asked)) => asked,
            Ok(None) => return self.pass_through(request, options, operation),
            Err(problem) => return options.respond(problem),
        };
        let mut first = None;
        let run = |claim: &mut Claim<_, _>| {
            let uses = error::uses();
            let returned = operation(request, claim);
            let (response, is_ok) = match returned {
                Ok(response) => (response, true),
                Err(response) => (response, false),
            };
            // Remove these marks if an upstream has set them: they would make the first answer look like a replay.
            let response = response.without(&REPLAYED).without(&BODY_OMITTED);
            // If a stage has stored a response, that response is the answer, whatever the operation returns.
            if !claim.is_ended() {
                first = Some(response.clone());
            }
            // A response that must not be stored becomes a failure, even if the operation returned it as `Ok`. An error
            // response may stem from a fault of the engine; then the record is interrupted.
            let is_fault = error::uses() != uses && response.status().as_u16() >= 400;
            let on_error = if is_fault { OnError::Interrupt } else { self.manager.classify(&response) };
            let response = options.storable(response);
            if is_ok && on_error == OnError::Store {
                Ok(response)
            } else {
                Err(Failed { error: response, on_error: Some(on_error) })
            }
        };
        let done = self.manager.claim_and_run(key, execute, |mut claim| {
            if let Err(error) = self.check_size(options) {
                // Release the key: the operation has not run.
                claim.release_on_drop(true);
                return Err(Stopped::TooLarge(error));
            }
            Ok(self.manager.run(claim, run)?)
        });
        answered(done, first, options)
    }

    /// Checks that a response of the announced size can be stored.
    fn check_size(&self, options: &HandleOptions) -> Result<()> {
        let limit = self.manager.engine().protocol().max_value_bytes();
        if options.response_bytes as u64 <= limit {
            return Ok(());
        }
        let message = format!("a response may have {} bytes, and the limit is {limit}", options.response_bytes);
        Err(Error::new(ErrorKind::TooLarge, message))
    }

    /// Returns the key of a request and the options to execute it. Returns `None` if the request has no key and needs
    /// none.
    fn asked<B: AsRef<[u8]>>(
        &self,
        request: &http::Request<B>,
        options: &HandleOptions,
    ) -> Result<Option<(Key, CallOptions)>, Problem> {
        let Some(key) = options.key(request)? else { return Ok(None) };
        let (key, mut execute) = NewRequest::read(Some(key), request, options)?.described(self.keep_params)?;
        execute.only_from_start = true;
        Ok(Some((key, execute)))
    }

    /// Runs the operation with a claim that has no record. Works even while the engine cannot store records.
    fn pass_through<B>(
        &self,
        request: &http::Request<B>,
        options: &HandleOptions,
        operation: impl FnOnce(&http::Request<B>, &mut Claim<Response, Response>) -> Result<Response, Response>,
    ) -> http::Response<Vec<u8>> {
        match self.unrecorded() {
            Ok(mut claim) => operation(request, &mut claim).unwrap_or_else(|response| response).into(),
            Err(error) => options.respond(error.into()),
        }
    }

    fn unrecorded(&self) -> Result<Claim<Response, Response>> {
        let manager = &self.manager;
        // A long scope may leave no room for a generated key. Then leave the scope out: the id only has to be unique.
        let id = error::handled(|| manager.id(Key::generate()).ok())
            .unwrap_or_else(|| RecordId::new(&manager.name().into(), Key::generate()));
        let start = manager.start(CallOptions::new(), false)?;
        let info = manager.engine().protocol().unrecorded(&id, &start)?;
        Ok(Claim::without_record(manager.engine().share(), id, info))
    }
}

/// The reason why `handle` has no outcome.
enum Stopped {
    Execute(ExecuteError<Response, Response>),
    /// The response could be too large to be stored, so the operation has not run.
    TooLarge(Error),
}

impl From<ExecuteError<Response, Response>> for Stopped {
    fn from(error: ExecuteError<Response, Response>) -> Self {
        Self::Execute(error)
    }
}

/// Stores as much of a response as fits, if the whole response was too large.
///
/// Returns the error of the first attempt if something was stored, and `Err` otherwise.
fn stored_bare(
    outcome: Result<Response, Response>,
    unstored: EndError<Claim<Response, Response>>,
) -> Result<Error, Error> {
    let EndError { error, mut claim } = unstored;
    if error.kind() != ErrorKind::TooLarge {
        return Err(error);
    }
    let is_success = outcome.is_ok();
    let bare = outcome.unwrap_or_else(|failure| failure).without_body();
    let smallest = bare.clone().without_headers();
    for response in [bare, smallest] {
        let ended = if is_success { claim.succeed(&response) } else { claim.fail(&response) };
        claim = match ended {
            Ok(_) => return Ok(error),
            Err(unstored) if unstored.kind() == ErrorKind::TooLarge => unstored.claim,
            Err(unstored) => return Err(unstored.error),
        };
    }
    Err(error)
}

/// Returns the answer to the client. `first` is the response of the operation, if this call ran it.
fn answered(
    done: Result<Executed<Response>, Stopped>,
    first: Option<Response>,
    options: &HandleOptions,
) -> http::Response<Vec<u8>> {
    let error = match done {
        Ok(done) => {
            let replayed = done.replayed();
            return sent(first.unwrap_or_else(|| done.into_value()), replayed, options);
        }
        Err(Stopped::TooLarge(error)) => return options.respond(Problem::response_too_large(error)),
        Err(Stopped::Execute(error)) => error,
    };
    match error {
        ExecuteError::Failed { error: response, replayed, .. } => sent(first.unwrap_or(response), replayed, options),
        ExecuteError::InProgress(_) => options.respond(Problem::in_progress()),
        ExecuteError::Interrupted(_) => options.respond(Problem::interrupted()),
        ExecuteError::Paused(info) => options.respond(Problem::paused(&info)),
        ExecuteError::Mismatch(_) => options.respond(Problem::mismatch()),
        ExecuteError::NotStored { outcome, error } => match (stored_bare(outcome, error), first) {
            (Ok(error), Some(first)) => {
                let mut answer = sent(first, false, options);
                answer.extensions_mut().insert(error);
                answer
            }
            // The claim has ended and the record is interrupted, so the client must not learn the response.
            (Ok(error) | Err(error), _) => options.respond(Problem::not_stored(error)),
        },
        ExecuteError::Engine(error) => options.respond(error.into()),
    }
}

fn sent(response: Response, replayed: bool, options: &HandleOptions) -> http::Response<Vec<u8>> {
    let mut sent: http::Response<Vec<u8>> = response.into();
    let headers = sent.headers_mut();
    if replayed {
        options.leave_out(headers);
        // A full map, with over 24,000 names, has no room for one more. Then send the response without the mark.
        let _ = headers.try_insert(REPLAYED, HeaderValue::from_static("true"));
    }
    sent
}
