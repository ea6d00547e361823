//! Access to a store that another process has open.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::records::RecordFilter;
use crate::api::resolution::Resolution;
use crate::api::serve::message::{self, Name, PathBytes, Reply, Request};
use crate::live::client::{Client, Replies};
use crate::protocol::event::{Compacted, Event};
use crate::protocol::{BackupReport, OpenReport, VerifyReport};
use crate::types::clock::millis;
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::{IntoKey, check_name};
use crate::types::options::check_ttl;
use crate::types::outcome::Record;
use crate::types::record::RecordInfo;
use crate::types::stats::Stats;
use crate::types::value::Value;

/// A store that another process has open, for operators. Offers the calls of an engine and its
/// [`RawManager`](crate::admin::RawManager). The command line uses it for a store that is in use.
///
/// The engine in that process serves a socket in the directory of its store, unless
/// [`EngineOptions::admin`](crate::EngineOptions::admin) turns it off. Only the same user and root may connect.
///
/// Each call uses its own connection. The engine serves 16 connections at a time; a further call returns `Busy`.
///
/// ```
/// use oncekey::{
///     Engine, Manager,
///     admin::{LiveStore, RecordFilter, Resolution},
/// };
///
/// # let dir = tempfile::tempdir()?;
/// # let service = Engine::open(dir.path())?;
/// # let payments: Manager<u64> = service.manager("payments")?;
/// # drop(payments.begin("order-42")?);
/// // A service has the store open.
/// let store = LiveStore::connect(dir.path())?;
/// for info in store.records(RecordFilter::new())? {
///     let info = info?;
///     store.resolve_if_unchanged(&info, Resolution::Retry)?;
/// }
/// assert_eq!(store.stats()?.interrupted, 0);
/// # drop(payments); service.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LiveStore {
    path: PathBuf,
    client: Client,
}

impl LiveStore {
    /// Connects to the process that has the store in `path` open.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no store; `StoreInUse` if no process serves the socket; `UnsupportedFormat` if the
    /// process uses another version of the protocol; `Io` if the directory is not accessible.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = std::path::absolute(path).map_err(|cause| Error::io("open store", path, &cause))?;
        let is_missing =
            |cause: &io::Error| matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        match std::fs::metadata(path.join("store")) {
            Ok(found) if found.is_dir() => {}
            // A directory that this process may not enter may have a store.
            Err(cause) if !is_missing(&cause) => return Err(Error::io("open store", &path, &cause)),
            _ => return Err(Error::new(ErrorKind::NotFound, format!("there is no store in {}", path.display()))),
        }
        Ok(Self { client: Client::new(&path)?, path })
    }

    /// Returns the directory of the store.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what the open of the store found. See [`Engine::opened`](crate::Engine::opened).
    pub fn opened(&self) -> Result<OpenReport> {
        self.about().map(|(opened, _)| opened)
    }

    /// Returns the counters and gauges of the engine. See [`Engine::stats`](crate::Engine::stats).
    pub fn stats(&self) -> Result<Stats> {
        self.about().map(|(_, stats)| stats)
    }

    fn about(&self) -> Result<(OpenReport, Stats)> {
        match self.ask(&Request::About)?.only()? {
            Some(Reply::About(about)) => Ok(*about),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Returns the matching records without their outcomes. See [`Engine::records`](crate::Engine::records). Conditions
    /// of [`RecordFilter::matching`] are checked in this process.
    pub fn records(&self, filter: RecordFilter) -> Result<Received<RecordInfo>> {
        self.listed(&Request::List((&filter).into()), filter)
    }

    /// Returns the matching records with their stored outcomes.
    pub fn whole_records(&self, filter: RecordFilter) -> Result<Received<Record<Value, Value>>> {
        let records = self.listed(&Request::Export((&filter).into()), filter)?;
        Ok(Received(Box::new(records.map(|info| info.map(Record::raw)))))
    }

    fn listed(&self, request: &Request, filter: RecordFilter) -> Result<Received<RecordInfo>> {
        filter.range()?;
        let batches = self.batches(request, |reply| match reply {
            Reply::Records(records) => Ok(records),
            other => Err(unexpected(Some(&other))),
        })?;
        let records = batches.map(|sent| sent.map(RecordInfo::from));
        Ok(Received(Box::new(records.filter(move |info| info.as_ref().map_or(true, |info| filter.matches(info))))))
    }

    /// Returns the names of the tables that have a row. See [`Engine::tables`](crate::Engine::tables).
    pub fn tables(&self) -> Result<Vec<String>> {
        match self.ask(&Request::Tables)?.only()? {
            Some(Reply::Tables(names)) => Ok(names),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Returns the rows of a table whose keys start with `prefix`, in order. See
    /// [`Table::prefix`](crate::table::Table::prefix).
    pub fn rows(&self, table: &str, prefix: impl AsRef<[u8]>) -> Result<Received<(Value, Value)>> {
        check_name("table", table)?;
        let request = Request::Rows { table: table.to_owned(), prefix: prefix.as_ref().into() };
        self.batches(&request, |reply| match reply {
            Reply::Rows(rows) => Ok(rows),
            other => Err(unexpected(Some(&other))),
        })
    }

    /// Returns the items of several replies, until the end or an error.
    fn batches<T: 'static>(
        &self,
        request: &Request,
        unpack: impl Fn(Reply) -> Result<Vec<T>> + 'static,
    ) -> Result<Received<T>> {
        let mut replies = self.ask(request)?;
        let mut batch = Vec::new().into_iter();
        let next = move || {
            loop {
                if let Some(item) = batch.next() {
                    return Some(Ok(item));
                }
                match replies.next().and_then(|reply| reply.map(&unpack).transpose()) {
                    Ok(Some(items)) => batch = items.into_iter(),
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        };
        Ok(Received(Box::new(std::iter::from_fn(next).fuse())))
    }

    /// Returns the record of a whole key, with its stored outcome. See
    /// [`RawManager::get`](crate::admin::RawManager::get).
    pub fn get(&self, manager: &str, key: impl IntoKey) -> Result<Option<Record<Value, Value>>> {
        match self.ask(&Request::Get(name(manager, key)?))?.only()? {
            Some(Reply::Record(sent)) => Ok(Some(Record::raw((*sent).into()))),
            None => Ok(None),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Resolves an interrupted record. See [`RawManager::resolve`](crate::admin::RawManager::resolve).
    pub fn resolve(&self, manager: &str, key: impl IntoKey, resolution: Resolution<Value, Value>) -> Result<()> {
        self.resolve_at(name(manager, key)?, resolution, None)
    }

    /// Resolves an interrupted record, unless it has changed since it was read as `seen`. See
    /// [`RawManager::resolve_if_unchanged`](crate::admin::RawManager::resolve_if_unchanged).
    pub fn resolve_if_unchanged(&self, seen: &RecordInfo, resolution: Resolution<Value, Value>) -> Result<()> {
        self.resolve_at(name(seen.manager(), seen.key())?, resolution, Some(seen.revision()))
    }

    fn resolve_at(&self, name: Name, resolution: Resolution<Value, Value>, seen: Option<u64>) -> Result<()> {
        self.changed(&Request::Resolve(name, resolution, seen)).map(|_| ())
    }

    /// Makes a resolved record interrupted again. See [`RawManager::undo`](crate::admin::RawManager::undo).
    pub fn undo(&self, manager: &str, key: impl IntoKey) -> Result<()> {
        self.changed(&Request::Undo(name(manager, key)?, None)).map(|_| ())
    }

    /// Makes a resolved record interrupted again, unless it has changed since it was read as `seen`. See
    /// [`RawManager::undo_if_unchanged`](crate::admin::RawManager::undo_if_unchanged).
    pub fn undo_if_unchanged(&self, seen: &RecordInfo) -> Result<()> {
        let name = name(seen.manager(), seen.key())?;
        self.changed(&Request::Undo(name, Some(seen.revision()))).map(|_| ())
    }

    /// Takes a key in progress away from its owner. See [`RawManager::revoke`](crate::admin::RawManager::revoke).
    pub fn revoke(&self, manager: &str, key: impl IntoKey) -> Result<RecordInfo> {
        self.revoke_at(name(manager, key)?, None)
    }

    /// Takes a key in progress away from its owner, unless its record has changed since it was read as `seen`. See
    /// [`RawManager::revoke_if_unchanged`](crate::admin::RawManager::revoke_if_unchanged).
    pub fn revoke_if_unchanged(&self, seen: &RecordInfo) -> Result<RecordInfo> {
        self.revoke_at(name(seen.manager(), seen.key())?, Some(seen.revision()))
    }

    fn revoke_at(&self, name: Name, seen: Option<u64>) -> Result<RecordInfo> {
        match self.ask(&Request::Revoke(name, seen))?.only()? {
            Some(Reply::Record(sent)) => Ok((*sent).into()),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Deletes a finished record. See [`RawManager::forget`](crate::admin::RawManager::forget).
    pub fn forget(&self, manager: &str, key: impl IntoKey) -> Result<bool> {
        self.changed(&Request::Forget(name(manager, key)?))
    }

    /// Deletes a record without a live owner. See [`RawManager::remove`](crate::admin::RawManager::remove).
    pub fn remove(&self, manager: &str, key: impl IntoKey) -> Result<bool> {
        self.changed(&Request::Remove(name(manager, key)?))
    }

    /// Keeps a finished record for at least `ttl` from now. See
    /// [`RawManager::extend`](crate::admin::RawManager::extend).
    pub fn extend(&self, manager: &str, key: impl IntoKey, ttl: Duration) -> Result<bool> {
        check_ttl("ttl", ttl)?;
        self.changed(&Request::Extend(name(manager, key)?, millis(ttl)))
    }

    /// Stores a record of another store, unless its key has a record here. See
    /// [`RawManager::import`](crate::admin::RawManager::import).
    pub fn import(&self, record: &Record<Value, Value>) -> Result<bool> {
        self.changed(&Request::Import(Box::new(record.info().into())))
    }

    /// Deletes all expired records. See [`Engine::compact_now`](crate::Engine::compact_now).
    pub fn compact_now(&self) -> Result<Compacted> {
        match self.ask(&Request::Compact)?.only()? {
            Some(Reply::Compacted(compacted)) => Ok(compacted),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Reads everything that is stored and reports damage. See [`Engine::verify`](crate::Engine::verify).
    pub fn verify(&self) -> Result<VerifyReport> {
        match self.ask(&Request::Verify)?.only()? {
            Some(Reply::Verified(report)) => Ok(report),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Copies the store. See [`Engine::backup`](crate::Engine::backup). The process that has the store open writes the
    /// copy, as its own user.
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        match self.ask(&Request::Backup(PathBytes::new(path.as_ref())?))?.only()? {
            Some(Reply::BackedUp(report)) => Ok(report),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Waits until everything committed so far survives a power cut. See [`Engine::sync`](crate::Engine::sync).
    pub fn sync(&self) -> Result<()> {
        self.changed(&Request::Sync).map(|_| ())
    }

    /// Subscribes to events from now on. See [`Engine::events`](crate::Engine::events). The iterator ends when the
    /// process closes the store. A caller that falls behind gets [`Event::Missed`] in the place of the events that were
    /// dropped.
    ///
    /// # Errors
    ///
    /// In the iterator, `Io` if the process ended without closing the store, or if the caller read nothing for 30
    /// seconds while events were waiting.
    pub fn events(&self) -> Result<Received<Event>> {
        let mut replies = self.ask(&Request::Watch)?;
        match replies.next()? {
            Some(Reply::Changed(_)) => {}
            other => return Err(unexpected(other.as_ref())),
        }
        let next = move || match replies.next() {
            Ok(Some(Reply::Event(event))) => Some(Ok((*event).into())),
            Ok(None) => None,
            Ok(other) => Some(Err(unexpected(other.as_ref()))),
            Err(error) if error.kind() == ErrorKind::Closed => None,
            Err(error) => Some(Err(error)),
        };
        Ok(Received(Box::new(std::iter::from_fn(next).fuse())))
    }

    fn ask(&self, request: &Request) -> Result<Asked> {
        self.client.ask(&message::encode(request)?).map(Asked)
    }

    fn changed(&self, request: &Request) -> Result<bool> {
        match self.ask(request)?.only()? {
            Some(Reply::Changed(changed)) => Ok(changed),
            other => Err(unexpected(other.as_ref())),
        }
    }
}

/// An iterator over the items that a [`LiveStore`] sends. Ends after an error. Its drop closes the connection.
pub struct Received<T>(Box<dyn Iterator<Item = Result<T>>>);

impl<T> Iterator for Received<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<T> fmt::Debug for Received<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Received")
    }
}

/// The replies to a request.
struct Asked(Replies);

impl Asked {
    fn next(&mut self) -> Result<Option<Reply>> {
        let Some(reply) = self.0.next()? else { return Ok(None) };
        codec::decode_plain("answer", &reply).map(Some).map_err(|_| self.0.not_understood())
    }

    /// Returns the only reply, after the end was received.
    fn only(mut self) -> Result<Option<Reply>> {
        let Some(reply) = self.next()? else { return Ok(None) };
        match self.next()? {
            None => Ok(Some(reply)),
            more => Err(unexpected(more.as_ref())),
        }
    }
}

fn name(manager: &str, key: impl IntoKey) -> Result<Name> {
    Ok(Name::new(manager, &key.into_key()?))
}

fn unexpected(reply: Option<&Reply>) -> Error {
    let what = if reply.is_some() { "another answer than was asked for" } else { "no answer" };
    Error::new(ErrorKind::UnsupportedFormat, format!("the process that has the store open gives {what}"))
}
