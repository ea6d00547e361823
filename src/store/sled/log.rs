//! Reads sled's files without sled, to find out what sled would lose when it opens them.
//!
//! When sled opens, it fills with zeros every segment that it considers free, and cuts its log at the first unreadable
//! message. In a damaged store this destroys readable data. So this module first checks each message of the log by
//! sled's own checksums, and the pages that the snapshot names. If all of them are whole, sled loses nothing. If not,
//! sled is not opened on these files.
//!
//! The log is the file `db`, in segments of 512 KiB. A segment begins with a checksum (4 bytes) of two positions in the
//! log: its own, and the last stable one at that time (8 bytes each, inverted). Messages follow: checksum (4), kind
//! (1), length, segment number and page number (in sled's encoding of numbers), body. A snapshot has the position up to
//! which it is valid (8), the segment in use, and the positions of each page in the log.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::snapshots;
use crate::store::files;
use crate::store::format::{Fields, checksum};
use crate::types::error::{Error, Result};

/// Bytes of a segment.
pub(super) const SEGMENT: usize = 512 << 10;
/// Bytes of its header.
const HEADER: usize = 20;
/// The largest header of a message. sled begins no message nearer to the end of a segment.
const MAX_MESSAGE_HEADER: usize = 32;
/// The kind of the message that ends a segment that is not full.
const CAP: u8 = 2;
/// Messages of kinds up to this one change no page.
const LAST_OF_NO_PAGE: u8 = 3;
/// The kinds of messages that add to a page. All others replace it.
const LINK: [u8; 2] = [10, 11];
/// The highest kind of a message.
const LAST_KIND: u8 = 11;
/// The bytes of one read if a segment cannot be read as a whole.
const PAGE: usize = 4 << 10;

/// A whole message.
#[derive(Clone, Copy, Debug)]
struct Message {
    kind: u8,
    page: u64,
    len: usize,
}

/// The messages and segments of the log, after all of it was read.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// For each message, by its offset in the file: its position in the log and its page.
    messages: HashMap<u64, (u64, u64)>,
    /// For each page, the last position at which it was written as a whole, or freed.
    replaced: HashMap<u64, u64>,
    /// The highest number of a page.
    last_page: Option<u64>,
    /// The last position that a message ends at.
    end: u64,
    /// The positions of segments in which a message is not whole.
    torn: Vec<u64>,
    /// The positions that segments begin at.
    segments: Vec<u64>,
    /// True if a part of the file is neither zeros nor a segment, or if a message follows a damaged one.
    is_damaged: bool,
}

impl Log {
    /// Adds the segment at this offset of the file. Returns the end of its last whole message, in bytes.
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8]) -> usize {
        if bytes.iter().all(|byte| *byte == 0) {
            return 0;
        }
        let Some(position) = position(bytes) else {
            self.is_damaged = true;
            return 0;
        };
        let number = position / SEGMENT as u64;
        self.segments.push(position);
        let mut at = HEADER;
        loop {
            if at + MAX_MESSAGE_HEADER > SEGMENT {
                break;
            }
            let Some(message) = message(bytes.get(at..).unwrap_or_default(), number) else {
                self.torn.push(position);
                let mut rest = (at + 1)..bytes.len();
                self.is_damaged |= rest.any(|at| message_at(bytes, at, number));
                break;
            };
            let place = position + at as u64;
            self.messages.insert(offset + at as u64, (place, message.page));
            self.add_page(&message, place);
            at += message.len;
            self.end = self.end.max(position + at as u64);
            if message.kind == CAP {
                break;
            }
        }
        if at + MAX_MESSAGE_HEADER >= SEGMENT {
            // A snapshot that was made here begins with the next segment.
            self.end = self.end.max(position + SEGMENT as u64);
        }
        at
    }

    fn add_page(&mut self, message: &Message, place: u64) {
        if message.kind <= LAST_OF_NO_PAGE {
            return;
        }
        self.last_page = self.last_page.max(Some(message.page));
        if !LINK.contains(&message.kind) {
            let last = self.replaced.entry(message.page).or_default();
            *last = place.max(*last);
        }
    }

    /// Returns true if sled, opened on the files in this directory, finds everything that the log holds.
    pub(super) fn is_whole(&self, dir: &Path) -> Result<bool> {
        let mut segments = self.segments.clone();
        segments.sort_unstable();
        let is_repeated = segments.windows(2).any(|pair| pair.first() == pair.last());
        // The last write may be torn: nothing has waited for it.
        let is_torn = self.torn.iter().any(|position| Some(position) != segments.last());
        if self.is_damaged || is_torn || is_repeated {
            return Ok(false);
        }
        let (mut snapshot, mut has_conf) = (None, false);
        // In the order of their names: of several snapshots sled takes the last.
        for (path, kind) in files::entries(dir)? {
            match path.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
                "conf" => has_conf = is_conf(&read(&path)?),
                "blobs" if !kind.is_dir() || !files::entries(&path)?.is_empty() => return Ok(false),
                name if name.starts_with(snapshots::PREFIX) => {
                    let bytes = read(&path)?;
                    // Before sled is opened, a snapshot under its temporary name is renamed if it is whole, and removed
                    // if it is torn.
                    if !name.ends_with(snapshots::UNFINISHED) || snapshots::content(&bytes).is_some() {
                        snapshot = Some(bytes);
                    }
                }
                // sled looks at no other file.
                _ => {}
            }
        }
        Ok(has_conf && self.has_all_pages(snapshot.as_deref()).unwrap_or(false))
    }

    /// Returns true if the log has each page that a snapshot names, or newer content of it, and each page that is newer
    /// than the snapshot. Returns `None` if the snapshot is malformed. A store has no snapshot until its second open.
    fn has_all_pages(&self, snapshot: Option<&[u8]>) -> Option<bool> {
        let (mut stable, mut pages) = (0, 0);
        if let Some(snapshot) = snapshot {
            let mut fields = Fields(snapshots::content(snapshot)?);
            stable = fields.u64()?.checked_sub(1)?;
            number(&mut fields)?;
            while !fields.0.is_empty() {
                if !self.has_page(&mut fields, pages, stable)? {
                    return Some(false);
                }
                pages += 1;
            }
        }
        // sled numbers its pages without gaps. A link only adds to a page, so the log must have the page itself too.
        let newer = self.replaced.keys().filter(|page| **page >= pages).count() as u64;
        let wanted = self.last_page.map_or(0, |last| last.saturating_add(1).saturating_sub(pages));
        Some(newer == wanted && stable <= self.end)
    }

    /// Reads the entry of a page in a snapshot. Returns true if the log has the page.
    fn has_page(&self, fields: &mut Fields<'_>, page: u64, stable: u64) -> Option<bool> {
        // 0 for a free page: then one position follows, at which the log freed the page.
        let parts = fields.u8()?;
        let mut has_all = true;
        for _ in 0..parts.max(1) {
            let (position, kind, place) = (fields.u64()?, fields.u8()?, number(fields)?);
            if parts > 0 {
                number(fields)?;
                // The engine gives sled no value that sled would store in a file of its own, as another kind.
                has_all &= kind == 0 && self.messages.get(&place) == Some(&(position, page));
            }
        }
        Some(has_all || self.replaced.get(&page).is_some_and(|position| *position >= stable))
    }
}

/// The parts of a file that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    pub(crate) bytes: u64,
    /// The error of the first of them.
    pub(crate) error: Option<Error>,
}

/// Calls `f` with the offset and the bytes of each segment of the file. A part that cannot be read counts as zeros.
pub(super) fn for_each_segment(file: &File, path: &Path, mut f: impl FnMut(u64, &[u8])) -> Result<Unreadable> {
    let failed = |cause: &std::io::Error| Error::io("read", path, cause);
    let read = |bytes: &mut [u8], at: u64| {
        #[cfg(test)]
        if tests::is_unreadable(at, bytes.len() as u64) {
            return Err(rustix::io::Errno::IO.into());
        }
        file.read_exact_at(bytes, at)
    };
    let len = file.metadata().map_err(|cause| failed(&cause))?.len();
    let (mut bytes, mut offset, mut unreadable) = (vec![0; SEGMENT], 0, Unreadable::default());
    while offset < len {
        let here = usize::try_from(len - offset).map_or(SEGMENT, |left| left.min(SEGMENT));
        let bytes = bytes.get_mut(..here).unwrap_or_default();
        if let Err(cause) = read(bytes, offset) {
            let pages = read_pages(bytes, offset, &read);
            if pages > 0 {
                unreadable.error.get_or_insert_with(|| failed(&cause));
            }
            unreadable.bytes += pages;
        }
        f(offset, bytes);
        offset += SEGMENT as u64;
    }
    Ok(unreadable)
}

/// Reads page by page. Fills each page that cannot be read with zeros. Returns the number of bytes of these pages.
fn read_pages(bytes: &mut [u8], offset: u64, read: &dyn Fn(&mut [u8], u64) -> std::io::Result<()>) -> u64 {
    let (mut unreadable, mut at) = (0, offset);
    for page in bytes.chunks_mut(PAGE) {
        let len = page.len() as u64;
        if read(page, at).is_err() {
            page.fill(0);
            unreadable += len;
        }
        at += len;
    }
    unreadable
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|cause| Error::io("read", path, &cause))
}

/// Returns the position in the log at which a segment begins, if its header is whole.
fn position(bytes: &[u8]) -> Option<u64> {
    let mut fields = Fields(bytes.get(..HEADER)?);
    let stored = fields.u32()?;
    if stored != !checksum(&[fields.0]) {
        return None;
    }
    let position = fields.u64()? ^ (u64::MAX >> 1);
    // sled counts positions with a sign.
    (position <= u64::MAX >> 1 && position % SEGMENT as u64 == 0).then_some(position)
}

/// Returns the message that these bytes begin with, if it is whole and belongs to this segment.
fn message(bytes: &[u8], segment: u64) -> Option<Message> {
    let mut fields = Fields(bytes);
    let (stored, kind) = (fields.u32()?, fields.u8()?);
    let len = usize::try_from(number(&mut fields)?).ok()?;
    let (belongs_to, page) = (number(&mut fields)?, number(&mut fields)?);
    if kind == 0 || kind > LAST_KIND || belongs_to != segment {
        return None;
    }
    let header = bytes.len() - fields.0.len();
    let body = fields.take(len)?;
    let is_whole = stored == !checksum(&[body, bytes.get(4..header)?]);
    is_whole.then_some(Message { kind, page, len: header + len })
}

/// Returns true if a whole message of this segment begins at this byte.
fn message_at(bytes: &[u8], at: usize, segment: u64) -> bool {
    at + MAX_MESSAGE_HEADER <= SEGMENT && bytes.get(at..).is_some_and(|bytes| message(bytes, segment).is_some())
}

/// Reads a number in sled's encoding.
fn number(fields: &mut Fields<'_>) -> Option<u64> {
    Some(match fields.u8()? {
        first @ 0..=240 => u64::from(first),
        first @ 241..=248 => 240 + 256 * (u64::from(first) - 241) + u64::from(fields.u8()?),
        249 => 2_288 + 256 * u64::from(fields.u8()?) + u64::from(fields.u8()?),
        first => {
            let bytes = fields.take(usize::from(first) - 247)?;
            bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
        }
    })
}

/// Returns true if these bytes are settings of sled with a right checksum.
fn is_conf(bytes: &[u8]) -> bool {
    let Some((content, stored)) = bytes.split_last_chunk::<4>() else { return false };
    !content.is_empty() && u32::from_le_bytes(*stored) == checksum(&[content])
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::ops::Range;

    use super::*;

    thread_local! {
        static UNREADABLE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }

    /// Makes reads of these bytes fail on this thread.
    pub(crate) fn set_unreadable(bytes: &Range<u64>) {
        UNREADABLE.set((bytes.start, bytes.end));
    }

    pub(super) fn is_unreadable(at: u64, len: u64) -> bool {
        let (start, end) = UNREADABLE.get();
        at < end && start < at + len
    }

    #[test]
    fn only_the_pages_that_cannot_be_read_are_zeros() {
        let bad = 3 * PAGE as u64;
        let read = |page: &mut [u8], at: u64| {
            page.fill(7);
            if at == bad { Err(std::io::ErrorKind::Other.into()) } else { Ok(()) }
        };
        let mut bytes = vec![1; 4 * PAGE + 100];
        assert_eq!(read_pages(&mut bytes, PAGE as u64, &read), PAGE as u64);
        let zeros = 2 * PAGE..3 * PAGE;
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if zeros.contains(&at) { 0 } else { 7 }));
    }

    #[test]
    fn numbers_are_decoded_as_sled_encodes_them() {
        for (bytes, wanted) in [
            (&[240][..], Some(240)),
            (&[241, 0], Some(240)),
            (&[248, 255], Some(2_287)),
            (&[249, 0, 0], Some(2_288)),
            (&[250, 1, 2, 3], Some(0x03_02_01)),
            (&[255, 1, 0, 0, 0, 0, 0, 0, 255], Some(0xff00_0000_0000_0001)),
            (&[255, 1, 0, 0, 0, 0, 0, 0], None),
            (&[249, 1], None),
            (&[], None),
        ] {
            assert_eq!(number(&mut Fields(bytes)), wanted, "{bytes:?}");
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic() {
        let mut log = Log::default();
        let mut segment = vec![0xff; SEGMENT];
        // A position below zero, with a right checksum.
        for position in [u64::MAX, u64::MAX >> 1, 1 << 63, (u64::MAX >> 1) - SEGMENT as u64 + 1] {
            segment[4..12].copy_from_slice(&(position ^ (u64::MAX >> 1)).to_le_bytes());
            let stored = !checksum(&[&segment[4..HEADER]]);
            segment[..4].copy_from_slice(&stored.to_le_bytes());
            for byte in [0, 1, 250, 255] {
                segment[HEADER..].fill(byte);
                for len in [0, 1, HEADER, HEADER + 5, SEGMENT - 1, SEGMENT] {
                    log.add(0, &segment[..len]);
                }
            }
        }
        assert!(log.has_all_pages(Some(&[0xff; 100])).is_none());
    }
}
