//! An HTTP service on `tiny_http`, which handles requests in threads, and a client that sends its request twice.
//!
//! `cargo run --example http_service`
#![allow(clippy::print_stdout, reason = "the program prints its steps")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::{error, thread};

use oncekey::{
    Engine,
    http::{Requests, Response},
};
use tiny_http::{Header, Server};

type Result<T = ()> = std::result::Result<T, Box<dyn error::Error + Send + Sync>>;

fn serve(server: &Server, payments: &Requests) -> Result {
    for mut incoming in server.incoming_requests().take(2) {
        let (mut body, length) = (Vec::new(), incoming.body_length());
        incoming.as_reader().take(1 << 20).read_to_end(&mut body)?;
        if length.is_some_and(|length| length != body.len()) {
            continue; // the client hung up and sent only a part of the body
        }
        let mut request = http::Request::builder().method(incoming.method().as_str()).uri(incoming.url());
        for header in incoming.headers() {
            request = request.header(header.field.as_str().as_str(), header.value.as_str());
        }
        // In a real service the scope is the user of the session.
        let answer = payments.scoped("ada")?.handle(&request.body(body)?, |request, claim| {
            println!("charging {} bytes as {}", request.body().len(), claim.effect_id("charge"));
            Ok(Response::new(http::StatusCode::CREATED).body("paid"))
        });
        let mut response =
            tiny_http::Response::from_data(answer.body().clone()).with_status_code(answer.status().as_u16());
        for (name, value) in answer.headers() {
            response.add_header(Header::from_bytes(name.as_str(), value.as_bytes()).map_err(|()| "not ASCII")?);
        }
        incoming.respond(response)?;
    }
    Ok(())
}

fn post(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    write!(stream, "POST /payments HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: \"k1\"\r\n")?;
    write!(stream, "Connection: close\r\nContent-Length: 6\r\n\r\n20 EUR")?;
    Ok(io::read_to_string(stream)?.to_lowercase())
}

fn main() -> Result {
    let engine = Engine::temporary()?;
    let (payments, server) = (engine.requests("payments")?, Server::http("127.0.0.1:0")?);
    let to = server.server_addr().to_ip().ok_or("no address")?;
    let [first, second] = thread::scope(|scope| {
        let client = scope.spawn(|| [post(to), post(to)]);
        serve(&server, &payments).and_then(|()| client.join().map_err(|_| "the client panicked".into()))
    })?;
    let (first, second) = (first?, second?);
    assert!(first.contains("201 created") && !first.contains("idempotent-replayed"), "{first}");
    assert!(second.contains("201 created") && second.contains("idempotent-replayed: true"), "{second}");
    println!("{second}");
    Ok(())
}
