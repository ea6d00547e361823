//! Errors on demand: rules that make calls fail, stop short, or hang.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::interpose::WATCHERS;

/// The kind of call that a rule applies to.
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
    /// Matched by the old path.
    Rename,
    /// Of a file or a directory.
    Remove,
}

/// The effect of a rule on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The call fails with this error number, such as `libc::ENOSPC`, and does nothing.
    Errno(i32),
    /// A read or write transfers at most this number of bytes.
    Short(usize),
    /// The call does not continue before [`Injected::release`].
    Hang,
    /// The call takes longer by this time.
    Slow(Duration),
}

/// The calls that a rule applies to: those of this kind on files whose path contains `path`, from the `nth` on, counted
/// from 1.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) path: String,
    pub(crate) call: Call,
    pub(crate) nth: u64,
    /// The number of calls that are affected. `u64::MAX` means all.
    pub(crate) times: u64,
    pub(crate) effect: Effect,
}

/// An active rule. Drop ends it.
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
    /// The number of calls that matched kind and path.
    seen: u64,
    /// The number of affected calls.
    hit: u64,
    released: bool,
}

/// The decision about a call.
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
    /// Returns the number of affected calls.
    pub(crate) fn hits(&self) -> u64 {
        self.0.state.lock().unwrap().hit
    }

    /// Waits until this number of calls was affected. With [`Effect::Hang`] they hang then.
    pub(crate) fn wait_for_hits(&self, hits: u64) {
        let state = self.0.state.lock().unwrap();
        drop(self.0.changed.wait_while(state, |state| state.hit < hits).unwrap());
    }

    /// Lets hanging calls continue.
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
                // Unlock, so that slow calls run side by side.
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

/// Returns the decision of the first rule that applies to this call.
pub(crate) fn verdict(call: Call, path: &Path) -> Verdict {
    let rules = RULES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    rules.iter().find_map(|rule| rule.effect(call, path)).unwrap_or(Verdict::Pass)
}
