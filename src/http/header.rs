//! Reads a key from an HTTP header.

mod parameters;

use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::Key;
use http::{HeaderMap, HeaderName};
use parameters::Malformed;

const NAME: HeaderName = HeaderName::from_static("idempotency-key");

/// A fault of a header's value: the end of a message that begins with the header's name.
type Problem = &'static str;

impl Key {
    /// Reads the key in the `Idempotency-Key` header; `None` if there is no such header.
    ///
    /// Accepts two forms. `"k"` and `k` are the same key:
    ///
    /// - **In quotes**, as the IETF draft says: a string of a structured field, strictly by RFC 9651. The text between
    ///   the quotes is printable ASCII. A backslash may only escape a quote or a backslash. Parameters may follow and
    ///   are ignored: `"k";v=1` is `k`.
    /// - **Bare**, as most clients send it: any printable ASCII except `"` and `,`. The whole value is the key,
    ///   including spaces, semicolons and backslashes: `k;v=1` is another key than `k`. Other types of structured
    ///   fields are read as bare keys too: `:azE=:` and `?1` are keys of six and of two characters.
    ///
    /// Spaces and tabs around the whole value are not part of the key, in both forms.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if there are two such headers, if the key is empty or longer than
    /// [`Key::MAX_BYTES`](crate::Key::MAX_BYTES), or if it has neither form. A bare key with a comma is rejected
    /// because a proxy may have joined two headers there.
    ///
    /// ```
    /// use oncekey::Key;
    ///
    /// let mut headers = http::HeaderMap::new();
    /// assert_eq!(Key::from_headers(&headers)?, None);
    /// headers.insert("idempotency-key", http::HeaderValue::from_static("\"order-17\""));
    /// assert_eq!(Key::from_headers(&headers)?, Some(Key::new("order-17")?));
    /// headers.append("idempotency-key", http::HeaderValue::from_static("order-18"));
    /// assert!(Key::from_headers(&headers).is_err());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>> {
        Self::from_headers_named(headers, &NAME)
    }

    /// Reads the key in the header `name`, as [`from_headers`](Self::from_headers) does.
    ///
    /// # Errors
    ///
    /// The errors of [`from_headers`](Self::from_headers).
    pub fn from_headers_named(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>> {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(refused(name, "occurs twice"));
        }
        read(value.as_bytes(), name).map(Some)
    }
}

/// Returns the key in the value of an `Idempotency-Key` header.
pub(crate) fn from_header(value: &[u8]) -> Result<Key> {
    read(value, &NAME)
}

fn read(value: &[u8], name: &HeaderName) -> Result<Key> {
    let value = trimmed(value);
    let key = match value.split_first() {
        Some((b'"', quoted)) => unquoted(quoted),
        _ => bare(value),
    };
    Key::new(key.map_err(|problem| refused(name, problem))?)
}

/// Removes the spaces and tabs around a header's value.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn bare(value: &[u8]) -> Result<Vec<u8>, Problem> {
    for byte in value {
        match byte {
            b'"' => return Err("has a quote in a key that does not begin with one"),
            b',' => return Err("has a comma in a key without quotes: it may be two headers joined"),
            b' '..=b'~' => {}
            _ => return Err(NOT_PRINTABLE),
        }
    }
    Ok(value.to_vec())
}

/// Returns the text up to the closing quote, unescaped. `quoted` begins after the opening quote.
fn unquoted(quoted: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut key = Vec::with_capacity(quoted.len());
    let mut rest = quoted.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => return check_parameters(rest.as_slice()).map(|()| key),
            b'\\' => match rest.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err("has a backslash before neither a quote nor a backslash"),
            },
            b' '..=b'~' => key.push(byte),
            _ => return Err(NOT_PRINTABLE),
        }
    }
    Err("has no closing quote")
}

/// Checks what follows the closing quote.
fn check_parameters(rest: &[u8]) -> Result<(), Problem> {
    parameters::check(rest).map_err(|problem| match problem {
        Malformed::Name => "has a parameter without a name",
        Malformed::Value => "has a parameter whose value is malformed",
        Malformed::Trailing => "has text after the closing quote of its key",
    })
}

const NOT_PRINTABLE: &str = "has characters other than printable ASCII";

fn refused(name: &HeaderName, problem: Problem) -> Error {
    Error::new(ErrorKind::InvalidKey, format!("header {name} {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::key::Key;
    use http::HeaderValue;

    #[track_caller]
    fn accepted(value: &[u8], key: &str) {
        assert_eq!(from_header(value).unwrap().as_str(), Some(key), "{}", value.escape_ascii());
    }

    #[track_caller]
    fn is_refused(value: &[u8], why: &str) {
        let error = from_header(value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{}", value.escape_ascii());
        assert!(error.to_string().contains(why), "{}: {error}", value.escape_ascii());
    }

    #[test]
    fn quoted_and_bare_keys_are_the_same() {
        accepted(b"order-17", "order-17");
        accepted(b"\"order-17\"", "order-17");
        accepted(b" \t\"order-17\" \t", "order-17");
        accepted(b" order 17 ", "order 17");
        accepted(b"\" order, 17 \"", " order, 17 ");
        accepted(br#""a\"b\\c""#, r#"a"b\c"#);
        accepted(br"a\b", r"a\b");
        accepted(b"\"\\\\\"", "\\");
    }

    #[test]
    fn parameters_after_a_quoted_key_are_ignored() {
        accepted(b"\"k\";p=1", "k");
        accepted(b"\"k\";p;q=?1;  *r.s-t_u=tok/en:1", "k");
        accepted(b"\"k;p=1\";p=-12.5;p=@1659578233;b=:aGVsbG8=:\t", "k;p=1");
        accepted(b"\"k\";s=\"a;b, \\\" \\\\ \";d=%\"f%c3%bc, ;r\";e", "k");
    }

    #[test]
    fn a_bare_value_that_looks_like_another_structured_field_is_the_key() {
        for bare in ["k;p=1", ":a2s=:", "?1", "@1", "%20", "-1.5", "(a b)", "a\\b", "'k'", "k;"] {
            accepted(bare.as_bytes(), bare);
        }
    }

    #[test]
    fn malformed_values_are_rejected_with_a_reason() {
        is_refused(b"", "empty");
        is_refused(b" \t ", "empty");
        is_refused(b"\"\"", "empty");
        is_refused(b"\"", "no closing quote");
        is_refused(b"\"k", "no closing quote");
        is_refused(b"\"k\\\"", "no closing quote");
        is_refused(b"\"k\\", "backslash");
        is_refused(b"\"\\k\"", "backslash");
        is_refused(b"\"k\" ;p", "after the closing quote");
        is_refused(b"\"k\";p=1 ;q", "after the closing quote");
        is_refused(b"\"k\";p, \"l\"", "after the closing quote");
        is_refused(b"\"k\";p=1, \"l\"", "after the closing quote");
        is_refused(b"\"k\";p=\"a\"b", "after the closing quote");
        is_refused(b"\"k\";p=1.2.3", "after the closing quote");
        for unnamed in [&b"\"k\";"[..], b"\"k\";;p", b"\"k\";P=1", b"\"k\";1=1", b"\"k\";=1", b"\"k\"; ,", b"\"k\";\tp"]
        {
            is_refused(unnamed, "parameter without a name");
        }
        for value in [
            &b"\"k\";p="[..],
            b"\"k\";p= 1",
            b"\"k\";p=,",
            b"\"k\";p=\"a",
            b"\"k\";p=\"\\a\"",
            b"\"k\";p=%\"a",
            b"\"k\";p=\xff",
            b"\"k\";p=}",
            b"\"k\";p=:!:",
            b"\"k\";p=@x",
            b"\"k\";p=?2",
            b"\"k\";p=%\"%zz\"",
        ] {
            is_refused(value, "value is malformed");
        }
        is_refused(b"\"\";p=1", "empty");
        is_refused(b"\"k\", \"l\"", "after the closing quote");
        is_refused(b"k\"", "a quote");
        is_refused(b"k, l", "joined");
        for value in [&b"k\x00"[..], b"\x7f", b"k\tl", "k\u{e9}".as_bytes(), b"\"k\xff\"", b"\"k\tl\"", b"\nk"] {
            is_refused(value, "printable ASCII");
        }
        is_refused(&[b'k'; Key::MAX_BYTES + 1], "513");
        accepted(&[b'k'; Key::MAX_BYTES], &"k".repeat(Key::MAX_BYTES));
        let longest = format!("\"{}\"", "\\\\".repeat(Key::MAX_BYTES));
        accepted(longest.as_bytes(), &"\\".repeat(Key::MAX_BYTES));
    }

    #[test]
    fn every_printable_key_survives_quoting_and_junk_never_panics() {
        // A fixed sequence: xorshift.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        for _ in 0..20_000 {
            // Mostly characters with a special meaning in quotes.
            let alphabet = b"\"\\\\\" ,;k~!";
            let key: String = (0..=next(12)).map(|_| char::from(alphabet[next(alphabet.len())])).collect();
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            accepted(quoted.as_bytes(), &key);
            match from_header(key.as_bytes()) {
                // A key that was read is read as the same key when it is quoted.
                Ok(read) => {
                    let text = read.as_str().unwrap();
                    assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
                    let again = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
                    assert_eq!(from_header(again.as_bytes()).unwrap(), read);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidKey),
            }
            let junk: Vec<u8> = (0..next(8)).map(|_| u8::try_from(next(256)).unwrap()).collect();
            if let Ok(read) = from_header(&junk) {
                assert!(read.as_str().unwrap().bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        }
    }

    #[test]
    fn no_header_is_none_and_two_headers_are_rejected() {
        let mut headers = HeaderMap::new();
        headers.insert("x-idempotency-key", HeaderValue::from_static("other"));
        assert_eq!(Key::from_headers(&headers).unwrap(), None);
        headers.insert("Idempotency-Key", HeaderValue::from_static("k"));
        assert_eq!(Key::from_headers(&headers).unwrap(), Some(Key::new("k").unwrap()));
        // Two headers are rejected even if their values are equal.
        headers.append("IDEMPOTENCY-KEY", HeaderValue::from_static("k"));
        assert!(Key::from_headers(&headers).unwrap_err().to_string().contains("twice"));
    }
}
