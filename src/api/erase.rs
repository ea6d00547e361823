//! Erases the data of one user.

use std::sync::Arc;

use crate::api::manager::Manager;
use crate::api::table::Table;
use crate::api::transaction::{self, Setting, Transaction};
use crate::protocol::{ListRange, Protocol, RowRange, Workspace};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::Key;

/// The number of records or rows that one commit removes.
const STEP: usize = 256;

/// The result of an erasure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "records in progress are left"]
pub struct Erased {
    /// The number of removed records.
    pub removed: u64,
    /// The number of records that stay, because they have a live owner.
    pub in_progress: u64,
}

impl<T, E> Manager<T, E> {
    /// Removes all records of this handle's [scope](Manager::scoped) and of the scopes inside it, except those in
    /// progress: the outcomes, failures, contexts and checkpoints of one user. A record with a live owner stays: call
    /// this again later, or [`revoke`](Manager::revoke) the owner first. To erase rows of tables use
    /// [`Table::remove_prefix`](crate::table::Table::remove_prefix).
    ///
    /// Each commit removes up to 256 records, so other callers are not blocked, and removed records stay removed if a
    /// later commit fails. A record that begins during the call may be left: refuse the user's requests first. A later
    /// retry of an erased key runs its operation again. [Durability](crate::guides::durability) explains when the bytes
    /// leave the disk.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let of_ada = payments.scoped("ada")?;
    /// of_ada.execute("order-42", |_claim| Ok(1999)).unwrap();
    /// engine.table("balances")?.insert("ada/eur", "1999")?;
    ///
    /// let erased = of_ada.erase()?;
    /// assert_eq!((erased.removed, erased.in_progress), (1, 0));
    /// assert_eq!(engine.table("balances")?.remove_prefix("ada/")?, 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidOptions` for a handle without a scope; `Conflict` if other threads change the same records again and
    /// again.
    pub fn erase(&self) -> Result<Erased> {
        if self.scope.is_empty() {
            let message = format!("manager {} has no scope: only the records of a scope can be erased", self.name());
            return Err(Error::new(ErrorKind::InvalidOptions, message));
        }
        let (protocol, whole) = (self.engine().share(), Key::join(self.scope.iter().map(|part| &**part))?);
        let (mut rest, mut erased) =
            (Some(ListRange::new(Some(self.name()), whole.as_bytes(), false)), Erased::default());
        while let Some(range) = rest {
            let (mut ids, next) = protocol.list_keys(&range, STEP)?;
            // Skip the key whose parts are the scope itself: it is outside the scope.
            ids.retain(|id| id.key != whole);
            let step = remove(&protocol, |workspace| protocol.remove_in(workspace, &ids))?;
            erased.removed += step.removed;
            erased.in_progress += step.owned;
            rest = next;
        }
        Ok(erased)
    }
}

impl Table {
    /// Removes the rows whose keys start with `prefix`, and returns their number. An empty prefix removes all rows.
    /// Each commit removes up to 256 rows, and removed rows stay removed if a later commit fails. A row that is
    /// inserted during the call may be left.
    ///
    /// # Errors
    ///
    /// `Conflict` if other threads change the same rows again and again.
    pub fn remove_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<u64> {
        let protocol = self.protocol();
        let (mut rest, mut count) = (Some(RowRange::prefix(self.name(), prefix.as_ref())), 0);
        while let Some(range) = rest {
            let (rows, next) = protocol.row_keys(&range, STEP)?;
            count += remove(protocol, |workspace| protocol.remove_rows_in(workspace, &rows))?;
            rest = next;
        }
        Ok(count)
    }
}

/// Removes one step in one commit.
fn remove<R>(protocol: &Arc<Protocol>, step: impl Fn(&mut Workspace) -> Result<R>) -> Result<R> {
    let setting = Setting { fence: None, faulted: None, should_retry: None };
    let run = |tx: &Transaction| Ok((tx.with_workspace(protocol, &step)?, crate::protocol::rules::Step::Stay));
    transaction::run::<_, Error>(protocol, &setting, run).map(|(removed, _)| removed)
}
