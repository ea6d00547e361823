//! Fingerprints: digests that decide whether two requests are the same.

mod canonical;
#[cfg(feature = "http")]
mod json;

use crate::types::error::{Error, ErrorKind, Result};
pub(crate) use canonical::in_order;
use canonical::{Order, digest};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// The prefix of a digest of parts, which makes such a digest different from that of any single value.
const PARTS: &[u8] = b"oncekey.parts.1";

/// A SHA-256 digest of the facts that make two requests the same, equal in every process and release.
///
/// A key that is used again with another fingerprint is a mismatch: the caller does not get the answer to the first
/// request.
///
/// ```
/// use oncekey::Fingerprint;
/// use std::collections::HashMap;
///
/// let first = HashMap::from([("amount", 20), ("tip", 2)]);
/// let again = HashMap::from([("tip", 2), ("amount", 20)]);
/// assert_eq!(Fingerprint::of(&first)?, Fingerprint::of(&again)?);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of a value, as serde serializes it.
    ///
    /// These count: names of fields and variants, widths of numbers, the order of sequences and fields. These do not:
    /// names of types, and the order of a map's entries. Floats are compared by their bits.
    ///
    /// - **Serde treats sets as sequences.** Two `HashSet`s with the same content can differ. Use a `BTreeSet`, or
    ///   sort.
    /// - **A new field in a request changes its fingerprint**, even if it is optional and absent. A retry across a
    ///   deploy would then be a mismatch. Put `skip_serializing_if` on the field, or use a [`builder`](Self::builder)
    ///   with the parts that count.
    ///
    /// # Errors
    ///
    /// [`Codec`](ErrorKind::Codec) if the value's `Serialize` fails.
    pub fn of<S: Serialize + ?Sized>(value: &S) -> Result<Self> {
        Self::digest(value, Order::Sequences, false)
    }

    /// Returns the fingerprint of a value. The order of sequences does not count, so that hash sets agree.
    pub(crate) fn unordered<S: Serialize + ?Sized>(value: &S) -> Result<Self> {
        Self::digest(value, Order::Nothing, false)
    }

    /// Returns the [`unordered`](Self::unordered) fingerprint of the value's human-readable form.
    pub(crate) fn readable<S: Serialize + ?Sized>(value: &S) -> Result<Self> {
        Self::digest(value, Order::Nothing, true)
    }

    fn digest<S: Serialize + ?Sized>(value: &S, order: Order, readable: bool) -> Result<Self> {
        let refused = |cause| Error::new(ErrorKind::Codec, format!("value cannot be fingerprinted: {cause}"));
        digest(value, order, readable).map(Self).map_err(refused)
    }

    /// Starts a fingerprint of chosen parts. Use it for requests whose type changes from release to release.
    ///
    /// ```
    /// use oncekey::Fingerprint;
    ///
    /// let body = br#"{"amount":20}"#;
    /// let fingerprint = Fingerprint::builder().part("POST /charges").part(body).finish();
    /// assert_ne!(
    ///     fingerprint,
    ///     Fingerprint::builder().part("POST /refunds").part(body).finish()
    /// );
    /// ```
    pub fn builder() -> FingerprintBuilder {
        FingerprintBuilder { hasher: Sha256::new_with_prefix(PARTS) }
    }

    /// Returns the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Prints the digest in hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(")?;
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Builds a [`Fingerprint`] of parts. The order of the parts counts.
#[derive(Clone)]
#[must_use = "it does nothing before `finish`"]
pub struct FingerprintBuilder {
    hasher: Sha256,
}

impl FingerprintBuilder {
    /// Adds a part. Its length counts too: `"ab"`, `"c"` is different from `"a"`, `"bc"`.
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.hasher.update((part.len() as u64).to_le_bytes());
        self.hasher.update(part);
        self
    }

    /// Returns the fingerprint of all parts.
    #[must_use]
    pub fn finish(self) -> Fingerprint {
        Fingerprint(self.hasher.finalize().into())
    }
}

impl fmt::Debug for FingerprintBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintBuilder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap, HashSet};

    fn of<S: Serialize + ?Sized>(value: &S) -> Fingerprint {
        Fingerprint::of(value).unwrap()
    }

    fn unordered<S: Serialize + ?Sized>(value: &S) -> Fingerprint {
        Fingerprint::unordered(value).unwrap()
    }

    #[derive(Serialize)]
    struct Wrapper(u8);

    #[derive(Serialize)]
    struct Pair {
        a: u8,
        #[serde(skip_serializing_if = "Option::is_none")]
        b: Option<u8>,
    }

    #[derive(Serialize)]
    struct Renamed {
        #[serde(rename = "b")]
        a: u8,
    }

    #[derive(Serialize)]
    enum Kind {
        Unit,
        One(u8),
        Two(u8, u8),
        Named { a: u8 },
        OtherOne(u8),
    }

    struct Refusing;

    impl Serialize for Refusing {
        fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("the lock is poisoned"))
        }
    }

    struct Raw<'a>(&'a [u8]);

    impl Serialize for Raw<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    #[test]
    fn the_boundaries_of_parts_count() {
        let built = |parts: &[&str]| parts.iter().fold(Fingerprint::builder(), FingerprintBuilder::part).finish();
        assert_eq!(built(&["ab", "c"]), built(&["ab", "c"]));
        let all =
            [built(&[]), built(&[""]), built(&["ab", "c"]), built(&["a", "bc"]), built(&["c", "ab"]), built(&["abc"])];
        let distinct = HashSet::from(all);
        assert_eq!(distinct.len(), all.len());
    }

    // Stores contain these digests. If they change, every retry across a release becomes a mismatch.
    #[test]
    fn digests_are_those_of_the_first_release() {
        let built = Fingerprint::builder().part("POST").part("/charges").finish();
        assert_eq!(format!("{built:?}"), "Fingerprint(d7e7c133bf5bb413)");
        let value = Fingerprint::of(&(1_u8, "a", Some([2.5_f64]), BTreeMap::from([('k', -1_i64)])));
        assert_eq!(format!("{:?}", value.unwrap()), "Fingerprint(be577cefb6586d94)");
    }

    #[test]
    fn a_fingerprint_is_printed_in_hexadecimal_and_stored_as_32_bytes() {
        let fingerprint = Fingerprint::from_bytes([0xab; 32]);
        assert_eq!(fingerprint.to_string(), "ab".repeat(32));
        assert_eq!(format!("{fingerprint:?}"), "Fingerprint(abababababababab)");
        let bytes = bincode::serialize(&fingerprint).unwrap();
        assert_eq!(bytes, fingerprint.as_bytes());
        assert_eq!(bincode::deserialize::<Fingerprint>(&bytes).unwrap(), fingerprint);
    }

    #[test]
    fn a_value_that_fails_to_serialize_is_an_error() {
        let error = Fingerprint::of(&[Some(Refusing)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert_eq!(error.to_string(), "value cannot be fingerprinted: the lock is poisoned");
    }

    #[test]
    fn different_values_have_different_digests() {
        let all = [
            of(&()),
            of(&None::<()>),
            of(&Some(())),
            of(&Some(Some(()))),
            of(&false),
            of(&0_u8),
            of(&0_i8),
            of(&0_u64),
            of(&0_i128),
            of(&0_u128),
            of(&0.0_f32),
            of(&0.0_f64),
            of(&-0.0_f64),
            of(&'a'),
            of("a"),
            of(""),
            of(&Raw(b"a")),
            of(&["a"]),
            of(&vec!["a"]),
            of(&vec!["a", ""]),
            of(&vec!["", "a"]),
            of(&vec![vec!["a"], vec![]]),
            of(&vec![vec![], vec!["a"]]),
            of(&vec![vec!["a"]]),
            of(&("ab", "c")),
            of(&("a", "bc")),
            of(&(("a", "b"), "c")),
            of(&("a", ("b", "c"))),
            of(&BTreeMap::from([("a", "b")])),
            of(&BTreeMap::from([("b", "a")])),
            of(&vec![("a", "b")]),
            of(&BTreeMap::<u8, u8>::new()),
            of(&Vec::<()>::new()),
            of(&Pair { a: 1, b: None }),
            of(&Pair { a: 1, b: Some(1) }),
            of(&Renamed { a: 1 }),
            of(&Kind::Unit),
            of(&Kind::One(1)),
            of(&Kind::OtherOne(1)),
            of(&Kind::Two(1, 1)),
            of(&Kind::Named { a: 1 }),
        ];
        let distinct = HashSet::from(all);
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn names_of_types_and_wrappers_do_not_count() {
        #[derive(Serialize)]
        struct OtherName {
            a: u8,
        }
        assert_eq!(of(&Wrapper(7)), of(&7_u8));
        assert_eq!(of(&Pair { a: 1, b: None }), of(&OtherName { a: 1 }));
    }

    #[test]
    fn maps_agree_in_any_order_at_any_depth() {
        let nested =
            || (0..50).map(|i| (i, (0..i).map(|j| (j, j)).collect())).collect::<HashMap<u8, HashMap<u8, u8>>>();
        assert_eq!(of(&[nested()]), of(&[nested()]));
    }

    #[test]
    fn sets_agree_only_without_order() {
        let set = || (0..50).collect::<HashSet<u8>>();
        assert_eq!(unordered(&[set()]), unordered(&[set()]));
        assert_eq!(unordered(&vec![1, 2, 1]), unordered(&vec![1, 1, 2]));
        assert_ne!(of(&vec![1, 2, 1]), of(&vec![1, 1, 2]));
        assert_ne!(unordered(&vec![1, 2, 1]), unordered(&vec![1, 2, 2]), "a multiset, not a set");
        assert_ne!(unordered(&(1, 2)), unordered(&(2, 1)), "a tuple has an order");
    }
}
