//! Checks a journal while it is in use.

use super::recover::{check_size, head};
use super::segment::{Reader, SegmentFile};
use crate::store::files::Dir;
use crate::store::format::segment::{FileKind, SegmentHeader};
use crate::store::journal::scan::{ScanEnd, SegmentScan, damaged, missing};
use crate::types::error::{ErrorKind, Result};

/// Returns the problems of the last segments that follow each other without a gap. The group `durable` must be
/// durable, and segments with frames after `released` must be pinned.
pub(crate) fn check(dir: &Dir, durable: u64, released: u64) -> Result<Vec<String>> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for path in dir.names()? {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        // A file that is gone was free.
        let Some(file) = SegmentFile::open_if_there(dir, &path)? else { continue };
        match header(&file)? {
            FileKind::Segment(header) => found.push((header, file)),
            FileKind::Spare => {}
            // The header may be incomplete while it is written: read it once more.
            FileKind::Damaged | FileKind::OtherFormat(_) => match header(&file)? {
                FileKind::Segment(header) => found.push((header, file)),
                _ => problems.push(format!("the header of {} is damaged", file.path.display())),
            },
        }
    }
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    // A segment with a damaged header must not be reported as missing too.
    let (durable, released) = if problems.is_empty() { (durable, released) } else { (0, u64::MAX) };
    let mut next: Option<SegmentHeader> = None;
    if found.is_empty() && problems.is_empty() {
        problems.push(format!("the journal {} has no segment", dir.path().display()));
    }
    for (header, file) in &found {
        if next.is_some_and(|next| next.number != header.number.saturating_add(1)) {
            break;
        }
        problems.extend(check_size(header, file).err().map(|error| error.to_string()));
        problems.extend(damage(header, next.as_ref(), file, durable)?);
        next = Some(*header);
    }
    // The segments before the first one or before a gap are missing if they are not free.
    let missing = next.filter(|first| first.number > 1 && first.first_frame.saturating_sub(1) > released);
    problems.extend(missing.map(|first| {
        format!(
            "the journal {} misses segment {} before frame {}",
            dir.path().display(),
            first.number - 1,
            first.first_frame
        )
    }));
    Ok(problems)
}

/// Returns the problem of a segment. A segment can be written and overwritten while it is read. So a group counts as
/// damaged only if it is bad twice at the same place, and the segment is still the same.
fn damage(
    segment: &SegmentHeader,
    next: Option<&SegmentHeader>,
    file: &SegmentFile,
    durable: u64,
) -> Result<Option<String>> {
    let (first, second) = (bad_group(segment, next, file)?, bad_group(segment, next, file)?);
    let is_same = header(file)? == FileKind::Segment(*segment);
    Ok(match (first, second) {
        (Some((group, why)), Some(again)) if is_same && (group, &why) == (again.0, &again.1) => {
            let counts = next.is_some() || group <= durable;
            counts.then_some(why)
        }
        _ => None,
    })
}

/// Returns the number of the first bad group, and the problem.
fn bad_group(
    segment: &SegmentHeader,
    next: Option<&SegmentHeader>,
    file: &SegmentFile,
) -> Result<Option<(u64, String)>> {
    match first_bad(segment, next, &mut Reader::new(file)) {
        // A later group or a seal proves that the group had been durable.
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Some((0, error.to_string()))),
        found => found,
    }
}

fn first_bad(
    segment: &SegmentHeader,
    next: Option<&SegmentHeader>,
    reader: &mut Reader<'_>,
) -> Result<Option<(u64, String)>> {
    let mut scan = SegmentScan::new(reader, segment, next)?;
    // The last group may be incomplete. Count the groups before reading the end, which moves meanwhile.
    let proved = scan.groups.len() - usize::from(next.is_none() && !scan.groups.is_empty());
    for group in scan.groups.iter().take(proved) {
        group.frames(reader, segment)?;
    }
    let bad = |what: String| Ok(Some((scan.next_group, reader.file.corrupt(what).to_string())));
    match (&scan.stop, next) {
        (ScanEnd::Complete, Some(next)) if next.previous == scan.previous => Ok(None),
        (ScanEnd::Sealed(number), None) => bad(missing(*number)),
        (ScanEnd::Complete | ScanEnd::Bad | ScanEnd::Sealed(_), Some(_)) => bad(damaged(scan.next_group)),
        (ScanEnd::Complete | ScanEnd::Bad, None) => {
            scan.check_end(reader, segment)?;
            let group = scan.next_group;
            Ok(Some((group, reader.file.corrupt(damaged(group)).to_string())))
        }
    }
}

fn header(file: &SegmentFile) -> Result<FileKind> {
    head(file).map(|bytes| SegmentHeader::decode(&bytes))
}
