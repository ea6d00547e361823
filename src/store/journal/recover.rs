//! Reads a journal at open, and tells a torn write from damage.
//!
//! A bad or missing group at the end counts as a torn write and is cut off. But if a later group, a later segment or a
//! seal proves that the group had been durable, the journal is damaged and the open fails. Groups before the last
//! checkpoint are not needed, because their changes are in runs.

use std::path::Path;
use std::sync::Arc;

use super::pool::Pool;
use super::segment::{Reader, SegmentFile};
use super::writer::{Chain, Tail};
use crate::store::files::{self, Dir};
use crate::store::format::frame::Frame;
use crate::store::format::segment::{FileKind, SECTOR, SegmentHeader};
use crate::store::format::{VERSION, corrupt};
use crate::store::journal::scan::{GroupAt, ScanEnd, SegmentScan, damaged, missing};
use crate::store::sled::raw::JournalSummary;
use crate::types::clock::Anchor;
use crate::types::error::{Error, ErrorKind, Result};

const NO_SEGMENT: &str = "the journal has no segment";

/// The valid content of a journal.
#[derive(Debug)]
pub(crate) struct Recovered {
    segments: Vec<Surveyed>,
    /// Files that are not needed: spares, and segments that were free to be overwritten.
    unneeded: Vec<SegmentFile>,
    pub(crate) store_id: [u8; 16],
    /// The frame of the last checkpoint.
    pub(crate) checkpointed: u64,
    /// The highest number of a frame in the journal.
    pub(crate) last_frame: u64,
    pub(crate) anchor: Anchor,
    /// True if the last frame says that the journal was closed.
    pub(crate) clean: bool,
    /// The size in bytes of a group that was cut off.
    pub(crate) torn_bytes: u64,
    pub(crate) chain: Chain,
    pub(crate) pool: Arc<Pool>,
}

#[derive(Debug)]
struct Surveyed {
    file: SegmentFile,
    header: SegmentHeader,
    scan: SegmentScan,
}

impl Surveyed {
    /// Returns the number of the last frame. For a segment without frames, returns the number before its first one: if
    /// it were freed before the segments with those frames, it would leave a gap.
    fn last_frame(&self) -> u64 {
        let last = self.scan.groups.iter().rev().find(|group| group.header.frames > 0);
        last.map_or(0, GroupAt::last_frame).max(self.header.first_frame.saturating_sub(1))
    }
}

impl Recovered {
    /// Returns the facts that the record store must agree with.
    pub(crate) fn summary(&self) -> JournalSummary {
        JournalSummary { store_id: self.store_id, checkpointed: self.checkpointed, last_frame: self.last_frame }
    }

    /// Passes every frame after the last checkpoint to `f`, in order.
    pub(crate) fn replay(&self, f: &mut dyn FnMut(u64, Frame) -> Result<()>) -> Result<()> {
        for segment in &self.segments {
            let mut reader = Reader::new(&segment.file);
            for group in segment.scan.groups.iter().filter(|group| group.last_frame() > self.checkpointed) {
                for (number, frame) in group.frames(&mut reader, &segment.header)? {
                    if number > self.checkpointed {
                        f(number, frame)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the end of the last segment, where its seal is written. The pool takes the other segments: they are free
    /// up to the last checkpoint, or wait for the next one.
    pub(crate) fn into_tail(mut self) -> Result<Tail> {
        let Some(last) = self.segments.pop() else { return Err(corrupt(NO_SEGMENT)) };
        for segment in self.segments {
            self.pool.adopt(segment.last_frame(), segment.file);
        }
        for file in self.unneeded {
            self.pool.adopt(0, file);
        }
        self.pool.release(self.checkpointed);
        let (salt, offset, last_frame) = (last.header.salt, last.scan.end, last.last_frame());
        Ok(Tail { file: last.file, salt, offset, last_frame })
    }
}

/// Reads and syncs the files of the journal. Changes nothing.
pub(crate) fn recover(dir: &Path, first_size: u64) -> Result<Recovered> {
    check_there(dir)?;
    let opened = Dir::open(dir)?;
    // A process that was killed may have created files whose directory entries are not durable. This open will write
    // to such files.
    opened.sync()?;
    recover_in(dir, opened, first_size)
}

/// Reads the files of a journal that is not written to.
pub(crate) fn recover_read_only(dir: &Path) -> Result<Recovered> {
    check_there(dir)?;
    recover_in(dir, Dir::open_read_only(dir)?, 0)
}

fn check_there(dir: &Path) -> Result<()> {
    if files::is_dir(dir)? { Ok(()) } else { Err(corrupt(format!("the journal {} is missing", dir.display()))) }
}

fn recover_in(dir: &Path, opened: Dir, first_size: u64) -> Result<Recovered> {
    let (found, mut unneeded, next_name) = open_all(&opened)?;
    let store_id = one_store(&found)?;
    let files = found.len() as u64 + unneeded.len() as u64;
    let segments = last_segments(dir, found, &mut unneeded)?;
    let pool = Arc::new(Pool::new(opened, first_size, next_name, files));
    survey(dir, store_id, segments, unneeded, pool)
}

type Headed = (SegmentHeader, SegmentFile);

/// Returns every segment and every spare, and the next free name.
fn open_all(dir: &Dir) -> Result<(Vec<Headed>, Vec<SegmentFile>, u64)> {
    let (mut found, mut spares, mut next_name) = (Vec::new(), Vec::new(), 1);
    for path in dir.names()? {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        next_name = next_name.max(name.unwrap_or(0).saturating_add(1));
        let file = SegmentFile::open(dir, &path)?;
        if !dir.is_read_only() {
            // The page cache may show data that never reached the disk. After this sync the disk has it.
            file.sync()?;
        }
        match SegmentHeader::decode(&head(&file)?) {
            FileKind::Spare => spares.push(file),
            FileKind::Damaged => return Err(corrupt(format!("the header of {} is damaged", file.path.display()))),
            FileKind::OtherFormat(version) => return Err(unsupported(&file.path, version)),
            FileKind::Segment(header) => {
                check_size(&header, &file)?;
                found.push((header, file));
            }
        }
    }
    Ok((found, spares, next_name))
}

pub(super) fn unsupported(path: &Path, version: u32) -> Error {
    let message = format!("{} has format {version}, and this version reads {VERSION}", path.display());
    Error::new(ErrorKind::UnsupportedFormat, message)
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

/// Returns the store to which all segments belong.
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

/// Returns the last segments, which follow each other without a gap. Older segments were free and may have been
/// overwritten.
fn last_segments(dir: &Path, mut found: Vec<Headed>, older: &mut Vec<SegmentFile>) -> Result<Vec<Headed>> {
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    let mut last: Vec<Headed> = Vec::new();
    for (header, file) in found {
        match last.last() {
            Some((next, other)) if next.number == header.number => {
                let (a, b) = (file.path.display(), other.path.display());
                return Err(corrupt(format!("{a} and {b} are the same journal segment")));
            }
            // After the first gap `last` does not grow, so every earlier segment is skipped too.
            Some((next, _)) if next.number != header.number.saturating_add(1) => older.push(file),
            _ => last.push((header, file)),
        }
    }
    if last.is_empty() {
        return Err(corrupt(format!("the journal {} has no segment", dir.display())));
    }
    last.reverse();
    Ok(last)
}

/// Reads the segments from the last one back to the one that holds the first frame to replay.
fn survey(
    dir: &Path,
    store_id: [u8; 16],
    last: Vec<Headed>,
    mut unneeded: Vec<SegmentFile>,
    pool: Arc<Pool>,
) -> Result<Recovered> {
    let mut survey = Survey::default();
    for (header, file) in last.into_iter().rev() {
        if survey.is_complete() {
            unneeded.push(file);
        } else {
            survey.add(header, file)?;
        }
    }
    let Survey { mut segments, checkpointed } = survey;
    let Some(checkpointed) = checkpointed else {
        return Err(corrupt(format!("the journal {} has no checkpoint", dir.display())));
    };
    let first = segments.last().map_or(0, |segment| segment.header.first_frame);
    if checkpointed.saturating_add(1) < first {
        return Err(corrupt(format!("the journal {} misses the segments before frame {first}", dir.display())));
    }
    let anchor = segments.iter().find_map(|segment| segment.scan.groups.last()).map(|group| group.header.anchor);
    let last_frame = segments.iter().map(Surveyed::last_frame).max().unwrap_or(0);
    segments.reverse();
    let Some(Surveyed { header, scan, .. }) = segments.last() else { return Err(corrupt(NO_SEGMENT)) };
    let SegmentScan { next_group, previous, closed, torn_bytes, .. } = *scan;
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
    /// The segments, the last one first.
    segments: Vec<Surveyed>,
    checkpointed: Option<u64>,
}

impl Survey {
    /// True if every frame to replay was found.
    fn is_complete(&self) -> bool {
        let first = self.segments.last().map_or(u64::MAX, |segment| segment.header.first_frame);
        self.checkpointed.is_some_and(|checkpointed| checkpointed.saturating_add(1) >= first)
    }

    fn add(&mut self, header: SegmentHeader, file: SegmentFile) -> Result<()> {
        let mut reader = Reader::new(&file);
        let scan = self.follow(&header, &mut reader)?;
        for group in scan.groups.iter().rev() {
            if self.checkpointed.is_some_and(|checkpointed| group.last_frame() <= checkpointed) {
                break;
            }
            for (_, frame) in group.frames(&mut reader, &header)?.into_iter().rev() {
                if let Frame::Checkpointed(frame) = frame {
                    self.checkpointed.get_or_insert(frame);
                }
            }
        }
        self.segments.push(Surveyed { file, header, scan });
        Ok(())
    }

    /// Scans a segment to its end. Returns `Corrupt` if it is damaged.
    fn follow(&self, header: &SegmentHeader, reader: &mut Reader<'_>) -> Result<SegmentScan> {
        let next = self.segments.last();
        let mut scan = SegmentScan::new(reader, header, next.map(|next| &next.header))?;
        let Some(next) = next else {
            if let ScanEnd::Sealed(number) = scan.stop {
                return Err(reader.file.corrupt(missing(number)));
            }
            scan.check_end(reader, header)?;
            return Ok(scan);
        };
        let first = &next.header;
        if !matches!(scan.stop, ScanEnd::Complete) || first.previous != scan.previous {
            return Err(reader.file.corrupt(format!("damaged before frame {}", first.first_frame)));
        }
        // The seal is written after the first group of the next segment is durable.
        if next.scan.groups.is_empty() && scan.sealed_through >= first.first_group {
            return Err(next.file.corrupt(damaged(first.first_group)));
        }
        Ok(scan)
    }
}
