//! Resolves interrupted records, and undoes a resolution.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::describe::Describers;
use super::filter::Filter;
use super::location::Location;
use super::out::{Done, Out, Stop};
use super::outcome::{Content, Given};
use super::store::Store;
use super::typed_key::TypedKey;
use crate::{
    EngineOptions, ErrorKind, RecordInfo, Status, Value,
    admin::{RecordFilter, Resolution},
};

/// The arguments of `resolve`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(super) struct Resolve {
    /// The directory of the store, or the address of its database.
    pub(super) store: Location,
    /// The name of the manager.
    #[arg(id = "of", value_name = "MANAGER", required_unless_present = "all", requires = "key")]
    of: Option<String>,
    /// The key, as `list` prints it.
    #[arg(required_unless_present = "all")]
    key: Option<OsString>,
    #[command(flatten)]
    how: How,
    /// The format of FILE.
    #[arg(long = "as", value_name = "FORM", default_value = "stored")]
    #[arg(conflicts_with_all = ["retry", "undo", "response"])]
    form: Form,
    /// A header of the response, as "Name: value". Can be given several times.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// Resolve, or undo, only if the record still has this revision, as `get` printed it.
    #[arg(long, value_name = "NUMBER", conflicts_with = "all")]
    revision: Option<u64>,
    /// Check everything, print what would be done, and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Store an outcome although nothing shows that the service can read it.
    #[arg(long, conflicts_with_all = ["retry", "undo"])]
    unchecked: bool,
    /// Resolve all interrupted records that the filters select, after a confirmation.
    #[arg(long, conflicts_with_all = ["of", "key"])]
    all: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    filter: Filter,
}

/// The result of an interrupted operation.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct How {
    /// Nothing happened. The next request runs the operation.
    #[arg(long)]
    retry: bool,
    /// The operation succeeded with the outcome in FILE.
    #[arg(long, value_name = "FILE")]
    succeed: Option<PathBuf>,
    /// The operation failed with the failure in FILE.
    #[arg(long, value_name = "FILE")]
    fail: Option<PathBuf>,
    /// The operation succeeded with an HTTP response of this status, with the body in FILE.
    #[cfg_attr(not(feature = "http"), arg(hide = true))]
    #[arg(long, num_args = 1..=2, value_names = ["STATUS", "FILE"])]
    response: Option<Vec<OsString>>,
    /// Make a resolved record interrupted again. This is refused once a caller has been given its outcome.
    #[arg(long)]
    undo: bool,
}

/// The format of a file with an outcome.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Form {
    /// The bytes that `get --outcome` prints.
    Stored,
    /// JSON: for outcomes of any JSON, or of a type that the program knows.
    Json,
    /// Text: for outcomes that are text, and failures with a message.
    Text,
}

/// The change to make to each record.
#[derive(Debug)]
pub(super) enum Plan {
    Retry,
    Undo,
    Outcome(Given),
}

impl Resolve {
    /// Returns the change to make. Reads an outcome from its file; `-` is standard input.
    fn plan(&self) -> Done<Plan> {
        if self.how.retry {
            return Ok(Plan::Retry);
        }
        if self.how.undo {
            return Ok(Plan::Undo);
        }
        if let Some(words) = &self.how.response {
            let status = words.first().and_then(|status| status.to_str()).unwrap_or_default();
            let body = words.get(1).map(|file| read(Path::new(file))).transpose()?;
            let content = response(status, &self.header, body.unwrap_or_default())?;
            return Ok(Plan::Outcome(Given { is_failure: false, content }));
        }
        let is_failure = self.how.fail.is_some();
        let Some(file) = self.how.succeed.as_ref().or(self.how.fail.as_ref()) else { return Ok(Plan::Retry) };
        let content = self.form.content(read(file)?, &file.display())?;
        Ok(Plan::Outcome(Given { is_failure, content }))
    }
}

impl Form {
    /// Reads an outcome. `name` tells people where the bytes are from.
    pub(super) fn content(self, bytes: Vec<u8>, name: &dyn std::fmt::Display) -> Done<Content> {
        let unfit = |why: &dyn std::fmt::Display| Stop::Usage(format!("{name}: {why}"));
        Ok(match self {
            // The engine checks the size, so one byte over the limit is enough here.
            Self::Stored => Content::Stored(bytes.into()),
            Self::Json => Content::Json(serde_json::from_slice(&bytes).map_err(|cause| unfit(&cause))?),
            Self::Text => Content::Text(String::from_utf8(bytes).map_err(|cause| unfit(&cause))?),
        })
    }
}

fn read(file: &Path) -> Done<Vec<u8>> {
    let failed = |cause| Stop::Io(format!("read {}", file.display()), cause);
    let mut bytes = Vec::new();
    let limit = Value::MAX_BYTES as u64 + 1;
    if file.as_os_str() == "-" {
        io::stdin().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(failed)?;
    }
    Ok(bytes)
}

#[cfg(feature = "http")]
pub(super) fn response(status: &str, headers: &[String], body: Vec<u8>) -> Done<Content> {
    use http::{HeaderName, HeaderValue, StatusCode};

    let status = status.parse::<StatusCode>().map_err(|why| Stop::Usage(format!("status \"{status}\": {why}")))?;
    let mut response = crate::http::Response::new(status);
    for header in headers {
        let unfit = |why: &dyn std::fmt::Display| Stop::Usage(format!("header \"{}\": {why}", header.escape_debug()));
        let (name, value) = header.split_once(':').ok_or_else(|| unfit(&"it is written as \"Name: value\""))?;
        let name = name.trim().parse::<HeaderName>().map_err(|why| unfit(&why))?;
        let value = value.trim().parse::<HeaderValue>().map_err(|why| unfit(&why))?;
        response = response.header(name, value);
    }
    Ok(Content::Response(response.body(body)))
}

#[cfg(not(feature = "http"))]
pub(super) fn response(_status: &str, _headers: &[String], _body: Vec<u8>) -> Done<Content> {
    Err(Stop::Usage("this program was built without the feature `http`".to_owned()))
}

/// Runs the command. The store is closed during the question, so that a service can open it meanwhile.
pub(super) fn run(options: &EngineOptions, describers: &Describers, asked: &Resolve, out: &mut Out<'_>) -> Done {
    if asked.yes && !asked.all {
        return Err(Stop::Usage("--yes confirms --all only".to_owned()));
    }
    if !asked.header.is_empty() && asked.how.response.is_none() {
        return Err(Stop::Usage("--header is for --response only".to_owned()));
    }
    let (plan, reading) = (asked.plan()?, options.clone().read_only(true));
    if let (Some(manager), Some(key)) = (&asked.of, &asked.key) {
        if !asked.filter.is_empty() {
            return Err(Stop::Usage("filters select records only with --all".to_owned()));
        }
        let typed = TypedKey { manager: manager.clone(), key: key.clone() };
        return super::opened(if asked.dry_run { &reading } else { options }, &asked.store, out, |store, out| {
            let info = typed.record_at(store, asked.revision)?.info().clone();
            let outcome = prepare(store, describers, &plan, &info, asked.unchecked)?;
            if !asked.dry_run {
                apply(store, &plan, &info, outcome)?;
            }
            done(&plan, &info, asked.dry_run, out)
        });
    }
    let selected = super::opened(&reading, &asked.store, out, |store, _| select(store, describers, asked, &plan))?;
    if selected.infos.is_empty() {
        return if out.json { Ok(()) } else { out.line("no record matches") };
    }
    if asked.dry_run {
        return selected.change(None, &plan, out);
    }
    if !asked.yes {
        confirm(&plan, selected.infos.len(), out)?;
    }
    super::opened(options, &asked.store, out, |store, out| selected.change(Some(store), &plan, out))
}

/// The records to change.
struct Selected {
    infos: Vec<RecordInfo>,
    /// The records of one manager and schema get the same outcome.
    outcomes: BTreeMap<(String, u32), Option<Value>>,
}

impl Selected {
    /// Changes the records in the store. Without a store, prints what would change.
    fn change(&self, store: Option<&dyn Store>, plan: &Plan, out: &mut Out<'_>) -> Done {
        let (mut changed, dry_run) = (0_u64, store.is_none());
        for info in &self.infos {
            let outcome = || self.outcomes.get(&(info.manager().to_owned(), info.schema())).cloned().flatten();
            match store.map_or(Ok(()), |store| apply(store, plan, info, outcome())) {
                Ok(()) => done(plan, info, dry_run, out)?,
                Err(Stop::Engine(error)) if has_changed(error.kind()) => {
                    changed += 1;
                    if !out.json {
                        out.line(error)?;
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
        let all = self.infos.len();
        match changed {
            0 if out.json => Ok(()),
            0 => out.line(format_args!("{all} records{}", if dry_run { ", nothing was changed" } else { "" })),
            _ => Err(Stop::Nothing(format!(
                "{changed} of {all} records had changed meanwhile and were left as they are"
            ))),
        }
    }
}

fn has_changed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Changed
            | ErrorKind::NotFound
            | ErrorKind::NotInterrupted
            | ErrorKind::NotResolved
            | ErrorKind::OwnedByClaim
    )
}

/// Selects the records that match the filters and can be resolved or undone, and checks all of them.
fn select(store: &dyn Store, describers: &Describers, asked: &Resolve, plan: &Plan) -> Done<Selected> {
    let filter: RecordFilter = match plan {
        Plan::Undo => asked.filter.records()?.matching(RecordInfo::is_undoable),
        _ if asked.filter.selects_only(Status::Interrupted) => asked.filter.records()?.status(Status::Interrupted),
        _ => return Err(Stop::Usage("only interrupted records can be resolved: leave --status out".to_owned())),
    };
    let infos = store.records(filter)?.collect::<crate::Result<Vec<_>>>()?;
    let mut outcomes = BTreeMap::new();
    for info in &infos {
        if let Entry::Vacant(entry) = outcomes.entry((info.manager().to_owned(), info.schema())) {
            entry.insert(prepare(store, describers, plan, info, asked.unchecked)?);
        }
    }
    Ok(Selected { infos, outcomes })
}

/// Checks that the plan is possible for the record, and returns the outcome to be stored.
pub(super) fn prepare(
    store: &dyn Store,
    describers: &Describers,
    plan: &Plan,
    info: &RecordInfo,
    unchecked: bool,
) -> Done<Option<Value>> {
    let (manager, key, status) = (info.manager(), info.key(), info.status());
    match plan {
        Plan::Undo if info.is_undoable() => Ok(None),
        Plan::Undo => Err(Stop::Nothing(format!(
            "key {key} of {manager} is {status:?}: only a resolution can be undone, and only until a caller begins the \
             key or gets the outcome"
        ))),
        _ if status != Status::Interrupted => {
            Err(Stop::Nothing(format!("key {key} of {manager} is not interrupted, it is {status:?}")))
        }
        Plan::Retry => Ok(None),
        Plan::Outcome(given) => given.encode(store, describers, info, unchecked).map(Some),
    }
}

pub(super) fn apply(store: &dyn Store, plan: &Plan, info: &RecordInfo, outcome: Option<Value>) -> Done {
    let resolution = match (plan, outcome) {
        (Plan::Undo, _) => return Ok(store.undo_if_unchanged(info)?),
        (Plan::Outcome(Given { is_failure: false, .. }), Some(bytes)) => Resolution::Succeed(bytes),
        (Plan::Outcome(_), Some(bytes)) => Resolution::Fail(bytes),
        _ => Resolution::Retry,
    };
    // Change only the record that was checked.
    Ok(store.resolve_if_unchanged(info, resolution)?)
}

/// Returns the state after the change, and its meaning.
pub(super) fn result(plan: &Plan) -> (&'static str, &'static str) {
    match plan {
        Plan::Retry => ("released", "the next request with this key runs the operation"),
        Plan::Undo => ("interrupted", "as it was before it was resolved"),
        Plan::Outcome(Given { is_failure: false, .. }) => ("succeeded", "every request gets this outcome"),
        Plan::Outcome(_) => ("failed", "every request gets this failure"),
    }
}

fn done(plan: &Plan, info: &RecordInfo, dry_run: bool, out: &mut Out<'_>) -> Done {
    let ((word, meaning), manager, key) = (result(plan), info.manager(), info.key());
    if out.json {
        let key = key.to_string();
        return out.json(&json!({ "manager": manager, "key": key, "result": word, "dry_run": dry_run }));
    }
    let is = if dry_run { "would be" } else { "is" };
    out.line(format_args!("key {key} of {manager} {is} {word}: {meaning}"))
}

fn confirm(plan: &Plan, count: usize, out: &mut Out<'_>) -> Done {
    let (word, meaning) = result(plan);
    if out.json || !io::stdin().is_terminal() {
        return Err(Stop::Usage(format!(
            "{count} records would be {word}: look at them with --dry-run, and confirm with --yes"
        )));
    }
    out.text(&format!("{count} records will be {word}: {meaning}. Go on? [y/N] "))?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|cause| Stop::Io("read standard input".to_owned(), cause))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Stop::Nothing("nothing was changed".to_owned()))
}
