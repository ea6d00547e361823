//! The process that is killed. It opens the store, reads carts from its standard input and checks them out.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use oncekey::{Engine, ExecuteError, stage::DriveError};
use serde::{Deserialize, Serialize};

use crate::books::Books;
use crate::point::{Point, Watch};
use crate::process::{self, log, say};
use crate::shop::{Cart, Fault, NotOrdered, Order, Shop};

/// The number of carts that are checked out at the same time.
pub(crate) const THREADS: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) store: PathBuf,
    pub(crate) provider: SocketAddr,
    pub(crate) stop: Option<Stop>,
}

/// The place at which the worker stops: the `nth` time that it reaches `point`. There it reports, and waits to be
/// killed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Stop {
    pub(crate) point: Point,
    pub(crate) nth: usize,
}

/// A line of the worker's input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) number: usize,
    pub(crate) cart: Cart,
}

pub(crate) type Answer = Result<Order, NotOrdered>;

/// A line of the worker's output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Opening,
    Opened,
    Stopped(Point),
    Answered {
        number: usize,
        answer: Answer,
        replayed: bool,
    },
    /// The provider did not answer. Nothing is stored; the request must be sent again.
    NotYet {
        number: usize,
    },
}

/// Runs until the input ends.
pub(crate) fn run(job: &Job) -> anyhow::Result<()> {
    report(&Report::Opening);
    let engine = Engine::open(&job.store)?;
    let wrong = Books::read(&engine)?.disagreements();
    anyhow::ensure!(wrong.is_empty(), "the books are wrong:\n{}", wrong.join("\n"));
    report(&Report::Opened);
    let shop = Shop::new(&engine, job.provider, watch(job.stop))?;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                if let Err(why) = take_carts(&shop) {
                    log(&format!("a worker fails: {why:#}"));
                    std::process::exit(1);
                }
            });
        }
    });
    Ok(engine.close()?)
}

fn take_carts(shop: &Shop) -> anyhow::Result<()> {
    let mut line = String::new();
    while io::stdin().read_line(&mut line)? > 0 {
        let Request { number, cart } = serde_json::from_str(&line)?;
        let answered = |answer, replayed| Report::Answered { number, answer, replayed };
        report(&match shop.check_out(&cart) {
            Ok(done) => answered(Ok(done.value().clone()), done.replayed()),
            Err(DriveError::Execute(ExecuteError::Failed { error, replayed, .. })) => answered(Err(error), replayed),
            Err(DriveError::Stage { error: Fault::Provider(_), .. }) => Report::NotYet { number },
            Err(other) => return Err(other.into()),
        });
        line.clear();
    }
    Ok(())
}

fn watch(stop: Option<Stop>) -> Watch {
    let passed = AtomicUsize::new(0);
    Box::new(move |point| {
        let Some(stop) = stop.filter(|stop| stop.point == point) else { return };
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == stop.nth {
            report(&Report::Stopped(point));
            process::wait_for_the_end();
        }
    })
}

fn report(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        say(&format!("{line}\n"));
    }
}
