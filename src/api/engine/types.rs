//! The outcome types of the live managers, by name and schema.

use std::any::type_name;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::types::error::{Error, ErrorKind, Result};

type Types = (&'static str, &'static str);
type Name = (String, u32);

/// The types of a manager, and the number of live managers that use them.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownTypes(Arc<Mutex<HashMap<Name, (Types, usize)>>>);

/// A registration, held by a manager and its clones. The last drop removes the name, because there may be one name for
/// each tenant.
#[derive(Debug)]
pub(crate) struct Registered {
    known: KnownTypes,
    name: Name,
}

impl KnownTypes {
    /// Registers the types of a manager's outcomes. Fails if a live manager with the same name and schema has other
    /// types.
    pub(super) fn register<T, E>(&self, name: &str, schema: u32) -> Result<Registered> {
        let types = (type_name::<T>(), type_name::<E>());
        let name = (name.to_owned(), schema);
        let mut known = self.0.lock();
        let ((t, e), managers) = known.entry(name.clone()).or_insert((types, 0));
        if (*t, *e) == types {
            *managers += 1;
            return Ok(Registered { known: self.clone(), name });
        }
        let (other_t, other_e) = types;
        let name = &name.0;
        let message = format!("manager {name} has the types {t} and {e}; the call has {other_t} and {other_e}");
        Err(Error::new(ErrorKind::TypeMismatch, message))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Entry::Occupied(mut known) = self.known.0.lock().entry(std::mem::take(&mut self.name)) {
            known.get_mut().1 -= 1;
            if known.get().1 == 0 {
                known.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_for_other_types_after_its_last_manager() {
        let known = KnownTypes::default();
        let first = known.register::<u32, String>("m", 0).unwrap();
        let second = known.register::<u32, String>("m", 0).unwrap();
        let _other = known.register::<u64, String>("m", 1).unwrap();
        for alive in [first, second] {
            assert_eq!(known.register::<u64, String>("m", 0).unwrap_err().kind(), ErrorKind::TypeMismatch);
            drop(alive);
        }
        assert_eq!(known.0.lock().len(), 1);
        drop(known.register::<u64, String>("m", 0).unwrap());
        for tenant in 0..1_000 {
            drop(known.register::<u64, String>(&format!("tenant-{tenant}"), 0).unwrap());
        }
        assert_eq!(known.0.lock().len(), 1, "one is alive");
    }
}
