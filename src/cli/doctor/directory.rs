//! Examines the directory of a store without reading its files: names, permissions, free space, and locks.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Finding, SERVICE_USER, damaged};
use crate::cli::out::{quoted, size};

/// With less free space than this, commits will soon return `Full`: an open needs some 10 MiB, and a flush or a merge
/// as much as it writes.
const LITTLE_SPACE: u64 = 64 << 20;

/// Returns the exit status and the finding if the directory is not a store, or if a part of the store is missing.
pub(super) fn not_a_store(path: &Path) -> Option<(u8, Finding)> {
    let shown = path.display();
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(cause) => return Some(not_a_directory(path, &cause)),
    };
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    let data = path.join("store");
    if !names.iter().any(|name| name == "store") {
        let has_only = |known: &[&str]| names.iter().all(|name| known.iter().any(|known| name == known));
        let next = "check the path; if it is right, the service creates a store there when it starts";
        if has_only(&["lost+found", "LOCK"]) {
            return Some((2, Finding::fault("empty", format!("{shown} is empty: there is no store yet"), next)));
        }
        if has_only(&["lost+found", "LOCK", "store.new"]) {
            let text =
                format!("{shown} has only a half-made store: the process that creates it has died or still runs");
            return Some((2, Finding::fault("half-made", text, next)));
        }
        if has_only(&["LOCK", "store.partial"]) {
            let text = format!(
                "{shown} has only an unfinished salvage or migration: the process that creates it has died or still runs"
            );
            let next = "let no service create an empty store here: run the salvage or the migration again";
            return Some((2, Finding::fault("unfinished", text, next)));
        }
        return Some((2, foreign(path, names.iter().map(|name| name.to_string_lossy()))));
    }
    match ["journal", "sled"].map(|part| fs::metadata(data.join(part))) {
        [Ok(_), Ok(_)] => None,
        [Err(cause), _] | [_, Err(cause)] if cause.kind() == io::ErrorKind::PermissionDenied => {
            Some((5, forbidden(path, &data, &cause)))
        }
        [Err(_), Err(_)] => Some((2, foreign(path, std::iter::once("store".into())))),
        [journal, _] => {
            let missing = data.join(if journal.is_err() { "journal" } else { "sled" });
            Some((4, damaged(path, format!("{} is missing", missing.display()))))
        }
    }
}

fn not_a_directory(path: &Path, cause: &io::Error) -> (u8, Finding) {
    let shown = path.display();
    match cause.kind() {
        io::ErrorKind::NotFound => (2, Finding::fault("missing", format!("{shown} does not exist"), "check the path")),
        io::ErrorKind::NotADirectory => {
            let next = "give the directory of the store, not a file in it";
            (2, Finding::fault("not-a-store", format!("{shown} is not a directory"), next))
        }
        io::ErrorKind::PermissionDenied => (5, forbidden(path, path, cause)),
        _ => (5, Finding::fault("unreadable", format!("{shown} cannot be read: {cause}"), super::DISK)),
    }
}

fn foreign<'a>(path: &Path, names: impl Iterator<Item = std::borrow::Cow<'a, str>>) -> Finding {
    let held = names.take(3).collect::<Vec<_>>().join(", ");
    let text = format!("{} is not a store: it holds {held}", path.display());
    Finding::fault("not-a-store", text, "check the path")
}

fn forbidden(path: &Path, at: &Path, cause: &io::Error) -> Finding {
    // The owner of a directory can be read even if the directory itself cannot.
    let owner =
        fs::metadata(path).map_or_else(|_| String::new(), |found| format!(", which belongs to user {}", found.uid()));
    Finding::fault("no-permission", format!("cannot look into {}{owner}: {cause}", at.display()), SERVICE_USER)
}

/// Returns the problems of the file system.
pub(super) fn file_system(path: &Path) -> Vec<Finding> {
    let Ok(found) = rustix::fs::statvfs(path) else { return Vec::new() };
    let mut findings = Vec::new();
    if found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let text = "its file system is mounted read-only: it can be read, but no service can open it";
        let next = "if the kernel did this, look at its log and check the disk; else mount it writable";
        findings.push(Finding::attention("read-only", text, next));
    }
    if found.f_blocks > 0 {
        findings.extend(little_space(found.f_bavail.saturating_mul(found.f_frsize)));
    }
    findings
}

fn little_space(free: u64) -> Option<Finding> {
    let text = format!("the disk is nearly full: {} are free", size(free));
    let next = "free some space: without it commits return Full, and an open may be refused";
    (free < LITTLE_SPACE).then(|| Finding::attention("nearly-full", text, next))
}

/// Reports files that belong to another user than the directory: the service may have no permission on them.
pub(super) fn foreign_files(path: &Path) -> Option<Finding> {
    let own = fs::metadata(path).ok()?;
    let mut foreign = Vec::new();
    add_foreign(path, &own, &mut foreign);
    let (first, at) = foreign.first()?;
    let count = foreign.len();
    let text = format!(
        "{count} of its files belong to another user than the directory, which is user {}: {} to user {}",
        own.uid(),
        first.display(),
        at.uid()
    );
    let command = format!("chown -R {}:{} {}", own.uid(), own.gid(), quoted(path));
    let next = "give them to the user of the service; if that is the owner of the directory:";
    Some(Finding::attention("foreign-files", text, next).command(command))
}

fn add_foreign(dir: &Path, own: &Metadata, foreign: &mut Vec<(PathBuf, Metadata)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let (path, name) = (entry.path(), entry.file_name());
        if metadata.is_dir() && name != "lost+found" {
            add_foreign(&path, own, foreign);
        }
        if metadata.uid() != own.uid() && name != "lost+found" {
            foreign.push((path, metadata));
        }
    }
}

/// A process that has a store locked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    name: Option<String>,
}

impl Process {
    fn new(pid: u32) -> Self {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim().to_owned());
        Self { pid, name }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// The kind of a process's lock on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    Write,
    Read,
}

/// Returns the process that has the store open for writing, if the system reports it.
pub(super) fn owner(path: &Path) -> Option<Process> {
    lockers(path, Lock::Write).into_iter().next()
}

/// Returns the processes that have the store open to read it, as far as the system reports them.
pub(super) fn readers(path: &Path) -> Vec<Process> {
    lockers(path, Lock::Read)
}

fn lockers(path: &Path, lock: Lock) -> Vec<Process> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let of = |path: &Path| fs::metadata(path).map_or_else(|_| Vec::new(), |found| holders(&locks, found.ino(), lock));
    // Every owner has locked this directory, also if its lock file was deleted. Another file system may have a file
    // with the same number, so the lock file counts too.
    let (mut pids, lock_file) = (of(&path.join("store")), path.join("LOCK"));
    if lock_file.exists() {
        let also = of(&lock_file);
        pids.retain(|pid| also.contains(pid));
    }
    pids.dedup();
    pids.into_iter().map(Process::new).collect()
}

/// Returns the processes that have locked the file with this number.
fn holders(locks: &str, inode: u64, lock: Lock) -> Vec<u32> {
    let kind = match lock {
        Lock::Write => "WRITE",
        Lock::Read => "READ",
    };
    // A line is such as `1: FLOCK  ADVISORY  WRITE 4711 fd:01:1048582 0 EOF`. A process that waits for the lock has an
    // arrow before `FLOCK`.
    let holder = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let is_held = words.next() == Some("FLOCK") && words.nth(1) == Some(kind);
        let (pid, file) = (words.next()?, words.next()?);
        (is_held && file.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok())?
    };
    let mut pids: Vec<u32> = locks.lines().filter_map(holder).collect();
    pids.sort_unstable();
    pids
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn the_processes_that_hold_a_lock_are_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 fd:01:77 0 EOF\n2: FLOCK  ADVISORY  READ  2 fd:01:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 3 fd:01:79 0 EOF\n4: FLOCK  ADVISORY  WRITE 4711 fd:01:77 0 EOF\n\
                     4: -> FLOCK  ADVISORY  WRITE 5 fd:01:77 0 EOF\n5: FLOCK  ADVISORY  READ  1 fd:01:78 0 EOF\n";
        assert_eq!(holders(locks, 77, Lock::Write), [4711]);
        assert_eq!(holders(locks, 78, Lock::Read), [1, 2]);
        for (locks, inode, lock) in
            [(locks, 78, Lock::Write), (locks, 7, Lock::Read), ("", 77, Lock::Write), ("x", 1, Lock::Read)]
        {
            assert_eq!(holders(locks, inode, lock), [0; 0], "{inode}");
        }
    }

    #[test]
    fn a_disk_with_little_space_needs_attention() {
        assert!(little_space(LITTLE_SPACE).is_none());
        let found = little_space(LITTLE_SPACE - 1).unwrap();
        assert_eq!((found.severity, found.name), (Severity::Attention, "nearly-full"));
        assert!(found.text.contains("64.00 MiB are free") && !found.next.is_empty(), "{found:?}");
    }
}
