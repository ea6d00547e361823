//! `Requests::handle` behind `hyper`: a thread for each connection reads the body, and then runs the operation.

use std::net::{TcpListener, TcpStream};

use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use oncekey::http::Requests;
use oncekey_servers::{MAX_BODY_BYTES, Result, pay, payments};

async fn answer(incoming: Request<Incoming>, payments: &Requests) -> Result<Response<Full<Bytes>>> {
    let (parts, body) = incoming.into_parts();
    // Errors, such as an incomplete or too large body, end the connection. So does a panic.
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await?.to_bytes();
    Ok(payments.handle(&Request::from_parts(parts, body), pay).map(|body| Full::new(body.into())))
}

fn serve(stream: TcpStream, payments: &Requests) -> Result {
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        stream.set_nonblocking(true)?;
        let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
        let service = service_fn(|incoming| answer(incoming, payments));
        Ok(http1::Builder::new().serve_connection(stream, service).await?)
    })
}

fn main() -> Result {
    let (payments, listener) = (&payments()?, TcpListener::bind("127.0.0.1:0")?);
    println!("{}", listener.local_addr()?);
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let stream = stream?;
            scope.spawn(move || serve(stream, payments).map_err(|error| eprintln!("{error}")));
        }
        Ok(())
    })
}
