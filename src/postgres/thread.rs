//! The thread on which the tasks of a store run, and most of its calls to the server.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::sync::worker::Worker;
use crate::types::clock::monotonic;
use crate::types::error::{Error, Result};

/// The longest wait of a call, if the options set no limit.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

pub(super) struct Running {
    /// Its drop ends the thread.
    _stop: oneshot::Sender<()>,
    _worker: Worker,
}

/// Starts the thread that runs the tasks which are spawned on the returned handle.
pub(super) fn start_thread(place: &Path) -> Result<(Handle, Running)> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|cause| Error::io("start runtime for", place, &cause))?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    // The thread ends when the sender is dropped. Tasks that still run are dropped with the runtime.
    let body = move || {
        let _ = runtime.block_on(stopped);
        // A drop would wait for lookups of names, which nothing can end.
        runtime.shutdown_background();
    };
    let worker = Worker::spawn("oncekey-postgres", body, |_| ())?;
    Ok((handle, Running { _stop: stop, _worker: worker }))
}

/// Runs a call on the thread of the store. Returns `None` if there is no answer by the deadline, or if the store is
/// closed meanwhile. The call is then dropped.
pub(super) fn answer<T: Send + 'static>(
    handle: &Handle,
    deadline: Instant,
    call: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (reply, answer) = crossbeam_channel::bounded(1);
    handle.spawn(async move {
        if let Ok(done) = tokio::time::timeout_at(deadline.into(), call).await {
            // The caller may have gone.
            let _ = reply.send(done);
        }
    });
    answer.recv_deadline(deadline).ok()
}

/// Returns the deadline of a call that begins now, at most 365 days away.
pub(super) fn deadline_of(timeout: Duration) -> Instant {
    let now = monotonic();
    now.checked_add(timeout.min(LONGEST)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_thread_does_not_wait_for_a_lookup_of_a_name() {
        let (handle, running) = start_thread(Path::new("test")).unwrap();
        let (begun, begins) = crossbeam_channel::bounded(1);
        let (end, ends) = crossbeam_channel::bounded::<()>(1);
        // The lookup of a name runs like this: on a thread of its own, for as long as the resolver takes.
        handle.spawn_blocking(move || {
            begun.send(()).unwrap();
            ends.recv()
        });
        begins.recv().unwrap();
        let (ended, is_ended) = crossbeam_channel::bounded(1);
        std::thread::scope(move |scope| {
            scope.spawn(move || {
                drop(running);
                ended.send(()).unwrap();
            });
            assert!(is_ended.recv_timeout(Duration::from_secs(30)).is_ok(), "the lookup still runs");
            drop(end);
        });
    }
}
