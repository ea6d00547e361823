//! `Requests::handle` behind `tiny_http`: a few threads, each with one request at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use oncekey::http::Requests;
use oncekey_servers::{Result, pay, payments, read_body};
use tiny_http::{Header, Request, Response, Server};

fn answer(mut incoming: Request, payments: &Requests) -> Result {
    let mut request = http::Request::builder().method(incoming.method().as_str()).uri(incoming.url());
    for header in incoming.headers() {
        request = request.header(header.field.as_str().as_str(), header.value.as_str());
    }
    let length = incoming.body_length();
    let answer = payments.handle(&request.body(read_body(incoming.as_reader(), length)?)?, pay);
    let mut response = Response::from_data(answer.body().as_slice()).with_status_code(answer.status().as_u16());
    for (name, value) in answer.headers() {
        response.add_header(Header::from_bytes(name.as_str(), value.as_bytes()).map_err(|()| "not ASCII")?);
    }
    Ok(incoming.respond(response)?)
}

fn main() -> Result {
    let (payments, server) = (payments()?, Server::http("127.0.0.1:0")?);
    println!("{}", server.server_addr());
    thread::scope(|scope| {
        let serve = || {
            for incoming in server.incoming_requests() {
                // After a panic or an incomplete body, the request is dropped, which responds with 500.
                let _ = catch_unwind(AssertUnwindSafe(|| answer(incoming, &payments)));
            }
        };
        let _workers = [(); 4].map(|()| scope.spawn(serve));
    });
    Ok(())
}
