//! Metrics with a label for each manager, up to a limit.

use std::collections::HashMap;

use parking_lot::RwLock;

/// The number of managers with a label of their own in metrics. The names of managers may come from clients, so their
/// number has no limit.
pub(crate) const LABELS: usize = 64;
/// The label of all further managers. No manager has this name.
pub(crate) const OTHERS: &str = "(other)";

/// The metrics of one name, by the label of their managers.
#[derive(Debug)]
pub(crate) struct ByManager<M>(RwLock<HashMap<String, M>>);

impl<M> Default for ByManager<M> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<M> ByManager<M> {
    /// Calls `f` with the metric of this manager. `new` creates the metric of a label.
    pub(crate) fn with<R>(&self, manager: &str, new: impl FnOnce(String) -> M, f: impl FnOnce(&M) -> R) -> R {
        let known = self.0.read();
        let found = known.get(manager).or_else(|| if known.len() >= LABELS { known.get(OTHERS) } else { None });
        if let Some(found) = found {
            return f(found);
        }
        drop(known);
        let mut known = self.0.write();
        let label = if known.contains_key(manager) || known.len() < LABELS { manager } else { OTHERS };
        f(known.entry(label.to_owned()).or_insert_with(|| new(label.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn managers_beyond_the_limit_share_a_label() {
        let metrics: ByManager<(String, Cell<u64>)> = ByManager::default();
        let add = |manager: &str| {
            let new = |label| (label, Cell::new(0));
            metrics.with(manager, new, |(label, count)| {
                count.set(count.get() + 1);
                (label.clone(), count.get())
            })
        };
        for round in 1..=2 {
            for n in 0..LABELS {
                let name = format!("m{n}");
                assert_eq!(add(&name), (name, round));
            }
        }
        for n in 1..=100 {
            assert_eq!(add(&format!("more{n}")), (OTHERS.to_owned(), n));
        }
        assert_eq!(metrics.0.read().len(), LABELS + 1);
    }
}
