//! Reports the problems of a store, and what to do next. Changes nothing.

#[cfg(feature = "postgres")]
mod database;
mod directory;

use std::io;
use std::path::Path;

use console::Style;
use serde_json::json;

use super::location::Location;
use super::out::{Done, Out, Stop, quoted, size};
use super::progress::Progress;
use super::store::Store;
use crate::{
    EngineOptions, Error, ErrorKind, Status,
    admin::{LiveStore, RecordFilter},
};
use directory::Process;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Fine,
    /// The store works, and needs attention.
    Attention,
    /// The store cannot be used as it is.
    Fault,
}

/// One thing that was found.
#[derive(Debug)]
struct Finding {
    severity: Severity,
    /// A stable name of the finding, for scripts.
    name: &'static str,
    text: String,
    /// The steps to take next. Empty if nothing needs to be done.
    next: String,
    /// The command that does it, if one does.
    command: Option<String>,
}

impl Finding {
    fn fine(name: &'static str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, name, text: text.into(), next: String::new(), command: None }
    }

    fn attention(name: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { severity: Severity::Attention, next: next.into(), ..Self::fine(name, text) }
    }

    fn fault(name: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { severity: Severity::Fault, next: next.into(), ..Self::fine(name, text) }
    }

    fn command(self, command: String) -> Self {
        Self { command: Some(command), ..self }
    }
}

/// The exit status if the store works and needs attention.
const ATTENTION: u8 = 6;

const DISK: &str = "look at the disk and at the log of the kernel; then copy the directory to another disk";
const SERVICE_USER: &str = "run this as the user of the service, or as root";

/// Examines the store and prints what was found. The exit status is that of the worst finding.
pub(super) fn run(options: &EngineOptions, store: &Location, quick: bool, out: &mut Out<'_>) -> Done {
    // Suggested commands then work in any directory.
    let place = &store.absolute().unwrap_or_else(|_| store.clone());
    let mut findings = Vec::new();
    let worst = match place {
        Location::Directory(path) => examine(options, path, quick, out, &mut findings),
        #[cfg(feature = "postgres")]
        Location::Database(url) => database::examine(options, (place, url), quick, out, &mut findings),
        #[cfg(not(feature = "postgres"))]
        Location::Database(_) => return Err(Stop::Engine(super::location::missing_feature())),
    };
    let needs_attention = findings.iter().any(|found| found.severity == Severity::Attention);
    let status = if worst == 0 && needs_attention { ATTENTION } else { worst };
    if out.json {
        let findings = findings.iter().map(|found| {
            let severity = format!("{:?}", found.severity).to_lowercase();
            json!({
                "severity": severity, "what": found.name, "text": found.text, "next": found.next,
                "command": found.command,
            })
        });
        out.json(&json!({ "path": place.to_string(), "status": status, "findings": findings.collect::<Vec<_>>() }))?;
    } else {
        for found in &findings {
            print(found, out)?;
        }
        if status == 0 {
            out.line("Nothing needs to be done.")?;
        }
    }
    if status == 0 { Ok(()) } else { Err(Stop::Found(status)) }
}

fn print(found: &Finding, out: &mut Out<'_>) -> Done {
    let (word, style) = match found.severity {
        Severity::Fine => ("ok", Style::new().green()),
        Severity::Attention => ("attention", Style::new().yellow()),
        Severity::Fault => ("fault", Style::new().red()),
    };
    out.line(format_args!("{} {}", out.paint(&style, format_args!("{word:<10}")), found.text))?;
    if !found.next.is_empty() {
        out.line(format_args!("{:10} next: {}", "", found.next))?;
    }
    found.command.iter().try_for_each(|command| out.line(format_args!("{:12} {command}", "")))
}

/// Returns the exit status of the worst fault; 0 if there is none.
fn examine(options: &EngineOptions, path: &Path, quick: bool, out: &Out<'_>, findings: &mut Vec<Finding>) -> u8 {
    if let Some((status, finding)) = directory::not_a_store(path) {
        findings.push(finding);
        return status;
    }
    findings.extend(directory::file_system(path));
    findings.extend(directory::foreign_files(path));
    // List the readers before the open, which locks the store as a reader does.
    let readers = directory::readers(path);
    let progress = Progress::spinner(out, "opening the store");
    let opened = options.clone().create(false).read_only(true).open(path);
    drop(progress);
    let examined = match opened {
        Ok(engine) => {
            findings.extend(readers.iter().map(being_read));
            let examined = inside(&engine, quick, out, findings);
            // Ignore the result: the engine has changed nothing, so a failed close loses nothing.
            let _ = engine.close();
            examined
        }
        Err(error) if error.kind() == ErrorKind::StoreInUse => {
            let owner = directory::owner(path);
            let answered = LiveStore::connect(path).and_then(|live| {
                // Ask first for the report of the open: a process of another version answers no request.
                live.opened()?;
                Ok(live)
            });
            match answered {
                Ok(live) => {
                    findings
                        .push(Finding::fine("in-use", format!("in use by {}, which answers", named(owner.as_ref()))));
                    inside(&live, quick, out, findings).or_else(|error| stopped(error, findings))
                }
                Err(none) => {
                    findings.push(no_answer(owner.as_ref(), &none));
                    return 3;
                }
            }
        }
        Err(error) => Err(error),
    };
    examined.unwrap_or_else(|error| {
        let (status, finding) = refused(path, &error);
        findings.push(finding);
        status
    })
}

fn named(process: Option<&Process>) -> String {
    process.map_or_else(|| "another process".to_owned(), ToString::to_string)
}

fn being_read(reader: &Process) -> Finding {
    let text = format!("{reader} reads it; until that ends, no service can open it");
    Finding::attention("being-read", text, "wait until it ends, or end it if it hangs")
}

/// Reports that the process that has the store open ended meanwhile. Returns any other error.
fn stopped(error: Error, findings: &mut Vec<Finding>) -> crate::Result<u8> {
    let has_ended = error.io_kind().is_some() || matches!(error.kind(), ErrorKind::Closed | ErrorKind::StoreInUse);
    if !has_ended {
        return Err(error);
    }
    let text = format!("the process that has it open closed it or ended meanwhile: {error}");
    findings.push(Finding::fault("stopped", text, "run this again"));
    Ok(3)
}

fn no_answer(owner: Option<&Process>, why: &Error) -> Finding {
    if why.kind() == ErrorKind::UnsupportedFormat {
        let text = format!("in use by {}: {why}", named(owner));
        let next = "no fault of the store: use the oncekey of the version that the service is built with";
        return Finding::fault("other-version", text, next);
    }
    let text = format!("in use by {}, and its data cannot be read: {why}", named(owner));
    if why.kind() == ErrorKind::Busy {
        return Finding::fault("in-use", text, "run this again");
    }
    if why.kind() == ErrorKind::StoreInUse {
        let next = "no fault if this process is the service: it serves no socket if `EngineOptions::admin(false)` is set, or \
                    if it could not create the file SOCKET; stop it before you use other commands on the store";
        return Finding::fault("in-use", text, next);
    }
    let next = "no fault if this process is the service; if the service is stopped or hangs, end this process: the next \
                open loses nothing";
    Finding::fault("in-use", text, next)
}

/// Returns the exit status and the reason why the store could not be opened or read.
fn refused(path: &Path, error: &Error) -> (u8, Finding) {
    let text = error.to_string();
    match (error.kind(), error.io_kind()) {
        (ErrorKind::UnsupportedFormat, _) => {
            let next = "check the path; if it is right, use the oncekey of the version that the service is built with";
            (2, Finding::fault("other-format", text, next))
        }
        (ErrorKind::NotFound, _) => (2, Finding::fault("missing", text, "check the path")),
        (ErrorKind::Corrupt, _) => (4, damaged(path, text)),
        (ErrorKind::Poisoned, _) => {
            let next = "stop the service, check the disk, start the service again: no answer that was given is lost";
            (5, Finding::fault("poisoned", text, next))
        }
        (_, Some(io::ErrorKind::PermissionDenied)) => (5, Finding::fault("no-permission", text, SERVICE_USER)),
        (_, Some(io::ErrorKind::Unsupported)) => {
            let next = "move the store to a local disk; --any-file-system examines it anyway";
            (5, Finding::fault("unsafe-file-system", text, next))
        }
        _ => (5, Finding::fault("unreadable", text, DISK)),
    }
}

fn damaged(path: &Path, text: String) -> Finding {
    let mut rescued = path.as_os_str().to_owned();
    rescued.push(".rescued");
    let next = "keep a copy of the whole directory, then restore a backup, or rescue what is left into a new store:";
    let command = format!("oncekey salvage {} --into {}", quoted(path), quoted(rescued.as_ref()));
    Finding::fault("damaged", text, next).command(command)
}

/// Examines the content of a store that can be read. Returns the exit status of the worst fault.
fn inside(store: &dyn Store, quick: bool, out: &Out<'_>, findings: &mut Vec<Finding>) -> crate::Result<u8> {
    let (opened, path) = (store.opened()?, store.path());
    if !store.is_live() {
        if opened.clean {
            findings.push(Finding::fine("closed", "the last owner closed it"));
        } else {
            let commits = opened.frames_replayed;
            let torn = match opened.torn_bytes {
                0 => "nothing is lost".to_owned(),
                torn => format!(
                    "its last write, of {}, is incomplete: a caller has an answer for it only under \
                     Durability::Eventual",
                    size(torn)
                ),
            };
            let text = format!("the last owner died: {commits} commits are in the journal only; {torn}");
            let next = "start the service: its open applies what is left. Without the service this does the same:";
            let command = format!("oncekey repair {}", quoted(path));
            findings.push(Finding::attention("died", text, next).command(command));
        }
        if opened.rebuilt {
            let text = "sled's own data in the record store is damaged, but no record or row is, so nothing is lost";
            let next = "start the service: its open rebuilds the record store. Without the service this does the same:";
            let command = format!("oncekey repair {}", quoted(path));
            findings.push(Finding::attention("rebuild", text, next).command(command));
        }
    }
    if opened.open_to_others {
        let text = "other users have permissions on it: they may read stored answers, or lock it";
        let command = format!("chmod -R go= {}", quoted(path));
        findings.push(Finding::attention("open-to-others", text, "remove their permissions:").command(command));
    }
    findings.extend(interrupted(store, &quoted(path))?);
    if quick { Ok(0) } else { contents(store, out, findings, |problem| damaged(path, problem)) }
}

/// Reads everything. Returns the exit status of the worst fault.
fn contents(
    store: &dyn Store,
    out: &Out<'_>,
    findings: &mut Vec<Finding>,
    damaged: impl Fn(String) -> Finding,
) -> crate::Result<u8> {
    let progress = Progress::spinner(out, "reading everything");
    let report = store.verify()?;
    drop(progress);
    if report.problems.is_empty() {
        let (records, rows) = (report.records, report.rows);
        findings.push(Finding::fine("sound", format!("{records} records and {rows} rows, none damaged")));
        return Ok(0);
    }
    findings.extend(report.problems.into_iter().map(damaged));
    Ok(4)
}

/// Counts the interrupted records. Returns `None` if there is none. `word` names the store in a shell.
fn interrupted(store: &dyn Store, word: &str) -> crate::Result<Option<Finding>> {
    let (mut count, mut oldest) = (0_u64, None);
    for info in store.records(RecordFilter::new().status(Status::Interrupted))? {
        let at = info?.updated_at();
        count += 1;
        oldest = Some(oldest.map_or(at, |oldest| at.min(oldest)));
    }
    let Some(oldest) = oldest else { return Ok(None) };
    let since = super::show::rfc3339(oldest);
    let text =
        format!("{count} records are interrupted, the oldest since {since}: it is not known whether they happened");
    let command = format!("oncekey list {word} --status interrupted");
    let next = "find out whether each happened, then resolve it:";
    Ok(Some(Finding::attention("interrupted", text, next).command(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_answer_is_no_fault_of_the_disk() {
        let finding = no_answer(None, &Error::new(ErrorKind::UnsupportedFormat, "is oncekey 0.9"));
        assert_eq!(finding.name, "other-version");
        assert!(finding.text.ends_with("is oncekey 0.9") && finding.next.contains("version"), "{finding:?}");
        assert_eq!(no_answer(None, &Error::new(ErrorKind::Io, "why")).name, "in-use");
        let ended = Error::io("ask", Path::new("/x"), &io::ErrorKind::UnexpectedEof.into());
        for error in [ended, Error::closed()] {
            let mut findings = Vec::new();
            assert_eq!(stopped(error, &mut findings).unwrap(), 3);
            assert_eq!((findings[0].name, findings[0].next.as_str()), ("stopped", "run this again"));
        }
        let damaged = stopped(Error::new(ErrorKind::Corrupt, "why"), &mut Vec::new());
        assert_eq!(damaged.unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn each_error_has_its_finding() {
        let refused = |kind, io: Option<io::ErrorKind>| {
            let error = match io {
                None => Error::new(kind, "why"),
                Some(cause) => Error::io_as(kind, "open", Path::new("/x"), &cause.into()),
            };
            let (status, found) = refused(Path::new("/x y"), &error);
            assert!(found.severity == Severity::Fault && !found.next.is_empty(), "{found:?}");
            (status, found.name, found.command)
        };
        assert_eq!(refused(ErrorKind::Poisoned, None), (5, "poisoned", None));
        assert_eq!(refused(ErrorKind::UnsupportedFormat, None), (2, "other-format", None));
        assert_eq!(refused(ErrorKind::Io, Some(io::ErrorKind::Unsupported)), (5, "unsafe-file-system", None));
        assert_eq!(refused(ErrorKind::Io, Some(io::ErrorKind::PermissionDenied)), (5, "no-permission", None));
        assert_eq!(refused(ErrorKind::Io, None), (5, "unreadable", None));
        let salvage = Some("oncekey salvage '/x y' --into '/x y.rescued'".to_owned());
        assert_eq!(refused(ErrorKind::Corrupt, None), (4, "damaged", salvage));
    }
}
