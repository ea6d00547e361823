//! The size of a store, and copies of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the size on disk below a directory in MiB, without holes.
#[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
pub(crate) fn disk(path: &Path) -> f64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0.0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk(&entry.path()),
        Ok(metadata) => metadata.blocks() as f64 * 512.0 / f64::from(1 << 20),
        Err(_) => 0.0,
    });
    sizes.sum()
}

/// Returns the memory of this process in MiB.
pub(crate) fn rss() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}

/// Copies the files and directories of a store that nobody has open.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
