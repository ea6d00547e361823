//! Tests that apply only to stores on PostgreSQL: several engines and processes, lost sessions, and servers that cannot
//! hold a store. Most tests in `tests/it` run on both kinds of store.
#![cfg(all(feature = "postgres", unix))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod anomalies;
mod chaos;
mod cli;
mod compaction;
mod engines;
mod errors;
mod failover;
mod faults;
mod gate;
mod groups;
mod instances;
mod migrate;
mod network;
#[allow(dead_code, reason = "not all of the client is used here")]
#[path = "../it/pages.rs"]
mod pages;
mod plans;
mod proxy;
mod server;
mod stages_chaos;
mod stages_in;
mod stages_lost;
mod stages_sql;
#[allow(dead_code, reason = "not all of the helpers are used here")]
#[path = "../it/threads.rs"]
mod threads;
mod time;
mod tls;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use oncekey::sql::postgres::{Client, NoTls};
use oncekey::{Engine, EngineOptions};
use server::Server;

/// Returns the server that most tests share. Each test uses a schema of its own.
fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(""))
}

/// Returns the name of a schema that no other test uses.
fn new_schema() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn options(schema: &str) -> EngineOptions {
    Engine::options().schema(schema)
}

fn open(schema: &str) -> Engine {
    options(schema).connect(&shared().url()).unwrap()
}

/// Returns a client, as a user of the crate makes it.
fn client(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

/// Waits until the condition holds.
fn until(mut condition: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "it takes too long");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
