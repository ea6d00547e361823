//! The server: one thread waits for connections, and each connection has its own thread.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::live::frame::{self, Greeting, Kind, Timed};
use crate::live::socket_dir::{SocketDir, check_peer};
use crate::sync::worker::Worker;
use crate::types::clock::{deadline, monotonic};
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};

/// The largest number of connections. Further clients are refused.
pub(crate) const CONNECTIONS: usize = 16;
/// The longest time for a client to send its request.
const TO_ASK: Duration = Duration::from_secs(10);
/// The longest time for a client to read a reply.
const TO_READ: Duration = Duration::from_secs(30);
/// The longest time for a client to read a reply after the end of the server. A close waits for this.
const TO_READ_LAST: Duration = Duration::from_millis(250);
/// The rest after a step of a long answer, in lengths of the step. Callers of the engine have the processor meanwhile.
const REST: u32 = 2;
/// The pause of the server when the system has no descriptor for a client.
const PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Answers one request. Called on the thread of its connection, with no lock held.
pub(crate) type Answer = dyn Fn(&[u8], &Replies<'_>) -> Result<()> + Send + Sync;

/// The destination of the replies to one request.
#[derive(Debug)]
pub(crate) struct Replies<'a> {
    stream: &'a UnixStream,
    shared: &'a Shared,
}

impl Replies<'_> {
    /// Sends one of several replies. Returns an error if the client has gone or does not read, or after the server has
    /// ended.
    pub(crate) fn send(&self, reply: &[u8]) -> Result<()> {
        self.check().and_then(|()| self.write(Kind::Message, reply))
    }

    /// Sends the only reply. Also sends it after the server has ended: the change that it reports may have ended it.
    pub(crate) fn send_only(&self, reply: &[u8]) -> Result<()> {
        self.write(Kind::Message, reply)
    }

    /// Returns an error if the client has gone, or after the server has ended.
    pub(crate) fn keep_alive(&self) -> Result<()> {
        self.check().and_then(|()| self.write(Kind::Alive, &[]))
    }

    /// Returns an error after the server has ended. Called regularly by long answers.
    pub(crate) fn check(&self) -> Result<()> {
        if is_over(&self.shared.ended) { Err(Error::closed()) } else { Ok(()) }
    }

    /// Returns a channel that is disconnected when the server ends. For answers that wait.
    pub(crate) fn ended(&self) -> &Receiver<Infallible> {
        &self.shared.ended
    }

    /// Rests after a step of a long answer that began at this time, for [`REST`] times as long as the step took. Ends
    /// early if the server ends.
    pub(crate) fn rest(&self, step_began: Instant) {
        let took = monotonic().saturating_duration_since(step_began);
        // Nothing is ever received: this is a timeout, or the end.
        let _ = self.shared.ended.recv_timeout(took * REST);
    }

    fn write(&self, kind: Kind, reply: &[u8]) -> Result<()> {
        let to = Timed::new(self.stream, deadline(TO_READ));
        let written = frame::write(&mut to.or_end(&self.shared.woken, TO_READ_LAST), kind, reply);
        written.map_err(|cause| Error::io("answer a client of", Path::new(super::socket_dir::NAME), &cause))
    }
}

/// A server. Its drop ends it.
#[derive(Debug)]
pub(crate) struct Server {
    dir: SocketDir,
    shared: Arc<Shared>,
    /// Wakes the threads that wait for clients.
    waker: UnixStream,
    listener: Mutex<Worker>,
    pid: u32,
}

struct Shared {
    path: PathBuf,
    answer: Box<Answer>,
    /// Becomes readable at the end, which wakes the threads that wait for clients.
    woken: UnixStream,
    /// `None` after the end.
    alive: Mutex<Option<Sender<Infallible>>>,
    /// Disconnected at the end.
    ended: Receiver<Infallible>,
    connections: Mutex<Vec<Connection>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Connection {
    #[cfg_attr(not(feature = "test-util"), expect(dead_code, reason = "for tests"))]
    stream: Arc<UnixStream>,
    done: Arc<AtomicBool>,
    /// Joined on drop.
    _worker: Worker,
}

impl Server {
    /// Serves the store in this directory. This process must have it locked.
    pub(crate) fn start(store: &Path, answer: Box<Answer>) -> Result<Self> {
        let dir = SocketDir::new(store)?;
        let path = dir.path();
        let failed = |cause: io::Error| Error::io("serve", &path, &cause);
        let listener = dir.bind()?;
        let started = || {
            listener.set_nonblocking(true).map_err(failed)?;
            let (waker, woken) = UnixStream::pair().map_err(failed)?;
            let (alive, ended) = crossbeam_channel::bounded(0);
            let (path, alive, connections) = (path.clone(), Mutex::new(Some(alive)), Mutex::default());
            let shared = Arc::new(Shared { path, answer, woken, alive, ended, connections });
            let accepting = Arc::clone(&shared);
            let worker = Worker::spawn("oncekey-socket", move || accept(&accepting, &listener), |_| ())?;
            Ok((shared, waker, Mutex::new(worker)))
        };
        match started() {
            Ok((shared, waker, listener)) => Ok(Self { dir, shared, waker, listener, pid: std::process::id() }),
            Err(error) => {
                dir.remove();
                Err(error)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Refuses new clients, and ends the connections after their present step. Called while the store is locked, so
    /// that the socket removed here is this server's.
    pub(crate) fn stop(&self) {
        if std::process::id() == self.pid && !is_over(&self.shared.ended) {
            self.dir.remove();
            self.end();
        }
    }

    /// Stops as [`stop`](Self::stop) does, but closes all connections and leaves the socket, as the death of the
    /// process would.
    #[cfg(feature = "test-util")]
    pub(crate) fn hang_up(&self) {
        if std::process::id() == self.pid {
            let connections = self.shared.connections.lock();
            // Close the connections first: after the end, an answer would end as if it were complete.
            for connection in connections.iter() {
                let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            }
            self.end();
        }
    }

    fn end(&self) {
        self.shared.alive.lock().take();
        let _ = self.waker.shutdown(std::net::Shutdown::Both);
    }

    /// Waits until every answer has ended. Called after a stop.
    pub(crate) fn join(&self) {
        if std::process::id() != self.pid {
            return;
        }
        self.listener.lock().join();
        // Connections are added under this lock, and none after the end.
        let connections = std::mem::take(&mut *self.shared.connections.lock());
        drop(connections);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// The main function of the thread that waits for connections. The thread sleeps while no client connects.
fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    let woken = &shared.woken;
    let waits = |on: &mut [PollFd<'_>], timeout: Option<&Timespec>| {
        // An interruption by a signal is not the end.
        let _ = poll(on, timeout);
    };
    while !is_over(&shared.ended) {
        let (client, end) = (PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN));
        waits(&mut [client, end], None);
        if is_over(&shared.ended) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => shared.take(stream),
            // The client has gone, or a signal interrupted the call.
            Err(cause) if is_harmless(cause.kind()) => {}
            // The system has no descriptor for the client, which stays in the queue.
            Err(_) => waits(&mut [PollFd::new(woken, PollFlags::IN)], Some(&PAUSE)),
        }
    }
}

fn is_over(ended: &Receiver<Infallible>) -> bool {
    matches!(ended.try_recv(), Err(TryRecvError::Disconnected))
}

fn is_harmless(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

impl Shared {
    fn take(self: &Arc<Self>, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut connections = self.connections.lock();
        if is_over(&self.ended) {
            return;
        }
        connections.retain(|connection| !connection.done.load(Ordering::Acquire));
        let refused = check_peer(&stream).err().or_else(|| {
            let busy = || format!("{} has {CONNECTIONS} clients, try again later", self.path.display());
            (connections.len() >= CONNECTIONS).then(|| Error::new(ErrorKind::Busy, busy()))
        });
        if let Some(error) = refused {
            drop(connections);
            refuse(&stream, &error);
            return;
        }
        let (stream, done) = (Arc::new(stream), Arc::new(AtomicBool::new(false)));
        let body = {
            let (shared, stream, done) = (Arc::clone(self), Arc::clone(&stream), Arc::clone(&done));
            move || {
                let ends = Ends { stream: &stream, done: &done };
                shared.serve(&stream);
                drop(ends);
            }
        };
        // Without a thread, the drop closes the connection.
        if let Ok(worker) = Worker::spawn("oncekey-client", body, |_| ()) {
            connections.push(Connection { stream, done, _worker: worker });
        }
    }

    /// Reads a request and answers it. An error of the client's connection ends the connection.
    fn serve(&self, stream: &UnixStream) {
        let until = deadline(TO_ASK);
        let asked = || -> io::Result<(Greeting, Vec<u8>)> {
            let mut stream = Timed::new(stream, until).or_end(&self.woken, Duration::ZERO);
            Greeting::own().write(&mut stream)?;
            let client = Greeting::read(&mut stream)?;
            let request = if client.is_same() { frame::read(&mut stream)?.1 } else { Vec::new() };
            Ok((client, request))
        };
        let Ok((client, request)) = asked() else { return };
        let replies = Replies { stream, shared: self };
        let answered = if client.is_same() { (self.answer)(&request, &replies) } else { Err(other_version(&client)) };
        // The client has gone, so there is no recipient for this error.
        let _ = match answered {
            Ok(()) => replies.write(Kind::Last, &[]),
            Err(error) => replies.write(Kind::Failed, &failure(&error)),
        };
    }
}

fn other_version(client: &Greeting) -> Error {
    let message = format!("the process that has the store open is {}, and the client is {client}", Greeting::own());
    Error::new(ErrorKind::UnsupportedFormat, message)
}

/// Closes the connection on drop, also after a panic of the thread.
struct Ends<'a> {
    stream: &'a UnixStream,
    done: &'a AtomicBool,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.done.store(true, Ordering::Release);
    }
}

/// Sends the reason to a client that is refused. The message fits into the buffer of the socket, so this does not wait.
fn refuse(stream: &UnixStream, error: &Error) {
    let write = || -> io::Result<()> {
        let mut to = stream;
        Greeting::own().write(&mut to)?;
        frame::write(&mut to, Kind::Failed, &failure(error))
    };
    let _ = write();
}

/// Encodes an error.
fn failure(error: &Error) -> Vec<u8> {
    let mut bytes = Vec::new();
    let sent = (error.kind(), error.to_string());
    // This cannot fail. An empty message would still tell the client that there was an error.
    let _ = codec::encode_plain(&mut bytes, "error", &sent, u64::from(frame::LONGEST));
    bytes
}
