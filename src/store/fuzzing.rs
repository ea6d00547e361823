//! Functions for fuzz targets: decoders of untrusted bytes, and a disk whose syncs fail.

use std::path::Path;

use super::format::list::RunList;
use super::format::segment::{GROUP_HEADER, GroupHeader, SegmentHeader, payload_checksum, sized};
use super::format::{block, frame, record};
use super::journal;
pub use super::journal::SYNCS_LEFT;
use crate::types::clock::Anchor;
use crate::types::context::Context;
use crate::types::error::Result;
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::{Attempts, EndedAttempt, Status, StoredRecord};
use crate::types::value::Value;

/// The variable parts of a record, and some others.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in a record")]
pub struct Parts {
    pub finished: bool,
    pub by_key: bool,
    pub resumes: bool,
    pub numbers: [u64; 10],
    pub attempt: u32,
    pub fingerprint: Option<[u8; 32]>,
    pub context: Vec<(String, Vec<u8>)>,
    pub point: String,
    pub checkpoint: Option<Vec<u8>>,
    pub outcome: Vec<u8>,
}

/// Returns a history made of these numbers.
fn attempts(number: u32, time: u64) -> Attempts {
    let ended = EndedAttempt { attempt: number, began: time, changed: time ^ 1, interruption: None };
    Attempts { began: time ^ 2, earlier: vec![ended; number as usize % 3] }
}

/// Encodes a record. Returns the bytes, and true if they are decoded to the same record.
pub fn record_of(parts: Parts) -> Result<(Vec<u8>, bool)> {
    let [generation, revision, token, created_at, updated_at, updated, expires, a, b, c] = parts.numbers;
    let stored = StoredRecord {
        state: if parts.finished { Status::Succeeded } else { Status::Released },
        by_key: parts.by_key,
        bound: parts.by_key ^ parts.resumes,
        holds_progress: parts.resumes,
        interruption: None,
        policy: if parts.resumes { OnInterrupted::Resume } else { OnInterrupted::Hold },
        schema: parts.attempt ^ 1,
        attempt: parts.attempt,
        interruptions: parts.attempt ^ 2,
        attempts: parts.resumes.then(|| Box::new(attempts(parts.attempt, created_at))),
        generation,
        effect_seed: u128::from(c).to_le_bytes(),
        revision,
        token,
        created_at,
        updated_at,
        updated,
        expires,
        success_ttl: a,
        failure_ttl: b,
        released_ttl: c,
        interrupted_ttl: c,
        retry_pause: b,
        remember: b,
        is_forgotten: parts.by_key,
        is_undoable: parts.by_key ^ parts.resumes,
        fingerprint: parts.fingerprint.map(Fingerprint::from_bytes),
        context: parts.context.into_iter().fold(Context::new(), |context, (name, value)| context.with(name, value)),
        recovery_point: parts.point.into(),
        checkpoint: parts.checkpoint.map(Value::from),
        outcome_len: if parts.finished { u32::try_from(parts.outcome.len()).unwrap_or(u32::MAX) } else { 0 },
        outcome: parts.finished.then(|| Value::from(parts.outcome)),
    };
    let (mut stored, mut bytes) = (stored, Vec::new());
    stored.set_number(7);
    record::encode(&stored, &mut bytes)?;
    let same = record::decode(&bytes)? == stored && bytes.len() <= record::max_encoded_len(&stored);
    Ok((bytes, same))
}

/// Decodes a record and encodes it again.
pub fn record(bytes: &[u8]) -> Result<Vec<u8>> {
    let _ = record::decode_head(bytes);
    let mut again = Vec::new();
    record::encode(&record::decode(bytes)?, &mut again)?;
    Ok(again)
}

/// Decodes the frames of a group and encodes them again.
pub fn frames(payload: &[u8], count: u32) -> Result<Vec<u8>> {
    let mut again = Vec::new();
    for (_, frame) in frame::decode_all(payload, 7, count)? {
        frame::encode(&frame, &mut again)?;
    }
    Ok(again)
}

/// True if these bytes are a valid block in sled, or the list of runs.
#[must_use]
pub fn block(store: &[u8; 16], bytes: &[u8]) -> bool {
    block::find(store, bytes).is_some() || RunList::decode(store, bytes).is_ok()
}

/// Decodes the entries of a block with this content, as far as they are valid, and encodes them again.
pub fn entries(mut content: &[u8]) -> Result<Vec<u8>> {
    let mut again = Vec::new();
    while let Some(entry) = block::take_entry(&mut content)? {
        block::push_entry(&mut again, entry.key, entry.value.map(|value| value.here))?;
    }
    Ok(again)
}

/// Decodes the index of a run and encodes it again.
#[must_use]
pub fn index(bytes: &[u8]) -> Option<Result<Vec<u8>>> {
    block::Index::decode(bytes).map(|index| index.encode())
}

/// The place of a segment in its journal.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in its header")]
pub struct Place {
    pub number: u64,
    pub group: u64,
    pub frame: u64,
    pub previous: u32,
}

/// Returns a segment with these groups, and the place of the next segment. Each group has rows of the table `t`, whose
/// keys are the numbers of their frames.
#[must_use]
pub fn segment(place: Place, salt: u8, size: u64, rows: &[u32]) -> Option<(Vec<u8>, Place)> {
    let (salt, mut next) = ([salt; 8], Place { number: place.number + 1, ..place });
    let header = SegmentHeader {
        store_id: [1; 16],
        number: place.number,
        salt,
        size,
        first_group: place.group,
        first_frame: place.frame,
        previous: place.previous,
    };
    let mut bytes = header.encode().to_vec();
    for (nth, rows) in rows.iter().enumerate() {
        let first = next.frame;
        let mut payload = Vec::new();
        for frame in first..first + u64::from(*rows) {
            let row = frame::Change {
                key: frame::StoreKey::row("t", &frame.to_be_bytes()),
                content: Some(frame::Content::Row(Value::from("row"))),
            };
            let begins = place.number == 1 && nth == 0 && frame == first;
            let frame = if begins { frame::Frame::Checkpointed(0) } else { frame::Frame::Changes(vec![row]) };
            frame::encode(&frame, &mut payload).ok()?;
        }
        let header = GroupHeader {
            is_seal: false,
            group: next.group,
            first_frame: first,
            frames: *rows,
            payload_len: u32::try_from(payload.len()).ok()?,
            payload_checksum: payload_checksum(salt, &payload),
            previous: next.previous,
            synced_through: next.group.saturating_sub(1),
            anchor: Anchor::default(),
        };
        let (encoded, checksum) = header.encode(salt);
        let end = bytes.len() + usize::try_from(sized(payload.len() as u64)).ok()?;
        bytes.extend_from_slice(encoded.get(..GROUP_HEADER)?);
        bytes.extend_from_slice(&payload);
        bytes.resize(end, 0);
        next = Place { group: next.group + 1, frame: first + u64::from(*rows), previous: checksum, ..next };
    }
    let size = usize::try_from(size).ok()?;
    (bytes.len() <= size).then(|| {
        bytes.resize(size, 0);
        (bytes, next)
    })
}

/// Encoded frames with their numbers.
pub type Numbered = Vec<(u64, Vec<u8>)>;

/// Recovers the journal in this directory. Returns the last frame that it names, and every frame after the last
/// checkpoint.
pub fn recover(dir: &Path) -> Result<(u64, Numbered)> {
    let recovered = journal::recover(dir, 4096)?;
    let mut frames = Vec::new();
    recovered.replay(&mut |number, frame| {
        let mut bytes = Vec::new();
        frame::encode(&frame, &mut bytes)?;
        frames.push((number, bytes));
        Ok(())
    })?;
    Ok((recovered.last_frame, frames))
}
