//! Checks all records and rows.

use super::Store;
use crate::store::{Index, Load, StoreKey, VerifyReport};
use crate::types::error::{ErrorKind, Result};

/// The number of keys that are listed at once.
const BATCH: usize = 256;

impl Store {
    /// Reads every record and row, and reports the damaged ones. `goes_on` is called before each batch, and ends the
    /// check by an error.
    pub(crate) fn verify_while(&self, goes_on: &dyn Fn() -> Result<()>) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        for first in [StoreKey::first_record(), StoreKey::first_row()] {
            let end = first.prefix_end();
            let mut from = Some(first);
            while let Some(at) = from {
                goes_on()?;
                let (keys, next) = self.keys(Index::All, &at, end.as_ref(), BATCH)?;
                for key in keys {
                    let counted = if key.is_record() { &mut report.records } else { &mut report.rows };
                    match self.look(&key, Load::All, true) {
                        Ok((_, read)) => *counted += u64::from(read.content.is_some()),
                        Err(error) if error.kind() == ErrorKind::Corrupt => report.problems.push(error.to_string()),
                        Err(error) => return Err(error),
                    }
                }
                from = next;
            }
        }
        Ok(report)
    }
}
