//! Stages of a claim in the user's own SQL transactions.

use std::fmt;
use std::sync::atomic::Ordering;

use ::postgres::{Client, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Claim;
use crate::api::claim::stage::Next;
use crate::api::sql::{self, Failed};
use crate::api::transaction::PhaseOptions;
use crate::postgres::{Settled, SqlValue};
use crate::protocol::staged::{Effect, Stage, StageOf};
use crate::types::error::{Error, ErrorKind, Result};

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Claim<T, E> {
    /// Runs a stage in a transaction of your own client of PostgreSQL, in the database of the store. The closure's
    /// changes to your tables and its change of the record are committed together or not at all. The commit succeeds
    /// only if this claim still owns the record, at the same recovery point.
    ///
    /// The transaction is `SERIALIZABLE`, and runs again if the server finds a conflict;
    /// [`work_stage_in_with`](Self::work_stage_in_with) sets another isolation level. So the closure may run several
    /// times, and must cause no effect outside of the database: cause it before the stage, with an
    /// [`effect_id`](Claim::effect_id). An `Err` or a panic rolls back. The record is locked until the stage ends, so
    /// keep the stage short. The closure must not end the transaction, and must not call the engine.
    ///
    /// If the connection is lost during the commit, the engine reads in the record whether the commit was made. So `Ok`
    /// always means that it was made. An error other than `Unsettled` means that it was not made, except a `ClaimLost`
    /// after another claim has changed the record. The role of the client needs `USAGE` of the schema of the store,
    /// `SELECT` on its table `store`, and `SELECT` and `UPDATE` on `records`.
    ///
    /// ```no_run
    /// use oncekey::{Engine, Manager, sql::postgres::{Client, NoTls}, stage::Next};
    ///
    /// let engine = Engine::connect("postgres://app@db/shop")?;
    /// let mut client = Client::connect("postgres://app@db/shop", NoTls)?;
    /// let orders: Manager<u64> = engine.manager("orders")?;
    /// let Ok(mut claim) = orders.begin("cart-1")?.into_claim() else { return Ok(()) };
    /// claim.work_stage_in(&mut client, |tx| {
    ///     tx.execute("UPDATE stock SET left_over = left_over - 1 WHERE item = $1", &[&"apple"])?;
    ///     Ok::<_, Box<dyn std::error::Error>>(Next::advance("reserved"))
    /// })?;
    /// assert_eq!(claim.recovery_point(), "reserved");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the closure, with everything rolled back. From the engine:
    ///
    /// - `ClaimLost` if the claim no longer owns the record or the record has ended.
    /// - `Unavailable` if the client or the server is lost. Nothing changed. Call again with a new client.
    /// - `Unsettled` if that happened during the commit, and the server did not tell within
    ///   [`sync_timeout`](crate::EngineOptions::sync_timeout) whether the commit was made. Call again: the call finds
    ///   that out first. If the commit was made, it returns `Ok` and does not call the closure.
    /// - `InvalidOptions` if the store is not on PostgreSQL, if the client is connected to another database or lacks a
    ///   privilege, or if the closure has ended the transaction or hidden the error of a statement.
    /// - `Codec`, `TooLarge`, `InvalidName` and `Conflict` as for [`work_stage`](Claim::work_stage).
    pub fn work_stage_in<X: From<Error> + 'static>(
        &mut self,
        client: &mut Client,
        work: impl FnMut(&mut Transaction<'_>) -> Result<Next<T, E>, X>,
    ) -> Result<(), X> {
        self.work_stage_in_with(client, &PhaseOptions::new(), work)
    }

    /// Runs a stage as [`work_stage_in`](Self::work_stage_in) does, with the isolation level and the retries of the
    /// options.
    ///
    /// ```no_run
    /// use oncekey::{Engine, Manager, sql::postgres::{Client, NoTls}, stage::Next, table::{Isolation, PhaseOptions}};
    ///
    /// let engine = Engine::connect("postgres://app@db/shop")?;
    /// let mut client = Client::connect("postgres://app@db/shop", NoTls)?;
    /// let orders: Manager<u64> = engine.manager("orders")?;
    /// let Ok(mut claim) = orders.begin("cart-1")?.into_claim() else { return Ok(()) };
    /// let options = PhaseOptions::new().isolation(Isolation::ReadCommitted);
    /// claim.work_stage_in_with(&mut client, &options, |tx| {
    ///     tx.execute("INSERT INTO orders VALUES ('cart-1')", &[])?;
    ///     Ok::<_, Box<dyn std::error::Error>>(Next::Succeed(1))
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`work_stage_in`](Self::work_stage_in).
    pub fn work_stage_in_with<X: From<Error> + 'static>(
        &mut self,
        client: &mut Client,
        options: &PhaseOptions<'_, X>,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<Next<T, E>, X>,
    ) -> Result<(), X> {
        let ended = match self.settle_last() {
            Ok(true) => Ok(()),
            Ok(false) => {
                let mut stage = |user: &mut Transaction<'_>, _: &_| {
                    let next = work(user).map_err(Failed::Closure)?;
                    self.encode_step(next).map(Effect::Step).map_err(Failed::Engine)
                };
                let of = StageOf::Claim(self.fence());
                let ran = sql::run(self.protocol(), client, options, &of, &mut stage);
                ran.map(|info| self.staged(info))
            }
            Err(error) => Err(Failed::Engine(error)),
        };
        ended.map_err(|failed| {
            let error = match failed {
                Failed::Closure(error) => return options.failed(error),
                Failed::Engine(error) => error,
                Failed::Unsettled(stage, error) => {
                    self.inner.unsettled = Some(stage);
                    error
                }
            };
            self.note_fault();
            options.failed(X::from(error))
        })
    }

    fn staged(&mut self, info: crate::RecordInfo) {
        self.touch();
        self.moved(info);
    }

    /// Finds out whether the last stage was committed, if that is not known. Returns true if it was.
    fn settle_last(&mut self) -> Result<bool> {
        let Some(mut stage) = self.inner.unsettled.take() else { return Ok(false) };
        let settled = self.settle(&mut stage, false);
        if settled.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsettled) {
            self.inner.unsettled = Some(stage);
        }
        settled
    }

    fn settle(&mut self, stage: &mut Stage, is_over: bool) -> Result<bool> {
        match self.protocol().settle_stage(stage, is_over)? {
            Settled::Committed => {
                let info = self.protocol().staged(stage)?;
                self.staged(info);
                Ok(true)
            }
            Settled::RolledBack => Ok(false),
            Settled::Overtaken => Err(stage.overtaken(&"its transaction has ended")),
        }
    }

    /// Returns the end of a stage as a statement, for a transaction of any client of PostgreSQL, in any language. Run
    /// the statement last in the transaction that makes the changes of the stage, commit, and then call
    /// [`StageSql::settle`].
    ///
    /// The statement fails with the SQLSTATE `OK001` if the claim no longer owns its record at this recovery point, or
    /// if another stage of the claim was committed since this call. Then the transaction cannot be committed. The TTL
    /// of an outcome starts at this call, or at the snapshot of the statement if that is later. So make this call right
    /// before the statement.
    ///
    /// ```no_run
    /// use oncekey::{Engine, Manager, sql::{TransactionEnd, postgres::{Client, NoTls}}, stage::Next};
    ///
    /// let engine = Engine::connect("postgres://app@db/shop")?;
    /// let mut client = Client::connect("postgres://app@db/shop", NoTls)?;
    /// let orders: Manager<u64> = engine.manager("orders")?;
    /// let Ok(mut claim) = orders.begin("cart-1")?.into_claim() else { return Ok(()) };
    /// let mut stage = claim.stage_sql(Next::advance("reserved"))?;
    /// let script = format!(
    ///     "BEGIN; UPDATE stock SET left_over = left_over - 1 WHERE item = 'apple'; {stage}; COMMIT"
    /// );
    /// let end = match client.batch_execute(&script) {
    ///     Ok(()) => TransactionEnd::Committed,
    ///     Err(_) => TransactionEnd::Unknown,
    /// };
    /// if stage.settle(&mut claim, end)? {
    ///     assert_eq!(claim.recovery_point(), "reserved");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `ClaimLost`, `Unavailable`, `InvalidOptions`, `Codec`, `TooLarge` and `InvalidName` as for
    /// [`work_stage_in`](Self::work_stage_in).
    pub fn stage_sql(&self, next: Next<T, E>) -> Result<StageSql> {
        let staged = self.encode_step(next).and_then(|step| {
            let stage = self.protocol().stage_here(&StageOf::Claim(self.fence()), &Effect::Step(step))?;
            Ok(StageSql { stage, settled: false })
        });
        if staged.is_err() {
            self.note_fault();
        }
        staged
    }

    /// Records that the engine has failed in the operation.
    fn note_fault(&self) {
        self.fault_flag().store(true, Ordering::Relaxed);
    }
}

/// The end of a transaction of the user, for [`StageSql::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionEnd {
    /// The commit returned without an error.
    Committed,
    /// The transaction was rolled back, or the statement of the stage has failed or was never run.
    RolledBack,
    /// The commit returned an error or did not return, so it may have been made.
    Unknown,
}

/// The end of a stage as a statement: the result of [`Claim::stage_sql`].
///
/// [`Display`](fmt::Display) prints the whole statement, with its values as literals. Clients that send parameters use
/// [`text`](Self::text) and [`values`](Self::values).
#[must_use = "the stage is committed by running its statement"]
pub struct StageSql {
    stage: Box<Stage>,
    settled: bool,
}

impl StageSql {
    /// Returns the statement, with `$1`, `$2` and so on for the values.
    #[must_use]
    pub fn text(&self) -> &str {
        self.stage.text()
    }

    /// Returns the values of the parameters, in order.
    ///
    /// ```no_run
    /// # use oncekey::{Claim, sql::postgres, stage::Next};
    /// # fn stage(claim: &Claim<u64>, tx: &mut postgres::Transaction<'_>) -> Result<(), Box<dyn std::error::Error>> {
    /// let stage = claim.stage_sql(Next::Succeed(7))?;
    /// let values: Vec<_> = stage.values().iter().map(|value| value.as_sql()).collect();
    /// tx.execute(stage.text(), &values)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn values(&self) -> &[SqlValue] {
        self.stage.values()
    }

    /// Tells the claim how the transaction has ended. Returns true if it was committed: the claim is then at the new
    /// recovery point, or has ended. Returns false if it was not: the claim is as before.
    ///
    /// For [`TransactionEnd::Unknown`], the call waits until the transaction has ended at the server, reads in the
    /// record whether it was committed, and makes sure that it cannot be committed later. If it was not committed, make
    /// a new statement with [`Claim::stage_sql`].
    ///
    /// # Errors
    ///
    /// `Unsettled` if the server does not answer within [`sync_timeout`](crate::EngineOptions::sync_timeout): call
    /// again. `ClaimLost` if other claims have changed the record since, so that it no longer shows whether the stage
    /// was committed. `InvalidOptions` if the stage belongs to another claim, or if the transaction was committed
    /// without the statement.
    pub fn settle<T, E>(&mut self, claim: &mut Claim<T, E>, end: TransactionEnd) -> Result<bool>
    where
        T: Serialize + DeserializeOwned,
        E: Serialize + DeserializeOwned,
    {
        if !self.stage.is_of(claim.fence()) {
            let message = "the stage belongs to another claim than the one that was passed";
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        if self.settled || end == TransactionEnd::RolledBack {
            return Ok(self.settled);
        }
        self.settled = claim.settle(&mut self.stage, end == TransactionEnd::Committed)?;
        if !self.settled && end == TransactionEnd::Committed {
            let message = format!("the transaction on key {} was committed without the statement", claim.key());
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        Ok(self.settled)
    }
}

impl fmt::Display for StageSql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, _) = self.text().split_once('(').unwrap_or((self.text(), ""));
        write!(f, "{function}(")?;
        for (place, value) in self.values().iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{value}")?;
        }
        f.write_str(")")
    }
}

/// Does not show the values.
impl fmt::Debug for StageSql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageSql").field("text", &self.text()).field("settled", &self.settled).finish_non_exhaustive()
    }
}
