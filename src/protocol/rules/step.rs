//! What becomes of a record: its endings, its stages, and changes from outside.

use crate::types::record::Interruption;
use crate::types::value::Value;

/// The endings of a claim.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Succeed(Value),
    Fail(Value),
    /// Nothing has happened, as somebody says who may not know.
    Release,
    /// Nothing has happened, and nothing can have: this attempt asked for no effect id.
    ReleaseUntouched,
    /// Nothing is left to find out. But an effect was named or a stage committed in this attempt.
    ReleaseTouched,
    Interrupt(Interruption),
}

/// What a work stage makes of its record.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Nothing.
    Stay,
    /// It has come this far.
    Advance {
        point: String,
        checkpoint: Option<Value>,
    },
    End(Ending),
}

/// What is set in a record that nobody owns; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patch {
    pub(crate) recovery_point: Option<String>,
    pub(crate) checkpoint: Option<Value>,
    /// Without a checkpoint of its own, the one that is there goes too.
    pub(crate) forgets_checkpoint: bool,
    /// Ends the record, with an outcome that is encoded under this schema.
    pub(crate) ending: Option<(Ending, u32)>,
}
