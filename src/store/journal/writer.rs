//! Writes groups into segments. One thread owns the writer.

use std::path::Path;
use std::sync::Arc;

use super::pool::{Pool, Spare};
use super::segment::SegmentFile;
use crate::store::files;
use crate::store::format::frame::{self, Frame};
use crate::store::format::segment::{GROUP_HEADER, GroupHeader, SECTOR, SegmentHeader, payload_checksum, sized};
use crate::sync::group_commit::{Batch, Target};
use crate::types::clock::Anchor;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key;
use crate::types::stats::{Counter, Timing};

/// Bytes at the end of a segment that are reserved for its seal.
const SEAL: u64 = SECTOR as u64;

#[derive(Debug)]
pub(crate) struct JournalStats {
    pub(crate) groups: Counter,
    pub(crate) syncs: Counter,
    pub(crate) bytes: Counter,
    sync_time: Timing,
}

impl Default for JournalStats {
    fn default() -> Self {
        Self {
            groups: Counter::new("oncekey_groups_total"),
            syncs: Counter::new("oncekey_syncs_total"),
            bytes: Counter::new("oncekey_journal_bytes_total"),
            sync_time: Timing::new("oncekey_sync_seconds"),
        }
    }
}

/// The end of the chain of groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// The number of the last segment.
    pub(crate) segment: u64,
    /// The number of the last group.
    pub(crate) group: u64,
    /// The header checksum of the last group.
    pub(crate) previous: u32,
}

/// The end of a segment, where its seal is written.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) file: SegmentFile,
    pub(crate) salt: [u8; 8],
    pub(crate) offset: u64,
    pub(crate) last_frame: u64,
}

#[derive(Debug)]
pub(crate) struct Writer {
    store_id: [u8; 16],
    pool: Arc<Pool>,
    stats: Arc<JournalStats>,
    chain: Chain,
    current: Tail,
    /// The previous segment, until it is sealed.
    unsealed: Option<Tail>,
    buffer: Vec<u8>,
}

impl Writer {
    /// Continues the chain in a new segment. The last segment that was found is sealed once the first group is durable.
    pub(crate) fn start(
        store_id: [u8; 16],
        pool: Arc<Pool>,
        chain: Chain,
        found: Tail,
        spare: Spare,
        first_frame: u64,
    ) -> Result<Self> {
        let stats = Arc::default();
        let mut writer = Self { store_id, pool, stats, chain, current: found, unsealed: None, buffer: Vec::new() };
        writer.enter(spare, first_frame)?;
        Ok(writer)
    }

    pub(crate) fn stats(&self) -> Arc<JournalStats> {
        Arc::clone(&self.stats)
    }

    /// Returns the free bytes for groups in the current segment.
    pub(crate) fn space(&self) -> u64 {
        usable(self.current.file.size).saturating_sub(self.current.offset - SECTOR as u64)
    }

    /// Writes a group and syncs it. Returns true if the group is in a new segment. After an error nothing more may be
    /// written.
    pub(crate) fn write<C>(&mut self, batch: &Batch<C>, place: Target<Spare>, anchor: Anchor) -> Result<bool> {
        let entered = match place {
            Target::Current => false,
            Target::Next(spare) => {
                self.enter(spare, batch.first_frame)?;
                true
            }
        };
        let too_long = |_| Error::new(ErrorKind::TooLarge, "a journal group is too long");
        let header = GroupHeader {
            is_seal: false,
            group: batch.group,
            first_frame: batch.first_frame,
            frames: u32::try_from(batch.frames.len()).map_err(too_long)?,
            payload_len: u32::try_from(batch.payload.len()).map_err(too_long)?,
            payload_checksum: payload_checksum(self.current.salt, &batch.payload),
            previous: self.chain.previous,
            synced_through: self.chain.group,
            anchor,
        };
        let (sector, checksum) = header.encode(self.current.salt);
        self.buffer.clear();
        self.buffer.extend(sector.iter().take(GROUP_HEADER));
        self.buffer.extend_from_slice(&batch.payload);
        self.buffer.resize(self.buffer.len().next_multiple_of(SECTOR), 0);
        self.current.file.write_at(&self.buffer, self.current.offset)?;
        let timed = self.stats.sync_time.start();
        self.current.file.sync()?;
        drop(timed);
        self.current.offset += self.buffer.len() as u64;
        self.current.last_frame = batch.first_frame + batch.frames.len() as u64 - u64::from(!batch.frames.is_empty());
        self.chain.group = batch.group;
        self.chain.previous = checksum;
        self.stats.groups.add(1);
        self.stats.syncs.add(1);
        self.stats.bytes.add(self.buffer.len() as u64);
        if self.buffer.capacity() > 4 << 20 {
            self.buffer = Vec::new();
        }
        Ok(entered)
    }

    /// Seals the previous segment, if it is not sealed. Called only after the first group of the current segment is
    /// durable.
    pub(crate) fn seal(&mut self) -> Result<()> {
        let Some(tail) = self.unsealed.take() else { return Ok(()) };
        let header = GroupHeader {
            is_seal: true,
            group: self.chain.group,
            first_frame: self.chain.segment,
            frames: 0,
            payload_len: 0,
            payload_checksum: 0,
            previous: 0,
            synced_through: self.chain.group,
            anchor: Anchor::default(),
        };
        let (sector, _) = header.encode(tail.salt);
        tail.file.write_at(&sector, tail.offset)?;
        tail.file.sync()?;
        self.stats.syncs.add(1);
        self.pool.retire(tail.last_frame, tail.file);
        Ok(())
    }

    /// Begins a segment. Its header becomes durable with its first group.
    fn enter(&mut self, spare: Spare, first_frame: u64) -> Result<()> {
        self.seal()?;
        let salt = new_salt();
        let header = SegmentHeader {
            store_id: self.store_id,
            number: self.chain.segment + 1,
            salt,
            size: spare.size,
            first_group: self.chain.group + 1,
            first_frame,
            previous: self.chain.previous,
        };
        spare.write_at(&header.encode(), 0)?;
        self.chain.segment = header.number;
        let entered = Tail { file: spare, salt, offset: SECTOR as u64, last_frame: 0 };
        self.unsealed = Some(std::mem::replace(&mut self.current, entered));
        Ok(())
    }
}

fn new_salt() -> [u8; 8] {
    key::random().first_chunk().copied().unwrap_or_default()
}

/// Returns the bytes for groups in a segment of this size.
pub(crate) fn usable(size: u64) -> u64 {
    size.saturating_sub(SECTOR as u64 + SEAL)
}

/// Returns the size of a segment in which a group of this size fits.
pub(crate) fn segment_for(group: u64) -> u64 {
    group + SECTOR as u64 + SEAL
}

/// Creates the journal of a closed store whose runs have every change up to `frame`: one segment with a checkpoint and
/// a closing frame.
pub(crate) fn create(dir: &Path, store_id: [u8; 16], size: u64, frame: u64, anchor: Anchor) -> Result<()> {
    files::create_dir(dir)?;
    let pool = Pool::new(files::Dir::open(dir)?, size, 1, 0);
    let file = pool.prepare(0, 0, u64::MAX)?;
    let mut payload = Vec::new();
    frame::encode(&Frame::Checkpointed(frame), &mut payload)?;
    frame::encode(&Frame::Closing, &mut payload)?;
    let salt = new_salt();
    let first_frame = frame.saturating_add(1);
    let header = SegmentHeader { store_id, number: 1, salt, size: file.size, first_group: 1, first_frame, previous: 0 };
    let group = GroupHeader {
        is_seal: false,
        group: 1,
        first_frame,
        frames: 2,
        payload_len: u32::try_from(payload.len()).unwrap_or_default(),
        payload_checksum: payload_checksum(salt, &payload),
        previous: 0,
        synced_through: 0,
        anchor,
    };
    let (sector, _) = group.encode(salt);
    let mut bytes = header.encode().to_vec();
    bytes.extend(sector.iter().take(GROUP_HEADER));
    bytes.extend_from_slice(&payload);
    debug_assert_eq!(sized(payload.len() as u64), SECTOR as u64);
    file.write_at(&bytes, 0)?;
    file.sync()
}
