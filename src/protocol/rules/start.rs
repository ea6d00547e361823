//! What a claim is asked for with.

#[cfg(test)]
use crate::types::clock::NEVER;
use crate::types::context::Context;
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::StoredRecord;

/// What a generation is started with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) by_key: bool,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// What older rules give to the same request.
    pub(crate) accepted: Vec<Fingerprint>,
    pub(crate) context: Context,
    pub(crate) policy: OnInterrupted,
    pub(crate) schema: u32,
    pub(crate) success_ttl: u64,
    pub(crate) failure_ttl: u64,
    pub(crate) released_ttl: u64,
    pub(crate) interrupted_ttl: u64,
    pub(crate) retry_pause: u64,
    /// How long the key is remembered after an outcome has expired.
    pub(crate) remember: u64,
    pub(crate) resume: Resume,
    /// Whether a fingerprint does not match a record that has none.
    pub(crate) strict_fingerprint: bool,
}

/// Limits on going on with a record that has had an owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// Interrupted attempts of one generation after which the record is held under either policy.
    pub(crate) max_attempts: u32,
    /// The operation has no stages: a record on which one has committed is not its own.
    pub(crate) only_from_start: bool,
}

impl Default for Resume {
    fn default() -> Self {
        Self { max_attempts: u32::MAX, only_from_start: false }
    }
}

impl Start {
    /// Whether the record belongs to another request, as far as fingerprints tell.
    pub(super) fn differs(&self, record: &StoredRecord) -> bool {
        (record.fingerprint.is_some() || self.strict_fingerprint) && self.is_other_request(record)
    }

    pub(super) fn is_other_request(&self, record: &StoredRecord) -> bool {
        record.fingerprint.map_or(self.fingerprint.is_some(), |recorded| !self.accepts(recorded))
    }

    /// Whether a record with this fingerprint is of the same request.
    fn accepts(&self, recorded: Fingerprint) -> bool {
        self.fingerprint == Some(recorded) || self.accepted.contains(&recorded)
    }
}

#[cfg(test)]
impl Start {
    /// Of a claim that names nothing, and whose record stays for ever.
    pub(crate) fn plain(policy: OnInterrupted) -> Self {
        Self {
            by_key: false,
            fingerprint: None,
            accepted: Vec::new(),
            context: Context::new(),
            policy,
            schema: 0,
            success_ttl: NEVER,
            failure_ttl: NEVER,
            released_ttl: NEVER,
            interrupted_ttl: NEVER,
            retry_pause: 0,
            remember: 0,
            resume: Resume::default(),
            strict_fingerprint: false,
        }
    }
}
