//! Commands that change a store.

use std::time::Duration;

use serde_json::json;

use super::out::{Done, Out, size};
use super::place::Place;
use super::progress::Progress;
use super::store::Store;
use crate::{Key, Status};

/// Interrupts a record in progress. If the record is interrupted already, because its process is dead, only reports
/// that.
pub(super) fn revoke(store: &dyn Store, place: &Place, out: &mut Out<'_>) -> Done {
    let key = place.key()?;
    if place.record(store)?.status() == Status::Interrupted {
        return done(place, &key, "interrupted: it has no live owner", out);
    }
    store.revoke(&place.manager, &key)?;
    done(place, &key, "interrupted: its owner has lost it", out)
}

pub(super) fn forget(store: &dyn Store, place: &Place, out: &mut Out<'_>) -> Done {
    let key = place.key()?;
    if !store.forget(&place.manager, &key)? {
        return Err(place.nothing(store, "no finished record"));
    }
    done(place, &key, "forgotten: the next request with this key runs it", out)
}

pub(super) fn remove(store: &dyn Store, place: &Place, out: &mut Out<'_>) -> Done {
    let key = place.key()?;
    if !store.remove(&place.manager, &key)? {
        return Err(place.nothing(store, "no record"));
    }
    done(place, &key, "removed", out)
}

pub(super) fn extend(store: &dyn Store, place: &Place, ttl: Duration, out: &mut Out<'_>) -> Done {
    let key = place.key()?;
    if !store.extend(&place.manager, &key, ttl)? {
        return Err(place.nothing(store, "no finished record"));
    }
    let result = format!("extended: it is kept for at least {} from now", humantime::format_duration(ttl));
    done(place, &key, &result, out)
}

fn done(place: &Place, key: &Key, result: &str, out: &mut Out<'_>) -> Done {
    if out.json {
        let word = result.split(':').next();
        return out.json(&json!({ "manager": place.manager, "key": key.to_string(), "result": word }));
    }
    out.line(format_args!("key {key} of {} is {result}", place.manager))
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
