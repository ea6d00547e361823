//! The parameters of a claim.

#[cfg(test)]
use crate::types::clock::NEVER;
use crate::types::context::Context;
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::StoredRecord;

/// The parameters of a new generation. Times are in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) by_key: bool,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Fingerprints that older rules compute for the same request.
    pub(crate) accepted: Vec<Fingerprint>,
    pub(crate) context: Context,
    pub(crate) policy: OnInterrupted,
    pub(crate) schema: u32,
    pub(crate) success_ttl: u64,
    pub(crate) failure_ttl: u64,
    pub(crate) released_ttl: u64,
    pub(crate) interrupted_ttl: u64,
    pub(crate) retry_pause: u64,
    /// The time for which the key is remembered after its outcome has expired.
    pub(crate) remember: u64,
    pub(crate) resume: Resume,
    /// True if a fingerprint does not match a record without one.
    pub(crate) strict_fingerprint: bool,
}

/// Limits on a new attempt at a record that has had an owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// The number of interrupted attempts in one generation after which the record is held, whatever its policy.
    pub(crate) max_attempts: u32,
    /// True if the operation has no stages. Then it cannot continue a record on which a stage has committed.
    pub(crate) only_from_start: bool,
}

impl Default for Resume {
    fn default() -> Self {
        Self { max_attempts: u32::MAX, only_from_start: false }
    }
}

impl Start {
    /// True if the fingerprints say that the record belongs to another request.
    pub(super) fn differs(&self, record: &StoredRecord) -> bool {
        (record.fingerprint.is_some() || self.strict_fingerprint) && self.is_other_request(record)
    }

    pub(super) fn is_other_request(&self, record: &StoredRecord) -> bool {
        record.fingerprint.map_or(self.fingerprint.is_some(), |recorded| !self.accepts(recorded))
    }

    /// True if a record with this fingerprint belongs to the same request.
    fn accepts(&self, recorded: Fingerprint) -> bool {
        self.fingerprint == Some(recorded) || self.accepted.contains(&recorded)
    }
}

#[cfg(test)]
impl Start {
    /// Returns the parameters of a claim without a fingerprint, whose record is kept for ever.
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
