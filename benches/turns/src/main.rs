//! Runs the benchmarks of two programs in turns, and prints how the times of the second compare with those of the
//! first.
//!
//! `turns BEFORE AFTER STARTS [PREFIX ...]`. Each program is a build of `benches/verbs` with the library of this crate in
//! place of criterion. Only benchmarks whose name begins with one of the prefixes run, or all if there is none. Needs
//! Linux, for `/proc`.
//!
//! Both programs are started `STARTS` times, an even number of 6 or more, because the place of code and data in memory
//! changes the time of a call by up to a tenth from start to start. In each start, each benchmark runs for at least
//! 1.5 s, both programs together, and in at least six pairs of turns. A turn takes about 25 ms, or one call if that is
//! longer. Two pairs are: before, after, after, before. In every second start, the two programs change places. The time
//! ratio of a start is the median over its pairs.
//!
//! It prints the median over the starts, with two bounds: in at least 95 of 100 such measurements, the median of all
//! possible starts lies between them. So up to one pair of bounds in twenty misses it by chance.
//!
//! Threads in the background may work during a turn of the other program, and then the time misses their work. The ratio
//! of the processor times includes it: it compares what the two processes used during all turns of a benchmark, with the
//! preparation.

#![allow(
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// About the length of one turn.
const TURN: Duration = Duration::from_millis(25);
/// The least time of a benchmark in one start, both programs together.
const EACH: Duration = Duration::from_millis(1_500);
const FEWEST_PAIRS: usize = 6;
/// With fewer, no bounds hold in 95 of 100 measurements.
const FEWEST_STARTS: usize = 6;

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(path: &str) -> Self {
        let child = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|cause| panic!("{path}: {cause}"));
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    /// Returns the rest of the next line that begins with `first`, or `None` at the end. Skips other lines, which the
    /// benchmarks print for people.
    fn read(&mut self, first: char) -> Option<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("a line") > 0 {
            if let Some(rest) = line.strip_prefix(first) {
                return Some(rest.trim_end().to_owned());
            }
            line.clear();
        }
        None
    }

    fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the program reads");
    }

    /// Goes on to the next benchmark with one of the prefixes, and returns its name.
    fn next(&mut self, prefixes: &[String]) -> Option<String> {
        loop {
            let name = self.read('@')?;
            if prefixes.is_empty() || prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                return Some(name);
            }
            self.send("next");
        }
    }

    /// Returns the time of one of `calls` calls, in nanoseconds.
    fn run(&mut self, calls: u64) -> f64 {
        self.send(&calls.to_string());
        let nanos: f64 = self.read('=').expect("a time").parse().expect("a number");
        nanos / calls as f64
    }

    /// Returns the processor time of all threads since the start, in ticks of the kernel.
    fn processor_time(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the state of a process");
        // The name in parentheses may have spaces. Behind it, counted from 0, the fields 11 and 12 are the user and
        // system times.
        let (_, fields) = stat.rsplit_once(')').expect("the name of a process");
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number")).sum()
    }
}

/// The ratios after / before of a benchmark, one of each start.
#[derive(Default)]
struct Ratios {
    time: Vec<f64>,
    processor_time: Vec<f64>,
}

/// Returns the number of calls that take about one turn, including the preparation.
fn calls_of_a_turn(program: &mut Program) -> u64 {
    // The first call may be much slower than the others.
    program.run(1);
    let mut calls = 1;
    loop {
        let began = Instant::now();
        program.run(calls);
        let turns = began.elapsed().as_secs_f64() / TURN.as_secs_f64();
        if turns >= 0.7 {
            return calls;
        }
        calls = (calls as f64 * (1.0 / turns).clamp(1.1, 10.0)).ceil() as u64;
    }
}

/// Adds the ratios of one start. `swapped`: AFTER has the first turn.
fn compare(programs: &mut [Program; 2], swapped: bool, ratios: &mut Ratios) {
    let [leader, follower] = if swapped { [1, 0] } else { [0, 1] };
    let calls = calls_of_a_turn(&mut programs[leader]);
    programs[follower].run(calls);
    let at_start = programs.each_ref().map(Program::processor_time);
    let (began, mut pairs) = (Instant::now(), Vec::new());
    while began.elapsed() < EACH || pairs.len() < FEWEST_PAIRS {
        for order in [[leader, follower], [follower, leader]] {
            let mut times = [0.0; 2];
            for place in order {
                times[place] = programs[place].run(calls);
            }
            pairs.push(times[1] / times[0]);
        }
    }
    ratios.time.push(median(&mut pairs));
    let at_end = programs.each_ref().map(Program::processor_time);
    ratios.processor_time.push((at_end[1] - at_start[1]) / (at_end[0] - at_start[0]));
}

/// Starts both programs, runs their benchmarks once, and adds the ratios by the name of the benchmark.
fn start([before, after]: [&str; 2], prefixes: &[String], swapped: bool, ratios: &mut Vec<(String, Ratios)>) {
    let mut programs = if swapped { [after, before] } else { [before, after] }.map(Program::start);
    if swapped {
        programs.reverse();
    }
    loop {
        let [name, other] = programs.each_mut().map(|program| program.next(prefixes));
        assert_eq!(name, other, "both programs have the same benchmarks");
        let Some(name) = name else { break };
        let place = ratios.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            ratios.push((name, Ratios::default()));
            ratios.len() - 1
        });
        let (name, ratios) = &mut ratios[place];
        compare(&mut programs, swapped, ratios);
        eprintln!("{name} {:.3}", ratios.time.last().expect("it was measured"));
        for program in &mut programs {
            program.send("next");
        }
    }
    for (program, path) in programs.iter_mut().zip([before, after]) {
        assert!(program.child.wait().expect("its status").success(), "{path} failed");
    }
}

/// Sorts the values and returns their median.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// Returns the places, from 0, of the 95 % bounds of the median among `count` sorted values.
fn bounds(count: usize) -> (usize, usize) {
    // The number of values below the median of all possible ones is binomial, with a probability of one half.
    let (mut place, mut term, mut sum) = (0, 0.5_f64.powf(count as f64), 0.0);
    loop {
        sum += term;
        if sum > 0.025 {
            let low = place.max(1) - 1;
            return (low, count - 1 - low);
        }
        term *= (count - place) as f64 / (place + 1) as f64;
        place += 1;
    }
}

/// Returns two cells of a table.
fn cells(values: &mut [f64]) -> String {
    let (median, (low, high)) = (median(values), bounds(values.len()));
    format!("{median:.3} | {:.3} to {:.3}", values[low], values[high])
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [before, after, starts, prefixes @ ..] = &arguments[..] else {
        panic!("turns BEFORE AFTER STARTS [PREFIX ...]")
    };
    let starts: usize = starts.parse().expect("a number of starts");
    assert!(starts >= FEWEST_STARTS && starts % 2 == 0, "STARTS is an even number, {FEWEST_STARTS} or more");
    let mut ratios = Vec::new();
    for number in 1..=starts {
        eprintln!("start {number} of {starts}");
        start([before, after], prefixes, number % 2 == 0, &mut ratios);
        assert!(!ratios.is_empty(), "no benchmark has such a name, or the programs use another version of criterion");
    }
    println!("| benchmark, {starts} starts | time, after / before | 95 % | processor time, after / before | 95 % |");
    println!("|---|---|---|---|---|");
    for (name, mut ratios) in ratios {
        println!("| `{name}` | {} | {} |", cells(&mut ratios.time), cells(&mut ratios.processor_time));
    }
}

#[cfg(test)]
mod tests {
    use super::{bounds, median};

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert!((median(&mut [4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!((median(&mut [5.0, 1.0, 3.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_bounds_are_those_of_the_binomial_distribution() {
        // The coverages are 96.9, 99.2, 96.1, 95.7 and 96.2 %. The next places inside cover less than 95 %.
        for (count, places) in [(6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (30, (9, 20)), (40, (13, 26))] {
            assert_eq!(bounds(count), places, "{count}");
        }
    }
}
