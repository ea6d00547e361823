//! A record as it is stored, and as it is shown.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::types::clock::{NEVER, wall_time};
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::fingerprint::Fingerprint;
use crate::types::key::{self, Key};
use crate::types::options::OnInterrupted;
use crate::types::value::Value;

/// The recovery point of a record at which no stage has ended yet.
pub const STARTED: &str = "started";
/// The recovery point of a record that has succeeded or failed.
pub const FINISHED: &str = "finished";

/// Whether a stage can leave its record at this point.
pub(crate) fn check_recovery_point(point: &str) -> Result<()> {
    let problem = match point {
        "" => "a recovery point has no name".to_owned(),
        FINISHED => format!("the recovery point {FINISHED} is reached by an outcome, not by an advance"),
        long if long.len() > RecordInfo::MAX_RECOVERY_POINT_BYTES => {
            format!(
                "a recovery point is {} bytes long, the limit is {}",
                long.len(),
                RecordInfo::MAX_RECOVERY_POINT_BYTES
            )
        }
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::InvalidName, problem))
}

/// Whether a record can keep so long a checkpoint.
pub(crate) fn check_checkpoint(len: usize, limit: u64) -> Result<()> {
    if len as u64 <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, format!("the checkpoint is {len} bytes long, the limit is {limit}")))
}

/// In an stored record that is about to be committed: the number of the frame that will carry it.
pub(crate) const THIS_FRAME: u64 = 0;

/// The state of a record, as any reader sees it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// A live owner of this process is at work.
    InProgress,
    /// It ended with a value, which is replayed until its TTL.
    Succeeded,
    /// It ended with a failure, which is replayed until its TTL.
    Failed,
    /// Its owner gave it up, saying that nothing happened: the next `begin` runs it.
    Released,
    /// Its owner ended without an answer: it is not known whether the operation happened.
    Interrupted,
}

/// Why a record was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Interruption {
    /// The process that owned it ended.
    ProcessEnded,
    /// Its claim was dropped.
    Dropped,
    /// A panic unwound through its claim.
    Panicked,
    /// Its owner said so: [`Claim::interrupt`](crate::Claim::interrupt), or `execute` with
    /// [`OnError::Interrupt`](crate::OnError::Interrupt).
    Reported,
    /// An operator took it away from its live owner: [`Manager::revoke`](crate::Manager::revoke).
    Revoked,
}

/// All of a record. One stored record replaces another whole; nothing is ever changed in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    pub(crate) state: Status,
    /// Begun by `initiate`: owned by the process, not by a claim.
    pub(crate) by_key: bool,
    /// An effect may have been caused for this request: released, the record accepts no other fingerprint.
    pub(crate) bound: bool,
    /// It holds what must not be forgotten: released, it is kept as long as an interrupted record.
    pub(crate) holds_progress: bool,
    /// Of the last attempt that was interrupted.
    pub(crate) interruption: Option<Interruption>,
    pub(crate) policy: OnInterrupted,
    pub(crate) schema: u32,
    pub(crate) attempt: u32,
    /// How many attempts of this generation were interrupted and followed by another.
    pub(crate) interruptions: u32,
    /// Number of the frame that started this life of the key.
    pub(crate) generation: u64,
    /// Drawn when the generation started, in this store or in the one that it was imported from.
    pub(crate) effect_seed: EffectSeed,
    /// Number of the frame that carries this stored record.
    pub(crate) revision: u64,
    /// Fencing token: number of the frame that made the current or last claim.
    pub(crate) token: u64,
    /// Wall clock, milliseconds since 1970: for people.
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    /// Store time of this stored record.
    pub(crate) updated: u64,
    /// Store time at which it is absent, or [`NEVER`].
    pub(crate) expires: u64,
    /// Milliseconds, [`NEVER`] for ever.
    pub(crate) success_ttl: u64,
    pub(crate) failure_ttl: u64,
    pub(crate) released_ttl: u64,
    pub(crate) interrupted_ttl: u64,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) context: Context,
    pub(crate) recovery_point: String,
    pub(crate) checkpoint: Option<Value>,
    /// Length of the encoded outcome.
    pub(crate) outcome_len: u32,
    /// The encoded outcome; `None` where there is none, and where only the head was read.
    pub(crate) outcome: Option<Value>,
}

/// What the effect ids of a generation are made from, with its key. It stays the same as long as the record lives: in every open,
/// and in every store that it is imported into.
pub(crate) type EffectSeed = [u8; 16];

/// Draws the seeds of one open. They begin at a random number, so that what runs in a restored copy of a store never has the
/// effect ids of what ran in the original, although both number their frames from the same state.
#[derive(Debug)]
pub(crate) struct EffectSeeds {
    first: u128,
    drawn: AtomicU64,
}

impl EffectSeeds {
    pub(crate) fn of_this_open() -> Self {
        Self { first: u128::from_le_bytes(key::random()), drawn: AtomicU64::new(0) }
    }

    /// Never the same again.
    pub(crate) fn draw(&self) -> EffectSeed {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        self.first.wrapping_add(u128::from(drawn)).to_le_bytes()
    }
}

/// What the rules look at besides a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Store time.
    pub(crate) store: u64,
    /// Wall clock, milliseconds since 1970.
    pub(crate) wall: u64,
    /// The first frame number of this open: an owner with a lower token is dead.
    pub(crate) first: u64,
    /// Store time of this open.
    pub(crate) opened: u64,
    /// Of a generation that starts now: no other `Now` has it, so that at most one generation of each key starts with it.
    pub(crate) effect_seed: EffectSeed,
}

impl StoredRecord {
    /// The status and the interruption for a reader; an expired record is absent.
    pub(crate) fn seen(&self, now: &Now) -> Option<(Status, Option<Interruption>)> {
        if self.expires_at(now) <= now.store {
            return None;
        }
        let status = self.status(now);
        let interruption = match status {
            Status::Succeeded | Status::Failed => None,
            Status::Interrupted if self.state == Status::InProgress => Some(Interruption::ProcessEnded),
            Status::InProgress | Status::Released | Status::Interrupted => self.interruption,
        };
        Some((status, interruption))
    }

    /// A record in progress whose owner is dead is interrupted.
    pub(crate) fn status(&self, now: &Now) -> Status {
        if self.state == Status::InProgress && self.token < now.first { Status::Interrupted } else { self.state }
    }

    /// It is committed that much later than it was decided. Its expiry may have been fixed before.
    pub(crate) fn delay(&mut self, millis: u64, keeps_expiry: bool) {
        self.updated = self.updated.saturating_add(millis);
        if !keeps_expiry {
            self.expires = self.expires.saturating_add(millis);
        }
    }

    /// How long it is kept once it is released.
    pub(crate) fn ttl_of_release(&self) -> u64 {
        if self.holds_progress { self.released_ttl.max(self.interrupted_ttl) } else { self.released_ttl }
    }

    /// No stage has left anything on it.
    pub(crate) fn is_at_start(&self) -> bool {
        self.recovery_point == STARTED && self.checkpoint.is_none()
    }

    /// Store time at which it is absent. What is in progress and alive never is.
    pub(crate) fn expires_at(&self, now: &Now) -> u64 {
        if self.state != Status::InProgress {
            self.expires
        } else if self.token < now.first {
            // When its process died is not known; this open is the latest it can have been.
            self.updated.max(now.opened).saturating_add(self.interrupted_ttl)
        } else {
            NEVER
        }
    }
}

/// What is known of a record, without its outcome.
///
/// A snapshot: it does not change when the record does.
#[derive(Clone)]
pub struct RecordInfo(Arc<Shown>);

struct Shown {
    store_id: [u8; 16],
    manager: Arc<str>,
    key: Key,
    stored: Arc<StoredRecord>,
    status: Status,
    interruption: Option<Interruption>,
    expires_at: Option<SystemTime>,
}

impl RecordInfo {
    /// The longest name of a recovery point, in bytes: every record keeps its own in memory.
    pub const MAX_RECOVERY_POINT_BYTES: usize = 128;

    /// `None` if the record is absent at `now`.
    pub(crate) fn new(
        store_id: [u8; 16],
        manager: &Arc<str>,
        key: &Key,
        stored: &Arc<StoredRecord>,
        now: &Now,
    ) -> Option<Self> {
        let (status, interruption) = stored.seen(now)?;
        let expires = stored.expires_at(now);
        let expires_at =
            (expires != NEVER).then(|| wall_time(now.wall.saturating_add(expires - now.store.min(expires))));
        let (manager, key, stored) = (Arc::clone(manager), key.clone(), Arc::clone(stored));
        Some(Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at })))
    }

    /// Of a record that is in no store, as it was shown by the one that it comes from.
    #[cfg(feature = "cli")]
    pub(crate) fn detached(
        store_id: [u8; 16],
        manager: &str,
        key: Key,
        stored: StoredRecord,
        expires_at: Option<SystemTime>,
    ) -> Self {
        let (status, interruption) = (stored.state, stored.interruption);
        let (manager, stored) = (manager.into(), Arc::new(stored));
        Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at }))
    }

    #[cfg(feature = "cli")]
    pub(crate) fn store_id(&self) -> [u8; 16] {
        self.0.store_id
    }

    /// For those who keep it long: an outcome may be large.
    pub(crate) fn without_outcome(&self) -> Self {
        let Shown { store_id, manager, key, stored, status, interruption, expires_at } = &*self.0;
        if stored.outcome.is_none() {
            return self.clone();
        }
        let stored = Arc::new(StoredRecord { outcome: None, ..StoredRecord::clone(stored) });
        let (manager, key) = (Arc::clone(manager), key.clone());
        let (store_id, status, interruption, expires_at) = (*store_id, *status, *interruption, *expires_at);
        Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at }))
    }

    pub(crate) fn stored(&self) -> &Arc<StoredRecord> {
        &self.0.stored
    }

    /// The name of its manager.
    #[must_use]
    pub fn manager(&self) -> &str {
        &self.0.manager
    }

    /// The whole key, the scope included.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// Its state when this was read.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status
    }

    /// Which life of the key this is: unique, and larger for a later one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.stored.generation
    }

    /// How many claims this generation has had, from 1; 0 if it was only created.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.stored.attempt
    }

    /// The policy that was fixed when this generation started.
    #[must_use]
    pub fn policy(&self) -> OnInterrupted {
        self.0.stored.policy
    }

    /// The number that its manager wrote into it: see [`ManagerOptions::schema`](crate::ManagerOptions::schema).
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.0.stored.schema
    }

    /// Why the record is interrupted; of a released record or one in progress, why its last attempt was.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        self.0.interruption
    }

    /// What "the same request" means.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.0.stored.fingerprint
    }

    /// The facts kept with it.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.0.stored.context
    }

    /// The last stage that ended.
    #[must_use]
    pub fn recovery_point(&self) -> &str {
        &self.0.stored.recovery_point
    }

    /// What the last stage kept for the next.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&[u8]> {
        self.0.stored.checkpoint.as_deref()
    }

    /// When this generation started, by the wall clock.
    #[must_use]
    pub fn created_at(&self) -> SystemTime {
        wall_time(self.0.stored.created_at)
    }

    /// When the record last changed, by the wall clock.
    #[must_use]
    pub fn updated_at(&self) -> SystemTime {
        wall_time(self.0.stored.updated_at)
    }

    /// When it will be absent, by the wall clock as it was when this was read; `None` is never.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.0.expires_at
    }

    /// Returns a name for one effect of this operation, the same in every attempt of this generation, in every open, and after
    /// an import into another store. Pass it downstream as an idempotency key, and, after an interruption, ask there whether
    /// the effect has happened. 32 hexadecimal digits.
    ///
    /// A generation that starts later, here or in a restored copy of the store, has other names. A transaction that creates a
    /// record already sees its names.
    #[must_use]
    pub fn effect_id(&self, label: &str) -> String {
        let digest =
            Fingerprint::builder().part(self.0.stored.effect_seed).part(self.key().as_bytes()).part(label).finish();
        let mut hexadecimal = digest.to_string();
        hexadecimal.truncate(32);
        hexadecimal
    }

    /// The length of the encoded outcome, 0 if there is none.
    #[must_use]
    pub fn outcome_bytes(&self) -> u64 {
        u64::from(self.0.stored.outcome_len)
    }
}

/// Prints one line: manager, key, status, and the interruption or the recovery point where there is one.
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let done = payments.execute("order-42", |_claim| Ok(1999)).unwrap();
/// assert_eq!(done.info().to_string(), "payments/order-42: Succeeded");
/// # Ok::<(), oncekey::Error>(())
/// ```
impl fmt::Display for RecordInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {:?}", self.manager(), self.key(), self.status())?;
        if let Some(interruption) = self.interruption() {
            write!(f, " ({interruption:?})")?;
        }
        match self.recovery_point() {
            STARTED | FINISHED => Ok(()),
            point => write!(f, " at {point}"),
        }
    }
}

impl fmt::Debug for RecordInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordInfo")
            .field("manager", &self.manager())
            .field("key", &self.key())
            .field("status", &self.status())
            .field("generation", &self.generation())
            .field("attempt", &self.attempt())
            .field("interruption", &self.interruption())
            .field("recovery_point", &self.recovery_point())
            .field("outcome_bytes", &self.outcome_bytes())
            .finish_non_exhaustive()
    }
}
