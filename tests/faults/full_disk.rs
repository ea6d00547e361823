//! Tests of a disk that fills up. Calls fail before they change anything, and work again when there is space. They use
//! small file systems in memory, and images of the file systems that stores are kept on. Only root can mount them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use oncekey::{Begin, Engine, Error, ErrorKind, Manager, Status};

use crate::threads::{LATE, Rng, within};

const MIB: u64 = 1 << 20;

type Ops = Manager<Vec<u8>>;

/// A file system in memory, unmounted on drop.
pub(crate) struct Disk(tempfile::TempDir);

impl Disk {
    pub(crate) fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "oncekey-test"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        println!("skipped: nothing can be mounted here");
        // In CI, root must be able to mount, so that these tests are not skipped.
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        assert!(!is_root || std::env::var("CI").is_err(), "root cannot mount a tmpfs");
        None
    }

    /// Mounts a file system of this kind in a file of this size. Prints the reason if that is not possible here.
    fn image(kind: &str, bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // Put the image beside the mount point, and delete it as soon as it is mounted.
        let image = dir.path().with_extension(kind);
        File::create_new(&image).unwrap().set_len(bytes).unwrap();
        let run = |program: &str, args: &[&str]| match Command::new(program).args(args).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(cause) => Err(format!("{program} is missing: {cause}")),
        };
        let (image, at) = (image.to_str().unwrap(), dir.path().to_str().unwrap());
        let mounted =
            run(&format!("mkfs.{kind}"), &["-q", image]).and_then(|()| run("mount", &["-o", "loop", image, at]));
        fs::remove_file(image).unwrap();
        if let Err(why) = mounted {
            println!("skipped: no {kind} here: {why}");
            return None;
        }
        Some(Self(dir))
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(self.0.path()).unwrap();
        found.f_bavail * found.f_frsize
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// Fills the disk except for `but` bytes.
    fn fill(&self, but: u64) {
        let path = self.0.path().join("filler");
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        let zeros = vec![7; 64 << 10];
        let mut piece = zeros.len();
        while piece >= 512 {
            // The last write may be short.
            if file.write(&zeros[..piece]).is_err() {
                piece /= 2;
            }
        }
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(but)).unwrap();
        self.sync();
    }

    /// Syncs the file system: some free space only then.
    fn sync(&self) {
        rustix::fs::syncfs(File::open(self.0.path()).unwrap()).unwrap();
    }

    /// Makes the whole disk larger.
    fn grow(&self, bytes: u64) {
        let size = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.0.path()).status().unwrap().success());
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
        self.sync();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// The answered values, which must be in the store.
#[derive(Default)]
struct Known(HashMap<String, Vec<u8>>);

impl Known {
    /// Commits until a call fails, and returns the error. Returns `None` if no call failed.
    fn commit(&mut self, ops: &Ops, rng: &mut Rng, count: u64) -> Option<Error> {
        (0..count).find_map(|_| {
            let key = format!("{}", rng.next());
            let len = if rng.below(8) == 0 { rng.below(60_000) } else { rng.below(300) };
            let value: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
            let claim = match ops.begin(&key) {
                Ok(begun) => begun.into_claim().unwrap(),
                Err(error) => return Some(error),
            };
            // A claim may still end, as long as the journal has space.
            match claim.succeed(&value) {
                Ok(_) => drop(self.0.insert(key, value)),
                Err(error) => return Some(error.error),
            }
            None
        })
    }

    /// Commits until a key is rejected. Returns the key, and checks that nothing has changed.
    fn refused(&mut self, engine: &Engine, rng: &mut Rng, round: u64) -> String {
        let ops = ops(engine);
        for nth in 0_u64.. {
            is_full(&self.commit(&ops, rng, 10_000).expect("the disk is full, but no call has failed"));
            let (name, before) = (format!("refused-{round}-{nth}"), engine.stats());
            match ops.begin(&name) {
                Err(error) => {
                    is_full(&error);
                    assert!(ops.get(&name).unwrap().is_none() && engine.stats().commits == before.commits);
                    return name;
                }
                // Waiting commits were applied meanwhile, which freed a little space.
                Ok(begun) => drop(begun.into_claim().unwrap().release().unwrap()),
            }
        }
        unreachable!()
    }

    fn check(&self, ops: &Ops) {
        for (key, value) in &self.0 {
            let record = ops.get(key).unwrap().unwrap_or_else(|| panic!("{key} is lost"));
            assert_eq!(record.outcome(), Some(Ok(value)), "{key}");
        }
    }
}

fn open(disk: &Disk) -> Result<Engine, Error> {
    Engine::options().segment_bytes(256 << 10).open(disk.store())
}

fn ops(engine: &Engine) -> Ops {
    engine.manager("m").unwrap()
}

#[track_caller]
fn is_full(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
}

/// Another process fills the disk up to the last bytes.
fn filled_by_others(seed: u64, disk: &Disk) {
    let (mut known, mut rng) = (Known::default(), Rng::new(seed));
    let mut engine = open(disk).unwrap();
    for round in 0..3 {
        let ops = ops(&engine);
        let free = known.commit(&ops, &mut rng, 50 + seed % 100);
        assert!(free.is_none(), "there is room: {free:?}");
        let names = ["succeeded", "failed", "released", "interrupted", "dropped"].map(|name| format!("{name}-{round}"));
        let claims = names.each_ref().map(|name| ops.begin(name).unwrap().into_claim().unwrap());
        // At any moment: sled has already allocated the space for its current write.
        disk.fill(rng.below(if seed % 2 == 0 { 4096 } else { 7 * MIB }));
        // The first commits may be accepted. They are durable, and wait for the record store.
        let refused = known.refused(&engine, &mut rng, round);
        // Live claims can end, and all data can be read.
        let [succeeded, failed, released, interrupted, dropped] = &mut claims.map(Some);
        succeeded.take().unwrap().succeed(&vec![1; 100]).unwrap();
        failed.take().unwrap().fail(&oncekey::Failure::new("no")).unwrap();
        released.take().unwrap().release().unwrap();
        interrupted.take().unwrap().interrupt().unwrap();
        drop(dropped.take());
        let states = [Status::Succeeded, Status::Failed, Status::Released, Status::Interrupted, Status::Interrupted];
        let check_states = |ops: &Ops| {
            for (name, state) in names.iter().zip(states) {
                assert_eq!(ops.get(name).unwrap().unwrap().status(), state, "{name}");
            }
        };
        check_states(&ops);
        known.check(&ops);
        assert!(matches!(ops.begin(&names[0]).unwrap(), Begin::Replay(_)));
        engine.sync().unwrap();
        drop(ops);
        if round == 1 {
            // Close the full store: the next open applies the rest to sled.
            let closed = engine.close();
            closed.as_ref().err().into_iter().for_each(is_full);
            // A failed close does not count as a clean one.
            let is_as_closed = |engine: &Engine| assert_eq!(closed.is_ok(), engine.opened().clean);
            // The open may need less space than the failed close. Then it succeeds, and its own close is clean.
            let at_once = open(disk);
            at_once.as_ref().map_or_else(is_full, is_as_closed);
            let was_opened = at_once.is_ok_and(|engine| engine.close().is_ok());
            disk.make_room();
            engine = open(disk).unwrap();
            if !was_opened {
                is_as_closed(&engine);
            }
        } else {
            disk.make_room();
        }
        let ops = self::ops(&engine);
        check_states(&ops);
        known.check(&ops);
        let again = known.commit(&ops, &mut rng, 50);
        assert!(again.is_none(), "there is room again: {again:?}");
        assert!(engine.compact_now().is_ok());
        ops.begin(&refused).unwrap().into_claim().unwrap().release().unwrap();
        drop(ops);
        if round == 0 {
            engine.close().unwrap();
            engine = open(disk).unwrap();
            known.check(&self::ops(&engine));
        }
    }
    engine.close().unwrap();
    known.check(&ops(&open(disk).unwrap()));
}

/// Set `ONCEKEY_FULL_DISKS=100` for more disks.
#[test]
fn a_disk_filled_by_others_returns_full_and_recovers() {
    let disks: u64 = std::env::var("ONCEKEY_FULL_DISKS").map_or(4, |n| n.parse().unwrap());
    for seed in 0..disks {
        within(LATE, move || {
            if let Some(disk) = Disk::new(48 * MIB) {
                filled_by_others(seed, &disk);
            }
        });
    }
    println!("{disks} disks filled by others");
}

/// The file systems that stores are kept on, and their smallest sizes.
const KINDS: [(&str, u64); 3] = [("ext4", 64 * MIB), ("xfs", 320 * MIB), ("btrfs", 128 * MIB)];

/// Each file system allocates blocks, also for overwritten data, in its own way.
#[test]
fn a_full_ext4_xfs_or_btrfs_returns_full_and_recovers() {
    for (kind, bytes) in KINDS {
        within(LATE, move || {
            if let Some(disk) = Disk::image(kind, bytes) {
                for seed in 0..2 {
                    filled_by_others(seed, &disk);
                    fs::remove_dir_all(disk.store()).unwrap();
                }
                println!("{kind} filled by others");
            }
        });
    }
}

/// A commit that needs more space than there is must not use up the space of other commits and of the next open.
#[test]
fn a_commit_too_large_for_the_disk_leaves_the_free_space() {
    for (kind, bytes) in KINDS {
        within(LATE, move || {
            let Some(disk) = Disk::image(kind, bytes) else { return };
            let engine = open(&disk).unwrap();
            let table = engine.table("t").unwrap();
            table.insert("first", "x").unwrap();
            engine.compact_now().unwrap();
            disk.fill(24 * MIB);
            let before = disk.free();
            println!("{kind}: {before} bytes are free");
            let put = |n: u64| table.insert(format!("{n}"), vec![7; 1 << 20]);
            let refused = (0..64).find_map(|n| put(n).err()).expect("there is room for all of it");
            is_full(&refused);
            // Users are rejected below 4 MiB. Endings and the file system's own data may use some of the rest.
            assert!(disk.free() >= 2 * MIB, "{kind}: {} of {before} bytes are left", disk.free());
            assert_eq!(table.get("first").unwrap().as_deref(), Some(b"x".as_slice()));
            drop(table);
            engine.close().err().iter().for_each(is_full);
            let engine = open(&disk).unwrap_or_else(|error| {
                is_full(&error);
                disk.make_room();
                open(&disk).unwrap()
            });
            assert_eq!(engine.table("t").unwrap().get("first").unwrap().as_deref(), Some(b"x".as_slice()));
        });
    }
}

/// Commits 31 MiB at once on a disk with this much free space. The next open, after a close or a crash, must apply what was
/// answered. Returns false if the commit was refused, or `None` if this file system cannot be mounted here.
fn commit_large(kind: &str, free: u64, crashes: bool) -> Option<bool> {
    const ROWS: u64 = 31;
    let disk = Disk::image(kind, 500 * MIB)?;
    disk.fill(free * MIB);
    let failed = |error: Error| -> Engine { panic!("{kind}, {free} MiB: {error}") };
    let engine = open(&disk).unwrap();
    let value = || vec![7; (1 << 20) - 100];
    let stored =
        engine.atomic_phase(|tx| (0..ROWS).try_for_each(|row| tx.table("t")?.insert(format!("{row}"), value())));
    let expected = stored.is_ok().then(value);
    stored.as_ref().err().into_iter().for_each(is_full);
    let check = |engine: &Engine| {
        let table = engine.table("t").unwrap();
        for row in 0..ROWS {
            let found = table.get(format!("{row}")).unwrap();
            assert!(found.as_deref() == expected.as_deref(), "{kind}, {free} MiB: row {row}");
        }
    };
    check(&engine);
    let engine = if crashes {
        engine.crash();
        open(&disk).unwrap_or_else(failed)
    } else {
        engine
    };
    check(&engine);
    engine.table("t").unwrap().insert("small", "x").unwrap();
    engine.compact_now().unwrap();
    engine.close().unwrap();
    check(&open(&disk).unwrap_or_else(failed));
    Some(expected.is_some())
}

/// A store can always apply the commits that it has answered.
#[test]
fn a_commit_of_nearly_the_maximum_size_is_refused_whole_or_applied() {
    for kind in KINDS.map(|(kind, _)| kind) {
        let mut answers = Vec::new();
        for (free, crashes) in [(80, false), (130, true), (140, false), (150, true), (170, false), (200, true)] {
            answers.extend(within(LATE, move || commit_large(kind, free, crashes)));
        }
        println!("{kind}: whether the commit was accepted, by free space: {answers:?}");
        assert!(answers.first() != Some(&true) && answers.last() != Some(&false), "{answers:?}");
    }
}

#[test]
fn a_disk_filled_by_the_store_returns_full_and_recovers() {
    within(LATE, || {
        let Some(disk) = Disk::new(24 * MIB) else { return };
        let (mut known, mut rng) = (Known::default(), Rng::new(7));
        let engine = open(&disk).unwrap();
        let keys: Ops = ops(&engine);
        is_full(&known.commit(&keys, &mut rng, 1_000_000).unwrap());
        assert!(known.0.len() > 100);
        known.check(&keys);
        // Waiting commits may have been applied meanwhile, which frees a little space.
        is_full(&known.commit(&keys, &mut rng, 1_000_000).unwrap());
        drop(keys);
        println!("{} records before it was full", known.0.len());
        // If commits are faster than sled, some are only in the journal until there is space.
        engine.close().err().iter().for_each(is_full);
        let engine = open(&disk).unwrap_or_else(|error| {
            is_full(&error);
            disk.grow(96 * MIB);
            open(&disk).unwrap()
        });
        known.check(&ops(&engine));
        is_full(&known.commit(&ops(&engine), &mut rng, 1_000_000).unwrap());
        known.check(&ops(&engine));
    });
}

/// Replaced contents, and the space that merges need, must stay within a few times of what lives.
#[test]
fn values_that_are_overwritten_on_a_small_disk_are_never_refused() {
    const KEYS: u64 = 40;
    const LEN: u64 = 400_000;
    within(LATE, || {
        let Some(disk) = Disk::new(120 * MIB) else { return };
        let engine = Engine::options().segment_bytes(MIB).open(disk.store()).unwrap();
        let table = engine.table("t").unwrap();
        let value = |nth: u64| vec![nth.to_le_bytes()[0]; usize::try_from(LEN).unwrap()];
        for nth in 0..12 * KEYS {
            let put = table.insert(format!("{}", nth % KEYS), value(nth));
            put.unwrap_or_else(|error| panic!("{nth} of {} values were written: {error}", 12 * KEYS));
        }
        let len = fs::metadata(disk.store().join("store/sled/db")).unwrap().len();
        println!(
            "{} MiB live, {} MiB in the record store, {} MiB free",
            KEYS * LEN / MIB,
            len / MIB,
            disk.free() / MIB
        );
        drop(table);
        engine.close().unwrap();
        let engine = open(&disk).unwrap();
        let table = engine.table("t").unwrap();
        for nth in 11 * KEYS..12 * KEYS {
            assert_eq!(table.get(format!("{}", nth % KEYS)).unwrap().as_deref(), Some(&*value(nth)), "{nth}");
        }
    });
}

#[test]
fn a_store_is_not_created_on_a_disk_without_space_for_it() {
    let Some(disk) = Disk::new(2 * MIB) else { return };
    is_full(&open(&disk).unwrap_err());
    assert_eq!(fs::read_dir(disk.store()).unwrap().count(), 0, "an open that failed leaves nothing");
}

/// A limit on the size of files acts like a full disk. Programs that want an error ignore its signal.
const DIR: &str = "ONCEKEY_LIMITED_DIR";

#[test]
#[ignore = "started by another test"]
fn limited() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::options().segment_bytes(256 << 10).open(Path::new(&dir)).unwrap();
    let ops = ops(&engine);
    let (mut known, mut rng) = (Known::default(), Rng::new(1));
    let error = known.commit(&ops, &mut rng, 100_000).expect("nothing is limited");
    // The limit hits sled's file, and cannot be known before.
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::Full), "{error}");
    // The commit may fail in a read, before the engine knows. Then `close` waits for the failing step and returns its
    // error.
    let closed = engine.close().unwrap_err();
    let knew = error.kind() == ErrorKind::Poisoned;
    assert!(
        closed.kind() == ErrorKind::Poisoned || (closed.kind() == ErrorKind::Io && !knew),
        "{error}, then {closed}"
    );
    println!("\nkeys {}", known.0.keys().cloned().collect::<Vec<_>>().join(" "));
}

#[test]
fn a_limit_on_the_size_of_files_poisons_and_loses_nothing() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let line = format!(
            "trap '' XFSZ; ulimit -f 6144; exec '{}' --exact full_disk::limited --ignored --nocapture",
            program.display()
        );
        let output = Command::new("bash").args(["-c", &line]).env(DIR, dir.path()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let keys: Vec<&str> = said.lines().find_map(|line| line.strip_prefix("keys ")).unwrap().split(' ').collect();
        assert!(keys.len() > 10);
        let engine = Engine::open(dir.path()).unwrap();
        for key in keys {
            assert_eq!(ops(&engine).get(key).unwrap().unwrap().status(), Status::Succeeded);
        }
    });
}
