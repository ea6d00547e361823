//! Reads everything while the store is in service, and says what is wrong.
//!
//! What is in sled is read by the thread that writes it, in steps between groups: so nothing changes during a step, and a
//! problem is one. What the scan counts is kept up with the changes behind it, and at its end compared with what every change
//! says there should be.

use std::collections::VecDeque;

use crossbeam_channel::Sender;

use super::digest::Digest;
use super::format::behind;
use super::format::frame::StoreKey;
use super::tables::{Name, Tables};
use super::values;
use crate::error::{ErrorKind, Result};

/// Problems that are told one by one.
const MAX_PROBLEMS: usize = 100;
/// Entries read in one step, and bytes of their values after which it ends.
const STEP: usize = 16;
const STEP_BYTES: usize = 1 << 20;

/// What [`Engine::verify`](crate::Engine::verify) has read, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Records read, expired ones that are still stored included.
    pub records: u64,
    /// Rows read, of all tables together.
    pub tables: u64,
    /// What is wrong, each with its manager and key, table and key, or file. If there are very many, the last one says how many
    /// more.
    pub problems: Vec<String>,
}

/// Problems, capped.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    told: Vec<String>,
    untold: u64,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        if self.told.len() < MAX_PROBLEMS {
            self.told.push(problem);
        } else {
            self.untold += 1;
        }
    }

    /// What cannot be read is an error; what was read and is wrong is a problem.
    fn sort(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnsupportedFormat) => {
                self.add(error.to_string());
                Ok(())
            }
            other => other,
        }
    }

    fn into_told(mut self) -> Vec<String> {
        if self.untold > 0 {
            self.told.push(format!("and {} more", self.untold));
        }
        self.told
    }
}

/// Scans that were asked for: one is on its way, the others come after it.
#[derive(Debug, Default)]
pub(crate) struct Scans {
    on_its_way: Option<Scan>,
    waiting: VecDeque<Scan>,
}

impl Scans {
    /// `problems` are those that were found elsewhere.
    pub(crate) fn add(&mut self, problems: Problems, reply: Sender<Result<VerifyReport>>) {
        self.waiting.push_back(Scan::new(problems, reply));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.on_its_way.is_none() && self.waiting.is_empty()
    }

    /// Reads on, if there is anything to read. `waiting` is how many records are not in sled yet.
    pub(crate) fn step(&mut self, tables: &Tables, waiting: impl FnOnce() -> Result<u64>) {
        let scan = self.on_its_way.take().or_else(|| self.waiting.pop_front().map(|scan| scan.begin(tables)));
        self.on_its_way = scan.and_then(|scan| scan.step(tables, waiting));
    }
}

#[derive(Debug)]
struct Scan {
    at: Tree,
    from: Vec<u8>,
    counted: Digest,
    problems: Problems,
    reply: Sender<Result<VerifyReport>>,
}

#[derive(Debug)]
enum Tree {
    Records,
    Table(String),
    Expiry,
}

impl Tree {
    fn name(&self) -> Name<'_> {
        match self {
            Self::Records => Name::Records,
            Self::Table(table) => Name::Table(table),
            Self::Expiry => Name::Expiry,
        }
    }
}

impl Scan {
    fn new(problems: Problems, reply: Sender<Result<VerifyReport>>) -> Self {
        Self { at: Tree::Records, from: Vec::new(), counted: Digest::default(), problems, reply }
    }

    /// Before the first step.
    fn begin(self, tables: &Tables) -> Self {
        tables.begin_scan();
        self
    }

    /// Gives itself back if there is more.
    fn step(mut self, tables: &Tables, waiting: impl FnOnce() -> Result<u64>) -> Option<Self> {
        match self.read_on(tables) {
            Ok(true) => Some(self),
            Ok(false) => {
                let report = self.compare(tables).and_then(|()| waiting()).map(|waiting| VerifyReport {
                    records: self.counted.records + waiting,
                    tables: self.counted.rows,
                    problems: std::mem::take(&mut self.problems).into_told(),
                });
                self.end(report)
            }
            Err(error) => {
                tables.end_scan();
                self.end(Err(error))
            }
        }
    }

    fn end(self, result: Result<VerifyReport>) -> Option<Self> {
        // Whoever asked may have gone.
        let _ = self.reply.send(result);
        None
    }

    /// Whether there is more.
    fn read_on(&mut self, tables: &Tables) -> Result<bool> {
        let batch = tables.range(self.at.name(), &self.from, None, STEP)?;
        if batch.is_empty() {
            tables.scanned_all(self.at.name());
            self.from.clear();
            return self.next_tree(tables);
        }
        let mut bytes = 0;
        for (key, value) in batch {
            tables.scanned(self.at.name(), &key, &value);
            let checked = match &self.at {
                Tree::Records => values::check(tables, &StoreKey::from_record_tree(&key), &value),
                Tree::Table(table) => values::check(tables, &StoreKey::row(table, &key), &value),
                Tree::Expiry => values::check_expiry(&key).map(|()| 0),
            };
            bytes += *checked.as_ref().unwrap_or(&0);
            self.problems.sort(checked.map(drop))?;
            self.from = behind(&key);
            if bytes > STEP_BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// Tables come while it goes on, so that each looks for the next.
    fn next_tree(&mut self, tables: &Tables) -> Result<bool> {
        let behind = match &self.at {
            Tree::Records => "",
            Tree::Table(table) => table,
            Tree::Expiry => return Ok(false),
        };
        let next = tables.table_names()?.into_iter().find(|name| name.as_str() > behind);
        if next.is_none() {
            tables.scanned_all_tables();
        }
        self.at = next.map_or(Tree::Expiry, Tree::Table);
        Ok(true)
    }

    fn compare(&mut self, tables: &Tables) -> Result<()> {
        let Some(counted) = tables.end_scan() else { return Ok(()) };
        self.counted = counted;
        if let Some(total) = tables.digest() {
            let total = Digest { unfinished: 0, unfinished_sum: 0, ..total };
            if counted != total {
                self.problems.add(format!("the record store {}", counted.differs(&total)));
            }
            return Ok(());
        }
        // From now on it is known.
        let unfinished = tables.count_in([Name::Unfinished], usize::MAX)?.unwrap_or_default();
        let Digest { unfinished, unfinished_sum, .. } = unfinished;
        tables.set_digest(Some(Digest { unfinished, unfinished_sum, ..counted }));
        Ok(())
    }
}
