//! Runs transactions, stages and changes of rows, and compares them with a map.

use std::collections::BTreeMap;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use oncekey::{
    Engine, ErrorKind, Manager, Transaction,
    clock::ManualClock,
    stage::{Next, PhaseError},
};

const MAX_STEPS: usize = 30;
const TABLES: [&str; 2] = ["a", "b"];

#[derive(Debug, Arbitrary)]
enum Act {
    Insert { place: Place, len: u16 },
    Remove(Place),
    Get(Place),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Arbitrary)]
struct Place {
    table: bool,
    key: [u8; 2],
}

#[derive(Debug, Arbitrary)]
enum Step {
    Phase {
        acts: Vec<Act>,
        fails: bool,
    },
    /// Runs a stage of the only claim.
    Stage {
        acts: Vec<Act>,
        fails: bool,
        ends: bool,
    },
    Blind(Act),
    Scan {
        table: bool,
        from: [u8; 2],
        to: [u8; 2],
    },
    Prefix {
        table: bool,
        prefix: Vec<u8>,
    },
    Reopen,
}

type Map = BTreeMap<Place, Vec<u8>>;

impl Place {
    fn table(self) -> &'static str {
        TABLES[usize::from(self.table)]
    }

    /// Returns one of few keys, so that they collide. Keys have two lengths.
    fn key(self) -> Vec<u8> {
        if self.key[0] % 2 == 0 { vec![self.key[0] % 8] } else { vec![self.key[0] % 8, self.key[1] % 4] }
    }

    fn plain(self) -> Self {
        let key = self.key();
        Self { table: self.table, key: [key[0], key.get(1).copied().unwrap_or(0)] }
    }
}

/// Returns a value. Some are so large that they are stored in chunks.
fn value(len: u16, salt: u8) -> Vec<u8> {
    (0..len % 10_000).map(|at| at.to_le_bytes()[0].wrapping_mul(31) ^ salt).collect()
}

fn acted(acts: &[Act], rows: &mut Map) -> Vec<Option<Vec<u8>>> {
    let mut seen = Vec::new();
    for (salt, act) in (0..).zip(acts) {
        match act {
            Act::Insert { place, len } => drop(rows.insert(place.plain(), value(*len, salt))),
            Act::Remove(place) => drop(rows.remove(&place.plain())),
            Act::Get(place) => seen.push(rows.get(&place.plain()).cloned()),
        }
    }
    seen
}

fn act(tx: &Transaction, acts: &[Act]) -> oncekey::Result<Vec<Option<Vec<u8>>>> {
    let mut seen = Vec::new();
    for (salt, act) in (0..).zip(acts) {
        match act {
            Act::Insert { place, len } => tx.table(place.table())?.insert(place.key(), value(*len, salt))?,
            Act::Remove(place) => tx.table(place.table())?.remove(place.key())?,
            Act::Get(place) => seen.push(tx.table(place.table())?.get(place.key())?.map(|value| value.to_vec())),
        }
    }
    Ok(seen)
}

struct Run {
    engine: Engine,
    rows: Map,
    /// The number of ended claims.
    ended: u64,
}

fn opened(path: &Path) -> Engine {
    Engine::options().segment_bytes(16 << 10).clock(ManualClock::new()).open(path).unwrap()
}

impl Run {
    fn step(&mut self, path: &Path, step: &Step) {
        match step {
            Step::Phase { acts, fails } => {
                let mut rows = self.rows.clone();
                let seen = acted(acts, &mut rows);
                let done = self.engine.atomic_phase(|tx| {
                    assert_eq!(act(tx, acts)?, seen);
                    if *fails { Err(PhaseError::User("no")) } else { Ok(()) }
                });
                assert_eq!(done.is_err(), *fails);
                self.keep(rows, *fails);
            }
            Step::Stage { acts, fails, ends } => self.stage(acts, *fails, *ends),
            Step::Blind(act) => self.blind(act),
            Step::Scan { table, from, to } => {
                let name = TABLES[usize::from(*table)];
                let is_in = |key: &[u8]| (&from[..]..&to[..]).contains(&key);
                if from <= to {
                    let found = self.engine.table(name).unwrap().range(&from[..]..&to[..]).unwrap();
                    self.compare(*table, found, is_in);
                }
            }
            Step::Prefix { table, prefix } => {
                let found = self.engine.table(TABLES[usize::from(*table)]).unwrap().prefix(prefix).unwrap();
                self.compare(*table, found, |key| key.starts_with(prefix));
            }
            Step::Reopen => {
                self.engine.clone().abort().unwrap();
                self.engine = opened(path);
            }
        }
    }

    fn keep(&mut self, rows: Map, fails: bool) {
        if !fails {
            self.rows = rows;
        }
    }

    fn stage(&mut self, acts: &[Act], fails: bool, ends: bool) {
        let ops: Manager<u64, u64> = self.engine.manager("ops").unwrap();
        let mut claim = ops.begin(format!("k-{}", self.ended)).unwrap().into_claim().expect("released");
        let mut rows = self.rows.clone();
        let seen = acted(acts, &mut rows);
        let done = claim.work_stage(|tx| {
            assert_eq!(act(tx, acts)?, seen);
            if fails {
                return Err(PhaseError::User("no"));
            }
            Ok(if ends { Next::Succeed(7) } else { Next::advance("on") })
        });
        assert_eq!(done.is_err(), fails);
        self.keep(rows, fails);
        if ends && !fails {
            self.ended += 1;
            assert_eq!(claim.release().unwrap_err().kind(), ErrorKind::ClaimLost);
        } else {
            claim.release().unwrap();
        }
    }

    fn blind(&mut self, act: &Act) {
        let mut rows = self.rows.clone();
        let seen = acted(std::slice::from_ref(act), &mut rows);
        let (Act::Insert { place, .. } | Act::Remove(place) | Act::Get(place)) = act;
        let table = self.engine.table(place.table()).unwrap();
        match act {
            Act::Insert { len, .. } => table.insert(place.key(), value(*len, 0)).unwrap(),
            Act::Remove(_) => table.remove(place.key()).unwrap(),
            Act::Get(_) => assert_eq!(seen, [table.get(place.key()).unwrap().map(|value| value.to_vec())]),
        }
        self.rows = rows;
    }

    fn compare(&self, table: bool, found: oncekey::table::Rows, is_in: impl Fn(&[u8]) -> bool) {
        let found: Vec<_> = found.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect();
        let of = self.rows.iter().filter(|(place, _)| place.table == table);
        let mut rows: Vec<_> = of.map(|(place, value)| (place.key(), value.clone())).collect();
        rows.retain(|(key, _)| is_in(key));
        rows.sort();
        assert_eq!(found, rows);
    }
}

/// Asserts that reads return the written rows in key order, and that a transaction takes effect completely or not at
/// all.
pub fn transaction_ops(data: &[u8]) {
    let (_alone, dir) = (super::alone(), super::directory());
    let path = dir.path().join("store");
    let mut run = Run { engine: opened(&path), rows: BTreeMap::new(), ended: 0 };
    let mut bytes = Unstructured::new(data);
    for step in bytes.arbitrary_iter::<Step>().unwrap().take(MAX_STEPS).map_while(Result::ok) {
        run.step(&path, &step);
    }
    run.step(&path, &Step::Reopen);
    for table in [false, true] {
        run.step(&path, &Step::Prefix { table, prefix: Vec::new() });
    }
    run.engine.close().unwrap();
}
