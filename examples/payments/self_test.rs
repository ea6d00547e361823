//! The test with real requests: many clients, many duplicates, and a server that is killed again and again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ChildStdout;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::audit::{self, Row, exactly, row};
use crate::client::{self, Request, Tries};
use crate::desk::{charged, declined};
use crate::http::{LISTENING, Response};
use crate::ledger::{self, Charge};
use crate::ledger_path;
use crate::process::{ChildProcess, say};
use crate::reconcile::Resolved;

const CLIENTS: usize = 64;
const KEYS: usize = 2_000;
const DUPLICATES: usize = 4;
const REQUESTS: usize = KEYS * DUPLICATES;
const KILLS: usize = 3;
/// The deadline of all clients, much longer than the test needs. Requests without an answer are then counted.
const PATIENCE: Duration = Duration::from_secs(50);

/// The answer to one request.
#[derive(Debug)]
struct Answered {
    payment: usize,
    response: Response,
    tries: Tries,
}

#[derive(Debug, Default)]
struct Run {
    answers: Vec<Answered>,
    kills: usize,
    resolved: Resolved,
}

/// Runs the test. Returns false if a check fails.
#[expect(clippy::disallowed_methods, reason = "the clients share a deadline, and the time it took is printed")]
pub(crate) fn run() -> anyhow::Result<bool> {
    let started = Instant::now();
    let directory = tempfile::Builder::new().prefix("payments-").tempdir()?;
    let store = directory.path().join("store");
    say(&format!(
        "{CLIENTS} clients, {KEYS} keys, {DUPLICATES} requests each, {KILLS} kills, in {}\n",
        store.display()
    ));
    let run = drive(&store, started + PATIENCE)?;
    let good = audit::show(&rows(&run, &ledger::read(&ledger_path(&store))?));
    say(&format!("took {:.1} s\n", started.elapsed().as_secs_f64()));
    if !good {
        say(&format!("FAILED; the store and the ledger are kept in {}\n", directory.path().display()));
        std::mem::forget(directory);
    }
    Ok(good)
}

/// Runs all clients, and the thread that kills the server.
fn drive(store: &Path, deadline: Instant) -> anyhow::Result<Run> {
    let mut server = ServerProcess::start(store)?;
    // `None` at the end, so that no client continues without a server.
    let address = RwLock::new(Some(server.address));
    let (order, next) = (order(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (sender, answers) = mpsc::channel();
        let (order, next, address) = (&order, &next, &address);
        for _ in 0..CLIENTS {
            let sender = sender.clone();
            scope.spawn(move || be_a_client(order, next, address, deadline, &sender));
        }
        drop(sender);
        let run = kill_and_restart(store, &mut server, address, &answers);
        *address.write() = None;
        run
    })
}

fn be_a_client(
    order: &[usize],
    next: &AtomicUsize,
    address: &RwLock<Option<SocketAddr>>,
    deadline: Instant,
    answers: &mpsc::Sender<Answered>,
) {
    while let Some(&payment) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
        let answer = client::ask_until_final(|| *address.read(), &request(payment), deadline);
        let sent = answer.map(|(response, tries)| answers.send(Answered { payment, response, tries }));
        if !matches!(sent, Some(Ok(()))) {
            return;
        }
    }
}

/// Returns the numbers of the payments in the order of their requests. Two duplicates are sent at once. The other two
/// follow after an eighth and after three eighths of all requests, so there are replays before and after every kill.
fn order() -> Vec<usize> {
    let places = |payment| [0, 1, REQUESTS / 8, REQUESTS * 3 / 8].map(|later| (payment * DUPLICATES + later, payment));
    let mut order: Vec<(usize, usize)> = (0..KEYS).flat_map(places).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, payment)| payment).collect()
}

fn is_declined(payment: usize) -> bool {
    payment % 10 == 7
}

fn amount(payment: usize) -> u64 {
    100 + payment as u64
}

fn request(payment: usize) -> Request {
    let (amount, card) = (amount(payment), if is_declined(payment) { "tok_declined" } else { "tok_visa" });
    let body = format!("{{\"amount_cents\": {amount}, \"card\": \"{card}\"}}");
    Request { key: format!("self-test-{payment:04}"), body }
}

fn kill_and_restart(
    store: &Path,
    server: &mut ServerProcess,
    address: &RwLock<Option<SocketAddr>>,
    answers: &mpsc::Receiver<Answered>,
) -> anyhow::Result<Run> {
    let mut run = Run::default();
    for answer in answers {
        run.answers.push(answer);
        if run.kills < KILLS && run.answers.len() == REQUESTS / (KILLS + 1) * (run.kills + 1) {
            server.process.kill()?;
            run.kills += 1;
            *server = ServerProcess::start(store)?;
            run.resolved.charged += server.resolved.charged;
            run.resolved.not_charged += server.resolved.not_charged;
            *address.write() = Some(server.address);
        }
    }
    Ok(run)
}

/// The server: this program in a child process.
#[derive(Debug)]
struct ServerProcess {
    process: ChildProcess,
    address: SocketAddr,
    resolved: Resolved,
}

impl ServerProcess {
    /// Starts the server on a new port each time, because the old port may be in use again, even by a client's
    /// connection.
    fn start(store: &Path) -> anyhow::Result<Self> {
        let args = ["--under-test", "--port", "0", "--dir"].map(OsStr::new);
        let (process, said) = ChildProcess::start(args.into_iter().chain([store.as_os_str()]))?;
        let (address, resolved) = wait_until_it_listens(said)?;
        Ok(Self { process, address, resolved })
    }
}

fn wait_until_it_listens(said: BufReader<ChildStdout>) -> anyhow::Result<(SocketAddr, Resolved)> {
    let mut resolved = Resolved::default();
    for line in said.lines() {
        let line = line?;
        if let Some(said) = Resolved::parse(&line) {
            resolved = said;
        } else if let Some(address) = line.strip_prefix(LISTENING) {
            return Ok((address.parse()?, resolved));
        }
    }
    anyhow::bail!("the server ended before it listened")
}

/// Compares the answers that clients got with the charges.
fn rows(run: &Run, charges: &[Charge]) -> Vec<Row> {
    let tries = |count: fn(&Tries) -> usize| run.answers.iter().map(|answer| count(&answer.tries)).sum();
    let replays = run.answers.iter().filter(|answer| is_replay(&answer.response)).count();
    let payments = by_payment(run, charges);
    let count = |is: fn(&Audited<'_>) -> bool| payments.iter().filter(|payment| is(payment)).count();
    let declined = (0..KEYS).filter(|&payment| is_declined(payment)).count();
    vec![
        row("requests", REQUESTS),
        row("  sent, with retries", tries(|tries| tries.sent)),
        row("  connections refused or broken", tries(|tries| tries.broken)),
        row("  answered 409 or 503: ask again", tries(|tries| tries.not_yet)),
        exactly("answers", run.answers.len(), REQUESTS),
        row("  replays", replays),
        exactly("kills", run.kills, KILLS),
        row("interrupted", run.resolved.charged + run.resolved.not_charged),
        row("  resolved as charged", run.resolved.charged),
        row("  resolved to be retried", run.resolved.not_charged),
        exactly("charges", charges.len(), KEYS - declined),
        exactly("double charges", count(|p| p.charges.len() > 1), 0),
        exactly("answers that differ between retries", count(has_different_answers), 0),
        exactly("keys answered as new more than once", count(is_new_twice), 0),
        exactly("keys without a charge", count(|p| !p.declined && p.charges.is_empty()), 0),
        exactly("declined and charged", count(|p| p.declined && !p.charges.is_empty()), 0),
        exactly("answers that do not fit the charge", count(has_wrong_answer), 0),
    ]
}

/// One key, as seen by the ledger and by its clients.
#[derive(Debug, Default)]
struct Audited<'a> {
    declined: bool,
    charges: Vec<&'a Charge>,
    answers: Vec<&'a Response>,
}

fn has_different_answers(payment: &Audited<'_>) -> bool {
    let content = |response: &Response| (response.status, response.body.clone());
    payment.answers.windows(2).any(|two| matches!(two, [a, b] if content(a) != content(b)))
}

fn is_replay(response: &Response) -> bool {
    response.header("Idempotent-Replayed") == Some("true")
}

fn is_new_twice(payment: &Audited<'_>) -> bool {
    payment.answers.iter().filter(|answer| !is_replay(answer)).count() > 1
}

fn has_wrong_answer(payment: &Audited<'_>) -> bool {
    let right = match payment.charges.first() {
        Some(charge) => charged(charge),
        None => declined(),
    };
    payment
        .answers
        .iter()
        .any(|answer| (answer.status, answer.body.as_slice()) != (right.status().as_u16(), right.body_bytes()))
}

fn by_payment<'a>(run: &'a Run, charges: &'a [Charge]) -> Vec<Audited<'a>> {
    let mut of_key: HashMap<&str, Vec<&Charge>> = HashMap::new();
    for charge in charges {
        // A record shows the key as the user, then the key that the client sent.
        of_key.entry(charge.key.rsplit('/').next().unwrap_or_default()).or_default().push(charge);
    }
    let mut payments: Vec<Audited<'_>> = (0..KEYS)
        .map(|payment| {
            let charges = of_key.remove(request(payment).key.as_str()).unwrap_or_default();
            Audited { declined: is_declined(payment), charges, answers: Vec::new() }
        })
        .collect();
    for answered in &run.answers {
        if let Some(payment) = payments.get_mut(answered.payment) {
            payment.answers.push(&answered.response);
        }
    }
    payments
}
