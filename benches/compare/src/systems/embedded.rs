//! RocksDB, fjall, redb and sled.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::{Durability, ReadableTable, TableDefinition};

use super::{BEGUN, Key, Mode, OUTCOME, Step, Store, System, direct};

/// Locks for "insert if absent" in engines without such a call: reads and the writes that follow are exclusive for each
/// key.
struct Stripes(Vec<Mutex<()>>);

impl Stripes {
    fn new() -> Self {
        Self((0..4096).map(|_| Mutex::new(())).collect())
    }

    fn lock(&self, key: &Key) -> MutexGuard<'_, ()> {
        let number = usize::from(u16::from_be_bytes([key[14], key[15]]));
        self.0[number % self.0.len()].lock().unwrap()
    }
}

struct Rocks {
    db: rocksdb::DB,
    write: rocksdb::WriteOptions,
    stripes: Stripes,
}

/// Used directly: RocksDB lets concurrent threads share one write and one sync of its log.
pub(super) fn rocksdb(path: &Path, mode: Mode) -> Result<Box<dyn System>> {
    let mut table = rocksdb::BlockBasedOptions::default();
    // Most keys are new. Without a filter, each would be searched in the files.
    table.set_bloom_filter(10.0, false);
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    let mut write = rocksdb::WriteOptions::default();
    // By default the log stays in the page cache and is lost in a power cut. This syncs it before the write returns.
    write.set_sync(mode == Mode::Durable);
    direct(Ok(Rocks { db: rocksdb::DB::open(&options, path)?, write, stripes: Stripes::new() }))
}

impl Store for Rocks {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>> {
        if let [Step::Begin(key)] = steps {
            let _turn = self.stripes.lock(key);
            let is_new = self.db.get_pinned(key)?.is_none();
            if is_new {
                self.db.put_opt(key, BEGUN, &self.write)?;
            }
            return Ok(vec![is_new]);
        }
        let mut batch = rocksdb::WriteBatch::default();
        for step in steps {
            match step {
                Step::Begin(_) => unreachable!("only alone: RocksDB groups by itself"),
                Step::Succeed(key) => batch.put(key, OUTCOME),
                Step::Forget(key) => batch.delete(key),
            }
        }
        self.db.write_opt(batch, &self.write)?;
        Ok(vec![true; steps.len()])
    }
}

pub(super) struct Fjall {
    db: Database,
    records: Keyspace,
    persist: PersistMode,
    stripes: Stripes,
}

impl Fjall {
    pub(super) fn open(path: &Path, mode: Mode) -> Result<Self> {
        let db = Database::builder(path).open()?;
        let records = db.keyspace("records", KeyspaceCreateOptions::default)?;
        let persist = match mode {
            // A write alone reaches only the page cache. `SyncAll` is the fsync that the documentation recommends for
            // durability.
            Mode::Durable => PersistMode::SyncAll,
            Mode::Relaxed => PersistMode::Buffer,
        };
        Ok(Self { db, records, persist, stripes: Stripes::new() })
    }
}

impl Store for Fjall {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>> {
        let _turn = match steps {
            [Step::Begin(key)] => Some(self.stripes.lock(key)),
            _ => None,
        };
        let mut batch = self.db.batch().durability(Some(self.persist));
        let mut begun = HashSet::new();
        let mut answers = Vec::with_capacity(steps.len());
        for step in steps {
            let mut fits = true;
            match step {
                Step::Begin(key) => {
                    // A batch cannot be read before its commit.
                    fits = begun.insert(*key) && !self.records.contains_key(key)?;
                    if fits {
                        batch.insert(&self.records, *key, BEGUN);
                    }
                }
                Step::Succeed(key) => batch.insert(&self.records, *key, OUTCOME),
                Step::Forget(key) => batch.remove(&self.records, *key),
            }
            answers.push(fits);
        }
        batch.commit()?;
        Ok(answers)
    }
}

const RECORDS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("records");
/// redb reuses pages only after a sync. So a run without durability syncs at this interval.
const NOW_AND_THEN: Duration = Duration::from_millis(50);

pub(super) struct Redb {
    db: redb::Database,
    mode: Mode,
    synced: Mutex<Instant>,
}

impl Redb {
    pub(super) fn open(path: &Path, mode: Mode) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let db = redb::Database::create(path.join("redb"))?;
        let write = db.begin_write()?;
        write.open_table(RECORDS)?;
        write.commit()?;
        Ok(Self { db, mode, synced: Mutex::new(Instant::now()) })
    }

    fn durability(&self) -> Durability {
        let mut synced = self.synced.lock().unwrap();
        if self.mode == Mode::Durable || synced.elapsed() > NOW_AND_THEN {
            *synced = Instant::now();
            // The default, set here because the comparison depends on it: the data is on disk when `commit` returns.
            return Durability::Immediate;
        }
        Durability::None
    }
}

impl Store for Redb {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>> {
        let mut write = self.db.begin_write()?;
        write.set_durability(self.durability())?;
        let mut answers = Vec::with_capacity(steps.len());
        {
            let mut records = write.open_table(RECORDS)?;
            for step in steps {
                answers.push(match step {
                    Step::Begin(key) => {
                        let is_new = records.get(key)?.is_none();
                        if is_new {
                            records.insert(key, BEGUN)?;
                        }
                        is_new
                    }
                    Step::Succeed(key) => records.insert(key, OUTCOME)?.is_some(),
                    Step::Forget(key) => records.remove(key)?.is_some(),
                });
            }
        }
        write.commit()?;
        Ok(answers)
    }
}

struct Sled {
    db: sled::Db,
    mode: Mode,
}

/// sled 0.34's `flush` returns when its log is in the page cache and writing has started, without an fsync. A power cut
/// can take what was answered. It is used in this way, and is not counted as durable.
pub(super) fn sled(path: &Path, mode: Mode) -> Result<Box<dyn System>> {
    direct(Ok(Sled { db: sled::open(path)?, mode }))
}

impl Store for Sled {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>> {
        let mut answers = Vec::with_capacity(steps.len());
        for step in steps {
            answers.push(match step {
                Step::Begin(key) => self.db.compare_and_swap(key, None::<&[u8]>, Some(BEGUN))?.is_ok(),
                Step::Succeed(key) => self.db.insert(key, OUTCOME)?.is_some(),
                Step::Forget(key) => self.db.remove(key)?.is_some(),
            });
        }
        if self.mode == Mode::Durable {
            self.db.flush()?;
        }
        Ok(answers)
    }
}
