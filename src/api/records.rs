//! Lists records.

mod sent;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::protocol::{ListRange, Protocol};
use crate::types::error::Result;
#[cfg(feature = "http")]
use crate::types::error::{Error, ErrorKind};
use crate::types::key::{Key, KeyPrefix, check_name};
use crate::types::record::{RecordInfo, Status};
use crate::types::value::Value;
pub(crate) use sent::SentFilter;

/// The number of records that one batch reads.
const BATCH: usize = 256;

/// Selects the records to list. Without a condition it selects all.
///
/// ```
/// use oncekey::clock::Clock as _;
/// use oncekey::{Status, admin::RecordFilter, clock::SystemClock};
/// use std::time::Duration;
///
/// # let engine = oncekey::Engine::temporary()?;
/// let hour_ago = SystemClock.wall() - Duration::from_secs(3600);
/// let stuck = RecordFilter::new()
///     .manager("payments")
///     .status(Status::InProgress)
///     .updated_before(hour_ago);
/// assert_eq!(engine.records(stuck)?.count(), 0);
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RecordFilter {
    manager: Option<String>,
    /// The scope of the keys and prefixes.
    scope: Arc<[Box<[u8]>]>,
    key_prefix: Vec<u8>,
    /// A key must match all of these.
    text_prefixes: Vec<KeyPrefix>,
    /// The accepted states. Empty means all.
    statuses: Vec<Status>,
    recovery_point: Option<String>,
    context: Vec<(String, Value)>,
    updated_before: Option<SystemTime>,
    updated_since: Option<SystemTime>,
    /// All of these must return true.
    predicates: Vec<Predicate>,
}

/// A condition of the caller's on a record.
#[derive(Clone)]
struct Predicate(Arc<dyn Fn(&RecordInfo) -> bool + Send + Sync>);

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Predicate")
    }
}

impl RecordFilter {
    /// Selects all records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Selects the records of this manager.
    pub fn manager(mut self, name: impl Into<String>) -> Self {
        self.manager = Some(name.into());
        self
    }

    /// Selects the records whose keys start with these bytes. For keys as they are printed, and for scopes, see
    /// [`key_text_prefix`](Self::key_text_prefix).
    pub fn key_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.key_prefix = prefix.as_ref().to_vec();
        self
    }

    /// Selects the records whose keys, as they are printed, start with `prefix`. Several prefixes must all match.
    pub fn key_text_prefix(mut self, prefix: KeyPrefix) -> Self {
        self.text_prefixes.push(prefix);
        self
    }

    /// Selects the records in this state. Several calls select several states.
    pub fn status(mut self, status: Status) -> Self {
        self.statuses.push(status);
        self
    }

    /// Selects the records at this recovery point.
    pub fn recovery_point(mut self, point: impl Into<String>) -> Self {
        self.recovery_point = Some(point.into());
        self
    }

    /// Selects the records whose context has this value under this name. Several calls must all match.
    pub fn context(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.context.push((name.into(), value.into()));
        self
    }

    /// Selects the records whose last change is before `time`, by the wall clock.
    pub fn updated_before(mut self, time: SystemTime) -> Self {
        self.updated_before = Some(time);
        self
    }

    /// Selects the records that last changed at this time or later, by the wall clock.
    pub fn updated_since(mut self, time: SystemTime) -> Self {
        self.updated_since = Some(time);
        self
    }

    /// Selects the records for which `predicate` returns true. Several predicates must all return true.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager, admin::RecordFilter};
    /// # let engine = Engine::temporary()?;
    /// # let payments: Manager<u64> = engine.manager("payments")?;
    /// # payments.execute("k", |_| Ok(7)).unwrap();
    /// let tried_often = RecordFilter::new().matching(|info| info.attempt() > 3);
    /// assert_eq!(engine.records(tried_often)?.count(), 0);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn matching(mut self, predicate: impl Fn(&RecordInfo) -> bool + Send + Sync + 'static) -> Self {
        self.predicates.push(Predicate(Arc::new(predicate)));
        self
    }

    /// Limits the filter to the records of this manager and scope.
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if the filter is for another manager.
    #[cfg(feature = "http")]
    pub(crate) fn limited_to(mut self, manager: &str, scope: &Arc<[Box<[u8]>]>) -> Result<Self> {
        match &self.manager {
            Some(other) if other != manager => {
                let message = format!("the filter is for manager \"{}\", not for {manager}", other.escape_default());
                return Err(Error::new(ErrorKind::InvalidOptions, message));
            }
            _ => self.manager = Some(manager.to_owned()),
        }
        self.scope = Arc::clone(scope);
        Ok(self)
    }

    pub(crate) fn matches(&self, info: &RecordInfo) -> bool {
        info.key().within(&self.scope).is_some_and(|key| key.starts_with(&self.key_prefix))
            && self.text_prefixes.iter().all(|prefix| prefix.matches(info.key()))
            && (self.statuses.is_empty() || self.statuses.contains(&info.status()))
            && self.recovery_point.as_ref().is_none_or(|point| point == info.recovery_point())
            && self.context.iter().all(|(name, value)| info.context().get(name) == Some(value))
            && self.updated_before.is_none_or(|time| info.updated_at() < time)
            && self.updated_since.is_none_or(|time| info.updated_at() >= time)
            && self.predicates.iter().all(|Predicate(holds)| holds(info))
    }

    /// Returns the range that contains all matching records.
    pub(crate) fn range(&self) -> Result<ListRange> {
        if let Some(manager) = &self.manager {
            check_name("manager", manager)?;
        }
        let whole = if self.scope.is_empty() { None } else { Some(Key::join(self.scope.iter().map(|part| &**part))?) };
        let prefix = whole.map_or_else(|| self.key_prefix.clone(), |whole| whole.as_bytes().to_vec());
        let prefix = longest(prefix, &self.text_prefixes);
        Ok(ListRange::new(self.manager.as_deref(), &prefix, self.is_unfinished()))
    }

    /// True if only states of unfinished records are selected. There are few unfinished records.
    fn is_unfinished(&self) -> bool {
        let finished = [Status::Succeeded, Status::Failed];
        !self.statuses.is_empty() && !self.statuses.iter().any(|status| finished.contains(status))
    }
}

/// Returns the longest of the prefixes. All of them must match, so this one selects the smallest range.
fn longest(prefix: Vec<u8>, texts: &[KeyPrefix]) -> Vec<u8> {
    texts.iter().map(KeyPrefix::bytes).fold(prefix, |one, other| if other.len() > one.len() { other } else { one })
}

/// An iterator over records. Ends after an error.
pub struct Records {
    protocol: Arc<Protocol>,
    filter: RecordFilter,
    rest: Option<ListRange>,
    batch: VecDeque<RecordInfo>,
}

impl Records {
    pub(crate) fn new(protocol: Arc<Protocol>, filter: RecordFilter) -> Result<Self> {
        let rest = filter.range()?;
        Ok(Self { protocol, filter, rest: Some(rest), batch: VecDeque::new() })
    }
}

impl Iterator for Records {
    type Item = Result<RecordInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(info) = self.batch.pop_front() {
                return Some(Ok(info));
            }
            match self.protocol.list(&self.rest.take()?, BATCH) {
                Ok((infos, rest)) => {
                    self.batch.extend(infos.into_iter().filter(|info| self.filter.matches(info)));
                    self.rest = rest;
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("filter", &self.filter).finish_non_exhaustive()
    }
}
