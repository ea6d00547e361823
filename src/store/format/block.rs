//! Blocks of a run: their checksums, the entries in them, and the index of the run.

use std::fmt;

use super::filter::Filter;
use super::frame::StoreKey;
use super::record;
use super::{Fields, VERSION, checksum, corrupt, first_of, length, patch};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::Lifetime;

/// The largest block in bytes. sled keeps up to 17 values in a leaf, and writes a leaf of more than 128 KiB into a file
/// that it never syncs.
pub(crate) const BLOCK: usize = 4_000;
/// The largest content of a block in bytes.
pub(crate) const CONTENT: usize = BLOCK - PREFIX;
/// The magic number at the start of a block, by which a scan finds it anywhere in sled's file.
pub(crate) const MAGIC: &[u8; 4] = b"okBk";
/// Bytes before the content.
pub(crate) const PREFIX: usize = 24;
/// Stands for the length of the value if the key was removed.
const REMOVED: u32 = u32::MAX;
/// The bytes of an entry other than its key and value.
const ENTRY: usize = 6;

/// The kind of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A block that starts with an entry.
    Entries,
    /// The continuation of the value at the end of the previous block.
    Continued,
    /// A part of the run's index.
    Index,
    /// The list of the runs.
    List,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Entries => 1,
            Self::Continued => 2,
            Self::Index => 3,
            Self::List => 4,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Entries, Self::Continued, Self::Index, Self::List].into_iter().find(|kind| kind.code() == code)
    }
}

/// The place of a block: the number of its run, and its number in the run. The list has two zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) run: u64,
    pub(crate) number: u32,
}

impl Place {
    pub(crate) const LIST: Self = Self { run: 0, number: 0 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::LIST {
            return f.write_str("the list of the runs");
        }
        write!(f, "block {} of run {}", self.number, self.run)
    }
}

/// Returns the key of a block in sled. Keys sort by run, then by block.
pub(crate) fn key(place: Place) -> [u8; 12] {
    first_of(place.run.to_be_bytes().into_iter().chain(place.number.to_be_bytes()))
}

/// Returns the run of a key in sled.
pub(crate) fn run_of(key: &[u8]) -> u64 {
    u64::from_be_bytes(first_of(key.iter().copied()))
}

/// Encodes a block. Its checksum includes the id of the store, so that no value of a client and no block of another
/// store is mistaken for a block of this store.
pub(crate) fn seal(store: &[u8; 16], place: Place, kind: Kind, content: &[u8]) -> Result<Vec<u8>> {
    let too_long = |_| Error::new(ErrorKind::TooLarge, format!("{place} has {} bytes", content.len()));
    let mut out = Vec::with_capacity(PREFIX + content.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[VERSION, kind.code()]);
    out.extend_from_slice(&u16::try_from(content.len()).map_err(too_long)?.to_le_bytes());
    out.extend_from_slice(&place.run.to_le_bytes());
    out.extend_from_slice(&place.number.to_le_bytes());
    out.extend_from_slice(content);
    let checksum = checksum(&[store, out.get(8..).unwrap_or_default()]);
    patch(&mut out, MAGIC.len(), checksum);
    Ok(out)
}

/// A whole block with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed<'a> {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    pub(crate) content: &'a [u8],
}

/// Returns the block of this store that these bytes begin with, if it is whole. More bytes may follow.
pub(crate) fn find<'a>(store: &[u8; 16], bytes: &'a [u8]) -> Option<Sealed<'a>> {
    let mut fields = Fields(bytes);
    fields.take(MAGIC.len()).filter(|magic| *magic == MAGIC)?;
    let stored = fields.u32()?;
    let sealed = fields.0;
    let (version, kind, len) = (fields.u8()?, Kind::of(fields.u8()?)?, usize::from(fields.u16()?));
    let place = Place { run: fields.u64()?, number: fields.u32()? };
    let content = fields.take(len).filter(|_| version == VERSION)?;
    let sealed = sealed.get(..PREFIX - 8 + len)?;
    (stored == checksum(&[store, sealed])).then_some(Sealed { place, kind, content })
}

/// Returns the content of a block that [`seal`] made for this place.
pub(crate) fn open<'a>(store: &[u8; 16], place: Place, kind: Kind, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let damaged = || corrupt(format!("{place} is damaged: its checksum is wrong"));
    let found = find(store, bytes).filter(|found| found.content.len() + PREFIX == bytes.len()).ok_or_else(damaged)?;
    if (found.place, found.kind) != (place, kind) {
        return Err(corrupt(format!("{place} is damaged: {} is in its place", found.place)));
    }
    Ok(found.content)
}

/// An entry, with the part of its value that is in the same block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a [u8],
    /// `None` if the key was removed.
    pub(crate) value: Option<ValuePart<'a>>,
}

/// The beginning of a value, or the whole value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValuePart<'a> {
    /// The length of the whole value.
    pub(crate) len: usize,
    /// The part that is in this block.
    pub(crate) here: &'a [u8],
}

/// Returns the bytes that an entry adds to a block, if its value is not continued.
pub(crate) fn entry_len(key: &[u8], value: Option<&[u8]>) -> usize {
    ENTRY + key.len() + value.map_or(0, <[u8]>::len)
}

/// Adds an entry. Returns the rest of the value that does not fit below [`CONTENT`].
pub(crate) fn push_entry<'a>(content: &mut Vec<u8>, key: &[u8], value: Option<&'a [u8]>) -> Result<&'a [u8]> {
    let too_long = |_| Error::new(ErrorKind::TooLarge, format!("a key is {} bytes long", key.len()));
    content.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_le_bytes());
    let len = value.map_or(Ok(REMOVED), |value| length("a value", value.len()))?;
    content.extend_from_slice(&len.to_le_bytes());
    content.extend_from_slice(key);
    let value = value.unwrap_or_default();
    let (here, rest) = value.split_at(value.len().min(CONTENT.saturating_sub(content.len())));
    content.extend_from_slice(here);
    Ok(rest)
}

/// Takes the next entry from the front of a block's content. Returns `None` at its end.
pub(crate) fn take_entry<'a>(content: &mut &'a [u8]) -> Result<Option<Entry<'a>>> {
    if content.is_empty() {
        return Ok(None);
    }
    let mut fields = Fields(content);
    let mut entry = || -> Option<Entry<'a>> {
        let key_len = fields.u16()?;
        let len = fields.u32()?;
        let key = fields.take(usize::from(key_len))?;
        if len == REMOVED {
            return Some(Entry { key, value: None });
        }
        let len = usize::try_from(len).ok()?;
        let here = fields.take(len.min(fields.0.len()))?;
        Some(Entry { key, value: Some(ValuePart { len, here }) })
    };
    let entry = entry().ok_or_else(|| corrupt("an entry of a run is malformed"))?;
    *content = fields.0;
    Ok(Some(entry))
}

/// The first key of each block that begins with an entry, and the number of the block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FirstKeys {
    keys: Vec<u8>,
    /// The end of each key in `keys`, and its block.
    places: Vec<(u32, u32)>,
}

impl FirstKeys {
    pub(crate) fn push(&mut self, key: &[u8], block: u32) -> Result<()> {
        self.keys.extend_from_slice(key);
        self.places.push((length("the first keys of a run", self.keys.len())?, block));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn block(&self, nth: usize) -> Option<u32> {
        self.places.get(nth).map(|(_, block)| *block)
    }

    /// Returns the position of this block, or of the next block that begins with an entry.
    pub(crate) fn position(&self, block: u32) -> usize {
        self.places.partition_point(|(_, other)| *other < block)
    }

    fn key(&self, nth: usize) -> &[u8] {
        let end_of = |nth: usize| self.places.get(nth).and_then(|(end, _)| usize::try_from(*end).ok());
        let start = nth.checked_sub(1).map_or(Some(0), end_of);
        start.zip(end_of(nth)).and_then(|(start, end)| self.keys.get(start..end)).unwrap_or_default()
    }

    /// Returns the index of the last block whose first key is at or before this key, or of the first block if there is
    /// none.
    pub(crate) fn find(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle) <= key { low = middle + 1 } else { high = middle }
        }
        low.saturating_sub(1)
    }
}

/// The index of a run: everything but its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) first_keys: FirstKeys,
    /// The records that are in progress, released or interrupted.
    pub(crate) unfinished: Vec<(StoreKey, Lifetime)>,
    pub(crate) filter: Filter,
}

impl Index {
    /// Encodes the index. The caller cuts it into blocks.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let counts = [self.first_keys.len(), self.unfinished.len(), self.filter.words().len()];
        for count in counts {
            out.extend_from_slice(&length("an index", count)?.to_le_bytes());
        }
        let put_key = |out: &mut Vec<u8>, key: &[u8]| -> Result<()> {
            let too_long = |_| corrupt("a key is too long");
            out.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_le_bytes());
            out.extend_from_slice(key);
            Ok(())
        };
        for (nth, (_, block)) in self.first_keys.places.iter().enumerate() {
            out.extend_from_slice(&block.to_le_bytes());
            put_key(&mut out, self.first_keys.key(nth))?;
        }
        for (key, lifetime) in &self.unfinished {
            put_key(&mut out, key.bytes())?;
            out.push(record::state_code(lifetime.state));
            for field in [lifetime.token, lifetime.updated, lifetime.expires, lifetime.interrupted_ttl] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        out.extend(self.filter.words().iter().flat_map(|word| word.to_le_bytes()));
        Ok(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (firsts, unfinished, words) = (fields.len()?, fields.len()?, fields.len()?);
        let mut first_keys = FirstKeys::default();
        for _ in 0..firsts {
            let block = fields.u32()?;
            let len = fields.u16()?;
            first_keys.push(fields.take(usize::from(len))?, block).ok()?;
        }
        let mut found = Vec::new();
        for _ in 0..unfinished {
            let len = fields.u16()?;
            let key = StoreKey::from_bytes(fields.take(usize::from(len))?);
            let state = record::state(fields.u8()?)?;
            let (token, updated, expires, interrupted_ttl) =
                (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
            found.push((key, Lifetime { state, token, updated, expires, interrupted_ttl }));
        }
        if fields.0.len() != words.checked_mul(8)? {
            return None;
        }
        let words = fields.0.chunks_exact(8).map(|word| u64::from_le_bytes(first_of(word.iter().copied()))).collect();
        Some(Self { first_keys, unfinished: found, filter: Filter::from_words(words)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::record::Status;

    const STORE: [u8; 16] = [7; 16];

    #[test]
    fn golden_bytes() {
        let at = Place { run: 258, number: 3 };
        assert_eq!(key(at), *b"\0\0\0\0\0\0\x01\x02\0\0\0\x03");
        assert_eq!(run_of(&key(at)), 258);
        let mut content = Vec::new();
        assert!(push_entry(&mut content, b"rm\0k", Some(b"abc")).unwrap().is_empty());
        assert!(push_entry(&mut content, b"rm\0l", None).unwrap().is_empty());
        assert_eq!(content, b"\x04\0\x03\0\0\0rm\0kabc\x04\0\xff\xff\xff\xffrm\0l");
        let block = seal(&STORE, at, Kind::Entries, &content).unwrap();
        let sealed = [b"\x02\x01\x17\0\x02\x01\0\0\0\0\0\0\x03\0\0\0".as_slice(), &content].concat();
        let crc = crc32fast::hash(&[&STORE[..], &sealed].concat());
        assert_eq!(block, [b"okBk".as_slice(), &crc.to_le_bytes(), &sealed].concat());
        assert_eq!(open(&STORE, at, Kind::Entries, &block).unwrap(), content);
        let longer = [&block[..], b"more"].concat();
        assert_eq!(find(&STORE, &longer), Some(Sealed { place: at, kind: Kind::Entries, content: &content }));
    }

    #[test]
    fn every_flipped_bit_every_cut_and_another_place_are_errors() {
        let at = Place { run: 1, number: 2 };
        let block = seal(&STORE, at, Kind::Entries, b"abc").unwrap();
        for bit in 0..block.len() * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&STORE, at, Kind::Entries, &damaged).is_err(), "bit {bit}");
        }
        for cut in 0..block.len() {
            assert!(open(&STORE, at, Kind::Entries, &block[..cut]).is_err(), "cut {cut}");
        }
        assert!(open(&STORE, Place { run: 1, number: 3 }, Kind::Entries, &block).is_err());
        assert!(open(&STORE, at, Kind::Continued, &block).is_err());
        assert!(open(&[8; 16], at, Kind::Entries, &block).is_err(), "of another store");
    }

    #[test]
    fn push_entry_returns_the_rest_of_a_value_that_does_not_fit() {
        let mut content = Vec::new();
        let value = [7; 5_000];
        let rest = push_entry(&mut content, b"k", Some(&value)).unwrap();
        assert_eq!((content.len(), rest.len()), (CONTENT, 5_000 - (CONTENT - ENTRY - 1)));
        let mut read = content.as_slice();
        let entry = take_entry(&mut read).unwrap().unwrap();
        let part = entry.value.unwrap();
        assert_eq!((part.len, part.here.len()), (5_000, CONTENT - ENTRY - 1));
        assert!(take_entry(&mut read).unwrap().is_none());
        assert!(take_entry(&mut b"\x04\0\x03\0".as_slice()).is_err());
    }

    #[test]
    fn find_returns_the_block_of_a_key() {
        let mut firsts = FirstKeys::default();
        for (key, block) in [("b", 0), ("d", 1), ("f", 4)] {
            firsts.push(key.as_bytes(), block).unwrap();
        }
        for (key, block) in [("a", 0), ("b", 0), ("c", 0), ("d", 1), ("e", 1), ("f", 4), ("z", 4)] {
            assert_eq!(firsts.block(firsts.find(key.as_bytes())), Some(block), "{key}");
        }
    }

    #[test]
    fn an_index_is_decoded_as_encoded_and_a_cut_one_is_refused() {
        let mut first_keys = FirstKeys::default();
        first_keys.push(b"rm\0a", 0).unwrap();
        first_keys.push(b"rm\0b", 7).unwrap();
        let mut filter = Filter::new(2);
        filter.insert(&crate::store::format::filter::Probe::of(b"rm\0a"));
        let lifetime = Lifetime { state: Status::Released, token: 1, updated: 2, expires: 3, interrupted_ttl: 4 };
        let index = Index { first_keys, unfinished: vec![(StoreKey::record("m", b"a"), lifetime)], filter };
        let bytes = index.encode().unwrap();
        assert_eq!(Index::decode(&bytes), Some(index));
        for cut in 0..bytes.len() {
            assert!(Index::decode(&bytes[..cut]).is_none(), "cut {cut}");
        }
    }
}
