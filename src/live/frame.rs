//! The bytes on the socket: a greeting with the version, then frames of a kind, a length and a payload. These frames
//! are messages, not the journal's frames.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::types::clock::{deadline, monotonic};

/// The version of the protocol. Both sides must have the same. Each change of a message needs another version: a test
/// compares the bytes of all messages.
pub(crate) const VERSION: u32 = 3;
/// The version of this build, for messages to people.
pub(crate) const BUILD: &str = env!("CARGO_PKG_VERSION");

/// The first bytes on a connection, from both sides.
const MAGIC: [u8; 8] = *b"oncekey\0";
/// The first version whose greeting names the build.
const NAMED: u32 = 2;
/// The longest payload in bytes: a record with the largest outcome and checkpoint, as in a frame of the journal, and
/// its key.
pub(crate) const LONGEST: u32 = 33 << 20;
/// The bytes that are allocated for a payload before it has arrived.
const RESERVED: usize = 64 << 10;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request, or a reply that is not the last.
    Message,
    /// No reply: the server is still working, and checks whether the client is there.
    Alive,
    /// The last reply.
    Last,
    /// An error instead of the last reply.
    Failed,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Message, Self::Alive, Self::Last, Self::Failed];

    fn code(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Alive => 2,
            Self::Last => 3,
            Self::Failed => 4,
        }
    }
}

/// The version of one side. Its form is the same in all versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) version: u32,
    /// The version of the build. Empty if it is not known.
    pub(crate) build: String,
}

/// A stream that does not block, with a deadline for its reads and writes. `None` means no deadline.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    stream: &'a UnixStream,
    until: Option<Instant>,
    /// A stream that becomes readable when the server ends, and the time for reads and writes from then on.
    end: Option<(&'a UnixStream, Duration)>,
}

impl<'a> Timed<'a> {
    pub(crate) fn new(stream: &'a UnixStream, until: Option<Instant>) -> Self {
        Self { stream, until, end: None }
    }

    /// Shortens the time to `left` when `end` can be read.
    pub(crate) fn or_end(self, end: &'a UnixStream, left: Duration) -> Self {
        Self { end: Some((end, left)), ..self }
    }

    /// Waits until the stream may be read or written.
    fn wait(&mut self, event: PollFlags) -> io::Result<()> {
        let left = match self.until {
            None => None,
            Some(until) => {
                let left = until.saturating_duration_since(monotonic());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?)
            }
        };
        let stream = PollFd::new(self.stream, event);
        let polled = match self.end {
            None => poll(&mut [stream], left.as_ref()),
            Some((end, grace)) => {
                let mut both = [stream, PollFd::new(end, PollFlags::IN)];
                let polled = poll(&mut both, left.as_ref());
                let [_, ended] = &both;
                if polled.is_ok() && !ended.revents().is_empty() {
                    let last = deadline(grace);
                    self.until = if self.until.is_some_and(|until| Some(until) < last) { self.until } else { last };
                    self.end = None;
                }
                polled
            }
        };
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Calls `step` until it does not have to wait.
    fn without_block<R>(
        &mut self,
        event: PollFlags,
        mut step: impl FnMut(&UnixStream) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match step(self.stream) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.wait(event)?,
                done => return done,
            }
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.without_block(PollFlags::IN, |mut stream| stream.read(bytes))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.without_block(PollFlags::OUT, |mut stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Greeting {
    pub(crate) fn own() -> Self {
        Self { version: VERSION, build: BUILD.to_owned() }
    }

    pub(crate) fn is_same(&self) -> bool {
        self.version == VERSION
    }

    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        let build = self.build.as_bytes().get(..usize::from(u8::MAX)).unwrap_or(self.build.as_bytes());
        bytes.push(u8::try_from(build.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(build);
        to.write_all(&bytes)
    }

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let (mut magic, mut version) = ([0; 8], [0; 4]);
        read_exact(from, &mut magic)?;
        if magic != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the process that answers serves no store"));
        }
        read_exact(from, &mut version)?;
        let version = u32::from_le_bytes(version);
        let mut build = Vec::new();
        if version >= NAMED {
            let mut len = [0; 1];
            read_exact(from, &mut len)?;
            build = vec![0; usize::from(len[0])];
            read_exact(from, &mut build)?;
        }
        // The other side may be any program, and people see this text.
        Ok(Self { version, build: String::from_utf8_lossy(&build).escape_debug().to_string() })
    }
}

/// For people: the build and the version of the protocol.
impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.build.is_empty() { "an unknown version" } else { &self.build };
        write!(f, "oncekey {build} with version {} of the socket's protocol", self.version)
    }
}

pub(crate) fn write(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len()).ok().filter(|len| *len <= LONGEST);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))?;
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind.code());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)
}

/// Fills the buffer. The error says more than that of `read_exact`.
fn read_exact(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<()> {
    from.read_exact(buffer).map_err(|cause| if cause.kind() == io::ErrorKind::UnexpectedEof { cut() } else { cause })
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended early")
}

/// Reads a frame. Allocates memory only for bytes that have arrived.
pub(crate) fn read(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let malformed = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let (mut code, mut len) = ([0; 1], [0; 4]);
    read_exact(from, &mut code)?;
    let kind = Kind::ALL.into_iter().find(|kind| [kind.code()] == code);
    let kind = kind.ok_or_else(|| malformed("the message is of an unknown kind"))?;
    read_exact(from, &mut len)?;
    let len = u32::from_le_bytes(len);
    if len > LONGEST {
        return Err(malformed("the message is too long"));
    }
    let wanted = usize::try_from(len).unwrap_or(usize::MAX);
    let mut payload = Vec::with_capacity(wanted.min(RESERVED));
    from.take(u64::from(len)).read_to_end(&mut payload)?;
    if payload.len() < wanted { Err(cut()) } else { Ok((kind, payload)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        let greeting = Greeting { version: 3, build: "1.2.3".to_owned() };
        greeting.write(&mut bytes).unwrap();
        write(&mut bytes, Kind::Message, b"abc").unwrap();
        write(&mut bytes, Kind::Last, b"").unwrap();
        assert_eq!(bytes, b"oncekey\0\x03\0\0\0\x051.2.3\x01\x03\0\0\0abc\x03\0\0\0\0");
        let mut from = bytes.as_slice();
        assert_eq!(Greeting::read(&mut from).unwrap(), greeting);
        assert_eq!(read(&mut from).unwrap(), (Kind::Message, b"abc".to_vec()));
        assert_eq!(read(&mut from).unwrap(), (Kind::Last, Vec::new()));
    }

    /// The greeting stays readable in all versions, so that both sides can say what the other is.
    #[test]
    fn greetings_of_other_versions_are_read() {
        let read = |mut bytes: &[u8]| Greeting::read(&mut bytes).unwrap().to_string();
        let of = |build: &str, version| format!("oncekey {build} with version {version} of the socket's protocol");
        assert_eq!(read(b"oncekey\0\x01\0\0\0"), of("an unknown version", 1));
        assert_eq!(read(b"oncekey\0\x07\0\0\0\x040\x1b.9and more"), of("0\\u{1b}.9", 7));
        let long = Greeting { version: VERSION, build: "x".repeat(300) };
        let mut bytes = Vec::new();
        long.write(&mut bytes).unwrap();
        assert_eq!(Greeting::read(&mut bytes.as_slice()).unwrap().build.len(), 255);
    }

    #[test]
    fn a_cut_or_malformed_frame_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Failed, b"abc").unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(read(&mut &bytes[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        let kinds = [b"\x00\0\0\0\0".as_slice(), b"\x05\0\0\0\0", b"\x01\xff\xff\xff\xff"];
        for bytes in kinds {
            assert_eq!(read(&mut &*bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(Greeting::read(&mut b"HTTP/1.1 200".as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let long = vec![0; usize::try_from(LONGEST).unwrap() + 1];
        assert_eq!(write(&mut Vec::new(), Kind::Message, &long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
