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
    /// The number before its first frame if it has none.
    pub(super) fn last_frame(&self) -> u64 {
        self.header.first_frame.saturating_add(u64::from(self.header.frames)).saturating_sub(1)
    }

    /// Its frames with their numbers; `None` if the payload is not what the header says.
    fn frames_if_whole(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<Option<Vec<(u64, Frame)>>> {
        let GroupHeader { first_frame, frames, payload_len, payload_checksum: stored, .. } = self.header;
        let payload = reader.bytes(self.offset + GROUP_HEADER as u64, u64::from(payload_len))?;
        if stored != payload_checksum(segment.salt, payload) {
            return Ok(None);
        }
        let decoded = frame::decode_all(payload, first_frame, frames);
        decoded.map(Some).map_err(|error| reader.file.corrupt(error))
    }

    /// Where a payload that is not there is damage.
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

/// How the walk through a segment ended.
#[derive(Debug)]
pub(super) enum ScanEnd {
    /// The next segment takes over.
    Complete,
    /// The segment goes on in that one, which is not there.
    Sealed(u64),
    /// No good group is here.
    Bad,
}

/// The groups of a segment, by their headers. Payloads are not read.
#[derive(Debug)]
pub(super) struct SegmentScan {
    pub(super) groups: Vec<GroupAt>,
    /// Behind the last good group.
    pub(super) end: u64,
    /// The number that the next group has.
    pub(super) next_group: u64,
    /// Header checksum of the last group.
    pub(super) previous: u32,
    /// The last thing it says is that the journal was closed.
    pub(super) closed: bool,
    /// Bytes of the group that was cut.
    pub(super) torn_bytes: u64,
    /// The last group of which the seal says that it was durable.
    pub(super) sealed_through: u64,
    pub(super) stop: ScanEnd,
}

impl SegmentScan {
    /// Follows the headers until one is bad, or the next segment takes over.
    pub(super) fn new(reader: &mut Reader<'_>, segment: &SegmentHeader, next: Option<&SegmentHeader>) -> Result<Self> {
        let mut walk = Self {
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
            let found = GroupHeader::decode(reader.bytes(walk.end, GROUP_HEADER as u64)?, segment.salt);
            if next.is_some_and(|next| next.first_group == walk.next_group) {
                let seal = found.filter(|(header, _)| header.is_seal);
                walk.sealed_through = seal.map_or(0, |(header, _)| header.synced_through);
                walk.stop = ScanEnd::Complete;
                return Ok(walk);
            }
            let Some((header, checksum)) = found else { return Ok(walk) };
            if header.is_seal {
                walk.stop = ScanEnd::Sealed(header.first_frame);
                return Ok(walk);
            }
            let len = sized(u64::from(header.payload_len));
            let follows = header.group == walk.next_group
                && header.previous == walk.previous
                && header.first_frame >= frame
                && walk.end + GROUP_HEADER as u64 + u64::from(header.payload_len) <= reader.file.size;
            if !follows {
                walk.torn_bytes = len;
                return Ok(walk);
            }
            walk.groups.push(GroupAt { offset: walk.end, header });
            walk.previous = checksum;
            walk.end += len;
            walk.next_group += 1;
            frame = header.first_frame.saturating_add(u64::from(header.frames));
        }
    }

    /// For a segment that none follows: its last group may have been on its way to the disk. Cuts it if its payload is not
    /// there, and makes sure that what was cut was promised to nobody.
    pub(super) fn settle_end(&mut self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<()> {
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
        // Nothing is written behind the closing.
        if self.closed { Ok(()) } else { self.refuse_durable(reader, segment) }
    }

    /// If anything behind a bad group says that the group was durable, it is damage.
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
