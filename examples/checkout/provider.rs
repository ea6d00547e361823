//! The card provider: a separate process that does not know the engine and survives its crashes. The test never kills
//! it, so it keeps its charges in memory.

use std::collections::HashMap;
use std::io::{self, BufRead as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::http::{self, LISTENING, Request};
use crate::point::{Point, Watch};
use crate::process::{self, ChildProcess, say};
use crate::shop::{Cart, Fault};

const WORKERS: usize = 8;
/// One of this many answers about a charge is lost.
const LOST: usize = 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) id: String,
    pub(crate) cart: String,
    pub(crate) cents: u64,
    /// The number of requests for this charge.
    pub(crate) asked: usize,
}

/// Asks for a charge. Repeated calls with the same effect id make one charge.
pub(crate) fn charge(provider: SocketAddr, effect_id: &str, cart: &Cart, watch: &Watch) -> Result<String, Fault> {
    let body = serde_json::to_string(cart)?;
    let sent = http::send(provider, Request { line: "POST /charges", key: Some(effect_id), body: &body })?;
    watch(Point::ChargeSent);
    let response = sent.receive()?;
    match response.status {
        201 => Ok(serde_json::from_slice::<Charge>(&response.body)?.id),
        503 => Err(io::Error::other("it is not available").into()),
        status => Err(Fault::Refused(status)),
    }
}

/// Returns all charges.
pub(crate) fn charges(provider: SocketAddr) -> anyhow::Result<Vec<Charge>> {
    let response = http::send(provider, Request { line: "GET /charges", key: None, body: "" })
        .and_then(http::Sent::receive)
        .context("the provider does not list its charges")?;
    serde_json::from_slice(&response.body).context("the provider's list of charges cannot be read")
}

/// Starts the provider as a child of this process.
pub(crate) fn start() -> anyhow::Result<(ChildProcess, SocketAddr)> {
    let (process, said) = ChildProcess::start(["--provider"])?;
    let first = said.lines().next().context("the provider ended before it listened")??;
    let address = first.strip_prefix(LISTENING).context("the provider does not say where it listens")?.parse()?;
    Ok((process, address))
}

#[derive(Debug, Default)]
struct Provider {
    /// The charges, by idempotency key.
    charges: Mutex<HashMap<String, Charge>>,
    answers: AtomicUsize,
}

/// Runs the provider in the child.
pub(crate) fn serve() -> anyhow::Result<()> {
    process::end_with_parent();
    let (server, address) = http::listen(0)?;
    say(&format!("{LISTENING}{address}\n"));
    let provider = Provider::default();
    http::serve(&server, WORKERS, |request| provider.answer(request))
}

impl Provider {
    fn answer(&self, mut request: tiny_http::Request) {
        let (status, body) = self.reply(&mut request).unwrap_or_else(|why| (400, format!("{why:#}\n")));
        // Never send chunks: the client of the examples cannot read them.
        let response = tiny_http::Response::from_string(body).with_chunked_threshold(usize::MAX);
        // A client that hung up or was killed will ask again with the same key.
        let _ = request.respond(response.with_status_code(status));
    }

    fn reply(&self, request: &mut tiny_http::Request) -> anyhow::Result<(u16, String)> {
        match (request.method(), request.url()) {
            (tiny_http::Method::Get, "/charges") => {
                let charges: Vec<Charge> = self.charges.lock().values().cloned().collect();
                Ok((200, serde_json::to_string(&charges)?))
            }
            (tiny_http::Method::Post, "/charges") => self.charge(request),
            _ => Ok((404, "there is only /charges\n".to_owned())),
        }
    }

    fn charge(&self, request: &mut tiny_http::Request) -> anyhow::Result<(u16, String)> {
        let key = request.headers().iter().find(|header| header.field.equiv("Idempotency-Key"));
        let key = key.context("there is no Idempotency-Key")?.value.to_string();
        let cart: Cart = serde_json::from_reader(request.as_reader())?;
        let charge = {
            let mut charges = self.charges.lock();
            let id = format!("ch_{}", charges.len() + 1);
            let new = || Charge { id, cart: cart.id.clone(), cents: cart.cents, asked: 0 };
            let charge = charges.entry(key).or_insert_with(new);
            charge.asked += 1;
            charge.clone()
        };
        if (&charge.cart, charge.cents) != (&cart.id, cart.cents) {
            return Ok((422, "this Idempotency-Key was used for another charge\n".to_owned()));
        }
        if self.answers.fetch_add(1, Ordering::Relaxed) % LOST == LOST - 1 {
            return Ok((503, "the charge was made, and its answer is lost\n".to_owned()));
        }
        Ok((201, serde_json::to_string(&charge)?))
    }
}
