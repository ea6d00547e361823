//! Runs of which every record has expired: they are deleted without being read, if nothing in them is needed.

use super::compaction::{pass, with_clock};
use super::*;
use crate::store::format::block::Index;
use crate::store::format::list::{RunInfo, Start};
use crate::store::runs::{Run, merge};

const RECORDS: u64 = 20;
const TTL: u64 = 100;

/// Commits these changes and some finished records that expire one after the other from [`TTL`] on, and flushes them
/// into a run that is not small.
fn flush_with(store: &Store, changes: impl IntoIterator<Item = Change>) {
    let now = store.now().store;
    let expiring = |nth| {
        let record = StoredRecord { expires: now + TTL + nth, ..done(&bytes(20_000)) };
        set(&key(format!("expiring {nth}")), record)
    };
    let changes: Vec<_> = changes.into_iter().chain((0..RECORDS).map(expiring)).collect();
    put_all(store, changes);
    store.drain().unwrap();
    assert!(store.inner.shared.runs.current().last().is_some_and(|run| !merge::is_small(&run.info)));
}

fn expire(store: &Store, clock: &ManualClock) -> Deleted {
    clock.advance(Duration::from_millis(TTL + RECORDS));
    pass(store, Pass::default())
}

#[test]
fn a_run_of_expired_records_is_deleted_without_being_read() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    // These stay: a record and a removed key in older runs, and a record whose content in the run has been replaced.
    for name in ["interrupted", "removed"] {
        put(&store, &key(name), unfinished(Status::Interrupted));
    }
    store.drain().unwrap();
    remove(&store, &key("removed"));
    store.drain().unwrap();
    flush_with(&store, [set(&key("ended later"), at_work())]);
    let run = store.inner.shared.runs.current().last().unwrap().info.id;
    lose(&store, run, 0);
    put(&store, &key("ended later"), StoredRecord { expires: now + 10 * TTL, ..done(b"x") });
    store.drain().unwrap();
    let deleted = expire(&store, &clock);
    assert_eq!((deleted.records, deleted.bytes), (RECORDS, RECORDS * 20_000));
    wait_for_deletions(&store);
    assert_eq!(entries(&store), 4);
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options().clock(clock));
    assert_eq!(stored(&store, &key("interrupted")).unwrap().state, Status::Interrupted);
    assert_eq!(outcome(&store, &key("ended later")).unwrap(), b"x");
    assert!(stored(&store, &key("removed")).is_none());
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn an_exact_pass_reads_a_run_of_expired_records_and_counts_those_that_were_not_replaced() {
    // A run with a live record is rewritten in both kinds of passes.
    for (is_exact, lives) in [(true, false), (true, true), (false, false), (false, true)] {
        let dir = temp();
        let (store, clock, _) = with_clock(dir.path());
        flush_with(&store, lives.then(|| set(&key("lives"), done(b"x"))));
        // With enough live blocks, the run waits for a pass.
        put_all(&store, vec![set(&key("expiring 0"), done(b"replaced")), set(&key("live"), done(&bytes(1_000_000)))]);
        store.drain().unwrap();
        clock.advance(Duration::from_millis(TTL + RECORDS));
        let (kind, counted) = if is_exact { (Pass::exact(), RECORDS - 1) } else { (Pass::default(), RECORDS) };
        assert_eq!(pass(&store, kind).records, counted, "{is_exact}, {lives}");
        assert_eq!(outcome(&store, &key("expiring 0")).unwrap(), b"replaced");
    }
}

/// Returns true if the store still has what a test needs.
type Check<'a> = &'a dyn Fn(&Store) -> bool;

#[test]
fn what_is_needed_of_a_run_of_expired_records_stays() {
    let (needed, row) = (key("needed"), StoreKey::row("t", b"row"));
    let is_there = |store: &Store| stored(store, &needed).is_some_and(|stored| stored.seen(&store.now()).is_some());
    let cases: [(&str, Change, Check<'_>); 4] = [
        ("in progress", set(&needed, at_work()), &is_there),
        ("lives longer", set(&needed, StoredRecord { expires: NEVER - 1, ..done(b"x") }), &is_there),
        ("remembered", set(&needed, StoredRecord { expires: 1, remember: NEVER / 2, ..done(b"x") }), &|store| {
            stored(store, &needed).is_some_and(|stored| stored.is_forgotten)
        }),
        ("a row", Change { key: row.clone(), content: Some(Content::Row(Value::from("x"))) }, &|store| {
            store.read(&row, Load::All).unwrap().content.is_some()
        }),
    ];
    for (name, change, stays) in cases {
        let dir = temp();
        let (store, clock, _) = with_clock(dir.path());
        flush_with(&store, [change]);
        let deleted = expire(&store, &clock);
        assert_eq!(deleted.records, RECORDS + u64::from(name == "remembered"), "{name}");
        assert!(stays(&store), "{name}");
        assert_eq!(entries(&store), 1, "{name}");
        crash(store);
        let (store, _) = open_with(dir.path(), &options().clock(clock));
        assert!(stays(&store), "{name}, after a crash");
    }
}

#[test]
fn what_a_run_of_expired_records_hides_stays_hidden() {
    let hidden = key("hidden");
    for older in [done(b"x"), unfinished(Status::Interrupted)] {
        let dir = temp();
        let (store, clock, now) = with_clock(dir.path());
        put(&store, &hidden, older);
        store.drain().unwrap();
        flush_with(&store, [set(&hidden, StoredRecord { expires: now + TTL, ..done(b"y") })]);
        assert_eq!(expire(&store, &clock).records, RECORDS + 1);
        assert!(stored(&store, &hidden).is_none());
        crash(store);
        let (store, _) = open_with(dir.path(), &options().clock(clock));
        assert!(stored(&store, &hidden).is_none(), "after a crash");
    }
}

#[test]
fn what_a_run_of_expired_records_hides_in_a_trimmed_run_stays_hidden() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let (moved, hidden) = (key("a"), key("b"));
    put_all(&store, vec![set(&moved, unfinished(Status::Interrupted)), set(&hidden, done(b"x"))]);
    let mut unfinished = Vec::new();
    format::record::encode(&stored(&store, &moved).unwrap(), &mut unfinished).unwrap();
    let at = block::entry_len(moved.bytes(), Some(&unfinished));
    store.drain().unwrap();
    // As if a merge had moved the first entry and ended early. One entry counts, and the index has the record that was
    // moved.
    let [run] = &store.inner.shared.runs.current()[..] else { panic!("{:?}", store.inner.shared.runs.current()) };
    let start = Start { block: 0, at: u32::try_from(at).unwrap() };
    let trimmed = Run::new(RunInfo { start, entries: 1, ..run.info }, Index::clone(&run.index));
    store.inner.shared.runs.publish(vec![trimmed.into()]);
    assert_eq!(outcome(&store, &hidden).unwrap(), b"x");
    flush_with(&store, [set(&hidden, StoredRecord { expires: now + TTL, ..done(b"y") })]);
    assert_eq!(expire(&store, &clock).records, RECORDS + 1);
    assert!(stored(&store, &hidden).is_none());
}
