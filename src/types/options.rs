//! Options of an engine, a manager and a single call.

mod calls;
mod durability;
mod manager;
pub(crate) mod migrate;
mod policy;
mod remember;
mod waiting;

pub use calls::CallOptions;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::types::clock::{Clock, SystemClock};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::value::Value;
pub use durability::Durability;
pub use manager::ManagerOptions;
pub use policy::{OnError, OnInterrupted};

/// The options of an engine. [`Engine::options`](crate::Engine::options) creates them.
///
/// ```
/// use oncekey::{Durability, Engine};
/// use std::time::Duration;
///
/// let engine = Engine::options()
///     .cache_capacity(16 << 20)
///     .durability(Durability::Eventual { interval: Duration::from_millis(50) })
///     .temporary()?; // or .open("payments.oncekey")
///
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub struct EngineOptions {
    pub(crate) cache_capacity: u64,
    pub(crate) durability: Durability,
    pub(crate) compaction_interval: Duration,
    pub(crate) compaction_batch: NonZeroUsize,
    pub(crate) max_value_bytes: usize,
    pub(crate) max_offline: Duration,
    pub(crate) sync_timeout: Duration,
    pub(crate) max_waiting_per_key: usize,
    pub(crate) max_waiting: usize,
    pub(crate) any_file_system: bool,
    pub(crate) create: bool,
    pub(crate) admin: bool,
    pub(crate) read_only: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) sync_flag: bool,
    #[cfg(feature = "postgres")]
    pub(crate) schema: String,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            cache_capacity: 128 << 20,
            durability: Durability::Immediate,
            compaction_interval: Duration::from_secs(1),
            compaction_batch: NonZeroUsize::MIN.saturating_add(1023),
            max_value_bytes: 1 << 20,
            max_offline: Duration::ZERO,
            sync_timeout: Duration::from_secs(30),
            max_waiting_per_key: 32,
            max_waiting: 512,
            any_file_system: false,
            create: true,
            admin: true,
            read_only: false,
            segment_bytes: 1 << 20,
            sync_flag: true,
            #[cfg(feature = "postgres")]
            schema: "oncekey".to_owned(),
            clock: Arc::new(SystemClock),
        }
    }
}

impl EngineOptions {
    /// Sets the size of the caches, in bytes: one eighth for records that were read, the rest for the record store's
    /// pages. The size is approximate: large values can take more. Default: 128 MiB.
    pub fn cache_capacity(mut self, bytes: u64) -> Self {
        self.cache_capacity = bytes;
        self
    }

    /// Sets the moment at which a commit is acknowledged. Default: [`Durability::Immediate`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the shortest time between two passes of the background compaction. If nothing has expired, the compaction
    /// sleeps for longer: until a record expires.
    ///
    /// Default: 1 s. With [`FOREVER`](crate::FOREVER), only [`compact_now`](crate::Engine::compact_now) runs a pass.
    /// Expired records are then also deleted when their part of the record store is merged, or when they take too much
    /// space.
    pub fn compaction_interval(mut self, interval: Duration) -> Self {
        self.compaction_interval = interval;
        self
    }

    /// Sets about how many expired records the compaction removes in one step. A step that rewrites a part of the
    /// record store removes all expired records in that part. Default: 1024.
    pub fn compaction_batch(mut self, records: NonZeroUsize) -> Self {
        self.compaction_batch = records;
        self
    }

    /// Sets the largest size of an outcome, a checkpoint or the value of a row, in bytes. The size of an encoded value
    /// includes its header of nine bytes. Default: 1 MiB. Maximum: [`Value::MAX_BYTES`].
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = bytes;
        self
    }

    /// Sets how much of the time during which the machine was off counts towards TTLs.
    ///
    /// Default 0: a wrong wall clock can never expire a record early. With a larger value it can, by at most
    /// `min(max_offline, clock error)`.
    pub fn max_offline(mut self, time: Duration) -> Self {
        self.max_offline = time;
        self
    }

    /// Sets how long a call waits for other calls before it returns [`Busy`](crate::ErrorKind::Busy), and how long the
    /// disk may make no progress before the engine is poisoned.
    ///
    /// Ending an operation that has run never returns `Busy`: the call waits as long as the disk makes progress. Time
    /// during which the process did not run (stopped, or its machine paused) does not count. Default: 30 s.
    pub fn sync_timeout(mut self, time: Duration) -> Self {
        self.sync_timeout = time;
        self
    }

    /// Allows stores on NFS, 9p, SMB and FUSE, where locks and syncs may not work as specified. Default: false.
    pub fn any_file_system(mut self, allowed: bool) -> Self {
        self.any_file_system = allowed;
        self
    }

    /// Allows the creation of a new store. If false and there is no store, the open returns `NotFound` and changes
    /// nothing. Default: true.
    pub fn create(mut self, allowed: bool) -> Self {
        self.create = allowed;
        self
    }

    /// Serves a socket in the directory of the store, for the command line and other tools of the same user while the
    /// store is open. See [`LiveStore`](crate::admin::LiveStore). A temporary store and a [read-only](Self::read_only)
    /// engine have none. Default: true.
    pub fn admin(mut self, served: bool) -> Self {
        self.admin = served;
        self
    }

    /// Opens the store only to read it. The open and all calls write, create and rename nothing. So the store may be on
    /// a file system that is mounted read-only, and permission to read is enough. Default: false.
    ///
    /// Records, rows, listings, statistics, [`verify`](crate::Engine::verify) and [`backup`](crate::Engine::backup)
    /// work, and finished outcomes are replayed. Every call that would change something returns
    /// [`ReadOnly`](crate::ErrorKind::ReadOnly) before it does anything, and before an operation runs. Commits that the
    /// last owner left in the journal are replayed into memory, at each such open. Records whose owner died are
    /// interrupted.
    ///
    /// A store on PostgreSQL is read in sessions that are read-only at the server, while other engines have it open.
    /// The role needs only `USAGE` of the schema and `SELECT` on its tables. A record whose owner holds no lock any
    /// more is shown as interrupted. That is not final until another engine has recorded it: an owner that has lost its
    /// session may still come back.
    ///
    /// Several engines can read a directory at the same time. While one does, an open for writing returns
    /// [`StoreInUse`](crate::ErrorKind::StoreInUse). A read-only open returns it while the store is open for writing. A
    /// read-only open never creates a store: it returns [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    ///
    /// ```
    /// use oncekey::{Engine, ErrorKind, Manager};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let payments: Manager<u64> = Engine::open(dir.path())?.manager("payments")?;
    /// payments.execute("order-42", |_claim| Ok(1999))?;
    /// drop(payments);
    /// let engine = Engine::options().read_only(true).open(dir.path())?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// assert!(payments.get("order-42")?.is_some());
    /// assert_eq!(payments.remove("order-42").unwrap_err().kind(), ErrorKind::ReadOnly);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Sets the source of time. Default: [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the schema of the tables of a store on PostgreSQL: 1 to 64 of `a-z 0-9 . _ -`. Each schema is a store of
    /// its own. Default: `oncekey`.
    #[cfg(feature = "postgres")]
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// Sets the size of the first journal segment, for tests that need many segments.
    #[doc(hidden)]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Allows the file system's sync flag on sled's files, which makes each write synchronous. False is for tests.
    #[doc(hidden)]
    pub fn sync_flag(mut self, allowed: bool) -> Self {
        self.sync_flag = allowed;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.max_value_bytes > Value::MAX_BYTES {
            return Err(invalid(&format!(
                "max_value_bytes is {}, the limit is {}",
                self.max_value_bytes,
                Value::MAX_BYTES
            )));
        }
        if self.compaction_interval.is_zero() {
            return Err(invalid("compaction_interval is zero"));
        }
        if self.sync_timeout.is_zero() {
            return Err(invalid("sync_timeout is zero"));
        }
        if matches!(self.durability, Durability::Eventual { interval } if interval.is_zero()) {
            return Err(invalid("durability interval is zero"));
        }
        Ok(())
    }
}

/// Checks that a TTL is not zero. With zero, an answer would expire before it could be replayed.
pub(crate) fn check_ttl(name: &str, ttl: Duration) -> Result<()> {
    if ttl.is_zero() { Err(invalid(&format!("{name} is zero"))) } else { Ok(()) }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOptions, message)
}
