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

pub(super) fn import(store: &dyn Store, file: Option<&Path>, out: &mut Out<'_>) -> Done {
    let (mut input, total, name): (Box<dyn BufRead>, Option<u64>, String) = match file {
        None => (Box::new(BufReader::new(io::stdin())), None, "standard input".to_owned()),
        Some(path) => {
            let name = path.display().to_string();
            let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
            let (length, file) = opened.map_err(|cause| Stop::Io(format!("open {name}"), cause))?;
            (Box::new(BufReader::new(file)), Some(length), name)
        }
    };
    let progress = match total {
        Some(total) => Progress::bytes(out, total, "importing"),
        None => Progress::count(out, "importing, bytes"),
    };
    let (mut imported, mut present, mut number) = (0_u64, 0_u64, 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let read = read.map_err(|cause| Stop::Io(format!("read {name}"), cause))?;
        if read == 0 {
            break;
        }
        number += 1;
        progress.add(read as u64);
        if line.trim_ascii().is_empty() {
            continue;
        }
        let bad = |cause: io::Error| Stop::Io(format!("line {number} of {name}, after {imported} imported"), cause);
        let record: Record<Value, Value> = serde_json::from_slice(&line).map_err(|cause| bad(cause.into()))?;
        let taken = store.import(&record).map_err(|error| bad(error.into()))?;
        imported += u64::from(taken);
        present += u64::from(!taken);
    }
    store.sync()?;
    drop(progress);
    if out.json {
        return out.json(&json!({ "imported": imported, "present": present }));
    }
    out.line(format_args!("{imported} records imported, {present} skipped: their keys have a record here"))
}
