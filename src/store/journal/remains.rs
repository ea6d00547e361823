//! What is left of a journal that may be damaged: for a salvage, which takes each group that is whole, wherever it is.

use std::path::Path;

use super::recover::{head, recover_read_only};
use super::segment::{Reader, SegmentFile};
use crate::store::files::{self, Dir};
use crate::store::format::frame::{self, Frame};
use crate::store::format::segment::{Found, GROUP_HEADER, GroupHeader, SECTOR, SegmentHeader, payload_checksum, sized};
use crate::types::clock::Anchor;
use crate::types::error::{Error, ErrorKind, Result};

/// What was found, and what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// The store that it belongs to, if any segment says so.
    pub(crate) store_id: Option<[u8; 16]>,
    /// In order. Of a journal that is whole, those that the record store need not have.
    pub(crate) frames: Vec<(u64, Frame)>,
    /// The highest number that was found.
    pub(crate) last_frame: u64,
    /// The record store had everything up to this frame.
    pub(crate) checkpointed: u64,
    pub(crate) anchor: Option<Anchor>,
    /// Why there may have been more. None if the journal is whole.
    pub(crate) problems: Vec<String>,
}

/// Reads what there is. Changes nothing.
pub(crate) fn remains(dir: &Path) -> Result<Remains> {
    let mut remains = Remains::default();
    match recover_read_only(dir) {
        Ok(recovered) => {
            let frames = &mut remains.frames;
            recovered.replay(&mut |number, frame| {
                frames.push((number, frame));
                Ok(())
            })?;
            remains.store_id = Some(recovered.store_id);
            remains.anchor = Some(recovered.anchor);
            (remains.last_frame, remains.checkpointed) = (recovered.last_frame, recovered.checkpointed);
            return Ok(remains);
        }
        Err(error) if error.kind() == ErrorKind::UnsupportedFormat => return Err(error),
        Err(error) => remains.problems.push(error.to_string()),
    }
    if !files::is_dir(dir) {
        return Ok(remains);
    }
    let opened = Dir::open_read_only(dir)?;
    let mut segments = Vec::new();
    for name in opened.names()? {
        if name.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let Some(file) = SegmentFile::open_if_there(&opened, &name)? else { continue };
        match head(&file).map(|bytes| SegmentHeader::decode(&bytes)) {
            Ok(Found::Segment(header)) => segments.push((header, file)),
            Ok(Found::Spare) => {}
            Ok(_) => remains.problems.push(format!("the header of {} is damaged", file.path.display())),
            Err(error) => remains.problems.push(error.to_string()),
        }
    }
    // One may have come from elsewhere: the store that most belong to counts.
    let of = |id: [u8; 16]| segments.iter().filter(|(header, _)| header.store_id == id).count();
    remains.store_id = segments.iter().map(|(header, _)| header.store_id).max_by_key(|id| of(*id));
    for (header, file) in &segments {
        if Some(header.store_id) == remains.store_id {
            let read = remains.read(header, file);
            remains.problems.extend(read.err().map(|error: Error| error.to_string()));
        }
    }
    remains.frames.sort_by_key(|(number, _)| *number);
    remains.frames.dedup_by_key(|(number, _)| *number);
    Ok(remains)
}

impl Remains {
    /// Takes every group of a segment that is whole.
    fn read(&mut self, segment: &SegmentHeader, file: &SegmentFile) -> Result<()> {
        let (mut reader, mut offset) = (Reader::new(file), SECTOR as u64);
        while offset < file.size {
            let found = GroupHeader::decode(reader.bytes(offset, GROUP_HEADER as u64)?, segment.salt);
            let len = match found {
                Some((header, _)) if !header.is_seal => self.take(segment, &header, offset, &mut reader)?,
                _ => 0,
            };
            offset += len.max(SECTOR as u64);
        }
        Ok(())
    }

    /// Says how many bytes the group takes; 0 if its payload is not whole.
    fn take(&mut self, segment: &SegmentHeader, group: &GroupHeader, at: u64, reader: &mut Reader<'_>) -> Result<u64> {
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
