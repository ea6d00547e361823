//! Reads a journal that may be damaged, for a salvage: every whole group is used, wherever it is.

use std::path::Path;

use super::recover::{head, recover_read_only, unsupported};
use super::segment::{Reader, SegmentFile};
use crate::store::files::{self, Dir};
use crate::store::format::frame::{self, Frame};
use crate::store::format::segment::{
    FileKind, GROUP_HEADER, GroupHeader, SECTOR, SegmentHeader, payload_checksum, sized,
};
use crate::store::sled::raw::JournalSummary;
use crate::types::clock::Anchor;
use crate::types::error::Result;

/// The bytes that are skipped after a read error, so that a bad part of the disk is read only a few times.
const PAGE: u64 = 4 << 10;

/// The frames that were found, and the problems.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// The id of the store, if a segment names it.
    pub(crate) store_id: Option<[u8; 16]>,
    /// Sorted by number. A whole journal has every frame after the last checkpoint, and perhaps some earlier ones.
    pub(crate) frames: Vec<(u64, Frame)>,
    /// The highest frame number that was found.
    pub(crate) last_frame: u64,
    /// The frame of the last checkpoint: the record store had everything up to it.
    pub(crate) checkpointed: u64,
    pub(crate) anchor: Option<Anchor>,
    /// The reasons why frames may be missing. Empty if the journal is whole.
    pub(crate) problems: Vec<String>,
}

/// Reads every whole group. Changes nothing.
pub(crate) fn remains(dir: &Path) -> Result<Remains> {
    let recovered = recover_read_only(dir);
    let mut remains = if files::is_dir(dir)? { Remains::scan(dir)? } else { Remains::default() };
    match recovered {
        Ok(recovered) => {
            // Segments before the checkpoint were free to be overwritten, so a missing one is not a problem.
            remains.problems.clear();
            remains.frames.retain(|(number, _)| *number <= recovered.checkpointed);
            recovered.replay(&mut |number, frame| {
                remains.frames.push((number, frame));
                Ok(())
            })?;
            remains.store_id = Some(recovered.store_id);
            remains.anchor = Some(recovered.anchor);
            (remains.last_frame, remains.checkpointed) = (recovered.last_frame, recovered.checkpointed);
        }
        Err(error) => remains.problems.insert(0, error.to_string()),
    }
    Ok(remains)
}

impl Remains {
    /// Returns the facts that the record store must agree with, if the journal is whole.
    pub(crate) fn summary(&self) -> Option<JournalSummary> {
        let Self { store_id, checkpointed, last_frame, .. } = *self;
        let store_id = store_id.filter(|_| self.problems.is_empty())?;
        Some(JournalSummary { store_id, checkpointed, last_frame })
    }

    /// Adds every whole group that no later segment has replaced. Returns an error if all segments are of
    /// another format version.
    fn scan(dir: &Path) -> Result<Self> {
        let mut remains = Self::default();
        let opened = Dir::open_read_only(dir)?;
        let (mut segments, mut other_format) = (Vec::new(), None);
        for name in opened.names()? {
            if name.extension().is_none_or(|extension| extension != "journal") {
                continue;
            }
            let path = opened.path().join(&name);
            let read = || -> Result<Option<(FileKind, SegmentFile)>> {
                let Some(file) = SegmentFile::open_if_there(&opened, &name)? else { return Ok(None) };
                Ok(Some((SegmentHeader::decode(&head(&file)?), file)))
            };
            let damaged = format!("the header of {} is damaged", path.display());
            match read() {
                Ok(Some((FileKind::Segment(header), file))) => segments.push((header, file)),
                Ok(Some((FileKind::Spare, _)) | None) => {}
                Ok(Some((FileKind::OtherFormat(version), _))) => {
                    other_format.get_or_insert_with(|| unsupported(&path, version));
                    remains.problems.push(damaged);
                }
                Ok(Some((FileKind::Damaged, _))) => remains.problems.push(damaged),
                Err(error) => remains.problems.push(error.to_string()),
            }
        }
        // Next to segments of this version, another version number is damage.
        if let Some(error) = other_format.filter(|_| segments.is_empty()) {
            return Err(error);
        }
        // A segment may come from another store: the id that most segments have counts.
        let of = |id: [u8; 16]| segments.iter().filter(|(header, _)| header.store_id == id).count();
        remains.store_id = segments.iter().map(|(header, _)| header.store_id).max_by_key(|id| of(*id));
        segments.retain(|(header, _)| Some(header.store_id) == remains.store_id);
        segments.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
        let mut end = u64::MAX;
        for (header, file) in &segments {
            remains.read(header, file, end);
            end = end.min(header.first_group);
        }
        remains.frames.sort_by_key(|(number, _)| *number);
        remains.frames.dedup_by_key(|(number, _)| *number);
        Ok(remains)
    }

    /// Adds every whole group of a segment with a number below `end`. A later open has cut off the rest.
    fn read(&mut self, segment: &SegmentHeader, file: &SegmentFile, end: u64) {
        let (mut reader, mut offset, mut has_failed) = (Reader::new(file), SECTOR as u64, false);
        while offset < file.size {
            match self.take(segment, offset, end, &mut reader) {
                Ok(len) => offset += len.max(SECTOR as u64),
                Err(error) => {
                    if !has_failed {
                        self.problems.push(error.to_string());
                    }
                    has_failed = true;
                    offset = (offset + 1).next_multiple_of(PAGE);
                }
            }
        }
    }

    /// Adds the whole group at this offset, and returns its size in bytes. Returns 0 if there is none.
    fn take(&mut self, segment: &SegmentHeader, at: u64, end: u64, reader: &mut Reader<'_>) -> Result<u64> {
        let found = GroupHeader::decode(reader.bytes(at, GROUP_HEADER as u64)?, segment.salt);
        let Some((group, _)) = found.filter(|(header, _)| !header.is_seal && header.group < end) else { return Ok(0) };
        let len = u64::from(group.payload_len);
        let payload = reader.bytes(at + GROUP_HEADER as u64, len)?;
        if group.payload_checksum != payload_checksum(segment.salt, payload) {
            return Ok(0);
        }
        let frames = frame::decode_all(payload, group.first_frame, group.frames)?;
        for (number, frame) in frames {
            if let Frame::Checkpointed(frame) = frame {
                self.checkpointed = self.checkpointed.max(frame);
            }
            self.last_frame = self.last_frame.max(number);
            self.frames.push((number, frame));
        }
        if self.anchor.is_none_or(|anchor| anchor.store <= group.anchor.store) {
            self.anchor = Some(group.anchor);
        }
        Ok(sized(len))
    }
}
