//! Managers: named, typed namespaces of keys.

// The page of `Manager` lists the methods of these modules in this order.
pub(crate) mod execute;

pub(crate) mod drive;

pub(crate) mod batch;
mod by_key;
pub(crate) mod resolve;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::claim::Claim;
use crate::api::engine::{Engine, Registered};
#[cfg(feature = "http")]
use crate::protocol::rules::Action;
use crate::protocol::rules::{Resume, Start};
use crate::protocol::{Awaited, Begun, Load, RecordId};
use crate::types::clock::{deadline, millis};
use crate::types::error::Result;
use crate::types::failure::Failure;
use crate::types::key::{IntoKey, Key, check_name};
use crate::types::options::{CallOptions, ManagerOptions, OnError, check_ttl};
use crate::types::outcome::{Finished, Record};
use crate::types::record::RecordInfo;

/// The result of `begin`. Exhaustive, so that a new variant is a compile error in every `match`.
#[must_use = "dropping a claim interrupts its record"]
pub enum Begin<T, E = Failure> {
    /// The caller owns the key and runs the operation.
    Claimed(Claim<T, E>),
    /// The operation has run before. This is its outcome.
    Replay(Finished<T, E>),
    /// Another live owner runs the operation.
    InProgress(Pending<T, E>),
    /// The owner ended without an outcome. The record is held until a caller resolves it.
    Interrupted(RecordInfo),
    /// The owner released the key, and the pause of [`retry_pause`](ManagerOptions::retry_pause) is not over.
    /// [`RecordInfo::retry_after`] returns the rest of the pause.
    Paused(RecordInfo),
    /// The key belongs to another request. The outcome of that request is not included.
    Mismatch(RecordInfo),
}

impl<T, E> Begin<T, E> {
    /// Returns the claim, if there is one.
    ///
    /// # Errors
    ///
    /// Every other variant, unchanged.
    pub fn into_claim(self) -> Result<Claim<T, E>, Self> {
        if let Self::Claimed(claim) = self { Ok(claim) } else { Err(self) }
    }
}

/// The result of a wait.
#[must_use]
pub enum Waited<T, E = Failure> {
    /// The operation ended with this outcome.
    Finished(Finished<T, E>),
    /// The key has no record.
    Absent,
    /// The owner gave up the key and reported that nothing happened.
    Released,
    /// The owner ended without an outcome.
    Interrupted,
    /// The timeout passed while the operation was in progress, or before it started.
    TimedOut,
    /// The engine was closed.
    Closed,
}

// `Debug` is written by hand, because payloads must not be printed, and the types need not implement it.

impl<T, E> fmt::Debug for Begin<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimed(claim) => f.debug_tuple("Claimed").field(claim).finish(),
            Self::Replay(finished) => f.debug_tuple("Replay").field(finished).finish(),
            Self::InProgress(pending) => f.debug_tuple("InProgress").field(pending).finish(),
            Self::Interrupted(info) => f.debug_tuple("Interrupted").field(info).finish(),
            Self::Paused(info) => f.debug_tuple("Paused").field(info).finish(),
            Self::Mismatch(info) => f.debug_tuple("Mismatch").field(info).finish(),
        }
    }
}

impl<T, E> fmt::Debug for Waited<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(finished) => f.debug_tuple("Finished").field(finished).finish(),
            Self::Absent => f.write_str("Absent"),
            Self::Released => f.write_str("Released"),
            Self::Interrupted => f.write_str("Interrupted"),
            Self::TimedOut => f.write_str("TimedOut"),
            Self::Closed => f.write_str("Closed"),
        }
    }
}

/// The operation of another owner. A pending operation holds neither a claim nor a place in a queue, so it can be kept
/// for any time.
pub struct Pending<T, E = Failure> {
    inner: Box<(Manager<T, E>, RecordId, RecordInfo)>,
}

impl<T, E> Pending<T, E> {
    /// Returns the record as it was at the call.
    #[must_use]
    pub fn info(&self) -> &RecordInfo {
        &self.inner.2
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Pending<T, E> {
    /// Waits until the key has no owner, for at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<Waited<T, E>> {
        let (manager, id, _) = &*self.inner;
        manager.wait_at(id, timeout)
    }
}

impl<T, E> fmt::Debug for Pending<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("info", self.info()).finish_non_exhaustive()
    }
}

pub(crate) type Classify<E> = Arc<dyn Fn(&E) -> OnError + Send + Sync>;

/// A named, typed namespace of keys. The same key in two managers has two records.
///
/// Cheap to clone. Clones share all state.
///
/// ```
/// # use oncekey::{Begin, CallOptions, Engine, Fingerprint, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let options = CallOptions::new().fingerprint(Fingerprint::of(&("EUR", 1999))?);
/// match payments.begin_with("order-42", options)? {
///     Begin::Claimed(claim) => println!("{:?}", claim.succeed(&1999)?.outcome()),
///     Begin::Replay(done) => println!("replayed {:?}", done.outcome()),
///     Begin::InProgress(pending) => println!("since {:?}", pending.info().updated_at()),
///     Begin::Interrupted(info) => println!("unknown since {:?}", info.updated_at()),
///     Begin::Paused(info) => println!("released, try again in {:?}", info.retry_after()),
///     Begin::Mismatch(info) => println!("{} was another request", info.key()),
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
pub struct Manager<T, E = Failure> {
    engine: Engine,
    name: Arc<str>,
    pub(crate) options: ManagerOptions,
    pub(crate) scope: Arc<[Box<[u8]>]>,
    on_error: Option<Classify<E>>,
    types: PhantomData<fn() -> (T, E)>,
    registered: Arc<Registered>,
}

impl Engine {
    /// Returns the manager with this name. Use the types with which its records were stored.
    ///
    /// # Errors
    ///
    /// `InvalidName` unless the name is 1 to 64 of `a-z 0-9 . _ -`; `TypeMismatch` if a live manager with this name and
    /// schema has other types.
    pub fn manager<T, E>(&self, name: &str) -> Result<Manager<T, E>>
    where
        T: Serialize + DeserializeOwned,
        E: Serialize + DeserializeOwned,
    {
        self.manager_with(name, ManagerOptions::new())
    }

    /// Returns the manager with this name and with options. The options apply to this handle and its clones.
    ///
    /// # Errors
    ///
    /// As [`manager`](Engine::manager), and `InvalidOptions` for a TTL of zero or for a
    /// [migration](ManagerOptions::migrate) that does not fit the types and the schema.
    pub fn manager_with<T, E>(&self, name: &str, options: ManagerOptions) -> Result<Manager<T, E>>
    where
        T: Serialize + DeserializeOwned,
        E: Serialize + DeserializeOwned,
    {
        check_name("manager", name)?;
        options.check::<T, E>()?;
        let registered = Arc::new(self.register::<T, E>(name, options.schema)?);
        let (engine, name, scope) = (self.clone(), name.into(), Arc::new([]));
        Ok(Manager { engine, name, options, scope, on_error: None, types: PhantomData, registered })
    }
}

impl<T, E> Clone for Manager<T, E> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            name: Arc::clone(&self.name),
            options: self.options.clone(),
            scope: Arc::clone(&self.scope),
            on_error: self.on_error.clone(),
            types: PhantomData,
            registered: Arc::clone(&self.registered),
        }
    }
}

impl<T, E> fmt::Debug for Manager<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("name", &self.name).field("options", &self.options).finish_non_exhaustive()
    }
}

impl<T, E> Manager<T, E> {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Sets what [`execute`](Manager::execute) does when an operation returns `Err`. Clones made afterwards share it.
    /// Default: [`OnError::Store`].
    ///
    /// ```
    /// # use oncekey::{Engine, Manager, OnError};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64, String> = engine.manager("payments")?;
    /// let payments = payments
    ///     .on_error(|why| if why == "busy" { OnError::Release } else { OnError::Store });
    /// assert!(payments.execute("order-42", |_claim| Err("busy".to_owned())).is_err());
    /// assert!(
    ///     payments.execute("order-42", |_claim| Ok(1999)).is_ok_and(|done| !done.replayed())
    /// );
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn on_error(mut self, classify: impl Fn(&E) -> OnError + Send + Sync + 'static) -> Self {
        self.on_error = Some(Arc::new(classify));
        self
    }

    /// Returns a handle for the keys of one tenant or user. Use a scope instead of one manager for each tenant: equal
    /// keys in two scopes are different keys. Records report the whole key. This handle and the manager without a scope
    /// accept whole keys; every other scope returns `InvalidKey`: see [`IntoKey`]. A scope inside a scope adds to it.
    ///
    /// # Errors
    ///
    /// `InvalidKey` if the scope is empty, has several parts, or is so long that no key fits.
    pub fn scoped(&self, scope: impl IntoKey) -> Result<Self> {
        let scope = scope.into_key()?.into_part("scope")?;
        let scope: Vec<Box<[u8]>> = self.scope.iter().cloned().chain([scope.as_ref().into()]).collect();
        // Check with the shortest possible key.
        Key::join(scope.iter().map(|part| &**part).chain([&[0][..]]))?;
        Ok(Self { scope: scope.into(), ..self.clone() })
    }

    pub(crate) fn id(&self, key: impl IntoKey) -> Result<RecordId> {
        Ok(RecordId::new(&self.name, key.into_key()?.inside(&self.scope)?))
    }

    /// Returns the id of a record of this manager.
    #[cfg(feature = "http")]
    pub(crate) fn id_of(&self, info: &RecordInfo) -> RecordId {
        RecordId::new(&self.name, info.key().clone())
    }

    pub(crate) fn start(&self, options: CallOptions, by_key: bool) -> Result<Start> {
        let success_ttl = options.success_ttl.unwrap_or(self.options.success_ttl);
        let failure_ttl = options.failure_ttl.unwrap_or(self.options.failure_ttl);
        check_ttl("success_ttl", success_ttl)?;
        check_ttl("failure_ttl", failure_ttl)?;
        let context = options.context.unwrap_or_default();
        context.check()?;
        Ok(Start {
            by_key,
            fingerprint: options.fingerprint,
            accepted: options.accepted,
            context,
            policy: options.on_interrupted.or(self.options.on_interrupted).unwrap_or_default(),
            schema: self.options.schema,
            success_ttl: millis(success_ttl),
            failure_ttl: millis(failure_ttl),
            released_ttl: millis(self.options.released_ttl),
            interrupted_ttl: millis(self.options.interrupted_ttl),
            retry_pause: millis(self.options.retry_pause),
            remember: millis(self.options.remember_expired),
            resume: Resume { max_attempts: self.options.max_attempts.get(), only_from_start: options.only_from_start },
            strict_fingerprint: self.options.strict_fingerprint,
        })
    }

    /// Deletes a finished record, so that the operation can run again. Returns false if the key has no finished record.
    ///
    /// # Errors
    ///
    /// `OwnedByClaim` while the operation is in progress.
    pub fn forget(&self, key: impl IntoKey) -> Result<bool> {
        self.engine.protocol().forget(&self.id(key)?)
    }

    /// Deletes a record without a live owner. Returns false if the key has no record.
    ///
    /// # Errors
    ///
    /// `OwnedByClaim` while the operation is in progress: [`revoke`](Manager::revoke) it first.
    pub fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.engine.protocol().remove(&self.id(key)?)
    }

    /// Keeps a finished record for at least `ttl` from now. Never shortens its TTL. Returns false if the key has no
    /// finished record.
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if `ttl` is zero.
    pub fn extend(&self, key: impl IntoKey, ttl: Duration) -> Result<bool> {
        check_ttl("ttl", ttl)?;
        self.engine.protocol().extend(&self.id(key)?, millis(ttl))
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Claims the key, or returns why the caller must not run its operation. Never waits for another owner.
    ///
    /// # Errors
    ///
    /// As [`begin_with`](Manager::begin_with).
    pub fn begin(&self, key: impl IntoKey) -> Result<Begin<T, E>> {
        self.begin_with(key, CallOptions::new())
    }

    /// Claims the key as [`begin`](Manager::begin) does, with options. With a [`wait`](CallOptions::wait), waits up to
    /// that time for another owner, and takes over the key if that owner gives it up.
    ///
    /// Does not wait if [too many](crate::EngineOptions::max_waiting_per_key) callers are waiting. A caller that holds
    /// the claim of the key itself waits for the whole time. Inside [`execute`](Manager::execute) and
    /// [`drive`](Manager::drive), waiting for their own key returns `Deadlock` at once.
    ///
    /// ```
    /// # use oncekey::{CallOptions, Engine, Manager};
    /// # use std::time::Duration;
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let owner = payments.begin("order-42")?.into_claim().unwrap();
    /// let minute = CallOptions::new().wait(Duration::from_secs(60));
    /// let successor = std::thread::scope(|scope| {
    ///     let successor = scope.spawn(|| payments.begin_with("order-42", minute));
    ///     owner.release().map(|_| successor.join().unwrap())
    /// })??;
    /// assert_eq!(successor.into_claim().unwrap().attempt(), 2);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidKey`, and `InvalidOptions` for a TTL of zero. `TypeMismatch` if the stored outcome has another type, and
    /// `Expired` for a key that is [remembered](ManagerOptions::remember_expired).
    pub fn begin_with(&self, key: impl IntoKey, options: CallOptions) -> Result<Begin<T, E>> {
        let id = self.id(key)?;
        let wait = options.wait.unwrap_or_default();
        let begun = self.begin_within(&id, &self.start(options, false)?, wait)?;
        self.answer(id, begun)
    }

    fn begin_within(&self, id: &RecordId, start: &Start, wait: Duration) -> Result<Begun> {
        let protocol = self.engine.protocol();
        if wait.is_zero() { protocol.begin(id, start) } else { protocol.begin_or_wait(id, start, deadline(wait)) }
    }

    /// Returns the record of a key, in any state.
    pub fn get(&self, key: impl IntoKey) -> Result<Option<Record<T, E>>> {
        let info = self.engine.protocol().get(&self.id(key)?, Load::All)?;
        info.map(|info| Record::decode(info, &self.options)).transpose()
    }

    /// Waits until the key has no owner, for at most `timeout`. Returns at once if the key has no owner. A request that
    /// was created and has not started counts as in progress.
    pub fn wait(&self, key: impl IntoKey, timeout: Duration) -> Result<Waited<T, E>> {
        self.wait_at(&self.id(key)?, timeout)
    }

    fn wait_at(&self, id: &RecordId, timeout: Duration) -> Result<Waited<T, E>> {
        Ok(match self.engine.protocol().wait(id, deadline(timeout))? {
            Awaited::Finished(info) => Waited::Finished(Finished::decode(info, &self.options)?),
            Awaited::Absent => Waited::Absent,
            Awaited::Released => Waited::Released,
            Awaited::Interrupted => Waited::Interrupted,
            Awaited::TimedOut => Waited::TimedOut,
            Awaited::Closed => Waited::Closed,
        })
    }

    pub(crate) fn answer(&self, id: RecordId, begun: Begun) -> Result<Begin<T, E>> {
        Ok(match begun {
            Begun::Claimed(info) => Begin::Claimed(self.claim(id, info)),
            Begun::Replay(info) => {
                let finished = Finished::decode(info, &self.options)?;
                self.engine.protocol().replayed(finished.info());
                Begin::Replay(finished)
            }
            Begun::InProgress(info) => Begin::InProgress(Pending { inner: Box::new((self.clone(), id, info)) }),
            Begun::Interrupted(info) => Begin::Interrupted(info),
            Begun::Paused(info) => Begin::Paused(info),
            Begun::Mismatch(info) => Begin::Mismatch(info),
        })
    }

    /// Returns the action that claims an existing record, whatever its request was.
    #[cfg(feature = "http")]
    pub(crate) fn lock(&self) -> Action<'static> {
        let ManagerOptions { schema, max_attempts, retry_pause, .. } = &self.options;
        Action::Lock { schema: *schema, max_attempts: max_attempts.get(), retry_pause: millis(*retry_pause) }
    }
}
