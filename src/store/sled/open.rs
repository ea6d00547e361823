//! Opens sled, after its files were read without it.

use std::path::Path;

use super::blobs::Blobs;
use super::disk_space::DiskSpace;
use super::raw::{Chosen, Found, JournalSummary};
use super::tables::{Access, Tables};
use super::{exchange, rebuild, snapshots};
use crate::store::files;
use crate::store::format::list::RunList;
use crate::types::error::{Error, ErrorKind, Result};

/// Opens sled and returns the list of runs. Scans sled's file first: if a listed block is missing, returns `Corrupt`,
/// or `Io` if parts of the file cannot be read, and changes nothing. If sled might not find every block, a new sled is
/// built from the blocks first, and the last value is true.
pub(crate) fn open(dir: &Path, access: Access, journal: &JournalSummary) -> Result<(Tables, RunList, bool)> {
    let current = exchange::current(dir)?;
    let (found, chosen, is_proven) = examine(&current, journal)?;
    // sled writes when it is opened: without space for that, it would leave an incomplete file.
    DiskSpace::new(&current).0.check()?;
    exchange::finish_or_undo(dir)?;
    let mut list = chosen.list;
    // A new run must not get the number of an unlisted run that a crash has left.
    let (next_run, serial) = found.next_numbers();
    list.next_id = list.next_id.max(next_run);
    let mut was_rebuilt = !is_proven;
    let opened = if is_proven {
        drop(found);
        prepare_files(dir, access, &list).and_then(|()| open_checked(dir, access, &list))
    } else {
        open_rebuilt(dir, access, found, &list)
    };
    let tables = match opened {
        // The files were whole, but sled did not find every block. Scan again and rebuild.
        Err(error) if error.kind() == ErrorKind::Corrupt && is_proven => {
            let found = Found::scan(dir, &journal.store_id)?;
            list = found.choose(journal)?.list;
            list.next_id = list.next_id.max(next_run);
            was_rebuilt = true;
            open_rebuilt(dir, access, found, &list)?
        }
        opened => opened?,
    };
    list.serial = serial;
    Ok((tables, list, was_rebuilt))
}

/// Opens the files without sled, read-only. Writes nothing and needs only read permission. The last value is true if
/// [`open`] would build a new sled.
pub(crate) fn open_read_only(dir: &Path, journal: &JournalSummary) -> Result<(Tables, RunList, bool)> {
    let (found, Chosen { list, .. }, is_proven) = examine(&exchange::current(dir)?, journal)?;
    let tables = Tables::raw(dir, &journal.store_id, Blobs::none(dir), found.into_blocks(&list));
    Ok((tables, list, !is_proven))
}

/// Reads the files without sled, and chooses the list. The last value is true if sled is certain to find everything.
fn examine(dir: &Path, journal: &JournalSummary) -> Result<(Found, Chosen, bool)> {
    let found = Found::scan(dir, &journal.store_id)?;
    let chosen = found.choose(journal)?;
    let is_proven = found.is_proven(&chosen)?;
    Ok((found, chosen, is_proven))
}

/// Builds a new sled from the blocks, and opens it.
fn open_rebuilt(dir: &Path, access: Access, found: Found, list: &RunList) -> Result<Tables> {
    rebuild::rebuild(dir, access, &found, list)?;
    drop(found);
    open_checked(dir, access, list)
}

/// Opens sled, and checks that it finds the list and its blocks.
fn open_checked(dir: &Path, access: Access, list: &RunList) -> Result<Tables> {
    let tables = Tables::open(dir, access, &list.store_id)?;
    tables.check(list)?;
    Ok(tables)
}

/// Prepares whole files for an open of sled.
fn prepare_files(dir: &Path, access: Access, list: &RunList) -> Result<()> {
    snapshots::rename_whole_and_remove_torn(dir)?;
    // Set the flag before sled creates its files, so that they inherit it.
    if access.sync_flag && files::set_sync_flag(dir) { Ok(()) } else { open_on_copy(dir, access, list) }
}

/// Opens sled on a copy, which then replaces the original: a power cut during an open could damage the original. Does
/// nothing without space for the copy.
fn open_on_copy(dir: &Path, access: Access, list: &RunList) -> Result<()> {
    let db = dir.join("db");
    let len = db.metadata().map_err(|cause| Error::io("look at", &db, &cause))?.len();
    if !rebuild::has_space(dir, len)? {
        return Ok(());
    }
    exchange::replace(dir, |new| {
        exchange::copy(dir, new)?;
        open_checked(new, access, list)?.close()
    })
}
