//! A new sled with the same blocks, for files that sled must not be opened on.

use std::path::Path;

use super::exchange;
use super::raw::Found;
use super::tables::{Access, Tables};
use crate::store::files;
use crate::store::format::block::{self, BLOCK};
use crate::store::format::list::RunList;
use crate::types::error::{Error, ErrorKind, Result};

/// What sled takes besides the blocks, at least.
const SLACK: u64 = 16 << 20;
/// Blocks read at once.
const BATCH: usize = 1 << 10;

/// Whether there is space for so many bytes more.
pub(super) fn has_space(dir: &Path, bytes: u64) -> Result<bool> {
    Ok(files::free_bytes(dir)? >= bytes.saturating_add(SLACK))
}

/// Puts a new sled, which has the list and its blocks, in the place of the files that they were found in. Without space everything
/// stays as it was, and the error is `Full`.
pub(super) fn rebuild(dir: &Path, access: Access, found: &Found, list: &RunList) -> Result<()> {
    let blocks: Vec<_> = found.blocks_of(list).collect();
    // sled was seen to write less than twice what it is given.
    let bytes = 2 * BLOCK as u64 * blocks.len() as u64;
    let parent = dir.parent().unwrap_or(dir);
    if !has_space(parent, bytes)? {
        let message = format!("no space to build the record store {} again: {bytes} bytes", dir.display());
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
