//! The part of criterion's API that `benches/verbs` uses, for a process that takes turns with another one.
//!
//! At each benchmark, the process writes `@` and the benchmark's name to its standard output. Then it reads lines from
//! its standard input. For a number, it makes that many calls, and writes `=` and their nanoseconds. At `next`, it goes
//! on.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
#![allow(clippy::iter_not_returning_iterator, reason = "criterion's name")]

use std::fmt::Display;
use std::hint::black_box;
use std::io::BufRead;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

#[macro_export]
macro_rules! criterion_group {
    (name = $name:ident; config = $config:expr; targets = $($target:path),+ $(,)?) => {
        fn $name() {
            let mut criterion = $config;
            $($target(&mut criterion);)+
        }
    };
}

#[macro_export]
macro_rules! criterion_main {
    ($group:path) => {
        fn main() {
            $group();
        }
    };
}

pub mod measurement {
    pub struct WallTime;
}

#[derive(Default)]
pub struct Criterion;

pub enum Throughput {
    Elements(u64),
}

pub struct BenchmarkId(String);

pub struct BenchmarkGroup<'a, M> {
    name: String,
    of: PhantomData<(&'a mut Criterion, M)>,
}

pub struct Bencher {
    calls: u64,
    took: Duration,
}

impl Criterion {
    #[must_use]
    pub fn sample_size(self, _: usize) -> Self {
        self
    }

    #[must_use]
    pub fn warm_up_time(self, _: Duration) -> Self {
        self
    }

    #[must_use]
    pub fn measurement_time(self, _: Duration) -> Self {
        self
    }

    pub fn benchmark_group(&mut self, name: impl Into<String>) -> BenchmarkGroup<'_, measurement::WallTime> {
        BenchmarkGroup { name: name.into(), of: PhantomData }
    }
}

impl BenchmarkId {
    pub fn new(name: impl Display, parameter: impl Display) -> Self {
        Self(format!("{name}/{parameter}"))
    }

    pub fn from_parameter(parameter: impl Display) -> Self {
        Self(parameter.to_string())
    }
}

impl<S: Into<String>> From<S> for BenchmarkId {
    fn from(name: S) -> Self {
        Self(name.into())
    }
}

impl<M> BenchmarkGroup<'_, M> {
    pub fn throughput(&mut self, _: Throughput) {}

    pub fn finish(self) {}

    /// # Panics
    ///
    /// If the standard input is not as described above.
    pub fn bench_function(&mut self, id: impl Into<BenchmarkId>, mut bench: impl FnMut(&mut Bencher)) {
        println!("@{}/{}", self.name, id.into().0);
        for line in std::io::stdin().lock().lines() {
            let line = line.expect("a line");
            if line == "next" {
                return;
            }
            let mut bencher = Bencher { calls: line.parse().expect("a number of calls"), took: Duration::ZERO };
            bench(&mut bencher);
            println!("={}", bencher.took.as_nanos());
        }
        panic!("the other end is gone");
    }
}

impl Bencher {
    pub fn iter<O>(&mut self, mut call: impl FnMut() -> O) {
        let began = Instant::now();
        for _ in 0..self.calls {
            black_box(call());
        }
        self.took = began.elapsed();
    }

    pub fn iter_custom(&mut self, mut run: impl FnMut(u64) -> Duration) {
        self.took = run(self.calls);
    }
}
