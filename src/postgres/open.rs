//! Opens a store: tests the server, and finds or creates the tables.

use std::sync::Arc;

use super::row::unsigned;
use super::session::{Fault, Pool, Session, get};
use super::sql::quoted;
use super::{Inner, commit, schema_sql};
use crate::store::{Load, OpenReport, StoreKey};
use crate::types::error::{Error, ErrorKind, Result};

/// The format of the tables that this version reads and writes.
const FORMAT: i32 = 1;
/// The oldest supported version of the server.
const OLDEST: i32 = 130_000;
/// The number of times that the test checks whether each connection still has its own session.
const ROUNDS: usize = 3;

fn unsupported(why: &str) -> Fault {
    Fault::Refused(Error::new(ErrorKind::InvalidOptions, format!("the server cannot hold a store: {why}")))
}

/// Checks that an advisory lock belongs to its session, and that the server's commits are durable.
pub(super) async fn test_server(pool: &Pool) -> Result<(), Fault> {
    let ((holder, _), (other, _)) = (pool.connect().await?, pool.connect().await?);
    let version: i32 = simple(&holder, "SHOW server_version_num").await?;
    if version < OLDEST {
        return Err(unsupported(&format!("its version is {version}, and the oldest supported version is {OLDEST}")));
    }
    if simple::<String>(&holder, "SELECT pg_is_in_recovery()").await? != "f" {
        return Err(unsupported("it is a replica, which accepts no changes: name the primary"));
    }
    for setting in ["fsync", "full_page_writes"] {
        if simple::<String>(&holder, &format!("SHOW {setting}")).await? != "on" {
            return Err(unsupported(&format!("it runs with {setting} = off, so a crash may lose or damage answers")));
        }
    }
    let [a, b, ..] = super::random().to_le_bytes();
    let (class, lock) = (i32::from(a) << 8 | i32::from(b), super::random() & 0x7fff_ffff);
    holder.run(&format!("SELECT pg_advisory_lock({class}, {lock})")).await?;
    let pid: i32 = simple(&holder, "SELECT pg_backend_pid()").await?;
    let pooled = || {
        unsupported(
            "a pooler gives its sessions to several clients: connect to the server directly, or to a pooler in session mode",
        )
    };
    for _ in 0..ROUNDS {
        other.run("BEGIN").await?;
        let got: String = simple(&other, &format!("SELECT pg_try_advisory_xact_lock_shared({class}, {lock})")).await?;
        if simple::<i32>(&other, "SELECT pg_backend_pid()").await? == pid {
            return Err(pooled());
        }
        if got != "f" {
            return Err(unsupported(
                "two sessions got the same lock: its advisory locks lock nothing, or a pooler moves sessions",
            ));
        }
        if simple::<i32>(&holder, "SELECT pg_backend_pid()").await? != pid {
            return Err(pooled());
        }
        other.run("COMMIT").await?;
    }
    holder.run(&format!("SELECT pg_advisory_unlock({class}, {lock})")).await
}

/// Returns the one value of a statement. Prepares no statement, because a pooler may lose it.
async fn simple<T: std::str::FromStr>(session: &Session, text: &str) -> Result<T, Fault> {
    let rows = session.client.simple_query(text).await.map_err(|cause| Fault::new(&cause))?;
    let value = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    value.ok_or_else(|| unsupported(&format!("it does not answer {text}")))
}

/// The store that an open has found or created.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub(super) id: [u8; 16],
    pub(super) report: OpenReport,
}

/// Finds the tables, or creates them if that is allowed.
pub(super) async fn find_or_create(pool: &Pool, schema: &str, allowed: bool) -> Result<Tables, Fault> {
    let (session, _) = pool.connect().await?;
    let created = if is_there(&session, schema).await? {
        false
    } else {
        session.run("BEGIN").await?;
        let created = create_inside(&session, schema, allowed).await?;
        session.run("COMMIT").await?;
        created
    };
    let mut tables = read_tables(&session, schema).await?;
    tables.report.created = created;
    Ok(tables)
}

/// Returns `NotFound` if there are no tables.
pub(super) async fn check_is_there(session: &Session, schema: &str) -> Result<(), Fault> {
    if is_there(session, schema).await? { Ok(()) } else { Err(missing(schema)) }
}

fn missing(schema: &str) -> Fault {
    let message = format!("the database has no store in schema {schema}");
    Fault::Refused(Error::new(ErrorKind::NotFound, message))
}

/// Reads the id of the store. Refuses tables of another format.
pub(super) async fn read_tables(session: &Session, schema: &str) -> Result<Tables, Fault> {
    let name = quoted(schema);
    let row = session.client.query_one(&format!("SELECT uuid_send(id), format FROM {name}.store"), &[]).await;
    let row = row.map_err(|cause| match Fault::new(&cause) {
        Fault::Refused(error) if error.kind() == ErrorKind::UnsupportedFormat => foreign(schema, &error),
        Fault::Lost(why) if !session.client.is_closed() => foreign(schema, &why),
        fault => fault,
    })?;
    let (id, format): (&[u8], i32) = (get(&row, 0)?, get(&row, 1)?);
    if format != FORMAT {
        let message = format!("the store in schema {schema} has format {format}, this version knows {FORMAT}");
        return Err(Fault::Refused(Error::new(ErrorKind::UnsupportedFormat, message)));
    }
    let id = <[u8; 16]>::try_from(id).map_err(|_| foreign(schema, &"its id is no UUID"))?;
    let standbys: String = simple(session, "SHOW synchronous_standby_names").await?;
    let report = OpenReport { clean: true, synchronous_standby: !standbys.is_empty(), ..OpenReport::default() };
    Ok(Tables { id, report })
}

/// Returns the condition in SQL that selects the records in progress whose owners hold no lock.
pub(super) fn orphans(schema: &str, class: i32) -> String {
    format!(
        "state = 1 AND owner IN (
             SELECT owner FROM (SELECT DISTINCT owner FROM {schema}.records WHERE state = 1) o
             WHERE pg_try_advisory_xact_lock_shared({class}, owner))"
    )
}

/// Reads every record whose owner holds no lock. This declares dead owners dead: the TTLs of their records start now.
pub(super) async fn record_deaths(inner: &Arc<Inner>) -> Result<(), Fault> {
    let schema = &inner.schema;
    let taken = inner.pool.take().await?;
    let dead = format!("SELECT manager, key FROM {schema}.records WHERE {}", orphans(schema, inner.class));
    let rows = taken.session.client.query(&dead, &[]).await.map_err(|cause| Fault::new(&cause))?;
    for row in rows {
        let key = StoreKey::record(get(&row, 0)?, get(&row, 1)?);
        commit::read(inner, &key, Load::WithoutOutcome).await.map_err(Fault::Refused)?;
    }
    inner.pool.give_back(taken);
    Ok(())
}

/// Returns the number of interrupted records, with those that a read-only engine shows as interrupted.
pub(super) async fn count_interrupted(inner: &Arc<Inner>) -> Result<u64, Fault> {
    let schema = &inner.schema;
    let shown = if inner.read_only { orphans(schema, inner.class) } else { "false".to_owned() };
    let count = format!("SELECT count(*) FROM {schema}.records WHERE state IN (1, 4, 5) AND (state = 5 OR {shown})");
    let taken = inner.pool.take().await?;
    let interrupted: i64 = taken.session.value(&count, &[]).await?;
    inner.pool.give_back(taken);
    Ok(unsigned(interrupted))
}

fn foreign(schema: &str, why: &dyn std::fmt::Display) -> Fault {
    let message = format!("schema {schema} holds other tables than those of a store: {why}");
    Fault::Refused(Error::new(ErrorKind::UnsupportedFormat, message))
}

/// Returns true if the schema has the tables. Asks the catalog, because `to_regclass` inside a transaction may answer
/// from a cache that does not have another engine's new tables yet.
async fn is_there(session: &Session, schema: &str) -> Result<bool, Fault> {
    let asks =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = $1 AND c.relname = 'store')";
    session.value(asks, &[&schema]).await
}

/// Creates the tables inside a transaction, unless another engine has done so meanwhile. Returns true if this call
/// created them.
pub(super) async fn create_inside(session: &Session, schema: &str, allowed: bool) -> Result<bool, Fault> {
    if !allowed {
        return check_is_there(session, schema).await.map(|()| false);
    }
    session
        .run(&format!("SELECT pg_advisory_xact_lock(hashtext('oncekey'), hashtext('{}'))", schema.replace('\'', "''")))
        .await?;
    let creates = !is_there(session, schema).await?;
    if creates {
        session.run(&schema_sql(schema)).await?;
    }
    Ok(creates)
}
