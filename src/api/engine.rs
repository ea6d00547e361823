//! The engine: an open store.

// The modules stand in the order in which the page of `EngineOptions` lists their methods.
mod open;

#[cfg(feature = "postgres")]
mod postgres;

#[cfg(feature = "postgres")]
mod migrate;
mod types;
pub(crate) mod usage;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::api::records::{RecordFilter, Records};
use crate::api::table::Table;
use crate::api::transaction::{self, PhaseOptions, Transaction};
use crate::live::server::Server;
use crate::protocol::compactor::Compactor;
use crate::protocol::event::{Compacted, Events};
use crate::protocol::{BackupReport, ListRange, OpenReport, Protocol, SalvageReport, VerifyReport};
use crate::types::clock::deadline;
use crate::types::error::{Error, Result};
use crate::types::options::EngineOptions;
use crate::types::record::Status;
use crate::types::stats::Stats;
use types::KnownTypes;
pub(crate) use types::Registered;
use usage::Usage;

/// An open store.
///
/// Cheap to clone, and safe to use from many threads. Managers, claims and pending operations hold a handle. Dropping
/// the last handle closes the engine as [`close`](Engine::close) does.
///
/// ```
/// use oncekey::{CallOptions, Engine, Fingerprint, Manager};
///
/// let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let options = CallOptions::new().fingerprint(Fingerprint::of(&("EUR", 1999))?);
/// let first = payments.execute_with("order-42", options.clone(), |_claim| Ok(1999))?;
/// let again = payments.execute_with("order-42", options, |_claim| unreachable!())?;
/// assert_eq!((first.replayed(), again.replayed(), *again.value()), (false, true, 1999));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    // Dropped first, so that the socket is removed while the store is locked.
    shared: Arc<Shared>,
    protocol: Arc<Protocol>,
}

struct Shared {
    served: Served,
    report: OpenReport,
    compaction_batch: usize,
    /// Ended when the engine is closed, or with the last handle.
    compactor: Compactor,
    types: KnownTypes,
    #[cfg(feature = "metrics")]
    usage: usage::Gauges,
}

/// The socket of the store, which ends with the store, or when no engine, manager or claim is left.
struct Served {
    /// `None` if it is turned off.
    server: Result<Option<Arc<Server>>>,
    protocol: Arc<Protocol>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.protocol.leave();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the store in `path` with the default options. Creates it if there is none.
    ///
    /// # Errors
    ///
    /// `StoreInUse` if the store is open already; `UnsupportedFormat` if `path` contains other files or a store of
    /// another format; `Corrupt` if the store is damaged. Then nothing is changed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        EngineOptions::default().open(path)
    }

    /// Returns the default options. Change them, and then call [`EngineOptions::open`].
    pub fn options() -> EngineOptions {
        EngineOptions::default()
    }

    /// Opens a store on PostgreSQL with the default options. Creates its tables if there are none.
    ///
    /// Any number of engines, in any number of processes, may have the store open at the same time. `sslmode=require` in
    /// the address, which needs the feature `tls`, encrypts the connections, and the certificate of the server must then
    /// be valid for the host; see [several instances](crate::guides::instances). For another TLS, use
    /// [`EngineOptions::connect_with`].
    ///
    /// # Errors
    ///
    /// As [`EngineOptions::connect_with`]; `InvalidOptions` if `url` is not the address of a database, or if the
    /// connection cannot be encrypted as the address asks.
    #[cfg(feature = "postgres")]
    pub fn connect(url: &str) -> Result<Self> {
        EngineOptions::default().connect(url)
    }

    /// Opens a store in a temporary directory, which is removed with the last handle. For tests and examples.
    pub fn temporary() -> Result<Self> {
        EngineOptions::default().temporary()
    }

    /// Returns a table for the caller's own data in this store.
    ///
    /// # Errors
    ///
    /// `InvalidName` unless the name is 1 to 64 of `a-z 0-9 . _ -`.
    pub fn table(&self, name: &str) -> Result<Table> {
        Table::new(self.share(), name)
    }

    /// Changes several rows together or not at all. See [`Transaction`] for what the closure may do. The closure runs
    /// again when another commit has changed data that it read. `Err` and panics roll back. Inside the closure of
    /// another transaction of this engine, on the same thread, the phase is part of that transaction: its changes are
    /// committed with the rest, and its closure is not run again on its own.
    ///
    /// The closure's error type is any type that the engine's error converts into: an enum with `#[from]
    /// oncekey::Error`, `anyhow::Error`, [`Error`], or the ready-made [`PhaseError`](crate::stage::PhaseError).
    ///
    /// ```
    /// # use oncekey::{Engine, Error, stage::PhaseError};
    /// # let engine = Engine::temporary()?;
    /// engine.atomic_phase(|tx| tx.table("t")?.insert("a", "1"))?;
    /// let moved = engine.atomic_phase(|tx| {
    ///     let table = tx.table("t")?;
    ///     let Some(value) = table.get("a")? else {
    ///         return Err(PhaseError::User("nothing there"));
    ///     };
    ///     table.remove("a")?;
    ///     table.insert("b", &value)?;
    ///     Ok(value)
    /// });
    /// assert_eq!(moved.unwrap().as_ref(), b"1");
    /// // If the error type cannot be inferred, name it:
    /// engine.atomic_phase(|tx| {
    ///     tx.table("t")?.remove("b")?;
    ///     Ok::<_, Error>(())
    /// })?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the closure, with everything rolled back. From the engine: `Conflict` after
    /// [`Transaction::MAX_RUNS`](crate::Transaction::MAX_RUNS) runs, `TooLarge` if the changes do not fit into one
    /// frame of 32 MiB.
    pub fn atomic_phase<R, X: From<Error>>(&self, work: impl Fn(&Transaction) -> Result<R, X>) -> Result<R, X> {
        self.atomic_phase_with(&PhaseOptions::new(), work)
    }

    /// Runs a phase as [`atomic_phase`](Self::atomic_phase) does, with options for errors and isolation.
    ///
    /// # Errors
    ///
    /// As [`atomic_phase`](Self::atomic_phase).
    pub fn atomic_phase_with<R, X: From<Error>>(
        &self,
        options: &PhaseOptions<'_, X>,
        work: impl Fn(&Transaction) -> Result<R, X>,
    ) -> Result<R, X> {
        transaction::phase(&self.protocol, options, work)
    }

    /// Returns the names of all managers that have a record.
    pub fn managers(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        let mut range = Some(ListRange::new(None, &[], false));
        while let Some(at) = range {
            let (infos, next) = self.protocol.list(&at, 1)?;
            range = match infos.first() {
                // The first key of a batch may be absent by now.
                None => next,
                Some(info) => {
                    names.push(info.manager().to_owned());
                    ListRange::after(info.manager())
                }
            };
        }
        Ok(names)
    }

    /// Returns the names of all tables that have a row.
    pub fn tables(&self) -> Result<Vec<String>> {
        self.protocol.table_names()
    }

    /// Returns all interrupted records. Right after an open, these are the operations that an earlier process left
    /// unfinished.
    ///
    /// ```
    /// # use oncekey::{Engine, Interruption, Manager};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// drop(payments.begin("order-42")?);
    /// for info in engine.interrupted()? {
    ///     let info = info?;
    ///     assert_eq!(
    ///         (info.manager(), info.interruption()),
    ///         ("payments", Some(Interruption::Dropped))
    ///     );
    /// }
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn interrupted(&self) -> Result<Records> {
        self.records(RecordFilter::new().status(Status::Interrupted))
    }

    /// Returns the records that match, in the order of manager names and keys. Each record is read when the iterator
    /// reaches it: this is not a snapshot.
    pub fn records(&self, filter: RecordFilter) -> Result<Records> {
        Records::new(self.share(), filter)
    }

    /// Returns the directory of the store, or the address of the database without user and password.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.protocol.path()
    }

    /// Returns the report of the open.
    #[must_use]
    pub fn opened(&self) -> &OpenReport {
        &self.shared.report
    }

    /// Asks the server of a store on PostgreSQL for its version, the privileges that the role lacks, the number of
    /// engines that have the store open, the number of records in progress whose owners hold no lock, and whether a
    /// failover may lose answers.
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if the store is a directory; `Unavailable` if the server does not answer.
    #[cfg(feature = "postgres")]
    pub fn server_report(&self) -> Result<crate::postgres::ServerReport> {
        self.protocol.server_report()
    }

    /// Returns the path of the socket through which the command line and [`LiveStore`](crate::admin::LiveStore) reach
    /// this engine. Returns `None` if the socket is [turned off](EngineOptions::admin), and for a temporary or
    /// read-only engine.
    ///
    /// # Errors
    ///
    /// The reason why there is no socket, such as `Io` if the directory is not writable, or if another file has the
    /// name of the socket. The engine works without a socket.
    pub fn socket(&self) -> Result<Option<&Path>> {
        self.shared.served.server.as_ref().map(|server| server.as_deref().map(Server::path)).map_err(Clone::clone)
    }

    /// Returns the counters since the open, and the gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.protocol.stats()
    }

    /// Counts the records by manager and status, and the bytes on disk. With the feature `metrics`, it also sets the
    /// gauges of these numbers.
    ///
    /// Each call reads every record without its outcome, in batches, so its time grows with the number of records. The
    /// engine does not count at any other time. For metrics, call it about once a minute, on a thread of its own.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager, Status};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// payments.execute("order-42", |_claim| Ok(1999)).unwrap();
    /// let usage = engine.usage()?;
    /// let succeeded = usage.managers["payments"].status(Status::Succeeded);
    /// assert_eq!((succeeded.records, succeeded.outcome_bytes), (1, 17));
    /// assert!(usage.journal_bytes > 0 && usage.sled_bytes > 0);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for info in self.records(RecordFilter::new())? {
            let info = info?;
            usage.managers.entry(info.manager().to_owned()).or_default().add(&info);
        }
        (usage.journal_bytes, usage.sled_bytes) = self.protocol().disk_bytes()?;
        #[cfg(feature = "metrics")]
        self.usage_gauges().set(&usage);
        Ok(usage)
    }

    /// Subscribes to events from now on. Each subscription has a queue of [`Events::CAPACITY`] events. While it is
    /// full, new events are dropped and counted in [`Stats::events_dropped`], and the subscriber gets
    /// [`Event::Missed`](crate::admin::Event::Missed) in their place. The subscription ends when the engine is closed.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager, admin::Event};
    /// # let engine = Engine::temporary()?;
    /// let (payments, events) = (engine.manager::<u64, String>("payments")?, engine.events());
    /// payments.execute("order-42", |_claim| Ok(1999)).unwrap();
    /// engine.close()?;
    /// let ended: Vec<_> = events.filter(|event| matches!(event, Event::Ended(_))).collect();
    /// assert_eq!(ended.len(), 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn events(&self) -> Events {
        self.protocol.subscribers().subscribe()
    }

    /// Deletes all expired records. They are absent for every reader anyway; this frees their space.
    pub fn compact_now(&self) -> Result<Compacted> {
        self.protocol.compact_now(self.shared.compaction_batch, &|| true)
    }

    /// Reads everything that is stored and reports what is damaged or missing: every block of records and rows, the
    /// list that counts them, and the segments of the journal.
    ///
    /// Other calls continue meanwhile, and their changes cause no false alarm. Takes as long as reading the whole
    /// store. Cached blocks are checked in memory and not on the disk: call this right after an open, when little is
    /// cached.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// payments.execute("order-42", |_claim| Ok(1999))?;
    /// let report = engine.verify()?;
    /// assert_eq!((report.records, report.problems.as_slice()), (1, [].as_slice()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `Io`, or `Corrupt` if the record store cannot be read to its end; `Closed` if the engine is closed meanwhile.
    /// Damage that does not stop the reading is no error, but one of the [`VerifyReport::problems`].
    pub fn verify(&self) -> Result<VerifyReport> {
        self.protocol.verify(&|| Ok(()))
    }

    /// Copies the store into `path`, as it is at one commit. Other calls continue meanwhile.
    ///
    /// The copy is a closed, durable store. The copy has every record and row of that commit, with their generations,
    /// tokens, effect ids and TTLs, and the same store id. Expired records are left out. An open of the copy finds the
    /// records in progress interrupted, and uses other tokens and effect ids for new generations than the original.
    ///
    /// The copy is written into a directory `.oncekey-backup-*` next to `path`, which is renamed at the end. A process
    /// that is killed leaves this directory. No open accepts it as a store, and it may be deleted.
    ///
    /// Commits do not wait for it, except at the start for the copy of 1/64 of the changes that are only in memory. The
    /// files of the record store may grow meanwhile, because nothing that is being copied is deleted before
    /// the end.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # let engine = Engine::temporary()?;
    /// # let dir = tempfile::tempdir()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// payments.execute("order-42", |_claim| Ok(1999))?;
    /// let report = engine.backup(dir.path().join("payments.backup"))?;
    /// assert_eq!((report.succeeded, report.records()), (1, 1));
    /// let copy = Engine::open(dir.path().join("payments.backup"))?;
    /// assert_eq!(
    ///     copy.manager::<u64, String>("payments")?.get("order-42")?.unwrap().outcome(),
    ///     Some(Ok(&1999))
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if `path` exists or is inside the store; `Io` if the copy cannot be written; `Full` if there is
    /// too little space; `Corrupt` if data to copy is damaged; `Closed` if the engine is closed meanwhile. Then there
    /// is no copy.
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        self.protocol.back_up(path.as_ref(), &|| Ok(()))
    }

    /// Waits until everything committed so far survives a power cut. Needed only under
    /// [`Durability::Eventual`](crate::Durability::Eventual).
    pub fn sync(&self) -> Result<()> {
        self.protocol.sync()
    }

    /// Waits until all committed changes are durable, wakes every waiter, ends the engine's threads and unlocks the
    /// directory. Other handles may still exist: from now on their calls return `Closed`.
    ///
    /// A live [`Claim`](crate::Claim) keeps the directory locked, so that no other process runs its operation at the
    /// same time. It also keeps the socket, so that an operator can read and revoke records. The claim can still end
    /// and commit stages. The last claim unlocks the directory when it ends or is dropped.
    /// [`Manager::revoke`](crate::Manager::revoke) still takes the key away from an owner that hangs. A key taken by
    /// [`initiate`](crate::Manager::initiate) has no claim and keeps no lock: the next open finds it interrupted.
    ///
    /// # Errors
    ///
    /// `ClaimsAlive` with the number of live claims: the engine is closed, and committed changes are durable.
    /// `InsideTransaction` from the closure of a transaction: the engine stays open. Any other error happened while
    /// closing; answers returned before are safe.
    pub fn close(self) -> Result<()> {
        self.close_now()
    }

    /// Refuses new claims with `Closed`, waits up to `timeout` until no claim is alive, and then closes as
    /// [`close`](Engine::close) does. During the wait everything else continues: replays, tables, and claims made by
    /// running operations of [`execute`](crate::Manager::execute).
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager};
    /// # use std::time::Duration;
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let claim = payments.begin("order-42")?.into_claim().unwrap();
    /// let error = engine.close_when_idle(Duration::ZERO).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ClaimsAlive);
    /// claim.succeed(&1999)?; // stored, and the directory is unlocked
    ///
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`close`](Engine::close). `ClaimsAlive` if the timeout was too short.
    pub fn close_when_idle(self, timeout: Duration) -> Result<()> {
        self.protocol.check_outside()?;
        self.protocol.check_not_running()?;
        self.protocol.drain(deadline(timeout));
        self.close_now()
    }

    /// Rescues what can still be read of a damaged store into a new one, with the default options. See
    /// [`EngineOptions::salvage`].
    ///
    /// # Errors
    ///
    /// As [`EngineOptions::salvage`].
    pub fn salvage(from: impl AsRef<Path>, into: impl AsRef<Path>) -> Result<SalvageReport> {
        EngineOptions::default().salvage(from, into)
    }

    /// Ends the engine as the death of its process would. See `Engine::crash`.
    #[cfg(feature = "test-util")]
    pub(super) fn end_as_killed(&self) {
        let server = self.shared.served.server.as_ref().ok().and_then(Option::as_ref);
        server.inspect(|server| server.hang_up());
        self.protocol.crash();
        self.shared.compactor.end();
        server.inspect(|server| server.join());
    }

    /// Closes the store although claims are alive, for tests of closed stores with records in progress.
    #[cfg(feature = "fuzzing")]
    #[doc(hidden)]
    pub fn abort(self) -> Result<()> {
        let ended = self.protocol.abort();
        self.shared.compactor.end();
        ended
    }

    fn close_now(&self) -> Result<()> {
        // Before anything is ended: inside a transaction the engine must stay open.
        self.protocol.check_outside()?;
        // Before the threads are joined, so that a pass of the compaction ends at once.
        let closed = self.protocol.close();
        self.shared.compactor.end();
        closed
    }

    /// Registers the types of a manager. Fails if a live manager with this name and schema has other types.
    pub(crate) fn register<T, E>(&self, name: &str, schema: u32) -> Result<Registered> {
        self.shared.types.register::<T, E>(name, schema)
    }

    pub(crate) fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn usage_gauges(&self) -> &usage::Gauges {
        &self.shared.usage
    }

    pub(crate) fn share(&self) -> Arc<Protocol> {
        Arc::clone(&self.protocol)
    }
}
