//! Commands that only read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use console::Style;
use serde_json::{Value as Json, json};

use super::describe::Describers;
use super::out::{Done, Out, Stop, Table, size};
use super::outcome::{self, preview};
use super::progress::Progress;
use super::store::Store;
use super::typed_key::TypedKey;
use crate::{
    FOREVER, Record, RecordInfo, Status, Value,
    admin::{Histogram, ManagerUsage, OpenReport, RecordFilter, Stats, StatusUsage},
    clock::{Clock as _, SystemClock},
};

/// The choices of `get`.
#[derive(Debug)]
pub(super) struct Shown {
    /// The label of an effect whose id is shown too.
    pub(super) effect: Option<String>,
    pub(super) only_outcome: bool,
}

pub(super) fn paint(status: Status) -> Style {
    match status {
        Status::Succeeded => Style::new().green(),
        Status::Failed | Status::Interrupted => Style::new().red(),
        Status::Released | Status::InProgress => Style::new().yellow(),
    }
}

/// The numbers of records, and the facts of the store and its engine.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) managers: BTreeMap<String, ManagerUsage>,
    pub(super) opened: OpenReport,
    pub(super) running: Stats,
    /// False if not all records were counted.
    pub(super) is_complete: bool,
}

impl Summary {
    /// Counts the records. Calls `goes_on` before each, and ends as soon as it returns false.
    pub(super) fn of(store: &dyn Store, mut goes_on: impl FnMut() -> bool) -> Done<Self> {
        // Read before the records: if the same numbers are read again later, no record has changed since.
        let (opened, running) = (store.opened()?, store.stats()?);
        let (mut managers, mut is_complete): (BTreeMap<String, ManagerUsage>, _) = (BTreeMap::new(), true);
        for info in store.records(RecordFilter::new())? {
            let info = info?;
            if !goes_on() {
                is_complete = false;
                break;
            }
            managers.entry(info.manager().to_owned()).or_default().add(&info);
        }
        Ok(Self { managers, opened, running, is_complete })
    }

    /// Returns the facts of the store besides its records, as names and values.
    pub(super) fn facts(&self, store: &dyn Store) -> Vec<(&'static str, String)> {
        let (opened, running) = (&self.opened, &self.running);
        let mut facts = vec![("store", store.path().display().to_string())];
        if store.is_database() {
            facts.push(("opened in", format!("{:.1?}", opened.took)));
            return facts;
        }
        if store.is_live() {
            facts.push(("in use", "another process has it open".to_owned()));
        }
        let owner = if opened.clean {
            "closed it".to_owned()
        } else {
            let (frames, torn) = (opened.frames_replayed, size(opened.torn_bytes));
            format!("died; {frames} commits replayed, {torn} of a last write cut off")
        };
        facts.push(("last owner", owner));
        if opened.open_to_others {
            let to = "other users, who may read it or lock it: chmod -R go= takes their rights away";
            facts.push(("open to", to.to_owned()));
        }
        let [journal, sled] = ["journal", "sled"].map(|part| size(disk_bytes(store.path(), part)));
        facts.push(("on disk", format!("{journal} of the journal, {sled} of records")));
        for (name, durations) in [("cycles", running.cycles), ("waits", running.waits)] {
            if let (Some(half), Some(most)) = (durations.quantile(0.5), durations.quantile(0.99)) {
                let count = durations.count();
                facts.push((name, format!("{count}, half of them below {half:?}, 99 % below {most:?}")));
            }
        }
        facts.push(("opened in", format!("{:.1?}", opened.took)));
        facts.push(("interrupted", format!("{} when it was opened", opened.interrupted)));
        facts
    }
}

pub(super) fn stats(store: &dyn Store, out: &mut Out<'_>) -> Done {
    let progress = Progress::count(out, "counting records");
    let summary = Summary::of(store, || {
        progress.add(1);
        true
    })?;
    drop(progress);
    let Summary { managers, opened, running, .. } = &summary;
    if out.json {
        let managers = managers.iter().map(|(name, used)| {
            let records = used.by_status().map(|(status, used)| (format!("{status:?}"), used.records));
            let records: BTreeMap<_, _> = records.collect();
            (name, json!({ "records": records, "outcome_bytes": used.outcome_bytes() }))
        });
        return out.json(&json!({
            "path": store.path(), "live": store.is_live(), "clean": opened.clean,
            "frames_replayed": opened.frames_replayed,
            "torn_bytes": opened.torn_bytes, "open_ms": opened.took.as_millis(), "interrupted": opened.interrupted,
            "open_to_others": opened.open_to_others, "journal_segments": running.segments,
            "journal_disk_bytes": disk_bytes(store.path(), "journal"),
            "sled_disk_bytes": disk_bytes(store.path(), "sled"), "sled_sync_flag": running.sled_sync_flag,
            "cycles": quantiles(&running.cycles), "waits": quantiles(&running.waits),
            "managers": managers.collect::<BTreeMap<_, _>>(),
        }));
    }
    for (name, value) in summary.facts(store) {
        out.field(name, value)?;
    }
    out.line("")?;
    if managers.is_empty() {
        return out.line("no records");
    }
    let mut table =
        Table::new(["MANAGER", "SUCCEEDED", "FAILED", "RELEASED", "INTERRUPTED", "IN PROGRESS", "OUTCOMES"]);
    for (name, used) in managers {
        let counts = used.by_status().map(|(status, StatusUsage { records, .. })| {
            (records.to_string(), if records > 0 { paint(status) } else { Style::new() })
        });
        let mut row = vec![(name.clone(), Style::new())];
        row.extend(counts);
        row.push((size(used.outcome_bytes()), Style::new()));
        table.row(row, out)?;
    }
    table.end(out)
}

/// Returns the bytes of blocks that the files of a part of the store have, as far as they can be looked at.
fn disk_bytes(store: &Path, part: &str) -> u64 {
    let entries = fs::read_dir(store.join("store").join(part)).into_iter().flatten();
    let files = entries.filter_map(|entry| entry.ok()?.metadata().ok()).filter(Metadata::is_file);
    files.map(|file| 512 * file.blocks()).sum()
}

fn quantiles(durations: &Histogram) -> Json {
    let micros = |share| durations.quantile(share).map(|bound| u64::try_from(bound.as_micros()).unwrap_or(u64::MAX));
    json!({ "count": durations.count(), "p50_below_us": micros(0.5), "p99_below_us": micros(0.99) })
}

pub(super) fn get(
    store: &dyn Store,
    describers: &Describers,
    typed: &TypedKey,
    shown: &Shown,
    out: &mut Out<'_>,
) -> Done {
    let record = typed.record(store)?;
    let (info, key) = (record.info(), record.info().key());
    if shown.only_outcome {
        let outcome = record.outcome().ok_or_else(|| Stop::Nothing(format!("key {key} has no outcome")))?;
        let (Ok(bytes) | Err(bytes)) = outcome;
        return out.bytes(bytes);
    }
    let described = describers.describe(&record)?;
    if out.json {
        let mut value =
            serde_json::to_value(&record).map_err(|cause| Stop::Io("show record".to_owned(), cause.into()))?;
        if let Some(fields) = value.as_object_mut() {
            fields.extend(described.map(|text| ("described".to_owned(), text.into())));
            let outcome = record.outcome().and_then(|(Ok(bytes) | Err(bytes))| outcome::to_json(bytes));
            fields.extend(outcome.map(|outcome| ("decoded".to_owned(), outcome)));
            fields.extend(info.is_undoable().then(|| ("undoable".to_owned(), true.into())));
            let effect = shown.effect.as_ref().map(|label| json!({ label: info.effect_id(label) }));
            fields.extend(effect.map(|effect| ("effect_ids".to_owned(), effect)));
        }
        return out.json(&value);
    }
    for (name, value) in facts(info) {
        let style = if name == "status" { paint(info.status()) } else { Style::new() };
        out.field(name, out.paint(&style, value))?;
    }
    if let Some(label) = &shown.effect {
        out.field("effect id", format_args!("{} ({label})", info.effect_id(label)))?;
    }
    let Some((what, text)) = payload(&record, described) else { return out.field("outcome", "none") };
    // Indent all lines after the first.
    let text = text.replace('\n', &format!("\n{:13}", ""));
    out.field("outcome", format_args!("{what}: {text}"))
}

/// Returns all fields of a record but its outcome, as names and values.
pub(super) fn facts(info: &RecordInfo) -> Vec<(&'static str, String)> {
    let now = SystemClock.wall();
    let date = |at: SystemTime| format!("{} ({})", rfc3339(at), relative(at, now));
    let why = info.interruption().map_or_else(String::new, |why| format!(" ({why:?})"));
    let mut facts = vec![
        ("manager", info.manager().to_owned()),
        ("key", info.key().to_string()),
        ("status", format!("{:?}{why}", info.status())),
    ];
    if info.is_undoable() {
        let undo = "and given to no caller yet: `resolve --undo` makes it interrupted again";
        facts.push(("resolved", undo.to_owned()));
    }
    facts.push(("policy", format!("{:?}", info.policy())));
    facts.push(("attempt", format!("{}, of generation {}", info.attempt(), info.generation())));
    if let Some(claimed) = info.claimed_at() {
        facts.push(("claimed", date(claimed)));
    }
    for earlier in info.earlier_attempts() {
        let end = earlier.interruption.map_or_else(|| "released".to_owned(), |why| format!("interrupted ({why:?})"));
        let (began, changed) = (rfc3339(earlier.began_at), rfc3339(earlier.changed_at));
        facts.push(("earlier", format!("attempt {}: claimed {began}, last changed {changed}, {end}", earlier.attempt)));
    }
    if info.interruptions() > 0 {
        facts.push(("interrupted", format!("{} of all attempts before this one", info.interruptions())));
    }
    if let Some(pause) = info.retry_after() {
        let pause = Duration::from_secs(pause.as_secs().max(1));
        facts.push(("waits", format!("no caller can claim it for {}", humantime::format_duration(pause))));
    }
    facts.push(("revision", info.revision().to_string()));
    facts.push(("created", date(info.created_at())));
    facts.push(("changed", date(info.updated_at())));
    facts.push(("expires", info.expires_at().map_or_else(|| "never".to_owned(), date)));
    if let Some(fingerprint) = info.fingerprint() {
        facts.push(("fingerprint", fingerprint.to_string()));
    }
    for (name, value) in info.context().iter() {
        facts.push(("context", format!("{} = {}", name.escape_debug(), preview(value))));
    }
    facts.push(("reached", info.recovery_point().escape_debug().to_string()));
    if let Some(checkpoint) = info.checkpoint() {
        facts.push(("checkpoint", format!("{} bytes: {}", checkpoint.len(), preview(checkpoint))));
    }
    facts
}

/// Returns the size and the content of the outcome, if there is one.
pub(super) fn payload(record: &Record<Value, Value>, described: Option<String>) -> Option<(String, String)> {
    let (Ok(bytes) | Err(bytes)) = record.outcome()?;
    let what = format!("{} bytes, schema {}", bytes.len(), record.info().schema());
    Some((what, described.unwrap_or_else(|| outcome::text(bytes))))
}

pub(super) fn verify(store: &dyn Store, out: &mut Out<'_>) -> Done {
    let progress = Progress::spinner(out, "reading everything");
    let report = store.verify()?;
    drop(progress);
    if out.json {
        out.json(&json!({ "records": report.records, "rows": report.rows, "problems": report.problems }))?;
    } else {
        for problem in &report.problems {
            out.line(out.paint(&Style::new().red(), problem))?;
        }
        let problems = report.problems.len();
        let (records, rows) = (report.records, report.rows);
        out.line(format_args!("{records} records and {rows} rows read and compared with the list of the store"))?;
        out.line(format_args!("{problems} problems"))?;
    }
    if report.problems.is_empty() { Ok(()) } else { Err(Stop::Damaged) }
}

/// Formats a time to the second. Years that the format cannot show are shown in seconds since 1970.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let mut text = String::new();
    if write!(text, "{}", humantime::format_rfc3339_seconds(at)).is_err() {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(FOREVER);
        text = format!("{} s since 1970", since.as_secs());
    }
    text
}

/// Returns the time from now to `at`, such as `2h 5m ago` or `in 2h 5m`, in the two largest units.
pub(super) fn relative(at: SystemTime, now: SystemTime) -> String {
    let short = |distance: Duration| {
        let text = humantime::format_duration(Duration::from_secs(distance.as_secs())).to_string();
        text.split(' ').take(2).collect::<Vec<_>>().join(" ")
    };
    match now.duration_since(at) {
        Ok(ago) => format!("{} ago", short(ago)),
        Err(later) => format!("in {}", short(later.duration())),
    }
}
