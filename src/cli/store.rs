//! The calls that the commands make on a store.

use std::path::Path;
use std::time::Duration;

use crate::{
    Engine, Key, Record, RecordInfo, Result, Value,
    admin::{BackupReport, Compacted, OpenReport, RecordFilter, Resolution, Stats, VerifyReport},
};

/// An iterator over records or rows.
pub(super) type Listing<'a, T> = Box<dyn Iterator<Item = Result<T>> + 'a>;

/// The store that a command works on: one that this process has opened, or one that another process has open.
pub(super) trait Store {
    fn path(&self) -> &Path;
    /// Returns true if another process has the store open.
    fn is_live(&self) -> bool {
        false
    }
    /// Returns true if the store is in a database, which other processes may have open.
    fn is_database(&self) -> bool {
        false
    }
    /// Returns what the open found.
    fn opened(&self) -> Result<OpenReport>;
    fn stats(&self) -> Result<Stats>;

    /// Returns the records that match, without their outcomes.
    fn records(&self, filter: RecordFilter) -> Result<Listing<'_, RecordInfo>>;
    /// Returns the records that match, with their outcomes.
    fn whole_records(&self, filter: RecordFilter) -> Result<Listing<'_, Record<Value, Value>>>;
    fn get(&self, manager: &str, key: &Key) -> Result<Option<Record<Value, Value>>>;
    fn resolve_if_unchanged(&self, seen: &RecordInfo, resolution: Resolution<Value, Value>) -> Result<()>;
    fn undo_if_unchanged(&self, seen: &RecordInfo) -> Result<()>;
    fn revoke(&self, manager: &str, key: &Key) -> Result<()>;
    fn revoke_if_unchanged(&self, seen: &RecordInfo) -> Result<()>;
    fn forget(&self, manager: &str, key: &Key) -> Result<bool>;
    fn remove(&self, manager: &str, key: &Key) -> Result<bool>;
    fn extend(&self, manager: &str, key: &Key, ttl: Duration) -> Result<bool>;
    fn import(&self, record: &Record<Value, Value>) -> Result<bool>;

    /// Returns the names of the tables that have a row.
    fn tables(&self) -> Result<Vec<String>>;
    /// Returns the rows of a table whose keys begin with `prefix`.
    fn rows(&self, table: &str, prefix: &[u8]) -> Result<Listing<'_, (Value, Value)>>;

    fn backup(&self, directory: &Path) -> Result<BackupReport>;
    fn compact(&self) -> Result<Compacted>;
    fn verify(&self) -> Result<VerifyReport>;
    /// Waits until all changes are on disk.
    fn sync(&self) -> Result<()>;
}

impl Store for Engine {
    fn path(&self) -> &Path {
        self.path()
    }

    fn is_live(&self) -> bool {
        self.is_database()
    }

    fn is_database(&self) -> bool {
        self.path().starts_with("postgres:")
    }

    fn opened(&self) -> Result<OpenReport> {
        Ok(*self.opened())
    }

    fn stats(&self) -> Result<Stats> {
        Ok(self.stats())
    }

    fn records(&self, filter: RecordFilter) -> Result<Listing<'_, RecordInfo>> {
        Ok(Box::new(self.records(filter)?))
    }

    fn whole_records(&self, filter: RecordFilter) -> Result<Listing<'_, Record<Value, Value>>> {
        // A listed record may expire before it is read.
        let read =
            |info: Result<RecordInfo>| info.and_then(|info| self.raw(info.manager())?.get(info.key())).transpose();
        Ok(Box::new(self.records(filter)?.filter_map(read)))
    }

    fn get(&self, manager: &str, key: &Key) -> Result<Option<Record<Value, Value>>> {
        self.raw(manager)?.get(key)
    }

    fn resolve_if_unchanged(&self, seen: &RecordInfo, resolution: Resolution<Value, Value>) -> Result<()> {
        self.raw(seen.manager())?.resolve_if_unchanged(seen, resolution)
    }

    fn undo_if_unchanged(&self, seen: &RecordInfo) -> Result<()> {
        self.raw(seen.manager())?.undo_if_unchanged(seen)
    }

    fn revoke(&self, manager: &str, key: &Key) -> Result<()> {
        self.raw(manager)?.revoke(key).map(drop)
    }

    fn revoke_if_unchanged(&self, seen: &RecordInfo) -> Result<()> {
        self.raw(seen.manager())?.revoke_if_unchanged(seen).map(drop)
    }

    fn forget(&self, manager: &str, key: &Key) -> Result<bool> {
        self.raw(manager)?.forget(key)
    }

    fn remove(&self, manager: &str, key: &Key) -> Result<bool> {
        self.raw(manager)?.remove(key)
    }

    fn extend(&self, manager: &str, key: &Key, ttl: Duration) -> Result<bool> {
        self.raw(manager)?.extend(key, ttl)
    }

    fn import(&self, record: &Record<Value, Value>) -> Result<bool> {
        self.raw(record.info().manager()).and_then(|raw| raw.import(record))
    }

    fn tables(&self) -> Result<Vec<String>> {
        self.tables()
    }

    fn rows(&self, table: &str, prefix: &[u8]) -> Result<Listing<'_, (Value, Value)>> {
        Ok(Box::new(self.table(table)?.prefix(prefix)?))
    }

    fn backup(&self, directory: &Path) -> Result<BackupReport> {
        self.backup(directory)
    }

    fn compact(&self) -> Result<Compacted> {
        self.compact_now()
    }

    fn verify(&self) -> Result<VerifyReport> {
        self.verify()
    }

    fn sync(&self) -> Result<()> {
        self.sync()
    }
}
