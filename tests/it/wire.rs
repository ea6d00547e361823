//! HTTP requests over the wire, answered by a synchronous server.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use oncekey::{Engine, admin::RecordFilter, http::Requests};

use crate::common::*;
use crate::http::created;

/// One POST, and all that comes back.
fn send(address: std::net::SocketAddr, path: &str, key: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nIdempotency-Key: {key}\r\n");
    write!(stream, "{head}Content-Length: 6\r\n\r\n20 EUR").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.to_ascii_lowercase()
}

/// A thread of a server, until that is unblocked.
fn serve(server: &tiny_http::Server, requests: &Requests) {
    for mut incoming in server.incoming_requests() {
        let mut body = Vec::new();
        incoming.as_reader().read_to_end(&mut body).unwrap();
        let mut request = http::Request::builder().method(incoming.method().as_str()).uri(incoming.url());
        for header in incoming.headers() {
            request = request.header(header.field.as_str().as_str(), header.value.as_str());
        }
        let request = request.body(body).unwrap();
        let answer = requests.handle(&request, created);
        let mut out =
            tiny_http::Response::from_data(answer.body().as_slice()).with_status_code(answer.status().as_u16());
        for (name, value) in answer.headers() {
            out.add_header(tiny_http::Header::from_bytes(name.as_str(), value.as_bytes()).unwrap());
        }
        incoming.respond(out).unwrap();
    }
}

/// Ends the server's thread, by a panic too.
struct Unblock<'a>(&'a tiny_http::Server);

impl Drop for Unblock<'_> {
    fn drop(&mut self) {
        self.0.unblock();
    }
}

#[test]
fn a_synchronous_server_answers_retries_over_the_wire() {
    let engine = Engine::temporary().unwrap();
    let requests = engine.requests("r").unwrap();
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let address = server.server_addr().to_ip().unwrap();
    std::thread::scope(|scope| {
        let _unblock = Unblock(&server);
        scope.spawn(|| serve(&server, &requests));
        let first = send(address, "/payments", "\"k\"");
        assert!(first.starts_with("http/1.1 201"), "{first}");
        assert!(!first.contains("idempotent-replayed"), "{first}");
        let again = send(address, "/payments", "k");
        assert!(again.starts_with("http/1.1 201") && again.contains("idempotent-replayed: true"), "{again}");
        let bodies: HashSet<_> =
            [&first, &again].iter().map(|answer| answer.split_once("\r\n\r\n").unwrap().1).collect();
        assert!(bodies.len() == 1 && bodies.iter().all(|body| body.len() == 32), "{bodies:?}");
        let other = send(address, "/refunds", "k");
        assert!(other.starts_with("http/1.1 422") && other.contains("application/problem+json"), "{other}");
        let malformed = send(address, "/payments", "\"k");
        assert!(malformed.starts_with("http/1.1 400"), "{malformed}");
    });
    assert_eq!(keys(requests.find(RecordFilter::new()).unwrap()), ["k"]);
}
