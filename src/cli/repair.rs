//! `repair` does the work of the next open, if nothing can be lost. `salvage` rescues readable data into a new store.

use std::path::Path;

use serde_json::json;

use super::out::{Done, Out, Stop, quoted, size};
use super::owner;
use super::progress::Progress;
use crate::{EngineOptions, ErrorKind, admin::OpenReport, admin::SalvageReport};

/// Reads everything first, and prints what it will do. Changes nothing if anything cannot be read.
pub(super) fn repair(options: &EngineOptions, store: &Path, out: &mut Out<'_>) -> Done {
    let progress = Progress::spinner(out, "reading everything");
    let engine = match options.clone().read_only(true).open(store) {
        Err(error) if error.kind() == ErrorKind::Corrupt => return refuse(&[error.to_string()], store, out),
        opened => opened.map_err(Stop::open)?,
    };
    let (report, planned) = (engine.verify()?, *engine.opened());
    engine.close()?;
    drop(progress);
    if !report.problems.is_empty() {
        return refuse(&report.problems, store, out);
    }
    let (records, rows) = (report.records, report.rows);
    if !out.json {
        out.line(format_args!(
            "All {records} records and {rows} rows can be read, so nothing will be lost. This is done now:"
        ))?;
        plan(&planned, out)?;
        // Print the plan before anything is written.
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
        out.line(format_args!("{frames} commits applied, {torn} of an incomplete last write cut off"))?;
        out.line(if opened.rebuilt { "the record store was rebuilt" } else { "the record store was whole" })?;
        out.line(format_args!(
            "{} records and {} rows read, {} problems",
            report.records,
            report.rows,
            report.problems.len()
        ))?;
    }
    if report.problems.is_empty() { Ok(()) } else { Err(Stop::Damaged) }
}

/// Prints what an open will do.
fn plan(found: &OpenReport, out: &mut Out<'_>) -> Done {
    if found.frames_replayed > 0 {
        out.line(format_args!("- apply {} commits that the last owner left in the journal", found.frames_replayed))?;
    }
    if found.torn_bytes > 0 {
        out.line(format_args!("- cut off {} of an incomplete last write", size(found.torn_bytes)))?;
    }
    if found.rebuilt {
        out.line("- rebuild the record store, because sled's own data in it is damaged")?;
    }
    out.line("- open the store, read everything again, and close it")
}

/// Prints why nothing was done, and what can be done.
fn refuse(problems: &[String], store: &Path, out: &mut Out<'_>) -> Done {
    if out.json {
        out.json(&json!({ "problems": problems }))?;
        return Err(Stop::Damaged);
    }
    for problem in problems {
        out.line(problem)?;
    }
    out.line("Some of it cannot be read, so nothing was changed. Keep a copy of the whole directory.")?;
    out.line(format_args!(
        "Then restore a backup, or rescue the rest into a new store: oncekey salvage {} --into NEW",
        quoted(store)
    ))?;
    Err(Stop::Damaged)
}

/// Rescues what can be read into a new store. The exit status is 4 if anything is lost or may be older.
pub(super) fn salvage(options: &EngineOptions, store: &Path, into: &Path, out: &mut Out<'_>) -> Done {
    let reading = Progress::spinner(out, "reading what is left");
    let mut writing = None;
    let report = options.salvage_with(store, into, |written, total| {
        reading.hide();
        writing.get_or_insert_with(|| Progress::items(out, total, "writing")).set(written);
    });
    drop((reading, writing));
    let report = report.map_err(Stop::open)?;
    owner::give_to_owner_of(store, into)?;
    if out.json {
        out.json(&json!({
            "records": report.records,
            "rows": report.rows,
            "in_doubt": report.in_doubt,
            "in_doubt_keys": report.in_doubt_keys,
            "lost": report.lost,
            "more_lost": report.more_lost,
            "lost_ranges": report.lost_ranges,
            "problems": report.problems,
            "complete": report.is_complete(),
        }))?;
    } else {
        print_salvage(&report, store, into, out)?;
    }
    if report.is_complete() { Ok(()) } else { Err(Stop::Damaged) }
}

/// Prints the result of a salvage for people.
fn print_salvage(report: &SalvageReport, store: &Path, into: &Path, out: &mut Out<'_>) -> Done {
    for problem in &report.problems {
        out.line(problem)?;
    }
    out.line(format_args!("{} records and {} rows rescued into {}", report.records, report.rows, into.display()))?;
    if report.in_doubt > 0 {
        out.line(format_args!("{} of them may be older than they were, or may have been removed", report.in_doubt))?;
    }
    for key in &report.in_doubt_keys {
        out.line(format_args!("in doubt: {key}"))?;
    }
    let more = report.in_doubt - report.in_doubt_keys.len() as u64;
    if more > 0 {
        out.line(format_args!("and {more} more are in doubt"))?;
    }
    for lost in &report.lost {
        out.line(format_args!("lost: {lost}"))?;
    }
    if report.more_lost > 0 {
        out.line(format_args!("and {} more are lost", report.more_lost))?;
    }
    for range in &report.lost_ranges {
        out.line(format_args!("{range} may be lost"))?;
    }
    if report.is_complete() {
        out.line("Nothing is lost.")?;
    } else {
        out.line(
            "A request with a lost key runs its operation again, and so may one with a key whose record is older. \
             First ask the systems that the operations call.",
        )?;
    }
    out.line(format_args!(
        "To use the new store, stop the service and put {} in the place of {}.",
        into.display(),
        store.display()
    ))
}
