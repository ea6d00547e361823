//! SQLite and PostgreSQL, with the same two statements.

use std::path::Path;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use postgres::{Client, NoTls, Statement};
use rusqlite::{Connection, TransactionBehavior};

use super::servers::PostgresServer;
use super::{Key, Mode, OUTCOME, Session, Step, Store, System};

/// One connection that the threads share. SQLite has one writer at a time, and a connection that finds the lock taken
/// sleeps and retries.
pub(super) struct Sqlite(Mutex<Connection>);

impl Sqlite {
    pub(super) fn open(path: &Path, mode: Mode) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let connection = Connection::open(path.join("sqlite"))?;
        let journal: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
        ensure!(journal == "wal", "the journal mode is {journal}");
        // In WAL mode only FULL syncs at each commit. NORMAL syncs at checkpoints, so a power cut loses later commits.
        connection.execute_batch(match mode {
            Mode::Durable => "PRAGMA synchronous=FULL",
            Mode::Relaxed => "PRAGMA synchronous=NORMAL",
        })?;
        connection.execute_batch(
            "PRAGMA cache_size=-65536;
             CREATE TABLE IF NOT EXISTS records (key BLOB PRIMARY KEY, outcome BLOB) WITHOUT ROWID",
        )?;
        Ok(Self(Mutex::new(connection)))
    }
}

impl Store for Sqlite {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>> {
        let mut connection = self.0.lock().unwrap();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut answers = Vec::with_capacity(steps.len());
        for step in steps {
            let changed = match step {
                Step::Begin(key) => transaction
                    .prepare_cached("INSERT INTO records (key) VALUES (?1) ON CONFLICT DO NOTHING")?
                    .execute([key.as_slice()])?,
                Step::Succeed(key) => transaction
                    .prepare_cached("UPDATE records SET outcome = ?2 WHERE key = ?1 AND outcome IS NULL")?
                    .execute([key.as_slice(), OUTCOME])?,
                Step::Forget(key) => {
                    transaction.prepare_cached("DELETE FROM records WHERE key = ?1")?.execute([key.as_slice()])?
                }
            };
            answers.push(changed == 1);
        }
        transaction.commit()?;
        Ok(answers)
    }
}

struct Postgres(PostgresServer);

pub(super) fn postgres(path: &Path, _mode: Mode) -> Result<Box<dyn System>> {
    let server = PostgresServer::start(path)?;
    connect(&server)?.batch_execute("CREATE TABLE IF NOT EXISTS records (key bytea PRIMARY KEY, outcome bytea)")?;
    Ok(Box::new(Postgres(server)))
}

fn connect(server: &PostgresServer) -> Result<Client> {
    let mut config = postgres::Config::new();
    config.host_path(server.socket()).user(server.user()).dbname("postgres");
    Ok(config.connect(NoTls)?)
}

impl System for Postgres {
    /// Each thread has a connection, because the server shares syncs among concurrent commits.
    fn session(&self) -> Box<dyn Session + '_> {
        let mut client = connect(&self.0).unwrap();
        let begin = client.prepare("INSERT INTO records (key) VALUES ($1) ON CONFLICT DO NOTHING").unwrap();
        let succeed = client.prepare("UPDATE records SET outcome = $2 WHERE key = $1 AND outcome IS NULL").unwrap();
        let forget = client.prepare("DELETE FROM records WHERE key = $1").unwrap();
        Box::new(Connected { client, begin, succeed, forget })
    }
}

struct Connected {
    client: Client,
    begin: Statement,
    succeed: Statement,
    forget: Statement,
}

impl Session for Connected {
    fn step(&mut self, step: Step) -> bool {
        let bytes = |key: Key| key.to_vec();
        let changed = match step {
            Step::Begin(key) => self.client.execute(&self.begin, &[&bytes(key)]),
            Step::Succeed(key) => self.client.execute(&self.succeed, &[&bytes(key), &OUTCOME]),
            Step::Forget(key) => self.client.execute(&self.forget, &[&bytes(key)]),
        };
        changed.unwrap() == 1
    }
}
