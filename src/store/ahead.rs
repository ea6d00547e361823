//! Blocks of the expiry tree that a pass has read, and their keys in order: records that are neighbours in sled are deleted
//! together, or each would have its page read and written for itself.

use std::ops::Range;

use ::sled::IVec;

use super::format::frame::StoreKey;
use super::format::{block, first_of};
use super::values::Stray;
use crate::types::error::{ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The keys one behind the other: an allocation for each would take longer than to sort them.
    bytes: Vec<u8>,
    names: std::vec::IntoIter<Named>,
    emptied: Vec<Stray>,
}

#[derive(Debug)]
struct Named {
    /// How the key begins, so that few comparisons look at it.
    prefix: u128,
    at: Range<usize>,
}

impl Ahead {
    /// Of these blocks; those whose time has come by `now` are to be deleted in the end.
    pub(super) fn new(blocks: Vec<(IVec, IVec)>, now: u64) -> Result<Self> {
        let (mut bytes, mut names, mut emptied) = (Vec::new(), Vec::new(), Vec::new());
        for (key, block) in blocks {
            let keys = match block::decode(&key, &block) {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    emptied.push(Stray::Malformed(key));
                    continue;
                }
                keys => keys?,
            };
            for raw in keys {
                let from = bytes.len();
                bytes.extend_from_slice(raw);
                names.push(Named { prefix: prefix(raw), at: from..bytes.len() });
            }
            if block::time_of(&key) <= now {
                emptied.push(Stray::Emptied(key));
            }
        }
        let key = |name: &Named| bytes.get(name.at.clone());
        names.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| key(a).cmp(&key(b))));
        names.dedup_by(|a, b| key(a) == key(b));
        Ok(Self { names: names.into_iter(), bytes, emptied })
    }

    /// Whether all its keys were taken.
    pub(super) fn is_empty(&self) -> bool {
        self.names.as_slice().is_empty()
    }

    /// The next so many keys.
    pub(super) fn take(&mut self, limit: usize) -> impl Iterator<Item = StoreKey> {
        let bytes = &self.bytes;
        let keys = self.names.by_ref().take(limit);
        keys.map(|name| StoreKey::from_record_tree(bytes.get(name.at).unwrap_or_default()))
    }

    /// The blocks that are not needed any more when all their keys were taken and deleted.
    pub(super) fn take_emptied(&mut self) -> Vec<Stray> {
        std::mem::take(&mut self.emptied)
    }
}

fn prefix(raw: &[u8]) -> u128 {
    u128::from_be_bytes(first_of(raw.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_order_and_once() {
        let long = |name: &str| [b"m\0", "-".repeat(30).as_bytes(), name.as_bytes()].concat();
        let all = [
            [b"m\0b".to_vec(), long("b"), b"m\0".to_vec(), long("")],
            [long("a"), b"m\0b".to_vec(), b"m\0b\0".to_vec(), b"a\0z".to_vec()],
        ];
        let blocks = all.iter().zip(1..).map(|(names, number)| {
            let (key, mut keys) = (block::key(block::time(number * 2_000), 1, number), Vec::new());
            for raw in names {
                block::push(&mut keys, raw).unwrap();
            }
            (IVec::from(key.clone()), IVec::from(block::encode(&key, &keys).unwrap()))
        });
        let mut expected = all.concat();
        expected.sort();
        expected.dedup();
        let mut ahead = Ahead::new(blocks.collect(), 3_000).unwrap();
        assert_eq!(ahead.take_emptied().len(), 1);
        let mut found = Vec::new();
        while !ahead.is_empty() {
            found.extend(ahead.take(3).map(|key| key.in_record_tree().to_vec()));
        }
        assert_eq!(found, expected);
    }
}
