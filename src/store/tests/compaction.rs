//! What is deleted when its time has come, what a crash leaves behind, and what stays.

use super::*;
use crate::store::compact::Found;
use crate::store::format::envelope::{self, PiecesId};
use crate::store::values::Stray;
use crate::types::context::Context;
use ::sled::IVec;

fn with_clock(dir: &Path) -> (Store, ManualClock, u64) {
    let clock = ManualClock::new();
    let (store, _) = open_with(dir, &options().clock(clock.clone()));
    let now = store.now().store;
    (store, clock, now)
}

/// One step of a pass of its own, and what came of it.
fn compact(store: &Store, limit: usize) -> Result<Option<Deleted>> {
    let mut pass = Pass::exact();
    let Some(mut deleted) = store.compact(&mut pass, limit)? else { return Ok(None) };
    deleted += store.end_pass(&mut pass)?;
    Ok(Some(deleted))
}

#[test]
fn compaction_deletes_exactly_what_is_expired() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let expires = |index: u64| if index % 3 == 0 { NEVER } else { now + index };
    for index in 0..60 {
        put(&store, &key(index.to_string()), StoredRecord { expires: expires(index), ..done(&bytes(5_000)) });
    }
    store.drain().unwrap();
    assert_eq!(compact_all(&store).records, 0, "nothing is due");
    clock.advance(Duration::from_millis(30));
    let (mut deleted, mut pass) = (Deleted::default(), Pass::exact());
    while let Some(some) = store.compact(&mut pass, 7).unwrap() {
        assert!(some.records <= 7);
        deleted.records += some.records;
        deleted.bytes += some.bytes;
    }
    let due = (0..60).filter(|index| expires(*index) <= now + 30).count();
    assert_eq!((deleted.records, deleted.bytes), (due as u64, due as u64 * 5_000));
    for index in 0..60 {
        assert_eq!(stored(&store, &key(index.to_string())).is_some(), expires(index) > now + 30, "{index}");
    }
    assert_eq!(count(&store, Name::Records), 60 - due);
    // A block stays until its time has come, and goes then.
    assert_eq!(named(&store).len(), 40);
    clock.advance(Duration::from_secs(3));
    assert_eq!(compact_all(&store).records, 40 - due as u64);
    assert_eq!((count(&store, Name::Expiry), count(&store, Name::Records)), (0, 20));
}

#[test]
fn compaction_leaves_what_was_begun_anew_and_goes_on_behind_it() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for name in ["a", "b", "c"] {
        put(&store, &key(name), StoredRecord { expires: now + 1, ..done(b"old") });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_millis(5));
    put(&store, &key("a"), at_work());
    put(&store, &key("b"), StoredRecord { expires: now + 100, ..done(b"new") });
    assert_eq!(compact_all(&store).records, 1);
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
    assert_eq!(stored(&store, &key("a")).unwrap().state, Status::InProgress);
    assert_eq!(outcome(&store, &key("b")).unwrap(), b"new");
    assert!(stored(&store, &key("c")).is_none());
}

#[test]
fn compaction_moves_the_stripe_of_what_it_deletes() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("k"), StoredRecord { expires: now + 1, ..done(b"old") });
    store.drain().unwrap();
    let seen = store.read(&key("k"), Load::WithoutOutcome).unwrap().seen;
    clock.advance(Duration::from_millis(5));
    assert_eq!(compact(&store, 10).unwrap().unwrap().records, 1);
    assert!(store.commit(vec![set(&key("k"), at_work())], &[seen], Priority::User).unwrap().is_none());
}

#[test]
fn who_reads_what_is_being_deleted_does_not_commit_on_it() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("k"), StoredRecord { expires: now + 1, ..unfinished(Status::Interrupted) });
    store.drain().unwrap();
    let bytes = store.inner.tables.get(Name::Records, key("k").in_record_tree()).unwrap().unwrap();
    clock.advance(Duration::from_millis(5));
    let before = store.read(&key("k"), Load::WithoutOutcome).unwrap().seen;
    // The apply thread is kept at something else until the record was read.
    let held = store.inner.tables.hold_ledger();
    put(&store, &key("other"), done(b"x"));
    while store.inner.tables.get(Name::Records, key("other").in_record_tree()).unwrap().is_none() {
        std::thread::yield_now();
    }
    let read = std::thread::scope(|scope| {
        let deleted = scope.spawn(|| store.inner.delete(Found::of(key("k"), bytes)).unwrap());
        while store.inner.versions.is_current(before) {
            std::thread::yield_now();
        }
        let read = store.read(&key("k"), Load::WithoutOutcome).unwrap();
        drop(held);
        assert_eq!(deleted.join().unwrap().interrupted, 1);
        read
    });
    assert!(read.record().is_some());
    // Both would count it.
    assert!(store.commit(vec![set(&key("k"), at_work())], &[read.seen], Priority::User).unwrap().is_none());
}

#[test]
fn blocks_that_lead_nowhere_go_away_and_others_stay() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("k"), StoredRecord { expires: now + 9_000, ..done(b"x") });
    store.drain().unwrap();
    assert_eq!(named(&store), ["k"]);
    let tables = &store.inner.tables;
    let block = |time: u64, number: u64, keys: &[&str]| {
        let (at, mut names) = (block::key(block::time(time), 1, number), Vec::new());
        for name in keys {
            block::push(&mut names, key(name).in_record_tree()).unwrap();
        }
        tables.insert(Name::Expiry, &at, block::encode(&at, &names).unwrap()).unwrap();
        IVec::from(at)
    };
    block(now + 1, 1, &["none", "k"]);
    let good = block(now + 9_000, 2, &["k", "none"]);
    assert!(!values::drop_stray(tables, &Stray::Malformed(good)).unwrap());
    tables.insert(Name::Expiry, b"\0\0\0\0\0\0\x01", Vec::new()).unwrap();
    tables.insert(Name::Expiry, &block::key(block::time(now), 1, 3), b"junk".to_vec()).unwrap();
    assert_eq!(store.next_due().unwrap(), 256, "what is malformed is not left to another time");
    clock.advance(Duration::from_secs(2));
    let deleted = compact_all(&store);
    assert_eq!((deleted.records, deleted.strays), (0, 2));
    assert_eq!(count(&store, Name::Expiry), 2, "the record's, and the one whose time has not come");
    clock.advance(Duration::from_secs(9));
    assert_eq!(compact_all(&store).records, 1);
    assert_eq!(TREES.map(|name| count(&store, name)), [0; 4]);
}

#[test]
fn only_an_exact_pass_looks_at_blocks_whose_time_has_not_come() {
    let dir = temp();
    let (store, clock, _) = with_clock(dir.path());
    // Two in one block.
    let until = block::time(store.now().store + 2_000);
    put(&store, &key("first"), StoredRecord { expires: until - 500, ..done(b"x") });
    put(&store, &key("last"), StoredRecord { expires: until, ..done(b"x") });
    store.drain().unwrap();
    let advance_to = |time: u64| clock.advance(Duration::from_millis(time - store.now().store));
    let pass = |mut pass: Pass| {
        let mut all = Deleted::default();
        while let Some(deleted) = store.compact(&mut pass, 4).unwrap() {
            all += deleted;
        }
        all.records
    };
    assert_eq!(store.next_due().unwrap(), until);
    advance_to(until - 1);
    assert_eq!((pass(Pass::default()), count(&store, Name::Records)), (0, 2));
    assert_eq!((pass(Pass::exact()), count(&store, Name::Records)), (1, 1));
    assert_eq!(named(&store), ["first", "last"]);
    assert_eq!(store.next_due().unwrap(), until);
    advance_to(until);
    assert_eq!((pass(Pass::default()), count(&store, Name::Records)), (1, 0));
    assert_eq!((count(&store, Name::Expiry), store.next_due().unwrap()), (0, NEVER));
}

#[test]
fn very_many_lifetimes_and_keys_all_find_their_blocks() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let long = |name: String| key(format!("{name}{}", "-".repeat(500)));
    for index in 0..60 {
        put(&store, &long(format!("same {index:02}")), StoredRecord { expires: now + 5_000, ..done(b"x") });
        put(
            &store,
            &key(format!("other {index:02}")),
            StoredRecord { expires: now + 1_000 + index * 2_000, ..done(b"x") },
        );
    }
    store.drain().unwrap();
    assert_eq!(named(&store).len(), 120);
    let blocks = count(&store, Name::Expiry);
    assert!((60 + 60 / 8..60 + 60 / 4).contains(&blocks), "{blocks}");
    clock.advance(Duration::from_millis(121_500));
    assert_eq!(compact_all(&store).records, 120);
    assert_eq!(TREES.map(|name| count(&store, name)), [0; 4]);
}

#[test]
fn unfinished_records_of_dead_owners_are_deleted_when_their_time_has_come() {
    let dir = temp();
    let (store, clock, _) = with_clock(dir.path());
    put(&store, &key("dead"), StoredRecord { interrupted_ttl: 10, ..at_work() });
    put(&store, &key("held"), at_work());
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
    put(&store, &key("live"), StoredRecord { interrupted_ttl: 10, ..at_work() });
    clock.advance(Duration::from_millis(9));
    assert!(compact(&store, 1).unwrap().is_none());
    clock.advance(Duration::from_millis(1));
    assert_eq!(compact(&store, 1).unwrap().unwrap().records, 1);
    assert!(compact(&store, 1).unwrap().is_none());
    assert!(stored(&store, &key("dead")).is_none());
    assert!(stored(&store, &key("held")).is_some() && stored(&store, &key("live")).is_some());
}

/// Everything that is due, and everything that a crash has left.
fn compact_all(store: &Store) -> Deleted {
    let (mut all, mut pass) = (Deleted::default(), Pass::exact());
    while let Some(deleted) = store.compact(&mut pass, 4).unwrap() {
        all += deleted;
    }
    all
}

const TREES: [Name<'_>; 4] = [Name::Records, Name::Unfinished, Name::Expiry, Name::Chunks];

#[test]
fn leftovers_of_a_crash_are_found_and_what_is_named_stays() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("kept"), StoredRecord { expires: 1 << 40, ..done(&bytes(9_000)) });
    put(
        &store,
        &key("held"),
        StoredRecord { context: Context::new().with("c", bytes(9_000)), ..unfinished(Status::Released) },
    );
    store.drain().unwrap();
    // So that a replay does not name it again.
    checkpoint(&store);
    assert_eq!(named(&store), ["kept"]);
    let before = TREES.map(|name| count(&store, name));
    // As if the process had died between two writes: hints before their record, pieces before theirs or after it has gone.
    let tables = &store.inner.tables;
    tables.insert(Name::Unfinished, b"m\0gone", Vec::new()).unwrap();
    tables.insert(Name::Unfinished, key("kept").in_record_tree(), Vec::new()).unwrap();
    for (frame, owner) in [(5, key("gone")), (6, key("kept")), (7, StoreKey::row("stock", b"none"))] {
        let id = PiecesId { frame, place: 0 };
        for piece in 0..2 {
            let at = envelope::piece_key(id, piece).unwrap();
            let owner = if piece == 0 { owner.bytes() } else { &[] };
            tables.insert(Name::Chunks, &at, envelope::encode_piece(&at, owner, b"x").unwrap()).unwrap();
        }
    }
    crash(store);
    let (store, report) = open(dir.path());
    assert!(!report.clean);
    assert_eq!(count(&store, Name::Unfinished), before[1], "found by the open");
    assert_eq!(compact_all(&store).strays, 3);
    assert_eq!(TREES.map(|name| count(&store, name)), before);
    assert_eq!(outcome(&store, &key("kept")).unwrap(), bytes(9_000));
    assert_eq!(stored(&store, &key("held")).unwrap().context.get("c").unwrap(), bytes(9_000));
    assert_eq!(compact_all(&store).strays, 0, "looked for once");
}

/// The writes of a pass are counted down, and the one that is due fails: sled has all before it and none behind.
#[test]
fn a_pass_that_ends_at_any_write_leaves_nothing_wrong_and_nothing_for_ever() {
    for step in 0.. {
        let dir = temp();
        let (store, clock, now) = with_clock(dir.path());
        put(&store, &key("short"), StoredRecord { expires: now + 1, ..done(b"x") });
        put(&store, &key("long"), StoredRecord { expires: now + 1, ..done(&bytes(9_000)) });
        put(&store, &key("given up"), StoredRecord { expires: now + 1, ..unfinished(Status::Released) });
        put(&store, &key("kept"), StoredRecord { expires: now + 9_000, ..done(&bytes(9_000)) });
        store.drain().unwrap();
        // So that a replay cannot write anew what the pass deletes.
        checkpoint(&store);
        clock.advance(Duration::from_secs(2));
        store.inner.tables.writes_left.store(step, Ordering::Relaxed);
        let mut pass = Pass::exact();
        let finished = loop {
            match store.compact(&mut pass, 4) {
                Ok(Some(_)) => {}
                Ok(None) => break true,
                Err(error) => break error.kind() != ErrorKind::Poisoned,
            }
        };
        store.inner.tables.writes_left.store(u64::MAX, Ordering::Relaxed);
        crash(store);
        let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
        for gone in ["short", "long", "given up"] {
            let stored = stored(&store, &key(gone));
            assert!(stored.is_none_or(|stored| stored.seen(&store.now()).is_none()), "{gone} at step {step}");
        }
        compact_all(&store);
        assert_eq!(TREES.map(|name| count(&store, name)), [1, 0, 1, 3], "step {step}");
        assert_eq!(outcome(&store, &key("kept")).unwrap(), bytes(9_000), "step {step}");
        if finished {
            assert!(step > 8, "the pass wrote only {step} times");
            return;
        }
    }
}

/// Between the look at what is due and its deletion the key is begun anew, extended, or taken over.
#[test]
fn what_changes_between_look_and_deletion_stays() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let names = ["begun", "extended", "removed"];
    for name in names {
        put(&store, &key(name), StoredRecord { expires: now + 1, ..done(&bytes(9_000)) });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_millis(2));
    let found = store.inner.find_expired(&mut Pass::exact(), store.now().store, 10).unwrap().unwrap();
    put(&store, &key("begun"), at_work());
    put(&store, &key("extended"), StoredRecord { expires: NEVER, ..done(&bytes(8_000)) });
    remove(&store, &key("removed"));
    // Applied, so that the overlay does not tell: what sled holds has another revision.
    store.drain().unwrap();
    assert_eq!(store.inner.delete(found).unwrap().records, 0);
    assert_eq!(stored(&store, &key("begun")).unwrap().state, Status::InProgress);
    assert_eq!(outcome(&store, &key("extended")).unwrap(), bytes(8_000));
    assert!(stored(&store, &key("removed")).is_none());
    checkpoint(&store);
    assert_eq!(compact_all(&store).records, 0);
    clock.advance(Duration::from_secs(2));
    assert_eq!(compact_all(&store).records, 0);
    assert_eq!(TREES.map(|name| count(&store, name)), [2, 1, 0, 3]);
}

#[test]
fn a_key_that_was_begun_anew_is_not_due() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for (name, ttl) in [("anew", 1), ("later", 5_000)] {
        put(&store, &key(name), StoredRecord { expires: now + ttl, ..done(b"x") });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_secs(2));
    put(&store, &key("anew"), at_work());
    store.drain().unwrap();
    assert_eq!(compact_all(&store).records, 0);
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new(), "it is not named while it is at work");
    assert_eq!(store.next_due().unwrap(), block::time(now + 5_000), "or an idle store would look again and again");
    put(&store, &key("anew"), StoredRecord { expires: now + 3_000, ..done(b"x") });
    store.drain().unwrap();
    assert_eq!(store.next_due().unwrap(), block::time(now + 3_000));
}

#[test]
fn leftovers_are_looked_for_after_a_clean_close_too() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let at = envelope::piece_key(PiecesId { frame: 5, place: 0 }, 0).unwrap();
    let piece = envelope::encode_piece(&at, key("gone").bytes(), b"x").unwrap();
    store.inner.tables.insert(Name::Chunks, &at, piece).unwrap();
    crash(store);
    // Closed before anybody came to look.
    open(dir.path()).0.close().unwrap();
    let (store, report) = open(dir.path());
    assert!(report.clean);
    assert_eq!(compact_all(&store).strays, 1);
    store.close().unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(store.next_due().unwrap(), NEVER, "nothing is looked for any more");
}
