//! Follows the groups of one segment from header to header.

use super::segment::Reader;
use crate::store::format::frame::{self, Frame};
use crate::store::format::segment::{GROUP_HEADER, GroupHeader, SECTOR, SegmentHeader, payload_checksum, sized};
use crate::types::error::Result;

#[derive(Clone, Copy, Debug)]
pub(super) struct GroupAt {
    offset: u64,
    pub(super) header: GroupHeader,
}

impl GroupAt {
    /// Returns the number of its last frame. If it has no frames, returns the number before `first_frame`.
    pub(super) fn last_frame(&self) -> u64 {
        self.header.first_frame.saturating_add(u64::from(self.header.frames)).saturating_sub(1)
    }

    /// Returns its frames with their numbers, or `None` if the payload does not match the header.
    fn frames_if_whole(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<Option<Vec<(u64, Frame)>>> {
        let GroupHeader { first_frame, frames, payload_len, payload_checksum: stored, .. } = self.header;
        let payload = reader.bytes(self.offset + GROUP_HEADER as u64, u64::from(payload_len))?;
        if stored != payload_checksum(segment.salt, payload) {
            return Ok(None);
        }
        let decoded = frame::decode_all(payload, first_frame, frames);
        decoded.map(Some).map_err(|error| reader.file.corrupt(error))
    }

    /// Returns its frames. A payload that does not match the header is damage.
    pub(super) fn frames(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<Vec<(u64, Frame)>> {
        let frames = self.frames_if_whole(reader, segment)?;
        frames.ok_or_else(|| reader.file.corrupt(damaged(self.header.group)))
    }
}

pub(super) fn damaged(group: u64) -> String {
    format!("group {group} is damaged")
}

pub(super) fn missing(segment: u64) -> String {
    format!("segment {segment}, which follows, is missing")
}

/// The end of the scan of a segment.
#[derive(Debug)]
pub(super) enum ScanEnd {
    /// The next segment continues the chain.
    Complete,
    /// A seal ends the segment, but the next segment, with this number, is missing.
    Sealed(u64),
    /// There is no further valid group.
    Bad,
}

/// The groups of a segment, found by their headers. Payloads are not read.
#[derive(Debug)]
pub(super) struct SegmentScan {
    pub(super) groups: Vec<GroupAt>,
    /// The offset after the last valid group.
    pub(super) end: u64,
    /// The number that the next group must have.
    pub(super) next_group: u64,
    /// The header checksum of the last group.
    pub(super) previous: u32,
    /// True if the last frame says that the journal was closed.
    pub(super) closed: bool,
    /// The size in bytes of a group that was cut off.
    pub(super) torn_bytes: u64,
    /// The last group that the seal says is durable.
    pub(super) sealed_through: u64,
    pub(super) stop: ScanEnd,
}

impl SegmentScan {
    /// Follows the headers until one is invalid, or until the next segment continues the chain.
    pub(super) fn new(reader: &mut Reader<'_>, segment: &SegmentHeader, next: Option<&SegmentHeader>) -> Result<Self> {
        let mut scan = Self {
            groups: Vec::new(),
            end: SECTOR as u64,
            next_group: segment.first_group,
            previous: segment.previous,
            closed: false,
            torn_bytes: 0,
            sealed_through: 0,
            stop: ScanEnd::Bad,
        };
        let mut frame = segment.first_frame;
        loop {
            let found = GroupHeader::decode(reader.bytes(scan.end, GROUP_HEADER as u64)?, segment.salt);
            if next.is_some_and(|next| next.first_group == scan.next_group) {
                let seal = found.filter(|(header, _)| header.is_seal);
                scan.sealed_through = seal.map_or(0, |(header, _)| header.synced_through);
                scan.stop = ScanEnd::Complete;
                return Ok(scan);
            }
            let Some((header, checksum)) = found else { return Ok(scan) };
            if header.is_seal {
                scan.stop = ScanEnd::Sealed(header.first_frame);
                return Ok(scan);
            }
            let len = sized(u64::from(header.payload_len));
            let follows = header.group == scan.next_group
                && header.previous == scan.previous
                && header.first_frame >= frame
                && scan.end + GROUP_HEADER as u64 + u64::from(header.payload_len) <= reader.file.size;
            if !follows {
                scan.torn_bytes = len;
                return Ok(scan);
            }
            scan.groups.push(GroupAt { offset: scan.end, header });
            scan.previous = checksum;
            scan.end += len;
            scan.next_group += 1;
            frame = header.first_frame.saturating_add(u64::from(header.frames));
        }
    }

    /// Checks the end of the last segment, whose last group may be incomplete. Cuts off a group with an incomplete
    /// payload. Returns `Corrupt` if such a group had been durable.
    pub(super) fn check_end(&mut self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<()> {
        if let Some(last) = self.groups.last().copied() {
            if let Some(frames) = last.frames_if_whole(reader, segment)? {
                self.closed = matches!(frames.last(), Some((_, Frame::Closing)));
            } else {
                self.groups.pop();
                self.end = last.offset;
                self.next_group = last.header.group;
                self.previous = last.header.previous;
                self.torn_bytes = sized(u64::from(last.header.payload_len));
            }
        }
        // Nothing is written after the closing frame.
        if self.closed { Ok(()) } else { self.refuse_durable(reader, segment) }
    }

    /// Returns `Corrupt` if a later group or a seal says that the cut-off group had been durable.
    fn refuse_durable(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<()> {
        let mut offset = self.end + SECTOR as u64;
        while offset < reader.file.size {
            let found = GroupHeader::decode(reader.bytes(offset, GROUP_HEADER as u64)?, segment.salt);
            if found.is_some_and(|(header, _)| header.is_seal || header.synced_through >= self.next_group) {
                return Err(reader.file.corrupt(damaged(self.next_group)));
            }
            offset += SECTOR as u64;
        }
        Ok(())
    }
}
