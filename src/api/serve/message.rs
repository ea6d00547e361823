//! The requests at the socket of an open store, and the replies.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::api::records::SentFilter;
use crate::api::resolution::Resolution;
use crate::live::frame::LONGEST;
use crate::protocol::event::{Compacted, Event};
use crate::protocol::{BackupReport, OpenReport, VerifyReport};
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::Key;
use crate::types::record::SentRecord;
use crate::types::stats::Stats;
use crate::types::value::Value;

/// A request. Each connection carries one.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) enum Request {
    About,
    /// List the matching records, without their outcomes.
    List(SentFilter),
    /// List the matching records, with their outcomes.
    Export(SentFilter),
    Get(Name),
    /// The number is the revision that the caller has seen, if only that one may be changed.
    Resolve(Name, Resolution<Value, Value>, Option<u64>),
    Undo(Name),
    /// The revision that the caller has seen, as in `Resolve`.
    Revoke(Name, Option<u64>),
    Forget(Name),
    Remove(Name),
    /// The TTL in milliseconds.
    Extend(Name, u64),
    Import(Box<SentRecord>),
    /// The names of the tables that have a row.
    Tables,
    Rows {
        table: String,
        prefix: Value,
    },
    Sync,
    Compact,
    Verify,
    Backup(PathBytes),
    /// Send every event from now on.
    Watch,
}

/// A key of a manager.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) struct Name {
    pub(in crate::api) manager: String,
    pub(in crate::api) key: Key,
}

/// An absolute path, in any encoding.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) struct PathBytes(Vec<u8>);

/// A reply to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) enum Reply {
    About(Box<(OpenReport, Stats)>),
    Records(Vec<SentRecord>),
    Record(Box<SentRecord>),
    Tables(Vec<String>),
    Rows(Vec<(Value, Value)>),
    /// True if the request changed anything. The first reply to a subscription is true: events follow.
    Changed(bool),
    Compacted(Compacted),
    Verified(VerifyReport),
    BackedUp(BackupReport),
    Event(Box<SentEvent>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) enum SentEvent {
    Began(SentRecord),
    Replayed(SentRecord),
    Ended(SentRecord),
    Expired(u64),
    Compacted(Compacted),
    CompactionFailed(ErrorKind, String),
    Poisoned(ErrorKind, String),
}

impl Name {
    pub(in crate::api) fn new(manager: &str, key: &Key) -> Self {
        Self { manager: manager.to_owned(), key: key.clone() }
    }
}

impl PathBytes {
    /// Converts a path from the working directory of this process.
    pub(in crate::api) fn new(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|cause| Error::io("back up to", path, &cause))?;
        Ok(Self(path.into_os_string().into_vec()))
    }

    pub(in crate::api) fn into_path(self) -> PathBuf {
        OsString::from_vec(self.0).into()
    }
}

impl From<Event> for SentEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Began(info) => Self::Began((&info).into()),
            Event::Replayed(info) => Self::Replayed((&info).into()),
            Event::Ended(info) => Self::Ended((&info).into()),
            Event::Expired { count } => Self::Expired(count),
            Event::Compacted(compacted) => Self::Compacted(compacted),
            Event::CompactionFailed(error) => Self::CompactionFailed(error.kind(), error.to_string()),
            Event::Poisoned(error) => Self::Poisoned(error.kind(), error.to_string()),
        }
    }
}

impl From<SentEvent> for Event {
    fn from(sent: SentEvent) -> Self {
        match sent {
            SentEvent::Began(record) => Self::Began(record.into()),
            SentEvent::Replayed(record) => Self::Replayed(record.into()),
            SentEvent::Ended(record) => Self::Ended(record.into()),
            SentEvent::Expired(count) => Self::Expired { count },
            SentEvent::Compacted(compacted) => Self::Compacted(compacted),
            SentEvent::CompactionFailed(kind, message) => Self::CompactionFailed(Error::new(kind, message)),
            SentEvent::Poisoned(kind, message) => Self::Poisoned(Error::new(kind, message)),
        }
    }
}

pub(in crate::api) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::encode_plain(&mut bytes, "message", message, u64::from(LONGEST))?;
    Ok(bytes)
}
