//! Encodes and decodes records.

use std::borrow::Cow;

use bincode::{DefaultOptions, Options};
use serde::{Deserialize, Serialize};

use super::{Fields, corrupt, length, patch};
use crate::types::context::Context;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::{
    Attempts, EffectSeed, EndedAttempt, FINISHED, Interruption, Lifetime, STARTED, Status, StoredRecord, THIS_FRAME,
    kept_until,
};
use crate::types::value::Value;

/// The size in bytes of the two lengths before the fields: of the fields and of the outcome.
const LENGTHS: usize = 8;
/// The largest size in bytes of a number.
const MAX_NUMBER: usize = 9;
/// The largest size in bytes of a length or another number of 32 bits.
const MAX_LENGTH: usize = 5;
/// The largest size in bytes of all fields but the fingerprint, context, recovery point, checkpoint and attempts.
const MAX_NUMBERS: usize = 3 + 3 * MAX_LENGTH + 13 * MAX_NUMBER + size_of::<EffectSeed>();
const MAX_ENDED_ATTEMPT: usize = MAX_LENGTH + 2 * MAX_NUMBER + 1;

const BY_KEY: u8 = 1;
const RESUMES: u8 = 2;
const BOUND: u8 = 4;
const HOLDS_PROGRESS: u8 = 8;
const FORGOTTEN: u8 = 16;
const UNDOABLE: u8 = 32;

/// The fields of a record that are read without the others. Frozen: another layout needs another struct.
///
/// Most numbers are small if they are counted from an earlier one, and small numbers take few bytes. All differences are
/// modulo 2^64, so every number can be stored.
#[derive(Serialize, Deserialize)]
struct HeadV1 {
    state: u8,
    flags: u8,
    interruption: u8,
    generation: u64,
    token_since_generation: u64,
    revision_since_token: u64,
    updated: u64,
    expires_since_updated: u64,
    interrupted_ttl: Ttl,
    remember: u64,
}

/// A record without its outcome. Frozen: another layout needs another struct.
#[derive(Serialize, Deserialize)]
struct RecordV1<'a> {
    head: HeadV1,
    schema: u32,
    attempt: u32,
    interruptions: u32,
    created_at: u64,
    updated_since_created: u64,
    effect_seed: EffectSeed,
    success_ttl: Ttl,
    failure_ttl: Ttl,
    released_ttl: Ttl,
    retry_pause: u64,
    fingerprint: Option<[u8; 32]>,
    context: Cow<'a, Context>,
    /// `None` for the usual recovery point of the state, see [`usual_recovery_point`].
    recovery_point: Option<&'a str>,
    checkpoint: Option<Value>,
    attempts: Option<AttemptsV1>,
}

/// A TTL plus 1 millisecond, modulo 2^64, so that [`NEVER`](crate::types::clock::NEVER) is short.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Ttl(u64);

impl Ttl {
    fn of(millis: u64) -> Self {
        Self(millis.wrapping_add(1))
    }

    fn millis(self) -> u64 {
        self.0.wrapping_sub(1)
    }
}

#[derive(Serialize, Deserialize)]
struct AttemptsV1 {
    began: u64,
    earlier: Vec<EndedAttemptV1>,
}

/// An earlier attempt. `interruption` is a code, as in [`HeadV1`].
#[derive(Serialize, Deserialize)]
struct EndedAttemptV1 {
    attempt: u32,
    began: u64,
    changed: u64,
    interruption: u8,
}

/// Returns the recovery point of most records in a state. Frozen, with both names: stored records do not contain them.
fn usual_recovery_point(state: Status) -> &'static str {
    if state.is_finished() { FINISHED } else { STARTED }
}

pub(crate) fn state_code(state: Status) -> u8 {
    match state {
        Status::InProgress => 1,
        Status::Succeeded => 2,
        Status::Failed => 3,
        Status::Released => 4,
        Status::Interrupted => 5,
    }
}

fn interruption_code(interruption: Option<Interruption>) -> u8 {
    match interruption {
        None => 0,
        Some(Interruption::ProcessEnded) => 1,
        Some(Interruption::Dropped) => 2,
        Some(Interruption::Panicked) => 3,
        Some(Interruption::Reported) => 4,
        Some(Interruption::Revoked) => 5,
    }
}

/// Returns the largest number of bytes that [`encode`] may append, whatever the numbers and times of the record are.
pub(crate) fn max_encoded_len(stored: &StoredRecord) -> usize {
    let fingerprint = 1 + stored.fingerprint.map_or(0, |fingerprint| fingerprint.as_bytes().len());
    let entry = |(name, value): (&str, &[u8])| MAX_LENGTH + name.len() + MAX_LENGTH + value.len();
    let context = MAX_LENGTH + stored.context.iter().map(entry).sum::<usize>();
    let recovery_point = 1 + MAX_LENGTH + stored.recovery_point.len();
    let checkpoint = 1 + stored.checkpoint.as_ref().map_or(0, |checkpoint| MAX_LENGTH + checkpoint.len());
    let earlier = |attempts: &Attempts| MAX_NUMBER + MAX_LENGTH + attempts.earlier.len() * MAX_ENDED_ATTEMPT;
    let attempts = 1 + stored.attempts.as_deref().map_or(0, earlier);
    let outcome = stored.outcome.as_ref().map_or(0, |outcome| outcome.len());
    LENGTHS + MAX_NUMBERS + fingerprint + context + recovery_point + checkpoint + attempts + outcome
}

/// Appends the encoded record to `out`. Its numbers must be set.
pub(crate) fn encode(stored: &StoredRecord, out: &mut Vec<u8>) -> Result<()> {
    let outcome = stored.outcome.as_deref().unwrap_or_default();
    let start = out.len();
    out.extend_from_slice(&[0; LENGTHS]);
    // Without a limit, because bincode first measures a value whose size is limited.
    let refused = |error| Error::new(ErrorKind::Codec, format!("a record cannot be encoded: {error}"));
    DefaultOptions::new().serialize_into(&mut *out, &RecordV1::of(stored)).map_err(refused)?;
    let fields_len = out.len() - start - LENGTHS;
    patch(out, start, length("a record", fields_len)?);
    patch(out, start + 4, length("an outcome", outcome.len())?);
    out.extend_from_slice(outcome);
    Ok(())
}

impl<'a> RecordV1<'a> {
    fn of(stored: &'a StoredRecord) -> Self {
        let by_key = if stored.by_key { BY_KEY } else { 0 };
        let resumes = if stored.policy == OnInterrupted::Resume { RESUMES } else { 0 };
        let bound = if stored.bound { BOUND } else { 0 };
        let forgotten = if stored.is_forgotten { FORGOTTEN } else { 0 };
        let undoable = if stored.is_undoable { UNDOABLE } else { 0 };
        let holds_progress = if stored.holds_progress { HOLDS_PROGRESS } else { 0 };
        let is_usual = stored.recovery_point == usual_recovery_point(stored.state);
        Self {
            head: HeadV1 {
                state: state_code(stored.state),
                flags: by_key | resumes | bound | holds_progress | forgotten | undoable,
                interruption: interruption_code(stored.interruption),
                generation: stored.generation,
                token_since_generation: stored.token.wrapping_sub(stored.generation),
                revision_since_token: stored.revision.wrapping_sub(stored.token),
                updated: stored.updated,
                expires_since_updated: stored.expires.wrapping_sub(stored.updated),
                interrupted_ttl: Ttl::of(stored.interrupted_ttl),
                remember: stored.remember,
            },
            schema: stored.schema,
            attempt: stored.attempt,
            interruptions: stored.interruptions,
            created_at: stored.created_at,
            updated_since_created: stored.updated_at.wrapping_sub(stored.created_at),
            effect_seed: stored.effect_seed,
            success_ttl: Ttl::of(stored.success_ttl),
            failure_ttl: Ttl::of(stored.failure_ttl),
            released_ttl: Ttl::of(stored.released_ttl),
            retry_pause: stored.retry_pause,
            fingerprint: stored.fingerprint.map(|fingerprint| *fingerprint.as_bytes()),
            context: Cow::Borrowed(&stored.context),
            recovery_point: (!is_usual).then_some(&stored.recovery_point),
            checkpoint: stored.checkpoint.clone(),
            attempts: stored.attempts.as_deref().map(AttemptsV1::of),
        }
    }
}

/// The fields that can be read without the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// The number of bytes before the outcome.
    pub(crate) len: usize,
    pub(crate) outcome_len: u32,
    pub(crate) is_forgotten: bool,
    pub(crate) revision: u64,
    pub(crate) lifetime: Lifetime,
    /// The time for which the key of a finished record is remembered after the record has expired, in milliseconds.
    remember: u64,
}

impl Head {
    /// Returns the store time from which neither the record nor its key is kept, if it is finished.
    pub(crate) fn until(&self) -> u64 {
        kept_until(self.lifetime.expires, self.remember, self.is_forgotten)
    }
}

impl HeadV1 {
    fn token(&self) -> u64 {
        self.generation.wrapping_add(self.token_since_generation)
    }

    fn revision(&self) -> u64 {
        self.token().wrapping_add(self.revision_since_token)
    }

    fn lifetime(&self) -> Option<Lifetime> {
        Some(Lifetime {
            state: state(self.state)?,
            token: self.token(),
            updated: self.updated,
            expires: self.updated.wrapping_add(self.expires_since_updated),
            interrupted_ttl: self.interrupted_ttl.millis(),
        })
    }
}

/// Decodes the fields at the front of a record. `bytes` may end before the outcome, but must contain these fields.
pub(crate) fn decode_head(bytes: &[u8]) -> Option<Head> {
    let mut fields = Fields(bytes);
    let (fields_len, outcome_len) = (fields.len()?, fields.u32()?);
    let head: HeadV1 = DefaultOptions::new().allow_trailing_bytes().deserialize(fields.0).ok()?;
    Some(Head {
        len: LENGTHS.checked_add(fields_len)?,
        outcome_len,
        is_forgotten: head.flags & FORGOTTEN != 0,
        revision: head.revision(),
        lifetime: head.lifetime()?,
        remember: head.remember,
    })
}

/// Decodes a record. `bytes` may end after the fields: then the record has no outcome, only its length.
pub(crate) fn decode(bytes: &[u8]) -> Result<StoredRecord> {
    let mut fields = Fields(bytes);
    let mut parts = || {
        let (len, outcome_len) = (fields.len()?, fields.u32()?);
        Some((fields.take(len)?, outcome_len))
    };
    let malformed = || corrupt("a record is malformed");
    let (encoded, outcome_len) = parts().ok_or_else(malformed)?;
    // On a slice, a length that is larger than what is left is an error before anything is reserved for it.
    let record: RecordV1<'_> = DefaultOptions::new()
        .deserialize(encoded)
        .map_err(|error| corrupt(format!("a record is malformed: {error}")))?;
    record.decoded(outcome_len, fields.0).ok_or_else(malformed)
}

impl RecordV1<'_> {
    fn decoded(self, outcome_len: u32, outcome: &[u8]) -> Option<StoredRecord> {
        let Self { head, .. } = &self;
        let flags = head.flags;
        if flags > BY_KEY | RESUMES | BOUND | HOLDS_PROGRESS | FORGOTTEN | UNDOABLE {
            return None;
        }
        let lifetime = head.lifetime()?;
        let (generation, revision) = (head.generation, head.revision());
        if [generation, revision, lifetime.token].contains(&THIS_FRAME) {
            return None;
        }
        let is_finished = lifetime.state.is_finished();
        let outcome = match outcome.len() {
            0 if !is_finished || outcome_len > 0 => None,
            len if is_finished && len == usize::try_from(outcome_len).ok()? => Some(Value::from(outcome)),
            _ => return None,
        };
        let usual = usual_recovery_point(lifetime.state);
        Some(StoredRecord {
            state: lifetime.state,
            by_key: flags & BY_KEY != 0,
            bound: flags & BOUND != 0,
            holds_progress: flags & HOLDS_PROGRESS != 0,
            interruption: interruption(head.interruption)?,
            policy: if flags & RESUMES != 0 { OnInterrupted::Resume } else { OnInterrupted::Hold },
            schema: self.schema,
            attempt: self.attempt,
            interruptions: self.interruptions,
            generation,
            effect_seed: self.effect_seed,
            revision,
            token: lifetime.token,
            created_at: self.created_at,
            updated_at: self.created_at.wrapping_add(self.updated_since_created),
            updated: lifetime.updated,
            expires: lifetime.expires,
            success_ttl: self.success_ttl.millis(),
            failure_ttl: self.failure_ttl.millis(),
            released_ttl: self.released_ttl.millis(),
            interrupted_ttl: lifetime.interrupted_ttl,
            retry_pause: self.retry_pause,
            remember: head.remember,
            is_forgotten: flags & FORGOTTEN != 0,
            is_undoable: flags & UNDOABLE != 0,
            fingerprint: self.fingerprint.map(Fingerprint::from_bytes),
            context: self.context.into_owned(),
            recovery_point: self.recovery_point.map_or(Cow::Borrowed(usual), |point| point.to_owned().into()),
            checkpoint: self.checkpoint,
            attempts: match self.attempts {
                None => None,
                Some(attempts) => Some(Box::new(attempts.decoded()?)),
            },
            outcome_len,
            outcome,
        })
    }
}

impl AttemptsV1 {
    fn of(attempts: &Attempts) -> Self {
        let earlier = attempts.earlier.iter().map(|ended| {
            let EndedAttempt { attempt, began, changed, interruption } = *ended;
            EndedAttemptV1 { attempt, began, changed, interruption: interruption_code(interruption) }
        });
        Self { began: attempts.began, earlier: earlier.collect() }
    }

    fn decoded(self) -> Option<Attempts> {
        let earlier = self.earlier.into_iter().map(|ended| {
            let EndedAttemptV1 { attempt, began, changed, interruption: code } = ended;
            Some(EndedAttempt { attempt, began, changed, interruption: interruption(code)? })
        });
        Some(Attempts { began: self.began, earlier: earlier.collect::<Option<_>>()? })
    }
}

pub(crate) fn state(byte: u8) -> Option<Status> {
    Some(match byte {
        1 => Status::InProgress,
        2 => Status::Succeeded,
        3 => Status::Failed,
        4 => Status::Released,
        5 => Status::Interrupted,
        _ => return None,
    })
}

#[expect(clippy::option_option, reason = "an unknown byte, none, or an interruption")]
fn interruption(byte: u8) -> Option<Option<Interruption>> {
    Some(match byte {
        0 => None,
        1 => Some(Interruption::ProcessEnded),
        2 => Some(Interruption::Dropped),
        3 => Some(Interruption::Panicked),
        4 => Some(Interruption::Reported),
        5 => Some(Interruption::Revoked),
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn encoded(stored: &StoredRecord) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(stored, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn sample() -> StoredRecord {
        StoredRecord {
            state: Status::Succeeded,
            by_key: true,
            bound: true,
            holds_progress: true,
            interruption: Some(Interruption::Dropped),
            policy: OnInterrupted::Resume,
            schema: 7,
            attempt: 2,
            interruptions: 1,
            attempts: Some(Box::new(Attempts {
                began: 1_900,
                earlier: vec![
                    EndedAttempt {
                        attempt: 1,
                        began: 1_000,
                        changed: 1_100,
                        interruption: Some(Interruption::Dropped),
                    },
                    EndedAttempt { attempt: 2, began: 1_200, changed: 1_300, interruption: None },
                ],
            })),
            generation: 0x1_0000_0001,
            effect_seed: [5; 16],
            revision: 0x1_0000_0003,
            token: 0x1_0000_0002,
            created_at: 1_000,
            updated_at: 2_000,
            updated: 30,
            expires: u64::MAX,
            success_ttl: 1,
            failure_ttl: 2,
            released_ttl: 3,
            interrupted_ttl: u64::MAX,
            retry_pause: 4,
            remember: 0,
            is_forgotten: false,
            is_undoable: false,
            fingerprint: Some(Fingerprint::from_bytes([9; 32])),
            context: Context::new().with("user", "ada"),
            recovery_point: FINISHED.into(),
            checkpoint: None,
            outcome_len: 3,
            outcome: Some(Value::from("abc")),
        }
    }

    #[test]
    fn golden_bytes() {
        let stored = StoredRecord { remember: 4, is_forgotten: true, expires: 86_400_030, ..sample() };
        let mut expected = vec![117, 0, 0, 0, 3, 0, 0, 0, 2, 31, 2];
        // The generation has more than 32 bits. The token is counted from it, and the revision from the token.
        expected.extend_from_slice(&[253, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1]);
        // The time of the change, the expiry counted from it, the interrupted TTL and the time to remember.
        expected.extend_from_slice(&[30, 252, 0, 0x5C, 0x26, 5, 0, 4]);
        // The schema, the attempt, the interruptions, the wall clock, and the effect seed.
        expected.extend_from_slice(&[7, 2, 1, 251, 0xE8, 3, 251, 0xE8, 3]);
        expected.extend_from_slice(&[5; 16]);
        // The other TTLs, the pause, the fingerprint and the context.
        expected.extend_from_slice(&[2, 3, 4, 4, 1]);
        expected.extend_from_slice(&[9; 32]);
        expected.extend_from_slice(b"\x01\x04user\x03ada");
        // The usual recovery point, no checkpoint, and two earlier attempts.
        expected.extend_from_slice(&[0, 0, 1, 251, 0x6C, 7, 2, 1, 251, 0xE8, 3, 251, 0x4C, 4, 2]);
        expected.extend_from_slice(&[2, 251, 0xB0, 4, 251, 0x14, 5, 0]);
        expected.extend_from_slice(b"abc");
        assert_eq!(encoded(&stored).escape_ascii().to_string(), expected.escape_ascii().to_string());
        assert_eq!(decode(&expected).unwrap().recovery_point, "finished");
    }

    #[test]
    fn golden_bytes_of_a_record_in_progress() {
        let numbers = [1, 0, 0, 5, 0, 2, 30, 253, 225, 255, 255, 255, 255, 255, 255, 255, 0, 0, 7, 1, 0, 9, 0];
        let ttls = [2, 3, 4, 0];
        let fields = [numbers.as_slice(), &[5; 16], &ttls, &[0, 0, 0, 0, 0]].concat();
        let bytes = [&[48, 0, 0, 0, 0, 0, 0, 0], fields.as_slice()].concat();
        let stored = decode(&bytes).unwrap();
        assert_eq!((stored.generation, stored.token, stored.revision), (5, 5, 7));
        assert_eq!((stored.state, stored.expires, stored.interrupted_ttl), (Status::InProgress, u64::MAX, u64::MAX));
        assert_eq!((&*stored.recovery_point, stored.success_ttl, stored.created_at), ("started", 1, 9));
        assert_eq!(encoded(&stored), bytes);
        let longer = [&[49, 0, 0, 0, 0, 0, 0, 0], fields.as_slice(), &[0]].concat();
        assert_eq!(decode(&longer).unwrap_err().kind(), ErrorKind::Corrupt, "a byte is left over");
    }

    #[test]
    fn decode_is_the_inverse_of_encode_and_refuses_every_cut_before_the_outcome() {
        let stored = StoredRecord { remember: 4, is_forgotten: true, ..sample() };
        let bytes = encoded(&stored);
        assert_eq!(decode(&bytes).unwrap(), stored);
        for cut in 0..bytes.len() {
            match decode(&bytes[..cut]) {
                Ok(head) => {
                    assert_eq!(cut, bytes.len() - 3);
                    assert_eq!(head, StoredRecord { outcome: None, ..stored.clone() });
                }
                Err(error) => assert_eq!(error.kind(), crate::ErrorKind::Corrupt),
            }
        }
        let head = decode_head(&bytes).unwrap();
        assert_eq!((head.lifetime, head.revision), (stored.lifetime(), stored.revision));
        assert_eq!(head.len, bytes.len() - 3);
        let unfinished =
            StoredRecord { state: Status::Released, outcome: None, outcome_len: 0, interrupted_ttl: 77, ..sample() };
        let remembered = StoredRecord { expires: 5, remember: 4, ..sample() };
        for stored in [stored, unfinished, remembered] {
            let mut bytes = Vec::new();
            encode(&stored, &mut bytes).unwrap();
            let StoredRecord { is_forgotten, outcome_len, .. } = stored;
            let until = if is_forgotten { stored.expires } else { stored.expires.saturating_add(stored.remember) };
            let head = decode_head(&bytes).unwrap();
            assert_eq!((head.lifetime, head.until()), (stored.lifetime(), until));
            assert_eq!((head.is_forgotten, head.outcome_len), (is_forgotten, outcome_len));
        }
    }

    #[test]
    fn a_record_without_a_number_is_malformed() {
        let without = [
            StoredRecord { generation: THIS_FRAME, ..sample() },
            StoredRecord { revision: THIS_FRAME, ..sample() },
            StoredRecord { token: THIS_FRAME, ..sample() },
        ];
        for stored in without {
            assert_eq!(decode(&encoded(&stored)).unwrap_err().kind(), crate::ErrorKind::Corrupt);
        }
    }

    /// A record whose numbers take as many bytes as they can.
    fn longest(record: StoredRecord) -> StoredRecord {
        let long = 1 << 40;
        let ended = EndedAttempt { attempt: u32::MAX, began: long, changed: long, interruption: None };
        StoredRecord {
            schema: u32::MAX,
            attempt: u32::MAX,
            interruptions: u32::MAX,
            attempts: record.attempts.map(|_| Box::new(Attempts { began: long, earlier: vec![ended; 16] })),
            generation: u64::MAX,
            token: u64::MAX - long,
            revision: u64::MAX - 2 * long,
            created_at: u64::MAX,
            updated_at: long,
            updated: long,
            expires: 2 * long,
            success_ttl: long,
            failure_ttl: long,
            released_ttl: long,
            interrupted_ttl: long,
            retry_pause: long,
            remember: long,
            recovery_point: "charged".into(),
            ..record
        }
    }

    #[test]
    fn a_record_is_at_most_as_long_as_foreseen_and_is_decoded_whatever_its_numbers_are() {
        let checkpoint = Some(Value::from([3; 300].as_slice()));
        let bare = StoredRecord {
            fingerprint: None,
            attempts: None,
            context: Context::new(),
            state: Status::Released,
            outcome: None,
            outcome_len: 0,
            ..sample()
        };
        let long = sample().context.with("", [1; 9].as_slice()).with("longer", "");
        let with_context = StoredRecord { context: long, ..sample() };
        // Each length takes fewer bytes than it could: 1 instead of 5 below 251, and 3 below 65,536. A recovery point
        // that is not stored takes 1 byte instead of 13.
        for (stored, unused) in [
            (bare.clone(), 4 + 4),
            (StoredRecord { checkpoint, ..bare.clone() }, 4 + 4 + 2),
            (with_context, 4 + 6 * 4 + 4 + 4),
        ] {
            let longest = longest(stored.clone());
            assert_eq!(encoded(&longest).len() + unused, max_encoded_len(&longest));
            assert!(encoded(&stored).len() < max_encoded_len(&stored));
            for stored in [longest, stored] {
                assert_eq!(decode(&encoded(&stored)).unwrap(), stored);
            }
        }
    }
}
