//! Sessions whose connection runs on the calling thread, so that the thread waits for an answer itself.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::Inner;
use super::session::{Fault, Session};
use super::sql::Query;
use super::thread::deadline_of;

/// The longest time for a session to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// A statement waits at most 50 ms for a transaction that has locked one of its rows, because the others of its group
/// wait too.
const SETTINGS: &str = "SET lock_timeout = '50ms'";

/// A session with a runtime of its own, which reads and writes only while a thread makes a call.
#[derive(Debug)]
pub(super) struct LocalSession {
    session: Session,
    runtime: Executor,
}

#[derive(Debug)]
struct Executor(Option<Runtime>);

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A drop would wait for lookups of names, and is not allowed on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Ends all calls when the store is closed.
#[derive(Debug, Default)]
pub(super) struct Closing(Notify);

impl Closing {
    /// Ends the calls. `is_closed` of the store must be true before.
    pub(super) fn notify(&self) {
        self.0.notify_waiters();
    }
}

/// The reason why a call has no answer.
pub(super) enum NoAnswer {
    NotSent,
    /// The statement may have taken effect.
    Sent(String),
}

impl LocalSession {
    /// Connects, and prepares the statements.
    pub(super) fn connect(inner: &Inner) -> Option<Self> {
        let runtime = Executor(Builder::new_current_thread().enable_all().build().ok());
        let connected = runtime.wait(inner, deadline_of(PATIENCE), async {
            let (mut session, _) = inner.pool.connect().await?;
            session.run(SETTINGS).await?;
            for query in [Query::Insert, Query::Update, Query::InsertMany, Query::UpdateMany] {
                session.prepare(query).await?;
            }
            Ok::<_, Fault>(session)
        });
        let session = connected?.ok()?;
        Some(Self { session, runtime })
    }

    /// Makes a call on this thread. After a `NoAnswer` the session must not be used again.
    pub(super) fn call<T>(
        &mut self,
        inner: &Inner,
        deadline: Instant,
        call: impl AsyncFnOnce(&mut Session) -> Result<T, Fault>,
    ) -> Result<Result<T, Fault>, NoAnswer> {
        let Self { session, runtime } = self;
        let mut is_sent = false;
        let done = runtime.wait(inner, deadline, async {
            // The connection has not been read since the last call. At the first yield the runtime finds that bytes or
            // the end have arrived, and at the second the connection's task reads them. So a session that the server
            // has ended is closed then.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            if session.client.is_closed() {
                return None;
            }
            is_sent = true;
            Some(call(session).await)
        });
        match done.flatten() {
            Some(Err(Fault::Lost(why))) => Err(NoAnswer::Sent(why)),
            Some(done) => Ok(done),
            None if is_sent => Err(NoAnswer::Sent("it does not answer".to_owned())),
            None => Err(NoAnswer::NotSent),
        }
    }
}

impl Executor {
    /// Runs a future on this thread until the deadline, or until the store is closed.
    fn wait<T>(&self, inner: &Inner, deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
        self.0.as_ref()?.block_on(async {
            let mut closing = pin!(inner.committer.closing.0.notified());
            // Look at the flag after the line above: a close from there on notifies `closing`.
            if inner.is_closed.load(Ordering::Acquire) {
                return None;
            }
            let mut future = pin!(tokio::time::timeout_at(deadline.into(), future));
            poll_fn(|context| match closing.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => future.as_mut().poll(context).map(Result::ok),
            })
            .await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service may drop an engine on a thread of its own runtime.
    #[test]
    fn a_local_session_can_be_dropped_on_a_thread_of_a_runtime() {
        let executor = Executor(Builder::new_current_thread().build().ok());
        Builder::new_current_thread().build().unwrap().block_on(async { drop(executor) });
    }
}
