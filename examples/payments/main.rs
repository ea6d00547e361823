//! A payment service that charges once for each `Idempotency-Key`, despite clients, threads and crashes.
//!
//! `cargo run --release --example payments` serves on loopback and prints commands to try with curl. `-- --self-test`
//! runs 64 clients against the service, kills it three times, and audits the ledger.
//!
//! Read `desk.rs` first: an application has to write that part. `reconcile.rs` is its work after a crash.

#[path = "../shared/audit.rs"]
mod audit;
mod client;
mod desk;
#[path = "../shared/http.rs"]
mod http;
mod ledger;
#[path = "../shared/process.rs"]
mod process;
mod reconcile;
mod self_test;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use oncekey::Engine;

use crate::desk::Desk;
use crate::ledger::Ledger;
use crate::process::{log, say};

/// The number of threads that serve requests. A thread that waits for the disk costs little, and the commits of many
/// threads share one sync.
const WORKERS: usize = 64;

const USAGE: &str = "\
Serves POST /payments on loopback, charging once per Idempotency-Key.

Usage: payments [--dir PATH] [--port N]
       payments --self-test

  --dir PATH   the engine's store; the ledger is PATH.ledger (default: payments.oncekey)
  --port N     the port on 127.0.0.1; 0 takes a free one (default: 8080)
  --self-test  serve 64 concurrent clients from a temporary directory, with three kills; exit status 1 if a client was
               charged twice or got two different answers
  --help       this text
";

#[derive(Debug)]
enum Command {
    Serve(Options),
    SelfTest,
    Help,
}

#[derive(Debug)]
struct Options {
    store: PathBuf,
    port: u16,
    /// True if the self-test started this process. Then a kill is likely to interrupt a charge, and the process ends
    /// with the test.
    under_test: bool,
}

fn main() -> ExitCode {
    let command = match parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(problem) => {
            log(&format!("{problem}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let ended = match command {
        Command::Help => {
            say(USAGE);
            Ok(true)
        }
        Command::Serve(options) => serve(&options).map(|()| true),
        Command::SelfTest => self_test::run(),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log(&format!("payments: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut options = Options { store: PathBuf::from("payments.oncekey"), port: 8080, under_test: false };
    let mut self_test = false;
    let mut configured = false;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--help" | "-h") => return Ok(Command::Help),
            Some("--self-test") => self_test = true,
            Some("--under-test") => options.under_test = true,
            Some("--dir") => {
                let store = args.next().map(PathBuf::from).filter(|path| path.file_name().is_some());
                options.store = store.ok_or("--dir needs the path of a directory by its name")?;
                configured = true;
            }
            Some("--port") => {
                let port = args.next().and_then(|port| port.to_str()?.parse().ok());
                options.port = port.ok_or("--port needs a number from 0 to 65535")?;
                configured = true;
            }
            _ => return Err(format!("unknown argument: {}", arg.to_string_lossy())),
        }
    }
    match (self_test, configured) {
        (true, true) => Err("--self-test chooses its own directory and port".to_owned()),
        (true, false) => Ok(Command::SelfTest),
        (false, _) => Ok(Command::Serve(options)),
    }
}

/// Serves until the process is killed, by Ctrl-C for example. No shutdown is needed: the next start finds unfinished
/// payments.
fn serve(options: &Options) -> anyhow::Result<()> {
    if options.under_test {
        process::end_with_parent();
    }
    let engine = Engine::open(&options.store)?;
    let payments = desk::payments(&engine)?;
    // Open the ledger while the engine holds its lock, so that no other process appends to it.
    let ledger = Ledger::open(&ledger_path(&options.store), options.under_test)?;
    let resolved = reconcile::resolve_interrupted(&payments, &ledger)?;

    let (server, address) = http::listen(options.port).context("choose another port with --port")?;
    say(&format!("store in {}, ledger in {}\n", options.store.display(), ledger.path().display()));
    say(&format!("{resolved}\n"));
    say(&format!("{}{address}\n{}", http::LISTENING, what_to_try(address, &options.store, ledger.path())));
    let desk = Desk::new(payments, ledger);
    http::serve(&server, WORKERS, |request| desk.answer(request))
}

/// Returns the path of the ledger. The ledger stands for another system, so it is next to the store, not inside it.
fn ledger_path(store: &Path) -> PathBuf {
    let mut name = store.file_name().unwrap_or_default().to_owned();
    name.push(".ledger");
    store.with_file_name(name)
}

fn what_to_try(address: SocketAddr, store: &Path, ledger: &Path) -> String {
    let [once, at_once, lost] = std::array::from_fn(|_| oncekey::Key::generate());
    let curl = |key| format!("curl http://{address}/payments -H 'Idempotency-Key: {key}'");
    let body = |amount, card| format!("-d '{{\"amount_cents\": {amount}, \"card\": \"{card}\"}}'");
    format!(
        "
# charged once: 201; again: the same answer, with `Idempotent-Replayed: true`
{first} -i {small}
{first} -i {small}
# another body under that key: 422
{first} -i {large}
# eight at the same time: each gets the same 201, or 409 for `ask again`, and the ledger has one charge
seq 8 | xargs -P 8 -I {{}} {second} -s -w '  %{{http_code}}\\n' {small}
grep -c {at_once} {ledger}
# the answer of the card processor is lost: 503, and then 409 until an operator resolves the payment
{third} -i {timeout}
oncekey list {store} --status interrupted
",
        first = curl(&once),
        second = curl(&at_once),
        third = curl(&lost),
        small = body(1999, "tok_visa"),
        large = body(2999, "tok_visa"),
        timeout = body(1999, "tok_timeout"),
        store = store.display(),
        ledger = ledger.display(),
    )
}
