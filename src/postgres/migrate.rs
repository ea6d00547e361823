//! Moves a store into a database, and out of one, in one transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use uuid::Uuid;

use super::row::{self, Columns, Numbers, signed, unsigned};
use super::session::{Fault, Session, get};
use super::{Running, Server, answer, deadline_of, failed, open, sql, start_thread};
use crate::store::{Content, StoreKey};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::options::EngineOptions;

/// The largest number of keys that are sent at once, and about the largest size of their contents in bytes.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 4 << 20;

/// Reads the next records: at most 256, and about 8 MiB at most.
const NEXT_RECORDS: &str = "
SELECT manager, key, state, generation, revision, token, updated, expires, body, outcome, octet_length(outcome)
FROM (SELECT p.*, sum(len) OVER (ORDER BY manager, key) - len AS before
      FROM (SELECT *, octet_length(body) + coalesce(octet_length(outcome), 0) AS len FROM {s}.records
            WHERE (manager, key) > ($1::text, $2::bytea) AND state > 0 ORDER BY manager, key LIMIT 256) p) r
WHERE before < 8388608 ORDER BY manager, key";

/// Reads the next rows: at most 256, and about 8 MiB at most.
const NEXT_ROWS: &str = "
SELECT \"table\", key, value
FROM (SELECT p.*, sum(octet_length(value)) OVER (ORDER BY \"table\", key) - octet_length(value) AS before
      FROM (SELECT * FROM {s}.rows WHERE (\"table\", key) > ($1::text, $2::bytea) ORDER BY \"table\", key LIMIT 256) p) r
WHERE before < 8388608 ORDER BY \"table\", key";

const ADD_RECORDS: &str = "
INSERT INTO {s}.records
       (manager, key, state, generation, revision, token, owner, change, updated, expires, updated_at, body, outcome)
SELECT a.manager, a.key, a.state, a.generation, a.revision, a.token, 0, 0, a.updated, a.expires,
       to_timestamp(a.wall / 1000.0), a.body, a.outcome
FROM unnest($1::text[], $2::bytea[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
            $9::bigint[], $10::bytea[], $11::bytea[])
     a (manager, key, state, generation, revision, token, updated, expires, wall, body, outcome)";

const ADD_ROWS: &str = "
INSERT INTO {s}.rows (\"table\", key, value) SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[])";

/// A transaction of one session. Its drop rolls back.
pub(super) struct Moving {
    session: Option<Session>,
    handle: Handle,
    _running: Running,
    place: std::path::PathBuf,
    schema: String,
    timeout: Duration,
}

impl Moving {
    fn connect(server: &Server, options: &EngineOptions) -> Result<Self> {
        options.check()?;
        crate::types::key::check_name("schema", &options.schema)?;
        let (handle, running) = start_thread(&server.place)?;
        let schema = sql::quoted(&options.schema);
        let pool = super::Pool::new(Arc::clone(&server.connect), schema.as_str().into(), 1, false);
        let deadline = deadline_of(options.sync_timeout);
        let connected = answer(&handle, deadline, async move {
            open::test_server(&pool).await?;
            pool.connect().await
        });
        let connected = connected.unwrap_or_else(|| Err(Fault::Lost("it does not answer".to_owned())));
        let (session, _) = connected.map_err(|fault| failed("open store", &server.place, &fault.unchanged()))?;
        let (place, timeout) = (server.place.clone(), options.sync_timeout);
        Ok(Self { session: Some(session), handle, _running: running, place, schema, timeout })
    }

    /// Runs a step in the session. After an error the transaction is rolled back.
    fn step<T, F>(&mut self, step: impl FnOnce(Session, String) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<(T, Session), Fault>> + Send + 'static,
    {
        let gone = || Fault::Lost("its session has ended".to_owned());
        let done = match self.session.take() {
            Some(session) => answer(&self.handle, deadline_of(self.timeout), step(session, self.schema.clone())),
            None => Some(Err(gone())),
        };
        let done = done.unwrap_or_else(|| Err(Fault::Lost("it does not answer".to_owned())));
        let (value, session) = done.map_err(|fault| failed("move store", &self.place, &fault.unchanged()))?;
        self.session = Some(session);
        Ok(value)
    }

    fn refuse<T>(&self, kind: ErrorKind, why: &str) -> Result<T> {
        Err(Error::new(kind, format!("move store {}: {why}", self.place.display())))
    }

    /// Returns an error if an engine has the store open.
    fn check_unused(&mut self, id: [u8; 16]) -> Result<()> {
        let class = super::class_of(id);
        let engines: i64 = self.step(|session, _| async move {
            let engines = session.value(&super::report::engines(class), &[]).await?;
            Ok((engines, session))
        })?;
        if engines > 0 {
            let why = format!("{engines} engines have the store open: stop the services first");
            return self.refuse(ErrorKind::StoreInUse, &why);
        }
        Ok(())
    }
}

/// A store in a database. While this value exists, no engine can change the store.
pub(crate) struct Source {
    moving: Moving,
    pub(crate) id: [u8; 16],
    /// Store time.
    pub(crate) time: u64,
    /// The largest number that the store has drawn.
    pub(crate) last: u64,
    /// The number of records and rows.
    pub(crate) keys: u64,
}

impl Source {
    /// Begins the transaction, in which the store is as it is now, and which blocks every change until its end.
    pub(crate) fn open(server: &Server, options: &EngineOptions) -> Result<Self> {
        let mut moving = Moving::connect(server, options)?;
        let name = options.schema.clone();
        let (id, time, last, keys) = moving.step(|session, schema| async move {
            open::check_is_there(&session, &name).await?;
            // Lock the tables before the first snapshot. An engine takes its lock before it adds its incarnation: later
            // engines wait for the table, and the locks of earlier ones are seen.
            session
                .run(&format!(
                    "BEGIN ISOLATION LEVEL REPEATABLE READ;
                     LOCK TABLE {schema}.incarnations, {schema}.store, {schema}.records, {schema}.rows IN SHARE MODE"
                ))
                .await?;
            let tables = open::read_tables(&session, &name).await?;
            let numbers = format!(
                "SELECT time, (SELECT last_value FROM {schema}.number),
                        (SELECT count(*) FROM {schema}.records WHERE state > 0) + (SELECT count(*) FROM {schema}.rows)
                 FROM {schema}.store"
            );
            let row = session.client.query_one(&numbers, &[]).await.map_err(|cause| Fault::new(&cause))?;
            let [time, last, keys] = [get(&row, 0)?, get(&row, 1)?, get(&row, 2)?].map(unsigned);
            Ok(((tables.id, time, last, keys), session))
        })?;
        moving.check_unused(id)?;
        Ok(Self { moving, id, time, last, keys })
    }

    /// Calls `f` with each record and row, in order.
    pub(crate) fn for_each(&mut self, f: &mut dyn FnMut(StoreKey, Content) -> Result<()>) -> Result<()> {
        for (text, is_records) in [(NEXT_RECORDS, true), (NEXT_ROWS, false)] {
            let mut after = (String::new(), Vec::new());
            loop {
                let from = after.clone();
                let found = self.moving.step(|session, schema| async move {
                    let text = text.replace("{s}", &schema);
                    let rows = session.client.query(&text, &[&from.0, &from.1]).await;
                    let rows = rows.map_err(|cause| Fault::new(&cause))?;
                    let read = rows.iter().map(|row| content(row, is_records));
                    Ok((read.collect::<Result<Vec<_>, _>>()?, session))
                })?;
                if found.is_empty() {
                    break;
                }
                for (name, key, content) in found {
                    let at = if is_records { StoreKey::record(&name, &key) } else { StoreKey::row(&name, &key) };
                    f(at, content)?;
                    after = (name, key);
                }
            }
        }
        Ok(())
    }
}

fn content(row: &tokio_postgres::Row, is_record: bool) -> Result<(String, Vec<u8>, Content), Fault> {
    let (name, key) = (get(row, 0)?, get(row, 1)?);
    if !is_record {
        return Ok((name, key, Content::Row(get::<&[u8]>(row, 2)?.into())));
    }
    let stored = row::record(Numbers::read(row, 3)?, get(row, 8)?, get(row, 10)?, get(row, 9)?)?;
    Ok((name, key, Content::Record(stored)))
}

/// New tables, which no other session sees before the commit.
pub(crate) struct Target {
    moving: Moving,
    records: Vec<(String, Vec<u8>, Columns, i64, i64)>,
    rows: Vec<(String, Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Target {
    /// Begins the transaction, and creates the tables if there are none. They must be empty.
    pub(crate) fn create(server: &Server, options: &EngineOptions, id: [u8; 16]) -> Result<Self> {
        let mut moving = Moving::connect(server, options)?;
        let (name, creates) = (options.schema.clone(), options.create);
        let (found, is_empty) = moving.step(|session, schema| async move {
            session.run("BEGIN").await?;
            open::create_inside(&session, &name, creates).await?;
            session
                .run(&format!(
                    "LOCK TABLE {schema}.incarnations, {schema}.store, {schema}.records, {schema}.rows
                     IN SHARE ROW EXCLUSIVE MODE"
                ))
                .await?;
            let tables = open::read_tables(&session, &name).await?;
            let is_empty =
                format!("SELECT NOT EXISTS (SELECT FROM {schema}.records) AND NOT EXISTS (SELECT FROM {schema}.rows)");
            let is_empty: bool = session.value(&is_empty, &[]).await?;
            Ok(((tables.id, is_empty), session))
        })?;
        if !is_empty {
            let which = if found == id { "this very store already" } else { "another store, which is not empty" };
            return moving.refuse(ErrorKind::InvalidOptions, &format!("schema {} has {which}", options.schema));
        }
        moving.check_unused(found)?;
        Ok(Self { moving, records: Vec::new(), rows: Vec::new(), bytes: 0 })
    }

    /// Adds a record or a row.
    pub(crate) fn add(&mut self, key: &StoreKey, content: &Content) -> Result<()> {
        let Some((name, bytes)) = key.split() else {
            return Err(Error::new(ErrorKind::Corrupt, "a key has no name"));
        };
        let (name, bytes) = (name.to_owned(), bytes.to_vec());
        match content {
            Content::Row(value) => {
                self.bytes += value.len();
                self.rows.push((name, bytes, value.to_vec()));
            }
            Content::Record(stored) => {
                let columns = Columns::new(stored)?;
                self.bytes += columns.body.len() + columns.outcome.as_ref().map_or(0, Vec::len);
                self.records.push((name, bytes, columns, signed(stored.revision), signed(stored.updated_at)));
            }
        }
        if self.bytes >= BATCH_BYTES || self.records.len() + self.rows.len() >= BATCH { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<()> {
        self.bytes = 0;
        let (records, rows) = (std::mem::take(&mut self.records), std::mem::take(&mut self.rows));
        self.moving.step(|session, schema| async move {
            if !records.is_empty() {
                add_records(&session, &schema, &records).await?;
            }
            if !rows.is_empty() {
                let tables: Vec<&str> = rows.iter().map(|(table, ..)| table.as_str()).collect();
                let keys: Vec<&[u8]> = rows.iter().map(|(_, key, _)| key.as_slice()).collect();
                let values: Vec<&[u8]> = rows.iter().map(|(.., value)| value.as_slice()).collect();
                let text = ADD_ROWS.replace("{s}", &schema);
                let added = session.client.execute(&text, &[&tables, &keys, &values]).await;
                added.map_err(|cause| Fault::new(&cause))?;
            }
            Ok(((), session))
        })
    }

    /// Gives the tables the id, the time and the last number of the store, and commits.
    pub(crate) fn commit(mut self, id: [u8; 16], time: u64, last: u64) -> Result<()> {
        self.send()?;
        let id = Uuid::from_bytes(id);
        let (time, last) = (signed(time), signed(last));
        self.moving.step(|session, schema| async move {
            session
                .run(&format!(
                    "UPDATE {schema}.store SET id = '{id}', tick = tick + 1, time = {time};
                     SELECT setval('{schema}.number', greatest({last}, (SELECT last_value FROM {schema}.number)))"
                ))
                .await?;
            Ok(((), session))
        })?;
        let committed = self.moving.step(|session, _| async move {
            session.run("COMMIT").await?;
            Ok(((), session))
        });
        committed.map_err(|error| match error.kind() {
            ErrorKind::Unavailable => {
                let message = format!("the server was lost during the commit, which may have been made: {error}");
                Error::new(ErrorKind::Unsettled, message)
            }
            _ => error,
        })
    }
}

async fn add_records(
    session: &Session,
    schema: &str,
    records: &[(String, Vec<u8>, Columns, i64, i64)],
) -> Result<(), Fault> {
    let all = || records.iter();
    let managers: Vec<&str> = all().map(|(manager, ..)| manager.as_str()).collect();
    let keys: Vec<&[u8]> = all().map(|(_, key, ..)| key.as_slice()).collect();
    let states: Vec<i16> = all().map(|(_, _, columns, ..)| columns.state).collect();
    let number =
        |number: fn(&Columns) -> i64| records.iter().map(|(_, _, columns, ..)| number(columns)).collect::<Vec<i64>>();
    let (generations, tokens) = (number(|columns| columns.generation), number(|columns| columns.token));
    let revisions: Vec<i64> = all().map(|(.., revision, _)| *revision).collect();
    let updated = number(|columns| columns.updated);
    let expires: Vec<Option<i64>> = all().map(|(_, _, columns, ..)| columns.expires).collect();
    let walls: Vec<i64> = all().map(|(.., wall)| *wall).collect();
    let bodies: Vec<&[u8]> = all().map(|(_, _, columns, ..)| columns.body.as_slice()).collect();
    let outcomes: Vec<Option<&[u8]>> = all().map(|(_, _, columns, ..)| columns.outcome.as_deref()).collect();
    let text = ADD_RECORDS.replace("{s}", schema);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 11] =
        [&managers, &keys, &states, &generations, &revisions, &tokens, &updated, &expires, &walls, &bodies, &outcomes];
    session.client.execute(&text, &values).await.map(drop).map_err(|cause| Fault::new(&cause))
}
