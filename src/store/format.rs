//! The format on disk, byte by byte. Version 2.
//!
//! Numbers are little-endian. In keys they are big-endian, so that keys sort by them. Checksums are CRC-32 (IEEE).
//!
//! # The journal
//!
//! A directory of segment files with fixed sizes. The number of a segment is in its header; file names mean nothing.
//!
//! | offset | bytes | segment header, in the first 512 bytes of a segment |
//! |---|---|---|
//! | 0 | 8 | `oncekeyJ` |
//! | 8 | 4 | format version |
//! | 12 | 4 | checksum of bytes 16 to 76 |
//! | 16 | 16 | id of the store |
//! | 32 | 8 | number of the segment; later segments have larger numbers |
//! | 40 | 8 | salt: the checksums of this segment's groups start with it |
//! | 48 | 8 | size of the file |
//! | 56 | 8 | number of its first group: groups in earlier segments with this number or a higher one are ignored |
//! | 64 | 8 | number of its first frame |
//! | 72 | 4 | header checksum of the last group before this segment |
//! | 76 | | zeros |
//!
//! A file whose first 512 bytes are zeros is a spare. The groups follow the header. Each starts at a multiple of 512:
//!
//! | offset | bytes | group header |
//! |---|---|---|
//! | 0 | 4 | `okG1`, or `okS1` for the seal |
//! | 4 | 4 | checksum of the salt and bytes 8 to 88 |
//! | 8 | 8 | number of the group: one more than that of the previous group; in a seal: the last durable group |
//! | 16 | 8 | number of its first frame; in a seal: number of the next segment |
//! | 24 | 4 | number of frames |
//! | 28 | 4 | length of the payload, which follows the header |
//! | 32 | 4 | checksum of the salt and the payload |
//! | 36 | 4 | header checksum of the previous group |
//! | 40 | 8 | the last group that was durable when this one was written |
//! | 48 | 8 | clock anchor: store time, ms |
//! | 56 | 8 | clock anchor: wall clock, ms since 1970 |
//! | 64 | 8 | clock anchor: time since boot, ms |
//! | 72 | 16 | clock anchor: boot id |
//!
//! A *seal* ends a segment and is written when the next segment is durable. So a missing last segment is noticed. A
//! group without frames stores the clock anchor of an idle store.
//!
//! The payload holds the frames, one after the other: length of the rest (4), kind (1), content. The content depends on
//! the kind: 1 *changes*, up to the end of the frame; 2 *opening*, empty; 3 *checkpointed*, number of the last frame
//! whose changes are in runs (8); 4 *closing*, empty; 5 *anchor*, empty. A change: kind (1: 1 record, 2 row, 3 no
//! record, 4 no row), length of the name (1), name, length of the key (2), key, and for kinds 1 and 2 length of the
//! value (4), value.
//!
//! # Records
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | length of the fields |
//! | 4 | 4 | length of the outcome |
//! | 8 | | the fields: bincode 1, variable integers, little-endian |
//! | | | the outcome |
//!
//! In this form, a number below 251 is one byte. For a larger one, a byte with 251, 252 or 253 is followed by 2, 4 or 8
//! bytes. An option starts with a byte: 0 without a value, 1 with one. Texts, lists, and bytes whose number is not given
//! here start with their length. "From" is a difference: "token, from the generation" is the token minus the generation,
//! modulo 2^64. A TTL is stored plus 1, modulo 2^64. All times are in ms, and the wall clock counts from 1970.
//!
//! | field | |
//! |---|---|
//! | state | a byte: 1 in progress, 2 succeeded, 3 failed, 4 released, 5 interrupted |
//! | flags | a byte: 1 claimed by key, 2 resumes after an interruption, 4 bound to its request, 8 holds progress: a released record is then kept as long as an interrupted one, 16 expired and remembered, 32 resolved and its outcome not given to a caller yet |
//! | interruption | a byte: 0 none, 1 process ended, 2 dropped, 3 panicked, 4 reported, 5 revoked |
//! | generation; token, from the generation; revision, from the token | |
//! | updated, store time; expires, store time, from updated | an expiry of all ones: never |
//! | interrupted TTL; time for which the key is remembered | |
//! | schema; attempt; interruptions | |
//! | created at, wall clock; updated at, wall clock, from created at | |
//! | effect seed | 16 bytes; effect ids are made from this and the key |
//! | success TTL; failure TTL; released TTL; pause after a release | |
//! | fingerprint | option of 32 bytes |
//! | context | list of names and values, in the order of the names |
//! | recovery point | option of a text; without a value: `finished` if the state is succeeded or failed, else `started` |
//! | checkpoint | option of bytes |
//! | attempts | option: when the latest claim began, wall clock; list of the attempts before it: number, began and changed, wall clock, interruption as above |
//!
//! # sled
//!
//! | tree | key | value |
//! |---|---|---|
//! | `blocks` | number of the run (8), number of the block in the run (4) | a block |
//! | `meta` | `runs` | the list of the runs |
//!
//! A *block* has at most 4,000 bytes. Blocks and the list can be found in sled's file without sled:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | `okBk` |
//! | 4 | 4 | checksum of the id of the store and of everything from byte 8 to the end |
//! | 8 | 1 | format version |
//! | 9 | 1 | kind: 1 entries, 2 a value continued, 3 index, 4 list |
//! | 10 | 2 | length of the content |
//! | 12 | 8 | number of the run; 0 for the list |
//! | 20 | 4 | number of the block in it; 0 for the list |
//! | 24 | | content |
//!
//! A *run* holds entries in key order, each key once. An entry: length of the key (2), length of the value (4; all
//! ones: the key was removed), the key (`r` and the manager's name, or `t` and the table's name, then 0 and the key),
//! the value: a record or a row. An entry that is longer than a block starts a new block, and its value continues in
//! blocks of its own. These blocks are numbered from 0. The index is cut into blocks that are numbered from 2^31 on:
//! first three counts (4 each), of first keys, of unfinished records and of filter words. For each block that begins
//! with an entry: its number (4), length of its first key (2), the key. For each record in progress, released or
//! interrupted: length of its key (2), the key, its state (1), token, updated, expires and interrupted TTL (8 each).
//! The words of the filter (8 each).
//!
//! The *filter* has lines of 512 bits, 16 bits for each key. A 64-bit hash h of the key selects a line and six bits in
//! it. The line is h times the number of lines divided by 2^64. The bits are taken from h times 0x9E3779B97F4A7C15,
//! modulo 2^64: the upper 9 bits, the next 9, and so on. The hash starts as 0x9E3779B97F4A7C15, xored with the length
//! of the key. Then each 8 bytes as one number, and each remaining byte, are xored in; a round of `SplitMix64` follows
//! each xor.
//!
//! The *list*: id of the store (16), serial number, one more than that of the list before (8), number of the last frame
//! whose changes are in runs (8), number of the last frame up to which the runs have every change (8), number of the
//! next run (8), number of runs (4). Then for each run, the oldest first: its number (8), blocks with entries (4),
//! number of the first block with the index (4), blocks with the index (4), the block of its first entry (4), the
//! offset of that entry in the content of its block (4), about how many of its blocks replace entries of older runs
//! (4), entries (8), store time when its first finished record expires (8), store time when about half of its entries
//! have expired (8). Run numbers are not reused. A merge that has not ended lists the first part of its output, and its
//! inputs without that part: their first entries are not in their first blocks then. Blocks that are not listed are
//! leftovers.

pub(crate) mod block;
pub(crate) mod filter;
pub(crate) mod frame;
pub(crate) mod list;
pub(crate) mod record;
pub(crate) mod segment;

use crate::types::error::{Error, ErrorKind, Result};

/// The version of this format.
pub(crate) const VERSION: u8 = 2;

/// Reads fields from the front of a slice. Never panics, and never allocates by a length that the slice does not have.
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

/// Converts a length into its form on disk. Callers have limited it already; this only prevents writing a wrong one.
pub(crate) fn length(what: &str, len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::new(ErrorKind::TooLarge, format!("{what} is {len} bytes long")))
}

/// Overwrites the number at offset `at`.
pub(crate) fn patch(bytes: &mut [u8], at: usize, number: u32) {
    bytes.iter_mut().skip(at).zip(number.to_le_bytes()).for_each(|(byte, value)| *byte = value);
}

/// Returns the first N bytes, padded with zeros.
pub(crate) fn first_of<const N: usize>(bytes: impl IntoIterator<Item = u8>) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte);
    out
}

/// Returns the smallest key after this one.
pub(crate) fn next_key(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

pub(crate) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// The initial value of a hash, so that leading zeros change it.
const START: u64 = 0x9E37_79B9_7F4A_7C15;

/// Returns a hash that spreads keys evenly. The filters of runs on disk depend on it.
pub(crate) fn hash(key: &[u8]) -> u64 {
    let words = key.chunks_exact(8);
    let rest = words.remainder().iter().map(|byte| u64::from(*byte));
    let words = words.map(|word| u64::from_le_bytes(first_of(word.iter().copied())));
    words.chain(rest).fold(mix(START ^ key.len() as u64), |hash, word| mix(hash ^ word))
}

/// Mixes so that each bit of the result depends on each bit of the input. This is the last step of `SplitMix64`.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}
