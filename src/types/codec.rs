//! Values as bytes.
//!
//! A stored value is the codec (1 byte), the digest of its shape (8, little-endian) and the value in that codec:
//!
//! | codec | the value | the digest is of |
//! |---|---|---|
//! | 0xC0 | bincode 1.3, fixed-width integers, little-endian, no trailing bytes | its kinds and names: see [`walk`](self::walk) |
//! | 0xC1 | JSON text | its kinds, names and content |
//!
//! No UTF-8 text has these bytes, so a text that was not encoded is never taken for a value that was.
//!
//! Bincode stores no names and no kinds: a value that is read as another type may become wrong numbers without an error. So
//! a decoded value is walked in the same way as the encoded one, and the two digests must be equal. `Serialize` makes both, so
//! a type's `Deserialize` has no influence on them. Types that bincode cannot read back are stored as JSON. It is
//! the text for which attributes such as `flatten` and `untagged` are made: inside them serde takes every format for a
//! human-readable one, and then compact forms of, for example, UUIDs and addresses are not found again in CBOR or
//! `MessagePack`.

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

/// Bytes before a value: the codec and the digest.
const HEADER: usize = 9;
/// The size of a new buffer, in bytes: most values fit.
const USUAL_LEN: usize = 256;
/// The largest buffer that a thread keeps for its next value.
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
    /// For the bytes that are only compared.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn options(limit: u64) -> impl Options {
    DefaultOptions::new().with_fixint_encoding().with_little_endian().with_limit(limit).reject_trailing_bytes()
}

/// Appends a part of the store's own formats in bincode, of at most `limit` bytes. `what` names it in messages.
pub(crate) fn encode_plain<S: Serialize + ?Sized>(bytes: &mut Vec<u8>, what: &str, part: &S, limit: u64) -> Result<()> {
    let limit = limit.saturating_add(bytes.len() as u64);
    let refused = |cause| Error::new(ErrorKind::Codec, format!("{what} cannot be encoded: {cause}"));
    walk(part, Bytes { bytes, limit }).map(|_| ()).map_err(refused)
}

/// Reads what [`encode_plain`] wrote, all of it. It reserves no more than the bytes can fill, up to 1 MiB for a collection.
pub(crate) fn decode_plain<D: DeserializeOwned>(what: impl fmt::Display, bytes: &[u8]) -> Result<D> {
    compact(bytes).map_err(|cause| Error::new(ErrorKind::Codec, format!("{what} cannot be decoded: {cause}")))
}

fn compact<D: DeserializeOwned>(bytes: &[u8]) -> bincode::Result<D> {
    options(bytes.len() as u64).deserialize(bytes)
}

/// Reads a stored value.
///
/// # Errors
///
/// `TypeMismatch` when it was stored as another type, as far as can be seen in this value; `Codec` when it is no stored value.
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

fn split(bytes: &[u8]) -> Option<(Codec, u64, &[u8])> {
    let (&[codec, ref shape @ ..], payload) = bytes.split_first_chunk::<HEADER>()?;
    let codec = [Codec::Compact, Codec::Json].into_iter().find(|known| *known as u8 == codec)?;
    Some((codec, u64::from_le_bytes(*shape), payload))
}

/// The bytes to store a value as, at most `limit` of them, after making sure that they can be read back as this value. Also
/// gives the value that was read back.
///
/// Bincode writes what it cannot read, or reads it as something else: a variant behind a skipped one comes back as its
/// neighbour. So the bytes are decoded and encoded again, and must be the same. Only the order in a hash map or set may
/// differ, because each instance has its own. A value that fails this check is stored as JSON, if JSON can be read back.
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
        // A value that bincode could not read back anyway may be short enough as JSON.
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
    // The digest is in the bytes.
    let same = as_read.is_ok_and(|as_read| as_read == shape)
        && (again == bytes || Fingerprint::unordered(value)? == Fingerprint::unordered(&read)?);
    if again.capacity() <= KEPT_BUFFER {
        BUFFER.set(again);
    }
    if same { Ok((bytes, read)) } else { refused(&"it is read back as another value") }
}

/// As [`encode_checked`], for the failure of an operation.
///
/// # Errors
///
/// Also `EngineFailure` when it is a [`Failure`](crate::Failure) that was made from an error of this crate, or has one inside.
pub(crate) fn encode_failure<E: Serialize + DeserializeOwned>(
    what: impl fmt::Display,
    failure: &E,
    limit: u64,
) -> Result<(Vec<u8>, E)> {
    let met = error::met();
    let encoded = encode_checked(&what, failure, limit)?;
    if error::met() == met {
        return Ok(encoded);
    }
    let message = format!("{what} was made from an error of the engine, which is no outcome of the operation");
    Err(Error::new(ErrorKind::EngineFailure, message))
}

/// The bytes of a value whose type may only borrow, so that they cannot be read back here. They are JSON where that can hold
/// the value within the limit, because it can be read as every type with ordinary attributes, else bincode.
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

/// Into an empty buffer; gives the digest.
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

/// Names the length of the shorter form.
fn too_large<S: Serialize + ?Sized>(what: impl fmt::Display, value: &S, limit: u64) -> Error {
    let compact = walk(value, Count(HEADER as u64)).ok().map(|(_, count)| count.0);
    let json = serde_json::to_vec(value).ok().map(|text| (HEADER + text.len()) as u64);
    let size = match compact.into_iter().chain(json).min() {
        Some(size) => format!("{size} bytes long"),
        None => "too large".to_owned(),
    };
    Error::new(ErrorKind::TooLarge, format!("{what} is {size}, the limit is {limit}"))
}

/// Describes where JSON could not be read. The error's own text is not used: it may quote the value, and ends in logs.
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
