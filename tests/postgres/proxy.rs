//! A proxy in front of the server. It loses answers, hangs, or ends connections.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::shared;

#[derive(Default)]
struct State {
    /// Counts down with each answer of the server. The one at which it becomes zero is lost, with its connection.
    until_lost: AtomicI64,
    lost: AtomicU64,
    /// The place of a commit at which the connection is cut, as a number.
    cut_at: AtomicU8,
    cuts: AtomicU64,
    /// True if nothing is forwarded.
    hangs: AtomicBool,
    /// One notification of this many arrives. 0 means that all arrive.
    one_arrives_of: AtomicU64,
    notifications: AtomicU64,
    /// True if a client does not learn that the server has ended its session.
    is_silent: AtomicBool,
    /// The connections to the server in which a keeper listens.
    keepers: Mutex<Vec<UnixStream>>,
    /// True if there are no new connections.
    refuses: AtomicBool,
    streams: Mutex<Vec<UnixStream>>,
}

/// A place at which a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutAt {
    /// The commit does not arrive.
    BeforeCommit = 1,
    /// The commit arrives, and the connection ends at once.
    Commit,
    /// The server has committed, and its answer does not arrive.
    Answer,
}

pub(crate) struct Proxy {
    dir: PathBuf,
    state: Arc<State>,
}

impl Proxy {
    pub(crate) fn start() -> Self {
        Self::before(&shared().dir)
    }

    /// Starts a proxy in front of the server with its socket in this directory.
    pub(crate) fn before(server: &Path) -> Self {
        let server = server.join(".s.PGSQL.5432");
        let dir = tempfile::Builder::new().prefix("oncekey-proxy-").tempdir().unwrap().keep();
        let listener = UnixListener::bind(dir.join(".s.PGSQL.5432")).unwrap();
        let state = Arc::new(State::default());
        let accepts = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepts.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                // The server may have crashed: the client then loses its connection too.
                let Ok(server) = UnixStream::connect(&server) else { continue };
                accepts.streams.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let state = Arc::clone(&accepts);
                std::thread::spawn(move || forward(&state, from, to, false));
                let state = Arc::clone(&accepts);
                std::thread::spawn(move || forward(&state, server, client, true));
            }
        });
        Self { dir, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("host={} user=oncekey dbname=postgres", self.dir.display())
    }

    /// Loses the answer that comes as the `number`th from now.
    pub(crate) fn lose(&self, number: i64) {
        self.state.until_lost.store(number, Ordering::SeqCst);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Cuts the connection of the next commit.
    pub(crate) fn cut_at(&self, place: CutAt) {
        self.state.cut_at.store(place as u8, Ordering::SeqCst);
    }

    /// Returns the number of commits whose connection was cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::SeqCst)
    }

    pub(crate) fn hang(&self, hangs: bool) {
        self.state.hangs.store(hangs, Ordering::SeqCst);
        if !hangs {
            self.cut();
        }
    }

    pub(crate) fn drop_notifications(&self) {
        self.lose_notifications(u64::MAX);
    }

    /// From now on, one notification of this many arrives.
    pub(crate) fn lose_notifications(&self, of: u64) {
        self.state.one_arrives_of.store(of, Ordering::SeqCst);
    }

    /// Ends the sessions of keepers at the server. Their engines do not learn it.
    pub(crate) fn end_keepers_silently(&self) {
        self.state.is_silent.store(true, Ordering::SeqCst);
        for keeper in self.state.keepers.lock().unwrap().drain(..) {
            keeper.shutdown(Shutdown::Both).unwrap();
        }
    }

    pub(crate) fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn forward(state: &State, mut from: UnixStream, mut to: UnixStream, is_answer: bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if state.hangs.load(Ordering::SeqCst) {
            // The connection stays, and its bytes never arrive.
            continue;
        }
        if is_answer && state.until_lost.fetch_sub(1, Ordering::SeqCst) == 1 {
            state.lost.fetch_add(1, Ordering::SeqCst);
            break;
        }
        // A notification comes alone, because its session waits for nothing else.
        let of = state.one_arrives_of.load(Ordering::SeqCst);
        if is_answer && bytes[0] == b'A' && of > 0 && (state.notifications.fetch_add(1, Ordering::SeqCst) + 1) % of > 0
        {
            state.lost.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        if !is_answer && bytes[..len].windows(7).any(|word| word == b"LISTEN ") {
            state.keepers.lock().unwrap().push(to.try_clone().unwrap());
        }
        let is_commit = !is_answer && bytes[..len].windows(6).any(|word| word == b"COMMIT");
        let cut_at = if is_commit { state.cut_at.swap(0, Ordering::SeqCst) } else { 0 };
        state.cuts.fetch_add(u64::from(cut_at > 0), Ordering::SeqCst);
        if cut_at == CutAt::BeforeCommit as u8 {
            break;
        }
        if cut_at == CutAt::Answer as u8 {
            state.until_lost.store(1, Ordering::SeqCst);
        }
        if to.write_all(&bytes[..len]).is_err() || cut_at == CutAt::Commit as u8 {
            break;
        }
    }
    if !state.is_silent.load(Ordering::SeqCst) {
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
