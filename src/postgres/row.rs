//! A record as the columns of its row.

use std::sync::Arc;

use tokio_postgres::Row;

use super::session::{Fault, get};
use crate::store::{decode_record, encode_record, state_code};
use crate::types::clock::NEVER;
use crate::types::error::Result;
use crate::types::record::{StoredRecord, THIS_FRAME};
use crate::types::value::Value;

/// The columns that a change of a record sets.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub(super) state: i16,
    /// The generation. 0 stands for the number of the commit.
    pub(super) generation: i64,
    pub(super) token: i64,
    pub(super) updated: i64,
    pub(super) expires: Option<i64>,
    pub(super) body: Vec<u8>,
    pub(super) outcome: Option<Vec<u8>>,
}

/// The columns that the commit computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    generation: i64,
    revision: i64,
    token: i64,
    updated: i64,
    expires: Option<i64>,
}

/// Converts a number or a time. Both are far below the largest `i64`.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// A time from this one on is stored as `NULL`, "never". The statements add to times, and the sums must not overflow.
const LATEST: u64 = 1 << 62;

pub(super) fn time(time: u64) -> Option<i64> {
    (time < LATEST).then(|| signed(time))
}

impl Columns {
    pub(super) fn new(stored: &StoredRecord) -> Result<Self> {
        let mut record = StoredRecord { outcome: None, ..stored.clone() };
        // The columns hold these numbers. The format of the body allows no number 0.
        (record.generation, record.revision, record.token, record.updated, record.expires) = (1, 1, 1, 0, 0);
        let mut body = Vec::new();
        encode_record(&record, &mut body)?;
        Ok(Self {
            state: i16::from(state_code(stored.state)),
            generation: signed(stored.generation),
            token: signed(stored.token),
            updated: signed(stored.updated),
            expires: time(stored.expires),
            body,
            outcome: stored.outcome.as_ref().map(|outcome| outcome.to_vec()),
        })
    }

    /// Returns the columns of a key whose record was removed. The row stays until `expires`, so that the numbers of the
    /// key only grow.
    pub(super) fn removed(now: u64, expires: u64) -> Self {
        let (updated, expires) = (signed(now), time(expires));
        Self { state: 0, generation: 0, token: 0, updated, expires, body: Vec::new(), outcome: None }
    }
}

impl Numbers {
    pub(super) fn read(row: &Row, at: usize) -> Result<Self, Fault> {
        Ok(Self {
            generation: get(row, at)?,
            revision: get(row, at + 1)?,
            token: get(row, at + 2)?,
            updated: get(row, at + 3)?,
            expires: get(row, at + 4)?,
        })
    }

    pub(super) fn revision(self) -> u64 {
        unsigned(self.revision)
    }

    /// Returns the numbers of the same record after a change that keeps its generation and its token.
    pub(super) fn changed(stored: &StoredRecord, revision: i64, updated: i64, expires: Option<i64>) -> Self {
        Self { generation: signed(stored.generation), revision, token: signed(stored.token), updated, expires }
    }

    pub(super) fn set(self, stored: &mut StoredRecord) {
        stored.generation = unsigned(self.generation);
        stored.revision = unsigned(self.revision);
        stored.token = unsigned(self.token);
        stored.updated = unsigned(self.updated);
        stored.expires = self.expires.map_or(NEVER, unsigned);
    }
}

/// Returns the record of a row. `len` is the length of its outcome, if it has one.
pub(super) fn record(
    numbers: Numbers,
    body: &[u8],
    len: Option<i32>,
    outcome: Option<&[u8]>,
) -> Result<Arc<StoredRecord>, Fault> {
    let mut stored = decode_record(body).map_err(Fault::Refused)?;
    numbers.set(&mut stored);
    stored.outcome_len = len.and_then(|len| u32::try_from(len).ok()).unwrap_or_default();
    stored.outcome = outcome.map(Value::from);
    Ok(Arc::new(stored))
}

/// Returns true if the change makes a claim, which gets the number of its commit as token.
pub(super) fn claims(columns: &Columns) -> bool {
    columns.state == 1 && columns.token == signed(THIS_FRAME)
}
