//! The shared parts of the services: the operation, and a check of the length of a body.
//!
//! There is no service on `astra` (0.2 to 0.4). For HTTP/1 it runs a handler inside the task that reads the connection,
//! so a body in a later packet than the headers arrives only after the handler has returned. In a test with 0.4, a
//! handler that read such a body, itself or on another thread, did not return within 10 s. One that waited 3 s for that
//! thread returned without the body.

use std::error::Error;
use std::io::{self, Read};

use http::StatusCode;
use oncekey::http::{HandleOptions, Requests, Response, SameRequest};
use oncekey::{Claim, Engine};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The largest body of a request, in bytes.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Returns payments in a temporary store. A service opens a directory instead.
pub fn payments() -> Result<Requests> {
    let options = HandleOptions::new().same_request(SameRequest::by_content());
    Ok(Engine::temporary()?.requests("payments")?.with_handling(options).scoped("the user of the session")?)
}

/// Runs the operation. A real one would pass the effect id to the provider as its idempotency key.
pub fn pay<B>(
    _request: &http::Request<B>,
    claim: &mut Claim<Response, Response>,
) -> std::result::Result<Response, Response> {
    Ok(Response::new(StatusCode::CREATED).body(claim.effect_id("charge")))
}

/// Reads a body and compares its length with the header's. Use it with servers that do not: if a client hangs up, they
/// return a part of the body.
pub fn read_body(from: impl Read, length: Option<usize>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    from.take(MAX_BODY_BYTES as u64 + 1).read_to_end(&mut body)?;
    let is_whole = length.is_none_or(|length| length == body.len()) && body.len() <= MAX_BODY_BYTES;
    if is_whole { Ok(body) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "the body has another length")) }
}
