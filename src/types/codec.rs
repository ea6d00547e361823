//! Encodes and decodes stored values.
//!
//! A stored value consists of the codec (1 byte), the digest of its shape (8 bytes, little-endian), and the encoded
//! value:
//!
//! | codec | the value | the digest is of |
//! |---|---|---|
//! | 0xC0 | bincode 1.3, fixed-width integers, little-endian, no trailing bytes | its kinds and names: see [`walk`](self::walk) |
//! | 0xC1 | JSON text | its kinds, names and content |
//!
//! UTF-8 text cannot start with these codec bytes. So text that was stored without encoding is never mistaken for an
//! encoded value.
//!
//! Bincode stores neither names nor kinds: bytes read as another type may silently become wrong numbers. Therefore the
//! decoded value is walked like the original one, and both digests must be equal. Only `Serialize` makes digests, so a
//! type's `Deserialize` cannot influence them.
//!
//! Types that bincode cannot read back are stored as JSON. Attributes such as `flatten` and `untagged` are made for a
//! human-readable format: inside them serde treats every format as human-readable. In CBOR or `MessagePack`, the
//! compact forms of UUIDs and addresses could then not be read back.

mod walk;

use std::cell::Cell;
use std::fmt;
use std::io;

use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::fingerprint::Fingerprint;
use bincode::{DefaultOptions, Options};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use walk::{Bytes, Count, Nothing, Readable, Stop, walk};

/// The length of the header, in bytes: the codec and the digest.
const HEADER: usize = 9;
/// The initial size of a new buffer, in bytes. Most values fit.
const USUAL_LEN: usize = 512;
/// The largest buffer that a thread keeps for its next value, in bytes.
const KEPT_BUFFER: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Codec {
    Compact = 0xC0,
    Json = 0xC1,
}

impl Codec {
    fn header(self, shape: u64) -> [u8; HEADER] {
        let mut header = [self as u8; HEADER];
        if let Some(digest) = header.last_chunk_mut() {
            *digest = shape.to_le_bytes();
        }
        header
    }
}

thread_local! {
    /// A buffer for bytes that are only compared.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn options(limit: u64) -> impl Options {
    DefaultOptions::new().with_fixint_encoding().with_little_endian().with_limit(limit).reject_trailing_bytes()
}

/// Appends the form of a part that [`decode_plain`] reads, at most `limit` bytes. `what` names the part in messages.
pub(crate) fn encode_plain<S: Serialize + ?Sized>(bytes: &mut Vec<u8>, what: &str, part: &S, limit: u64) -> Result<()> {
    let limit = limit.saturating_add(bytes.len() as u64);
    let refused = |cause| Error::new(ErrorKind::Codec, format!("{what} cannot be encoded: {cause}"));
    walk(part, Bytes { bytes, limit }).map(|_| ()).map_err(refused)
}

/// Decodes a part of the store's own formats, in bincode's form; trailing bytes are an error. Reserves no more memory
/// than the bytes can fill, and at most 1 MiB for a collection.
pub(crate) fn decode_plain<D: DeserializeOwned>(what: impl fmt::Display, bytes: &[u8]) -> Result<D> {
    compact(bytes).map_err(|cause| Error::new(ErrorKind::Codec, format!("{what} cannot be decoded: {cause}")))
}

fn compact<D: DeserializeOwned>(bytes: &[u8]) -> bincode::Result<D> {
    options(bytes.len() as u64).deserialize(bytes)
}

/// Decodes a stored value.
///
/// # Errors
///
/// `TypeMismatch` if the value was stored as another type. A value without items, such as `None`, does not show their
/// type. `Codec` if the bytes are not an encoded value.
pub(crate) fn decode<T: Serialize + DeserializeOwned>(what: impl fmt::Display, bytes: &[u8]) -> Result<T> {
    let Some((codec, shape, payload)) = split(bytes) else {
        return Err(Error::new(
            ErrorKind::Codec,
            format!("{what} cannot be decoded: its bytes are not an encoded value"),
        ));
    };
    let mismatch = |cause: &dyn fmt::Display| {
        Error::new(ErrorKind::TypeMismatch, format!("{what} was stored as another type than it is read as: {cause}"))
    };
    let (value, read_as) = match codec {
        Codec::Compact => {
            let value: T = compact(payload).map_err(|cause| mismatch(&cause))?;
            let read_as = walk(&value, Nothing).map_err(|cause| mismatch(&cause))?.0;
            (value, read_as)
        }
        Codec::Json => {
            let value: T = serde_json::from_slice(payload).map_err(|cause| mismatch(&place(&cause)))?;
            let read_as = walk(&value, Readable).map_err(|cause| mismatch(&cause))?.0;
            (value, read_as)
        }
    };
    if read_as == shape { Ok(value) } else { Err(mismatch(&"the names, kinds or order of its parts differ")) }
}

/// Returns the text of a value that is stored as JSON.
#[cfg(feature = "cli")]
pub(crate) fn json(bytes: &[u8]) -> Option<&[u8]> {
    split(bytes).filter(|(codec, ..)| *codec == Codec::Json).map(|(.., payload)| payload)
}

/// Checks as much of a stored value as can be checked without its type.
#[cfg(feature = "cli")]
pub(crate) fn check_encoded(bytes: &[u8]) -> Result<()> {
    let unfit =
        |why: &dyn fmt::Display| Error::new(ErrorKind::Codec, format!("its bytes are not an encoded value{why}"));
    match split(bytes) {
        None => Err(unfit(&"")),
        Some((Codec::Compact, ..)) => Ok(()),
        Some((Codec::Json, _, payload)) => serde_json::from_slice::<serde::de::IgnoredAny>(payload)
            .map(drop)
            .map_err(|cause| unfit(&format_args!(": {}", place(&cause)))),
    }
}

fn split(bytes: &[u8]) -> Option<(Codec, u64, &[u8])> {
    let (&[codec, ref shape @ ..], payload) = bytes.split_first_chunk::<HEADER>()?;
    let codec = [Codec::Compact, Codec::Json].into_iter().find(|known| *known as u8 == codec)?;
    Some((codec, u64::from_le_bytes(*shape), payload))
}

/// Encodes a value into at most `limit` bytes, and checks that it can be read back. Returns the bytes and the value
/// that was read back.
///
/// Bincode writes some values that it cannot read back, or reads back as other values: a variant after a skipped one
/// becomes its neighbour. So the bytes are decoded and encoded again, and must be the same. Only the order in a hash
/// map or set may differ, because it differs in each instance. A value that fails this check is stored as JSON, if JSON
/// can be read back.
pub(crate) fn encode_checked<T: Serialize + DeserializeOwned>(
    what: impl fmt::Display,
    value: &T,
    limit: u64,
) -> Result<(Vec<u8>, T)> {
    let refused = |compact: &dyn fmt::Display| match json_checked(value, limit) {
        Ok(stored) => Ok(stored),
        Err(Stop::TooLarge) => Err(too_large(&what, value, limit)),
        Err(Stop::Refused(json)) => {
            let message = format!("{what} could not be read back once stored: {compact}; as JSON: {json}");
            Err(Error::new(ErrorKind::Codec, message))
        }
    };
    let mut bytes = Vec::with_capacity(USUAL_LEN);
    let shape = match write_compact(&mut bytes, value, limit) {
        Ok(shape) => shape,
        // As JSON the value may be short enough.
        Err(Stop::TooLarge) => return json_checked(value, limit).map_err(|_| too_large(&what, value, limit)),
        Err(cause) => return refused(&cause),
    };
    let payload = bytes.get(HEADER..).unwrap_or_default();
    let read: T = match compact(payload) {
        Ok(read) => read,
        Err(cause) => return refused(&cause),
    };
    let mut again = BUFFER.take();
    again.clear();
    let as_read = write_compact(&mut again, &read, limit);
    // Equal bytes contain equal digests. For bytes that differ in order, the digests are compared here.
    let same = as_read.is_ok_and(|as_read| as_read == shape)
        && (again == bytes || Fingerprint::unordered(value)? == Fingerprint::unordered(&read)?);
    if again.capacity() <= KEPT_BUFFER {
        BUFFER.set(again);
    }
    if same { Ok((bytes, read)) } else { refused(&"it is read back as another value") }
}

/// Encodes the success or failure of an operation as [`encode_checked`] does.
///
/// # Errors
///
/// Also `EngineFailure` if the outcome is or contains a [`Failure`](crate::Failure) made from an error of this crate.
pub(crate) fn encode_outcome<S: Serialize + DeserializeOwned>(
    what: impl fmt::Display,
    outcome: &S,
    limit: u64,
) -> Result<(Vec<u8>, S)> {
    let uses = error::uses();
    let encoded = encode_checked(&what, outcome, limit)?;
    if error::uses() == uses {
        return Ok(encoded);
    }
    let message = format!("{what} was made from an error of the engine, which is no outcome of the operation");
    Err(Error::new(ErrorKind::EngineFailure, message))
}

/// Encodes a value whose type may only borrow, so that it cannot be read back here.
///
/// Uses JSON, because every type with ordinary attributes can be read from it. Uses bincode if JSON cannot hold the
/// value within the limit.
pub(crate) fn encode<S: Serialize + ?Sized>(what: impl fmt::Display, value: &S, limit: u64) -> Result<Vec<u8>> {
    if let Ok(bytes) = write_json(value, limit) {
        return Ok(bytes);
    }
    let mut bytes = Vec::new();
    match write_compact(&mut bytes, value, limit) {
        Ok(_) => Ok(bytes),
        Err(Stop::TooLarge) => Err(too_large(what, value, limit)),
        Err(cause) => Err(Error::new(ErrorKind::Codec, format!("{what} cannot be encoded: {cause}"))),
    }
}

/// Writes the value into an empty buffer, and returns the digest.
fn write_compact<S: Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &S, limit: u64) -> Result<u64, Stop> {
    bytes.extend_from_slice(&Codec::Compact.header(0));
    let (shape, _) = walk(value, Bytes { bytes, limit })?;
    if let Some(header) = bytes.first_chunk_mut() {
        *header = Codec::Compact.header(shape);
    }
    Ok(shape)
}

fn write_json<S: Serialize + ?Sized>(value: &S, limit: u64) -> Result<Vec<u8>, Stop> {
    let (shape, _) = walk(value, Readable)?;
    let mut limited = Limited { bytes: Codec::Json.header(shape).to_vec(), limit };
    match serde_json::to_writer(&mut limited, value) {
        Ok(()) => Ok(limited.bytes),
        Err(error) if error.is_io() => Err(Stop::TooLarge),
        Err(error) => Err(Stop::Refused(error.to_string())),
    }
}

fn json_checked<T: Serialize + DeserializeOwned>(value: &T, limit: u64) -> Result<(Vec<u8>, T), Stop> {
    let bytes = write_json(value, limit)?;
    let payload = bytes.get(HEADER..).unwrap_or_default();
    let read: T = serde_json::from_slice(payload).map_err(|cause| Stop::Refused(place(&cause)))?;
    let digest = |value| Fingerprint::readable(value).map_err(|cause| Stop::Refused(cause.to_string()));
    if digest(value)? == digest(&read)? {
        return Ok((bytes, read));
    }
    Err(Stop::Refused("it is read back as another value".to_owned()))
}

struct Limited {
    bytes: Vec<u8>,
    limit: u64,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() as u64).saturating_add(bytes.len() as u64) > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the error for a value that is too large, with the length of the shorter form.
fn too_large<S: Serialize + ?Sized>(what: impl fmt::Display, value: &S, limit: u64) -> Error {
    let compact = walk(value, Count(HEADER as u64)).ok().map(|(_, count)| count.0);
    let json = serde_json::to_vec(value).ok().map(|text| (HEADER + text.len()) as u64);
    let size = match compact.into_iter().chain(json).min() {
        Some(size) => format!("{size} bytes long"),
        None => "too large".to_owned(),
    };
    Error::new(ErrorKind::TooLarge, format!("{what} is {size}, the limit is {limit}"))
}

/// Describes the position at which JSON could not be read. The text of the error is not used: it may quote the value,
/// and messages go to logs.
fn place(error: &serde_json::Error) -> String {
    let problem = match error.classify() {
        Category::Data => "JSON does not fit the type",
        Category::Syntax => "JSON is malformed",
        Category::Eof => "JSON is cut short",
        Category::Io => "JSON cannot be read",
    };
    format!("{problem} at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests;
