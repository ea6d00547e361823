//! Claims: the right to run the operation of one key.

#[cfg(feature = "postgres")]
pub(crate) mod sql;
pub(crate) mod stage;

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, atomic::AtomicBool, atomic::Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::rules::Ending;
use crate::protocol::{Fence, Protocol, RecordId, Running, ToEnd, panicked_or_dropped};
use crate::types::clock::{millis, monotonic};
use crate::types::codec;
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::failure::Failure;
use crate::types::key::Key;
use crate::types::options::{check_ttl, migrate::Migrations};
use crate::types::outcome::Finished;
use crate::types::record::{Interruption, RecordInfo, Status};
use crate::types::value::Value;

/// The right to run the operation of one key.
///
/// At most one claim of a key is alive at a time. A claim ends by [`succeed`](Claim::succeed), [`fail`](Claim::fail),
/// [`release`](Claim::release) or [`interrupt`](Claim::interrupt). A dropped claim interrupts its record, because the
/// operation may have happened. A `?` between `begin` and the ending drops the claim: validate before `begin`, or call
/// [`release_on_drop`](Claim::release_on_drop) until the first effect.
///
/// A leaked claim (`mem::forget`, a static, a thread that never ends) stays in progress until the process ends, or
/// until [`Manager::revoke`](crate::Manager::revoke). A live claim keeps the directory locked: after
/// [`Engine::close`](crate::Engine::close) it can still end, and no other engine can open the store before it has
/// ended.
///
/// ```
/// # use oncekey::{Engine, Manager, Status};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64, String> = engine.manager("payments")?;
/// let Ok(mut claim) = payments.begin("order-42")?.into_claim() else { return Ok(()) };
/// claim.release_on_drop(true);
/// // Up to the first `effect_id`, a `?` would release the key. After that it would interrupt it.
/// let cents: u64 = "1999".parse().unwrap_or_default();
/// println!("charging {cents} as {}", claim.effect_id("charge"));
/// let done = claim.succeed(&cents)?;
/// assert_eq!((done.outcome(), done.info().status()), (Ok(&1999), Status::Succeeded));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[must_use = "a claim that is dropped interrupts its record"]
pub struct Claim<T, E = Failure> {
    inner: Box<Inner>,
    types: PhantomData<fn() -> (T, E)>,
}

struct Inner {
    protocol: Arc<Protocol>,
    id: RecordId,
    info: RecordInfo,
    context: Context,
    /// Atomic, because `effect_id` takes `&self`.
    release_on_drop: AtomicBool,
    /// True until the claim has ended.
    live: bool,
    /// True if an effect may have happened: the operation asked for an effect id, or a stage was committed.
    touched: AtomicBool,
    /// True if the engine returned an error to the operation through this claim.
    faulted: Arc<AtomicBool>,
    migrations: Migrations,
    /// The TTL of the outcome in milliseconds, if the operation has set one.
    ttl: Option<u64>,
    /// A stage of which it is not known whether it was committed.
    #[cfg(feature = "postgres")]
    unsettled: Option<Box<crate::protocol::staged::Stage>>,
    began: Instant,
}

/// Identifies a claim.
pub(crate) struct Identity {
    protocol: Arc<Protocol>,
    id: RecordId,
    token: u64,
}

impl<T, E> Claim<T, E> {
    pub(crate) fn new(protocol: Arc<Protocol>, id: RecordId, info: RecordInfo, migrations: Migrations) -> Self {
        let faulted = Arc::new(AtomicBool::new(false));
        let context = info.context().watched(&faulted);
        let (release_on_drop, touched) = Default::default();
        let inner = Inner {
            protocol,
            id,
            info,
            context,
            release_on_drop,
            touched,
            live: true,
            faulted,
            migrations,
            ttl: None,
            #[cfg(feature = "postgres")]
            unsettled: None,
            began: monotonic(),
        };
        Self { inner: Box::new(inner), types: PhantomData }
    }

    /// Creates a claim without a record, which counts as ended: its drop changes nothing.
    #[cfg(feature = "http")]
    pub(crate) fn without_record(protocol: Arc<Protocol>, id: RecordId, info: RecordInfo) -> Self {
        let mut claim = Self::new(protocol, id, info, Migrations::default());
        claim.inner.live = false;
        claim
    }

    /// Returns the whole key, including the scope.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.inner.info.key()
    }

    /// Returns the fencing token, which is larger than the token of every earlier claim in this store. Downstream
    /// systems can compare tokens. Tokens of a copy of the store are not comparable with these.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.inner.info.stored().token
    }

    /// Returns the number of this generation: one life of the key, from its first claim to its removal or expiry.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.info.generation()
    }

    /// Returns the number of claims in this generation, including this one.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.inner.info.attempt()
    }

    /// Returns the reason of the last interruption in this generation. `None` if there was none.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        self.inner.info.interruption()
    }

    /// Returns the context that was given when the generation started.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.inner.context
    }

    /// Returns the recovery point, which says how far the operation has come: [`STARTED`](crate::stage::STARTED), or
    /// the name that the last stage has set.
    #[must_use]
    pub fn recovery_point(&self) -> &str {
        self.inner.info.recovery_point()
    }

    /// Returns the checkpoint that the last stage stored.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&[u8]> {
        self.inner.info.checkpoint()
    }

    /// Decodes the checkpoint into the type from which [`Next::advance_encoded`](crate::stage::Next::advance_encoded)
    /// encoded it.
    ///
    /// # Errors
    ///
    /// `TypeMismatch` if the checkpoint was encoded from another type, or if that type has changed since and has no
    /// [migration](crate::ManagerOptions::migrate_checkpoint). [Limits](crate::guides::limits) lists the changes that
    /// matter. `Codec` if the checkpoint was not encoded.
    pub fn decode_checkpoint<C: Serialize + DeserializeOwned>(&self) -> Result<Option<C>> {
        let decoded = self.checkpoint().map(|bytes| self.inner.migrations.decode_checkpoint(bytes)).transpose();
        if decoded.is_err() {
            self.inner.faulted.store(true, Ordering::Relaxed);
        }
        decoded
    }

    /// Returns an id to pass downstream, so that an attempt after an interruption does not repeat the effect. See
    /// [`RecordInfo::effect_id`]. After this call the effect may have happened, so
    /// [`release_on_drop`](Claim::release_on_drop) is turned off.
    #[must_use]
    pub fn effect_id(&self, label: &str) -> String {
        self.touch();
        self.inner.info.effect_id(label)
    }

    /// Sets whether a drop releases the record instead of interrupting it, also during a panic. Set it to true only
    /// while nothing has happened. If the process dies, the record is interrupted in any case. Default: false.
    /// [`effect_id`](Claim::effect_id) and a committed [`work_stage`](Claim::work_stage) turn it off.
    pub fn release_on_drop(&mut self, release: bool) {
        self.inner.release_on_drop.store(release, Ordering::Relaxed);
    }

    /// Sets the TTL of the outcome that this claim stores, instead of
    /// [`success_ttl`](crate::ManagerOptions::success_ttl) or [`failure_ttl`](crate::ManagerOptions::failure_ttl). The
    /// TTL starts when the claim ends, also in [`execute`](crate::Manager::execute), `handle` and stages. The last call
    /// counts. A released or interrupted claim stores no outcome, so the TTL then has no effect. An outcome with
    /// [`FOREVER`](crate::FOREVER) never expires.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # use std::time::{Duration, Instant};
    /// # let engine = Engine::temporary()?;
    /// let quotes: Manager<u64, String> = engine.manager("quotes")?;
    /// let quote = quotes.execute("quote-7", |claim| {
    ///     let cents = 1999;
    ///     if cents > 1000 {
    ///         let ten_minutes = Duration::from_secs(600);
    ///         claim.keep_for(ten_minutes).map_err(|error| error.to_string())?;
    ///     }
    ///     Ok(cents)
    /// });
    /// assert!(quote.is_ok());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if `ttl` is zero.
    pub fn keep_for(&mut self, ttl: Duration) -> Result<()> {
        check_ttl("ttl", ttl)?;
        self.inner.ttl = Some(millis(ttl));
        Ok(())
    }

    /// True if an external effect may have happened under this claim.
    pub(crate) fn is_touched(&self) -> bool {
        self.inner.touched.load(Ordering::Relaxed)
    }

    /// Releases the key: nothing has happened, and the next caller runs the operation.
    pub fn release(self) -> Result<RecordInfo, EndError<Self>> {
        let ending = self.releasing();
        self.end(&ending)
    }

    /// Releases the key like [`release`](Claim::release), but keeps the record bound to its request: an effect without
    /// an effect id may have happened.
    pub(crate) fn release_bound(self) -> Result<RecordInfo, EndError<Self>> {
        let ending = if self.is_touched() { Ending::ReleaseTouched } else { Ending::Release };
        self.end(&ending)
    }

    /// Interrupts the record: it is not known whether the operation has happened. A drop does the same, but cannot
    /// return an error.
    pub fn interrupt(self) -> Result<RecordInfo, EndError<Self>> {
        self.end(&Ending::Interrupt(Interruption::Reported))
    }

    /// Removes the record. After an error, the drop of the claim interrupts the record.
    #[cfg(feature = "http")]
    pub(crate) fn discard(mut self) -> Result<()> {
        let Inner { protocol, id, .. } = &*self.inner;
        protocol.discard(id, self.token())?;
        self.over();
        Ok(())
    }

    /// Marks the claim as ended, so that it no longer keeps the directory locked.
    fn over(&mut self) {
        self.inner.live = false;
        self.inner.protocol.leave_owner(self.token());
    }

    /// Returns the ending that a drop of the claim records.
    pub(crate) fn dropping(&self, why: Interruption) -> Ending {
        let releases = self.inner.release_on_drop.load(Ordering::Relaxed);
        if releases { self.releasing() } else { Ending::Interrupt(why) }
    }

    pub(crate) fn releasing(&self) -> Ending {
        if self.is_touched() { Ending::ReleaseTouched } else { Ending::ReleaseUntouched }
    }

    /// True if a stage or an ending has ended the claim.
    pub(crate) fn is_ended(&self) -> bool {
        !self.inner.live
    }

    pub(crate) fn info(&self) -> &RecordInfo {
        &self.inner.info
    }

    pub(crate) fn protocol(&self) -> &Arc<Protocol> {
        &self.inner.protocol
    }

    /// Returns the token and recovery point that the record must still have at a commit.
    pub(crate) fn fence(&self) -> Fence<'_> {
        Fence { id: &self.inner.id, token: self.token(), point: self.recovery_point(), ttl: self.inner.ttl }
    }

    /// Notes that an effect may have happened: the operation asked for an effect id, or a stage was committed.
    pub(crate) fn touch(&self) {
        self.inner.release_on_drop.store(false, Ordering::Relaxed);
        self.inner.touched.store(true, Ordering::Relaxed);
    }

    /// Marks this thread as running the claim's operation.
    pub(crate) fn running(&self) -> Running {
        self.inner.protocol.running(&self.inner.id)
    }

    /// Returns the identity of the claim, to compare after lending a `&mut` of it.
    pub(crate) fn identity(&self) -> Identity {
        Identity { protocol: Arc::clone(&self.inner.protocol), id: self.inner.id.clone(), token: self.token() }
    }

    /// Returns the claim if it is the lent one. If the operation has exchanged it for another claim, an outcome could
    /// belong to either record. Then both are interrupted.
    pub(crate) fn returned(self, lent: &Identity) -> Result<Self> {
        let Inner { protocol, id, .. } = &*self.inner;
        if Arc::ptr_eq(protocol, &lent.protocol) && id.is(&lent.id) && self.token() == lent.token {
            return Ok(self);
        }
        let message = format!("the operation of key {} exchanged its claim with that of key {}", lent.id.key, id.key);
        // The lent claim is lost, wherever it is now. If its record has ended already, the record stays as it is.
        let ended = lent.protocol.end(&lent.id, lent.token, &Ending::Interrupt(Interruption::Reported));
        if ended.map_or_else(|error| error.kind() == ErrorKind::ClaimLost, |_| true) {
            // The lent claim owns no record now, so stop locking the directory for it, even if it is never dropped.
            lent.protocol.leave_owner(lent.token);
        }
        Err(Error::new(ErrorKind::ClaimLost, message))
    }

    pub(crate) fn fault_flag(&self) -> &AtomicBool {
        &self.inner.faulted
    }

    /// Takes over the record after a stage has changed it, and perhaps ended it.
    pub(crate) fn moved(&mut self, info: RecordInfo) {
        self.inner.info = info;
        if self.inner.info.status() != Status::InProgress {
            self.inner.protocol.cycle_ended(&self.inner.id, self.inner.began);
            self.over();
        }
    }

    pub(crate) fn is_faulted(&self) -> bool {
        self.inner.faulted.load(Ordering::Relaxed)
    }

    /// Ends the claim. On error the claim is returned and still alive.
    pub(crate) fn end(self, ending: &Ending) -> Result<RecordInfo, EndError<Self>> {
        let ended = self.inner.protocol.end_claim(self.to_end(ending));
        self.after(ended)
    }

    /// Ends claims of one engine together, in as few commits as can hold their records.
    pub(crate) fn end_all(claims: Vec<(Self, Ending)>) -> Vec<Result<RecordInfo, EndError<Self>>> {
        let to_end: Vec<_> = claims.iter().map(|(claim, ending)| claim.to_end(ending)).collect();
        let ended = claims.first().map_or_else(Vec::new, |(claim, _)| claim.protocol().end_all(&to_end));
        claims.into_iter().zip(ended).map(|((claim, _), ended)| claim.after(ended)).collect()
    }

    fn to_end<'a>(&'a self, ending: &'a Ending) -> ToEnd<'a> {
        ToEnd {
            id: &self.inner.id,
            token: self.token(),
            ending,
            ttl: self.inner.ttl,
            known: Some(self.inner.info.stored()),
        }
    }

    fn after(mut self, ended: Result<RecordInfo>) -> Result<RecordInfo, EndError<Self>> {
        match ended {
            Ok(info) => {
                self.inner.protocol.cycle_ended(&self.inner.id, self.inner.began);
                self.over();
                Ok(info)
            }
            Err(error) => Err(EndError { error, claim: self }),
        }
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Claim<T, E> {
    /// Returns the encoded value, and the value as every replay will decode it.
    pub(crate) fn encode_success(&self, value: &T) -> Result<(Value, T)> {
        self.encode_as("success", value)
    }

    /// Encodes a failure as [`encode_success`](Claim::encode_success) does a success.
    pub(crate) fn encode_failure(&self, error: &E) -> Result<(Value, E)> {
        self.encode_as("failure", error)
    }

    fn encode_as<S: Serialize + DeserializeOwned>(&self, what: &str, outcome: &S) -> Result<(Value, S)> {
        let Inner { protocol, id, .. } = &*self.inner;
        let (bytes, read_back) = codec::encode_outcome(
            format_args!("the {what} of key {} of {}", id.key, id.manager),
            outcome,
            protocol.max_value_bytes(),
        )?;
        Ok((Value::from(bytes), read_back))
    }

    /// Stores a success. Every retry gets it until its TTL ends.
    ///
    /// # Errors
    ///
    /// Nothing was stored. The error holds the claim, which is still alive. `Codec` or `TooLarge` if this value cannot
    /// be stored; `EngineFailure` if it contains a [`Failure`] that was made from an error of this crate; `ClaimLost`
    /// if the claim no longer owns the record.
    pub fn succeed(self, value: &T) -> Result<Finished<T, E>, EndError<Self>> {
        match self.encode_success(value) {
            Ok((bytes, value)) => self.end(&Ending::Succeed(bytes)).map(|info| Finished::new(Ok(value), info)),
            Err(error) => Err(EndError { error, claim: self }),
        }
    }

    /// Stores a failure. Every retry gets it until its TTL ends.
    ///
    /// # Errors
    ///
    /// As [`succeed`](Claim::succeed), and `EngineFailure` for a [`Failure`] that was made from an error of this crate.
    /// For an error type of your own, only [`execute`](crate::Manager::execute) can detect such an error.
    pub fn fail(self, error: &E) -> Result<Finished<T, E>, EndError<Self>> {
        match self.encode_failure(error) {
            Ok((bytes, failure)) => self.end(&Ending::Fail(bytes)).map(|info| Finished::new(Err(failure), info)),
            Err(error) => Err(EndError { error, claim: self }),
        }
    }
}

impl<T, E> Drop for Claim<T, E> {
    fn drop(&mut self) {
        if self.inner.live {
            let ending = self.dropping(panicked_or_dropped());
            self.inner.protocol.abandon(&self.inner.id, self.token(), ending);
            self.inner.live = false;
            self.inner.protocol.drop_owner(self.token());
        }
    }
}

impl<T, E> fmt::Debug for Claim<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("token", &self.token()).field("info", &self.inner.info).finish_non_exhaustive()
    }
}

/// The error of an ending that was not stored, with the claim, which is still alive.
///
/// Converting it into an [`Error`], for example by `?`, drops the claim and so interrupts the record. Inside an
/// `anyhow::Error` or a box it keeps the claim alive and the key in progress.
///
/// ```
/// # use oncekey::{EndError, Engine, ErrorKind, Manager};
/// # let engine = Engine::options().max_value_bytes(100).temporary()?;
/// let notes: Manager<String> = engine.manager("notes")?;
/// let claim = notes.begin("k")?.into_claim().unwrap();
/// if let Err(EndError { error, claim }) = claim.succeed(&"x".repeat(200)) {
///     assert_eq!(error.kind(), ErrorKind::TooLarge);
///     claim.succeed(&"a summary".to_owned())?;
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
pub struct EndError<C> {
    /// The reason.
    pub error: Error,
    /// The claim, to try again or to end in another way.
    pub claim: C,
}

impl<C> EndError<C> {
    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }
}

impl<C> fmt::Debug for EndError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<C> fmt::Display for EndError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<C> std::error::Error for EndError<C> {}

impl<C> From<EndError<C>> for Error {
    fn from(end: EndError<C>) -> Self {
        end.error
    }
}
