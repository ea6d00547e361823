//! The number and size of the records in a store, by manager and status.

use std::collections::BTreeMap;

use crate::types::record::{RecordInfo, Status};

/// All states, in the order of their counts.
const ALL: [Status; 5] = [Status::Succeeded, Status::Failed, Status::Released, Status::Interrupted, Status::InProgress];

/// The number and size of the records in a store. Returned by [`Engine::usage`](crate::Engine::usage).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The records of each manager that has a record.
    pub managers: BTreeMap<String, ManagerUsage>,
    /// Bytes of the journal's files on disk.
    pub journal_bytes: u64,
    /// Bytes of the record store's files on disk.
    pub sled_bytes: u64,
}

/// The records of a manager, by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagerUsage([StatusUsage; ALL.len()]);

/// The records of a manager with the same status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusUsage {
    /// The number of records.
    pub records: u64,
    /// Bytes of keys, contexts, checkpoints and outcomes.
    pub bytes: u64,
    /// Bytes of encoded outcomes.
    pub outcome_bytes: u64,
}

impl ManagerUsage {
    /// Returns the number and size of the records with this status.
    #[must_use]
    pub fn status(&self, status: Status) -> StatusUsage {
        self.by_status().find(|(other, _)| *other == status).map(|(_, usage)| usage).unwrap_or_default()
    }

    /// Returns each status with the number and size of its records.
    pub fn by_status(&self) -> impl Iterator<Item = (Status, StatusUsage)> + '_ {
        ALL.into_iter().zip(self.0)
    }

    /// Returns the bytes of encoded outcomes, of all states together.
    #[cfg(feature = "cli")]
    pub(crate) fn outcome_bytes(&self) -> u64 {
        self.0.iter().map(|usage| usage.outcome_bytes).sum()
    }

    pub(crate) fn add(&mut self, info: &RecordInfo) {
        let bytes = info.key().as_bytes().len()
            + info.context().iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
            + info.checkpoint().map_or(0, <[u8]>::len);
        for (usage, status) in self.0.iter_mut().zip(ALL) {
            if status == info.status() {
                usage.records += 1;
                usage.outcome_bytes += info.outcome_bytes();
                usage.bytes += bytes as u64 + info.outcome_bytes();
            }
        }
    }
}

#[cfg(feature = "metrics")]
pub(crate) use gauges::Gauges;

#[cfg(feature = "metrics")]
mod gauges {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    use super::{Status, Usage};
    use crate::types::labels::{LABELS, OTHERS};
    use crate::types::stats::Gauge;

    /// The gauges of one engine, as they were last set.
    #[derive(Debug)]
    pub(crate) struct Gauges {
        /// For each label and status: the gauges of records, of their bytes, and of bytes of outcomes.
        records: Mutex<BTreeMap<(String, &'static str), [Gauge; 3]>>,
        journal: Gauge,
        sled: Gauge,
    }

    impl Default for Gauges {
        fn default() -> Self {
            let (journal, sled) = (Gauge::new("oncekey_journal_disk_bytes"), Gauge::new("oncekey_sled_disk_bytes"));
            Self { records: Mutex::default(), journal, sled }
        }
    }

    impl Gauges {
        pub(crate) fn set(&self, usage: &Usage) {
            // Before they are set: two calls at once must not mix.
            let mut gauges = self.records.lock();
            let mut labels: Vec<String> = gauges.keys().map(|(label, _)| label.clone()).collect();
            labels.dedup();
            let mut sums: BTreeMap<(String, &'static str), [u64; 3]> = BTreeMap::new();
            for (manager, used) in &usage.managers {
                let is_known = labels.contains(manager);
                if !is_known && labels.len() < LABELS {
                    labels.push(manager.clone());
                }
                let label = if labels.contains(manager) { manager } else { OTHERS };
                for (status, used) in used.by_status() {
                    let sum = sums.entry((label.to_owned(), name(status))).or_default();
                    for (sum, more) in sum.iter_mut().zip([used.records, used.bytes, used.outcome_bytes]) {
                        *sum += more;
                    }
                }
            }
            for (at, gauges) in gauges.iter() {
                let sum = sums.remove(at).unwrap_or_default();
                gauges.iter().zip(sum).for_each(|(gauge, value)| gauge.set(value));
            }
            for ((label, status), sum) in sums {
                let names = ["oncekey_records", "oncekey_record_bytes", "oncekey_outcome_bytes"];
                let new = names.map(|name| Gauge::of(name, &label, status));
                new.iter().zip(sum).for_each(|(gauge, value)| gauge.set(value));
                gauges.insert((label, status), new);
            }
            self.journal.set(usage.journal_bytes);
            self.sled.set(usage.sled_bytes);
        }
    }

    fn name(status: Status) -> &'static str {
        match status {
            Status::InProgress => "in_progress",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Released => "released",
            Status::Interrupted => "interrupted",
        }
    }
}
