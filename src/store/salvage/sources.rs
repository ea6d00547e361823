//! Finds the newest content of each key in the journal and in the runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;

use super::lost::{Gap, is_in, named, ranges};
use super::{MAX_PROBLEMS, SalvageReport, store_of};
use crate::store::format::block::{CONTENT, Kind, Place, take_entry};
use crate::store::format::frame::{Change, Content, Frame, StoreKey};
use crate::store::format::list::{FIRST_INDEX, RunInfo, Start};
use crate::store::format::record;
use crate::store::journal::Remains;
use crate::store::sled::raw::{self, Found};
use crate::types::error::{Error, ErrorKind, Result};

/// The place of a value, or its removal.
#[derive(Clone, Debug)]
enum At {
    Removed,
    /// The value begins at byte `start` of the content of a block, and continues in the following blocks.
    Run {
        place: Place,
        start: usize,
        len: usize,
    },
    Journal(Content),
}

/// The newest content that was found of a key.
#[derive(Clone, Debug)]
struct Newest {
    at: At,
    /// The revision of a record; 0 for a row, or if it is not known.
    revision: u64,
    in_doubt: bool,
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Sources {
    found: Option<Found>,
    keys: BTreeMap<StoreKey, Newest>,
    /// Keys of which newer content was found that is not whole.
    lost: BTreeSet<StoreKey>,
    /// True if lost data may have had newer content of any key.
    is_all_in_doubt: bool,
    /// The ranges in which runs have lost entries.
    gaps: Vec<Gap>,
    problems: Vec<String>,
    omitted: u64,
    /// The last block that was read of each run.
    blocks: HashMap<u64, (u32, Vec<u8>)>,
    last_number: u64,
    last_time: u64,
    report: SalvageReport,
}

impl Sources {
    pub(super) fn new(sled: &Path, remains: &Remains) -> Self {
        let mut sources = Self {
            found: None,
            keys: BTreeMap::new(),
            lost: BTreeSet::new(),
            is_all_in_doubt: !remains.problems.is_empty(),
            gaps: Vec::new(),
            problems: Vec::new(),
            omitted: 0,
            blocks: HashMap::new(),
            last_number: remains.last_frame,
            last_time: 0,
            report: SalvageReport::default(),
        };
        for problem in &remains.problems {
            sources.problem(problem.clone());
        }
        let scan = |id: [u8; 16]| Found::scan(&raw::current(sled)?, &id);
        match store_of(sled, remains).and_then(|id| id.map(scan).transpose()) {
            Ok(Some(found)) => {
                let unreadable = found.unreadable.bytes;
                if unreadable > 0 {
                    sources.problem(format!("{unreadable} bytes of {} cannot be read", found.path().display()));
                }
                sources.add_runs(&found, remains);
                sources.found = Some(found);
            }
            Ok(None) => sources.problem(format!("it is not known which store {} belongs to", sled.display())),
            Err(error) => sources.problem(error.to_string()),
        }
        if sources.found.is_none() {
            sources.is_all_in_doubt = true;
            sources.add_frames(remains, 0);
        }
        sources
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    /// Adds the content of the runs, the oldest run first, and then that of the journal.
    fn add_runs(&mut self, found: &Found, remains: &Remains) {
        let sled = found.path().display().to_string();
        // Take a list that has all its blocks, if the journal has every later commit.
        let chosen = remains.summary().and_then(|journal| found.choose(&journal).ok());
        let list = chosen.as_ref().map(|chosen| &chosen.list).or_else(|| found.newest_list());
        let is_stale = list.is_none_or(|list| list.frame < remains.checkpointed);
        if is_stale {
            self.is_all_in_doubt = true;
            let what = if list.is_some() { "the newest list of its runs" } else { "every list of its runs" };
            self.problem(format!("{sled} has lost {what}"));
        }
        let (frame, complete) = list.map_or((0, 0), |list| (list.frame, list.complete));
        let ends_early = frame > remains.last_frame && remains.problems.is_empty();
        if ends_early {
            self.is_all_in_doubt = true;
            self.problem(format!("the journal ends at frame {}, the runs at frame {frame}", remains.last_frame));
        }
        let listed = list.map(|list| &list.runs[..]).unwrap_or_default();
        let is_newer = |run: &u64| list.is_none_or(|list| *run >= list.next_id);
        // Runs that only a lost, newer list may have named. Other unlisted runs were replaced by merges, or were empty.
        let newer = found.runs().into_iter().filter(|run| is_stale && is_newer(run));
        // The blocks that a merge adds to a run count only if the newest list may be lost. They may be older than a
        // removal.
        let beyond = if chosen.is_some() { 0 } else { FIRST_INDEX };
        for info in listed {
            self.add_run(found, info.id, Some(info), beyond, &sled);
        }
        for run in newer {
            self.add_run(found, run, None, beyond, &sled);
        }
        self.last_number = self.last_number.max(frame);
        // A whole journal has every frame after these, so its last content of a key counts, as in an open. A damaged
        // journal may lack newer content that the runs have.
        let is_whole = remains.problems.is_empty() && !ends_early;
        let end = complete.max(remains.checkpointed).max(if is_whole { 0 } else { frame });
        if is_stale || !self.gaps.is_empty() || !self.lost.is_empty() {
            self.fill(remains, end, is_stale);
        }
        self.add_frames(remains, end);
    }

    /// Adds what is left of a run that is newer than all runs added before. `info` is its entry in the list, if it has
    /// one. Contents of blocks after the listed ones, up to `beyond`, are in doubt.
    fn add_run(&mut self, found: &Found, run: u64, info: Option<&RunInfo>, beyond: u32, sled: &str) {
        let (mut entries, mut gaps) = (Vec::new(), Vec::new());
        let (start, blocks) = (info.map_or_else(Start::default, |info| info.start), info.map(|info| info.blocks));
        let (mut expected, mut last): (u32, Option<StoreKey>) = (start.block, None);
        let mut is_gap = false;
        let numbers = start.block..blocks.unwrap_or(FIRST_INDEX).max(beyond);
        for number in found.numbers(run).into_iter().filter(|number| numbers.contains(number)) {
            // A block that has become unreadable counts as missing.
            let Ok(Some((kind, content))) = found.content(Place { run, number }) else { continue };
            is_gap |= number != expected && blocks.is_none_or(|blocks| expected < blocks);
            expected = number.saturating_add(1);
            if kind != Kind::Entries {
                continue;
            }
            let at = usize::try_from(start.at).ok().filter(|_| number == start.block).unwrap_or(0);
            let mut rest = content.get(at..).unwrap_or_default();
            let is_listed = blocks.is_none_or(|blocks| number < blocks);
            while let Ok(Some(entry)) = take_entry(&mut rest) {
                let key = StoreKey::from_bytes(entry.key);
                if is_gap {
                    // A block after the listed ones may stem from an earlier attempt at a merge. Then its first key is
                    // not the one after the gap.
                    gaps.push((last.take(), is_listed.then(|| key.clone())));
                    is_gap = false;
                }
                let end = content.len() - rest.len();
                let place = Place { run, number };
                let (at, revision) = entry.value.map_or((Some(At::Removed), 0), |value| {
                    let here = value.here.len();
                    let at = At::Run { place, start: end - here, len: value.len };
                    let head = record::decode_head(value.here).filter(|_| key.is_record());
                    (is_whole(found, place, value.len - here).then_some(at), head.map_or(0, |head| head.revision))
                });
                entries.push((key.clone(), at, revision, is_listed));
                last = Some(key);
            }
            is_gap |= !rest.is_empty();
        }
        if is_gap || blocks.is_some_and(|blocks| expected < blocks) {
            gaps.push((last, None));
        }
        if !gaps.is_empty() {
            let had = blocks.map_or_else(String::new, |blocks| format!(", which had {blocks}"));
            self.problem(format!("{sled} has lost blocks of run {run}{had}"));
        }
        for gap in gaps {
            self.doubt(&gap);
            self.gaps.push(gap);
        }
        for (key, at, revision, is_listed) in entries {
            if is_listed || at.is_some() {
                self.add(key.clone(), at, revision, true);
            }
            if !is_listed {
                self.keys.entry(key).and_modify(|newest| newest.in_doubt = true);
            }
        }
    }

    /// Marks each key in the gap as in doubt: a lost block may have had newer content.
    fn doubt(&mut self, (from, to): &Gap) {
        if from.as_ref().zip(to.as_ref()).is_some_and(|(from, to)| from >= to) {
            return;
        }
        let bound = |key: &Option<StoreKey>| key.clone().map_or(Bound::Unbounded, Bound::Excluded);
        for (_, newest) in self.keys.range_mut((bound(from), bound(to))) {
            newest.in_doubt = true;
        }
    }

    /// Adds the content of a key, or `None` if its value is not whole. `is_newer` is true if it is newer than all added
    /// before; revisions, if known, take precedence.
    fn add(&mut self, key: StoreKey, at: Option<At>, revision: u64, is_newer: bool) {
        self.last_number = self.last_number.max(revision);
        let before = self.keys.get_mut(&key);
        let is_newer = match &before {
            Some(before) if revision > 0 && before.revision > 0 => revision >= before.revision,
            Some(_) => is_newer,
            None => true,
        };
        match (at, before) {
            (Some(at), _) if is_newer => {
                self.lost.remove(&key);
                self.keys.insert(key, Newest { at, revision, in_doubt: false });
            }
            (None, Some(before)) if !matches!(before.at, At::Removed) => before.in_doubt |= is_newer,
            (None, _) => drop(self.lost.insert(key)),
            (Some(_), _) => {}
        }
    }

    /// Adds the frames of the journal after this one, which are newer than the runs.
    fn add_frames(&mut self, remains: &Remains, end: u64) {
        for (number, frame) in remains.frames.iter().filter(|(number, _)| *number > end) {
            let Frame::Changes(changes) = frame else { continue };
            for change in changes {
                let (at, revision) = of_change(change, *number);
                self.add(change.key.clone(), Some(at), revision, true);
            }
        }
    }

    /// Adds the keys that the runs may have lost: the last content of each in the frames up to `end`, in doubt.
    fn fill(&mut self, remains: &Remains, end: u64, is_stale: bool) {
        let mut last = BTreeMap::new();
        for (number, frame) in remains.frames.iter().filter(|(number, _)| *number <= end) {
            let Frame::Changes(changes) = frame else { continue };
            last.extend(changes.iter().map(|change| (&change.key, (*number, change))));
        }
        for (key, (number, change)) in last {
            // If the runs have lost nothing here, a missing key was removed or has expired.
            if !is_stale && !self.may_be_lost(key) {
                continue;
            }
            let (at, revision) = of_change(change, number);
            let is_newer = match self.keys.get(key) {
                // Rows have no revision, so it is unknown which one is newer.
                Some(known) => known.revision > 0 && known.revision < revision,
                None => !matches!(at, At::Removed),
            };
            if is_newer {
                self.lost.remove(key);
                self.last_number = self.last_number.max(revision);
                self.keys.insert(key.clone(), Newest { at, revision, in_doubt: true });
            }
        }
    }

    fn may_be_lost(&self, key: &StoreKey) -> bool {
        self.lost.contains(key) || self.gaps.iter().any(|gap| is_in(gap, key))
    }

    /// Returns the number of keys that have a value.
    pub(super) fn len(&self) -> u64 {
        self.keys.values().filter(|newest| !matches!(newest.at, At::Removed)).count() as u64
    }

    /// Returns the highest frame number in anything that was found.
    pub(super) fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Returns the last store time at which a record was changed.
    pub(super) fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Calls `f` with each key and value, in order. A value that cannot be read or decoded counts as lost.
    pub(super) fn for_each(&mut self, f: &mut dyn FnMut(&StoreKey, &[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        for (key, newest) in std::mem::take(&mut self.keys) {
            bytes.clear();
            match newest.at {
                At::Removed => continue,
                At::Journal(Content::Row(value)) => bytes.extend_from_slice(&value),
                At::Journal(Content::Record(stored)) => record::encode(&stored, &mut bytes)?,
                At::Run { place, start, len } => {
                    if self.load(place, start, len, &mut bytes).is_err() {
                        self.lost.insert(key);
                        continue;
                    }
                }
            }
            if key.is_record() {
                let Ok(stored) = record::decode(&bytes) else {
                    self.lost.insert(key);
                    continue;
                };
                self.last_number = self.last_number.max(stored.revision).max(stored.token).max(stored.generation);
                self.last_time = self.last_time.max(stored.updated);
                self.report.records += 1;
            } else {
                self.report.rows += 1;
            }
            if newest.in_doubt || self.is_all_in_doubt {
                self.report.in_doubt += 1;
                if self.report.in_doubt_keys.len() < MAX_PROBLEMS {
                    self.report.in_doubt_keys.push(named(&key));
                }
            }
            f(&key, &bytes)?;
        }
        Ok(())
    }

    /// Reads a value from its block and the following ones. Fails if a block cannot be read, or has changed meanwhile.
    fn load(&mut self, place: Place, start: usize, len: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let Place { run, mut number } = place;
        let changed = || Error::new(ErrorKind::Io, format!("{place} was changed meanwhile"));
        let found = self.found.as_ref().ok_or_else(changed)?;
        if self.blocks.get(&run).is_none_or(|(read, _)| *read != number) {
            let (_, content) = found.content(place)?.ok_or_else(changed)?;
            self.blocks.insert(run, (number, content));
        }
        let first = self.blocks.get(&run).and_then(|(_, content)| content.get(start..)).ok_or_else(changed)?;
        bytes.extend_from_slice(first.get(..len.min(first.len())).unwrap_or_default());
        while bytes.len() < len {
            number = number.saturating_add(1);
            let (_, content) = found.content(Place { run, number })?.ok_or_else(changed)?;
            let wanted = len - bytes.len();
            bytes.extend_from_slice(content.get(..wanted).unwrap_or(&content));
        }
        Ok(())
    }

    pub(super) fn into_report(mut self) -> SalvageReport {
        if self.omitted > 0 {
            self.problems.push(format!("and {} more", self.omitted));
        }
        let told = self.lost.iter().take(MAX_PROBLEMS).map(named).collect();
        let more_lost = self.lost.len().saturating_sub(MAX_PROBLEMS) as u64;
        // Lost newer data may have had new records and rows of any key.
        let gaps = if self.is_all_in_doubt { vec![(None, None)] } else { self.gaps };
        SalvageReport { lost: told, more_lost, lost_ranges: ranges(gaps), problems: self.problems, ..self.report }
    }
}

/// Returns the content of a change and the new revision, which is 0 for rows.
fn of_change(change: &Change, number: u64) -> (At, u64) {
    let at = change.content.clone().map_or(At::Removed, At::Journal);
    let made = change.record().map_or(number, |stored| stored.revision);
    (at, if change.key.is_record() { made } else { 0 })
}

/// Returns true if the following blocks have the remaining `left` bytes of a value.
fn is_whole(found: &Found, place: Place, mut left: usize) -> bool {
    let Place { run, mut number } = place;
    while left > 0 {
        number = number.saturating_add(1);
        match found.content(Place { run, number }) {
            Ok(Some((Kind::Continued, content))) if content.len() == left.min(CONTENT) => left -= content.len(),
            _ => return false,
        }
    }
    true
}
