//! Encodes and decodes records.

use serde::Deserialize;

use super::{Fields, corrupt, length};
use crate::types::codec;
use crate::types::context::Context;
use crate::types::error::Result;
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::{
    Attempts, EndedAttempt, FINISHED, Interruption, Lifetime, STARTED, Status, StoredRecord, THIS_FRAME, kept_until,
};
use crate::types::value::Value;

/// The length in bytes of the fixed part, which can be read without decoding the rest.
pub(crate) const HEAD: usize = 92;

const BY_KEY: u8 = 1;
const RESUMES: u8 = 2;
const BOUND: u8 = 4;
const HOLDS_PROGRESS: u8 = 8;
const FORGOTTEN: u8 = 16;
const UNDOABLE: u8 = 32;

/// The variable part of a record, without the outcome. Frozen: another layout needs another struct.
#[derive(Deserialize)]
struct RestV1 {
    success_ttl: u64,
    failure_ttl: u64,
    released_ttl: u64,
    interrupted_ttl: u64,
    retry_pause: u64,
    interruptions: u32,
    remember: u64,
    fingerprint: Option<[u8; 32]>,
    context: Context,
    recovery_point: String,
    checkpoint: Option<Value>,
    attempts: Option<AttemptsV1>,
}

#[derive(Deserialize)]
struct AttemptsV1 {
    began: u64,
    earlier: Vec<EndedAttemptV1>,
}

/// An earlier attempt. `interruption` is a code, as in the fixed part.
#[derive(Deserialize)]
struct EndedAttemptV1 {
    attempt: u32,
    began: u64,
    changed: u64,
    interruption: u8,
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

/// Returns the number of bytes that [`encode`] appends.
pub(crate) fn encoded_len(stored: &StoredRecord) -> usize {
    HEAD + rest_len(stored) + stored.outcome.as_ref().map_or(0, |outcome| outcome.len())
}

/// Appends the encoded record to `out`. Its numbers must be set.
pub(crate) fn encode(stored: &StoredRecord, out: &mut Vec<u8>) -> Result<()> {
    let outcome = stored.outcome.as_deref().unwrap_or_default();
    out.reserve(encoded_len(stored));
    out.push(state_code(stored.state));
    let by_key = if stored.by_key { BY_KEY } else { 0 };
    let resumes = if stored.policy == OnInterrupted::Resume { RESUMES } else { 0 };
    let bound = if stored.bound { BOUND } else { 0 };
    let forgotten = if stored.is_forgotten { FORGOTTEN } else { 0 };
    let undoable = if stored.is_undoable { UNDOABLE } else { 0 };
    let holds_progress = if stored.holds_progress { HOLDS_PROGRESS } else { 0 };
    out.push(by_key | resumes | bound | holds_progress | forgotten | undoable);
    out.push(interruption_code(stored.interruption));
    out.push(0);
    let (outcome_len, rest_len) = (length("an outcome", outcome.len())?, length("a record", rest_len(stored))?);
    for field in [stored.schema, stored.attempt, outcome_len, rest_len] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    let numbers = [stored.generation, stored.revision, stored.token];
    let times = [stored.created_at, stored.updated_at, stored.updated, stored.expires];
    for field in numbers.into_iter().chain(times) {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&stored.effect_seed);
    encode_rest(stored, out);
    out.extend_from_slice(outcome);
    Ok(())
}

/// The size in bytes of the numbers in a [`RestV1`].
const FIXED_REST: usize = 6 * 8 + 4;
/// The size in bytes of an [`EndedAttemptV1`].
const ENDED_ATTEMPT: usize = 4 + 2 * 8 + 1;

fn rest_len(stored: &StoredRecord) -> usize {
    let fingerprint = stored.fingerprint.map_or(0, |fingerprint| fingerprint.as_bytes().len());
    let entry = |(name, value): (&str, &[u8])| 8 + name.len() + 8 + value.len();
    let context: usize = stored.context.iter().map(entry).sum();
    let checkpoint = stored.checkpoint.as_ref().map_or(0, |checkpoint| 8 + checkpoint.len());
    let attempts = stored.attempts.as_ref().map_or(0, |attempts| 16 + attempts.earlier.len() * ENDED_ATTEMPT);
    FIXED_REST + 1 + fingerprint + 8 + context + 8 + stored.recovery_point.len() + 1 + checkpoint + 1 + attempts
}

/// Appends the encoded [`RestV1`], in the form that bincode reads.
fn encode_rest(stored: &StoredRecord, out: &mut Vec<u8>) {
    let ttls = [stored.success_ttl, stored.failure_ttl, stored.released_ttl, stored.interrupted_ttl];
    for field in ttls.into_iter().chain([stored.retry_pause]) {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&stored.interruptions.to_le_bytes());
    out.extend_from_slice(&stored.remember.to_le_bytes());
    out.push(u8::from(stored.fingerprint.is_some()));
    if let Some(fingerprint) = &stored.fingerprint {
        out.extend_from_slice(fingerprint.as_bytes());
    }
    out.extend_from_slice(&(stored.context.len() as u64).to_le_bytes());
    for (name, value) in stored.context.iter() {
        push_bytes(out, name.as_bytes());
        push_bytes(out, value);
    }
    push_bytes(out, stored.recovery_point.as_bytes());
    out.push(u8::from(stored.checkpoint.is_some()));
    if let Some(checkpoint) = &stored.checkpoint {
        push_bytes(out, checkpoint);
    }
    out.push(u8::from(stored.attempts.is_some()));
    if let Some(Attempts { began, earlier }) = stored.attempts.as_deref() {
        out.extend_from_slice(&began.to_le_bytes());
        out.extend_from_slice(&(earlier.len() as u64).to_le_bytes());
        for ended in earlier {
            out.extend_from_slice(&ended.attempt.to_le_bytes());
            out.extend_from_slice(&ended.began.to_le_bytes());
            out.extend_from_slice(&ended.changed.to_le_bytes());
            out.push(interruption_code(ended.interruption));
        }
    }
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The fields that can be read without the rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) state: Status,
    pub(crate) is_forgotten: bool,
    pub(crate) outcome_len: u32,
    pub(crate) revision: u64,
    pub(crate) token: u64,
    pub(crate) updated: u64,
    pub(crate) expires: u64,
    pub(crate) rest_len: usize,
}

/// The fields that determine how long a record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) lifetime: Lifetime,
    /// The store time from which neither the record nor its key is kept, if it is finished.
    pub(crate) until: u64,
    pub(crate) is_forgotten: bool,
    pub(crate) outcome_len: u32,
}

impl Head {
    pub(crate) fn is_unfinished(&self) -> bool {
        !matches!(self.state, Status::Succeeded | Status::Failed)
    }
}

pub(crate) fn decode_head(bytes: &[u8]) -> Option<Head> {
    let mut fields = Fields(bytes);
    let state = state(fields.u8()?)?;
    let is_forgotten = fields.u8()? & FORGOTTEN != 0;
    fields.take(10)?;
    let (outcome_len, rest_len) = (fields.u32()?, fields.len()?);
    fields.take(8)?;
    let (revision, token) = (fields.u64()?, fields.u64()?);
    fields.take(16)?;
    let (updated, expires) = (fields.u64()?, fields.u64()?);
    Some(Head { state, is_forgotten, outcome_len, revision, token, updated, expires, rest_len })
}

/// Decodes the fields that determine how long a record is kept.
pub(crate) fn decode_kept(bytes: &[u8]) -> Option<Kept> {
    let Head { state, is_forgotten, outcome_len, token, updated, expires, .. } = decode_head(bytes)?;
    let mut rest = Fields(bytes.get(HEAD..)?);
    // Skip the other TTLs, and then the retry pause and the number of interruptions.
    rest.take(24)?;
    let interrupted_ttl = rest.u64()?;
    rest.take(12)?;
    let until = kept_until(expires, rest.u64()?, is_forgotten);
    let lifetime = Lifetime { state, token, updated, expires, interrupted_ttl };
    Some(Kept { lifetime, until, is_forgotten, outcome_len })
}

/// Decodes a record. `bytes` may end after the rest: then the record has no outcome, only its length.
pub(crate) fn decode(bytes: &[u8]) -> Result<StoredRecord> {
    decode_fields(bytes).unwrap_or_else(|| Err(corrupt("a record is malformed")))
}

fn decode_fields(bytes: &[u8]) -> Option<Result<StoredRecord>> {
    let mut fields = Fields(bytes);
    let state = state(fields.u8()?)?;
    let flags =
        fields.u8().filter(|flags| *flags <= BY_KEY | RESUMES | BOUND | HOLDS_PROGRESS | FORGOTTEN | UNDOABLE)?;
    let interruption = interruption(fields.u8()?)?;
    fields.u8().filter(|zero| *zero == 0)?;
    let (schema, attempt, outcome_len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let rest_len = fields.len()?;
    let mut number = || fields.u64().filter(|number| *number != THIS_FRAME);
    let (generation, revision, token) = (number()?, number()?, number()?);
    let (created_at, updated_at, updated, expires) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
    let effect_seed = fields.array()?;
    let rest: RestV1 = match codec::decode_plain("record", fields.take(rest_len)?) {
        Ok(rest) => rest,
        Err(error) => return Some(Err(corrupt(format!("a record is malformed: {error}")))),
    };
    let finished = matches!(state, Status::Succeeded | Status::Failed);
    let outcome = match fields.0.len() {
        0 if !finished || outcome_len > 0 => None,
        len if finished && len == usize::try_from(outcome_len).ok()? => Some(Value::from(fields.0)),
        _ => return None,
    };
    let attempts = match rest.attempts {
        None => None,
        Some(attempts) => Some(Box::new(attempts.decoded()?)),
    };
    Some(Ok(StoredRecord {
        state,
        by_key: flags & BY_KEY != 0,
        bound: flags & BOUND != 0,
        holds_progress: flags & HOLDS_PROGRESS != 0,
        interruption,
        policy: if flags & RESUMES != 0 { OnInterrupted::Resume } else { OnInterrupted::Hold },
        schema,
        attempt,
        interruptions: rest.interruptions,
        attempts,
        generation,
        effect_seed,
        revision,
        token,
        created_at,
        updated_at,
        updated,
        expires,
        success_ttl: rest.success_ttl,
        failure_ttl: rest.failure_ttl,
        released_ttl: rest.released_ttl,
        interrupted_ttl: rest.interrupted_ttl,
        retry_pause: rest.retry_pause,
        remember: rest.remember,
        is_forgotten: flags & FORGOTTEN != 0,
        is_undoable: flags & UNDOABLE != 0,
        fingerprint: rest.fingerprint.map(Fingerprint::from_bytes),
        context: rest.context,
        recovery_point: match [STARTED, FINISHED].into_iter().find(|usual| *usual == rest.recovery_point) {
            Some(usual) => usual.into(),
            None => rest.recovery_point.into(),
        },
        checkpoint: rest.checkpoint,
        outcome_len,
        outcome,
    }))
}

impl AttemptsV1 {
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
        let bytes = encoded(&StoredRecord { remember: 4, is_forgotten: true, ..sample() });
        let mut expected = vec![2, 31, 2, 0, 7, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
        let rest_len = u32::try_from(bytes.len() - HEAD - 3).unwrap();
        expected.extend_from_slice(&rest_len.to_le_bytes());
        for number in [0x1_0000_0001_u64, 0x1_0000_0003, 0x1_0000_0002, 1_000, 2_000, 30, u64::MAX] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(&[5; 16]);
        for ttl in [1_u64, 2, 3, u64::MAX, 4] {
            expected.extend_from_slice(&ttl.to_le_bytes());
        }
        expected.extend_from_slice(&1_u32.to_le_bytes());
        expected.extend_from_slice(&4_u64.to_le_bytes());
        expected.push(1);
        expected.extend_from_slice(&[9; 32]);
        expected.extend_from_slice(&1_u64.to_le_bytes());
        for text in ["user", "ada", "finished"] {
            expected.extend_from_slice(&(text.len() as u64).to_le_bytes());
            expected.extend_from_slice(text.as_bytes());
        }
        expected.extend_from_slice(&[0, 1]);
        expected.extend_from_slice(&1_900_u64.to_le_bytes());
        expected.extend_from_slice(&2_u64.to_le_bytes());
        for (attempt, began, changed, interruption) in [(1_u32, 1_000_u64, 1_100_u64, 2), (2, 1_200, 1_300, 0)] {
            expected.extend_from_slice(&attempt.to_le_bytes());
            expected.extend_from_slice(&began.to_le_bytes());
            expected.extend_from_slice(&changed.to_le_bytes());
            expected.push(interruption);
        }
        expected.extend_from_slice(b"abc");
        assert_eq!(bytes, expected);
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
        assert_eq!((head.state, head.token, head.expires), (Status::Succeeded, stored.token, u64::MAX));
        let unfinished =
            StoredRecord { state: Status::Released, outcome: None, outcome_len: 0, interrupted_ttl: 77, ..sample() };
        let remembered = StoredRecord { expires: 5, remember: 4, ..sample() };
        for stored in [stored, unfinished, remembered] {
            let mut bytes = Vec::new();
            encode(&stored, &mut bytes).unwrap();
            let StoredRecord { is_forgotten, outcome_len, .. } = stored;
            let until = if is_forgotten { stored.expires } else { stored.expires.saturating_add(stored.remember) };
            let kept = Kept { lifetime: stored.lifetime(), until, is_forgotten, outcome_len };
            assert_eq!(decode_kept(&bytes), Some(kept));
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

    #[test]
    fn encoded_len_is_the_length_of_the_encoded_record() {
        let checkpoint = Some(Value::from([3; 300].as_slice()));
        let bare = StoredRecord {
            fingerprint: None,
            attempts: None,
            context: Context::new(),
            outcome: None,
            outcome_len: 0,
            ..sample()
        };
        let long = sample().context.with("", [1; 9].as_slice()).with("longer", "");
        for stored in [bare.clone(), StoredRecord { checkpoint, ..bare }, StoredRecord { context: long, ..sample() }] {
            let bytes = encoded(&stored);
            assert_eq!(bytes.len(), encoded_len(&stored));
            let is_finished = stored.outcome.is_some();
            let stored = if is_finished { stored } else { StoredRecord { state: Status::Released, ..stored } };
            assert_eq!(decode(&encoded(&stored)).unwrap(), stored);
        }
    }
}
