//! The death of a process, for tests.

use super::Engine;

impl Engine {
    /// Ends the engine as the death of its process would, for tests of what is there after a crash. Needs the feature
    /// `test-util`.
    ///
    /// - What was acknowledged under [`Durability::Immediate`](crate::Durability::Immediate) is there at the next open. Of what was committed and not yet
    ///   durable (by another thread's call that has not returned, by the drop of a claim, or within the last interval of
    ///   [`Durability::Eventual`](crate::Durability::Eventual)) each commit is there or gone, the newest first.
    /// - Claims that are alive stay in progress on disk: the next open finds them interrupted, by
    ///   [`Interruption::ProcessEnded`](crate::Interruption::ProcessEnded). They keep the directory locked no more, and can do nothing:
    ///   drop them, or `mem::forget` them.
    /// - All other handles answer `Closed`, also in calls that wait on other threads. It may be called from inside an
    ///   operation, to crash in the middle of it.
    /// - The store is not closed, as after a kill: the next open recovers it. The directory is free when the call returns.
    ///
    /// It is not a power cut: what was written to files stays. Of a [temporary](Engine::temporary) engine the
    /// directory goes with the last handle, so open a path.
    ///
    /// ```
    /// # use oncekey::{Engine, Interruption, Manager};
    /// let dir = tempfile::tempdir()?;
    /// let engine = Engine::open(dir.path())?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// payments.execute("order-41", |_claim| Ok(1999)).unwrap();
    /// let lost = payments.execute("order-42", |_claim| {
    ///     println!("charged"); // and before the outcome is stored:
    ///     engine.clone().crash();
    ///     Ok(2999)
    /// });
    /// assert!(lost.is_err());
    /// drop(lost);
    ///
    /// let engine = Engine::open(dir.path())?;
    /// assert_eq!(engine.opened().interrupted, 1);
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// assert_eq!(*payments.get("order-41")?.unwrap().outcome().unwrap().unwrap(), 1999);
    /// let found = payments.get("order-42")?.unwrap();
    /// assert_eq!(found.info().interruption(), Some(Interruption::ProcessEnded));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn crash(self) {
        self.protocol.crash();
        self.shared.compactor.end();
    }
}
