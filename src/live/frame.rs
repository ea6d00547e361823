//! The bytes on the socket: a greeting with the version, then frames of a kind, a length and a payload. These frames
//! are messages, not the journal's frames.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::types::clock::monotonic;

/// The version of the protocol. Both sides must have the same.
pub(crate) const VERSION: u32 = 1;

/// The server's first bytes on a connection.
const MAGIC: [u8; 8] = *b"oncekey\0";
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

/// The version of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting(pub(crate) u32);

/// A stream with a deadline for its reads and writes. `None` means no deadline.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    stream: &'a UnixStream,
    until: Option<Instant>,
}

impl<'a> Timed<'a> {
    pub(crate) fn new(stream: &'a UnixStream, until: Option<Instant>) -> Self {
        Self { stream, until }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.until else { return Ok(None) };
        let left = until.saturating_duration_since(monotonic());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// The system reports a passed deadline as "would block".
fn timed_out<R>(done: io::Result<R>) -> io::Result<R> {
    done.map_err(|cause| if cause.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { cause })
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let mut stream = self.stream;
        timed_out(stream.read(bytes))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let mut stream = self.stream;
        timed_out(stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Greeting {
    pub(crate) fn write(self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.0.to_le_bytes());
        to.write_all(&bytes)
    }

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let (mut magic, mut version) = ([0; 8], [0; 4]);
        from.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what answers is no store"));
        }
        from.read_exact(&mut version)?;
        Ok(Self(u32::from_le_bytes(version)))
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

/// Reads a frame. Allocates memory only for bytes that have arrived.
pub(crate) fn read(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let malformed = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let (mut code, mut len) = ([0; 1], [0; 4]);
    from.read_exact(&mut code)?;
    let kind = Kind::ALL.into_iter().find(|kind| [kind.code()] == code);
    let kind = kind.ok_or_else(|| malformed("the message is of an unknown kind"))?;
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > LONGEST {
        return Err(malformed("the message is too long"));
    }
    let wanted = usize::try_from(len).unwrap_or(usize::MAX);
    let mut payload = Vec::with_capacity(wanted.min(RESERVED));
    from.take(u64::from(len)).read_to_end(&mut payload)?;
    if payload.len() < wanted { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((kind, payload)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        Greeting(VERSION).write(&mut bytes).unwrap();
        write(&mut bytes, Kind::Message, b"abc").unwrap();
        write(&mut bytes, Kind::Last, b"").unwrap();
        assert_eq!(bytes, b"oncekey\0\x01\0\0\0\x01\x03\0\0\0abc\x03\0\0\0\0");
        let mut from = bytes.as_slice();
        assert_eq!(Greeting::read(&mut from).unwrap(), Greeting(1));
        assert_eq!(read(&mut from).unwrap(), (Kind::Message, b"abc".to_vec()));
        assert_eq!(read(&mut from).unwrap(), (Kind::Last, Vec::new()));
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
