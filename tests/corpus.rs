//! Replays the fuzzing corpus: each file of `fuzz/corpus` as it is, and several times damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "tests"
)]
#![allow(unsafe_code, reason = "an allocator that counts")]

#[path = "../fuzz/src/lib.rs"]
mod targets;
#[path = "it/threads.rs"]
#[allow(dead_code, reason = "shared")]
mod threads;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use threads::Rng;

/// An allocator that remembers the largest allocation of a thread.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

// SAFETY: every method delegates to the system's allocator.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Returns a copy with some bytes changed, removed, repeated or cut off.
fn damaged(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=rng.below(4) {
        let at = usize::try_from(rng.below(bytes.len() as u64 + 1)).unwrap();
        match rng.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.next().to_le_bytes()[0]),
            2 => bytes.extend_from_within(at..),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.next().to_le_bytes()[0]),
        }
    }
    bytes
}

/// Runs a target on its corpus and on this number of damaged copies of each file. Returns the size of the largest
/// allocation.
fn replay(target: &str, times: u64, run: fn(&[u8])) -> usize {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "{target} has {} files", paths.len());
    let (mut rng, mut largest) = (Rng::new(times), 0);
    for path in paths {
        let bytes = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        for time in 0..=times {
            let bytes = if time == 0 { bytes.clone() } else { damaged(&bytes, &mut rng) };
            // A failure prints the input as bytes for the corpus.
            println!("{}", bytes.escape_ascii());
            LARGEST.set(0);
            run(&bytes);
            largest = largest.max(LARGEST.get());
        }
    }
    largest
}

#[test]
fn junk_as_a_record_is_an_error_and_allocates_little() {
    // The most that bincode reserves for a collection, whatever length the input announces.
    let largest = replay("record_decode", 200, targets::record_decode);
    assert!(largest <= 1 << 20, "{largest} bytes at once");
}

#[test]
fn a_record_is_read_back_unchanged() {
    replay("record_roundtrip", 200, targets::record_roundtrip);
}

#[test]
fn a_damaged_journal_is_rejected_or_read_correctly() {
    let largest = replay("journal_recover", 40, targets::journal_recover);
    assert!(largest <= 1 << 20, "{largest} bytes at once");
}

#[test]
fn a_header_that_is_accepted_can_be_sent() {
    replay("http_header", 200, targets::http_header);
}

#[test]
fn an_engine_answers_like_the_model_despite_failing_syncs() {
    replay("engine_ops", 1, targets::engine_ops);
}

#[test]
fn transactions_agree_with_a_map() {
    replay("transaction_ops", 1, targets::transaction_ops);
}
