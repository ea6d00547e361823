//! The right to execute, held by one owner.

pub(crate) mod stage;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::rules::Ending;
use crate::protocol::{Fence, Protocol, RecordId, Running, ToEnd, panicked_or_dropped};
use crate::types::clock::millis;
use crate::types::codec;
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::failure::Failure;
use crate::types::key::Key;
use crate::types::options::check_ttl;
use crate::types::options::migrate::Migrations;
use crate::types::outcome::Finished;
use crate::types::record::{Interruption, RecordInfo, Status};
use crate::types::value::Value;

/// The right to execute the operation of one key.
///
/// Exactly one claim of a key is alive at a time. It ends by [`succeed`](Claim::succeed), [`fail`](Claim::fail),
/// [`release`](Claim::release) or [`interrupt`](Claim::interrupt); dropped, it interrupts the record, because nobody knows
/// how far the operation came. A `?` between `begin` and the ending is such a drop: validate before `begin`, or say
/// [`release_on_drop`](Claim::release_on_drop) until the first effect.
///
/// A claim that is forgotten (`mem::forget`, a static, a thread that never ends) stays in progress for the life of the
/// process, or until [`Manager::revoke`](crate::Manager::revoke). A live claim keeps the directory locked: after
/// [`Engine::close`](crate::Engine::close) it can still end, and no other engine opens the store before that.
///
/// ```
/// # use oncekey::{Engine, Manager, Status};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64, String> = engine.manager("payments")?;
/// let Ok(mut claim) = payments.begin("order-42")?.into_claim() else { return Ok(()) };
/// claim.release_on_drop(true);
/// let cents: u64 = "1999".parse().unwrap_or_default(); // until here, a `?` would free the key
/// println!("charging {cents} as {}", claim.effect_id("charge")); // from here on, it would interrupt
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
    /// An atomic, because naming an effect takes the claim by reference.
    release_on_drop: AtomicBool,
    /// It has not ended.
    live: bool,
    /// An effect may have been caused: an effect id was asked for, or a stage was committed.
    touched: AtomicBool,
    /// A fault of the engine reached the operation through this claim.
    faulted: Arc<AtomicBool>,
    migrations: Migrations,
    /// Milliseconds for which its outcome is kept, if it says so.
    ttl: Option<u64>,
}

/// Which claim one is.
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
        let inner =
            Inner { protocol, id, info, context, release_on_drop, touched, live: true, faulted, migrations, ttl: None };
        Self { inner: Box::new(inner), types: PhantomData }
    }

    /// A claim that has no record: as one that has ended, so that a drop changes nothing.
    #[cfg(feature = "http")]
    pub(crate) fn without_record(protocol: Arc<Protocol>, id: RecordId, info: RecordInfo) -> Self {
        let mut claim = Self::new(protocol, id, info, Migrations::default());
        claim.inner.live = false;
        claim
    }

    /// The whole key, the scope included.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.inner.info.key()
    }

    /// The fencing token: larger than that of every earlier claim in this store, for downstream systems that can compare. A
    /// copy of the store has other tokens, in no order with these.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.inner.info.stored().token
    }

    /// Which life of the key this is.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.info.generation()
    }

    /// How many claims this generation has had, this one included.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.inner.info.attempt()
    }

    /// Why the attempt before was interrupted, if it was.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        self.inner.info.interruption()
    }

    /// What was given when the generation started.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.inner.context
    }

    /// The last stage that ended; [`STARTED`](crate::STARTED) at first.
    #[must_use]
    pub fn recovery_point(&self) -> &str {
        self.inner.info.recovery_point()
    }

    /// What the last stage kept for this one.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&[u8]> {
        self.inner.info.checkpoint()
    }

    /// The checkpoint as the type that [`Next::advance_encoded`](crate::Next::advance_encoded) encoded it from.
    ///
    /// # Errors
    ///
    /// `TypeMismatch` when it was encoded from another type, or that type has changed since, unless it is
    /// [migrated](crate::ManagerOptions::migrate_checkpoint): [limits](crate::guides::limits) says what counts. `Codec` when it was not
    /// encoded.
    pub fn decode_checkpoint<C: Serialize + DeserializeOwned>(&self) -> Result<Option<C>> {
        let decoded = self.checkpoint().map(|bytes| self.inner.migrations.decode_checkpoint(bytes)).transpose();
        if decoded.is_err() {
            self.inner.faulted.store(true, Ordering::Relaxed);
        }
        decoded
    }

    /// See [`RecordInfo::effect_id`]: to be passed downstream, so that an attempt after an interruption does not repeat the
    /// effect. From here on the effect may have happened, so that [`release_on_drop`](Claim::release_on_drop) is turned off.
    #[must_use]
    pub fn effect_id(&self, label: &str) -> String {
        self.touch();
        self.inner.info.effect_id(label)
    }

    /// Whether a drop, by a panic too, releases the record instead of interrupting it: true while nothing has happened yet.
    /// The death of the process interrupts all the same. Defaults to false; [`effect_id`](Claim::effect_id) and a
    /// [`work_stage`](Claim::work_stage) that commits turn it off.
    pub fn release_on_drop(&mut self, release: bool) {
        self.inner.release_on_drop.store(release, Ordering::Relaxed);
    }

    /// Keeps the outcome that this claim stores for `ttl` from its ending, instead of
    /// [`success_ttl`](crate::ManagerOptions::success_ttl) or [`failure_ttl`](crate::ManagerOptions::failure_ttl): so the answer
    /// decides how long it is replayed, in [`execute`](crate::Manager::execute), `handle`, a stage or by hand. Of several calls the last counts. A
    /// claim that is released or interrupted stores no outcome, and leaves the times of the next attempt as they were.
    /// [`FOREVER`](crate::FOREVER) never lapses.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # use std::time::Duration;
    /// # let engine = Engine::temporary()?;
    /// let quotes: Manager<u64, String> = engine.manager("quotes")?;
    /// let quote = quotes.execute("quote-7", |claim| {
    ///     let cents = 1999;
    ///     if cents > 1000 {
    ///         claim.keep_for(Duration::from_secs(600)).map_err(|error| error.to_string())?; // a large quote is good for ten minutes
    ///     }
    ///     Ok(cents)
    /// });
    /// assert!(quote.is_ok());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidOptions` for zero.
    pub fn keep_for(&mut self, ttl: Duration) -> Result<()> {
        check_ttl("ttl", ttl)?;
        self.inner.ttl = Some(millis(ttl));
        Ok(())
    }

    /// Whether an effect outside may have happened under this claim.
    pub(crate) fn is_touched(&self) -> bool {
        self.inner.touched.load(Ordering::Relaxed)
    }

    /// Gives the key up: nothing has happened, and whoever comes next runs the operation.
    pub fn release(self) -> Result<RecordInfo, EndError<Self>> {
        let ending = self.releasing();
        self.end(&ending)
    }

    /// As [`release`](Claim::release), where an effect that has no name of ours may have happened: the record stays bound to its
    /// request.
    pub(crate) fn release_bound(self) -> Result<RecordInfo, EndError<Self>> {
        let ending = if self.is_touched() { Ending::ReleaseTouched } else { Ending::Release };
        self.end(&ending)
    }

    /// Gives the key up: it is not known whether anything has happened. What a drop does, with an answer.
    pub fn interrupt(self) -> Result<RecordInfo, EndError<Self>> {
        self.end(&Ending::Interrupt(Interruption::Reported))
    }

    /// Removes its record. If that fails, its drop interrupts the record.
    #[cfg(feature = "http")]
    pub(crate) fn discard(mut self) -> Result<()> {
        let Inner { protocol, id, .. } = &*self.inner;
        protocol.discard(id, self.token())?;
        self.over();
        Ok(())
    }

    /// It has ended, and keeps the directory no more.
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

    /// A stage, or an ending, has ended it.
    pub(crate) fn is_ended(&self) -> bool {
        !self.inner.live
    }

    pub(crate) fn info(&self) -> &RecordInfo {
        &self.inner.info
    }

    pub(crate) fn protocol(&self) -> &Arc<Protocol> {
        &self.inner.protocol
    }

    /// Where it is now.
    pub(crate) fn fence(&self) -> Fence<'_> {
        Fence { id: &self.inner.id, token: self.token(), point: self.recovery_point(), ttl: self.inner.ttl }
    }

    /// An effect may have happened: it was named, or a stage was committed.
    pub(crate) fn touch(&self) {
        self.inner.release_on_drop.store(false, Ordering::Relaxed);
        self.inner.touched.store(true, Ordering::Relaxed);
    }

    /// Marks this thread as running the claim's operation.
    pub(crate) fn running(&self) -> Running {
        self.inner.protocol.running(&self.inner.id)
    }

    /// Which claim it is, to be compared after a `&mut` of it was lent.
    pub(crate) fn identity(&self) -> Identity {
        Identity { protocol: Arc::clone(&self.inner.protocol), id: self.inner.id.clone(), token: self.token() }
    }

    /// Returns the claim if it is the one that was lent. If the operation has exchanged it, an outcome could belong to either
    /// record: both are interrupted.
    pub(crate) fn returned(self, lent: &Identity) -> Result<Self> {
        let Inner { protocol, id, .. } = &*self.inner;
        if Arc::ptr_eq(protocol, &lent.protocol) && id.is(&lent.id) && self.token() == lent.token {
            return Ok(self);
        }
        let message = format!("the operation of key {} exchanged its claim with that of key {}", lent.id.key, id.key);
        // The lent claim is lost, wherever it is now. A record that has ended already stays as it is.
        let ended = lent.protocol.end(&lent.id, lent.token, &Ending::Interrupt(Interruption::Reported));
        if ended.map_or_else(|error| error.kind() == ErrorKind::ClaimLost, |_| true) {
            // It owns nothing any more, so it keeps the directory no longer, even if it is never dropped.
            lent.protocol.leave_owner(lent.token);
        }
        Err(Error::new(ErrorKind::ClaimLost, message))
    }

    pub(crate) fn fault_flag(&self) -> &AtomicBool {
        &self.inner.faulted
    }

    /// A stage has changed its record, and perhaps ended it.
    pub(crate) fn moved(&mut self, info: RecordInfo) {
        self.inner.info = info;
        if self.inner.info.status() != Status::InProgress {
            self.over();
        }
    }

    pub(crate) fn is_faulted(&self) -> bool {
        self.inner.faulted.load(Ordering::Relaxed)
    }

    /// Ends it; on error the claim is as alive as before.
    pub(crate) fn end(self, ending: &Ending) -> Result<RecordInfo, EndError<Self>> {
        let ended = self.inner.protocol.end_claim(self.to_end(ending));
        self.after(ended)
    }

    /// Ends claims of one engine together, in as few commits as hold their records.
    pub(crate) fn end_all(claims: Vec<(Self, Ending)>) -> Vec<Result<RecordInfo, EndError<Self>>> {
        let to_end: Vec<_> = claims.iter().map(|(claim, ending)| claim.to_end(ending)).collect();
        let ended = claims.first().map_or_else(Vec::new, |(claim, _)| claim.protocol().end_all(&to_end));
        claims.into_iter().zip(ended).map(|((claim, _), ended)| claim.after(ended)).collect()
    }

    fn to_end<'a>(&'a self, ending: &'a Ending) -> ToEnd<'a> {
        ToEnd { id: &self.inner.id, token: self.token(), ending, ttl: self.inner.ttl }
    }

    fn after(mut self, ended: Result<RecordInfo>) -> Result<RecordInfo, EndError<Self>> {
        match ended {
            Ok(info) => {
                self.over();
                Ok(info)
            }
            Err(error) => Err(EndError { error, claim: self }),
        }
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Claim<T, E> {
    /// The bytes, and the value as every replay will read it.
    pub(crate) fn encode_success(&self, value: &T) -> Result<(Value, T)> {
        let Inner { protocol, id, .. } = &*self.inner;
        let (bytes, read_back) = codec::encode_checked(
            format_args!("the success of key {} of {}", id.key, id.manager),
            value,
            protocol.max_value_bytes(),
        )?;
        Ok((Value::from(bytes), read_back))
    }

    /// As [`encode_success`](Claim::encode_success).
    pub(crate) fn encode_failure(&self, error: &E) -> Result<(Value, E)> {
        let Inner { protocol, id, .. } = &*self.inner;
        let (bytes, read_back) = codec::encode_failure(
            format_args!("the failure of key {} of {}", id.key, id.manager),
            error,
            protocol.max_value_bytes(),
        )?;
        Ok((Value::from(bytes), read_back))
    }

    /// Stores a success, which every retry gets from now on until its TTL.
    ///
    /// # Errors
    ///
    /// The claim comes back, alive, with why: nothing was stored. `Codec` and `TooLarge` say that this value cannot be;
    /// `ClaimLost`, that the record is no longer this claim's.
    pub fn succeed(self, value: &T) -> Result<Finished<T, E>, EndError<Self>> {
        match self.encode_success(value) {
            Ok((bytes, value)) => self.end(&Ending::Succeed(bytes)).map(|info| Finished::new(Ok(value), info)),
            Err(error) => Err(EndError { error, claim: self }),
        }
    }

    /// Stores a failure, which every retry gets from now on until its TTL.
    ///
    /// # Errors
    ///
    /// As [`succeed`](Claim::succeed), and `EngineFailure` for a [`Failure`] that was made from an error of this crate. Whether
    /// a type of your own was made from one, only [`execute`](crate::Manager::execute) can tell.
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
            self.over();
        }
    }
}

impl<T, E> fmt::Debug for Claim<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("token", &self.token()).field("info", &self.inner.info).finish_non_exhaustive()
    }
}

/// An ending that was not stored, and the claim, which is still alive.
///
/// Turned into an [`Error`], e.g. by `?`, it drops the claim, and so interrupts the record. Kept in an `anyhow::Error` or a
/// box, it keeps the claim alive and the key in progress.
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
    /// Why it was not stored.
    pub error: Error,
    /// To try again with, or to end otherwise.
    pub claim: C,
}

impl<C> EndError<C> {
    /// The kind of the error.
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
