//! A serde serializer that hashes the shape of a value, and can write the value in the same pass.
//!
//! The shape is what the type's `Serialize` reports, in order: kinds of items, names of types, fields and variants,
//! indexes of variants. The value decides how much is known: a `None` or an empty sequence shows nothing about the type
//! of its items.
//!
//! The hashes of the items of sequences and maps are added up, because the order in a hash map differs in each
//! instance. Inside an item, order counts again. [`Readable`] also hashes the content.

use std::fmt;

use serde::ser::{self, Serialize};

use crate::types::fingerprint::in_order;

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
const TUPLE: u8 = 20;
const STRUCT: u8 = 21;
const MAP: u8 = 22;
const UNIT_STRUCT: u8 = 23;
const NEWTYPE_STRUCT: u8 = 24;
const TUPLE_STRUCT: u8 = 25;
const UNIT_VARIANT: u8 = 26;
const NEWTYPE_VARIANT: u8 = 27;
const TUPLE_VARIANT: u8 = 28;
const STRUCT_VARIANT: u8 = 29;
const NAME: u8 = 30;
const END: u8 = 31;

/// The initial hash of a shape, and of each item of a sequence. Changes of these constants make stored values
/// unreadable.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The reason why a walk ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The value does not fit into the limit.
    TooLarge,
    /// The value's `Serialize` failed with this message.
    Refused(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("it is too large"),
            Self::Refused(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Stop {}

impl ser::Error for Stop {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Refused(message.to_string())
    }
}

/// The destination of the bytes. Their form is that of bincode 1: fixed-width integers, little-endian.
pub(super) trait Output {
    /// True if the value is asked for its human-readable form, and its content is hashed too.
    const READABLE: bool = false;

    fn put(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }

    /// Reserves 8 bytes for the number of items, which is known only after the last item.
    fn begin_items(&mut self) -> Result<usize, Stop> {
        self.put(&[0; 8]).map(|()| 0)
    }

    fn end_items(&mut self, _: usize, _: u64) {}
}

/// Writes nothing: only the shape is hashed.
pub(super) struct Nothing;

impl Output for Nothing {}

/// Writes nothing: the shape and the content of the human-readable form are hashed.
pub(super) struct Readable;

impl Output for Readable {
    const READABLE: bool = true;
}

/// Counts the bytes only.
pub(super) struct Count(pub(super) u64);

impl Output for Count {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.0 = self.0.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

/// Appends to a buffer.
pub(super) struct Bytes<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
    /// The largest allowed length of the buffer, in bytes.
    pub(super) limit: u64,
}

impl Output for Bytes<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if (self.bytes.len() as u64).saturating_add(bytes.len() as u64) > self.limit {
            return Err(Stop::TooLarge);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn begin_items(&mut self) -> Result<usize, Stop> {
        let at = self.bytes.len();
        self.put(&[0; 8]).map(|()| at)
    }

    fn end_items(&mut self, at: usize, count: u64) {
        if let Some(room) = self.bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *room = count.to_le_bytes();
        }
    }
}

/// Walks the value, and returns the digest of its shape and the output.
pub(super) fn walk<S: Serialize + ?Sized, O: Output>(value: &S, output: O) -> Result<(u64, O), Stop> {
    let mut walk = Walk { hash: SEED, output };
    value.serialize(&mut walk)?;
    Ok((finish(walk.hash), walk.output))
}

/// Mixes a hash before it is added to others. Without this, different items could easily have the same sum.
fn finish(hash: u64) -> u64 {
    let mixed = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 32)
}

struct Walk<O> {
    hash: u64,
    output: O,
}

impl<O: Output> Walk<O> {
    #[inline]
    fn word(&mut self, word: u64) {
        let mixed = (self.hash ^ word).wrapping_mul(MULTIPLIER);
        self.hash = mixed ^ (mixed >> 32);
    }

    #[inline]
    fn tag(&mut self, tag: u8) {
        self.word(u64::from(tag));
    }

    fn text(&mut self, bytes: &[u8]) {
        self.word((bytes.len() as u64) << 8 | u64::from(NAME));
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.word(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn fixed(&mut self, tag: u8, bytes: &[u8]) -> Result<(), Stop> {
        self.tag(tag);
        if O::READABLE {
            self.text(bytes);
        }
        self.output.put(bytes)
    }

    fn sized(&mut self, tag: u8, bytes: &[u8]) -> Result<(), Stop> {
        self.tag(tag);
        if O::READABLE {
            self.text(bytes);
        }
        self.output.put(&(bytes.len() as u64).to_le_bytes())?;
        self.output.put(bytes)
    }

    fn named(&mut self, tag: u8, name: &str) {
        self.tag(tag);
        self.text(name.as_bytes());
    }

    fn variant(&mut self, tag: u8, name: &str, index: u32, variant: &str) -> Result<(), Stop> {
        self.named(tag, name);
        self.word(u64::from(index));
        self.text(variant.as_bytes());
        self.output.put(&index.to_le_bytes())
    }

    fn items(&mut self) -> Items<'_, O> {
        Items { walk: self, count: 0 }
    }

    fn unordered(&mut self, tag: u8) -> Result<Unordered<'_, O>, Stop> {
        self.tag(tag);
        let at = self.output.begin_items()?;
        Ok(Unordered { outer: self.hash, sum: 0, count: 0, at, walk: self })
    }
}

macro_rules! numbers {
    ($($method:ident($number:ty) = $tag:ident;)*) => {
        $(#[inline]
        fn $method(self, number: $number) -> Result<(), Stop> {
            self.fixed($tag, &number.to_le_bytes())
        })*
    };
}

impl<'a, O: Output> ser::Serializer for &'a mut Walk<O> {
    type Ok = ();
    type Error = Stop;
    type SerializeSeq = Unordered<'a, O>;
    type SerializeTuple = Items<'a, O>;
    type SerializeTupleStruct = Items<'a, O>;
    type SerializeTupleVariant = Items<'a, O>;
    type SerializeMap = Unordered<'a, O>;
    type SerializeStruct = Items<'a, O>;
    type SerializeStructVariant = Items<'a, O>;

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

    fn serialize_bool(self, value: bool) -> Result<(), Stop> {
        self.fixed(BOOL, &[u8::from(value)])
    }

    fn serialize_char(self, value: char) -> Result<(), Stop> {
        self.fixed(CHAR, value.encode_utf8(&mut [0; 4]).as_bytes())
    }

    fn serialize_str(self, value: &str) -> Result<(), Stop> {
        self.sized(STR, value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Stop> {
        self.sized(BYTES, value)
    }

    fn serialize_none(self) -> Result<(), Stop> {
        self.tag(NONE);
        self.output.put(&[0])
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Stop> {
        self.tag(SOME);
        self.output.put(&[1])?;
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Stop> {
        self.tag(UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<(), Stop> {
        self.named(UNIT_STRUCT, name);
        Ok(())
    }

    fn serialize_unit_variant(self, name: &'static str, index: u32, variant: &'static str) -> Result<(), Stop> {
        self.variant(UNIT_VARIANT, name, index, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<(), Stop> {
        self.named(NEWTYPE_STRUCT, name);
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        self.variant(NEWTYPE_VARIANT, name, index, variant)?;
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Unordered<'a, O>, Stop> {
        self.unordered(SEQUENCE)
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a, O>, Stop> {
        self.tag(TUPLE);
        Ok(self.items())
    }

    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Items<'a, O>, Stop> {
        self.named(TUPLE_STRUCT, name);
        Ok(self.items())
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'a, O>, Stop> {
        self.variant(TUPLE_VARIANT, name, index, variant)?;
        Ok(self.items())
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Unordered<'a, O>, Stop> {
        self.unordered(MAP)
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Items<'a, O>, Stop> {
        self.named(STRUCT, name);
        Ok(self.items())
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'a, O>, Stop> {
        self.variant(STRUCT_VARIANT, name, index, variant)?;
        Ok(self.items())
    }

    fn is_human_readable(&self) -> bool {
        O::READABLE
    }
}

/// Items whose order counts, with names if they have any. Their number is not written, only hashed.
struct Items<'a, O> {
    walk: &'a mut Walk<O>,
    count: u64,
}

impl<O: Output> Items<'_, O> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        self.count += 1;
        value.serialize(&mut *self.walk)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Stop> {
        self.walk.text(name.as_bytes());
        self.item(value)
    }

    fn finish(self) {
        self.walk.word(self.count << 8 | u64::from(END));
    }
}

in_order!([O: Output] Items<'_, O>, Stop);

/// Items, or entries of a map, whose order does not count. They are counted here, because the announced length may be
/// absent or wrong.
struct Unordered<'a, O> {
    walk: &'a mut Walk<O>,
    /// The hash before the first item.
    outer: u64,
    sum: u64,
    count: u64,
    at: usize,
}

impl<O: Output> Unordered<'_, O> {
    #[inline]
    fn begin<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        self.walk.hash = SEED;
        value.serialize(&mut *self.walk)
    }

    #[inline]
    fn add(&mut self) {
        self.sum = self.sum.wrapping_add(finish(self.walk.hash));
        self.count += 1;
    }

    fn finish(self) {
        self.walk.output.end_items(self.at, self.count);
        self.walk.hash = self.outer;
        self.walk.word(self.sum);
        self.walk.word(self.count << 8 | u64::from(END));
    }
}

impl<O: Output> ser::SerializeSeq for Unordered<'_, O> {
    type Ok = ();
    type Error = Stop;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        self.begin(value)?;
        self.add();
        Ok(())
    }

    fn end(self) -> Result<(), Stop> {
        self.finish();
        Ok(())
    }
}

impl<O: Output> ser::SerializeMap for Unordered<'_, O> {
    type Ok = ();
    type Error = Stop;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Stop> {
        self.begin(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        // Continue the hash of the key: an entry is one item.
        value.serialize(&mut *self.walk)?;
        self.add();
        Ok(())
    }

    fn end(self) -> Result<(), Stop> {
        self.finish();
        Ok(())
    }
}
