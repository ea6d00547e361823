//! Commands on a store that another process has open.

use std::path::Path;
use std::time::Duration;

use super::store::{Listing, Store};
use crate::{
    Key, Record, RecordInfo, Result, Value,
    admin::{BackupReport, Compacted, LiveStore, OpenReport, RecordFilter, Resolution, Stats, VerifyReport},
};

impl Store for LiveStore {
    fn path(&self) -> &Path {
        self.path()
    }

    fn is_live(&self) -> bool {
        true
    }

    fn opened(&self) -> Result<OpenReport> {
        self.opened()
    }

    fn stats(&self) -> Result<Stats> {
        self.stats()
    }

    fn records(&self, filter: RecordFilter) -> Result<Listing<'_, RecordInfo>> {
        Ok(Box::new(self.records(filter)?))
    }

    fn whole_records(&self, filter: RecordFilter) -> Result<Listing<'_, Record<Value, Value>>> {
        Ok(Box::new(self.whole_records(filter)?))
    }

    fn get(&self, manager: &str, key: &Key) -> Result<Option<Record<Value, Value>>> {
        self.get(manager, key)
    }

    fn resolve_if_unchanged(&self, seen: &RecordInfo, resolution: Resolution<Value, Value>) -> Result<()> {
        self.resolve_if_unchanged(seen, resolution)
    }

    fn undo_if_unchanged(&self, seen: &RecordInfo) -> Result<()> {
        self.undo_if_unchanged(seen)
    }

    fn revoke(&self, manager: &str, key: &Key) -> Result<()> {
        self.revoke(manager, key).map(drop)
    }

    fn revoke_if_unchanged(&self, seen: &RecordInfo) -> Result<()> {
        self.revoke_if_unchanged(seen).map(drop)
    }

    fn forget(&self, manager: &str, key: &Key) -> Result<bool> {
        self.forget(manager, key)
    }

    fn remove(&self, manager: &str, key: &Key) -> Result<bool> {
        self.remove(manager, key)
    }

    fn extend(&self, manager: &str, key: &Key, ttl: Duration) -> Result<bool> {
        self.extend(manager, key, ttl)
    }

    fn import(&self, record: &Record<Value, Value>) -> Result<bool> {
        self.import(record)
    }

    fn tables(&self) -> Result<Vec<String>> {
        self.tables()
    }

    fn rows(&self, table: &str, prefix: &[u8]) -> Result<Listing<'_, (Value, Value)>> {
        Ok(Box::new(self.rows(table, prefix)?))
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
