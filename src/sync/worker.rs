//! The engine's threads. All are started here, and none outlives its [`Worker`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::sync::thread::{self, JoinHandle};
use crate::types::error::{Error, Result};

/// A named thread that is joined when this is dropped, or before.
///
/// Nothing here stops the body. Tell it to end before the join. Or declare the value that stops it, such as a channel's
/// sender, before the worker, so that it is dropped first.
#[derive(Debug)]
pub(crate) struct Worker {
    handle: Option<JoinHandle<()>>,
    /// The process that started the thread. A child of `fork` has no such thread to join.
    pid: u32,
}

impl Worker {
    /// Starts the thread. A panic of `body` is caught, and its text is passed to `on_panic` in the same thread.
    ///
    /// The body's values are dropped before that, so other threads may see its channels disconnected first.
    pub(crate) fn spawn(
        name: &str,
        body: impl FnOnce() + Send + 'static,
        on_panic: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self> {
        let run = move || {
            // Unwind safe: the body is consumed, and `on_panic` declares its shared state broken.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
                let text = text_of(payload.as_ref());
                // Ignore a second panic: the panic hook has printed it, and no caller is left to report it to.
                let _ = catch_unwind(AssertUnwindSafe(|| on_panic(text)));
            }
        };
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
        let handle = spawned.map_err(|cause| Error::io("start thread", Path::new(name), &cause))?;
        Ok(Self { handle: Some(handle), pid: std::process::id() })
    }

    /// Waits until the thread has ended. Later calls return at once.
    ///
    /// Does not wait if called from the thread itself, which happens if the thread drops the last handle. The thread
    /// then ends by itself.
    pub(crate) fn join(&mut self) {
        if let Some(handle) = self.handle.take() {
            if handle.thread().id() != thread::current().id() && self.pid == std::process::id() {
                // Ignore the result: panics were caught and reported in the thread.
                let _ = handle.join();
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join();
    }
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let literal = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    literal.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_owned())
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use crossbeam_channel::{Receiver, unbounded};

    use super::Worker;

    fn panics_of(body: impl FnOnce() + Send + 'static) -> Receiver<String> {
        let (told, panics) = unbounded();
        Worker::spawn("test", body, move |text| told.send(text).unwrap()).unwrap().join();
        panics
    }

    #[test]
    fn the_thread_has_its_name_and_is_joined_once() {
        let (told, names) = unbounded();
        let body = move || told.send(thread::current().name().map(str::to_owned)).unwrap();
        let mut worker = Worker::spawn("oncekey-test", body, |_| unreachable!()).unwrap();
        worker.join();
        worker.join();
        assert_eq!(names.try_recv().unwrap().as_deref(), Some("oncekey-test"));
    }

    #[test]
    fn dropping_joins() {
        let ended = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = unbounded::<()>();
        let body = {
            let ended = Arc::clone(&ended);
            move || {
                assert!(stopped.recv().is_err());
                thread::yield_now();
                ended.store(true, Ordering::SeqCst);
            }
        };
        let worker = Worker::spawn("test", body, |_| ()).unwrap();
        drop(stop);
        drop(worker);
        assert!(ended.load(Ordering::SeqCst));
    }

    #[test]
    fn a_panic_is_reported_as_text() {
        assert_eq!(panics_of(|| panic!("literal")).try_recv().unwrap(), "literal");
        assert_eq!(
            panics_of(|| panic!("number {}", thread::current().name().map_or(0, str::len))).recv().unwrap(),
            "number 4"
        );
        assert_eq!(panics_of(|| panic_any(7)).try_recv().unwrap(), "unknown panic");
        assert!(panics_of(|| ()).try_recv().is_err());
    }

    #[test]
    fn a_panic_in_on_panic_is_caught() {
        let mut worker = Worker::spawn("test", || panic!("first"), |text| panic!("second after {text}")).unwrap();
        worker.join();
    }

    #[test]
    fn a_join_from_the_thread_itself_does_not_deadlock() {
        let (give, take) = unbounded::<Worker>();
        let (done, finished) = unbounded();
        let body = move || {
            let mut own = take.recv().unwrap();
            own.join();
            done.send(()).unwrap();
        };
        give.send(Worker::spawn("test", body, |_| ()).unwrap()).unwrap();
        finished.recv().unwrap();
    }
}
