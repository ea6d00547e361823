//! A key in the header that clients send it in.

use super::Key;
use crate::error::{Error, ErrorKind, Result};
use http::HeaderMap;

const NAME: &str = "idempotency-key";

impl Key {
    /// The key in the `Idempotency-Key` header; `None` if there is no such header.
    ///
    /// Read are the IETF draft's string in quotes, in which a backslash escapes a quote or a backslash, and the bare text that
    /// most clients send; `"k"` and `k` are the same key. A string may have parameters behind it, as every item of a structured
    /// field (RFC 9651), which say nothing about the key: `"k";v=1` is `k`. Bare text is the key as it stands.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) when there are two such headers, when the key is empty or too long, has
    /// characters other than printable ASCII, is quoted in another way, or is bare and has a quote, or a comma, which is where
    /// a proxy has joined two headers.
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
        let mut values = headers.get_all(NAME).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(malformed("is there twice"));
        }
        from_header(value.as_bytes()).map(Some)
    }
}

/// The key in the value of such a header.
pub(crate) fn from_header(value: &[u8]) -> Result<Key> {
    let value = trimmed(value);
    let key = match value.split_first() {
        Some((b'"', quoted)) => unquoted(quoted)?,
        _ => bare(value)?,
    };
    Key::new(key)
}

/// Without the spaces and tabs that may stand around any header's value.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn bare(value: &[u8]) -> Result<Vec<u8>> {
    for byte in value {
        match byte {
            b'"' => return Err(malformed("has a quote in a key that does not begin with one")),
            b',' => return Err(malformed("has a comma in a key without quotes: it may be two headers joined")),
            b' '..=b'~' => {}
            _ => return Err(malformed(NOT_PRINTABLE)),
        }
    }
    Ok(value.to_vec())
}

/// What stands between the opening quote, which is gone already, and the closing one.
fn unquoted(quoted: &[u8]) -> Result<Vec<u8>> {
    let mut key = Vec::with_capacity(quoted.len());
    let mut rest = quoted.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => return check_parameters(rest.as_slice()).map(|()| key),
            b'\\' => match rest.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err(malformed("has a backslash before neither a quote nor a backslash")),
            },
            b' '..=b'~' => key.push(byte),
            _ => return Err(malformed(NOT_PRINTABLE)),
        }
    }
    Err(malformed("has no closing quote"))
}

/// What stands behind the closing quote: parameters, each `;name` or `;name=value`, or nothing.
fn check_parameters(mut rest: &[u8]) -> Result<()> {
    let beyond = || malformed("goes on behind the closing quote of its key");
    while let [b';', parameter @ ..] = rest {
        let parameter = parameter.trim_ascii_start();
        if !matches!(parameter, [b'a'..=b'z' | b'*', ..]) {
            return Err(malformed("has a parameter without a name"));
        }
        let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*');
        rest = behind(parameter, is_name);
        if let [b'=', value @ ..] = rest {
            rest = behind_value(value).ok_or_else(|| malformed("has a parameter whose value is malformed"))?;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(beyond()) }
}

/// What is behind the bytes at the front that are so.
fn behind(bytes: &[u8], are_so: impl Fn(u8) -> bool) -> &[u8] {
    bytes.iter().position(|byte| !are_so(*byte)).map_or(&[], |end| bytes.get(end..).unwrap_or_default())
}

/// Behind one value of any type: a string, a display string, or what has neither quotes nor what could end a parameter.
fn behind_value(value: &[u8]) -> Option<&[u8]> {
    match value {
        [b'"', string @ ..] => {
            let mut rest = string;
            loop {
                rest = match rest {
                    [b'"', rest @ ..] => return Some(rest),
                    [b'\\', b'"' | b'\\', rest @ ..] | [b' '..=b'[' | b']'..=b'~', rest @ ..] => rest,
                    _ => return None,
                };
            }
        }
        [b'%', b'"', text @ ..] => match behind(text, |byte| matches!(byte, b' ' | b'!' | b'#'..=b'~')) {
            [b'"', rest @ ..] => Some(rest),
            _ => None,
        },
        [b'!' | b'#'..=b'+' | b'-'..=b':' | b'<'..=b'~', ..] => {
            Some(behind(value, |byte| matches!(byte, b'!' | b'#'..=b'+' | b'-'..=b':' | b'<'..=b'~')))
        }
        _ => None,
    }
}

const NOT_PRINTABLE: &str = "has characters other than printable ASCII";

fn malformed(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidKey, format!("header Idempotency-Key {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::MAX_KEY_BYTES;
    use http::HeaderValue;

    #[track_caller]
    fn accepted(value: &[u8], key: &str) {
        assert_eq!(from_header(value).unwrap().as_str(), Some(key), "{}", value.escape_ascii());
    }

    #[track_caller]
    fn refused(value: &[u8], why: &str) {
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
    fn parameters_of_a_string_say_nothing_about_its_key() {
        accepted(b"\"k\";p=1", "k");
        accepted(b"\"k\";p;q=?1;  *r.s-t_u=tok/en:1", "k");
        accepted(b"\"k;p=1\";p=-12.5;p=@1659578233;b=:aGVsbG8=:\t", "k;p=1");
        accepted(b"\"k\";s=\"a;b, \\\" \\\\ \";d=%\"f%c3%bc, ;r\";e", "k");
        accepted(b"k;p=1", "k;p=1");
    }

    #[test]
    fn anything_else_is_refused() {
        refused(b"", "empty");
        refused(b" \t ", "empty");
        refused(b"\"\"", "empty");
        refused(b"\"", "no closing quote");
        refused(b"\"k", "no closing quote");
        refused(b"\"k\\\"", "no closing quote");
        refused(b"\"k\\", "backslash");
        refused(b"\"\\k\"", "backslash");
        refused(b"\"k\" ;p", "behind the closing quote");
        refused(b"\"k\";p=1 ;q", "behind the closing quote");
        refused(b"\"k\";p, \"l\"", "behind the closing quote");
        refused(b"\"k\";p=1, \"l\"", "behind the closing quote");
        refused(b"\"k\";p=\"a\"b", "behind the closing quote");
        for unnamed in [&b"\"k\";"[..], b"\"k\";;p", b"\"k\";P=1", b"\"k\";1=1", b"\"k\";=1", b"\"k\"; ,"] {
            refused(unnamed, "parameter without a name");
        }
        for value in [
            &b"\"k\";p="[..],
            b"\"k\";p= 1",
            b"\"k\";p=,",
            b"\"k\";p=\"a",
            b"\"k\";p=\"\\a\"",
            b"\"k\";p=%\"a",
            b"\"k\";p=\xff",
        ] {
            refused(value, "value is malformed");
        }
        refused(b"\"\";p=1", "empty");
        refused(b"\"k\", \"l\"", "behind the closing quote");
        refused(b"k\"", "a quote");
        refused(b"k, l", "joined");
        for value in [&b"k\x00"[..], b"\x7f", b"k\tl", "k\u{e9}".as_bytes(), b"\"k\xff\"", b"\"k\tl\"", b"\nk"] {
            refused(value, "printable ASCII");
        }
        refused(&[b'k'; MAX_KEY_BYTES + 1], "513");
        accepted(&[b'k'; MAX_KEY_BYTES], &"k".repeat(MAX_KEY_BYTES));
        let longest = format!("\"{}\"", "\\\\".repeat(MAX_KEY_BYTES));
        accepted(longest.as_bytes(), &"\\".repeat(MAX_KEY_BYTES));
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
            // Mostly what has a meaning in quotes.
            let alphabet = b"\"\\\\\" ,;k~!";
            let key: String = (0..=next(12)).map(|_| char::from(alphabet[next(alphabet.len())])).collect();
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            accepted(quoted.as_bytes(), &key);
            match from_header(key.as_bytes()) {
                // Whatever is read, reads the same when it is quoted.
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
    fn one_header_is_a_key_none_is_none_two_are_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("x-idempotency-key", HeaderValue::from_static("other"));
        assert_eq!(Key::from_headers(&headers).unwrap(), None);
        headers.insert("Idempotency-Key", HeaderValue::from_static("k"));
        assert_eq!(Key::from_headers(&headers).unwrap(), Some(Key::new("k").unwrap()));
        // Even the same one twice: which of them the client meant is not ours to say.
        headers.append("IDEMPOTENCY-KEY", HeaderValue::from_static("k"));
        assert!(Key::from_headers(&headers).unwrap_err().to_string().contains("twice"));
    }
}
