//! Moves a store between a directory and a database.

use std::path::Path;

use serde_json::json;

use super::location::{Location, Url};
use super::out::{Done, Out, Stop};
use super::owner;
use super::progress::Progress;
use crate::{EngineOptions, admin::MigrateReport};

/// Moves the store, and prints what to do next.
pub(super) fn migrate(options: &EngineOptions, from: &Location, to: &Location, out: &mut Out<'_>) -> Done {
    // The first open of a service creates the tables of a database, and so does this.
    let options = options.clone().create(true);
    let reading = Progress::spinner(out, "reading the store");
    let mut writing = None;
    let progress = |written, total| {
        reading.hide();
        writing.get_or_insert_with(|| Progress::items(out, total, "writing")).set(written);
    };
    let moved = match (from, to) {
        (Location::Directory(from), Location::Database(to)) => to_database(&options, from, to, progress),
        (Location::Database(from), Location::Directory(to)) => to_directory(&options, from, to, progress),
        _ => {
            let message = "one of them must be the directory of a store, and the other the address of a database";
            return Err(Stop::Usage(message.to_owned()));
        }
    };
    drop((reading, writing));
    let report = moved?;
    if out.json {
        return out.json(&json!({
            "records": report.records, "interrupted": report.interrupted, "rows": report.rows,
            "ms": report.took.as_millis(),
        }));
    }
    let MigrateReport { records, interrupted, rows, .. } = report;
    out.line(format_args!("{records} records and {rows} rows moved to {to}"))?;
    if interrupted > 0 {
        out.line(format_args!("{interrupted} of them were in progress, and are interrupted now"))?;
    }
    out.line(format_args!(
        "{from} is unchanged. Never open it for a service again: both have the same keys. Check the new store, then \
         start the services with it: oncekey doctor {}",
        to.quoted()
    ))
}

fn to_database(options: &EngineOptions, from: &Path, to: &Url, progress: impl FnMut(u64, u64)) -> Done<MigrateReport> {
    options.migrate_to_postgres(from, &to.for_connect(), progress).map_err(Stop::open)
}

fn to_directory(options: &EngineOptions, from: &Url, to: &Path, progress: impl FnMut(u64, u64)) -> Done<MigrateReport> {
    // The owner of the directory if it exists, or else of its parent.
    let owner = if to.exists() { Some(to) } else { to.parent() };
    let owner = owner.filter(|owner| !owner.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let report = options.migrate_from_postgres(&from.for_connect(), to, progress).map_err(Stop::open)?;
    owner::give_to_owner_of(owner, to)?;
    Ok(report)
}
