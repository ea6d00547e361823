//! Values as bytes: bincode 1.3, fixed-width integers, little-endian, no trailing bytes.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::fingerprint::Fingerprint;
use bincode::{DefaultOptions, Options};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn options(limit: u64) -> impl Options {
    DefaultOptions::new().with_fixint_encoding().with_little_endian().with_limit(limit).reject_trailing_bytes()
}

/// The bytes of a value, at most `limit` of them. `what` names it in messages, e.g. "outcome"; it is written only into those.
pub(crate) fn encode<S: Serialize + ?Sized>(what: impl fmt::Display, value: &S, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode_into(&mut bytes, what, value, limit)?;
    Ok(bytes)
}

/// [`encode`], behind what is there.
pub(crate) fn encode_into<S: Serialize + ?Sized>(
    bytes: &mut Vec<u8>,
    what: impl fmt::Display,
    value: &S,
    limit: u64,
) -> Result<()> {
    let reserved = |bytes: &mut Vec<u8>| -> bincode::Result<()> {
        let len = options(limit).serialized_size(value)?;
        bytes.reserve(usize::try_from(len).unwrap_or_default());
        options(limit).with_no_limit().serialize_into(bytes, value)
    };
    reserved(bytes).map_err(|error| {
        if !matches!(*error, bincode::ErrorKind::SizeLimit) {
            return Error::new(ErrorKind::Codec, format!("{what} cannot be encoded: {error}"));
        }
        let size = match options(u64::MAX).serialized_size(value) {
            Ok(size) => format!("{size} bytes long"),
            Err(_) => "too large".to_owned(),
        };
        Error::new(ErrorKind::TooLarge, format!("{what} is {size}, the limit is {limit}"))
    })
}

/// The value of these bytes, all of them. It reserves no more than the bytes can fill, up to 1 MiB for a collection.
pub(crate) fn decode<D: DeserializeOwned>(what: impl fmt::Display, bytes: &[u8]) -> Result<D> {
    options(bytes.len() as u64)
        .deserialize(bytes)
        .map_err(|error| Error::new(ErrorKind::Codec, format!("{what} cannot be decoded: {error}")))
}

/// [`encode`], after making sure that the bytes can be read back as this value.
///
/// bincode writes what it cannot read, or reads it as something else: a variant behind a skipped one comes back as its
/// neighbour. So the bytes are decoded and encoded again, and must be the same. Only the order in a hash map or set may
/// differ, since it is another in every instance. Also gives the value that was read back.
pub(crate) fn encode_checked<T: Serialize + DeserializeOwned>(
    what: impl fmt::Display + Copy,
    value: &T,
    limit: u64,
) -> Result<(Vec<u8>, T)> {
    let bytes = encode(what, value, limit).map_err(|error| match error.kind() {
        ErrorKind::Codec => unreadable(what, &error),
        _ => error,
    })?;
    let read: T = decode(what, &bytes).map_err(|error| unreadable(what, &error))?;
    // A value that grew in between is not this one either, whatever its size.
    let again = encode(what, &read, limit).map_err(|error| unreadable(what, &error))?;
    if again == bytes || Fingerprint::unordered(value)? == Fingerprint::unordered(&read)? {
        return Ok((bytes, read));
    }
    Err(unreadable(what, "it is read back as another value"))
}

fn unreadable(what: impl fmt::Display, cause: impl fmt::Display) -> Error {
    let message = format!("{what} could not be read back once stored (wrap its type in `Json<T>`): {cause}");
    Error::new(ErrorKind::Codec, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::{BTreeMap, HashMap, HashSet};

    const LIMIT: u64 = 1 << 16;

    #[track_caller]
    fn refused<T: Serialize + DeserializeOwned>(value: &T) {
        let error = encode_checked("outcome", value, LIMIT).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert!(error.to_string().starts_with("outcome ") && error.to_string().contains("`Json<T>`"), "{error}");
    }

    #[track_caller]
    fn accepted<T: Serialize + DeserializeOwned + PartialEq>(value: &T) {
        let (bytes, _) = encode_checked("outcome", value, LIMIT).unwrap();
        assert_eq!(bytes, encode("outcome", value, LIMIT).unwrap());
        assert!(decode::<T>("outcome", &bytes).unwrap() == *value);
    }

    #[test]
    fn the_format_is_fixed() {
        let bytes = encode("value", &(1_u16, Some("ab"), -1_i64), LIMIT).unwrap();
        assert_eq!(bytes, b"\x01\0\x01\x02\0\0\0\0\0\0\0ab\xff\xff\xff\xff\xff\xff\xff\xff");
        assert!(decode::<(u16, Option<String>, i64)>("value", &bytes).is_ok());
    }

    #[test]
    fn limits_name_the_sizes() {
        assert_eq!(encode("checkpoint", &[0_u8; 8], 8).unwrap(), [0; 8]);
        let error = encode("checkpoint", &[0_u8; 9], 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.to_string(), "checkpoint is 9 bytes long, the limit is 8");
        assert_eq!(encode_checked("outcome", &[0_u8; 9], 8).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let bytes = encode("value", &("text".to_owned(), vec![1_u64, 2]), LIMIT).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(decode::<(String, Vec<u64>)>("value", &bytes[..cut]).unwrap_err().kind(), ErrorKind::Codec);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<(String, Vec<u64>)>("value", &longer).is_err());
        for junk in [[0xff; 8], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert!(decode::<String>("value", &junk).is_err());
            assert!(decode::<Vec<u8>>("value", &junk).is_err());
            assert!(decode::<Vec<[u64; 4]>>("value", &junk).is_err());
            assert!(decode::<crate::value::Value>("value", &junk).is_err());
            assert!(decode::<HashMap<u64, u64>>("value", &junk).is_err());
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Refusal {
        #[serde(skip)]
        #[expect(dead_code, reason = "the skipped variant is what is tested")]
        Internal,
        Declined(u8),
        Fraud(u8),
    }

    #[test]
    fn a_variant_behind_a_skipped_one_is_refused() {
        let bytes = encode("outcome", &Refusal::Declined(1), LIMIT).unwrap();
        assert_eq!(decode::<Refusal>("outcome", &bytes).unwrap(), Refusal::Fraud(1), "the lie this is about");
        refused(&Refusal::Declined(1));
        refused(&Refusal::Fraud(1));
        refused(&vec![Refusal::Declined(1)]);
        // Set against the digest: there, bytes that differ are not the end.
        refused(&HashMap::from([(1, Refusal::Declined(1)), (2, Refusal::Declined(2))]));
    }

    #[derive(PartialEq, Serialize, Deserialize)]
    struct Sparse {
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<u8>,
        amount: u64,
    }

    #[derive(PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u64),
    }

    #[derive(PartialEq, Serialize, Deserialize)]
    struct Flat {
        id: u8,
        #[serde(flatten)]
        rest: BTreeMap<String, u8>,
    }

    #[derive(PartialEq, Serialize, Deserialize)]
    struct Defaulted {
        id: u8,
        #[serde(skip)]
        cache: u8,
    }

    #[test]
    fn attributes_that_bincode_cannot_follow_are_refused() {
        refused(&Sparse { note: None, amount: 7 });
        accepted(&Sparse { note: Some(1), amount: 7 });
        refused(&Untagged::Number(1));
        refused(&Flat { id: 1, rest: BTreeMap::from([("a".into(), 2)]) });
        refused(&serde_json::json!({ "a": 1 }));
        refused(&serde_json::json!("text"));
    }

    #[test]
    fn a_skipped_field_is_the_users_choice() {
        let (bytes, _) = encode_checked("outcome", &Defaulted { id: 1, cache: 9 }, LIMIT).unwrap();
        assert!(decode::<Defaulted>("outcome", &bytes).unwrap() == Defaulted { id: 1, cache: 0 });
    }

    #[test]
    fn ordinary_values_are_accepted() {
        accepted(&());
        accepted(&(1_u8, 'x', '\u{1f600}', "text".to_owned(), -1_i128, u128::MAX));
        accepted(&Ok::<Option<u8>, String>(None));
        accepted(&vec![Some(f64::MIN_POSITIVE), None]);
        assert!(encode_checked("outcome", &f64::NAN, LIMIT).is_ok());
        accepted(&crate::failure::Failure::new("declined"));
    }

    #[test]
    fn hash_maps_and_sets_are_accepted() {
        let map: HashMap<String, HashSet<u32>> = (0..50).map(|i| (i.to_string(), (0..50).collect())).collect();
        accepted(&map);
        accepted(&(0..50).map(|i| vec![i; 3]).collect::<HashSet<Vec<u64>>>());
    }
}
