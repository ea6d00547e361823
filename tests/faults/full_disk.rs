//! A disk that fills up: said before anything changes, and over when there is room. On small file systems in memory of their
//! own, and on images of those that stores are kept on, which only root can mount.

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

/// A file system of its own in memory, unmounted at the end.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "oncekey-test"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        println!("skipped: nothing can be mounted here");
        // Where changes are checked, root is there to mount.
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        assert!(!is_root || std::env::var("CI").is_err(), "root cannot mount a tmpfs");
        None
    }

    /// A file system of this kind in a file of that size, if it can be made here; says what is missing if not.
    fn image(kind: &str, bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // Beside the mount point, and gone from its directory as soon as it is mounted.
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

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// Takes all room but so many bytes.
    fn fill(&self, but: u64) {
        let path = self.0.path().join("filler");
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        let zeros = vec![7; 64 << 10];
        let mut piece = zeros.len();
        while piece >= 512 {
            // A write may stop short at the end.
            if file.write(&zeros[..piece]).is_err() {
                piece /= 2;
            }
        }
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(but)).unwrap();
        self.sync();
    }

    /// Some count what was given back only then.
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

/// What was answered, and has to be there.
#[derive(Default)]
struct Known(HashMap<String, Vec<u8>>);

impl Known {
    /// Commits until it is refused, and says why; `None` if it never was.
    fn commit(&mut self, ops: &Ops, rng: &mut Rng, count: u64) -> Option<Error> {
        (0..count).find_map(|_| {
            let key = format!("{}", rng.next());
            let len = if rng.below(8) == 0 { rng.below(60_000) } else { rng.below(300) };
            let value: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
            let claim = match ops.begin(&key) {
                Ok(begun) => begun.into_claim().unwrap(),
                Err(error) => return Some(error),
            };
            // What has begun may end, as long as the journal has room.
            match claim.succeed(&value) {
                Ok(_) => drop(self.0.insert(key, value)),
                Err(error) => return Some(error.error),
            }
            None
        })
    }

    /// Commits until a key is refused; says which, and that nothing has changed by it.
    fn refused(&mut self, engine: &Engine, rng: &mut Rng, round: u64) -> String {
        let ops = ops(engine);
        for nth in 0_u64.. {
            is_full(&self.commit(&ops, rng, 10_000).expect("the disk is full and nobody has said so"));
            let (name, before) = (format!("refused-{round}-{nth}"), engine.stats());
            match ops.begin(&name) {
                Err(error) => {
                    is_full(&error);
                    assert!(ops.get(&name).unwrap().is_none() && engine.stats().commits == before.commits);
                    return name;
                }
                // What waited was applied meanwhile, and there was a little room again.
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

/// Somebody else fills the disk up to the last bytes.
fn filled_by_others(seed: u64, disk: &Disk) {
    let (mut known, mut rng) = (Known::default(), Rng::new(seed));
    let mut engine = open(disk).unwrap();
    for round in 0..3 {
        let ops = ops(&engine);
        let free = known.commit(&ops, &mut rng, 50 + seed % 100);
        assert!(free.is_none(), "there is room: {free:?}");
        let names = ["succeeded", "failed", "released", "interrupted", "dropped"].map(|name| format!("{name}-{round}"));
        let claims = names.each_ref().map(|name| ops.begin(name).unwrap().into_claim().unwrap());
        // At any moment: what sled is writing now has its room already.
        disk.fill(rng.below(if seed % 2 == 0 { 4096 } else { 7 * MIB }));
        // The first ones may get in: they are durable, and wait for room behind the journal.
        let refused = known.refused(&engine, &mut rng, round);
        // What has begun is ended, and what there is can be read.
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
            // Closed while it is full: what sled has not the next open brings in.
            let closed = engine.close();
            closed.as_ref().err().into_iter().for_each(is_full);
            if let Err(error) = open(disk) {
                is_full(&error);
            }
            disk.make_room();
            engine = open(disk).unwrap();
            // An open that failed on the way is no close either.
            assert!(closed.is_ok() || !engine.opened().clean);
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

/// `ONCEKEY_FULL_DISKS=100` fills more.
#[test]
fn a_disk_that_others_fill_is_full_and_not_the_end() {
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

/// What stores are kept on, and the smallest that there is of it.
const KINDS: [(&str, u64); 3] = [("ext4", 64 * MIB), ("xfs", 320 * MIB), ("btrfs", 128 * MIB)];

/// Each claims blocks, and takes new ones for what is written over, in its own way.
#[test]
fn a_full_ext4_xfs_or_btrfs_is_full_and_not_the_end() {
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

/// A commit that needs more room than there is must leave it to others, and to the next open.
#[test]
fn a_commit_too_large_for_the_disk_does_not_take_what_is_free() {
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
            // Users are refused from 4 MiB on; endings, and what the file system notes of itself, may take some of that.
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

#[test]
fn a_disk_that_the_store_fills_itself_is_full_and_not_the_end() {
    within(LATE, || {
        let Some(disk) = Disk::new(24 * MIB) else { return };
        let (mut known, mut rng) = (Known::default(), Rng::new(7));
        let engine = open(&disk).unwrap();
        let keys: Ops = ops(&engine);
        is_full(&known.commit(&keys, &mut rng, 1_000_000).unwrap());
        assert!(known.0.len() > 100);
        known.check(&keys);
        is_full(&known.commit(&keys, &mut rng, 10).unwrap());
        drop(keys);
        println!("{} records before it was full", known.0.len());
        // Where commits are faster than sled, some of them are in the journal alone, and stay there until there is room.
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

#[test]
fn a_store_is_not_begun_on_a_disk_without_room_for_it() {
    let Some(disk) = Disk::new(2 * MIB) else { return };
    is_full(&open(&disk).unwrap_err());
    let names: Vec<_> = fs::read_dir(disk.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["LOCK"]);
}

/// A limit on the size of files is as good as a full disk; the signal that comes with it is ignored by those who want an error.
const DIR: &str = "ONCEKEY_LIMITED_DIR";

#[test]
#[ignore = "started by another test"]
fn limited() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::options().segment_bytes(256 << 10).open(Path::new(&dir)).unwrap();
    let ops = ops(&engine);
    let (mut known, mut rng) = (Known::default(), Rng::new(1));
    let error = known.commit(&ops, &mut rng, 100_000).expect("nothing is limited");
    // It is sled's file that is too long for it: nobody can tell before.
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::Full), "{error}");
    // The commit may have met it in reading, before the engine knew: then `close` waits for what fails, and has it as it is.
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
