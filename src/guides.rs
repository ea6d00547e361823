//! Guides to subjects that are larger than a single item. This module contains no code.
//!
//! - [`crashes`]: the state of a record after `Ok`, `Err`, a panic, `?` and process death; the two policies; resolving
//!   interrupted records.
//! - [`stages`]: operations of several steps that continue after a crash; rows and record in one commit; transactions.
//! - [`http`]: requests with an `Idempotency-Key`, and the answers that their clients get.
//! - [`durability`]: power cuts, failing and full disks, damage, TTLs and clocks.
//! - [`limits`]: every limit and its reason; unsuitable uses; how values are encoded.
//! - [`tuning`]: the cost of calls, and the options that change it.
//! - [`operating`]: the command line, errors that need an operator, `tracing` and `metrics`.
//! - [`walkthrough`]: an operator resolves a held payment of a service that runs, a transcript.
//! - [`instances`]: one store on PostgreSQL for several instances of a service, feature `postgres`.
//! - [`migrating`]: for users of litert, Medusa and Powertools.
//! - [`architecture`]: the design, for readers of the code.

// The guides name items without their paths.
#[cfg(all(doc, feature = "http"))]
#[allow(unused_imports, reason = "only links use them")]
use crate::http::*;
#[cfg(doc)]
#[allow(unused_imports, reason = "only links use them")]
use crate::{admin::*, clock::*, stage::*, table::*, *};

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

#[doc = include_str!("guides/walkthrough.md")]
pub mod walkthrough {}

#[doc = include_str!("guides/instances.md")]
pub mod instances {}

#[doc = include_str!("guides/migrating.md")]
pub mod migrating {}

#[doc = include_str!("../ARCHITECTURE.md")]
pub mod architecture {}
