//! Immutable bytes that are cheap to clone.

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The largest memory that is reserved for a sequence before its items are read, in bytes. The announced length may be
/// wrong.
const RESERVE_BYTES: usize = 4096;

/// Immutable bytes. Clones share them. `Debug` shows the size only.
///
/// A value dereferences to `[u8]`. That is also its only [`AsRef`], so `value.as_ref()` needs no type annotation.
///
/// ```
/// use oncekey::Value;
///
/// let balance = Value::from(&250_u64.to_be_bytes());
/// assert_eq!(balance.as_ref().try_into().map(u64::from_be_bytes)?, 250);
/// assert_eq!(format!("{balance:?}"), "Value(8 bytes)");
/// # Ok::<(), std::array::TryFromSliceError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Arc<[u8]>);

impl Value {
    /// The largest outcome, checkpoint or row, in bytes. The value must fit into one frame of the journal.
    pub const MAX_BYTES: usize = 16 << 20;
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Self(bytes.as_slice().into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Self {
        value.0.to_vec()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(bytes.into())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Value, E> {
        Ok(bytes.into())
    }

    // Formats without byte strings, such as JSON, write an array of numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut bytes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(RESERVE_BYTES));
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_from_and_to_bytes() {
        let values: [Value; 5] =
            [b"ab".to_vec().into(), b"ab"[..].into(), b"ab".into(), String::from("ab").into(), "ab".into()];
        for value in &values {
            assert_eq!(&**value, b"ab");
            assert_eq!(value, &values[0]);
        }
        assert_eq!(Vec::from(values[0].clone()), b"ab");
        assert!(Value::default().is_empty());
        assert!(Value::from("a") < Value::from("ab") && Value::from("ab") < Value::from("b"));
    }

    #[test]
    fn clones_share_their_bytes() {
        let value = Value::from("shared");
        assert_eq!(value.clone().as_ptr(), value.as_ptr());
    }

    #[test]
    fn round_trips_in_bincode_and_json() {
        let value = Value::from(&[0, 7, 255]);
        let compact = bincode::serialize(&value).unwrap();
        assert_eq!(compact, [3, 0, 0, 0, 0, 0, 0, 0, 0, 7, 255]);
        assert_eq!(bincode::deserialize::<Value>(&compact).unwrap(), value);

        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(json, "[0,7,255]");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
        assert!(serde_json::from_str::<Value>("[256]").is_err());
    }

    #[test]
    fn debug_shows_the_size_only() {
        assert_eq!(format!("{:?}", Value::from("4111")), "Value(4 bytes)");
    }
}
