//! The report about the server and the schema of a store, for operators.

use std::sync::Arc;

use super::row::unsigned;
use super::session::{Fault, get};
use super::{Inner, Store, open};
use crate::types::error::Result;

/// The state of the server of a store on PostgreSQL. See [`Engine::server_report`](crate::Engine::server_report).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerReport {
    /// The version of the server.
    pub version: String,
    /// The name of the schema of the store.
    pub schema: String,
    /// The format of the store's tables.
    pub format: u32,
    /// The number of engines that have the store open and hold a lock. Those that are read-only hold none.
    pub engines: u64,
    /// The number of records in progress whose owners hold no lock. They are not recorded as interrupted yet.
    pub orphaned: u64,
    /// The server's setting `synchronous_standby_names`. If it is empty, no commit waits for a standby, and a failover
    /// may lose the last answers.
    pub standby_names: String,
    /// The number of standbys that are connected, if the role may see them.
    pub standbys: u64,
    /// The privileges that a service needs and the role of this engine lacks, such as "INSERT into records".
    pub missing_privileges: Vec<String>,
}

/// Selects the privileges that a service needs and the role lacks.
const PRIVILEGES: &str = "
SELECT a.privilege || ' ' || a.word || ' ' || a.name FROM (VALUES
    ('SELECT', 'from', 'store'), ('UPDATE', 'of', 'store'),
    ('SELECT', 'from', 'incarnations'), ('INSERT', 'into', 'incarnations'),
    ('SELECT', 'from', 'records'), ('INSERT', 'into', 'records'), ('UPDATE', 'of', 'records'), ('DELETE', 'from', 'records'),
    ('SELECT', 'from', 'rows'), ('INSERT', 'into', 'rows'), ('UPDATE', 'of', 'rows'), ('DELETE', 'from', 'rows')
) a (privilege, word, name) WHERE NOT has_table_privilege(format('%I.%I', $1::text, a.name), a.privilege)
UNION ALL
SELECT 'USAGE of ' || name FROM unnest(ARRAY['number', 'incarnation']) name
WHERE NOT has_sequence_privilege(format('%I.%I', $1::text, name), 'USAGE')";

impl Store {
    /// Asks the server.
    pub(crate) fn report(&self) -> Result<ServerReport> {
        self.inner.check()?;
        let inner = Arc::clone(&self.inner);
        let found = self.inner.answer(self.inner.deadline(true), async move { inner.retried(|| report(&inner)).await });
        found.unwrap_or_else(|| Err(self.inner.unreachable()))
    }
}

/// Returns the statement that counts the engines that hold their lock. The statement needs no privilege.
pub(super) fn engines(class: i32) -> String {
    // The compaction uses 0. The catalog shows the two halves of a key as unsigned numbers.
    format!(
        "SELECT count(DISTINCT objid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
         AND mode = 'ExclusiveLock' AND classid = ({class}::bigint & 4294967295)::text::oid AND objid <> 0
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
}

async fn report(inner: &Arc<Inner>) -> Result<ServerReport, Fault> {
    let taken = inner.pool.take().await?;
    let (session, schema, class) = (&taken.session, &inner.schema, inner.class);
    let name: String = session.value("SELECT (parse_ident($1))[1]", &[schema]).await?;
    let format: i32 = session.value(&format!("SELECT format FROM {schema}.store"), &[]).await?;
    let engines: i64 = session.value(&engines(class), &[]).await?;
    let orphaned = format!("SELECT count(*) FROM {schema}.records WHERE {}", open::orphans(schema, class));
    let orphaned: i64 = session.value(&orphaned, &[]).await?;
    let standbys: i64 = session.value("SELECT count(*) FROM pg_stat_replication", &[]).await?;
    let missing = session.client.query(PRIVILEGES, &[&name]).await.map_err(|cause| Fault::new(&cause))?;
    let report = ServerReport {
        version: session.value("SELECT current_setting('server_version')", &[]).await?,
        schema: name,
        format: u32::try_from(format).unwrap_or_default(),
        engines: unsigned(engines),
        orphaned: unsigned(orphaned),
        standby_names: session.value("SELECT current_setting('synchronous_standby_names')", &[]).await?,
        standbys: unsigned(standbys),
        missing_privileges: missing.iter().map(|row| get(row, 0)).collect::<Result<_, _>>()?,
    };
    inner.pool.give_back(taken);
    Ok(report)
}
