//! Fingerprints of JSON texts by value: the SHA-256 digest of the canonical form of RFC 8785.

use super::Fingerprint;
use crate::types::error::{Error, ErrorKind, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// The largest magnitude up to which each whole number is exactly one double: 2^53 - 1.
const MAX_MAGNITUDE: f64 = 9_007_199_254_740_991.0;

/// The member name that `serde_json` uses for numbers if any crate of the program enables its feature
/// `arbitrary_precision`.
const NUMBER_AS_TEXT: &str = "$serde_json::private::Number";

impl Fingerprint {
    /// Returns the fingerprint of a JSON text by its value: the SHA-256 digest of its canonical form by RFC 8785 (JCS).
    ///
    /// These do not count: the order of members, the form of numbers (`1`, `1.0`, `1e0`), escapes in strings, white
    /// space. These do: the order of arrays, a member that is `null` instead of absent, the Unicode normalization of
    /// strings.
    ///
    /// Programs in other languages can compute the same fingerprint. A text and its canonical form:
    ///
    /// ```text
    /// { "currency": "\u0045UR", "amount": 20.00 }
    /// {"amount":20,"currency":"EUR"}
    /// ```
    ///
    /// The fingerprint of the text is the digest of its canonical form. `printf '{"amount":20,"currency":"EUR"}' |
    /// sha256sum` prints it. In Python it is `hashlib.sha256(rfc8785.dumps(json.loads(text))).hexdigest()`:
    ///
    /// ```
    /// use oncekey::Fingerprint;
    ///
    /// let same = Fingerprint::of_json(r#"{ "currency": "\u0045UR", "amount": 20.00 }"#)?;
    /// assert_eq!(
    ///     same.to_string(),
    ///     "2e68b2fe10b7d1d158d106f999c768a15c52e447f29e6fc50b6ebbbf9fffa9d5"
    /// );
    /// assert_eq!(same, Fingerprint::of_json(r#"{"amount":2e1,"currency":"EUR"}"#)?);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Codec`](ErrorKind::Codec) if the text is not JSON in UTF-8, or if programs disagree about its value:
    ///
    /// - an object has a member twice;
    /// - a string has half a surrogate pair;
    /// - a number exceeds 2^53 - 1 in magnitude (send it as a string);
    /// - values are nested more than 127 deep.
    ///
    /// Fractions count as the nearest double.
    pub fn of_json(text: impl AsRef<[u8]>) -> Result<Self> {
        let refused = |cause| Error::new(ErrorKind::Codec, format!("JSON text cannot be fingerprinted: {cause}"));
        let value: Json = serde_json::from_slice(text.as_ref()).map_err(refused)?;
        let canonical = serde_json_canonicalizer::to_vec(&value).map_err(refused)?;
        Ok(Self(Sha256::digest(canonical).into()))
    }
}

/// A JSON value whose numbers are doubles. All members are kept, so that the canonicalizer can reject one that comes
/// twice.
enum Json {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn number<E: serde::de::Error>(number: f64) -> Result<Self, E> {
        if number.abs() <= MAX_MAGNITUDE {
            Ok(Self::Number(number))
        } else {
            Err(E::custom("number is larger than 2^53 - 1, or smaller than its negative"))
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => serializer.serialize_f64(*number),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(values) => values.serialize(serializer),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "a number that is rounded is over the limit, before and after")]
    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Json, E> {
        Json::number(number as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "a number that is rounded is over the limit, before and after")]
    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Json, E> {
        Json::number(number as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Json, E> {
        Json::number(number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        if let [(name, Json::String(number))] = &members[..] {
            if name == NUMBER_AS_TEXT {
                return Json::number(number.parse().map_err(A::Error::custom)?);
            }
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the canonical form, from which the digest is made.
    fn canonical(text: &str) -> String {
        let value: Json = serde_json::from_str(text).unwrap();
        let canonical = serde_json_canonicalizer::to_string(&value).unwrap();
        assert_eq!(Fingerprint::of_json(text).unwrap().as_bytes(), &<[u8; 32]>::from(Sha256::digest(&canonical)));
        canonical
    }

    #[track_caller]
    fn same(one: &str, other: &str) {
        assert_eq!(Fingerprint::of_json(one).unwrap(), Fingerprint::of_json(other).unwrap(), "{one} and {other}");
    }

    #[track_caller]
    fn differ(one: &str, other: &str) {
        assert_ne!(Fingerprint::of_json(one).unwrap(), Fingerprint::of_json(other).unwrap(), "{one} and {other}");
    }

    #[track_caller]
    fn refused(text: impl AsRef<[u8]>, why: &str) {
        let error = Fingerprint::of_json(&text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert!(error.to_string().contains(why), "{}: {error}", text.as_ref().escape_ascii());
    }

    #[test]
    fn order_numbers_escapes_and_white_space_do_not_count() {
        same(r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#);
        same(r#"{"a":{"x":[{"p":1,"q":2}],"y":0}}"#, "{\"a\":{\"y\":0,\"x\":[{\"q\":2,\"p\":1}]}}");
        for one in ["1.0", "1e0", "10E-1", "0.1e+1", "1.000"] {
            same(one, "1");
        }
        same("[-0, -0.0, 0e9]", "[0,0,0]");
        same(r#"["\u0041\/\u00e9\ud83d\ude00"]"#, "[\"A/\u{e9}\u{1f600}\"]");
        same("\n{ \"a\" :\t[ ] }\r\n", r#"{"a":[]}"#);
    }

    #[test]
    fn content_array_order_and_null_count() {
        for (one, other) in [
            ("[1,2]", "[2,1]"),
            (r#"{"a":null}"#, "{}"),
            (r#""1""#, "1"),
            ("true", r#""true""#),
            ("[]", "{}"),
            (r#""""#, "null"),
            ("0.1", "0.10000000000000002"),
            ("9007199254740991", "9007199254740990"),
            ("1", "-1"),
            // RFC 8785 does not normalize strings.
            ("\"\u{e9}\"", "\"e\u{301}\""),
            (r#""A""#, r#""a""#),
        ] {
            differ(one, other);
        }
    }

    // RFC 8785, sections 3.2.2 to 3.2.4. Its number 1E30 is left out, because it exceeds the limit.
    #[test]
    fn the_canonical_form_is_that_of_rfc_8785() {
        let numbers = "{\"numbers\": [333333333.33333329, 4.50, 2e-3, 0.000000000000000000000000001],
            \"string\": \"\\u20ac$\\u000F\\u000aA'\\u0042\\u0022\\u005c\\\\\\\"\\/\", \"literals\": [null, true, false]}";
        let expected = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,4.5,0.002,1e-27],\
            \"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(canonical(numbers), expected);
        let sorting = r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh",
            "1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#;
        let sorted = "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\
            \"\u{f6}\":\"Latin Small Letter O With Diaeresis\",\"\u{20ac}\":\"Euro Sign\",\
            \"\u{1f600}\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}";
        assert_eq!(canonical(sorting), sorted);
    }

    // RFC 8785, appendix B: bits of doubles and their text. Numbers over the limit are left out.
    #[test]
    fn numbers_are_written_as_in_rfc_8785() {
        for (bits, text) in [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5554, "333333333.33333325"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0x41b3_de43_5555_5556, "333333333.3333334"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
        ] {
            let number = f64::from_bits(bits);
            assert_eq!(canonical(&format!("{number:e}")), text);
            assert_eq!(canonical(text), text);
        }
    }

    #[test]
    fn ambiguous_json_is_rejected() {
        refused(r#"{"amount":1,"amount":2}"#, "uplicate");
        refused(r#"[{"a":{"b":0,"\u0062":0}}]"#, "uplicate");
        for number in ["9007199254740992", "-9007199254740992", "18446744073709551616", "1e22", "-1E30"] {
            refused(number, "2^53");
        }
        refused("1e400", "number");
        refused(b"\"\xff\"", "unicode");
        for half in [r#""\ud83d""#, r#""\ude00""#, r#""\ud83d\ud83d""#, r#"{"\ud83dx":1}"#] {
            refused(half, "JSON text cannot be fingerprinted");
        }
        for text in ["", "{", "1 2", "{}x", "nul", "NaN", "'a'", "[1,]", "01", "\u{feff}1", "// c\n1"] {
            refused(text, "JSON text cannot be fingerprinted");
        }
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Fingerprint::of_json(nested(127)).is_ok());
        refused(nested(128), "recursion");
        refused(nested(1_000_000), "recursion");
    }

    #[test]
    fn arbitrary_precision_numbers_have_the_same_fingerprint() {
        same(r#"{"$serde_json::private::Number":"1.50"}"#, "1.5");
        refused(r#"{"$serde_json::private::Number":"9007199254740993"}"#, "2^53");
    }
}
