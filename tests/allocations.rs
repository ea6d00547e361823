//! Counts the allocations of a caller.
//!
//! A test binary of its own, because the allocator counts for all of it. It counts by thread, so the engine's threads do not
//! disturb.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use oncekey::{Begin, Engine, Manager};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Gone where the thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
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
