//! Encodes and decodes records.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Fields, corrupt, length, patch};
use crate::types::codec;
use crate::types::context::Context;
use crate::types::error::Result;
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::{Interruption, Lifetime, Status, StoredRecord, THIS_FRAME};
use crate::types::value::Value;

/// The length in bytes of the fixed part, which can be read without decoding the rest.
pub(crate) const HEAD: usize = 92;
/// The offset of `updated` and `expires`.
pub(crate) const TIMES: usize = 60;
/// The offset of the length of the rest.
const REST_LEN: usize = 16;
/// The length in bytes that most rests do not exceed.
const USUAL_REST: usize = 128;

const BY_KEY: u8 = 1;
const RESUMES: u8 = 2;
const BOUND: u8 = 4;
const HOLDS_PROGRESS: u8 = 8;
const FORGOTTEN: u8 = 16;

/// The variable part of a record, without the outcome. Frozen: another layout needs another struct.
#[derive(Serialize, Deserialize)]
struct RestV1<'a> {
    success_ttl: u64,
    failure_ttl: u64,
    released_ttl: u64,
    interrupted_ttl: u64,
    retry_pause: u64,
    interruptions: u32,
    remember: u64,
    fingerprint: Option<[u8; 32]>,
    context: Cow<'a, Context>,
    recovery_point: Cow<'a, str>,
    checkpoint: Option<Cow<'a, Value>>,
}

/// The largest rest that is decoded, in bytes. The limits of context, recovery point and checkpoint are far below.
const MAX_REST: u64 = 32 << 20;

pub(crate) fn state_code(state: Status) -> u8 {
    match state {
        Status::InProgress => 1,
        Status::Succeeded => 2,
        Status::Failed => 3,
        Status::Released => 4,
        Status::Interrupted => 5,
    }
}

/// Appends the encoded record to `out`.
pub(crate) fn encode(stored: &StoredRecord, out: &mut Vec<u8>) -> Result<()> {
    let outcome = stored.outcome.as_deref().unwrap_or_default();
    out.reserve(HEAD + USUAL_REST + outcome.len());
    let start = out.len();
    out.push(state_code(stored.state));
    let by_key = if stored.by_key { BY_KEY } else { 0 };
    let resumes = if stored.policy == OnInterrupted::Resume { RESUMES } else { 0 };
    let bound = if stored.bound { BOUND } else { 0 };
    let forgotten = if stored.is_forgotten { FORGOTTEN } else { 0 };
    out.push(by_key | resumes | bound | forgotten | if stored.holds_progress { HOLDS_PROGRESS } else { 0 });
    out.push(match stored.interruption {
        None => 0,
        Some(Interruption::ProcessEnded) => 1,
        Some(Interruption::Dropped) => 2,
        Some(Interruption::Panicked) => 3,
        Some(Interruption::Reported) => 4,
        Some(Interruption::Revoked) => 5,
    });
    out.push(0);
    let rest_len = 0;
    for field in [stored.schema, stored.attempt, length("an outcome", outcome.len())?, rest_len] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    let numbers = [stored.generation, stored.revision, stored.token];
    let times = [stored.created_at, stored.updated_at, stored.updated, stored.expires];
    for field in numbers.into_iter().chain(times) {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&stored.effect_seed);
    let rest = RestV1 {
        success_ttl: stored.success_ttl,
        failure_ttl: stored.failure_ttl,
        released_ttl: stored.released_ttl,
        interrupted_ttl: stored.interrupted_ttl,
        retry_pause: stored.retry_pause,
        interruptions: stored.interruptions,
        remember: stored.remember,
        fingerprint: stored.fingerprint.map(|fingerprint| *fingerprint.as_bytes()),
        context: Cow::Borrowed(&stored.context),
        recovery_point: Cow::Borrowed(&stored.recovery_point),
        checkpoint: stored.checkpoint.as_ref().map(Cow::Borrowed),
    };
    codec::encode_plain(out, "record", &rest, MAX_REST)?;
    let rest_len = length("a record", out.len() - start - HEAD)?;
    patch(out, start + REST_LEN, rest_len);
    out.extend_from_slice(outcome);
    Ok(())
}

/// The fields that can be read without the rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) state: Status,
    pub(crate) token: u64,
    pub(crate) updated: u64,
    pub(crate) expires: u64,
    pub(crate) rest_len: usize,
}

impl Head {
    pub(crate) fn is_unfinished(&self) -> bool {
        !matches!(self.state, Status::Succeeded | Status::Failed)
    }
}

pub(crate) fn decode_head(bytes: &[u8]) -> Option<Head> {
    let mut fields = Fields(bytes);
    let state = state(fields.u8()?)?;
    fields.take(15)?;
    let rest_len = fields.len()?;
    fields.take(16)?;
    let token = fields.u64()?;
    fields.take(16)?;
    Some(Head { state, token, updated: fields.u64()?, expires: fields.u64()?, rest_len })
}

/// Decodes the fields that determine how long a record is kept.
pub(crate) fn decode_lifetime(bytes: &[u8]) -> Option<Lifetime> {
    let Head { state, token, updated, expires, .. } = decode_head(bytes)?;
    let mut rest = Fields(bytes.get(HEAD..)?);
    // Skip the first three fields of `RestV1`.
    rest.take(24)?;
    Some(Lifetime { state, token, updated, expires, interrupted_ttl: rest.u64()? })
}

/// Decodes a record. `bytes` may end after the rest: then the record has no outcome, only its length. `number` is the
/// frame of the record, if it is read from the journal.
pub(crate) fn decode(bytes: &[u8], number: Option<u64>) -> Result<StoredRecord> {
    decode_fields(bytes, number).unwrap_or_else(|| Err(corrupt("a record is malformed")))
}

fn decode_fields(bytes: &[u8], number: Option<u64>) -> Option<Result<StoredRecord>> {
    let mut fields = Fields(bytes);
    let state = state(fields.u8()?)?;
    let flags = fields.u8().filter(|flags| *flags <= BY_KEY | RESUMES | BOUND | HOLDS_PROGRESS | FORGOTTEN)?;
    let interruption = interruption(fields.u8()?)?;
    fields.u8().filter(|zero| *zero == 0)?;
    let (schema, attempt, outcome_len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let rest_len = fields.len()?;
    let this = |field: u64| if field == THIS_FRAME { number } else { Some(field) };
    let (generation, revision, token) = (this(fields.u64()?)?, this(fields.u64()?)?, this(fields.u64()?)?);
    let (created_at, updated_at, updated, expires) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
    let effect_seed = fields.array()?;
    let rest: RestV1<'_> = match codec::decode_plain("record", fields.take(rest_len)?) {
        Ok(rest) => rest,
        Err(error) => return Some(Err(corrupt(format!("a record is malformed: {error}")))),
    };
    let finished = matches!(state, Status::Succeeded | Status::Failed);
    let outcome = match fields.0.len() {
        0 if !finished || outcome_len > 0 => None,
        len if finished && len == usize::try_from(outcome_len).ok()? => Some(Value::from(fields.0)),
        _ => return None,
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
        fingerprint: rest.fingerprint.map(Fingerprint::from_bytes),
        context: rest.context.into_owned(),
        recovery_point: rest.recovery_point.into_owned(),
        checkpoint: rest.checkpoint.map(Cow::into_owned),
        outcome_len,
        outcome,
    }))
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
            generation: 0x1_0000_0001,
            effect_seed: [5; 16],
            revision: THIS_FRAME,
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
            fingerprint: Some(Fingerprint::from_bytes([9; 32])),
            context: Context::new().with("user", "ada"),
            recovery_point: "finished".to_owned(),
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
        for number in [0x1_0000_0001_u64, 0, 0x1_0000_0002, 1_000, 2_000, 30, u64::MAX] {
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
        expected.push(0);
        expected.extend_from_slice(b"abc");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn decode_is_the_inverse_of_encode_and_refuses_every_cut_before_the_outcome() {
        let stored = StoredRecord { remember: 4, is_forgotten: true, ..sample() };
        let bytes = encoded(&stored);
        let numbered = StoredRecord { revision: 99, ..stored };
        assert_eq!(decode(&bytes, Some(99)).unwrap(), numbered);
        assert!(decode(&bytes, None).is_err(), "a number is missing");
        for cut in 0..bytes.len() {
            match decode(&bytes[..cut], Some(99)) {
                Ok(head) => {
                    assert_eq!(cut, bytes.len() - 3);
                    assert_eq!(head, StoredRecord { outcome: None, ..numbered.clone() });
                }
                Err(error) => assert_eq!(error.kind(), crate::ErrorKind::Corrupt),
            }
        }
        let head = decode_head(&bytes).unwrap();
        assert_eq!((head.state, head.token, head.expires), (Status::Succeeded, numbered.token, u64::MAX));
        let unfinished =
            StoredRecord { state: Status::Released, outcome: None, outcome_len: 0, interrupted_ttl: 77, ..sample() };
        for stored in [numbered, unfinished] {
            let mut bytes = Vec::new();
            encode(&stored, &mut bytes).unwrap();
            assert_eq!(decode_lifetime(&bytes), Some(stored.lifetime()));
        }
    }
}
