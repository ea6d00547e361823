//! Embedded, synchronous, crash-safe engine for idempotency keys.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "wip")]
mod clock;
mod codec;
mod context;
mod error;
mod event;
mod failure;
mod fingerprint;
mod group;
#[cfg(feature = "json")]
mod json;
mod key;
mod options;
mod record;
mod slots;
mod stats;
mod store;
mod transition;
mod value;
mod worker;

pub use clock::*;
pub use context::{Context, MAX_CONTEXT_BYTES, MAX_CONTEXT_ENTRIES, MAX_CONTEXT_NAME_BYTES};
pub use error::{Error, ErrorKind, Result};
pub use failure::Failure;
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use key::{Key, MAX_KEY_BYTES};
pub use value::Value;
