//! The changes of files below a directory, in order: the log from which crash states are made.
//!
//! A call is logged when it has returned. A crash during a call is a cut right after its entry, where none of it need
//! be on the disk. So a write that is durable when it returns has two entries: the write and its sync.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::interpose::WATCHERS;

/// The number of a file or directory in a recording. A rename does not change it. The recorded directory is 0.
pub(crate) type Node = usize;

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Write {
        node: Node,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Truncate {
        node: Node,
        len: u64,
    },
    /// A file's content and size, or a directory's entries, are durable as they were before entry `before`.
    Synced {
        node: Node,
        before: usize,
    },
    /// The write of the entry before this one is durable, with the size of the file that it needs.
    WriteSynced {
        node: Node,
    },
    /// `sync_file_range`, which makes nothing durable.
    RangePushed {
        node: Node,
    },
    Created {
        dir: Node,
        name: OsString,
        node: Node,
    },
    Removed {
        dir: Node,
        name: OsString,
    },
    Renamed {
        dir: Node,
        name: OsString,
        to: Node,
        to_name: OsString,
    },
    /// An answer, or another event that the test gives this number.
    Mark(u64),
}

/// A file or directory. If it existed at the start of the recording, it was durable then.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) is_dir: bool,
    /// The content of a file at the start.
    pub(crate) bytes: Arc<[u8]>,
    /// The entries of a directory at the start.
    pub(crate) entries: BTreeMap<OsString, Node>,
    /// The path at which it was found or created, relative to the recorded directory.
    pub(crate) path: PathBuf,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) nodes: Vec<NodeInfo>,
    pub(crate) events: Vec<Event>,
}

impl Log {
    pub(crate) fn is_journal(&self, node: Node) -> bool {
        self.nodes[node].path.extension().is_some_and(|extension| extension == "journal")
    }

    /// Returns the entries that make something durable.
    pub(crate) fn syncs(&self) -> impl Iterator<Item = usize> {
        let is_sync = |event: &Event| {
            matches!(event, Event::Synced { .. } | Event::WriteSynced { .. } | Event::RangePushed { .. })
        };
        self.events.iter().enumerate().filter(move |(_, event)| is_sync(event)).map(|(at, _)| at)
    }

    pub(crate) fn is_sled(&self, node: Node) -> bool {
        self.nodes[node].path.components().any(|part| part.as_os_str() == "sled" || part.as_os_str() == "sled.new")
    }
}

#[derive(Debug, Default)]
struct State {
    log: Log,
    /// The current path of each file and directory.
    paths: HashMap<PathBuf, Node>,
    sizes: HashMap<Node, u64>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    state: Mutex<State>,
}

/// A recording. It ends when it is finished or dropped.
#[derive(Debug)]
pub(crate) struct Recording(Arc<Shared>);

static RECORDINGS: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());

impl Recording {
    /// Starts a recording of everything below this directory. Existing content counts as durable.
    pub(crate) fn start(root: &Path) -> Self {
        let root = root.canonicalize().unwrap();
        let mut state = State::default();
        state.scan(&root, &root);
        let shared = Arc::new(Shared { root, state: Mutex::new(state) });
        recordings().push(Arc::clone(&shared));
        WATCHERS.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }

    /// Logs an answer, or another event that the test gives this number. Returns the length of the log after it.
    pub(crate) fn mark(&self, number: u64) -> usize {
        let mut state = self.0.lock();
        state.log.events.push(Event::Mark(number));
        state.log.events.len()
    }

    /// Returns the current length of the log.
    pub(crate) fn position(&self) -> usize {
        self.0.lock().log.events.len()
    }

    /// Ends the recording and returns the log.
    pub(crate) fn finish(self) -> Log {
        std::mem::take(&mut self.0.lock().log)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        recordings().retain(|shared| !Arc::ptr_eq(shared, &self.0));
        WATCHERS.fetch_sub(1, Ordering::AcqRel);
    }
}

fn recordings() -> MutexGuard<'static, Vec<Arc<Shared>>> {
    RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn scan(&mut self, root: &Path, path: &Path) -> Node {
        let is_dir = path.is_dir();
        let bytes = if is_dir { Vec::new() } else { std::fs::read(path).unwrap() };
        let node = self.add(root, path, is_dir, bytes.into());
        if is_dir {
            for entry in std::fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                let child = self.scan(root, &entry.path());
                self.log.nodes[node].entries.insert(entry.file_name(), child);
            }
        }
        node
    }

    fn add(&mut self, root: &Path, path: &Path, is_dir: bool, bytes: Arc<[u8]>) -> Node {
        let node = self.log.nodes.len();
        self.sizes.insert(node, bytes.len() as u64);
        self.paths.insert(path.to_owned(), node);
        let path = path.strip_prefix(root).unwrap().to_owned();
        self.log.nodes.push(NodeInfo { is_dir, bytes, entries: BTreeMap::new(), path });
        node
    }

    fn node(&self, path: &Path) -> Node {
        *self.paths.get(path).unwrap_or_else(|| panic!("{} came to be unseen", path.display()))
    }

    /// Returns the directory of a path, and the name in it.
    fn entry(&self, path: &Path) -> (Node, OsString) {
        (self.node(path.parent().unwrap()), path.file_name().unwrap().to_owned())
    }

    fn push(&mut self, event: Event) {
        self.log.events.push(event);
    }

    fn create(&mut self, root: &Path, path: &Path, is_dir: bool) {
        if !self.paths.contains_key(path) {
            let (dir, name) = self.entry(path);
            let node = self.add(root, path, is_dir, Arc::default());
            self.push(Event::Created { dir, name, node });
        }
    }

    fn resize(&mut self, node: Node, len: u64) {
        if self.sizes.insert(node, len) != Some(len) {
            self.push(Event::Truncate { node, len });
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let ((dir, name), (to_dir, to_name)) = (self.entry(from), self.entry(to));
        let moved: Vec<PathBuf> = self.paths.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let node = self.node(&path);
            self.paths.remove(&path);
            let below = path.strip_prefix(from).unwrap();
            self.paths.insert(if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) }, node);
        }
        self.push(Event::Renamed { dir, name, to: to_dir, to_name });
    }
}

/// Calls `f` for the recording that contains this path.
fn note<R>(path: &Path, f: impl FnOnce(&mut State, &Path) -> R) -> Option<R> {
    let shared = recordings().iter().find(|shared| path.starts_with(&shared.root)).map(Arc::clone)?;
    let mut state = shared.lock();
    Some(f(&mut state, &shared.root))
}

/// The length of the log when a call began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(usize);

pub(crate) fn began(path: &Path) -> Began {
    Began(note(path, |state, _| state.log.events.len()).unwrap_or_default())
}

pub(crate) fn written(path: &Path, offset: u64, bytes: &[u8], is_sync: bool) {
    note(path, |state, _| {
        let node = state.node(path);
        let size = state.sizes.entry(node).or_default();
        *size = (*size).max(offset + bytes.len() as u64);
        state.push(Event::Write { node, offset, bytes: bytes.into() });
        if is_sync {
            state.push(Event::WriteSynced { node });
        }
    });
}

pub(crate) fn synced(path: &Path, began: Began) {
    note(path, |state, _| {
        let node = state.node(path);
        state.push(Event::Synced { node, before: began.0 });
    });
}

pub(crate) fn range_pushed(path: &Path) {
    note(path, |state, _| {
        let node = state.node(path);
        state.push(Event::RangePushed { node });
    });
}

pub(crate) fn truncated(path: &Path, len: u64) {
    note(path, |state, _| {
        let node = state.node(path);
        state.resize(node, len);
    });
}

pub(crate) fn extended(path: &Path, len: u64) {
    note(path, |state, _| {
        let node = state.node(path);
        let len = state.sizes.get(&node).copied().unwrap_or_default().max(len);
        state.resize(node, len);
    });
}

pub(crate) fn created(path: &Path) {
    note(path, |state, root| state.create(root, path, false));
}

pub(crate) fn created_dir(path: &Path) {
    note(path, |state, root| state.create(root, path, true));
}

pub(crate) fn removed(path: &Path) {
    note(path, |state, _| {
        let (dir, name) = state.entry(path);
        state.paths.remove(path);
        state.push(Event::Removed { dir, name });
    });
}

/// Both paths must be below the recorded directory.
pub(crate) fn renamed(from: &Path, to: &Path) {
    note(from, |state, _| state.rename(from, to));
}
