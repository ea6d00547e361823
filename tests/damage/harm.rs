//! Kinds of damage to a file, and the choice of the place.

use std::fs;
use std::path::{Path, PathBuf};

use crate::threads::Rng;

/// One kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    FlipBit,
    ChangeByte,
    Zero512,
    Zero4096,
    Truncate,
    CutOut,
    Append,
    Delete,
    Swap,
}

const HARMS: [Harm; 9] = [
    Harm::FlipBit,
    Harm::ChangeByte,
    Harm::Zero512,
    Harm::Zero4096,
    Harm::Truncate,
    Harm::CutOut,
    Harm::Append,
    Harm::Delete,
    Harm::Swap,
];

/// The purpose of a file in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Segment,
    SpareSegment,
    SledLog,
    SledSnapshot,
    SledConf,
    Lock,
}

impl Part {
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "LOCK" {
            Self::Lock
        } else if name.ends_with(".journal") {
            let bytes = fs::read(path).unwrap();
            if bytes.iter().take(512).all(|byte| *byte == 0) { Self::SpareSegment } else { Self::Segment }
        } else if name == "db" {
            Self::SledLog
        } else if name.starts_with("snap.") {
            Self::SledSnapshot
        } else {
            assert_eq!(name, "conf", "an unknown file");
            Self::SledConf
        }
    }

    /// Returns how often files of this part are damaged.
    fn weight(self) -> usize {
        match self {
            Self::Segment => 12,
            Self::SledLog => 16,
            Self::SledSnapshot => 6,
            Self::SpareSegment => 2,
            Self::SledConf | Self::Lock => 1,
        }
    }
}

pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Returns every file below a directory with its bytes, owner and mode.
pub(crate) fn contents(dir: &Path) -> Vec<(PathBuf, u32, u32, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt as _;
    let one = |path: PathBuf| {
        let (metadata, bytes) = (fs::metadata(&path).unwrap(), fs::read(&path).unwrap());
        (path, metadata.uid(), metadata.mode(), bytes)
    };
    files(dir).into_iter().map(one).collect()
}

/// Damages one file below a directory. Returns the part, the kind and a description.
pub(crate) fn damage(dir: &Path, rng: &mut Rng) -> (Part, Harm, String) {
    loop {
        let files: Vec<_> = files(dir).into_iter().map(|path| (Part::of(&path), path)).collect();
        let mut parts: Vec<_> = files.iter().map(|(part, _)| *part).collect();
        parts.sort();
        parts.dedup();
        let weighted: Vec<Part> = parts.iter().flat_map(|part| std::iter::repeat_n(*part, part.weight())).collect();
        let part = weighted[below(rng, weighted.len())];
        let of_it: Vec<_> = files.iter().filter(|(other, _)| *other == part).map(|(_, path)| path).collect();
        let path = of_it[below(rng, of_it.len())];
        let harm = HARMS[below(rng, HARMS.len())];
        if let Some(how) = inflict(path, &of_it, harm, rng) {
            return (part, harm, format!("{harm:?} of {}: {how}", path.display()));
        }
    }
}

fn below(rng: &mut Rng, n: usize) -> usize {
    usize::try_from(rng.below(n.max(1) as u64)).unwrap()
}

/// Damages a file. Returns `None` if nothing would change.
fn inflict(path: &Path, others: &[&PathBuf], harm: Harm, rng: &mut Rng) -> Option<String> {
    let old = fs::read(path).unwrap();
    let (mut bytes, at) = (old.clone(), place(&old, rng));
    let how = match harm {
        Harm::FlipBit => {
            let bit = rng.below(8);
            *bytes.get_mut(at)? ^= 1 << bit;
            format!("bit {bit} at {at}")
        }
        Harm::ChangeByte => {
            *bytes.get_mut(at)? = rng.next().to_be_bytes()[0];
            format!("at {at}")
        }
        Harm::Zero512 | Harm::Zero4096 => {
            let len = if harm == Harm::Zero512 { 512 } else { 4096 };
            let from = at / len * len;
            let end = bytes.len().min(from + len);
            bytes.get_mut(from..end)?.fill(0);
            format!("at {from}")
        }
        Harm::Truncate => {
            bytes.truncate(at);
            format!("to {at}")
        }
        Harm::CutOut => {
            let end = bytes.len().min(at + 1 + below(rng, 4096));
            bytes.drain(at..end);
            format!("{at} to {end}")
        }
        Harm::Append => {
            bytes.extend((0..=rng.below(4096)).map(|_| rng.next().to_be_bytes()[0]));
            format!("{} to {}", old.len(), bytes.len())
        }
        Harm::Delete => {
            fs::remove_file(path).unwrap();
            return Some(String::new());
        }
        Harm::Swap => return swap(path, others, &old, rng),
    };
    if bytes == old {
        return None;
    }
    fs::write(path, bytes).unwrap();
    Some(how)
}

/// Exchanges the names of two files. If there is only one, exchanges two pieces of sled's segment size in it.
fn swap(path: &Path, others: &[&PathBuf], old: &[u8], rng: &mut Rng) -> Option<String> {
    const SLED_SEGMENT: usize = 512 << 10;
    let other = others[below(rng, others.len())];
    if other.as_path() != path {
        let theirs = fs::read(other).unwrap();
        fs::write(other, old).unwrap();
        fs::write(path, theirs).unwrap();
        // The names of journal files have no meaning, so this must be harmless.
        return Some(format!("with {}", other.display()));
    }
    let pieces = old.len() / SLED_SEGMENT;
    let (a, b) = (below(rng, pieces), below(rng, pieces));
    if pieces < 2 || a == b {
        return None;
    }
    let mut bytes = old.to_vec();
    for index in 0..SLED_SEGMENT {
        bytes.swap(a * SLED_SEGMENT + index, b * SLED_SEGMENT + index);
    }
    fs::write(path, bytes).unwrap();
    Some(format!("pieces {a} and {b}"))
}

/// Chooses a place where data is likely: in a header, near the end of the data, or anywhere in it.
fn place(bytes: &[u8], rng: &mut Rng) -> usize {
    let used: Vec<usize> = bytes
        .chunks(512)
        .enumerate()
        .filter(|(_, sector)| sector.iter().any(|byte| *byte != 0))
        .map(|(at, _)| at)
        .collect();
    let in_sector = |sector: usize, rng: &mut Rng| (sector * 512 + below(rng, 512)).min(bytes.len().saturating_sub(1));
    match rng.below(10) {
        0 => below(rng, bytes.len()),
        // The first bytes of the file or of one of sled's segments.
        1 => (below(rng, bytes.len().div_ceil(512 << 10)) * (512 << 10) + below(rng, 100))
            .min(bytes.len().saturating_sub(1)),
        2 if !used.is_empty() => in_sector(used[used.len() - 1 - below(rng, used.len().min(6))], rng),
        // The start of a sector, where group headers are.
        3 if !used.is_empty() => {
            (used[below(rng, used.len())] * 512 + below(rng, 88)).min(bytes.len().saturating_sub(1))
        }
        _ if !used.is_empty() => in_sector(used[below(rng, used.len())], rng),
        _ => below(rng, bytes.len()),
    }
}
