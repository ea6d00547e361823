//! What sled should hold, in a few numbers: a count and a sum of hashes, kept with every change and compared by a scan.
//!
//! sled leaves out what it cannot read of its own log, and says nothing. A sum changes by what is put in and taken out, in any
//! order, so that the one thread that writes keeps it at the cost of two hashes a change. It tells damage, not malice.

use super::format::{Fields, first_of};

/// One of sled's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Records,
    Unfinished,
    Expiry,
    Chunks,
    Table(&'a str),
}

/// Bytes of a digest.
const DIGEST: usize = 40;

/// Of the trees that answers come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) records: u64,
    pub(crate) rows: u64,
    pub(crate) unfinished: u64,
    /// Of records and rows, with their keys.
    pub(crate) sum: u64,
    pub(crate) unfinished_sum: u64,
}

impl Digest {
    /// One entry is replaced, comes or goes. Trees of which nothing is answered do not count.
    pub(crate) fn change(&mut self, name: Name<'_>, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        let (tree, count, sum) = match name {
            Name::Records => ("", &mut self.records, &mut self.sum),
            Name::Table(table) => (table, &mut self.rows, &mut self.sum),
            Name::Unfinished => ("", &mut self.unfinished, &mut self.unfinished_sum),
            Name::Expiry | Name::Chunks => return,
        };
        if let Some(old) = old {
            *count = count.wrapping_sub(1);
            *sum = sum.wrapping_sub(entry(tree, key, old));
        }
        if let Some(new) = new {
            *count = count.wrapping_add(1);
            *sum = sum.wrapping_add(entry(tree, key, new));
        }
    }

    /// How it differs from what it should be.
    pub(crate) fn differs(&self, was: &Self) -> String {
        let of = |digest: &Self| {
            format!("{} records, {} rows, {} unfinished", digest.records, digest.rows, digest.unfinished)
        };
        if of(self) == of(was) {
            return format!("holds {}, but not those that it had", of(self));
        }
        format!("holds {}, it had {}", of(self), of(was))
    }

    pub(crate) fn encode(&self) -> [u8; DIGEST] {
        let fields = [self.records, self.rows, self.unfinished, self.sum, self.unfinished_sum];
        first_of(fields.into_iter().flat_map(u64::to_le_bytes))
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            records: fields.u64()?,
            rows: fields.u64()?,
            unfinished: fields.u64()?,
            sum: fields.u64()?,
            unfinished_sum: fields.u64()?,
        })
    }
}

/// Where a hash begins, so that zeros are not lost.
const START: u64 = 0x9E37_79B9_7F4A_7C15;

/// The parts' lengths go in, so that no byte can move from one to the next.
pub(super) fn entry(tree: &str, key: &[u8], value: &[u8]) -> u64 {
    let mut hash = START;
    for part in [tree.as_bytes(), key, value] {
        hash = mix(hash ^ part.len() as u64);
        let words = part.chunks_exact(8);
        let rest = words.remainder().iter().map(|byte| u64::from(*byte));
        let words = words.map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        hash = words.chain(rest).fold(hash, |hash, word| mix(hash ^ word));
    }
    hash
}

/// Every bit of the result depends on every bit of the input: the end of `SplitMix64`.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn golden_hash() {
        let mut digest = Digest::default();
        digest.change(Name::Records, b"m\0key", None, Some(b"0123456789"));
        digest.change(Name::Table("t"), b"key", None, Some(b"row"));
        digest.change(Name::Unfinished, b"m\0key", None, Some(b""));
        let bytes = digest.encode();
        assert_eq!(bytes[..24], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((digest.sum, digest.unfinished_sum), (0xB6DE_E852_8C6E_A821, 0xD7EF_1EB6_AEB4_CB75));
        assert_eq!(Digest::decode(&mut Fields(&bytes)), Some(digest));
        assert_eq!(Digest::decode(&mut Fields(&bytes[1..])), None);
    }

    #[test]
    fn any_order_comes_to_the_same_and_what_goes_leaves_nothing() {
        let (mut a, mut b) = (Digest::default(), Digest::default());
        a.change(Name::Records, b"1", None, Some(b"x"));
        a.change(Name::Records, b"1", Some(b"x"), Some(b"y"));
        a.change(Name::Records, b"2", None, Some(b"z"));
        b.change(Name::Records, b"2", None, Some(b"z"));
        b.change(Name::Records, b"1", None, Some(b"y"));
        assert_eq!(a, b);
        for (key, value) in [(b"1", b"y"), (b"2", b"z")] {
            a.change(Name::Records, key, Some(value), None);
        }
        a.change(Name::Chunks, b"1", None, Some(b"x"));
        a.change(Name::Expiry, b"1", None, Some(b"x"));
        assert_eq!(a, Digest::default());
    }

    #[test]
    fn every_bit_and_every_border_counts() {
        let mut seen = HashSet::new();
        let (key, value) = (*b"key of 13 byt", *b"a value of 21 bytes..");
        assert!(seen.insert(entry("t", &key, &value)));
        for bit in 0..key.len() * 8 {
            let mut other = key;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(entry("t", &other, &value)), "bit {bit} of the key");
        }
        for bit in 0..value.len() * 8 {
            let mut other = value;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(entry("t", &key, &other)), "bit {bit} of the value");
        }
        for (tree, key, value) in [("", "tab", "c"), ("ta", "b", "c"), ("t", "ab", "c"), ("t", "a", "bc"), ("", "", "")]
        {
            assert!(seen.insert(entry(tree, key.as_bytes(), value.as_bytes())), "{tree} {key} {value}");
        }
        // Zeros are not lost.
        for len in 0..40 {
            assert!(seen.insert(entry("z", b"", &[0; 40][..len])), "{len} zeros");
        }
    }
}
