//! Answers a request through the engine.

use std::io::{ErrorKind, Read as _};

use ::http::StatusCode;
use ::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use oncekey::{
    Claim, Engine,
    http::{Requests, Response},
};
use serde::Deserialize;
use serde_json::json;

use crate::ledger::{CHARGE, Charge, Ledger};
use crate::process::log;

const MAX_BODY_BYTES: u64 = 16 << 10;
const MAX_USER_BYTES: usize = 64;

type Request = ::http::Request<Vec<u8>>;

/// Returns the payments, with the default options. A declined card is stored and replayed to every retry. A ledger that
/// failed may have charged: that is a 5xx after an effect id, so the payment is held. See `reconcile`.
pub(crate) fn payments(engine: &Engine) -> oncekey::Result<Requests> {
    engine.requests("payments")
}

/// Returns the response to a charge. Depends only on the charge, so that it can be made again after a crash.
pub(crate) fn charged(charge: &Charge) -> Response {
    answer(StatusCode::CREATED, &json!({ "charge": charge.effect_id, "amount_cents": charge.amount_cents }))
}

pub(crate) fn declined() -> Response {
    refuse(StatusCode::PAYMENT_REQUIRED, "the card was declined")
}

fn refuse(status: StatusCode, message: &str) -> Response {
    answer(status, &json!({ "error": message }))
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    Response::new(status).header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(format!("{body}\n"))
}

/// The body of a request: the amount to charge.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payment {
    amount_cents: u64,
    card: String,
}

#[derive(Debug)]
pub(crate) struct Desk {
    payments: Requests,
    ledger: Ledger,
}

impl Desk {
    pub(crate) fn new(payments: Requests, ledger: Ledger) -> Self {
        Self { payments, ledger }
    }

    pub(crate) fn answer(&self, mut incoming: tiny_http::Request) {
        let answer = self.reply(&mut incoming).unwrap_or_else(Into::into);
        if let Some(error) = answer.extensions().get::<oncekey::Error>() {
            log(&format!("the engine failed: {error}"));
        }
        let mut response = tiny_http::Response::from_data(answer.body().as_slice());
        for (name, value) in answer.headers() {
            if let Ok(header) = tiny_http::Header::from_bytes(name.as_str(), value.as_bytes()) {
                response.add_header(header);
            }
        }
        // A client that hung up will ask again with the same key.
        let _ = incoming.respond(response.with_status_code(answer.status().as_u16()));
    }

    /// Rejects invalid requests before the engine sees the key. The rejection is not stored: the client may correct the
    /// request and use the same key.
    fn reply(&self, incoming: &mut tiny_http::Request) -> Result<::http::Response<Vec<u8>>, Response> {
        let request = read(incoming)?;
        check_route(&request)?;
        let payments = self.payments.scoped(user(&request)?).map_err(|error| {
            log(&format!("the engine failed: {error}"));
            refuse(StatusCode::SERVICE_UNAVAILABLE, "payments are not available now")
        })?;
        let payment = parse(request.body())?;
        Ok(payments.handle(&request, |_request, claim| self.charge(&payment, claim)))
    }

    /// Charges the ledger. Runs once for each key.
    fn charge(&self, payment: &Payment, claim: &Claim<Response, Response>) -> Result<Response, Response> {
        if payment.card == "tok_declined" {
            return Err(declined());
        }
        let charge = Charge {
            effect_id: claim.effect_id(CHARGE),
            key: claim.key().to_string(),
            amount_cents: payment.amount_cents,
        };
        let charging = self.ledger.append(&charge);
        // This card shows a held payment: the charge has happened, and its answer is lost.
        let answered = if payment.card == "tok_timeout" { Err(ErrorKind::TimedOut.into()) } else { charging };
        answered.map_err(|why| {
            log(&format!("the ledger failed, a payment is held: {why}"));
            refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "the ledger failed; the payment is held until it is known what happened",
            )
            .header(RETRY_AFTER, HeaderValue::from_static("1"))
        })?;
        Ok(charged(&charge))
    }
}

/// Converts the request into the types of the `http` crate.
fn read(incoming: &mut tiny_http::Request) -> Result<Request, Response> {
    let bad = |why: &str| refuse(StatusCode::BAD_REQUEST, why);
    let (mut body, announced) = (Vec::new(), incoming.body_length());
    match incoming.as_reader().take(MAX_BODY_BYTES + 1).read_to_end(&mut body) {
        Ok(length) if length as u64 > MAX_BODY_BYTES => {
            return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long"));
        }
        // If a client hangs up, the server returns the part of the body that arrived.
        Ok(length) if announced.is_none_or(|announced| announced == length) => {}
        _ => return Err(bad("the body is incomplete")),
    }
    let mut request = ::http::Request::builder().method(incoming.method().as_str()).uri(incoming.url());
    for header in incoming.headers() {
        request = request.header(header.field.as_str().as_str(), header.value.as_str());
    }
    request.body(body).map_err(|why| bad(&why.to_string()))
}

fn check_route(request: &Request) -> Result<(), Response> {
    match (request.uri().path(), request.method()) {
        ("/payments", &::http::Method::POST) => Ok(()),
        ("/payments", _) => {
            Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "POST a payment")
                .header(ALLOW, HeaderValue::from_static("POST")))
        }
        _ => Err(refuse(StatusCode::NOT_FOUND, "there is only /payments")),
    }
}

/// Returns the authenticated user. In a service the user comes from the session, never from the client. Otherwise a
/// client could read the answers to another user's keys.
fn user(request: &Request) -> Result<&str, Response> {
    let mut given = request.headers().get_all("x-user").iter();
    match (given.next().map(HeaderValue::to_str), given.next()) {
        (None, _) => Ok("user-7"),
        (Some(Ok(user)), None) if (1..=MAX_USER_BYTES).contains(&user.len()) => Ok(user),
        _ => Err(refuse(StatusCode::BAD_REQUEST, "X-User must be given once, and be 1 to 64 characters")),
    }
}

fn parse(body: &[u8]) -> Result<Payment, Response> {
    let bad = |why: &str| refuse(StatusCode::BAD_REQUEST, why);
    let payment: Payment =
        serde_json::from_slice(body).map_err(|why| bad(&format!("the body is no payment: {why}")))?;
    if payment.amount_cents == 0 { Err(bad("amount_cents must not be 0")) } else { Ok(payment) }
}
