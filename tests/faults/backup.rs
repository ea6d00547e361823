//! Tests of backups that are interrupted by a kill, a power cut, a failing call or a full disk. Each leaves a complete copy
//! or none.

use std::fs;
use std::path::Path;

use oncekey::{Engine, ErrorKind};

use crate::check::scratch;
use crate::disk::{Disk, Image, Keep, Lies};
use crate::full_disk;
use crate::inject::{Call, Effect, Rule};
use crate::record::{Event, Log, Recording};
use crate::threads::{LATE, Rng, within};

const ROWS: u64 = 200;

fn value(n: u64) -> Vec<u8> {
    vec![n.to_le_bytes()[0]; usize::try_from(n * 7_919 % 6_000).unwrap()]
}

fn fill(engine: &Engine) {
    let filled = engine.atomic_phase(|tx| {
        let table = tx.table("t")?;
        (0..ROWS).try_for_each(|n| table.insert(n.to_be_bytes(), value(n)))
    });
    filled.map_err(|error: oncekey::Error| error).unwrap();
}

/// Opens a possible copy without creating a store. Returns true for a complete copy, and false if there is no store.
fn is_whole(path: &Path) -> bool {
    let engine = match Engine::options().create(false).open(path) {
        Ok(engine) => engine,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnsupportedFormat), "{error}");
            return false;
        }
    };
    let table = engine.table("t").unwrap();
    for n in 0..ROWS {
        assert_eq!(table.get(n.to_be_bytes()).unwrap().as_deref(), Some(value(n).as_slice()), "row {n}");
    }
    assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
    true
}

/// Records a backup. Also returns the length of the log when the backup had returned.
fn recorded() -> (Log, usize) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path().join("store")).unwrap();
    fill(&engine);
    fs::create_dir(dir.path().join("copies")).unwrap();
    let recording = Recording::start(&dir.path().join("copies"));
    engine.backup(dir.path().join("copies/copy")).unwrap();
    let answered = recording.position();
    drop(engine);
    (recording.finish(), answered)
}

/// Checks the remaining files. Returns true if there is a copy.
fn examine(image: &Image) -> bool {
    let dir = scratch();
    image.write(dir.path());
    let mut found = false;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() == "copy" {
            assert!(is_whole(&entry.path()), "the copy is not whole");
            found = true;
        } else {
            assert!(entry.file_name().to_str().unwrap().starts_with(".oncekey-backup-"), "{entry:?}");
            is_whole(&entry.path());
        }
    }
    found
}

fn cuts(log: &Log) -> Vec<usize> {
    let all = log.events.len();
    let renames = (0..all).filter(|at| matches!(log.events[*at], Event::Renamed { .. }));
    let mut cuts: Vec<usize> = renames.flat_map(|at| at.saturating_sub(3)..(at + 4).min(all + 1)).collect();
    cuts.extend((0..=all).step_by(1 + all / 30));
    cuts.push(all);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[test]
fn a_backup_that_is_killed_leaves_a_whole_copy_or_none() {
    within(LATE, || {
        let (log, answered) = recorded();
        let (mut rng, mut copies, mut none) = (Rng::new(1), 0, 0);
        let mut disk = Disk::new(&log, Lies::none(), false);
        for cut in cuts(&log) {
            disk.advance(cut);
            let found = examine(&disk.crash(Keep::Everything, &mut rng));
            assert!(found || cut < answered, "the answered backup is gone");
            *(if found { &mut copies } else { &mut none }) += 1;
        }
        println!("of {} calls: {none} kills left no copy, {copies} a whole one", log.events.len());
        assert!(none > 20 && copies > 0);
    });
}

#[test]
fn a_power_cut_during_a_backup_leaves_a_whole_copy_or_none() {
    within(LATE, || {
        let (log, answered) = recorded();
        let mut rng = Rng::new(2);
        for ordered in [false, true] {
            let mut disk = Disk::new(&log, Lies::none(), ordered);
            for cut in cuts(&log) {
                disk.advance(cut);
                for keep in [Keep::Nothing, Keep::Percent(50)] {
                    let found = examine(&disk.crash(keep, &mut rng));
                    assert!(found || cut < answered, "the answered backup is gone");
                }
            }
        }
    });
}

/// The store continues after a failed backup, and no file of the copy is left.
#[test]
fn every_call_of_a_backup_may_fail() {
    let mut failed = 0;
    for call in [Call::Write, Call::Sync, Call::Open, Call::Rename, Call::CreateDir] {
        let mut nth = 1;
        loop {
            let hit = within(LATE, move || {
                let dir = tempfile::tempdir().unwrap();
                let engine = Engine::open(dir.path().join("store")).unwrap();
                fill(&engine);
                let copies = dir.path().join("copies");
                fs::create_dir(&copies).unwrap();
                let path = copies.to_str().unwrap().to_owned();
                let rule = Rule { path, call, nth, times: 1, effect: Effect::Errno(libc::EIO) }.inject();
                let backup = engine.backup(copies.join("copy"));
                let hit = rule.hits() > 0;
                drop(rule);
                if backup.is_ok() {
                    assert!(is_whole(&copies.join("copy")), "{call:?} {nth}");
                } else {
                    // If the sync after the last rename failed, the copy exists.
                    let left: Vec<_> = fs::read_dir(&copies).unwrap().map(|entry| entry.unwrap().path()).collect();
                    assert!(left.is_empty() || left == [copies.join("copy")], "{call:?} {nth}: {left:?}");
                    assert!(left.iter().all(|path| is_whole(path)), "{call:?} {nth}");
                }
                engine.table("t").unwrap().insert("after", "x").unwrap();
                engine.backup(copies.join("again")).unwrap();
                hit
            });
            if !hit {
                break;
            }
            failed += 1;
            nth += 1 + nth / 4;
        }
    }
    println!("{failed} calls failed");
    assert!(failed > 20);
}

#[test]
fn a_backup_to_a_full_disk_returns_full_and_leaves_nothing() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path().join("store")).unwrap();
        fill(&engine);
        let table = engine.table("large").unwrap();
        (0..24_u64).for_each(|n| table.insert(n.to_be_bytes(), vec![n.to_le_bytes()[0]; 1 << 20]).unwrap());
        for mib in [2, 12, 20, 26] {
            let Some(disk) = full_disk::Disk::new(mib << 20) else { return };
            let error = engine.backup(disk.store()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Full, "{mib} MiB: {error}");
            assert_eq!(fs::read_dir(disk.store().parent().unwrap()).unwrap().count(), 0, "{mib} MiB");
        }
        let Some(disk) = full_disk::Disk::new(96 << 20) else { return };
        assert_eq!(engine.backup(disk.store()).unwrap().rows, ROWS + 24);
        assert!(is_whole(&disk.store()));
        table.insert("after", "x").unwrap();
    });
}
