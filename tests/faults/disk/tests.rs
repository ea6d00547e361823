//! Tests of the model of the disk.

use super::*;
use crate::record::Recording;

/// Records a directory, and returns every state of its file `f` that a cut at the end may leave, as text.
fn states(ordered: bool, work: impl FnOnce(&Path)) -> BTreeSet<Option<String>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "old").unwrap();
    let recording = Recording::start(dir.path());
    work(&dir.path().canonicalize().unwrap());
    let log = recording.finish();
    let mut disk = Disk::new(&log, Lies::none(), ordered);
    disk.advance(log.events.len());
    let mut rng = Rng::new(1);
    let mut found = BTreeSet::new();
    for percent in 0..200 {
        let image = disk.crash(Keep::Percent(percent / 2), &mut rng);
        let file = image.entries[0].get(std::ffi::OsStr::new("f")).map(|node| &image.files[node]);
        found.insert(file.map(|bytes| String::from_utf8_lossy(bytes).replace('\0', "")));
    }
    found
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path.join("f")).unwrap()
}

fn texts<const N: usize>(texts: [&str; N]) -> BTreeSet<Option<String>> {
    texts.into_iter().map(|text| Some(text.to_owned())).collect()
}

#[test]
fn synced_data_stays_and_the_rest_may_be_any_version() {
    let work = |path: &Path| {
        open(path).write_all_at(b"new", 0).unwrap();
        open(path).sync_data().unwrap();
    };
    assert_eq!(states(false, work), texts(["new"]));
    let work = |path: &Path| {
        open(path).write_all_at(b"one", 0).unwrap();
        open(path).sync_data().unwrap();
        open(path).write_all_at(b"two", 0).unwrap();
        open(path).write_all_at(b"six", 0).unwrap();
    };
    assert_eq!(states(false, work), texts(["one", "two", "six"]));
}

#[test]
fn a_block_is_torn_by_sectors_and_blocks_are_reordered() {
    let work = |path: &Path| {
        open(path).set_len(8192).unwrap();
        open(path).sync_data().unwrap();
        open(path).write_all_at(b"A", 0).unwrap();
        open(path).write_all_at(b"B", 512).unwrap();
        open(path).write_all_at(b"C", 4096).unwrap();
    };
    let expected = ["old", "Ald", "oldB", "AldB", "oldC", "AldC", "oldBC", "AldBC"];
    let found = states(false, work);
    assert_eq!(found, texts(expected));
}

#[test]
fn a_file_may_have_its_new_size_without_its_content() {
    let found = states(false, |path| {
        open(path).write_all_at(&[b'x'; 4096], 4096).unwrap();
        open(path).set_len(2).unwrap();
    });
    assert!(found.is_superset(&texts(["old", "ol"])), "{found:?}");
    assert!(found.iter().flatten().any(|text| text.len() > 4096), "{found:?}");
}

#[test]
fn a_renamed_file_is_under_its_old_or_its_new_name_until_the_directory_is_synced() {
    let rename = |path: &Path| std::fs::rename(path.join("f"), path.join("g")).unwrap();
    let old = Some("old".to_owned());
    assert_eq!(states(false, rename), BTreeSet::from([None, old]));
    let synced = |path: &Path| {
        rename(path);
        File::open(path).unwrap().sync_all().unwrap();
    };
    assert_eq!(states(false, synced), BTreeSet::from([None]));
}

#[test]
fn the_sync_of_a_new_file_keeps_its_name_only_under_the_ordered_model() {
    let replace = |path: &Path| {
        std::fs::remove_file(path.join("f")).unwrap();
        std::fs::write(path.join("f"), "new").unwrap();
        open(path).sync_all().unwrap();
    };
    assert_eq!(states(true, replace), texts(["new"]));
    let strict = states(false, replace);
    assert_eq!(strict, BTreeSet::from([None, Some("old".to_owned()), Some("new".to_owned())]));
}

#[test]
fn a_write_with_the_sync_flag_makes_its_pages_durable() {
    use std::os::unix::fs::OpenOptionsExt;
    let found = states(false, |path| {
        open(path).write_all_at(b"N", 0).unwrap();
        open(path).write_all_at(b"X", 4096).unwrap();
        let direct = File::options().write(true).custom_flags(libc::O_DSYNC).open(path.join("f")).unwrap();
        direct.write_all_at(b"E", 1).unwrap();
    });
    // The size may include the later block, whose byte may be missing.
    assert_eq!(found, texts(["NEd", "NEdX"]));
}
