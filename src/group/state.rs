//! What the commit lock guards.

use std::time::Instant;

use crate::error::Error;

#[derive(Debug)]
pub(super) struct State<C, S> {
    /// The number of the group that is being filled.
    pub(super) filling: u64,
    pub(super) next_frame: u64,
    pub(super) payload: Vec<u8>,
    pub(super) frames: Vec<C>,
    /// When the group that is being filled got its first frame; only kept where an interval counts from it.
    pub(super) since: Option<Instant>,
    /// Somebody waits for the group that is being filled.
    pub(super) urgent: bool,
    pub(super) phase: Phase,
    /// Room in the current region behind the last group taken.
    pub(super) region: u64,
    pub(super) spare: Option<(u64, S)>,
    /// The size of the spare region that is wanted, 0 if none is.
    pub(super) wanted: u64,
    pub(super) refusals: u64,
    pub(super) refused: Option<Error>,
    /// Why users' commits are refused for now, and whether nothing is applied meanwhile.
    pub(super) hold: Option<(Error, bool)>,
    pub(super) unapplied: u64,
    /// The last group that was applied.
    pub(super) applied: u64,
    /// Payload bytes ever committed, and those up to the last checkpoint.
    pub(super) committed: u64,
    pub(super) checked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Only exempt commits are let in.
    Closing,
    /// The writer was told that no user's commit will come.
    Draining,
    /// Nothing is let in.
    Closed,
}

impl<C, S> State<C, S> {
    /// `durable` is the last group there is, `region` the room behind it.
    pub(super) fn new(durable: u64, next_frame: u64, region: u64) -> Self {
        Self {
            filling: durable + 1,
            next_frame,
            payload: Vec::new(),
            frames: Vec::new(),
            since: None,
            urgent: false,
            phase: Phase::Open,
            region,
            spare: None,
            wanted: 1,
            refusals: 0,
            refused: None,
            hold: None,
            unapplied: 0,
            applied: durable,
            committed: 0,
            checked: 0,
        }
    }

    /// Room for the group that is being filled: it goes behind the last one, or into the spare region.
    pub(super) fn room(&self) -> u64 {
        self.region.max(self.spare.as_ref().map_or(0, |(size, _)| *size))
    }
}

#[cfg(test)]
impl<C, S> super::Group<C, S> {
    /// A spare region is there: whoever prepares them rests until it is used.
    pub(crate) fn has_spare(&self) -> bool {
        self.state.lock().spare.is_some()
    }
}
