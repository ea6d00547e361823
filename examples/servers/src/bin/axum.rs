//! `Requests::handle` behind `axum`, in its pool of blocking threads, because the call waits for the disk.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use axum::routing::post;
use axum::{Router, serve};
use oncekey::http::Requests;
use oncekey_servers::{MAX_BODY_BYTES, Result, pay, payments};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

async fn answer(
    State(payments): State<Requests>,
    incoming: Request,
) -> std::result::Result<Response<Body>, StatusCode> {
    let (parts, body) = incoming.into_parts();
    let body = to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| StatusCode::BAD_REQUEST)?;
    let request = http::Request::from_parts(parts, body);
    // If a client hangs up, this task ends, but the operation continues.
    let answer = spawn_blocking(move || payments.handle(&request, pay)).await;
    // `Err` means that the operation panicked.
    answer.map(|answer| answer.map(Body::from)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

fn main() -> Result {
    let router = Router::new().route("/payments", post(answer)).with_state(payments()?);
    tokio::runtime::Builder::new_multi_thread().enable_io().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        Ok(serve(listener, router).await?)
    })
}
