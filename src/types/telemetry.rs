//! What an engine tells `tracing` and `metrics`, in one place. Without their features every function here is empty.
//!
//! Keys and managers are named, as errors name them; payloads never are.

use std::fmt::{Debug, Display};
use std::path::Path;

use crate::types::stats::{Timed, Timing};

/// Work with a span of its own, and a histogram of how long it took.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Open,
    Close,
    Verify,
    Compact,
    StoreCheckpoint,
}

/// The work goes on until this is dropped, on the thread that began it.
#[must_use]
pub(crate) struct Working {
    _timed: Timed,
    #[cfg(feature = "tracing")]
    _span: tracing::span::EnteredSpan,
}

pub(crate) fn enter(work: Work, store: &Path) -> Working {
    let timing = Timing::new(match work {
        Work::Open => "oncekey_open_seconds",
        Work::Close => "oncekey_close_seconds",
        Work::Verify => "oncekey_verify_seconds",
        Work::Compact => "oncekey_compaction_seconds",
        Work::StoreCheckpoint => "oncekey_store_checkpoint_seconds",
    });
    #[cfg(feature = "tracing")]
    let store = store.display();
    #[cfg(feature = "tracing")]
    let span = match work {
        Work::Open => tracing::info_span!("open", %store),
        Work::Close => tracing::info_span!("close", %store),
        Work::Verify => tracing::info_span!("verify", %store),
        Work::Compact => tracing::debug_span!("compact", %store),
        Work::StoreCheckpoint => tracing::debug_span!("store_checkpoint", %store),
    };
    let _ = store;
    Working {
        _timed: timing.start(),
        #[cfg(feature = "tracing")]
        _span: span.entered(),
    }
}

/// A record was interrupted by its live owner's end.
pub(crate) fn interrupted(manager: &str, key: &dyn Display, why: &dyn Debug) {
    count("oncekey_interruptions_total");
    #[cfg(feature = "tracing")]
    tracing::warn!(manager, %key, ?why, "interrupted");
    let _ = (manager, key, why);
}

/// A key came with another request.
pub(crate) fn mismatch(manager: &str, key: &dyn Display) {
    count("oncekey_mismatches_total");
    #[cfg(feature = "tracing")]
    tracing::warn!(manager, %key, "mismatch");
    let _ = (manager, key);
}

/// The engine can promise nothing any more.
pub(crate) fn poisoned(error: &dyn Display) {
    count("oncekey_poisoned_total");
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "poisoned");
    let _ = error;
}

/// A pass of the compaction ended.
pub(crate) fn compacted(removed: u64, bytes: u64, leftovers: u64) {
    #[cfg(feature = "tracing")]
    tracing::debug!(removed, bytes, leftovers, "compacted");
    let _ = (removed, bytes, leftovers);
}

/// The background compaction has ended for good.
pub(crate) fn compaction_failed(error: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "compaction failed");
    let _ = error;
}

/// The last write of an earlier process was cut off.
pub(crate) fn torn_tail(bytes: u64) {
    #[cfg(feature = "tracing")]
    tracing::warn!(bytes, "torn tail");
    let _ = bytes;
}

/// Other users have rights on a store's files.
pub(crate) fn open_to_others(store: &Path) {
    #[cfg(feature = "tracing")]
    tracing::warn!(store = %store.display(), "open to others");
    let _ = store;
}

/// A transaction or a work stage runs again because others changed what it had read.
pub(crate) fn runs_again() {
    #[cfg(feature = "tracing")]
    tracing::debug!("runs again");
}

fn count(name: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!(name).increment(1);
    let _ = name;
}
