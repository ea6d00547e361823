//! The parts that the services share: the operation, and a check of the length of a body.
//!
//! `astra` is not among them. It runs a handler inside the task that reads the connection, so that a handler which reads a body that
//! comes after its headers waits for ever (0.3 and 0.4).

use std::error::Error;
use std::io::{self, Read};

use http::StatusCode;
use oncekey::http::{HandleOptions, Requests, Response, SameRequest};
use oncekey::{Claim, Engine};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The longest body of a request.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Payments, in a store that ends with the process. A service opens a directory instead.
pub fn payments() -> Result<Requests> {
    let options = HandleOptions::new().same_request(SameRequest::by_content());
    Ok(Engine::temporary()?.requests("payments")?.with_handling(options).scoped("whoever the session says")?)
}

/// The operation. A provider would get the effect id as its idempotency key.
pub fn pay<B>(
    _request: &http::Request<B>,
    claim: &mut Claim<Response, Response>,
) -> std::result::Result<Response, Response> {
    Ok(Response::new(StatusCode::CREATED).body(claim.effect_id("charge")))
}

/// Reads a body from a server that does not compare it with its length: of a client that hung up, half of it would be there.
pub fn read_body(from: impl Read, length: Option<usize>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    from.take(MAX_BODY_BYTES as u64 + 1).read_to_end(&mut body)?;
    let is_whole = length.is_none_or(|length| length == body.len()) && body.len() <= MAX_BODY_BYTES;
    if is_whole { Ok(body) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "the body has another length")) }
}
