//! Records outside a store: as JSON, with every field. The documentation of `RecordInfo`'s `Serialize` lists the
//! fields.
//!
//! A field that this version does not know is refused.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use uuid::Uuid;

use crate::types::clock::{NEVER, wall_millis, wall_time};
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::fingerprint::Fingerprint;
use crate::types::key::{Key, check_name};
use crate::types::options::OnInterrupted;
use crate::types::outcome::Record;
use crate::types::record::{
    Attempts, EndedAttempt, FINISHED, Interruption, RecordInfo, Status, StoredRecord, check_checkpoint,
    check_recovery_point,
};
use crate::types::value::Value;

/// Increased when a field changes its meaning.
const VERSION: u32 = 1;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Portable {
    version: u32,
    /// The id of the store from which the record comes.
    store: Uuid,
    /// The seed of the effect ids. An effect id is made from this and the key.
    effect_seed: Uuid,
    manager: String,
    /// The text of the key, as it is printed.
    key: String,
    status: Status,
    interruption: Option<Interruption>,
    policy: OnInterrupted,
    schema: u32,
    attempt: u32,
    interruptions: u32,
    claimed_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier_attempts: Vec<PortableAttempt>,
    holds_progress: bool,
    generation: u64,
    revision: u64,
    token: u64,
    created_at_ms: u64,
    updated_at_ms: u64,
    expires_at_ms: Option<u64>,
    success_ttl_ms: Option<u64>,
    failure_ttl_ms: Option<u64>,
    released_ttl_ms: Option<u64>,
    interrupted_ttl_ms: Option<u64>,
    fingerprint: Option<String>,
    context: BTreeMap<String, Bytes>,
    recovery_point: String,
    checkpoint: Option<Bytes>,
    outcome_bytes: u32,
    /// `None` if there is no outcome, or if it was not read.
    outcome: Option<Bytes>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableAttempt {
    attempt: u32,
    claimed_at_ms: u64,
    updated_at_ms: u64,
    interruption: Option<Interruption>,
}

impl From<&EndedAttempt> for PortableAttempt {
    fn from(ended: &EndedAttempt) -> Self {
        let &EndedAttempt { attempt, began, changed, interruption } = ended;
        Self { attempt, claimed_at_ms: began, updated_at_ms: changed, interruption }
    }
}

impl From<PortableAttempt> for EndedAttempt {
    fn from(portable: PortableAttempt) -> Self {
        let PortableAttempt { attempt, claimed_at_ms, updated_at_ms, interruption } = portable;
        Self { attempt, began: claimed_at_ms, changed: updated_at_ms, interruption }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Binary { base64: String },
}

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        let readable = |text: &&str| !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
        match std::str::from_utf8(bytes).ok().filter(readable) {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Binary { base64: BASE64_STANDARD.encode(bytes) },
        }
    }

    fn read(self) -> Result<Value> {
        match self {
            Self::Text(text) => Ok(text.into()),
            Self::Binary { base64 } => {
                let bytes = BASE64_STANDARD.decode(base64).map_err(|cause| malformed(&format!("base64: {cause}")))?;
                Ok(bytes.into())
            }
        }
    }
}

fn malformed(why: &str) -> Error {
    Error::new(ErrorKind::Codec, format!("the record is malformed: {why}"))
}

/// Returns milliseconds, or `None` for no limit.
fn lasting(millis: u64) -> Option<u64> {
    (millis != NEVER).then_some(millis)
}

impl Portable {
    fn new(info: &RecordInfo) -> Self {
        let stored = info.stored();
        Self {
            version: VERSION,
            store: Uuid::from_bytes(info.store_id()),
            effect_seed: Uuid::from_bytes(stored.effect_seed),
            manager: info.manager().to_owned(),
            key: info.key().to_string(),
            status: info.status(),
            interruption: info.interruption(),
            policy: stored.policy,
            schema: stored.schema,
            attempt: stored.attempt,
            interruptions: stored.interruptions,
            claimed_at_ms: info.claimed_at().map(wall_millis),
            earlier_attempts: stored.attempts.iter().flat_map(|attempts| &attempts.earlier).map(Into::into).collect(),
            holds_progress: stored.holds_progress,
            generation: stored.generation,
            revision: stored.revision,
            token: stored.token,
            created_at_ms: stored.created_at,
            updated_at_ms: stored.updated_at,
            expires_at_ms: info.expires_at().map(wall_millis),
            success_ttl_ms: lasting(stored.success_ttl),
            failure_ttl_ms: lasting(stored.failure_ttl),
            released_ttl_ms: lasting(stored.released_ttl),
            interrupted_ttl_ms: lasting(stored.interrupted_ttl),
            fingerprint: stored.fingerprint.map(|fingerprint| fingerprint.to_string()),
            context: stored.context.iter().map(|(name, value)| (name.to_owned(), Bytes::new(value))).collect(),
            recovery_point: info.recovery_point().to_owned(),
            checkpoint: info.checkpoint().map(Bytes::new),
            outcome_bytes: stored.outcome_len,
            outcome: stored.outcome.as_deref().map(Bytes::new),
        }
    }

    fn read(self) -> Result<Record<Value, Value>> {
        if self.version != VERSION {
            let message =
                format!("the record has format version {}, and only version {VERSION} is known", self.version);
            return Err(Error::new(ErrorKind::UnsupportedFormat, message));
        }
        check_name("manager", &self.manager)?;
        let key = Key::from_text(&self.key)?;
        let outcome = self.outcome.map(Bytes::read).transpose()?;
        let is_finished = self.status.is_finished();
        if is_finished != outcome.is_some() {
            let has = if is_finished { "no outcome" } else { "an outcome" };
            return Err(malformed(&format!("it is {:?} and has {has}", self.status)));
        }
        if !is_finished || self.recovery_point != FINISHED {
            check_recovery_point(&self.recovery_point)?;
        }
        let checkpoint = self.checkpoint.map(Bytes::read).transpose()?;
        check_checkpoint(checkpoint.as_ref().map_or(0, |bytes| bytes.len()), Value::MAX_BYTES as u64)?;
        let entries = self.context.into_iter().map(|(name, value)| Ok((name, value.read()?)));
        let context = entries.collect::<Result<BTreeMap<_, _>>>()?.into_iter().collect::<Context>();
        context.check()?;
        if self.earlier_attempts.len() > RecordInfo::MAX_EARLIER_ATTEMPTS {
            return Err(malformed(&format!("it has more than {} earlier attempts", RecordInfo::MAX_EARLIER_ATTEMPTS)));
        }
        let earlier = self.earlier_attempts.into_iter().map(Into::into).collect();
        let attempts = Attempts { began: self.claimed_at_ms.unwrap_or(self.created_at_ms), earlier };
        let is_first = attempts.began == self.created_at_ms && attempts.earlier.is_empty();
        let outcome_len = outcome.as_ref().map_or(0, |bytes| bytes.len());
        let stored = StoredRecord {
            state: self.status,
            by_key: false,
            bound: true,
            interruption: self.interruption,
            policy: self.policy,
            schema: self.schema,
            attempt: self.attempt,
            interruptions: self.interruptions,
            attempts: (!is_first).then(|| Box::new(attempts)),
            holds_progress: self.holds_progress,
            generation: self.generation,
            effect_seed: self.effect_seed.into_bytes(),
            revision: self.revision,
            token: self.token,
            created_at: self.created_at_ms,
            updated_at: self.updated_at_ms,
            updated: 0,
            expires: NEVER,
            success_ttl: ttl(self.success_ttl_ms)?,
            failure_ttl: ttl(self.failure_ttl_ms)?,
            released_ttl: ttl(self.released_ttl_ms)?,
            interrupted_ttl: ttl(self.interrupted_ttl_ms)?,
            retry_pause: 0,
            remember: 0,
            is_forgotten: false,
            is_undoable: false,
            fingerprint: self.fingerprint.as_deref().map(fingerprint).transpose()?,
            context,
            recovery_point: self.recovery_point.into(),
            checkpoint,
            outcome_len: u32::try_from(outcome_len).map_err(|_| malformed("its outcome is too long"))?,
            outcome,
        };
        let expires_at: Option<SystemTime> = self.expires_at_ms.map(wall_time);
        Ok(Record::raw(RecordInfo::detached(self.store.into_bytes(), &self.manager, key, stored, expires_at)))
    }
}

fn ttl(millis: Option<u64>) -> Result<u64> {
    if millis == Some(0) { Err(malformed("a TTL is zero")) } else { Ok(millis.unwrap_or(NEVER)) }
}

fn fingerprint(hexadecimal: &str) -> Result<Fingerprint> {
    let bad = || malformed("a fingerprint is 64 hexadecimal digits");
    let mut bytes = [0; 32];
    if hexadecimal.len() != 2 * bytes.len() || !hexadecimal.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad());
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = hexadecimal.get(2 * at..2 * at + 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(Fingerprint::from_bytes(bytes))
}

/// Writes a map, for JSON and other formats that describe themselves. `oncekey export` prints it.
///
/// | field | contents |
/// |---|---|
/// | `version` | 1; it changes when a field changes its meaning |
/// | `store`, `effect_seed` | UUIDs: the id of the store, and the seed of the [effect ids](RecordInfo::effect_id) |
/// | `manager`, `key` | the name, and the text of the whole key, which [`Key::from_text`] reads |
/// | `status` | `InProgress`, `Succeeded`, `Failed`, `Released` or `Interrupted` |
/// | `interruption` | null, `ProcessEnded`, `Dropped`, `Panicked`, `Reported` or `Revoked` |
/// | `policy` | `Hold` or `Resume` |
/// | `schema`, `attempt`, `interruptions` | numbers; `interruptions` counts the attempts that were interrupted and followed by another |
/// | `claimed_at_ms` | milliseconds since 1970 at the last claim; null if there was none |
/// | `earlier_attempts` | a list, left out if it is empty, of maps: `attempt`, `claimed_at_ms`, `updated_at_ms` and `interruption`, null if the key was released |
/// | `holds_progress` | true if a release keeps the record as long as an interruption |
/// | `generation`, `revision`, `token` | numbers: [`generation`](RecordInfo::generation), [`revision`](RecordInfo::revision), and the fencing token of the last claim |
/// | `created_at_ms`, `updated_at_ms` | milliseconds since 1970, by the wall clock |
/// | `expires_at_ms` | the same; null if the record never expires |
/// | `success_ttl_ms`, `failure_ttl_ms`, `released_ttl_ms`, `interrupted_ttl_ms` | milliseconds; null for no limit |
/// | `fingerprint` | 64 hexadecimal digits, or null |
/// | `context` | a map of names to bytes |
/// | `recovery_point`, `checkpoint` | text, and bytes or null |
/// | `outcome_bytes` | the length of the encoded outcome |
/// | `outcome` | always null; the bytes of the encoded outcome in a [`Record`] of a [`RawManager`](crate::admin::RawManager) |
///
/// The values of contexts, checkpoints and outcomes are strings if they are printable UTF-8, else `{"base64": "..."}`.
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let done = payments.begin("order-42")?.into_claim().unwrap().succeed(&1999)?;
/// let json = serde_json::to_value(done.info()).unwrap();
/// assert_eq!((&json["key"], &json["status"]), (&"order-42".into(), &"Succeeded".into()));
/// # Ok::<(), oncekey::Error>(())
/// ```
impl Serialize for RecordInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Portable::new(&self.without_outcome()).serialize(serializer)
    }
}

/// Writes the fields of its [`RecordInfo`] and the encoded outcome.
impl Serialize for Record<Value, Value> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Portable::new(self.info()).serialize(serializer)
    }
}

/// Reads what `Serialize` wrote, to be [imported](crate::admin::RawManager::import) into another store.
impl<'de> Deserialize<'de> for Record<Value, Value> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Portable::deserialize(deserializer)?.read().map_err(D::Error::custom)
    }
}
