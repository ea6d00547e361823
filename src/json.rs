//! Outcomes of types that bincode cannot read back.

use crate::fingerprint::STRUCTURED;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use std::fmt;

/// A value that is stored as JSON text.
///
/// Wrap a type in it that bincode cannot read back: one with `untagged`, `flatten` or `skip_serializing_if`, or a
/// `serde_json::Value`. In a human-readable format it is the value itself. `Debug` does not show the value.
///
/// ```
/// use oncekey::Json;
///
/// let receipt = Json(serde_json::json!({ "charge": "ch_1", "amount": 20 }));
/// let stored = bincode::serialize(&receipt)?;
/// assert_eq!(bincode::deserialize::<Json<serde_json::Value>>(&stored)?.0["amount"], 20);
/// # Ok::<(), bincode::Error>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(pub T);

impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json(..)")
    }
}

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.0.serialize(serializer)
        } else {
            serializer.serialize_newtype_struct(STRUCTURED, &Text(&self.0))
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return T::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text).map(Self).map_err(|error| D::Error::custom(place(&error)))
    }
}

/// The inside, asked again for its form: a serializer may want the structure of the value rather than its text.
struct Text<'a, T>(&'a T);

impl<T: Serialize> Serialize for Text<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.0.serialize(serializer)
        } else {
            serializer.serialize_str(&serde_json::to_string(self.0).map_err(S::Error::custom)?)
        }
    }
}

/// Where JSON could not be read. The error's own text may quote the value, which is not for logs.
fn place(error: &serde_json::Error) -> String {
    let problem = match error.classify() {
        Category::Data => "JSON does not fit the type",
        Category::Syntax => "JSON is malformed",
        Category::Eof => "JSON is cut short",
        Category::Io => "JSON cannot be read",
    };
    format!("{problem} at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::error::ErrorKind;
    use std::collections::{HashMap, HashSet};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Hard {
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        either: Either,
        #[serde(flatten)]
        rest: HashMap<String, serde_json::Value>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }

    fn hard() -> Hard {
        let rest = (0..50).map(|i| (format!("field{i}"), serde_json::json!([i, null]))).collect();
        Hard { note: None, either: Either::Text("x".into()), rest }
    }

    #[test]
    fn what_bincode_cannot_read_back_is_stored() {
        assert_eq!(codec::encode_checked("outcome", &hard(), 1 << 20).unwrap_err().kind(), ErrorKind::Codec);
        let (bytes, _) = codec::encode_checked("outcome", &Json(hard()), 1 << 20).unwrap();
        assert_eq!(codec::decode::<Json<Hard>>("outcome", &bytes).unwrap(), Json(hard()));
    }

    #[test]
    fn hash_maps_and_sets_inside_are_accepted() {
        let value = Json(((0..50).collect::<HashSet<u32>>(), (0..50).map(|i| (i, i)).collect::<HashMap<u32, u32>>()));
        let (bytes, _) = codec::encode_checked("outcome", &value, 1 << 20).unwrap();
        assert_eq!(codec::decode::<Json<_>>("outcome", &bytes).unwrap(), value);
    }

    #[test]
    fn floats_come_back_to_the_bit_and_nan_is_refused() {
        // Fails without serde_json's `float_roundtrip`: its quick parser is off by a bit in some of these numbers below 2.
        for seed in 1..2000_u64 {
            let number = f64::from_bits(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xbfff_ffff_ffff_ffff);
            let (bytes, _) = codec::encode_checked("outcome", &Json(number), 64).unwrap();
            assert_eq!(codec::decode::<Json<f64>>("outcome", &bytes).unwrap().0.to_bits(), number.to_bits());
        }
        assert_eq!(codec::encode_checked("outcome", &Json(f64::NAN), 64).unwrap_err().kind(), ErrorKind::Codec);
    }

    #[test]
    fn it_is_text_in_bincode_and_itself_in_json() {
        let value = Json(vec![1, 2]);
        assert_eq!(bincode::serialize(&value).unwrap(), b"\x05\0\0\0\0\0\0\0[1,2]");
        assert_eq!(serde_json::to_string(&value).unwrap(), "[1,2]");
        assert_eq!(serde_json::from_str::<Json<Vec<i32>>>("[1,2]").unwrap(), value);
        assert_eq!(format!("{value:?}"), "Json(..)");
    }

    #[test]
    fn errors_do_not_quote_the_value() {
        let bytes = bincode::serialize(&Json("secret")).unwrap();
        let error = bincode::deserialize::<Json<u32>>(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "JSON does not fit the type at line 1 column 8");
    }
}
