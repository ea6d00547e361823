//! Fuzzes the parser of the header that clients send.

use http::{HeaderMap, HeaderName, HeaderValue};
use oncekey::{ErrorKind, Key};

const NAME: HeaderName = HeaderName::from_static("idempotency-key");

fn read(value: &[u8]) -> Option<Result<Option<Key>, ErrorKind>> {
    let value = HeaderValue::from_bytes(value).ok()?;
    let headers = HeaderMap::from_iter([(NAME, value)]);
    Some(Key::from_headers(&headers).map_err(|error| error.kind()))
}

/// Asserts that an accepted key can be sent: its quoted form is parsed to the same key.
pub fn http_header(data: &[u8]) {
    let key = match read(data) {
        None => return,
        Some(Err(kind)) => return assert_eq!(kind, ErrorKind::InvalidKey),
        Some(Ok(key)) => key.expect("the header is there"),
    };
    assert!((1..=Key::MAX_BYTES).contains(&key.as_bytes().len()));
    let mut quoted = vec![b'"'];
    for byte in key.as_bytes() {
        assert!((b' '..=b'~').contains(byte));
        if matches!(byte, b'"' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    assert_eq!(read(&quoted), Some(Ok(Some(key))));
    assert!(matches!(read(&[&quoted[..], b","].concat()), Some(Err(_))), "two headers joined");
}
