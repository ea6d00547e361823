//! The death of a process, for tests.

use crate::api::engine::Engine;

impl Engine {
    /// Ends the engine as the death of its process would, for tests of recovery. Needs the feature `test-util`.
    ///
    /// - Changes acknowledged under [`Durability::Immediate`](crate::Durability::Immediate) are present at the next
    ///   open. Changes that were committed but not durable are present or lost, the newest first: those of a call in
    ///   another thread that has not returned, of the drop of a claim, or of the last interval of
    ///   [`Durability::Eventual`](crate::Durability::Eventual).
    /// - Live claims stay in progress on disk: the next open finds them interrupted, by
    ///   [`Interruption::ProcessEnded`](crate::Interruption::ProcessEnded). They no longer lock the directory, and
    ///   every call on them fails: drop them, or `mem::forget` them.
    /// - All other handles return `Closed`, also to calls that are waiting in other threads. An operation may call
    ///   this, to crash in the middle of itself.
    /// - The store is not closed, as after a kill: the next open recovers it. The directory is unlocked when the call
    ///   returns.
    ///
    /// This is not a power cut: what was written to files stays. The directory of a [temporary](Engine::temporary)
    /// engine is removed with its last handle, so open a path.
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
        self.end_as_killed();
    }
}
