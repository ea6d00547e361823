//! LMDB, through heed.
#![allow(unsafe_code, reason = "a mapped file is only as safe as those who open it")]

use std::path::Path;

use anyhow::Result;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};

use super::{BEGUN, Mode, OUTCOME, Step, Store};

/// The size of the address space. It uses neither memory nor disk.
const MAP: usize = 64 << 30;

pub(super) struct Lmdb {
    /// Taken by the close.
    env: Option<Env>,
    records: Database<'static, Bytes, Bytes>,
}

impl Lmdb {
    pub(super) fn open(path: &Path, mode: Mode) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP);
        if mode == Mode::Relaxed {
            // The usual option to avoid waiting; a power cut may also damage the file. Without flags, as in the durable
            // cycle, each commit syncs its pages and then its meta page.
            unsafe { options.flags(EnvFlags::NO_SYNC) };
        }
        let env = unsafe { options.open(path)? };
        let write = env.write_txn()?;
        let created = env.create_databases_and_commit(write, |databases, write| -> heed::Result<_> {
            databases.create_database(write, None).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        let records = created.unwrap_commit();
        Ok(Self { env: Some(env), records })
    }
}

impl Store for Lmdb {
    fn commit(&self, steps: &[Step]) -> Result<Vec<bool>> {
        let Some(env) = &self.env else { unreachable!("only the close takes it") };
        let mut write = env.write_txn()?;
        let mut answers = Vec::with_capacity(steps.len());
        for step in steps {
            answers.push(match step {
                Step::Begin(key) => self.records.get_or_put(&mut write, key, BEGUN)?.is_none(),
                Step::Succeed(key) => {
                    self.records.put(&mut write, key, OUTCOME)?;
                    true
                }
                Step::Forget(key) => self.records.delete(&mut write, key)?,
            });
        }
        write.commit()?;
        Ok(answers)
    }
}

impl Drop for Lmdb {
    fn drop(&mut self) {
        if let Some(env) = self.env.take() {
            env.prepare_for_closing().wait();
        }
    }
}
