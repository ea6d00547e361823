//! The server of a store, and how its engine connects.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};

use super::session::{Connect, With};

/// The time limit of making a connection, if the user has set none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server, and how to connect to it.
pub(crate) struct Server {
    pub(super) connect: Arc<dyn Connect>,
    pub(super) place: PathBuf,
}

impl Server {
    pub(crate) fn new<T>(mut config: Config, tls: T, read_only: bool) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(11));
        // This condition finds the primary. A read-only engine with one host does without it, because all sessions of
        // its role may be read-only.
        if !read_only || config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let hosts: Vec<String> = config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                #[cfg(unix)]
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let place = format!("postgres://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default());
        Self { connect: Arc::new(With { config, tls, read_only }), place: place.into() }
    }
}
