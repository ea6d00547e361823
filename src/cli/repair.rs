//! `repair` puts in order what can be put in order without losing anything, `salvage` rescues what is left into a new store.

use std::path::Path;

use serde_json::json;

use super::out::{Done, Out, Stop, size};
use super::progress::Progress;
use crate::{EngineOptions, ErrorKind};

/// Reads everything first, and says what it will do. Changes nothing if that could lose anything.
pub(super) fn repair(options: &EngineOptions, store: &Path, out: &mut Out<'_>) -> Done {
    let progress = Progress::spinner(out, "reading everything");
    let engine = match options.clone().read_only(true).open(store) {
        Err(error) if error.kind() == ErrorKind::Corrupt => return refuse(&[error.to_string()], store, out),
        opened => opened.map_err(Stop::open)?,
    };
    let report = engine.verify()?;
    engine.close()?;
    drop(progress);
    if !report.problems.is_empty() {
        return refuse(&report.problems, store, out);
    }
    let (records, rows) = (report.records, report.rows);
    if !out.json {
        out.line(format_args!("All {records} records and {rows} rows can be read, so nothing will be lost."))?;
        out.line("The commits that the last owner left are applied now, and the record store is built again if that is needed.")?;
        out.flush()?;
    }
    let progress = Progress::spinner(out, "opening the store");
    let engine = options.open(store).map_err(Stop::open)?;
    let opened = *engine.opened();
    let report = engine.verify()?;
    engine.close()?;
    drop(progress);
    if out.json {
        out.json(&json!({
            "rebuilt": opened.rebuilt,
            "frames_replayed": opened.frames_replayed,
            "torn_bytes": opened.torn_bytes,
            "records": report.records,
            "rows": report.rows,
            "problems": report.problems,
        }))?;
    } else {
        let (frames, torn) = (opened.frames_replayed, size(opened.torn_bytes));
        out.line(format_args!("{frames} commits applied, {torn} of a last write that was never answered cut off"))?;
        out.line(if opened.rebuilt { "the record store was built again" } else { "the record store was in order" })?;
        out.line(format_args!(
            "{} records and {} rows read, {} problems",
            report.records,
            report.rows,
            report.problems.len()
        ))?;
    }
    if report.problems.is_empty() { Ok(()) } else { Err(Stop::Damaged) }
}

/// Says why nothing was done, and what can be done.
fn refuse(problems: &[String], store: &Path, out: &mut Out<'_>) -> Done {
    if out.json {
        out.json(&json!({ "problems": problems }))?;
        return Err(Stop::Damaged);
    }
    for problem in problems {
        out.line(problem)?;
    }
    let store = store.display();
    out.line(format_args!(
        "Some of it cannot be read, so nothing was changed. `oncekey salvage {store} --into NEW` rescues the rest."
    ))?;
    Err(Stop::Damaged)
}

/// Rescues what can be read into a new store. The exit status is 4 if that is not everything as it was.
pub(super) fn salvage(options: &EngineOptions, store: &Path, into: &Path, out: &mut Out<'_>) -> Done {
    let reading = Progress::spinner(out, "reading what is left");
    let mut writing = None;
    let report = options.salvage_with(store, into, |written, total| {
        reading.hide();
        writing.get_or_insert_with(|| Progress::items(out, total, "writing")).set(written);
    });
    drop((reading, writing));
    let report = report.map_err(Stop::open)?;
    if out.json {
        out.json(&json!({
            "records": report.records,
            "rows": report.rows,
            "in_doubt": report.in_doubt,
            "lost": report.lost,
            "more_lost": report.more_lost,
            "problems": report.problems,
            "complete": report.is_complete(),
        }))?;
    } else {
        for problem in &report.problems {
            out.line(problem)?;
        }
        out.line(format_args!("{} records and {} rows rescued into {}", report.records, report.rows, into.display()))?;
        if report.in_doubt > 0 {
            out.line(format_args!(
                "{} of them may be older than they were, or may have been removed",
                report.in_doubt
            ))?;
        }
        for lost in &report.lost {
            out.line(format_args!("lost: {lost}"))?;
        }
        if report.more_lost > 0 {
            out.line(format_args!("and {} more are lost", report.more_lost))?;
        }
        if report.is_complete() {
            out.line("nothing is lost")?;
        } else {
            out.line("Ask the systems that the operations call before you use the new store: what is lost or older runs again.")?;
        }
    }
    if report.is_complete() { Ok(()) } else { Err(Stop::Damaged) }
}
