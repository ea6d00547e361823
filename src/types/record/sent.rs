//! A record as it is sent to another process: all that is shown of it.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Interruption, RecordInfo, Shown, Status, StoredRecord};
use crate::types::clock::{wall_millis, wall_time};
use crate::types::key::Key;

/// A record of another process. Its fields are those of [`RecordInfo`].
#[derive(Debug)]
pub(crate) struct SentRecord(RecordInfo);

/// The sent fields, without a copy of the record.
#[derive(Serialize)]
struct Fields<'a> {
    store_id: [u8; 16],
    manager: &'a str,
    key: &'a Key,
    stored: &'a StoredRecord,
    status: Status,
    interruption: Option<Interruption>,
    expires_at: Option<u64>,
    paused_for: u64,
}

#[derive(Deserialize)]
struct Received {
    store_id: [u8; 16],
    manager: String,
    key: Key,
    stored: StoredRecord,
    status: Status,
    interruption: Option<Interruption>,
    expires_at: Option<u64>,
    paused_for: u64,
}

impl Serialize for SentRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for } = &*self.0.0;
        let fields = Fields {
            store_id: *store_id,
            manager,
            key,
            stored,
            status: *status,
            interruption: *interruption,
            expires_at: expires_at.map(wall_millis),
            paused_for: *paused_for,
        };
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SentRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let received = Received::deserialize(deserializer)?;
        let Received { store_id, manager, key, stored, status, interruption, expires_at, paused_for } = received;
        let (manager, stored, expires_at) = (manager.into(), Arc::new(stored), expires_at.map(wall_time));
        let shown = Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for };
        Ok(Self(RecordInfo(Arc::new(shown))))
    }
}

impl From<&RecordInfo> for SentRecord {
    fn from(info: &RecordInfo) -> Self {
        Self(info.clone())
    }
}

impl From<SentRecord> for RecordInfo {
    fn from(sent: SentRecord) -> Self {
        sent.0
    }
}
