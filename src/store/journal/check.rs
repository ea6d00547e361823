//! Looks through a journal that is being written, and says what is damaged.

use super::recover::{check_size, head};
use super::segment::{Reader, SegmentFile};
use crate::store::files::Dir;
use crate::store::format::segment::{Found, SegmentHeader};
use crate::store::journal::scan::{ScanEnd, SegmentScan, damaged, missing};
use crate::types::error::{ErrorKind, Result};

/// What is wrong with the segments that follow each other up to the last. `durable` is a group that is, and none that has frames
/// behind `released` has become free since.
pub(crate) fn check(dir: &Dir, durable: u64, released: u64) -> Result<Vec<String>> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for path in dir.names()? {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        // One that is gone was not needed any more.
        let Some(file) = SegmentFile::open_if_there(dir, &path)? else { continue };
        match header(&file)? {
            Found::Segment(header) => found.push((header, file)),
            Found::Spare => {}
            // It may just be written.
            Found::Damaged | Found::NewerFormat(_) => match header(&file)? {
                Found::Segment(header) => found.push((header, file)),
                _ => problems.push(format!("the header of {} is damaged", file.path.display())),
            },
        }
    }
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    // One whose header is damaged is not missing too.
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
    // Those before the first that is left, or before a gap.
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

/// A segment is written, and written over, while it is read: so what is bad at first must be bad at the same place again, and
/// it must still be the same segment.
fn damage(
    segment: &SegmentHeader,
    next: Option<&SegmentHeader>,
    file: &SegmentFile,
    durable: u64,
) -> Result<Option<String>> {
    let (first, second) = (bad_group(segment, next, file)?, bad_group(segment, next, file)?);
    let is_same = header(file)? == Found::Segment(*segment);
    Ok(match (first, second) {
        (Some((group, why)), Some(again)) if is_same && (group, &why) == (again.0, &again.1) => {
            let counts = next.is_some() || group <= durable;
            counts.then_some(why)
        }
        _ => None,
    })
}

/// The first group that is not there, and how that is said.
fn bad_group(
    segment: &SegmentHeader,
    next: Option<&SegmentHeader>,
    file: &SegmentFile,
) -> Result<Option<(u64, String)>> {
    match first_bad(segment, next, &mut Reader::new(file)) {
        // Proved to be durable by what lies behind it.
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Some((0, error.to_string()))),
        found => found,
    }
}

fn first_bad(
    segment: &SegmentHeader,
    next: Option<&SegmentHeader>,
    reader: &mut Reader<'_>,
) -> Result<Option<(u64, String)>> {
    let mut walk = SegmentScan::new(reader, segment, next)?;
    // The last one may be on its way. Before the end is looked at, which moves while it is.
    let proved = walk.groups.len() - usize::from(next.is_none() && !walk.groups.is_empty());
    for group in walk.groups.iter().take(proved) {
        group.frames(reader, segment)?;
    }
    let bad = |what: String| Ok(Some((walk.next_group, reader.file.corrupt(what).to_string())));
    match (&walk.stop, next) {
        (ScanEnd::Complete, Some(next)) if next.previous == walk.previous => Ok(None),
        (ScanEnd::Sealed(number), None) => bad(missing(*number)),
        (ScanEnd::Complete | ScanEnd::Bad | ScanEnd::Sealed(_), Some(_)) => bad(damaged(walk.next_group)),
        (ScanEnd::Complete | ScanEnd::Bad, None) => {
            walk.settle_end(reader, segment)?;
            let group = walk.next_group;
            Ok(Some((group, reader.file.corrupt(damaged(group)).to_string())))
        }
    }
}

fn header(file: &SegmentFile) -> Result<Found> {
    head(file).map(|bytes| SegmentHeader::decode(&bytes))
}
