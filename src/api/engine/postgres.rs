//! Opens a store on PostgreSQL.

use tokio_postgres::tls::{MakeTlsConnect, NoTls, TlsConnect};
use tokio_postgres::{Config, Socket};

use super::Engine;
use crate::postgres::{Server, schema_sql};
use crate::protocol::Protocol;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::check_name;
use crate::types::options::EngineOptions;

impl EngineOptions {
    /// Opens a store on PostgreSQL as [`Engine::connect`] does, with these options.
    ///
    /// # Errors
    ///
    /// As [`Engine::connect`].
    pub fn connect(&self, url: &str) -> Result<Engine> {
        let config: Config = url.parse().map_err(|cause| {
            // The address is not shown: it may contain a password.
            Error::new(ErrorKind::InvalidOptions, format!("this is not the address of a PostgreSQL database: {cause}"))
        })?;
        self.connect_with(config, NoTls)
    }

    /// Returns the SQL that creates the tables of a store on PostgreSQL, for migrations. Without it, the first open
    /// creates them, which needs more privileges than the store needs later.
    ///
    /// ```
    /// # use oncekey::Engine;
    /// let sql = Engine::options().schema("payments").schema_sql()?;
    /// assert!(sql.contains("CREATE TABLE \"payments\".records"));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidName` if the name of the [`schema`](EngineOptions::schema) is not allowed.
    pub fn schema_sql(&self) -> Result<String> {
        check_name("schema", &self.schema)?;
        Ok(schema_sql(&self.schema))
    }

    /// Opens a store on PostgreSQL 13 or later, with any TLS. Creates its tables if there are none.
    ///
    /// The open tests the server first. Advisory locks must belong to one session, which a pooler in transaction mode
    /// does not guarantee. The server must be durable (`fsync`, `full_page_writes`), and must not be a replica.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the server cannot be reached; `InvalidOptions` if it refuses the user or cannot hold a store,
    /// and for [`read_only`](EngineOptions::read_only); `UnsupportedFormat` if the schema has other tables or a newer
    /// store; `NotFound` if there is no store and [`create`](EngineOptions::create) is false. Then nothing is changed.
    pub fn connect_with<T>(&self, config: Config, tls: T) -> Result<Engine>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        if self.read_only {
            let message = "a store on PostgreSQL cannot be opened read-only: read_only is for a directory";
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::new(ErrorKind::InvalidOptions, "the address of the database names no host"));
        }
        let (protocol, report) = Protocol::connect(Server::new(config, tls), self)?;
        self.start(protocol, report, false)
    }
}
