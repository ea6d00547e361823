//! Tests of the output to `tracing` and `metrics`. They need a process of their own, because each has one listener per
//! process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use oncekey::{CallOptions, Engine, Error, Fingerprint, Manager, Status};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};

/// A payload for outcomes and contexts.
const MARKER: &str = "4111-1111";

/// The names of all events, spans and metrics of the test.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<BTreeMap<String, f64>>>, Arc<Mutex<Described>>);

/// The descriptions of metrics that the recorder received: units, texts, and the managers that have a label.
#[derive(Default)]
struct Described {
    metrics: BTreeMap<String, (Unit, String)>,
    managers: BTreeMap<String, BTreeSet<String>>,
}

impl Heard {
    fn add(&self, name: &str, value: f64) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *heard.entry(name.to_owned()).or_default() += value;
    }

    fn get(&self, name: &str) -> f64 {
        self.0.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    fn names(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

impl Heard {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, text: &SharedString) {
        let mut described = self.1.lock().unwrap();
        described.metrics.insert(name.as_str().to_owned(), (unit.unwrap(), text.to_string()));
    }
}

struct Named(Heard, String);

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
impl CounterFn for Named {
    fn increment(&self, value: u64) {
        self.0.add(&self.1, value as f64);
    }

    fn absolute(&self, _: u64) {
        unreachable!("no counter is set");
    }
}

impl GaugeFn for Named {
    fn increment(&self, value: f64) {
        self.0.add(&self.1, value);
    }

    fn decrement(&self, value: f64) {
        self.0.add(&self.1, -value);
    }

    fn set(&self, _: f64) {
        unreachable!("a gauge is shared by all engines");
    }
}

impl HistogramFn for Named {
    fn record(&self, value: f64) {
        assert!((0.0..60.0).contains(&value), "{} took {value} s", self.1);
        self.0.add(&self.1, 1.0);
    }
}

impl Heard {
    fn named(&self, key: &Key) -> Arc<Named> {
        // These metrics are registered, even if they stay zero.
        self.add(key.name(), 0.0);
        let mut described = self.1.lock().unwrap();
        for label in key.labels().filter(|label| label.key() == "manager") {
            described.managers.entry(key.name().to_owned()).or_default().insert(label.value().to_owned());
        }
        drop(described);
        Arc::new(Named(self.clone(), key.name().to_owned()))
    }
}

impl Recorder for Heard {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe(&name, unit, &text);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe(&name, unit, &text);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe(&name, unit, &text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.named(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.named(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.named(key))
    }
}

/// Counts spans by name and events by message, and keeps their text.
struct Listener {
    heard: Heard,
    said: Arc<Mutex<String>>,
    next: AtomicU64,
}

struct Fields<'a>(&'a mut String, String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
        if field.name() == "message" {
            self.1 = format!("{value:?}");
        }
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("oncekey")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut said = self.said.lock().unwrap();
        span.record(&mut Fields(&mut said, String::new()));
        self.heard.add(span.metadata().name(), 1.0);
        Id::from_u64(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut said = self.said.lock().unwrap();
        let mut fields = Fields(&mut said, String::new());
        event.record(&mut fields);
        self.heard.add(&fields.1, 1.0);
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn claim(manager: &Manager<String, String>, key: &str) -> oncekey::Claim<String, String> {
    manager.begin(key).unwrap().into_claim().unwrap()
}

#[track_caller]
fn is(heard: &Heard, name: &str, count: u64) {
    let was = heard.get(name);
    assert!((was - f64::from(u32::try_from(count).unwrap())).abs() < 0.1, "{name}: {was}");
}

/// Waits once, and checks what is counted by manager.
fn watch_usage(engine: &Engine, measured: &Heard) {
    let manager: Manager<String, String> = engine.manager("m").unwrap();
    let held = claim(&manager, "held");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| manager.wait("held", Duration::from_secs(60)).unwrap());
        while engine.stats().waiting == 0 {
            std::thread::yield_now();
        }
        held.succeed(&MARKER.to_owned()).unwrap();
        assert!(matches!(waiter.join().unwrap(), oncekey::Waited::Finished(_)));
    });
    assert_eq!(engine.stats().waits.count(), 1);
    is(measured, "oncekey_wait_seconds", 1);
    // More managers than labels.
    for n in 0..70 {
        let one: Manager<String, String> = engine.manager(&format!("m{n:02}")).unwrap();
        claim(&one, "k").fail(&MARKER.to_owned()).unwrap();
        assert!(one.execute("k", |_| unreachable!()).is_err());
    }
    assert_eq!(engine.stats().cycles.count(), 72, "the two of m too; a drop is none");
    is(measured, "oncekey_cycle_seconds", 72);
    // Set, not added.
    for _ in 0..2 {
        let usage = engine.usage().unwrap();
        let of_m = *usage.managers.get("m").unwrap();
        assert_eq!((of_m.status(Status::Succeeded).records, of_m.status(Status::Interrupted).records), (2, 1));
        assert_eq!((usage.managers.len(), of_m.status(Status::Failed).records), (71, 0));
        let all = usage.managers.values().flat_map(|manager| manager.by_status().map(|(_, used)| used));
        let (records, bytes, outcomes) = all.fold((0, 0, 0), |(records, bytes, outcomes), used| {
            (records + used.records, bytes + used.bytes, outcomes + used.outcome_bytes)
        });
        assert_eq!((records, outcomes), (73, 72 * of_m.status(Status::Succeeded).outcome_bytes / 2));
        // Their keys: one letter, "won", "held" and "dropped".
        assert_eq!(bytes - outcomes, 70 + 3 + 4 + 7);
        is(measured, "oncekey_records", records);
        is(measured, "oncekey_record_bytes", bytes);
        is(measured, "oncekey_outcome_bytes", outcomes);
        is(measured, "oncekey_journal_disk_bytes", usage.journal_bytes);
        is(measured, "oncekey_sled_disk_bytes", usage.sled_bytes);
        assert!(usage.journal_bytes > 0 && usage.sled_bytes > 0);
    }
    let described = measured.1.lock().unwrap();
    for name in ["oncekey_cycle_seconds", "oncekey_records", "oncekey_replays_total"] {
        let managers = described.managers.get(name).unwrap();
        assert!(managers.len() == 65 && managers.contains("m") && managers.contains("(other)"), "{name}: {managers:?}");
    }
    assert_eq!(described.managers.get("oncekey_wait_seconds").map(BTreeSet::len), Some(1));
}

/// Runs an engine from open to close. Returns its number of commits.
fn live(measured: &Heard) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let options = Engine::options().compaction_interval(Duration::MAX);
    let engine = options.open(dir.path()).unwrap();
    let manager: Manager<String, String> = engine.manager("m").unwrap();
    let one = || CallOptions::new().fingerprint(Fingerprint::of("a").unwrap());
    let held = manager.begin_with("won", one()).unwrap().into_claim().unwrap();
    is(measured, "oncekey_in_progress", 1);
    held.succeed(&MARKER.to_owned()).unwrap();
    assert!(manager.begin_with("won", one()).unwrap().into_claim().is_err());
    assert!(manager.begin("won").unwrap().into_claim().is_err());
    drop(claim(&manager, "dropped"));
    // A run that conflicts runs again.
    let runs = AtomicU64::new(0);
    engine
        .atomic_phase(|tx| {
            tx.table("t")?.get("row")?;
            if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                std::thread::scope(|scope| {
                    scope.spawn(|| engine.table("t").unwrap().insert("row", MARKER).unwrap());
                });
            }
            tx.table("t")?.insert("other", MARKER)?;
            Ok::<_, Error>(())
        })
        .unwrap();
    engine.verify().unwrap();
    watch_usage(&engine, measured);
    let copies = tempfile::tempdir().unwrap();
    engine.backup(copies.path().join("copy")).unwrap();
    engine.compact_now().unwrap();
    let commits = engine.stats().commits;
    drop(manager);
    engine.close().unwrap();
    commits
}

#[test]
fn events_are_reported_without_payloads() {
    let (measured, heard, said) = (Heard::default(), Heard::default(), Arc::new(Mutex::new(String::new())));
    metrics::set_global_recorder(measured.clone()).unwrap();
    let listener = Listener { heard: heard.clone(), said: Arc::clone(&said), next: AtomicU64::new(1) };
    tracing::subscriber::set_global_default(listener).unwrap();

    let commits = live(&measured);

    for (name, count) in [
        ("open", 1),
        ("close", 1),
        ("verify", 1),
        ("backup", 1),
        ("compact", 1),
        ("interrupted", 1),
        ("mismatch", 1),
        ("compacted", 1),
        ("runs again", 1),
    ] {
        is(&heard, name, count);
    }
    assert!(heard.get("store_checkpoint") >= 1.0);
    let said = said.lock().unwrap();
    assert!(said.contains("key=dropped") && said.contains("why=Dropped"), "{said}");
    assert!(!said.contains(MARKER), "{said}");

    for (name, count) in [
        ("oncekey_mismatches_total", 1),
        ("oncekey_interruptions_total", 1),
        ("oncekey_replays_total", 71),
        ("oncekey_transaction_reruns_total", 1),
        ("oncekey_commits_total", commits),
        ("oncekey_open_seconds", 1),
        ("oncekey_verify_seconds", 1),
        ("oncekey_backup_seconds", 1),
        // The gauges of a dropped engine are zero.
        ("oncekey_in_progress", 0),
        ("oncekey_records", 0),
        ("oncekey_sled_disk_bytes", 0),
        ("oncekey_interrupted", 0),
    ] {
        is(&measured, name, count);
    }
    assert!(measured.get("oncekey_sync_seconds") >= 3.0);
    // The guide lists exactly these names.
    let page = include_str!("../src/guides/operating.md");
    let told = measured.names();
    let shown: BTreeSet<String> =
        page.split('`').filter(|word| word.starts_with("oncekey_")).map(str::to_owned).collect();
    let poisoned = "oncekey_poisoned_total".to_owned();
    assert_eq!(shown, told.into_iter().chain([poisoned]).collect());
    // Each has a text and a unit that fits its name.
    let described = measured.1.lock().unwrap();
    assert_eq!(described.metrics.keys().cloned().collect::<BTreeSet<_>>(), shown);
    for (name, (unit, text)) in &described.metrics {
        let fits = match *unit {
            Unit::Seconds => name.ends_with("_seconds"),
            Unit::Bytes => name.contains("_bytes"),
            _ => *unit == Unit::Count && !name.contains("_bytes") && !name.ends_with("_seconds"),
        };
        assert!(fits && text.len() > 10, "{name}: {unit:?} {text}");
    }
}
