//! The conditions that a request must meet before anything is looked up for it.
//!
//! Any page in the same browser, and any user of the machine, can send requests to a port on loopback. The token keeps
//! them out. The name of the host keeps out pages whose own name resolves to this machine, and the origin keeps out
//! forms on other pages.

use std::fmt::Write as _;

use super::request::{Method, Request};

/// The names of this machine by which its browser may call it.
const NAMES: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// The port that browsers leave out of addresses.
const DEFAULT_PORT: u16 = 80;

#[derive(Debug)]
pub(super) struct Guard {
    token: String,
    /// The accepted values of the header `Host`.
    hosts: [String; NAMES.len()],
}

/// The reason why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Host,
    Token,
    Origin,
}

impl Guard {
    /// Creates the guard of a port, with a new token.
    pub(super) fn new(port: u16) -> Self {
        Self::with_token(port, token())
    }

    fn with_token(port: u16, token: String) -> Self {
        let host = |name: &str| if port == DEFAULT_PORT { name.to_owned() } else { format!("{name}:{port}") };
        Self { token, hosts: NAMES.map(host) }
    }

    /// Returns the address of the page, with the token.
    pub(super) fn address(&self) -> String {
        let [host, ..] = &self.hosts;
        format!("http://{host}/{}/", self.token)
    }

    /// Returns the path after the token.
    pub(super) fn admit<'a>(&self, request: &'a Request) -> Result<&'a str, Refused> {
        let is_ours = |host: &str| self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host));
        if !request.host.as_deref().is_some_and(is_ours) {
            return Err(Refused::Host);
        }
        let (token, rest) = request.path.strip_prefix('/').unwrap_or_default().split_once('/').unwrap_or_default();
        if !is_equal(token.as_bytes(), self.token.as_bytes()) {
            return Err(Refused::Token);
        }
        // Browsers send the origin with every POST. `null` is the origin of pages that hide theirs.
        let origin = request.origin.as_deref().and_then(|origin| origin.strip_prefix("http://"));
        let from_us = origin.is_some_and(is_ours) && request.is_from_our_site();
        if request.method == Method::Post && !from_us { Err(Refused::Origin) } else { Ok(rest) }
    }
}

/// Compares all bytes, so that the time does not tell how many are right.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |difference, (one, other)| difference | (one ^ other));
    one.len() == other.len() && std::hint::black_box(difference) == 0
}

/// Returns 64 hexadecimal digits with 244 random bits.
#[expect(clippy::disallowed_methods, reason = "a secret of the command line, which has only public functions")]
fn token() -> String {
    let mut token = String::new();
    for id in [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()] {
        // Ignore the result: writing to a string cannot fail.
        let _ = write!(token, "{}", id.simple());
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, host: &str, path: &str, origin: Option<&str>) -> Request {
        let owned = |text: &str| text.to_owned();
        Request { method, path: owned(path), host: Some(owned(host)), origin: origin.map(owned), ..Request::default() }
    }

    #[test]
    fn only_requests_with_the_token_the_host_and_the_origin_are_admitted() {
        let guard = Guard::with_token(8080, "secret".to_owned());
        let get = |host, path| guard.admit(&request(Method::Get, host, path, None)).map(str::to_owned);
        for host in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST:8080", "[::1]:8080"] {
            assert_eq!(get(host, "/secret/records"), Ok("records".to_owned()), "{host}");
        }
        for host in ["", "localhost", "localhost:80", "evil.example:8080", "127.0.0.1:8080.evil.example", "127.1:8080"]
        {
            assert_eq!(get(host, "/secret/"), Err(Refused::Host), "{host}");
        }
        for path in ["", "/", "/secret", "/secre/", "/secrets/", "//secret/", "/SECRET/", "/%73ecret/", "/secret?/"] {
            assert_eq!(get("localhost:8080", path), Err(Refused::Token), "{path}");
        }
        let post = |origin| guard.admit(&request(Method::Post, "localhost:8080", "/secret/act", origin)).is_ok();
        assert!(post(Some("http://localhost:8080")));
        for origin in
            [None, Some("null"), Some("http://evil.example"), Some("https://localhost:8080"), Some("http://localhost")]
        {
            assert!(!post(origin), "{origin:?}");
        }
    }

    #[test]
    fn a_token_is_long_and_new_each_time() {
        let (one, other) = (Guard::new(80), Guard::new(80));
        assert!(
            one.token.len() == 64 && one.token.bytes().all(|byte| byte.is_ascii_hexdigit()) && one.token != other.token
        );
        assert_eq!(one.address(), format!("http://127.0.0.1/{}/", one.token));
    }
}
