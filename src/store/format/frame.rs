//! Encodes and decodes frames, and the keys of their changes.

use std::sync::Arc;

use super::{Fields, corrupt, length, next_key, patch, record};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::StoredRecord;
use crate::types::value::Value;

/// The largest frame in bytes. This limits the size of a group, and of what recovery reads at once.
pub(crate) const MAX_FRAME: usize = 32 << 20;

/// The key of a record or row in the store: a tag, the name of its manager or table, 0, its own key. Sorts by name,
/// then by key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StoreKey(Arc<[u8]>);

/// The size in bytes of a length.
const LENGTH: usize = 4;
/// The size in bytes of a frame's length and kind.
const FRAME_HEAD: usize = LENGTH + 1;

const RECORD: u8 = b'r';
const ROW: u8 = b't';

impl StoreKey {
    pub(crate) fn record(manager: &str, key: &[u8]) -> Self {
        Self::join(RECORD, manager, key)
    }

    pub(crate) fn row(table: &str, key: &[u8]) -> Self {
        Self::join(ROW, table, key)
    }

    fn join(tag: u8, name: &str, key: &[u8]) -> Self {
        // The length of the iterator is known, so the key takes one allocation.
        Self([tag].iter().chain(name.as_bytes()).chain(&[0]).chain(key).copied().collect())
    }

    /// Creates a key from the result of [`bytes`](Self::bytes).
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes up to the 0 after the name. All keys of a manager or table start with these bytes, and no key
    /// is equal to them.
    pub(crate) fn container_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| *byte == 0).map_or(self.0.len(), |zero| zero + 1);
        self.0.get(..end).unwrap_or_default()
    }

    /// Returns the manager or table as a key.
    pub(crate) fn container(&self) -> Self {
        Self::from_bytes(self.container_bytes())
    }

    /// Returns the name of the manager or table, and the key.
    pub(crate) fn split(&self) -> Option<(&str, &[u8])> {
        let (_, rest) = self.0.split_first()?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let (name, key) = rest.split_at(end);
        Some((std::str::from_utf8(name).ok()?, key.get(1..)?))
    }

    pub(crate) fn is_record(&self) -> bool {
        self.0.first() == Some(&RECORD)
    }

    /// Returns the smallest key that is after every key of the same tag with this prefix, or `None` if there is none.
    pub(crate) fn prefix_end(&self) -> Option<Self> {
        let mut bytes = self.0.to_vec();
        while let Some(last) = bytes.pop() {
            if last < u8::MAX {
                bytes.push(last + 1);
                return Some(Self(bytes.into()));
            }
        }
        None
    }

    /// Returns the smallest key after this one.
    pub(crate) fn successor(&self) -> Self {
        Self(next_key(&self.0).into())
    }

    /// Returns a key before every record of every manager.
    pub(crate) fn first_record() -> Self {
        Self([RECORD].as_slice().into())
    }

    /// Returns a key before every row of every table.
    pub(crate) fn first_row() -> Self {
        Self([ROW].as_slice().into())
    }
}

/// The content of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Record(Arc<StoredRecord>),
    Row(Value),
}

impl Content {
    pub(crate) fn record(&self) -> Option<&Arc<StoredRecord>> {
        match self {
            Self::Record(stored) => Some(stored),
            Self::Row(_) => None,
        }
    }

    pub(crate) fn into_row(self) -> Option<Value> {
        match self {
            Self::Row(value) => Some(value),
            Self::Record(_) => None,
        }
    }
}

/// The new content of one key. `None` removes the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: StoreKey,
    pub(crate) content: Option<Content>,
}

impl Change {
    /// Returns the record that the change writes.
    pub(crate) fn record(&self) -> Option<&Arc<StoredRecord>> {
        self.content.as_ref().and_then(Content::record)
    }
}

/// The content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Changes(Vec<Change>),
    /// The start of an open. The frame's number is the first of a new range.
    Opening,
    /// A checkpoint: all frames up to this one are in runs, durably.
    Checkpointed(u64),
    /// A clean close.
    Closing,
    /// No change: the header of its group stores the clock anchor.
    Anchor,
}

/// Returns the largest number of bytes that [`encode`] may append. Fails if something in the frame is too long for the
/// format.
pub(crate) fn max_encoded_len(frame: &Frame) -> Result<usize> {
    match frame {
        Frame::Changes(changes) => max_encoded_len_of(changes),
        Frame::Checkpointed(_) => Ok(FRAME_HEAD + 8),
        Frame::Opening | Frame::Closing | Frame::Anchor => Ok(FRAME_HEAD),
    }
}

/// Appends the encoded frame to `out`. The numbers of its records must be set.
pub(crate) fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<()> {
    match frame {
        Frame::Changes(changes) => encode_changes(changes, out),
        Frame::Opening => encode_frame(2, out, |_| Ok(())),
        Frame::Checkpointed(number) => encode_frame(3, out, |out| {
            out.extend_from_slice(&number.to_le_bytes());
            Ok(())
        }),
        Frame::Closing => encode_frame(4, out, |_| Ok(())),
        Frame::Anchor => encode_frame(5, out, |_| Ok(())),
    }
}

/// Returns the largest number of bytes that [`encode_changes`] may append, whatever the numbers and times of the records
/// are.
pub(crate) fn max_encoded_len_of(changes: &[Change]) -> Result<usize> {
    let changes = changes.iter().try_fold(0, |sum, change| max_change_len(change).map(|len| sum + len))?;
    let len = FRAME_HEAD + changes;
    if len > MAX_FRAME {
        let message = format!("a commit is up to {len} bytes long, the limit is {MAX_FRAME}");
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(len)
}

/// Appends a frame of changes.
pub(crate) fn encode_changes(changes: &[Change], out: &mut Vec<u8>) -> Result<()> {
    encode_frame(1, out, |out| changes.iter().try_for_each(|change| encode_change(change, out)))
}

fn encode_frame(kind: u8, out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    after_its_length("a commit", out, |out| {
        out.push(kind);
        content(out)
    })
}

/// Appends what `encode` appends, after its length.
fn after_its_length(what: &str, out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    encode(out)?;
    let len = length(what, out.len() - start - LENGTH)?;
    patch(out, start, len);
    Ok(())
}

fn max_change_len(change: &Change) -> Result<usize> {
    let (_, name, _, key) = parts(change)?;
    let value = change.content.as_ref().map_or(0, |content| match content {
        Content::Record(stored) => LENGTH + record::max_encoded_len(stored),
        Content::Row(value) => LENGTH + value.len(),
    });
    Ok(1 + 1 + name.len() + 2 + key.len() + value)
}

/// Returns the name of the manager or table and the key, each with its length as it is encoded.
fn parts(change: &Change) -> Result<(u8, &str, u16, &[u8])> {
    let Some((name, key)) = change.key.split() else { return Err(corrupt("a key has no name")) };
    let too_long = |_| Error::new(ErrorKind::TooLarge, format!("a key of {name} is {} bytes long", key.len()));
    Ok((u8::try_from(name.len()).map_err(too_long)?, name, u16::try_from(key.len()).map_err(too_long)?, key))
}

fn encode_change(change: &Change, out: &mut Vec<u8>) -> Result<()> {
    let (name_len, name, key_len, key) = parts(change)?;
    out.push(match (&change.content, change.key.is_record()) {
        (Some(Content::Record(_)), _) => 1,
        (Some(Content::Row(_)), _) => 2,
        (None, true) => 3,
        (None, false) => 4,
    });
    out.push(name_len);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&key_len.to_le_bytes());
    out.extend_from_slice(key);
    let Some(content) = &change.content else { return Ok(()) };
    after_its_length("a value", out, |out| match content {
        Content::Record(stored) => record::encode(stored, out),
        Content::Row(value) => {
            out.extend_from_slice(value);
            Ok(())
        }
    })
}

/// Decodes the frames of a group. The first has the number `first`.
pub(crate) fn decode_all(payload: &[u8], first: u64, count: u32) -> Result<Vec<(u64, Frame)>> {
    let mut fields = Fields(payload);
    let mut frames = Vec::new();
    for index in 0..u64::from(count) {
        let number = first.saturating_add(index);
        let frame = fields.len().and_then(|len| fields.take(len)).and_then(decode);
        frames.push((number, frame.unwrap_or_else(|| Err(corrupt(format!("frame {number} is malformed"))))?));
    }
    if fields.0.is_empty() { Ok(frames) } else { Err(corrupt(format!("a group at frame {first} has bytes left over"))) }
}

fn decode(bytes: &[u8]) -> Option<Result<Frame>> {
    let mut fields = Fields(bytes);
    let frame = match fields.u8()? {
        1 => {
            let mut changes = Vec::new();
            while !fields.0.is_empty() {
                match decode_change(&mut fields)? {
                    Ok(change) => changes.push(change),
                    Err(error) => return Some(Err(error)),
                }
            }
            Frame::Changes(changes)
        }
        2 => Frame::Opening,
        3 => Frame::Checkpointed(fields.u64()?),
        4 => Frame::Closing,
        5 => Frame::Anchor,
        _ => return None,
    };
    fields.0.is_empty().then_some(Ok(frame))
}

fn decode_change(fields: &mut Fields<'_>) -> Option<Result<Change>> {
    let kind = fields.u8()?;
    let name_len = fields.u8()?;
    let name = std::str::from_utf8(fields.take(usize::from(name_len))?).ok()?;
    let key_len = fields.u16()?;
    let key = fields.take(usize::from(key_len))?;
    let key = if kind % 2 == 1 { StoreKey::record(name, key) } else { StoreKey::row(name, key) };
    let content = match kind {
        1 => {
            let len = fields.len()?;
            match record::decode(fields.take(len)?) {
                Ok(stored) => Some(Content::Record(Arc::new(stored))),
                Err(error) => return Some(Err(error)),
            }
        }
        2 => {
            let len = fields.len()?;
            Some(Content::Row(Value::from(fields.take(len)?)))
        }
        3 | 4 => None,
        _ => return None,
    };
    Some(Ok(Change { key, content }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::format::record::tests::sample;

    fn all_kinds() -> Vec<Frame> {
        let record = Content::Record(Arc::new(sample()));
        let changes = vec![
            Change { key: StoreKey::record("pay", b"k\0"), content: Some(record) },
            Change { key: StoreKey::row("stock", b"apple"), content: Some(Content::Row(Value::from("7"))) },
            Change { key: StoreKey::record("pay", b"k"), content: None },
            Change { key: StoreKey::row("stock", b"pear"), content: None },
        ];
        let rows = changes[1..].to_vec();
        let of_the_store = [Frame::Opening, Frame::Checkpointed(513), Frame::Closing, Frame::Anchor];
        [Frame::Changes(changes), Frame::Changes(rows)].into_iter().chain(of_the_store).collect()
    }

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        let max = max_encoded_len(frame).unwrap();
        let has_record =
            matches!(frame, Frame::Changes(changes) if changes.iter().any(|change| change.record().is_some()));
        assert!(if has_record { bytes.len() <= max } else { bytes.len() == max });
        bytes
    }

    #[test]
    fn golden_bytes_of_every_kind() {
        let encoded: Vec<_> = all_kinds().iter().map(encoded).collect();
        let mut record = Vec::new();
        record::encode(&sample(), &mut record).unwrap();
        let mut changes = vec![1, 1, 3, b'p', b'a', b'y', 2, 0, b'k', 0];
        changes.extend_from_slice(&u32::try_from(record.len()).unwrap().to_le_bytes());
        changes.extend_from_slice(&record);
        changes.extend_from_slice(b"\x02\x05stock\x05\x00apple\x01\x00\x00\x007");
        changes.extend_from_slice(b"\x03\x03pay\x01\x00k");
        changes.extend_from_slice(b"\x04\x05stock\x04\x00pear");
        let mut framed = u32::try_from(changes.len()).unwrap().to_le_bytes().to_vec();
        framed.extend_from_slice(&changes);
        assert_eq!(encoded[0], framed);
        assert_eq!(encoded[2], [1, 0, 0, 0, 2]);
        assert_eq!(encoded[3], [9, 0, 0, 0, 3, 1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded[4], [1, 0, 0, 0, 4]);
        assert_eq!(encoded[5], [1, 0, 0, 0, 5]);
    }

    #[test]
    fn decode_is_the_inverse_of_encode_and_numbers_the_frames() {
        let payload: Vec<u8> = all_kinds().iter().flat_map(encoded).collect();
        let decoded = decode_all(&payload, 1_000, 6).unwrap();
        assert_eq!(
            decoded.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            [1_000, 1_001, 1_002, 1_003, 1_004, 1_005]
        );
        assert_eq!(decoded.iter().map(|(_, frame)| frame.clone()).collect::<Vec<_>>(), all_kinds());
        for cut in 0..payload.len() {
            assert!(decode_all(&payload[..cut], 1_000, 6).is_err());
        }
    }

    #[test]
    fn keys_sort_by_name_then_key_and_split_again() {
        let key = StoreKey::record("pay", b"a\0b");
        assert_eq!(key.split(), Some(("pay", b"a\0b".as_slice())));
        assert!(StoreKey::record("pay", &[255]) < StoreKey::record("pay.x", b"a"));
        assert_eq!(StoreKey::from_bytes(key.bytes()), key);
        let end = StoreKey::record("pay", b"").prefix_end().unwrap();
        assert!(StoreKey::record("pay", &[255; 9]) < end && end < StoreKey::record("pay.", b"a"));
    }
}
