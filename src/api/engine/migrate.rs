//! Moves a store between a directory and a database.

use std::path::Path;

use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};

use super::postgres::read_address;
use crate::postgres::Server;
use crate::protocol::{MigrateReport, Protocol};
use crate::types::error::Result;
use crate::types::options::EngineOptions;

impl EngineOptions {
    /// Copies the store in the directory `from` into the [`schema`](Self::schema) of a database, which must have no
    /// tables, or only empty ones.
    ///
    /// The new store has the same id, generations, revisions, tokens and times, so effect ids stay the same and TTLs
    /// continue. All records, rows and information for `undo` are copied. Records that were in progress are
    /// interrupted, as by the next open of the directory. `from` is not changed; do not open it for a service again.
    /// `progress` is called with the number of keys that are read, and the number of all.
    ///
    /// Everything is one transaction: after an error, or if the process is killed, there is no store.
    ///
    /// ```no_run
    /// # use oncekey::Engine;
    /// let url = "postgres://app@db/payments";
    /// Engine::options().migrate_to_postgres("payments.oncekey", url, |_, _| ())?;
    /// let engine = Engine::connect(url)?;
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `StoreInUse` if a process has `from` open, or if an engine has the empty store in the database open; `NotFound`
    /// if there is no store; `InvalidOptions` if the schema has records or rows; `Unsettled` if the server is lost
    /// during the commit: a retry finds out; otherwise as [`open`](Self::open) and [`connect`](Self::connect).
    pub fn migrate_to_postgres(
        &self,
        from: impl AsRef<Path>,
        url: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<MigrateReport> {
        let (config, tls) = read_address(url)?;
        self.migrate_to_postgres_with(from, config, tls, progress)
    }

    /// Copies as [`migrate_to_postgres`](Self::migrate_to_postgres) does, with any TLS.
    ///
    /// # Errors
    ///
    /// As [`migrate_to_postgres`](Self::migrate_to_postgres).
    pub fn migrate_to_postgres_with<T>(
        &self,
        from: impl AsRef<Path>,
        config: Config,
        tls: T,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<MigrateReport>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Protocol::migrate_to_postgres(from.as_ref(), &Server::new(config, tls, false), self, &mut progress)
    }

    /// Copies the store in the [`schema`](Self::schema) of a database into the directory `into`, which must be empty or
    /// not exist. The new store has the same contents, and a failure leaves the same, as with
    /// [`migrate_to_postgres`](Self::migrate_to_postgres).
    ///
    /// No engine may have the store open. While it is copied, none can open it or change it.
    ///
    /// # Errors
    ///
    /// `StoreInUse` if an engine has the store open; `NotFound` if there is no store; `InvalidOptions` if `into` is not
    /// empty, or if the role may not lock the tables; otherwise as [`open`](Self::open) and [`connect`](Self::connect).
    pub fn migrate_from_postgres(
        &self,
        url: &str,
        into: impl AsRef<Path>,
        progress: impl FnMut(u64, u64),
    ) -> Result<MigrateReport> {
        let (config, tls) = read_address(url)?;
        self.migrate_from_postgres_with(config, tls, into, progress)
    }

    /// Copies as [`migrate_from_postgres`](Self::migrate_from_postgres) does, with any TLS.
    ///
    /// # Errors
    ///
    /// As [`migrate_from_postgres`](Self::migrate_from_postgres).
    pub fn migrate_from_postgres_with<T>(
        &self,
        config: Config,
        tls: T,
        into: impl AsRef<Path>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<MigrateReport>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Protocol::migrate_from_postgres(&Server::new(config, tls, true), into.as_ref(), self, &mut progress)
    }
}
