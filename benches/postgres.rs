//! Measures the durable cycle (begin and succeed with a value of 256 bytes) on PostgreSQL, compared with the two
//! statements that a service would write itself: `INSERT ... ON CONFLICT DO NOTHING` and `UPDATE`, with a connection
//! for each thread. They run in turns in one process, on one server. Also shows how much processor time a cycle takes
//! in this process and in those of the server.
//!
//! `cargo bench --features postgres --bench postgres [-- DIRECTORY]`. The directory must be on a real disk, and the
//! user of the server must be able to enter it. `ONCEKEY_ROUNDS=7` and `ONCEKEY_TIME=1000` (milliseconds) change the
//! rounds.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark"
)]

#[allow(dead_code, reason = "not all of the server is used here")]
#[path = "../tests/postgres/server.rs"]
mod server;
mod shared;

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Engine, Manager};
use server::{Server, Setup};
use shared::{VALUE, asked_directory, key, median};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, Statement};

const THREADS: [usize; 3] = [1, 8, 64];
const WARM_UP: Duration = Duration::from_millis(300);

/// The two statements, as the blocking client of PostgreSQL runs them: on a runtime of the thread.
struct Connected {
    runtime: Runtime,
    client: Client,
    begin: Statement,
    succeed: Statement,
}

impl Connected {
    fn new(url: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (client, begin, succeed) = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
            tokio::spawn(connection);
            let begin = "INSERT INTO naive (key) VALUES ($1) ON CONFLICT DO NOTHING";
            let begin = client.prepare(begin).await.unwrap();
            let succeed = "UPDATE naive SET outcome = $2 WHERE key = $1 AND outcome IS NULL";
            let succeed = client.prepare(succeed).await.unwrap();
            (client, begin, succeed)
        });
        Self { runtime, client, begin, succeed }
    }

    fn cycle(&self, number: u64) {
        let key = key(number).to_vec();
        let begun = self.runtime.block_on(self.client.execute(&self.begin, &[&key])).unwrap();
        let succeeded = self.runtime.block_on(self.client.execute(&self.succeed, &[&key, &VALUE.as_slice()])).unwrap();
        assert_eq!((begun, succeeded), (1, 1));
    }
}

/// Returns the number in an environment variable.
fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Returns the number of transactions that have changed something.
fn transactions(server: &Server) -> f64 {
    server.sql("SELECT txid_current()").parse().unwrap()
}

/// Returns the processor time of this process and of the server's processes, in microseconds.
fn processor_time(server: &Server) -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // In ticks of 10 ms.
    let ours: f64 = [11, 12].map(|field: usize| fields[field].parse::<f64>().unwrap() * 10_000.0).iter().sum();
    let file = std::fs::read_to_string(server.dir.join("data/postmaster.pid")).unwrap();
    let first = file.lines().next().unwrap();
    let children = Command::new("ps").args(["-o", "pid=", "--ppid", first]).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let spent = |pid: &str| {
        let schedstat = std::fs::read_to_string(Path::new("/proc").join(pid).join("schedstat")).unwrap_or_default();
        schedstat.split(' ').next().and_then(|field| field.parse::<f64>().ok()).unwrap_or_default() / 1000.0
    };
    (ours, children.split_whitespace().map(spent).sum())
}

struct Reading {
    rate: f64,
    /// The processor time of a cycle in this process, in microseconds.
    client: f64,
    /// The same in the processes of the server.
    server: f64,
    /// The average number of keys that a commit of the server has changed.
    keys: f64,
}

/// Runs cycles on some threads. `start` prepares a thread.
fn measure<C: FnMut(u64)>(
    server: &Server,
    (threads, time): (usize, Duration),
    next: &AtomicU64,
    start: impl Fn() -> C + Sync,
) -> Reading {
    let (done, together) = (AtomicU64::new(0), Barrier::new(threads + 1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut cycle = start();
                let began = Instant::now();
                while began.elapsed() < WARM_UP {
                    cycle(next.fetch_add(1, Ordering::Relaxed));
                }
                together.wait();
                let began = Instant::now();
                while began.elapsed() < time {
                    cycle(next.fetch_add(1, Ordering::Relaxed));
                    done.fetch_add(1, Ordering::Relaxed);
                }
                together.wait();
                // The sessions end after the measurement.
                together.wait();
            });
        }
        together.wait();
        let (began, before, first) = (Instant::now(), processor_time(server), transactions(server));
        together.wait();
        let (elapsed, after, last) = (began.elapsed(), processor_time(server), transactions(server));
        together.wait();
        let cycles = done.load(Ordering::Relaxed) as f64;
        Reading {
            rate: cycles / elapsed.as_secs_f64(),
            client: (after.0 - before.0) / cycles,
            server: (after.1 - before.1) / cycles,
            keys: 2.0 * cycles / (last - first),
        }
    })
}

fn main() {
    let parent = asked_directory();
    let server = Server::start_as(&Setup { parent: Some(&parent), ..Setup::default() });
    server.sql("CREATE TABLE naive (key bytea PRIMARY KEY, outcome bytea)");
    let engine = Engine::connect(&server.url()).unwrap();
    let manager: Manager<Vec<u8>, String> = engine.manager("bench").unwrap();
    let (next, value) = (AtomicU64::new(0), VALUE.to_vec());
    let (rounds, time) = (asked("ONCEKEY_ROUNDS", 7), Duration::from_millis(asked("ONCEKEY_TIME", 1_000)));
    println!("durable cycles per second, medians of {rounds} rounds of {time:?} in turns, in {}", parent.display());
    println!("processor time of a cycle in microseconds: this process + the server");
    println!(
        "| threads | two statements | processor time | oncekey | processor time | keys per commit | oncekey / two statements |"
    );
    println!("|---|---|---|---|---|---|---|");
    for threads in THREADS {
        let (mut naive, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut of_naive = || {
                let start = || {
                    let connected = Connected::new(&server.url());
                    move |number| connected.cycle(number)
                };
                naive.push(measure(&server, (threads, time), &next, start));
            };
            if round % 2 == 0 {
                of_naive();
            }
            let start = || |number| shared::cycle(&manager, number, &value);
            ours.push(measure(&server, (threads, time), &next, start));
            if round % 2 == 1 {
                of_naive();
            }
        }
        let ratios: Vec<f64> = ours.iter().zip(&naive).map(|(ours, naive)| ours.rate / naive.rate).collect();
        let of = |readings: &[Reading], field: fn(&Reading) -> f64| median(readings.iter().map(field).collect());
        let shown = |readings: &[Reading]| {
            let time = [of(readings, |reading| reading.client), of(readings, |reading| reading.server)];
            format!("{:.0} | {:.0} + {:.0}", of(readings, |reading| reading.rate), time[0], time[1])
        };
        let keys = of(&ours, |reading| reading.keys);
        println!("| {threads} | {} | {} | {keys:.1} | {:.2} |", shown(&naive), shown(&ours), median(ratios));
    }
}
