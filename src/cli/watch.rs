//! Prints the events of a store, as they happen.

use serde_json::json;

use super::Reached;
use super::location::Location;
use super::out::{Done, Out, Stop};
use crate::{
    EngineOptions, ErrorKind, RecordInfo,
    admin::{Event, LiveStore},
    clock::{Clock as _, SystemClock},
};

const INSTEAD: &str = "its events are in the services that have it open; use `oncekey list --newer-than 1m`";

/// Prints each event until the process that has the store open closes it, or until `limit` events are printed.
pub(super) fn watch(options: &EngineOptions, store: &Location, limit: Option<usize>, out: &mut Out<'_>) -> Done {
    let live = match LiveStore::connect(store.directory("watch", INSTEAD)?) {
        // Nobody answers. An open finds out why.
        Err(none) if none.kind() == ErrorKind::StoreInUse => {
            match super::reach(&options.clone().read_only(true), store)? {
                Reached::Live(live) => live,
                Reached::Opened(engine) => {
                    engine.close()?;
                    return Err(Stop::Nothing(format!("nothing happens in {store}: no process has it open")));
                }
            }
        }
        connected => connected.map_err(Stop::open)?,
    };
    for event in live.events()?.take(limit.unwrap_or(usize::MAX)) {
        print(&event?, out)?;
        // Flush, so that a reader sees each event when it happens.
        out.flush()?;
    }
    Ok(())
}

fn print(event: &Event, out: &mut Out<'_>) -> Done {
    let at = humantime::format_rfc3339_millis(SystemClock.wall());
    let (name, record, what) = match event {
        Event::Began(info) => ("began", Some(info), format!("attempt {}", info.attempt())),
        Event::Replayed(info) => ("replayed", Some(info), status(info)),
        Event::Ended(info) => ("ended", Some(info), status(info)),
        Event::Expired { count } => ("expired", None, format!("{count} records")),
        Event::Compacted(done) => ("compacted", None, format!("{} records deleted", done.removed)),
        Event::CompactionFailed(error) => ("compaction failed", None, error.to_string()),
        Event::Poisoned(error) => ("poisoned", None, error.to_string()),
        Event::Missed { count } => ("missed", None, format!("{count} events, which came faster than they were read")),
    };
    if out.json {
        let count = match event {
            Event::Expired { count } | Event::Missed { count } => Some(*count),
            _ => None,
        };
        let at = at.to_string();
        return out.json(&json!({ "at": at, "event": name, "record": record, "what": what, "count": count }));
    }
    match record {
        Some(info) => out.line(format_args!("{at}  {name:<9} {} {}: {what}", info.manager(), info.key())),
        None => out.line(format_args!("{at}  {name:<9} {what}")),
    }
}

fn status(info: &RecordInfo) -> String {
    let why = info.interruption().map_or_else(String::new, |why| format!(" ({why:?})"));
    format!("{:?}{why}", info.status())
}
