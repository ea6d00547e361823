//! Tests of the syntax of keys in a header, with the vectors of the HTTP working group: see `tests/data/structured-fields`.

use http::{HeaderMap, HeaderValue};
use oncekey::{Error, Key};
use serde::Deserialize;
use serde_json::Value as Json;

/// One vector. Its text is an item's string and parameters by RFC 9651.
#[derive(Deserialize)]
struct Vector {
    name: String,
    raw: Vec<String>,
    header_type: String,
    #[serde(default)]
    expected: Json,
    #[serde(default)]
    must_fail: bool,
}

fn vectors(text: &str) -> Vec<Vector> {
    let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
    vectors.into_iter().filter(|vector| vector.header_type == "item").collect()
}

/// Returns `None` if the value cannot be in a header.
fn key(value: &str) -> Option<Result<Option<Key>, Error>> {
    let mut headers = HeaderMap::new();
    headers.insert("idempotency-key", HeaderValue::from_bytes(value.as_bytes()).ok()?);
    Some(Key::from_headers(&headers))
}

const STRINGS: [&str; 2] = [
    include_str!("../data/structured-fields/string.json"),
    include_str!("../data/structured-fields/string-generated.json"),
];

#[test]
fn strings_agree_with_the_vectors() {
    let (mut read, mut refused) = (0, 0);
    for vector in STRINGS.into_iter().flat_map(vectors) {
        let [raw] = &vector.raw[..] else {
            // A value in two headers: two keys are rejected, even if the joined value would be valid.
            continue;
        };
        let Some(key) = key(raw).filter(|_| raw.starts_with('"')) else {
            // No header, or a bare key.
            assert!(vector.must_fail, "{}", vector.name);
            continue;
        };
        let expected = vector.expected[0].as_str();
        if vector.must_fail || expected.is_some_and(|text| text.is_empty() || text.len() > oncekey::Key::MAX_BYTES) {
            assert!(key.is_err(), "{}", vector.name);
            refused += 1;
        } else {
            assert_eq!(key.unwrap().unwrap().as_str(), Some(expected.unwrap()), "{}", vector.name);
            read += 1;
        }
    }
    assert_eq!((read, refused), (99, 104), "some vectors were not tried");
}

#[test]
fn values_of_parameters_agree_with_the_vectors() {
    let files = [
        include_str!("../data/structured-fields/item.json"),
        include_str!("../data/structured-fields/token.json"),
        include_str!("../data/structured-fields/number.json"),
        include_str!("../data/structured-fields/boolean.json"),
        include_str!("../data/structured-fields/date.json"),
        include_str!("../data/structured-fields/binary.json"),
        include_str!("../data/structured-fields/display-string.json"),
    ];
    let (mut read, mut refused) = (0, 0);
    for vector in files.into_iter().chain(STRINGS).flat_map(vectors) {
        // Spaces around a value are not part of a parameter. Two values are two headers.
        let [raw] = &vector.raw[..] else { continue };
        if raw.trim() != raw {
            continue;
        }
        let Some(key) = key(&format!("\"k\";p={raw}")) else {
            assert!(vector.must_fail, "{}", vector.name);
            continue;
        };
        if vector.must_fail {
            assert!(key.is_err(), "{}: {raw}", vector.name);
            refused += 1;
        } else {
            assert_eq!(key.unwrap().unwrap().as_str(), Some("k"), "{}: {raw}", vector.name);
            read += 1;
        }
    }
    assert_eq!((read, refused), (143, 163), "some vectors were not tried");
}
