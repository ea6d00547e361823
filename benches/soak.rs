//! Endless churn of a fixed number of live keys. Prints a line per second, and a plot at the end.
//!
//! `cargo bench --bench soak [-- KEYS [LIVE [RATE [DIRECTORY]]]]` begins KEYS keys, RATE per second, and forgets each
//! after LIVE later ones. The defaults are 600,000 keys, 50,000 live and 15,000 per second. The plot is `soak.svg` in
//! the target directory.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]
#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

mod shared;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Engine, Manager, ManagerOptions};
use shared::files::{disk, rss};
use shared::{VALUE, cycle};

const THREADS: usize = 64;

/// The measurements of one second.
struct Second {
    done: u64,
    cycles: u64,
    live: u64,
    /// The number of expired records that are not deleted yet.
    debt: u64,
    disk: f64,
    rss: f64,
    p99: Duration,
}

struct Churn {
    manager: Manager<Vec<u8>, String>,
    keys: u64,
    rate: f64,
    began: Instant,
    next: AtomicU64,
    done: AtomicU64,
    times: Mutex<Vec<Duration>>,
    ended: AtomicBool,
}

impl Churn {
    fn work(&self) {
        let value = VALUE.to_vec();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.keys {
                return;
            }
            let at = self.began + Duration::from_secs_f64(number as f64 / self.rate);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            let began = Instant::now();
            cycle(&self.manager, number, &value);
            self.times.lock().unwrap().push(began.elapsed());
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Measures once per second. `ttl` determines how many records should be live.
    fn watch(&self, engine: &Engine, ttl: Duration) -> Vec<Second> {
        println!("second    cycles/s      live      debt  disk MiB   RSS MiB       p99");
        let mut seconds: Vec<Second> = Vec::new();
        let (mut done_at, mut number) = (vec![(Instant::now(), 0)], 0);
        while !self.ended.load(Ordering::Relaxed) {
            number += 1;
            let at = self.began + Duration::from_secs(number);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            let (now, done, expired) = (Instant::now(), self.done.load(Ordering::Relaxed), engine.stats().expired);
            let old =
                done_at.iter().rev().find(|(time, _)| now.duration_since(*time) >= ttl).map_or(0, |(_, done)| *done);
            let mut times = std::mem::take(&mut *self.times.lock().unwrap());
            times.sort_unstable();
            let before = done_at.last().map_or(0, |(_, done)| *done);
            let second = Second {
                done,
                cycles: done - before,
                live: done - expired,
                debt: old.saturating_sub(expired),
                disk: disk(engine.path()),
                rss: rss(),
                p99: times.get(times.len() * 99 / 100).copied().unwrap_or_default(),
            };
            let Second { cycles, live, debt, disk, rss, p99, .. } = &second;
            println!("{number:6} {cycles:11} {live:9} {debt:9} {disk:9.1} {rss:9.1} {p99:9.1?}");
            done_at.push((now, done));
            seconds.push(second);
        }
        seconds
    }
}

/// Draws five curves, one below the other. Each starts at zero and has its own scale.
fn plot(seconds: &[Second]) -> String {
    type Curve = (&'static str, fn(&Second) -> f64);
    let curves: [Curve; 5] = [
        ("cycles a second", |second| second.cycles as f64),
        ("live records, thousands", |second| second.live as f64 / 1000.0),
        ("disk, MiB", |second| second.disk),
        ("RSS, MiB", |second| second.rss),
        ("p99 of a durable cycle, ms", |second| second.p99.as_secs_f64() * 1000.0),
    ];
    let mut svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 610\" font-family=\"sans-serif\" \
                   font-size=\"13\">\n<rect width=\"800\" height=\"610\" fill=\"white\"/>\n"
        .to_owned();
    for (index, (name, value)) in curves.into_iter().enumerate() {
        let top = 30.0 + 118.0 * index as f64;
        let highest = seconds.iter().map(value).fold(1e-9, f64::max);
        let points: Vec<String> = seconds
            .iter()
            .enumerate()
            .map(|(at, second)| {
                let x = 20.0 + 760.0 * at as f64 / (seconds.len().max(2) - 1) as f64;
                format!("{x:.1},{:.1}", top + 80.0 - 80.0 * value(second) / highest)
            })
            .collect();
        let last = seconds.last().map_or(0.0, value);
        let base = top + 80.0;
        let caption = top - 8.0;
        writeln!(svg, "<text x=\"20\" y=\"{caption}\">{name}: at most {highest:.1}, {last:.1} at the end</text>")
            .unwrap();
        writeln!(svg, "<path d=\"M20 {base}H780\" stroke=\"#bbb\" fill=\"none\"/>").unwrap();
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#2563eb\"/>", points.join(" ")).unwrap();
    }
    svg + "</svg>\n"
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (keys, live, rate) = (number(600_000), number(50_000), number(15_000));
    let base = arguments.next().map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(&base).unwrap();
    let ttl = Duration::from_secs_f64(live as f64 / rate as f64);
    let engine = Engine::open(dir.path()).unwrap();
    let churn = Churn {
        manager: engine.manager_with("soak", ManagerOptions::new().success_ttl(ttl)).unwrap(),
        keys,
        rate: rate as f64,
        began: Instant::now(),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        times: Mutex::new(Vec::new()),
        ended: AtomicBool::new(false),
    };
    println!("{keys} keys, {rate} a second, forgotten after {ttl:.1?}, {THREADS} threads, in {}", dir.path().display());
    let seconds = std::thread::scope(|scope| {
        let watch = scope.spawn(|| churn.watch(&engine, ttl));
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| churn.work())).collect();
        for worker in workers {
            worker.join().unwrap();
        }
        churn.ended.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    let svg = base.parent().unwrap_or(&base).join("soak.svg");
    std::fs::write(&svg, plot(&seconds)).unwrap();
    // The level after the first fifth, and the highest level since.
    let fifth = seconds.iter().position(|second| second.done >= keys / 5).unwrap_or(0);
    let later = &seconds[fifth..];
    let highest = |value: fn(&Second) -> f64| later.iter().map(value).fold(0.0, f64::max);
    let last = later.last().unwrap();
    println!(
        "disk: {:.1} MiB after a fifth, {:.1} at the end, {:.1} at most",
        later[0].disk,
        last.disk,
        highest(|s| s.disk)
    );
    println!(
        "RSS: {:.1} MiB after a fifth, {:.1} at the end, {:.1} at most",
        later[0].rss,
        last.rss,
        highest(|s| s.rss)
    );
    std::thread::sleep(ttl + Duration::from_secs(2));
    engine.compact_now().unwrap();
    println!("left when all have expired: {} records, {:.1} MiB", keys - engine.stats().expired, disk(engine.path()));
    println!("plot: {}", svg.display());
}
