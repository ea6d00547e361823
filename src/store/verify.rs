//! Reads everything while the store is in service, and says what is wrong.
//!
//! What is in sled is read by the thread that writes it, in steps between groups: so nothing changes during a step, and a
//! problem is one. What the scan counts is kept up with the changes behind it, and at its end compared with what every change
//! says there should be.

use std::collections::VecDeque;

use ::sled::IVec;
use crossbeam_channel::Sender;

use super::digest::Digest;
use super::expiries::Expiries;
use super::format::behind;
use super::format::frame::StoreKey;
use super::overlay::Overlay;
use super::values;
use crate::store::sled::tables::{Name, Tables};
use crate::types::error::{ErrorKind, Result};

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
    /// Whether what was read could be compared with a checksum of what there should be. If not, the problems are those of what is
    /// there, and nobody knows what is missing. So it is while a store of more than 20,000 records and rows, or with expiries in
    /// more than 1,024 blocks of keys, is counted anew in the background, after an unclean stop; what was lost with that stop is
    /// not known of afterwards either.
    pub compared: bool,
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

/// What a scan reads, and what it mends.
pub(crate) struct Ground<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) overlay: &'a Overlay,
    pub(crate) expiries: &'a mut Expiries,
    /// Whether sled may be given anything.
    pub(crate) has_room: bool,
}

/// A scan is on its way, the others come after it.
#[derive(Debug, Default)]
pub(crate) struct Scans {
    on_its_way: Option<Scan>,
    waiting: VecDeque<Scan>,
}

impl Scans {
    /// Begins with one that nobody asked for, if nobody knows what there should be.
    pub(crate) fn new(tables: &Tables) -> Self {
        let mut scans = Self::default();
        if tables.digest().is_none() {
            scans.waiting.push_back(Scan::new(Purpose::Count));
        }
        scans
    }

    /// `problems` are those that were found elsewhere.
    pub(crate) fn add(&mut self, tables: &Tables, problems: Problems, reply: Sender<Result<VerifyReport>>) {
        // A count that ends before it begins has only adopted what there is.
        let compares = tables.digest().is_some();
        self.waiting.push_back(Scan::new(Purpose::Verify { problems, compares, reply }));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.on_its_way.is_none() && self.waiting.is_empty()
    }

    /// Reads on, if there is anything to read. `waiting` is how many records are not in sled yet.
    pub(crate) fn step(&mut self, mut ground: Ground<'_>, waiting: impl FnOnce() -> Result<u64>) {
        let scan = self.on_its_way.take().or_else(|| {
            let scan = self.waiting.pop_front()?;
            ground.tables.begin_scan();
            ground.expiries.begin_list();
            Some(scan)
        });
        self.on_its_way = scan.and_then(|scan| scan.step(&mut ground, waiting));
    }
}

#[derive(Debug)]
struct Scan {
    at: Tree,
    from: Vec<u8>,
    /// Hints that may be gone were not mended.
    was_without_room: bool,
    purpose: Purpose,
}

#[derive(Debug)]
enum Purpose {
    /// Somebody wants to know what is wrong.
    Verify { problems: Problems, compares: bool, reply: Sender<Result<VerifyReport>> },
    /// Nobody knows what there should be: from its end on it is what there is. On its way hints are mended.
    Count,
}

/// In this order.
#[derive(Debug)]
enum Tree {
    Expiry,
    Records,
    Table(String),
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
    fn new(purpose: Purpose) -> Self {
        Self { at: Tree::Expiry, from: Vec::new(), was_without_room: false, purpose }
    }

    /// Gives itself back if there is more.
    fn step(mut self, ground: &mut Ground<'_>, waiting: impl FnOnce() -> Result<u64>) -> Option<Self> {
        let error = match self.read_on(ground) {
            Ok(true) => return Some(self),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        let Ground { tables, expiries, .. } = ground;
        expiries.end_list();
        let counted = tables.end_scan().unwrap_or_default();
        // A count that failed, or did not mend, leaves all unknown, as it was: the next open counts again.
        let learns = matches!(self.purpose, Purpose::Count) && !self.was_without_room;
        let known = error.map_or_else(|| known(tables, counted, learns), Err);
        if let Purpose::Verify { mut problems, compares, reply } = self.purpose {
            let report = known.and_then(|known| {
                if counted != known {
                    problems.add(format!("the record store {}", counted.differs(&known)));
                }
                Ok(VerifyReport {
                    records: counted.records + waiting()?,
                    tables: counted.rows,
                    compared: compares,
                    problems: problems.into_told(),
                })
            });
            // Whoever asked may have gone.
            let _ = reply.send(report);
        }
        None
    }

    /// Whether there is more.
    fn read_on(&mut self, ground: &mut Ground<'_>) -> Result<bool> {
        let tables = ground.tables;
        let batch = tables.range(self.at.name(), &self.from, None, STEP)?;
        if batch.is_empty() {
            tables.scanned_all(self.at.name());
            self.from.clear();
            return self.next_tree(tables);
        }
        let mut bytes = 0;
        for (key, value) in batch {
            tables.scanned(self.at.name(), &key, &value);
            bytes += self.look(ground, &key, &value)?;
            self.from = behind(&key);
            if bytes > STEP_BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// Says how many bytes it read.
    fn look(&mut self, ground: &mut Ground<'_>, key: &[u8], value: &IVec) -> Result<usize> {
        let Ground { tables, overlay, expiries, has_room } = ground;
        if let Tree::Expiry = self.at {
            let listed = expiries.list(key, value);
            // One that cannot be read leads nowhere: what it should lead to is mended, or told.
            if let Purpose::Verify { problems, .. } = &mut self.purpose {
                problems.sort(listed)?;
            }
            return Ok(value.len());
        }
        let Purpose::Verify { problems, .. } = &mut self.purpose else {
            if !*has_room {
                self.was_without_room = true;
            } else if matches!(self.at, Tree::Records) {
                values::mend_hints(tables, expiries, key, value)?;
            }
            return Ok(value.len());
        };
        let key = match &self.at {
            Tree::Table(table) => StoreKey::row(table, key),
            Tree::Records | Tree::Expiry => StoreKey::from_record_tree(key),
        };
        let checked = values::check(tables, overlay, expiries, &key, value);
        let bytes = *checked.as_ref().unwrap_or(&0);
        problems.sort(checked.map(drop))?;
        Ok(bytes)
    }

    /// Tables come while it goes on, so that each looks for the next.
    fn next_tree(&mut self, tables: &Tables) -> Result<bool> {
        let behind = match &self.at {
            Tree::Expiry => {
                self.at = Tree::Records;
                return Ok(true);
            }
            Tree::Records => "",
            Tree::Table(table) => table,
        };
        let next = tables.table_names()?.into_iter().find(|name| name.as_str() > behind);
        let goes_on = next.is_some();
        match next {
            Some(next) => self.at = Tree::Table(next),
            None => tables.scanned_all_tables(),
        }
        Ok(goes_on)
    }
}

/// What there should be of what a scan counts: if nobody knew, it is what was counted, and known from now on if it `learns`.
fn known(tables: &Tables, counted: Digest, learns: bool) -> Result<Digest> {
    if let Some(total) = tables.digest() {
        return Ok(Digest { unfinished: 0, unfinished_sum: 0, ..total });
    }
    if !learns {
        return Ok(counted);
    }
    let unfinished = tables.count_in([Name::Unfinished], usize::MAX)?.unwrap_or_default();
    let Digest { unfinished, unfinished_sum, .. } = unfinished;
    tables.set_digest(Some(Digest { unfinished, unfinished_sum, ..counted }));
    Ok(counted)
}
