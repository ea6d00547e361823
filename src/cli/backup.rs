//! A copy of the store.

use std::path::Path;

use serde_json::json;

use super::out::{Done, Out, size};
use super::progress::Progress;
use super::store::Store;
use crate::admin::BackupReport;

pub(super) fn backup(store: &dyn Store, directory: &Path, out: &mut Out<'_>) -> Done {
    let progress = Progress::spinner(out, "copying the store");
    let report = store.backup(directory)?;
    drop(progress);
    print(&report, directory, out)
}

fn print(report: &BackupReport, directory: &Path, out: &mut Out<'_>) -> Done {
    let BackupReport { commit, in_progress, interrupted, released, succeeded, failed, rows, bytes, took, .. } = *report;
    if out.json {
        return out.json(&json!({
            "directory": directory, "commit": commit, "rows": rows, "bytes": bytes, "ms": took.as_millis(),
            "records": {
                "Succeeded": succeeded, "Failed": failed, "Released": released, "Interrupted": interrupted,
                "InProgress": in_progress,
            },
        }));
    }
    out.line(format_args!("{} holds the store as it was at commit {commit}", directory.display()))?;
    out.line(format_args!(
        "{} records: {succeeded} succeeded, {failed} failed, {released} released, {interrupted} interrupted, {in_progress} in progress",
        report.records()
    ))?;
    out.line(format_args!("{rows} rows, {} on the disk, {took:.1?}", size(bytes)))
}
