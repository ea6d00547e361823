//! Embedded, synchronous, crash-safe engine for idempotency keys: an operation that carries a key runs once, and every retry
//! gets the same answer: at once, after a wait, after a restart, after a power cut.

mod claim;
mod clock;
mod codec;
mod context;
mod engine;
mod error;
mod event;
mod execute;
mod failure;
mod fingerprint;
mod group;
#[cfg(feature = "json")]
mod json;
mod key;
mod manager;
mod options;
mod outcome;
mod protocol;
mod raw;
mod record;
mod records;
mod slots;
mod stats;
mod store;
mod transition;
mod value;
mod worker;

pub use claim::{Claim, EndError};
pub use clock::{BootTime, Clock, FOREVER, ManualClock, SystemClock};
pub use context::{Context, MAX_CONTEXT_BYTES, MAX_CONTEXT_ENTRIES, MAX_CONTEXT_NAME_BYTES};
pub use engine::Engine;
pub use error::{Error, ErrorKind, Result};
pub use event::{Compacted, EVENT_QUEUE, Event};
pub use execute::{ExecuteError, Executed};
pub use failure::Failure;
pub use fingerprint::{Fingerprint, FingerprintBuilder};
#[cfg(feature = "json")]
pub use json::Json;
pub use key::{Key, MAX_KEY_BYTES};
pub use manager::{Begin, Manager, Pending, Resolution, Waited};
pub use options::{
    BeginOptions, Durability, EngineOptions, ExecuteOptions, MAX_VALUE_BYTES, ManagerOptions, OnError, OnInterrupted,
};
pub use outcome::{Finished, Record};
pub use protocol::OpenReport;
pub use raw::RawManager;
pub use record::{FINISHED, Interruption, RecordInfo, STARTED, Status};
pub use records::{RecordFilter, Records};
pub use stats::Stats;
pub use value::Value;
