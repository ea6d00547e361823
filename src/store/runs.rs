//! The set of runs, and lookups in them.
//!
//! A run is written once and never changed. If two runs have an entry for a key, the entry in the newer run counts. The
//! list of runs is replaced as a whole. A reader holds the list with which it began, and the blocks of that list are
//! not deleted before it is done.

pub(crate) mod build;
pub(crate) mod flush;
pub(crate) mod merge;
pub(crate) mod unfinished;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::sled::IVec;
use parking_lot::RwLock;

use super::format::block::{self, CONTENT, Index, Kind, Place, take_entry};
use super::format::corrupt;
use super::format::filter::Probe;
use super::format::frame::{Content, StoreKey};
use super::format::list::{Contents, RunInfo, Start};
use super::format::record;
use crate::store::sled::tables::Tables;
use crate::types::error::{Error, Result};
use crate::types::value::Value;

/// The parts of a record that a read needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    All,
    /// All but the outcome.
    WithoutOutcome,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) info: RunInfo,
    /// Shared by the versions of a run that a merge trims.
    pub(crate) index: Arc<Index>,
    /// True if a merge could not read one of its blocks.
    damaged: AtomicBool,
}

/// Runs, the oldest first.
pub(crate) type RunSet = Arc<Vec<Arc<Run>>>;

/// The listed runs.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    current: RwLock<RunSet>,
    /// For tests: a reader of each list that is published.
    #[cfg(test)]
    pub(crate) readers: parking_lot::Mutex<Option<Vec<RunSet>>>,
}

impl Runs {
    pub(crate) fn current(&self) -> RunSet {
        Arc::clone(&self.current.read())
    }

    pub(crate) fn len(&self) -> usize {
        self.current.read().len()
    }

    pub(crate) fn publish(&self, runs: Vec<Arc<Run>>) {
        let runs = Arc::new(runs);
        #[cfg(test)]
        self.readers.lock().iter_mut().for_each(|readers| readers.push(Arc::clone(&runs)));
        let before = std::mem::replace(&mut *self.current.write(), runs);
        drop(before);
    }

    /// Returns the content of a key from the runs, if one of them has it.
    pub(crate) fn read(&self, tables: &Tables, key: &StoreKey, load: Load) -> Result<Option<Content>> {
        let (runs, probe) = (self.current(), Probe::of(key.bytes()));
        for run in runs.iter().rev() {
            match run.find(tables, key.bytes(), &probe)? {
                Some(Some(found)) => return found.content(tables, key, load).map(Some),
                Some(None) => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }
}

/// Returns true if one of these runs has an entry for the key.
pub(crate) fn have<'a>(tables: &Tables, runs: impl Iterator<Item = &'a Arc<Run>>, key: &StoreKey) -> Result<bool> {
    let probe = Probe::of(key.bytes());
    for run in runs {
        if run.find(tables, key.bytes(), &probe)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Runs {
    /// Returns the first keys at or after `from` and before `end` that are not removed.
    pub(crate) fn keys(
        &self,
        tables: &Tables,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<Vec<StoreKey>> {
        let (runs, mut keys) = (self.current(), Vec::new());
        let mut merged = Merged::new(tables, &runs, from.bytes())?;
        while keys.len() < limit {
            let Some(item) = merged.next(tables)? else { break };
            if end.is_some_and(|end| item.key >= *end) {
                break;
            }
            keys.extend(item.value.is_some().then_some(item.key));
        }
        Ok(keys)
    }
}

/// A block as read from sled. `content` is the part after its header.
#[derive(Clone, Debug)]
struct Block {
    bytes: IVec,
    start: usize,
}

impl Block {
    fn content(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

/// A value in a run.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    run: u64,
    /// The block in which it begins.
    number: u32,
    block: Block,
    /// The start and end of its part in the content of that block.
    here: (usize, usize),
    len: usize,
}

impl Stored {
    fn here(&self) -> &[u8] {
        self.block.content().get(self.here.0..self.here.1).unwrap_or_default()
    }

    /// Returns its first `wanted` bytes, or all if it is shorter.
    pub(crate) fn load(&self, tables: &Tables, wanted: usize) -> Result<Cow<'_, [u8]>> {
        let wanted = wanted.min(self.len);
        if let Some(here) = self.here().get(..wanted) {
            return Ok(here.into());
        }
        let mut bytes = Vec::with_capacity(wanted);
        bytes.extend_from_slice(self.here());
        let mut next = self.number;
        while bytes.len() < wanted {
            next = next.saturating_add(1);
            let block = load_block(tables, self.run, next, Kind::Continued)?;
            bytes.extend_from_slice(block.content());
            if block.content().is_empty() || bytes.len() > self.len {
                return Err(corrupt(format!("block {next} of run {} is too short or too long", self.run)));
            }
        }
        bytes.truncate(wanted);
        Ok(bytes.into())
    }

    pub(crate) fn load_all(&self, tables: &Tables) -> Result<Cow<'_, [u8]>> {
        self.load(tables, self.len)
    }

    pub(crate) fn content(&self, tables: &Tables, key: &StoreKey, load: Load) -> Result<Content> {
        if !key.is_record() {
            return Ok(Content::Row(Value::from(&*self.load_all(tables)?)));
        }
        let wanted = match load {
            Load::All => self.len,
            Load::WithoutOutcome => record::decode_head(self.here()).map_or(self.len, |head| head.len),
        };
        let mut stored = record::decode(&self.load(tables, wanted)?)
            .map_err(|error| error.wrap(error.kind(), &key.bytes().escape_ascii().to_string()))?;
        if load == Load::WithoutOutcome {
            stored.outcome = None;
        }
        Ok(Content::Record(stored.into()))
    }
}

fn load_block(tables: &Tables, run: u64, number: u32, kind: Kind) -> Result<Block> {
    let place = Place { run, number };
    let bytes = tables.block(place)?.ok_or_else(|| corrupt(format!("{place} is missing")))?;
    let start = bytes.len() - block::open(tables.store_id(), place, kind, &bytes)?.len();
    Ok(Block { bytes, start })
}

impl Run {
    pub(crate) fn new(info: RunInfo, index: Index) -> Self {
        Self { info, index: Arc::new(index), damaged: AtomicBool::new(false) }
    }

    /// Returns this run without the entries before the start of `info`.
    fn trimmed(&self, info: RunInfo) -> Self {
        Self { info, index: Arc::clone(&self.index), damaged: AtomicBool::new(self.is_damaged()) }
    }

    /// Returns the position of its first block that counts, among those that begin with an entry.
    fn start(&self) -> usize {
        self.index.first_keys.position(self.info.start.block)
    }

    /// Reads a block that begins with an entry, if it counts. Also returns its number, and the offset of the first
    /// entry that counts.
    fn entry_block(&self, tables: &Tables, nth: usize) -> Result<Option<(u32, Block, usize)>> {
        let start = self.info.start;
        let Some(number) = self.index.first_keys.block(nth).filter(|number| *number >= start.block) else {
            return Ok(None);
        };
        let block = load_block(tables, self.info.id, number, Kind::Entries)?;
        let at = if number == start.block { usize::try_from(start.at).unwrap_or(usize::MAX) } else { 0 };
        Ok(Some((number, block, at)))
    }

    /// True if one of its blocks could not be read. Then it is not rewritten, and each call that needs the block
    /// returns the error.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(crate) fn set_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// Opens a run by reading its index.
    pub(crate) fn open(tables: &Tables, info: RunInfo) -> Result<Self> {
        let mut bytes = Vec::new();
        for number in info.index() {
            bytes.extend_from_slice(load_block(tables, info.id, number, Kind::Index)?.content());
        }
        let malformed = || corrupt(format!("the index of run {} is malformed", info.id));
        Ok(Self::new(info, Index::decode(&bytes).ok_or_else(malformed)?))
    }

    pub(crate) fn may_contain(&self, probe: &Probe) -> bool {
        self.index.filter.may_contain(probe)
    }

    /// Returns true if a key of its index is among the entries that count.
    pub(crate) fn has(&self, tables: &Tables, key: &StoreKey) -> Result<bool> {
        Ok(self.info.is_whole() || self.find(tables, key.bytes(), &Probe::of(key.bytes()))?.is_some())
    }

    /// Returns the entry of the run for a key: none, a removal, or a value.
    #[expect(clippy::option_option, reason = "nothing, removed, or a value")]
    pub(crate) fn find(&self, tables: &Tables, key: &[u8], probe: &Probe) -> Result<Option<Option<Stored>>> {
        if !self.may_contain(probe) {
            return Ok(None);
        }
        let nth = self.index.first_keys.find(key);
        let Some((number, block, start)) = self.entry_block(tables, nth)? else { return Ok(None) };
        let mut rest = block.content().get(start..).unwrap_or_default();
        while let Some(entry) = take_entry(&mut rest)? {
            if entry.key >= key {
                let is_same = entry.key == key;
                let place = entry.value.map(|value| (value.len, value.here.len()));
                let end = block.content().len() - rest.len();
                let stored = |(len, here)| Stored {
                    run: self.info.id,
                    number,
                    here: (end - here, end),
                    len,
                    block: block.clone(),
                };
                return Ok(is_same.then(|| place.map(stored)));
            }
        }
        Ok(None)
    }
}

/// An entry of a run.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: StoreKey,
    /// `None` if the key was removed.
    pub(crate) value: Option<Stored>,
}

/// Reads the entries of a run in order.
#[derive(Debug)]
struct Cursor {
    run: Arc<Run>,
    /// The next block that begins with an entry, by its position in the index's list of first keys.
    next: usize,
    block: Option<(u32, Block)>,
    /// The offset up to which the block was read.
    at: usize,
    head: Option<Item>,
    /// The place of the head.
    head_at: Start,
    /// The number of entries before the head that counted.
    passed: u64,
}

impl Cursor {
    /// Starts at the first key at or after `from`.
    fn new(tables: &Tables, run: Arc<Run>, from: &[u8]) -> Result<Self> {
        let next = run.index.first_keys.find(from).max(run.start());
        let mut cursor = Self { run, next, block: None, at: 0, head: None, head_at: Start::default(), passed: 0 };
        cursor.advance(tables)?;
        while cursor.head.as_ref().is_some_and(|item| item.key.bytes() < from) {
            cursor.advance(tables)?;
        }
        Ok(cursor)
    }

    fn advance(&mut self, tables: &Tables) -> Result<Option<Item>> {
        let next = self.read(tables)?;
        let head = std::mem::replace(&mut self.head, next);
        self.passed += u64::from(head.is_some());
        if let (Some(head), Some(next)) = (&head, &self.head) {
            if head.key >= next.key {
                return Err(corrupt(format!("the entries of run {} are not in order", self.run.info.id)));
            }
        }
        Ok(head)
    }

    fn read(&mut self, tables: &Tables) -> Result<Option<Item>> {
        loop {
            if let Some((number, block)) = &self.block {
                let mut rest = block.content().get(self.at..).unwrap_or_default();
                if let Some(entry) = take_entry(&mut rest)? {
                    self.head_at = Start { block: *number, at: u32::try_from(self.at).unwrap_or(u32::MAX) };
                    self.at = block.content().len() - rest.len();
                    let (run, number, block, end) = (self.run.info.id, *number, block.clone(), self.at);
                    let stored = entry.value.map(|value| (value.len, (end - value.here.len(), end)));
                    let value = stored.map(|(len, here)| Stored { run, number, block: block.clone(), here, len });
                    return Ok(Some(Item { key: StoreKey::from_bytes(entry.key), value }));
                }
            }
            let Some((number, block, start)) = self.run.entry_block(tables, self.next)? else { return Ok(None) };
            self.block = Some((number, block));
            (self.next, self.at) = (self.next + 1, start);
        }
    }

    /// Returns the run without the entries before the head, and continues on that.
    fn trim(&mut self) -> Arc<Run> {
        let RunInfo { entries, .. } = self.run.info;
        let info = RunInfo { start: self.head_at, entries: entries.saturating_sub(self.passed), ..self.run.info };
        self.passed = 0;
        self.run = Arc::new(self.run.trimmed(info));
        Arc::clone(&self.run)
    }
}

/// Reads several runs together, in key order. Returns the newest entry of each key.
#[derive(Debug, Default)]
pub(crate) struct Merged(Vec<Cursor>);

impl Merged {
    pub(crate) fn new(tables: &Tables, runs: &[Arc<Run>], from: &[u8]) -> Result<Self> {
        // The newest run first, so that its entry comes first among equal keys.
        let cursors = runs.iter().rev().map(|run| Cursor::new(tables, Arc::clone(run), from));
        Ok(Self(cursors.collect::<Result<_>>()?))
    }

    /// Returns the key of the next entry.
    pub(crate) fn key(&self) -> Option<&StoreKey> {
        self.0.iter().filter_map(|cursor| cursor.head.as_ref()).map(|item| &item.key).min()
    }

    /// Returns the runs without the entries that were returned so far, the oldest first. Leaves out runs that have no
    /// other entry. Call it only if the reading started at the first entry.
    pub(crate) fn trim(&mut self) -> Vec<Arc<Run>> {
        // A cursor without an entry would keep its run from being deleted.
        self.0.retain(|cursor| cursor.head.is_some());
        self.0.iter_mut().rev().map(Cursor::trim).collect()
    }

    pub(crate) fn next(&mut self, tables: &Tables) -> Result<Option<Item>> {
        let Some(least) = self.key().cloned() else { return Ok(None) };
        let mut newest = None;
        for cursor in &mut self.0 {
            if cursor.head.as_ref().is_some_and(|item| item.key == least) {
                let item = cursor.advance(tables)?;
                newest = newest.or(item);
            }
        }
        Ok(newest)
    }
}

impl Run {
    /// Reads every block and passes each problem to `found`. Stops if `found` returns an error.
    pub(crate) fn check(&self, tables: &Tables, found: &mut dyn FnMut(Error) -> Result<()>) -> Result<()> {
        let (mut entries, mut blocks, mut last) = (0_u64, 0_u64, Vec::new());
        let (mut contents, mut is_sound) = (Contents::default(), true);
        for nth in self.start()..self.index.first_keys.len() {
            match self.check_block(tables, nth, &mut last, &mut contents) {
                Ok((some, continued)) => (entries, blocks) = (entries + some, blocks + 1 + continued),
                Err(error) => {
                    is_sound = false;
                    found(error)?;
                }
            }
        }
        let info = &self.info;
        if is_sound && (entries != info.entries || blocks != info.live_blocks()) {
            let (id, listed, in_blocks) = (info.id, info.entries, info.live_blocks());
            let message =
                format!("run {id} has {entries} entries in {blocks} blocks, the list says {listed} in {in_blocks}");
            found(corrupt(message))?;
        } else if is_sound && info.is_whole() && contents != info.contents {
            let text = |Contents { all_expired, finished, outcome_bytes }| {
                format!(
                    "{finished} finished records with {outcome_bytes} bytes of outcomes, all expired at {all_expired}"
                )
            };
            let (id, listed) = (info.id, text(info.contents));
            found(corrupt(format!("run {id} has {}, the list says {listed}", text(contents))))?;
        }
        match Self::open(tables, self.info) {
            Ok(run) if *run.index == *self.index => Ok(()),
            Ok(_) => found(corrupt(format!("the index of run {} has changed", info.id))),
            Err(error) => found(error),
        }
    }

    /// Returns the number of entries in a block, and the number of blocks in which its last value continues. Adds the
    /// entries to `contents`.
    fn check_block(
        &self,
        tables: &Tables,
        nth: usize,
        last: &mut Vec<u8>,
        contents: &mut Contents,
    ) -> Result<(u64, u64)> {
        let id = self.info.id;
        let Some((number, block, start)) = self.entry_block(tables, nth)? else { return Ok((0, 0)) };
        let (mut rest, mut entries, mut continued) = (block.content().get(start..).unwrap_or_default(), 0, 0);
        while let Some(entry) = take_entry(&mut rest)? {
            let named = || entry.key.escape_ascii();
            if entries == 0 && self.index.first_keys.find(entry.key) != nth || entry.key <= last.as_slice() {
                return Err(corrupt(format!("block {number} of run {id} is not in order at {}", named())));
            }
            if !self.may_contain(&Probe::of(entry.key)) {
                return Err(corrupt(format!("{} is in run {id} and not in its filter", named())));
            }
            if let Some(value) = entry.value {
                let end = block.content().len() - rest.len();
                let here = (end - value.here.len(), end);
                let stored = Stored { run: id, number, block: block.clone(), here, len: value.len };
                let key = StoreKey::from_bytes(entry.key);
                stored.content(tables, &key, Load::All)?;
                contents.add(record::decode_head(value.here).filter(|_| key.is_record()).as_ref());
                continued = (value.len - value.here.len()).div_ceil(CONTENT) as u64;
            }
            entry.key.clone_into(last);
            entries += 1;
        }
        Ok((entries, continued))
    }
}
