//! Idempotency keys, names of managers and tables, and the one source of randomness.

mod text;

use crate::types::error::{Error, ErrorKind, Result};
use crate::types::value::Value;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
pub use text::KeyPrefix;
use uuid::Uuid;

/// The largest length of the name of a manager or table, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The first bytes of a key made of parts. No other key starts with them, so a client cannot send such a key. Text
/// never does, because the first byte is not UTF-8. Neither do integers or the other common identifiers.
const PARTS: &[u8] = b"\xffkey";

/// An idempotency key: 1 to [`Key::MAX_BYTES`] bytes, or a key [made of parts](Key::from_parts). Clones share the
/// bytes.
///
/// A key that is not made of parts must not start with `ff 6b 65 79`, the mark of keys made of parts. So on a manager
/// without a scope, only a `Key` can name a key inside a scope. Bytes and text cannot.
///
/// `Display` is for people and scripts: text as it is, a key [made of parts](Key::from_parts) as `/part/part`, and
/// `%NN` for each other byte. [`Key::from_text`] reads it back.
///
/// ```
/// use oncekey::Key;
///
/// let key = Key::new("order-17")?;
/// assert_eq!(key.as_str(), Some("order-17"));
///
/// let of_a_tenant = Key::from_parts(["acme", "order-17"])?;
/// assert_eq!(of_a_tenant.to_string(), "/acme/order-17");
/// assert_eq!(Key::from_text("/acme/order-17")?, of_a_tenant);
/// assert!(Key::new(of_a_tenant.as_bytes()).is_err());
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Value);

impl Key {
    /// The largest length of a key, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Creates a key of this text or these bytes, unchanged.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if there are no bytes or more than [`Key::MAX_BYTES`], or if they start
    /// like a key made of parts.
    pub fn new(key: impl IntoKey) -> Result<Self> {
        key.into_key()
    }

    fn plain(bytes: &[u8]) -> Result<Self> {
        check_plain(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Returns the key with these [bytes](Key::as_bytes), whether it is made of parts or not. Use it for keys that your
    /// service has stored itself. Pass bytes from a client to [`Key::new`] instead: they could name a key in the scope
    /// of another client.
    ///
    /// ```
    /// # use oncekey::Key;
    /// let key = Key::from_parts(["acme", "order-17"])?;
    /// assert_eq!(Key::from_bytes(key.as_bytes())?, key);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if they are not the bytes of a key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if split(bytes).is_none() {
            check_plain(bytes)?;
        }
        check_key(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Generates a unique key: the text of a UUID of version 7. Later keys sort after earlier ones.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "randomness enters here, and its time is part of the identifier only"
    )]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().hyphenated().to_string().into())
    }

    /// Creates a key of parts. The boundaries count: `["ab", "c"]` and `["a", "bc"]` are different keys. Bytes and text
    /// cannot name a key made of parts. A part is any valid key that is not itself made of parts.
    ///
    /// Encoded size: four bytes, plus two bytes for each part, plus the parts.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if there are no parts, if one of them is empty or made of parts, or if the
    /// encoded key exceeds [`Key::MAX_BYTES`].
    pub fn from_parts(parts: impl IntoIterator<Item = impl IntoKey>) -> Result<Self> {
        let mut bytes = PARTS.to_vec();
        for part in parts {
            add_part(&mut bytes, &part.into_key()?.into_part("part")?)?;
        }
        Self::made(&bytes)
    }

    /// Creates a key of parts with any bytes.
    pub(crate) fn join<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Result<Self> {
        let mut bytes = PARTS.to_vec();
        for part in parts {
            add_part(&mut bytes, part)?;
        }
        Self::made(&bytes)
    }

    fn made(bytes: &[u8]) -> Result<Self> {
        if bytes.len() == PARTS.len() {
            return Err(Error::new(ErrorKind::InvalidKey, "key is made of no parts, it needs at least one"));
        }
        check_key(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Returns the bytes for use as a part or a scope. `what` names the use in messages.
    pub(crate) fn into_part(self, what: &str) -> Result<Value> {
        if self.0.starts_with(PARTS) {
            return Err(Error::new(ErrorKind::InvalidKey, format!("{what} {self} is itself made of parts")));
        }
        Ok(self.0)
    }

    /// Reads a key as `Display` prints it: `/part/part` for a key [made of parts](Key::from_parts), else the text, with
    /// `%NN` for a byte. For text of operators only. Pass the text of a client to [`Key::new`]: here it could name a
    /// key in another scope.
    ///
    /// ```
    /// # use oncekey::Key;
    /// assert_eq!(Key::from_text("/acme/order-17")?, Key::from_parts(["acme", "order-17"])?);
    /// assert_eq!(Key::from_text("half%20price")?, Key::new("half price")?);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if a `%` is not followed by two hexadecimal digits, or if the text stands
    /// for no key.
    pub fn from_text(text: impl AsRef<[u8]>) -> Result<Self> {
        text::read(text.as_ref())
    }

    /// Returns the parts of a key [made of parts](Key::from_parts), or else the whole key as one part. In a scope, the
    /// last part is the key that the client knows.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # let engine = Engine::temporary()?;
    /// let of_ada = engine.manager::<u64, String>("payments")?.scoped("ada")?;
    /// let claim = of_ada.begin("order-17")?.into_claim().unwrap();
    /// assert_eq!(claim.key().parts(), [&b"ada"[..], b"order-17"]);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn parts(&self) -> Vec<&[u8]> {
        split(&self.0).unwrap_or_else(|| vec![self.as_bytes()])
    }

    /// Returns the key without the parts of the scope. Returns `None` if the key is not in the scope.
    pub(crate) fn within(&self, scope: &[Box<[u8]>]) -> Option<&[u8]> {
        if scope.is_empty() {
            return Some(self.as_bytes());
        }
        let parts = split(&self.0)?;
        let (key, outer) = parts.split_last()?;
        outer.iter().copied().eq(scope.iter().map(|part| &**part)).then_some(*key)
    }

    /// Returns the whole key for a key in a scope.
    pub(crate) fn inside(self, scope: &[Box<[u8]>]) -> Result<Self> {
        if self.within(scope).is_some() {
            return Ok(self);
        }
        if self.0.starts_with(PARTS) {
            let scope = Self::join(scope.iter().map(|part| &**part))?;
            let message = format!("key {self} is made of parts, and is none of the scope {scope}");
            return Err(Error::new(ErrorKind::InvalidKey, message));
        }
        Self::join(scope.iter().map(|part| &**part).chain([self.as_bytes()]))
    }

    /// Returns the bytes of the key. For a key made of parts, only [`Key::from_bytes`] accepts them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key as text. Returns `None` if it is not UTF-8 or is made of parts.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

/// A type that names a key of a manager, a part of a key, or a scope: text, bytes, or a [`Key`].
///
/// A handle with a [scope](crate::Manager::scoped) adds the scope to bytes, text and plain keys. A key made of parts is
/// a whole key, as records report it, and must be in this scope.
///
/// ```
/// # use oncekey::{Engine, ErrorKind, Manager};
/// # let engine = Engine::temporary()?;
/// let all: Manager<u64> = engine.manager("payments")?;
/// let (of_ada, of_bob) = (all.scoped("ada")?, all.scoped("bob")?);
/// let done = of_ada.execute("order-42", |_claim| Ok(1999)).unwrap();
/// let key = done.info().key();
/// assert!(
///     of_ada.get(key)?.is_some()
///         && of_ada.get("order-42")?.is_some()
///         && all.get(key)?.is_some()
/// );
/// assert_eq!(of_bob.get(key).unwrap_err().kind(), ErrorKind::InvalidKey);
/// assert_eq!(all.get(key.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidKey);
/// # Ok::<(), oncekey::Error>(())
/// ```
///
/// A type that has both a text and raw bytes, such as `Uuid`, does not implement this trait: the two would be different
/// keys, and the operation would run twice. Pass its text, or implement this trait for a type of your own that has one
/// form:
///
/// ```
/// # use oncekey::{Engine, IntoKey, Key, Manager, Result};
/// use uuid::Uuid;
///
/// struct OrderId(Uuid);
///
/// impl IntoKey for OrderId {
///     fn into_key(self) -> Result<Key> {
///         Key::new(self.0.to_string())
///     }
/// }
///
/// # let engine = Engine::temporary()?;
/// let orders: Manager<u64> = engine.manager("orders")?;
/// let id = Uuid::from_u128(7);
/// orders.execute(OrderId(id), |_claim| Ok(1999)).unwrap();
/// assert!(orders.execute(id.to_string(), |_claim| Ok(1999)).unwrap().replayed());
/// # Ok::<(), oncekey::Error>(())
/// ```
///
/// ```compile_fail,E0277
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let orders: Manager<u64> = engine.manager("orders")?;
/// orders.execute(uuid::Uuid::from_u128(7), |_claim| Ok(1999)).unwrap();
/// # Ok::<(), oncekey::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the text or the bytes of a key",
    note = "pass the text of an identifier, such as `uuid.to_string()`"
)]
pub trait IntoKey {
    /// Returns the key, without the scope of any handle.
    ///
    /// # Errors
    ///
    /// The errors of [`Key::new`].
    fn into_key(self) -> Result<Key>;
}

impl IntoKey for Key {
    fn into_key(self) -> Result<Key> {
        Ok(self)
    }
}

impl<K: IntoKey + Clone> IntoKey for &K {
    fn into_key(self) -> Result<Key> {
        self.clone().into_key()
    }
}

/// No blanket implementation for `AsRef<[u8]>`: it would accept the raw bytes of a `Uuid`, whose text is another key.
macro_rules! into_key {
    ($self:ident, $bytes:expr; $($type:ty),*) => {$(
        impl IntoKey for $type {
            fn into_key($self) -> Result<Key> {
                Key::plain($bytes)
            }
        }
    )*};
}

into_key!(self, self.as_bytes(); &str, String, Box<str>, Arc<str>, Cow<'_, str>);
into_key!(self, &self; &[u8], Vec<u8>, Box<[u8]>, Arc<[u8]>, Cow<'_, [u8]>, Value);

impl<const N: usize> IntoKey for [u8; N] {
    fn into_key(self) -> Result<Key> {
        Key::plain(&self)
    }
}

impl FromStr for Key {
    type Err = Error;

    /// Creates a key of this text as [`Key::new`] does. Nothing is decoded: text from a client names no key made of
    /// parts.
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        text::write(&mut text, &self.0)?;
        f.pad(&text)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Reads a key made of parts only from binary formats: a client could write one into a text format, such as JSON.
impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A human-readable format such as JSON may come from a client.
        let read = if deserializer.is_human_readable() { Self::plain } else { Self::from_bytes };
        read(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Returns the parts of a key of [`Key::from_parts`]. Returns `None` if the bytes do not have exactly that form.
fn split(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rest = bytes.strip_prefix(PARTS)?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (&length, tail) = rest.split_first_chunk::<2>()?;
        let (part, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        parts.push(part);
        rest = tail;
    }
    (!parts.is_empty()).then_some(parts)
}

/// Appends a part, with its length before it.
fn add_part(bytes: &mut Vec<u8>, part: &[u8]) -> Result<()> {
    // A length that does not fit is over the limit anyway. The check of `bytes` also ends an endless iterator.
    let Some(length) = u16::try_from(part.len()).ok().filter(|_| bytes.len() <= Key::MAX_BYTES) else {
        let message = format!("key made of parts is longer than the limit of {} bytes", Key::MAX_BYTES);
        return Err(Error::new(ErrorKind::InvalidKey, message));
    };
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(part);
    Ok(())
}

/// Checks the bytes of a key that is not made of parts.
fn check_plain(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(PARTS) {
        let message = "key begins with ff 6b 65 79, as only keys made of parts do: see Key::from_bytes";
        return Err(Error::new(ErrorKind::InvalidKey, message));
    }
    check_key(bytes)
}

/// Checks the length of a key.
pub(crate) fn check_key(bytes: &[u8]) -> Result<()> {
    match bytes.len() {
        0 => {
            Err(Error::new(ErrorKind::InvalidKey, format!("key is empty, it must have 1 to {} bytes", Key::MAX_BYTES)))
        }
        1..=Key::MAX_BYTES => Ok(()),
        n => Err(Error::new(ErrorKind::InvalidKey, format!("key is {n} bytes long, the limit is {}", Key::MAX_BYTES))),
    }
}

/// Checks the name of a manager or table. `what` is "manager" or "table". Names appear in file formats and on the
/// command line.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        format!("{what} name is empty, it must have 1 to {MAX_NAME_BYTES} characters")
    } else if name.len() > MAX_NAME_BYTES {
        format!("{what} name is {} bytes long, the limit is {MAX_NAME_BYTES}", name.len())
    } else if name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')) {
        return Ok(());
    } else {
        format!("{what} name \"{}\" has characters other than a-z, 0-9, '.', '_' and '-'", name.escape_default())
    };
    Err(Error::new(ErrorKind::InvalidName, problem))
}

/// Returns 122 random bits in 16 bytes, for unique ids of stores and processes, and for temporary names.
#[expect(clippy::disallowed_methods, reason = "the one place where randomness enters")]
pub(crate) fn random() -> [u8; 16] {
    Uuid::new_v4().into_bytes()
}

#[cfg(test)]
mod tests;
