//! Builds a new sled from the blocks of files that sled must not be opened on.

use std::path::Path;

use super::exchange;
use super::raw::Found;
use super::tables::{Access, Tables};
use crate::store::files;
use crate::store::format::block::{self, BLOCK};
use crate::store::format::list::RunList;
use crate::types::error::{Error, ErrorKind, Result};

/// The bytes that sled needs in addition to the blocks.
const SLACK: u64 = 16 << 20;
/// The number of blocks in memory at a time.
const BATCH: usize = 1 << 10;

/// Returns true if there is space for this many more bytes.
pub(super) fn has_space(dir: &Path, bytes: u64) -> Result<bool> {
    Ok(files::free_bytes(dir)? >= bytes.saturating_add(SLACK))
}

/// Replaces sled's files by a new sled with the list and its blocks. Without enough space, returns `Full` and changes
/// nothing.
pub(super) fn rebuild(dir: &Path, access: Access, found: &Found, list: &RunList) -> Result<()> {
    let blocks: Vec<_> = found.blocks_of(list).collect();
    // sled was seen to write less than twice what it is given.
    let bytes = 2 * BLOCK as u64 * blocks.len() as u64;
    let parent = dir.parent().unwrap_or(dir);
    if !has_space(parent, bytes)? {
        let message = format!("no space to rebuild the record store {}: it needs {bytes} bytes", dir.display());
        return Err(Error::new(ErrorKind::Full, message));
    }
    exchange::replace(dir, |new| {
        let tables = Tables::create(new, access, &list.store_id)?;
        for some in blocks.chunks(BATCH) {
            let keyed = some.iter().map(|at| Ok((block::key(at.place), found.read(at)?)));
            tables.write(&keyed.collect::<Result<Vec<_>>>()?)?;
        }
        tables.set_list(list)?;
        tables.close()
    })
}
