//! An open reports damage, which it distinguishes from a torn write, and changes nothing. After the damage is repaired,
//! the store opens again.

use std::fs;

use super::*;

const RECORDS: usize = 6;

fn name(index: usize) -> StoreKey {
    key(index.to_string())
}

/// Returns a store that was not closed. Records 0 to 5 are groups of their own in the newest segment, after the last
/// checkpoint.
fn unclean() -> TempDir {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 10));
    for index in 0..RECORDS {
        put(&store, &name(index), done(&[u8::try_from(index).unwrap(); 700]));
    }
    let copy = copy(&store);
    crash(store);
    copy
}

/// Returns a store that was not closed, with several segments whose changes are not in sled.
fn many_segments() -> TempDir {
    let dir = temp();
    let (store, _) = open(dir.path());
    // Block checkpoints.
    let gate = store.inner.shared.tables.flush_gate.lock();
    for index in 0..40 {
        put(&store, &name(index % RECORDS), done(&[u8::try_from(index).unwrap(); 700]));
    }
    let copy = copy(&store);
    drop(gate);
    drop(store);
    copy
}

#[track_caller]
fn has_all(dir: &Path) {
    let (store, _) = open(dir);
    for index in 0..RECORDS {
        assert!(stored(&store, &name(index)).is_some(), "{index}");
    }
}

fn newest(dir: &Path) -> Segment {
    segments(dir).pop().unwrap()
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    for damage in 0..4 {
        let dir = unclean();
        let segment = newest(dir.path());
        let (at, group) = *segment.groups.last().unwrap();
        let len = usize::try_from(sized(u64::from(group.payload_len))).unwrap();
        let mut bytes = fs::read(&segment.path).unwrap();
        match damage {
            0 => bytes[at..at + len].fill(0),
            1 => bytes[at + SECTOR..at + len].fill(0),
            2 => bytes[at + 200] ^= 1,
            _ => bytes[at + 20] ^= 1,
        }
        fs::write(&segment.path, bytes).unwrap();
        let (store, report) = open(dir.path());
        assert!(!report.clean);
        // If the header is lost too, the length of the group is not known.
        assert_eq!(report.torn_bytes, if damage == 1 || damage == 2 { len as u64 } else { 0 });
        assert_eq!(report.frames_replayed, RECORDS as u64 - 1);
        for index in 0..RECORDS {
            assert_eq!(stored(&store, &name(index)).is_some(), index + 1 < RECORDS);
        }
        put(&store, &name(RECORDS - 1), done(b"again"));
        crash(store);
        let (store, report) = open(dir.path());
        assert_eq!(report.torn_bytes, 0);
        assert_eq!(outcome(&store, &name(RECORDS - 1)).unwrap(), b"again");
    }
}

#[test]
fn damage_before_the_last_group_is_corrupt() {
    let dir = unclean();
    let segment = newest(dir.path());
    for (at, group) in &segment.groups[..segment.groups.len() - 1] {
        let in_header = [0, 5, 9, 30, 40, 60, 87].map(|offset| at + offset);
        let payload = usize::try_from(group.payload_len).unwrap();
        for offset in in_header.into_iter().chain([at + 88, at + 88 + payload / 2, at + 87 + payload]) {
            flip(&segment.path, offset);
            refused(dir.path(), ErrorKind::Corrupt, &display(&segment.path));
            flip(&segment.path, offset);
        }
    }
    has_all(dir.path());
}

#[test]
fn every_byte_of_the_newest_segment_is_damage_or_a_tail_or_padding() {
    let dir = unclean();
    let segment = newest(dir.path());
    let last = segment.groups.last().unwrap().0;
    let mut random = 7_usize;
    for _ in 0..40 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (random >> 33) % (last + 2 * SECTOR);
        let work = temp();
        copy_tree(&dir.path().join("store"), &work.path().join("store")).unwrap();
        flip(&newest(work.path()).path, offset);
        match Store::open(work.path(), &options()) {
            Ok((store, _)) => {
                let kept = if offset < last { RECORDS } else { RECORDS - 1 };
                for index in 0..kept {
                    assert!(stored(&store, &name(index)).is_some(), "record {index} after a flip at {offset}");
                }
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnsupportedFormat), "{error}");
                assert!(offset < last, "a tail is not damage: {error}");
            }
        }
    }
}

#[test]
fn a_seal_proves_the_first_group_of_the_next_segment() {
    let dir = temp();
    let (store, _) = open(dir.path());
    // Block writes to sled during the copy.
    let gate = store.inner.shared.tables.flush_gate.lock();
    let segment = loop {
        put(&store, &key("k"), done(&[7; 700]));
        let copied = copy(&store);
        let [.., before, newest] = &segments(copied.path())[..] else { continue };
        // The seal is written after the answer.
        if newest.header.number > 2 && newest.groups.len() == 1 && before.seal.is_some() {
            break (copied, newest.path.clone());
        }
    };
    drop(gate);
    let (dir, newest) = segment;
    // This is the last group, but it was answered: the seal is written only after its sync.
    flip(&newest, SECTOR + 100);
    refused(dir.path(), ErrorKind::Corrupt, &display(&newest));
    flip(&newest, SECTOR + 100);
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), [7; 700]);
}

#[test]
fn damage_before_the_last_checkpoint_does_not_matter() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 10));
    for index in 0..RECORDS {
        put(&store, &name(index), done(b"x"));
    }
    let before = newest(dir.path());
    store.close().unwrap();
    let (store, _) = open(dir.path());
    put(&store, &key("later"), done(b"x"));
    checkpoint(&store);
    crash(store);
    if segments(dir.path()).iter().any(|segment| segment.header.number == before.header.number) {
        flip(&before.path, before.groups[1].0 + 100);
    }
    has_all(dir.path());
}

#[test]
fn groups_before_the_last_checkpoint_are_not_read_except_their_headers() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 10));
    for index in 0..RECORDS {
        put(&store, &name(index), done(b"x"));
    }
    store.drain().unwrap();
    checkpoint(&store);
    put(&store, &key("later"), done(b"x"));
    crash(store);
    let Segment { path, groups, .. } = newest(dir.path());
    assert!(groups.len() > RECORDS + 2);
    flip(&path, groups[2].0 + 20);
    refused(dir.path(), ErrorKind::Corrupt, &display(&path));
    flip(&path, groups[2].0 + 20);
    flip(&path, groups[2].0 + 100);
    let (store, report) = open(dir.path());
    assert_eq!(report.frames_replayed, 1);
    assert!(stored(&store, &key("later")).is_some());
    store.close().unwrap();
    has_all(dir.path());
}

#[test]
fn missing_and_duplicate_segments_are_named() {
    let dir = many_segments();
    let found = segments(dir.path());
    assert!(found.len() >= 4);
    let aside = dir.path().join("aside");
    let newest = &found[found.len() - 1];
    for lost in &found[1..] {
        fs::rename(&lost.path, &aside).unwrap();
        let names = if lost.header.number == newest.header.number {
            format!("segment {}, which follows, is missing", newest.header.number)
        } else {
            display(&journal_dir(dir.path()))
        };
        refused(dir.path(), ErrorKind::Corrupt, &names);
        fs::rename(&aside, &lost.path).unwrap();
    }
    let copy = journal_dir(dir.path()).join("copy.journal");
    fs::copy(&newest.path, &copy).unwrap();
    refused(dir.path(), ErrorKind::Corrupt, "copy.journal");
    fs::remove_file(&copy).unwrap();
    has_all(dir.path());
}

#[test]
fn damage_in_a_segment_that_is_needed_is_corrupt() {
    let dir = many_segments();
    let found = segments(dir.path());
    for segment in &found[1..found.len() - 1] {
        let at = segment.groups[segment.groups.len() / 2].0 + 150;
        flip(&segment.path, at);
        refused(dir.path(), ErrorKind::Corrupt, &display(&segment.path));
        flip(&segment.path, at);
        for header_byte in [0, 20, 60] {
            flip(&segment.path, header_byte);
            refused(dir.path(), ErrorKind::Corrupt, &display(&segment.path));
            flip(&segment.path, header_byte);
        }
    }
    has_all(dir.path());
}

#[test]
fn a_segment_that_was_cut_off_or_emptied_is_corrupt() {
    let dir = many_segments();
    let found = segments(dir.path());
    for segment in &found[1..] {
        let bytes = fs::read(&segment.path).unwrap();
        for len in [bytes.len() - 1, bytes.len() / 2, SECTOR, 100] {
            fs::write(&segment.path, &bytes[..len]).unwrap();
            refused(dir.path(), ErrorKind::Corrupt, &display(&segment.path));
        }
        for emptied in [Vec::new(), vec![0; bytes.len()]] {
            fs::write(&segment.path, &emptied).unwrap();
            refused(dir.path(), ErrorKind::Corrupt, &display(&journal_dir(dir.path())));
            assert_eq!(fs::read(&segment.path).unwrap(), emptied);
        }
        fs::write(&segment.path, bytes).unwrap();
    }
    has_all(dir.path());
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let (dir, other) = (unclean(), unclean());
    let foreign = journal_dir(dir.path()).join("00000099.journal");
    fs::copy(newest(other.path()).path, &foreign).unwrap();
    let error = refused(dir.path(), ErrorKind::Corrupt, &display(&foreign));
    assert!(error.to_string().contains("another store"));
    fs::remove_file(foreign).unwrap();
    has_all(dir.path());
}

#[test]
fn an_older_or_newer_format_is_unsupported() {
    let dir = unclean();
    let path = newest(dir.path()).path;
    let bytes = fs::read(&path).unwrap();
    for version in [1, 3] {
        let mut other = bytes.clone();
        other[8] = version;
        fs::write(&path, other).unwrap();
        refused(dir.path(), ErrorKind::UnsupportedFormat, &format!("{} has format {version}", display(&path)));
    }
    fs::write(&path, bytes).unwrap();
    has_all(dir.path());
}

#[test]
fn a_missing_half_of_a_store_is_noticed() {
    let dir = unclean();
    for half in ["journal", "sled", "sled/db"] {
        let path = dir.path().join("store").join(half);
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        refused(dir.path(), ErrorKind::Corrupt, if half == "journal" { "store/journal" } else { "store/sled" });
        fs::rename(&aside, &path).unwrap();
    }
    has_all(dir.path());
}

#[test]
fn halves_of_different_times_are_refused() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &name(0), done(b"x"));
    store.close().unwrap();
    let (sled, journal) = (dir.path().join("store/sled"), journal_dir(dir.path()));
    let (old_sled, old_journal) = (dir.path().join("old-sled"), dir.path().join("old-journal"));
    copy_tree(&sled, &old_sled).unwrap();
    copy_tree(&journal, &old_journal).unwrap();
    let (store, _) = open(dir.path());
    for index in 0..RECORDS {
        put(&store, &name(index), done(b"x"));
    }
    store.close().unwrap();
    for (path, old, names) in [(&sled, &old_sled, "the record store"), (&journal, &old_journal, "the journal")] {
        let aside = dir.path().join("aside");
        fs::rename(path, &aside).unwrap();
        fs::rename(old, path).unwrap();
        refused(dir.path(), ErrorKind::Corrupt, names);
        fs::rename(path, old).unwrap();
        fs::rename(&aside, path).unwrap();
    }
    has_all(dir.path());
}

#[test]
fn a_damaged_record_is_an_error_and_never_absent() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(&[7; 10_000]));
    store.drain().unwrap();
    let tables = &store.inner.shared.tables;
    let run = store.inner.shared.runs.current()[0].info.id;
    let at = |number| block::key(block::Place { run, number });
    let blocks = [0, 1, 2].map(|number| tables.block(block::Place { run, number }).unwrap().unwrap());
    tables.remove(&at(1)).unwrap();
    let read = |load| store.read(&key("k"), load).map(|read| read.content);
    assert_eq!(read(Load::All).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(read(Load::WithoutOutcome).unwrap().is_some());
    tables.insert(&at(1), &blocks[2]).unwrap();
    assert_eq!(read(Load::All).unwrap_err().kind(), ErrorKind::Corrupt);
    tables.insert(&at(1), &blocks[1]).unwrap();
    tables.insert(&at(0), b"junk").unwrap();
    assert_eq!(read(Load::WithoutOutcome).unwrap_err().kind(), ErrorKind::Corrupt);
    tables.insert(&at(0), &blocks[0]).unwrap();
    // The last, because the record is cached then.
    assert!(read(Load::All).unwrap().is_some());
}

/// Returns every file below a directory with its content.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for (path, kind) in files::entries(dir).unwrap() {
        if kind.is_dir() {
            all.extend(contents(&path));
        } else {
            all.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    all
}

/// sled writes when it is opened, so it must not be opened before the journal was checked.
#[test]
fn a_refused_open_after_a_kill_changes_nothing() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..40_u8 {
        put(&store, &key([index]), done(&[index; 700]));
    }
    for damage in ["header", "missing"] {
        let dir = copy(&store);
        let journal = journal_dir(dir.path());
        if damage == "missing" {
            std::fs::rename(&journal, dir.path().join("store/elsewhere")).unwrap();
        } else {
            let (path, _) = files::entries(&journal).unwrap().remove(0);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[20] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        std::fs::write(dir.path().join("LOCK"), b"").unwrap();
        let before = contents(dir.path());
        assert_eq!(Store::open(dir.path(), &options()).unwrap_err().kind(), ErrorKind::Corrupt, "{damage}");
        assert!(contents(dir.path()) == before, "{damage}");
    }
}

#[test]
fn a_foreign_directory_called_store_is_left_alone() {
    let dir = temp();
    for path in ["store/src", "store.new/precious"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    assert_eq!(Store::open(dir.path(), &options()).unwrap_err().kind(), ErrorKind::UnsupportedFormat);
    std::fs::rename(dir.path().join("store"), dir.path().join("lost+found")).unwrap();
    assert_eq!(Store::open(dir.path(), &options()).unwrap_err().kind(), ErrorKind::UnsupportedFormat);
    assert!(dir.path().join("store.new/precious").exists() && !dir.path().join("LOCK").exists());
}

/// An error of the system does not prove that a part of a store is missing.
#[test]
fn a_part_that_the_system_cannot_look_at_is_an_io_error() {
    for part in ["store", "store/journal", "store/sled", "store.new"] {
        let dir = temp();
        let at = dir.path().join(part);
        if part != "store" && part != "store.new" {
            let (store, _) = open(dir.path());
            store.close().unwrap();
            // If the other part were there, this would be a damaged store of ours.
            std::fs::remove_dir_all(dir.path().join("store")).unwrap();
            std::fs::create_dir(dir.path().join("store")).unwrap();
        }
        // A link to itself.
        std::os::unix::fs::symlink(&at, &at).unwrap();
        let error = Store::open(dir.path(), &options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{part}: {error}");
        assert!(error.to_string().contains(at.to_str().unwrap()), "{part}: {error}");
    }
}
