//! Encodes and decodes the headers of segments and groups.

use super::{Fields, VERSION, checksum, first_of};
use crate::types::clock::Anchor;

/// The unit of an atomic write, in bytes: after a power cut a device has the old 512 bytes or the new ones, never a
/// mixture.
pub(crate) const SECTOR: usize = 512;
pub(crate) const GROUP_HEADER: usize = 88;

const SEGMENT_MAGIC: &[u8; 8] = b"oncekeyJ";
const SEGMENT_HEADER: usize = 76;
const GROUP_MAGIC: &[u8; 4] = b"okG1";
const SEAL_MAGIC: &[u8; 4] = b"okS1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) store_id: [u8; 16],
    pub(crate) number: u64,
    pub(crate) salt: [u8; 8],
    pub(crate) size: u64,
    pub(crate) first_group: u64,
    pub(crate) first_frame: u64,
    /// The header checksum of the last group before this segment.
    pub(crate) previous: u32,
}

/// The kind of a file in the journal's directory, by its first bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment(SegmentHeader),
    /// Zeros: the file was never a segment.
    Spare,
    OtherFormat(u32),
    Damaged,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SECTOR] {
        let mut body = Vec::with_capacity(SEGMENT_HEADER - 16);
        body.extend_from_slice(&self.store_id);
        body.extend_from_slice(&self.number.to_le_bytes());
        body.extend_from_slice(&self.salt);
        for field in [self.size, self.first_group, self.first_frame] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        body.extend_from_slice(&self.previous.to_le_bytes());
        let checksum = checksum(&[&body]).to_le_bytes();
        let version = u32::from(VERSION).to_le_bytes();
        sector(&[SEGMENT_MAGIC.as_slice(), &version, &checksum, &body])
    }

    pub(crate) fn decode(bytes: &[u8]) -> FileKind {
        let Some(sector) = bytes.get(..SECTOR) else {
            return if bytes.iter().all(|byte| *byte == 0) { FileKind::Spare } else { FileKind::Damaged };
        };
        if sector.iter().all(|byte| *byte == 0) {
            return FileKind::Spare;
        }
        Self::decode_sector(sector).unwrap_or(FileKind::Damaged)
    }

    fn decode_sector(sector: &[u8]) -> Option<FileKind> {
        let mut fields = Fields(sector);
        fields.take(8).filter(|magic| *magic == SEGMENT_MAGIC)?;
        let (version, stored) = (fields.u32()?, fields.u32()?);
        // The magic number and the version are at these offsets in every version.
        if version != u32::from(VERSION) && version != 0 {
            return Some(FileKind::OtherFormat(version));
        }
        let body = fields.take(SEGMENT_HEADER - 16)?;
        if version != u32::from(VERSION) || stored != checksum(&[body]) || fields.0.iter().any(|byte| *byte != 0) {
            return None;
        }
        let mut fields = Fields(body);
        Some(FileKind::Segment(Self {
            store_id: fields.array()?,
            number: fields.u64()?,
            salt: fields.array()?,
            size: fields.u64()?,
            first_group: fields.u64()?,
            first_frame: fields.u64()?,
            previous: fields.u32()?,
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    /// True for the seal of a segment. Then `first_frame` is the number of the next segment.
    pub(crate) is_seal: bool,
    pub(crate) group: u64,
    pub(crate) first_frame: u64,
    pub(crate) frames: u32,
    pub(crate) payload_len: u32,
    pub(crate) payload_checksum: u32,
    pub(crate) previous: u32,
    pub(crate) synced_through: u64,
    pub(crate) anchor: Anchor,
}

impl GroupHeader {
    /// Returns the encoded header, and its checksum, which the next group stores.
    pub(crate) fn encode(&self, salt: [u8; 8]) -> ([u8; SECTOR], u32) {
        let mut body = Vec::with_capacity(GROUP_HEADER - 8);
        body.extend_from_slice(&self.group.to_le_bytes());
        body.extend_from_slice(&self.first_frame.to_le_bytes());
        for field in [self.frames, self.payload_len, self.payload_checksum, self.previous] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.synced_through, self.anchor.store, self.anchor.wall, self.anchor.boot] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        body.extend_from_slice(&self.anchor.boot_id);
        let checksum = checksum(&[&salt, &body]);
        let magic = if self.is_seal { SEAL_MAGIC } else { GROUP_MAGIC };
        (sector(&[magic, &checksum.to_le_bytes(), &body]), checksum)
    }

    /// Decodes a group's header in a segment with this salt. Returns it with its checksum, or `None` if these bytes are
    /// no such header.
    pub(crate) fn decode(bytes: &[u8], salt: [u8; 8]) -> Option<(Self, u32)> {
        let mut fields = Fields(bytes);
        let is_seal = match fields.take(4)? {
            magic if magic == GROUP_MAGIC => false,
            magic if magic == SEAL_MAGIC => true,
            _ => return None,
        };
        let stored = fields.u32()?;
        let body = fields.take(GROUP_HEADER - 8)?;
        if stored != checksum(&[&salt, body]) {
            return None;
        }
        let mut fields = Fields(body);
        let header = Self {
            is_seal,
            group: fields.u64()?,
            first_frame: fields.u64()?,
            frames: fields.u32()?,
            payload_len: fields.u32()?,
            payload_checksum: fields.u32()?,
            previous: fields.u32()?,
            synced_through: fields.u64()?,
            anchor: Anchor { store: fields.u64()?, wall: fields.u64()?, boot: fields.u64()?, boot_id: fields.array()? },
        };
        Some((header, stored))
    }
}

/// Returns the size on disk of a group with this many payload bytes.
pub(crate) fn sized(payload: u64) -> u64 {
    (GROUP_HEADER as u64 + payload).next_multiple_of(SECTOR as u64)
}

pub(crate) fn payload_checksum(salt: [u8; 8], payload: &[u8]) -> u32 {
    checksum(&[&salt, payload])
}

/// Joins the parts and pads them with zeros.
fn sector(parts: &[&[u8]]) -> [u8; SECTOR] {
    first_of(parts.iter().flat_map(|part| part.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentHeader {
        SegmentHeader {
            store_id: [1; 16],
            number: 2,
            salt: [3; 8],
            size: 1 << 20,
            first_group: 5,
            first_frame: 1 << 32,
            previous: 0xA1B2_C3D4,
        }
    }

    fn group() -> GroupHeader {
        GroupHeader {
            is_seal: false,
            group: 5,
            first_frame: 1 << 32,
            frames: 2,
            payload_len: 3,
            payload_checksum: payload_checksum([3; 8], b"abc"),
            previous: 0xA1B2_C3D4,
            synced_through: 4,
            anchor: Anchor { store: 10, wall: 11, boot_id: [12; 16], boot: 13 },
        }
    }

    #[test]
    fn golden_segment_header() {
        let bytes = segment().encode();
        let mut body = vec![1; 16];
        body.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3]);
        body.extend_from_slice(&[0, 0, 16, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        body.extend_from_slice(&[0xD4, 0xC3, 0xB2, 0xA1]);
        assert_eq!(&bytes[..12], b"oncekeyJ\x02\0\0\0");
        assert_eq!(bytes[12..16], crc32fast::hash(&body).to_le_bytes());
        assert_eq!(bytes[16..76], body);
        assert!(bytes[76..].iter().all(|byte| *byte == 0));
        assert_eq!(SegmentHeader::decode(&bytes), FileKind::Segment(segment()));
    }

    #[test]
    fn golden_group_header() {
        let (bytes, checksum) = group().encode([3; 8]);
        let mut body = vec![5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
        body.extend_from_slice(&crc32fast::hash(b"\x03\x03\x03\x03\x03\x03\x03\x03abc").to_le_bytes());
        body.extend_from_slice(&[0xD4, 0xC3, 0xB2, 0xA1]);
        for field in [4_u64, 10, 11, 13] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        body.extend_from_slice(&[12; 16]);
        let salted: Vec<u8> = [3; 8].into_iter().chain(body.iter().copied()).collect();
        assert_eq!(&bytes[..4], b"okG1");
        assert_eq!(bytes[4..8], crc32fast::hash(&salted).to_le_bytes());
        assert_eq!(bytes[8..88], body);
        assert_eq!(GroupHeader::decode(&bytes, [3; 8]), Some((group(), checksum)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let header = segment().encode();
        let (group, _) = group().encode([3; 8]);
        for bit in 0..GROUP_HEADER * 8 {
            let mut damaged = group;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(GroupHeader::decode(&damaged, [3; 8]), None, "bit {bit}");
        }
        for bit in 0..SECTOR * 8 {
            let mut damaged = header;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = SegmentHeader::decode(&damaged);
            assert!(matches!(found, FileKind::Damaged | FileKind::OtherFormat(_)), "bit {bit}: {found:?}");
        }
    }

    #[test]
    fn a_group_with_another_salt_is_not_decoded() {
        let (bytes, _) = group().encode([3; 8]);
        assert_eq!(GroupHeader::decode(&bytes, [4; 8]), None);
    }

    #[test]
    fn zeros_are_a_free_segment_and_another_version_is_reported() {
        assert_eq!(SegmentHeader::decode(&[0; SECTOR]), FileKind::Spare);
        assert_eq!(SegmentHeader::decode(&[0; 3]), FileKind::Spare);
        assert_eq!(SegmentHeader::decode(&[1; 3]), FileKind::Damaged);
        let mut newer = segment().encode();
        for version in [1, 3] {
            newer[8] = version;
            assert_eq!(SegmentHeader::decode(&newer), FileKind::OtherFormat(u32::from(version)));
        }
    }

    #[test]
    fn groups_take_whole_sectors() {
        assert_eq!(sized(0), 512);
        assert_eq!(sized(424), 512);
        assert_eq!(sized(425), 1024);
    }
}
