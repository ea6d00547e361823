//! The text form of keys: a key is printed in the form in which it can be typed.
//!
//! A key made of parts is its parts, each after a `/`. Any other key is its text. `%NN` stands for a byte that is
//! written as two hexadecimal digits: `%`, blanks, quotes, the backslash, invisible characters, bytes that are not
//! UTF-8, a `/` inside a part, and a `/` or `-` at the beginning of another key. So the text is one word for `xargs`,
//! no option of a command, and each text names one key.

use super::{Key, split};
use crate::types::error::{Error, ErrorKind, Result};
use std::fmt::{self, Write as _};

/// Writes the text form of a key with these bytes.
pub(super) fn write(text: &mut String, bytes: &[u8]) -> fmt::Result {
    if let Some(parts) = split(bytes) {
        for part in parts {
            text.push('/');
            escape(text, part, |c| c == '/')?;
        }
        return Ok(());
    }
    match bytes.split_first() {
        Some((first @ (b'/' | b'-'), rest)) => {
            write!(text, "%{first:02X}")?;
            escape(text, rest, |_| false)
        }
        _ => escape(text, bytes, |_| false),
    }
}

/// Appends `bytes`, with `%NN` for the characters that are not shown as they are, and for those that `also` selects.
fn escape(text: &mut String, bytes: &[u8], also: impl Fn(char) -> bool) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_shown(c) && !also(c) {
                text.push(c);
            } else {
                hexadecimal(text, c.encode_utf8(&mut [0; 4]).as_bytes())?;
            }
        }
        hexadecimal(text, chunk.invalid())?;
    }
    Ok(())
}

fn hexadecimal(text: &mut String, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(text, "%{byte:02X}"))
}

fn is_shown(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_graphic() && !matches!(c, '%' | '\\' | '"' | '\'');
    }
    // `str::escape_debug` escapes invisible characters, and combining marks only at the start of a text. So put a
    // letter first.
    let mut letters = [b'a', 0, 0, 0, 0];
    let end = letters.get_mut(1..).map_or(1, |rest| 1 + c.encode_utf8(rest).len());
    let text = letters.get(..end).and_then(|letters| std::str::from_utf8(letters).ok());
    !c.is_whitespace() && text.is_some_and(|text| text.escape_debug().eq(text.chars()))
}

/// Reads the text form of a key.
pub(super) fn read(text: &[u8]) -> Result<Key> {
    match text.strip_prefix(b"/") {
        Some(parts) => Key::join(parts_of(parts)?.iter().map(Vec::as_slice)),
        None => Key::plain(&unescape(text)?),
    }
}

fn parts_of(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    text.split(|byte| *byte == b'/').map(unescape).collect()
}

fn unescape(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let Some((byte, tail)) = tail.split_first_chunk::<2>().and_then(|(digits, tail)| Some((byte(*digits)?, tail)))
        else {
            let message = format!(
                "key \"{}\" has a % without two hexadecimal digits; a key is written as it is printed, with %25 for %",
                String::from_utf8_lossy(text).escape_debug()
            );
            return Err(Error::new(ErrorKind::InvalidKey, message));
        };
        bytes.push(byte);
        rest = tail;
    }
    Ok(bytes)
}

fn byte(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(16 * high? + low?).ok()
}

/// The beginning of the text of a key, by which a listing selects keys.
///
/// ```
/// use oncekey::{Key, admin::KeyPrefix};
///
/// let orders_of_ada = KeyPrefix::from_text("/ada/order-")?;
/// assert!(orders_of_ada.matches(&Key::from_parts(["ada", "order-17"])?));
/// assert!(!orders_of_ada.matches(&Key::new("ada/order-17")?));
/// // All keys inside a scope, at any depth:
/// assert!(
///     KeyPrefix::scope(["ada"]).matches(&Key::from_parts(["ada", "2026", "order-17"])?)
/// );
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPrefix {
    /// The whole parts before the last one. `None` selects keys that are not made of parts.
    parts: Option<Vec<Vec<u8>>>,
    /// The beginning of the next part, or of the whole key if it is not made of parts.
    last: Vec<u8>,
}

impl KeyPrefix {
    /// Reads the beginning of a key's [text](Key::from_text). If it begins with `/`, each further `/` ends a part.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if a `%` is not followed by two hexadecimal digits.
    pub fn from_text(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        let Some(parts) = text.strip_prefix(b"/") else { return Ok(Self { parts: None, last: unescape(text)? }) };
        let mut parts = parts_of(parts)?;
        let last = parts.pop().unwrap_or_default();
        Ok(Self { parts: Some(parts), last })
    }

    /// Selects the keys made of parts that begin with these parts and have more.
    pub fn scope(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        Self { parts: Some(parts.into_iter().map(|part| part.as_ref().to_vec()).collect()), last: Vec::new() }
    }

    /// Returns true if the key begins with this prefix.
    #[must_use]
    pub fn matches(&self, key: &Key) -> bool {
        let Some(parts) = &self.parts else {
            return split(key.as_bytes()).is_none() && key.as_bytes().starts_with(&self.last);
        };
        let Some(of_key) = split(key.as_bytes()) else { return false };
        let begins = of_key.len() > parts.len() && parts.iter().zip(&of_key).all(|(part, of_key)| part == of_key);
        begins && of_key.get(parts.len()).is_some_and(|next| next.starts_with(&self.last))
    }

    /// Returns bytes that all matching keys begin with. Other keys may begin with them too.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let Some(parts) = &self.parts else { return self.last.clone() };
        // A part that is too long for its length is too long for a key: nothing matches, wherever the search begins.
        let lengths = parts.iter().map_while(|part| Some((u16::try_from(part.len()).ok()?, part)));
        let mut bytes = super::PARTS.to_vec();
        for (length, part) in lengths {
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn text(key: &Key) -> String {
        key.to_string()
    }

    /// Bytes that are often text, and often characters with a meaning in the text form.
    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            prop::sample::select(vec![
                "/", "-", "%", "%41", "\\", " ", "\u{e9}", "\u{4e16}", "\u{200d}", "a", "\"", "key"
            ])
            .prop_map(|piece| piece.as_bytes().to_vec()),
        ];
        vec(pieces, 0..max).prop_map(|pieces| pieces.concat())
    }

    fn keys() -> impl Strategy<Value = Key> {
        prop_oneof![
            bytes(40).prop_filter_map("no key", |bytes| Key::new(bytes).ok()),
            vec(bytes(12), 1..5).prop_filter_map("no key", |parts| Key::join(parts.iter().map(Vec::as_slice)).ok()),
            vec(any::<u8>(), 1..=Key::MAX_BYTES).prop_filter_map("no key", |bytes| Key::new(bytes).ok()),
        ]
    }

    proptest! {
        #[test]
        fn every_key_is_read_back_from_its_text(key in keys()) {
            let text = text(&key);
            prop_assert_eq!(&Key::from_text(&text).unwrap(), &key);
            let tame = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'\\".contains(c);
            prop_assert!(text.chars().all(tame) && !text.starts_with('-'), "{}", text);
        }

        #[test]
        fn two_keys_never_have_the_same_text(one in keys(), other in keys()) {
            prop_assert_eq!(one == other, text(&one) == text(&other));
        }

        #[test]
        fn any_text_is_read_as_a_key_or_refused(typed in bytes(40)) {
            if let Ok(key) = Key::from_text(&typed) {
                prop_assert_eq!(Key::from_text(text(&key)).unwrap(), key);
            }
        }

        #[test]
        fn a_prefix_selects_the_keys_whose_text_begins_with_it(key in keys(), other in keys(), cut in 0_usize..40) {
            let whole = text(&key);
            let Some(beginning) = whole.get(..cut) else { return Ok(()) };
            // A cut inside a `%NN` is refused. A cut between the `%NN`s of one letter is a prefix of the bytes only.
            let Ok(prefix) = KeyPrefix::from_text(beginning) else { return Ok(()) };
            prop_assert!(beginning.is_empty() && key.parts().len() > 1 || beginning.is_empty() || prefix.matches(&key));
            for key in [&key, &other] {
                if prefix.matches(key) {
                    prop_assert!(key.as_bytes().starts_with(&prefix.bytes()));
                    prop_assert!(text(key).starts_with(beginning) || beginning.contains('%'), "{key} {beginning}");
                } else {
                    prop_assert!(beginning.is_empty() || !text(key).starts_with(beginning), "{key} {beginning}");
                }
            }
        }
    }

    #[test]
    fn text_is_shown_as_it_is_and_the_rest_as_bytes() {
        let shown = |bytes: &[u8]| Key::new(bytes).unwrap().to_string();
        assert_eq!(
            shown("Z\u{fc}rich/\u{4e16}\u{754c}?a=1&b=-\u{1f980}".as_bytes()),
            "Z\u{fc}rich/\u{4e16}\u{754c}?a=1&b=-\u{1f980}"
        );
        // Marks that combine are part of many scripts.
        assert_eq!(
            shown("\u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940}".as_bytes()),
            "\u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940}"
        );
        assert_eq!(shown(b"a b\t\"'\\100%"), "a%20b%09%22%27%5C100%25");
        assert_eq!(shown(b"\0\xff\xc3"), "%00%FF%C3");
        // Characters that only change the order or look of their neighbours are not shown.
        assert_eq!(shown("a\u{202e}\u{a0}\u{200b}b".as_bytes()), "a%E2%80%AE%C2%A0%E2%80%8Bb");
        assert_eq!(
            (shown(b"/a"), shown(b"-a"), shown(b"a/-")),
            ("%2Fa".to_owned(), "%2Da".to_owned(), "a/-".to_owned())
        );
        let parts = |parts: &[&[u8]]| Key::join(parts.iter().copied()).unwrap().to_string();
        assert_eq!(parts(&[b"user-7", b"order-42"]), "/user-7/order-42");
        assert_eq!(parts(&[b"a/b", b"-", b"", b"\xff"]), "/a%2Fb/-//%FF");
        assert_eq!(parts(&[b""]), "/");
    }

    #[test]
    fn text_that_is_no_key_is_refused_and_says_why() {
        for text in ["%", "100%", "a%4", "a%zz", "%+1", "/a/%"] {
            let error = Key::from_text(text).unwrap_err();
            assert!(
                error.kind() == ErrorKind::InvalidKey && error.to_string().contains("%25 for %"),
                "{text}: {error}"
            );
        }
        assert!(KeyPrefix::from_text("%4").is_err());
        for text in ["", "%FFkey%00%01a"] {
            assert_eq!(Key::from_text(text).unwrap_err().kind(), ErrorKind::InvalidKey, "{text}");
        }
        assert_eq!(Key::from_text("%2f%61 b").unwrap(), Key::new("/a b").unwrap());
    }
}
