//! A consumer of a queue that delivers at least once: four workers, each message delivered three times, each applied once.
//!
//! `cargo run --example queue_consumer`
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it shows what it does")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use oncekey::{Engine, ExecuteError, ExecuteOptions, Fingerprint, Manager};

const MESSAGES: u64 = 100;
const DELIVERIES: u64 = 3;
const WORKERS: u64 = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let engine = Engine::open(dir.path())?;
    let credits: Manager<u64> = engine.manager("credits")?;
    let (queue, deliveries) = crossbeam_channel::unbounded();
    for number in 0..MESSAGES * DELIVERIES {
        queue.send(number % MESSAGES)?;
    }
    drop(queue);

    let applied = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                for message in &deliveries {
                    consume(&credits, message, &applied);
                }
            });
        }
    });
    println!("{} deliveries, {} applied", MESSAGES * DELIVERIES, applied.load(Ordering::Relaxed));
    assert_eq!(applied.load(Ordering::Relaxed), MESSAGES);
    Ok(engine.close()?)
}

/// Acknowledges a delivery only when its outcome is durable.
fn consume(credits: &Manager<u64>, message: u64, applied: &AtomicU64) {
    let key = format!("message-{message}");
    let options = || Fingerprint::of(&message).map(|same| ExecuteOptions::new().fingerprint(same));
    let done = options().map_err(ExecuteError::Engine).and_then(|options| {
        credits.execute_with(&key, options, |_claim| {
            applied.fetch_add(1, Ordering::Relaxed);
            Ok(message * 100)
        })
    });
    match done {
        // Applied now or before: acknowledge.
        Ok(_) => {}
        // Not acknowledged: the queue delivers it again, later.
        Err(error) => eprintln!("{key} stays in the queue: {error}"),
    }
}
