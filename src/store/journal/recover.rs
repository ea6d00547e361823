//! Reads what a journal holds, and tells a torn tail from damage.
//!
//! A group at the end that is bad or missing was promised to nobody and is cut, unless something proves that it was durable:
//! a later group, a later segment, a seal. Then it is damage, and nothing is served. What lies before the last checkpoint is
//! in sled, and does not matter here.

use std::path::Path;
use std::sync::Arc;

use super::pool::Pool;
use super::segment::{Reader, SegmentFile};
use super::writer::{Chain, Tail};
use crate::store::files::{self, Dir};
use crate::store::format::corrupt;
use crate::store::format::frame::Frame;
use crate::store::format::segment::{Found, SECTOR, SegmentHeader};
use crate::store::journal::scan::{GroupAt, ScanEnd, SegmentScan, damaged, missing};
use crate::types::clock::Anchor;
use crate::types::error::{Error, ErrorKind, Result};

const NO_SEGMENT: &str = "the journal has no segment";

/// What counts of a journal, and is sound.
#[derive(Debug)]
pub(crate) struct Recovered {
    segments: Vec<Surveyed>,
    /// Files that hold nothing that counts: spares, and segments that were free to be written over.
    unneeded: Vec<SegmentFile>,
    pub(crate) store_id: [u8; 16],
    /// sled has everything up to this frame, or should.
    pub(crate) checkpointed: u64,
    /// The highest frame number that anything names.
    pub(crate) last_frame: u64,
    pub(crate) anchor: Anchor,
    /// The last thing it says is that it was closed.
    pub(crate) clean: bool,
    /// Bytes of a group that was cut.
    pub(crate) torn_bytes: u64,
    pub(crate) chain: Chain,
    pub(crate) pool: Arc<Pool>,
}

#[derive(Debug)]
struct Surveyed {
    file: SegmentFile,
    header: SegmentHeader,
    walk: SegmentScan,
}

impl Surveyed {
    /// An empty one counts as full of what was before it: freed early, it would leave a gap in the run.
    fn last_frame(&self) -> u64 {
        let last = self.walk.groups.iter().rev().find(|group| group.header.frames > 0);
        last.map_or(0, GroupAt::last_frame).max(self.header.first_frame.saturating_sub(1))
    }
}

impl Recovered {
    /// Gives every frame after the last checkpoint, in order.
    pub(crate) fn replay(&self, f: &mut dyn FnMut(u64, Frame) -> Result<()>) -> Result<()> {
        for segment in &self.segments {
            let mut reader = Reader::new(&segment.file);
            for group in segment.walk.groups.iter().filter(|group| group.last_frame() > self.checkpointed) {
                for (number, frame) in group.frames(&mut reader, &segment.header)? {
                    if number > self.checkpointed {
                        f(number, frame)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The last segment's end, where it is to be sealed. The others are the pool's: free up to the last checkpoint, or
    /// waiting for the next.
    pub(crate) fn into_tail(mut self) -> Result<Tail> {
        let Some(last) = self.segments.pop() else { return Err(corrupt(NO_SEGMENT)) };
        for segment in self.segments {
            self.pool.adopt(segment.last_frame(), segment.file);
        }
        for file in self.unneeded {
            self.pool.adopt(0, file);
        }
        self.pool.release(self.checkpointed);
        let (salt, offset, last_frame) = (last.header.salt, last.walk.end, last.last_frame());
        Ok(Tail { file: last.file, salt, offset, last_frame })
    }
}

/// Reads and syncs what there is; changes nothing.
pub(crate) fn recover(dir: &Path, first_size: u64) -> Result<Recovered> {
    if !files::is_dir(dir) {
        return Err(corrupt(format!("the journal {} is missing", dir.display())));
    }
    // A process that was killed may have made files, and not their entries durable; they will be written to.
    let opened = Dir::open(dir)?;
    opened.sync()?;
    let (found, mut unneeded, next_name) = open_all(&opened)?;
    let store_id = one_store(&found)?;
    let files = found.len() as u64 + unneeded.len() as u64;
    let run = last_run(dir, found, &mut unneeded)?;
    let pool = Arc::new(Pool::new(opened, first_size, next_name, files));
    survey(dir, store_id, run, unneeded, pool)
}

type Headed = (SegmentHeader, SegmentFile);

/// Every segment and every spare, and the next free name.
fn open_all(dir: &Dir) -> Result<(Vec<Headed>, Vec<SegmentFile>, u64)> {
    let (mut found, mut spares, mut next_name) = (Vec::new(), Vec::new(), 1);
    for path in dir.names()? {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        next_name = next_name.max(name.unwrap_or(0).saturating_add(1));
        let file = SegmentFile::open(dir, &path)?;
        // What the page cache shows may never have reached the disk; from here on it has.
        file.sync()?;
        match SegmentHeader::decode(&head(&file)?) {
            Found::Spare => spares.push(file),
            Found::Damaged => return Err(corrupt(format!("the header of {} is damaged", file.path.display()))),
            Found::NewerFormat(version) => {
                let path = file.path.display();
                let message = format!("{path} has format {version}, which this version does not know");
                return Err(Error::new(ErrorKind::UnsupportedFormat, message));
            }
            Found::Segment(header) => {
                check_size(&header, &file)?;
                found.push((header, file));
            }
        }
    }
    Ok((found, spares, next_name))
}

pub(super) fn head(file: &SegmentFile) -> Result<Vec<u8>> {
    let len = usize::try_from(file.size).map_or(SECTOR, |size| size.min(SECTOR));
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

pub(super) fn check_size(header: &SegmentHeader, file: &SegmentFile) -> Result<()> {
    if header.size != file.size {
        let (path, is, was) = (file.path.display(), file.size, header.size);
        return Err(corrupt(format!("{path} is {is} bytes long and should be {was}")));
    }
    Ok(())
}

/// The store that all segments belong to.
fn one_store(found: &[Headed]) -> Result<[u8; 16]> {
    let mut all = found.iter();
    let Some((first, file)) = all.next() else { return Ok([0; 16]) };
    match all.find(|(header, _)| header.store_id != first.store_id) {
        None => Ok(first.store_id),
        Some((_, other)) => {
            let (a, b) = (file.path.display(), other.path.display());
            Err(corrupt(format!("one of {a} and {b} belongs to another store")))
        }
    }
}

/// The segments that follow each other without a gap up to the last. Older ones were free to be written over at any time.
fn last_run(dir: &Path, mut found: Vec<Headed>, older: &mut Vec<SegmentFile>) -> Result<Vec<Headed>> {
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    let mut run: Vec<Headed> = Vec::new();
    for (header, file) in found {
        match run.last() {
            Some((next, other)) if next.number == header.number => {
                let (a, b) = (file.path.display(), other.path.display());
                return Err(corrupt(format!("{a} and {b} are the same journal segment")));
            }
            // From the first gap on: `run` does not grow any more, so none behind it follows.
            Some((next, _)) if next.number != header.number.saturating_add(1) => older.push(file),
            _ => run.push((header, file)),
        }
    }
    if run.is_empty() {
        return Err(corrupt(format!("the journal {} has no segment", dir.display())));
    }
    run.reverse();
    Ok(run)
}

/// From the last segment back to the one that holds the first frame to be replayed.
fn survey(
    dir: &Path,
    store_id: [u8; 16],
    run: Vec<Headed>,
    mut unneeded: Vec<SegmentFile>,
    pool: Arc<Pool>,
) -> Result<Recovered> {
    let mut survey = Survey::default();
    for (header, file) in run.into_iter().rev() {
        if survey.is_complete() {
            unneeded.push(file);
        } else {
            survey.add(header, file)?;
        }
    }
    let Survey { mut segments, checkpointed } = survey;
    let Some(checkpointed) = checkpointed else {
        return Err(corrupt(format!("the journal {} has lost its beginning", dir.display())));
    };
    let first = segments.last().map_or(0, |segment| segment.header.first_frame);
    if checkpointed.saturating_add(1) < first {
        return Err(corrupt(format!("the journal {} misses the segments before frame {first}", dir.display())));
    }
    let anchor = segments.iter().find_map(|segment| segment.walk.groups.last()).map(|group| group.header.anchor);
    let last_frame = segments.iter().map(Surveyed::last_frame).max().unwrap_or(0);
    segments.reverse();
    let Some(Surveyed { header, walk, .. }) = segments.last() else { return Err(corrupt(NO_SEGMENT)) };
    let SegmentScan { next_group, previous, closed, torn_bytes, .. } = *walk;
    let chain = Chain { segment: header.number, group: next_group.saturating_sub(1), previous };
    Ok(Recovered {
        segments,
        unneeded,
        store_id,
        checkpointed,
        last_frame,
        anchor: anchor.unwrap_or_default(),
        clean: closed && torn_bytes == 0,
        torn_bytes,
        chain,
        pool,
    })
}

#[derive(Default)]
struct Survey {
    /// The last first.
    segments: Vec<Surveyed>,
    checkpointed: Option<u64>,
}

impl Survey {
    /// Every frame that is to be replayed was found.
    fn is_complete(&self) -> bool {
        let first = self.segments.last().map_or(u64::MAX, |segment| segment.header.first_frame);
        self.checkpointed.is_some_and(|checkpointed| checkpointed.saturating_add(1) >= first)
    }

    fn add(&mut self, header: SegmentHeader, file: SegmentFile) -> Result<()> {
        let mut reader = Reader::new(&file);
        let walk = self.follow(&header, &mut reader)?;
        for group in walk.groups.iter().rev() {
            if self.checkpointed.is_some_and(|checkpointed| group.last_frame() <= checkpointed) {
                break;
            }
            for (_, frame) in group.frames(&mut reader, &header)?.into_iter().rev() {
                if let Frame::Checkpointed(frame) = frame {
                    self.checkpointed.get_or_insert(frame);
                }
            }
        }
        self.segments.push(Surveyed { file, header, walk });
        Ok(())
    }

    /// The groups of a segment that is needed to its end.
    fn follow(&self, header: &SegmentHeader, reader: &mut Reader<'_>) -> Result<SegmentScan> {
        let next = self.segments.last();
        let mut walk = SegmentScan::new(reader, header, next.map(|next| &next.header))?;
        let Some(next) = next else {
            if let ScanEnd::Sealed(number) = walk.stop {
                return Err(reader.file.corrupt(missing(number)));
            }
            walk.settle_end(reader, header)?;
            return Ok(walk);
        };
        let first = &next.header;
        if !matches!(walk.stop, ScanEnd::Complete) || first.previous != walk.previous {
            return Err(reader.file.corrupt(format!("damaged before frame {}", first.first_frame)));
        }
        // The seal was written behind the first group of the next segment.
        if next.walk.groups.is_empty() && walk.sealed_through >= first.first_group {
            return Err(next.file.corrupt(damaged(first.first_group)));
        }
        Ok(walk)
    }
}
