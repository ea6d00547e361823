//! A text and a unit for each metric, for dashboards.

use metrics::Unit;

enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const METRICS: &[(Kind, &str, Unit, &str)] = &[
    (Kind::Counter, "oncekey_syncs_total", Unit::Count, "Syncs of the journal"),
    (Kind::Counter, "oncekey_groups_total", Unit::Count, "Groups of commits written to the journal"),
    (Kind::Counter, "oncekey_journal_bytes_total", Unit::Bytes, "Bytes written to the journal"),
    (Kind::Counter, "oncekey_commits_total", Unit::Count, "Commits, each of one or more changes"),
    (
        Kind::Counter,
        "oncekey_commit_conflicts_total",
        Unit::Count,
        "Commits that were decided again because the key had changed",
    ),
    (Kind::Counter, "oncekey_sync_waits_total", Unit::Count, "Calls that waited for a sync of the journal"),
    (Kind::Counter, "oncekey_replays_total", Unit::Count, "Stored outcomes that were replayed, by manager"),
    (Kind::Counter, "oncekey_interruptions_total", Unit::Count, "Live owners that ended without an outcome"),
    (Kind::Counter, "oncekey_mismatches_total", Unit::Count, "Keys that arrived with a different request"),
    (
        Kind::Counter,
        "oncekey_transaction_reruns_total",
        Unit::Count,
        "Runs of transactions that were repeated after a conflict",
    ),
    (Kind::Counter, "oncekey_expired_total", Unit::Count, "Records deleted after their expiry"),
    (Kind::Counter, "oncekey_compaction_failures_total", Unit::Count, "Errors of the background compaction"),
    (Kind::Counter, "oncekey_poisoned_total", Unit::Count, "Engines that a failed write or sync has poisoned"),
    (Kind::Counter, "oncekey_store_checkpoints_total", Unit::Count, "Checkpoints of the record store"),
    (
        Kind::Counter,
        "oncekey_events_dropped_total",
        Unit::Count,
        "Events that a subscriber missed because its queue was full",
    ),
    (
        Kind::Counter,
        "oncekey_drops_not_recorded_total",
        Unit::Count,
        "Dropped claims that could not be recorded at once",
    ),
    (Kind::Gauge, "oncekey_in_progress", Unit::Count, "Records in progress with a live owner"),
    (Kind::Gauge, "oncekey_interrupted", Unit::Count, "Interrupted records"),
    (Kind::Gauge, "oncekey_records", Unit::Count, "Records by manager and status, when the usage was last counted"),
    (
        Kind::Gauge,
        "oncekey_record_bytes",
        Unit::Bytes,
        "Keys, contexts, checkpoints and outcomes by manager and status, when the usage was last counted",
    ),
    (
        Kind::Gauge,
        "oncekey_outcome_bytes",
        Unit::Bytes,
        "Outcomes by manager and status, when the usage was last counted",
    ),
    (Kind::Gauge, "oncekey_journal_disk_bytes", Unit::Bytes, "Files of the journal, when the usage was last counted"),
    (Kind::Gauge, "oncekey_sled_disk_bytes", Unit::Bytes, "Files of the record store, when the usage was last counted"),
    (Kind::Histogram, "oncekey_cycle_seconds", Unit::Seconds, "From the begin of a claim to its ending, by manager"),
    (Kind::Histogram, "oncekey_wait_seconds", Unit::Seconds, "Waits of calls for another owner, by manager"),
    (Kind::Histogram, "oncekey_sync_seconds", Unit::Seconds, "Syncs of the journal"),
    (Kind::Histogram, "oncekey_open_seconds", Unit::Seconds, "Opens of a store"),
    (Kind::Histogram, "oncekey_close_seconds", Unit::Seconds, "Closes of a store"),
    (Kind::Histogram, "oncekey_verify_seconds", Unit::Seconds, "Verifications of a store"),
    (Kind::Histogram, "oncekey_backup_seconds", Unit::Seconds, "Backups of a store"),
    (Kind::Histogram, "oncekey_compaction_seconds", Unit::Seconds, "Passes of the compaction"),
    (Kind::Histogram, "oncekey_store_checkpoint_seconds", Unit::Seconds, "Checkpoints of the record store"),
];

/// Describes every metric to the recorder.
pub(super) fn describe() {
    for (kind, name, unit, text) in METRICS {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *unit, *text),
            Kind::Gauge => metrics::describe_gauge!(*name, *unit, *text),
            Kind::Histogram => metrics::describe_histogram!(*name, *unit, *text),
        }
    }
}
