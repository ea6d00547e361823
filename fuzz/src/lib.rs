//! The bodies of the fuzz targets. `tests/corpus.rs` runs them on the whole corpus.

#[path = "../../tests/histories/calls.rs"]
#[allow(dead_code, reason = "the histories use the rest")]
mod calls;
mod engine;
mod header;
mod journal;
#[path = "../../tests/histories/model.rs"]
#[allow(dead_code, reason = "the histories use the rest")]
mod model;
mod record;
mod transaction;

pub use engine::engine_ops;
pub use header::http_header;
pub use journal::journal_recover;
pub use record::{record_decode, record_roundtrip};
pub use transaction::transaction_ops;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks out other users of stores, because an injected sync error affects all stores of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the directory for stores. It is in memory, because no target tests the disk.
fn directory() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}
