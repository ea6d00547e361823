//! Idempotency keys, names of managers and tables, and the one source of randomness.

use crate::types::error::{Error, ErrorKind, Result};
use crate::types::value::Value;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::fmt::{self, Write as _};
use std::str::FromStr;
use uuid::Uuid;

/// The largest length of the name of a manager or table, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// How a key made of parts starts, and no other key: a client cannot send such a key. Text never starts so, because the first byte is
/// not UTF-8. Neither do integers or other identifiers in use as keys.
const PARTS: &[u8] = b"\xffkey";

/// An idempotency key: 1 to [`Key::MAX_BYTES`] bytes, or a key [made of parts](Key::from_parts). Clones share the bytes.
///
/// Plain bytes do not start with `ff 6b 65 79`, which marks keys made of parts. So only a `Key` can name a key inside a scope
/// on a manager without a scope. Bytes and text cannot.
///
/// `Display` is for people: it escapes all but printable ASCII, and shows a key [made of parts](Key::from_parts) as
/// `part/part`. Only a key of plain text without a backslash can be parsed back from it.
///
/// ```
/// use oncekey::Key;
///
/// let key = Key::new("order-17")?;
/// assert_eq!(key.as_str(), Some("order-17"));
///
/// let of_a_tenant = Key::from_parts(["acme", "order-17"])?;
/// assert_eq!(of_a_tenant.to_string(), "acme/order-17");
/// assert!(Key::new(of_a_tenant.as_bytes()).is_err());
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Value);

impl Key {
    /// The largest length of a key, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Creates a key of these bytes, unchanged.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if there are no bytes, more than [`Key::MAX_BYTES`], or if they start like a key made of
    /// parts.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        check_plain(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Returns the key that has these [bytes](Key::as_bytes), whether it is made of parts or not: for keys that the service itself
    /// has stored. Bytes from a client could name a key in the scope of another: give those to [`Key::new`].
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
    /// [`InvalidKey`](ErrorKind::InvalidKey) when they are those of no key.
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
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

    /// Creates a key of parts, whose boundaries count: `["ab", "c"]` and `["a", "bc"]` are different keys. Bytes and text
    /// cannot name such a key. A part may have any bytes.
    ///
    /// Encoded size: four bytes, plus two bytes for each part, plus the parts.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if there are no parts, or if the encoded key exceeds [`Key::MAX_BYTES`].
    pub fn from_parts(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Self> {
        let mut bytes = PARTS.to_vec();
        for part in parts {
            let part = part.as_ref();
            // A length that does not fit is over the limit anyway. The check of `bytes` also ends an endless iterator.
            let Some(length) = u16::try_from(part.len()).ok().filter(|_| bytes.len() <= Key::MAX_BYTES) else {
                let message = format!("key made of parts is longer than the limit of {} bytes", Self::MAX_BYTES);
                return Err(Error::new(ErrorKind::InvalidKey, message));
            };
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        if bytes.len() == PARTS.len() {
            return Err(Error::new(ErrorKind::InvalidKey, "key is made of no parts, it needs at least one"));
        }
        check_key(&bytes)?;
        Ok(Self(bytes.into()))
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
            let scope = Self::from_parts(scope)?;
            let message = format!("key {self} is made of parts, and is none of the scope {scope}");
            return Err(Error::new(ErrorKind::InvalidKey, message));
        }
        Self::from_parts(scope.iter().map(|part| &**part).chain([self.as_bytes()]))
    }

    /// Returns the bytes of the key. Only [`Key::from_bytes`] reads back those of a key made of parts.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key as text if it is UTF-8. A key made of parts is not.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

/// What names a key of a manager: plain bytes or text, or a [`Key`].
///
/// On a handle with a [scope](crate::Manager::scoped), bytes, text and plain keys are completed by the scope. A key made of parts is
/// taken as a whole key, as records report it; it must be one of this scope.
///
/// ```
/// # use oncekey::{Engine, ErrorKind, Manager};
/// # let engine = Engine::temporary()?;
/// let all: Manager<u64> = engine.manager("payments")?;
/// let (of_ada, of_bob) = (all.scoped("ada")?, all.scoped("bob")?);
/// let done = of_ada.execute("order-42", |_claim| Ok(1999)).unwrap();
/// let key = done.info().key();
/// assert!(of_ada.get(key)?.is_some() && of_ada.get("order-42")?.is_some() && all.get(key)?.is_some());
/// assert_eq!(of_bob.get(key).unwrap_err().kind(), ErrorKind::InvalidKey);
/// assert_eq!(all.get(key.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidKey);
/// # Ok::<(), oncekey::Error>(())
/// ```
pub trait IntoKey {
    /// The key, not completed by any scope.
    ///
    /// # Errors
    ///
    /// As [`Key::new`].
    fn into_key(self) -> Result<Key>;
}

impl<K: AsRef<[u8]>> IntoKey for K {
    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl IntoKey for Key {
    fn into_key(self) -> Result<Key> {
        Ok(self)
    }
}

impl IntoKey for &Key {
    fn into_key(self) -> Result<Key> {
        Ok(self.clone())
    }
}

impl FromStr for Key {
    type Err = Error;

    /// Creates a key of this text as [`Key::new`] does. Escapes are not decoded.
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        if let Some(parts) = split(&self.0) {
            for (index, part) in parts.into_iter().enumerate() {
                if index > 0 {
                    text.push('/');
                }
                escape(&mut text, part, b'/')?;
            }
        } else {
            escape(&mut text, &self.0, b'\\')?;
        }
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

/// A key made of parts is read from binary formats only: a client could write it into a text, such as JSON.
impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Text such as JSON may come from a client.
        let read = if deserializer.is_human_readable() { Self::new } else { Self::from_bytes };
        read(Value::deserialize(deserializer)?).map_err(D::Error::custom)
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

/// Appends `bytes`. Writes `\xNN` for the backslash, for `also`, and for all but printable ASCII.
fn escape(text: &mut String, bytes: &[u8], also: u8) -> fmt::Result {
    for &byte in bytes {
        if (byte.is_ascii_graphic() || byte == b' ') && byte != b'\\' && byte != also {
            text.push(char::from(byte));
        } else {
            write!(text, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// Checks bytes that are to be a key not made of parts.
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
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_512_bytes() {
        assert_eq!(Key::new("").unwrap_err().kind(), ErrorKind::InvalidKey);
        assert!(Key::new([7; 512]).is_ok());
        let error = Key::new(vec![7; 513]).unwrap_err();
        assert_eq!(error.to_string(), "key is 513 bytes long, the limit is 512");
    }

    #[test]
    fn boundaries_of_parts_count_and_the_first_byte_marks_them() {
        let key = Key::from_parts(["ab", "c"]).unwrap();
        assert_eq!(key.as_bytes(), b"\xffkey\0\x02ab\0\x01c");
        assert_ne!(key, Key::from_parts(["a", "bc"]).unwrap());
        assert_ne!(Key::from_parts([""]).unwrap(), Key::from_parts(["", ""]).unwrap());
        assert_eq!(Key::from_parts([""; 0]).unwrap_err().kind(), ErrorKind::InvalidKey);
        assert!(Key::from_parts([[1; 506]]).is_ok());
        assert!(Key::from_parts([[1; 507]]).is_err());
        assert!(Key::from_parts([vec![1; 70_000]]).is_err());
        assert!(Key::from_parts(std::iter::repeat("endless")).is_err());
    }

    #[test]
    fn parts_are_returned_and_within_accepts_only_keys_of_its_scope() {
        let key = Key::from_parts(["ab", "", "c"]).unwrap();
        assert_eq!(key.parts(), [&b"ab"[..], b"", b"c"]);
        assert_eq!(Key::new("abc").unwrap().parts(), [b"abc"]);
        let scope = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
        assert_eq!(key.within(&scope(&["ab", ""])), Some(&b"c"[..]));
        assert_eq!(key.within(&[]), Some(key.as_bytes()));
        for other in [&["ab"][..], &["ab", "", "c"], &["a", ""], &["", "ab"]] {
            assert_eq!(key.within(&scope(other)), None, "{other:?}");
        }
        assert_eq!(Key::new("ab").unwrap().within(&scope(&["ab"])), None);
    }

    #[test]
    fn only_a_key_names_a_key_made_of_parts() {
        let parts = Key::from_parts(["ada", "k1"]).unwrap();
        for bytes in [parts.as_bytes(), b"\xffkey", b"\xffkey\0\x02a"] {
            assert_eq!(Key::new(bytes).unwrap_err().kind(), ErrorKind::InvalidKey);
            assert_eq!(bytes.into_key().unwrap_err().kind(), ErrorKind::InvalidKey);
        }
        assert_eq!((&parts).into_key().unwrap(), parts);
        assert_eq!(parts.clone().into_key().unwrap(), parts);
        assert_eq!(Key::from_bytes(parts.as_bytes()).unwrap(), parts);
        assert_eq!(Key::from_bytes("k1").unwrap(), Key::new("k1").unwrap());
        let long = [PARTS, &[2, 0], &[1; 512]].concat();
        for none in [&b""[..], b"\xffkey", b"\xffkey\0\x02a", &[1; 513], &long] {
            assert_eq!(Key::from_bytes(none).unwrap_err().kind(), ErrorKind::InvalidKey, "{none:?}");
        }
        assert_eq!(parts.as_str(), None);
        // Integers and text are all plain.
        for n in (0..70_000_u64).chain([u64::MAX, u64::MAX - 1]).flat_map(|n| [n.to_be_bytes(), n.to_le_bytes()]) {
            assert_eq!(Key::new(n).unwrap().as_bytes(), n);
        }
    }

    #[test]
    fn a_scope_completes_plain_keys_and_takes_its_own_whole_ones() {
        let scope = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
        let whole = Key::from_parts(["a", "b", "c"]).unwrap();
        for key in [Key::new("c").unwrap(), whole.clone()] {
            assert_eq!(key.inside(&scope(&["a", "b"])).unwrap(), whole);
        }
        assert_eq!(whole.clone().inside(&[]).unwrap(), whole);
        for other in [&["a"][..], &["a", "c"], &["a", "b", "c"], &["b"]] {
            let error = whole.clone().inside(&scope(other)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{other:?}");
        }
    }

    #[test]
    fn display_escapes_and_joins() {
        let show = |bytes: &[u8]| Key(bytes.into()).to_string();
        assert_eq!(show(b"a b/c\\d\n\xff"), "a b/c\\x5cd\\x0a\\xff");
        assert_eq!(Key::from_parts(["a/b", "c\\", ""]).unwrap().to_string(), "a\\x2fb/c\\x5c/");
        assert_eq!(show(b"\0"), "\\x00");
        assert_eq!(show(b"\xffkey\0\x02a"), "\\xffkey\\x00\\x02a", "cut parts are not parts");
        assert_eq!(format!("{:?}|{:>4}", Key::new("k").unwrap(), Key::new("k").unwrap()), "Key(k)|   k");
    }

    #[test]
    fn text_is_parsed_unchanged() {
        let key: Key = "a\\x41".parse().unwrap();
        assert_eq!(key.as_str(), Some("a\\x41"));
        assert_eq!(Key::new(b"\xff").unwrap().as_str(), None);
        assert!("".parse::<Key>().is_err());
    }

    #[test]
    fn serde_checks_what_it_reads() {
        let key = Key::new("k").unwrap();
        let bytes = bincode::serialize(&key).unwrap();
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0, b'k']);
        assert_eq!(bincode::deserialize::<Key>(&bytes).unwrap(), key);
        assert!(bincode::deserialize::<Key>(&[0; 8]).is_err());
        assert_eq!(serde_json::from_str::<Key>("[107]").unwrap(), key);
        assert!(serde_json::from_str::<Key>("[]").is_err());
        let parts = Key::from_parts(["k"]).unwrap();
        assert_eq!(bincode::deserialize::<Key>(&bincode::serialize(&parts).unwrap()).unwrap(), parts);
        assert!(serde_json::from_str::<Key>(&serde_json::to_string(&parts).unwrap()).is_err());
    }

    #[test]
    fn generated_keys_are_ordered_and_random_bytes_differ() {
        let (first, second) = (Key::generate(), Key::generate());
        assert!(first < second);
        assert_eq!(Uuid::parse_str(first.as_str().unwrap()).unwrap().get_version_num(), 7);
        assert_ne!(random(), random());
    }

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "payments.v2_eu-1", &"x".repeat(64)] {
            assert!(check_name("manager", name).is_ok());
        }
        for name in ["", "A", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
            assert_eq!(check_name("manager", name).unwrap_err().kind(), ErrorKind::InvalidName);
        }
        let error = check_name("table", "Users\n").unwrap_err();
        assert!(error.to_string().starts_with("table name \"Users\\n\" has"), "{error}");
    }
}
