//! A record as it is sent to another process: all that is shown of it.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Interruption, RecordInfo, Shown, Status, StoredRecord};
use crate::types::clock::{wall_millis, wall_time};
use crate::types::key::Key;

/// A record of another process. Its fields are those of [`RecordInfo`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SentRecord {
    store_id: [u8; 16],
    manager: String,
    key: Key,
    stored: StoredRecord,
    status: Status,
    interruption: Option<Interruption>,
    expires_at: Option<u64>,
    paused_for: u64,
}

impl From<&RecordInfo> for SentRecord {
    fn from(info: &RecordInfo) -> Self {
        let Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for } = &*info.0;
        Self {
            store_id: *store_id,
            manager: manager.to_string(),
            key: key.clone(),
            stored: StoredRecord::clone(stored),
            status: *status,
            interruption: *interruption,
            expires_at: expires_at.map(wall_millis),
            paused_for: *paused_for,
        }
    }
}

impl From<SentRecord> for RecordInfo {
    fn from(sent: SentRecord) -> Self {
        let SentRecord { store_id, manager, key, stored, status, interruption, expires_at, paused_for } = sent;
        let (manager, stored) = (manager.into(), Arc::new(stored));
        let expires_at: Option<SystemTime> = expires_at.map(wall_time);
        Self(Arc::new(Shown { store_id, manager, key, stored, status, interruption, expires_at, paused_for }))
    }
}
