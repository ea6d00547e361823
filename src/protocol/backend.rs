//! The store below the protocol: the embedded one, or one on PostgreSQL.
//!
//! Both commit by compare-and-swap on what was read, so the rules and everything above are the same. This module
//! only chooses between them; with one kind of store compiled in, the calls are direct.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "postgres")]
use crate::postgres;
use crate::protocol::rules::Action;
use crate::store::{
    self, BackupReport, Change, CommitOptions, Committed, Deleted, Index, Load, Page, Pass, Read, ReadVersion,
    StoreKey, Ticket, VerifyReport,
};
#[cfg(feature = "postgres")]
use crate::types::clock::NEVER;
#[cfg(feature = "postgres")]
use crate::types::error::ErrorKind;
use crate::types::error::{Error, Result};
#[cfg(feature = "postgres")]
use crate::types::record::THIS_FRAME;
use crate::types::record::{Now, StoredRecord};
use crate::types::stats::Stats;

#[derive(Debug)]
pub(super) enum Backend {
    Local(store::Store),
    #[cfg(feature = "postgres")]
    Postgres(Box<postgres::Store>),
}

/// The reads of one run of a transaction.
#[derive(Debug)]
pub(super) enum Reads {
    Local(store::ReadSet),
    #[cfg(feature = "postgres")]
    Postgres(Box<postgres::Transaction>),
}

/// A guard: until it is dropped, changes of a key by other engines wake its waiters.
#[derive(Debug)]
pub(super) enum Await {
    /// No other engine has the store open.
    Local,
    #[cfg(feature = "postgres")]
    Postgres(#[expect(dead_code, reason = "it is dropped")] postgres::Await),
}

impl Backend {
    /// Returns the content of a key, and a time before all changes that the content does not include. `waits` is false
    /// for a drop, which does not wait for a server.
    pub(super) fn look(&self, key: &StoreKey, load: Load, waits: bool) -> Result<(Now, Read)> {
        match self {
            Self::Local(store) => {
                let _ = waits;
                // The time before the record: with a later time, a record that changed meanwhile could seem expired.
                let now = store.now();
                Ok((now, store.read(key, load)?))
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.look(key, load, waits),
        }
    }

    /// Returns a guess at the result of [`look`](Self::look), which the commit then checks. This saves a round trip to
    /// a server. `known` is the record as the claim last read it.
    pub(super) fn guess(&self, action: &Action<'_>, known: Option<&Arc<StoredRecord>>) -> Option<(Now, Read)> {
        match self {
            Self::Local(_) => {
                let _ = (action, known);
                None
            }
            #[cfg(feature = "postgres")]
            // A read-only engine refuses the commit, and replays what it reads.
            Self::Postgres(store) if store.check_writable().is_err() => None,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => match (action, known) {
                (Action::Begin(_), _) => Some(store.guess(None)),
                // A record without a revision is not stored.
                (Action::End { .. }, Some(known)) if known.revision != THIS_FRAME => Some(store.guess(Some(known))),
                _ => None,
            },
        }
    }

    /// Returns `ReadOnly` if nothing may be changed.
    pub(super) fn check_writable(&self) -> Result<()> {
        match self {
            Self::Local(store) => store.check_writable(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.check_writable(),
        }
    }

    /// Returns the version of a key for a commit, or `None` where only a read of the key gives it.
    pub(super) fn version(&self, key: &StoreKey) -> Result<Option<ReadVersion>> {
        match self {
            Self::Local(store) => store.version(key).map(Some),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Ok(None),
        }
    }

    /// Returns the content of a key.
    pub(super) fn read(&self, key: &StoreKey, load: Load) -> Result<Read> {
        match self {
            Self::Local(store) => store.read(key, load),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Ok(store.look(key, load, true)?.1),
        }
    }

    /// Commits all changes or none. Returns `None` if something that was read has changed. The caller waits for the
    /// ticket.
    pub(super) fn commit<'a, C: AsMut<[Change]>>(
        &self,
        changes: C,
        reads: &[ReadVersion],
        options: impl Into<CommitOptions<'a>>,
    ) -> Result<Option<Committed<C>>> {
        match self {
            Self::Local(store) => store.commit(changes, reads, options),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.commit(changes, reads, &options.into()),
        }
    }

    /// Commits the changes of a transaction.
    pub(super) fn commit_all(
        &self,
        changes: Vec<Change>,
        reads: &Reads,
        options: CommitOptions<'_>,
    ) -> Result<Option<Committed>> {
        match (self, reads) {
            (Self::Local(store), Reads::Local(reads)) => {
                store.commit(changes, &[], CommitOptions { read_set: Some(reads), ..options })
            }
            #[cfg(feature = "postgres")]
            (Self::Postgres(_), Reads::Postgres(transaction)) => {
                let mut changes = changes;
                let committed = transaction.commit(&mut changes, &options)?;
                Ok(committed.then_some(Committed { ticket: Ticket::default(), changes }))
            }
            #[cfg(feature = "postgres")]
            _ => Err(Error::new(ErrorKind::InvalidOptions, "a transaction belongs to another store")),
        }
    }

    /// Calls `f` once with the first error, with no lock held, when the store is poisoned. A store on PostgreSQL is
    /// never poisoned.
    pub(super) fn on_poison(&self, f: impl Fn(&Error) + Send + Sync + 'static) {
        match self {
            Self::Local(store) => store.on_poison(f),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => {}
        }
    }

    /// Returns an empty set of reads, for a run of a transaction.
    pub(super) fn reads(&self) -> Reads {
        match self {
            Self::Local(store) => Reads::Local(store.read_set()),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Reads::Postgres(Box::new(store.transaction())),
        }
    }

    /// Reads a key that is in the set of reads.
    pub(super) fn read_in(&self, reads: &Reads, key: &StoreKey, load: Load) -> Result<Read> {
        match reads {
            Reads::Local(_) => self.read(key, load),
            #[cfg(feature = "postgres")]
            Reads::Postgres(transaction) => transaction.read(key, load),
        }
    }

    /// Lists keys of a range that is in the set of reads.
    pub(super) fn keys_in(
        &self,
        reads: &Reads,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<(Vec<StoreKey>, Option<StoreKey>)> {
        match reads {
            Reads::Local(_) => self.keys(index, from, end, limit),
            #[cfg(feature = "postgres")]
            Reads::Postgres(transaction) => transaction.list(index, from, end, limit),
        }
    }

    /// Returns the time of a transaction that has read something.
    pub(super) fn now_in(&self, reads: &Reads) -> Now {
        match reads {
            Reads::Local(_) => self.now(),
            #[cfg(feature = "postgres")]
            Reads::Postgres(transaction) => transaction.now(),
        }
    }

    /// Waits until the commit with this ticket survives a power cut. On PostgreSQL every commit is durable when it
    /// returns.
    pub(super) fn wait(&self, ticket: Ticket) -> Result<()> {
        match self {
            Self::Local(store) => store.wait(ticket),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Ok(()),
        }
    }

    pub(super) fn sync(&self) -> Result<()> {
        match self {
            Self::Local(store) => store.sync(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.check(),
        }
    }

    /// Reports changes of the key by other engines until the guard is dropped.
    pub(super) fn awaits(&self, key: &StoreKey) -> Await {
        match self {
            Self::Local(_) => {
                let _ = key;
                Await::Local
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Await::Postgres(store.awaits(key)),
        }
    }

    /// Returns the keys at or after `from` and before `end` in order, and where to continue.
    pub(super) fn keys(
        &self,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<(Vec<StoreKey>, Option<StoreKey>)> {
        match self {
            Self::Local(store) => store.keys(index, from, end, limit),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.keys(index, from, end, limit),
        }
    }

    /// Returns the records at or after `from` and before `end`, without their outcomes. Returns `None` if each must be
    /// read by its key.
    pub(super) fn records(
        &self,
        index: Index,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
    ) -> Result<Option<Page>> {
        match (self, index) {
            (Self::Local(store), Index::All) => store.records(from, end, limit).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn now(&self) -> Now {
        match self {
            Self::Local(store) => store.now(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.now(),
        }
    }

    pub(super) fn id(&self) -> [u8; 16] {
        match self {
            Self::Local(store) => store.id(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.id(),
        }
    }

    /// Returns the directory, or the address of the database.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Local(store) => store.path(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.place(),
        }
    }

    pub(super) fn spread(&self, key: &[u8]) -> usize {
        match self {
            Self::Local(store) => store.spread(key),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.spread(key),
        }
    }

    pub(super) fn is_forked(&self) -> bool {
        match self {
            Self::Local(store) => store.is_forked(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.is_forked(),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        match self {
            Self::Local(store) => store.stats(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.stats(),
        }
    }

    pub(super) fn close(&self) -> Result<()> {
        match self {
            Self::Local(store) => store.close(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => {
                store.close();
                Ok(())
            }
        }
    }

    #[cfg(feature = "test-util")]
    pub(super) fn crash(&self) {
        match self {
            Self::Local(store) => store.crash(),
            // Every commit is at the server already.
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.close(),
        }
    }

    /// Prepares a pass over everything that is committed now.
    pub(super) fn drain(&self) -> Result<()> {
        match self {
            Self::Local(store) => store.drain(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.check(),
        }
    }

    pub(super) fn compact(&self, pass: &mut Pass, limit: usize) -> Result<Option<Deleted>> {
        match self {
            Self::Local(store) => store.compact(pass, limit),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.compact(limit, pass.is_exact()),
        }
    }

    pub(super) fn next_due(&self) -> u64 {
        match self {
            Self::Local(store) => store.next_due(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.next_due(),
        }
    }

    /// Returns the earliest store time at which an unfinished record in a run expires. On PostgreSQL returns [`NEVER`]:
    /// the death of an owner is a commit there, which stores the expiry.
    pub(super) fn unfinished_due(&self) -> u64 {
        match self {
            Self::Local(store) => store.unfinished_due(),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => NEVER,
        }
    }

    pub(super) fn time_until(&self, due: u64) -> Option<Duration> {
        match self {
            Self::Local(store) => store.time_until(due),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.time_until(due),
        }
    }

    pub(super) fn verify_while(&self, goes_on: &dyn Fn() -> Result<()>) -> Result<VerifyReport> {
        match self {
            Self::Local(store) => store.verify_while(goes_on),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.verify_while(goes_on),
        }
    }

    pub(super) fn back_up(&self, path: &Path, goes_on: &dyn Fn() -> Result<()>) -> Result<BackupReport> {
        match self {
            Self::Local(store) => store.back_up(path, goes_on),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => {
                let message = "a store on PostgreSQL is backed up with its database: use pg_dump or pg_basebackup";
                Err(Error::new(ErrorKind::InvalidOptions, message))
            }
        }
    }

    /// Returns the state of the server, or `None` for a directory.
    #[cfg(feature = "postgres")]
    pub(super) fn server(&self) -> Result<Option<postgres::ServerReport>> {
        match self {
            Self::Local(_) => Ok(None),
            Self::Postgres(store) => store.report().map(Some),
        }
    }

    #[cfg(test)]
    pub(super) fn pin_segments(&self) -> impl Sized + use<'_> {
        match self {
            Self::Local(store) => store.pin_segments(),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => unreachable!("it has no journal"),
        }
    }

    pub(super) fn disk_bytes(&self) -> Result<(u64, u64)> {
        match self {
            Self::Local(store) => store.disk_bytes(),
            // A store on PostgreSQL has no files on this machine.
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.check().map(|()| (0, 0)),
        }
    }
}

impl Reads {
    /// Adds a key, before it is read.
    pub(super) fn add(&mut self, key: &StoreKey) {
        match self {
            Self::Local(reads) => reads.add(key),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => {}
        }
    }

    /// Adds a range and returns its id, before it is read.
    pub(super) fn add_range(&mut self, from: &StoreKey, end: Option<&StoreKey>) -> usize {
        match self {
            Self::Local(reads) => reads.add_range(from, end),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => 0,
        }
    }

    pub(super) fn end_range_at(&self, id: usize, end: Option<&StoreKey>) {
        match self {
            Self::Local(reads) => reads.end_range_at(id, end),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => {}
        }
    }

    pub(super) fn is_current(&self) -> bool {
        match self {
            Self::Local(reads) => reads.is_current(),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => transaction.is_current(),
        }
    }

    /// Ends a run that changes nothing. Returns false if something that it read has changed.
    #[cfg_attr(not(feature = "postgres"), expect(clippy::unnecessary_wraps, reason = "for the other store"))]
    pub(super) fn commit(&self) -> Result<bool> {
        match self {
            Self::Local(reads) => Ok(reads.is_current()),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => transaction.commit_reads(),
        }
    }

    /// Returns the keys that have changed, as far as that is known.
    pub(super) fn conflicts(&self) -> BTreeSet<StoreKey> {
        match self {
            Self::Local(reads) => reads.conflicts(),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => transaction.all(),
        }
    }

    pub(super) fn all(&self) -> BTreeSet<StoreKey> {
        match self {
            Self::Local(reads) => reads.all().cloned().collect(),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => transaction.all(),
        }
    }
}
