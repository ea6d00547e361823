//! Opens a store, and creates the protocol's own state.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::abandon::Abandoned;
use super::backend::Backend;
use super::expire::Due;
use super::owners::Owners;
use super::temporary::OwnDirectory;
use super::{OpenReport, Protocol};
#[cfg(feature = "postgres")]
use crate::postgres;
use crate::protocol::event::Event;
use crate::store::Store;
use crate::sync::key_locks::KeyLocks;
use crate::sync::wait_limit::WaitLimit;
#[cfg(feature = "postgres")]
use crate::sync::wait_queue::WaitQueue;
use crate::types::error::Result;
use crate::types::histogram::Durations;
use crate::types::options::EngineOptions;
use crate::types::stats::{Counter, Gauge, ManagerCounter};
use crate::types::telemetry;

impl Protocol {
    /// Opens the store in `path`. `directory` is removed with the last handle.
    pub(crate) fn open(
        path: &Path,
        options: &EngineOptions,
        directory: Option<tempfile::TempDir>,
    ) -> Result<(Self, OpenReport)> {
        telemetry::describe();
        let opened = if options.read_only { Store::open_read_only(path, options) } else { Store::open(path, options) };
        let (store, report) = opened?;
        let protocol = Self::new(Backend::Local(store), report, options, directory);
        let (waiters, notified) = (Arc::clone(&protocol.wait_queue), Arc::clone(&protocol.subscribers));
        protocol.store.on_poison(move |error| {
            telemetry::poisoned(error);
            waiters.close();
            notified.notify(|| Event::Poisoned(error.clone()));
        });
        if !options.read_only {
            protocol.record_deaths()?;
        }
        protocol.due.lower(protocol.store.next_due());
        Ok((protocol, report))
    }

    /// Opens a store on PostgreSQL.
    #[cfg(feature = "postgres")]
    pub(crate) fn connect(server: postgres::Server, options: &EngineOptions) -> Result<(Self, OpenReport)> {
        telemetry::describe();
        let (store, report) = postgres::Store::connect(server, options)?;
        let wait_queue = Arc::new(WaitQueue::default());
        let waiters = Arc::clone(&wait_queue);
        store.on_change(move |key, happened| match happened {
            postgres::Happened::GivenUp => waiters.hand_over(key),
            postgres::Happened::Changed => waiters.wake_all(key),
        });
        let protocol = Self { wait_queue, ..Self::new(Backend::Postgres(Box::new(store)), report, options, None) };
        protocol.due.lower(protocol.store.next_due());
        Ok((protocol, report))
    }

    fn new(store: Backend, report: OpenReport, options: &EngineOptions, directory: Option<tempfile::TempDir>) -> Self {
        let count = Gauge::new("oncekey_interrupted");
        count.add(i64::try_from(report.interrupted).unwrap_or(i64::MAX));
        Self {
            store,
            _directory: directory.map(OwnDirectory::new),
            max_value_bytes: options.max_value_bytes,
            wait_queue: Arc::default(),
            wait_limit: WaitLimit::new(options.max_waiting_per_key, options.max_waiting),
            subscribers: Arc::default(),
            closed: AtomicBool::new(false),
            owners: Owners::default(),
            due: Due::default(),
            key_locks: KeyLocks::new(options.sync_timeout),
            reruns: Counter::new("oncekey_transaction_reruns_total"),
            abandoned: Abandoned::default(),
            in_progress: Gauge::new("oncekey_in_progress"),
            interrupted: count,
            replays: ManagerCounter::new("oncekey_replays_total"),
            drops_not_recorded: Counter::new("oncekey_drops_not_recorded_total"),
            cycles: Durations::new("oncekey_cycle_seconds"),
            waits: Durations::new("oncekey_wait_seconds"),
        }
    }
}
