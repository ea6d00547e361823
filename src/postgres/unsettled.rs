//! Claims whose begin had no answer by its deadline.
//!
//! The caller got an error and no claim. If the begin was made all the same, no call would end the record while the
//! process lives. A task finds out whether the begin was made, and then releases the key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::commit::{Write, read};
use super::row::Columns;
use super::session::{Fault, RETRY_PAUSE};
use super::{Happened, Inner};
use crate::store::{Content, Load, StoreKey};
use crate::types::clock::monotonic;
use crate::types::error::Result;

/// The time after which no lost statement can still run: longer than the server's timeout of statements.
const STATEMENTS_END: Duration = Duration::from_secs(40);

/// Releases the key if this begin was made, or is made later.
pub(super) fn give_back(inner: &Arc<Inner>, begin: Arc<Write>) {
    let task = Arc::clone(inner);
    let over = monotonic().checked_add(STATEMENTS_END);
    inner.handle.spawn(async move {
        // The session of the begin is lost, so a statement that the server still runs ends before `over`.
        while !settle(&task, &begin, over).await.unwrap_or(false) {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    });
}

/// Returns true if the key was released, or the begin can no longer be made.
async fn settle(inner: &Arc<Inner>, begin: &Write, over: Option<Instant>) -> Result<bool, Fault> {
    let key = StoreKey::record(&begin.name, &begin.key);
    // Read the record before the search for the change: in the other order, a begin between the two would be missed.
    let found = read(inner, &key, Load::WithoutOutcome).await.map_err(Fault::Refused)?;
    if found.revision == begin.seen {
        // Not made so far.
        return Ok(over.is_some_and(|over| over <= monotonic()));
    }
    let mut taken = inner.pool.take().await?;
    let made = begin.find(&mut taken.session).await?;
    inner.pool.give_back(taken);
    let Some(made) = made.filter(|made| made.revision() == found.revision) else {
        // Another change came first, or has come since.
        return Ok(true);
    };
    let Some(stored) = found.content.as_ref().and_then(Content::record) else { return Ok(true) };
    let columns = Columns::new(&stored.given_back(found.time, inner.clock.wall())).map_err(Fault::Refused)?;
    let write = Write {
        columns,
        seen: made.revision(),
        change: super::random(),
        decided: found.time,
        keeps_expiry: false,
        until: None,
        claimed_by: None,
        ..begin.clone()
    };
    let mut taken = inner.pool.take().await?;
    let given_back = write.make(&mut taken.session, inner.class).await?.is_some();
    inner.pool.give_back(taken);
    if given_back {
        inner.notify_waiters(&key);
        inner.waits.report(&key, Happened::GivenUp);
    }
    Ok(given_back)
}
