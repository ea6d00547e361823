//! Keys as people type them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use super::out::{Done, Stop};
use super::store::Store;
use crate::{Key, Record, Value};

/// A key of a manager, in the form that `list` prints.
#[derive(Debug)]
pub(super) struct TypedKey {
    pub(super) manager: String,
    pub(super) key: OsString,
}

impl TypedKey {
    pub(super) fn key(&self) -> Done<Key> {
        Ok(Key::from_text(self.key.as_bytes())?)
    }

    /// Returns the record of the key.
    pub(super) fn record(&self, store: &dyn Store) -> Done<Record<Value, Value>> {
        store.get(&self.manager, &self.key()?)?.ok_or_else(|| self.nothing(store, "no record"))
    }

    /// Returns the record of the key. Refuses one of another revision than `seen`.
    pub(super) fn record_at(&self, store: &dyn Store, seen: Option<u64>) -> Done<Record<Value, Value>> {
        let record = self.record(store)?;
        let (key, now) = (record.info().key(), record.info().revision());
        if seen.is_some_and(|seen| seen != now) {
            let message = format!("key {key} of {} has changed: its revision is {now}", self.manager);
            return Err(Stop::Nothing(message));
        }
        Ok(record)
    }

    /// Returns the reason why a command found nothing. Names the key made of parts that may have been meant.
    pub(super) fn nothing(&self, store: &dyn Store, what: &str) -> Stop {
        let typed = self.key.as_bytes();
        let with_slash = [b"/", typed].concat();
        let meant = if typed.contains(&b'/') { Key::from_text(with_slash).ok() } else { None };
        let meant = meant.filter(|key| matches!(store.get(&self.manager, key), Ok(Some(_))));
        let hint = meant.map_or_else(String::new, |key| format!("; {key} has one: a key made of parts begins with /"));
        let shown = self.key().map_or_else(|_| self.key.to_string_lossy().into_owned(), |key| key.to_string());
        Stop::Nothing(format!("key {shown} of {} has {what}{hint}", self.manager))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;

    #[test]
    fn a_key_without_a_record_names_the_one_that_was_meant() {
        let engine = Engine::temporary().unwrap();
        let manager = engine.manager::<u8, String>("m").unwrap();
        let typed = TypedKey { manager: "m".to_owned(), key: "ada/order".into() };
        let error = |typed: &TypedKey| typed.record(&engine).unwrap_err().message().unwrap();
        assert_eq!(error(&typed), "key ada/order of m has no record");
        manager.execute(Key::from_parts(["ada", "order"]).unwrap(), |_| Ok(1)).unwrap();
        assert!(error(&typed).ends_with("no record; /ada/order has one: a key made of parts begins with /"));
        manager.execute("ada/order", |_| Ok(1)).unwrap();
        assert!(typed.record(&engine).is_ok());
    }
}
