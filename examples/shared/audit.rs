//! The counts of a self-test, and their expected values.

use std::fmt;

use crate::process::say;

/// A line of the table that a self-test prints.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    count: usize,
    must_be: Option<usize>,
}

/// Creates a line without an expected value.
pub(crate) fn row(what: impl Into<String>, count: usize) -> Row {
    Row { what: what.into(), count, must_be: None }
}

/// Creates a line that must have this count.
pub(crate) fn exactly(what: impl Into<String>, count: usize, must_be: usize) -> Row {
    Row { what: what.into(), count, must_be: Some(must_be) }
}

/// Prints the lines. Returns false if a count is wrong.
pub(crate) fn show(rows: &[Row]) -> bool {
    for row in rows {
        say(&format!("{row}\n"));
    }
    rows.iter().all(Row::is_good)
}

impl Row {
    fn is_good(&self) -> bool {
        self.must_be.is_none_or(|count| self.count == count)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<46}{:>6}", self.what, self.count)?;
        match self.must_be {
            Some(count) => write!(f, "  must be {count}{}", if self.is_good() { "" } else { ", WRONG" }),
            None => Ok(()),
        }
    }
}
