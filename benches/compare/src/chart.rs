//! Draws the bar chart and the curves as SVG.

use std::fmt::Write as _;

use crate::compare::THREADS;
use crate::measure::Row;
use crate::systems::{Kind, Mode};
use crate::table::number;

const LABELS: f64 = 250.0;
const PANEL: f64 = 250.0;
const BAR: f64 = 150.0;
const LINE: f64 = 24.0;

const HEAD: &str = "font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#1f2937\"";
/// Systems that promise less are hatched.
const HATCH: &str = "<defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
                     patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"#f3f4f6\"/>\
                     <path d=\"M0 0V6\" stroke=\"#9ca3af\" stroke-width=\"3\"/></pattern></defs>\n";

fn fill(row: &Row, mode: Mode) -> &'static str {
    match (row.candidate.is_durable || mode == Mode::Relaxed, row.candidate.kind) {
        (false, _) => "url(#hatch)",
        (_, Kind::Ours) => "#2563eb",
        (_, Kind::Ideal) => "#d1d5db",
        (_, Kind::Embedded) => "#0d9488",
        (_, Kind::Grouped) => "#5eead4",
        (_, Kind::Server) => "#d97706",
    }
}

/// Draws one panel for each number of threads, with one bar for each system. Each panel has its own scale.
fn panels(svg: &mut String, top: f64, mode: Mode, rows: &[Row], threads: &[usize]) -> f64 {
    // Answers that do not wait for the disk are pale: they promise less.
    let (title, opacity) = match mode {
        Mode::Durable => ("Durable cycles per second: no answer before it is on disk", 1.0),
        Mode::Relaxed => ("Relaxed cycles per second: no call waits for the disk", 0.55),
    };
    writeln!(svg, "<text x=\"20\" y=\"{}\" font-size=\"16\" font-weight=\"600\">{title}</text>", top + 16.0).unwrap();
    let first = top + 56.0;
    for (line, row) in rows.iter().enumerate() {
        let weight = if row.candidate.kind == Kind::Ours { 700 } else { 400 };
        let y = first + LINE * line as f64 + 14.0;
        let (x, name) = (LABELS + 8.0, row.candidate.name);
        writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\" font-weight=\"{weight}\">{name}</text>").unwrap();
    }
    for (column, threads) in threads.iter().enumerate() {
        let left = LABELS + 20.0 + PANEL * column as f64;
        let highest = rows.iter().filter_map(|row| row.rate(column)).fold(1.0, f64::max);
        let plural = if *threads == 1 { "" } else { "s" };
        writeln!(svg, "<text x=\"{left}\" y=\"{}\" fill=\"#6b7280\">{threads} thread{plural}</text>", top + 44.0)
            .unwrap();
        for (line, row) in rows.iter().enumerate() {
            let y = first + LINE * line as f64;
            let Some(rate) = row.rate(column) else {
                let text = "<text fill=\"#9ca3af\" font-style=\"italic\"";
                writeln!(svg, "{text} x=\"{left}\" y=\"{}\">not measured</text>", y + 14.0).unwrap();
                continue;
            };
            let width = (BAR * rate / highest).max(1.0);
            let fill = fill(row, mode);
            let look = format!("height=\"18\" rx=\"2\" fill=\"{fill}\" opacity=\"{opacity}\"");
            writeln!(svg, "<rect x=\"{left}\" y=\"{y}\" width=\"{width:.1}\" {look}/>").unwrap();
            let (x, text) = (left + width + 6.0, number(rate));
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" font-size=\"12\">{text}</text>", y + 14.0).unwrap();
        }
    }
    first + LINE * rows.len() as f64 + 30.0
}

fn legend(svg: &mut String, top: f64) {
    let entries = [
        ("#2563eb", "oncekey"),
        ("#d1d5db", "ideal log"),
        ("#0d9488", "engine as it is"),
        ("#5eead4", "engine with a writer thread"),
        ("#d97706", "server"),
        ("url(#hatch)", "a power cut takes what it answered"),
    ];
    let mut x = 20.0;
    for (fill, text) in entries {
        writeln!(svg, "<rect x=\"{x}\" y=\"{top}\" width=\"14\" height=\"14\" rx=\"2\" fill=\"{fill}\"/>").unwrap();
        writeln!(svg, "<text x=\"{}\" y=\"{}\" font-size=\"12\">{text}</text>", x + 20.0, top + 11.0).unwrap();
        x += 46.0 + 6.6 * text.len() as f64;
    }
}

pub(crate) fn bars(durable: &[Row], relaxed: &[Row], relaxed_threads: &[usize]) -> String {
    let mut body = String::new();
    let middle = panels(&mut body, 50.0, Mode::Durable, durable, &THREADS);
    let bottom = panels(&mut body, middle, Mode::Relaxed, relaxed, relaxed_threads);
    legend(&mut body, 18.0);
    page(LABELS + 40.0 + 3.0 * PANEL, bottom, &(HATCH.to_owned() + &body))
}

fn page(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" {HEAD}>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// A curve over numbers of keys.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws each group of curves in its own plot, from zero to its highest value, over a logarithmic axis of live keys.
pub(crate) fn curves(groups: &[(&str, Vec<Curve>)]) -> String {
    const HEIGHT: f64 = 250.0;
    let mut body = String::new();
    for (number, (title, curves)) in groups.iter().enumerate() {
        plot(&mut body, 20.0 + HEIGHT * number as f64, title, curves);
    }
    page(860.0, 20.0 + HEIGHT * groups.len() as f64, &body)
}

fn plot(svg: &mut String, top: f64, title: &str, curves: &[Curve]) {
    const COLOURS: [&str; 4] = ["#2563eb", "#d97706", "#0d9488", "#9333ea"];
    const LEFT: f64 = 90.0;
    const WIDTH: f64 = 560.0;
    const HEIGHT: f64 = 150.0;
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let highest = points().map(|(_, y)| *y).fold(1e-9, f64::max);
    let first = points().map(|(x, _)| x.log10()).fold(f64::MAX, f64::min);
    let last = points().map(|(x, _)| x.log10()).fold(first + 1e-9, f64::max);
    let across = |x: f64| LEFT + WIDTH * (x.log10() - first) / (last - first);
    let base = top + 30.0 + HEIGHT;
    let up = |y: f64| base - HEIGHT * y / highest;
    writeln!(svg, "<text x=\"20\" y=\"{}\" font-size=\"15\" font-weight=\"600\">{title}</text>", top + 12.0).unwrap();
    for part in [0.0, 0.5, 1.0] {
        let (y, value) = (up(highest * part), highest * part);
        let text = if highest < 100.0 { format!("{value:.1}") } else { number(value) };
        writeln!(svg, "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#e5e7eb\"/>").unwrap();
        let (x, y) = (LEFT - 8.0, y + 4.0);
        writeln!(svg, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\" font-size=\"12\">{text}</text>").unwrap();
    }
    for (x, _) in curves.first().map_or(&[][..], |curve| &curve.points) {
        let (at, y, text) = (across(*x), base + 18.0, number(*x));
        writeln!(svg, "<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\" font-size=\"12\">{text}</text>").unwrap();
    }
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let line: Vec<String> = curve.points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
        let line = line.join(" ");
        writeln!(svg, "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>").unwrap();
        for (x, y) in &curve.points {
            writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", across(*x), up(*y)).unwrap();
        }
    }
    for (row, (curve, colour)) in curves.iter().zip(COLOURS).enumerate() {
        let (x, y) = (LEFT + WIDTH + 24.0, top + 40.0 + 20.0 * row as f64);
        writeln!(svg, "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>", y - 10.0).unwrap();
        writeln!(svg, "<text x=\"{}\" y=\"{y}\" font-size=\"12\">{}</text>", x + 18.0, curve.name).unwrap();
    }
}
