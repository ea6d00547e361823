//! What is damaged is said, what is sound is not, whatever goes on meanwhile.

use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::store::expiries::Expiries;
use crate::store::verify::{Ground, Scans};

#[track_caller]
fn problems(store: &Store) -> Vec<String> {
    store.verify().unwrap().problems
}

/// Exactly one problem, and it names that.
#[track_caller]
fn one_problem(store: &Store, names: &str) {
    let found = problems(store);
    assert!(found.len() == 1 && found[0].contains(names), "{found:?} is not one that names {names}");
}

fn row(store: &Store, key: &[u8], value: Option<&[u8]>) {
    let content = value.map(|value| Content::Row(Value::from(value)));
    let change = Change { key: StoreKey::row("stock", key), content };
    let committed = store.commit(vec![change], &[], Priority::User).unwrap().unwrap();
    store.wait(committed.ticket).unwrap();
}

/// Records of several kinds, and a row; all of it in sled, but one record in progress.
fn varied() -> (TempDir, Store) {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("short"), done(b"x"));
    put(&store, &key("long"), done(&bytes(20_000)));
    put(&store, &key("free"), unfinished(Status::Released));
    put(&store, &key("expires"), StoredRecord { expires: 1 << 50, ..done(b"x") });
    row(&store, b"bolt", Some(&bytes(9_000)));
    put(&store, &key("at work"), at_work());
    store.drain().unwrap();
    (dir, store)
}

#[test]
fn a_sound_store_has_no_problems_and_its_records_and_rows_are_counted() {
    let (dir, store) = varied();
    let sound = |store: &Store| {
        assert_eq!(
            store.verify().unwrap(),
            VerifyReport { records: 5, tables: 1, compared: true, problems: Vec::new() }
        );
    };
    sound(&store);
    checkpoint(&store);
    sound(&store);
    crash(store);
    let (store, _) = open(dir.path());
    sound(&store);
    store.close().unwrap();
    let (store, _) = open(dir.path());
    sound(&store);
    store.inner.commit_queue.poison(Error::new(ErrorKind::Io, "a failure"));
    assert_eq!(store.verify().unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn load_gives_no_false_alarm() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..300_u32 {
        put(&store, &key(index.to_string()), done(&bytes(index as usize * 20)));
    }
    let (store, stop) = (&store, &AtomicBool::new(false));
    thread::scope(|scope| {
        for me in 0..3_u32 {
            scope.spawn(move || {
                let mut round = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let index = (round * 7 + me * 100) % 400;
                    let key = key(index.to_string());
                    match round % 6 {
                        0 => remove(store, &key),
                        1 => drop(put(store, &key, at_work())),
                        2 => drop(put(store, &key, StoredRecord { expires: 1 << 50, ..done(&bytes(8_000)) })),
                        4 => drop(put(store, &key, StoredRecord { expires: store.now().store + 3, ..done(b"short") })),
                        3 => row(store, &[u8::try_from(index % 250).unwrap()], (round % 2 == 0).then_some(b"row")),
                        _ => drop(put(store, &key, done(b"short"))),
                    }
                }
            });
        }
        let mut groups = store.stats().groups;
        let verified = || {
            let mut pass = Pass::exact();
            while store.compact(&mut pass, 16).unwrap().is_some() {}
            store.verify()
        };
        let found: Vec<_> = (0..30).map(|_| verified()).collect();
        stop.store(true, Ordering::Relaxed);
        for report in found {
            assert_eq!(report.unwrap().problems, Vec::<String>::new());
        }
        groups = store.stats().groups - groups;
        assert!(groups > 30, "commits went on meanwhile: {groups}");
    });
    assert_eq!(problems(store), Vec::<String>::new());
}

#[test]
fn what_sled_has_lost_is_missed() {
    for (name, lost, missed) in [
        (Name::Records, b"m\0short".as_slice(), "holds 3 records, 1 rows"),
        (Name::Records, b"m\0long", "holds 3 records, 1 rows"),
        (Name::Table("stock"), b"bolt", "holds 4 records, 0 rows"),
        (Name::Unfinished, b"m\0free", "m\\x00free is unfinished and not among the unfinished"),
        (Name::Expiry, b"a block", "m\\x00expires expires and is not among what expires"),
    ] {
        let (dir, store) = varied();
        if name == Name::Expiry {
            lose_blocks(&store);
        } else {
            lose(&store, name, lost);
        }
        one_problem(&store, missed);
        // After a clean close the next open misses it too; what leads to an expiry is only needed to delete.
        store.close().unwrap();
        if name != Name::Expiry {
            refused(dir.path(), ErrorKind::Corrupt, "the record store in");
        }
    }
}

#[test]
fn an_older_state_is_missed_too() {
    let (dir, store) = varied();
    let tables = &store.inner.tables;
    let older = tables.get(Name::Records, b"m\0short").unwrap().unwrap();
    put(&store, &key("short"), done(b"newer"));
    store.drain().unwrap();
    let digest = tables.digest();
    tables.insert(Name::Records, b"m\0short", older.to_vec()).unwrap();
    tables.set_digest(digest);
    one_problem(&store, "but not those that it had");
    store.close().unwrap();
    refused(dir.path(), ErrorKind::Corrupt, "but not those that it had");
}

#[test]
fn damaged_values_and_missing_pieces_are_named() {
    let (_dir, store) = varied();
    let tables = &store.inner.tables;
    let pieces = tables.range(Name::Chunks, &[], None, 10).unwrap();
    tables.remove(Name::Chunks, &pieces[2].0).unwrap();
    one_problem(&store, "m\\x00long");
    tables.insert(Name::Chunks, &pieces[2].0, pieces[1].1.to_vec()).unwrap();
    one_problem(&store, "checksum");
    tables.insert(Name::Chunks, &pieces[2].0, pieces[2].1.to_vec()).unwrap();
    assert_eq!(problems(&store), Vec::<String>::new());
    tables.insert(Name::Records, b"m\0short", b"junk".to_vec()).unwrap();
    one_problem(&store, "m\\x00short");
    tables.insert(Name::Table("stock"), b"bolt", b"\x01\x01junk and more".to_vec()).unwrap();
    tables.insert(Name::Expiry, b"short", Vec::new()).unwrap();
    assert_eq!(problems(&store).len(), 3);
}

#[test]
fn very_many_problems_are_counted() {
    let (_dir, store) = varied();
    for index in 0..130_u8 {
        store.inner.tables.insert(Name::Records, &[b'm', 0, index], b"junk".to_vec()).unwrap();
    }
    let found = problems(&store);
    assert_eq!((found.len(), found.last().unwrap().as_str()), (101, "and 30 more"));
}

#[test]
fn damage_to_the_journal_is_named_while_it_is_written() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 10));
    let gate = store.inner.tables.flush_gate.lock();
    for index in 0..120 {
        put(&store, &key(index.to_string()), done(&[7; 700]));
    }
    let found = segments(dir.path());
    assert!(found.len() >= 3);
    for segment in &found[1..] {
        let shown = segment.path.display().to_string();
        // Of the last one too, and its last group: it was answered.
        for (at, _) in [segment.groups[0], segment.groups[segment.groups.len() - 1]] {
            for offset in [at + 9, at + 90] {
                flip(&segment.path, offset);
                one_problem(&store, &shown);
                flip(&segment.path, offset);
            }
        }
        flip(&segment.path, 20);
        one_problem(&store, &format!("the header of {shown}"));
        flip(&segment.path, 20);
    }
    assert_eq!(problems(&store), Vec::<String>::new());
    drop(gate);
}

#[test]
fn damage_to_the_last_segment_is_named_whatever_else_is_wrong_and_goes_on() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(1 << 20));
    let gate = store.inner.tables.flush_gate.lock();
    for index in 0..40 {
        put(&store, &key(index.to_string()), done(&[7; 700]));
    }
    let found = segments(dir.path());
    let [.., before, last] = &found[..] else { panic!("not two segments") };
    let harmed = last.groups[5].0 + 100;
    flip(&last.path, harmed);
    flip(&before.path, 20);
    assert_eq!(problems(&store).len(), 2);
    flip(&before.path, 20);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in (0..300).cycle().take_while(|_| !stop.load(Ordering::Relaxed)).take(600) {
                put(&store, &key(index.to_string()), done(b"x"));
            }
        });
        for _ in 0..10 {
            one_problem(&store, &format!("{}: group {} is damaged", last.path.display(), last.groups[5].1.group));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(gate);
}

#[test]
fn a_segment_of_the_journal_that_is_too_short_is_named() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    let last = segments(dir.path()).pop().unwrap();
    let bytes = std::fs::read(&last.path).unwrap();
    std::fs::write(&last.path, &bytes[..bytes.len() - SECTOR]).unwrap();
    one_problem(&store, &last.path.display().to_string());
    std::fs::write(&last.path, &bytes).unwrap();
    assert_eq!(problems(&store), Vec::<String>::new());
}

#[test]
fn a_segment_of_the_journal_that_is_missing_is_named_if_it_is_needed() {
    let dir = temp();
    let (store, _) = open(dir.path());
    // What is free may be deleted while a spare is made, and is used or stays when there is one.
    let rest = || {
        while !store.inner.commit_queue.has_next_segment() {
            thread::yield_now();
        }
    };
    let aside = dir.path().join("aside");
    let missing = |needed: bool| {
        let found = segments(dir.path());
        let newest = found.last().unwrap().header.number;
        for segment in found {
            std::fs::rename(&segment.path, &aside).unwrap();
            let found = problems(&store);
            assert_eq!(found.len(), usize::from(needed || segment.header.number == newest), "{found:?}");
            assert!(found.iter().all(|problem| problem.contains(&format!("segment {}", segment.header.number))));
            std::fs::rename(&aside, &segment.path).unwrap();
        }
        newest
    };
    rest();
    checkpoint(&store);
    let first = missing(false);
    let gate = store.inner.tables.flush_gate.lock();
    for index in 0..40 {
        put(&store, &key(index.to_string()), done(&bytes(400)));
    }
    rest();
    // What the first ones hold has been brought into sled.
    let old: Vec<_> = segments(dir.path()).into_iter().filter(|segment| segment.header.number < first).collect();
    for segment in &old {
        std::fs::remove_file(&segment.path).unwrap();
    }
    assert!(missing(true) > first + 2);
    for segment in segments(dir.path()) {
        std::fs::rename(&segment.path, dir.path().join(segment.header.number.to_string())).unwrap();
    }
    one_problem(&store, "has no segment");
    drop(gate);
}

#[test]
fn what_is_looked_at_becomes_free_behind_that() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let (pin, other) = (store.inner.pool.pin(), store.inner.pool.pin());
    for index in 0..100 {
        put(&store, &key(index.to_string()), done(&bytes(400)));
    }
    checkpoint(&store);
    let kept = store.stats().segments;
    assert!(kept > 5, "{kept}");
    drop(pin);
    assert_eq!(store.stats().segments, kept);
    drop(other);
    assert!(store.stats().segments < kept);
    store.close().unwrap();
    assert!(open(dir.path()).1.clean);
}

#[test]
fn a_close_ends_it() {
    let (_dir, store) = varied();
    thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            loop {
                match store.verify() {
                    Ok(report) => assert_eq!(report.problems, Vec::<String>::new()),
                    Err(error) => return error.kind(),
                }
            }
        });
        store.close().unwrap();
        assert_eq!(verifying.join().unwrap(), ErrorKind::Closed);
    });
}

#[test]
fn what_becomes_unfinished_behind_a_scan_is_no_alarm() {
    let (_dir, store) = varied();
    for index in 0..40 {
        put(&store, &key(index.to_string()), StoredRecord { expires: 1 << 50, ..done(b"x") });
    }
    let (reply, report) = crossbeam_channel::bounded(1);
    let mut scans = Scans::default();
    scans.add(&store.inner.tables, Problems::default(), reply);
    let mut steps = 0_u32;
    while !scans.is_empty() {
        put(&store, &key(format!("new {steps}")), unfinished(Status::Released));
        // Nothing is written during a step.
        store.drain().unwrap();
        let (tables, overlay) = (&store.inner.tables, &store.inner.overlay);
        scans.step(Ground { tables, overlay, expiries: &mut Expiries::new(1), has_room: true }, || Ok(0));
        steps += 1;
    }
    assert_eq!(report.recv().unwrap().unwrap().problems, Vec::<String>::new());
}

#[test]
fn several_at_once_are_all_answered() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..200 {
        put(&store, &key(index.to_string()), done(b"x"));
    }
    store.drain().unwrap();
    let ask = |_| {
        let (reply, report) = crossbeam_channel::bounded(1);
        let problems = Problems::default();
        store.inner.apply.messages.send(Message::Verify { problems, reply }).unwrap();
        report
    };
    let reports: Vec<_> = (0..5).map(ask).collect();
    for report in reports {
        // Nothing else comes that could wake the thread.
        assert_eq!(report.recv_timeout(Duration::from_secs(60)).unwrap().unwrap().records, 200);
    }
}

#[test]
fn a_full_disk_does_not_keep_it_waiting() {
    let (_dir, store) = varied();
    store.inner.disk_space.pretended.store(0, Ordering::SeqCst);
    row(&store, b"nut", Some(b"in the journal only"));
    while !store.inner.commit_queue.is_stalled() {
        thread::yield_now();
    }
    for _ in 0..2 {
        assert_eq!(
            store.verify().unwrap(),
            VerifyReport { records: 5, tables: 1, compared: true, problems: Vec::new() }
        );
    }
    assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(store.verify().unwrap_err().kind(), ErrorKind::Closed);
}
