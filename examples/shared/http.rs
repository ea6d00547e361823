//! The part of HTTP that the examples need: one request for each connection, on loopback.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

/// The start of the line in which a server prints its address.
pub(crate) const LISTENING: &str = "listening on http://";

const TIMEOUT: Duration = Duration::from_secs(10);

/// Listens on loopback. Port 0 takes a free port.
pub(crate) fn listen(port: u16) -> anyhow::Result<(tiny_http::Server, SocketAddr)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let server = tiny_http::Server::http(address)
        .map_err(|why| anyhow::anyhow!(why))
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = server.server_addr().to_ip().context("the server has no address")?;
    Ok((server, address))
}

/// Serves requests until the process is killed.
pub(crate) fn serve(
    server: &tiny_http::Server,
    workers: usize,
    answer: impl Fn(tiny_http::Request) + Sync,
) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let worker = || -> io::Result<()> {
            let ended = loop {
                match server.recv() {
                    Ok(request) => answer(request),
                    Err(error) => break error,
                }
            };
            // Only one worker learns that the socket is gone, so each worker wakes the next.
            server.unblock();
            Err(ended)
        };
        for _ in 1..workers {
            scope.spawn(worker);
        }
        worker().context("cannot accept connections any more")
    })
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The method and the path, such as `POST /payments`.
    pub(crate) line: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) body: &'a str,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// A request that was sent, and whose answer was not read yet.
#[derive(Debug)]
pub(crate) struct Sent(TcpStream);

pub(crate) fn send(server: SocketAddr, request: Request<'_>) -> io::Result<Sent> {
    let Request { line, key, body } = request;
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
    let head = format!("{line} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n{key}");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    Ok(Sent(stream))
}

impl Sent {
    pub(crate) fn receive(mut self) -> io::Result<Response> {
        let mut answer = Vec::new();
        self.0.read_to_end(&mut answer)?;
        parse(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Parses an answer. Returns `None` if it is incomplete: a server that is killed may have sent a part of it.
fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(answer.get(..end)?).ok()?, answer.get(end + 4..)?);
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let response = Response { status, head: head.to_owned(), body: body.to_vec() };
    let whole = response.header("Content-Length")?.parse() == Ok(body.len());
    whole.then_some(response)
}
