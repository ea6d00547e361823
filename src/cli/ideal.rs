//! The simplest durable log, as a yardstick: a hash map and an appended file, with one `fdatasync` for each group.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use parking_lot::{Condvar, Mutex};

/// The log. When `put` returns, its entry is in the file and synced.
pub(super) struct IdealLog {
    state: Mutex<Log>,
    work: Condvar,
    synced: Condvar,
}

#[derive(Default)]
struct Log {
    map: HashMap<Vec<u8>, Vec<u8>>,
    buffer: Vec<u8>,
    group: u64,
    durable: u64,
    ended: bool,
    failed: Option<io::ErrorKind>,
}

impl IdealLog {
    pub(super) fn new() -> Self {
        let state = Mutex::new(Log { group: 1, ..Log::default() });
        Self { state, work: Condvar::new(), synced: Condvar::new() }
    }

    /// Runs the writer until `end`. Call it on a thread of its own.
    pub(super) fn write(&self, path: &Path) {
        let written = File::create(path).and_then(|file| self.write_groups(file));
        if let Err(cause) = written {
            self.state.lock().failed = Some(cause.kind());
            self.synced.notify_all();
        }
    }

    fn write_groups(&self, mut file: File) -> io::Result<()> {
        loop {
            let mut state = self.state.lock();
            while state.buffer.is_empty() {
                if state.ended {
                    return Ok(());
                }
                self.work.wait(&mut state);
            }
            let (bytes, group) = (std::mem::take(&mut state.buffer), state.group);
            state.group += 1;
            drop(state);
            file.write_all(&bytes)?;
            file.sync_data()?;
            self.state.lock().durable = group;
            self.synced.notify_all();
        }
    }

    pub(super) fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.map.insert(key.to_vec(), value.to_vec());
        state.buffer.extend_from_slice(&((key.len() + value.len()) as u64).to_le_bytes());
        state.buffer.extend_from_slice(key);
        state.buffer.extend_from_slice(value);
        let mine = state.group;
        self.work.notify_one();
        while state.durable < mine {
            if let Some(kind) = state.failed {
                return Err(kind.into());
            }
            self.synced.wait(&mut state);
        }
        Ok(())
    }

    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.work.notify_one();
    }
}
