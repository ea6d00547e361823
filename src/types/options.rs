//! How an engine, a manager and a single call are set up.

mod durability;
pub(crate) mod migrate;
mod waiting;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::clock::{Clock, FOREVER, SystemClock};
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::fingerprint::Fingerprint;
use crate::types::value::Value;
pub use durability::Durability;
use migrate::Migrations;

const HOUR: Duration = Duration::from_secs(3600);

/// What happens to a record whose owner ended without an answer.
///
/// Fixed when a generation starts: changing it in the program does not free what already holds. To free those, go through
/// [`Engine::interrupted`](crate::Engine::interrupted) and resolve each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum OnInterrupted {
    /// Nobody runs the operation again until someone resolves the record: it may have happened.
    #[default]
    Hold,
    /// The next `begin` takes the record over, at its recovery point. For operations that are safe to repeat, e.g. because
    /// they pass [`effect_id`](crate::Claim::effect_id) downstream.
    Resume,
}

/// What `execute` does with an operation's `Err`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnError {
    /// Stores it: every retry gets the same failure until its TTL. The default, because it never runs anything twice.
    #[default]
    Store,
    /// Nothing has happened: the key is free at once and a waiter may take it over.
    Release,
    /// It is not known whether anything happened: the record is interrupted, and its policy decides.
    Interrupt,
    /// Interrupts if this attempt asked for an [`effect_id`](crate::Claim::effect_id) or committed a
    /// [`work_stage`](crate::Claim::work_stage), and releases otherwise. For operations that ask for an effect id before each
    /// effect outside, and write rows only in stages: then an error before the first of these proves that nothing happened.
    ReleaseUnlessEffect,
}

/// How an engine is opened. Made by [`Engine::options`](crate::Engine::options).
///
/// ```
/// use oncekey::{Durability, Engine};
/// use std::time::Duration;
///
/// let engine = Engine::options()
///     .cache_capacity(16 << 20)
///     .durability(Durability::Eventual { interval: Duration::from_millis(50) })
///     .temporary()?; // or .open("payments.oncekey")
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
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
    pub(crate) segment_bytes: u64,
    pub(crate) sync_flag: bool,
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
            segment_bytes: 1 << 20,
            sync_flag: true,
            clock: Arc::new(SystemClock),
        }
    }
}

impl EngineOptions {
    /// Bytes of memory for the record store's page cache, about: with large values it can be more. Defaults to 128 MiB.
    pub fn cache_capacity(mut self, bytes: u64) -> Self {
        self.cache_capacity = bytes;
        self
    }

    /// When a commit counts as done. Defaults to [`Durability::Immediate`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The least time between two passes of the background compaction, which otherwise sleeps until something expires.
    /// Defaults to 1 s; for ever leaves everything to [`compact_now`](crate::Engine::compact_now).
    pub fn compaction_interval(mut self, interval: Duration) -> Self {
        self.compaction_interval = interval;
        self
    }

    /// How many expired records a compaction looks at in one step. Defaults to 1024.
    pub fn compaction_batch(mut self, records: NonZeroUsize) -> Self {
        self.compaction_batch = records;
        self
    }

    /// The largest encoded outcome in bytes, with the nine that each begins with. Defaults to 1 MiB, at most [`Value::MAX_BYTES`].
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = bytes;
        self
    }

    /// How much of the time when the machine was off counts towards TTLs. Defaults to none, and then no wall clock can make a
    /// record expire early; otherwise it can by at most the error of the wall clock or this, whichever is less.
    pub fn max_offline(mut self, time: Duration) -> Self {
        self.max_offline = time;
        self
    }

    /// How long a call waits for others before it answers [`Busy`](crate::ErrorKind::Busy), and how long the disk may make no
    /// progress at all before the engine is poisoned. Endings of operations that have run are never `Busy`: they wait as long as
    /// the disk makes progress. Time in which this process did not run (stopped, paused, its machine frozen) does not count.
    /// Defaults to 30 s.
    pub fn sync_timeout(mut self, time: Duration) -> Self {
        self.sync_timeout = time;
        self
    }

    /// Also opens stores on NFS, 9p, SMB and FUSE, where locks and syncs may not do what they say. Defaults to no.
    pub fn any_file_system(mut self, allowed: bool) -> Self {
        self.any_file_system = allowed;
        self
    }

    /// Whether a store is made where none is; otherwise that is `NotFound`, and nothing is touched. Defaults to yes.
    pub fn create(mut self, allowed: bool) -> Self {
        self.create = allowed;
        self
    }

    /// Where time comes from. Defaults to [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The size of the first journal segment, for tests that want many.
    #[doc(hidden)]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Whether sled's files may be synced write by write, for tests of the other way.
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

/// How a manager treats its keys.
///
/// ```
/// use oncekey::{Engine, FOREVER, Manager, ManagerOptions, OnInterrupted};
/// use std::time::Duration;
///
/// # let engine = Engine::temporary()?;
/// let options = ManagerOptions::new()
///     .success_ttl(FOREVER)
///     .failure_ttl(Duration::from_secs(600))
///     .on_interrupted(OnInterrupted::Resume);
/// let mails: Manager<()> = engine.manager_with("mails", options)?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ManagerOptions {
    pub(crate) success_ttl: Duration,
    pub(crate) failure_ttl: Duration,
    pub(crate) released_ttl: Duration,
    pub(crate) interrupted_ttl: Duration,
    /// `None` until it is set: requests have another default.
    pub(crate) on_interrupted: Option<OnInterrupted>,
    pub(crate) max_attempts: NonZeroU32,
    pub(crate) schema: u32,
    pub(crate) migrations: Migrations,
    pub(crate) strict_fingerprint: bool,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            success_ttl: 24 * HOUR,
            failure_ttl: 24 * HOUR,
            released_ttl: 24 * HOUR,
            interrupted_ttl: FOREVER,
            on_interrupted: None,
            max_attempts: NonZeroU32::MAX,
            schema: 0,
            migrations: Migrations::default(),
            strict_fingerprint: false,
        }
    }
}

impl ManagerOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a success is replayed, from its ending; [`FOREVER`] never lapses. Defaults to 24 h.
    pub fn success_ttl(mut self, ttl: Duration) -> Self {
        self.success_ttl = ttl;
        self
    }

    /// How long a stored failure is replayed, from its ending. Defaults to 24 h.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.failure_ttl = ttl;
        self
    }

    /// How long a released record is kept, from its release or its creation by `Requests::create`. Defaults to 24 h. One that holds
    /// progress is kept for [`interrupted_ttl`](Self::interrupted_ttl) if that is longer: if an attempt asked for an effect id,
    /// committed a stage, or was interrupted and resumed, or a patch has set its recovery point or checkpoint.
    pub fn released_ttl(mut self, ttl: Duration) -> Self {
        self.released_ttl = ttl;
        self
    }

    /// How long an interrupted record is kept, from its interruption; if its process died, from the open that found it. When the
    /// time is over, the next `begin` runs the operation again, although it may have happened. A record with a live owner never
    /// expires. Defaults to [`FOREVER`].
    pub fn interrupted_ttl(mut self, ttl: Duration) -> Self {
        self.interrupted_ttl = ttl;
        self
    }

    /// What happens to a record whose owner ended without an answer. Defaults to [`OnInterrupted::Hold`]; `Requests::drive`
    /// resumes unless this is set.
    pub fn on_interrupted(mut self, policy: OnInterrupted) -> Self {
        self.on_interrupted = Some(policy);
        self
    }

    /// The number of attempts of one generation that may be interrupted: after that many the record is held under
    /// [`OnInterrupted::Resume`] too, because an operation that kills its process each time must not do so for ever. Attempts
    /// that were released do not count. A held record is [resolved](crate::Manager::resolve) as under `Hold`; `Retry` allows one
    /// more attempt. Read by each `begin`, not stored with the record. Defaults to no limit.
    pub fn max_attempts(mut self, attempts: NonZeroU32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// A number written into each record; read with another, an outcome is [migrated](Self::migrate), or `TypeMismatch`. Raise it when the same
    /// fields change their meaning; changes of the types themselves are found without it:
    /// [limits](crate::guides::limits) has the rules. Defaults to 0.
    pub fn schema(mut self, schema: u32) -> Self {
        self.schema = schema;
        self
    }

    /// Whether a retry that brings a fingerprint to a record that has none is another request, and answers `Mismatch`. Otherwise
    /// such a record answers everybody. Defaults to false.
    pub fn strict_fingerprint(mut self, strict: bool) -> Self {
        self.strict_fingerprint = strict;
        self
    }

    /// For a manager of these types.
    pub(crate) fn check<T, E>(&self) -> Result<()> {
        self.migrations.check::<T, E>(self.schema)?;
        check_ttl("success_ttl", self.success_ttl)?;
        check_ttl("failure_ttl", self.failure_ttl)?;
        check_ttl("released_ttl", self.released_ttl)?;
        check_ttl("interrupted_ttl", self.interrupted_ttl)
    }
}

/// What one `begin` adds to its manager's options. All of it is fixed when a generation starts.
///
/// ```
/// use oncekey::{Begin, BeginOptions, Context, Engine, Fingerprint, Manager};
///
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let options = |cents: u64| {
///     let context = Context::new().with("user", "ada");
///     Ok::<_, oncekey::Error>(BeginOptions::new().fingerprint(Fingerprint::of(&cents)?).context(context))
/// };
/// let claim = payments.begin_with("order-42", options(1999)?)?.into_claim().unwrap();
/// assert_eq!(claim.context().text("user"), Some("ada"));
/// assert!(matches!(payments.begin_with("order-42", options(2999)?)?, Begin::Mismatch(_)));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct BeginOptions {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) accepted: Vec<Fingerprint>,
    pub(crate) context: Option<Context>,
    pub(crate) success_ttl: Option<Duration>,
    pub(crate) failure_ttl: Option<Duration>,
    pub(crate) on_interrupted: Option<OnInterrupted>,
    /// A record on which a stage has committed is an error.
    pub(crate) only_from_start: bool,
}

impl BeginOptions {
    /// The manager's own.
    pub fn new() -> Self {
        Self::default()
    }

    /// What "the same request" means. A record that has one answers `Mismatch` to every retry with another, or with none.
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Also accepts a record with this fingerprint, which an older rule gives to the same request; may be called several
    /// times. A new record gets [`fingerprint`](Self::fingerprint). So a deploy that changes the rule turns no retry into a
    /// mismatch; drop the older rule once the records of its time have expired.
    ///
    /// ```
    /// use oncekey::{Begin, BeginOptions, Engine, Fingerprint, Manager};
    ///
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let older = Fingerprint::of(&("EUR", 1999))?;
    /// let claim = payments.begin_with("order-42", BeginOptions::new().fingerprint(older))?.into_claim().unwrap();
    /// claim.succeed(&1999)?;
    /// // The next version of the service also compares the payee.
    /// let newer = Fingerprint::of(&("EUR", 1999, "ada"))?;
    /// let options = BeginOptions::new().fingerprint(newer).also_accept(older);
    /// assert!(matches!(payments.begin_with("order-42", options)?, Begin::Replay(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn also_accept(mut self, fingerprint: Fingerprint) -> Self {
        self.accepted.push(fingerprint);
        self
    }

    /// Facts kept with the record, readable without its types.
    pub fn context(mut self, context: Context) -> Self {
        self.context = Some(context);
        self
    }

    /// Instead of the manager's.
    pub fn success_ttl(mut self, ttl: Duration) -> Self {
        self.success_ttl = Some(ttl);
        self
    }

    /// Instead of the manager's.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.failure_ttl = Some(ttl);
        self
    }

    /// Instead of the manager's.
    pub fn on_interrupted(mut self, policy: OnInterrupted) -> Self {
        self.on_interrupted = Some(policy);
        self
    }
}

/// What one `execute` adds to its manager's options.
#[derive(Clone, Debug)]
#[must_use]
pub struct ExecuteOptions {
    pub(crate) begin: BeginOptions,
    pub(crate) wait: Duration,
}

impl Default for ExecuteOptions {
    fn default() -> Self {
        Self { begin: BeginOptions::default(), wait: Duration::from_secs(2) }
    }
}

impl ExecuteOptions {
    /// The manager's own, and a wait of 2 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`BeginOptions::fingerprint`].
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.begin.fingerprint = Some(fingerprint);
        self
    }

    /// See [`BeginOptions::also_accept`].
    pub fn also_accept(mut self, fingerprint: Fingerprint) -> Self {
        self.begin = self.begin.also_accept(fingerprint);
        self
    }

    /// See [`BeginOptions::context`].
    pub fn context(mut self, context: Context) -> Self {
        self.begin.context = Some(context);
        self
    }

    /// Instead of the manager's.
    pub fn success_ttl(mut self, ttl: Duration) -> Self {
        self.begin.success_ttl = Some(ttl);
        self
    }

    /// Instead of the manager's.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.begin.failure_ttl = Some(ttl);
        self
    }

    /// Instead of the manager's.
    pub fn on_interrupted(mut self, policy: OnInterrupted) -> Self {
        self.begin.on_interrupted = Some(policy);
        self
    }

    /// How long to wait for another owner; zero never waits. A thread that waits does nothing else, and
    /// [`max_waiting`](EngineOptions::max_waiting) bounds their number. Default: 2 s. A wait too long for the clock is for ever.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self
    }
}

impl From<BeginOptions> for ExecuteOptions {
    fn from(begin: BeginOptions) -> Self {
        Self { begin, ..Self::default() }
    }
}

/// A TTL of zero would forget an answer before anyone could replay it.
pub(crate) fn check_ttl(name: &str, ttl: Duration) -> Result<()> {
    if ttl.is_zero() { Err(invalid(&format!("{name} is zero"))) } else { Ok(()) }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOptions, message)
}
