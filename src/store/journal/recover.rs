//! Reads what a journal holds, and tells a torn tail from damage.
//!
//! A group at the end that is bad or missing was promised to nobody and is cut, unless something proves that it was durable:
//! a later group, a later segment, a seal. Then it is damage, and nothing is served. What lies before the last checkpoint is
//! in sled, and does not matter here.

use std::path::Path;
use std::sync::Arc;

use super::pool::Pool;
use super::segment::SegmentFile;
use super::writer::{Chain, Tail};
use crate::clock::Anchor;
use crate::error::{Error, ErrorKind, Result};
use crate::store::files;
use crate::store::format::corrupt;
use crate::store::format::frame::{self, Frame};
use crate::store::format::segment::{Found, GROUP_HEADER, GroupHeader, SECTOR, SegmentHeader, payload_checksum, sized};

/// A journal that was read through once and is sound.
#[derive(Debug)]
pub(crate) struct Recovered {
    segments: Vec<Surveyed>,
    /// Files that hold nothing that counts: spares, and segments that were free to be written over.
    unneeded: Vec<SegmentFile>,
    pub(crate) store_id: [u8; 16],
    /// sled has everything up to this frame, or should.
    pub(crate) checkpointed: u64,
    /// The last frame that changes anything.
    pub(crate) last_change: u64,
    /// The highest frame number that anything names.
    pub(crate) last_frame: u64,
    pub(crate) anchor: Anchor,
    /// The last thing it says is that it was closed.
    pub(crate) clean: bool,
    /// Bytes of a group that was cut.
    pub(crate) torn_bytes: u64,
    pub(crate) chain: Chain,
    pub(crate) pool: Arc<Pool>,
}

#[derive(Debug)]
struct Surveyed {
    file: SegmentFile,
    header: SegmentHeader,
    groups: Vec<GroupAt>,
    /// Behind the last good group.
    end: u64,
    last_frame: u64,
}

#[derive(Clone, Copy, Debug)]
struct GroupAt {
    offset: usize,
    header: GroupHeader,
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

pub(super) struct Walk {
    groups: Vec<GroupAt>,
    end: usize,
    /// The number that the next group has.
    pub(super) next_group: u64,
    pub(super) previous: u32,
    checkpointed: Option<u64>,
    last_change: u64,
    closed: bool,
    /// The last group of which the seal says that it was durable.
    sealed_through: u64,
    pub(super) stop: Stop,
}

impl Recovered {
    /// Gives every frame after the last checkpoint, in order.
    pub(crate) fn replay(&self, f: &mut dyn FnMut(u64, Frame) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.last_frame > self.checkpointed) {
            segment.file.read_all(&mut bytes)?;
            for group in &segment.groups {
                let payload = payload(&bytes, group.offset, &group.header);
                for (number, frame) in frame::decode_all(payload, group.header.first_frame, group.header.frames)? {
                    if number > self.checkpointed {
                        f(number, frame)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The last segment's end, where it is to be sealed. The others are the pool's: free up to the last checkpoint, or
    /// waiting for the next.
    pub(crate) fn into_tail(mut self) -> Result<Tail> {
        let Some(last) = self.segments.pop() else { return Err(corrupt("the journal has no segment")) };
        for segment in self.segments {
            self.pool.adopt(segment.last_frame, segment.file);
        }
        for file in self.unneeded {
            self.pool.adopt(0, file);
        }
        self.pool.release(self.checkpointed);
        Ok(Tail { file: last.file, salt: last.header.salt, offset: last.end, last_frame: last.last_frame })
    }
}

/// Reads and syncs what there is; changes nothing.
pub(crate) fn recover(dir: &Path, first_size: u64) -> Result<Recovered> {
    if !files::is_dir(dir) {
        return Err(corrupt(format!("the journal {} is missing", dir.display())));
    }
    // A process that was killed may have made files, and not their entries durable; they will be written to.
    files::sync_dir(dir)?;
    let (found, mut unneeded, next_name) = open_all(dir)?;
    let store_id = one_store(&found)?;
    let files = found.len() as u64 + unneeded.len() as u64;
    let run = last_run(dir, found, &mut unneeded)?;
    let pool = Arc::new(Pool::new(dir, first_size, next_name, files));
    Ok(Recovered { unneeded, store_id, ..survey(dir, run, pool)? })
}

type Headed = (SegmentHeader, SegmentFile);

/// Every segment and every spare, and the next free name.
fn open_all(dir: &Path) -> Result<(Vec<Headed>, Vec<SegmentFile>, u64)> {
    let (mut found, mut spares, mut next_name) = (Vec::new(), Vec::new(), 1);
    for (path, _) in files::entries(dir)? {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        next_name = next_name.max(name.unwrap_or(0).saturating_add(1));
        let file = SegmentFile::open(&path)?;
        // What the page cache shows may never have reached the disk; from here on it has.
        file.sync()?;
        match SegmentHeader::decode(&head(&file)?) {
            Found::Spare => spares.push(file),
            Found::Damaged => return Err(corrupt(format!("the header of {} is damaged", path.display()))),
            Found::NewerFormat(version) => {
                let message = format!("{} has format {version}, which this version does not know", path.display());
                return Err(Error::new(ErrorKind::UnsupportedFormat, message));
            }
            Found::Segment(header) => {
                check_size(&header, &file)?;
                found.push((header, file));
            }
        }
    }
    Ok((found, spares, next_name))
}

pub(super) fn head(file: &SegmentFile) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let len = usize::try_from(file.size).map_or(SECTOR, |size| size.min(SECTOR));
    let mut bytes = vec![0; len];
    file.file.read_exact_at(&mut bytes, 0).map_err(|cause| Error::io("read journal segment", &file.path, &cause))?;
    Ok(bytes)
}

fn check_size(header: &SegmentHeader, file: &SegmentFile) -> Result<()> {
    if header.size != file.size {
        let (path, is, was) = (file.path.display(), file.size, header.size);
        return Err(corrupt(format!("{path} is {is} bytes long and should be {was}")));
    }
    Ok(())
}

/// The store that all segments belong to.
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

/// The segments that follow each other without a gap up to the last. Older ones were free to be written over at any time.
fn last_run(dir: &Path, mut found: Vec<Headed>, older: &mut Vec<SegmentFile>) -> Result<Vec<Headed>> {
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    let mut run: Vec<Headed> = Vec::new();
    for (header, file) in found {
        match run.last() {
            Some((next, other)) if next.number == header.number => {
                let (a, b) = (file.path.display(), other.path.display());
                return Err(corrupt(format!("{a} and {b} are the same journal segment")));
            }
            // From the first gap on: `run` does not grow any more, so none behind it follows.
            Some((next, _)) if next.number != header.number.saturating_add(1) => older.push(file),
            _ => run.push((header, file)),
        }
    }
    if run.is_empty() {
        return Err(corrupt(format!("the journal {} has no segment", dir.display())));
    }
    run.reverse();
    Ok(run)
}

fn survey(dir: &Path, run: Vec<Headed>, pool: Arc<Pool>) -> Result<Recovered> {
    let bounds: Vec<_> = run.iter().skip(1).map(|(header, _)| Some(*header)).chain([None]).collect();
    let mut segments = Vec::new();
    let mut checkpointed = None;
    // The first frame behind the last damage.
    let mut damaged_before = None;
    let (mut anchor, mut clean, mut torn) = (Anchor::default(), false, 0);
    let mut chain = Chain { segment: 0, group: 0, previous: 0 };
    let (mut last_frame, mut last_change, mut sealed_through) = (0, 0, 0);
    let mut bytes = Vec::new();
    for ((header, file), next) in run.into_iter().zip(bounds) {
        file.read_all(&mut bytes)?;
        let walk = walk(&bytes, &header, next.as_ref())
            .map_err(|error| error.wrap(error.kind(), &file.path.display().to_string()))?;
        match (&walk.stop, next) {
            (Stop::Complete, Some(next)) if next.previous == walk.previous => {}
            (Stop::Complete | Stop::Bad { .. } | Stop::Sealed(_), Some(next)) => {
                damaged_before = Some((next.first_frame, file.path.clone()));
            }
            (Stop::Sealed(number), None) => {
                return Err(corrupt(format!("segment {number} of the journal {} is missing", dir.display())));
            }
            (Stop::Bad { .. }, None) if walk.next_group <= sealed_through => {
                let (group, path) = (walk.next_group, file.path.display());
                return Err(corrupt(format!("group {group} in {path} is damaged")));
            }
            (Stop::Bad { torn_bytes }, None) => torn = *torn_bytes,
            (Stop::Complete, None) => {}
        }
        sealed_through = sealed_through.max(walk.sealed_through);
        checkpointed = walk.checkpointed.or(checkpointed);
        last_change = last_change.max(walk.last_change);
        chain = Chain { segment: header.number, group: walk.next_group.saturating_sub(1), previous: walk.previous };
        let last = walk.groups.iter().rev().find(|group| group.header.frames > 0);
        let segment_last = last.map_or(0, |group| group.header.first_frame + u64::from(group.header.frames) - 1);
        last_frame = last_frame.max(segment_last).max(header.first_frame.saturating_sub(1));
        clean = if walk.groups.is_empty() { clean && next.is_some() } else { walk.closed };
        anchor = walk.groups.last().map_or(anchor, |group| group.header.anchor);
        let end = walk.end as u64;
        // An empty one counts as full of what was before it: freed early, it would leave a gap in the run.
        segments.push(Surveyed { file, header, groups: walk.groups, end, last_frame });
    }
    let Some(checkpointed) = checkpointed else {
        return Err(corrupt(format!("the journal {} has lost its beginning", dir.display())));
    };
    if let Some((frame, path)) = damaged_before.filter(|(frame, _)| checkpointed.saturating_add(1) < *frame) {
        return Err(corrupt(format!("{} is damaged before frame {frame}", path.display())));
    }
    let first = segments.first().map_or(0, |segment| segment.header.first_frame);
    let begins = segments.first().is_some_and(|segment| segment.header.number == 1);
    if !begins && checkpointed.saturating_add(1) < first {
        return Err(corrupt(format!("the journal {} misses the segments before frame {first}", dir.display())));
    }
    clean &= torn == 0;
    let (unneeded, store_id) = (Vec::new(), [0; 16]);
    Ok(Recovered {
        segments,
        unneeded,
        store_id,
        checkpointed,
        last_change,
        last_frame,
        anchor,
        clean,
        torn_bytes: torn,
        chain,
        pool,
    })
}

/// Reads groups until one is bad, or the next segment takes over.
pub(super) fn walk(bytes: &[u8], segment: &SegmentHeader, next: Option<&SegmentHeader>) -> Result<Walk> {
    let mut walk = Walk {
        groups: Vec::new(),
        end: SECTOR,
        next_group: segment.first_group,
        previous: segment.previous,
        checkpointed: None,
        last_change: 0,
        closed: false,
        sealed_through: 0,
        stop: Stop::Complete,
    };
    let mut frame = segment.first_frame;
    loop {
        let at = bytes.get(walk.end..).unwrap_or_default();
        if next.is_some_and(|next| next.first_group == walk.next_group) {
            let seal = GroupHeader::decode(at, segment.salt).filter(|(header, _)| header.is_seal);
            walk.sealed_through = seal.map_or(0, |(header, _)| header.synced_through);
            return Ok(walk);
        }
        let (header, checksum) = match GroupHeader::decode(at, segment.salt) {
            Some((header, _)) if header.is_seal => {
                walk.stop = Stop::Sealed(header.first_frame);
                return Ok(walk);
            }
            Some((header, checksum))
                if is_next(bytes, walk.end, &header, segment.salt, (walk.next_group, frame, walk.previous)) =>
            {
                (header, checksum)
            }
            other => {
                if next.is_none() {
                    refuse_durable(bytes, walk.end, segment, walk.next_group)?;
                }
                walk.stop =
                    Stop::Bad { torn_bytes: other.map_or(0, |(header, _)| sized(u64::from(header.payload_len))) };
                return Ok(walk);
            }
        };
        for (number, frame) in frame::decode_all(payload(bytes, walk.end, &header), header.first_frame, header.frames)?
        {
            walk.closed = frame == Frame::Closing;
            match frame {
                Frame::Checkpointed(frame) => walk.checkpointed = Some(frame),
                Frame::Changes(_) => walk.last_change = number,
                _ => {}
            }
        }
        walk.groups.push(GroupAt { offset: walk.end, header });
        walk.previous = checksum;
        walk.end += usize::try_from(sized(u64::from(header.payload_len))).unwrap_or(bytes.len());
        walk.next_group += 1;
        frame = header.first_frame + u64::from(header.frames);
    }
}

fn is_next(
    bytes: &[u8],
    offset: usize,
    header: &GroupHeader,
    salt: [u8; 8],
    (group, frame, previous): (u64, u64, u32),
) -> bool {
    let payload = payload(bytes, offset, header);
    header.group == group
        && header.previous == previous
        && header.first_frame >= frame
        && payload.len() as u64 == u64::from(header.payload_len)
        && header.payload_checksum == payload_checksum(salt, payload)
}

/// Shorter than its length says if the file ends before.
fn payload<'a>(bytes: &'a [u8], offset: usize, header: &GroupHeader) -> &'a [u8] {
    let start = offset.saturating_add(GROUP_HEADER);
    let len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
    bytes.get(start..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

/// If anything behind a bad group says that the group was durable, it is damage.
fn refuse_durable(bytes: &[u8], offset: usize, segment: &SegmentHeader, group: u64) -> Result<()> {
    let behind = bytes.get(offset..).unwrap_or_default().chunks(SECTOR).skip(1);
    let proof = behind
        .filter_map(|sector| GroupHeader::decode(sector, segment.salt))
        .any(|(header, _)| header.is_seal || header.synced_through >= group);
    if proof {
        return Err(corrupt(format!("group {group} is damaged")));
    }
    Ok(())
}
