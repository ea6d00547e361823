//! Keeps sled's panics from the terminal: they are caught, and what they mean is returned as an error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// This thread is inside sled.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// How the names of sled's own threads begin.
const THREADS: [&str; 2] = ["sled-io-", "log flusher"];

/// Calls sled. `None` if it panicked; nothing is printed then.
pub(super) fn catch<R>(f: impl FnOnce() -> R) -> Option<R> {
    let before = INSIDE.replace(true);
    let done = catch_unwind(AssertUnwindSafe(f));
    INSIDE.set(before);
    done.ok()
}

/// Puts a hook before the one that is there, once: it does nothing for panics of sled, and leaves all others to that.
pub(super) fn hide() {
    static HIDDEN: Once = Once::new();
    // A thread that is panicking must not change the hook.
    if std::thread::panicking() {
        return;
    }
    HIDDEN.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let is_of_sled = thread.name().is_some_and(|name| THREADS.iter().any(|own| name.starts_with(own)));
            if !is_of_sled && !INSIDE.get() {
                others(info);
            }
        }));
    });
}
