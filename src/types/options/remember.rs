//! Keys that are remembered after their answer has expired.

use std::time::Duration;

use super::ManagerOptions;

impl ManagerOptions {
    /// Sets how long the key of an outcome is remembered after the outcome has expired. Default: 0, which lets a retry
    /// after the TTL run the operation again.
    ///
    /// While a key is remembered, such a retry gets the error [`Expired`](crate::ErrorKind::Expired) (HTTP 410
    /// `expired`), and nothing runs. For all other calls the record is absent.
    ///
    /// The time is fixed when a generation starts. The outcome, the context and the fingerprint are deleted when the
    /// record has expired; about 200 bytes and the key stay. Without a fingerprint, every request with the key gets the
    /// error, even a different one. [`Manager::forget`](crate::Manager::forget),
    /// [`Manager::remove`](crate::Manager::remove) and [`Manager::erase`](crate::Manager::erase) forget the key at
    /// once. Exports do not contain remembered keys.
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, ExecuteError, Manager, ManagerOptions, clock::ManualClock};
    /// # use std::time::Duration;
    /// # let clock = ManualClock::new();
    /// # let engine = Engine::options().clock(clock.clone()).temporary()?;
    /// const DAY: Duration = Duration::from_secs(86_400);
    /// let options = ManagerOptions::new().success_ttl(DAY).remember_expired(90 * DAY);
    /// let payments: Manager<u64> = engine.manager_with("payments", options)?;
    /// payments.execute("order-42", |_claim| Ok(1999)).unwrap();
    /// # clock.advance(2 * DAY);
    /// // Two days later:
    /// let late = payments.execute("order-42", |_claim| unreachable!("it is not run again"));
    /// let Err(ExecuteError::Engine(error)) = late else { panic!("it has expired") };
    /// assert_eq!(error.kind(), ErrorKind::Expired);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn remember_expired(mut self, time: Duration) -> Self {
        self.remember_expired = time;
        self
    }
}
