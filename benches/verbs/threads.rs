//! Runs one call on many threads, and measures the slow calls.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// The durations of single calls, over all samples of a benchmark.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Self {
        Self(Histogram::new(3).unwrap())
    }

    /// Returns the duration of `calls` calls on `threads` threads. `call` gets a new number each time.
    pub(crate) fn run(&mut self, threads: usize, calls: u64, next: &AtomicU64, call: impl Fn(u64) + Sync) -> Duration {
        let left = AtomicU64::new(calls);
        let start = Barrier::new(threads + 1);
        let (took, histograms) = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let mut times = Histogram::<u64>::new(3).unwrap();
                        start.wait();
                        while left
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                            .is_ok()
                        {
                            let began = Instant::now();
                            call(next.fetch_add(1, Ordering::Relaxed));
                            times.record(u64::try_from(began.elapsed().as_nanos()).unwrap()).unwrap();
                        }
                        times
                    })
                })
                .collect();
            start.wait();
            let began = Instant::now();
            let histograms: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
            (began.elapsed(), histograms)
        });
        for times in histograms {
            self.0.add(times).unwrap();
        }
        took
    }

    pub(crate) fn print(&self, name: &str) {
        let at = |quantile| Duration::from_nanos(self.0.value_at_quantile(quantile));
        println!(
            "{name}: p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?} of {} calls",
            at(0.5),
            at(0.99),
            at(0.999),
            self.0.len()
        );
    }
}
