//! A serde serializer that hashes a value in one canonical form.
//!
//! Each item is a tag byte and its content. Numbers are little-endian in their own width. Strings and bytes follow
//! their length, a `u64`. An item that contains others ends with `END` and their number, a `u64`. So no item is a
//! prefix of another, and two values have the same form only if they are equal:
//!
//! | item | content |
//! |---|---|
//! | unit, unit struct, `None` | nothing |
//! | `Some` | the item |
//! | newtype struct | no tag; only the wrapped item |
//! | variants | index as a `u32`, name, then the content of a newtype, tuple or struct |
//! | sequence, tuple | the items |
//! | struct | name and item of each field that is serialized |
//! | map | the digests of key and item of each entry, sorted |
//! | sequence in any order | the digests of the items, sorted |

use serde::ser::{self, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;

const UNIT: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;
const BOOL: u8 = 3;
const CHAR: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const I8: u8 = 7;
const I16: u8 = 8;
const I32: u8 = 9;
const I64: u8 = 10;
const I128: u8 = 11;
const U8: u8 = 12;
const U16: u8 = 13;
const U32: u8 = 14;
const U64: u8 = 15;
const U128: u8 = 16;
const F32: u8 = 17;
const F64: u8 = 18;
const SEQUENCE: u8 = 19;
const MULTISET: u8 = 20;
const TUPLE: u8 = 21;
const STRUCT: u8 = 22;
const MAP: u8 = 23;
const UNIT_VARIANT: u8 = 24;
const NEWTYPE_VARIANT: u8 = 25;
const TUPLE_VARIANT: u8 = 26;
const STRUCT_VARIANT: u8 = 27;
const END: u8 = 255;

type Hash = [u8; 32];

/// The items whose order counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The order of sequences counts, the order of map entries does not.
    Sequences,
    /// Neither order counts. Tuples and fields are still in order.
    Nothing,
}

/// Returns the digest of the value's canonical form, computed from its human-readable form if `readable`. Fails if
/// `Serialize` fails.
pub(super) fn digest<S: Serialize + ?Sized>(value: &S, order: Order, readable: bool) -> Result<Hash, Refused> {
    Canonical { hasher: Sha256::new(), order, readable }.digest(value)
}

/// The message of a `Serialize` that failed.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl ser::Error for Refused {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct Canonical {
    hasher: Sha256,
    order: Order,
    readable: bool,
}

impl Canonical {
    fn digest<S: Serialize + ?Sized>(mut self, value: &S) -> Result<Hash, Refused> {
        value.serialize(&mut self)?;
        Ok(self.hasher.finalize().into())
    }

    /// Returns the digest of one item.
    fn apart<S: Serialize + ?Sized>(&self, value: &S) -> Result<Hash, Refused> {
        Self { hasher: Sha256::new(), order: self.order, readable: self.readable }.digest(value)
    }

    fn tag(&mut self, tag: u8) {
        self.hasher.update([tag]);
    }

    fn fixed<const N: usize>(&mut self, tag: u8, content: [u8; N]) {
        self.tag(tag);
        self.hasher.update(content);
    }

    fn text(&mut self, bytes: &[u8]) {
        self.hasher.update((bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    fn variant(&mut self, tag: u8, index: u32, name: &str) {
        self.fixed(tag, index.to_le_bytes());
        self.text(name.as_bytes());
    }

    fn end(&mut self, count: u64) {
        self.fixed(END, count.to_le_bytes());
    }

    fn items(&mut self) -> Items<'_> {
        Items { canonical: self, count: 0 }
    }
}

macro_rules! numbers {
    ($($method:ident($number:ty) = $tag:ident;)*) => {
        $(fn $method(self, number: $number) -> Result<(), Refused> {
            self.fixed($tag, number.to_le_bytes());
            Ok(())
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Canonical {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Sequence<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = Items<'a>;
    type SerializeMap = Map<'a>;
    type SerializeStruct = Items<'a>;
    type SerializeStructVariant = Items<'a>;

    numbers! {
        serialize_i8(i8) = I8;
        serialize_i16(i16) = I16;
        serialize_i32(i32) = I32;
        serialize_i64(i64) = I64;
        serialize_i128(i128) = I128;
        serialize_u8(u8) = U8;
        serialize_u16(u16) = U16;
        serialize_u32(u32) = U32;
        serialize_u64(u64) = U64;
        serialize_u128(u128) = U128;
        serialize_f32(f32) = F32;
        serialize_f64(f64) = F64;
    }

    fn serialize_bool(self, value: bool) -> Result<(), Refused> {
        self.fixed(BOOL, [u8::from(value)]);
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Refused> {
        self.fixed(CHAR, u32::from(value).to_le_bytes());
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.tag(STR);
        self.text(value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        self.tag(BYTES);
        self.text(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Refused> {
        self.tag(NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.tag(SOME);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refused> {
        self.tag(UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, index: u32, variant: &'static str) -> Result<(), Refused> {
        self.variant(UNIT_VARIANT, index, variant);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.variant(NEWTYPE_VARIANT, index, variant);
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Sequence<'a>, Refused> {
        Ok(match self.order {
            Order::Sequences => {
                self.tag(SEQUENCE);
                Sequence::Ordered(self.items())
            }
            Order::Nothing => Sequence::Unordered { canonical: self, items: Vec::new() },
        })
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a>, Refused> {
        self.tag(TUPLE);
        Ok(self.items())
    }

    fn serialize_tuple_struct(self, _: &'static str, length: usize) -> Result<Items<'a>, Refused> {
        self.serialize_tuple(length)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'a>, Refused> {
        self.variant(TUPLE_VARIANT, index, variant);
        Ok(self.items())
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Map<'a>, Refused> {
        Ok(Map { canonical: self, key: None, entries: Vec::new() })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, Refused> {
        self.tag(STRUCT);
        Ok(self.items())
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'a>, Refused> {
        self.variant(STRUCT_VARIANT, index, variant);
        Ok(self.items())
    }

    fn is_human_readable(&self) -> bool {
        self.readable
    }
}

/// Items whose order counts, with names if they have any. They are counted here, because the announced length may be
/// absent or wrong.
struct Items<'a> {
    canonical: &'a mut Canonical,
    count: u64,
}

impl Items<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.count += 1;
        value.serialize(&mut *self.canonical)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Refused> {
        self.canonical.tag(STR);
        self.canonical.text(name.as_bytes());
        self.item(value)
    }

    fn finish(self) {
        self.canonical.end(self.count);
    }
}

/// Implements serde's five traits for items in a fixed order. The type provides `item`, `field` and `finish`.
macro_rules! in_order {
    ([$($generics:tt)*] $items:ty, $error:ty) => {
        in_order!([$($generics)*] $items, $error, SerializeTuple, serialize_element() = item);
        in_order!([$($generics)*] $items, $error, SerializeTupleStruct, serialize_field() = item);
        in_order!([$($generics)*] $items, $error, SerializeTupleVariant, serialize_field() = item);
        in_order!([$($generics)*] $items, $error, SerializeStruct, serialize_field(name: &'static str) = field);
        in_order!([$($generics)*] $items, $error, SerializeStructVariant, serialize_field(name: &'static str) = field);
    };
    (
        [$($generics:tt)*] $items:ty, $error:ty, $kind:ident,
        $method:ident($($name:ident: $type:ty)?) = $call:ident
    ) => {
        impl<$($generics)*> serde::ser::$kind for $items {
            type Ok = ();
            type Error = $error;

            fn $method<T: serde::Serialize + ?Sized>(&mut self, $($name: $type,)? value: &T) -> Result<(), $error> {
                self.$call($($name,)? value)
            }

            fn end(self) -> Result<(), $error> {
                self.finish();
                Ok(())
            }
        }
    };
}
pub(crate) use in_order;

in_order!([] Items<'_>, Refused);

enum Sequence<'a> {
    Ordered(Items<'a>),
    Unordered { canonical: &'a mut Canonical, items: Vec<Hash> },
}

impl ser::SerializeSeq for Sequence<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        match self {
            Self::Ordered(items) => items.item(value),
            Self::Unordered { canonical, items } => {
                items.push(canonical.apart(value)?);
                Ok(())
            }
        }
    }

    fn end(self) -> Result<(), Refused> {
        match self {
            Self::Ordered(items) => items.finish(),
            Self::Unordered { canonical, mut items } => {
                items.sort_unstable();
                canonical.tag(MULTISET);
                for item in &items {
                    canonical.hasher.update(item);
                }
                canonical.end(items.len() as u64);
            }
        }
        Ok(())
    }
}

struct Map<'a> {
    canonical: &'a mut Canonical,
    key: Option<Hash>,
    entries: Vec<(Hash, Hash)>,
}

impl ser::SerializeMap for Map<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.key = Some(self.canonical.apart(key)?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        let Some(key) = self.key.take() else { return Err(ser::Error::custom("a map's value came before its key")) };
        self.entries.push((key, self.canonical.apart(value)?));
        Ok(())
    }

    fn end(mut self) -> Result<(), Refused> {
        self.entries.sort_unstable();
        self.canonical.tag(MAP);
        for (key, value) in &self.entries {
            self.canonical.hasher.update(key);
            self.canonical.hasher.update(value);
        }
        self.canonical.end(self.entries.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<S: Serialize + ?Sized>(value: &S) -> Hash {
        digest(value, Order::Nothing, false).unwrap()
    }

    #[test]
    fn a_map_value_before_its_key_is_an_error() {
        struct Headless;
        impl Serialize for Headless {
            fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                ser::SerializeMap::serialize_value(&mut map, &1)?;
                ser::SerializeMap::end(map)
            }
        }
        assert!(digest(&Headless, Order::Sequences, false).is_err());
    }

    #[test]
    fn human_readable_and_compact_forms_have_different_digests() {
        struct Form;
        impl Serialize for Form {
            fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let readable = serializer.is_human_readable();
                serializer.serialize_bool(readable)
            }
        }
        let readable = |value: &[Form; 1]| digest(value, Order::Nothing, true).unwrap();
        assert_eq!((of(&[Form]), readable(&[Form])), (of(&[false]), of(&[true])));
    }
}
