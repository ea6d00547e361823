//! oncekey and the ideal log.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use oncekey::{Begin, Claim, Durability, Engine, Manager, ManagerOptions};

use super::servers::PostgresServer;
use super::{BEGUN, Key, Mode, OUTCOME, Session, Step, System};
use crate::shared::VALUE;
use crate::shared::ideal::{Ideal, IdealLog};

pub(crate) struct Oncekey {
    pub(crate) engine: Engine,
    manager: Manager<Vec<u8>, String>,
    value: Vec<u8>,
}

impl Oncekey {
    /// Opens an engine that keeps records for `ttl`. Its own thread deletes expired ones.
    pub(crate) fn open(path: &Path, mode: Mode, ttl: Duration) -> Result<Self> {
        let durability = match mode {
            Mode::Durable => Durability::Immediate,
            Mode::Relaxed => Durability::Eventual { interval: Duration::from_millis(50) },
        };
        Self::with(Engine::options().durability(durability).open(path)?, ttl)
    }

    fn with(engine: Engine, ttl: Duration) -> Result<Self> {
        let manager = engine.manager_with("bench", ManagerOptions::new().success_ttl(ttl))?;
        Ok(Self { engine, manager, value: VALUE.to_vec() })
    }
}

/// The TTL of records that stay until the end of a measurement.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn oncekey(path: &Path, mode: Mode) -> Result<Box<dyn System>> {
    Ok(Box::new(Oncekey::open(path, mode, DAY)?))
}

/// oncekey with its store on a server of PostgreSQL.
struct OnPostgres {
    /// Closed before the server is stopped, by the order of these fields.
    oncekey: Oncekey,
    _server: PostgresServer,
}

pub(super) fn on_postgres(path: &Path, _mode: Mode) -> Result<Box<dyn System>> {
    let server = PostgresServer::start(path)?;
    let engine = Engine::connect(&server.url())?;
    Ok(Box::new(OnPostgres { oncekey: Oncekey::with(engine, DAY)?, _server: server }))
}

impl System for OnPostgres {
    fn session(&self) -> Box<dyn Session + '_> {
        self.oncekey.session()
    }

    fn forget(&self, keys: &[Key]) {
        self.oncekey.forget(keys);
    }
}

impl System for Oncekey {
    fn session(&self) -> Box<dyn Session + '_> {
        Box::new(Owner { system: self, claim: None })
    }

    /// Records expire by themselves.
    fn forget(&self, _keys: &[Key]) {}
}

impl Drop for Oncekey {
    fn drop(&mut self) {
        self.engine.clone().close().unwrap();
    }
}

struct Owner<'a> {
    system: &'a Oncekey,
    claim: Option<Claim<Vec<u8>, String>>,
}

impl Session for Owner<'_> {
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Begin(key) => match self.system.manager.begin(key).unwrap() {
                Begin::Claimed(claim) => self.claim.replace(claim).is_none(),
                _ => false,
            },
            Step::Succeed(_) => self.claim.take().is_some_and(|claim| claim.succeed(&self.system.value).is_ok()),
            Step::Forget(key) => self.system.manager.remove(key).unwrap(),
        }
    }
}

impl System for IdealLog {
    fn session(&self) -> Box<dyn Session + '_> {
        Box::new(Line(self))
    }

    fn forget(&self, keys: &[Key]) {
        IdealLog::forget(self, keys);
    }
}

struct Line<'a>(&'a IdealLog);

impl Session for Line<'_> {
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Begin(key) => self.0.put(&key, BEGUN),
            Step::Succeed(key) => !self.0.put(&key, OUTCOME),
            Step::Forget(key) => {
                self.0.forget(&[key]);
                true
            }
        }
    }
}

fn ideal(path: &Path, kind: Ideal) -> Result<Box<dyn System>> {
    std::fs::create_dir_all(path)?;
    Ok(Box::new(IdealLog::start(&path.join("log"), kind)))
}

pub(super) fn appended(path: &Path, _mode: Mode) -> Result<Box<dyn System>> {
    ideal(path, Ideal::Appended)
}

pub(super) fn overwritten(path: &Path, _mode: Mode) -> Result<Box<dyn System>> {
    ideal(path, Ideal::Overwritten)
}

pub(super) fn unsynced(path: &Path, _mode: Mode) -> Result<Box<dyn System>> {
    ideal(path, Ideal::Unsynced)
}
