//! Lists records, tables and rows.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::time::SystemTime;

use console::Style;
use serde_json::json;

use super::filter::{Order, Sort};
use super::out::{Done, Out, Table, size};
use super::outcome::preview;
use super::show::{paint, relative};
use super::store::{Listing, Store};
use crate::{
    Key, RecordInfo,
    admin::{KeyPrefix, RecordFilter},
    clock::{Clock as _, SystemClock},
};

/// The number of records kept beyond a limit while the first ones are selected.
const SPARE: usize = 1024;

/// The parts of a listing to print.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) order: Order,
    pub(super) limit: Option<usize>,
    pub(super) only_count: bool,
}

pub(super) fn records(store: &dyn Store, filter: &RecordFilter, listed: &Listed, out: &mut Out<'_>) -> Done {
    let found = store.records(filter.clone())?;
    if listed.only_count {
        return count("records", found, out);
    }
    let found = ordered(found, listed)?;
    let mut table = Table::new(["MANAGER", "STATUS", "TRIES", "CHANGED", "EXPIRES", "OUTCOME", "KEY"]);
    let (now, mut any) = (SystemClock.wall(), false);
    for info in found {
        let info = info?;
        if out.json {
            out.json(&info)?;
            continue;
        }
        let status = info.status();
        let Row { tries, changed, expires, outcome } = Row::new(&info, now);
        let plain = |text: String| (text, Style::new());
        let row = vec![
            plain(info.manager().to_owned()),
            (format!("{status:?}"), paint(status)),
            plain(tries),
            plain(changed),
            plain(expires),
            plain(outcome),
            plain(info.key().to_string()),
        ];
        table.row(row, out)?;
        any = true;
    }
    if !any && !out.json {
        return out.line("no record matches");
    }
    table.end(out)
}

/// The fields of a listed record that are not shown as they are.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) tries: String,
    pub(super) changed: String,
    pub(super) expires: String,
    pub(super) outcome: String,
}

impl Row {
    pub(super) fn new(info: &RecordInfo, now: SystemTime) -> Self {
        Self {
            tries: info.attempt().to_string(),
            changed: relative(info.updated_at(), now),
            expires: info.expires_at().map_or_else(|| "never".to_owned(), |at| relative(at, now)),
            outcome: if info.outcome_bytes() == 0 { "-".to_owned() } else { size(info.outcome_bytes()) },
        }
    }
}

/// Returns the records in the order and up to the limit that `listed` asks for.
pub(super) fn ordered<'a>(found: Listing<'a, RecordInfo>, listed: &Listed) -> Done<Listing<'a, RecordInfo>> {
    let limit = listed.limit.unwrap_or(usize::MAX);
    let Order { sort, reverse } = listed.order;
    // The order of the store.
    if sort.is_none() && !reverse {
        return Ok(Box::new(found.take(limit)));
    }
    let sorted = sorted(found, sort.unwrap_or(Sort::Key), reverse, limit)?;
    Ok(Box::new(sorted.into_iter().map(Ok)))
}

/// Returns the first `limit` records in this order. Keeps only a few more in memory.
fn sorted(found: Listing<'_, RecordInfo>, sort: Sort, reverse: bool, limit: usize) -> Done<Vec<RecordInfo>> {
    let order = |one: &RecordInfo, other: &RecordInfo| {
        let order = compare(sort, one, other);
        if reverse { order.reverse() } else { order }
    };
    let mut kept = Vec::new();
    for info in found {
        kept.push(info?);
        if kept.len() >= limit.saturating_mul(2).saturating_add(SPARE) {
            kept.sort_by(order);
            kept.truncate(limit);
        }
    }
    kept.sort_by(order);
    kept.truncate(limit);
    Ok(kept)
}

fn compare(sort: Sort, one: &RecordInfo, other: &RecordInfo) -> Ordering {
    let expiry = |info: &RecordInfo| (info.expires_at().is_none(), info.expires_at());
    match sort {
        Sort::Key => (one.manager(), one.key()).cmp(&(other.manager(), other.key())),
        Sort::Changed => one.updated_at().cmp(&other.updated_at()),
        Sort::Created => one.created_at().cmp(&other.created_at()),
        Sort::Expires => expiry(one).cmp(&expiry(other)),
        Sort::Tries => one.attempt().cmp(&other.attempt()),
        Sort::Outcome => one.outcome_bytes().cmp(&other.outcome_bytes()),
    }
}

fn count<T>(what: &str, found: impl Iterator<Item = crate::Result<T>>, out: &mut Out<'_>) -> Done {
    let mut count = 0_u64;
    for item in found {
        item?;
        count += 1;
    }
    if out.json { out.json(&json!({ what: count })) } else { out.line(count) }
}

pub(super) fn tables(store: &dyn Store, out: &mut Out<'_>) -> Done {
    let mut table = Table::new(["TABLE", "ROWS", "BYTES"]);
    let names = store.tables()?;
    if names.is_empty() && !out.json {
        return out.line("no table has a row");
    }
    for name in names {
        let (mut rows, mut bytes) = (0_u64, 0_u64);
        for row in store.rows(&name, &[])? {
            let (key, value) = row?;
            rows += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        if out.json {
            out.json(&json!({ "table": name, "rows": rows, "bytes": bytes }))?;
        } else {
            table.row([name, rows.to_string(), size(bytes)].map(|cell| (cell, Style::new())).to_vec(), out)?;
        }
    }
    table.end(out)
}

pub(super) fn rows(
    store: &dyn Store,
    name: &str,
    prefix: Option<&KeyPrefix>,
    listed: &Listed,
    out: &mut Out<'_>,
) -> Done {
    // Check the printed key as well: a key made of parts contains their lengths, so its bytes may have the prefix by
    // chance.
    let matches = |key: &[u8]| prefix.is_none_or(|prefix| Key::from_bytes(key).is_ok_and(|key| prefix.matches(&key)));
    let found = store.rows(name, &prefix.map(KeyPrefix::bytes).unwrap_or_default())?;
    let found = found.filter(|row| row.as_ref().map_or(true, |(key, _)| matches(key)));
    if listed.only_count {
        return count("rows", found, out);
    }
    let mut table = Table::new(["KEY", "BYTES", "VALUE"]);
    let mut any = false;
    for row in found.take(listed.limit.unwrap_or(usize::MAX)) {
        let (key, value) = row?;
        let key = row_key(&key);
        if out.json {
            out.json(&json!({ "table": name, "key": key, "value": super::out::bytes(&value) }))?;
        } else {
            let cells = [key, size(value.len() as u64), preview(&value)];
            table.row(cells.map(|cell| (cell, Style::new())).to_vec(), out)?;
        }
        any = true;
    }
    if !any && !out.json {
        return out.line("no row matches");
    }
    table.end(out)
}

/// Returns the text of a row's key. If the bytes only start like a key made of parts, they are not a record's key, and
/// are all written as %NN.
fn row_key(bytes: &[u8]) -> String {
    let all = || {
        let mut text = String::new();
        for byte in bytes {
            // Ignore the result: writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    };
    Key::from_bytes(bytes).map_or_else(|_| all(), |key| key.to_string())
}
