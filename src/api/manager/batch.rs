//! Runs many operations in one call, with two syncs for all of them.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::claim::Claim;
use crate::api::manager::Manager;
use crate::api::manager::execute::{
    Answer, Closing, ExecuteError, Executed, Failed, Returned, claim_or_answer, stored_by_stage,
};
use crate::api::transaction::{self, Setting, Transaction};
use crate::protocol::rules::{Ending, Start, Step};
use crate::protocol::{Begun, Entered, MAX_COMMIT_BYTES, RecordId};
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::key::IntoKey;
use crate::types::options::CallOptions;
use crate::types::record::Interruption;

/// One operation of a batch.
struct Item<M> {
    /// The index of its answer.
    at: usize,
    id: RecordId,
    start: Start,
    message: M,
}

impl<T, E> Manager<T, E> {
    /// The largest number of operations that [`execute_many`](Manager::execute_many) has in progress at the same time.
    pub const MAX_BATCH: usize = 1024;
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Runs an operation for each key, as [`execute`](Manager::execute) does, with one commit for all begins and one
    /// for all endings. Returns the answers in the order of the items.
    ///
    /// - The operations run one after the other, on the calling thread. Each has its own answer: an `Err` or a panic of
    ///   one does not affect the others.
    /// - A key that occurs again in the batch gets the answer of its first occurrence, as a replay. The operation runs
    ///   again only if the first occurrence was released, or may be resumed.
    /// - The call never waits for another owner. A key that is in progress elsewhere is
    ///   [`InProgress`](ExecuteError::InProgress). So two batches that share keys cannot deadlock.
    /// - An operation that panics is [`Interrupted`](ExecuteError::Interrupted) with the record as it is then. The
    ///   panic does not continue. Other effects of the operation before the panic remain.
    /// - All keys stay in progress until the endings of the batch are stored. If the process dies before, all of them
    ///   are interrupted, also those whose operation had not started. So batches suit short operations, and managers
    ///   with [`OnInterrupted::Resume`](crate::OnInterrupted::Resume).
    ///
    /// A batch of more than [`MAX_BATCH`](Manager::MAX_BATCH) items runs in parts of that size. One commit holds about
    /// 8 MiB of contexts and outcomes; larger parts need further commits. Memory holds the outcomes of the whole batch,
    /// which are returned, and the items of one part.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # struct Message { topic: &'static str, partition: u32, offset: u64, cents: u64 }
    /// # fn poll() -> Vec<Message> {
    /// #     (0..500).map(|offset| Message { topic: "payments", partition: 7, offset, cents: 100 }).collect()
    /// # }
    /// # let engine = Engine::temporary()?;
    /// let credits: Manager<u64> = engine.manager("credits")?;
    /// let messages = poll(); // up to 500 messages of a Kafka consumer
    /// let key = |m: &Message| format!("{}/{}/{}", m.topic, m.partition, m.offset);
    /// let items = messages.iter().map(|message| (key(message), message));
    /// let answers = credits.execute_many(items, |_claim, message| Ok(message.cents));
    /// for (message, answer) in messages.iter().zip(answers) {
    ///     match answer {
    ///         Ok(done) => assert_eq!(*done.value(), message.cents), // applied now or before
    ///         Err(error) => eprintln!("consume offset {} again: {error}", message.offset),
    ///     }
    /// }
    /// // Every `Ok` is durable: commit the offsets.
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Each item has its own [`ExecuteError`]. If a commit of the batch fails, for example with `Full`, each item of
    /// that commit has that error. `Engine` for an item that panicked means that its ending was not stored.
    pub fn execute_many<K: IntoKey, M>(
        &self,
        items: impl IntoIterator<Item = (K, M)>,
        operation: impl FnMut(&mut Claim<T, E>, M) -> Result<T, E>,
    ) -> Vec<Result<Executed<T>, ExecuteError<T, E>>> {
        let items = items.into_iter().map(|(key, message)| (key, CallOptions::new(), message));
        self.execute_many_with(items, operation)
    }

    /// Runs a batch as [`execute_many`](Manager::execute_many) does, with options for each item, such as its
    /// fingerprint.
    ///
    /// # Errors
    ///
    /// As [`execute_many`](Manager::execute_many), and `InvalidOptions` for an item with a [`wait`](CallOptions::wait)
    /// other than zero.
    pub fn execute_many_with<K: IntoKey, M>(
        &self,
        items: impl IntoIterator<Item = (K, CallOptions, M)>,
        mut operation: impl FnMut(&mut Claim<T, E>, M) -> Result<T, E>,
    ) -> Vec<Result<Executed<T>, ExecuteError<T, E>>> {
        let (mut items, mut waiting) = (items.into_iter().enumerate().fuse(), VecDeque::new());
        let mut answers = Answers(Vec::new());
        loop {
            let (mut part, mut keys, mut again) = (Vec::new(), HashSet::new(), VecDeque::new());
            while part.len() + again.len() < Self::MAX_BATCH {
                let item = match waiting.pop_front() {
                    Some(item) => item,
                    None => match items.next() {
                        Some((at, (key, options, message))) => match self.item(at, key, options, message) {
                            Ok(item) => item,
                            Err(error) => {
                                answers.put(at, Err(ExecuteError::Engine(error)));
                                continue;
                            }
                        },
                        None => break,
                    },
                };
                if keys.insert(item.id.key.clone()) {
                    part.push(item);
                } else {
                    again.push_back(item);
                }
            }
            if part.is_empty() {
                break;
            }
            self.run_part(part, &mut operation, &mut answers);
            // Put these before the later items, so that the occurrences of a key keep their order.
            again.append(&mut waiting);
            waiting = again;
        }
        answers.0.into_iter().flatten().collect()
    }

    fn item<M>(&self, at: usize, key: impl IntoKey, options: CallOptions, message: M) -> Result<Item<M>> {
        if options.wait.is_some_and(|wait| !wait.is_zero()) {
            let message = "execute_many waits for no other owner, and an item has a wait";
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        let options = CallOptions { only_from_start: true, ..options };
        Ok(Item { at, id: self.id(key)?, start: self.start(options, false)?, message })
    }

    /// Runs items with different keys.
    fn run_part<M>(
        &self,
        part: Vec<Item<M>>,
        operation: &mut impl FnMut(&mut Claim<T, E>, M) -> Result<T, E>,
        answers: &mut Answers<T, E>,
    ) {
        let begun = self.begin_all(&part);
        let (claimed, others): (Vec<_>, Vec<_>) =
            part.into_iter().zip(begun).partition(|(_, begun)| matches!(begun, Ok(Begun::Claimed(_))));
        let mut claims = Vec::new();
        // Create all claims first. Decoding an outcome runs user code, and if that panics, each claim must have an
        // owner that drops it.
        for (Item { at, id, message, .. }, begun) in claimed.into_iter().chain(others) {
            match claim_or_answer(begun.and_then(|begun| self.answer(id, begun))) {
                Ok(claim) => claims.push((at, claim, message)),
                Err(answer) => answers.put(at, answer),
            }
        }
        // Mark all keys as running: an operation that waited for another key of its batch would wait for ever.
        let _running: Vec<_> = claims.iter().map(|(_, claim, _)| claim.running()).collect();
        let (mut closings, mut bytes) = (Vec::new(), 0_usize);
        for (at, claim, message) in claims {
            match self.run_one(claim, |claim| operation(claim, message)) {
                Ok(closing) => {
                    if let Ending::Succeed(value) | Ending::Fail(value) = &closing.ending {
                        bytes = bytes.saturating_add(value.len());
                    }
                    closings.push((at, closing));
                }
                Err(answer) => answers.put(at, answer),
            }
            if bytes >= MAX_COMMIT_BYTES {
                answers.put_all(std::mem::take(&mut closings));
                bytes = 0;
            }
        }
        answers.put_all(closings);
    }

    /// Runs one operation up to its ending. The caller stores the ending.
    fn run_one(
        &self,
        mut claim: Claim<T, E>,
        operation: impl FnOnce(&mut Claim<T, E>) -> Result<T, E>,
    ) -> Result<Closing<T, E>, Answer<T, E>> {
        let (uses, lent) = (error::uses(), claim.identity());
        // The documentation warns the caller about the state that the closure captures. The claim's own state is
        // checked below.
        let returned = catch_unwind(AssertUnwindSafe(|| operation(&mut claim)));
        let claim = claim.returned(&lent).map_err(|error| Err(ExecuteError::Engine(error)))?;
        match returned {
            Ok(returned) => self.closing(claim, returned.map_err(|error| Failed { error, on_error: None }), uses),
            Err(_) if claim.is_ended() => Err(stored_by_stage(claim)),
            Err(_) => {
                let ending = claim.dropping(Interruption::Panicked);
                Ok(Closing { claim, ending, outcome: Returned::Nothing })
            }
        }
    }

    /// Begins all keys, in as few commits as can hold their records.
    fn begin_all<M>(&self, mut items: &[Item<M>]) -> Vec<Result<Begun>> {
        let mut all = Vec::with_capacity(items.len());
        while !items.is_empty() {
            let begun = match self.begin_some(items) {
                Ok(begun) => begun,
                Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
            };
            items = items.get(begun.len()..).unwrap_or_default();
            all.extend(begun);
        }
        all
    }

    /// Begins the first keys, as many as one commit can hold.
    fn begin_some<M>(&self, items: &[Item<M>]) -> Result<Vec<Result<Begun>>> {
        let protocol = self.engine().share();
        let entered = RefCell::new(Entered::new(&protocol));
        let setting = Setting { fence: None, faulted: None, should_retry: None };
        let (mut begun, written) = transaction::run::<_, Error>(&protocol, &setting, |tx: &Transaction| {
            let mut entered = entered.borrow_mut();
            *entered = Entered::new(&protocol);
            let begun = tx.with_workspace(&protocol, |workspace| {
                let mut begun = Vec::new();
                for item in items {
                    if entered.is_full() {
                        break;
                    }
                    let one = entered.begin(workspace, &item.id, &item.start);
                    if workspace.is_stale() {
                        // The transaction runs again.
                        one?;
                        break;
                    }
                    begun.push(one);
                }
                Ok(begun)
            })?;
            Ok((begun, Step::Stay))
        })?;
        entered.into_inner().live(&written);
        // The written records are in the order of the items. Only committed claims have a token.
        let claimed = begun.iter_mut().filter_map(|one| match one {
            Ok(Begun::Claimed(info)) => Some(info),
            _ => None,
        });
        for (info, committed) in claimed.zip(written) {
            *info = committed;
        }
        Ok(begun)
    }
}

/// The answers so far, by the index of their item.
struct Answers<T, E>(Vec<Option<Answer<T, E>>>);

impl<T, E> Answers<T, E> {
    fn put(&mut self, at: usize, answer: Answer<T, E>) {
        if self.0.len() <= at {
            self.0.resize_with(at + 1, || None);
        }
        if let Some(place) = self.0.get_mut(at) {
            *place = Some(answer);
        }
    }

    /// Stores endings together, and puts the answer of each.
    fn put_all(&mut self, closings: Vec<(usize, Closing<T, E>)>) {
        let (mut outcomes, mut claims) = (Vec::new(), Vec::new());
        for (at, Closing { claim, ending, outcome }) in closings {
            outcomes.push((at, outcome));
            claims.push((claim, ending));
        }
        for ((at, outcome), ended) in outcomes.into_iter().zip(Claim::end_all(claims)) {
            self.put(at, outcome.answer(ended));
        }
    }
}
