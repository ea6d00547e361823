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
    /// The revision that the caller has seen, as in `Resolve`.
    Undo(Name, Option<u64>),
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
    Missed(u64),
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
            Event::Missed { count } => Self::Missed(count),
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
            SentEvent::Missed(count) => Self::Missed { count },
        }
    }
}

pub(in crate::api) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::encode_plain(&mut bytes, "message", message, u64::from(LONGEST))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::frame::VERSION;
    use crate::types::record::{Now, RecordInfo, StoredRecord};

    fn record() -> SentRecord {
        let now = Now { store: 0, wall: 0, first: 1, opened: 0, effect_seed: [0; 16] };
        let stored = serde_json::from_str::<StoredRecord>(RECORD).unwrap();
        let info = RecordInfo::new([7; 16], &"m".into(), &Key::new("k").unwrap(), &stored.into(), &now);
        (&info.unwrap()).into()
    }

    const RECORD: &str = r#"{
        "state": "Interrupted", "by_key": true, "bound": false, "holds_progress": true, "interruption": "Revoked",
        "policy": "Resume", "schema": 1, "attempt": 2, "interruptions": 3, "generation": 4,
        "attempts": { "began": 6, "earlier": [{ "attempt": 1, "began": 4, "changed": 5, "interruption": "Dropped" }] },
        "effect_seed": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], "revision": 5, "token": 6, "created_at": 7,
        "updated_at": 8, "updated": 9, "expires": 10, "success_ttl": 11, "failure_ttl": 12, "released_ttl": 13,
        "interrupted_ttl": 14, "retry_pause": 15, "remember": 16, "is_forgotten": false, "is_undoable": true,
        "fingerprint": null, "context": {}, "recovery_point": "paid", "checkpoint": null, "outcome_len": 3, "outcome": null
    }"#;

    /// Returns one request of each kind. A new kind does not compile until it is here.
    fn requests() -> Vec<Request> {
        let name = || Name::new("m", &Key::new("k").unwrap());
        let filter = || SentFilter::from(&crate::api::records::RecordFilter::new().manager("m"));
        let next = |request: &Request| match request {
            Request::About => Some(Request::List(filter())),
            Request::List(_) => Some(Request::Export(filter())),
            Request::Export(_) => Some(Request::Get(name())),
            Request::Get(_) => Some(Request::Resolve(name(), Resolution::Fail("x".into()), Some(1))),
            Request::Resolve(..) => Some(Request::Undo(name(), None)),
            Request::Undo(..) => Some(Request::Revoke(name(), Some(1))),
            Request::Revoke(..) => Some(Request::Forget(name())),
            Request::Forget(_) => Some(Request::Remove(name())),
            Request::Remove(_) => Some(Request::Extend(name(), 2)),
            Request::Extend(..) => Some(Request::Import(Box::new(record()))),
            Request::Import(_) => Some(Request::Tables),
            Request::Tables => Some(Request::Rows { table: "t".to_owned(), prefix: "p".into() }),
            Request::Rows { .. } => Some(Request::Sync),
            Request::Sync => Some(Request::Compact),
            Request::Compact => Some(Request::Verify),
            Request::Verify => Some(Request::Backup(PathBytes(b"/x".to_vec()))),
            Request::Backup(_) => Some(Request::Watch),
            Request::Watch => None,
        };
        std::iter::successors(Some(Request::About), next).collect()
    }

    /// Returns one reply of each kind, as [`requests`] does.
    fn replies() -> Vec<Reply> {
        let next = |reply: &Reply| match reply {
            Reply::About(_) => Some(Reply::Records(vec![record()])),
            Reply::Records(_) => Some(Reply::Record(Box::new(record()))),
            Reply::Record(_) => Some(Reply::Tables(vec!["t".to_owned()])),
            Reply::Tables(_) => Some(Reply::Rows(vec![("k".into(), "v".into())])),
            Reply::Rows(_) => Some(Reply::Changed(true)),
            Reply::Changed(_) => Some(Reply::Compacted(Compacted::default())),
            Reply::Compacted(_) => Some(Reply::Verified(VerifyReport::default())),
            Reply::Verified(_) => Some(Reply::BackedUp(BackupReport::default())),
            Reply::BackedUp(_) => Some(Reply::Event(Box::new(SentEvent::Began(record())))),
            Reply::Event(event) => {
                let next = match **event {
                    SentEvent::Began(_) => SentEvent::Replayed(record()),
                    SentEvent::Replayed(_) => SentEvent::Ended(record()),
                    SentEvent::Ended(_) => SentEvent::Expired(1),
                    SentEvent::Expired(_) => SentEvent::Compacted(Compacted::default()),
                    SentEvent::Compacted(_) => SentEvent::CompactionFailed(ErrorKind::Io, "x".to_owned()),
                    SentEvent::CompactionFailed(..) => SentEvent::Poisoned(ErrorKind::Poisoned, "x".to_owned()),
                    SentEvent::Poisoned(..) => SentEvent::Missed(1),
                    SentEvent::Missed(_) => return None,
                };
                Some(Reply::Event(Box::new(next)))
            }
        };
        let first = Reply::About(Box::new((OpenReport::default(), Stats::default())));
        std::iter::successors(Some(first), next).collect()
    }

    /// Returns a hash of the bytes of a message and of the names of its fields.
    fn layout(message: &impl Serialize, hash: u64) -> u64 {
        let names = serde_json::to_string(message).unwrap();
        let bytes = encode(message).unwrap();
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        bytes.iter().chain(names.as_bytes()).fold(hash, fnv)
    }

    /// If this fails, a message has changed, and an older program would misread it: raise
    /// [`VERSION`](crate::live::frame::VERSION), and put the new numbers here.
    #[test]
    fn a_change_of_the_messages_changes_their_version() {
        let hash = requests().iter().fold(0xcbf2_9ce4_8422_2325, |hash, request| layout(request, hash));
        let hash = replies().iter().fold(hash, |hash, reply| layout(reply, hash));
        // The kinds of errors in the order of their numbers.
        let kind = |number: u32| codec::decode_plain::<ErrorKind>("kind", &encode(&number).unwrap()).ok();
        let kinds: Vec<_> = (0..).map_while(kind).collect();
        assert_eq!(kinds.first(), Some(&ErrorKind::InvalidKey));
        let hash = kinds.iter().fold(hash, |hash, kind| layout(kind, hash));
        assert_eq!((VERSION, kinds.len(), hash), (3, 34, 18_413_291_155_850_485_708));
    }
}
