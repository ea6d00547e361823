//! Commands that change a store.

use std::time::Duration;

use serde_json::json;

use super::out::{Done, Out, size};
use super::progress::Progress;
use super::store::Store;
use super::typed_key::TypedKey;
use crate::{Key, Status};

/// Interrupts a record in progress. If the record is interrupted already, because its process is dead, only reports
/// that.
pub(super) fn revoke(store: &dyn Store, typed: &TypedKey, out: &mut Out<'_>) -> Done {
    let key = typed.key()?;
    if typed.record(store)?.status() == Status::Interrupted {
        return done(typed, &key, "interrupted: it has no live owner", out);
    }
    store.revoke(&typed.manager, &key)?;
    done(typed, &key, "interrupted: its owner has lost the key", out)
}

pub(super) fn forget(store: &dyn Store, typed: &TypedKey, out: &mut Out<'_>) -> Done {
    let key = typed.key()?;
    if !store.forget(&typed.manager, &key)? {
        return Err(typed.nothing(store, "no finished record"));
    }
    done(typed, &key, "forgotten: the next request with this key runs the operation", out)
}

pub(super) fn remove(store: &dyn Store, typed: &TypedKey, out: &mut Out<'_>) -> Done {
    let key = typed.key()?;
    if !store.remove(&typed.manager, &key)? {
        return Err(typed.nothing(store, "no record"));
    }
    done(typed, &key, "removed", out)
}

pub(super) fn extend(store: &dyn Store, typed: &TypedKey, ttl: Duration, out: &mut Out<'_>) -> Done {
    let key = typed.key()?;
    if !store.extend(&typed.manager, &key, ttl)? {
        return Err(typed.nothing(store, "no finished record"));
    }
    let result = format!("extended: it is kept for at least {} from now", humantime::format_duration(ttl));
    done(typed, &key, &result, out)
}

fn done(typed: &TypedKey, key: &Key, result: &str, out: &mut Out<'_>) -> Done {
    if out.json {
        let word = result.split(':').next();
        return out.json(&json!({ "manager": typed.manager, "key": key.to_string(), "result": word }));
    }
    out.line(format_args!("key {key} of {} is {result}", typed.manager))
}

pub(super) fn compact(store: &dyn Store, out: &mut Out<'_>) -> Done {
    let progress = Progress::spinner(out, "deleting expired records");
    let done = store.compact()?;
    drop(progress);
    if out.json {
        return out.json(&json!({ "removed": done.removed, "bytes": done.bytes, "leftovers": done.leftovers }));
    }
    out.line(format_args!("{} expired records deleted, {} of outcomes", done.removed, size(done.bytes)))?;
    if done.leftovers > 0 {
        out.line(format_args!("{} unfinished runs of a crash deleted", done.leftovers))?;
    }
    Ok(())
}
