//! Begins several claims in one commit, and ends several in one commit.

use std::sync::Arc;

use super::owners::Entering;
use super::{Begun, Changed, Protocol, RecordId, Workspace, lost, unexpected};
use crate::protocol::rules::{Action, Ending, Reason, Start};
use crate::types::error::{self, Result};
use crate::types::record::{RecordInfo, StoredRecord};

/// The size in bytes at which a commit of many records is full. One more record still fits into a frame.
pub(crate) const MAX_COMMIT_BYTES: usize = 8 << 20;

/// The claims that a workspace would make. They are counted before their commit.
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    protocol: &'a Protocol,
    claims: Vec<Entering<'a>>,
    bytes: usize,
}

/// A claim and its ending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToEnd<'a> {
    pub(crate) id: &'a RecordId,
    pub(crate) token: u64,
    pub(crate) ending: &'a Ending,
    /// The TTL of an outcome in milliseconds. `None` means the TTL in the record.
    pub(crate) ttl: Option<u64>,
    /// The record as the claim has last seen it.
    pub(crate) known: Option<&'a Arc<StoredRecord>>,
}

impl<'a> Entered<'a> {
    pub(crate) fn new(protocol: &'a Protocol) -> Self {
        Self { protocol, claims: Vec::new(), bytes: 0 }
    }

    /// True if the commit takes no further record.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= MAX_COMMIT_BYTES
    }

    /// Adds the begin of a key to a workspace. The claim has no token before the commit.
    pub(crate) fn begin(&mut self, workspace: &mut Workspace, id: &RecordId, start: &Start) -> Result<Begun> {
        let info = match self.protocol.change_in(workspace, id, &Action::Begin(start))? {
            Changed::Written(info) => info,
            kept => return self.protocol.claimed(id, kept),
        };
        match self.protocol.enter_owner() {
            Ok(claim) => self.claims.push(claim),
            Err(error) => {
                workspace.take_back(id);
                return Err(error);
            }
        }
        self.bytes = self.bytes.saturating_add(bytes(&info));
        Ok(Begun::Claimed(info))
    }

    /// Turns the claims into live ones, after their commit is durable.
    pub(crate) fn live<'i>(self, claimed: impl IntoIterator<Item = &'i RecordInfo>) {
        for (claim, info) in self.claims.into_iter().zip(claimed) {
            claim.live(info.stored().token);
        }
    }
}

impl Protocol {
    /// Ends the claims in as few commits as can hold their records. Returns one result for each.
    pub(crate) fn end_all(&self, mut ends: &[ToEnd<'_>]) -> Vec<Result<RecordInfo>> {
        let mut answers = Vec::with_capacity(ends.len());
        while !ends.is_empty() {
            let ended = match self.end_some(ends) {
                Ok(ended) => ended,
                Err(error) => ends.iter().map(|_| Err(error.clone())).collect(),
            };
            ends = ends.get(ended.len()..).unwrap_or_default();
            answers.extend(ended);
        }
        answers
    }

    /// Ends the first of these claims, as many as one commit can hold. Does not wait for transactions. Runs again only
    /// if another thread changed one of the records meanwhile.
    fn end_some(&self, ends: &[ToEnd<'_>]) -> Result<Vec<Result<RecordInfo>>> {
        // A claim may end after a close of the engine.
        self.check_outside()?;
        let uses = error::uses();
        loop {
            // Errors of an earlier attempt reach no caller, so they do not count.
            error::reset_uses(uses);
            let mut workspace = self.workspace();
            let (mut answers, mut size) = (Vec::new(), 0_usize);
            for end in ends {
                if size >= MAX_COMMIT_BYTES {
                    break;
                }
                let answer = self.end_in(&mut workspace, *end);
                if workspace.is_stale() {
                    break;
                }
                size = size.saturating_add(answer.as_ref().map_or(0, bytes));
                answers.push(answer);
            }
            if !self.holds(&workspace) {
                continue;
            }
            let Some(committed) = self.commit(&mut workspace)? else { continue };
            self.wait_for(&workspace)?;
            let mut written = self.announce(committed)?.into_iter().peekable();
            // The written records are in the order of the ends. An answer that wrote nothing stays as it was read.
            for (answer, end) in answers.iter_mut().zip(ends) {
                if let Some(info) = written.next_if(|info| end.id.is_of(info)) {
                    *answer = Ok(info);
                }
            }
            return Ok(answers);
        }
    }

    fn end_in(&self, workspace: &mut Workspace, end: ToEnd<'_>) -> Result<RecordInfo> {
        let ToEnd { id, token, ending, ttl, .. } = end;
        match self.change_in(workspace, id, &Action::End { token, ending, ttl })? {
            Changed::Written(info) | Changed::Kept(Reason::Already, Some(info)) => Ok(info),
            Changed::Kept(reason, _) => Err(lost(id, reason)),
            other @ Changed::Deleted => Err(unexpected(id, &other)),
        }
    }
}

impl RecordId {
    /// True if this is the record of the key.
    pub(crate) fn is_of(&self, info: &RecordInfo) -> bool {
        self.key == *info.key() && *self.manager == *info.manager()
    }
}

/// Returns the approximate number of bytes that the record adds to a frame.
fn bytes(info: &RecordInfo) -> usize {
    let stored = info.stored();
    let context: usize = info.context().iter().map(|(name, value)| name.len() + value.len()).sum();
    let values = [&stored.checkpoint, &stored.outcome].into_iter().flatten();
    info.key().as_bytes().len() + context + values.map(|value| value.len()).sum::<usize>() + 256
}
