//! Records: the stored form and the form shown to users.

mod attempts;
mod effect_seed;
mod lifetime;
mod remembered;
mod resolved;
mod sent;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::types::clock::{NEVER, wall_time};
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::fingerprint::Fingerprint;
use crate::types::key::Key;
use crate::types::options::OnInterrupted;
use crate::types::value::Value;
pub use attempts::EarlierAttempt;
pub(crate) use attempts::{Attempts, EndedAttempt};
pub(crate) use effect_seed::{EffectSeed, EffectSeeds};
pub(crate) use lifetime::Lifetime;
pub(crate) use remembered::kept_until;
pub(crate) use sent::SentRecord;

/// The recovery point of a record before its first stage ends.
pub const STARTED: &str = "started";
/// The recovery point of a record that has succeeded or failed.
pub const FINISHED: &str = "finished";

/// Checks the name of a recovery point at which a stage leaves its record.
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

/// Checks the length of a checkpoint.
pub(crate) fn check_checkpoint(len: usize, limit: u64) -> Result<()> {
    if len as u64 <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, format!("the checkpoint is {len} bytes long, the limit is {limit}")))
}

/// The placeholder for the number of the frame that will carry a record. Used until the record is committed.
pub(crate) const THIS_FRAME: u64 = 0;

/// The state of a record, as all readers see it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// A live owner works on the operation: in this process, or in any that shares a store on PostgreSQL.
    InProgress,
    /// The operation ended with a value, which is replayed until its TTL ends.
    Succeeded,
    /// The operation ended with a failure, which is replayed until its TTL ends.
    Failed,
    /// The owner gave up the key and reported that nothing happened. The next `begin` runs the operation.
    Released,
    /// The owner ended without an outcome. The operation may have happened.
    Interrupted,
}

impl Status {
    /// Returns true if the record has an outcome.
    pub(crate) fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The reason why a record was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Interruption {
    /// The process of the owner ended.
    ProcessEnded,
    /// The claim was dropped.
    Dropped,
    /// The claim was dropped by a panic.
    Panicked,
    /// The owner reported it, by [`Claim::interrupt`](crate::Claim::interrupt) or by `execute` with
    /// [`OnError::Interrupt`](crate::OnError::Interrupt).
    Reported,
    /// A caller took the key from its live owner, by [`Manager::revoke`](crate::Manager::revoke).
    Revoked,
}

/// The whole content of a record. A change replaces the stored record as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the stored form")]
pub(crate) struct StoredRecord {
    pub(crate) state: Status,
    /// True if the record was begun by `initiate`. Then the process owns it, not a claim.
    pub(crate) by_key: bool,
    /// True if an effect may have happened for this request. After a release, the record then accepts no other
    /// fingerprint.
    pub(crate) bound: bool,
    /// True if the record holds progress. After a release it is then kept as long as an interrupted record.
    pub(crate) holds_progress: bool,
    /// The interruption of the last attempt that was interrupted.
    pub(crate) interruption: Option<Interruption>,
    pub(crate) policy: OnInterrupted,
    pub(crate) schema: u32,
    pub(crate) attempt: u32,
    /// The number of attempts of this generation that were interrupted and followed by another attempt.
    pub(crate) interruptions: u32,
    /// `None` while the owner that created the record is the only one it has had.
    pub(crate) attempts: Option<Box<Attempts>>,
    /// The number of the frame that started this generation.
    pub(crate) generation: u64,
    /// The seed of the effect ids. Drawn when the generation started, in this store or in the one from which the record
    /// was imported.
    pub(crate) effect_seed: EffectSeed,
    /// The number of the frame that carries this stored record.
    pub(crate) revision: u64,
    /// The fencing token: the number of the frame that made the latest claim.
    pub(crate) token: u64,
    /// Wall clock in milliseconds since 1970, for people.
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    /// The store time at which this stored record was decided.
    pub(crate) updated: u64,
    /// The store time from which the record is absent, or [`NEVER`].
    pub(crate) expires: u64,
    /// In milliseconds; [`NEVER`] if the record does not expire.
    pub(crate) success_ttl: u64,
    pub(crate) failure_ttl: u64,
    pub(crate) released_ttl: u64,
    pub(crate) interrupted_ttl: u64,
    /// The time after a release by the current or last owner in which no caller can claim the record, in milliseconds.
    pub(crate) retry_pause: u64,
    /// The time for which the key of a finished record is remembered after the record has expired, in milliseconds.
    pub(crate) remember: u64,
    /// True if the record has expired and only its key is remembered, until `expires`.
    pub(crate) is_forgotten: bool,
    /// True if the record was resolved, and can be made interrupted again, because no caller has been given its
    /// outcome. While true, the record keeps its interruption, recovery point and checkpoint.
    pub(crate) is_undoable: bool,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) context: Context,
    pub(crate) recovery_point: Cow<'static, str>,
    pub(crate) checkpoint: Option<Value>,
    /// The length of the encoded outcome, in bytes.
    pub(crate) outcome_len: u32,
    /// The encoded outcome. `None` if there is no outcome, or if only the other fields were read.
    pub(crate) outcome: Option<Value>,
}

/// The facts that the rules use besides the record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Store time in milliseconds.
    pub(crate) store: u64,
    /// Wall clock in milliseconds since 1970.
    pub(crate) wall: u64,
    /// The first frame number of this open. An owner with a smaller token is dead.
    pub(crate) first: u64,
    /// The store time of this open.
    pub(crate) opened: u64,
    /// The effect seed for a generation that starts now. No other `Now` has it, so at most one generation of each key
    /// has this seed.
    pub(crate) effect_seed: EffectSeed,
}

impl StoredRecord {
    /// Returns the status and the interruption that readers see. An expired record returns `None`.
    pub(crate) fn seen(&self, now: &Now) -> Option<(Status, Option<Interruption>)> {
        if self.is_forgotten || self.expires_at(now) <= now.store {
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

    /// Returns the status. A record in progress whose owner is dead is interrupted.
    pub(crate) fn status(&self, now: &Now) -> Status {
        self.lifetime().status(now)
    }

    /// Replaces each [`THIS_FRAME`] by the number of the frame that will carry the record.
    pub(crate) fn set_number(&mut self, frame: u64) {
        for field in [&mut self.generation, &mut self.revision, &mut self.token] {
            if *field == THIS_FRAME {
                *field = frame;
            }
        }
    }

    /// Shifts the times of a record that is committed `millis` after it was decided. With `keeps_expiry`, the expiry
    /// was fixed before and stays.
    pub(crate) fn delay(&mut self, millis: u64, keeps_expiry: bool) {
        self.updated = self.updated.saturating_add(millis);
        if !keeps_expiry {
            self.expires = self.expires.saturating_add(millis);
        }
    }

    /// Returns how long the record is kept after a release, in milliseconds.
    pub(crate) fn ttl_of_release(&self) -> u64 {
        if self.holds_progress { self.released_ttl.max(self.interrupted_ttl) } else { self.released_ttl }
    }

    /// Returns true if no stage has left a recovery point or checkpoint.
    pub(crate) fn is_at_start(&self) -> bool {
        self.recovery_point == STARTED && self.checkpoint.is_none()
    }

    /// Returns the store time from which a released record can be claimed again.
    pub(crate) fn paused_until(&self) -> u64 {
        // A caller reads the time before the record, so `updated` can be later than that time. Without this check, a
        // record without a pause would then look paused.
        let is_paused = self.state == Status::Released && self.retry_pause > 0;
        if is_paused { self.updated.saturating_add(self.retry_pause) } else { 0 }
    }

    /// Returns the store time from which the record is absent. A record with a live owner never expires.
    pub(crate) fn expires_at(&self, now: &Now) -> u64 {
        self.lifetime().expires_at(now)
    }

    pub(crate) fn lifetime(&self) -> Lifetime {
        Lifetime {
            state: self.state,
            token: self.token,
            updated: self.updated,
            expires: self.expires,
            interrupted_ttl: self.interrupted_ttl,
        }
    }
}

/// All that is known of a record, except its outcome.
///
/// This is a snapshot: later changes of the record do not change it.
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
    /// Milliseconds until the record can be claimed.
    paused_for: u64,
}

impl RecordInfo {
    /// The largest length of the name of a recovery point, in bytes. Small, because records in memory contain the name.
    pub const MAX_RECOVERY_POINT_BYTES: usize = 128;

    /// Returns `None` if the record is absent at `now`.
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
        let paused_for = stored.paused_until().saturating_sub(now.store);
        let (manager, key, stored) = (Arc::clone(manager), key.clone(), Arc::clone(stored));
        Some(Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for })))
    }

    /// Creates the information of an exported record that is not in a store, with the state that its original store
    /// showed.
    pub(crate) fn detached(
        store_id: [u8; 16],
        manager: &str,
        key: Key,
        stored: StoredRecord,
        expires_at: Option<SystemTime>,
    ) -> Self {
        let (status, interruption) = (stored.state, stored.interruption);
        let (manager, stored, paused_for) = (manager.into(), Arc::new(stored), 0);
        Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for }))
    }

    pub(crate) fn store_id(&self) -> [u8; 16] {
        self.0.store_id
    }

    /// Returns a copy without the outcome, for holders that keep it long: an outcome may be large.
    pub(crate) fn without_outcome(&self) -> Self {
        let Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for } = &*self.0;
        if stored.outcome.is_none() {
            return self.clone();
        }
        let stored = Arc::new(StoredRecord { outcome: None, ..StoredRecord::clone(stored) });
        let (manager, key) = (Arc::clone(manager), key.clone());
        let (store_id, status, interruption, expires_at) = (*store_id, *status, *interruption, *expires_at);
        let paused_for = *paused_for;
        Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for }))
    }

    pub(crate) fn stored(&self) -> &Arc<StoredRecord> {
        &self.0.stored
    }

    /// Returns the name of the manager.
    #[must_use]
    pub fn manager(&self) -> &str {
        &self.0.manager
    }

    /// Returns the whole key, including its scope.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// Returns the state at the time of the read.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status
    }

    /// Returns the generation: a unique number that is larger for a later generation of the same key. Returns 0 inside
    /// the transaction that creates the record: the commit gives the number.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.stored.generation
    }

    /// Returns the revision: a number that is larger for each later state of the record. Returns 0 inside the
    /// transaction that made this state: the commit gives the number.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.stored.revision
    }

    /// Returns the number of claims that this generation has had, 0 if the record was only created.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.stored.attempt
    }

    /// Returns the number of attempts of this generation that were interrupted and followed by another attempt.
    #[must_use]
    pub fn interruptions(&self) -> u32 {
        self.0.stored.interruptions
    }

    /// Returns the policy that was fixed when this generation started.
    #[must_use]
    pub fn policy(&self) -> OnInterrupted {
        self.0.stored.policy
    }

    /// Returns the number that the manager stored in the record. See
    /// [`ManagerOptions::schema`](crate::ManagerOptions::schema).
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.0.stored.schema
    }

    /// Returns the reason of the interruption. For a record that is released or in progress, returns the reason of its
    /// last interrupted attempt.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        self.0.interruption
    }

    /// Returns the fingerprint of the request, if it has one.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.0.stored.fingerprint
    }

    /// Returns the facts stored with the record.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.0.stored.context
    }

    /// Returns the recovery point, which says how far the operation has come: [`STARTED`](crate::stage::STARTED), or a
    /// name that the last stage has set. A record with an outcome is at [`FINISHED`](crate::stage::FINISHED).
    #[must_use]
    pub fn recovery_point(&self) -> &str {
        if self.0.stored.holds_outcome() { FINISHED } else { &self.0.stored.recovery_point }
    }

    /// Returns the checkpoint that the last stage left for the next one.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&[u8]> {
        self.0.stored.checkpoint.as_deref().filter(|_| !self.0.stored.holds_outcome())
    }

    /// Returns when this generation started, by the wall clock.
    #[must_use]
    pub fn created_at(&self) -> SystemTime {
        wall_time(self.0.stored.created_at)
    }

    /// Returns when the record last changed, by the wall clock.
    #[must_use]
    pub fn updated_at(&self) -> SystemTime {
        wall_time(self.0.stored.updated_at)
    }

    /// Returns how long a released record cannot be claimed, counted from the read: the rest of its
    /// [`ManagerOptions::retry_pause`](crate::ManagerOptions::retry_pause). Returns `None` if there is no pause.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        (self.0.paused_for > 0).then(|| Duration::from_millis(self.0.paused_for))
    }

    /// Returns when the record expires, by the wall clock at the time of the read. Returns `None` if it never does.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.0.expires_at
    }

    /// Returns an id for one effect of this operation, 32 hexadecimal digits long. The id is the same in all attempts
    /// of this generation, in all opens, and after an import into another store.
    ///
    /// Pass it to the other system as an idempotency key. After an interruption, ask that system whether the effect has
    /// happened.
    ///
    /// Later generations have other ids, here and in a restored copy of the store. A transaction that creates a record
    /// already sees its ids.
    #[must_use]
    pub fn effect_id(&self, label: &str) -> String {
        let digest =
            Fingerprint::builder().part(self.0.stored.effect_seed).part(self.key().as_bytes()).part(label).finish();
        let mut hexadecimal = digest.to_string();
        hexadecimal.truncate(32);
        hexadecimal
    }

    /// Returns the length of the encoded outcome, in bytes. Returns 0 if there is no outcome.
    #[must_use]
    pub fn outcome_bytes(&self) -> u64 {
        u64::from(self.0.stored.outcome_len)
    }
}

/// Prints one line: manager, key and status, then the interruption or the recovery point if there is one.
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let done = payments.execute("order-42", |_claim| Ok(1999)).unwrap();
/// assert_eq!(done.info().to_string(), "payments order-42: Succeeded");
/// # Ok::<(), oncekey::Error>(())
/// ```
impl fmt::Display for RecordInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {:?}", self.manager(), self.key(), self.status())?;
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
