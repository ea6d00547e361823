//! What is compared. Each does the same as oncekey: insert a record in progress if the key is absent, then replace it by an
//! outcome of 256 bytes, and answer neither before it is on disk.

mod embedded;
mod lmdb;
mod logs;
mod servers;
mod sql;

use std::path::Path;

use anyhow::Result;

pub(crate) use self::logs::Oncekey;
use crate::group::{Direct, Grouped};
use crate::shared::VALUE;

pub(crate) type Key = [u8; 16];

/// What a record in progress holds.
pub(crate) const BEGUN: &[u8] = b"begun";
pub(crate) const OUTCOME: &[u8] = &VALUE;

/// One step of a key's life.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// Insert a record in progress, if there is none.
    Begin(Key),
    /// Replace it by the outcome.
    Succeed(Key),
    /// Delete it.
    Forget(Key),
}

/// One thread's way into a system: a connection, where there are any. A step says whether it found the key as it should be.
pub(crate) trait Session {
    fn step(&mut self, step: Step) -> bool;
}

pub(crate) trait System: Send + Sync {
    fn session(&self) -> Box<dyn Session + '_>;

    /// Deletes finished records, in the background, as those do who keep keys for a day.
    fn forget(&self, keys: &[Key]) {
        let mut session = self.session();
        for key in keys {
            session.step(Step::Forget(*key));
        }
    }
}

/// Whether an answer waits for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Durable,
    Relaxed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Ideal,
    /// An engine in the process, used as its documentation shows.
    Embedded,
    /// The same, with one thread that commits what all others wait for as one transaction.
    Grouped,
    Server,
}

type Open = fn(&Path, Mode) -> Result<Box<dyn System>>;

#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Whether what it answered survives a power cut, when it is asked for that.
    pub(crate) is_durable: bool,
    pub(crate) open: Open,
}

const fn candidate(name: &'static str, kind: Kind, open: Open) -> Candidate {
    Candidate { name, kind, is_durable: true, open }
}

impl Candidate {
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.kind, Kind::Embedded | Kind::Grouped)
    }
}

pub(crate) const OURS: Candidate = candidate("oncekey", Kind::Ours, logs::oncekey);
pub(crate) const IDEAL: Candidate = candidate("ideal log, appended", Kind::Ideal, logs::appended);

/// All, for answers that wait for the disk.
pub(crate) const DURABLE: &[Candidate] = &[
    OURS,
    IDEAL,
    candidate("ideal log, overwritten", Kind::Ideal, logs::overwritten),
    candidate("RocksDB", Kind::Embedded, embedded::rocksdb),
    candidate("fjall", Kind::Embedded, |path, mode| direct(embedded::Fjall::open(path, mode))),
    candidate("fjall, one transaction for many", Kind::Grouped, |path, mode| {
        grouped(embedded::Fjall::open(path, mode))
    }),
    candidate("redb", Kind::Embedded, |path, mode| direct(embedded::Redb::open(path, mode))),
    candidate("redb, one transaction for many", Kind::Grouped, |path, mode| grouped(embedded::Redb::open(path, mode))),
    candidate("SQLite", Kind::Embedded, |path, mode| direct(sql::Sqlite::open(path, mode))),
    candidate("SQLite, one transaction for many", Kind::Grouped, |path, mode| grouped(sql::Sqlite::open(path, mode))),
    candidate("LMDB", Kind::Embedded, |path, mode| direct(lmdb::Lmdb::open(path, mode))),
    candidate("LMDB, one transaction for many", Kind::Grouped, |path, mode| grouped(lmdb::Lmdb::open(path, mode))),
    Candidate { is_durable: false, ..candidate("raw sled", Kind::Embedded, embedded::sled) },
    candidate("Redis", Kind::Server, servers::redis),
    candidate("PostgreSQL", Kind::Server, sql::postgres),
];

/// For answers that do not wait: no servers, whose clients wait in any case, and a writer thread only where there is one writer
/// at a time and a commit costs much without a sync too.
pub(crate) const RELAXED: &[Candidate] = &[
    OURS,
    candidate("ideal log, never synced", Kind::Ideal, logs::unsynced),
    DURABLE[3],
    DURABLE[4],
    DURABLE[6],
    DURABLE[7],
    DURABLE[8],
    DURABLE[10],
    DURABLE[12],
];

/// An engine that takes many steps in one transaction.
pub(crate) trait Store: Send + Sync + 'static {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>>;
}

fn direct(store: Result<impl Store>) -> Result<Box<dyn System>> {
    Ok(Box::new(Direct(store?)))
}

fn grouped(store: Result<impl Store>) -> Result<Box<dyn System>> {
    Ok(Box::new(Grouped::start(store?)))
}
