//! The ideal log: a hash map, a file, and one `fdatasync` for each group.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// The way in which the file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ideal {
    /// The file grows, so each sync also writes the file system's journal.
    Appended,
    /// The file was filled before, and is overwritten from its start, so a sync changes no metadata. This is the
    /// physical limit.
    Overwritten,
    /// The file grows without syncs, and `put` does not wait.
    Unsynced,
}

/// The size of a file that is overwritten, in bytes. At its end the writer goes back to the start.
const FULL: usize = 64 << 20;

pub(crate) struct IdealLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    kind: Ideal,
    state: Mutex<Log>,
    work: Condvar,
    /// One for each parity of group numbers, so that a sync wakes only its own waiters. At most two groups have
    /// waiters.
    synced: [Condvar; 2],
}

#[derive(Default)]
struct Log {
    map: HashMap<Vec<u8>, Vec<u8>>,
    buffer: Vec<u8>,
    group: u64,
    durable: u64,
    ended: bool,
}

impl IdealLog {
    pub(crate) fn start(path: &Path, kind: Ideal) -> Self {
        let file = File::create(path).unwrap();
        if kind == Ideal::Overwritten {
            file.write_all_at(&vec![0; FULL], 0).unwrap();
            file.sync_all().unwrap();
        }
        let state = Mutex::new(Log { group: 1, ..Log::default() });
        let shared = Arc::new(Shared { kind, state, work: Condvar::new(), synced: Default::default() });
        let its = Arc::clone(&shared);
        let writer = Some(std::thread::spawn(move || its.write(&file)));
        Self { shared, writer }
    }

    /// Returns true if the key was new. Returns when key and value would survive a power cut.
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> bool {
        let Shared { kind, state, work, synced } = &*self.shared;
        let mut state = state.lock().unwrap();
        let is_new = state.map.insert(key.to_vec(), value.to_vec()).is_none();
        state.buffer.extend_from_slice(&u32::try_from(key.len() + value.len()).unwrap().to_le_bytes());
        state.buffer.extend_from_slice(key);
        state.buffer.extend_from_slice(value);
        let mine = state.group;
        work.notify_one();
        while *kind != Ideal::Unsynced && state.durable < mine {
            state = parity(synced, mine).wait(state).unwrap();
        }
        is_new
    }

    /// Removes keys from the map without writing to the file.
    pub(crate) fn forget(&self, keys: &[[u8; 16]]) {
        let mut state = self.shared.state.lock().unwrap();
        for key in keys {
            state.map.remove(key.as_slice());
        }
    }
}

fn parity(synced: &[Condvar; 2], group: u64) -> &Condvar {
    &synced[usize::from(group % 2 == 1)]
}

impl Shared {
    fn write(&self, file: &File) {
        let mut at = 0;
        loop {
            let (bytes, group) = {
                let mut state = self.state.lock().unwrap();
                while state.buffer.is_empty() {
                    if state.ended {
                        return;
                    }
                    state = self.work.wait(state).unwrap();
                }
                state.group += 1;
                (std::mem::take(&mut state.buffer), state.group - 1)
            };
            if self.kind == Ideal::Overwritten && at + bytes.len() > FULL {
                at = 0;
            }
            file.write_all_at(&bytes, at as u64).unwrap();
            at += bytes.len();
            if self.kind != Ideal::Unsynced {
                file.sync_data().unwrap();
            }
            self.state.lock().unwrap().durable = group;
            parity(&self.synced, group).notify_all();
        }
    }
}

impl Drop for IdealLog {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().ended = true;
        self.shared.work.notify_one();
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }
}
