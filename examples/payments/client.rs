//! A well-behaved client: it sends the same request under the same key until it gets a final answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::http::{self, Response};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) key: String,
    pub(crate) body: String,
}

impl Request {
    fn to_http(&self) -> http::Request<'_> {
        http::Request { line: "POST /payments", key: Some(&self.key), body: &self.body }
    }
}

/// The number of tries until the answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    pub(crate) sent: usize,
    /// Tries without a connection, or whose connection broke. The request may have been processed.
    pub(crate) broken: usize,
    /// Tries that were answered with 409 or 503.
    pub(crate) not_yet: usize,
}

fn is_final(response: &Response) -> bool {
    !matches!(response.status, 409 | 503)
}

/// Sends the request until the answer is final. Returns `None` if the server is gone or the deadline has passed.
#[expect(clippy::disallowed_methods, reason = "a client has a deadline, and pauses between its tries")]
pub(crate) fn ask_until_final(
    server: impl Fn() -> Option<SocketAddr>,
    request: &Request,
    deadline: Instant,
) -> Option<(Response, Tries)> {
    let mut tries = Tries::default();
    let mut pause = FIRST_PAUSE;
    while Instant::now() < deadline {
        tries.sent += 1;
        match http::send(server()?, request.to_http()).and_then(http::Sent::receive) {
            Ok(response) if is_final(&response) => return Some((response, tries)),
            Ok(_) => tries.not_yet += 1,
            Err(_) => tries.broken += 1,
        }
        std::thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    None
}
