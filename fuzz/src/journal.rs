//! Fuzzes the recovery from damaged or random journals.

use arbitrary::{Arbitrary, Unstructured};
use oncekey::ErrorKind;
use oncekey::fuzzing::{self, Place};

/// The smallest size of a journal, because its files are read completely.
const SIZE: u64 = 8 << 10;
const MAX_SEGMENTS: usize = 4;

#[derive(Debug, Arbitrary)]
struct Journal {
    /// The frames of each group of each segment.
    segments: Vec<Vec<u8>>,
    /// The earlier segment that the last one overwrites.
    recycled: Vec<u8>,
    damage: Vec<Damage>,
    junk: Option<Vec<u8>>,
}

#[derive(Debug, Arbitrary)]
enum Damage {
    Flip { file: u8, bit: u16 },
    Write { file: u8, at: u16, bytes: Vec<u8> },
    Zero { file: u8, at: u16, len: u16 },
    Cut { file: u8, len: u16 },
    Sector { from: u8, sector: u8, to: u8, at: u8 },
    Remove { file: u8 },
}

type Files = Vec<Option<Vec<u8>>>;

/// Returns valid segments, the last of which overwrites an older one, and the number of the frame after the last.
fn written(journal: &Journal) -> Option<(Files, u64)> {
    let mut place = Place { number: 1, group: 1, frame: 1, previous: 0 };
    let mut files = Vec::new();
    let count = |frames: &u8| u32::from(frames % 4);
    for (salt, groups) in (1..).zip(journal.segments.iter().take(MAX_SEGMENTS)) {
        let mut rows: Vec<u32> = groups.iter().take(12).map(count).collect();
        if place.number == 1 {
            // The first frame states that nothing comes before it.
            rows.insert(0, 1);
        }
        let (bytes, next) = fuzzing::segment(place, salt, SIZE, &rows)?;
        place = next;
        files.push(Some(bytes));
    }
    let last = files.last_mut()?.as_mut()?;
    let rows: Vec<u32> = journal.recycled.iter().take(12).map(count).collect();
    let old = Place { number: place.number, group: place.group, frame: place.frame, previous: 9 };
    let (old, _) = fuzzing::segment(old, 77, SIZE, &rows)?;
    let end = last.iter().rposition(|byte| *byte != 0).map_or(0, |at| (at / 512 + 1) * 512);
    last[end..].copy_from_slice(&old[end..]);
    Some((files, place.frame))
}

fn harm(files: &mut Files, damage: &Damage) {
    let count = files.len();
    let file = |nth: u8| usize::from(nth) % count;
    let from = match damage {
        Damage::Sector { from, sector, .. } => {
            let at = usize::from(*sector) % 16 * 512;
            files[file(*from)].as_ref().and_then(|bytes| bytes.get(at..at + 512)).map(<[u8]>::to_vec)
        }
        _ => None,
    };
    let (Damage::Flip { file: nth, .. }
    | Damage::Write { file: nth, .. }
    | Damage::Zero { file: nth, .. }
    | Damage::Cut { file: nth, .. }
    | Damage::Sector { to: nth, .. }
    | Damage::Remove { file: nth }) = damage;
    let held = &mut files[file(*nth)];
    let Some(bytes) = held else { return };
    let over = |bytes: &mut Vec<u8>, at: usize, with: &[u8]| {
        bytes.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte = *with);
    };
    match damage {
        Damage::Flip { bit, .. } => {
            let bit = usize::from(*bit);
            bytes.iter_mut().skip(bit / 8).take(1).for_each(|byte| *byte ^= 1 << (bit % 8));
        }
        Damage::Write { at, bytes: with, .. } => over(bytes, usize::from(*at), with),
        Damage::Zero { at, len, .. } => over(bytes, usize::from(*at), &vec![0; usize::from(*len)]),
        Damage::Cut { len, .. } => bytes.truncate(usize::from(*len)),
        Damage::Sector { at, .. } => over(bytes, usize::from(*at) % 16 * 512, &from.unwrap_or_default()),
        Damage::Remove { .. } => *held = None,
    }
}

/// Asserts that recovery returns a prefix of the written frames without frames of an earlier life, or fails.
pub fn journal_recover(data: &[u8]) {
    let Ok(journal) = Journal::arbitrary(&mut Unstructured::new(data)) else { return };
    let Some((mut files, behind)) = written(&journal) else { return };
    journal.damage.iter().for_each(|damage| harm(&mut files, damage));
    let (_alone, dir) = (super::alone(), super::directory());
    for (name, bytes) in (1..).zip(&files).filter_map(|(name, file)| Some((name, file.as_ref()?))) {
        std::fs::write(dir.path().join(format!("{name:08}.journal")), bytes).unwrap();
    }
    if let Some(junk) = &journal.junk {
        std::fs::write(dir.path().join("99999999.journal"), junk).unwrap();
    }
    match fuzzing::recover(dir.path()) {
        Ok((last, frames)) => {
            assert!(last < behind, "frame {last} is from an earlier life");
            let numbers: Vec<u64> = frames.iter().map(|(number, _)| *number).collect();
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
            assert!(numbers.len() as u64 <= last);
            for (number, bytes) in frames.iter().skip(1) {
                assert!(bytes.windows(8).any(|window| window == number.to_be_bytes()), "frame {number} is another");
            }
            let is_whole = journal.damage.is_empty() && journal.junk.is_none();
            assert!(!is_whole || numbers.len() as u64 == behind - 1, "frames are missing");
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnsupportedFormat), "{error}");
            assert!(!journal.damage.is_empty() || journal.junk.is_some(), "{error}");
        }
    }
}
