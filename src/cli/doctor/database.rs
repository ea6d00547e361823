//! Examines a store on PostgreSQL.

use super::{Finding, contents, interrupted};
use crate::cli::location::{Location, Url};
use crate::cli::out::{Out, quoted};
use crate::cli::progress::Progress;
use crate::{EngineOptions, Error, ErrorKind, admin::ServerReport};

/// Returns the exit status of the worst fault; 0 if there is none.
pub(super) fn examine(
    options: &EngineOptions,
    (place, url): (&Location, &Url),
    quick: bool,
    out: &Out<'_>,
    findings: &mut Vec<Finding>,
) -> u8 {
    let progress = Progress::spinner(out, "opening the store");
    let opened = url.open(&options.clone().read_only(true));
    drop(progress);
    let examined = opened.and_then(|engine| {
        let report = engine.server_report()?;
        findings.extend(of_server(&report));
        findings.extend(interrupted(&engine, &shell_word(place, &options.schema))?);
        if quick { Ok(0) } else { contents(&engine, out, findings, damaged) }
    });
    examined.unwrap_or_else(|error| {
        let (status, finding) = refused(place, &options.schema, &error);
        findings.push(finding);
        status
    })
}

/// Returns the store as arguments of a command.
fn shell_word(place: &Location, schema: &str) -> String {
    let place = place.quoted();
    if schema == "oncekey" { place } else { format!("{place} --schema {}", quoted(schema.as_ref())) }
}

/// Returns the findings about the server and the schema.
fn of_server(report: &ServerReport) -> Vec<Finding> {
    let ServerReport { version, schema, format, engines, orphaned, .. } = report;
    let mut findings = vec![
        Finding::fine("server", format!("PostgreSQL {version} answers, keeps sessions apart, and syncs its commits")),
        Finding::fine("schema", format!("schema {schema} has a store of format {format}, open in {engines} engines")),
    ];
    findings.push(match (report.standby_names.as_str(), report.standbys) {
        ("", 0) => Finding::fine("no-standby", "it has no standby that is connected: its disk has the only copy"),
        ("", standbys) => {
            let text =
                format!("{standbys} standbys, and no commit waits for them: a failover may lose the last answers");
            let next = "set synchronous_standby_names at the server, if a failover must lose nothing";
            Finding::attention("asynchronous-standby", text, next)
        }
        (names, _) => Finding::fine("synchronous-standby", format!("commits wait for the standby: {names}")),
    });
    if !report.missing_privileges.is_empty() {
        let text =
            format!("this role may not {}: a service with it could not work", report.missing_privileges.join(", "));
        findings.push(Finding::attention("no-privilege", text, "grant them, or use another role for the service"));
    }
    if *orphaned > 0 {
        let text = format!("{orphaned} records in progress have an owner that is gone; they are shown as interrupted");
        let next = "start the service: its open records them as interrupted, and their TTLs begin";
        findings.push(Finding::attention("dead-owners", text, next));
    }
    findings
}

fn damaged(problem: String) -> Finding {
    Finding::fault("damaged", problem, "check the server and its disk, then restore the backup of the database")
}

/// Returns the exit status and the reason why the store could not be opened or read.
fn refused(place: &Location, schema: &str, error: &Error) -> (u8, Finding) {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::NotFound => {
            let next = "check the address and --schema; the first open of a service creates the tables, or this does:";
            let of = shell_word(place, schema).replacen(&place.quoted(), "", 1);
            let command = format!("oncekey schema{of} | psql {}", place.quoted());
            (2, Finding::fault("missing", text, next).command(command))
        }
        ErrorKind::UnsupportedFormat => {
            let next = "check --schema; if it is right, use the oncekey of the version that the service is built with";
            (2, Finding::fault("other-format", text, next))
        }
        ErrorKind::Unavailable => {
            let next = "check the host, the port and the network, and whether the server runs";
            (5, Finding::fault("unreachable", text, next))
        }
        ErrorKind::InvalidOptions | ErrorKind::InvalidName => {
            (5, Finding::fault("refused", text, "change what the message names"))
        }
        ErrorKind::Corrupt => (4, damaged(text)),
        _ => (5, Finding::fault("unreadable", text, "look at the log of the server")),
    }
}
