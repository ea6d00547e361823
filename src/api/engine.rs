//! A store that is open.

#[cfg(feature = "test-util")]
mod crash;
mod types;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::api::records::{RecordFilter, Records};
use crate::api::table::Table;
use crate::api::transaction::{self, PhaseOptions, Transaction};
use crate::protocol::compactor::Compactor;
use crate::protocol::event::{Compacted, Events};
use crate::protocol::{BackupReport, ListRange, OpenReport, Protocol, VerifyReport};
use crate::types::clock::deadline;
use crate::types::error::{Error, Result};
use crate::types::options::EngineOptions;
use crate::types::record::Status;
use crate::types::stats::Stats;
use types::KnownTypes;
pub(crate) use types::Registered;

/// An open store.
///
/// Cheap to clone, and used from any number of threads. The last handle dropped (managers, claims and pending operations
/// hold one) closes it as [`close`](Engine::close) does.
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
    protocol: Arc<Protocol>,
    shared: Arc<Shared>,
}

struct Shared {
    report: OpenReport,
    compaction_batch: usize,
    /// Ended with the last handle, or before the engine is closed.
    compactor: Compactor,
    types: KnownTypes,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the store in `path`, with the defaults; creates what is missing.
    ///
    /// # Errors
    ///
    /// `StoreInUse` if it is open already; `UnsupportedFormat` if `path` holds something else, or a newer store; `Corrupt` if
    /// it is damaged. Nothing is changed then.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        EngineOptions::default().open(path)
    }

    /// A store in a directory of its own, which is removed with the last handle: for tests and examples.
    pub fn temporary() -> Result<Self> {
        EngineOptions::default().temporary()
    }

    /// Options, to be set and then opened.
    pub fn options() -> EngineOptions {
        EngineOptions::default()
    }

    /// A table of the caller's own data in this store.
    ///
    /// # Errors
    ///
    /// `InvalidName` unless the name is 1 to 64 of `a-z 0-9 . _ -`.
    pub fn table(&self, name: &str) -> Result<Table> {
        Table::new(self.share(), name)
    }

    /// Changes several rows together or not at all; see [`Transaction`] for what the closure may do. It is run again when
    /// another commit has changed what it read. `Err` and panics roll back. Inside the closure of another transaction of this
    /// engine, on the same thread, it is part of that one: it is run once, and what it writes is committed with the rest.
    ///
    /// The closure's error is the caller's own type, as long as the engine's error can be turned into it: an enum with
    /// `#[from] oncekey::Error`, `anyhow::Error`, [`Error`], or the ready-made [`PhaseError`](crate::PhaseError).
    ///
    /// ```
    /// # use oncekey::{Engine, Error, PhaseError};
    /// # let engine = Engine::temporary()?;
    /// engine.atomic_phase(|tx| tx.table("t")?.insert("a", "1"))?;
    /// let moved = engine.atomic_phase(|tx| {
    ///     let table = tx.table("t")?;
    ///     let Some(value) = table.get("a")? else { return Err(PhaseError::User("nothing there")) };
    ///     table.remove("a")?;
    ///     table.insert("b", &value)?;
    ///     Ok(value)
    /// });
    /// assert_eq!(moved.unwrap().as_ref(), b"1");
    /// // With nothing to infer the error from, it is named:
    /// engine.atomic_phase(|tx| {
    ///     tx.table("t")?.remove("b")?;
    ///     Ok::<_, Error>(())
    /// })?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's own; nothing was changed then. Of the engine's: `Conflict` after
    /// [`Transaction::MAX_RUNS`](crate::Transaction::MAX_RUNS), `TooLarge` if all that is written does not fit into one frame of
    /// 32 MiB.
    pub fn atomic_phase<R, X: From<Error>>(&self, work: impl Fn(&Transaction) -> Result<R, X>) -> Result<R, X> {
        self.atomic_phase_with(&PhaseOptions::new(), work)
    }

    /// As [`atomic_phase`](Self::atomic_phase), with options: what is done about errors, and how strict it is.
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

    /// The names of all managers that have a record.
    pub fn managers(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        let mut range = Some(ListRange::new(None, &[], false));
        while let Some(at) = range {
            let (infos, next) = self.protocol.list(&at, 1)?;
            range = match infos.first() {
                // The first key of a batch may be one that is absent by now.
                None => next,
                Some(info) => {
                    names.push(info.manager().to_owned());
                    ListRange::behind(info.manager())
                }
            };
        }
        Ok(names)
    }

    /// Every interrupted record: right after open, the exact list of what an earlier process left unfinished.
    ///
    /// ```
    /// # use oncekey::{Engine, Interruption, Manager};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// drop(payments.begin("order-42")?);
    /// for info in engine.interrupted()? {
    ///     let info = info?;
    ///     assert_eq!((info.manager(), info.interruption()), ("payments", Some(Interruption::Dropped)));
    /// }
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn interrupted(&self) -> Result<Records> {
        self.records(RecordFilter::new().status(Status::Interrupted))
    }

    /// The records that match, in the order of their managers' names and keys. Each is read as it is then; not a snapshot.
    pub fn records(&self, filter: RecordFilter) -> Result<Records> {
        Records::new(self.share(), filter)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.protocol.path()
    }

    /// What its open found.
    #[must_use]
    pub fn opened(&self) -> &OpenReport {
        &self.shared.report
    }

    /// Its counters, since it was opened, and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.protocol.stats()
    }

    /// Subscribes to what happens from now on. Each subscription has a queue of [`Events::CAPACITY`]; what does not fit is dropped,
    /// and counted in [`Stats::events_dropped`]. The subscription ends when the engine is closed.
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

    /// Deletes everything that has expired. Expired records are absent for every reader anyway: this frees their room.
    pub fn compact_now(&self) -> Result<Compacted> {
        self.protocol.compact_now(self.shared.compaction_batch)
    }

    /// Reads everything that is stored, and says what is damaged or missing: every block of records and rows, the list that says
    /// how many there are, and the journal's segments.
    ///
    /// Other calls go on meanwhile, and their changes cause no false alarm. It takes as long as reading the store. Blocks in the
    /// cache are checked there and not on the disk, so it checks most of the disk right after an open.
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
    /// `Io`, or `Corrupt` if the record store cannot be read to its end; `Closed` if the engine is closed meanwhile. What can be
    /// read and is wrong is no error: it is in [`VerifyReport::problems`].
    pub fn verify(&self) -> Result<VerifyReport> {
        self.protocol.verify()
    }

    /// Copies the store into `path`, as it is at one commit, while other calls go on.
    ///
    /// The copy is a store of its own, closed and durable. It has every record and row of that commit, with their
    /// generations, tokens, effect ids and TTLs, and the same store id. Expired records are left out. An open of the copy
    /// finds records that are in progress interrupted. It draws other tokens and effect ids for new generations, so that
    /// original and copy never give the same ones.
    ///
    /// The copy is written into a directory `.oncekey-backup-*` beside `path` and renamed at the end. A process that is killed
    /// leaves that directory, which no open takes for a store and which may be deleted.
    ///
    /// Commits wait only while the list of what is copied is taken. The files of the record store may grow meanwhile: nothing
    /// that is copied is deleted before the end.
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
    /// assert_eq!(copy.manager::<u64, String>("payments")?.get("order-42")?.unwrap().outcome(), Some(Ok(&1999)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if `path` exists or lies inside the store, `Io` if it cannot be written to, `Full` if there is too little
    /// room, `Corrupt` if something that is to be copied is damaged, `Closed` if the engine is closed meanwhile. Then there is
    /// no copy.
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        self.protocol.back_up(path.as_ref())
    }

    /// Waits until everything committed so far survives a power cut: for
    /// [`Durability::Eventual`](crate::Durability::Eventual).
    pub fn sync(&self) -> Result<()> {
        self.protocol.sync()
    }

    /// Waits for what was committed, wakes every waiter, ends the threads and frees the lock, although other handles live:
    /// they answer `Closed` from now on.
    ///
    /// A live [`Claim`](crate::Claim) keeps the lock, so that no other process runs its operation at the same time. The claim
    /// can still end and commit stages. The last claim frees the lock when it ends or is dropped.
    /// [`Manager::revoke`](crate::Manager::revoke) still takes the key away from an owner that hangs. A key begun by
    /// [`initiate`](crate::Manager::initiate) has no claim and keeps no lock: the next open finds it interrupted.
    ///
    /// # Errors
    ///
    /// `ClaimsAlive` with the number of live claims: the engine is closed all the same, and what was committed is durable.
    /// `InsideTransaction` from a transaction's closure: nothing is closed then. Otherwise whatever went wrong on the way; what
    /// was answered before is safe all the same.
    pub fn close(self) -> Result<()> {
        self.close_now()
    }

    /// Refuses new claims with `Closed`, waits up to `timeout` until no claim is alive, and then does as
    /// [`close`](Engine::close). Meanwhile all else goes on: replays, tables, and claims that running operations of
    /// [`execute`](crate::Manager::execute) ask for.
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager};
    /// # use std::time::Duration;
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let claim = payments.begin("order-42")?.into_claim().unwrap();
    /// let error = engine.close_when_idle(Duration::ZERO).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ClaimsAlive);
    /// claim.succeed(&1999)?; // stored, and the store is free
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`close`](Engine::close): `ClaimsAlive` if the timeout was too short.
    pub fn close_when_idle(self, timeout: Duration) -> Result<()> {
        self.protocol.check_outside()?;
        self.protocol.check_not_running()?;
        self.protocol.drain(deadline(timeout));
        self.close_now()
    }

    /// Closes the store and leaves the engine's claims behind: for tests of stores that were closed and have records in progress.
    #[cfg(feature = "fuzzing")]
    #[doc(hidden)]
    pub fn abort(self) -> Result<()> {
        let ended = self.protocol.abort();
        self.shared.compactor.end();
        ended
    }

    fn close_now(&self) -> Result<()> {
        // What is refused inside a transaction must not end the compaction.
        self.protocol.check_outside()?;
        // First, so that a pass of the compaction ends at once.
        let closed = self.protocol.close();
        self.shared.compactor.end();
        closed
    }

    /// Refuses a manager whose types are not those of another one, alive, of this name and schema.
    pub(crate) fn register<T, E>(&self, name: &str, schema: u32) -> Result<Registered> {
        self.shared.types.register::<T, E>(name, schema)
    }

    pub(crate) fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    pub(crate) fn share(&self) -> Arc<Protocol> {
        Arc::clone(&self.protocol)
    }
}

impl EngineOptions {
    /// Opens the store in `path`; creates what is missing.
    ///
    /// # Errors
    ///
    /// As [`Engine::open`], and `InvalidOptions`.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Engine> {
        self.open_in(path.as_ref(), None)
    }

    /// A store in a directory of its own, which is removed with the last handle.
    pub fn temporary(&self) -> Result<Engine> {
        let directory = tempfile::Builder::new().prefix("oncekey-").tempdir();
        let directory = directory.map_err(|cause| Error::io("create directory in", &std::env::temp_dir(), &cause))?;
        let path = directory.path().to_owned();
        self.open_in(&path, Some(directory))
    }

    /// For a store whose open answers `Corrupt`: moves the snapshots of its record store aside, into a directory beside it, and
    /// reads the whole log without them, which comes to the same state if only a snapshot was damaged. The store is closed
    /// again; open it and ask [`Engine::verify`] what is left to be said. Nothing is ever deleted.
    ///
    /// Takes as long as reading the store. To be asked for by a person who has kept a copy, never by a program on its own.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); `NotFound` where there is no store. `Corrupt` says that the damage is elsewhere.
    pub fn repair(&self, path: impl AsRef<Path>) -> Result<OpenReport> {
        Protocol::repair(path.as_ref(), self)
    }

    fn open_in(&self, path: &Path, directory: Option<tempfile::TempDir>) -> Result<Engine> {
        let (protocol, report) = Protocol::open(path, self, directory)?;
        let protocol = Arc::new(protocol);
        let compaction_batch = self.compaction_batch.get();
        let compactor = Compactor::start(&protocol, compaction_batch, self.compaction_interval)?;
        let shared = Shared { report, compaction_batch, compactor, types: KnownTypes::default() };
        Ok(Engine { protocol, shared: Arc::new(shared) })
    }
}
