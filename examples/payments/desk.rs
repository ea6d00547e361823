//! From a request to an answer, by way of the engine.

use std::io::{self, Read as _};
use std::time::Duration;

use oncekey::{Claim, Engine, ExecuteError, ExecuteOptions, Executed, Fingerprint, Manager, OnError};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::ledger::{CHARGE, Charge, Ledger};
use crate::log;

const MAX_BODY_BYTES: u64 = 16 << 10;
const MAX_KEY_BYTES: usize = 255;
const MAX_USER_BYTES: usize = 64;

/// What is stored under a key: the answer itself, so that a retry gets the same bytes even from the next release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Why there was no charge, or may be one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum NotCharged {
    /// The card was refused. An outcome like any other: stored, and replayed to every retry.
    Declined(Answer),
    /// The ledger failed. Never stored; a skipped variant must be the last.
    #[serde(skip)]
    Unknown(io::Error),
}

pub(crate) type Payments = Manager<Answer, NotCharged>;

/// An interrupted payment is held, which is the default: see `reconcile`.
pub(crate) fn payments(engine: &Engine) -> oncekey::Result<Payments> {
    Ok(engine.manager("payments")?.on_error(|why| match why {
        NotCharged::Declined(_) => OnError::Store,
        // Not `Release`: a write or a sync that failed may have charged all the same.
        NotCharged::Unknown(_) => OnError::Interrupt,
    }))
}

impl Answer {
    /// Made of nothing but the charge, so that it can be made again after a crash.
    pub(crate) fn charged(charge: &Charge) -> Self {
        Self::new(201, &json!({ "charge": charge.effect_id, "amount_cents": charge.amount_cents }))
    }

    pub(crate) fn declined() -> Self {
        Self::problem(402, "the card was declined")
    }

    fn problem(status: u16, message: &str) -> Self {
        Self::new(status, &json!({ "error": message }))
    }

    fn new(status: u16, body: &serde_json::Value) -> Self {
        Self { status, body: format!("{body}\n") }
    }
}

type Headers = &'static [(&'static str, &'static str)];

const REPLAYED: Headers = &[("Idempotent-Replayed", "true")];
const ASK_AGAIN: Headers = &[("Retry-After", "1")];

/// An answer and what is said beside it. As an `Err`, it was refused before its key was touched.
type Reply = (Answer, Headers);

fn refuse(status: u16, message: &str) -> Reply {
    (Answer::problem(status, message), &[])
}

/// What is charged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payment {
    amount_cents: u64,
    card: String,
}

#[derive(Debug)]
pub(crate) struct Desk {
    payments: Payments,
    ledger: Ledger,
}

impl Desk {
    pub(crate) fn new(payments: Payments, ledger: Ledger) -> Self {
        Self { payments, ledger }
    }

    pub(crate) fn answer(&self, mut request: tiny_http::Request) {
        let (Ok((answer, headers)) | Err((answer, headers))) = self.reply(&mut request);
        let mut response = tiny_http::Response::from_string(answer.body).with_status_code(answer.status);
        for (name, value) in [("Content-Type", "application/json")].iter().chain(headers) {
            if let Ok(header) = tiny_http::Header::from_bytes(*name, *value) {
                response.add_header(header);
            }
        }
        // A client that has gone will ask again: that is what its key is for.
        let _ = request.respond(response);
    }

    /// Whatever can be refused is refused before the key is touched, and is not remembered: the client may correct it and
    /// use the key again.
    fn reply(&self, request: &mut tiny_http::Request) -> Result<Reply, Reply> {
        let path = request.url().split('?').next().unwrap_or_default().to_owned();
        check_route(request.method(), &path)?;
        let body = read_body(request)?;
        let key = idempotency_key(request)?;
        let payments = self.payments.scoped(user(request)?).map_err(engine_fault)?;
        let payment = parse(&body)?;
        let same_request = Fingerprint::builder().part(request.method().as_str()).part(path).part(&body).finish();
        // A duplicate is told to ask again: waiting for the first would let any client hold all workers.
        let options = ExecuteOptions::new().fingerprint(same_request).wait(Duration::ZERO);
        Ok(to_reply(payments.execute_with(key, options, |claim| self.charge(&payment, claim))))
    }

    /// Runs once per key, as far as anybody can tell.
    fn charge(&self, payment: &Payment, claim: &Claim<Answer, NotCharged>) -> Result<Answer, NotCharged> {
        if payment.card == "tok_declined" {
            return Err(NotCharged::Declined(Answer::declined()));
        }
        let charge = Charge {
            effect_id: claim.effect_id(CHARGE),
            key: claim.key().to_string(),
            amount_cents: payment.amount_cents,
        };
        self.ledger.append(&charge).map_err(NotCharged::Unknown)?;
        Ok(Answer::charged(&charge))
    }
}

fn to_reply(executed: Result<Executed<Answer>, ExecuteError<Answer, NotCharged>>) -> Reply {
    match executed {
        Ok(done) => {
            let headers = if done.replayed() { REPLAYED } else { &[] };
            (done.into_value(), headers)
        }
        Err(ExecuteError::Failed { error: NotCharged::Declined(answer), replayed }) => {
            (answer, if replayed { REPLAYED } else { &[] })
        }
        Err(ExecuteError::Failed { error: NotCharged::Unknown(why), .. }) => {
            log(&format!("the ledger failed, a payment is held: {why}"));
            (Answer::problem(503, "the ledger failed; the payment is held until it is known what happened"), ASK_AGAIN)
        }
        Err(ExecuteError::Mismatch(_)) => refuse(422, "this Idempotency-Key was used for another request"),
        Err(ExecuteError::InProgress(_)) => (Answer::problem(409, "this payment is in progress"), ASK_AGAIN),
        Err(ExecuteError::Interrupted(_)) => {
            refuse(409, "this payment was interrupted; it is held until it is known what happened")
        }
        // It may have been charged, but no retry would hear the same, so nobody is told. Dropping the claim holds it.
        Err(ExecuteError::NotStored { error, .. }) => engine_fault(error.into()),
        Err(ExecuteError::Engine(error)) => engine_fault(error),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is the end of every error, and serves `map_err`")]
fn engine_fault(error: oncekey::Error) -> Reply {
    log(&format!("the engine failed: {error}"));
    (Answer::problem(503, "payments are not available now"), ASK_AGAIN)
}

fn check_route(method: &tiny_http::Method, path: &str) -> Result<(), Reply> {
    match (path, method) {
        ("/payments", tiny_http::Method::Post) => Ok(()),
        ("/payments", _) => Err((Answer::problem(405, "POST a payment"), &[("Allow", "POST")])),
        _ => Err(refuse(404, "there is only /payments")),
    }
}

fn idempotency_key(request: &tiny_http::Request) -> Result<&str, Reply> {
    let key = header(request, "Idempotency-Key")?.ok_or_else(|| refuse(400, "send an Idempotency-Key"))?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refuse(400, "the Idempotency-Key must be 1 to 255 visible ASCII characters"));
    }
    Ok(key)
}

/// Whoever is signed in. In a service this comes from the session and never from the client; the keys of one user must not
/// meet those of another, who would be given the first one's answer.
fn user(request: &tiny_http::Request) -> Result<&str, Reply> {
    match header(request, "X-User")?.unwrap_or("user-7") {
        user if user.is_empty() || user.len() > MAX_USER_BYTES => Err(refuse(400, "X-User must be 1 to 64 characters")),
        user => Ok(user),
    }
}

/// The value of a header that may be given once.
fn header<'r>(request: &'r tiny_http::Request, name: &'static str) -> Result<Option<&'r str>, Reply> {
    let mut values = request.headers().iter().filter(|header| header.field.equiv(name));
    let value = values.next().map(|header| header.value.as_str());
    if values.next().is_some() { Err(refuse(400, &format!("{name} is given twice"))) } else { Ok(value) }
}

fn read_body(request: &mut tiny_http::Request) -> Result<Vec<u8>, Reply> {
    let mut body = Vec::new();
    let read = request.as_reader().take(MAX_BODY_BYTES + 1).read_to_end(&mut body);
    match read {
        Ok(length) if length as u64 > MAX_BODY_BYTES => Err(refuse(413, "the body is too long")),
        Ok(_) => Ok(body),
        Err(_) => Err(refuse(400, "the body is incomplete")),
    }
}

fn parse(body: &[u8]) -> Result<Payment, Reply> {
    let payment: Payment =
        serde_json::from_slice(body).map_err(|why| refuse(400, &format!("the body is no payment: {why}")))?;
    if payment.amount_cents == 0 { Err(refuse(400, "amount_cents must not be 0")) } else { Ok(payment) }
}
