//! The one place that reports to `tracing` and `metrics`. Without these features all functions here are empty.
//!
//! Reports contain the names of managers and keys, as errors do. They never contain payloads.

#[cfg(feature = "metrics")]
mod describe;

use std::fmt::{Debug, Display};
use std::path::Path;

use crate::types::stats::{Timed, Timing};

/// Describes every metric to the recorder.
pub(crate) fn describe() {
    #[cfg(feature = "metrics")]
    describe::describe();
}

/// Work that has a span, and a histogram of its duration.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Open,
    Close,
    Verify,
    Backup,
    Compact,
    StoreCheckpoint,
}

/// A running piece of work. The work ends when this value is dropped, on the thread that started it.
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
        Work::Backup => "oncekey_backup_seconds",
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
        Work::Backup => tracing::info_span!("backup", %store),
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

/// Reports that a live owner ended without an outcome.
pub(crate) fn interrupted(manager: &str, key: &dyn Display, why: &dyn Debug) {
    count("oncekey_interruptions_total");
    #[cfg(feature = "tracing")]
    tracing::warn!(manager, %key, ?why, "interrupted");
    let _ = (manager, key, why);
}

/// Reports a request whose fingerprint differs from that of its record.
pub(crate) fn mismatch(manager: &str, key: &dyn Display) {
    count("oncekey_mismatches_total");
    #[cfg(feature = "tracing")]
    tracing::warn!(manager, %key, "mismatch");
    let _ = (manager, key);
}

/// Reports that the engine is poisoned.
pub(crate) fn poisoned(error: &dyn Display) {
    count("oncekey_poisoned_total");
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "poisoned");
    let _ = error;
}

/// Reports the end of a compaction pass.
pub(crate) fn compacted(removed: u64, bytes: u64, leftovers: u64) {
    #[cfg(feature = "tracing")]
    tracing::debug!(removed, bytes, leftovers, "compacted");
    let _ = (removed, bytes, leftovers);
}

/// Reports an error of the background compaction.
pub(crate) fn compaction_failed(error: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "compaction failed");
    let _ = error;
}

/// Reports that no socket is served for an open store.
pub(crate) fn no_socket(error: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(%error, "no socket");
    let _ = error;
}

/// Reports that the incomplete last write of an earlier process was cut off.
pub(crate) fn torn_tail(bytes: u64) {
    #[cfg(feature = "tracing")]
    tracing::warn!(bytes, "torn tail");
    let _ = bytes;
}

/// Reports that other users have access to the files of a store.
pub(crate) fn open_to_others(store: &Path) {
    #[cfg(feature = "tracing")]
    tracing::warn!(store = %store.display(), "open to others");
    let _ = store;
}

/// Reports that a transaction or work stage runs again because of a conflict.
pub(crate) fn runs_again() {
    #[cfg(feature = "tracing")]
    tracing::debug!("runs again");
}

fn count(name: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!(name).increment(1);
    let _ = name;
}
