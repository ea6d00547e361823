//! The parent's knowledge of each key, from the lines of its children.
//!
//! A child prints a line before each call that changes something, and one after its answer. So the record of each key
//! is known, except for calls without an answer. Such a call has happened completely or not at all.

use std::collections::{BTreeMap, HashMap};

/// The generation of a key and the attempt. Later claims are larger.
pub(crate) type Claimed = (u64, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished { success: bool, value: u64 },
    Released,
    Interrupted,
}

impl End {
    pub(crate) fn word(self) -> String {
        match self {
            Self::Finished { success: true, value } => format!("ok {value}"),
            Self::Finished { success: false, value } => format!("err {value}"),
            Self::Released => "release 0".to_owned(),
            Self::Interrupted => "interrupt 0".to_owned(),
        }
    }

    fn parse(how: &str, value: &str) -> Self {
        match how {
            "ok" | "err" => Self::Finished { success: how == "ok", value: value.parse().unwrap() },
            "release" => Self::Released,
            "interrupt" => Self::Interrupted,
            other => panic!("{other}"),
        }
    }
}

/// The record of the newest claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Absent,
    Live,
    /// The ending was called and not answered.
    Ending(End),
    Ended(End),
}

#[derive(Debug, Default)]
struct Known {
    claimed: Claimed,
    phase: Phase,
    /// Every outcome that a claim tried to store. There are two if the record was interrupted and resolved.
    outcomes: HashMap<Claimed, Vec<End>>,
    /// The number of calls in progress that may begin the key.
    tries: u32,
    /// True if a process died during such a call.
    maybe_begun: bool,
    /// True if a removal without an answer may have deleted the record.
    maybe_absent: bool,
    /// The claim and phase at the start of a removal. Only one thread removes and resolves a key.
    removing: Option<(Claimed, Phase)>,
    resolving: Option<End>,
}

impl Known {
    fn began(&mut self, claimed: Claimed) {
        assert!(claimed > self.claimed, "{claimed:?} began after {self:?}");
        self.tries -= 1;
        assert!(self.may_begin(), "{claimed:?} began beside {self:?}");
        self.newest(claimed, Phase::Live);
    }

    fn newest(&mut self, claimed: Claimed, phase: Phase) {
        (self.claimed, self.phase) = (claimed, phase);
        (self.maybe_absent, self.resolving) = (false, None);
    }

    /// Returns true if the engine may give the key to a new claim.
    fn may_begin(&self) -> bool {
        let is_free = match self.phase {
            Phase::Absent | Phase::Ending(End::Released) | Phase::Ended(End::Released) => true,
            Phase::Ending(_) | Phase::Ended(_) => self.resolving == Some(End::Released) || self.removing.is_some(),
            Phase::Live => false,
        };
        is_free || self.maybe_absent
    }

    fn ending(&mut self, claimed: Claimed, end: End) {
        assert_eq!((claimed, self.phase), (self.claimed, Phase::Live), "{self:?}");
        self.phase = Phase::Ending(end);
        self.expect_outcome(claimed, end);
    }

    fn expect_outcome(&mut self, claimed: Claimed, end: End) {
        if matches!(end, End::Finished { .. }) {
            self.outcomes.entry(claimed).or_default().push(end);
        }
    }

    /// Ignores an answer of an older claim, because its line came late.
    fn ended(&mut self, claimed: Claimed) {
        if let (true, Phase::Ending(end)) = (claimed == self.claimed, self.phase) {
            self.phase = Phase::Ended(end);
        }
    }

    fn removed(&mut self, removed: bool) {
        let (claimed, phase) = self.removing.take().unwrap();
        if !removed {
            return;
        }
        if claimed == self.claimed {
            assert_ne!(self.phase, Phase::Live, "removed under its owner: {self:?}");
            self.phase = Phase::Absent;
        } else if !is_kept(phase) && self.phase != Phase::Live {
            self.maybe_absent = true;
        }
    }

    fn resolved(&mut self, claimed: Claimed) {
        if let (true, Some(end)) = (claimed == self.claimed, self.resolving.take()) {
            self.phase = Phase::Ended(end);
        }
    }

    fn answered(&mut self, claimed: Claimed, end: End) {
        let stored = self.outcomes.get(&claimed).is_some_and(|ends| ends.contains(&end));
        assert!(stored, "answered with {end:?} of {claimed:?}, which no claim stored: {self:?}");
        if claimed != self.claimed {
            return;
        }
        match self.phase {
            Phase::Ending(_) => self.phase = Phase::Ended(end),
            Phase::Ended(End::Interrupted) if self.resolving == Some(end) => self.phase = Phase::Ended(end),
            Phase::Ended(End::Finished { .. }) => {
                assert_eq!(self.phase, Phase::Ended(end), "answered otherwise before");
            }
            // The line came late.
            Phase::Absent => {}
            Phase::Live | Phase::Ended(_) => panic!("answered with {end:?}, and it was {self:?}"),
        }
    }

    /// Handles the death of the process: calls without an answer may have happened or not.
    fn killed(&mut self) {
        self.maybe_begun |= std::mem::take(&mut self.tries) > 0;
        let Some((claimed, phase)) = self.removing.take() else { return };
        // A removal never deletes a record that has an owner, whether a claim or a process.
        self.maybe_absent |= self.phase != Phase::Live && (claimed == self.claimed || !is_kept(phase));
    }

    /// Checks whether the next open lists this key as interrupted, and for which claim.
    fn listed(&mut self, found: Option<Claimed>) {
        let same_claim = found.is_none_or(|found| found == self.claimed);
        let may_be_newer = self.maybe_begun && self.may_begin();
        let may_be_so = match (self.phase, found) {
            // Resolved or removed.
            (Phase::Live | Phase::Ending(End::Interrupted) | Phase::Ended(End::Interrupted), None) => {
                self.resolving.is_some() || self.maybe_absent
            }
            (_, None) => true,
            (Phase::Live | Phase::Ending(_) | Phase::Ended(End::Interrupted), Some(_)) if same_claim => true,
            (_, Some(found)) => may_be_newer && found > self.claimed,
        };
        assert!(may_be_so, "listed as interrupted: {found:?}, known: {self:?}");
        self.maybe_begun = false;
        let resolving = self.resolving.take();
        match (found, self.phase) {
            (Some(found), _) => {
                // An outcome that was not stored must not appear later.
                self.outcomes.remove(&found);
                self.newest(found, Phase::Ended(End::Interrupted));
            }
            (None, Phase::Ending(End::Interrupted) | Phase::Ended(End::Interrupted)) => {
                self.phase = resolving.map_or(Phase::Absent, Phase::Ended);
            }
            (None, Phase::Ending(end)) => self.phase = Phase::Ended(end),
            (None, Phase::Live) => self.phase = Phase::Absent,
            (None, Phase::Absent | Phase::Ended(_)) => {}
        }
    }

    /// Checks the record that the store has.
    fn found(&mut self, found: Option<(Claimed, End)>) {
        let expected = match self.phase {
            Phase::Ended(end) => Some((self.claimed, end)),
            Phase::Absent => None,
            Phase::Live | Phase::Ending(_) => panic!("not listed: {self:?}"),
        };
        if found.is_none() && self.maybe_absent {
            self.phase = Phase::Absent;
        } else {
            assert_eq!(found, expected, "{self:?}");
        }
        self.maybe_absent = false;
    }
}

/// Returns true if only a removal or a resolution frees a key in this phase.
fn is_kept(phase: Phase) -> bool {
    matches!(phase, Phase::Ended(End::Finished { .. } | End::Interrupted))
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    keys: HashMap<String, Known>,
    listing: BTreeMap<String, Claimed>,
    pub(crate) counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Answered calls.
    pub(crate) answers: u64,
    /// Claims listed as interrupted, and compared lists.
    pub(crate) interrupted: u64,
    pub(crate) lists: u64,
    /// Compared records.
    pub(crate) compared: u64,
}

impl Model {
    /// Creates the model of an empty directory. The counts continue.
    pub(crate) fn new(counts: Counts) -> Self {
        Self { counts, ..Self::default() }
    }

    /// Reads a line of the child.
    pub(crate) fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "listed" {
            return self.listed(words[1].parse().unwrap());
        }
        let key = words[1];
        if words[0] == "interrupted" {
            self.listing.insert(key.to_owned(), claimed(words[2], words[3]));
            return;
        }
        let known = self.known(key);
        let mut is_answer = true;
        match words[..] {
            ["not", _] => known.tries -= 1,
            ["began", _, generation, attempt] => known.began(claimed(generation, attempt)),
            ["ended", _, generation, attempt] => known.ended(claimed(generation, attempt)),
            ["removed", _, removed] => known.removed(removed == "true"),
            ["resolved", _, generation, attempt] => known.resolved(claimed(generation, attempt)),
            ["answer", _, generation, attempt, how, value] => {
                known.answered(claimed(generation, attempt), End::parse(how, value));
            }
            _ => {
                is_answer = false;
                known.call(&words);
            }
        }
        self.counts.answers += u64::from(is_answer);
    }

    fn known(&mut self, key: &str) -> &mut Known {
        if !self.keys.contains_key(key) {
            self.keys.insert(key.to_owned(), Known::default());
        }
        self.keys.get_mut(key).unwrap()
    }

    pub(crate) fn killed(&mut self) {
        self.listing.clear();
        self.keys.values_mut().for_each(Known::killed);
    }

    /// Checks that the list of interrupted records is complete.
    fn listed(&mut self, count: usize) {
        let mut list = std::mem::take(&mut self.listing);
        assert_eq!(list.len(), count);
        self.counts.lists += 1;
        self.counts.interrupted += list.len() as u64;
        for (key, known) in &mut self.keys {
            let found = list.remove(key);
            // A panic prints this key.
            let _key = Named(key);
            known.listed(found);
        }
        assert!(list.is_empty(), "interrupted, but never begun: {list:?}");
    }

    /// Compares the model with the whole content of the store.
    pub(crate) fn compare(
        &mut self,
        interrupted: BTreeMap<String, Claimed>,
        mut get: impl FnMut(&str) -> Option<(Claimed, End)>,
    ) {
        let count = interrupted.len();
        self.listing = interrupted;
        self.listed(count);
        for (key, known) in &mut self.keys {
            let _key = Named(key);
            known.found(get(key));
            self.counts.compared += 1;
        }
    }
}

impl Known {
    /// Notes a call that starts now.
    fn call(&mut self, words: &[&str]) {
        match words {
            ["try", _] => self.tries += 1,
            ["ending", _, generation, attempt, how, value] => {
                self.ending(claimed(generation, attempt), End::parse(how, value));
            }
            ["removing", _] => self.removing = Some((self.claimed, self.phase)),
            ["resolving", _, generation, attempt, how, value] => {
                let (claimed, end) = (claimed(generation, attempt), End::parse(how, value));
                assert_eq!(claimed, self.claimed, "{self:?}");
                self.expect_outcome(claimed, end);
                self.resolving = Some(end);
            }
            _ => panic!("{words:?}"),
        }
    }
}

/// Prints its key when it is dropped in a panic.
struct Named<'a>(&'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the key is {}", self.0);
        }
    }
}

fn claimed(generation: &str, attempt: &str) -> Claimed {
    (generation.parse().unwrap(), attempt.parse().unwrap())
}

/// Lines that the model must reject, for a record begun by a claim (`c`) and by key (`k`).
#[test]
fn the_removal_of_a_live_record_is_not_permitted() {
    let model_after = |key: &str, lines: &[&str]| {
        let mut model = Model::default();
        for line in lines {
            model.line(&line.replace("KEY", key));
        }
        model
    };
    let live = ["try KEY", "began KEY 7 1", "removing KEY"];
    for key in ["c-1", "k-1"] {
        let removed = [&live[..], &["removed KEY true"]].concat();
        assert!(std::panic::catch_unwind(|| model_after(key, &removed)).is_err(), "{key}");
        model_after(key, &[&live[..], &["removed KEY false"]].concat());
        // Killed during the removal: the record is there, and interrupted.
        let mut model = model_after(key, &live);
        model.killed();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.line("listed 0"))).is_err(), "{key}");
        let mut model = model_after(key, &live);
        model.killed();
        model.line(&format!("interrupted {key} 7 1"));
        model.line("listed 1");
        // A record that has ended may be removed.
        model_after(
            key,
            &[&live[..2], &["ending KEY 7 1 ok 5", "ended KEY 7 1", "removing KEY", "removed KEY true"]].concat(),
        );
    }
}
