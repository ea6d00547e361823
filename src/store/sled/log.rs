//! sled's files, read without sled: to know what an open of it will find, before it writes.
//!
//! Opening, sled fills with zeros every segment that it takes for free, and cuts its log where it cannot read on. In a damaged store it
//! destroys like that what could still be read. So each message of the log is read here first, with sled's own checksums, and the
//! places of pages that its snapshot names: if all of it is whole, sled loses nothing. If not, it is not opened on these files.
//!
//! The log is the file `db`, in segments of 512 KiB. A segment begins with the checksum (4) of its position in the log and of
//! the last stable position then (8 each, inverted). Messages follow: checksum (4), kind (1), length, number of the segment, number
//! of the page (as sled encodes numbers), body. A snapshot is the position up to which it holds, the segment in use (8 each), and for
//! each page where in the log it is.

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
/// A message begins so far before the end of its segment.
const LAST: usize = 32;
/// Ends a segment that is not full.
const CAP: u8 = 2;
/// A part of a page, which is behind another one.
const LINK: [u8; 2] = [10, 11];
/// The highest kind of a message.
const LAST_KIND: u8 = 11;

/// A message that is whole.
#[derive(Clone, Copy, Debug)]
struct Message {
    kind: u8,
    page: u64,
    len: usize,
}

/// What is known of the log after all of it was read.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Of each message by its place in the file: its position in the log and its page.
    messages: HashMap<u64, (u64, u64)>,
    /// Of each page the last position at which it was written as a whole, or freed.
    replaced: HashMap<u64, u64>,
    /// The last position that a message ends at.
    end: u64,
    /// The positions of segments whose messages end early.
    torn: Vec<u64>,
    /// The positions that segments begin at.
    segments: Vec<u64>,
    /// Something is neither empty nor a segment; or a message comes after one that is not whole.
    is_damaged: bool,
}

impl Log {
    /// Reads a segment, which is at this place in the file. Returns how many of its bytes are messages that are whole.
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
            if at + LAST > SEGMENT {
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
            if !LINK.contains(&message.kind) {
                let last = self.replaced.entry(message.page).or_default();
                *last = place.max(*last);
            }
            at += message.len;
            self.end = self.end.max(position + at as u64);
            if message.kind == CAP {
                break;
            }
        }
        at
    }

    /// Whether sled, opened on the files in this directory, finds everything that the log holds.
    pub(super) fn is_whole(&self, dir: &Path) -> Result<bool> {
        // The last write may be torn: it was never waited for.
        let last = self.segments.iter().max();
        let is_torn = self.torn.iter().any(|position| Some(position) != last);
        if self.is_damaged || is_torn {
            return Ok(false);
        }
        let (mut snapshot, mut has_conf) = (None, false);
        // In the order of their names: of several snapshots sled takes the last.
        for (path, kind) in files::entries(dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_sound = match name {
                "db" => true,
                "conf" => {
                    has_conf = is_conf(&read(&path)?);
                    has_conf
                }
                "blobs" => kind.is_dir() && files::entries(&path)?.is_empty(),
                _ => {
                    let bytes = read(&path)?;
                    // A torn one under its first name is removed before sled is opened, a whole one gets its name.
                    let is_torn = name.ends_with(snapshots::UNFINISHED) && snapshots::content(&bytes).is_none();
                    if !is_torn {
                        snapshot = Some(bytes);
                    }
                    name.starts_with(snapshots::PREFIX)
                }
            };
            if !is_sound {
                return Ok(false);
            }
        }
        let finds_all =
            snapshot.map_or_else(|| self.is_first(), |snapshot| self.has_all_pages(&snapshot).unwrap_or(false));
        Ok(has_conf && finds_all)
    }

    /// Whether the log is there from its first segment on, without a gap. A store has no snapshot until it is opened a second time.
    fn is_first(&self) -> bool {
        let mut segments = self.segments.clone();
        segments.sort_unstable();
        segments.iter().zip(0_u64..).all(|(position, nth)| *position == nth * SEGMENT as u64)
    }

    /// Whether the log still has what a snapshot names, or something newer. `None` if it is malformed.
    fn has_all_pages(&self, snapshot: &[u8]) -> Option<bool> {
        let content = snapshots::content(snapshot)?;
        let mut fields = Fields(content);
        let stable = fields.u64()?.checked_sub(1)?;
        number(&mut fields)?;
        let mut page = 0;
        while !fields.0.is_empty() {
            // None: the page is free, and this is where the log says so.
            let parts = fields.u8()?;
            let mut has_all = true;
            for _ in 0..parts.max(1) {
                let (position, kind, place) = (fields.u64()?, fields.u8()?, number(&mut fields)?);
                if parts > 0 {
                    number(&mut fields)?;
                    // None of ours is in a file of its own.
                    has_all &= kind == 0 && self.messages.get(&place) == Some(&(position, page));
                }
            }
            let is_replaced = self.replaced.get(&page).is_some_and(|position| *position >= stable);
            if !has_all && !is_replaced {
                return Some(false);
            }
            page += 1;
        }
        Some(stable <= self.end)
    }
}

/// Reads the file segment by segment.
pub(super) fn for_each_segment(file: &File, path: &Path, mut f: impl FnMut(u64, &[u8])) -> Result<()> {
    let failed = |cause: &std::io::Error| Error::io("read", path, cause);
    let len = file.metadata().map_err(|cause| failed(&cause))?.len();
    let (mut bytes, mut offset) = (vec![0; SEGMENT], 0);
    while offset < len {
        let here = usize::try_from(len - offset).map_or(SEGMENT, |left| left.min(SEGMENT));
        let bytes = bytes.get_mut(..here).unwrap_or_default();
        file.read_exact_at(bytes, offset).map_err(|cause| failed(&cause))?;
        f(offset, bytes);
        offset += SEGMENT as u64;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|cause| Error::io("read", path, &cause))
}

/// Where in the log a segment begins, if its header is whole.
fn position(bytes: &[u8]) -> Option<u64> {
    let mut fields = Fields(bytes.get(..HEADER)?);
    let stored = fields.u32()?;
    if stored != !checksum(&[fields.0]) {
        return None;
    }
    let position = fields.u64()? ^ (u64::MAX >> 1);
    (position % SEGMENT as u64 == 0).then_some(position)
}

/// The message that these bytes begin with, if it is whole and belongs to this segment.
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

/// As in `message`, for a place that need not be one.
fn message_at(bytes: &[u8], at: usize, segment: u64) -> bool {
    at + LAST <= SEGMENT && bytes.get(at..).is_some_and(|bytes| message(bytes, segment).is_some())
}

/// A number as sled encodes it.
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

/// Whether sled reads its settings from these bytes as they were written.
fn is_conf(bytes: &[u8]) -> bool {
    let Some((content, stored)) = bytes.split_last_chunk::<4>() else { return false };
    !content.is_empty() && u32::from_le_bytes(*stored) == checksum(&[content])
}
