//! Opens a store in a directory, and rescues a damaged one.

use std::path::Path;
use std::sync::Arc;

use super::types::KnownTypes;
#[cfg(feature = "metrics")]
use super::usage;
use super::{Engine, Served, Shared};
use crate::api::serve::serve;
use crate::protocol::compactor::Compactor;
use crate::protocol::{OpenReport, Protocol, SalvageReport};
use crate::types::clock::FOREVER;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::options::EngineOptions;
use crate::types::telemetry;

impl EngineOptions {
    /// Opens the store in `path`. Creates it if there is none.
    ///
    /// # Errors
    ///
    /// As [`Engine::open`], and `InvalidOptions`.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Engine> {
        let path = path.as_ref();
        if ["postgres:", "postgresql:"].iter().any(|scheme| path.starts_with(scheme)) {
            let message =
                "this is the address of a database, not a directory: use `connect`, with the feature `postgres`";
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        self.open_in(path, None)
    }

    /// Opens a store in a temporary directory, which is removed with the last handle.
    pub fn temporary(&self) -> Result<Engine> {
        let directory = tempfile::Builder::new().prefix("oncekey-").tempdir();
        let directory = directory.map_err(|cause| Error::io("create directory in", &std::env::temp_dir(), &cause))?;
        let path = directory.path().to_owned();
        self.open_in(&path, Some(directory))
    }

    /// Rescues what can still be read of a damaged store into a new one. `into` must be empty or not exist. Changes
    /// nothing in `from`, and takes only data whose checksum is right.
    ///
    /// Reads the journal, and the record store even if it cannot be opened any more. Takes the newest content that is
    /// left of each key. Records keep their fields, including their effect ids. A record that was in progress becomes
    /// interrupted. The report counts what was rescued and what may be older than it was. It names the lost keys of
    /// which a part was found, and the ranges of keys in which others may be lost. The call keeps all keys, and the
    /// content of the journal, in memory.
    ///
    /// ```
    /// use oncekey::{Engine, Manager};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let (damaged, rescued) = (dir.path().join("damaged"), dir.path().join("rescued"));
    /// # Engine::open(&damaged)?.manager::<u64, String>("payments")?.execute("order-42", |_claim| Ok(1999)).unwrap();
    /// let report = Engine::options().salvage(&damaged, &rescued)?;
    /// assert_eq!((report.records, report.is_complete()), (1, true));
    /// let payments: Manager<u64> = Engine::open(&rescued)?.manager("payments")?;
    /// assert!(payments.get("order-42")?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `StoreInUse` if a process has `from` open for writing, or salvages into `into`; `NotFound` if there is no store;
    /// `UnsupportedFormat` if `from` contains other files or a store of another format; `InvalidOptions` if `into` is not
    /// empty, or if one directory is inside the other; `Io` if a file cannot be read or written, or if the parent of
    /// `into` is missing. After an error `into` has no store. After a kill the call can be repeated: until then, an open
    /// of `into` returns `UnsupportedFormat`.
    pub fn salvage(&self, from: impl AsRef<Path>, into: impl AsRef<Path>) -> Result<SalvageReport> {
        self.salvage_with(from, into, |_, _| ())
    }

    /// Rescues as [`salvage`](Self::salvage) does. Calls `progress` after each key, with the number of keys that are
    /// written and the number of all.
    ///
    /// # Errors
    ///
    /// As [`salvage`](Self::salvage).
    pub fn salvage_with(
        &self,
        from: impl AsRef<Path>,
        into: impl AsRef<Path>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<SalvageReport> {
        Protocol::salvage(from.as_ref(), into.as_ref(), self, &mut progress)
    }

    fn open_in(&self, path: &Path, directory: Option<tempfile::TempDir>) -> Result<Engine> {
        let is_served = self.admin && !self.read_only && directory.is_none();
        let (protocol, report) = Protocol::open(path, self, directory)?;
        self.start(protocol, report, is_served)
    }

    /// Starts the threads of an open store, and its socket if it is served.
    pub(super) fn start(&self, protocol: Protocol, report: OpenReport, is_served: bool) -> Result<Engine> {
        let protocol = Arc::new(protocol);
        let compaction_batch = self.compaction_batch.get();
        // A read-only engine deletes nothing, so the thread sleeps.
        let interval = if self.read_only { FOREVER } else { self.compaction_interval };
        let compactor = Compactor::start(&protocol, compaction_batch, interval)?;
        let serve = || serve(&protocol, report, compaction_batch).inspect_err(|error| telemetry::no_socket(error));
        let server = is_served.then(serve).transpose();
        let shared = Shared {
            served: Served { server, protocol: Arc::clone(&protocol) },
            report,
            compaction_batch,
            compactor,
            types: KnownTypes::default(),
            #[cfg(feature = "metrics")]
            usage: usage::Gauges::default(),
        };
        Ok(Engine { protocol, shared: Arc::new(shared) })
    }
}
