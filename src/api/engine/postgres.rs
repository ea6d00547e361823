//! Opens a store on PostgreSQL.

use tokio_postgres::config::Host;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};

use super::Engine;
use crate::postgres::{Server, Tls, schema_sql, tls_of};
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
        let (config, tls) = read_address(url)?;
        self.connect_with(config, tls)
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
    /// `Unavailable` if the server cannot be reached; `InvalidOptions` if it refuses the user or cannot hold a store;
    /// `UnsupportedFormat` if the schema has other tables or a newer store; `NotFound` if there is no store, and
    /// [`create`](EngineOptions::create) is false or [`read_only`](EngineOptions::read_only) is true. Then nothing is
    /// changed.
    pub fn connect_with<T>(&self, config: Config, tls: T) -> Result<Engine>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::new(ErrorKind::InvalidOptions, "the address of the database names no host"));
        }
        let (protocol, report) = Protocol::connect(Server::new(config, tls, self.read_only), self)?;
        self.start(protocol, report, false)
    }
}

/// Reads an address. Returns also what encrypts its connections.
pub(super) fn read_address(url: &str) -> Result<(Config, Tls)> {
    let mut config = config_of(url)?;
    let tls = tls_of(&mut config)?;
    Ok((config, tls))
}

/// Reads an address. No error shows it, because it may contain a password.
fn config_of(url: &str) -> Result<Config> {
    let refused = |why: &dyn std::fmt::Display| {
        let message = format!("this is not the address of a PostgreSQL database: {why}");
        Error::new(ErrorKind::InvalidOptions, message)
    };
    let config = url.parse::<Config>();
    // Otherwise a part of the password would be the name of a host or an option, which errors name.
    let names_login = |host: &Host| matches!(host, Host::Tcp(name) if name.contains('@'));
    let is_split = match (&config, url.split_once('?')) {
        (Ok(config), _) => config.get_hosts().iter().any(names_login),
        (Err(_), Some((_, rest))) => rest.contains('@'),
        (Err(_), None) => false,
    };
    if is_split {
        return Err(refused(&"a character in the user or the password must be percent-encoded, such as @ as %40"));
    }
    config.map_err(|cause| refused(&cause))
}
