//! A client as it should be: it sends the same request under the same key until it has a final answer.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(32);
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) key: String,
    pub(crate) body: String,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) replayed: bool,
    pub(crate) body: Vec<u8>,
}

/// What it took to get an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    pub(crate) sent: usize,
    /// No connection, or one that broke: nobody knows what happened to the request.
    pub(crate) broken: usize,
    /// Answered 409 or 503.
    pub(crate) not_yet: usize,
}

impl Response {
    fn is_final(&self) -> bool {
        !matches!(self.status, 409 | 503)
    }
}

/// `None` if there is no server any more, or no answer before the deadline.
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
        match ask(server()?, request) {
            Ok(response) if response.is_final() => return Some((response, tries)),
            Ok(_) => tries.not_yet += 1,
            Err(_) => tries.broken += 1,
        }
        std::thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    None
}

fn ask(server: SocketAddr, request: &Request) -> io::Result<Response> {
    let Request { key, body } = request;
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let length = body.len();
    let head = format!("POST /payments HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nIdempotency-Key: {key}");
    stream.write_all(format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// `None` unless it is whole: a server that is killed may have sent half of it.
fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(answer.get(..end)?).ok()?, answer.get(end + 4..)?);
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    let header = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|&(_, value)| value);
    let whole = header("Content-Length")?.parse() == Ok(body.len());
    let replayed = header("Idempotent-Replayed") == Some("true");
    whole.then(|| Response { status, replayed, body: body.to_vec() })
}
