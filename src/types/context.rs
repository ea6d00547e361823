//! Caller-defined facts about a key, readable without the types of the outcome.

use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::value::Value;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A small map from names to bytes, sorted by name. Clones share the map. `Debug` shows names and sizes only.
///
/// The limits are checked when a record is created with the context: at most [`Context::MAX_ENTRIES`] entries, names of
/// 1 to [`Context::MAX_NAME_BYTES`] bytes, and [`Context::MAX_BYTES`] bytes in all.
///
/// ```
/// use oncekey::Context;
///
/// let context = Context::new().with("user", "ada").with_encoded("args", &(1_u32, "x"))?;
/// assert_eq!(context.text("user"), Some("ada"));
/// assert_eq!(context.decode::<(u32, String)>("args")?, Some((1, "x".into())));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Context {
    /// `None` if the context is empty.
    entries: Option<Arc<BTreeMap<String, Value>>>,
    /// Set when an entry cannot be decoded. A claim reads it to tell such an error from an error of the operation
    /// itself.
    fault: Option<Arc<AtomicBool>>,
}

static EMPTY: BTreeMap<String, Value> = BTreeMap::new();

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.map() == other.map()
    }
}

impl Eq for Context {}

impl Context {
    /// The largest number of entries.
    pub const MAX_ENTRIES: usize = 64;

    /// The largest length of a name, in bytes.
    pub const MAX_NAME_BYTES: usize = 64;

    /// The largest total length of names and values, in bytes. Small, because records in memory contain the context.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// Returns the same entries with a flag that is set when one of them cannot be decoded.
    pub(crate) fn watched(&self, fault: &Arc<AtomicBool>) -> Self {
        Self { entries: self.entries.clone(), fault: Some(Arc::clone(fault)) }
    }

    /// Creates an empty context.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry. Replaces an entry of the same name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        Arc::make_mut(self.entries.get_or_insert_default()).insert(name.into(), value.into());
        self
    }

    /// Adds an encoded value, which [`decode`](Self::decode) reads back.
    ///
    /// The value may be borrowed, such as `&str`, so this function cannot check that it can be read back. If a type's
    /// `Serialize` and `Deserialize` do not match, only `decode` notices.
    ///
    /// The value is stored as JSON. If JSON cannot hold it, as with a map whose keys are pairs, or would be too long,
    /// it is stored as bincode.
    ///
    /// # Errors
    ///
    /// [`Codec`](ErrorKind::Codec) if the value cannot be encoded; [`TooLarge`](ErrorKind::TooLarge) if it exceeds
    /// [`Context::MAX_BYTES`].
    pub fn with_encoded<S: Serialize + ?Sized>(self, name: impl Into<String>, value: &S) -> Result<Self> {
        let name = name.into();
        let bytes = codec::encode(entry(&name), value, Context::MAX_BYTES as u64)?;
        Ok(self.with(name, bytes))
    }

    /// Returns the bytes of an entry.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.map().get(name).map(|value| &**value)
    }

    /// Returns an entry as text. Returns `None` if there is no such entry, or if it is not UTF-8.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// Decodes a value that [`with_encoded`](Self::with_encoded) added. Returns `None` if there is no such entry.
    ///
    /// # Errors
    ///
    /// [`TypeMismatch`](ErrorKind::TypeMismatch) if the value was encoded from another type, or if its type has changed
    /// since. The guide on [limits](crate::guides::limits) lists the changes that count. [`Codec`](ErrorKind::Codec) if
    /// the entry was not encoded.
    pub fn decode<C: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Option<C>> {
        let decoded = self.get(name).map(|bytes| codec::decode(entry(name), bytes)).transpose();
        if let (Err(_), Some(fault)) = (&decoded, &self.fault) {
            fault.store(true, Ordering::Relaxed);
        }
        decoded
    }

    /// Returns the entries, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.map().iter().map(|(name, value)| (name.as_str(), &**value))
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map().len()
    }

    /// Returns true if there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map().is_empty()
    }

    fn of(entries: BTreeMap<String, Value>) -> Self {
        Self { entries: (!entries.is_empty()).then(|| Arc::new(entries)), fault: None }
    }

    fn map(&self) -> &BTreeMap<String, Value> {
        self.entries.as_deref().unwrap_or(&EMPTY)
    }

    /// Checks the limits.
    pub(crate) fn check(&self) -> Result<()> {
        if self.len() > Context::MAX_ENTRIES {
            let message = format!("context has {} entries, the limit is {}", self.len(), Self::MAX_ENTRIES);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let mut total = 0;
        for (name, value) in self.iter() {
            let problem = match name.len() {
                0 => format!("context has an empty name, names have 1 to {} bytes", Self::MAX_NAME_BYTES),
                1..=Self::MAX_NAME_BYTES => {
                    total += name.len() + value.len();
                    continue;
                }
                n => format!("context has a name of {n} bytes, the limit is {}", Self::MAX_NAME_BYTES),
            };
            return Err(Error::new(ErrorKind::InvalidName, problem));
        }
        if total > Context::MAX_BYTES {
            let message = format!("context is {total} bytes long, the limit is {}", Self::MAX_BYTES);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }
}

/// Returns the name of an entry for messages. A name can be of any length here, so it is cut.
fn entry(name: &str) -> String {
    let shown: String = name.chars().take(Context::MAX_NAME_BYTES).collect();
    format!("context entry \"{}\"", shown.escape_default())
}

impl<N: Into<String>, V: Into<Value>> FromIterator<(N, V)> for Context {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let entries = entries.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self::of(entries)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context ")?;
        f.debug_map().entries(self.map()).finish()
    }
}

impl Serialize for Context {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.map().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Context {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_sorted_and_replaced() {
        let context = Context::new().with("b", "2").with("a", vec![0xff]).with("b", "3");
        assert_eq!(context.get("b"), Some(&b"3"[..]));
        assert_eq!((context.text("a"), context.text("b"), context.text("c")), (None, Some("3"), None));
        assert_eq!(context.iter().collect::<Vec<_>>(), [("a", &b"\xff"[..]), ("b", &b"3"[..])]);
        assert_eq!((context.len(), context.is_empty()), (2, false));
        assert_eq!(context, [("b", Value::from("3")), ("a", Value::from(&[0xff]))].into_iter().collect());
    }

    #[test]
    fn adding_to_a_clone_leaves_the_original_unchanged() {
        let first = Context::new().with("a", "1");
        let second = first.clone().with("b", "2");
        assert_eq!((first.len(), second.len()), (1, 2));
    }

    #[test]
    fn encoded_values_are_read_back_or_rejected() {
        let context = Context::new().with_encoded("args", &(7_u8, "x")).unwrap();
        assert_eq!(context.decode::<(u8, String)>("args").unwrap(), Some((7, "x".to_owned())));
        assert_eq!(context.decode::<u8>("other").unwrap(), None);
        let error = context.decode::<u8>("args").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TypeMismatch);
        assert!(error.to_string().contains("context entry \"args\""), "{error}");
        assert_eq!(context.with("args", "7").decode::<u8>("args").unwrap_err().kind(), ErrorKind::Codec);
        let error = Context::new().with_encoded("args", &vec![0_u8; Context::MAX_BYTES]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn encoded_values_may_have_null_fields_non_text_keys_or_long_json() {
        let args = serde_json::json!({ "a": [1, null] });
        let by_pair = BTreeMap::from([((1, 2), 3)]);
        let long = vec![255_u8; Context::MAX_BYTES / 2];
        let context = Context::new().with_encoded("args", &args).unwrap().with_encoded("pairs", &by_pair).unwrap();
        let context = context.with_encoded("long", &long).unwrap();
        assert_eq!(context.decode("args").unwrap(), Some(args));
        assert_eq!(context.decode("pairs").unwrap(), Some(by_pair));
        assert_eq!(context.decode("long").unwrap(), Some(long));
    }

    #[test]
    fn limits_are_checked() {
        let kind = |context: Context| context.check().err().map(|error| error.kind());
        let many = |n: usize| (0..n).map(|i| (format!("n{i}"), "")).collect::<Context>();
        assert_eq!(kind(many(64)), None);
        assert_eq!(kind(many(65)), Some(ErrorKind::TooLarge));
        assert_eq!(kind(Context::new().with("", "x")), Some(ErrorKind::InvalidName));
        assert_eq!(kind(Context::new().with("n".repeat(64), "x")), None);
        assert_eq!(kind(Context::new().with("n".repeat(65), "x")), Some(ErrorKind::InvalidName));
        assert_eq!(kind(Context::new().with("n", vec![0; Context::MAX_BYTES - 1])), None);
        assert_eq!(kind(Context::new().with("n", vec![0; Context::MAX_BYTES])), Some(ErrorKind::TooLarge));
    }

    #[test]
    fn serde_round_trips_and_debug_hides_values() {
        let context = Context::new().with("card", "4111");
        let bytes = bincode::serialize(&context).unwrap();
        assert_eq!(bincode::deserialize::<Context>(&bytes).unwrap(), context);
        assert_eq!(format!("{context:?}"), "Context {\"card\": Value(4 bytes)}");
    }
}
