//! What leads to records that expire: keys on their way into blocks of the expiry tree.
//!
//! An entry of its own for each record would cost sled as much as the record itself. So keys are collected, and a block is
//! written when it is full, before a store checkpoint, and when a pass asks for what is due: what a crash takes of them the
//! replay brings again. No key is taken out of a block before its time; the record says when it expires, and one that is gone,
//! or expires later, is passed over.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest;
use super::format::block;
use crate::store::sled::tables::{Name, Tables};
use crate::types::clock::NEVER;
use crate::types::error::Result;

/// Blocks that are filled at a time: about as many lifetimes may be in use side by side.
const MAX_OPEN: usize = 16;

/// For the one thread that writes sled.
#[derive(Debug)]
pub(crate) struct Expiries {
    opening: u64,
    written: u64,
    /// The first is written first when there are too many.
    open: VecDeque<Block>,
    earliest: Arc<AtomicU64>,
    /// Hashes of all keys in blocks, with the times of these: kept while a scan goes on, some 16 bytes for each.
    listed: Option<HashSet<u64>>,
}

#[derive(Debug)]
struct Block {
    time: u64,
    keys: Vec<u8>,
}

impl Expiries {
    /// `opening` is the first frame of this open.
    pub(crate) fn new(opening: u64) -> Self {
        let earliest = Arc::new(AtomicU64::new(NEVER));
        Self { opening, written: 0, open: VecDeque::new(), earliest, listed: None }
    }

    /// The earliest time of a block that is not written yet; [`NEVER`] if there is none.
    pub(crate) fn earliest(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.earliest)
    }

    /// A record with this key of the `records` tree is about to be written, and expires then.
    pub(crate) fn add(&mut self, tables: &Tables, expires: u64, raw: &[u8]) -> Result<()> {
        let time = block::time(expires);
        if let Some(listed) = &mut self.listed {
            listed.insert(hash(time, raw));
        }
        if let Some(at) = self.open.iter().position(|block| block.time == time) {
            let is_full = |block: &Block| block.keys.len() + block::pushed(raw) > block::MAX_KEYS;
            if self.open.get(at).is_some_and(is_full) {
                self.write(tables, at)?;
            }
        } else if self.open.len() >= MAX_OPEN {
            self.write(tables, 0)?;
        }
        if let Some(block) = self.open.iter_mut().find(|block| block.time == time) {
            return block::push(&mut block.keys, raw);
        }
        let mut keys = Vec::with_capacity(block::MAX_KEYS);
        block::push(&mut keys, raw)?;
        self.open.push_back(Block { time, keys });
        self.earliest.fetch_min(time, Ordering::AcqRel);
        Ok(())
    }

    /// Writes all that was collected.
    pub(crate) fn write_all(&mut self, tables: &Tables) -> Result<()> {
        while !self.open.is_empty() {
            self.write(tables, 0)?;
        }
        Ok(())
    }

    fn write(&mut self, tables: &Tables, at: usize) -> Result<()> {
        let Some(block) = self.open.get(at) else { return Ok(()) };
        let key = block::key(block.time, self.opening, self.written);
        tables.insert(Name::Expiry, &key, block::encode(&key, &block.keys)?)?;
        // When sled has it: whoever looks here first and there second must not miss it.
        self.open.remove(at);
        self.written += 1;
        let earliest = self.open.iter().map(|block| block.time).min();
        self.earliest.store(earliest.unwrap_or(NEVER), Ordering::Release);
        tables.changed()
    }

    /// From now on it is known what leads to which record, as far as [`list`](Self::list) is given all blocks there are.
    pub(crate) fn begin_list(&mut self) {
        let pending = self.open.iter().flat_map(|block| block::keys(&block.keys).map(|raw| hash(block.time, raw)));
        self.listed = Some(pending.collect());
    }

    /// A block of the expiry tree.
    pub(crate) fn list(&mut self, key: &[u8], bytes: &[u8]) -> Result<()> {
        let keys = block::decode(key, bytes)?;
        if let Some(listed) = &mut self.listed {
            listed.extend(keys.into_iter().map(|raw| hash(block::time_of(key), raw)));
        }
        Ok(())
    }

    /// Whether a record that expires then is in a block; yes while there is no list.
    pub(crate) fn lead_to(&self, expires: u64, raw: &[u8]) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.contains(&hash(block::time(expires), raw)))
    }

    pub(crate) fn end_list(&mut self) {
        self.listed = None;
    }
}

/// That two are the same is as good as impossible, and would only keep a record longer on disk.
fn hash(time: u64, raw: &[u8]) -> u64 {
    digest::entry("", &time.to_be_bytes(), raw)
}
