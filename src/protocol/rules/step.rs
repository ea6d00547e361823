//! The endings of a claim, the steps of a stage, and patches.

use crate::types::record::Interruption;
use crate::types::value::Value;

/// The endings of a claim.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Succeed(Value),
    Fail(Value),
    /// Nothing has happened, as far as the caller knows.
    Release,
    /// Nothing can have happened: this attempt asked for no effect id.
    ReleaseUntouched,
    /// No effect is in doubt. But this attempt asked for an effect id or committed a stage.
    ReleaseTouched,
    Interrupt(Interruption),
}

/// The effect of a work stage on its record.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The record stays as it is.
    Stay,
    /// The record moves to this recovery point.
    Advance {
        point: String,
        checkpoint: Option<Value>,
    },
    End(Ending),
}

/// Changes to a record without a live owner. `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patch {
    pub(crate) recovery_point: Option<String>,
    pub(crate) checkpoint: Option<Value>,
    /// True if the old checkpoint is removed when the patch has none.
    pub(crate) forgets_checkpoint: bool,
    /// Ends the record, with an outcome that is encoded under this schema.
    pub(crate) ending: Option<(Ending, u32)>,
}
