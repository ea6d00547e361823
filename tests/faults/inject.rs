//! Errors on demand: rules that make calls fail, stop short, or hang.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::interpose::WATCHERS;

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Read,
    Write,
    /// `fsync` and `fdatasync`.
    Sync,
    SyncRange,
    Truncate,
    Allocate,
    CreateDir,
    /// By the old path.
    Rename,
    /// Of a file or a directory.
    Remove,
}

/// What comes of a call that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It fails with this number, e.g. `libc::ENOSPC`, and does nothing.
    Errno(i32),
    /// A read or write of at most so many bytes.
    Short(usize),
    /// It does not go on before [`Injected::release`].
    Hang,
    /// It takes so much longer.
    Slow(Duration),
}

/// Which calls: those of this kind on files whose path contains `path`, from the `nth` on, counted from 1.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) path: String,
    pub(crate) call: Call,
    pub(crate) nth: u64,
    /// How many calls it is about; `u64::MAX` is for ever.
    pub(crate) times: u64,
    pub(crate) effect: Effect,
}

/// A rule at work, until it is dropped.
#[derive(Debug)]
pub(crate) struct Injected(Arc<AtWork>);

#[derive(Debug)]
struct AtWork {
    rule: Rule,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that the rule's path and kind were right for.
    seen: u64,
    /// Calls that had the effect.
    hit: u64,
    released: bool,
}

/// What is to be done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Short(usize),
    Fail(i32),
}

static RULES: Mutex<Vec<Arc<AtWork>>> = Mutex::new(Vec::new());

impl Rule {
    pub(crate) fn inject(self) -> Injected {
        let at_work = Arc::new(AtWork { rule: self, state: Mutex::default(), changed: Condvar::new() });
        RULES.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&at_work));
        WATCHERS.fetch_add(1, Ordering::AcqRel);
        Injected(at_work)
    }
}

impl Injected {
    /// How many calls had the effect.
    pub(crate) fn hits(&self) -> u64 {
        self.0.state.lock().unwrap().hit
    }

    /// Waits until so many calls had the effect: those that hang hang then.
    pub(crate) fn wait_for_hits(&self, hits: u64) {
        let state = self.0.state.lock().unwrap();
        drop(self.0.changed.wait_while(state, |state| state.hit < hits).unwrap());
    }

    /// Calls that hang go on.
    pub(crate) fn release(&self) {
        self.0.state.lock().unwrap().released = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        self.release();
        RULES.lock().unwrap_or_else(PoisonError::into_inner).retain(|rule| !Arc::ptr_eq(rule, &self.0));
        WATCHERS.fetch_sub(1, Ordering::AcqRel);
    }
}

impl AtWork {
    fn effect(&self, call: Call, path: &Path) -> Option<Verdict> {
        if call != self.rule.call || !path.to_string_lossy().contains(&self.rule.path) {
            return None;
        }
        let mut state = self.state.lock().unwrap();
        state.seen += 1;
        if state.seen < self.rule.nth || state.hit >= self.rule.times {
            return None;
        }
        state.hit += 1;
        self.changed.notify_all();
        Some(match self.rule.effect {
            Effect::Errno(errno) => Verdict::Fail(errno),
            Effect::Short(len) => Verdict::Short(len),
            Effect::Slow(time) => {
                // Others are slow beside it, not after it.
                drop(state);
                std::thread::sleep(time);
                Verdict::Pass
            }
            Effect::Hang => {
                drop(self.changed.wait_while(state, |state| !state.released).unwrap());
                Verdict::Pass
            }
        })
    }
}

/// Of the first rule that has an effect on this call.
pub(crate) fn verdict(call: Call, path: &Path) -> Verdict {
    let rules = RULES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    rules.iter().find_map(|rule| rule.effect(call, path)).unwrap_or(Verdict::Pass)
}
