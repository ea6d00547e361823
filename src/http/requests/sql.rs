//! Stages of requests in the user's own SQL transactions.

use ::postgres::{Client, Transaction};

use super::Requests;
use crate::api::claim::stage::Next;
use crate::api::sql::{self, Failed};
use crate::api::transaction::PhaseOptions;
use crate::http::response::Response;
use crate::protocol::staged::{Effect, StageOf};
use crate::types::error::{Error, Result};
use crate::types::key::IntoKey;
use crate::types::record::RecordInfo;

impl Requests {
    /// Runs a stage of a request that has no owner, in a transaction of your own client of PostgreSQL. The closure
    /// returns the next recovery point or the response. Its changes to your tables and the record's new state are
    /// committed together or not at all.
    ///
    /// No claim is needed. The record is locked until the stage ends. If two callers run the same stage, one of them
    /// waits, and then its closure gets the new recovery point. The second argument of the closure is the record, as
    /// the transaction reads it. The rules of [`Claim::work_stage_in`](crate::Claim::work_stage_in), which is for
    /// requests with an owner, apply here too.
    ///
    /// ```no_run
    /// use http::StatusCode;
    /// use oncekey::{
    ///     Engine,
    ///     http::{NewRequest, Response},
    ///     sql::postgres::{Client, NoTls},
    ///     stage::{Next, STARTED},
    /// };
    ///
    /// let engine = Engine::connect("postgres://app@db/shop")?;
    /// let mut client = Client::connect("postgres://app@db/shop", NoTls)?;
    /// let requests = engine.requests("checkout")?;
    /// requests.create(NewRequest::new("POST", "/orders").key("k1".parse()?))?;
    /// for _ in 0..2 {
    ///     requests.atomic_phase_in(&mut client, "k1", |tx, info| {
    ///         if info.recovery_point() == STARTED {
    ///             tx.execute("INSERT INTO orders VALUES ('k1')", &[])?;
    ///             return Ok::<_, Box<dyn std::error::Error>>(Next::advance("ordered"));
    ///         }
    ///         Ok(Next::Succeed(Response::new(StatusCode::CREATED)))
    ///     })?;
    /// }
    /// assert!(requests.retrieve("k1")?.unwrap().outcome().is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the closure, with everything rolled back. From the engine:
    ///
    /// - `NotFound` if the request does not exist, `OwnedByClaim` while it is in progress, `NotInProgress` if it is
    ///   finished or held.
    /// - `Unsettled` if the server was lost during the commit, and did not tell in time whether the commit was made.
    ///   Call again: the closure gets the recovery point that was committed. If the stage has finished the request,
    ///   that call returns `NotInProgress`.
    /// - `Unavailable`, `InvalidOptions`, `Codec`, `TooLarge`, `InvalidName` and `Conflict` as for
    ///   [`Claim::work_stage_in`](crate::Claim::work_stage_in).
    pub fn atomic_phase_in<X: From<Error> + 'static>(
        &self,
        client: &mut Client,
        key: impl IntoKey,
        work: impl FnMut(&mut Transaction<'_>, &RecordInfo) -> Result<Next<Response, Response>, X>,
    ) -> Result<RecordInfo, X> {
        self.atomic_phase_in_with(client, key, &PhaseOptions::new(), work)
    }

    /// Runs a stage as [`atomic_phase_in`](Self::atomic_phase_in) does, with the isolation level and the retries of the
    /// options.
    ///
    /// ```no_run
    /// use oncekey::{Engine, http::Response, sql::postgres::{Client, NoTls}, stage::Next, table::{Isolation, PhaseOptions}};
    ///
    /// let engine = Engine::connect("postgres://app@db/shop")?;
    /// let mut client = Client::connect("postgres://app@db/shop", NoTls)?;
    /// let options = PhaseOptions::new().isolation(Isolation::ReadCommitted);
    /// engine.requests("checkout")?.atomic_phase_in_with(&mut client, "k1", &options, |tx, _info| {
    ///     tx.execute("INSERT INTO orders VALUES ('k1')", &[])?;
    ///     Ok::<_, Box<dyn std::error::Error>>(Next::advance("ordered"))
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`atomic_phase_in`](Self::atomic_phase_in).
    pub fn atomic_phase_in_with<X: From<Error> + 'static>(
        &self,
        client: &mut Client,
        key: impl IntoKey,
        options: &PhaseOptions<'_, X>,
        mut work: impl FnMut(&mut Transaction<'_>, &RecordInfo) -> Result<Next<Response, Response>, X>,
    ) -> Result<RecordInfo, X> {
        let phase = self.manager.id(key).map_err(Failed::Engine).and_then(|id| {
            let mut stage = |user: &mut Transaction<'_>, info: &RecordInfo| {
                let next = work(user, info).map_err(Failed::Closure)?;
                let patch = self.patch_of(&id, next).map_err(Failed::Engine)?;
                // Also without a change of the record, its status and revision are checked and the record is bound to
                // its request: the user's rows may have changed.
                Ok(Effect::Patch(patch.unwrap_or_default()))
            };
            sql::run(self.manager.engine().protocol(), client, options, &StageOf::Unowned(&id), &mut stage)
        });
        phase.map(|info| info.without_outcome()).map_err(|failed| {
            options.failed(match failed {
                Failed::Closure(error) => error,
                Failed::Engine(error) | Failed::Unsettled(_, error) => X::from(error),
            })
        })
    }
}
