//! Fuzzes the encodings of records, frames and values.

use arbitrary::{Arbitrary, Unstructured};
use oncekey::ErrorKind;
use oncekey::fuzzing::{self, Parts};

/// Asserts that invalid bytes are errors. Valid ones may contain numbers in a longer form than needed: encoded again,
/// they are not longer, and encoded once more, they stay the same.
pub fn record_decode(data: &[u8]) {
    match fuzzing::record(data) {
        Ok(again) => {
            assert!(again.len() <= data.len());
            assert_eq!(fuzzing::record(&again).unwrap(), again);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    }
    let Some((head, rest)) = data.split_first() else { return };
    match fuzzing::frames(rest, u32::from(*head)) {
        Ok(again) => assert_eq!(fuzzing::frames(&again, u32::from(*head)).unwrap(), again),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    }
    let _ = fuzzing::block(&[1; 16], data);
    if let Some(again) = fuzzing::index(data) {
        assert_eq!(again.unwrap(), data);
    }
    match fuzzing::entries(data) {
        // A value that continues in another block is cut off.
        Ok(again) => assert!(again.len() <= data.len()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
    // More frames than there are.
    assert!(fuzzing::frames(rest, u32::MAX).is_err());
}

#[derive(Debug, Arbitrary)]
struct Record {
    finished: bool,
    by_key: bool,
    resumes: bool,
    numbers: [u64; 10],
    attempt: u32,
    fingerprint: Option<[u8; 32]>,
    context: Vec<(String, Vec<u8>)>,
    point: String,
    checkpoint: Option<Vec<u8>>,
    outcome: Vec<u8>,
    cut: u16,
    flip: u32,
}

/// Asserts that an encoded record is decoded unchanged. A cut one is an error, or lacks its outcome.
pub fn record_roundtrip(data: &[u8]) {
    let Ok(record) = Record::arbitrary(&mut Unstructured::new(data)) else { return };
    let Record { cut, flip, .. } = record;
    let outcome_len = if record.finished { record.outcome.len() } else { 0 };
    let (bytes, same) = fuzzing::record_of(Parts {
        finished: record.finished,
        by_key: record.by_key,
        resumes: record.resumes,
        numbers: record.numbers,
        attempt: record.attempt,
        fingerprint: record.fingerprint,
        context: record.context,
        point: record.point,
        checkpoint: record.checkpoint,
        outcome: record.outcome,
    })
    .unwrap();
    assert!(same, "it is read as another record");
    let cut = usize::from(cut) % bytes.len();
    if fuzzing::record(&bytes[..cut]).is_ok() {
        assert_eq!(cut, bytes.len() - outcome_len);
    }
    let mut flipped = bytes;
    let bit = flip as usize % (flipped.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    record_decode(&flipped);
}
