//! Standard output of the commands, and the reasons why a command ends early.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use console::Style;
use serde::Serialize;

use crate::{Error, ErrorKind};

pub(super) type Done<T = ()> = Result<T, Stop>;

/// The reason why a command ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The record does not exist, or is not in a state that allows the command.
    Nothing(String),
    /// The command line is wrong.
    Usage(String),
    /// The directory holds something else, or a store of another version.
    NoStore(Error),
    /// The store is damaged. The output says how.
    Damaged,
    /// The output says what was found. The exit status says how bad it is.
    Found(u8),
    /// A process has the store open, and could not be asked.
    NoAnswer(Error),
    Engine(Error),
    /// An I/O error, with the action that failed.
    Io(String, io::Error),
    /// The reader has closed the pipe, as `head` does. This is not an error.
    ClosedPipe,
}

impl Stop {
    /// Converts the error of an open. A missing store gets another status than a missing record.
    pub(super) fn open(error: Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Usage(error.to_string()),
            ErrorKind::UnsupportedFormat => Self::NoStore(error),
            _ => Self::Engine(error),
        }
    }

    /// Returns the exit status. The help text in [`super::args`] documents it.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Nothing(_) => 1,
            Self::Usage(_) | Self::NoStore(_) => 2,
            Self::NoAnswer(_) => 3,
            Self::Damaged => 4,
            Self::Found(status) => *status,
            Self::Io(..) => 5,
            Self::Engine(error) => match error.kind() {
                ErrorKind::NotFound
                | ErrorKind::NotInterrupted
                | ErrorKind::NotResolved
                | ErrorKind::NotInProgress
                | ErrorKind::Changed
                | ErrorKind::OwnedByClaim => 1,
                ErrorKind::InvalidKey | ErrorKind::InvalidName | ErrorKind::InvalidOptions => 2,
                ErrorKind::StoreInUse => 3,
                ErrorKind::Corrupt => 4,
                _ => 5,
            },
        }
    }

    pub(super) fn message(&self) -> Option<String> {
        match self {
            Self::ClosedPipe | Self::Damaged | Self::Found(_) => None,
            Self::Nothing(message) | Self::Usage(message) => Some(message.clone()),
            Self::Io(doing, cause) => Some(format!("{doing}: {cause}")),
            Self::NoAnswer(error) => Some(format!(
                "the store is in use, and its owner does not answer: {error}; nothing was changed; \
                 `oncekey doctor` names the process"
            )),
            Self::Engine(error) if error.kind() == ErrorKind::StoreInUse => Some(format!(
                "{error}, and this command cannot ask its owner; stop the service, or wait until the command ends that \
                 reads the store; nothing was changed; `oncekey doctor` names the process"
            )),
            Self::NoStore(error) => Some(doctor(error)),
            Self::Engine(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnsupportedFormat) => {
                Some(doctor(error))
            }
            Self::Engine(error) => Some(error.to_string()),
        }
    }
}

fn doctor(error: &Error) -> String {
    format!("{error}; `oncekey doctor` says what to do next")
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// The standard output of a command.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Out<'a> {
    to: &'a mut dyn Write,
    colour: bool,
    /// True if standard error is a terminal.
    pub(super) progress: bool,
    /// True if the output is JSON, for machines.
    pub(super) json: bool,
    /// True if the process does nothing but this command.
    pub(super) is_alone: bool,
}

impl<'a> Out<'a> {
    pub(super) fn new(to: &'a mut dyn Write, colour: bool, progress: bool) -> Self {
        Self { to, colour, progress, json: false, is_alone: false }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Done {
        self.to.write_all(bytes).map_err(failed)
    }

    pub(super) fn text(&mut self, text: &str) -> Done {
        self.bytes(text.as_bytes())
    }

    pub(super) fn line(&mut self, line: impl fmt::Display) -> Done {
        writeln!(self.to, "{line}").map_err(failed)
    }

    /// Prints one JSON value on one line.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Done {
        serde_json::to_writer(&mut *self.to, value).map_err(|cause| failed(cause.into()))?;
        self.bytes(b"\n")
    }

    pub(super) fn flush(&mut self) -> Done {
        self.to.flush().map_err(failed)
    }

    pub(super) fn paint(&self, style: &Style, text: impl fmt::Display) -> String {
        style.clone().force_styling(self.colour).apply_to(text).to_string()
    }

    /// Prints a name and its value.
    pub(super) fn field(&mut self, name: &str, value: impl fmt::Display) -> Done {
        let name = self.paint(&Style::new().bold(), format_args!("{name:<12}"));
        self.line(format_args!("{name} {value}"))
    }
}

fn failed(cause: io::Error) -> Stop {
    if cause.kind() == io::ErrorKind::BrokenPipe {
        return Stop::ClosedPipe;
    }
    Stop::Io("write standard output".to_owned(), cause)
}

/// A table that is printed row by row. The first rows determine the column widths.
pub(super) struct Table {
    head: Vec<&'static str>,
    /// Rows that are not printed yet.
    rows: Vec<Vec<(String, Style)>>,
    widths: Option<Vec<usize>>,
}

/// The number of rows that determine the widths.
const FIRST_ROWS: usize = 200;

impl Table {
    pub(super) fn new(head: impl IntoIterator<Item = &'static str>) -> Self {
        Self { head: head.into_iter().collect(), rows: Vec::new(), widths: None }
    }

    pub(super) fn row(&mut self, row: Vec<(String, Style)>, out: &mut Out<'_>) -> Done {
        self.rows.push(row);
        if self.widths.is_some() || self.rows.len() >= FIRST_ROWS { self.write(out) } else { Ok(()) }
    }

    pub(super) fn end(mut self, out: &mut Out<'_>) -> Done {
        self.write(out)
    }

    fn write(&mut self, out: &mut Out<'_>) -> Done {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        if self.widths.is_none() {
            let width = |column: usize, head: &str| {
                let cells = rows.iter().filter_map(|row| row.get(column)).map(|(cell, _)| cell.chars().count());
                cells.fold(head.len(), usize::max)
            };
            let widths = self.head.iter().enumerate().map(|(column, head)| width(column, head)).collect();
            self.widths = Some(widths);
            let head = self.head.iter().map(|head| ((*head).to_owned(), Style::new().bold())).collect();
            self.write_row(head, out)?;
        }
        rows.into_iter().try_for_each(|row| self.write_row(row, out))
    }

    fn write_row(&self, row: Vec<(String, Style)>, out: &mut Out<'_>) -> Done {
        let last = row.len().saturating_sub(1);
        let mut line = String::new();
        for (column, (cell, style)) in row.into_iter().enumerate() {
            let width = self.widths.as_ref().and_then(|widths| widths.get(column)).copied().unwrap_or_default();
            // Compute the width before painting: escape codes have no width.
            let padding = if column == last { 0 } else { width.saturating_sub(cell.chars().count()) + 2 };
            line.push_str(&out.paint(&style, cell));
            line.extend(std::iter::repeat_n(' ', padding));
        }
        out.line(line)
    }
}

/// Returns bytes for JSON, as an export has them: text if they are text that can be read, else `{"base64": ...}`.
pub(super) fn bytes(bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes).ok().filter(|text| is_readable(text)) {
        Some(text) => text.into(),
        None => serde_json::json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

/// Returns true if the text has no control characters but those of lines and tables.
pub(super) fn is_readable(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

/// Formats a path as a word of a shell.
pub(super) fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if path.chars().all(is_plain) && !path.is_empty() { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// Formats a size in binary units.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
