//! `Requests::handle` behind `rouille`, which has a pool of threads and responds to a panic with 500.

use oncekey::http::Requests;
use oncekey_servers::{Result, pay, payments, read_body};
use rouille::{Request, Response, ResponseBody, Server};

fn answer(incoming: &Request, payments: &Requests) -> Result<Response> {
    let mut request = http::Request::builder().method(incoming.method()).uri(incoming.raw_url());
    for (name, value) in incoming.headers() {
        request = request.header(name, value);
    }
    let length = incoming.header("Content-Length").and_then(|length| length.parse().ok());
    let body = read_body(incoming.data().ok_or("the body was read before")?, length)?;
    let answer = payments.handle(&request.body(body)?, pay);
    let text = |value: &http::HeaderValue| value.to_str().map(ToOwned::to_owned);
    let mut response = Response { status_code: answer.status().as_u16(), headers: Vec::new(), ..Response::text("") };
    for (name, value) in answer.headers() {
        response.headers.push((name.to_string().into(), text(value)?.into()));
    }
    response.data = ResponseBody::from_data(answer.into_body());
    Ok(response)
}

fn main() -> Result {
    let payments = payments()?;
    let server = Server::new("127.0.0.1:0", move |incoming| {
        answer(incoming, &payments).unwrap_or_else(|why| Response::text(why.to_string()).with_status_code(400))
    })?;
    println!("{}", server.server_addr());
    server.run();
    Ok(())
}
