//! Operations on the whole store: verify, backup and salvage.

use std::path::Path;

use super::Protocol;
use crate::store::{BackupReport, SalvageReport, Store, VerifyReport};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::options::EngineOptions;
use crate::types::telemetry::{self, Work};
use crate::types::value::Value;

impl Protocol {
    /// Rescues what can be read of a store into a new one.
    pub(crate) fn salvage(
        from: &Path,
        into: &Path,
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<SalvageReport> {
        Store::salvage(from, into, options, progress)
    }

    /// Returns the bytes on disk of the journal and of the record store.
    pub(crate) fn disk_bytes(&self) -> Result<(u64, u64)> {
        self.check()?;
        self.store.disk_bytes()
    }

    /// Asks the server of a store on PostgreSQL.
    #[cfg(feature = "postgres")]
    pub(crate) fn server_report(&self) -> Result<crate::postgres::ServerReport> {
        self.check()?;
        self.store.server()?.ok_or_else(|| {
            let message = format!("the store {} is a directory, and has no server", self.path().display());
            Error::new(ErrorKind::InvalidOptions, message)
        })
    }

    /// Checks everything that is stored, and reports damage.
    pub(crate) fn verify(&self, goes_on: &dyn Fn() -> Result<()>) -> Result<VerifyReport> {
        self.check()?;
        let _working = telemetry::enter(Work::Verify, self.path());
        self.store.verify_while(goes_on)
    }

    /// Copies the store into a directory that does not exist yet.
    pub(crate) fn back_up(&self, path: &Path, goes_on: &dyn Fn() -> Result<()>) -> Result<BackupReport> {
        self.check()?;
        let _working = telemetry::enter(Work::Backup, self.path());
        self.store.back_up(path, goes_on)
    }

    /// Refuses an encoded outcome that is too large.
    pub(super) fn check_outcome(&self, bytes: &Value) -> Result<()> {
        let limit = self.max_value_bytes();
        if bytes.len() as u64 > limit {
            let message = format!("an outcome is {} bytes long, the limit is {limit}", bytes.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }
}
