//! Moments at which no call runs. A commit reads the time and becomes visible a moment later. Only a test could let
//! hours pass between these moments.

use std::fmt;
use std::path::PathBuf;
use std::sync::RwLock;

/// Held by every call together, and alone while time moves.
#[derive(Debug, Default)]
pub(crate) struct Still {
    here: RwLock<()>,
    room: Option<Room>,
}

/// Files whose locks are held. The end of the process frees them.
pub(crate) struct Held<'a>(#[allow(dead_code, reason = "for its drop")] Box<dyn fmt::Debug + 'a>);

impl Still {
    /// For the calls of several processes that have this directory.
    #[cfg(feature = "postgres")]
    pub(crate) fn shared(dir: PathBuf) -> Self {
        Self { room: Some(Room { dir }), ..Self::default() }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.room.is_some()
    }

    pub(crate) fn calls(&self) -> Held<'_> {
        match &self.room {
            None => Held(Box::new(self.here.read().unwrap())),
            Some(room) => Held(room.enter(false)),
        }
    }

    pub(crate) fn moves(&self) -> Held<'_> {
        match &self.room {
            None => Held(Box::new(self.here.write().unwrap())),
            Some(room) => Held(room.enter(true)),
        }
    }
}

/// A lock between processes.
#[derive(Debug)]
struct Room {
    dir: PathBuf,
}

impl Room {
    fn enter(&self, alone: bool) -> Box<dyn fmt::Debug> {
        use rustix::fs::{FlockOperation, flock};
        let open = |name: &str| {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).truncate(false).write(true).open(self.dir.join(name)).unwrap()
        };
        // A process that waits to be alone holds the gate, so that no other process enters meanwhile.
        let (gate, room) = (open("gate"), open("room"));
        flock(&gate, FlockOperation::LockExclusive).unwrap();
        flock(&room, if alone { FlockOperation::LockExclusive } else { FlockOperation::LockShared }).unwrap();
        drop(gate);
        Box::new(room)
    }
}
