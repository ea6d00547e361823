//! What there is of each key, in the journal and in the runs, and which of it is the newest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;

use super::{MAX_PROBLEMS, SalvageReport, store_of};
use crate::store::format::block::{CONTENT, Kind, Place, take_entry};
use crate::store::format::frame::{Content, Frame, StoreKey};
use crate::store::format::list::RunList;
use crate::store::format::record;
use crate::store::journal::Remains;
use crate::store::sled::raw::{self, Found};
use crate::types::error::{Error, ErrorKind, Result};

/// Where a value is.
#[derive(Clone, Debug)]
enum At {
    Removed,
    /// In a block, from this byte of its content on, and in those behind it.
    Run {
        place: Place,
        start: usize,
        len: usize,
    },
    Journal(Content),
}

/// The newest that was found of a key.
#[derive(Clone, Debug)]
struct Newest {
    at: At,
    /// Of a record; 0 if it is not known.
    revision: u64,
    in_doubt: bool,
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Sources {
    found: Option<Found>,
    keys: BTreeMap<StoreKey, Newest>,
    /// Something newer was found of these, and its value is not whole.
    lost: BTreeSet<StoreKey>,
    /// Something that may have named any key is lost.
    is_all_in_doubt: bool,
    problems: Vec<String>,
    untold: u64,
    /// The last block that was read of each run.
    blocks: HashMap<u64, (u32, Vec<u8>)>,
    last_number: u64,
    last_time: u64,
    report: SalvageReport,
}

impl Sources {
    pub(super) fn new(sled: &Path, remains: &Remains) -> Result<Self> {
        let mut sources = Self {
            found: None,
            keys: BTreeMap::new(),
            lost: BTreeSet::new(),
            is_all_in_doubt: !remains.problems.is_empty(),
            problems: Vec::new(),
            untold: 0,
            blocks: HashMap::new(),
            last_number: remains.last_frame,
            last_time: 0,
            report: SalvageReport::default(),
        };
        for problem in &remains.problems {
            sources.problem(problem.clone());
        }
        let scanned =
            store_of(sled, remains).and_then(|id| id.map(|id| Found::scan(&raw::current(sled), &id)).transpose());
        match scanned {
            Ok(Some(found)) => {
                sources.add_runs(&found, remains)?;
                sources.found = Some(found);
            }
            Ok(None) => sources.problem(format!("nothing names the store that {} belongs to", sled.display())),
            Err(error) => sources.problem(error.to_string()),
        }
        if sources.found.is_none() {
            sources.is_all_in_doubt = true;
            sources.add_frames(remains, 0, true);
        }
        Ok(sources)
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.untold += 1;
        }
    }

    /// Adds what is in the runs, the oldest first, and what the journal has besides.
    fn add_runs(&mut self, found: &Found, remains: &Remains) -> Result<()> {
        let sled = found.path().display().to_string();
        let list = found.newest_list().cloned();
        let is_stale = list.as_ref().is_none_or(|list| list.frame < remains.checkpointed);
        if is_stale {
            self.is_all_in_doubt = true;
            let what = if list.is_some() { "the newest list of its runs" } else { "every list of its runs" };
            self.problem(format!("{sled} has lost {what}"));
        }
        let complete = list.as_ref().map_or(0, |list| list.complete);
        let is_listed = |run: u64| list.as_ref().is_some_and(|list| list.runs.iter().any(|info| info.id == run));
        let is_newer = |run: &u64| list.as_ref().is_none_or(|list| *run >= list.next_id);
        // Those that a newer list may have named: only of a record can be told whether it is newer.
        let unlisted: Vec<u64> = found.runs().into_iter().filter(|run| is_stale && !is_listed(*run)).collect();
        let (newer, older): (Vec<_>, Vec<_>) = unlisted.into_iter().partition(is_newer);
        let before = self.problems.len() as u64 + self.untold;
        if is_stale {
            for run in older {
                self.add_run(found, run, None, &sled)?;
            }
        }
        self.add_listed(found, list.as_ref(), &sled)?;
        for run in newer {
            self.add_run(found, run, None, &sled)?;
        }
        if is_stale || self.problems.len() as u64 + self.untold > before {
            // What the runs should have and may have lost.
            self.add_frames(remains, complete, false);
        }
        self.add_frames(remains, complete, true);
        Ok(())
    }

    fn add_listed(&mut self, found: &Found, list: Option<&RunList>, sled: &str) -> Result<()> {
        for info in list.map(|list| &list.runs[..]).unwrap_or_default() {
            self.add_run(found, info.id, Some(info.blocks), sled)?;
        }
        self.last_number = self.last_number.max(list.map_or(0, |list| list.frame));
        Ok(())
    }

    /// Adds what is left of a run, which is newer than all before. `blocks`: how many with entries it had, if that is known.
    fn add_run(&mut self, found: &Found, run: u64, blocks: Option<u32>, sled: &str) -> Result<()> {
        let (mut entries, mut gaps) = (Vec::new(), Vec::new());
        let (mut expected, mut last): (u32, Option<StoreKey>) = (0, None);
        let mut is_gap = false;
        for number in found.numbers(run).into_iter().take_while(|number| blocks.is_none_or(|blocks| *number < blocks)) {
            let Some((kind, content)) = found.content(Place { run, number })? else { continue };
            is_gap |= number != expected;
            expected = number.saturating_add(1);
            if kind == Kind::Index {
                break;
            }
            if kind != Kind::Entries {
                continue;
            }
            let mut rest = content.as_slice();
            while let Some(entry) = take_entry(&mut rest)? {
                let key = StoreKey::from_bytes(entry.key);
                if is_gap {
                    gaps.push((last.take(), Some(key.clone())));
                    is_gap = false;
                }
                let end = content.len() - rest.len();
                let at = entry.value.map(|value| (value.len, end - value.here.len(), value.here.len()));
                let revision = entry.value.and_then(|value| record::decode_head(value.here));
                let revision = revision.filter(|_| key.is_record()).map_or(0, |head| head.revision);
                let place = Place { run, number };
                let at = match at {
                    None => Some(At::Removed),
                    Some((len, start, here)) => {
                        is_whole(found, place, len - here)?.then_some(At::Run { place, start, len })
                    }
                };
                entries.push((key.clone(), at, revision));
                last = Some(key);
            }
        }
        if is_gap || blocks.is_some_and(|blocks| expected < blocks) {
            gaps.push((last, None));
        }
        if !gaps.is_empty() {
            let had = blocks.map_or_else(String::new, |blocks| format!(" of {blocks}"));
            self.problem(format!("{sled} has lost blocks{had} of run {run}"));
        }
        for (from, to) in gaps {
            self.doubt(from, to);
        }
        for (key, at, revision) in entries {
            self.add(key, at, revision, true);
        }
        Ok(())
    }

    /// Something newer may have named each key between these.
    fn doubt(&mut self, from: Option<StoreKey>, to: Option<StoreKey>) {
        if from.as_ref().zip(to.as_ref()).is_some_and(|(from, to)| from >= to) {
            return;
        }
        let range = (from.map_or(Bound::Unbounded, Bound::Excluded), to.map_or(Bound::Unbounded, Bound::Excluded));
        for (_, newest) in self.keys.range_mut(range) {
            newest.in_doubt = true;
        }
    }

    /// Adds what was found of a key: `None` if its value is not whole. `is_newer`: than all before, unless revisions say otherwise.
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

    /// Adds the frames of the journal after this one, which are newer than the runs; or those up to it, which are not, and are
    /// of use where a run has lost something.
    fn add_frames(&mut self, remains: &Remains, complete: u64, after: bool) {
        for (_, frame) in remains.frames.iter().filter(|(number, _)| (*number > complete) == after) {
            let Frame::Changes(changes) = frame else { continue };
            for change in changes {
                let revision = change.record().map_or(0, |stored| stored.revision);
                let at = change.content.clone().map_or(At::Removed, At::Journal);
                let is_known = self.keys.contains_key(&change.key);
                self.add(change.key.clone(), Some(at), revision, after || !is_known);
                if !after {
                    if let Some(newest) = self.keys.get_mut(&change.key).filter(|_| !is_known) {
                        newest.in_doubt = true;
                    }
                }
            }
        }
    }

    /// Keys that have a value.
    pub(super) fn len(&self) -> u64 {
        self.keys.values().filter(|newest| !matches!(newest.at, At::Removed)).count() as u64
    }

    /// The highest number that any of it carries.
    pub(super) fn last_number(&self) -> u64 {
        self.last_number
    }

    /// The last store time at which a record was changed.
    pub(super) fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Gives each key and its value, in order. A value that turns out not to be one counts as lost.
    pub(super) fn for_each(&mut self, f: &mut dyn FnMut(&StoreKey, &[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        for (key, newest) in std::mem::take(&mut self.keys) {
            bytes.clear();
            match newest.at {
                At::Removed => continue,
                At::Journal(Content::Row(value)) => bytes.extend_from_slice(&value),
                At::Journal(Content::Record(stored)) => record::encode(&stored, &mut bytes)?,
                At::Run { place, start, len } => self.load(place, start, len, &mut bytes)?,
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
            self.report.in_doubt += u64::from(newest.in_doubt || self.is_all_in_doubt);
            f(&key, &bytes)?;
        }
        Ok(())
    }

    /// Reads a value from a block and those behind it, all of which were there.
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
        if self.untold > 0 {
            self.problems.push(format!("and {} more", self.untold));
        }
        let told = self.lost.iter().take(MAX_PROBLEMS).map(named).collect();
        let more_lost = self.lost.len().saturating_sub(MAX_PROBLEMS) as u64;
        SalvageReport { lost: told, more_lost, problems: self.problems, ..self.report }
    }
}

fn named(key: &StoreKey) -> String {
    let (of, own) = key.split().unwrap_or(("", key.bytes()));
    let what = if key.is_record() { "key" } else { "row" };
    format!("{what} {} of {of}", own.escape_ascii())
}

/// Whether the blocks with so many more bytes of a value follow.
fn is_whole(found: &Found, place: Place, mut left: usize) -> Result<bool> {
    let Place { run, mut number } = place;
    while left > 0 {
        number = number.saturating_add(1);
        match found.content(Place { run, number })? {
            Some((Kind::Continued, content)) if content.len() == left.min(CONTENT) => left -= content.len(),
            _ => return Ok(false),
        }
    }
    Ok(true)
}
