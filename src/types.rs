//! Nouns: what a key, a value, an option, a record and an error are. They know no store and no rule.

pub(crate) mod clock;
pub(crate) mod codec;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod failure;
pub(crate) mod fingerprint;
pub(crate) mod key;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod record;
pub(crate) mod stats;
pub(crate) mod telemetry;
pub(crate) mod value;
