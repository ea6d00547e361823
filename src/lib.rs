//! An embedded, synchronous, crash-safe engine for idempotency keys.
//!
//! An operation with a key runs once, and every retry gets the same answer: at once, after a wait, after a restart, or
//! after a power cut. The engine needs no server, no async runtime and no external database: a service links this crate
//! and opens a directory.
//!
//! The state of a key is its *record*. The caller that runs the operation is the *owner* of the key, and its right to
//! do so is a [`Claim`]. Calls that wait for an owner are *waiters*.
//!
//! - **An answer is durable before any caller gets it**: the owner, a waiter or a later retry. Many threads share one
//!   sync.
//! - **Sequence numbers decide if an owner is alive, never a timeout**: a slow owner keeps its key. On PostgreSQL, a
//!   lock of the owner's session decides.
//! - **Interrupted is a state**: the engine never guesses whether an operation happened. By a policy, the record is
//!   held until it is resolved, or the next caller resumes it.
//! - **Waiters park on condition variables**, and one takes over the key when its owner gives up.
//!
//! A directory is not for several processes at once, nor on a network file system; several instances share a store on
//! PostgreSQL, with the feature `postgres`. The engine is not async.
//!
//! ```
//! use oncekey::{CallOptions, Engine, ExecuteError, Fingerprint, Manager};
//!
//! let engine = Engine::temporary()?; // or Engine::open("payments.oncekey")
//! let payments: Manager<String> = engine.manager("payments")?;
//! // The fingerprint identifies the request.
//! let of = |cents: u64| {
//!     Ok::<_, oncekey::Error>(
//!         CallOptions::new().fingerprint(Fingerprint::of(&("EUR", cents))?),
//!     )
//! };
//! let first =
//!     payments.execute_with("order-42", of(1999)?, |_claim| Ok("ch_1".to_owned()))?;
//! let retry = payments
//!     .execute_with("order-42", of(1999)?, |_claim| unreachable!("it has run"))?;
//! assert!(!first.replayed() && retry.replayed());
//! assert_eq!(first.value(), retry.value());
//! let other = payments
//!     .execute_with("order-42", of(2999)?, |_claim| unreachable!("another amount"));
//! assert!(matches!(other, Err(ExecuteError::Mismatch(_))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which call do I need?
//!
//! | I want to | call |
//! |---|---|
//! | run an operation once, in one call, with a fingerprint of its payload | [`Manager::execute_with`] |
//! | the same, if the key alone determines the operation | [`Manager::execute`] |
//! | run a batch, such as the messages of one poll | [`Manager::execute_many`] |
//! | wait longer, store facts with the record, set other TTLs | [`CallOptions`] |
//! | own the key across functions or threads | [`Manager::begin`], [`Claim`] |
//! | wait for another owner, and take over from it | [`Manager::begin_with`], [`CallOptions::wait`] |
//! | find out the state of a key | [`Manager::get`], [`Manager::wait`] |
//! | list what the last crash left, and resolve it | [`Engine::interrupted`], [`Manager::resolve`] |
//! | resume an operation of several steps where it stopped | [`Manager::drive`], [`Stages`](stage::Stages), [`Claim::work_stage`] |
//! | change my own data and the record in one commit | [`Claim::work_stage`], [`Engine::table`] |
//! | change several rows together | [`Engine::atomic_phase`] |
//! | check that nothing is damaged | [`Engine::verify`] |
//! | separate tenants; erase one | [`Manager::scoped`], [`Manager::erase`] |
//! | answer HTTP requests that carry a key | [`Requests::handle`](http::Requests::handle), [`Key::from_headers`], [`ExecuteError::problem`] |
//! | inspect a store from a terminal | the binary `oncekey`, feature `cli` |
//! | test what a crash leaves | `Engine::crash`, feature `test-util` |
//! | test with time | [`ManualClock`](clock::ManualClock), [`Engine::temporary`] |
//!
//! [`guides::crashes`] has a table of the effect of `Ok`, `Err`, a panic, `?` and process death on a record.
//!
//! # States of a key
#![doc = include_str!("guides/states.svg")]
//!
//! A key whose owner died, dropped its claim or panicked is *interrupted*: it is not known whether the operation
//! happened. Under [`OnInterrupted::Hold`], the default, it waits until a caller [resolves](Manager::resolve) it. Under
//! [`OnInterrupted::Resume`] the next `begin` continues at its *recovery point*, a name that says how far the operation
//! has come. A released key keeps its recovery point too.
//!
//! # Promises
//!
//! On Linux with ext4, XFS or btrfs, on a disk that keeps what it has acknowledged as flushed:
//!
//! 1. An answer that was returned is durable, and is returned again until its TTL ends. Under [`Durability::Eventual`],
//!    the answers of the last interval may be lost.
//! 2. A key has at most one live owner, and no caller waits for a dead one.
//! 3. A claim that lost its key can neither end the record nor write rows.
//! 4. The rows of a stage, its recovery point and its outcome are one commit.
//! 5. When an owner gives up, exactly one waiter takes over the key. An ending wakes all waiters.
//! 6. After the first failed write or sync, nothing more is acknowledged.
//! 7. Nothing expires early, whatever the wall clock does, unless [`max_offline`](EngineOptions::max_offline) is set.
//! 8. Damaged data on disk gives a typed error or the right data, with the exceptions in [`guides::durability`].
//!
//! # Limits
//!
//! Keys have up to [`Key::MAX_BYTES`] bytes. Outcomes have up to 1 MiB by default, and up to [`Value::MAX_BYTES`] with
//! [`max_value_bytes`](EngineOptions::max_value_bytes). TTLs default to 24 h. One process owns a directory, calls
//! block, and external effects are not rolled back. All limits, with reasons: [`guides::limits`].
//!
//! # Guides
//!
//! [Crashes and the two policies](guides::crashes), [stages](guides::stages), [HTTP](guides::http),
//! [durability](guides::durability), [limits](guides::limits), [tuning](guides::tuning),
//! [operating](guides::operating), [an operator's walkthrough](guides::walkthrough),
//! [several instances](guides::instances), [migrating from litert, Medusa, Powertools](guides::migrating),
//! [architecture](guides::architecture)
//!
//! # Modules
//!
//! The root has the items that most services need. [`stage`] is for work in stages, [`table`] for the user's own rows,
//! `http` for requests that carry a key, [`admin`] for reports, events, listings and resolving by hand, [`clock`] for
//! clocks in tests.
//!
//! # Features
//!
//! - `http`, on by default: `Requests`, `Response`, keys in headers and problem details, on the types of the `http`
//!   crate; `Fingerprint::of_json`.
//! - `cli`: the operator's command line, as the binary `oncekey` and as `cli::main` for a service's own binary.
//! - `test-util`: `Engine::crash`, which simulates the death of the process, for tests.
//! - `postgres`: stores on PostgreSQL, for several instances of a service; see [`guides::instances`].
//! - `tls`: with `postgres`, encrypted connections for addresses with `sslmode=require`. Needs a C compiler.
//! - `tracing`, `metrics`: spans, events, counters, gauges and histograms; [`guides::operating`] has the table.
//!
//! # Platforms
//!
//! Unix; made for and tested on Linux. Needs Rust 1.85.

#![forbid(unsafe_code)]
// On docs.rs, mark items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("oncekey needs the file locks and positioned writes of a Unix");

mod api;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "http")]
pub mod http;
mod live;
#[cfg(feature = "postgres")]
mod postgres;
mod protocol;
mod store;
mod sync;
mod types;

pub use api::claim::{Claim, EndError};
pub use api::engine::Engine;
pub use api::manager::execute::{ExecuteError, Executed};
pub use api::manager::{Begin, Manager, Pending, Waited};
pub use api::transaction::Transaction;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use store::fuzzing;
pub use types::clock::FOREVER;
pub use types::context::Context;
pub use types::error::{Error, ErrorKind, Result};
pub use types::failure::Failure;
pub use types::fingerprint::{Fingerprint, FingerprintBuilder};
pub use types::key::{IntoKey, Key};
pub use types::options::{CallOptions, Durability, EngineOptions, ManagerOptions, OnError, OnInterrupted};
pub use types::outcome::{Finished, Record};
pub use types::record::{Interruption, RecordInfo, Status};
pub use types::token::Token;
pub use types::value::Value;

/// For operators of a service: reports, counters, events, listings, records without their types, resolving by hand.
pub mod admin {
    pub use crate::api::engine::usage::{ManagerUsage, StatusUsage, Usage};
    pub use crate::api::erase::Erased;
    pub use crate::api::live_store::{LiveStore, Received};
    pub use crate::api::raw::RawManager;
    pub use crate::api::records::{RecordFilter, Records};
    pub use crate::api::resolution::Resolution;
    #[cfg(feature = "postgres")]
    pub use crate::postgres::ServerReport;
    #[cfg(feature = "postgres")]
    pub use crate::protocol::MigrateReport;
    pub use crate::protocol::event::{Compacted, Event, Events};
    pub use crate::protocol::{BackupReport, LostRange, OpenReport, RangeEnd, SalvageReport, VerifyReport};
    pub use crate::types::histogram::Histogram;
    pub use crate::types::key::KeyPrefix;
    pub use crate::types::record::EarlierAttempt;
    pub use crate::types::stats::Stats;
}

/// The clock of an engine: that of the system, and a manual one for tests.
pub mod clock {
    pub use crate::types::clock::{BootTime, Clock, ManualClock, SystemClock};
}

/// Stages in transactions of your own client of PostgreSQL; see [the guide](guides::instances).
#[cfg(feature = "postgres")]
pub mod sql {
    pub use crate::api::claim::sql::{StageSql, TransactionEnd};
    pub use crate::api::sql::is_conflict;
    pub use crate::postgres::SqlValue;
    #[doc(no_inline)]
    pub use ::postgres;
}

/// Work in stages, with a recovery point after each; see [the guide](guides::stages).
pub mod stage {
    pub use crate::api::claim::stage::Next;
    pub use crate::api::manager::drive::{DriveError, Stages};
    pub use crate::api::transaction::PhaseError;
    pub use crate::types::record::{FINISHED, STARTED};
}

/// The user's own rows, changed alone or in one commit with records.
pub mod table {
    pub use crate::api::table::{Rows, Table};
    pub use crate::api::transaction::{Isolation, PhaseOptions, TransactionRows, TransactionTable};
}

/// Compiles the examples of the README as written.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod guides;
