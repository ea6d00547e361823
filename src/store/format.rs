//! What is on disk, byte by byte. Version 1.
//!
//! Numbers are little-endian, except in keys, which are big-endian so that they sort. Checksums are CRC-32 (IEEE).
//!
//! # The journal
//!
//! A directory of segment files of a fixed size each, numbered by their headers (the file's name is only a name).
//!
//! | offset | bytes | segment header, in the first 512 bytes of a segment |
//! |---|---|---|
//! | 0 | 8 | `oncekeyJ` |
//! | 8 | 4 | format version |
//! | 12 | 4 | checksum of bytes 16 to 76 |
//! | 16 | 16 | id of the store |
//! | 32 | 8 | number of the segment; later is larger |
//! | 40 | 8 | salt: all checksums of this segment's groups begin with it |
//! | 48 | 8 | size of the file |
//! | 56 | 8 | number of its first group: groups of earlier segments with this number or a higher one do not count |
//! | 64 | 8 | number of its first frame |
//! | 72 | 4 | header checksum of the group before |
//! | 76 | | zeros |
//!
//! A file whose first 512 bytes are zeros is a spare. Groups follow, each at a multiple of 512:
//!
//! | offset | bytes | group header |
//! |---|---|---|
//! | 0 | 4 | `okG1`, or `okS1` for the seal |
//! | 4 | 4 | checksum of the salt and bytes 8 to 88 |
//! | 8 | 8 | number of the group: one more than the one before; a seal: the last durable one |
//! | 16 | 8 | number of its first frame; a seal: number of the next segment |
//! | 24 | 4 | count of its frames |
//! | 28 | 4 | length of the payload behind the header |
//! | 32 | 4 | checksum of the salt and the payload |
//! | 36 | 4 | header checksum of the group before |
//! | 40 | 8 | the last group known durable when this one was written |
//! | 48 | 8 | clock anchor: store time, ms |
//! | 56 | 8 | clock anchor: wall clock, ms since 1970 |
//! | 64 | 8 | clock anchor: time since boot, ms |
//! | 72 | 16 | clock anchor: boot id |
//!
//! A *seal* ends a segment once the next one is durable, so that a missing last segment is noticed. A group without frames is
//! the anchor of an idle store.
//!
//! The payload is its frames one behind the other: length of the rest (4), kind (1), then by kind: 1 *changes*, to the end of
//! the frame; 2 *opening*, nothing; 3 *checkpointed*, number of the last frame that sled has (8); 4 *closing*, nothing;
//! 5 *anchor*, nothing. A change: kind (1: 1 record, 2 row, 3 no record, 4 no row), length of the name (1), name, length of the
//! key (2), key, and for 1 and 2 length of the value (4), value. In a record's generation, revision and token, 0 stands for
//! the number of the frame.
//!
//! # Records
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | state: 1 in progress, 2 succeeded, 3 failed, 4 released, 5 interrupted |
//! | 1 | 1 | flags: 1 begun by key, 2 resumes when interrupted, 4 bound to its request, 8 kept like an interrupted one when released, 16 expired and remembered |
//! | 2 | 1 | interruption: 0 none, 1 process ended, 2 dropped, 3 panicked, 4 reported, 5 revoked |
//! | 3 | 1 | 0 |
//! | 4 | 4 | schema |
//! | 8 | 4 | attempt |
//! | 12 | 4 | length of the outcome |
//! | 16 | 4 | length of the rest |
//! | 20 | 8 | generation |
//! | 28 | 8 | revision |
//! | 36 | 8 | token |
//! | 44 | 8 | created at, wall clock, ms since 1970 |
//! | 52 | 8 | updated at, wall clock, ms since 1970 |
//! | 60 | 8 | updated, store time, ms |
//! | 68 | 8 | expires, store time, ms; all ones is never |
//! | 76 | 16 | what its effect ids are made from, with its key |
//! | 92 | | the rest: bincode 1 (fixed integers, little-endian) of `RestV1`; then the outcome |
//!
//! # sled
//!
//! | tree | key | value |
//! |---|---|---|
//! | `blocks` | number of the run (8), of the block in it (4) | a block |
//! | `meta` | `runs` | the list of the runs |
//!
//! A *block*, of at most 4,000 bytes, and the list: version (1), kind (1: 1 entries, 2 a value continued, 3 index, 4 list),
//! checksum of the key and all of that but itself (4), content.
//!
//! A *run* holds entries in the order of their keys, each key once. An entry: length of the key (2), length of the value (4; all
//! ones: the key was removed), the key (`r` and the manager's name, or `t` and the table's, 0, the key), the value: a record, or
//! a row. An entry that is longer than a block begins one, and its value goes on in blocks of its own. Behind the entries comes
//! the index, cut into blocks: three counts (4 each), of first keys, of unfinished records and of words of the filter; for each
//! block with entries its number (4), length of its first key (2) and the key; for each record in progress, released or
//! interrupted the length of its key (2), the key, its state (1), token, updated, expires and the TTL of what is interrupted (8
//! each); the filter's words (8 each).
//!
//! The *filter* has lines of 512 bits, 16 bits for each key. A hash h of the key (64 bits) chooses the line, h times the
//! count of lines divided by 2^64, and six bits in it: of h times 0x9E3779B97F4A7C15, modulo 2^64, the upper 9 bits, the next 9, and
//! so on. The hash begins as 0x9E3779B97F4A7C15; with a round of `SplitMix64` behind each are xored in: the length, each 8 bytes
//! as one number, each byte that is left.
//!
//! The *list*: id of the store (16), number of the last frame whose changes are in the runs (8), count of the runs (4), and for each,
//! the oldest first: its number (8), blocks with entries (4), blocks with the index (4), entries (8), store time when the
//! first of its finished records expires (8), and when about half of its entries have (8). Numbers of runs are not given
//! twice; blocks of a run that is not listed are leftovers.

pub(crate) mod block;
pub(crate) mod filter;
pub(crate) mod frame;
pub(crate) mod list;
pub(crate) mod record;
pub(crate) mod segment;

use crate::types::error::{Error, ErrorKind, Result};

/// The version of everything above.
pub(crate) const VERSION: u8 = 1;

/// Takes fields off the front of a slice; nothing panics and nothing is allocated by a length that is not there.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn len(&mut self) -> Option<usize> {
        self.u32().and_then(|len| usize::try_from(len).ok())
    }
}

pub(crate) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// A length as the format keeps it. Limits are checked long before; this only keeps a mistake from being written.
pub(crate) fn length(what: &str, len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::new(ErrorKind::TooLarge, format!("{what} is {len} bytes long")))
}

/// Writes a number where there was a place for it.
pub(crate) fn patch(bytes: &mut [u8], at: usize, number: u32) {
    bytes.iter_mut().skip(at).zip(number.to_le_bytes()).for_each(|(byte, value)| *byte = value);
}

/// The first of these bytes, and zeros if there are too few.
pub(crate) fn first_of<const N: usize>(bytes: impl IntoIterator<Item = u8>) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte);
    out
}

/// The next key there can be.
pub(crate) fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

pub(crate) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// Where a hash begins, so that zeros are not lost.
const START: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads keys evenly. It is on disk, in the filters of the runs.
pub(crate) fn hash(key: &[u8]) -> u64 {
    let words = key.chunks_exact(8);
    let rest = words.remainder().iter().map(|byte| u64::from(*byte));
    let words = words.map(|word| u64::from_le_bytes(first_of(word.iter().copied())));
    words.chain(rest).fold(mix(START ^ key.len() as u64), |hash, word| mix(hash ^ word))
}

/// Every bit of the result depends on every bit of the input: the end of `SplitMix64`.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}
