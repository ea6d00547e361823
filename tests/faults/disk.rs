//! The states that a power cut may leave of a recorded directory.
//!
//! The model of the disk. Everything covered by a sync stays. For the rest, each block of 4 KiB is independent: the
//! disk has any version that the block has had, or a mix of two versions by sectors of 512 bytes. Each sector is
//! completely old or new.
//!
//! The size of a file is any that it has had since its last sync. A change of a directory entry (created, removed,
//! renamed) stays once the directory is synced. Before that, the strict model may lose each change by itself. The
//! ordered model, as in ext4, loses all changes from some point on. There, the sync of a new file also keeps its entry.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::record::{Event, Log, Node, NodeInfo};
use crate::threads::Rng;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// The share of unsynced changes that survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Nothing,
    Everything,
    /// About this percentage of the changes survives. Some blocks are torn.
    Percent(u64),
}

/// Syncs that report success without effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lies {
    /// The entry of the log from which syncs have no effect.
    pub(crate) from: usize,
    pub(crate) about: fn(&Log, Node) -> bool,
}

impl Lies {
    pub(crate) fn none() -> Self {
        Self { from: usize::MAX, about: |_, _| false }
    }
}

/// A change of a file that no sync has covered.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Arc<[u8]>, part: (usize, usize) },
    Truncate { len: usize },
}

impl Change {
    /// Returns the range of changed bytes, in a file of at most `longest` bytes.
    fn range(&self, longest: usize) -> (usize, usize) {
        match self {
            Self::Write { offset, part, .. } => (offset + part.0, offset + part.1),
            Self::Truncate { len } => (*len, longest),
        }
    }

    /// Applies the change to the bytes of a file from `start` on.
    fn apply(&self, start: usize, bytes: &mut [u8]) {
        let (from, to) = self.range(start + bytes.len());
        let (from, to) = (from.max(start), to.min(start + bytes.len()));
        if from >= to {
            return;
        }
        let changed = &mut bytes[from - start..to - start];
        match self {
            Self::Write { offset, bytes, .. } => changed.copy_from_slice(&bytes[from - offset..to - offset]),
            Self::Truncate { .. } => changed.fill(0),
        }
    }

    fn size(&self, before: usize) -> usize {
        match self {
            Self::Write { .. } => before.max(self.range(0).1),
            Self::Truncate { len } => *len,
        }
    }
}

#[derive(Debug, Default)]
struct FileState {
    durable: Vec<u8>,
    /// The unsynced changes with their entries in the log.
    pending: Vec<(usize, Change)>,
}

impl FileState {
    /// Makes all changes logged before this entry durable.
    fn sync(&mut self, before: usize) {
        let (covered, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|(at, _)| *at < before);
        self.pending = rest;
        for (_, change) in covered {
            self.durable.resize(change.size(self.durable.len()), 0);
            change.apply(0, &mut self.durable);
        }
    }

    /// Makes the last write durable, with the whole pages that it touches. Makes all earlier truncations durable too,
    /// because the size of the file becomes durable.
    fn sync_last(&mut self) {
        if let Some(truncated) = self.pending.iter().rposition(|(_, change)| matches!(change, Change::Truncate { .. }))
        {
            self.sync(self.pending[truncated].0 + 1);
        }
        let Some((_, last)) = self.pending.last() else { return };
        let (from, to) = last.range(0);
        let (from, to) = (from / BLOCK * BLOCK, to.next_multiple_of(BLOCK));
        self.durable.resize(last.size(self.durable.len()), 0);
        let end = to.min(self.durable.len());
        let mut rest = Vec::new();
        for (at, change) in std::mem::take(&mut self.pending) {
            change.apply(from, &mut self.durable[from..end]);
            let Change::Write { offset, bytes, part } = change else { continue };
            let left = (part.0, part.1.min(from.saturating_sub(offset)));
            let right = (part.0.max(to.saturating_sub(offset)), part.1);
            for part in [left, right].into_iter().filter(|(start, end)| start < end) {
                rest.push((at, Change::Write { offset, bytes: Arc::clone(&bytes), part }));
            }
        }
        self.pending = rest;
    }

    fn crash(&self, keep: Keep, rng: &mut Rng) -> Vec<u8> {
        let mut sizes = vec![self.durable.len()];
        for (_, change) in &self.pending {
            sizes.push(change.size(sizes[sizes.len() - 1]));
        }
        let longest = sizes.iter().copied().max().unwrap_or_default();
        let mut bytes = self.durable.clone();
        bytes.resize(longest, 0);
        let mut touched: BTreeMap<usize, Vec<&Change>> = BTreeMap::new();
        for (_, change) in &self.pending {
            let (from, to) = change.range(longest);
            for block in from / BLOCK..to.div_ceil(BLOCK) {
                touched.entry(block).or_default().push(change);
            }
        }
        for (block, changes) in touched {
            let start = block * BLOCK;
            let end = (start + BLOCK).min(longest);
            let mut versions = vec![bytes[start..end].to_vec()];
            for change in changes {
                let mut next = versions[versions.len() - 1].clone();
                change.apply(start, &mut next);
                versions.push(next);
            }
            bytes[start..end].copy_from_slice(&pick(&versions, keep, rng));
        }
        bytes.resize(sizes[version(sizes.len(), keep, rng)], 0);
        bytes
    }
}

/// Picks one of `count` versions. The first one is durable.
fn version(count: usize, keep: Keep, rng: &mut Rng) -> usize {
    let random = |rng: &mut Rng| usize::try_from(rng.below(count as u64)).unwrap();
    match keep {
        Keep::Nothing => 0,
        Keep::Everything => count - 1,
        Keep::Percent(percent) if rng.below(100) < percent => count - 1,
        Keep::Percent(_) if rng.below(2) == 0 => 0,
        Keep::Percent(_) => random(rng),
    }
}

/// Picks the content of a block: one version, or, half of the time, sectors of two versions.
fn pick(versions: &[Vec<u8>], keep: Keep, rng: &mut Rng) -> Vec<u8> {
    let one = &versions[version(versions.len(), keep, rng)];
    if !matches!(keep, Keep::Percent(_)) || rng.below(2) > 0 {
        return one.clone();
    }
    let other = &versions[usize::try_from(rng.below(versions.len() as u64)).unwrap()];
    let sectors = one.chunks(SECTOR).zip(other.chunks(SECTOR));
    sectors.flat_map(|(one, other)| if rng.below(2) == 0 { one } else { other }).copied().collect()
}

type Entries = Vec<BTreeMap<OsString, Node>>;

/// A directory after a part of a log: its durable content and its unsynced changes.
pub(crate) struct Disk<'a> {
    log: &'a Log,
    lies: Lies,
    /// True for the ordered model of directories.
    ordered: bool,
    at: usize,
    files: Vec<FileState>,
    entries: Entries,
    /// The entries of the log that change directories and are not synced.
    pending: Vec<usize>,
}

/// The files and directories that remain after a power cut.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    entries: Entries,
    files: BTreeMap<Node, Vec<u8>>,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(log: &'a Log, lies: Lies, ordered: bool) -> Self {
        let file = |node: &NodeInfo| FileState { durable: node.bytes.to_vec(), pending: Vec::new() };
        let files = log.nodes.iter().map(file).collect();
        let entries = log.nodes.iter().map(|node| node.entries.clone()).collect();
        Self { log, lies, ordered, at: 0, files, entries, pending: Vec::new() }
    }

    /// Returns the next entry of the log.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Applies all entries of the log before this one.
    pub(crate) fn advance(&mut self, to: usize) {
        while self.at < to {
            self.step(self.at);
            self.at += 1;
        }
    }

    fn step(&mut self, at: usize) {
        let lies = |node: Node| at >= self.lies.from && (self.lies.about)(self.log, node);
        match &self.log.events[at] {
            Event::Write { node, offset, bytes } => {
                let offset = usize::try_from(*offset).unwrap();
                let change = Change::Write { offset, bytes: Arc::clone(bytes), part: (0, bytes.len()) };
                self.files[*node].pending.push((at, change));
            }
            Event::Truncate { node, len } => {
                let change = Change::Truncate { len: usize::try_from(*len).unwrap() };
                self.files[*node].pending.push((at, change));
            }
            Event::Synced { node, .. } | Event::WriteSynced { node } if lies(*node) => {}
            Event::Synced { node, before } if self.log.nodes[*node].is_dir => self.sync_dir(*node, *before),
            Event::Synced { node, before } => {
                self.files[*node].sync(*before);
                let is_new =
                    |at: &usize| matches!(&self.log.events[*at], Event::Created { node: made, .. } if made == node);
                if self.ordered && self.pending.iter().any(is_new) {
                    self.sync_dir(*node, *before);
                }
            }
            Event::WriteSynced { node } => self.files[*node].sync_last(),
            Event::Created { .. } | Event::Removed { .. } | Event::Renamed { .. } => self.pending.push(at),
            Event::RangePushed { .. } | Event::Mark(_) => {}
        }
    }

    /// Syncs a directory. In the ordered model, this covers all directories.
    fn sync_dir(&mut self, node: Node, before: usize) {
        let log = self.log;
        let covered = |at: &usize| *at < before && (self.ordered || dirs(&log.events[*at]).contains(&node));
        let (covered, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(covered);
        self.pending = rest;
        for at in covered {
            change_entries(&mut self.entries, &log.events[at]);
        }
    }

    /// Returns one of the states that a power cut may leave now.
    pub(crate) fn crash(&self, keep: Keep, rng: &mut Rng) -> Image {
        let mut entries = self.entries.clone();
        let (mut missing, mut ended) = (HashSet::new(), false);
        for at in &self.pending {
            let event = &self.log.events[*at];
            let kept = match keep {
                Keep::Nothing => false,
                Keep::Everything => true,
                Keep::Percent(percent) => rng.below(100) < percent,
            };
            // A change that depends on a missing change is missing too.
            let kept = kept && !ended && !names(event).iter().any(|name| missing.contains(name));
            if kept {
                change_entries(&mut entries, event);
            } else {
                missing.extend(names(event));
                ended = self.ordered;
            }
        }
        let mut files = BTreeMap::new();
        for node in reachable(&entries).into_iter().filter(|node| !self.log.nodes[*node].is_dir) {
            files.insert(node, self.files[node].crash(keep, rng));
        }
        Image { entries, files }
    }
}

fn dirs(event: &Event) -> Vec<Node> {
    names(event).into_iter().map(|(dir, _)| dir).collect()
}

fn names(event: &Event) -> Vec<(Node, &OsString)> {
    match event {
        Event::Created { dir, name, .. } | Event::Removed { dir, name } => vec![(*dir, name)],
        Event::Renamed { dir, name, to, to_name } => vec![(*dir, name), (*to, to_name)],
        _ => Vec::new(),
    }
}

fn change_entries(entries: &mut Entries, event: &Event) {
    match event {
        Event::Created { dir, name, node } => {
            entries[*dir].insert(name.clone(), *node);
        }
        Event::Removed { dir, name } => {
            entries[*dir].remove(name);
        }
        Event::Renamed { dir, name, to, to_name } => {
            if let Some(node) = entries[*dir].remove(name) {
                entries[*to].insert(to_name.clone(), node);
            }
        }
        _ => {}
    }
}

fn reachable(entries: &Entries) -> BTreeSet<Node> {
    let (mut found, mut left) = (BTreeSet::new(), vec![0]);
    while let Some(node) = left.pop() {
        found.insert(node);
        left.extend(entries[node].values());
    }
    found
}

impl Image {
    /// Writes the image into an empty directory.
    pub(crate) fn write(&self, dir: &Path) {
        self.write_node(0, dir);
    }

    /// Returns all files and directories by path.
    pub(crate) fn paths(&self) -> BTreeMap<PathBuf, Node> {
        let mut paths = BTreeMap::new();
        let mut left = vec![(PathBuf::new(), 0)];
        while let Some((path, node)) = left.pop() {
            left.extend(self.entries[node].iter().map(|(name, child)| (path.join(name), *child)));
            paths.insert(path, node);
        }
        paths
    }

    fn write_node(&self, node: Node, path: &Path) {
        for (name, child) in &self.entries[node] {
            let path = path.join(name);
            if let Some(bytes) = self.files.get(child) {
                write_sparse(&path, bytes);
            } else {
                std::fs::create_dir(&path).unwrap();
                self.write_node(*child, &path);
            }
        }
    }
}

fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (block, bytes) in bytes.chunks(16 * BLOCK).enumerate() {
        if bytes.iter().any(|byte| *byte != 0) {
            file.write_all_at(bytes, (block * 16 * BLOCK) as u64).unwrap();
        }
    }
}

#[cfg(test)]
mod tests;
