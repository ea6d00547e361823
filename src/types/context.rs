//! What a caller writes beside a key, readable without the types of the outcome.

use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::value::Value;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A small map of names to bytes, in the order of the names. A clone shares it; `Debug` shows names and sizes.
///
/// It is checked when a record is made with it: at most [`Context::MAX_ENTRIES`] entries, names of 1 to
/// [`Context::MAX_NAME_BYTES`] bytes, [`Context::MAX_BYTES`] in all.
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
    entries: Arc<BTreeMap<String, Value>>,
    /// Raised when an entry cannot be decoded: so a claim knows that its operation met a fault that is not its own.
    fault: Option<Arc<AtomicBool>>,
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for Context {}

impl Context {
    /// The most entries.
    pub const MAX_ENTRIES: usize = 64;

    /// The longest name, in bytes.
    pub const MAX_NAME_BYTES: usize = 64;

    /// The most bytes, names and values together: every record keeps its own in memory.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// The same entries, with a flag that is raised when one cannot be decoded.
    pub(crate) fn watched(&self, fault: &Arc<AtomicBool>) -> Self {
        Self { entries: Arc::clone(&self.entries), fault: Some(Arc::clone(fault)) }
    }

    /// An empty context.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The context with one entry more; an entry of this name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        Arc::make_mut(&mut self.entries).insert(name.into(), value.into());
        self
    }

    /// [`with`](Self::with) a value that [`decode`](Self::decode) reads back.
    ///
    /// It takes what only borrows, such as `&str`, so it cannot find out whether the bytes can be read back: a type that writes
    /// itself otherwise than it reads itself is refused by `decode` only. The value is stored as JSON, or as bincode if JSON
    /// cannot hold it, for example a map whose keys are pairs, or if it
    /// would be too long.
    ///
    /// # Errors
    ///
    /// [`Codec`](ErrorKind::Codec) when the value cannot be encoded, [`TooLarge`](ErrorKind::TooLarge) over
    /// [`Context::MAX_BYTES`].
    pub fn with_encoded<S: Serialize + ?Sized>(self, name: impl Into<String>, value: &S) -> Result<Self> {
        let name = name.into();
        let bytes = codec::encode(entry(&name), value, Context::MAX_BYTES as u64)?;
        Ok(self.with(name, bytes))
    }

    /// The bytes under this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries.get(name).map(|value| &**value)
    }

    /// The text under this name; `None` also when it is not UTF-8.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// The value that [`with_encoded`](Self::with_encoded) put under this name.
    ///
    /// # Errors
    ///
    /// [`TypeMismatch`](ErrorKind::TypeMismatch) when it was encoded from another type, or that type has changed since:
    /// [limits](crate::guides::limits) says what counts. [`Codec`](ErrorKind::Codec) when it was not encoded.
    pub fn decode<C: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Option<C>> {
        let decoded = self.get(name).map(|bytes| codec::decode(entry(name), bytes)).transpose();
        if let (Err(_), Some(fault)) = (&decoded, &self.fault) {
            fault.store(true, Ordering::Relaxed);
        }
        decoded
    }

    /// The entries, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the context is within its limits.
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

/// What a message calls the entry of this name, which may be of any length here.
fn entry(name: &str) -> String {
    let shown: String = name.chars().take(Context::MAX_NAME_BYTES).collect();
    format!("context entry \"{}\"", shown.escape_default())
}

impl<N: Into<String>, V: Into<Value>> FromIterator<(N, V)> for Context {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let entries = entries.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { entries: Arc::new(entries), fault: None }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context ")?;
        f.debug_map().entries(self.entries.iter()).finish()
    }
}

impl Serialize for Context {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.entries.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Context {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(|entries| Self { entries: Arc::new(entries), fault: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_ordered_and_replaced() {
        let context = Context::new().with("b", "2").with("a", vec![0xff]).with("b", "3");
        assert_eq!(context.get("b"), Some(&b"3"[..]));
        assert_eq!((context.text("a"), context.text("b"), context.text("c")), (None, Some("3"), None));
        assert_eq!(context.iter().collect::<Vec<_>>(), [("a", &b"\xff"[..]), ("b", &b"3"[..])]);
        assert_eq!((context.len(), context.is_empty()), (2, false));
        assert_eq!(context, [("b", Value::from("3")), ("a", Value::from(&[0xff]))].into_iter().collect());
    }

    #[test]
    fn a_clone_keeps_what_it_had() {
        let first = Context::new().with("a", "1");
        let second = first.clone().with("b", "2");
        assert_eq!((first.len(), second.len()), (1, 2));
    }

    #[test]
    fn encoded_values_are_read_back_or_refused() {
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
    fn encoded_values_may_be_of_types_that_skip_fields_or_are_not_texts() {
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
