//! Tests of HTTP requests over the wire, with a synchronous server.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::thread;

use oncekey::{
    Claim, Engine,
    admin::RecordFilter,
    http::{HandleOptions, Requests, Response},
};

use crate::common::*;
use crate::http::created;
use crate::threads::{LATE, until, within};

type Request = http::Request<Vec<u8>>;
type Operation<'a> = dyn Fn(&Request, &mut Claim<Response, Response>) -> Result<Response, Response> + Sync + 'a;

/// A POST that the client has sent, complete or not.
fn sent(address: SocketAddr, path: &str, key: &str, length: usize, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nIdempotency-Key: {key}\r\n");
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
    stream
}

/// Reads the whole answer.
fn received(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.to_ascii_lowercase()
}

fn send(address: SocketAddr, path: &str, key: &str) -> String {
    received(sent(address, path, key, 6, "20 EUR"))
}

fn answer(mut incoming: tiny_http::Request, requests: &Requests, operation: &Operation<'_>) {
    let mut body = Vec::new();
    incoming.as_reader().read_to_end(&mut body).unwrap();
    // This server returns the part of a body that arrived. The service has to check whether it is complete.
    if incoming.body_length().is_some_and(|length| length != body.len()) {
        // A client that hung up gets nothing.
        let _ = incoming.respond(tiny_http::Response::empty(400));
        return;
    }
    let mut request = http::Request::builder().method(incoming.method().as_str()).uri(incoming.url());
    for header in incoming.headers() {
        request = request.header(header.field.as_str().as_str(), header.value.as_str());
    }
    let answer = requests.handle(&request.body(body).unwrap(), operation);
    let mut out = tiny_http::Response::from_data(answer.body().as_slice()).with_status_code(answer.status().as_u16());
    for (name, value) in answer.headers() {
        out.add_header(tiny_http::Header::from_bytes(name.as_str(), value.as_bytes()).unwrap());
    }
    let _ = incoming.respond(out);
}

/// Ends the server's threads, even after a panic.
struct Unblock<'a>(&'a tiny_http::Server, usize);

impl Drop for Unblock<'_> {
    fn drop(&mut self) {
        for _ in 0..self.1 {
            self.0.unblock();
        }
    }
}

/// Serves with this number of threads while the test runs.
fn serving(requests: &Requests, threads: usize, operation: &Operation<'_>, test: impl FnOnce(SocketAddr)) {
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let address = server.server_addr().to_ip().unwrap();
    thread::scope(|scope| {
        let _unblock = Unblock(&server, threads);
        for _ in 0..threads {
            scope.spawn(|| {
                for incoming in server.incoming_requests() {
                    // The server responds with 500 to a request that a panic dropped.
                    let _ = catch_unwind(AssertUnwindSafe(|| answer(incoming, requests, operation)));
                }
            });
        }
        test(address);
    });
}

fn requests(options: HandleOptions) -> Requests {
    Engine::options().temporary_store().unwrap().requests("r").unwrap().with_handling(options)
}

#[track_caller]
fn is(answer: &str, status: u16, part: &str) {
    assert!(answer.starts_with(&format!("http/1.1 {status}")) && answer.contains(part), "{answer}");
}

#[test]
fn a_synchronous_server_answers_retries_over_the_wire() {
    let requests = requests(HandleOptions::new());
    serving(&requests, 1, &created, |address| {
        let first = send(address, "/payments", "\"k\"");
        is(&first, 201, "");
        assert!(!first.contains("idempotent-replayed"), "{first}");
        let again = send(address, "/payments", "k");
        is(&again, 201, "idempotent-replayed: true");
        let bodies: HashSet<_> =
            [&first, &again].iter().map(|answer| answer.split_once("\r\n\r\n").unwrap().1).collect();
        assert!(bodies.len() == 1 && bodies.iter().all(|body| body.len() == 32), "{bodies:?}");
        is(&send(address, "/refunds", "k"), 422, "application/problem+json");
        is(&send(address, "/payments", "\"k"), 400, "");
    });
    assert_eq!(keys(requests.find(RecordFilter::new()).unwrap()), ["k"]);
}

#[test]
fn a_body_with_a_wrong_length_is_not_executed_as_another() {
    let requests = requests(HandleOptions::new());
    serving(&requests, 1, &created, |address| {
        // The client announces more, and hangs up after 6 bytes. This server reads short bodies itself, and then sends no
        // answer.
        for length in [20, 2_000] {
            let half = sent(address, "/payments", "k", length, "20 EUR");
            half.shutdown(Shutdown::Write).unwrap();
            let answer = received(half);
            assert!(answer.is_empty() || answer.starts_with("http/1.1 400"), "{length}: {answer}");
        }
        assert_eq!(requests.find(RecordFilter::new()).unwrap().count(), 0);
        let whole = send(address, "/payments", "k");
        is(&whole, 201, "");
        assert!(!whole.contains("idempotent-replayed"), "{whole}");
        // Bytes after the announced length are not part of the body.
        is(&received(sent(address, "/payments", "k", 6, "20 EUR and more")), 201, "idempotent-replayed: true");
        is(&received(sent(address, "/payments", "k", 2, "20 EUR")), 422, "mismatch");
    });
}

#[test]
fn a_megabyte_of_headers_over_the_wire_is_answered() {
    let requests = requests(HandleOptions::new());
    serving(&requests, 1, &created, |address| {
        let large = format!("k\r\nX-Large: {}", "h".repeat(1 << 20));
        is(&send(address, "/payments", &large), 201, "");
        is(&send(address, "/payments", "k"), 201, "idempotent-replayed: true");
        is(&send(address, "/payments", &"k".repeat(1 << 20)), 400, "invalid_key");
    });
}

#[test]
fn a_server_continues_after_a_panic_and_the_key_is_held() {
    let requests = requests(HandleOptions::new());
    let panics = |request: &Request, claim: &mut Claim<Response, Response>| {
        let _charge = claim.effect_id("charge");
        if request.uri().path() == "/panics" { resume_unwind(Box::new("on purpose")) } else { created(request, claim) }
    };
    serving(&requests, 1, &panics, |address| {
        is(&send(address, "/panics", "k"), 500, "");
        is(&send(address, "/panics", "k"), 409, "\"interrupted\"");
        is(&send(address, "/payments", "l"), 201, "");
    });
}

#[test]
fn clients_that_hang_up_while_they_wait_affect_no_others() {
    within(LATE, || {
        let requests = requests(HandleOptions::new().wait(LATE));
        let stats = || requests.manager().engine().stats();
        let (begun, ended) = (Barrier::new(2), Barrier::new(2));
        let slow = |request: &Request, claim: &mut Claim<Response, Response>| {
            begun.wait();
            ended.wait();
            created(request, claim)
        };
        serving(&requests, 4, &slow, |address| {
            let owner = sent(address, "/payments", "k", 6, "20 EUR");
            begun.wait();
            let gone = [(); 2].map(|()| sent(address, "/payments", "k", 6, "20 EUR"));
            until("both wait", || stats().waiting == 2);
            for stream in gone {
                stream.shutdown(Shutdown::Both).unwrap();
            }
            ended.wait();
            let first = received(owner);
            is(&first, 201, "");
            is(&send(address, "/payments", "k"), 201, "idempotent-replayed: true");
            // The client of the first request may hang up too: its operation has run.
            let gone = sent(address, "/payments", "l", 6, "20 EUR");
            begun.wait();
            gone.shutdown(Shutdown::Both).unwrap();
            ended.wait();
            is(&send(address, "/payments", "l"), 201, "idempotent-replayed: true");
        });
        assert_eq!((stats().waiting, stats().in_progress), (0, 0));
    });
}

// Four threads: one runs the operation, two wait for it, and one serves other requests.
#[test]
fn retries_of_a_slow_key_leave_a_thread_for_other_keys() {
    within(LATE, || {
        let engine = Engine::options().max_waiting_per_key(2).temporary_store().unwrap();
        let requests = engine.requests("r").unwrap().with_handling(HandleOptions::new().wait(LATE));
        let (begun, ended) = (Barrier::new(2), Barrier::new(2));
        let slow = |request: &Request, claim: &mut Claim<Response, Response>| {
            if request.uri().path() == "/slow" {
                begun.wait();
                ended.wait();
            }
            created(request, claim)
        };
        serving(&requests, 4, &slow, |address| {
            let first = sent(address, "/slow", "k", 6, "20 EUR");
            begun.wait();
            let waiting = [(); 2].map(|()| sent(address, "/slow", "k", 6, "20 EUR"));
            until("both wait", || engine.stats().waiting == 2);
            for nth in 0..3 {
                is(&send(address, "/slow", "k"), 409, "retry-after: 1");
                is(&send(address, "/payments", &format!("other-{nth}")), 201, "");
            }
            ended.wait();
            is(&received(first), 201, "");
            for retry in waiting {
                is(&received(retry), 201, "idempotent-replayed: true");
            }
        });
    });
}
