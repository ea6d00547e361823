//! What does not fit beside a single item. There is no code in here.
//!
//! - [`crashes`]: what becomes of a record on `Ok`, `Err`, panic, `?` and process death; the two policies; settling what is held.
//! - [`stages`]: operations of several steps that go on where they stopped; rows and record in one commit; transactions.
//! - [`http`]: requests with an `Idempotency-Key`, and what their clients are told.
//! - [`durability`]: power cuts, failing and full disks, damage, TTLs and clocks.
//! - [`limits`]: every limit and its reason; what it is not made for.
//! - [`tuning`]: what costs what, and what can be set.
//! - [`operating`]: the command line, `tracing` and `metrics`, what to do about an error.
//! - [`migrating`]: from litert, Medusa and Powertools.
//! - [`architecture`]: the design, for those who read the code.

// The guides name items as they are called, without paths.
#[cfg(all(doc, feature = "http"))]
#[allow(unused_imports, reason = "only links use them")]
use crate::http::*;
#[cfg(doc)]
#[allow(unused_imports, reason = "only links use them")]
use crate::{admin::*, clock::*, table::*, *};

#[doc = include_str!("guides/crashes.md")]
pub mod crashes {}

#[doc = include_str!("guides/stages.md")]
pub mod stages {}

#[cfg(feature = "http")]
#[doc = include_str!("guides/http.md")]
pub mod http {}

#[doc = include_str!("guides/durability.md")]
pub mod durability {}

#[doc = include_str!("guides/limits.md")]
pub mod limits {}

#[doc = include_str!("guides/tuning.md")]
pub mod tuning {}

#[doc = include_str!("guides/operating.md")]
pub mod operating {}

#[doc = include_str!("guides/migrating.md")]
pub mod migrating {}

#[doc = include_str!("../ARCHITECTURE.md")]
pub mod architecture {}
