//! Waiting for changes by other engines.
//!
//! While a caller waits for a key, its engine looks at the key every 250 ms. This finds every change, and the death of
//! an owner. Notifications only save time: the engine announces that it waits, and an engine that then changes the key
//! notifies it after the commit. Nothing is sent while no caller waits.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Inner;
use super::row::unsigned;
use super::session::{Fault, RETRY_PAUSE, get};
use super::sql::Query;
use crate::store::StoreKey;

/// The time between two looks at the keys that are awaited.
const INTERVAL: Duration = Duration::from_millis(250);
/// The largest number of keys that are remembered for waiters of other engines. Waiters for more keys notice a change
/// by a look.
const MAX_ASKED: usize = 65_536;

/// A change of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// Its owner has given it up or has died. One waiter can take it over.
    GivenUp,
    Changed,
}

type OnChange = Box<dyn Fn(&StoreKey, Happened) + Send + Sync>;

#[derive(Default)]
pub(super) struct Waits {
    pub(super) channel: String,
    awaited: Mutex<HashMap<StoreKey, Awaited>>,
    /// Wakes the task that looks at the keys.
    look: Notify,
    /// The hashes of the keys that callers of other engines wait for.
    asked: Mutex<HashSet<u64>>,
    on_change: OnceLock<OnChange>,
}

#[derive(Debug, Default)]
struct Awaited {
    waiters: usize,
    /// The revision of the last look, and whether the key had a live owner.
    seen: Option<(u64, bool)>,
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("awaited", &self.awaited).finish_non_exhaustive()
    }
}

/// A guard: until it is dropped, changes of a key by other engines are reported.
#[derive(Debug)]
pub(crate) struct Await {
    inner: Arc<Inner>,
    key: StoreKey,
}

impl Await {
    pub(super) fn new(inner: &Arc<Inner>, key: &StoreKey) -> Self {
        inner.waits.awaited.lock().entry(key.clone()).or_default().waiters += 1;
        inner.waits.look.notify_one();
        Self { inner: Arc::clone(inner), key: key.clone() }
    }
}

impl Drop for Await {
    fn drop(&mut self) {
        let mut awaited = self.inner.waits.awaited.lock();
        if let Some(entry) = awaited.get_mut(&self.key) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                awaited.remove(&self.key);
            }
        }
    }
}

impl Waits {
    pub(super) fn new(id: [u8; 16]) -> Self {
        Self { channel: format!("oncekey_{:032x}", u128::from_be_bytes(id)), ..Self::default() }
    }

    pub(super) fn on_change(&self, f: OnChange) {
        // This fails only if a function was set before, and there is one caller.
        let _ = self.on_change.set(f);
    }

    /// Wakes the waiters of a key in this engine.
    pub(super) fn report(&self, key: &StoreKey, happened: Happened) {
        if let Some(report) = self.on_change.get() {
            report(key, happened);
        }
    }

    /// Handles a message of an engine: a verb, the incarnation of the sender, and the hash of a key.
    pub(super) fn heard(&self, message: &str, me: i32) {
        let mut words = message.split(' ');
        let (Some(verb), Some(from), Some(hash)) = (words.next(), words.next(), words.next()) else { return };
        let Some(hash) = hash.parse().ok().filter(|_| from != me.to_string()) else { return };
        if verb == "changed" {
            self.look.notify_one();
        } else {
            let mut asked = self.asked.lock();
            if asked.len() < MAX_ASKED {
                asked.insert(hash);
            }
        }
    }

    /// Returns the message to send after this key has lost its owner, if a caller of another engine waits for the key.
    pub(super) fn answer(&self, key: &StoreKey, me: i32) -> Option<String> {
        let mut asked = self.asked.lock();
        // Nearly always no caller waits.
        if asked.is_empty() {
            return None;
        }
        let hash = hash(key);
        asked.remove(&hash).then(|| format!("changed {me} {hash}"))
    }

    /// Stores the result of a look at a key. Returns the change of the key, and whether to announce that a caller
    /// waits.
    fn found(&self, key: &StoreKey, revision: u64, state: i16, is_owned: bool) -> (Option<Happened>, bool) {
        let mut awaited = self.awaited.lock();
        let Some(entry) = awaited.get_mut(key) else { return (None, false) };
        let is_known = entry.seen.replace((revision, is_owned)) == Some((revision, is_owned));
        match state {
            // Report this again at each look: it may still be too early to declare the owner dead.
            1 if !is_owned => (Some(Happened::GivenUp), false),
            _ if is_known => (None, false),
            1 => (None, true),
            4 => (Some(Happened::GivenUp), false),
            _ => (Some(Happened::Changed), false),
        }
    }
}

/// Returns a hash that is the same in all engines (FNV-1a).
fn hash(key: &StoreKey) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    key.bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Looks at the awaited keys every 250 ms, and after each notification.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        if inner.waits.awaited.lock().is_empty() {
            inner.waits.look.notified().await;
        }
        if look(&inner).await.is_err() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let _ = tokio::time::timeout(INTERVAL, inner.waits.look.notified()).await;
    }
}

async fn look(inner: &Arc<Inner>) -> Result<(), Fault> {
    let keys: Vec<StoreKey> = inner.waits.awaited.lock().keys().cloned().collect();
    let (managers, names): (Vec<&str>, Vec<&[u8]>) = keys.iter().filter_map(StoreKey::split).unzip();
    if managers.is_empty() {
        return Ok(());
    }
    let mut taken = inner.pool.take().await?;
    let me = inner.keeper.last();
    let rows = taken.session.rows(Query::Awaited, &[&managers, &names, &me, &inner.class]).await?;
    inner.pool.give_back(taken);
    let mut left: HashSet<StoreKey> = keys.into_iter().collect();
    for row in rows {
        let key = StoreKey::record(get(&row, 0)?, get(&row, 1)?);
        left.remove(&key);
        report(inner, &key, unsigned(get(&row, 2)?), get(&row, 3)?, get(&row, 4)?);
    }
    // These keys have no row.
    for key in &left {
        report(inner, key, 0, 0, false);
    }
    Ok(())
}

fn report(inner: &Arc<Inner>, key: &StoreKey, revision: u64, state: i16, is_owned: bool) {
    let (happened, asks) = inner.waits.found(key, revision, state, is_owned);
    if let Some(happened) = happened {
        inner.waits.report(key, happened);
    }
    if asks {
        send(inner, format!("asks {} {}", inner.keeper.last(), hash(key)));
    }
}

/// Sends a message in a commit that is not synced. The message may be lost.
pub(super) fn send(inner: &Arc<Inner>, message: String) {
    let sender = Arc::clone(inner);
    inner.handle.spawn(async move {
        let Ok(taken) = sender.pool.take().await else { return };
        let channel = &sender.waits.channel;
        let text = format!("BEGIN; SET LOCAL synchronous_commit = off; NOTIFY {channel}, '{message}'; COMMIT");
        if taken.session.run(&text).await.is_ok() {
            sender.pool.give_back(taken);
        }
    });
}
