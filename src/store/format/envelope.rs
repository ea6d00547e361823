//! Values in sled: a checksum over key and content, and content too long for one value in pieces.

use super::{Fields, VERSION, checksum, corrupt, first_of, length, patch};
use crate::types::error::{Error, ErrorKind, Result};

/// sled keeps up to 17 values in a leaf, and writes a leaf of more than 128 KiB into a file that it never syncs.
pub(crate) const MAX_INLINE: usize = 4096;
/// Content of one piece: with its head and the longest owner it stays below [`MAX_INLINE`].
pub(crate) const PIECE: usize = 3_400;

const INLINE: u8 = 1;
const PIECES: u8 = 2;
const PREFIX: usize = 6;

/// Where the pieces of a value are: the frame that wrote it, and the place of the change in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PiecesId {
    pub(crate) frame: u64,
    pub(crate) place: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Envelope<'a> {
    Inline(&'a [u8]),
    Pieces {
        id: PiecesId,
        /// Length of what is in the pieces.
        len: usize,
        /// What is not: the fixed part of a record.
        head: &'a [u8],
    },
}

pub(crate) fn encode(key: &[u8], envelope: &Envelope<'_>) -> Result<Vec<u8>> {
    Ok(match envelope {
        Envelope::Inline(bytes) => sealed(key, [VERSION, INLINE], &[bytes]),
        Envelope::Pieces { id, len, head } => {
            let len = length("a value", *len)?.to_le_bytes();
            sealed(key, [VERSION, PIECES], &[&id.frame.to_le_bytes(), &id.place.to_le_bytes(), &len, head])
        }
    })
}

pub(crate) fn decode<'a>(key: &[u8], bytes: &'a [u8]) -> Result<Envelope<'a>> {
    let (kind, content) = opened(key, bytes)?;
    let envelope = match kind {
        INLINE => Some(Envelope::Inline(content)),
        PIECES => pieces(content),
        _ => None,
    };
    envelope.ok_or_else(|| corrupt(format!("the value of {} is malformed", key.escape_ascii())))
}

fn pieces(content: &[u8]) -> Option<Envelope<'_>> {
    let mut fields = Fields(content);
    let id = PiecesId { frame: fields.u64()?, place: fields.u32()? };
    let len = fields.len()?;
    Some(Envelope::Pieces { id, len, head: fields.0 })
}

pub(crate) fn piece_key(id: PiecesId, piece: usize) -> Result<[u8; 16]> {
    let piece = length("a value", piece)?.to_be_bytes();
    Ok(first_of(id.frame.to_be_bytes().into_iter().chain(id.place.to_be_bytes()).chain(piece)))
}

/// Which value a piece belongs to.
pub(crate) fn piece_id(key: &[u8]) -> Option<PiecesId> {
    let (frame, rest) = key.split_at_checked(8)?;
    let (place, _) = rest.split_at_checked(4)?;
    Some(PiecesId {
        frame: u64::from_be_bytes(frame.try_into().ok()?),
        place: u32::from_be_bytes(place.try_into().ok()?),
    })
}

/// Behind every piece of a value.
pub(crate) fn behind_pieces(id: PiecesId) -> [u8; 16] {
    let next = (u128::from(id.frame) << 64 | u128::from(id.place) << 32).saturating_add(1 << 32);
    next.to_be_bytes()
}

/// `owner` is whose value it is, kept in the first piece so that a lost one can be told from a live one.
pub(crate) fn encode_piece(key: &[u8], owner: &[u8], content: &[u8]) -> Result<Vec<u8>> {
    let too_long = |_| Error::new(ErrorKind::TooLarge, "the owner of a piece is too long");
    let len = u16::try_from(owner.len()).map_err(too_long)?.to_le_bytes();
    Ok(sealed(key, [VERSION, 0], &[&len, owner, content]))
}

/// The owner, in the first piece, and the content.
pub(crate) fn decode_piece<'a>(key: &[u8], bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8])> {
    let (kind, content) = opened(key, bytes)?;
    let mut fields = Fields(content);
    let owner = fields.u16().and_then(|len| fields.take(usize::from(len)));
    match owner {
        Some(owner) if kind == 0 => Ok((owner, fields.0)),
        _ => Err(corrupt(format!("piece {} is malformed", key.escape_ascii()))),
    }
}

fn sealed(key: &[u8], kind: [u8; 2], content: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX + content.iter().map(|part| part.len()).sum::<usize>());
    out.extend_from_slice(&kind);
    out.extend_from_slice(&[0; 4]);
    for part in content {
        out.extend_from_slice(part);
    }
    let checksum = checksum(&[key, &kind, out.get(PREFIX..).unwrap_or_default()]);
    patch(&mut out, kind.len(), checksum);
    out
}

fn opened<'a>(key: &[u8], bytes: &'a [u8]) -> Result<(u8, &'a [u8])> {
    let mut fields = Fields(bytes);
    let (Some([version, kind]), Some(stored)) = (fields.array(), fields.u32()) else {
        return Err(corrupt(format!("the value of {} is cut off", key.escape_ascii())));
    };
    if version > VERSION {
        let message = format!("the value of {} has format {version}, this version reads {VERSION}", key.escape_ascii());
        return Err(Error::new(ErrorKind::UnsupportedFormat, message));
    }
    if version != VERSION || stored != checksum(&[key, &[version, kind], fields.0]) {
        return Err(corrupt(format!("the value of {} is damaged: its checksum is wrong", key.escape_ascii())));
    }
    Ok((kind, fields.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let inline = encode(b"k", &Envelope::Inline(b"abc")).unwrap();
        assert_eq!(inline, [&[1, 1][..], &crc32fast::hash(b"k\x01\x01abc").to_le_bytes(), b"abc"].concat());
        let id = PiecesId { frame: 258, place: 3 };
        let pieces = encode(b"k", &Envelope::Pieces { id, len: 5_000, head: b"h" }).unwrap();
        assert_eq!(&pieces[6..], b"\x02\x01\0\0\0\0\0\0\x03\0\0\0\x88\x13\0\0h");
        assert_eq!(piece_key(id, 4).unwrap(), *b"\0\0\0\0\0\0\x01\x02\0\0\0\x03\0\0\0\x04");
        let piece = encode_piece(b"p", b"rm\0k", b"xyz").unwrap();
        assert_eq!(&piece[6..], b"\x04\0rm\0kxyz");
        assert_eq!(decode_piece(b"p", &piece).unwrap(), (b"rm\0k".as_slice(), b"xyz".as_slice()));
    }

    #[test]
    fn a_piece_names_its_value_and_the_next_value_is_behind_it() {
        let id = PiecesId { frame: 9, place: u32::MAX };
        let last = piece_key(id, usize::try_from(u32::MAX).unwrap()).unwrap();
        assert_eq!(piece_id(&last), Some(id));
        assert!(last < behind_pieces(id));
        assert_eq!(behind_pieces(id), piece_key(PiecesId { frame: 10, place: 0 }, 0).unwrap());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let bytes = encode(b"k", &Envelope::Inline(b"abc")).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(b"k", &damaged).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(decode(b"k", &bytes[..cut]).is_err(), "cut {cut}");
        }
        assert!(decode(b"other", &bytes).is_err(), "a value under another key");
        assert_eq!(decode(b"k", &bytes).unwrap(), Envelope::Inline(b"abc"));
    }

    #[test]
    fn a_piece_with_the_longest_owner_stays_inline() {
        let piece = encode_piece(&[0; 16], &[0; 1 + 64 + 1 + 512], &[0; PIECE]).unwrap();
        assert!(piece.len() <= MAX_INLINE);
    }
}
