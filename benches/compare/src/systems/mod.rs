//! The compared systems. Each does the same as oncekey: it inserts a record in progress if the key is absent, and then
//! replaces it by an outcome of 256 bytes. Both steps answer when they are on disk.

mod embedded;
mod lmdb;
mod logs;
mod servers;
mod sql;

use std::path::Path;

use anyhow::Result;

pub(crate) use self::logs::{DAY, Oncekey};
use crate::group::{Direct, Grouped};
use crate::shared::VALUE;

pub(crate) type Key = [u8; 16];

/// The content of a record in progress.
pub(crate) const BEGUN: &[u8] = b"begun";
pub(crate) const OUTCOME: &[u8] = &VALUE;

/// One step in the life of a key.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// Inserts a record in progress, if there is no record.
    Begin(Key),
    /// Replaces the record by the outcome.
    Succeed(Key),
    /// Deletes the record.
    Forget(Key),
}

/// The access of one thread to a system, such as a connection. A step returns true if it found the key in the expected
/// state.
pub(crate) trait Session {
    fn step(&mut self, step: Step) -> bool;
}

pub(crate) trait System: Send + Sync {
    fn session(&self) -> Box<dyn Session + '_>;

    /// Deletes finished records in the background, as services do that keep keys for a day.
    fn forget(&self, keys: &[Key]) {
        let mut session = self.session();
        for key in keys {
            session.step(Step::Forget(*key));
        }
    }
}

/// The choice whether an answer waits for the disk.
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
    /// The same, with one thread that commits the steps of all others in one transaction.
    Grouped,
    Server,
}

type Open = fn(&Path, Mode) -> Result<Box<dyn System>>;

#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// True if answers survive a power cut in durable mode.
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

pub(crate) const SHARED: Candidate = candidate("oncekey on PostgreSQL", Kind::Server, logs::on_postgres);
pub(crate) const STATEMENTS: Candidate = candidate("PostgreSQL, two statements", Kind::Server, sql::postgres);

/// All systems whose answers can wait for the disk.
pub(crate) const DURABLE: &[Candidate] = &[
    OURS,
    IDEAL,
    candidate("ideal log, overwritten", Kind::Ideal, logs::overwritten),
    candidate("RocksDB", Kind::Embedded, embedded::rocksdb),
    candidate("fjall", Kind::Embedded, |path, mode| direct(embedded::Fjall::open(path, mode))),
    candidate("fjall with a writer thread", Kind::Grouped, |path, mode| grouped(embedded::Fjall::open(path, mode))),
    candidate("redb", Kind::Embedded, |path, mode| direct(embedded::Redb::open(path, mode))),
    candidate("redb with a writer thread", Kind::Grouped, |path, mode| grouped(embedded::Redb::open(path, mode))),
    candidate("SQLite", Kind::Embedded, |path, mode| direct(sql::Sqlite::open(path, mode))),
    candidate("SQLite with a writer thread", Kind::Grouped, |path, mode| grouped(sql::Sqlite::open(path, mode))),
    candidate("LMDB", Kind::Embedded, |path, mode| direct(lmdb::Lmdb::open(path, mode))),
    candidate("LMDB with a writer thread", Kind::Grouped, |path, mode| grouped(lmdb::Lmdb::open(path, mode))),
    Candidate { is_durable: false, ..candidate("raw sled", Kind::Embedded, embedded::sled) },
    candidate("Redis", Kind::Server, servers::redis),
    SHARED,
    STATEMENTS,
];

/// Systems for answers that do not wait. No servers, because their clients wait in any case. A writer thread only where
/// the engine has one writer and a commit is expensive without a sync too.
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

/// An engine that accepts many steps in one transaction.
pub(crate) trait Store: Send + Sync + 'static {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>>;
}

fn direct(store: Result<impl Store>) -> Result<Box<dyn System>> {
    Ok(Box::new(Direct(store?)))
}

fn grouped(store: Result<impl Store>) -> Result<Box<dyn System>> {
    Ok(Box::new(Grouped::start(store?)))
}
