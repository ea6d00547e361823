//! Counts the allocations of a caller, and the bytes that an engine holds.
//!
//! A test binary of its own, because the allocator counts for all of it. It counts allocations by thread, so the engine's threads
//! do not disturb, and bytes for the whole process, so one test runs at a time.

#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use oncekey::{Begin, Durability, Engine, Manager, stage::Next};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The bytes that are allocated now.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

fn count(bytes: usize) {
    // Gone where the thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    HELD.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: all calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the mean number of allocations of a call, in tenths.
fn tenths_a_call(call: impl Fn(u32)) -> u64 {
    const CALLS: u32 = 1_000;
    // Tables and buffers grow to their usual size.
    (0..CALLS).for_each(&call);
    let before = ALLOCATIONS.get();
    (CALLS..2 * CALLS).for_each(&call);
    (ALLOCATIONS.get() - before) * 10 / u64::from(CALLS)
}

/// The bounds are what was reached, and a little more for tables that grow. A cycle includes the key that the test makes.
#[test]
fn calls_allocate_no_more_than_they_did() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = Engine::temporary().unwrap();
    let manager: Manager<Vec<u8>, String> = engine.manager("m").unwrap();
    let value = vec![7; 256];
    let cycle = tenths_a_call(|number| {
        let claim = manager.begin(format!("key {number:08}")).unwrap().into_claim().unwrap();
        drop(claim.succeed(&value).unwrap());
    });
    let replay = tenths_a_call(|_| assert!(matches!(manager.begin("key 00000001").unwrap(), Begin::Replay(_))));
    let get = tenths_a_call(|_| assert!(manager.get("key 00000001").unwrap().is_some()));
    println!("allocations in tenths: {cycle} a cycle, {replay} a replay, {get} a get");
    assert!(cycle <= 175, "{cycle} tenths a cycle");
    assert!(replay <= 82, "{replay} tenths a replay");
    assert!(get <= 82, "{get} tenths a get");
}

/// Returns an engine with small caches, and a manager.
fn small() -> (Engine, Manager<Vec<u8>, String>) {
    let durability = Durability::Eventual { interval: Duration::from_millis(1) };
    let engine = Engine::options().durability(durability).cache_capacity(1 << 20).temporary().unwrap();
    let manager = engine.manager("m").unwrap();
    (engine, manager)
}

/// Returns the bytes that are held when everything is in the record store.
fn held(engine: &Engine) -> usize {
    engine.compact_now().unwrap();
    HELD.load(Ordering::Relaxed)
}

#[test]
fn a_record_in_progress_takes_no_more_memory_than_is_stated() {
    const RECORDS: usize = 40_000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (engine, manager) = small();
    let begin = |from: usize| {
        (from..from + RECORDS)
            .for_each(|number| assert!(manager.initiate(format!("key {number:012}")).unwrap().is_some()));
        held(&engine)
    };
    // The first half also fills caches.
    let before = begin(0);
    let each = begin(RECORDS).saturating_sub(before) / RECORDS;
    println!("{each} bytes for each record in progress");
    assert!((100..=400).contains(&each), "{each} bytes");
}

#[test]
fn a_claim_with_a_checkpoint_takes_no_more_memory_than_is_stated() {
    const CLAIMS: usize = 64;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (engine, manager) = small();
    let claim = |number: usize| {
        let mut claim = manager.begin(number.to_be_bytes()).unwrap().into_claim().unwrap();
        claim.work_stage(|_| Ok::<_, oncekey::Error>(Next::advance_with("half", vec![7; (1 << 20) - 256]))).unwrap();
        claim
    };
    // The first claims also fill caches.
    let mut claims: Vec<_> = (0..CLAIMS).map(claim).collect();
    let before = held(&engine);
    claims.extend((CLAIMS..2 * CLAIMS).map(claim));
    let each = held(&engine).saturating_sub(before) / CLAIMS;
    println!("{} KiB for each claim with a checkpoint of 1 MiB", each >> 10);
    // The caches of the record store may give back memory meanwhile.
    assert!((1 << 19..=5 << 18).contains(&each), "{each} bytes");
}
