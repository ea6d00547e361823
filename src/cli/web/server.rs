//! Connections and their limits. Each connection has its own thread, and one request.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Deadline;
use super::reply::{Reply, Status};
use super::request::{self, Method, Request, Unread};

/// The largest number of connections. A further one takes the place of the oldest that has not sent its request yet, or
/// that does not read its reply. Thus idle clients do not keep others out.
const CONNECTIONS: usize = 64;
/// The longest time for a client to send its request.
const TO_ASK: Duration = Duration::from_secs(10);
/// The longest time for a client to read its reply.
const TO_READ: Duration = Duration::from_secs(30);
/// The longest time for which a client may continue to send after the reply. A client that is cut off while it sends
/// may lose the reply.
const TO_HEAR: Duration = Duration::from_secs(1);
/// The number of bytes that a client may send after the reply.
const TO_IGNORE: u64 = 1 << 20;
/// The pause of the server when the system has no descriptor for a client.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers a request, or refuses with this status a request that could not be read.
pub(super) type Answer<'a> = dyn Fn(Result<&Request, Status>) -> Reply + Sync + 'a;

/// A client, up to a deadline.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Deadline,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        self.until.left().map(Some).ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Connections {
    /// In the order of their arrival.
    all: Mutex<Vec<Connection>>,
    /// Notified when a connection ends, or starts to wait for its client.
    changed: Condvar,
}

struct Connection {
    stream: Arc<TcpStream>,
    /// True while this end waits for the client.
    is_waiting: bool,
}

/// A slot among the connections. Drop frees it.
struct Slot<'a> {
    connections: &'a Connections,
    stream: Arc<TcpStream>,
}

impl Connections {
    /// Waits until there is a slot. Makes one free if all are taken.
    fn slot(&self, stream: TcpStream) -> Slot<'_> {
        let mut all = self.all.lock();
        while all.len() >= CONNECTIONS {
            close_oldest(&mut all);
            self.changed.wait(&mut all);
        }
        let stream = Arc::new(stream);
        all.push(Connection { stream: Arc::clone(&stream), is_waiting: true });
        Slot { connections: self, stream }
    }

    /// Makes a connection end, and waits until one changes, but not longer than a pause.
    fn pause(&self) {
        let mut all = self.all.lock();
        close_oldest(&mut all);
        self.changed.wait_for(&mut all, PAUSE);
    }
}

/// Closes the oldest connection that waits for its client. Its thread then ends.
fn close_oldest(all: &mut [Connection]) {
    if let Some(oldest) = all.iter_mut().find(|connection| connection.is_waiting) {
        oldest.is_waiting = false;
        // Ignore the result: the client may have gone.
        let _ = oldest.stream.shutdown(Shutdown::Both);
    }
}

impl Slot<'_> {
    fn set_waiting(&self, is_waiting: bool) {
        let mut all = self.connections.all.lock();
        if let Some(own) = all.iter_mut().find(|other| Arc::ptr_eq(&other.stream, &self.stream)) {
            own.is_waiting = is_waiting;
        }
        // A server that is full can now close this connection.
        self.connections.changed.notify_one();
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.connections.all.lock().retain(|other| !Arc::ptr_eq(&other.stream, &self.stream));
        self.connections.changed.notify_one();
    }
}

/// Serves until the process ends.
pub(super) fn run(listener: &TcpListener, answer: &Answer<'_>) {
    let connections = Connections::default();
    thread::scope(|scope| {
        for accepted in listener.incoming() {
            let Ok(stream) = accepted else {
                // There is no descriptor or no memory for the client.
                connections.pause();
                continue;
            };
            let slot = connections.slot(stream);
            let serve = move || serve(&slot, answer);
            // If no thread can be started, the closure is dropped, and the connection with it.
            let _ = thread::Builder::new().name("oncekey-web".to_owned()).spawn_scoped(scope, serve);
        }
    });
}

fn serve(slot: &Slot<'_>, answer: &Answer<'_>) {
    let stream = &*slot.stream;
    let request = match request::read(&mut Timed { stream, until: Deadline::after(TO_ASK) }) {
        Ok(request) => Ok(request),
        Err(Unread::Bad(status)) => Err(status),
        Err(Unread::Gone) => return,
    };
    slot.set_waiting(false);
    let reply = answer(request.as_ref().map_err(|status| *status));
    slot.set_waiting(true);
    let only_head = request.as_ref().is_ok_and(|request| request.method == Method::Head);
    let sent = reply.write(&mut Timed { stream, until: Deadline::after(TO_READ) }, only_head);
    if sent.is_err() || stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    // A connection that is closed with unread bytes loses the reply. Ignore the result: the reply is sent.
    let rest = Timed { stream, until: Deadline::after(TO_HEAR) };
    let _ = io::copy(&mut rest.take(TO_IGNORE), &mut io::sink());
}
