//! Limits on the number of waiting threads.

use super::EngineOptions;

impl EngineOptions {
    /// Sets how many threads may wait for one key in [`execute`](crate::Manager::execute),
    /// [`drive`](crate::Manager::drive), [`handle`](crate::http::HandleOptions::wait), and calls with a
    /// [`wait`](crate::CallOptions::wait). Calls over the limit get "in progress" at once. 0 means that no
    /// thread waits. Default: 32.
    ///
    /// A waiting thread serves no other request. Keep this and [`max_waiting`](Self::max_waiting) below the number of
    /// threads of the server's pool. Then retries of one slow operation leave threads for other keys.
    ///
    /// Waits in [`Manager::wait`](crate::Manager::wait) and [`Pending::wait`](crate::Pending::wait) do not count.
    ///
    /// ```
    /// # use oncekey::{Begin, CallOptions, Engine, Manager};
    /// # use std::time::Duration;
    /// let engine = Engine::options().max_waiting_per_key(0).temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let _owner = payments.begin("order-42")?;
    /// let answer = payments
    ///     .begin_with("order-42", CallOptions::new().wait(Duration::from_secs(60)))?;
    /// assert!(matches!(answer, Begin::InProgress(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn max_waiting_per_key(mut self, threads: usize) -> Self {
        self.max_waiting_per_key = threads;
        self
    }

    /// Sets how many threads may wait for all keys together. See [`max_waiting_per_key`](Self::max_waiting_per_key).
    /// Default: 512.
    pub fn max_waiting(mut self, threads: usize) -> Self {
        self.max_waiting = threads;
        self
    }
}
