//! Stages in transactions of the user: the rules before the change of the record, and the notifications after the
//! commit.

use std::sync::Arc;

use ::postgres::Transaction;

use super::backend::Backend;
use super::errors::{patched, unowned};
use super::transaction::{CommittedWorkspace, Fence};
use super::{Changed, Protocol, RecordId, Written, lost, not_found, unexpected};
use crate::postgres::{self, Fenced, Settled, SqlValue, StageTerms, Stop};
use crate::protocol::rules::{Action, Decision, Patch, Reason, Step, decide};
use crate::store::Load;
use crate::types::clock::NEVER;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{Now, RecordInfo, Status, StoredRecord};

/// The record of a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StageOf<'a> {
    /// The record of a claim, which must have the state of the fence.
    Claim(Fence<'a>),
    /// A record that must have no owner.
    Unowned(&'a RecordId),
}

/// The effect of a stage on its record.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Step(Step),
    Patch(Patch),
}

/// A change of a record that a transaction of the user commits.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    id: RecordId,
    token: u64,
    is_owned: bool,
    before: Status,
    decided: Now,
    staged: postgres::Staged,
}

impl StageOf<'_> {
    fn id(&self) -> &RecordId {
        match self {
            Self::Claim(fence) => fence.id,
            Self::Unowned(id) => id,
        }
    }
}

impl Stage {
    /// Returns true if this is a stage of the claim with this fence.
    pub(crate) fn is_of(&self, fence: Fence<'_>) -> bool {
        self.id.is(fence.id) && self.token == fence.token
    }

    /// Returns the statement, with `$1` and so on for the values.
    pub(crate) fn text(&self) -> &str {
        self.staged.text()
    }

    pub(crate) fn values(&self) -> &[SqlValue] {
        self.staged.values()
    }

    /// Makes the change in the user's transaction.
    pub(crate) fn run_in(&mut self, user: &mut Transaction<'_>) -> Result<(), Stop> {
        match self.staged.run_in(user) {
            // The record has expired meanwhile. The next run returns the error for that.
            Err(Stop::Fault(error)) if error.kind() == ErrorKind::ClaimLost && !self.is_owned => Err(Stop::Again),
            made => made,
        }
    }

    /// Returns the error of a stage whose record was changed by others, before or after its commit.
    pub(crate) fn overtaken(&self, why: &dyn std::fmt::Display) -> Error {
        let Self { id, is_owned, .. } = self;
        if *is_owned {
            return lost(id, Reason::Changed);
        }
        let message =
            format!("{} was changed by others, so it is not known if the stage was committed: {why}", id.named());
        Error::new(ErrorKind::Unsettled, message)
    }
}

impl Protocol {
    fn server(&self) -> Result<&postgres::Store> {
        match &self.store {
            Backend::Postgres(store) => Ok(store),
            Backend::Local(_) => {
                let message = format!("the store {} is not in a database: use a work stage", self.path().display());
                Err(Error::new(ErrorKind::InvalidOptions, message))
            }
        }
    }

    /// Checks that a stage may begin. A claim may run stages after a close of the engine.
    pub(crate) fn prepare_stage(&self, of: &StageOf<'_>) -> Result<()> {
        self.server()?;
        match of {
            StageOf::Claim(_) => self.check_outside(),
            StageOf::Unowned(id) => {
                self.check()?;
                self.record_drop_of(id);
                // This records the death of an owner, if there is one to record.
                self.store.look(&id.at, Load::WithoutOutcome, true).map(drop)
            }
        }
    }

    /// Locks the record in the user's transaction, and returns it.
    pub(crate) fn fence_in(&self, user: &mut Transaction<'_>, of: &StageOf<'_>) -> Result<(Fenced, RecordInfo), Stop> {
        let fenced = self.server()?.fence_in(user, &of.id().at)?;
        let info = self.check_fence(&fenced, of)?;
        Ok((fenced, info))
    }

    /// Returns the record, or an error if no stage may change it.
    fn check_fence(&self, fenced: &Fenced, of: &StageOf<'_>) -> Result<RecordInfo> {
        let (id, now) = (of.id(), self.store.now());
        let info = self.show(id, fenced.stored.as_ref(), &now);
        match of {
            StageOf::Claim(Fence { token, point, ttl, .. }) => {
                let stay = Action::Stage { token: *token, point, step: &Step::Stay, ttl: *ttl };
                match decide(fenced.stored.as_deref(), &stay, &now) {
                    Decision::Keep(Reason::Already) => info.ok_or_else(|| lost(id, Reason::Absent)),
                    Decision::Keep(reason) => Err(lost(id, reason)),
                    _ => Err(unexpected(id, &Changed::Deleted)),
                }
            }
            StageOf::Unowned(id) => unowned(id, info.ok_or_else(|| not_found(id))?),
        }
    }

    /// Decides the change of the record that was fenced.
    pub(crate) fn stage(&self, of: &StageOf<'_>, fenced: &Fenced, effect: &Effect) -> Result<Box<Stage>> {
        let (id, server) = (of.id(), self.server()?);
        let stored = fenced.stored.as_ref().ok_or_else(|| not_found(id))?;
        let (number, time) = server.draw()?;
        let now = Now { store: time, ..self.store.now() };
        let action = match (effect, of) {
            (Effect::Step(Step::Stay), _) => None,
            (Effect::Step(step), StageOf::Claim(Fence { token, point, ttl, .. })) => {
                Some(Action::Stage { token: *token, point, step, ttl: *ttl })
            }
            (Effect::Patch(patch), _) => Some(Action::Patch(patch)),
            (Effect::Step(_), StageOf::Unowned(_)) => return Err(unexpected(id, &Changed::Deleted)),
        };
        let decision = action.as_ref().map(|action| decide(Some(stored), action, &now));
        let mut after = match decision {
            // The revision changes all the same, so that the row shows whether the commit was made.
            None => Arc::new(StoredRecord { updated: now.store, updated_at: now.wall, ..StoredRecord::clone(stored) }),
            Some(Decision::Write(after)) => after,
            Some(Decision::Keep(reason)) => {
                return Err(match of {
                    StageOf::Claim(_) => lost(id, reason),
                    StageOf::Unowned(_) => refused(id, reason),
                });
            }
            Some(Decision::Delete) => return Err(unexpected(id, &Changed::Deleted)),
        };
        Arc::make_mut(&mut after).revision = number;
        let before = stored.status(&now);
        let expires = stored.expires_at(&now);
        let is_owned = matches!(of, StageOf::Claim(_));
        let terms = StageTerms {
            is_owned,
            keeps_expiry: action.is_some_and(|action| action.keeps_expiry()),
            until: if expires > now.store { expires } else { NEVER },
        };
        let staged = server.stage(&id.at, fenced, after, &now, terms)?;
        Ok(Box::new(Stage { id: id.clone(), token: stored.token, is_owned, before, decided: now, staged }))
    }

    /// Decides a change as [`stage`](Self::stage) does, for a transaction that the engine does not run.
    pub(crate) fn stage_here(&self, of: &StageOf<'_>, effect: &Effect) -> Result<Box<Stage>> {
        self.prepare_stage(of)?;
        let fenced = self.server()?.fence_here(&of.id().at)?;
        self.check_fence(&fenced, of)?;
        self.stage(of, &fenced, effect)
    }

    /// Finds out whether the transaction of a stage was committed. If `is_over` is false, this waits for the end of the
    /// transaction, and makes sure that it cannot be committed later.
    pub(crate) fn settle_stage(&self, stage: &mut Stage, is_over: bool) -> Result<Settled> {
        self.server()?.settle(&mut stage.staged, is_over)
    }

    /// Wakes waiters and notifies subscribers, after the commit of a stage. Returns the record.
    pub(crate) fn staged(&self, stage: &Stage) -> Result<RecordInfo> {
        self.server()?.staged(&stage.staged);
        let after = Arc::clone(&stage.staged.after);
        let info = self.show(&stage.id, Some(&after), &stage.decided);
        let written = Written { at: stage.id.at.clone(), before: Some(stage.before), after: Some(after) };
        self.announce(CommittedWorkspace::made(written, stage.decided))?;
        info.ok_or_else(|| not_found(&stage.id))
    }
}

/// Returns the error for a record without an owner that the rules do not change.
fn refused(id: &RecordId, reason: Reason) -> Error {
    patched(id, Changed::Kept(reason, None)).err().unwrap_or_else(|| not_found(id))
}
