//! Tests of the deletion of expired records by several engines.

use std::process::{Command, Stdio};
use std::time::Duration;

use oncekey::clock::ManualClock;
use oncekey::{Engine, Manager, ManagerOptions};

use crate::{new_schema, open, options, shared, until};

const KEYS: u64 = 150;

/// Opens a store in which all records have expired.
fn expired(schema: &str, clock: &ManualClock) -> Engine {
    let engine = options(schema).clock(clock.clone()).connect(&shared().url()).unwrap();
    let ttl = ManagerOptions::new().success_ttl(Duration::from_secs(1));
    let texts: Manager<String, String> = engine.manager_with("m", ttl).unwrap();
    for key in 0..KEYS {
        texts.execute(key.to_string(), |_| Ok("v".to_owned())).unwrap();
    }
    clock.advance(Duration::from_secs(2));
    engine
}

#[test]
fn engines_that_compact_at_the_same_time_delete_each_record_once() {
    let (schema, clock) = (new_schema(), ManualClock::new());
    let first = expired(&schema, &clock);
    let open = || options(&schema).clock(clock.clone()).connect(&shared().url()).unwrap();
    let engines = [first, open(), open()];
    let removed: u64 = std::thread::scope(|scope| {
        let passes = engines.each_ref().map(|engine| scope.spawn(|| engine.compact_now().unwrap().removed));
        passes.into_iter().map(|pass| pass.join().unwrap()).sum()
    });
    assert_eq!(removed, KEYS);
    assert_eq!(shared().sql(&format!("SELECT count(*) FROM \"{schema}\".records")), "0");
}

#[test]
fn a_pass_waits_for_the_lock_of_the_compaction() {
    let (schema, clock) = (new_schema(), ManualClock::new());
    let engine = expired(&schema, &clock);
    let left = || shared().sql(&format!("SELECT count(*) FROM \"{schema}\".records"));
    // The first half of the keys of all locks comes from the id of the store.
    let id = shared().sql(&format!("SELECT encode(uuid_send(id), 'hex') FROM \"{schema}\".store"));
    let bytes: Vec<u8> = (0..4).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()).collect();
    let class = i32::from_le_bytes(bytes.try_into().unwrap());
    let mut holder = Command::new(shared().bin.join("psql"));
    holder.args(["-X", "-q", "-U", "oncekey", "-d", "postgres", "-h"]).arg(&shared().dir);
    holder.arg("-c").arg(format!("SELECT pg_advisory_lock({class}, 0)")).arg("-c").arg("SELECT pg_sleep(600)");
    let mut holder = holder.stdout(Stdio::null()).spawn().unwrap();
    let locks = |granted: bool| {
        let count = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 0
             AND classid = ({class}::bigint & 4294967295)::text::oid AND granted = {granted}"
        );
        shared().sql(&count)
    };
    until(|| locks(true) == "1");
    std::thread::scope(|scope| {
        let pass = scope.spawn(|| engine.compact_now().unwrap().removed);
        until(|| locks(false) == "1");
        assert_eq!(left(), KEYS.to_string(), "only the holder of the lock deletes");
        holder.kill().unwrap();
        holder.wait().unwrap();
        shared().sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)'");
        assert_eq!(pass.join().unwrap(), KEYS);
    });
    assert_eq!(left(), "0");
}

#[test]
fn dead_incarnations_are_deleted_when_they_own_nothing() {
    let schema = new_schema();
    let rows = || shared().sql(&format!("SELECT count(*) FROM \"{schema}\".incarnations"));
    let alive = open(&schema);
    for _ in 0..5 {
        open(&schema).close().unwrap();
    }
    let _second = open(&schema);
    assert_eq!(rows(), "2");
    drop(alive);
}
