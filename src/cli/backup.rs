//! Copies the store.

use std::path::Path;

use serde_json::json;

use super::out::{Done, Out, Stop, size};
use super::owner;
use super::progress::Progress;
use super::store::Store;
use crate::{Error, ErrorKind};

pub(super) fn backup(store: &dyn Store, directory: &Path, out: &mut Out<'_>) -> Done {
    let progress = Progress::spinner(out, "copying the store");
    let report = store.backup(directory).map_err(|error| match error.kind() {
        ErrorKind::Io if store.is_live() => Stop::Engine(Error::new(
            ErrorKind::Io,
            format!("{error}; the process that has the store open writes the copy, with the permissions of its user"),
        )),
        _ => Stop::Engine(error),
    })?;
    drop(progress);
    // A service writes the copy as its own user.
    if !store.is_live() {
        owner::give_to_owner_of(store.path(), directory)?;
    }
    if out.json {
        return out.json(&json!({
            "directory": directory, "commit": report.commit, "rows": report.rows, "bytes": report.bytes,
            "ms": report.took.as_millis(),
            "records": {
                "Succeeded": report.succeeded, "Failed": report.failed, "Released": report.released,
                "Interrupted": report.interrupted, "InProgress": report.in_progress,
            },
        }));
    }
    out.line(format_args!("{} holds the store as it was at commit {}", directory.display(), report.commit))?;
    out.line(format_args!(
        "{} records: {} succeeded, {} failed, {} released, {} interrupted, {} in progress",
        report.records(),
        report.succeeded,
        report.failed,
        report.released,
        report.interrupted,
        report.in_progress
    ))?;
    out.line(format_args!("{} rows, {} on the disk, {:.1?}", report.rows, size(report.bytes), report.took))
}
