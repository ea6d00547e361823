//! Describes the ranges of keys of which records and rows may be lost without a trace.

use std::fmt;

use super::MAX_PROBLEMS;
use crate::store::format::frame::StoreKey;
use crate::types::key::Key;

/// A range of keys of which records and rows may be lost. Keys sort by kind, records before rows, then by the name of
/// the manager or table, then by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LostRange {
    /// The last key before the range. `None` if the range begins with the first record.
    pub after: Option<RangeEnd>,
    /// The first key after the range. `None` if the range ends with the last row.
    pub before: Option<RangeEnd>,
}

/// A key at one end of a [`LostRange`], which is not in the range itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct RangeEnd {
    /// True if it is the key of a row.
    pub is_row: bool,
    /// The name of the manager, or of the table.
    pub of: String,
    /// The key in its text form; see [`Key::from_text`].
    pub key: String,
}

impl RangeEnd {
    fn new(key: &StoreKey) -> Self {
        let (of, own) = key.split().unwrap_or(("", key.bytes()));
        Self { is_row: !key.is_record(), of: of.to_owned(), key: text_of(own) }
    }

    /// Returns the key in the store, or `None` if its text form names none.
    fn stored(&self) -> Option<StoreKey> {
        let key = Key::from_text(&self.key).ok()?;
        let join = if self.is_row { StoreKey::row } else { StoreKey::record };
        Some(join(&self.of, key.as_bytes()))
    }
}

impl LostRange {
    /// Returns true if the range has the record with this key. A record that the new store has is not lost, also if it
    /// is in a range.
    #[must_use]
    pub fn has_record(&self, manager: &str, key: &Key) -> bool {
        self.has(&StoreKey::record(manager, key.as_bytes()))
    }

    /// Returns true if the range has the row with this key.
    #[must_use]
    pub fn has_row(&self, table: &str, key: &Key) -> bool {
        self.has(&StoreKey::row(table, key.as_bytes()))
    }

    fn has(&self, key: &StoreKey) -> bool {
        let stored = |end: &Option<RangeEnd>| end.as_ref().and_then(RangeEnd::stored);
        stored(&self.after).is_none_or(|after| after < *key) && stored(&self.before).is_none_or(|before| *key < before)
    }
}

/// Writes text such as `records of payments between order-6 and order-9`.
impl fmt::Display for LostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = |end: &RangeEnd| if end.is_row { "rows" } else { "records" };
        match (&self.after, &self.before) {
            (None, None) => write!(f, "records of any manager, and rows of any table,"),
            (Some(after), None) if after.is_row => write!(f, "rows after {} of {}", after.key, after.of),
            (Some(after), None) => {
                write!(f, "records after {} of {}, and rows of any table,", after.key, after.of)
            }
            (None, Some(before)) if before.is_row => {
                write!(f, "records of any manager, and rows before {} of {},", before.key, before.of)
            }
            (None, Some(before)) => write!(f, "records before {} of {}", before.key, before.of),
            (Some(after), Some(before)) if after.is_row != before.is_row => {
                let (key, of) = (&before.key, &before.of);
                write!(f, "records after {} of {}, and rows before {key} of {of},", after.key, after.of)
            }
            (Some(after), Some(before)) if after.of == before.of => {
                write!(f, "{} of {} between {} and {}", what(after), after.of, after.key, before.key)
            }
            (Some(after), Some(before)) => {
                let (key, of) = (&before.key, &before.of);
                write!(f, "{} between {} of {} and {key} of {of}", what(after), after.key, after.of)
            }
        }
    }
}

/// A range in which a run has lost entries: the keys before and after it, if they are known.
pub(super) type Gap = (Option<StoreKey>, Option<StoreKey>);

/// Returns true if the key is in the range.
pub(super) fn is_in((after, before): &Gap, key: &StoreKey) -> bool {
    after.as_ref().is_none_or(|after| after < key) && before.as_ref().is_none_or(|before| key < before)
}

/// Returns the ranges of all gaps, in key order. Together they have every key in a gap: if there are too many to be
/// named, the last one ends where the last gap ends.
pub(super) fn ranges(mut gaps: Vec<Gap>) -> Vec<LostRange> {
    // `None` is before every key here, as it should be.
    gaps.sort_unstable();
    let mut merged: Vec<Gap> = Vec::new();
    for (after, before) in gaps {
        match merged.last_mut() {
            Some((_, end)) if merges(end.as_ref(), after.as_ref()) => *end = later(end.take(), before),
            _ => merged.push((after, before)),
        }
    }
    let last = merged.last().map(|(_, before)| before.clone());
    if merged.len() > MAX_PROBLEMS {
        merged.truncate(MAX_PROBLEMS);
        if let (Some((_, end)), Some(last)) = (merged.last_mut(), last) {
            *end = last;
        }
    }
    let end = |key: Option<StoreKey>| key.as_ref().map(RangeEnd::new);
    merged.into_iter().map(|(after, before)| LostRange { after: end(after), before: end(before) }).collect()
}

/// Returns true if a range that ends before `end` has keys in common with one that begins after `after`.
fn merges(end: Option<&StoreKey>, after: Option<&StoreKey>) -> bool {
    match (end, after) {
        (Some(end), Some(after)) => after < end,
        _ => true,
    }
}

/// Returns the later end. `None` is after every key here.
fn later(a: Option<StoreKey>, b: Option<StoreKey>) -> Option<StoreKey> {
    a.zip(b).map(|(a, b)| a.max(b))
}

/// Returns the name of a record or row in a report.
pub(super) fn named(key: &StoreKey) -> String {
    let RangeEnd { is_row, of, key } = RangeEnd::new(key);
    let what = if is_row { "row" } else { "key" };
    format!("{what} {key} of {of}")
}

fn text_of(key: &[u8]) -> String {
    Key::from_bytes(key).map_or_else(|_| key.escape_ascii().to_string(), |key| key.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "an end of a gap")]
    fn record(key: &str) -> Option<StoreKey> {
        Some(StoreKey::record("m", key.as_bytes()))
    }

    fn texts(gaps: Vec<Gap>) -> Vec<String> {
        ranges(gaps).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_with_common_keys_become_one() {
        let gaps = vec![
            (record("f"), record("h")),
            (record("a"), record("c")),
            (record("b"), record("d")),
            (record("d"), record("e")),
            (record("g"), record("g5")),
        ];
        let expected = ["records of m between a and d", "records of m between d and e", "records of m between f and h"];
        assert_eq!(texts(gaps), expected);
        let gaps = vec![(record("c"), None), (record("d"), record("e")), (None, record("a"))];
        assert_eq!(texts(gaps), ["records before a of m", "records after c of m, and rows of any table,"]);
        assert_eq!(texts(vec![(record("a"), record("b")), (None, None)]).len(), 1);
    }

    #[test]
    fn ranges_name_the_managers_and_tables_at_their_ends() {
        let (other, row) = (Some(StoreKey::record("n", b"/x")), Some(StoreKey::row("t", b"y")));
        for (gap, text) in [
            ((None, None), "records of any manager, and rows of any table,"),
            ((record("a"), other.clone()), "records between a of m and %2Fx of n"),
            ((other, row.clone()), "records after %2Fx of n, and rows before y of t,"),
            ((None, row.clone()), "records of any manager, and rows before y of t,"),
            ((row.clone(), None), "rows after y of t"),
            ((row, Some(StoreKey::row("t", b"z"))), "rows of t between y and z"),
        ] {
            assert_eq!(texts(vec![gap]), [text]);
        }
    }

    #[test]
    fn ranges_that_are_not_named_are_in_the_last_one() {
        let number = |number: usize| record(&format!("{number:04}"));
        let gaps: Vec<_> = (0..150).map(|gap| (number(3 * gap), number(3 * gap + 2))).collect();
        let ranges = ranges(gaps.clone());
        assert_eq!(ranges.len(), MAX_PROBLEMS);
        for number in 0..450 {
            let (is_lost, key) = (number % 3 == 1, Key::new(format!("{number:04}")).unwrap());
            let is_in = ranges.iter().any(|range| range.has_record("m", &key));
            assert!(if is_lost { is_in } else { !is_in || number > 3 * MAX_PROBLEMS - 3 }, "{number}");
        }
        assert_eq!(ranges.last().unwrap().before, Some(RangeEnd::new(&number(449).unwrap())));
        assert!(!ranges[0].has_row("m", &Key::new("0001").unwrap()));
    }
}
