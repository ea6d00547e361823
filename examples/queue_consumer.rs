//! A consumer of a queue that delivers at least once. Four workers get each message three times and apply it once.
//!
//! `cargo run --example queue_consumer`
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the program prints its steps")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use oncekey::{CallOptions, Engine, Fingerprint, Manager};

const MESSAGES: u64 = 1000;
const DELIVERIES: u64 = 3;
const WORKERS: u64 = 4;
/// The largest number of messages in one poll.
const POLL: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let engine = Engine::open(dir.path())?;
    let credits: Manager<u64> = engine.manager("credits")?;
    let applied = AtomicU64::new(0);
    thread::scope(|scope| {
        for partition in 0..WORKERS {
            let (credits, applied) = (&credits, &applied);
            scope.spawn(move || {
                let messages = (0..MESSAGES * DELIVERIES).map(|number| number % MESSAGES);
                let queue: Vec<u64> = messages.filter(|message| message % WORKERS == partition).collect();
                for poll in queue.chunks(POLL) {
                    consume(credits, poll, applied);
                }
            });
        }
    });
    let (applied, commits) = (applied.load(Ordering::Relaxed), engine.stats().commits);
    println!("{} deliveries, {applied} applied, {commits} commits", MESSAGES * DELIVERIES);
    assert_eq!(applied, MESSAGES);
    Ok(engine.close()?)
}

/// Applies the messages of a poll. One commit begins all new messages, and one commit stores their outcomes.
fn consume(credits: &Manager<u64>, poll: &[u64], applied: &AtomicU64) {
    let items = poll.iter().map(|message| {
        let same = Fingerprint::builder().part(message.to_be_bytes()).finish();
        (format!("message-{message}"), CallOptions::new().fingerprint(same), message)
    });
    let answers = credits.execute_many_with(items, |_claim, message| {
        applied.fetch_add(1, Ordering::Relaxed);
        Ok(message * 100)
    });
    for (message, answer) in poll.iter().zip(answers) {
        match answer {
            // Applied now or earlier, and durable: acknowledge the message.
            Ok(_) => {}
            // Do not acknowledge the message: the queue delivers it again later.
            Err(error) => eprintln!("message {message} stays in the queue: {error}"),
        }
    }
}
