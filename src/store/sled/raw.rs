//! Finds the blocks in sled's file without sled, by their magic number and checksum.
//!
//! An open scans the file first and opens sled only if every block of the listed runs is there. So a damaged store is
//! left unchanged. A read-only engine reads all its blocks in this way.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ::sled::IVec;
use memchr::memmem::Finder;

use super::log::{self, Log, Unreadable};
use crate::store::format::block::{self, Kind, MAGIC, PREFIX, Place};
use crate::store::format::corrupt;
use crate::store::format::list::RunList;
use crate::types::error::{Error, Result};

/// The largest number of store ids that are considered in one file.
const MAX_IDS: usize = 16;

/// The facts in the journal with which the record store is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalSummary {
    pub(crate) store_id: [u8; 16],
    /// The frame of the last checkpoint: the runs should have everything up to it.
    pub(crate) checkpointed: u64,
    /// The last frame in the journal.
    pub(crate) last_frame: u64,
}

/// A whole block and its location in sled's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockAt {
    pub(crate) place: Place,
    /// True if the block is in no whole message of sled's log, so sled may not find it.
    is_loose: bool,
    offset: u64,
    len: usize,
}

/// The blocks and lists of one store that a scan found in sled's file.
#[derive(Debug)]
pub(crate) struct Found {
    dir: PathBuf,
    store_id: [u8; 16],
    file: File,
    path: PathBuf,
    pub(crate) unreadable: Unreadable,
    /// Sorted by place, without duplicates. Of several copies, one that sled finds is kept.
    blocks: Vec<BlockAt>,
    /// The newest first. The flag is true if sled may not find the list.
    lists: Vec<(RunList, bool)>,
    /// True if the file has a list of another store.
    has_foreign: bool,
    log: Log,
}

impl Found {
    /// Reads the file of the record store in this directory, and skips unreadable parts. Changes nothing.
    pub(crate) fn scan(dir: &Path, store: &[u8; 16]) -> Result<Self> {
        let path = dir.join("db");
        let missing = |cause: std::io::Error| match cause.kind() {
            std::io::ErrorKind::NotFound => corrupt(format!("the record store {} is missing: {cause}", path.display())),
            _ => Error::io("open", &path, &cause),
        };
        let file = File::open(&path).map_err(missing)?;
        let (magic, mut log) = (Finder::new(MAGIC), Log::default());
        let (mut blocks, mut lists, mut has_foreign) = (Vec::new(), Vec::new(), false);
        let unreadable = log::for_each_segment(&file, &path, |offset, bytes| {
            let whole = log.add(offset, bytes);
            let mut at = 0;
            while let Some(next) = bytes.get(at..).and_then(|rest| magic.find(rest)) {
                let start = at + next;
                at = start + 1;
                let rest = bytes.get(start..).unwrap_or_default();
                let Some(found) = block::find(store, rest) else {
                    has_foreign |= is_foreign_list(rest);
                    continue;
                };
                let len = PREFIX + found.content.len();
                // Do not search inside a block: a value of a client may look like one.
                at = start + len;
                let is_loose = at > whole;
                if found.kind == Kind::List {
                    let list = RunList::decode_content(found.content).filter(|list| list.store_id == *store);
                    lists.extend(list.map(|list| (list, is_loose)));
                } else {
                    blocks.push(BlockAt { place: found.place, is_loose, offset: offset + start as u64, len });
                }
            }
        })?;
        blocks.sort_unstable();
        blocks.dedup_by_key(|block| block.place);
        lists.sort_by_key(|(list, is_loose)| (std::cmp::Reverse(list.serial), *is_loose));
        lists.dedup_by_key(|(list, _)| list.serial);
        Ok(Self { dir: dir.to_owned(), store_id: *store, file, path, unreadable, blocks, lists, has_foreign, log })
    }

    /// Returns the newest list that has all its blocks. An older list is accepted only if the journal has all later
    /// commits. Otherwise returns `Corrupt`, or `Io` if the file has unreadable parts, which may become readable again.
    pub(crate) fn choose(&self, journal: &JournalSummary) -> Result<Chosen> {
        self.choose_readable(journal).map_err(|error| match &self.unreadable.error {
            Some(cause) => cause.wrap(cause.kind(), &error.to_string()),
            None => error,
        })
    }

    fn choose_readable(&self, journal: &JournalSummary) -> Result<Chosen> {
        let dir = self.dir.display();
        let Some((newest, _)) = self.lists.first() else {
            let why =
                if self.has_foreign { "belongs to another store than the journal" } else { "has no list of its runs" };
            return Err(corrupt(format!("the record store {dir} {why}: {}", self.path.display())));
        };
        let JournalSummary { checkpointed, last_frame, .. } = *journal;
        if newest.frame > last_frame {
            let frame = newest.frame;
            let message = format!("the journal beside {dir} ends at frame {last_frame}, the runs at frame {frame}");
            return Err(corrupt(message));
        }
        let (mut why, mut has_newer) = (None, false);
        for (list, is_loose) in &self.lists {
            if list.frame < checkpointed {
                let end = list.frame;
                why.get_or_insert_with(|| format!("ends at frame {end}, but had frame {checkpointed} before"));
                break;
            }
            let Some(place) = self.missing(list) else {
                // sled would find a newer list, which has lost a block.
                let is_loose = *is_loose || has_newer || self.blocks_of(list).any(|block| block.is_loose);
                return Ok(Chosen { list: list.clone(), is_loose });
            };
            has_newer |= !is_loose;
            why.get_or_insert_with(|| format!("has lost {place}"));
        }
        let (why, path) = (why.unwrap_or_default(), self.path.display());
        Err(corrupt(format!("the record store in {path} is damaged: it {why}; `salvage` rescues what can be read")))
    }

    /// Returns the place of the first missing block of the list's runs.
    fn missing(&self, list: &RunList) -> Option<Place> {
        places(list).find(|place| self.find(*place).is_none())
    }

    fn find(&self, place: Place) -> Option<&BlockAt> {
        let at = self.blocks.binary_search_by_key(&place, |block| block.place).ok()?;
        self.blocks.get(at)
    }

    /// Returns the blocks of a list that are there, sorted by place.
    pub(super) fn blocks_of<'a>(&'a self, list: &'a RunList) -> impl Iterator<Item = &'a BlockAt> {
        let mut runs: Vec<_> = list.runs.iter().collect();
        runs.sort_unstable_by_key(|run| run.id);
        runs.into_iter().flat_map(|run| {
            [run.entry_blocks(), run.index()].into_iter().flat_map(|numbers| {
                let place = |number| Place { run: run.id, number };
                let (first, end) = (place(numbers.start), place(numbers.end));
                let first = self.blocks.partition_point(|block| block.place < first);
                self.blocks.get(first..).unwrap_or_default().iter().take_while(move |block| block.place < end)
            })
        })
    }

    /// Returns true if sled, opened on these files, is certain to find the list and its blocks.
    pub(crate) fn is_proven(&self, chosen: &Chosen) -> Result<bool> {
        Ok(!chosen.is_loose && self.unreadable.error.is_none() && self.log.is_whole(&self.dir)?)
    }

    /// Returns a run number above those of all blocks in the file, and the highest serial number of a list.
    pub(super) fn next_numbers(&self) -> (u64, u64) {
        let run = self.blocks.last().map_or(1, |block| block.place.run.saturating_add(1));
        (run, self.lists.first().map_or(0, |(list, _)| list.serial))
    }

    pub(super) fn read(&self, block: &BlockAt) -> Result<Vec<u8>> {
        read(&self.file, &self.path, block)
    }

    /// Returns the total size of all blocks in bytes.
    fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.len).sum()
    }

    /// Returns the path of sled's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the newest list, even if blocks of it are missing.
    pub(crate) fn newest_list(&self) -> Option<&RunList> {
        self.lists.first().map(|(list, _)| list)
    }

    /// Returns the numbers of all runs that have a block in the file, in order.
    pub(crate) fn runs(&self) -> Vec<u64> {
        let mut runs: Vec<_> = self.blocks.iter().map(|block| block.place.run).collect();
        runs.dedup();
        runs
    }

    /// Returns the numbers of the blocks of a run in the file, in order.
    pub(crate) fn numbers(&self, run: u64) -> Vec<u32> {
        let first = self.blocks.partition_point(|block| block.place.run < run);
        let rest = self.blocks.get(first..).unwrap_or_default();
        rest.iter().take_while(|block| block.place.run == run).map(|block| block.place.number).collect()
    }

    /// Reads a block. Returns its kind and content, or `None` if it is missing or damaged.
    pub(crate) fn content(&self, place: Place) -> Result<Option<(Kind, Vec<u8>)>> {
        let Some(at) = self.find(place) else { return Ok(None) };
        let bytes = self.read(at)?;
        Ok(block::find(&self.store_id, &bytes).map(|found| (found.kind, found.content.to_vec())))
    }

    /// Returns the blocks of this list, for reads without sled.
    pub(crate) fn into_blocks(self, list: &RunList) -> RawBlocks {
        let blocks = self.blocks_of(list).copied().collect();
        RawBlocks { file: self.file, path: self.path, blocks }
    }
}

/// The list that an open uses.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) list: RunList,
    /// True if sled may not find the list or one of its blocks.
    is_loose: bool,
}

/// The blocks of the runs in a file that does not change.
#[derive(Debug)]
pub(crate) struct RawBlocks {
    file: File,
    path: PathBuf,
    /// Sorted by place.
    blocks: Vec<BlockAt>,
}

impl RawBlocks {
    pub(crate) fn read(&self, place: Place) -> Result<Option<IVec>> {
        let Ok(at) = self.blocks.binary_search_by_key(&place, |block| block.place) else { return Ok(None) };
        let Some(block) = self.blocks.get(at) else { return Ok(None) };
        read(&self.file, &self.path, block).map(|bytes| Some(bytes.into()))
    }
}

/// Returns the places of all blocks of a list.
fn places(list: &RunList) -> impl Iterator<Item = Place> {
    list.runs.iter().flat_map(|run| run.entry_blocks().chain(run.index()).map(|number| Place { run: run.id, number }))
}

fn read(file: &File, path: &Path, block: &BlockAt) -> Result<Vec<u8>> {
    let mut bytes = vec![0; block.len];
    file.read_exact_at(&mut bytes, block.offset).map_err(|cause| Error::io("read", path, &cause))?;
    Ok(bytes)
}

/// Returns true if these bytes begin with a whole list. The caller has excluded the lists of its own store.
fn is_foreign_list(bytes: &[u8]) -> bool {
    list_of(bytes).is_some()
}

/// Returns the list of any store that these bytes begin with, if it is whole.
fn list_of(bytes: &[u8]) -> Option<RunList> {
    let store = bytes.get(PREFIX..)?.first_chunk::<16>()?;
    let found = block::find(store, bytes).filter(|found| found.kind == Kind::List)?;
    RunList::decode_content(found.content)
}

/// Returns the id of the store that the file belongs to, for a salvage without a journal.
pub(crate) fn store_of(dir: &Path) -> Result<Option<[u8; 16]>> {
    let dir = current(dir)?;
    let path = dir.join("db");
    let file = File::open(&path).map_err(|cause| Error::io("open", &path, &cause))?;
    let (magic, mut ids) = (Finder::new(MAGIC), Vec::new());
    log::for_each_segment(&file, &path, |_, bytes| {
        for list in magic.find_iter(bytes).filter_map(|at| bytes.get(at..).and_then(list_of)) {
            if ids.len() < MAX_IDS && !ids.contains(&list.store_id) {
                ids.push(list.store_id);
            }
        }
    })?;
    if ids.len() < 2 {
        return Ok(ids.first().copied());
    }
    // A client may have stored bytes that look like a list. The real store has more bytes of blocks.
    let sized = ids.into_iter().map(|id| Ok((Found::scan(&dir, &id)?.bytes(), id)));
    Ok(sized.collect::<Result<Vec<_>>>()?.into_iter().max().map(|(_, id)| id))
}

/// Returns the directory of sled's files. A crash during an exchange may have left them under another name.
pub(crate) fn current(dir: &Path) -> Result<PathBuf> {
    super::exchange::current(dir)
}
