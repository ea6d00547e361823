//! Faults: a full disk, a failed disk, threads that panic. Every call ends, and no answer is wrong.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::SystemTime;

use super::*;
use crate::types::clock::{BootTime, Clock};

/// A file system in memory, unmounted on drop.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, bytes: u64) -> Option<Self> {
        let mount = |at: &Path| {
            let size = format!("size={bytes}");
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "oncekey-test"]).arg(at).output()
        };
        mount(at).is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Fills the file system up to this many free bytes.
fn fill(path: &Path, but: u64) {
    let mut len = 0_u64;
    let mut bytes = Vec::new();
    while std::fs::write(path, &bytes).is_ok() {
        len = bytes.len() as u64;
        bytes.resize(bytes.len() + 4096, 7);
    }
    std::fs::write(path, vec![7; usize::try_from(len.saturating_sub(but)).unwrap()]).unwrap();
}

#[test]
fn a_full_disk_refuses_commits_unchanged_until_there_is_space() {
    let dir = temp();
    let options = options().segment_bytes(32 << 10);
    let (store, _) = open_with(dir.path(), &options);
    put(&store, &key("k"), done(b"before"));
    store.close().unwrap();
    // Only the journal is on the small disk, because sled fails for good on a full one.
    let journal = journal_dir(dir.path());
    let aside = dir.path().join("aside");
    std::fs::rename(&journal, &aside).unwrap();
    std::fs::create_dir(&journal).unwrap();
    let Some(_mount) = Mount::new(&journal, 1 << 20) else {
        println!("skipped: nothing can be mounted here");
        // In CI, root can mount.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        assert!(!is_root || std::env::var("CI").is_err(), "root cannot mount a tmpfs");
        return;
    };
    for (path, _) in files::entries(&aside).unwrap() {
        std::fs::copy(&path, journal.join(path.file_name().unwrap())).unwrap();
    }
    let (store, _) = open_with(dir.path(), &options);
    // Block checkpoints, so that no segment becomes free.
    let gate = store.inner.shared.tables.flush_gate.lock();
    let filler = journal.join("filler");
    fill(&filler, 40 << 10);
    let mut last = 0_u64;
    let refused = loop {
        let change = set(&key("k"), done(&[&last.to_le_bytes(), [7; 500].as_slice()].concat()));
        match store.commit(vec![change], &[], Priority::User) {
            Ok(committed) => store.wait(committed.unwrap().ticket).unwrap(),
            Err(error) => break error,
        }
        last += 1;
    };
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert!(refused.to_string().contains(".journal"), "{refused}");
    let read = outcome(&store, &key("k")).unwrap();
    assert_eq!(read[..8], (last - 1).to_le_bytes(), "nothing has changed");
    // Commits that give up a claim use the reserve.
    let given_up =
        store.commit(vec![set(&key("r"), unfinished(Status::Released))], &[], Priority::GivingUp).unwrap().unwrap();
    store.wait(given_up.ticket).unwrap();
    // There is space for another segment of the first size, but not of the next size.
    fill(&filler, 33 << 10);
    put(&store, &key("k"), done(b"small"));
    std::fs::remove_file(&filler).unwrap();
    for _ in 0..100 {
        put(&store, &key("k"), done(&[7; 500]));
    }
    drop(gate);
    checkpoint(&store);
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options);
    assert_eq!(outcome(&store, &key("k")).unwrap(), [7; 500]);
}

#[test]
fn without_space_for_sled_users_are_refused_and_endings_stay_in_the_journal() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 10));
    put(&store, &key("k"), done(b"before"));
    store.drain().unwrap();
    let pretend = |free| store.inner.disk_space.pretended.store(free, Ordering::SeqCst);
    let user = || store.commit(vec![set(&key("k"), done(b"user"))], &[], Priority::User).map(Option::unwrap);
    pretend(0);
    // The space has not been measured yet, so this is durable and stays in the journal.
    put(&store, &key("a"), done(b"unseen"));
    ask_for_flush(&store);
    while !store.inner.commit_queue.is_stalled() {
        thread::yield_now();
    }
    let commits = store.stats().commits;
    assert_eq!(user().unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(store.stats().commits, commits);
    let before = error::uses();
    for (name, priority) in [("f", Priority::Finishing), ("e", Priority::Ending), ("g", Priority::GivingUp)] {
        let committed = store.commit(vec![set(&key(name), done(b"ended"))], &[], priority).unwrap().unwrap();
        store.wait(committed.ticket).unwrap();
        assert_eq!(outcome(&store, &key(name)).unwrap(), b"ended");
    }
    assert_eq!(error::uses(), before, "an operation that is recorded gets no error about space");
    assert_eq!(store.drain().unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(store.compact(&mut Pass::exact(), 1).unwrap_err().kind(), ErrorKind::Full);
    // Enough for the commits that wait, but not for users.
    pretend(6 << 20);
    while store.inner.commit_queue.unapplied() > 0 {
        store.inner.disk_space.wake();
        thread::yield_now();
    }
    assert_eq!(user().unwrap_err().kind(), ErrorKind::Full);
    pretend(1 << 30);
    store.wait(user().unwrap().ticket).unwrap();
    store.drain().unwrap();
    // Closed without space, the store is complete at the next open.
    pretend(0);
    put(&store, &key("last"), done(b"behind"));
    assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Full);
    let (store, report) = open(dir.path());
    assert!(!report.clean && report.frames_replayed > 0);
    for (name, value) in [("k", "user"), ("a", "unseen"), ("f", "ended"), ("g", "ended"), ("last", "behind")] {
        assert_eq!(outcome(&store, &key(name)).unwrap(), value.as_bytes(), "{name}");
    }
}

/// Panics in the writer thread on request.
#[derive(Debug)]
struct Bomb(Arc<AtomicBool>);

impl Clock for Bomb {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn boot(&self) -> Option<BootTime> {
        assert!(!self.0.load(Ordering::SeqCst), "the bomb");
        None
    }
}

#[test]
fn a_panic_of_the_writer_poisons_and_close_returns() {
    let dir = temp();
    let (told, poisoned) = mpsc::channel();
    let lit = Arc::new(AtomicBool::new(false));
    let (store, _) = open_with(dir.path(), &options().clock(Bomb(Arc::clone(&lit))));
    store.on_poison(move |error| told.send(error.to_string()).unwrap());
    put(&store, &key("k"), done(b"x"));
    thread::scope(|scope| {
        lit.store(true, Ordering::SeqCst);
        for index in 0..8_u32 {
            let store = &store;
            scope.spawn(move || {
                let name = key(index.to_string());
                let ticket = store
                    .commit(vec![set(&name, at_work())], &[], Priority::User)
                    .map(|committed| committed.unwrap().ticket);
                let error = ticket.and_then(|ticket| store.wait(ticket)).unwrap_err();
                assert!(error.kind() == ErrorKind::Poisoned && error.to_string().contains("the bomb"), "{error}");
            });
        }
    });
    assert!(poisoned.recv().unwrap().contains("oncekey-journal panicked"));
    assert!(poisoned.try_recv().is_err());
    for error in [
        store.read(&key("k"), Load::All).map(|_| ()).unwrap_err(),
        store.sync().unwrap_err(),
        store.drain().unwrap_err(),
        store.compact(&mut Pass::default(), 10).map(|_| ()).unwrap_err(),
        store.close().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Poisoned);
    }
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), b"x");
}

#[test]
fn a_fault_of_the_apply_thread_poisons_and_ends_every_wait() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    store.drain().unwrap();
    let writes_left = &store.inner.shared.tables.writes_left;
    writes_left.store(0, Ordering::SeqCst);
    let ticket = store.commit(vec![set(&key("k"), done(b"y"))], &[], Priority::User).unwrap().unwrap().ticket;
    assert!(store.drain().unwrap_err().to_string().contains("a test makes this write fail"));
    store.inner.commit_queue.wait_applied(ticket.0).unwrap_err();
    // The apply thread has ended, so it would never answer messages in its queue.
    assert_eq!(store.compact(&mut Pass::exact(), 1).unwrap_err().kind(), ErrorKind::Poisoned);
    writes_left.store(u64::MAX, Ordering::SeqCst);
    assert!(store.close().unwrap_err().to_string().contains("a test makes this write fail"));
    let (store, report) = open(dir.path());
    assert!(!report.clean);
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"y");
}

#[test]
fn a_pass_that_waits_during_a_close_gets_an_error() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    store.drain().unwrap();
    thread::scope(|scope| {
        let gate = store.inner.shared.tables.flush_gate.lock();
        put(&store, &key("k"), done(b"y"));
        let closing = scope.spawn(|| store.close());
        while store.inner.commit_queue.admit(1, Priority::User).is_ok() {
            thread::yield_now();
        }
        let (reply, deleted) = crossbeam_channel::bounded(1);
        store
            .inner
            .send(apply::Message::Compact(apply::Compaction { group: 0, exact: true, began: NEVER, reply }))
            .unwrap();
        let passing = scope.spawn(|| store.compact(&mut Pass::exact(), 1));
        drop(gate);
        closing.join().unwrap().unwrap();
        // The pass may have begun before the close.
        match passing.join().unwrap() {
            Ok(deleted) => assert!(deleted.is_none(), "nothing is due"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
        }
        drop(deleted);
    });
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), b"y");
}

#[test]
fn a_close_on_a_full_disk_before_a_pending_checkpoint_is_no_fault() {
    let dir = temp();
    let (store, _) = open(dir.path());
    thread::scope(|scope| {
        // No caller waits for the checkpoint that follows, and it may come before or after the close.
        put(&store, &key("k"), done(b"x"));
        let gate = store.inner.shared.tables.flush_gate.lock();
        ask_for_flush(&store);
        put(&store, &key("k"), done(b"in the journal only"));
        let closing = scope.spawn(|| store.close());
        while store.inner.commit_queue.admit(1, Priority::User).is_ok() {
            thread::yield_now();
        }
        store.inner.disk_space.pretended.store(0, Ordering::SeqCst);
        drop(gate);
        match closing.join().unwrap() {
            // One flush may have taken both.
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Full),
        }
    });
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), b"in the journal only");
}

#[test]
fn close_ends_the_wait_of_commits_for_space() {
    let dir = temp();
    let (store, _) = open(dir.path());
    thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for index in 0_u64.. {
                    let change = set(&key(format!("{thread}")), done(&index.to_le_bytes()));
                    let ended = match store.commit(vec![change], &[], Priority::User) {
                        Ok(committed) => store.wait(committed.unwrap().ticket),
                        Err(error) => Err(error),
                    };
                    if let Err(error) = ended {
                        assert_eq!(error.kind(), ErrorKind::Closed);
                        break;
                    }
                }
            });
        }
        while store.stats().commits < 200 {
            thread::yield_now();
        }
        store.close().unwrap();
    });
    let (store, report) = open(dir.path());
    assert!(report.clean && stored(&store, &key("0")).is_some());
}

#[test]
fn an_idle_anchor_does_not_block_a_drain() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().sync_timeout(Duration::from_secs(5)));
    put(&store, &key("k"), done(b"x"));
    // The writer sends the groups in order.
    store.drain().unwrap();
    // Act as the writer does when nothing was committed for a day.
    let batch = store.inner.commit_queue.take_empty().unwrap();
    store.inner.commit_queue.publish(batch.group);
    store.inner.apply.messages.send(threads::message(&batch, false)).unwrap();
    store.drain().unwrap();
}

#[test]
fn unsynced_blob_files_poison_before_the_journal_frees_a_segment() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().sync_flag(false));
    put(&store, &key("k"), done(b"x"));
    checkpoint(&store);
    let before = store.stats().store_checkpoints;
    std::fs::write(dir.path().join("store/sled/blobs/1000000000"), b"x").unwrap();
    let (reply, done) = crossbeam_channel::bounded(1);
    store.inner.apply.messages.send(apply::Message::Checkpoint { reply }).unwrap();
    done.recv().unwrap_err();
    let error = store.close().unwrap_err();
    assert!(error.to_string().contains("1 values in files of their own"), "{error}");
    assert_eq!(store.stats().store_checkpoints, before);
}

#[test]
fn a_close_ends_although_sled_does_not_and_the_store_stays_locked_until_it_has() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().sync_timeout(Duration::from_millis(500)));
    put(&store, &key("k"), done(b"x"));
    let gate = Arc::clone(&store.inner.shared.tables.close_gate);
    let held = gate.lock();
    let error = store.close().unwrap_err();
    assert!(error.kind() == ErrorKind::Poisoned && error.to_string().contains("sled has not ended"), "{error}");
    refused(dir.path(), ErrorKind::StoreInUse, "is open already");
    drop(held);
    // The thread frees the store when sled is gone. Nothing else reports that.
    let reopened = loop {
        match Store::open(dir.path(), &options()) {
            Err(error) if error.kind() == ErrorKind::StoreInUse => std::thread::yield_now(),
            opened => break opened.unwrap().0,
        }
    };
    assert_eq!(outcome(&reopened, &key("k")).unwrap(), b"x");
}
