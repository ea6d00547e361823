//! A whole HTTP request, answered once, by the IETF draft on the `Idempotency-Key` header.

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
    /// Answers an HTTP request, by running the operation once for its `Idempotency-Key`. For any server that works with
    /// threads.
    ///
    /// [`HandleOptions`] change what is said here. Requests of `GET`, `HEAD` and `OPTIONS` pass through: they need no key, run
    /// each time, and nothing of them is stored. It never waits for another owner.
    ///
    /// | the key | the answer |
    /// |---|---|
    /// | is new | what the operation returns, `Ok` or `Err`: stored, released or interrupted as [`on_error`](Requests::on_error) says |
    /// | has an outcome | that response, with `Idempotent-Replayed: true` if its headers have room for that, and without [those](HandleOptions::not_replayed) that are for the first client |
    /// | is missing or malformed | 400 |
    /// | has another method, path, query or body | 422 |
    /// | is in progress | 409 with `Retry-After` |
    /// | was interrupted, and is held | 409 |
    /// | was released within [`retry_pause`](crate::ManagerOptions::retry_pause) | 503 with `Retry-After` |
    ///
    /// The last five, and faults of the engine, are a [`Problem`], which is also in the response's extensions. The [`Error`] of a
    /// fault, which clients are not told, is there as well, for the log; a mistake of a client has none.
    ///
    /// An interruption is held unless the options say otherwise. A panic of the operation goes on through here. The record has
    /// method and path in its context; the query, as `params`, a `String`, only with
    /// [`keep_params`](Requests::keep_params), and the body never.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{Engine, http::Response};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("payments")?;
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
        self.handle_with(request, &self.handling, operation)
    }

    /// As [`handle`](Requests::handle), with the options of this call, instead of those of
    /// [`with_handling`](Requests::with_handling).
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{Engine, http::{HandleOptions, Response}};
    ///
    /// let engine = Engine::temporary()?;
    /// let requests = engine.requests("payments")?;
    /// // An end point whose older clients send no key.
    /// let options = HandleOptions::new().key_required(false);
    /// let request = http::Request::post("/feedback").body("fine").unwrap();
    /// let answer = requests.handle_with(&request, &options, |_request, _claim| Ok(Response::new(StatusCode::ACCEPTED)));
    /// assert_eq!(answer.status(), 202);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn handle_with<B: AsRef<[u8]>>(
        &self,
        request: &http::Request<B>,
        options: &HandleOptions,
        operation: impl FnOnce(&http::Request<B>, &mut Claim<Response, Response>) -> Result<Response, Response>,
    ) -> http::Response<Vec<u8>> {
        if options.passes(request.method()) {
            return self.pass_through(request, options, operation);
        }
        let (key, execute) = match self.asked(request, options) {
            Ok(Some(asked)) => asked,
            Ok(None) => return self.pass_through(request, options, operation),
            Err(problem) => return options.told(problem),
        };
        let mut first = None;
        let run = |claim: &mut Claim<_, _>| {
            let met = error::met();
            let returned = operation(request, claim);
            let (response, is_ok) = match returned {
                Ok(response) => (response, true),
                Err(response) => (response, false),
            };
            // An upstream's own marks would make the first answer look like a replay.
            let response = response.without(&REPLAYED).without(&BODY_OMITTED);
            // What a stage has stored is the answer, whatever the operation returns.
            if !claim.is_ended() {
                first = Some(response.clone());
            }
            // A response that is not to be stored is a failure, in whichever arm it comes; so is an error's that may be made of a
            // fault of the engine.
            let is_fault = error::met() != met && response.status().as_u16() >= 400;
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
                // Nothing has happened.
                claim.release_on_drop(true);
                return Err(Stopped::TooLarge(error));
            }
            Ok(self.manager.run(claim, run)?)
        });
        answered(done, first, options)
    }

    /// Checks that a response of the size that the options announce can be stored.
    fn check_size(&self, options: &HandleOptions) -> Result<()> {
        let limit = self.manager.engine().protocol().max_value_bytes();
        if options.response_bytes as u64 <= limit {
            return Ok(());
        }
        let message = format!("a response may have {} bytes, and the limit is {limit}", options.response_bytes);
        Err(Error::new(ErrorKind::TooLarge, message))
    }

    /// The key, and how it is executed; `None` if no key is needed and there is none.
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

    /// Runs the operation with a claim that has no record, also while no record could be stored.
    fn pass_through<B>(
        &self,
        request: &http::Request<B>,
        options: &HandleOptions,
        operation: impl FnOnce(&http::Request<B>, &mut Claim<Response, Response>) -> Result<Response, Response>,
    ) -> http::Response<Vec<u8>> {
        match self.unrecorded() {
            Ok(mut claim) => operation(request, &mut claim).unwrap_or_else(|response| response).into(),
            Err(error) => options.told(error.into()),
        }
    }

    fn unrecorded(&self) -> Result<Claim<Response, Response>> {
        let manager = &self.manager;
        // A scope may be too long for a generated key; it only has to be new.
        let id = error::handled(|| manager.id(Key::generate()).ok())
            .unwrap_or_else(|| RecordId::new(&manager.name().into(), Key::generate()));
        let start = manager.start(CallOptions::new(), false)?;
        let info = manager.engine().protocol().unrecorded(&id, &start)?;
        Ok(Claim::without_record(manager.engine().share(), id, info))
    }
}

/// Why `handle` has no outcome.
enum Stopped {
    Execute(ExecuteError<Response, Response>),
    /// A response could be too large to be stored, so that the operation has not run.
    TooLarge(Error),
}

impl From<ExecuteError<Response, Response>> for Stopped {
    fn from(error: ExecuteError<Response, Response>) -> Self {
        Self::Execute(error)
    }
}

/// Stores as much of a response as fits, if that is why it was not stored; returns why the whole was not.
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

/// The answer to the client. `first` is the response of the operation, if that has run now.
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
        Err(Stopped::TooLarge(error)) => return options.told(Problem::response_too_large(error)),
        Err(Stopped::Execute(error)) => error,
    };
    match error {
        ExecuteError::Failed { error: response, replayed, .. } => sent(first.unwrap_or(response), replayed, options),
        ExecuteError::InProgress(_) => options.told(Problem::in_progress()),
        ExecuteError::Interrupted(_) => options.told(Problem::interrupted()),
        ExecuteError::Paused(info) => options.told(Problem::paused(&info)),
        ExecuteError::Mismatch(_) => options.told(Problem::mismatch()),
        ExecuteError::NotStored { outcome, error } => match (stored_bare(outcome, error), first) {
            (Ok(error), Some(first)) => {
                let mut answer = sent(first, false, options);
                answer.extensions_mut().insert(error);
                answer
            }
            // Its claim has ended, so that the record is interrupted: nobody may be told what came of it.
            (Ok(error) | Err(error), _) => options.told(Problem::not_stored(error)),
        },
        ExecuteError::Engine(error) => options.told(error.into()),
    }
}

fn sent(response: Response, replayed: bool, options: &HandleOptions) -> http::Response<Vec<u8>> {
    let mut sent: http::Response<Vec<u8>> = response.into();
    let headers = sent.headers_mut();
    if replayed {
        options.leave_out(headers);
        // A map that is full, with over 24,000 names, has no room for one more: then the answer is what counts.
        let _ = headers.try_insert(REPLAYED, HeaderValue::from_static("true"));
    }
    sent
}
