//! Sessions: connections to the server, the settings of each, and a pool of them.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Notification, Row, Socket, Statement};

use super::sql::Query;
use crate::types::error::{Error, ErrorKind};
use std::sync::Arc;

/// The settings of each session. An answer is durable when a commit returns, whatever the server's default is. Each
/// statement has only one possible plan, so outdated statistics cannot lead to a bad one.
const SETTINGS: &str = "SET synchronous_commit = on; SET statement_timeout = '30s'; SET lock_timeout = '20s';
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
    SET plan_cache_mode = force_generic_plan; SET default_transaction_isolation = 'read committed';
    SET idle_in_transaction_session_timeout = '0'; SET client_min_messages = warning;";

/// Texts of the client's errors that name a fault of the options: a missing password, a way of authentication that the
/// client does not have, a server that is not trusted or does not encrypt. The client's errors show their kind only in
/// their text.
const REFUSALS: [&str; 4] =
    ["invalid configuration", "authentication error", "invalid peer certificate", "server does not support TLS"];

/// The reason why a statement gave no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The session is lost. The statement may have taken effect.
    Lost(String),
    /// The attempt must be repeated: another transaction was in the way, or the record has just changed.
    Again,
    /// The server refused the statement. Nothing changed.
    Refused(Error),
}

impl Fault {
    pub(super) fn new(cause: &tokio_postgres::Error) -> Self {
        let Some(answer) = cause.as_db_error() else {
            let text = text_of(cause);
            if REFUSALS.iter().any(|refusal| text.contains(refusal)) {
                return Self::Refused(Error::new(ErrorKind::InvalidOptions, format!("cannot connect: {text}")));
            }
            return Self::Lost(text);
        };
        let code = answer.code();
        if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) {
            return Self::Again;
        }
        let kind = match (code.code(), code.code().get(..2).unwrap_or_default()) {
            // The server is shutting down or starting, or it has become a replica: all of its sessions are lost.
            (_, "08") | ("57P01" | "57P02" | "57P03" | "25006", _) => return Self::Lost(answer.to_string()),
            ("42501", _) | (_, "28" | "3D") => ErrorKind::InvalidOptions,
            ("53100", _) => ErrorKind::Full,
            ("55P03" | "57014", _) => ErrorKind::Busy,
            // Tables or columns that the statements name are missing or different.
            (_, "42" | "3F") => ErrorKind::UnsupportedFormat,
            (_, "XX") => ErrorKind::Corrupt,
            _ => ErrorKind::Unavailable,
        };
        Self::Refused(Error::new(kind, format!("the server refused a statement: {answer}")))
    }

    /// Returns the error for a call that changed nothing.
    pub(super) fn unchanged(self) -> Error {
        match self {
            Self::Lost(why) => Error::new(ErrorKind::Unavailable, format!("the server cannot be reached: {why}")),
            Self::Again => Error::new(ErrorKind::Busy, "another transaction was in the way"),
            Self::Refused(error) => error,
        }
    }
}

/// Returns the texts of an error and of its causes, because the client's own text often names no cause.
fn text_of(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The notifications of a session. They end with it.
pub(super) type Notifications = UnboundedReceiver<Notification>;

/// Connects to one server, with any TLS.
pub(super) trait Connect: Send + Sync {
    fn connect(&self) -> Boxed<Result<(Client, Notifications), tokio_postgres::Error>>;
}

pub(super) struct With<T> {
    pub(super) config: Config,
    pub(super) tls: T,
    /// True if the server is to refuse every change.
    pub(super) read_only: bool,
}

impl<T> Connect for With<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self) -> Boxed<Result<(Client, Notifications), tokio_postgres::Error>> {
        let (config, tls, read_only) = (self.config.clone(), self.tls.clone(), self.read_only);
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            let (sender, notifications) = unbounded_channel();
            tokio::spawn(async move {
                while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                    if let AsyncMessage::Notification(notification) = message {
                        // This fails in all sessions but the keeper's, which have no receiver.
                        let _ = sender.send(notification);
                    }
                }
            });
            if read_only {
                client.batch_execute("SET default_transaction_read_only = on").await?;
            }
            Ok((client, notifications))
        })
    }
}

/// A session, used by one call at a time.
pub(super) struct Session {
    pub(super) client: Client,
    schema: Arc<str>,
    prepared: HashMap<Query, Statement>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("is_closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Session {
    /// Prepares a statement, unless this session has done so.
    pub(super) async fn prepare(&mut self, query: Query) -> Result<Statement, Fault> {
        if let Some(statement) = self.prepared.get(&query) {
            return Ok(statement.clone());
        }
        let prepared = self.client.prepare(&query.text(&self.schema)).await;
        let statement = prepared.map_err(|cause| Fault::new(&cause))?;
        self.prepared.insert(query, statement.clone());
        Ok(statement)
    }

    pub(super) async fn rows(&mut self, query: Query, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Fault> {
        let statement = self.prepare(query).await?;
        self.client.query(&statement, values).await.map_err(|cause| Fault::new(&cause))
    }

    pub(super) async fn row(&mut self, query: Query, values: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Fault> {
        Ok(self.rows(query, values).await?.into_iter().next())
    }

    /// Runs statements without parameters.
    pub(super) async fn run(&self, text: &str) -> Result<(), Fault> {
        self.client.batch_execute(text).await.map_err(|cause| Fault::new(&cause))
    }

    /// Runs a statement that returns one value.
    pub(super) async fn value<T>(&self, text: &str, values: &[&(dyn ToSql + Sync)]) -> Result<T, Fault>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let row = self.client.query_one(text, values).await.map_err(|cause| Fault::new(&cause))?;
        get(&row, 0)
    }
}

/// Returns a value of a row. Returns an error for a value of another type: the table is then not one of a store.
pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Fault> {
    row.try_get(column).map_err(|cause| {
        Fault::Refused(Error::new(ErrorKind::UnsupportedFormat, format!("a row has another form: {cause}")))
    })
}

/// A pool of sessions.
pub(super) struct Pool {
    connect: Arc<dyn Connect>,
    schema: Arc<str>,
    idle: Mutex<Vec<Session>>,
    /// One permit for each session that may exist.
    permits: Arc<Semaphore>,
    /// True for the sessions of a store that is open.
    is_open: bool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// A session of the pool. [`Pool::give_back`] returns it; a drop ends it, which rolls back its transaction.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) session: Session,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(connect: Arc<dyn Connect>, schema: Arc<str>, size: usize, is_open: bool) -> Self {
        Self { connect, schema, idle: Mutex::default(), permits: Arc::new(Semaphore::new(size)), is_open }
    }

    /// Opens a session outside of the pool.
    pub(super) async fn connect(&self) -> Result<(Session, Notifications), Fault> {
        let (client, notifications) = self.connect.connect().await.map_err(|cause| match Fault::new(&cause) {
            // The server has accepted this engine before. Its password or certificate may be being changed.
            Fault::Refused(error) if self.is_open => Fault::Lost(error.to_string()),
            fault => fault,
        })?;
        let session = Session { client, schema: Arc::clone(&self.schema), prepared: HashMap::new() };
        session.run(SETTINGS).await?;
        Ok((session, notifications))
    }

    /// Takes a session. Waits while all are in use.
    pub(super) async fn take(&self) -> Result<Taken, Fault> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|closed| Fault::Lost(closed.to_string()))?;
        loop {
            let idle = self.idle.lock().pop();
            match idle {
                Some(session) if session.client.is_closed() => {}
                Some(session) => return Ok(Taken { session, _permit: permit }),
                None => return Ok(Taken { session: self.connect().await?.0, _permit: permit }),
            }
        }
    }

    pub(super) fn give_back(&self, taken: Taken) {
        if !taken.session.client.is_closed() {
            self.idle.lock().push(taken.session);
        }
    }

    /// Ends the idle sessions, after one was lost: the server may have restarted.
    pub(super) fn clear(&self) {
        self.idle.lock().clear();
    }
}

/// The pause before another attempt to reach the server.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);
