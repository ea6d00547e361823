//! A filter in the form in which it is sent to the process that has the store open.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{RecordFilter, longest};
use crate::types::record::Status;
use crate::types::value::Value;

/// The conditions of a filter that can be sent. The client checks all conditions again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SentFilter {
    manager: Option<String>,
    /// The longest of all prefixes.
    key_prefix: Value,
    statuses: Vec<Status>,
    recovery_point: Option<String>,
    context: Vec<(String, Value)>,
    updated_before: Option<SystemTime>,
    updated_since: Option<SystemTime>,
}

impl From<&RecordFilter> for SentFilter {
    fn from(filter: &RecordFilter) -> Self {
        let RecordFilter {
            manager,
            scope: _,
            key_prefix,
            text_prefixes,
            statuses,
            recovery_point,
            context,
            updated_before,
            updated_since,
            predicates: _,
        } = filter.clone();
        let key_prefix = longest(key_prefix, &text_prefixes).into();
        Self { manager, key_prefix, statuses, recovery_point, context, updated_before, updated_since }
    }
}

impl From<SentFilter> for RecordFilter {
    fn from(sent: SentFilter) -> Self {
        let SentFilter { manager, key_prefix, statuses, recovery_point, context, updated_before, updated_since } = sent;
        let key_prefix = key_prefix.into();
        Self {
            manager,
            key_prefix,
            statuses,
            recovery_point,
            context,
            updated_before,
            updated_since,
            ..Self::default()
        }
    }
}
