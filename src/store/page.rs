//! Reads the records of a range together: each block is read once, not once for each of its records.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Ticket;
use super::format::frame::{Content, StoreKey};
use super::format::record;
use super::memtable::Entry;
use super::runs::flush::Shared;
use super::runs::{Item, Load, Merged, Stored};
use crate::types::error::Result;
use crate::types::record::StoredRecord;

/// The bytes of records after which a page ends: a record can have a large checkpoint.
const BYTES: usize = 1 << 20;

/// The records of a range, up to a limit.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) records: Vec<(StoreKey, Arc<StoredRecord>)>,
    /// The group to wait for before the records may be returned to a caller.
    pub(crate) newest: Ticket,
    /// The first key after the page, or `None` at the end.
    pub(crate) next: Option<StoreKey>,
}

impl Shared {
    /// Reads at most `limit` keys, of which some may have no record.
    pub(super) fn records(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Result<Page> {
        // The memtable first: what is flushed in between is then in both, not missed.
        let keys = self.memtable.keys(from, end, limit);
        // If the memtable has more keys, the page ends after those that were read.
        let cut = if keys.len() < limit { None } else { keys.last().map(StoreKey::successor) };
        let stop = cut.as_ref().or(end);
        let entry = |key: StoreKey| Some((self.memtable.get(self.memtable.hash(key.bytes()), &key)?, key));
        let recent: Vec<_> = keys.into_iter().filter_map(entry).collect();
        let mut recent = recent.into_iter().peekable();
        let mut flushed = Merged::new(&self.tables, &self.runs.current(), from.bytes())?;
        let (mut records, mut newest, mut last, mut bytes) = (Vec::new(), Ticket(0), None, 0);
        for _ in 0..limit {
            let older = flushed.key().filter(|key| stop.is_none_or(|stop| *key < stop));
            let nearest = match (recent.peek(), older) {
                (Some((_, recent)), Some(older)) => recent.cmp(older),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => {
                    self.tables.check_open()?;
                    return Ok(Page { records, newest, next: cut });
                }
            };
            // The content in the memtable is newer than that in the runs.
            let older = if nearest == Ordering::Less { None } else { flushed.next(&self.tables)? };
            let newer = if nearest == Ordering::Greater { None } else { recent.next() };
            let (key, content) = match (newer, older) {
                (Some((Entry { ticket, content, .. }, key)), _) => {
                    newest = newest.max(Ticket(ticket));
                    (key, content)
                }
                (None, Some(Item { key, value })) => {
                    let load = |value: Stored| value.content(&self.tables, &key, Load::WithoutOutcome);
                    let content = value.map(load).transpose()?;
                    (key, content)
                }
                (None, None) => break,
            };
            if let Some(Content::Record(stored)) = content {
                bytes += record::max_encoded_len(&stored);
                records.push((key.clone(), stored));
            }
            last = Some(key);
            if bytes > BYTES {
                break;
            }
        }
        // Check after the reads, for the reason that `Inner::read` gives.
        self.tables.check_open()?;
        Ok(Page { records, newest, next: last.as_ref().map(StoreKey::successor) })
    }
}
