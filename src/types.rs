//! The crate's values: keys, options, records, outcomes, errors, the clock. Nothing here knows the store or the rules.

pub(crate) mod clock;
pub(crate) mod codec;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod failure;
pub(crate) mod fingerprint;
pub(crate) mod histogram;
pub(crate) mod key;
#[cfg(feature = "metrics")]
pub(crate) mod labels;
pub(crate) mod options;
pub(crate) mod outcome;
mod portable;
pub(crate) mod record;
pub(crate) mod stats;
pub(crate) mod telemetry;
pub(crate) mod token;
pub(crate) mod value;
