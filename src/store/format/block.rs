//! An entry of the expiry tree: the keys of records that expire at about the same time.

use super::envelope::{self, Envelope, MAX_INLINE};
use super::frame::StoreKey;
use super::{Fields, corrupt, first_of};
use crate::types::error::Result;

/// Keys that a block may hold, in bytes.
pub(crate) const MAX_KEYS: usize = MAX_INLINE - 64;

/// Bytes of a block's key.
const KEY: usize = 24;

/// Times are told apart by so many milliseconds: a block for each would hold a few keys.
const WIDTH: u64 = 1 << 10;

/// The time of the block that a record belongs to: when it has come, all records of that block have expired.
pub(crate) fn time(expires: u64) -> u64 {
    expires | (WIDTH - 1)
}

/// No two blocks have the same key: `opening` is the first frame of an open, and each open has another. Only one that fails
/// before that is durable has the same, and the next one writes the same blocks again.
pub(crate) fn key(time: u64, opening: u64, number: u64) -> Vec<u8> {
    [time, opening, number].map(u64::to_be_bytes).concat()
}

/// The time of the block with this key; whatever the key is, it is found where this says.
pub(crate) fn time_of(key: &[u8]) -> u64 {
    u64::from_be_bytes(first_of(key.iter().copied()))
}

/// Adds a key of the `records` tree.
pub(crate) fn push(keys: &mut Vec<u8>, raw: &[u8]) -> Result<()> {
    let len = u16::try_from(raw.len()).map_err(|_| corrupt("a key is too long"))?;
    keys.extend_from_slice(&len.to_le_bytes());
    keys.extend_from_slice(raw);
    Ok(())
}

/// What [`push`] adds for a key.
pub(crate) fn pushed(raw: &[u8]) -> usize {
    2 + raw.len()
}

pub(crate) fn encode(key: &[u8], keys: &[u8]) -> Result<Vec<u8>> {
    envelope::encode(key, &Envelope::Inline(keys))
}

/// The keys of a block, one after the other; nothing of what is cut off.
pub(crate) fn keys(keys: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut fields = Fields(keys);
    std::iter::from_fn(move || fields.u16().and_then(|len| fields.take(usize::from(len))))
}

/// The keys of a block.
pub(crate) fn decode<'a>(key: &[u8], bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
    let malformed = || corrupt(format!("the block {} of what expires is malformed", key.escape_ascii()));
    let Envelope::Inline(content) = envelope::decode(key, bytes)? else { return Err(malformed()) };
    let keys: Vec<&[u8]> = keys(content).collect();
    let is_whole = keys.iter().copied().map(pushed).sum::<usize>() == content.len();
    let are_keys = !keys.is_empty() && keys.iter().all(|raw| StoreKey::from_record_tree(raw).split().is_some());
    if is_whole && are_keys && key.len() == KEY { Ok(keys) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Vec<u8>, Vec<u8>) {
        let (key, mut keys) = (key(time(5_000), 9, 1), Vec::new());
        push(&mut keys, b"m\0one").unwrap();
        push(&mut keys, b"m\0").unwrap();
        let bytes = encode(&key, &keys).unwrap();
        (key, bytes)
    }

    #[test]
    fn golden_bytes() {
        let (key, bytes) = two();
        assert_eq!(key, *b"\0\0\0\0\0\0\x13\xff\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x01");
        assert_eq!(bytes[6..], *b"\x05\0m\0one\x02\0m\0");
        assert_eq!(decode(&key, &bytes).unwrap(), [b"m\0one".as_slice(), b"m\0"]);
        assert_eq!(time_of(&key), 5_119);
    }

    #[test]
    fn what_is_cut_or_changed_is_no_block() {
        let (key, bytes) = two();
        for cut in 0..bytes.len() {
            assert!(decode(&key, &bytes[..cut]).is_err(), "cut {cut}");
        }
        for keys in [b"".as_slice(), b"\x05\0m\0o", b"\x01", b"\x01\0m", b"\0\0"] {
            assert!(decode(&key, &encode(&key, keys).unwrap()).is_err(), "{keys:?}");
        }
        let short = &key[..23];
        assert_eq!((time_of(short), time_of(&key[..7]), time_of(b"")), (5_119, 0x1300, 0));
        assert!(decode(short, &encode(short, b"\x02\0m\0").unwrap()).is_err());
    }

    #[test]
    fn a_block_comes_when_all_its_records_have_expired() {
        for expires in [0, 1, 1_022, 1_023, 1_024, 5_000, u64::MAX - 1] {
            assert!(time(expires) >= expires && time(expires) - expires < WIDTH);
        }
        // The longest key there is.
        assert!(pushed(&[0; 64 + 1 + 512]) < MAX_KEYS);
        assert!(encode(&key(1, 1, 1), &[0; MAX_KEYS]).unwrap().len() <= MAX_INLINE);
    }
}
