//! Power cuts: no answer is lost, whenever the power fails and whatever the disk keeps of unsynced data.
//!
//! `ONCEKEY_STATES=10000 cargo test --release --test faults power -- --nocapture` checks more states; `ONCEKEY_SEED`
//! starts with another seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::check::{Examined, examine, has_sync_flag};
use crate::disk::{Disk, Image, Keep, Lies};
use crate::history::{Expected, Step, Wrong};
use crate::killed::joined;
use crate::record::{Event, Log, Node};
use crate::threads::Rng;
use crate::workload::{Phase, Run, Setup, run};

/// The number of states of one recorded life, and of each recorded recovery.
const STATES_OF_A_LIFE: u64 = 40;
const STATES_OF_A_RECOVERY: u64 = 8;
const RECOVERIES: u64 = 2;
/// Consecutive lives use different modes. Each of the first lives has at least this number of states.
const MODES: u64 = 4;
const STATES_OF_A_MODE: u64 = 12;
const KILLS: u64 = 2;

/// The activity when the power failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Creation,
    Recovery,
    Commit,
    /// sled was written or synced.
    Checkpoint,
    /// A segment was created, started, overwritten or deleted.
    Recycling,
    Closing,
}

/// Returns the activity at each length of the log.
fn moments(run: &Run) -> Vec<Moment> {
    let (mut begun, mut recycling) = (std::collections::BTreeSet::new(), 0);
    let mut moments = vec![Moment::Creation];
    for (at, event) in run.log.events.iter().enumerate() {
        let node = match event {
            Event::Write { node, offset: 0, bytes }
                if run.log.is_journal(*node) && bytes.iter().any(|byte| *byte != 0) =>
            {
                // The header, the first group's write and sync, the seal of the previous segment, and its sync.
                begun.insert(*node);
                recycling = 5;
                Some(*node)
            }
            Event::Created { node, .. } if run.log.is_journal(*node) => {
                recycling = 3;
                Some(*node)
            }
            Event::Removed { .. } => {
                recycling = 2;
                None
            }
            Event::Write { node, .. }
            | Event::Truncate { node, .. }
            | Event::Synced { node, .. }
            | Event::WriteSynced { node }
            | Event::RangePushed { node }
            | Event::Created { node, .. } => Some(*node),
            Event::Renamed { .. } | Event::Mark(_) => None,
        };
        let (nth, phase) = run.phase(at + 1);
        moments.push(match phase {
            Phase::Opening if nth == 0 && run.setup.life == 0 => Moment::Creation,
            Phase::Opening => Moment::Recovery,
            Phase::Closing => Moment::Closing,
            Phase::Working if node.is_some_and(|node| run.log.is_sled(node)) => Moment::Checkpoint,
            Phase::Working if recycling > 0 => Moment::Recycling,
            Phase::Working => Moment::Commit,
        });
        if node.is_some_and(|node| run.log.is_journal(node)) {
            recycling = u64::saturating_sub(recycling, 1);
        }
    }
    moments
}

/// Picks lengths of the log at which to cut, in order. All activities are equally frequent. Two of three cuts are right
/// before or after a sync.
fn cuts(run: &Run, moments: &[Moment], count: u64, rng: &mut Rng) -> Vec<usize> {
    let syncs: BTreeSet<usize> = run.log.syncs().collect();
    let is_sync = |at: usize| syncs.contains(&at);
    let mut by_moment = BTreeMap::<(Moment, bool), Vec<usize>>::new();
    for (cut, moment) in moments.iter().enumerate().skip(run.from) {
        by_moment.entry((*moment, false)).or_default().push(cut);
        // Cut before a sync more often: the most data is at risk then.
        let times = if is_sync(cut) { 2 } else { usize::from(cut > 0 && is_sync(cut - 1)) };
        by_moment.entry((*moment, true)).or_default().extend(std::iter::repeat_n(cut, times));
    }
    let kinds: Vec<Moment> = by_moment.keys().filter(|(_, at_sync)| !at_sync).map(|(moment, _)| *moment).collect();
    let pick = |rng: &mut Rng, among: usize| usize::try_from(rng.below(among as u64)).unwrap();
    let mut cuts: Vec<usize> = (0..count)
        .map(|nth| {
            let moment = kinds[usize::try_from(nth).unwrap() % kinds.len()];
            let at_sync = by_moment.get(&(moment, true)).filter(|cuts| !cuts.is_empty() && rng.below(3) > 0);
            let among = at_sync.unwrap_or(&by_moment[&(moment, false)]);
            among[pick(rng, among.len())]
        })
        .collect();
    cuts.sort_unstable();
    cuts
}

/// One crash state.
struct State {
    cut: usize,
    moment: Moment,
    how: (Keep, bool),
    image: Image,
}

/// Makes `count` crash states of a recorded life. The disk may lie about syncs, or always keep the same share of
/// unsynced data.
fn crashes(run: &Run, disk: (Lies, Option<Keep>), count: u64, rng: &mut Rng, mut f: impl FnMut(State)) {
    let (lies, keeps) = disk;
    let moments = moments(run);
    let mut disks = [false, true].map(|ordered| Disk::new(&run.log, lies, ordered));
    for cut in cuts(run, &moments, count, rng) {
        for disk in &mut disks {
            disk.advance(cut);
        }
        let keep = match rng.below(8) {
            0 => Keep::Nothing,
            1 => Keep::Everything,
            percent => Keep::Percent([5, 20, 35, 50, 75, 95][usize::try_from(percent - 2).unwrap()]),
        };
        let keep = keeps.unwrap_or(keep);
        let ordered = rng.below(3) == 0;
        let image = disks[usize::from(ordered)].crash(keep, rng);
        f(State { cut, moment: moments[cut], how: (keep, ordered), image });
    }
}

#[derive(Debug, Default)]
struct Figures {
    states: BTreeMap<(&'static str, Moment), u64>,
    /// States with an answered record in progress that is only in the journal, and states found to be wrong.
    at_stake: usize,
    found: usize,
    wrong: Vec<(Wrong, String)>,
    /// Opens that cut a torn group, and opens that replayed frames.
    torn: u64,
    replayed: u64,
    /// States that miss answered steps under `Eventual`, as they may.
    shorter: u64,
    /// States with records that contain the checkpoint of a stage.
    staged: u64,
    left: u64,
}

impl Figures {
    fn count(&self, is: impl Fn(&Wrong) -> bool) -> usize {
        self.wrong.iter().filter(|(wrong, _)| is(wrong)).count()
    }

    fn print(&self) {
        let (mut modes, mut moments) = (BTreeMap::new(), BTreeMap::new());
        for ((mode, moment), states) in &self.states {
            *modes.entry(*mode).or_insert(0) += states;
            *moments.entry(*moment).or_insert(0) += states;
        }
        let lost = self.count(|wrong| matches!(wrong, Wrong::Lost(_)));
        let refused = self.count(|wrong| matches!(wrong, Wrong::Refused(_)));
        let others = self.wrong.len() - lost - refused;
        let states: u64 = self.states.values().sum();
        println!("{states} states, {lost} lost, {refused} refused, {others} wrong otherwise: {modes:?}, {moments:?}");
        let (torn, replayed, shorter, staged) = (self.torn, self.replayed, self.shorter, self.staged);
        println!(
            "{torn} opens cut a torn group, {replayed} replayed commits, {shorter} missed the last of what was eventual, \
             {staged} had records between two stages"
        );
    }
}

fn mode(setup: Setup) -> &'static str {
    match (setup.eventual, setup.sync_flag) {
        (false, true) => "sync flag",
        (false, false) => "barriers",
        (true, true) => "eventual, sync flag",
        (true, false) => "eventual, barriers",
    }
}

/// Makes lives, recoveries of some of their crash states, and crash states of both, until there are enough.
struct Campaign {
    first_seed: u64,
    next: AtomicU64,
    figures: Mutex<Figures>,
}

impl Campaign {
    fn new(states: u64, first_seed: u64) -> Self {
        let figures = Mutex::new(Figures { left: states, ..Figures::default() });
        Self { first_seed, next: AtomicU64::new(0), figures }
    }

    /// Takes up to `wanted` of the remaining states.
    fn take(&self, wanted: u64) -> u64 {
        let mut figures = self.figures.lock().unwrap();
        let taken = wanted.min(figures.left);
        figures.left -= taken;
        taken
    }

    fn examine(&self, run: &Run, disk: (Lies, Option<Keep>), count: u64, rng: &mut Rng) {
        crashes(run, disk, count, rng, |state| self.examine_one(run, disk, &state));
    }

    fn examine_one(&self, run: &Run, disk: (Lies, Option<Keep>), state: &State) {
        let examined = examine(&state.image, run, state.cut);
        let mut figures = self.figures.lock().unwrap();
        *figures.states.entry((mode(run.setup), state.moment)).or_default() += 1;
        if is_at_stake(run, state.cut) {
            figures.at_stake += 1;
            figures.found += usize::from(examined.is_err());
        }
        if let Ok(Examined { found, report, missing }) = &examined {
            figures.staged += u64::from(found.values().any(|seen| seen.stage.is_some()));
            figures.shorter += u64::from(*missing > 0);
            figures.torn += u64::from(report.torn_bytes > 0);
            figures.replayed += u64::from(report.frames_replayed > 0);
        }
        if let Err(wrong) = examined {
            let nth = figures.wrong.len();
            let kept = if nth < 3 && disk.0.from == usize::MAX { keep(state, run.setup.seed) } else { None };
            let State { cut, moment, how, .. } = state;
            let how = format!(
                "seed {}, cut {cut} in {moment:?}, {how:?}, {:?}, kept in {kept:?}",
                self.first_seed, run.setup
            );
            figures.wrong.push((wrong, how));
        }
    }

    /// Makes one recorded life and its states. Returns false if there are enough.
    fn life(&self) -> bool {
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        let taken = self.take(STATES_OF_A_LIFE);
        if taken == 0 && nth >= MODES {
            return false;
        }
        // Each mode covers each activity, even if few states are wanted.
        let count = if nth < MODES { taken.max(STATES_OF_A_MODE) } else { taken };
        // Everything depends on the seed only, except the order of threads.
        let seed = self.first_seed + nth;
        let mut rng = Rng::new(seed);
        let (sync_flag, eventual) = (seed % 2 == 0 && has_sync_flag(), seed % 4 >= 2);
        // One of four, so that each mode has some.
        let heavy = (seed + seed / 4) % 4 == 1;
        // The smallest size, so that segments are filled, sealed and recycled all the time; or a larger one.
        let segment_bytes = [4096, 24 << 10][usize::try_from(seed / 4 % 2).unwrap()];
        let setup = Setup { seed, sync_flag, eventual, segment_bytes, heavy, sessions: 3, life: 0, boots: 0, now: 0 };
        let dir = tempfile::tempdir().unwrap();
        let life = run(setup, dir.path(), BTreeMap::new());
        self.examine(&life, (Lies::none(), None), count, &mut rng);
        crashes(&life, (Lies::none(), None), RECOVERIES, &mut rng, |state| self.recovery(&life, &state));
        crashes(&life, (Lies::none(), Some(Keep::Everything)), KILLS, &mut rng, |state| self.kill(&life, &state, None));
        true
    }

    /// Records a recovery from a crash state and the work after it. Examines its states, and does the same with one of
    /// them.
    fn recovery(&self, life: &Run, state: &State) {
        let count = self.take(STATES_OF_A_RECOVERY);
        // A wrong state is reported where states are examined.
        let Ok(Examined { found, .. }) = examine(&state.image, life, state.cut) else { return };
        let dir = tempfile::tempdir().unwrap();
        state.image.write(dir.path());
        let (mut setup, mut rng) = (life.setup, Rng::new(life.setup.seed));
        setup.sessions = 1;
        setup.life += 1;
        setup.boots += 1;
        setup.now = life.now(state.cut);
        let recovery = run(setup, dir.path(), life.known.at(&found, state.cut, setup.now));
        self.examine(&recovery, (Lies::none(), None), count, &mut rng);
        if setup.life < 2 {
            crashes(&recovery, (Lies::none(), None), 1, &mut rng, |state| self.recovery(&recovery, &state));
        }
    }

    /// Does the same for a killed process. The machine continues and has all data, synced or not, until its power
    /// fails.
    fn kill(&self, life: &Run, state: &State, keeps: Option<Keep>) {
        let count = self.take(STATES_OF_A_RECOVERY);
        let Ok(Examined { found, .. }) = examine(&state.image, life, state.cut) else { return };
        let dir = tempfile::tempdir().unwrap();
        state.image.write(dir.path());
        let mut setup = life.setup;
        setup.sessions = 1;
        setup.life += 1;
        setup.now = life.now(state.cut);
        let next = run(setup, dir.path(), life.known.at(&found, state.cut, setup.now));
        let both = joined(life, state.cut, &state.image, &found, &next);
        self.examine(&both, (Lies::none(), keeps), count, &mut Rng::new(setup.seed));
    }
}

/// Keeps a crash state for later inspection.
fn keep(state: &State, seed: u64) -> Option<PathBuf> {
    let dir = tempfile::Builder::new().prefix(&format!("oncekey-power-{seed}-{}-", state.cut)).tempdir().ok()?.keep();
    state.image.write(&dir);
    Some(dir)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().unwrap())
}

#[test]
fn a_power_cut_loses_no_answer_and_leaves_no_partial_change() {
    let campaign = Campaign::new(number("ONCEKEY_STATES", 300), number("ONCEKEY_SEED", 1));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| while campaign.life() {});
        }
    });
    let figures = campaign.figures.into_inner().unwrap();
    figures.print();
    for (wrong, how) in figures.wrong.iter().take(5) {
        println!("{how}: {wrong:?}");
    }
    assert_eq!(figures.wrong.len(), 0, "the store broke its promise");
    let modes = if has_sync_flag() { 4 } else { 2 };
    assert_eq!(figures.states.keys().map(|(mode, _)| mode).collect::<BTreeSet<_>>().len(), modes);
    for moment in
        [Moment::Creation, Moment::Recovery, Moment::Commit, Moment::Checkpoint, Moment::Recycling, Moment::Closing]
    {
        assert!(figures.states.keys().any(|(_, other)| *other == moment), "{moment:?} was never cut");
    }
    assert!(figures.replayed > 20 && figures.staged > 20, "there was no load");
    // A few percent of the states. A small number of states may contain none.
    assert!(figures.torn > 0 || figures.states.values().sum::<u64>() < 1000, "nothing was torn");
}

/// Cuts right before each sync, with half of its data on disk, and right after it, with only its data.
#[test]
fn a_power_cut_at_any_sync_loses_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let life = run(plain(false, 4096, 1), dir.path(), BTreeMap::new());
    let (campaign, moments) = (Campaign::new(0, 7), moments(&life));
    let syncs: Vec<usize> = life.log.syncs().collect();
    thread::scope(|scope| {
        for half in 0..2 {
            let (campaign, life, moments, syncs) = (&campaign, &life, &moments, &syncs);
            scope.spawn(move || {
                let (mut disk, mut rng) = (Disk::new(&life.log, Lies::none(), false), Rng::new(half));
                for at in syncs.iter().skip(usize::try_from(half).unwrap()).step_by(2) {
                    for (cut, keep) in [(*at, Keep::Percent(50)), (at + 1, Keep::Nothing)] {
                        disk.advance(cut);
                        let image = disk.crash(keep, &mut rng);
                        let state = State { cut, moment: moments[cut], how: (keep, false), image };
                        campaign.examine_one(life, (Lies::none(), None), &state);
                    }
                }
            });
        }
    });
    let figures = campaign.figures.into_inner().unwrap();
    figures.print();
    assert_eq!(figures.wrong, []);
    assert_eq!(figures.states.values().sum::<u64>(), 2 * syncs.len() as u64);
    assert!(syncs.len() > 100, "{} syncs", syncs.len());
}

/// A process creates a file or directory and is killed before the entry is durable. The next process must make it
/// durable.
#[test]
fn an_open_makes_the_files_of_a_killed_process_durable() {
    let dir = tempfile::tempdir().unwrap();
    let life = run(plain(false, 4096, 1), dir.path(), BTreeMap::new());
    let campaign = Campaign::new(u64::MAX, 7);
    let is_new = |at: &usize| matches!(life.log.events[*at], Event::Created { .. } | Event::Renamed { .. });
    let mut disk = Disk::new(&life.log, Lies::none(), false);
    for made in (0..life.log.events.len()).filter(is_new) {
        // The last moment before the sync of a directory.
        let is_dir_sync = |event: &Event| matches!(event, Event::Synced { node, .. } if life.log.nodes[*node].is_dir);
        let until =
            life.log.events[made..].iter().position(is_dir_sync).map_or(life.log.events.len(), |sync| made + sync);
        for cut in [made + 1, until] {
            disk.advance(cut.max(disk.position()));
            let (image, moment) = (disk.crash(Keep::Everything, &mut Rng::new(7)), Moment::Recovery);
            let state = State { cut: disk.position(), moment, how: (Keep::Everything, false), image };
            campaign.kill(&life, &state, Some(Keep::Nothing));
        }
    }
    let figures = campaign.figures.into_inner().unwrap();
    figures.print();
    assert_eq!(figures.wrong, []);
}

/// Makes the states of a life on a disk where syncs of some files have no effect once the store exists. The states
/// during the creation are right all the same.
fn with_lies(setup: Setup, keeps: Option<Keep>, about: fn(&Log, Node) -> bool) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let life = run(setup, dir.path(), BTreeMap::new());
    let campaign = Campaign::new(0, setup.seed);
    let from = life.phases[1].0;
    campaign.examine(&life, (Lies { from, about }, keeps), 40, &mut Rng::new(setup.seed));
    let figures = campaign.figures.into_inner().unwrap();
    figures.print();
    figures
}

fn plain(sync_flag: bool, segment_bytes: u64, sessions: u64) -> Setup {
    Setup { seed: 7, sync_flag, eventual: false, segment_bytes, heavy: false, sessions, life: 0, boots: 0, now: 0 }
}

/// Returns true if an answered record in progress is lost with the journal. Such records reach sled only in a store
/// checkpoint.
fn is_at_stake(run: &Run, cut: usize) -> bool {
    let is_in_progress = |steps: &Vec<Step>| {
        let last = steps.iter().rev().find(|step| step.began < cut);
        last.is_some_and(|step| {
            step.answered <= cut && matches!(step.expected, Expected::Claimed { .. } | Expected::Staged { .. })
        })
    };
    run.phase(cut).1 == Phase::Working && run.known.steps.values().any(is_in_progress)
}

fn with_and_without_flag() -> impl Iterator<Item = bool> {
    [false, true].into_iter().take(1 + usize::from(has_sync_flag()))
}

/// With a large segment there is no store checkpoint before the close, so the answers are only in the journal.
#[test]
fn ineffective_syncs_of_the_journal_are_detected() {
    for sync_flag in with_and_without_flag() {
        let figures = with_lies(plain(sync_flag, 1 << 20, 1), Some(Keep::Nothing), Log::is_journal);
        assert!(figures.at_stake > 0, "nothing was at stake");
        assert_eq!(figures.found, figures.at_stake, "every one of them has lost something");
        // The rest of the journal may also show that there was more.
        let figures = with_lies(plain(sync_flag, 4096, 2), None, Log::is_journal);
        assert!(figures.wrong.len() > 10, "{} states are wrong", figures.wrong.len());
    }
}

/// After a store checkpoint, the recycled part of the journal is only in sled.
#[test]
fn ineffective_syncs_of_sled_are_detected() {
    for sync_flag in with_and_without_flag() {
        let figures = with_lies(plain(sync_flag, 4096, 2), None, Log::is_sled);
        assert!(figures.wrong.len() > 10, "{} states are wrong", figures.wrong.len());
    }
}
