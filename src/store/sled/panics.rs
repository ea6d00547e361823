//! Catches sled's panics without printing them. The caller returns an error instead.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// True while this thread is inside sled.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The prefix of the names of sled's threads. sled's periodic flush thread is never started here.
const THREADS: &str = "sled-io-";

/// Calls sled. Returns `None` if sled panicked, and prints nothing.
pub(super) fn catch<R>(f: impl FnOnce() -> R) -> Option<R> {
    let before = INSIDE.replace(true);
    let done = catch_unwind(AssertUnwindSafe(f));
    INSIDE.set(before);
    done.ok()
}

/// Installs a panic hook, once. The hook ignores panics of sled, and passes all others to the previous hook.
pub(super) fn hide() {
    static HIDDEN: Once = Once::new();
    // A thread that is panicking must not change the hook.
    if std::thread::panicking() {
        return;
    }
    HIDDEN.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !is_of_sled() {
                others(info);
            }
        }));
    });
}

/// Returns true if a panic of this thread comes from sled.
fn is_of_sled() -> bool {
    INSIDE.get() || std::thread::current().name().is_some_and(|name| name.starts_with(THREADS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Panics in every way, in a process of its own.
    #[test]
    #[ignore = "run by the test below"]
    fn panics_of_every_kind() {
        hide();
        hide();
        let entered = std::sync::Barrier::new(2);
        let (within, beside) = (&entered, &entered);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let caught = catch(|| {
                    within.wait();
                    within.wait();
                    assert_eq!(catch(|| panic!("sled, called inside")), None::<()>);
                    panic!("sled, called")
                });
                assert_eq!(caught, None::<()>);
                let _ = catch_unwind(|| panic!("the caller, afterwards"));
            });
            scope.spawn(|| {
                beside.wait();
                // While another thread is inside sled.
                let _ = catch_unwind(|| panic!("another thread"));
                beside.wait();
            });
        });
        for name in ["sled-io-3", "log flusher"] {
            let body = move || panic!("a thread named {name}");
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn::<_, ()>(body).unwrap();
            assert!(thread.join().is_err());
        }
    }

    #[test]
    fn only_panics_of_sled_are_kept_from_the_terminal() {
        let this = std::env::current_exe().unwrap();
        let args = ["--exact", "store::sled::panics::tests::panics_of_every_kind", "--ignored", "--nocapture"];
        let output = Command::new(this).args(args).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}");
        for (panic, is_printed) in [
            ("sled, called", false),
            ("sled, called inside", false),
            ("the caller, afterwards", true),
            ("another thread", true),
            ("a thread named sled-io-3", false),
            ("a thread named log flusher", true),
        ] {
            assert_eq!(printed.contains(panic), is_printed, "{panic}: {printed}");
        }
    }
}
