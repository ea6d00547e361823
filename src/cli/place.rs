//! Keys as people type them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use super::out::{Done, Stop};
use crate::{Engine, Key, admin::RawManager};

/// A key of a manager, in the form that `list` prints.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) manager: String,
    pub(super) key: OsString,
}

impl Place {
    /// Finds the key. A text with `/` may be one whole key or a key made of parts; takes the one that has a record.
    pub(super) fn find(&self, engine: &Engine) -> Done<(RawManager, Key)> {
        let raw = engine.raw(&self.manager)?;
        let bytes = self.key.as_bytes();
        let whole = Key::from_bytes(&unescape(bytes))?;
        if !bytes.contains(&b'/') {
            return Ok((raw, whole));
        }
        let Ok(parts) = Key::from_parts(bytes.split(|byte| *byte == b'/').map(unescape)) else {
            return Ok((raw, whole));
        };
        match (raw.get(&whole)?.is_some(), raw.get(&parts)?.is_some()) {
            (_, false) => Ok((raw, whole)),
            (false, true) => Ok((raw, parts)),
            (true, true) => Err(Stop::Usage(format!(
                "{} has a key {} and one of the parts {}; write the first with \\x2f for /, or the second with \\xffkey and \
                 two bytes of length before each part",
                self.manager, whole, parts
            ))),
        }
    }
}

/// Decodes `\xNN` into a byte. All else stays as it is.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = rest.strip_prefix(b"\\x").and_then(|tail| tail.split_first_chunk::<2>()).and_then(byte);
        let (byte, tail) = escaped.unwrap_or((first, tail));
        bytes.push(byte);
        rest = tail;
    }
    bytes
}

fn byte<'a>((digits, tail): (&[u8; 2], &'a [u8])) -> Option<(u8, &'a [u8])> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    Some((u8::from_str_radix(digits, 16).ok()?, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displayed_key_is_parsed_back() {
        for bytes in [&b"order-42"[..], b"a\\xb", b"\x00\xff\\", b"tab\t", b"\\x4", b"+f"] {
            let key = Key::new(bytes).unwrap();
            assert_eq!(unescape(key.to_string().as_bytes()), bytes, "{key}");
        }
        assert_eq!(unescape(b"\\x4\\y\\x+1"), b"\\x4\\y\\x+1");
    }

    #[test]
    fn of_two_keys_with_the_same_text_the_one_with_a_record_is_found() {
        let engine = Engine::temporary().unwrap();
        let manager = engine.manager::<u8, String>("m").unwrap();
        let place = || Place { manager: "m".to_owned(), key: "ada/or\\x2fder".into() };
        let found = || place().find(&engine).map(|(_, key)| key);
        let (whole, parts) = (Key::new("ada/or/der").unwrap(), Key::from_parts(["ada", "or/der"]).unwrap());
        assert_eq!(found().unwrap(), whole);
        manager.execute(&parts, |_| Ok(1)).unwrap();
        assert_eq!(found().unwrap(), parts);
        manager.execute(&whole, |_| Ok(1)).unwrap();
        assert_eq!(found().unwrap_err().status(), 2);
    }
}
