//! Export and import.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::out::{Done, Out, Stop};
use super::progress::Progress;
use super::store::Store;
use crate::{Durability, EngineOptions, Record, Value, admin::RecordFilter};

/// The longest line in bytes. A record with the largest outcome and checkpoint is shorter, even if each byte is written
/// as six.
const MAX_LINE: u64 = 16 * Value::MAX_BYTES as u64;

/// Returns options for an import. With `Eventual`, many records share one sync.
pub(super) fn for_import(options: &EngineOptions) -> EngineOptions {
    options.clone().durability(Durability::Eventual { interval: Duration::from_millis(50) })
}

pub(super) fn export(store: &dyn Store, filter: &RecordFilter, out: &mut Out<'_>) -> Done {
    let progress = Progress::count(out, "exporting");
    for record in store.whole_records(filter.clone())? {
        out.json(&record?)?;
        progress.add(1);
    }
    Ok(())
}

/// The records to import. The first one is read at once, so that a wrong input is refused before a store is created.
pub(super) struct Input {
    from: Box<dyn BufRead>,
    name: String,
    /// The length in bytes, if it is known.
    total: Option<u64>,
    /// The number of lines read, and of their bytes.
    lines: u64,
    bytes: u64,
    line: Vec<u8>,
    next: Option<Record<Value, Value>>,
}

impl Input {
    /// Opens a file, or standard input.
    pub(super) fn open(file: Option<&Path>) -> Done<Self> {
        let (from, total, name): (Box<dyn BufRead>, Option<u64>, String) = match file {
            None => (Box::new(BufReader::new(io::stdin())), None, "standard input".to_owned()),
            Some(path) => {
                let name = path.display().to_string();
                let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
                let (length, file) = opened.map_err(|cause| Stop::Io(format!("open {name}"), cause))?;
                (Box::new(BufReader::new(file)), Some(length), name)
            }
        };
        let mut input = Self { from, name, total, lines: 0, bytes: 0, line: Vec::new(), next: None };
        input.read()?;
        Ok(input)
    }

    /// Reads the next record. Afterwards `next` is `None` at the end.
    fn read(&mut self) -> Done {
        self.next = None;
        while self.next.is_none() {
            self.line.clear();
            let read = self.from.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line);
            let read = read.map_err(|cause| Stop::Io(format!("read {}", self.name), cause))?;
            if read == 0 {
                return Ok(());
            }
            self.lines += 1;
            self.bytes += read as u64;
            if !self.line.trim_ascii().is_empty() {
                self.next = Some(serde_json::from_slice(&self.line).map_err(|cause| self.bad(cause.into()))?);
            }
        }
        Ok(())
    }

    fn bad(&self, cause: io::Error) -> Stop {
        let before = if self.lines > 1 { "; the lines before it are imported" } else { "" };
        Stop::Io(format!("line {} of {}{before}", self.lines, self.name), cause)
    }
}

pub(super) fn import(store: &dyn Store, input: &mut Input, out: &mut Out<'_>) -> Done {
    let progress = match input.total {
        Some(total) => Progress::bytes(out, total, "importing"),
        None => Progress::count(out, "importing, bytes"),
    };
    let (mut imported, mut present) = (0_u64, 0_u64);
    while let Some(record) = &input.next {
        let taken = store.import(record).map_err(|error| input.bad(error.into()))?;
        imported += u64::from(taken);
        present += u64::from(!taken);
        progress.set(input.bytes);
        input.read()?;
    }
    store.sync()?;
    drop(progress);
    if out.json {
        return out.json(&json!({ "imported": imported, "present": present }));
    }
    out.line(format_args!("{imported} records imported, {present} skipped: their keys have a record here"))
}
