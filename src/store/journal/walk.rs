//! Follows the groups of one segment from header to header.

use super::segment::Reader;
use crate::error::Result;
use crate::store::format::corrupt;
use crate::store::format::frame::{self, Frame};
use crate::store::format::segment::{GROUP_HEADER, GroupHeader, SECTOR, SegmentHeader, payload_checksum, sized};

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
    pub(super) fn frames(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<Option<Vec<(u64, Frame)>>> {
        let GroupHeader { first_frame, frames, payload_len, payload_checksum: stored, .. } = self.header;
        let payload = reader.bytes(self.offset + GROUP_HEADER as u64, u64::from(payload_len))?;
        if stored != payload_checksum(segment.salt, payload) {
            return Ok(None);
        }
        frame::decode_all(payload, first_frame, frames).map(Some)
    }

    /// Where a payload that is not there is damage.
    pub(super) fn sound_frames(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<Vec<(u64, Frame)>> {
        let damaged = || corrupt(format!("group {} is damaged", self.header.group));
        self.frames(reader, segment)?.ok_or_else(damaged)
    }
}

/// How the walk through a segment ended.
pub(super) enum Stop {
    /// Everything that counts was read.
    Complete,
    /// The segment goes on in that one.
    Sealed(u64),
    /// No good group is here.
    Bad { torn_bytes: u64 },
}

/// The groups of a segment. Of the payloads only the last one's was read, and that only where no segment follows: there it may
/// have been on its way to the disk.
pub(super) struct Walk {
    pub(super) groups: Vec<GroupAt>,
    /// Behind the last good group.
    pub(super) end: u64,
    /// The number that the next group has.
    pub(super) next_group: u64,
    /// Header checksum of the last group.
    pub(super) previous: u32,
    /// The last thing it says is that the journal was closed.
    pub(super) closed: bool,
    /// The last group of which the seal says that it was durable.
    pub(super) sealed_through: u64,
    pub(super) stop: Stop,
}

/// Reads groups until one is bad, or the next segment takes over.
pub(super) fn walk(reader: &mut Reader<'_>, segment: &SegmentHeader, next: Option<&SegmentHeader>) -> Result<Walk> {
    let mut walk = Walk {
        groups: Vec::new(),
        end: SECTOR as u64,
        next_group: segment.first_group,
        previous: segment.previous,
        closed: false,
        sealed_through: 0,
        stop: Stop::Complete,
    };
    walk.stop = walk.follow(reader, segment, next)?;
    if next.is_none() && matches!(walk.stop, Stop::Bad { .. }) {
        walk.check_end(reader, segment)?;
    }
    Ok(walk)
}

impl Walk {
    fn follow(
        &mut self,
        reader: &mut Reader<'_>,
        segment: &SegmentHeader,
        next: Option<&SegmentHeader>,
    ) -> Result<Stop> {
        let mut frame = segment.first_frame;
        loop {
            let found = GroupHeader::decode(reader.bytes(self.end, GROUP_HEADER as u64)?, segment.salt);
            if next.is_some_and(|next| next.first_group == self.next_group) {
                let seal = found.filter(|(header, _)| header.is_seal);
                self.sealed_through = seal.map_or(0, |(header, _)| header.synced_through);
                return Ok(Stop::Complete);
            }
            let Some((header, checksum)) = found else { return Ok(Stop::Bad { torn_bytes: 0 }) };
            if header.is_seal {
                return Ok(Stop::Sealed(header.first_frame));
            }
            let len = sized(u64::from(header.payload_len));
            let follows = header.group == self.next_group
                && header.previous == self.previous
                && header.first_frame >= frame
                && self.end + GROUP_HEADER as u64 + u64::from(header.payload_len) <= segment.size;
            if !follows {
                return Ok(Stop::Bad { torn_bytes: len });
            }
            self.groups.push(GroupAt { offset: self.end, header });
            self.previous = checksum;
            self.end += len;
            self.next_group += 1;
            frame = header.first_frame.saturating_add(u64::from(header.frames));
        }
    }

    /// Cuts the last group if its payload is not there, and makes sure that what was cut was promised to nobody.
    fn check_end(&mut self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<()> {
        if let Some(last) = self.groups.last().copied() {
            if let Some(frames) = last.frames(reader, segment)? {
                self.closed = matches!(frames.last(), Some((_, Frame::Closing)));
            } else {
                self.groups.pop();
                self.end = last.offset;
                self.next_group = last.header.group;
                self.previous = last.header.previous;
                self.stop = Stop::Bad { torn_bytes: sized(u64::from(last.header.payload_len)) };
            }
        }
        // Nothing is written behind the closing.
        if self.closed { Ok(()) } else { self.refuse_durable(reader, segment) }
    }

    /// If anything behind a bad group says that the group was durable, it is damage.
    fn refuse_durable(&self, reader: &mut Reader<'_>, segment: &SegmentHeader) -> Result<()> {
        let mut offset = self.end + SECTOR as u64;
        while offset < segment.size {
            let found = GroupHeader::decode(reader.bytes(offset, GROUP_HEADER as u64)?, segment.salt);
            if found.is_some_and(|(header, _)| header.is_seal || header.synced_through >= self.next_group) {
                return Err(corrupt(format!("group {} is damaged", self.next_group)));
            }
            offset += SECTOR as u64;
        }
        Ok(())
    }
}
