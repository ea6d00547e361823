//! The directory of a temporary engine.

/// A directory that is removed on drop. A child of `fork` has a copy of this value, and does not remove it.
#[derive(Debug)]
pub(super) struct OwnDirectory {
    directory: Option<tempfile::TempDir>,
    pid: u32,
}

impl OwnDirectory {
    pub(super) fn new(directory: tempfile::TempDir) -> Self {
        Self { directory: Some(directory), pid: std::process::id() }
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        if std::process::id() != self.pid {
            let _ = self.directory.take().map(tempfile::TempDir::keep);
        }
    }
}
